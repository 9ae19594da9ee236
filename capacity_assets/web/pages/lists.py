"""The pages that list: servers, databases, groups, what fills first, bills, and what a search finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from sqlalchemy import Connection

from capacity_assets.foundation.errors import NotFoundError
from capacity_assets.grouping.bill_words import notes
from capacity_assets.grouping.bills import BillGroup, IssuedBill, read_bill_of
from capacity_assets.grouping.groups import WITHOUT_LABEL, Group, groups_of, refuse_unknown_grouping
from capacity_assets.periods import PERIODS, Period, Window
from capacity_assets.web.asked import ROWS_PER_PAGE, Asked
from capacity_assets.web.figures import DatabaseRow, Runway, SizeInWindow
from capacity_assets.web.names import Found, Names
from capacity_assets.web.queries import ORDERS, complete_window, databases, history, runways
from capacity_assets.web.reading import Reader, found, rows

GROUP_WINDOWS = 13
MEMBERS_SHOWN = 20


@dataclass(frozen=True)
class ServerRow:
    """A server in one window."""

    server_id: int
    server: str
    engine: str
    databases: int
    size_mb: int
    change_mb: int | None
    change_percent: float | None
    measured_days: int
    window_days: int
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServersPage:
    """The servers of a window."""

    period: str
    window_start: date | None
    window_end: date | None
    order: str
    engines: Sequence[str]
    engine: str | None
    servers: Sequence[ServerRow]
    page: int
    has_more: bool


@dataclass(frozen=True)
class DatabasesPage:
    """The databases of a window."""

    period: str
    window_start: date | None
    window_end: date | None
    order: str
    engines: Sequence[str]
    engine: str | None
    label: str | None
    databases: Sequence[DatabaseRow]
    page: int
    has_more: bool


@dataclass(frozen=True)
class GroupsPage:
    """Groups of a window, by one key; they add up to the fleet."""

    grouped_by: str
    groupings: Sequence[str]
    period: str
    window_start: date | None
    window_end: date | None
    groups: Sequence[Group]

    @property
    def size_mb(self) -> int:
        """What all groups have."""
        return sum(group.size_mb for group in self.groups)


@dataclass(frozen=True)
class GroupPage:
    """One group; `name` None: what has no such label."""

    grouped_by: str
    name: str | None
    period: str
    sizes: Sequence[SizeInWindow]
    members: Sequence[DatabaseRow]
    has_more_members: bool
    fills_first: Sequence[Runway]

    @property
    def told(self) -> str:
        """The group as people read it."""
        return f"no {self.grouped_by}" if self.name is None else self.name


@dataclass(frozen=True)
class FillingPage:
    """What fills, the first one first."""

    runways: Sequence[Runway]
    page: int
    has_more: bool


@dataclass(frozen=True)
class BillPage:
    """A bill by groups, and which other months and issues there are."""

    month: date | None
    months: Sequence[date]
    grouped_by: str
    groupings: Sequence[str]
    issue: int | None
    issues: Sequence[int]
    currency: str | None
    amount: str | None
    groups: Sequence[BillGroup]
    notes: Sequence[str]
    found: IssuedBill | None = None


@dataclass(frozen=True)
class SearchPage:
    """What a search finds: names that begin with the words first."""

    query: str
    found: Sequence[Found]
    has_more: bool


SERVER_ORDERS = {
    "size": "size_mb DESC",
    "growth": "change_mb DESC NULLS LAST",
    "shrinkage": "change_mb",
    "percent": "change_percent DESC NULLS LAST",
    "name": "server",
}
FILLING_SHOWN = 50


def read_servers(reader: Reader, asked: Asked) -> ServersPage:
    """Read the list of servers. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    period, order, engine = asked.period(), asked.one_of("order", tuple(SERVER_ORDERS)), asked.text("engine") or None
    with reader.transaction() as connection:
        window = _window(connection, asked, period)
        listed: list[ServerRow] = []
        if window is not None:
            parameters = {
                "period": period.name,
                "start": window.start,
                "engine": engine,
                "shown": ROWS_PER_PAGE + 1,
                "skipped": (asked.page - 1) * ROWS_PER_PAGE,
            }
            query = _SERVERS.format(order=SERVER_ORDERS[order])
            listed = found(ServerRow, connection, query, parameters)
        shown, more = listed[:ROWS_PER_PAGE], len(listed) > ROWS_PER_PAGE
        place = (period.name, *_ends(window), order, _engines(connection, period, window), engine)
        return ServersPage(*place, shown, asked.page, more)


def read_databases(reader: Reader, asked: Asked) -> DatabasesPage:
    """Read the list of databases. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    period, order, engine = asked.period(), asked.one_of("order", tuple(ORDERS)), asked.text("engine") or None
    label = asked.label()
    with reader.transaction() as connection:
        window = _window(connection, asked, period)
        listed: list[DatabaseRow] = []
        more = False
        if window is not None:
            listed, more = databases(
                connection, period, window, order=order, engine=engine, label=label, page=asked.page
            )
        place = (period.name, *_ends(window), order, _engines(connection, period, window), engine)
        return DatabasesPage(*place, None if label is None else "=".join(label), listed, asked.page, more)


def read_groups(reader: Reader, asked: Asked) -> GroupsPage:
    """Read the groups. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    by, period = _grouping(asked), asked.period("monthly")
    key = ("groups", by, period.name, asked.day("window"))
    return reader.kept(key, lambda: _read_groups(reader, asked, by, period))


def _read_groups(reader: Reader, asked: Asked, by: str, period: Period) -> GroupsPage:
    with reader.transaction() as connection:
        window = _window(connection, asked, period)
        groups = groups_of(connection, period, window, by) if window else []
        return GroupsPage(by, (*asked.label_keys, *WITHOUT_LABEL), period.name, *_ends(window), groups)


def read_group(reader: Reader, asked: Asked) -> GroupPage:
    """Read one group. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    by, period, name = _grouping(asked), asked.period("monthly"), asked.text("name") or None
    with reader.transaction() as connection:
        window = complete_window(connection, period)
        sizes: list[SizeInWindow] = []
        members: list[DatabaseRow] = []
        more = False
        if window is not None:
            of_group = {"by": by, "name": name}
            sizes = history(connection, _GROUP_HISTORY, period, window, of_group)[-GROUP_WINDOWS:]
            members, more = _members(connection, period, window, by, name)
        if not sizes and not members:
            raise NotFoundError(f"There is no group {name!r} by {by}.")
        condition = _FILLS_IN_GROUP.format(group=_group_expression(by))
        filling = runways(connection, condition, {"by": by, "name": name, "shown": MEMBERS_SHOWN})
        return GroupPage(by, name, period.name, sizes, members, more, filling)


def _members(
    connection: Connection, period: Period, window: Window, by: str, name: str | None
) -> tuple[list[DatabaseRow], bool]:
    if by == "engine":
        return databases(connection, period, window, order="growth", engine=name, shown=MEMBERS_SHOWN)
    if by == "server":
        query = "SELECT server_id FROM capacity_servers WHERE server = :name"
        named = rows(connection, query, {"name": name})
        number = named[0].server_id if named else 0
        return databases(connection, period, window, order="growth", server_id=number, shown=MEMBERS_SHOWN)
    return databases(connection, period, window, order="growth", label=(by, name or ""), shown=MEMBERS_SHOWN)


def read_filling(reader: Reader, asked: Asked) -> FillingPage:
    """Read what fills first. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    with reader.transaction() as connection:
        skipped = (asked.page - 1) * FILLING_SHOWN
        filling = runways(connection, _FILLING, {"shown": FILLING_SHOWN + 1, "skipped": skipped})
        return FillingPage(filling[:FILLING_SHOWN], asked.page, len(filling) > FILLING_SHOWN)


def read_bill_page(reader: Reader, asked: Asked) -> BillPage:
    """Read a bill. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    by, month, issue = _grouping(asked), asked.day("month"), asked.number("issue", 0, 10_000) or None
    groupings = (*asked.label_keys, *WITHOUT_LABEL)
    with reader.transaction() as connection:
        months = [row.month for row in rows(connection, _MONTHS)]
        if month is None and not months:
            return BillPage(None, (), by, groupings, None, (), None, None, (), ())
        window = PERIODS["monthly"].window_of(month or months[0])
        read = read_bill_of(connection, window, by, issue)
        issues = [row.issue for row in rows(connection, _ISSUES, {"month": window.start})]
        bill = read.bill
        amount = None if bill.amount is None else str(bill.amount)
        place = (bill.month, months, by, groupings, bill.issue, issues)
        return BillPage(*place, bill.currency, amount, read.groups, notes(read), read)


def read_search(names: Names, asked: Asked) -> SearchPage:
    """Search the names of servers, databases and volumes. Raises ValidationError."""
    query = (asked.text("q") or "").strip()
    shown = asked.number("shown", ROWS_PER_PAGE, ROWS_PER_PAGE)
    names_found = names.search(query, shown + 1) if query else []
    return SearchPage(query, names_found[:shown], len(names_found) > shown)


def _grouping(asked: Asked) -> str:
    by = asked.text("by") or (asked.label_keys[0] if asked.label_keys else WITHOUT_LABEL[0])
    refuse_unknown_grouping(by, asked.label_keys)
    return by


def _group_expression(by: str) -> str:
    return by if by in WITHOUT_LABEL else "labels ->> CAST(:by AS text)"


def _window(connection: Connection, asked: Asked, period: Period) -> Window | None:
    """Return the window that is asked for, by default the last complete one."""
    day = asked.day("window")
    return complete_window(connection, period) if day is None else period.window_of(day)


def _ends(window: Window | None) -> tuple[date | None, date | None]:
    return (None, None) if window is None else (window.start, window.end)


def _engines(connection: Connection, period: Period, window: Window | None) -> list[str]:
    if window is None:
        return []
    query = """
        SELECT DISTINCT engine FROM capacity_server_growth WHERE period = :period AND window_start = :start
        ORDER BY 1"""
    return [row.engine for row in rows(connection, query, {"period": period.name, "start": window.start})]


_SERVERS = """
SELECT server_id, server, engine, databases, size_mb, change_mb,
       CAST(change_percent AS double precision) AS change_percent, measured_days, window_days, labels
FROM capacity_server_growth
WHERE period = :period AND window_start = :start AND (CAST(:engine AS text) IS NULL OR engine = :engine)
ORDER BY {order}, server_id LIMIT :shown OFFSET :skipped
"""
_GROUP_HISTORY = """
SELECT window_start, window_end, size_mb, change_mb FROM capacity_groups
WHERE period = :period AND window_start >= :first AND grouped_by = :by AND group_name IS NOT DISTINCT FROM :name
"""
_FILLS_IN_GROUP = """
WHERE counted AND full_middle IS NOT NULL AND {group} IS NOT DISTINCT FROM CAST(:name AS text)
  AND CAST(:by AS text) IS NOT NULL
ORDER BY full_middle, server, name LIMIT :shown
"""
_FILLING = """
WHERE counted AND stands_for_itself AND full_middle IS NOT NULL
ORDER BY full_middle, server, name LIMIT :shown OFFSET :skipped
"""
_MONTHS = "SELECT DISTINCT month FROM capacity_bills ORDER BY month DESC"
_ISSUES = "SELECT issue FROM capacity_bills WHERE month = :month ORDER BY issue"
