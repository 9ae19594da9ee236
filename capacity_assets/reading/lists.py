"""Lists of servers and databases, sorted and filtered, and the names that a search finds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from heapq import nsmallest
from itertools import accumulate, islice, starmap
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from capacity_assets.base.periods import Period, Window
from capacity_assets.base.settings import Thresholds
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.reading.access import has_derived, records, rows
from capacity_assets.reading.coverage import UnmeasuredServer, partial_servers
from capacity_assets.reading.forecasts import SubjectKey, Usage, stored_fill_days, usages_of
from capacity_assets.reading.table_growth import largest_tables
from capacity_assets.reading.windows import of_windows

UNKNOWN_ENGINE = "unknown"
"""The engine of servers that are no longer registered, as in the views."""


@dataclass(frozen=True)
class DatabaseRow:
    """A database in one window, MiB."""

    server_id: int
    server: str
    engine: str
    database: str
    size_mb: int
    change_mb: int | None
    change_percent: float | None
    trend: str | None
    measured_days: int
    window_days: int
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DatabaseInList(Usage, DatabaseRow):
    """A database in a list."""


@dataclass(frozen=True)
class ServerRow:
    """A server in one window, MiB; without sizes if it was not measured."""

    server_id: int
    server: str
    engine: str
    databases: int | None = None
    size_mb: int | None = None
    change_mb: int | None = None
    change_percent: float | None = None
    measured_days: int = 0
    window_days: int | None = None
    labels: dict[str, str] = field(default_factory=dict)
    last_day: date | None = None
    """Its last measured day if that is not the newest one; None: never measured, or on the newest day."""
    failure: str | None = None
    reason: str | None = None
    """Why it was not measured since; None: it was measured, or there was no attempt."""
    tried_on: date | None = None
    """Day of the last attempt within a week; None: it was measured, or there was no attempt."""
    is_registered: bool | None = None
    """Whether it was tried from here in the last months; None: it was measured."""
    is_partial: bool = False
    """Whether some of its databases were not measured in the window and are missing in its size."""
    is_change_partial: bool = False
    """Whether that is so in this window or the one before: the change is neither growth nor shrinkage."""


@dataclass(frozen=True)
class ServerInList(Usage, ServerRow):
    """A server in a list."""


_SINCE = ("last_day", "failure", "reason", "tried_on", "is_registered")
RECENT_WINDOWS = 12

_NAMES = ("period", "window_start", "server_id", "server", "engine", "size_mb", "change_mb", "change_percent",
          "measured_days", "window_days")  # fmt: skip
_GROWTH = sa.table(
    "capacity_growth", *map(sa.column, (*_NAMES, "database", "trend", "counted")), sa.column("labels", JSONB)
).columns
_SERVERS = sa.table(
    "capacity_server_growth", *map(sa.column, (*_NAMES, "databases", "is_derived")), sa.column("labels", JSONB)
).columns
_SERVER_COLUMNS = ("server_id", "server", "engine", "databases", "size_mb", "change_mb", "change_percent",
                   "measured_days", "window_days", "labels")  # fmt: skip
_TIES = (_GROWTH.size_mb.desc(), _GROWTH.server_id, _GROWTH.database)
ORDERS: dict[str, tuple[sa.ColumnElement[Any], ...]] = {
    "size": (_GROWTH.size_mb.desc(), *_TIES),
    "growth": (_GROWTH.change_mb.desc(), *_TIES),
    "shrinkage": (_GROWTH.change_mb, *_TIES),
    "percent": (_GROWTH.change_percent.desc().nulls_last(), *_TIES),
    "name": (_GROWTH.database, _GROWTH.server),
}
"""The sort orders of databases; ties have the same order everywhere."""
# Unknown changes are excluded if they would be first, so that an index has the order.
_WITHOUT_INDEX = ("percent", "name")
"""Orders without an index: all rows of a window are sorted. Days have none for any order."""
ROWS_TRIED = 2000
"""Rows of a day among which the least change is found that a list of the largest changes can begin with."""
_CONDITIONS = {"shrinkage": _GROWTH.change_mb < 0, "growth": _GROWTH.change_mb.is_not(None)}
SERVER_ORDERS: dict[str, sa.ColumnElement[Any]] = {
    "size": _SERVERS.size_mb.desc(),
    "growth": _SERVERS.change_mb.desc().nulls_last(),
    "shrinkage": _SERVERS.change_mb,
    "percent": _SERVERS.change_percent.desc().nulls_last(),
    "name": _SERVERS.server,
}


def databases(  # noqa: PLR0913 -- one argument per filter
    connection: sa.Connection,
    period: Period,
    window: Window | None,
    *,
    order: str,
    server_id: int | None = None,
    engine: str | None = None,
    label: tuple[str, str] | None = None,
    page: int = 1,
    shown: int,
) -> tuple[list[DatabaseRow], bool]:
    """Return a page of the databases of a window, and whether there are more. Without a window there are none.

    They are the databases of one server, or all databases that count in sums. An empty label value selects those
    without that key.
    """
    if window is None:
        return [], False
    skipped = (page - 1) * shown
    if label is None and is_sorted_as_a_whole(period, order):
        keys = database_keys(
            *(connection, period, window),
            order=order,
            server_id=server_id,
            engine=engine,
            skipped=skipped,
            shown=shown + 1,
        )
        return databases_of_keys(connection, period, window, order, keys[:shown]), len(keys) > shown
    conditions = _conditions(connection, period, window, order, server_id, engine)
    if label is not None:
        candidates = _is_one_of(_labelled_servers(connection, *label, window.end))
        conditions.append(candidates if label[1] else sa.not_(candidates))
    statement = sa.select(*_DATABASE_COLUMNS).where(*conditions).order_by(*ORDERS[order])
    if label is not None:
        # Rows come from an index in order; labels are looked up row by row until the page is full.
        every = statement.offset(sa.literal_column("0")).subquery("sorted")
        statement = sa.select(every).where(_has_label(every.c.labels, *label))
    listed = records(DatabaseRow, connection, statement.limit(shown + 1).offset(skipped))
    return listed[:shown], len(listed) > shown


def is_sorted_as_a_whole(period: Period, order: str) -> bool:
    """Return whether a list needs all rows of a window to be sorted, because no index has its order."""
    return order in _WITHOUT_INDEX or period.days == 1


def database_keys(  # noqa: PLR0913 -- one argument per filter
    connection: sa.Connection,
    period: Period,
    window: Window,
    *,
    order: str,
    server_id: int | None = None,
    engine: str | None = None,
    skipped: int = 0,
    shown: int,
) -> list[tuple[int, str]]:
    """Return server IDs and names of a part of the databases that `databases` lists, in order."""
    conditions = _conditions(connection, period, window, order, server_id, engine)
    statement = sa.select(_GROWTH.server_id, _GROWTH.database).where(*conditions).order_by(*ORDERS[order])
    return [(row.server_id, row.database) for row in rows(connection, statement.limit(shown).offset(skipped))]


def databases_of_keys(
    connection: sa.Connection, period: Period, window: Window, order: str, keys: Sequence[tuple[int, str]]
) -> list[DatabaseRow]:
    """Return these databases of a window in order; names of servers and labels are looked up for them only."""
    if not keys:
        return []
    server_ids = sa.literal([server_id for server_id, _ in keys], sa.ARRAY(sa.Integer))
    names = sa.literal([name for _, name in keys], sa.ARRAY(sa.Text))
    shown = sa.func.unnest(server_ids, names).table_valued("server_id", "database", name="shown").render_derived()
    is_shown = sa.and_(_GROWTH.server_id == shown.c.server_id, _GROWTH.database == shown.c.database)
    statement = sa.select(*_DATABASE_COLUMNS).where(*_of_window(period, window), is_shown).order_by(*ORDERS[order])
    return records(DatabaseRow, connection, statement)


def _of_window(period: Period, window: Window) -> list[sa.ColumnElement[bool]]:
    return [_GROWTH.period == period.name, _GROWTH.window_start == window.start]


def _conditions(  # noqa: PLR0913, PLR0917 -- the window and one argument per filter
    connection: sa.Connection, period: Period, window: Window, order: str, server_id: int | None, engine: str | None
) -> list[sa.ColumnElement[bool]]:
    """Return the conditions for the databases of a list, without that for a label."""
    counts = _counts_in_sums(connection) if server_id is None else _GROWTH.server_id == server_id
    conditions = [*_of_window(period, window), counts]
    if engine == UNKNOWN_ENGINE:
        conditions.append(_GROWTH.engine == engine)
    elif engine:
        # With a list of servers, PostgreSQL estimates the matching rows well and reads the index until a page is full.
        of_engine = rows(connection, "SELECT server_id FROM capacity_servers WHERE engine = :engine", engine=engine)
        conditions.append(_is_one_of([row.server_id for row in of_engine]))
    if order in _CONDITIONS:
        conditions.append(_CONDITIONS[order])
    return conditions


def most_changed(
    connection: sa.Connection, period: Period, window: Window, *, shown: int
) -> tuple[bool, list[DatabaseRow], list[DatabaseRow]]:
    """Return whether any change in a window is known, and the databases that grew most and shrank most in it."""
    if period.days == 1:
        grown, shrunk = _most_changed_in_a_day(connection, period, window, shown)
    else:
        grown, _ = databases(connection, period, window, order="growth", shown=shown)
        shrunk, _ = databases(connection, period, window, order="shrinkage", shown=shown)
    return bool(grown), [row for row in grown if (row.change_mb or 0) > 0], shrunk


def _most_changed_in_a_day(
    connection: sa.Connection, period: Period, window: Window, shown: int
) -> tuple[list[DatabaseRow], list[DatabaseRow]]:
    """Return the first rows of the lists by growth and by shrinkage; without an index, both from one reading."""
    of_window = _of_window(period, window)
    known = [*of_window, _counts_in_sums(connection), _GROWTH.change_mb.is_not(None)]
    some = sa.select(_GROWTH.change_mb).where(*known).limit(ROWS_TRIED).cte("some").prefix_with("MATERIALIZED")
    # What is first among some rows bounds what can be first among all. The bound is read once, as a value.
    change = some.c.change_mb
    bounds = [sa.select(change).order_by(order).offset(shown).limit(1) for order in (change.desc(), change)]
    least_growth, least_shrinkage = (sa.func.coalesce(bound.scalar_subquery(), _GROWTH.change_mb) for bound in bounds)
    can_be_listed = sa.or_(_GROWTH.change_mb >= least_growth, _GROWTH.change_mb <= least_shrinkage)
    columns = (_GROWTH.server_id, _GROWTH.database, _GROWTH.size_mb, _GROWTH.change_mb)
    moved = sa.select(*columns).where(*known, can_be_listed).cte("moved").prefix_with("MATERIALIZED").columns
    ties = (moved.size_mb.desc(), moved.server_id, moved.database)
    keys = [
        sa.select(moved.server_id, moved.database, sa.literal(is_growth).label("is_growth"), place.label("place"))
        .where(is_listed)
        .order_by(place)
        .limit(shown)
        for is_growth, is_listed, place in (
            (True, sa.true(), sa.func.row_number().over(order_by=(moved.change_mb.desc(), *ties))),
            (False, moved.change_mb < 0, sa.func.row_number().over(order_by=(moved.change_mb, *ties))),
        )
    ]
    listed = sa.union_all(*keys).subquery("listed")
    is_listed = sa.and_(_GROWTH.server_id == listed.c.server_id, _GROWTH.database == listed.c.database)
    statement = sa.select(listed.c.is_growth, *_DATABASE_COLUMNS).where(*of_window, is_listed).order_by(listed.c.place)
    changed = records(lambda is_growth, **row: (is_growth, DatabaseRow(**row)), connection, statement)
    return [row for is_growth, row in changed if is_growth], [row for is_growth, row in changed if not is_growth]


def servers(  # noqa: PLR0913 -- one argument per filter
    connection: sa.Connection,
    period: Period,
    window: Window | None,
    *,
    order: str,
    engine: str | None = None,
    skipped: int = 0,
    shown: int,
) -> tuple[list[ServerRow], bool]:
    """Return servers of a window in order, and whether there are more. Without a window there are none."""
    if window is None:
        return [], False
    conditions = _servers_of(connection, period, window)
    if engine is not None:
        conditions.append(_SERVERS.engine == engine)
    statement = sa.select(*_columns(_SERVERS, _SERVER_COLUMNS)).where(*conditions)
    in_order = statement.order_by(SERVER_ORDERS[order], _SERVERS.server_id)
    listed = records(ServerRow, connection, in_order.limit(shown + 1).offset(skipped))
    return listed[:shown], len(listed) > shown


def _columns(view: ReadOnlyColumnCollection[str, Any], names: Iterable[str]) -> list[sa.ColumnElement[Any]]:
    percent = sa.cast(view.change_percent, sa.Double).label("change_percent")
    return [percent if name == "change_percent" else view[name] for name in names]


_DATABASE_COLUMNS = _columns(_GROWTH, DatabaseRow.__dataclass_fields__)


def with_usage_of_databases(  # noqa: PLR0913, PLR0917 -- what is listed, and how it is marked
    connection: sa.Connection,
    period: Period,
    window: Window | None,
    listed: Sequence[DatabaseRow],
    thresholds: Thresholds,
    today: date,
    *,
    with_recent: bool = True,
) -> list[DatabaseInList]:
    """Return the rows of a list with the limit that each reaches first and, `with_recent`, their recent sizes."""
    subjects = [(row.server_id, row.database) for row in listed]
    recent = _recent_sizes(connection, _RECENT_DATABASES, period, window, subjects) if with_recent else {}
    usages = usages_of(connection, today, subjects, thresholds) if subjects else {}
    return [
        DatabaseInList(**vars(row), **vars(replace(usages.get(subject, Usage()), recent=recent.get(subject, ()))))
        for row, subject in zip(listed, subjects, strict=True)
    ]


def with_usage_of_servers(  # noqa: PLR0913, PLR0917 -- what is listed, and how it is marked
    connection: sa.Connection,
    period: Period,
    window: Window | None,
    listed: Sequence[ServerRow | UnmeasuredServer],
    unmeasured: Mapping[int, UnmeasuredServer],
    thresholds: Thresholds,
    today: date,
    *,
    with_recent: bool = True,
) -> list[ServerInList]:
    """Return the rows of a list as `with_usage_of_databases`; `unmeasured` are those not measured on the newest day."""
    subjects = [(row.server_id, "") for row in listed]
    recent = _recent_sizes(connection, _RECENT_SERVERS, period, window, subjects) if with_recent else {}
    usages = usages_of(connection, today, subjects, thresholds) if subjects else {}
    numbers = [row.server_id for row in listed]
    partial = partial_servers(connection, period, window, numbers) if window else set()
    now = {server for server, start in partial if window and start == window.start}
    either = {server for server, _ in partial}
    labels = _labels_of_servers(connection, [row.server_id for row in listed if isinstance(row, UnmeasuredServer)])
    servers_listed = []
    for row, subject in zip(listed, subjects, strict=True):
        missed = row if isinstance(row, UnmeasuredServer) else unmeasured.get(row.server_id)
        values = {
            **vars(row),
            **({name: getattr(missed, name) for name in _SINCE} if missed else {}),
            **({"labels": labels[row.server_id]} if row.server_id in labels else {}),
            "is_partial": row.server_id in now,
            "is_change_partial": row.server_id in either,
        }
        usage = replace(usages.get(subject, Usage()), recent=recent.get(subject, ()))
        servers_listed.append(ServerInList(**values, **vars(usage)))
    return servers_listed


def _labels_of_servers(connection: sa.Connection, servers: Sequence[int]) -> dict[int, dict[str, str]]:
    """Return the present labels of registered servers."""
    statement = "SELECT server_id, labels FROM capacity_servers WHERE server_id = ANY (CAST(:servers AS integer[]))"
    return {row.server_id: row.labels for row in rows(connection, statement, servers=servers)} if servers else {}


def _recent_sizes(
    connection: sa.Connection,
    statements: tuple[str, str],
    period: Period,
    window: Window | None,
    subjects: Sequence[tuple[int, str]],
) -> dict[tuple[int, str], list[int | None]]:
    """Return the sizes of servers or databases in the last windows; None: not measured."""
    if window is None or not subjects:
        return {}
    starts = [recent.start for recent in period.back(window, RECENT_WINDOWS)]
    of_subjects: dict[str, object] = {"servers": [server for server, _ in subjects]}
    if any(name for _, name in subjects):
        of_subjects["names"] = [name for _, name in subjects]
    by_index, on_nodes = statements
    statement = on_nodes if tables_are_distributed(connection) else by_index
    stored = rows(connection, statement, **of_windows(period, starts), **of_subjects)
    sizes = {(row.server_id, row.name, row.window_start): row.size_mb for row in stored}
    return {(server, name): [sizes.get((server, name, start)) for start in starts] for server, name in subjects}


# By key, row by row; on distributed rows, a subquery must not depend on the outer query.
_RECENT_DATABASES = (
    """
    SELECT k.server_id, k.name, g.window_start, g.size_mb
    FROM unnest(CAST(:servers AS integer[]), CAST(:names AS text[])) AS k (server_id, name)
    CROSS JOIN LATERAL (
        SELECT window_start, size_mb FROM capacity_growth
        WHERE period = :period AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start AND server_id = k.server_id
          AND database = k.name
        OFFSET 0) AS g""",
    """
    SELECT server_id, database AS name, window_start, size_mb FROM capacity_growth
    WHERE period = :period AND window_start = ANY (CAST(:starts AS date[]))
      AND window_start BETWEEN :first_start AND :last_start
      AND server_id = ANY (CAST(:servers AS integer[])) AND database = ANY (CAST(:names AS text[]))""",
)
_RECENT_SERVERS = (
    """
    SELECT k.server_id, '' AS name, g.window_start, g.size_mb
    FROM unnest(CAST(:servers AS integer[])) AS k (server_id)
    CROSS JOIN LATERAL (
        SELECT window_start, size_mb FROM capacity_server_growth
        WHERE period = :period AND (:with_derived OR NOT is_derived)
          AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start AND server_id = k.server_id
        OFFSET 0) AS g""",
    """
    SELECT server_id, '' AS name, window_start, size_mb FROM capacity_server_growth
    WHERE period = :period AND (:with_derived OR NOT is_derived)
      AND window_start = ANY (CAST(:starts AS date[]))
      AND window_start BETWEEN :first_start AND :last_start
      AND server_id = ANY (CAST(:servers AS integer[]))""",
)


def engines(connection: sa.Connection, period: Period, window: Window) -> list[str]:
    """Return the engines of the servers of a window."""
    named = sa.select(_SERVERS.engine).where(*_servers_of(connection, period, window))
    return [row.engine for row in rows(connection, named.distinct().order_by(_SERVERS.engine))]


def _servers_of(connection: sa.Connection, period: Period, window: Window) -> list[sa.ColumnElement[bool]]:
    """Return the conditions for the servers of a window, with `with_derived` as in `rows`."""
    can_be_derived = sa.or_(sa.literal(has_derived(connection, period.name)), sa.not_(_SERVERS.is_derived))
    return [_SERVERS.period == period.name, _SERVERS.window_start == window.start, can_be_derived]


def _counts_in_sums(connection: sa.Connection) -> sa.ColumnElement[bool]:
    """Return the condition that a server counts in sums, as a list so that no row needs the registry."""
    others = rows(connection, "SELECT server_id FROM capacity_servers WHERE counted_by IS NOT NULL")
    return _GROWTH.server_id != sa.all_(sa.literal([row.server_id for row in others], sa.ARRAY(sa.Integer)))


def _is_one_of(server_ids: Sequence[int]) -> sa.ColumnElement[bool]:
    # Small numbers would be sent as smallint, which PostgreSQL compares one by one instead of by a hash table.
    return _GROWTH.server_id == sa.any_(sa.literal(server_ids, sa.ARRAY(sa.Integer)))


def _has_label(labels: sa.ColumnElement[Any], key: str, value: str) -> sa.ColumnElement[bool]:
    condition = labels[key].astext == value if value else sa.not_(labels.has_key(key))
    # PostgreSQL would estimate that a plain condition matches almost nothing, and sort all rows for a page.
    return sa.case((condition, sa.true()), else_=sa.false())


def _labelled_servers(connection: sa.Connection, key: str, value: str, day: date) -> list[int]:
    """Return servers with this label anywhere; for an empty value, those labelled with the key as a whole on a day."""
    with_label = "SELECT DISTINCT instance_id FROM capacity_label_spans WHERE key = :key AND value = :value"
    with_key = """
        SELECT DISTINCT instance_id FROM capacity_label_spans
        WHERE key = :key AND database_pattern = '' AND value IS NOT NULL
          AND valid_from <= :day AND :day < valid_until"""
    labelled = rows(connection, with_label if value else with_key, key=key, value=value, day=day)
    return [row.instance_id for row in labelled]


SEPARATOR = "\n"


NAME_KINDS = ("server", "database", "group", "volume", "table")
"""The kinds of names that a search finds, in the order of the index."""


@dataclass(frozen=True)
class NameMatch:
    """A name that a search matches, with its kind and server; for a group, `server` is the key of its label."""

    kind: str
    name: str
    server_id: int
    server: str
    full_by: date | None = None
    """Fill date by its newest forecast; None: not within a year, or unknown."""
    database: str = ""
    """The database of a table; empty: it is not the name of a table."""
    schema: str = ""


LARGEST_NAMED = 20_000
"""Only the largest tables of the fleet are found by name; more names would need more memory than those of databases."""


@dataclass(frozen=True)
class NameIndex:
    """Names by kind, their text with one line each, the starts of lines, and those with a fill date, earliest first."""

    names: Sequence[NameMatch]
    text: str
    starts: Sequence[int]
    filling: Sequence[NameMatch] = ()

    def search(self, query: str, shown: int, kind: str = "") -> list[NameMatch]:
        """Return names that contain all words of a query: by fill date, then names that begin with the first word.

        Without words, return those that fill first. With a kind, return only its names, without words also those
        without a fill date.
        """
        words = query.casefold().split()
        filling = (match for match in self.filling if not kind or match.kind == kind)
        urgent = list(islice((match for match in filling if _contains(match, words)), shown))
        if not words and not kind:
            return urgent
        first_line, last_line = self._lines_of(kind) if kind else (0, len(self.names))
        if not words:
            others_of_kind = (match for match in self.names[first_line:last_line] if match.full_by is None)
            return [*urgent, *nsmallest(shown - len(urgent), others_of_kind, key=lambda match: match.name)]
        first: list[NameMatch] = []
        others: list[NameMatch] = []
        for match in self._containing(max(words, key=len), first_line, last_line):
            if match.full_by is None and _contains(match, words):
                (first if match.name.casefold().startswith(words[0]) else others).append(match)
                if len(first) >= shown:
                    break
        first.sort(key=lambda match: (len(match.name), match.name, match.server))
        return [*urgent, *first, *others][:shown]

    def _lines_of(self, kind: str) -> tuple[int, int]:
        """Return the first line of a kind, and the first one behind it."""
        order = NAME_KINDS.index(kind)
        first, last = (find(self.names, order, key=_order_of_kind) for find in (bisect_left, bisect_right))
        return first, last

    def _containing(self, word: str, first_line: int, last_line: int) -> Iterator[NameMatch]:
        """Yield the names with a word in these lines; reading a few lines of many takes no longer than of a few."""
        line, end = first_line, self.starts[last_line] if last_line < len(self.starts) else len(self.text)
        while line < last_line and (at := self.text.find(word, self.starts[line], end)) >= 0:
            line = bisect_right(self.starts, at) - 1
            yield self.names[line]
            line += 1


def name_index(connection: Connection, today: date) -> NameIndex:
    """Read the names of the newest day and the last month, and those of the largest tables."""
    # Samples of future days are ignored. The newest day is the first of an index; max() would read all of a view.
    statement = """
        SELECT 'server' AS kind, server AS name, server_id, server FROM capacity_servers
        UNION ALL
        (
            SELECT 'database', database, server_id, server FROM capacity_samples
            WHERE day = (SELECT day FROM capacity_samples WHERE day <= :today ORDER BY day DESC LIMIT 1)
            UNION
            SELECT 'database', database, server_id, server FROM capacity_growth
            WHERE period = 'monthly'
              AND window_start = (SELECT window_start FROM capacity_growth WHERE period = 'monthly'
                                  ORDER BY window_start DESC LIMIT 1)
        )
        UNION ALL
        SELECT DISTINCT 'group', value, 0, key FROM capacity_label_spans
        WHERE value IS NOT NULL AND valid_until = 'infinity'
        UNION ALL
        SELECT DISTINCT 'volume', volume, server_id, server FROM capacity_volumes
        WHERE day = (SELECT day FROM capacity_volumes WHERE day <= :today ORDER BY day DESC LIMIT 1)"""
    days = stored_fill_days(connection)
    names = list(starmap(NameMatch, rows(connection, statement, today=today)))
    tables = largest_tables(connection, today, LARGEST_NAMED)
    names += [NameMatch("table", **vars(table)) for table in tables]
    for number, match in enumerate(names):
        full_by = days.get(SubjectKey(match.server_id, match.kind, "" if match.kind == "server" else match.name))
        if full_by is not None:
            names[number] = replace(match, full_by=full_by)
    names.sort(key=_order_of_kind)
    lines = [_line(match).replace(SEPARATOR, " ") for match in names]
    starts = accumulate((len(line) + 1 for line in lines[:-1]), initial=0)
    filling = sorted(
        (match for match in names if match.full_by is not None),
        key=lambda match: (match.full_by, match.name, match.server),
    )
    return NameIndex(names, SEPARATOR.join(lines), list(starts), filling)


def _line(match: NameMatch) -> str:
    # A label is also found in the form key=value, and a table as schema.table.
    label = f" {match.server}={match.name}" if match.kind == "group" else ""
    place = f" {match.database} {match.schema}.{match.name}" if match.kind == "table" else ""
    return f"{match.name} {match.server}{label}{place}".casefold()


def _order_of_kind(match: NameMatch) -> int:
    return NAME_KINDS.index(match.kind)


def _contains(match: NameMatch, words: Sequence[str]) -> bool:
    line = _line(match)
    return all(word in line for word in words)
