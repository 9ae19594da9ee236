"""What is said of one server, database or volume: how much it holds, may hold, and when that is reached.

How it is computed is in `forecasting`; this is only what comes out, and in which order people want to see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.runway.binding import VOLUME
from capacity_assets.runway.history_statements import DATABASE_ROWS, SERVER_ROWS, VOLUME_ROWS
from capacity_assets.units import human_change_mb, human_mb

FORECAST, TOO_LITTLE_HISTORY, NO_LIMIT, LIMIT_UNKNOWN = "forecast", "too little history", "unlimited", "limit unknown"


@dataclass(frozen=True)
class Outlook:
    """One server, database or volume of a server: how much it holds, may hold, and when that is reached.

    Days and probabilities count from `last_day`. A day is None where the limit is not reached within a year, or `state`
    is not `forecast`.
    """

    server: str
    database: str | None
    volume: str | None
    last_day: date
    size_mb: int
    limit_mb: int | None
    """The binding limit: the smallest that is known; None: unlimited, or unknown."""
    has_own_limit: bool
    binds: str | None
    source: str | None
    headroom_mb: int | None
    change_mb_per_day: float
    state: str
    early_day: date | None
    middle_day: date | None
    late_day: date | None
    probabilities: dict[int, float]
    """Probability of being full within so many days; empty where `state` is not `forecast`."""

    @property
    def name(self) -> str:
        """The database or volume; empty: the server as a whole."""
        return self.database or self.volume or ""

    @property
    def subject(self) -> str:
        """What it is: server, database or volume."""
        if self.database is not None:
            return DATABASE_ROWS
        return SERVER_ROWS if self.volume is None else VOLUME_ROWS

    @property
    def told(self) -> str:
        """The name as people read it: of a database, a volume, or all of the server together."""
        return self.database or (f"volume {self.volume}" if self.volume else "all together")

    def sentence(self, within_days: int) -> str:
        """Say when it is full, how sure that is, by which limit, and what was assumed."""
        ends = [f"{day}" if day else "not within a year" for day in (self.early_day, self.middle_day, self.late_day)]
        return (
            f"{self.told} on {self.server}: full within {within_days} days with {self.probabilities[within_days]:.0%} "
            f"(early {ends[0]}, middle {ends[1]}, late {ends[2]}). {human_mb(self.size_mb)} of "
            f"{human_mb(self.limit_mb or 0)}, {self.binds}, {self.source}. Assumed: it goes on by "
            f"{human_change_mb(round(self.change_mb_per_day))} per day, and past errors of such forecasts."
        )

    @property
    def risk(self) -> tuple[object, ...]:
        """What sorts the greatest risk first."""
        return (*(-self.probabilities.get(days, -1.0) for days in HORIZONS_DAYS), self.early_day or date.max)


@dataclass(frozen=True)
class Outlooks:
    """Every server and database with a limit, greatest risk first, and how many databases have none that is known."""

    as_of: date | None
    rows: Sequence[Outlook]
    unknown_limits: int


def standing_for_themselves(rows: Sequence[Outlook]) -> list[Outlook]:
    """Leave out what another row stands for: databases bound by a listed server or volume, servers bound by volumes."""
    with_volumes = {row.server for row in rows if row.volume}
    listed = {row.server for row in rows if not row.database}
    return [
        row
        for row in rows
        if row.volume
        or (row.database and (row.has_own_limit or row.server not in listed))
        or (not row.database and (row.binds != VOLUME or row.server not in with_volumes))
    ]
