"""Loading rows of history: slice by slice, by COPY and comparison of whole slices with what is stored.

A slice is a transaction that also records its position, so that an interrupted import continues after the last slice. A
stored sample is replaced only with `--on-conflict replace`: the same value counts as present; another value counts as a
conflict, and is listed. The statements work on temporary tables: `staged` holds the rows of a slice, `compared` the
result for each, `totals` the totals of servers computed from them.

At the end, it reports gaps: days between the first and the last day of a server for which no sample is stored.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row, Table, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, SERVER_LEVELS, Level, insert_samples
from capacity_assets.base.errors import DatabaseError, database_errors
from capacity_assets.base.units import counted, human_day, printable
from capacity_assets.database.cluster import copied_for_reading
from capacity_assets.database.engine import copy_rows
from capacity_assets.database.legacy_tables import record_history
from capacity_assets.database.locks import HeldLock
from capacity_assets.database.sql import temporary_table, with_queries
from capacity_assets.history.rows import RowReader, ServerDays, count_of
from capacity_assets.history.sources import FILE, Origin, PositionedRow, Source, claim_samples


def _staging_table(level: Level) -> Table:
    """Return the temporary table of the rows of a slice; `server_id` is the number of a server in this database."""
    return temporary_table(
        "staged",
        sa.Column("position", sa.BigInteger),
        sa.Column("server", sa.Text),
        sa.Column("instance_id", sa.Integer),
        *([sa.Column("database_name", sa.String(255))] if level is DATABASE else []),
        sa.Column("day", sa.Date),
        *(sa.Column(name, level.source.c[name].type) for name in (*level.values, *level.exact)),
        sa.Column("collected_at", sa.DateTime(timezone=True)),
        sa.Column("server_id", sa.Integer),
    )


def _compare_with_stored(level: Level, *, replace: bool) -> sa.Select[Any]:
    """Return each row with its number among those of its key, and whether it is new, present or in conflict.

    If rows contradict each other, the first one counts or, with `replace`, the last, as if each were in a separate
    slice. Columns of samples keep their names.
    """
    staged, stored, values = STAGED[level.name].c, level.source.c, level.values
    same_key = [stored.instance_id == staged.server_id, stored.collected_date == staged.day]
    same_key.append(stored.database_name == staged.database_name if level is DATABASE else ~stored.is_deleted)
    database = staged.database_name if level is DATABASE else sa.null()
    key = [staged[name] for name in ("server_id", *level.keys[1:], "day")]
    window: dict[str, Any] = {"partition_by": key, "order_by": staged.position.desc() if replace else staged.position}
    row = sa.tuple_(*(staged[name] for name in values))
    firsts = [sa.func.first_value(staged[name]).over(**window) for name in values]
    is_same_as_stored = row.is_not_distinct_from(sa.tuple_(*(stored[name] for name in values)))
    turns = (
        sa.select(
            staged.position,
            staged.server_id.label("instance_id"),
            database.label("database_name"),
            staged.day.label("collected_date"),
            *(staged[name] for name in (*values, *level.exact, "collected_at")),
            staged[values[0]].label("new_mb"),
            sa.func.row_number().over(**window).label("turn"),
            row.is_not_distinct_from(sa.tuple_(*firsts)).label("same_first"),
            firsts[0].label("first_mb"),
            stored[values[0]].label("stored_mb"),
            stored[level.exact[0]].label("stored_bytes"),
            sa.or_(stored.instance_id.is_(None), is_same_as_stored).label("same_stored"),
        )
        .outerjoin_from(STAGED[level.name], level.source, sa.and_(*same_key))
        .where(staged.server_id.is_not(None))
        .subquery("turns")
    )
    is_new = sa.and_(turns.c.turn == 1, turns.c.stored_mb.is_(None))
    differs = sa.and_(turns.c.turn == 1, ~turns.c.same_stored)
    contradicts = sa.and_(turns.c.turn > 1, ~turns.c.same_first)
    taken, conflicting = (is_new | differs, contradicts) if replace else (is_new, contradicts | differs)
    return sa.select(turns, taken.label("taken"), conflicting.label("conflicting"))


STAGED = {level.name: _staging_table(level) for level in SERVER_LEVELS.values()}
TAKEN = "(SELECT * FROM compared WHERE taken)"
# By level, and whether stored samples are replaced.
WRITE = {
    (level.name, replaces): insert_samples(level, TAKEN, replace=replaces)
    for level in SERVER_LEVELS.values()
    for replaces in (False, True)
}
CONFLICTS = """
SELECT c.position, i.name AS server, c.database_name AS database, c.collected_date AS day, c.new_mb AS size_mb,
       c.turn > 1 AS another, CASE WHEN c.turn > 1 THEN c.first_mb ELSE c.stored_mb END AS other_mb
FROM compared c JOIN instances i ON i.id = c.instance_id WHERE c.conflicting ORDER BY c.position LIMIT :listed
"""
# The total of a server and day is derived if there is none, and updated if it was the sum of its databases before this
# slice; a separately measured total is kept.
TOTALS = """
CREATE TEMPORARY TABLE totals ON COMMIT DROP AS
WITH touched AS (
    SELECT instance_id, collected_date, max(collected_at) AS collected_at,
           sum(coalesce(size_bytes, size_mb * CAST(1048576 AS numeric))
               - coalesce(stored_bytes, stored_mb * CAST(1048576 AS numeric), 0)) AS grown_bytes,
           count(*) FILTER (WHERE stored_mb IS NULL) AS added
    FROM compared WHERE taken GROUP BY instance_id, collected_date
    UNION ALL
    SELECT instance_id, collected_date, max(collected_at), 0, 0 FROM compared c
    WHERE NOT EXISTS (SELECT FROM instance_size_stats o
                      WHERE o.instance_id = c.instance_id AND o.collected_date = c.collected_date
                        AND o.is_deleted = false)
    GROUP BY instance_id, collected_date HAVING NOT bool_or(taken)
), derived AS (
    SELECT t.instance_id, t.collected_date, t.collected_at, t.grown_bytes, t.added, count(*) AS database_count,
           sum(coalesce(d.size_bytes, d.size_mb * CAST(1048576 AS numeric))) AS total_bytes,
           count(d.size_bytes) = count(*) AS is_exact
    FROM touched t
    JOIN database_size_stats d ON d.instance_id = t.instance_id AND d.collected_date = t.collected_date
    GROUP BY t.instance_id, t.collected_date, t.collected_at, t.grown_bytes, t.added
)
SELECT d.instance_id, d.collected_date, div(d.total_bytes, 1048576) AS total_size_mb,
       -- At most 8 EiB.
       CASE WHEN d.is_exact AND d.total_bytes <= 9223372036854775807 THEN d.total_bytes END AS total_size_bytes,
       d.database_count, d.collected_at
FROM derived d LEFT JOIN instance_size_stats o
    ON o.instance_id = d.instance_id AND o.collected_date = d.collected_date AND o.is_deleted = false
WHERE o.instance_id IS NULL
   OR (o.total_size_mb = div(d.total_bytes - d.grown_bytes, 1048576)
       AND o.database_count = d.database_count - d.added)
"""
WRITE_TOTALS = f"{insert_samples(INSTANCE, 'totals')} RETURNING 1"
# The rows with which a slice is compared, if statements cannot read the raw tables.
NEAR_A_SLICE = """
SELECT * FROM {table} WHERE instance_id IN (SELECT server_id FROM staged)
  AND collected_date BETWEEN (SELECT min(day) FROM staged) AND (SELECT max(day) FROM staged)
"""
COUNT = """
SELECT count(*) FILTER (WHERE taken AND stored_mb IS NULL) AS written,
       count(*) FILTER (WHERE taken AND stored_mb IS NOT NULL) AS replaced,
       count(*) FILTER (WHERE turn = 1 AND stored_mb IS NOT NULL AND same_stored) AS present,
       count(*) FILTER (WHERE turn > 1 AND same_first) AS repeated,
       count(*) FILTER (WHERE conflicting) AS conflicts
FROM compared
"""
DAYS = "SELECT min(collected_date) AS first_day, max(collected_date) AS last_day FROM compared"
# A server that an import registers has only a name; it is measured after somebody registers its connection.
REGISTER = """
INSERT INTO instances (name, db_type, host, port, is_active)
SELECT DISTINCT s.server, :engine, 'unknown', CAST(:port AS integer), true FROM staged s
WHERE s.server IS NOT NULL ON CONFLICT (name) DO NOTHING
"""
# Samples that are not sizes of databases get a separate server, which no sum counts. It is inserted only if it is
# missing: a role that may not register servers would be refused even an INSERT without rows.
IS_APART_MISSING = """
SELECT EXISTS (SELECT FROM staged s JOIN instances i ON i.name = s.server
               LEFT JOIN instances a ON a.name = i.name || :suffix WHERE a.id IS NULL)
"""
REGISTER_APART = """
INSERT INTO instances (name, db_type, host, port, is_active, counted_by)
SELECT DISTINCT i.name || :suffix, i.db_type, 'unknown', i.port, true, i.id
FROM staged s JOIN instances i ON i.name = s.server ON CONFLICT (name) DO NOTHING
"""
FIND_BY_NAME = "UPDATE staged s SET server_id = i.id FROM instances i WHERE i.name = s.server || :suffix"
FIND_BY_NUMBER = "UPDATE staged s SET server_id = i.id FROM instances i WHERE s.server IS NULL AND i.id = s.instance_id"
UNKNOWN = """
SELECT coalesce(server, 'number ' || instance_id) AS who, count(*) AS rows FROM staged WHERE server_id IS NULL
GROUP BY 1 ORDER BY 2 DESC, 1
"""
NOTE = """
INSERT INTO capacity_imports AS i (fingerprint, source, target, position, counts, origin)
VALUES (:fingerprint, :source, :target, :position, CAST(:counts AS json), :origin)
ON CONFLICT (fingerprint) DO UPDATE SET position = excluded.position, counts = excluded.counts, finished_at = NULL
"""
POSITION = "SELECT position, counts FROM capacity_imports WHERE fingerprint = :fingerprint AND finished_at IS NULL"
COLLECTED_MEANWHILE = (
    "While a slice was loaded, a collection stored samples of it. The slice was rolled back, earlier ones are kept; "
    "run the same command again."
)
FINISH = "UPDATE capacity_imports SET finished_at = now() WHERE fingerprint = :fingerprint"


@dataclass(frozen=True)
class GapTotals:
    """The number of servers with gaps, the days of all gaps, and the days of the longest gap."""

    servers: int = 0
    days: int = 0
    longest_days: int = 0


@dataclass(frozen=True)
class ServerGaps:
    """The missing days of a server between two days, and its longest gap."""

    server: str
    first_day: date
    last_day: date
    days: int
    longest: int
    longest_from: date

    def __str__(self) -> str:
        missing = f"{counted(self.days, 'day')} missing"
        return (
            f"{self.server}: {missing} between {human_day(self.first_day)} and {human_day(self.last_day)}; longest "
            f"gap: {counted(self.longest, 'day')} from {human_day(self.longest_from)}"
        )


_SERVERS = """
SELECT id, name FROM instances WHERE name = ANY (CAST(:names AS text[])) OR id = ANY (CAST(:numbers AS integer[]))
"""
_IS_VALID = {"database": "true", "instance": "NOT m.is_deleted"}
_REQUESTED = """
SELECT * FROM unnest(CAST(:servers AS integer[]), CAST(:firsts AS date[]), CAST(:lasts AS date[]))
    AS s (server_id, first_day, last_day)
"""
# A lookup per server and day reads one row of each; DISTINCT would read every database of every day.
_MISSING = """
SELECT s.server_id, CAST(d.day AS date) AS day
FROM requested s CROSS JOIN LATERAL generate_series(s.first_day, s.last_day, interval '1 day') AS d (day)
LEFT JOIN LATERAL (
    SELECT true AS is_measured FROM {table} m
    WHERE m.instance_id = s.server_id AND m.collected_date = CAST(d.day AS date) AND {is_valid} LIMIT 1
) AS m ON true
WHERE m.is_measured IS NULL
"""
_STRETCHES = """
SELECT server_id, min(day) AS first_day, count(*) AS days
FROM (SELECT server_id, day,
             day - CAST(row_number() OVER (PARTITION BY server_id ORDER BY day) AS integer) AS stretch
      FROM missing) AS numbered
GROUP BY server_id, stretch
"""
_GAPS = """
SELECT i.name AS server, s.first_day, s.last_day, g.days, g.longest, g.longest_from
FROM (SELECT server_id, CAST(sum(days) AS bigint) AS days, max(days) AS longest,
             (array_agg(first_day ORDER BY days DESC, first_day))[1] AS longest_from
      FROM stretches GROUP BY server_id) AS g
JOIN requested s USING (server_id) JOIN instances i ON i.id = g.server_id ORDER BY g.days DESC, g.server_id
"""
# If statements cannot read the raw tables.
_MEASURED = """
SELECT DISTINCT m.instance_id, m.collected_date, false AS is_deleted FROM {table} m
WHERE m.instance_id = ANY (CAST(:servers AS integer[])) AND m.collected_date BETWEEN :first AND :last AND {is_valid}
"""


def gaps_of(connection: Connection, level: Level, spans: Sequence[ServerDays]) -> list[ServerGaps]:
    """Return the days of each span without a stored sample, most days first; raises DBAPIError.

    Servers that are not registered are left out.
    """
    named = {span.server: span for span in spans if span.server}
    # The import has refused rows with other numbers.
    numbered = {
        number: days for days in spans if not days.server and (number := count_of(days.instance_id)) is not None
    }
    wanted = {"names": list(named), "numbers": list(numbered)}
    servers = connection.execute(text(_SERVERS), wanted).all() if named or numbered else []
    chosen = {row.id: span for row in servers if (span := named.get(row.name) or numbered.get(row.id))}
    if not chosen:
        return []
    of_level = {"table": level.source.name, "is_valid": _IS_VALID[level.name]}
    statement = with_queries(_GAPS, requested=_REQUESTED, missing=_MISSING.format(**of_level), stretches=_STRETCHES)
    firsts, lasts = ([getattr(span, end) for span in chosen.values()] for end in ("first_day", "last_day"))
    every_day = {"servers": list(chosen), "first": min(firsts), "last": max(lasts)}
    with copied_for_reading(connection, {level.source.name: _MEASURED.format(**of_level)}, every_day):
        rows = connection.execute(statement, {"servers": list(chosen), "firsts": firsts, "lasts": lasts})
        return [ServerGaps(**row) for row in rows.mappings()]


SLICE_ROWS = 100_000
LISTED = 20
FIRST_ROWS = 3
COUNTS = ("read", "written", "replaced", "present", "repeated", "conflicts", "unknown", "bad", "totals_written")


@dataclass
class LoadReport:
    """The outcome of the rows: read = written + replaced + present + repeated + conflicts + unknown + bad."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    listed: dict[str, list[str]] = field(default_factory=dict)
    resumed_after: int = 0
    first_day: date | None = None
    last_day: date | None = None
    before_start: int = 0
    """Rows of days before the first partition."""
    first_rows: list[dict[str, object]] = field(default_factory=list)
    """How the first rows of a dry run were read."""
    gaps: GapTotals = field(default_factory=GapTotals)

    @property
    def left_out(self) -> int:
        """Rows that were not imported and should be looked at."""
        return sum(self.counts[name] for name in ("conflicts", "unknown", "bad"))

    def add(self, counts: Mapping[str, int]) -> None:
        """Add numbers of rows."""
        for name, count in counts.items():
            self.counts[name] += count

    def name(self, what: str, lines: Iterable[object]) -> None:
        """Note the first lines of a kind."""
        listed = self.listed.setdefault(what, [])
        listed += map(str, itertools.islice(lines, LISTED - len(listed)))

    def recorded(self) -> str:
        """The state from which an interrupted import continues, as JSON."""
        days = {"first_day": self.first_day, "last_day": self.last_day, "before_start": self.before_start}
        return json.dumps({"counts": self.counts, "listed": self.listed, **days}, default=str)

    def resume(self, position: int, recorded: Mapping[str, Any]) -> None:
        """Add the records of an interrupted import, so that each of its rows is counted."""
        self.resumed_after = position
        self.counts |= recorded["counts"]
        self.listed = recorded["listed"]
        first, last = (recorded[name] and date.fromisoformat(recorded[name]) for name in ("first_day", "last_day"))
        self.first_day, self.last_day = first, last
        self.before_start = recorded.get("before_start", 0)

    def spans(self, first_day: date | None, last_day: date | None) -> None:
        """Extend the first and last day by those of a slice."""
        days = [day for day in (self.first_day, self.last_day, first_day, last_day) if day is not None]
        self.first_day, self.last_day = min(days, default=None), max(days, default=None)


@dataclass(frozen=True)
class Loader:
    """Loads sources into the raw table of a level; a dry run does the same in one transaction and undoes it."""

    engine: Engine
    level: Level
    reader: RowReader
    lock: HeldLock
    progress: Callable[[int], None] = lambda _rows: None
    rehearsal: Callable[[Connection], None] = lambda _connection: None
    """Called first in a dry run, because it precedes a real import."""
    dry_run: bool = False
    replace: bool = False
    register_as: str | None = None
    """The engine of unknown servers."""
    port: int = 0
    derive_totals: bool = True
    """Whether totals of servers are derived from their databases, because the source has none."""
    slice_rows: int = SLICE_ROWS
    start_date: date = date.min
    """First day of the first partition."""
    origin: Origin = FILE
    with_gaps: Sequence[ServerDays] = ()
    """Servers whose days in the source have gaps."""

    def load(self, source: Source, fingerprint: str) -> LoadReport:
        """Load a source; an interrupted import of it is recognised by its `fingerprint`.

        Raises ValidationError if the source cannot be read any further, DatabaseError if the database failed: earlier
        slices are kept, and the same import continues after them.
        """
        report = LoadReport()
        with database_errors(
            doing=f"loading {self.level.source.name}",
            kept="The slice at work was rolled back, earlier ones are kept; the same command continues.",
        ):
            if self.dry_run:
                self._rehearse(source, report)
            else:
                self._load(source, fingerprint, report)
        return report

    def _rehearse(self, source: Source, report: LoadReport) -> None:
        with self.engine.connect() as connection, connection.begin() as transaction:
            self.rehearsal(connection)
            for part in self._slices(source.rows(0)):
                self._slice(connection, part, report, "")
                self.progress(report.counts["read"])
            self._find_gaps(connection, report)
            transaction.rollback()

    def _load(self, source: Source, fingerprint: str, report: LoadReport) -> None:
        this = {"fingerprint": fingerprint}
        with self.engine.connect() as connection:
            # A finished import begins again, and finds everything present.
            earlier = connection.execute(text(POSITION), this).first()
        if earlier is not None:
            report.resume(earlier.position, earlier.counts)
        for part in self._slices(source.rows(report.resumed_after)):
            with self.engine.begin() as connection:
                self._slice(connection, part, report, fingerprint)
                recorded = {"source": source.description, "target": self.level.source.name, "position": part[-1][0]}
                recorded["origin"] = self.origin.name
                connection.execute(text(NOTE), {**this, **recorded, "counts": report.recorded()})
                self.lock.ensure_held()
            self.progress(report.counts["read"])
        with self.engine.begin() as connection:
            if self.level is DATABASE:
                record_history(connection)
            connection.execute(text(FINISH), this)
        with self.engine.begin() as connection:
            self._find_gaps(connection, report)

    def _find_gaps(self, connection: Connection, report: LoadReport) -> None:
        suffix = self.origin.suffix
        spans = [replace(span, server=f"{span.server}{suffix}") if span.server else span for span in self.with_gaps]
        gaps = gaps_of(connection, self.level, spans)
        report.gaps = GapTotals(
            servers=len(gaps),
            days=sum(server_gaps.days for server_gaps in gaps),
            longest_days=max((server_gaps.longest for server_gaps in gaps), default=0),
        )
        report.name("gaps", gaps)

    def _slices(self, rows: Iterator[PositionedRow]) -> Iterator[list[PositionedRow]]:
        while part := list(itertools.islice(rows, self.slice_rows)):
            yield part

    def _slice(
        self, connection: Connection, part: Sequence[PositionedRow], report: LoadReport, fingerprint: str
    ) -> None:
        staged = STAGED[self.level.name]
        read = [self.reader.read(position, texts) for position, texts in part]
        problems = [row for row in read if isinstance(row, str)]
        report.add({"read": len(part), "bad": len(problems)})
        report.name("bad", problems)
        connection.execute(sa.schema.CreateTable(staged))
        names = ", ".join(staged.columns.keys()[:-1])
        good = [row for row in read if not isinstance(row, str)]
        day_place = staged.columns.keys().index("day")
        report.before_start += sum(row[day_place] < self.start_date for row in good)  # type: ignore[operator]
        if self.dry_run:
            first = good[: FIRST_ROWS - len(report.first_rows)]
            report.first_rows += ({"row": row[0], **self.reader.values_of(row)} for row in first)
        copy_rows(connection, f"COPY staged ({names}) FROM STDIN", good)
        self._find_servers(connection, report)
        with copied_for_reading(connection, _near_a_slice(self.level)):
            compared = _compare_with_stored(self.level, replace=self.replace)
            connection.execute(sa.CreateTableAs(compared, "compared", temporary=True))
        connection.execute(text("ANALYZE compared"))
        counts = dict(connection.execute(text(COUNT)).mappings().one())
        report.add(counts)
        report.spans(*connection.execute(text(DAYS)).one())
        report.name("conflicts", map(self._conflict, connection.execute(text(CONFLICTS), {"listed": LISTED})))
        written = connection.execute(text(WRITE[self.level.name, self.replace])).rowcount
        if not self.replace and written < counts["written"]:
            raise DatabaseError(COLLECTED_MEANWHILE, transient=True)
        claim_samples(connection, fingerprint, replaced=self.replace)
        if self.level is DATABASE and self.derive_totals:
            with copied_for_reading(connection, _near_a_slice(*SERVER_LEVELS.values())):
                connection.execute(text(TOTALS))
            report.add({"totals_written": len(connection.execute(text(WRITE_TOTALS)).all())})
            connection.execute(text("DROP TABLE totals"))
        connection.execute(text("DROP TABLE staged, compared"))

    def _find_servers(self, connection: Connection, report: LoadReport) -> None:
        connection.execute(text("ANALYZE staged"))
        if self.register_as is not None:
            connection.execute(text(REGISTER), {"engine": self.register_as, "port": self.port})
        suffix = {"suffix": self.origin.suffix}
        if self.origin.suffix and connection.execute(text(IS_APART_MISSING), suffix).scalar_one():
            connection.execute(text(REGISTER_APART), suffix)
        connection.execute(text(FIND_BY_NAME), suffix)
        connection.execute(text(FIND_BY_NUMBER))
        unknown = connection.execute(text(UNKNOWN)).all()
        report.add({"unknown": sum(row.rows for row in unknown)})
        report.name("unknown", (f"{printable(row.who)}: {counted(row.rows, 'row')}" for row in unknown))

    def _conflict(self, row: Row[Any]) -> str:
        database = f", {row.database}" if row.database else ""
        other = "another row has" if row.another else "stored is"
        sizes = f"{row.size_mb:,} MiB, {other} {row.other_mb:,} MiB"
        return f"{self.reader.place(row.position)}: {row.server}{database}, {human_day(row.day)}: {sizes}"


def _near_a_slice(*levels: Level) -> dict[str, str]:
    return {level.source.name: NEAR_A_SLICE.format(table=level.source.name) for level in levels}
