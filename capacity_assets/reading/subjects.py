"""One server, database or volume: its facts, samples, attempts and declarations, the bills, and addresses of pages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from urllib.parse import quote_plus

from sqlalchemy import Connection

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import Window
from capacity_assets.base.units import counted, human_day, suggestion
from capacity_assets.history.sources import ORIGINS
from capacity_assets.label_rules import LABELS_OF_SUBJECTS
from capacity_assets.ownership.bills import DECLARED_STATE
from capacity_assets.ownership.labels import read_label_of_nothing
from capacity_assets.reading.access import records, rows


@dataclass(frozen=True)
class ServerFacts:
    """A registered server; `is_active` None: it was registered and is not any more."""

    server_id: int
    server: str
    engine: str
    is_active: bool | None
    counted_by: str | None
    labels: dict[str, str] = field(default_factory=dict)
    declared_at: datetime | None = None
    """When it was registered for collection or last changed; None: it is not measured from here."""
    declared_by: str | None = None
    """Its author; None: not known."""


@dataclass(frozen=True)
class Sample:
    """One sample, MiB; when it was written, if that is known, and whether it was corrected since."""

    day: date
    size_mb: int
    written_on: date | None
    is_corrected: bool


@dataclass(frozen=True)
class Attempt:
    """The outcome of measuring a server on a day."""

    day: date
    status: str
    failure: str | None
    reason: str | None


@dataclass(frozen=True)
class ServerVolume:
    """A volume of a server on its newest day, MiB."""

    volume: str
    day: date
    total_mb: int
    used_mb: int
    free_mb: int
    source: str


@dataclass(frozen=True)
class DeclaredStep:
    """A declared change of size; `database` None: of the server as a whole."""

    day: date
    note: str
    database: str | None
    declared_by: str | None
    """Who declared it; None: not known."""
    server_id: int
    server: str


def server_id_of(connection: Connection, server: str) -> int | None:
    """Return the ID of a registered server; None: it does not exist."""
    named = rows(connection, "SELECT server_id FROM capacity_servers WHERE server = :server", server=server)
    return named[0].server_id if named else None


def server_ids_of(connection: Connection, servers: Sequence[str]) -> dict[str, int]:
    """Return the IDs of the registered ones among servers, by name."""
    named = "SELECT server, server_id FROM capacity_servers WHERE server = ANY (CAST(:servers AS text[]))"
    return {row.server: row.server_id for row in rows(connection, named, servers=sorted(set(servers)))}


def active_servers(connection: Connection) -> list[ServerFacts]:
    """Return the servers in service, by name."""
    statement = """
        SELECT server_id, server, engine, is_active, counted_by, labels FROM capacity_servers
        WHERE is_active ORDER BY server"""
    return records(ServerFacts, connection, statement)


def out_of_service(connection: Connection, server_ids: Collection[int]) -> frozenset[int]:
    """Return the servers among these that are registered and out of service."""
    statement = """
        SELECT server_id FROM capacity_servers
        WHERE NOT is_active AND server_id = ANY (CAST(:servers AS integer[]))"""
    return frozenset(row.server_id for row in rows(connection, statement, servers=sorted({*server_ids})))


def refuse_unknown_filters(connection: Connection, engine: str | None, label: tuple[str, str] | None) -> None:
    """Refuse an engine that no server has or had, or a label that nothing has or had; raises NotFoundError."""
    if engine:
        known = [row.engine for row in rows(connection, "SELECT DISTINCT engine FROM capacity_servers ORDER BY engine")]
        if engine not in known:
            there = f" There are {', '.join(known)}." if known else ""
            raise NotFoundError(f"No server has the engine {engine!r}.{suggestion(engine, known) or there}")
    refusal = read_label_of_nothing(connection, *label) if label else None
    if refusal:
        raise NotFoundError(refusal)


def server_facts(connection: Connection, server_id: int) -> ServerFacts:
    """Return a server by its ID; raises NotFoundError if it is neither registered nor in any figures."""
    registered = """
        SELECT server_id, server, engine, is_active, counted_by, labels, declared_at, declared_by
        FROM capacity_servers LEFT JOIN capacity_declared_servers USING (server_id)
        WHERE server_id = :server"""
    # Any row: these columns are the same in all of them.
    measured = """
        SELECT server_id, server, engine, CAST(NULL AS boolean) AS is_active, NULL AS counted_by
        FROM capacity_server_growth WHERE server_id = :server LIMIT 1"""
    for statement in (registered, measured):
        facts = records(ServerFacts, connection, statement, server=server_id)
        if facts:
            return facts[0]
    raise NotFoundError(f"No server with ID {server_id}.")


@dataclass(frozen=True)
class NewestDay:
    """The newest stored day of a database, and its labels on that day."""

    day: date
    labels: dict[str, str]


def newest_day_of(connection: Connection, server_id: int, database: str) -> NewestDay | None:
    """Return the newest stored day of a database; None: there is none."""
    # Keys begin with the window, so windows are looked up one by one, newest first.
    statement = """
        WITH ends AS (
            SELECT (SELECT window_start FROM capacity_growth WHERE period = 'daily'
                    ORDER BY window_start DESC LIMIT 1) AS last,
                   (SELECT window_start FROM capacity_growth WHERE period = 'daily'
                    ORDER BY window_start LIMIT 1) AS first
        ), days AS (
            SELECT ends.last - back AS day FROM ends CROSS JOIN generate_series(0, ends.last - ends.first) AS back
            ORDER BY day DESC
        )
        SELECT days.day, newest.labels FROM days
        CROSS JOIN LATERAL (SELECT labels FROM capacity_growth
                            WHERE period = 'daily' AND window_start = days.day AND server_id = :server
                              AND database = :database LIMIT 1) AS newest
        ORDER BY days.day DESC LIMIT 1"""
    newest = records(NewestDay, connection, statement, server=server_id, database=database)
    return newest[0] if newest else None


GONE_DAYS = 31


def is_gone(connection: Connection, server_id: int, day: date) -> bool:
    """Whether a server was measured in the month after the newest day of one of its databases."""
    statement = """
        SELECT 1 FROM capacity_growth
        WHERE period = 'daily' AND window_start = ANY (CAST(:days AS date[])) AND server_id = :server LIMIT 1"""
    days = [day + timedelta(days=number) for number in range(1, GONE_DAYS + 1)]
    return bool(rows(connection, statement, days=days, server=server_id))


def was_ever_sampled(connection: Connection, server_id: int, database: str) -> bool:
    """Whether a database has any sample."""
    # The key begins with the day, as above.
    statement = """
        WITH ends AS (
            SELECT (SELECT day FROM capacity_samples ORDER BY day DESC LIMIT 1) AS last,
                   (SELECT day FROM capacity_samples ORDER BY day LIMIT 1) AS first
        )
        SELECT 1 FROM ends CROSS JOIN generate_series(0, ends.last - ends.first) AS back
        CROSS JOIN LATERAL (SELECT 1 FROM capacity_samples
                            WHERE day = ends.last - back AND server_id = :server AND database = :database
                            LIMIT 1) AS sample
        LIMIT 1"""
    return bool(rows(connection, statement, server=server_id, database=database))


def samples_of(connection: Connection, window: Window, server_id: int, database: str | None) -> list[Sample]:
    """Return the samples of a server, or of one of its databases, in a window."""
    of_database = """
        SELECT day, size_mb, created_at, updated_at > created_at AS is_corrected
        FROM capacity_samples
        WHERE server_id = :server AND database = :database AND day = ANY (CAST(:days AS date[])) ORDER BY day"""
    of_server = """
        SELECT day, size_mb, created_at, updated_at > created_at AS is_corrected
        FROM capacity_server_samples WHERE server_id = :server AND day = ANY (CAST(:days AS date[])) ORDER BY day"""
    statement = of_server if database is None else of_database
    found = rows(connection, statement, server=server_id, database=database, days=window.dates)
    # Their days in the zone of this session: the nodes of a cluster have zones of their own.
    return [
        Sample(row.day, row.size_mb, row.created_at and row.created_at.date(), bool(row.is_corrected)) for row in found
    ]


@dataclass(frozen=True)
class SampleOrigin:
    """The program that measured imported samples, and their days."""

    origin: str
    source: str
    first_day: date
    last_day: date
    days: int

    @property
    def label(self) -> str:
        """Its name as people read it."""
        known = ORIGINS.get(self.origin)
        return known.label if known else self.origin

    @property
    def sentence(self) -> str:
        """The days and their origin in a sentence."""
        days = f"{human_day(self.first_day)} to {human_day(self.last_day)}"
        return f"Imported: {counted(self.days, 'day')} from {self.label}, {days} ({self.source})"


def origins_of(
    connection: Connection, server_id: int, database: str | None, first: date = date.min, last: date = date.max
) -> list[SampleOrigin]:
    """Return the imported samples of a database between two days, or of a server and all its databases."""
    statement = """
        SELECT o.origin, o.source, min(lower(d.days)) AS first_day, max(upper(d.days) - 1) AS last_day,
               sum(upper(d.days) - lower(d.days)) AS days
        FROM (
            SELECT coalesce(origin, 'file') AS origin, source,
                   range_agg(daterange(greatest(first_day, :first), least(last_day, :last), '[]')) AS all_days
            FROM capacity_sample_origins
            WHERE server_id = :server AND (CAST(:database AS text) IS NULL OR database = CAST(:database AS text))
              AND last_day >= :first AND first_day <= :last
            GROUP BY 1, 2
        ) AS o CROSS JOIN LATERAL unnest(o.all_days) AS d (days)
        GROUP BY o.origin, o.source ORDER BY first_day, o.origin, o.source"""
    return records(SampleOrigin, connection, statement, server=server_id, database=database, first=first, last=last)


@dataclass(frozen=True)
class DeclaredLimit:
    """A declared limit, MiB; None: unlimited. `database` None: the server as a whole."""

    database: str | None
    limit_mb: int | None
    note: str | None
    declared_at: datetime
    declared_by: str | None
    """Who declared it; None: not known."""


def declared_limits_of(connection: Connection, server_id: int, database: str | None) -> list[DeclaredLimit]:
    """Return the declared limits of a database and of its server as a whole."""
    statement = """
        SELECT database, limit_mb, note, declared_at, declared_by FROM capacity_declared_limits
        WHERE server_id = :server AND (database IS NULL OR database = CAST(:database AS text))
        ORDER BY database NULLS LAST"""
    return records(DeclaredLimit, connection, statement, server=server_id, database=database)


def steps_of(connection: Connection, server_id: int, database: str | None) -> list[DeclaredStep]:
    """Return the declared steps of a server as a whole, or those of a database and of its server."""
    statement = """
        SELECT day, note, database, declared_by, server_id, server FROM capacity_declared_steps
        WHERE server_id = :server AND (database IS NULL OR database = CAST(:database AS text)) ORDER BY day"""
    return records(DeclaredStep, connection, statement, server=server_id, database=database)


def steps_between(connection: Connection, first: date, last: date) -> list[DeclaredStep]:
    """Return the declared steps of all servers from one day to another."""
    statement = """
        SELECT day, note, database, declared_by, server_id, server FROM capacity_declared_steps
        WHERE day BETWEEN :first AND :last ORDER BY day, server_id, database"""
    return records(DeclaredStep, connection, statement, first=first, last=last)


def steps_of_group(connection: Connection, first: date, last: date, by: str, name: str | None) -> list[DeclaredStep]:
    """Return the declared steps of a group from one day to another, by the labels of the day of each step."""
    key = {"by": by, "name": name}
    return records(DeclaredStep, connection, _STEPS_OF_GROUP, first=first, last=last, **key)


_STEPS_OF_GROUP = f"""
WITH steps AS MATERIALIZED (
    SELECT row_number() OVER () AS number, d.*, s.engine
    FROM capacity_declared_steps d JOIN capacity_servers s ON s.server_id = d.server_id
    WHERE d.day BETWEEN :first AND :last
), subjects AS (
    SELECT number, server_id AS instance_id, database AS database_name, day FROM steps
), held AS ({LABELS_OF_SUBJECTS})
SELECT s.day, s.note, s.database, s.declared_by, s.server_id, s.server
FROM steps s LEFT JOIN held ON held.number = s.number
WHERE CASE :by WHEN 'engine' THEN s.engine WHEN 'server' THEN s.server ELSE held.labels ->> :by END
      IS NOT DISTINCT FROM CAST(:name AS text)
ORDER BY s.day, s.server_id, s.database
"""  # noqa: S608 -- the order of labels is defined once


def volumes_of(connection: Connection, server_id: int, today: date) -> list[ServerVolume]:
    """Return the volumes of a server that were measured within a month of its newest day, largest first."""
    statement = """
        SELECT volume, day, total_mb, used_mb, free_mb, source FROM (
            SELECT DISTINCT ON (volume) * FROM capacity_volumes
            WHERE server_id = :server AND day <= :today
              AND day > (SELECT max(day) FROM capacity_volumes WHERE server_id = :server AND day <= :today) - 31
            ORDER BY volume, day DESC
        ) AS newest ORDER BY total_mb DESC, volume"""
    return records(ServerVolume, connection, statement, server=server_id, today=today)


def attempts_of(connection: Connection, server_id: int, shown: int) -> list[Attempt]:
    """Return the last attempts to measure a server, newest first."""
    statement = """
        SELECT day, status, failure, reason FROM capacity_attempts WHERE server_id = :server
        ORDER BY day DESC LIMIT :shown"""
    return records(Attempt, connection, statement, server=server_id, shown=shown)


@dataclass(frozen=True)
class BillIssue:
    """An issue of a month's bill."""

    month: date
    issue: int
    is_final: bool
    declared_state: str | None
    currency: str | None


def bill_issues(connection: Connection) -> list[BillIssue]:
    """Return the issues of all bills, newest month first."""
    statement = """
        SELECT month, issue, is_final, declared_state, currency FROM capacity_bills ORDER BY month DESC, issue"""
    return records(BillIssue, connection, statement)


def newest_final(issues: Sequence[BillIssue]) -> BillIssue | None:
    """Return the newest issue of the last month with a final bill; None: there is none."""
    month = next((issue.month for issue in issues if issue.is_final), None)
    return next((issue for issue in reversed(issues) if issue.month == month), None)


def is_outdated(connection: Connection, issue: BillIssue, month: Window) -> bool:
    """Whether labels or prices of a month changed after its bill was computed."""
    declared = rows(connection, f"SELECT {DECLARED_STATE} AS state", end=month.end)[0].state
    return bool(issue.declared_state != declared)


def address(path: str, /, **values: object) -> str:
    """Return the address of a page, without values that are None."""
    query = "&".join([f"{name}={quote_plus(str(value))}" for name, value in values.items() if value is not None])
    return f"{path}?{query}" if query else path


def subject_address(subject: str, server_id: int, name: str = "") -> str:
    """Return the address of the page of a server, database or volume."""
    return address(f"/{subject}", server=server_id, name=name or None)


def table_address(server_id: int, database: str, schema: str, table: str) -> str:
    """Return the address of the page of a table."""
    return address("/table", server=server_id, database=database, schema=schema or None, name=table)


def page_url(pages_url: str, page: str) -> str:
    """Return the full address of a page for readers outside the pages; `pages_url` is CAPACITY_PAGES_URL."""
    return f"{pages_url.rstrip('/')}{page}"
