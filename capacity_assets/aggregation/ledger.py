"""The ledger of computed windows: which were computed, over which samples, and which must be recomputed.

Every computation over all servers is entered with PostgreSQL's own account of which transactions it could see
(a `pg_snapshot`, taken before the first sample is read). A change of samples is recorded with its transaction by
`storage.change_tracking`. A window is *stale* when a change of its days, of those of the window before or of a year
before, is not among the transactions it saw. That holds across restarts and for transactions that commit late, and
needs no clock: a change is forgotten only when every computed window that it touches has seen it.

Requesting runs belongs to the orchestration, computing to `service`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.aggregation.ledger_statements import (
    BEGIN,
    COMPUTED,
    CURRENT_SUMS,
    DISTRIBUTED,
    FAILED,
    FINISH,
    FORGET,
    FORGET_INVALIDATIONS,
    FROM_ANOTHER_SERVER,
    INVALIDATE,
    LAST_COMPUTATION,
    OUTDATED,
    PLAIN,
    STALE,
    UNCHANGED,
    Lookups,
    filled,
)
from capacity_assets.aggregation.ledger_windows import ComputedWindow, IncompleteWindow, StaleWindow
from capacity_assets.aggregation.results import PeriodSummary
from capacity_assets.aggregation.windows_left import (
    WindowsLeft,
    asked_for,
    renumber_after_a_restore,
    spread_activations,
)
from capacity_assets.aggregation.work import Part
from capacity_assets.errors import DatabaseError, database_errors
from capacity_assets.foundation.levels import LEVELS, Level
from capacity_assets.periods import PERIODS, Period, Window
from capacity_assets.storage.change_tracking import change_tracking_is_on
from capacity_assets.storage.distribution import ask_again, is_distributed
from capacity_assets.storage.node_records import NodeError, gather_records

PATIENCE_SECONDS = 3600
NODE_SQLSTATE = "58000"
"""PostgreSQL's code of what is outside of it: the coordinator answers, so that other work goes on."""


class Ledger:
    """Reads and keeps the ledger of one capacity database.

    Each method raises DatabaseError where the database fails; the text says what was kept.
    """

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
        """Record that a computation of `windows` begins; return its snapshot."""
        kept = f"Nothing of the {level.name} level was written, what was committed before was kept."
        years_before = [period.year_before(window) for window in windows]
        with self._work("recording that a computation begins", kept) as connection:
            renumber_after_a_restore(connection)
            parameters = {
                **asked_for(period, level, windows),
                "reads_from": [period.previous(window).start for window in windows],
                "year_before_starts": [window.start for window in years_before],
                "year_before_ends": [window.end for window in years_before],
            }
            return str(connection.execute(text(BEGIN), parameters).scalar_one())

    def computed(self, period: Period, level: Level) -> list[ComputedWindow]:
        """Return the windows whose computation was finished, in order."""
        with self._work("reading what was computed", "Nothing was changed.") as connection:
            rows = connection.execute(text(COMPUTED), {"period_type": period.name, "level": level.name})
            return [ComputedWindow(Window(row.period_start, row.period_end), *row[2:]) for row in rows]

    def failed_instances(self, period: Period, level: Level, windows: Sequence[Window]) -> dict[date, int]:
        """Return the number of failed servers by first day, for those of `windows` in which servers failed."""
        with self._work("looking for servers that failed", "Nothing is changed by looking.") as connection:
            rows = connection.execute(text(FAILED), asked_for(period, level, windows))
            return {row.period_start: row.failed_instances for row in rows}

    def last_computation(self) -> str:
        """Return a token that changes when a further window is computed."""
        with self._work("reading what was computed", "Nothing was changed.") as connection:
            return str(connection.execute(text(LAST_COMPUTATION)).scalar_one())

    def unchanged(
        self, period: Period, level: Level, windows: Sequence[Window], fingerprint: str, *, dry_run: bool = False
    ) -> dict[date, Row[Any]]:
        """Return the counts of those of `windows` that computing again would leave as they are, by first day.

        Nothing has touched them since they were computed: no sample of theirs or of the window before was added,
        corrected or deleted, no other session wrote to the aggregates, and the same statement was used for the same
        servers. None while change tracking is off. A dry run does not tidy up the change log.
        """
        asked = asked_for(period, level, windows)
        parameters = {**self._parameters, **asked, "asked_types": [period.name], "fingerprint": fingerprint}
        with self._work("looking for windows that are as they were", "Nothing was written.") as connection:
            if not change_tracking_is_on(connection):
                return {}
            if dry_run:
                connection.execute(text("SET TRANSACTION READ ONLY"))
                if connection.execute(text(FROM_ANOTHER_SERVER)).scalar():
                    return {}
            else:
                renumber_after_a_restore(connection)
                spread_activations(connection)
            rows = connection.execute(text(filled(UNCHANGED, level, self._lookups)), parameters).all()
            if not dry_run:
                connection.execute(text(FORGET), self._parameters)
        return {row.period_start: row for row in rows}

    def invalidate(self, period: Period, level: Level, windows: Sequence[Window]) -> None:
        """Invalidate `windows`, and those after them and a year later, whose protection depends on their rows."""
        starts = {start for window in windows for start in (window.start, period.following(window).start)}
        with self._work("recording that rows are to be replaced", "Nothing was written.") as connection:
            connection.execute(
                text(INVALIDATE), {"period_type": period.name, "level": level.name, "starts": sorted(starts)}
            )

    def finish(self, snapshot: str, parts: Sequence[PeriodSummary], fingerprint: str) -> None:
        """Record that the windows of `parts` were computed over what `snapshot` could see, and the fingerprint."""
        with self._work("recording that a computation is done", "The aggregates were kept.") as connection:
            connection.execute(
                text(FINISH),
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
                    "unsampled": [part.unsampled_records for part in parts],
                    "fingerprint": fingerprint,
                },
            )
            connection.execute(text(FORGET), self._parameters)
            connection.execute(text(FORGET_INVALIDATIONS), self._parameters)

    def current_sums(
        self, period: Period, level: Level, windows: Sequence[Window], parts: Collection[Part], fingerprint: str
    ) -> tuple[frozenset[Part], frozenset[date]]:
        """Return those of the stored windows `parts` whose rows are as their samples give them.

        They were summed up as today's statement does, which `fingerprint` marks, for all servers, without a failure; no
        sample of theirs was added, corrected or deleted since, and no other session wrote to the aggregates. None while
        change tracking is off. Also returns the first days of those of `windows` that were computed before.
        Ask after `begin`: a sample that changes later than this is one that its snapshot has not seen.
        """
        listed = sorted({*parts, *((period.name, window) for window in windows)})
        parameters: dict[str, Any] = {
            **self._parameters,
            "level": level.name,
            "asked_types": [name for name, _ in listed],
            "starts": [window.start for _, window in listed],
            "fingerprint": fingerprint,
        }
        with self._work("looking for stored sums", f"Nothing of the {level.name} level was written.") as connection:
            query = filled(CURRENT_SUMS, level, self._lookups)
            is_on = change_tracking_is_on(connection)
            spread_activations(connection)
            rows = connection.execute(text(query), parameters).all()
        found = [(row.period_type, Window(row.period_start, row.period_end), row.is_current) for row in rows]
        asked = {(period.name, window) for window in windows}
        return (
            frozenset((name, window) for name, window, is_current in found if is_current and is_on),
            frozenset(window.start for name, window, _ in found if (name, window) in asked),
        )

    @property
    def stale_query(self) -> tuple[str, dict[str, list[str]]]:
        """The statement of `stale` and its parameters, for EXPLAIN."""
        return STALE, self._parameters

    def stale(self) -> list[StaleWindow]:
        """Return the computed windows whose samples changed since, in order; delete changes that all windows saw."""
        with self._work("looking for changed samples", "No change was lost.") as connection:
            renumber_after_a_restore(connection)
            spread_activations(connection)
            query, parameters = self.stale_query
            rows = connection.execute(text(query), parameters).all()
            connection.execute(text(FORGET), self._parameters)
        return [
            StaleWindow(row.period_type, row.level, Window(row.period_start, row.period_end), *row[4:]) for row in rows
        ]

    def outdated(self) -> list[tuple[str, str, IncompleteWindow]]:
        """Return the computed windows that a new computation may change, with period and level, in order.

        Either their samples changed since, or their rows may no longer be as computed.
        """
        with self._work("looking for windows that are out of date", "Nothing is changed by looking.") as connection:
            spread_activations(connection)
            rows = connection.execute(text(OUTDATED), self._parameters).all()
        return [
            (row.period_type, row.level, IncompleteWindow(Window(row.period_start, row.period_end), row.reason))
            for row in rows
        ]

    def incomplete_windows(
        self, period: Period, level: Level, windows: Sequence[Window], *, patience_seconds: float = PATIENCE_SECONDS
    ) -> list[IncompleteWindow]:
        """Return those of `windows` that are missing although there are samples, unfinished, failed in part, or stale.

        A change younger than `patience_seconds` makes no window late: it is being followed.
        """
        with self._work("looking for windows that are left", "Nothing is changed by looking.") as connection:
            return self.within(connection).left(period, level, windows, patience_seconds=patience_seconds)

    def within(self, connection: Connection) -> WindowsLeft:
        """Return what answers as the transaction of `connection` sees the ledger; call `gather` before."""
        return WindowsLeft(connection, self._parameters, self._lookups)

    def gather(self, kept: str, within_seconds: int) -> None:
        """Take over the changes that the nodes of a cluster recorded, each of which has `within_seconds` to answer.

        `kept` is said where one does not. It is asked anew whether there are nodes: another process may have
        distributed the tables just now.
        """
        with database_errors(doing="asking the nodes what was changed there", kept=kept):
            ask_again(self._engine)
            self._gather(kept, within_seconds)

    def _gather(self, kept: str, within_seconds: int | None = None) -> None:
        try:
            gather_records(self._engine, within_seconds)
        except NodeError as error:
            message = f"{error} {kept}"
            raise DatabaseError(message, sqlstate=NODE_SQLSTATE, transient=not error.refused) from None

    @property
    def _lookups(self) -> Lookups:
        return DISTRIBUTED if is_distributed(self._engine) else PLAIN

    @contextmanager
    def _work(self, doing: str, kept: str) -> Iterator[Connection]:
        with database_errors(doing=doing, kept=kept):
            self._gather(kept)
            with self._engine.begin() as connection:
                yield connection
