"""The content of a week's digest, of the fleet or of a label; `writing` renders it.

It has only what is out of the ordinary: usual growth is in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine

from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.settings import DEFAULT_THRESHOLDS, Thresholds
from capacity_assets.database.engine import snapshot
from capacity_assets.reading.changes import (
    DatabaseSize,
    Decline,
    UnusualChange,
    databases_only_in,
    declines,
    unusual_changes,
)
from capacity_assets.reading.coverage import SilentServer, silent_servers
from capacity_assets.reading.filling import FillDate, fill_dates
from capacity_assets.reading.groups import group_sizes, partial_windows_of_group
from capacity_assets.reading.parts import LargeSlot, large_slots
from capacity_assets.reading.sizes import SizeInWindow, fleet_history, marked, partial_windows

LISTED = 10
DECLINES_LISTED = 5
WEEKS_DRAWN = 26
WEEKLY = PERIODS["weekly"]


@dataclass(frozen=True)
class Digest:
    """A week; `change_mb` None: no change is known. Lists hold the first LISTED, counts all."""

    week: Window
    label: tuple[str, str] | None
    size_mb: int
    change_mb: int | None
    soon: Sequence[FillDate]
    growers: Sequence[UnusualChange]
    runways: Sequence[FillDate]
    silent: Sequence[SilentServer]
    new: Sequence[DatabaseSize]
    gone: Sequence[DatabaseSize]
    counts: dict[str, int] = field(default_factory=dict)
    history: Sequence[tuple[date, int]] = ()
    has_forecast: bool = True
    """Whether a forecast was issued in the week; else what fills is not known."""
    shrinkers: Sequence[UnusualChange] = ()
    later: Sequence[FillDate] = ()
    declines: Sequence[Decline] = ()
    """What shrank most, of databases that are not in `shrinkers`; none unless the size as a whole shrank."""
    is_partial: bool = False
    """Whether some of it was not measured in the week."""
    is_change_partial: bool = False
    """Whether it was not in this week or the one before, so that `change_mb` is no growth or shrinkage."""
    slots: Sequence[LargeSlot] = ()
    """Replication slots that retain too much by the last measurement of the week."""
    decided: int = 0
    """Fill dates that decisions leave out."""
    partial_weeks: Sequence[date] = ()
    """The weeks of `history` in which some of it was not measured."""

    @property
    def has_news(self) -> bool:
        """Whether there is anything beyond size and change."""
        return any(self.counts.values())


def read_digest(
    engine: Engine, week: Window, label: tuple[str, str] | None = None, thresholds: Thresholds = DEFAULT_THRESHOLDS
) -> Digest:
    """Read the digest of a week; raises DatabaseError."""
    with database_errors(doing="reading the digest", kept="Nothing was sent."), snapshot(engine) as connection:
        return _read(connection, week, label, thresholds)


def _read(connection: Connection, week: Window, label: tuple[str, str] | None, thresholds: Thresholds) -> Digest:
    before, windows = WEEKLY.previous(week), WEEKLY.back(week, WEEKS_DRAWN)
    sizes = _sizes(connection, windows, label)
    newest = next((size for size in sizes if size.window_start == week.start), None)
    unusual = unusual_changes(connection, WEEKLY, week, label)
    dates = fill_dates(connection, week.start, week.end, label, thresholds)
    has_shrunk = newest is not None and not newest.is_change_partial and (newest.change_mb or 0) < 0
    shrinkers = [change for change in unusual if change.change_mb < 0]
    named = {(one.server_id, one.database) for one in shrinkers}
    shrunk = declines(connection, WEEKLY, week, label, largest=DECLINES_LISTED + len(named)) if has_shrunk else []
    news: dict[str, Sequence[Any]] = {
        "soon": dates.soon,
        "growers": [change for change in unusual if change.change_mb > 0],
        "shrinkers": shrinkers,
        "declines": [one for one in shrunk if (one.server_id, one.database) not in named][:DECLINES_LISTED],
        "runways": dates.sooner,
        "later": dates.later,
        "slots": large_slots(connection, week.start, week.end, label),
        "silent": silent_servers(connection, week, label),
        "new": databases_only_in(connection, WEEKLY, week, before, label),
        "gone": databases_only_in(connection, WEEKLY, before, week, label),
    }
    return Digest(
        week,
        label,
        (newest.size_mb or 0) if newest else 0,
        newest.change_mb if newest else None,
        **{kind: every[:LISTED] for kind, every in news.items()},
        counts={kind: len(every) for kind, every in news.items()},
        history=[(size.window_start, size.size_mb or 0) for size in sizes],
        has_forecast=dates.has_forecast,
        decided=dates.decided,
        is_partial=newest is not None and newest.is_partial,
        is_change_partial=newest is not None and newest.is_change_partial,
        partial_weeks=[size.window_start for size in sizes if size.is_partial],
    )


def _sizes(connection: Connection, windows: Sequence[Window], label: tuple[str, str] | None) -> list[SizeInWindow]:
    if label is None:
        sizes = fleet_history(connection, WEEKLY, windows)
        return marked(sizes, partial_windows(connection, WEEKLY, sizes))
    sizes = sorted(group_sizes(connection, WEEKLY, windows, *label), key=lambda size: size.window_start)
    return marked(sizes, partial_windows_of_group(connection, WEEKLY, windows, *label))
