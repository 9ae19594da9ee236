"""The runway of a server, database or volume: its size, its limit and when it is full; and its stored columns.

How a runway is computed is in `runway`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta

import sqlalchemy as sa

from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import human_day, human_mb, human_probability, human_range, human_rate
from capacity_assets.database.tables import capacity_runways

SERVER, DATABASE, VOLUME, GROUP = "server", "database", "volume", "group"
"""Kinds of subjects of a forecast."""
STALE_DAYS = 31
"""Servers that were not measured for so long have no forecast."""

OWN_LIMIT, OWN_CEILING, SERVER_LIMIT, VOLUME_LIMIT = "own limit", "own ceiling", "server limit", "volume"
"""The kind of subject whose limit binds."""
FORECAST, FULL, TOO_LITTLE_HISTORY, NO_LIMIT, LIMIT_UNKNOWN = (
    "forecast",
    "full",
    "too little history",
    "unlimited",
    "limit unknown",
)
LEAST_CHANGES, ORIGIN_STEP_DAYS = 28, 7
LEAST_ERRORS = 4
"""A horizon with fewer past errors uses those of the next shorter one, scaled."""
LEAST_HISTORY_DAYS = 1 + LEAST_CHANGES + HORIZONS_DAYS[0] + (LEAST_ERRORS - 1) * ORIGIN_STEP_DAYS
"""With fewer days of history the shortest horizon has too few errors: there is no band and no fill date."""
HISTORY_DAYS = 1096
"""Days that a forecast uses at most. By default, daily aggregates are kept as long."""
RECENT_DAYS = 30
RISK_DAYS = (30, 7, 90, 365)
"""Horizons by which risks are compared, most important first: people act on the first one."""
NOTICEABLE_RANGE = 0.01
"""Width of a range, as a share of the size, above which it is seen in a chart."""
FASTER = 2
"""A recent change of this many times the forecast one is mentioned."""


DAY_PROBABILITIES = (0.1, 0.5, 0.9)
"""Probabilities of being full by the early, the middle and the late day."""


def probability_of(exact: float) -> float:
    """Return a probability with three decimals, rounded down, as one below all of DAY_PROBABILITIES has no day."""
    return math.floor(1000 * exact) / 1000


def end_of_range(size_mb: int, lower_mb: int | None, upper_mb: int | None) -> str | None:
    """Return the end of its range at which a forecast size is, lower or upper; None: it is between them.

    A forecast is at an end if at least nine of ten sizes were on the same side of past forecasts. A range that is
    narrower than NOTICEABLE_RANGE of the size has no end, because nobody sees it.
    """
    if lower_mb is None or upper_mb is None or upper_mb - lower_mb < size_mb * NOTICEABLE_RANGE:
        return None
    # The forecast and the ends are rounded differently.
    is_lower, is_upper = size_mb - lower_mb <= 1, upper_mb - size_mb <= 1
    return None if is_lower == is_upper else "lower" if is_lower else "upper"


PAST_SIZES = {"upper": "smaller", "lower": "larger"}
"""How sizes nearly always were in comparison with past forecasts, by the end of the range at which a forecast is."""


def day_text(day: date | None) -> str:
    """Render a fill date; None: not within a year."""
    return "not within a year" if day is None else human_day(day)


def display_name(subject: str, name: str) -> str:
    """Name a server, database or volume as people read it."""
    return {VOLUME: f"disk {name}", SERVER: "whole server"}.get(subject, name)


@dataclass(frozen=True)
class PlannedRunway:
    """The fill date with a subject's planned limit, MiB, which applies from `day` on; other days as in `Runway`."""

    day: date
    limit_mb: int
    early_day: date | None
    middle_day: date | None
    late_day: date | None

    @property
    def sentence(self) -> str:
        """The planned limit and its fill date in a sentence."""
        full = "not full within a year" if self.middle_day is None else f"full by {human_day(self.middle_day)}"
        return f"With {human_mb(self.limit_mb)} from {human_day(self.day)} on: {full}."


@dataclass(frozen=True, kw_only=True)
class RunwayFigures:
    """The runway of a server, database or volume, with and without a fill date.

    Each field except `server` is stored in the column of its name, and read from that of the view `capacity_runway`.
    """

    server: str
    state: str
    last_day: date
    size_mb: int
    limit_mb: int | None
    """The binding limit, the smallest known one; None: unlimited, or unknown."""
    headroom_mb: int | None
    binds: str | None
    change_mb_per_day: float
    """Forecast change."""
    recent_mb_per_day: float | None
    """Change over the last RECENT_DAYS; None: not measured then."""
    history_days: int
    volumes: Sequence[str] | None = None
    """Volumes on which it grows; None: not known."""
    allocated_mb: int | None = None
    """The size of its files, if the other sizes are of the used space inside them."""


class DatabaseOrVolume:
    """Properties of something about a database or a volume or, without both, about a server as a whole."""

    database: str | None
    volume: str | None

    @property
    def name(self) -> str:
        """The database or volume; empty: the server as a whole."""
        return self.database or self.volume or ""

    @property
    def subject(self) -> str:
        """The kind: server, database or volume."""
        if self.database is not None:
            return DATABASE
        return SERVER if self.volume is None else VOLUME


@dataclass(frozen=True, kw_only=True)
class Runway(RunwayFigures, DatabaseOrVolume):
    """A server, database or volume: its size, its limit, and when that is reached.

    Days and probabilities count from `last_day`. A day is None if the limit is not reached within a year, or `state` is
    neither `forecast` nor `full`.
    """

    database: str | None
    volume: str | None
    source: str | None
    early_day: date | None
    middle_day: date | None
    late_day: date | None
    probabilities: dict[int, float]
    """Probability of being full, by number of days; empty if `state` is neither `forecast` nor `full`."""
    planned: PlannedRunway | None = None
    """The runway with the planned limit; None: no plan raises it, or no day is known."""

    @property
    def sooner_day(self) -> date | None:
        """The fill date at its recent pace, if that is much faster than forecast; otherwise None."""
        recent = self.recent_mb_per_day
        if self.state not in {FORECAST, TOO_LITTLE_HISTORY} or not self.headroom_mb or not recent:
            return None
        days = math.ceil(self.headroom_mb / recent) if recent > 0 else HORIZONS_DAYS[-1] + 1
        if days > HORIZONS_DAYS[-1] or recent < FASTER * self.change_mb_per_day:
            return None
        day = self.last_day + timedelta(days=days)
        return day if self.middle_day is None or day < self.middle_day else None

    @property
    def display_name(self) -> str:
        """The name as people read it."""
        return display_name(self.subject, self.name)

    @property
    def ends(self) -> list[str]:
        """The early, middle and late day as people read them."""
        return [day_text(day) for day in (self.early_day, self.middle_day, self.late_day)]

    @property
    def days_text(self) -> list[str]:
        """The same, or `full`."""
        return [FULL] * 3 if self.state == FULL else self.ends

    @property
    def size_text(self) -> str:
        """The size as text, and whether it is the used space inside files."""
        return human_mb(self.size_mb) if self.allocated_mb is None else f"{human_mb(self.size_mb)} used"

    @property
    def files_text(self) -> str:
        """Return a sentence on the size of the files that contain the used space; empty if sizes are of files."""
        return "" if self.allocated_mb is None else f" in files of {human_mb(self.allocated_mb)}"

    def sentence(self, within_days: int) -> str:
        """Return its fill date, probability, size, limit and growth in a sentence."""
        binds = "disk" if self.binds == VOLUME_LIMIT else self.binds
        limit = f"{human_mb(self.limit_mb or 0)} ({binds}, {self.source})"
        holds = f"{self.size_text} of {limit}{self.files_text and ','}{self.files_text}."
        if self.state == FULL:
            return f"{self.display_name} on {self.server}: full. {holds}"
        middle = "not full within a year" if self.middle_day is None else f"full by {human_day(self.middle_day)}"
        return (
            f"{self.display_name} on {self.server}: {middle}{self._range_text}, within {within_days} days with a "
            f"probability of {human_probability(self.probabilities[within_days])}. {holds} "
            f"Forecast growth: {human_rate(self.change_mb_per_day)}."
            + ("" if self.sooner_day is None else f" {self.remark}")
        )

    @property
    def _range_text(self) -> str:
        beyond = self.last_day + timedelta(days=HORIZONS_DAYS[-1])
        around = human_range(self.early_day, self.late_day, beyond)
        return f" (80 % range: {around})" if around else ""

    @property
    def remark(self) -> str:
        """Its recent growth in a sentence; valid only if `sooner_day` is known."""
        return (
            f"In the last {RECENT_DAYS} days it grew by {human_rate(self.recent_mb_per_day or 0)}: "
            f"at that pace it is full on {self.sooner_day and human_day(self.sooner_day)}."
        )

    @property
    def risk(self) -> tuple[object, ...]:
        """Sort key that puts the greatest risk first."""
        return risk_of(self.probabilities, self.early_day)


def risk_of(probabilities: Mapping[int, float | None], early_day: date | None) -> tuple[object, ...]:
    """Return the sort key of a runway by its probabilities and its early day; the greatest risk is first."""
    within = (probabilities.get(days) for days in RISK_DAYS)
    return (*(1.0 if share is None else -share for share in within), early_day or date.max)


_STORED_AS = {"source": "limit_source"}
STORED = {
    column: attribute.name
    for attribute in fields(Runway)
    if (column := _STORED_AS.get(attribute.name, attribute.name)) in capacity_runways.columns
}
"""The stored fields of a runway by column. A field with the name of a column is stored without further code.

Define a new column in `database/tables.py`, with a raised `SCHEMA_REVISION`; its value is computed in `runway.py`.
"""
STORED_PLANS = {f"planned_{attribute.name}": attribute.name for attribute in fields(PlannedRunway)}
"""The same for planned limits."""


def is_due(days: int, first: date, last: date) -> sa.ColumnElement[bool]:
    """Return the condition that a stored forecast of a horizon came due from `first` to `last`.

    A horizon begins at the last sample, which may be up to STALE_DAYS older than the issue.
    """
    runways, ahead, stale = capacity_runways.c, timedelta(days=days), timedelta(days=STALE_DAYS)
    return sa.and_(
        runways.as_of.between(first - ahead, last - ahead + stale),
        # With this sum PostgreSQL looks up samples by their day; with bounds on `last_day` it would read all of them.
        (runways.last_day + days).between(first, last),
        runways[f"forecast_{days}_mb"].is_not(None),
    )


@dataclass(frozen=True)
class RunwayList:
    """All servers and databases with a limit, greatest risk first, and the number of databases without a known one."""

    as_of: date | None
    rows: Sequence[Runway]
    unknown_limits: int
    unknown_on: Mapping[str, int]
    """The same by server."""


def standing_for_themselves(rows: Sequence[Runway]) -> list[Runway]:
    """Leave out rows that are limited by a volume or server whose own row is at least as urgent, as the views do.

    A server that is limited by its volumes is the same space: it is left out if its range overlaps that of a volume.
    """
    others = _wholes(rows)
    risks = least_risks(rows)

    def is_said_by_another(row: Runway) -> bool:
        key = (row.server, row.binds or "")
        return key in risks and (risks[key] <= row.risk or (row.subject == SERVER and _overlaps(row, others[key])))

    return [row for row in rows if row.volume or not is_said_by_another(row)]


def least_risks(rows: Sequence[Runway]) -> dict[tuple[str, str], tuple[object, ...]]:
    """Return the greatest risk of the volumes, and that of the own limit, of each server, by what binds to it."""
    return {key: min(runway.risk for runway in wholes) for key, wholes in _wholes(rows).items()}


def _wholes(rows: Sequence[Runway]) -> dict[tuple[str, str], list[Runway]]:
    wholes: dict[tuple[str, str], list[Runway]] = {}
    for row in rows:
        if row.volume or (row.subject == SERVER and row.binds == OWN_LIMIT):
            wholes.setdefault((row.server, VOLUME_LIMIT if row.volume else SERVER_LIMIT), []).append(row)
    return wholes


def _overlaps(row: Runway, volumes: Iterable[Runway]) -> bool:
    """Whether one of the volumes may be full by the late day of their server."""
    late_day = row.late_day or date.max
    return any(
        other.middle_day and other.early_day and other.early_day <= late_day for other in volumes if other.volume
    )
