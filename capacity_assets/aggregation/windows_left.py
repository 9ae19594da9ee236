"""Which windows the ledger says are left, as one transaction sees it: for status, checks and retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from capacity_assets.aggregation.ledger_statements import (
    COPY_ACTIVATIONS,
    COPY_CHANGES,
    DAYS_OF_SERVERS,
    FORGET_ALL_INVALIDATIONS,
    FROM_ANOTHER_SERVER,
    LOST_ROWS,
    NOT_COMPARED,
    OPEN,
    RECORD_DAYS,
    RENUMBER_WINDOWS,
    SPREAD_ACTIVATIONS,
    TAKE_ACTIVATIONS,
    Lookups,
    filled,
)
from capacity_assets.aggregation.ledger_windows import IncompleteWindow
from capacity_assets.foundation.levels import LEVELS, Level
from capacity_assets.periods import Period, Window
from capacity_assets.storage.distribution import tables_are_distributed


def renumber_after_a_restore(connection: Connection) -> None:
    """Adapt transaction numbers from another server or database to this one.

    A dump that is loaded elsewhere keeps transaction numbers that are meaningless there, so new changes would look old.
    All changes in the log are then marked as not seen by any window, and the windows as computed up to now.
    """
    if connection.execute(text(FROM_ANOTHER_SERVER)).scalar():
        connection.execute(text("LOCK TABLE capacity_sample_changes IN SHARE ROW EXCLUSIVE MODE"))
        connection.execute(text(RENUMBER_WINDOWS))
        connection.execute(text(COPY_CHANGES))
        connection.execute(text(COPY_ACTIVATIONS))
        connection.execute(text(FORGET_ALL_INVALIDATIONS))


def spread_activations(connection: Connection) -> None:
    """Enter the days of servers that were put into service as changed. A role that may only read skips this."""
    if not connection.execute(text("SELECT EXISTS (SELECT FROM capacity_activations)")).scalar():
        return
    if not tables_are_distributed(connection):
        connection.execute(text(SPREAD_ACTIVATIONS))
        return
    servers = connection.execute(text(TAKE_ACTIVATIONS)).scalars().all()
    for level in LEVELS.values():
        raw = level.source.name
        days = connection.execute(text(DAYS_OF_SERVERS.format(raw=raw)), {"ids": list(servers)}).scalars().all()
        connection.execute(text(RECORD_DAYS), {"raw": raw, "days": list(days)})


def asked_for(period: Period, level: Level, windows: Sequence[Window]) -> dict[str, Any]:
    """Return the parameters by which the statements of the ledger name windows of a period at a level."""
    return {
        "period_type": period.name,
        "level": level.name,
        "starts": [window.start for window in windows],
        "ends": [window.end for window in windows],
    }


@dataclass(frozen=True)
class WindowsLeft:
    """Answers within the transaction of a connection, and raises DBAPIError; every statement takes `parameters`."""

    connection: Connection
    parameters: Mapping[str, Any]
    lookups: Lookups

    def left(
        self, period: Period, level: Level, windows: Sequence[Window], *, patience_seconds: float = 0
    ) -> list[IncompleteWindow]:
        """Return those of `windows` that are missing although there are samples, unfinished, failed in part, or stale.

        A change younger than `patience_seconds` makes no window late.
        """
        if not windows:
            return []
        renumber_after_a_restore(self.connection)
        spread_activations(self.connection)
        asked = asked_for(period, level, windows)
        parameters = {**self.parameters, **asked, "patience_seconds": patience_seconds}
        rows = self.connection.execute(text(filled(OPEN, level, self.lookups)), parameters).all()
        return [IncompleteWindow(Window(row.period_start, row.period_end), row.reason) for row in rows]

    def not_compared(self, period: Period, level: Level, windows: Sequence[Window]) -> IncompleteWindow | None:
        """Return the first of `windows` that an older version computed, which did not compare with a year before."""
        row = self.connection.execute(text(NOT_COMPARED), asked_for(period, level, windows)).first()
        if row is None:
            return None
        reason = "was computed by a version that did not compare it with the year before: materialise it again"
        return IncompleteWindow(Window(row.period_start, row.period_end), reason)

    def lost_rows(self, period: Period, level: Level, windows: Sequence[Window]) -> IncompleteWindow | None:
        """Return the first of `windows` that was computed to more rows than are stored; counts the rows of all."""
        if not windows:
            return None
        parameters = {**asked_for(period, level, windows), "first": windows[0].start, "last": windows[-1].start}
        row = self.connection.execute(text(LOST_ROWS.format(target=level.target.name)), parameters).first()
        if row is None:
            return None
        reason = f"{row.lost:,} of its {row.records:,} aggregates are gone: materialise it again"
        return IncompleteWindow(Window(row.period_start, row.period_end), reason)
