"""Engines for the capacity tables, the time zone of the days in a database, and whether today's date is reliable.

Engines have a small pool, a pre-ping and bounded waits, and name their sessions. The zone is recorded when the database
is prepared, and every writer compares it with its own: samples have a day, not a time, and days of two zones in one
history would not be comparable.

A wrong clock must not delete samples or close a month, so one rule (`check_today`) applies to everything that is
deleted, issued or made final by date: the local clock is compared with PostgreSQL's and with the days of the samples.
If both clocks are wrong, as on a single machine, the samples end long before "today".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

from sqlalchemy import URL, Connection, Engine, Executable, Row, create_engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.base.errors import (
    DATABASE_FAILURES,
    INVALID_PARAMETER_VALUE,
    CapacityError,
    ValidationError,
    is_transient,
    reason_of,
    sqlstate_of,
)
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import DEFAULT_PARALLEL_SLICES

APPLICATION_NAME = "capacity_assets"
CONNECT_TIMEOUT_SECONDS = 10
POOL_SIZE = 2
POOL_TIMEOUT_SECONDS = 30
STATEMENT_TIMEOUT_SECONDS = 1800
LOCK_TIMEOUT_SECONDS = 60


def _options(**settings: str) -> str:
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


DRIVER_OPTIONS = _options(
    datestyle="ISO",
    intervalstyle="postgres",
    standard_conforming_strings="on",
    quote_all_identifiers="off",
    array_nulls="on",
    default_transaction_isolation=r"read\ committed",
)
"""What statements and the driver rely on, whatever a database or role sets for its sessions."""
DRIVER_ARGUMENTS = {"client_encoding": "utf8"}
# jit: statements have many small expressions over few rows per plan node; compiling them costs more than it saves.
_SESSION_OPTIONS = _options(
    statement_timeout=f"{STATEMENT_TIMEOUT_SECONDS}s",
    lock_timeout=f"{LOCK_TIMEOUT_SECONDS}s",
    jit="off",
    client_connection_check_interval="10s",
)


def copy_rows(connection: Connection, statement: str, rows: Iterable[Sequence[object]]) -> None:
    """Write rows by COPY ... FROM STDIN, within the connection's transaction; raises DBAPIError."""
    import psycopg

    try:
        with connection.connection.cursor().copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as error:
        raise DBAPIError.instance(statement, None, error, psycopg.Error, hide_parameters=True) from error


class UnreachableError(CapacityError):
    """No connection could be made within the time limit; the text contains the address, without the password."""


def capacity_engine(
    url: URL,
    *,
    parallel_slices: int = DEFAULT_PARALLEL_SLICES,
    connections: int | None = None,
    pool_timeout_seconds: int = POOL_TIMEOUT_SECONDS,
    timezone: str = "UTC",
) -> Engine:
    """Create an engine for the capacity tables; it connects on first use and waits at most ten seconds.

    Its pool has a connection for each slice that is written in parallel, and some for other work; POOL_SIZE of them
    stay open. With `connections`, it has this number, and all stay open. The last used connection is used next.

    `timezone` is that of its sessions, so that moments and their days look the same on every server.

    Options in the URL (`?options=-csearch_path=...`, `connect_timeout`, `application_name`) override these. A wrong
    address fails at the first statement, see `ensure_reachable`.
    """
    own_options = url.query.get("options", "")
    defaults: dict[str, object] = {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "application_name": APPLICATION_NAME}
    arguments = {name: value for name, value in defaults.items() if name not in url.query}
    return create_engine(
        url.difference_update_query(["options"]),
        pool_size=connections or POOL_SIZE,
        max_overflow=0 if connections else POOL_SIZE + parallel_slices - 1,
        pool_use_lifo=True,
        pool_timeout=pool_timeout_seconds,
        pool_pre_ping=True,
        # The later of two settings wins in PostgreSQL, so the user's come last.
        connect_args={
            **DRIVER_ARGUMENTS,
            **arguments,
            "options": f"{DRIVER_OPTIONS} {_SESSION_OPTIONS} -c timezone={timezone} {own_options}".strip(),
        },
    )


@contextmanager
def disposed(engine: Engine) -> Iterator[Engine]:
    """Yield an engine, and close its connections afterwards."""
    try:
        yield engine
    finally:
        engine.dispose()


KEPT_ROWS, ROWS_OF_ISSUE = "capacity_kept_rows", "capacity_rows_of_issue"
RowsByStatement: TypeAlias = dict[object, Sequence[Row[Any]]]


@contextmanager
def snapshot(engine: Engine, of_issue: RowsByStatement | None = None) -> Iterator[Connection]:
    """Yield a connection that cannot write, and sees one snapshot of the tables throughout.

    Its option KEPT_ROWS is a mapping that `reading.access.rows` uses to execute no statement twice; `of_issue` is that
    of `rows_of_issue`.
    """
    options: dict[str, Any] = {KEPT_ROWS: {}, ROWS_OF_ISSUE: of_issue}
    with engine.connect().execution_options(**options) as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        yield connection


def rows_of_issue(connection: Connection, statement: Executable, **parameters: object) -> Sequence[Row[Any]]:
    """Return the rows of a statement whose result changes only when forecasts are issued or something is declared.

    Snapshots with the same rows of an issue share them, so the statement is executed once. Raises DBAPIError.
    """
    kept = connection.get_execution_options().get(ROWS_OF_ISSUE)
    key = (str(statement), repr(parameters))
    if kept is not None and key in kept:
        found: Sequence[Row[Any]] = kept[key]
        return found
    found = connection.execute(statement, parameters).all()
    if kept is not None:
        kept[key] = found
    return found


def ensure_reachable(engine: Engine, variable: str = "CAPACITY_DATABASE_URL") -> None:
    """Connect once; `variable` is where the user sets the address. Raises UnreachableError after ten seconds."""
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except DATABASE_FAILURES as error:
        raise UnreachableError(
            f"Cannot reach PostgreSQL at {safe_url(engine.url)} "
            f"(tried for up to {CONNECT_TIMEOUT_SECONDS} s): {reason_of(error)}. "
            f"Check that the server runs and that the URL in {variable} is right.",
            transient=is_transient(error),
        ) from None


def safe_url(url: URL) -> str:
    """Return a URL for people, without driver, password and query parameters such as sslpassword."""
    host = url.query.get("host") or url.host or "local socket"
    place = f"{host}:{url.port}" if url.port else f"{host}"
    user = f"{url.username}@" if url.username else ""
    return f"postgresql://{user}{place}/{url.database}"


ZONE = "timezone"
TODAY = """CAST(now() AT TIME ZONE coalesce(
    (SELECT value FROM capacity_settings WHERE name = 'timezone'), current_setting('TimeZone')) AS date)"""
"""Today in that zone, in SQL: samples of later days are never the newest."""
# Two moments a month tell zones apart, except zones that differ only in the week in which the clocks change.
_MOMENTS = [datetime(year, month, day) for year in range(1990, 2038) for month in range(1, 13) for day in (1, 16)]  # noqa: DTZ001 -- a wall clock
# The default before zones were recorded, which is also that of the legacy application.
FORMER_DEFAULT = "Asia/Shanghai"


def record_zone(engine: Engine, zone: str, *, chosen: bool) -> str:
    """Record the zone if none is recorded, or nothing is stored yet; return the recorded one.

    A database that already contains figures, and for which no zone was chosen, gets the former default. Raises
    ValidationError if PostgreSQL does not know the zone.
    """
    with engine.begin() as connection:
        recorded = _recorded_zone(connection)
        filled = connection.execute(text(_FILLED)).scalar_one()
        if recorded is not None and filled:
            return recorded
        zone = zone if chosen or not filled else FORMER_DEFAULT
        if zone != recorded:
            connection.execute(text(_RECORD), {"name": ZONE, "value": zone})
            _refuse_unknown_zone(connection, zone)
    return zone


def _refuse_unknown_zone(connection: Connection, zone: str) -> None:
    try:
        connection.execute(text("SELECT now() AT TIME ZONE CAST(:zone AS text)"), {"zone": zone})
    except DBAPIError as error:
        if sqlstate_of(error) != INVALID_PARAMETER_VALUE:
            raise
        raise ValidationError(
            f"PostgreSQL does not know the time zone {zone}. Set CAPACITY_TIMEZONE to another name of this zone, or "
            "update the server's time zone data, then run `capacity init` again."
        ) from None


def recorded_zone(engine: Engine) -> str | None:
    """Return the zone of the days in a database; None if it is not recorded."""
    with engine.connect() as connection:
        return _recorded_zone(connection)


def are_same_days(one: str, other: str) -> bool:
    """Whether days begin and end at the same moments in two zones, as for two names of one zone."""
    return one == other or all(
        ZoneInfo(one).utcoffset(moment) == ZoneInfo(other).utcoffset(moment) for moment in _MOMENTS
    )


def another_zone(engine: Engine, configured: str) -> str | None:
    """Return a message and what to do if a database contains days of another zone; otherwise None."""
    recorded = recorded_zone(engine)
    if recorded is None or are_same_days(recorded, configured):
        return None
    return (
        f"This database holds days of the time zone {recorded}, but {configured} is configured (CAPACITY_TIMEZONE, or "
        f"this machine's zone). Set CAPACITY_TIMEZONE={recorded}; for days of another zone, use another database."
    )


def _recorded_zone(connection: Connection) -> str | None:
    value = connection.execute(text("SELECT value FROM capacity_settings WHERE name = :name"), {"name": ZONE}).scalar()
    return None if value is None else str(value)


_FILLED = """
SELECT EXISTS (SELECT 1 FROM database_size_stats) OR EXISTS (SELECT 1 FROM instance_size_stats)
    OR EXISTS (SELECT 1 FROM database_size_aggregations) OR EXISTS (SELECT 1 FROM instance_size_aggregations)
"""
_RECORD = """
INSERT INTO capacity_settings (name, value) VALUES (:name, :value)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, set_at = now()
"""


MOST_APART = timedelta(hours=1)
LONGEST_PAUSE = timedelta(days=45)


@dataclass(frozen=True)
class TodayCheck:
    """Today's date, and the reasons why it may be wrong."""

    today: date
    """The earlier of the two clocks' dates."""
    newest: date | None
    """Day of the newest sample up to today; None: there is none."""
    apart: str | None
    """A sentence with both times if the clocks differ; None if they agree."""
    stale: str | None
    """A sentence with both dates if the samples end long before today; otherwise None."""
    pause: str | None
    """A sentence if the recent samples follow such a gap, because their dates may be wrong; otherwise None."""

    @property
    def doubt(self) -> str | None:
        """Why the date may be wrong; None if it is reliable."""
        return self.apart or self.stale

    @property
    def certain_day(self) -> date:
        """A day that has certainly begun: today, or the day of the newest sample if the date is in doubt."""
        return self.today if self.doubt is None else min(self.today, self.newest or self.today)

    @property
    def why_nothing_is_deleted(self) -> str | None:
        """Why nothing may be deleted by age, which cannot be undone; None if deleting is allowed."""
        return self.doubt or self.pause


def check_today(connection: Connection, clock: Clock) -> TodayCheck:
    """Compare the clocks with each other and with the samples; raises DBAPIError."""
    database_now = clock.local_database_now(connection)
    today = min(clock.today(), database_now.date())
    days = connection.execute(text(_SAMPLE_DAYS), {"since": today - LONGEST_PAUSE, "today": today}).one()
    stale = pause = None
    if days.before is not None and days.after is None:
        stale = (
            f"The newest sample is from {days.before}, {(today - days.before).days:,} days before today ({today}): the "
            "clock may be wrong."
        )
    elif days.before is not None and days.after - days.before > LONGEST_PAUSE:
        pause = (
            f"There are no samples between {days.before} and {days.after}; today is {today}: the clock may be wrong."
        )
    return TodayCheck(today, days.newest or days.before, _apart(clock.local_now(), database_now), stale, pause)


def _apart(local: datetime, database: datetime) -> str | None:
    if abs(local - database) <= MOST_APART:
        return None
    moments = [f"{moment:%Y-%m-%d %H:%M}" for moment in (local, database)]
    return f"This machine's clock shows {moments[0]}, PostgreSQL's shows {moments[1]}: one of them is wrong."


# Implausible days, such as -infinity, are ignored.
_SAMPLE_DAYS = """
SELECT greatest(d.before, i.before) AS before, least(d.after, i.after) AS after, greatest(d.newest, i.newest) AS newest
FROM (SELECT max(collected_date) FILTER (WHERE collected_date < :since) AS before,
             min(collected_date) FILTER (WHERE collected_date >= :since) AS after,
             max(collected_date) FILTER (WHERE collected_date >= :since) AS newest
      FROM database_size_stats WHERE collected_date BETWEEN DATE '1900-01-01' AND :today) AS d
CROSS JOIN (SELECT max(collected_date) FILTER (WHERE collected_date < :since) AS before,
                   min(collected_date) FILTER (WHERE collected_date >= :since) AS after,
                   max(collected_date) FILTER (WHERE collected_date >= :since) AS newest
            FROM instance_size_stats WHERE collected_date BETWEEN DATE '1900-01-01' AND :today) AS i
"""
