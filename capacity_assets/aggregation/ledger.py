"""The ledger of computed windows: which were computed, over which samples, and what has to be done again.

Every computation over all servers is entered with PostgreSQL's own account of which transactions it could see
(a `pg_snapshot`, taken before the first sample is read). A change of samples is noted with its transaction by
`storage.change_log`. A window is *stale* when a change of its days, or of those of the window before, is not
among the transactions it saw. That holds across restarts and for transactions that commit late, and needs no
clock: a change is forgotten only when every computed window that it touches has seen it.

Requesting runs belongs to the orchestration, computing to `service`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from capacity_assets.aggregation.errors import database_error
from capacity_assets.aggregation.levels import LEVELS, Level
from capacity_assets.aggregation.results import PeriodSummary
from capacity_assets.periods import PERIODS, Period, Window

_TRANSACTION = "CAST(CAST(c.transaction_id AS text) AS xid8)"
_SNAPSHOT = "CAST(w.snapshot AS pg_snapshot)"
_TOUCHES = "c.table_name = l.table_name AND c.collected_date BETWEEN w.reads_from AND w.period_end"
_UNSEEN = f"{_TOUCHES} AND NOT pg_visible_in_snapshot({_TRANSACTION}, {_SNAPSHOT})"
# With those that were seen while an older transaction was open: computing again, they are forgotten.
_PERHAPS_UNSEEN = f"{_TOUCHES} AND {_TRANSACTION} >= pg_snapshot_xmin({_SNAPSHOT})"
_LEVELS = (
    "unnest(CAST(:levels AS text[]), CAST(:tables AS text[]), CAST(:targets AS text[])) "
    "AS l (level, table_name, target_name)"
)
_DISTURBED = (
    "d.table_name IN (l.table_name, l.target_name) "
    f"AND NOT pg_visible_in_snapshot(CAST(CAST(d.transaction_id AS text) AS xid8), {_SNAPSHOT})"
)


PATIENCE_SECONDS = 3600


@dataclass(frozen=True)
class StaleWindow:
    """A computed window whose samples changed since.

    `newest_change` numbers the last such transaction; `quiet_seconds` have passed since it, `waiting_seconds` since
    the first one.
    """

    period_type: str
    level: str
    window: Window
    newest_change: int
    quiet_seconds: float = math.inf
    waiting_seconds: float = math.inf


@dataclass(frozen=True)
class Unchanged:
    """What a computed window held when it was computed, and still does."""

    processed_instances: int
    total_records: int
    protected_records: int


@dataclass(frozen=True)
class OpenWindow:
    """A window that is due and not as it should be, and why in a few words."""

    window: Window
    reason: str


class Ledger:
    """Reads and keeps the ledger of one capacity database."""

    def __init__(self, engine: Engine, periods: Iterable[str] = PERIODS) -> None:
        """Work through `engine`; windows of other than the registered `periods` hold nothing back."""
        self._engine = engine
        self._parameters = {
            "periods": list(periods),
            "levels": list(LEVELS),
            "tables": [level.source.name for level in LEVELS.values()],
            "targets": [level.target.name for level in LEVELS.values()],
        }

    def begin(self, period: Period, level: Level, windows: Sequence[Window]) -> str:
        """Enter that a computation of `windows` begins; return the snapshot to finish it with.

        Raises:
            DatabaseError: the database failed; nothing of this level was written.
        """
        kept = f"Nothing of the {level.name} level was written, what was committed before was kept."
        with self._work("noting that a computation begins", kept) as connection:
            _renumber_after_a_restore(connection)
            return str(
                connection.execute(
                    text(_BEGIN),
                    {
                        "period_type": period.name,
                        "level": level.name,
                        "starts": [window.start for window in windows],
                        "ends": [window.end for window in windows],
                        "reads_from": [period.previous(window).start for window in windows],
                    },
                ).scalar_one()
            )

    def unchanged(
        self, period: Period, level: Level, windows: Sequence[Window], fingerprint: str
    ) -> dict[date, Unchanged]:
        """Return those of `windows` that computing again would leave as they are, by their first day.

        Nothing has touched them since they were computed: no sample of theirs or of the window before was added,
        corrected or deleted, nobody else wrote to the aggregates, and the same statement was used for the same servers.

        Raises:
            DatabaseError: the database failed; nothing was written.
        """
        parameters: dict[str, Any] = {
            **self._parameters,
            "period_type": period.name,
            "level": level.name,
            "starts": [window.start for window in windows],
            "fingerprint": fingerprint,
        }
        with self._work("looking for windows that are as they were", "Nothing was written.") as connection:
            _renumber_after_a_restore(connection)
            rows = connection.execute(text(_UNCHANGED.format(target=level.target.name)), parameters).all()
            connection.execute(text(_FORGET), self._parameters)
        return {
            row.period_start: Unchanged(row.processed_instances, row.total_records, row.protected_records)
            for row in rows
        }

    def finish(self, snapshot: str, parts: Sequence[PeriodSummary], fingerprint: str) -> None:
        """Enter that the windows of `parts` were computed over what `snapshot` could see, and by what.

        Raises:
            DatabaseError: the database failed; the aggregates were kept, and the windows count as not computed.
        """
        with self._work("noting that a computation is done", "The aggregates were kept.") as connection:
            connection.execute(
                text(_FINISH),
                {
                    **self._parameters,
                    "period_type": parts[0].period_type,
                    "level": parts[0].level,
                    "snapshot": snapshot,
                    "starts": [part.period_start for part in parts],
                    "failed": [part.failed_instances for part in parts],
                    "processed": [part.processed_instances for part in parts],
                    "records": [part.total_records for part in parts],
                    "protected": [part.protected_records for part in parts],
                    "fingerprint": fingerprint,
                },
            )
            connection.execute(text(_FORGET), self._parameters)
            connection.execute(text(_FORGET_DISTURBANCES), self._parameters)

    @property
    def stale_query(self) -> tuple[str, dict[str, list[str]]]:
        """The statement of a look and its parameters, for those who want to see its plan."""
        return _STALE, self._parameters

    def stale(self) -> list[StaleWindow]:
        """Return every computed window whose samples changed since, in order; and forget changes all have seen.

        Raises:
            DatabaseError: the database failed; nothing is lost.
        """
        with self._work("looking for changed samples", "No change was lost.") as connection:
            _renumber_after_a_restore(connection)
            query, parameters = self.stale_query
            rows = connection.execute(text(query), parameters).all()
            connection.execute(text(_FORGET), self._parameters)
        return [
            StaleWindow(
                row.period_type,
                row.level,
                Window(row.period_start, row.period_end),
                row.newest_change,
                row.quiet_seconds,
                row.waiting_seconds,
            )
            for row in rows
        ]

    def open_windows(
        self, period: Period, level: Level, windows: Sequence[Window], *, patience_seconds: float = PATIENCE_SECONDS
    ) -> list[OpenWindow]:
        """Return those of `windows` that are missing although there are samples, unfinished, failed in part, or stale.

        A change younger than `patience_seconds` makes no window late: it is being followed.

        Raises:
            DatabaseError: the database failed; nothing is changed by looking.
        """
        with self._work("looking for windows that are left", "Nothing is changed by looking.") as connection:
            return self.windows_left(connection, period, level, windows, patience_seconds=patience_seconds)

    def windows_left(
        self,
        connection: Connection,
        period: Period,
        level: Level,
        windows: Sequence[Window],
        *,
        patience_seconds: float = 0,
    ) -> list[OpenWindow]:
        """Return what `open_windows` does, as the transaction of `connection` sees it.

        Raises:
            sqlalchemy.exc.DBAPIError: the database failed.
        """
        if not windows:
            return []
        parameters: dict[str, Any] = {
            **self._parameters,
            "period_type": period.name,
            "level": level.name,
            "starts": [window.start for window in windows],
            "ends": [window.end for window in windows],
            "patience_seconds": patience_seconds,
        }
        rows = connection.execute(text(_OPEN.format(raw=level.source.name)), parameters).all()
        return [OpenWindow(Window(row.period_start, row.period_end), row.reason) for row in rows]

    @contextmanager
    def _work(self, doing: str, kept: str) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DBAPIError, PoolTimeoutError) as error:
            raise database_error(error, doing=doing, kept=kept) from error


def _renumber_after_a_restore(connection: Connection) -> None:
    """Bring transaction numbers of another server into this one's.

    A dump that is loaded into another server keeps numbers that mean nothing there: new changes would look old. All
    changes in the log then count as not seen by anyone, and windows as computed up to now.
    """
    if connection.execute(text(_FROM_ANOTHER_SERVER)).scalar():
        connection.execute(text("LOCK TABLE capacity_sample_changes IN SHARE ROW EXCLUSIVE MODE"))
        connection.execute(text(_RENUMBER_WINDOWS))
        connection.execute(text(_COPY_CHANGES))
        connection.execute(text(_FORGET_ALL_DISTURBANCES))


_BEGIN = """
WITH begun AS (
    INSERT INTO capacity_computed_windows (period_type, level, period_start, period_end, reads_from)
    SELECT :period_type, :level, period_start, period_end, reads_from
    FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[]), CAST(:reads_from AS date[]))
        AS asked (period_start, period_end, reads_from)
    ON CONFLICT DO NOTHING
)
SELECT CAST(pg_current_snapshot() AS text)
"""

# Left alone where nothing was new, so that computing again over unchanged samples writes nothing at all.
_FINISH = f"""
UPDATE capacity_computed_windows w
SET snapshot = :snapshot, failed_instances = done.failed, computed_at = now(), fingerprint = :fingerprint,
    processed_instances = done.processed, total_records = done.records, protected_records = done.protected
FROM unnest(CAST(:starts AS date[]), CAST(:failed AS integer[]), CAST(:processed AS integer[]),
            CAST(:records AS bigint[]), CAST(:protected AS bigint[]))
    AS done (period_start, failed, processed, records, protected), {_LEVELS}
WHERE w.period_type = :period_type AND w.level = :level AND w.period_start = done.period_start AND l.level = w.level
  AND (w.snapshot IS NULL OR w.failed_instances <> done.failed OR w.fingerprint IS DISTINCT FROM :fingerprint
       OR (w.processed_instances, w.total_records, w.protected_records)
          IS DISTINCT FROM (done.processed, done.records, done.protected)
       OR EXISTS (SELECT FROM capacity_disturbances d WHERE {_DISTURBED})
       OR EXISTS (SELECT FROM capacity_sample_changes c WHERE {_PERHAPS_UNSEEN}))
"""  # noqa: S608 -- built from the constants above

_STALE = f"""
SELECT w.period_type, w.level, w.period_start, w.period_end, max(c.transaction_id) AS newest_change,
       CAST(extract(epoch FROM now() - max(c.changed_at)) AS float) AS quiet_seconds,
       CAST(extract(epoch FROM now() - min(c.changed_at)) AS float) AS waiting_seconds
FROM capacity_computed_windows w JOIN {_LEVELS} ON l.level = w.level JOIN capacity_sample_changes c ON {_UNSEEN}
WHERE w.snapshot IS NOT NULL AND w.period_type = ANY (:periods)
GROUP BY w.period_type, w.level, w.period_start, w.period_end ORDER BY w.period_type, w.level, w.period_start
"""  # noqa: S608 -- built from the constants above

# By the oldest transaction that one of the windows may not have seen: a change is kept a little longer than it must.
_FORGET = f"""
WITH days AS (SELECT DISTINCT table_name, collected_date FROM capacity_sample_changes),
needed AS (
    SELECT c.table_name, c.collected_date,
           min(coalesce(CAST(CAST(pg_snapshot_xmin({_SNAPSHOT}) AS text) AS bigint), 0)) AS oldest_unseen
    FROM days c JOIN {_LEVELS} ON l.table_name = c.table_name
    JOIN capacity_computed_windows w ON w.level = l.level AND w.period_type = ANY (:periods) AND {_TOUCHES}
    GROUP BY c.table_name, c.collected_date
)
DELETE FROM capacity_sample_changes c USING days LEFT JOIN needed USING (table_name, collected_date)
WHERE c.table_name = days.table_name AND c.collected_date = days.collected_date
  AND (needed.oldest_unseen IS NULL OR c.transaction_id < needed.oldest_unseen)
"""  # noqa: S608 -- built from the constants above

# A whole partition may have gone without a trigger, but then no row of the window is left.
_UNCHANGED = f"""
SELECT w.period_start, w.processed_instances, w.total_records, w.protected_records
FROM capacity_computed_windows w JOIN {_LEVELS} ON l.level = w.level
WHERE w.period_type = :period_type AND w.level = :level AND w.period_start = ANY (CAST(:starts AS date[]))
  AND w.snapshot IS NOT NULL AND w.failed_instances = 0 AND w.fingerprint = :fingerprint
  AND NOT EXISTS (SELECT FROM capacity_sample_changes c WHERE {_PERHAPS_UNSEEN})
  AND NOT EXISTS (SELECT FROM capacity_disturbances d WHERE {_DISTURBED})
  AND (w.total_records = 0 OR EXISTS (
      SELECT FROM {{target}} a WHERE a.period_type = w.period_type AND a.period_start = w.period_start))
"""  # noqa: S608 -- built from the constants above and names of our own tables

# Not sooner: a computation at work has looked before them and is entered after.
_FORGET_DISTURBANCES = f"""
WITH old AS (
    SELECT table_name, transaction_id FROM capacity_disturbances WHERE changed_at < now() - interval '1 day'
),
doubted AS (
    UPDATE capacity_computed_windows w SET fingerprint = NULL FROM {_LEVELS}
    WHERE l.level = w.level AND w.fingerprint IS NOT NULL AND EXISTS (SELECT FROM old d WHERE {_DISTURBED})
)
DELETE FROM capacity_disturbances d USING old
WHERE d.table_name = old.table_name AND d.transaction_id = old.transaction_id
"""  # noqa: S608 -- built from the constants above

_OPEN = f"""
SELECT asked.period_start, asked.period_end, state.reason
FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS asked (period_start, period_end)
JOIN {_LEVELS} ON l.level = :level
LEFT JOIN capacity_computed_windows w
    ON w.period_type = :period_type AND w.level = :level AND w.period_start = asked.period_start
CROSS JOIN LATERAL (SELECT CASE
    WHEN w.period_start IS NULL THEN
        CASE WHEN EXISTS (SELECT FROM {{raw}} r WHERE r.collected_date BETWEEN asked.period_start AND asked.period_end)
             THEN 'has samples, but was never computed' END
    WHEN w.snapshot IS NULL THEN 'was begun, but never finished'
    WHEN w.failed_instances > 0 THEN format('servers that failed in it: %s', w.failed_instances)
    WHEN EXISTS (SELECT FROM capacity_sample_changes c
                 WHERE {_UNSEEN} AND c.changed_at <= now() - make_interval(secs => :patience_seconds))
        THEN 'samples changed since it was computed'
    END) AS state (reason)
WHERE state.reason IS NOT NULL ORDER BY asked.period_start
"""  # noqa: S608 -- built from the constants above and names of our own tables

_FROM_ANOTHER_SERVER = """
SELECT EXISTS (SELECT FROM capacity_computed_windows
               WHERE system_identifier <> (SELECT system_identifier FROM pg_control_system()))
    OR EXISTS (SELECT FROM capacity_sample_changes
               WHERE CAST(CAST(transaction_id AS text) AS xid8) >= pg_snapshot_xmax(pg_current_snapshot()))
"""
_RENUMBER_WINDOWS = """
UPDATE capacity_computed_windows
SET system_identifier = (SELECT system_identifier FROM pg_control_system()),
    snapshot = CASE WHEN snapshot IS NOT NULL THEN CAST(pg_current_snapshot() AS text) END,
    fingerprint = NULL
"""
_FORGET_ALL_DISTURBANCES = "DELETE FROM capacity_disturbances"
# This transaction is in none of the snapshots just written.
_COPY_CHANGES = """
WITH old AS (DELETE FROM capacity_sample_changes RETURNING table_name, collected_date)
INSERT INTO capacity_sample_changes (table_name, collected_date) SELECT DISTINCT table_name, collected_date FROM old
"""
