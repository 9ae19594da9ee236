"""What the pages read: the queries over the views, in short read-only transactions, cached for some seconds.

The names for search-as-you-type are kept in memory, because no index serves parts of names.
"""

from __future__ import annotations

import pickle
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, Row, text

from capacity_assets.base.errors import DatabaseError, ValidationError
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import first_of
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.guards import newer_schema
from capacity_assets.database.sql import TIES, holds_on
from capacity_assets.database.views import READ_ON_NODES, READABLE, READER_ROLE
from capacity_assets.web.addresses import ROWS_PER_PAGE, Asked
from capacity_assets.web.rendering import (
    DatabaseRow,
    ForecastDay,
    Runway,
    SizeInWindow,
    StepRow,
    Unmeasured,
    windows_back,
    with_gaps,
)

DECLARED_SECONDS_KEPT = 10
UNMEASURED_SHOWN, UNMEASURED_SECONDS_KEPT = 20, 30
# How far back attempts are searched: each day has one per server.
TRIED_DAYS = 7


def newest_window(connection: Connection, period: Period) -> Window | None:
    """Return the newest window of a period that any server has a row in; None: none was computed."""
    asked = {"period": period.name}
    # Not max(): over a view, PostgreSQL reads every row for it, and for this one entry of an index.
    query = """
        SELECT start FROM (
            (SELECT window_start AS start FROM capacity_server_growth WHERE period = :period AND NOT is_derived
             ORDER BY window_start DESC LIMIT 1)
            UNION ALL
            (SELECT window_start FROM capacity_growth WHERE period = :period ORDER BY window_start DESC LIMIT 1)
        ) AS newest ORDER BY start DESC LIMIT 1"""
    found = rows(connection, query, asked)
    return period.window_of(found[0].start) if found else None


def newest_day(connection: Connection, today: date) -> date | None:
    """Return the newest day with samples; samples with a future day are ignored."""
    # Not max(), as above.
    query = """
        SELECT max(day) AS day FROM (
            (SELECT day FROM capacity_server_samples WHERE day <= :today ORDER BY day DESC LIMIT 1)
            UNION ALL (SELECT day FROM capacity_samples WHERE day <= :today ORDER BY day DESC LIMIT 1)) AS days"""
    day: date | None = rows(connection, query, {"today": today})[0].day
    return day


def complete_window(connection: Connection, period: Period, newest: Window | None, today: date) -> Window | None:
    """Return the newest window that is over, as far as samples tell; the `newest` where there is no other."""
    if newest is None:
        return None
    last = newest_day(connection, today)
    before = period.previous(newest)
    if last is None or newest.end <= last:
        return newest
    asked = {"period": period.name, "start": before.start}
    query = (
        "SELECT EXISTS (SELECT 1 FROM capacity_server_growth WHERE period = :period AND window_start = :start) AS is_it"
    )
    return before if rows(connection, query, asked)[0].is_it else newest


def history(
    connection: Connection, query: str, period: Period, newest: Window, parameters: Mapping[str, Any]
) -> list[SizeInWindow]:
    """Run a query of sizes by window, with gaps for those that have none; it takes :period and :starts."""
    windows = windows_back(period, newest)
    asked = {"period": period.name, "starts": [window.start for window in windows], **parameters}
    return with_gaps(windows, found(SizeInWindow, connection, query, asked))


_AHEAD = ", ".join(f"lower_{days}_days_mb, forecast_{days}_days_mb, upper_{days}_days_mb" for days in HORIZONS_DAYS)
_RUNWAY = f"""
SELECT server_id, server, subject, name, state, last_day, size_mb, limit_mb, headroom_mb, binds, limit_source,
       full_early, full_middle, full_late, probability_30_days, probability_90_days, change_mb_per_day, is_outdated,
       volumes, {_AHEAD}
FROM capacity_runway
"""  # noqa: S608 -- names of our own


def runways(connection: Connection, condition: str, parameters: Mapping[str, Any]) -> list[Runway]:
    """Return runways of the newest day that meet a condition, as it sorts and limits them."""
    return [_runway(row) for row in rows(connection, f"{_RUNWAY} {condition}", parameters)]


def declared_since(reader: Reader) -> list[str]:
    """Return the servers whose limits or steps changed after the newest forecast, which knows nothing of it."""
    query = "SELECT DISTINCT server FROM capacity_runway WHERE is_outdated ORDER BY 1"
    return reader.kept_of(
        ("declared since",),
        lambda connection: [row.server for row in rows(connection, query)],
        DECLARED_SECONDS_KEPT,
    )


def runway_of(connection: Connection, server_id: int, subject: str, name: str) -> Runway | None:
    """Return the newest runway of a subject; None where none was issued."""
    condition = "WHERE server_id = :server AND subject = :subject AND name = :name"
    issued = runways(connection, condition, {"server": server_id, "subject": subject, "name": name})
    return issued[0] if issued else None


def binding_of(connection: Connection, runway: Runway | None) -> Runway | None:
    """Return the forecast that fills first: the database, its server's own limit or a volume; None without a date."""
    if runway is None:
        return None
    asked = {"server": runway.server_id, "volumes": runway.volumes or []}
    around = runways(connection, _AROUND, asked)
    # The database comes first, so it wins if another one is full on the same day.
    dated = [one for one in (runway, *around) if one.full_middle is not None]
    return min(dated, key=lambda one: (one.full_middle, one.full_early), default=None)


_AROUND = """
WHERE server_id = :server AND (subject = 'server' AND binds = 'own limit'
      OR subject = 'volume' AND name = ANY (CAST(:volumes AS text[])))
ORDER BY subject, name
"""


def _runway(row: Row[Any]) -> Runway:
    values = row._asdict()
    bands = [[values.pop(f"{end}_{days}_days_mb") for end in ("lower", "forecast", "upper")] for days in HORIZONS_DAYS]
    ahead = [
        ForecastDay(row.last_day + timedelta(days=days), *band)
        for days, band in zip(HORIZONS_DAYS, bands, strict=True)
        if None not in band
    ]
    return Runway(**values, ahead=ahead)


@dataclass(frozen=True)
class UnmeasuredServers:
    """The active servers without a sample on the newest day with a sample or an attempt of any server."""

    day: date | None
    servers: Sequence[Unmeasured]


def unmeasured_servers(connection: Connection, today: date) -> UnmeasuredServers:
    """Return the active servers that were not measured on the newest day, the most recently measured first."""
    tried = rows(connection, _NEWEST_ATTEMPT, {"today": today})[0].day
    day = max(filter(None, (newest_day(connection, today), tried)), default=None)
    seen = _SEEN_ON_NODES if tables_are_distributed(connection) else _SEEN
    query = _UNMEASURED.format(seen=seen, days=TRIED_DAYS)
    return UnmeasuredServers(day, found(Unmeasured, connection, query, {"day": day}))


def unmeasured_beside(reader: Reader, asked: Asked) -> UnmeasuredServers:
    """Return the unmeasured servers, for the first page of a list of the newest window; else none."""
    if asked.page > 1 or asked.day("window"):
        return UnmeasuredServers(None, ())
    key = ("unmeasured", asked.today)
    read = partial(unmeasured_servers, today=asked.today)
    every, engine = reader.kept_of(key, read, UNMEASURED_SECONDS_KEPT), asked.text("engine")
    return replace(every, servers=[one for one in every.servers if engine in {None, "", one.engine}])


def steps_of(connection: Connection, server_id: int, database: str | None) -> list[StepRow]:
    """Return the declared steps of a server, or those that a database of it takes part in."""
    query = """
        SELECT day, note, database FROM capacity_declared_steps
        WHERE server_id = :server AND (CAST(:database AS text) IS NULL OR database IS NULL OR database = :database)
        ORDER BY day"""
    return found(StepRow, connection, query, {"server": server_id, "database": database})


def asked_window(connection: Connection, asked: Asked, period: Period) -> Window | None:
    """Return the chosen window, by default the last complete one."""
    day = asked.day("window")
    if day is not None:
        return period.window_of(day)
    return complete_window(connection, period, newest_window(connection, period), asked.today)


def ends_of(window: Window | None) -> tuple[date | None, date | None]:
    """Return first and last day; None for both without a window."""
    return (None, None) if window is None else (window.start, window.end)


UNKNOWN_ENGINE = "unknown"
"""That of servers which are not registered any more, among others; as in the views."""
FILLS_FIRST = """
WHERE stands_for_itself AND full_middle IS NOT NULL
ORDER BY full_middle, server, name LIMIT :shown OFFSET :skipped
"""
ORDERS = {
    "size": "size_mb DESC",
    "growth": "change_mb DESC",
    "shrinkage": "change_mb",
    "percent": "change_percent DESC NULLS LAST",
    "name": "database, server",
}
"""How databases are sorted."""
# An index has the order: what is unknown is left out where it would come first.
_NEEDS = {"shrinkage": "AND change_mb < 0", "growth": "AND change_mb IS NOT NULL"}


def databases(  # noqa: PLR0913 -- one argument per filter
    connection: Connection,
    period: Period,
    window: Window | None,
    *,
    order: str,
    server_id: int | None = None,
    engine: str | None = None,
    label: tuple[str, str] | None = None,
    page: int = 1,
    shown: int = ROWS_PER_PAGE,
) -> tuple[list[DatabaseRow], bool]:
    """Return databases of a window, none without one, and whether there are more behind them.

    With a label of no value, those without one of this key.
    """
    if window is None:
        return [], False
    key, value = label or (None, None)
    conditions = [
        "AND counted" if server_id is None else "",
        "AND server_id = :server" if server_id is not None else "",
        # With their numbers PostgreSQL knows how many rows are left, and walks the index until a page is full.
        _among("of_engine") if engine and engine != UNKNOWN_ENGINE else "",
        "AND engine = :engine" if engine == UNKNOWN_ENGINE else "",
        _NEEDS.get(order, ""),
        _servers_with(value) if key is not None else "",
    ]
    asked = {
        "period": period.name,
        "start": window.start,
        "server": server_id,
        "engine": engine,
        "of_engine": _servers_of(connection, engine) if engine else [],
        "key": key,
        "value": value,
        "candidates": labelled_servers(connection, key, value, window.end) if key is not None else [],
        "shown": shown + 1,
        "skipped": (page - 1) * shown,
    }
    query = f"""
        SELECT server_id, server, engine, database, size_mb, change_mb,
               CAST(change_percent AS double precision) AS change_percent, measured_days, window_days, labels
        FROM capacity_growth WHERE period = :period AND window_start = :start {" ".join(filter(None, conditions))}
        ORDER BY {ORDERS[order]}{"" if order == "name" else f", {TIES}"}"""  # noqa: S608 -- conditions of our own
    if key is not None:
        # Sorted first, by an index, and only then asked for labels, one by one until the page is full.
        query = f"SELECT * FROM ({query} OFFSET 0) AS sorted {_label_condition(value)}"  # noqa: S608 -- as above
    query += " LIMIT :shown OFFSET :skipped"
    listed = found(DatabaseRow, connection, query, asked)
    return listed[:shown], len(listed) > shown


def _label_condition(value: str | None) -> str:
    condition = "labels ->> CAST(:key AS text) = :value" if value else "NOT labels ? CAST(:key AS text)"
    # Of a plain condition PostgreSQL expects that it leaves next to nothing, and sorts all rows for a page.
    return f"WHERE CASE WHEN {condition} THEN true ELSE false END"


def _among(numbers: str) -> str:
    # Small numbers come as smallint, with which PostgreSQL compares a server one by one instead of by a hash table.
    return f"AND server_id = ANY (CAST(:{numbers} AS integer[]))"


def _servers_with(value: str | None) -> str:
    """Return the condition that keeps the servers whose rows have to be looked at, given `labelled_servers`."""
    return _among("candidates") if value else "AND server_id <> ALL (CAST(:candidates AS integer[]))"


def _servers_of(connection: Connection, engine: str) -> Sequence[int]:
    query = "SELECT server_id FROM capacity_servers WHERE engine = :engine"
    return [row.server_id for row in rows(connection, query, {"engine": engine})]


def labelled_servers(connection: Connection, key: str, value: str | None, day: date) -> Sequence[int]:
    """Return servers on which a label occurs at all; without a value, those that have this key as a whole on a day."""
    query = "SELECT DISTINCT instance_id FROM capacity_label_spans l WHERE key = :key AND {}"
    condition = "value = :value" if value else f"database_pattern = '' AND {holds_on('l', ':day')}"
    asked = {"key": key, "value": value, "day": day}
    return [row.instance_id for row in rows(connection, query.format(condition), asked)]


# Attempts with a future day are ignored.
_NEWEST_ATTEMPT = "SELECT (SELECT day FROM capacity_attempts WHERE day <= :today ORDER BY day DESC LIMIT 1) AS day"
_UNMEASURED = """
WITH silent AS MATERIALIZED (
    SELECT server_id, server, engine FROM capacity_servers WHERE is_active AND server_id NOT IN (
        SELECT server_id FROM capacity_server_samples WHERE day = :day)
      AND server_id NOT IN (SELECT server_id FROM capacity_samples WHERE day = :day)
), seen AS MATERIALIZED ({seen}), tried AS MATERIALIZED (
    SELECT server_id, max(day) AS tried_on FROM capacity_attempts
    WHERE server_id IN (SELECT server_id FROM silent) AND day BETWEEN CAST(:day AS date) - {days} AND :day
    GROUP BY server_id
)
SELECT s.server_id, s.server, s.engine, l.last_day, a.failure, a.reason, t.tried_on
FROM silent s LEFT JOIN seen l ON l.server_id = s.server_id LEFT JOIN tried t ON t.server_id = s.server_id
LEFT JOIN capacity_attempts a ON a.server_id = t.server_id AND a.day = t.tried_on
ORDER BY l.last_day DESC NULLS LAST, s.server
"""
_SEEN = """
    SELECT server_id, (SELECT max(t.day) FROM capacity_server_samples t
                       WHERE t.server_id = s.server_id AND t.day <= :day) AS last_day
    FROM silent s"""
# On Citus, not one lookup per server.
_SEEN_ON_NODES = """
    SELECT server_id, max(day) AS last_day FROM capacity_server_samples
    WHERE server_id IN (SELECT server_id FROM silent) AND day <= :day GROUP BY server_id"""


STATEMENT_TIMEOUT_SECONDS = 5
CONNECTIONS = 8
NAMED = 3
# So many times as old, a value is not shown any more.
STALE_TIMES = 3
MOST_KEPT_BYTES = 32 * 1024 * 1024
"""Limit for all values together, in pickled size; in memory they take about six times as much."""
SECONDS_BETWEEN_REVISIONS = 10

T = TypeVar("T")


def reading_engine(url: URL, *, role: str | None = None) -> Engine:
    """Create an engine whose sessions can only read, each statement for a few seconds; `role` is taken on."""
    options = f"-c default_transaction_read_only=on -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s"
    # Starting parallel workers takes longer than most of what pages ask, and many readers ask at once.
    options += " -c max_parallel_workers_per_gather=0"
    if role is not None:
        options += f" -c role={role}"
    given = url.query.get("options", "")
    # A new connection knows no table yet: its first page takes three times as long.
    return capacity_engine(
        url.update_query_dict({"options": f"{given} {options}".strip()}),
        kept_connections=CONNECTIONS,
        pool_timeout_seconds=STATEMENT_TIMEOUT_SECONDS,
    )


def refuse_a_role_that_can_write(engine: Engine) -> None:
    """Refuse to serve with more rights than pages need, or with fewer; raises ValidationError and DBAPIError."""
    with engine.connect() as connection:
        row = connection.execute(text(_CAN_WRITE)).one()
        names = [*READABLE, *(READ_ON_NODES if tables_are_distributed(connection) else ())]
        unreadable = connection.execute(text(_UNREADABLE), {"names": names}).scalars().all()
    if unreadable:
        raise ValidationError(
            f"The role {row.role} cannot read {first_of(unreadable, NAMED)}: the pages are not served. Run the "
            "statements under Roles in docs/operations.md again, on a cluster those of docs/scale.md too: an upgrade "
            "adds views and tables."
        )
    if row.tables:
        raise ValidationError(
            f"The role {row.role} can write ({row.tables[0]}, for one), and the pages are to read only: they are "
            "not served. Make the role capacity_reader by the statements under Roles in docs/operations.md, and set "
            "CAPACITY_WEB_DATABASE_URL to its address; or use `capacity serve --allow-writing-role`."
        )


def role_to_read_with(engine: Engine) -> str | None:
    """Return the reader role where the session may take it on and needs to, else None; raises DBAPIError."""
    with engine.connect() as connection:
        can_write = connection.execute(text(_CAN_WRITE)).one().tables
        asked = {"role": READER_ROLE, "on_nodes": tables_are_distributed(connection)}
        may = connection.execute(text(_MAY_TAKE), asked).scalar()
    return READER_ROLE if can_write and may else None


@dataclass(frozen=True)
class _Kept:
    """A cached value, when it was read, until when it may be shown, and its size."""

    value: Any
    read_at: float
    shown_until: float
    size_bytes: int


class Reader:
    """Reads the views for the pages."""

    def __init__(self, engine: Engine) -> None:
        """Read with an engine of `reading_engine`."""
        self._engine = engine
        self._kept: dict[Hashable, _Kept] = {}
        self._reading: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection that sees one state of the tables throughout."""
        with self._engine.connect() as connection:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield connection

    def refuse_a_newer_schema(self) -> None:
        """Raise DatabaseError if a newer version has upgraded the schema since the connections were opened."""
        newer = self.kept_of(
            "schema", lambda connection: newer_schema(connection.connection), SECONDS_BETWEEN_REVISIONS
        )
        if newer:
            raise DatabaseError(newer)

    def kept(self, key: Hashable, read: Callable[[], T], seconds: float) -> T:
        """Return what `read` returns, or returned before: figures that every page shows, and that take long.

        What is older than `seconds` is returned once more, and read again meanwhile: only who comes first waits.
        Whoever comes while it is read gets the same, or the same error.
        """
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and now < kept.shown_until:
                if now - kept.read_at >= seconds and key not in self._reading:
                    self._reading[key] = Future()
                    threading.Thread(target=self._read, args=(key, read, seconds), daemon=True).start()
                value: T = kept.value
                return value
            reading = self._reading.get(key)
            is_first = reading is None
            if reading is None:
                reading = self._reading[key] = Future()
        if is_first:
            self._read(key, read, seconds)
        awaited: T = reading.result()
        return awaited

    def kept_of(self, key: Hashable, read: Callable[[Connection], T], seconds: float) -> T:
        """Return as `kept` what `read` returns in a transaction of its own."""

        def in_transaction() -> T:
            with self.transaction() as connection:
                return read(connection)

        return self.kept(key, in_transaction, seconds)

    def _read(self, key: Hashable, read: Callable[[], Any], seconds: float) -> None:
        """Read, and hand the outcome to everybody who waits for it."""
        try:
            value = read()
            size_bytes = len(pickle.dumps(value))
        except BaseException as error:  # noqa: BLE001 -- raised again in everyone who waits
            with self._lock:
                reading = self._reading.pop(key)
            reading.set_exception(error)
            return
        with self._lock:
            self._keep(key, value, seconds, size_bytes)
            reading = self._reading.pop(key)
        reading.set_result(value)

    def _keep(self, key: Hashable, value: Any, seconds: float, size_bytes: int) -> None:
        """Cache a value; drop expired values, and if the cache is full, those that expire first."""
        now = time.monotonic()
        self._kept.pop(key, None)
        for old in [old for old, kept in self._kept.items() if kept.shown_until <= now]:
            del self._kept[old]
        total_bytes = size_bytes + sum(kept.size_bytes for kept in self._kept.values())
        while self._kept and total_bytes > MOST_KEPT_BYTES:
            first = min(self._kept, key=lambda one: self._kept[one].shown_until)
            total_bytes -= self._kept.pop(first).size_bytes
        self._kept[key] = _Kept(value, now, now + STALE_TIMES * seconds, size_bytes)


def rows(connection: Connection, query: str, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
    """Run a query and return its rows."""
    return connection.execute(text(query), dict(parameters or {})).all()


def found(
    kind: Callable[..., T], connection: Connection, query: str, parameters: Mapping[str, Any] | None = None
) -> list[T]:
    """Run a query and return a `kind` of each row; the columns are its fields. Sums (numeric) become integers."""
    return [
        kind(**{name: int(value) if isinstance(value, Decimal) else value for name, value in row._mapping.items()})  # noqa: SLF001 -- SQLAlchemy's public name
        for row in rows(connection, query, parameters)
    ]


_CAN_WRITE = """
SELECT current_user AS role, ARRAY(
    SELECT c.relname FROM pg_class c
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = CAST(current_schema() AS regnamespace)
      AND (c.relname LIKE 'capacity\\_%' OR c.relname IN ('instances', 'database_size_stats', 'instance_size_stats',
           'database_size_aggregations', 'instance_size_aggregations', 'group_size_aggregations'))
      AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
    ORDER BY 1
) AS tables
"""
_UNREADABLE = """
SELECT name FROM unnest(CAST(:names AS text[])) AS name
WHERE to_regclass(name) IS NULL OR NOT has_table_privilege(to_regclass(name), 'SELECT') ORDER BY 1
"""
# A session that has taken a role on connects to the nodes of a cluster as that role.
_MAY_TAKE = """
SELECT pg_has_role(current_user, oid, 'MEMBER') AND (rolcanlogin OR NOT CAST(:on_nodes AS boolean))
FROM pg_roles WHERE rolname = :role AND rolname <> current_user
"""


KEPT_SECONDS = 300
SEPARATOR = "\n"


@dataclass(frozen=True)
class NameMatch:
    """A name that a search matches: what it is, and where; of a group, `server` is the key of its label."""

    kind: str
    name: str
    server_id: int
    server: str


@dataclass(frozen=True)
class _NameIndex:
    """The names, one line of text each, and where each line begins."""

    names: Sequence[NameMatch]
    text: str
    starts: Sequence[int]

    @classmethod
    def of(cls, names: Sequence[NameMatch]) -> _NameIndex:
        """Write the lines."""
        lines = [f"{one.name} {one.server}".casefold().replace(SEPARATOR, " ") for one in names]
        starts = accumulate((len(line) + 1 for line in lines[:-1]), initial=0)
        return cls(names, SEPARATOR.join(lines), list(starts))

    def holding(self, word: str) -> Iterator[NameMatch]:
        """Return the names whose line holds a word, in order."""
        at = self.text.find(word)
        while at >= 0:
            line = bisect_right(self.starts, at) - 1
            yield self.names[line]
            at = self.text.find(word, self.starts[line + 1]) if line + 1 < len(self.starts) else -1


class Names:
    """The names of servers, databases, volumes and groups, read again every few minutes."""

    def __init__(self, reader: Reader) -> None:
        """Read by `reader`, at the first search."""
        self._reader = reader

    def search(self, query: str, shown: int, today: date) -> list[NameMatch]:
        """Return names that hold all words of a query, those that begin with it first; raises DBAPIError."""
        known = self._reader.kept_of(
            ("names", today),
            lambda connection: _NameIndex.of(found(NameMatch, connection, _NAMES, {"today": today})),
            KEPT_SECONDS,
        )
        words = query.casefold().split()
        if not words:
            return []
        longest = max(words, key=len)
        first: list[NameMatch] = []
        others: list[NameMatch] = []
        for one in known.holding(longest):
            whole = f"{one.name} {one.server}".casefold()
            if all(word in whole for word in words):
                (first if one.name.casefold().startswith(words[0]) else others).append(one)
                if len(first) >= shown:
                    break
        first.sort(key=lambda one: (len(one.name), one.name, one.server))
        return [*first, *others][:shown]


# A future day is not the newest one.
_NAMES = """
SELECT 'server' AS kind, server AS name, server_id, server FROM capacity_servers
UNION ALL
SELECT 'database', database, server_id, server FROM capacity_samples
WHERE day = (SELECT max(day) FROM capacity_samples WHERE day <= :today)
UNION ALL
SELECT 'database', database, server_id, server FROM capacity_growth
WHERE period = 'monthly' AND window_start = (SELECT max(window_start) FROM capacity_growth WHERE period = 'monthly')
  AND (server_id, database) NOT IN (
      SELECT server_id, database FROM capacity_samples
      WHERE day = (SELECT max(day) FROM capacity_samples WHERE day <= :today))
UNION ALL
SELECT DISTINCT 'group', value, 0, key FROM capacity_label_spans WHERE value IS NOT NULL AND valid_until = 'infinity'
UNION ALL
SELECT DISTINCT 'volume', volume, server_id, server FROM capacity_volumes
WHERE day = (SELECT max(day) FROM capacity_volumes WHERE day <= :today)
"""
