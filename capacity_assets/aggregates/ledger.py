"""The ledger of computed windows: which were computed, over which changes, and which must be computed again.

`database.changes` defines which windows a change affects, and when a window is stale. `begin` notes up to which change
the samples will be read, and `finish` stores that with the result. A change that commits in between is in the queue, so
nothing depends on a clock, on the order of commits, or on transaction numbers.

The orchestration requests runs, and `service` computes windows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine, text

from capacity_assets.aggregates.levels import Level
from capacity_assets.aggregates.runs import PeriodSummary, StoredWindow
from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.database.changes import STALE_WHEN_GATHERED, TRACKING, gather_changes, gather_records
from capacity_assets.database.cluster import forget_distribution, is_distributed
from capacity_assets.database.sql import with_queries

PATIENCE_SECONDS = 3600


@dataclass(frozen=True)
class IncompleteWindow:
    """A window that should be computed, or computed again, and the reason in a few words."""

    period_type: str
    level: str
    window: Window
    reason: str


@dataclass(frozen=True)
class StaleWindow(IncompleteWindow):
    """A computed window that a new computation may change.

    `wanted` increases with each change that affects it. `quiet_seconds` have passed since the last change of its
    samples, `waiting_seconds` since the first one.
    """

    wanted: int
    quiet_seconds: float = math.inf
    waiting_seconds: float = math.inf


@dataclass(frozen=True)
class ComputedWindow:
    """A window that was computed, with numbers of servers and rows."""

    window: Window
    processed_instances: int
    failed_instances: int
    total_records: int


@dataclass(frozen=True)
class KnownWindow:
    """A computed window: its `fingerprint`, its counts, and whether they are current.

    It `is_intact` if change tracking is on, no server failed, and its rows are stored. It `is_stale` if samples of its
    days or of a window that it is compared with changed since, or another session wrote to its rows. It `has_its_sums`
    if at most a window that it is compared with has changed.
    """

    window: Window
    period_type: str
    fingerprint: str | None
    processed_instances: int
    total_records: int
    protected_records: int
    unsampled_records: int | None
    is_intact: bool
    is_stale: bool
    has_its_sums: bool

    def is_unchanged(self, fingerprint: str) -> bool:
        """Whether a computation with this `fingerprint` would not change it."""
        is_known = self.fingerprint == fingerprint and self.unsampled_records is not None
        return is_known and self.is_intact and not self.is_stale

    def has_current_sums(self, fingerprint: str) -> bool:
        """Whether its stored sums equal those of its samples, for all servers, by `fingerprint`."""
        is_whole = self.protected_records == self.unsampled_records == 0
        return is_whole and (self.fingerprint or "").endswith(fingerprint) and self.is_intact and self.has_its_sums


@dataclass(frozen=True)
class Ledger:
    """Reads and writes the ledger of one capacity database; only windows of registered `periods` are reported.

    Each method raises DatabaseError if the database fails; the text says what was kept.
    """

    engine: Engine
    periods: Collection[str] = tuple(PERIODS)

    def gather(self, kept: str = "", within_seconds: int | None = None) -> None:
        """Read the queue of changes, with the records of the nodes of a cluster; see `take_over` for the parameters."""
        self.take_over(kept, within_seconds)
        with self._work("reading the queue of changes", kept) as connection:
            gather_changes(connection)

    def begin(self, period: Period, levels: Sequence[Level], windows: Sequence[Window]) -> dict[str, dict[date, int]]:
        """Read the queue of changes, and record that a computation of `windows` begins.

        Returns `wanted` of each, by level and first day, for `finish`. Call `take_over` before, for the nodes of a
        cluster.
        """
        years_before = [period.year_before(window) for window in windows]
        parameters = {
            **_parameters_of(period, windows),
            "levels": [level.name for level in levels],
            "reads_from": [period.previous(window).start for window in windows],
            "year_before_starts": [window.start for window in years_before],
            "year_before_ends": [window.end for window in years_before],
        }
        wanted: dict[str, dict[date, int]] = {level.name: {} for level in levels}
        with self._work("recording that a computation begins") as connection:
            # A crash that loses this commit loses the later ones, too.
            connection.execute(text("SET LOCAL synchronous_commit = off"))
            gather_changes(connection)
            for row in connection.execute(text(_BEGIN), parameters):
                wanted[row.level][row.period_start] = row.wanted
        return wanted

    def known_windows(self, windows: Mapping[Level, Collection[StoredWindow]]) -> dict[Level, list[KnownWindow]]:
        """Return the given windows that were computed, by level.

        Call it after `begin`: later changes cause these windows to be computed again.
        """
        listed = sorted((level.name, *window) for level, some in windows.items() for window in some)
        parameters: dict[str, Any] = {
            "levels": [name for name, _, _ in listed],
            "period_types": [name for _, name, _ in listed],
            "starts": [window.start for _, _, window in listed],
        }
        stored = " ".join(f"WHEN '{level.name}' THEN {self._lookup('stored', level)}" for level in windows)
        with self._work("looking for unchanged windows") as connection:
            known = _KNOWN_WINDOWS.format(stored=f"CASE w.level {stored} END")
            named = {"stale": STALE_WHEN_GATHERED, "tracking": TRACKING}
            query = with_queries(known, materialized=named, **named)
            rows = connection.execute(query, parameters).all()
        windows_by_level: dict[str, list[KnownWindow]] = {level.name: [] for level in windows}
        for name, start, end, *rest in rows:
            windows_by_level[name].append(KnownWindow(Window(start, end), *rest))
        return {level: windows_by_level[level.name] for level in windows}

    def finish(self, begun: Mapping[date, int], summaries: Sequence[PeriodSummary], fingerprint: str) -> None:
        """Record that the windows of `summaries` were computed, with the changes before they were `begun`."""
        parameters = {
            "period_type": summaries[0].period_type,
            "level": summaries[0].level,
            "starts": [summary.period_start for summary in summaries],
            "begun": [begun[summary.period_start] for summary in summaries],
            "failed": [summary.failed_instances for summary in summaries],
            "processed": [summary.processed_instances for summary in summaries],
            "records": [summary.total_records for summary in summaries],
            "protected": [summary.protected_records for summary in summaries],
            "unsampled": [summary.unsampled_records for summary in summaries],
            "fingerprint": fingerprint,
        }
        with self._work("recording that a computation is done", "The aggregates were kept.") as connection:
            connection.execute(text(_FINISH), parameters)

    def invalidate(self, period: Period, levels: Sequence[Level], windows: Sequence[Window]) -> None:
        """Mark `windows` as changed, and those after them and a year later, which are compared with their rows."""
        replaced = {window.start for window in windows}
        starts = replaced | {period.following(window).start for window in windows}
        names = [level.name for level in levels]
        parameters = {"period_type": period.name, "levels": names, "starts": [*starts], "replaced": [*replaced]}
        with self._work("recording that rows are to be replaced") as connection:
            connection.execute(text(_INVALIDATE), parameters)

    def computed_windows(self, period: Period, level: Level) -> list[ComputedWindow]:
        """Return the windows that were computed, in order."""
        with self._work("reading what was computed") as connection:
            rows = connection.execute(text(_COMPUTED_WINDOWS), {"period_type": period.name, "level": level.name})
            return [ComputedWindow(Window(row.period_start, row.period_end), *row[2:]) for row in rows]

    def failed_instances(self, period: Period, level: Level, windows: Sequence[Window]) -> dict[date, int]:
        """Return the number of failed servers by first day, for those of `windows` in which servers failed."""
        with self._work("looking for servers that failed") as connection:
            rows = connection.execute(text(_FAILED), _parameters_of(period, windows, level))
            return {row.period_start: row.failed_instances for row in rows}

    def last_computation(self) -> str:
        """Return a token that changes when a further window is computed."""
        with self._work("reading what was computed") as connection:
            return str(connection.execute(text(_LAST_COMPUTATION)).scalar_one())

    def stale(self) -> list[StaleWindow]:
        """Read the queue of changes, and return the computed windows whose samples changed since, in order."""
        self.gather()
        return self._stale("looking for changed samples", of_samples=True)

    def outdated(self) -> list[StaleWindow]:
        """Return the computed windows that a new computation may change, in order.

        Either their samples changed since, or their rows may no longer be as computed.
        """
        self.take_over()
        return self._stale("looking for windows that are out of date", of_samples=False)

    def _stale(self, doing: str, *, of_samples: bool) -> list[StaleWindow]:
        parameters = {"periods": list(self.periods), "of_samples": of_samples}
        with self._work(doing) as connection:
            rows = connection.execute(text(_STALE), parameters).all()
        return [StaleWindow(name, level, Window(start, end), *rest) for name, level, start, end, *rest in rows]

    def incomplete_windows(
        self, period: Period, level: Level, windows: Sequence[Window], *, patience_seconds: float = PATIENCE_SECONDS
    ) -> list[IncompleteWindow]:
        """Return those that are missing although they have samples, unfinished, failed in part, or stale.

        A window does not count as stale for changes younger than `patience_seconds`, for which runs are requested.
        """
        self.take_over()
        with self._work("looking for incomplete windows") as connection:
            return self.incomplete_windows_seen_by(
                connection, level, {period: windows}, patience_seconds=patience_seconds
            )

    def undecided(self, connection: Connection) -> str | None:
        """Return why the ledger may lack changes, as a transaction sees it; None if it does not. Raises DBAPIError."""
        row = connection.execute(with_queries(_UNDECIDED, tracking=TRACKING)).one()
        if not row.tracking_is_on:
            return "a trigger that records changes of samples is missing or off: run `capacity init`"
        return "a server was put into service just now" if row.servers_are_unread else None

    def incomplete_windows_seen_by(
        self,
        connection: Connection,
        level: Level,
        windows: Mapping[Period, Sequence[Window]],
        *,
        patience_seconds: float = 0,
    ) -> list[IncompleteWindow]:
        """Return the incomplete windows of several periods, in order, as the transaction of a connection sees them.

        Raises DBAPIError.
        """
        listed = [(period.name, window) for period, some in windows.items() for window in some]
        if not listed:
            return []
        parameters = {
            "level": level.name,
            "period_types": [name for name, _ in listed],
            "starts": [window.start for _, window in listed],
            "ends": [window.end for _, window in listed],
            "patience_seconds": patience_seconds,
        }
        rows = connection.execute(text(_INCOMPLETE.format(sampled=self._lookup("sampled", level))), parameters)
        return [IncompleteWindow(row.period_type, level.name, listed[row.place - 1][1], row.reason) for row in rows]

    def lost_rows(
        self, connection: Connection, period: Period, level: Level, windows: Sequence[Window]
    ) -> IncompleteWindow | None:
        """Return the first of `windows` that has fewer rows than were computed; raises DBAPIError."""
        if not windows:
            return None
        parameters = {**_parameters_of(period, windows, level), "first": windows[0].start, "last": windows[-1].start}
        row = connection.execute(text(_LOST_ROWS.format(target=level.target.name)), parameters).first()
        if row is None:
            return None
        reason = f"{row.lost:,} of its {row.records:,} aggregates are gone: materialise it again"
        return IncompleteWindow(period.name, level.name, Window(row.period_start, row.period_end), reason)

    def take_over(self, kept: str = "", within_seconds: int | None = None) -> None:
        """Collect the changes that the nodes of a cluster recorded; each has `within_seconds` to answer.

        `kept` is part of the error if a node does not.
        """
        if within_seconds is not None:
            # Another process may just have distributed the tables.
            forget_distribution(self.engine)
        with database_errors(doing="reading the changes of the nodes", kept=kept):
            gather_records(self.engine, within_seconds, kept=kept)

    def _lookup(self, what: str, level: Level) -> str:
        """Return the condition that a window of a level has `stored` rows, or `sampled` days."""
        tables = (level.target,) if what == "stored" else level.raw_tables
        distributed = level.has_servers or what == "sampled"
        lookup = (_DISTRIBUTED_LOOKUPS if distributed and is_distributed(self.engine) else _LOOKUPS)[what]
        return f"({' OR '.join(lookup.format(table=table.name) for table in tables)})"

    @contextmanager
    def _work(self, doing: str, kept: str = "") -> Iterator[Connection]:
        with database_errors(doing=doing, kept=kept), self.engine.begin() as connection:
            yield connection


def _parameters_of(period: Period, windows: Sequence[Window], level: Level | None = None) -> dict[str, Any]:
    return {
        "period_type": period.name,
        "level": level.name if level else None,
        "starts": [window.start for window in windows],
        "ends": [window.end for window in windows],
    }


_LOOKUPS = {
    "stored": "EXISTS (SELECT FROM {table} a WHERE a.period_type = w.period_type AND a.period_start = w.period_start)",
    "sampled": "EXISTS (SELECT FROM {table} r WHERE r.collected_date BETWEEN given.period_start AND given.period_end)",
}
# On distributed rows, a subquery must not depend on the row of the outer query.
_DISTRIBUTED_LOOKUPS = {
    "stored": "(w.period_type, w.period_start) IN (SELECT DISTINCT a.period_type, a.period_start FROM {table} a "
    "WHERE a.period_type = ANY (CAST(:period_types AS text[])) AND a.period_start = ANY (CAST(:starts AS date[])))",
    "sampled": "EXISTS (SELECT FROM (SELECT DISTINCT r.collected_date FROM {table} r WHERE r.collected_date BETWEEN "
    "(SELECT min(s) FROM unnest(CAST(:starts AS date[])) s) AND (SELECT max(e) FROM unnest(CAST(:ends AS date[])) e)"
    ") AS days WHERE days.collected_date BETWEEN given.period_start AND given.period_end)",
}
# Stale windows are looked up once, not for each window. No trigger fires for a dropped partition, but its windows have
# no rows.
_KNOWN_WINDOWS = """
SELECT w.level, w.period_start, w.period_end, w.period_type, w.fingerprint, w.processed_instances, w.total_records,
       w.protected_records, w.unsampled_records,
       w.computed IS NOT NULL AND w.failed_instances = 0 AND (w.total_records = 0 OR {stored}) AND tracking.is_on,
       stale.level IS NOT NULL, coalesce(stale.has_its_sums, true)
FROM unnest(CAST(:levels AS text[]), CAST(:period_types AS text[]), CAST(:starts AS date[]))
    AS given (level, period_type, period_start)
JOIN capacity_computed_windows w USING (level, period_type, period_start)
LEFT JOIN stale USING (level, period_type, period_start) CROSS JOIN tracking
WHERE w.processed_instances IS NOT NULL
"""

# A window without the year before (of an older version), or of another length, counts as new.
_BEGIN = """
WITH given AS (
    SELECT level, days.*, w.wanted, w.year_before_start IS NULL
           OR (w.period_end, w.reads_from) <> (days.period_end, days.reads_from) AS is_new
    FROM unnest(CAST(:levels AS text[])) AS level
    CROSS JOIN unnest(CAST(:starts AS date[]), CAST(:ends AS date[]), CAST(:reads_from AS date[]),
                      CAST(:year_before_starts AS date[]), CAST(:year_before_ends AS date[]))
        AS days (period_start, period_end, reads_from, year_before_start, year_before_end)
    LEFT JOIN (SELECT * FROM capacity_computed_windows WHERE period_type = :period_type) AS w
        USING (level, period_start)
), begun AS (
    INSERT INTO capacity_computed_windows AS w
        (period_type, level, period_start, period_end, reads_from, year_before_start, year_before_end)
    SELECT :period_type, level, period_start, period_end, reads_from, year_before_start, year_before_end
    FROM given WHERE is_new ORDER BY level, period_start
    ON CONFLICT (period_type, level, period_start) DO UPDATE
    SET year_before_start = EXCLUDED.year_before_start, year_before_end = EXCLUDED.year_before_end,
        period_end = EXCLUDED.period_end, reads_from = EXCLUDED.reads_from, wanted = w.wanted + 1,
        changed = w.wanted + 1
    WHERE w.year_before_start IS NULL OR (w.period_end, w.reads_from) <> (EXCLUDED.period_end, EXCLUDED.reads_from)
    RETURNING w.level, w.period_start, w.wanted
)
SELECT level, period_start, coalesce(begun.wanted, given.wanted, 0) AS wanted
FROM given LEFT JOIN begun USING (level, period_start)
"""

# Not updated if nothing is new, so that computing again over unchanged samples writes nothing.
_FINISH = """
WITH done AS (
    SELECT * FROM unnest(CAST(:starts AS date[]), CAST(:begun AS bigint[]), CAST(:failed AS integer[]),
                         CAST(:processed AS integer[]), CAST(:records AS bigint[]), CAST(:protected AS bigint[]),
                         CAST(:unsampled AS bigint[]))
        AS done (period_start, begun, failed, processed, records, protected, unsampled)
), locked AS (
    SELECT done.* FROM done JOIN capacity_computed_windows w USING (period_start)
    WHERE w.period_type = :period_type AND w.level = :level ORDER BY period_start FOR UPDATE OF w
)
UPDATE capacity_computed_windows w
SET computed = done.begun, failed_instances = done.failed, computed_at = now(), fingerprint = :fingerprint,
    processed_instances = done.processed, total_records = done.records, protected_records = done.protected,
    unsampled_records = done.unsampled,
    oldest_change = CASE WHEN w.wanted > done.begun THEN w.oldest_change END,
    newest_change = CASE WHEN w.wanted > done.begun THEN w.newest_change END
FROM locked AS done
WHERE w.period_type = :period_type AND w.level = :level AND w.period_start = done.period_start
  AND (w.computed, w.failed_instances, w.fingerprint, w.processed_instances, w.total_records, w.protected_records,
       w.unsampled_records)
      IS DISTINCT FROM (done.begun, done.failed, CAST(:fingerprint AS varchar), done.processed, done.records,
                        done.protected, done.unsampled)
"""

_INVALIDATE = """
WITH locked AS (
    SELECT level, period_start FROM capacity_computed_windows
    WHERE period_type = :period_type AND level = ANY (CAST(:levels AS text[]))
      AND (period_start = ANY (CAST(:starts AS date[])) OR year_before_start = ANY (CAST(:replaced AS date[])))
    ORDER BY level, period_start FOR UPDATE
)
UPDATE capacity_computed_windows w SET wanted = w.wanted + 1, changed = w.wanted + 1 FROM locked
WHERE w.period_type = :period_type AND w.level = locked.level AND w.period_start = locked.period_start
"""

_COMPUTED_WINDOWS = """
SELECT period_start, period_end, coalesce(processed_instances, 0) AS processed_instances, failed_instances,
       coalesce(total_records, 0) AS total_records
FROM capacity_computed_windows
WHERE period_type = :period_type AND level = :level AND computed IS NOT NULL
  -- Where every server failed, the run failed too, and its partition is to be seen as failed.
  AND (processed_instances > 0 OR failed_instances = 0)
ORDER BY period_start
"""

_FAILED = """
SELECT period_start, failed_instances FROM capacity_computed_windows
WHERE period_type = :period_type AND level = :level AND failed_instances > 0
  AND period_start = ANY (CAST(:starts AS date[]))
"""

# Both the number and the time, because the first of two computations may end last.
_LAST_COMPUTATION = """
SELECT format('%s windows, the last at %s', count(*), max(computed_at)) FROM capacity_computed_windows
WHERE computed IS NOT NULL
"""

_STALE = """
SELECT period_type, level, period_start, period_end, CASE
    WHEN newest_change IS NOT NULL
        THEN concat('samples', CASE level WHEN 'group' THEN ' or labels' END, ' changed since it was computed')
    ELSE 'another session wrote its aggregates or deleted samples, or a window that it compares with was overwritten'
    END, wanted, CAST(coalesce(extract(epoch FROM now() - newest_change), 'infinity') AS float),
       CAST(coalesce(extract(epoch FROM now() - oldest_change), 'infinity') AS float)
FROM capacity_stale_windows
WHERE period_type = ANY (:periods) AND (newest_change IS NOT NULL OR NOT CAST(:of_samples AS boolean))
ORDER BY period_type, level, period_start
"""

_UNDECIDED = """
SELECT is_on AS tracking_is_on, EXISTS (SELECT FROM capacity_changes WHERE days IS NULL) AS servers_are_unread
FROM tracking
"""

# Stale windows are looked up once, not for each window.
_INCOMPLETE = """
WITH stale AS MATERIALIZED (SELECT * FROM capacity_stale_windows WHERE level = :level)
SELECT given.place, given.period_type, state.reason
FROM unnest(CAST(:period_types AS text[]), CAST(:starts AS date[]), CAST(:ends AS date[])) WITH ORDINALITY
    AS given (period_type, period_start, period_end, place)
LEFT JOIN capacity_computed_windows w
    ON w.level = :level AND w.period_type = given.period_type AND w.period_start = given.period_start
LEFT JOIN stale s ON s.period_type = given.period_type AND s.period_start = given.period_start
CROSS JOIN LATERAL (SELECT CASE
    WHEN w.period_start IS NULL THEN CASE WHEN {sampled} THEN 'has samples, but was never computed' END
    WHEN w.computed IS NULL THEN 'was begun, but never finished'
    WHEN w.failed_instances > 0 THEN format('servers that failed in it: %s', w.failed_instances)
    WHEN s.oldest_change <= now() - make_interval(secs => :patience_seconds)
        THEN concat('samples', CASE w.level WHEN 'group' THEN ' or labels' END, ' changed since it was computed')
    END) AS state (reason)
WHERE state.reason IS NOT NULL ORDER BY given.place
"""

# Servers that are inactive now may have further rows.
_LOST_ROWS = """
SELECT w.period_start, w.period_end, w.total_records - coalesce(a.rows, 0) AS lost, w.total_records AS records
FROM capacity_computed_windows w LEFT JOIN (
    SELECT period_start, count(*) AS rows FROM {target}
    WHERE period_type = :period_type AND period_start BETWEEN :first AND :last GROUP BY period_start
) AS a USING (period_start)
WHERE w.period_type = :period_type AND w.level = :level AND w.period_start = ANY (CAST(:starts AS date[]))
  AND coalesce(a.rows, 0) < w.total_records
ORDER BY w.period_start LIMIT 1
"""
