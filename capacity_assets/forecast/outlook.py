"""The outlook of a server, database or volume: size, limit, and when it is reached; greatest risk first.

The limit that binds is the smallest that is known. How an outlook is computed is in `runway`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Row

from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import human_change_mb, human_day, human_mb, human_range
from capacity_assets.forecast.history_statements import DATABASE_ROWS, SERVER_ROWS, VOLUME_ROWS
from capacity_assets.forecast.limits import DECLARED

OWN, CEILING, SERVER, VOLUME = "own limit", "own ceiling", "server limit", "volume"


@dataclass(frozen=True)
class Binding:
    """The limit that binds: MiB, whose it is and where it comes from; `limit_mb` None: unlimited, or unknown."""

    limit_mb: float | None
    binds: str | None
    source: str | None

    @property
    def is_known(self) -> bool:
        """Whether there is a limit, or somebody said that there is none."""
        return self.binds is not None


UNKNOWN = Binding(None, None, None)


def binding_limit(row: Row[Any], size_mb: float, size_then_mb: float) -> Binding:
    """Return the smallest of a subject's limits; `size_then_mb` is its size on the day its volumes were measured.

    An engine's "no ceiling of its own" is no limit and no lack of one: the volumes decide, and where these are not
    known, the limit is unknown. Only people say unlimited.
    """
    known: list[tuple[float, str, str]] = []
    if row.own_mb is not None:
        known.append((float(row.own_mb), VOLUME if row.subject == "volume" else OWN, row.own_source))
    if row.ceiling_mb is not None:
        known.append((float(row.ceiling_mb), CEILING, row.ceiling_source))
    if row.server_mb is not None and row.total_mb is not None:
        known.append((size_mb + row.server_mb - row.total_mb, SERVER, row.server_source))
    if row.free_mb is not None:
        known.append((size_then_mb + float(row.free_mb), VOLUME, row.free_source))
    if known:
        return Binding(*min(known))
    if row.own_source == DECLARED:
        return Binding(None, OWN, DECLARED)
    return Binding(None, SERVER, DECLARED) if row.server_source == DECLARED else UNKNOWN


FORECAST, FULL, TOO_LITTLE_HISTORY, NO_LIMIT, LIMIT_UNKNOWN = (
    "forecast",
    "full",
    "too little history",
    "unlimited",
    "limit unknown",
)
RECENT_DAYS = 30
RISK_DAYS = (30, 7, 90, 365)
"""Horizons in the order in which their probabilities say which risk is greater: first the one that people act on."""
FASTER = 2
"""So many times the forecast change, the recent one is worth a remark."""


SHARES = (0.1, 0.5, 0.9)
"""Probabilities of being full by the early, the middle and the late day."""


def day_text(day: date | None) -> str:
    """Render a day on which something is full, or that it is not within the horizon."""
    return "not within a year" if day is None else human_day(day)


def display_name(subject: str, name: str) -> str:
    """Name a server, database or volume as people read it."""
    return {VOLUME_ROWS: f"disk {name}", SERVER_ROWS: "whole server"}.get(subject, name)


@dataclass(frozen=True)
class PlannedOutlook:
    """When a subject is full with the limit that is planned from a day on, MiB; days as those of `Outlook`."""

    day: date
    limit_mb: int
    early_day: date | None
    middle_day: date | None
    late_day: date | None

    @property
    def sentence(self) -> str:
        """Say from when the limit holds, and when it is full then."""
        full = "not full within a year" if self.middle_day is None else f"full by {human_day(self.middle_day)}"
        return f"With {human_mb(self.limit_mb)} from {human_day(self.day)} on: {full}."


@dataclass(frozen=True)
class Outlook:
    """One server, database or volume of a server: how much it holds, may hold, and when that is reached.

    Days and probabilities count from `last_day`. A day is None where the limit is not reached within a year, or `state`
    is neither `forecast` nor `full`.
    """

    server: str
    database: str | None
    volume: str | None
    last_day: date
    size_mb: int
    limit_mb: int | None
    """The binding limit: the smallest that is known; None: unlimited, or unknown."""
    binds: str | None
    source: str | None
    headroom_mb: int | None
    change_mb_per_day: float
    """What is forecast."""
    recent_mb_per_day: float | None
    """What it was over the last RECENT_DAYS; None: not measured then."""
    history_days: int
    state: str
    early_day: date | None
    middle_day: date | None
    late_day: date | None
    probabilities: dict[int, float]
    """Probability of being full within so many days; empty where `state` is neither `forecast` nor `full`."""
    planned: PlannedOutlook | None = None
    """With the limit that is planned; None: no plan raises it, or no day is known."""
    volumes: Sequence[str] | None = None
    """Volumes on which it grows; None: not known."""

    @property
    def sooner_day(self) -> date | None:
        """The day on which it is full at its recent pace, where that is much faster and sooner than is forecast."""
        recent = self.recent_mb_per_day
        if self.state not in {FORECAST, TOO_LITTLE_HISTORY} or not self.headroom_mb or not recent:
            return None
        days = math.ceil(self.headroom_mb / recent) if recent > 0 else HORIZONS_DAYS[-1] + 1
        if days > HORIZONS_DAYS[-1] or recent < FASTER * self.change_mb_per_day:
            return None
        day = self.last_day + timedelta(days=days)
        return day if self.middle_day is None or day < self.middle_day else None

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
    def display_name(self) -> str:
        """The name as people read it."""
        return display_name(self.subject, self.name)

    @property
    def ends(self) -> list[str]:
        """The early, middle and late day as people read them."""
        return [day_text(day) for day in (self.early_day, self.middle_day, self.late_day)]

    @property
    def days_text(self) -> list[str]:
        """The same, or that it is full."""
        return [FULL] * 3 if self.state == FULL else self.ends

    def sentence(self, within_days: int) -> str:
        """Say when it is full, how sure that is, by which limit, and what growth is forecast."""
        binds = "disk" if self.binds == VOLUME else self.binds
        holds = f"{human_mb(self.size_mb)} of {human_mb(self.limit_mb or 0)} ({binds}, {self.source})."
        if self.state == FULL:
            return f"{self.display_name} on {self.server}: full. {holds}"
        middle = "not full within a year" if self.middle_day is None else f"full on {human_day(self.middle_day)}"
        return (
            f"{self.display_name} on {self.server}: {middle}{self._range_text}, within {within_days} days with a "
            f"probability of {100 * self.probabilities[within_days]:.0f} %. {holds} "
            f"Forecast growth: {human_change_mb(round(self.change_mb_per_day))} per day."
            + ("" if self.sooner_day is None else f" {self.remark}")
        )

    @property
    def _range_text(self) -> str:
        beyond = self.last_day + timedelta(days=HORIZONS_DAYS[-1])
        around = human_range(self.early_day, self.late_day, beyond)
        return f" (80 % range: {around})" if around else ""

    @property
    def remark(self) -> str:
        """Say that it grows faster of late than is forecast; to be asked where `sooner_day` is known."""
        return (
            f"In the last {RECENT_DAYS} days it grew by {human_change_mb(round(self.recent_mb_per_day or 0))} per day: "
            f"at that pace it is full on {self.sooner_day and human_day(self.sooner_day)}."
        )

    @property
    def risk(self) -> tuple[object, ...]:
        """What sorts the greatest risk first."""
        return (*(-self.probabilities.get(days, -1.0) for days in RISK_DAYS), self.early_day or date.max)


@dataclass(frozen=True)
class Outlooks:
    """Every server and database with a limit, greatest risk first, and how many databases have none that is known."""

    as_of: date | None
    rows: Sequence[Outlook]
    unknown_limits: int
    unknown_on: Mapping[str, int]
    """The same by server."""


def standing_for_themselves(rows: Sequence[Outlook]) -> list[Outlook]:
    """Leave out what another row says at least as urgently: the volume or server that binds it.

    A volume that is not known to fill, or has too little history, stands for nothing that does. A server that its
    volumes limit is the same space as these: one of them stands for it if their ranges overlap.
    """
    greatest: dict[tuple[str, str], tuple[object, ...]] = {}
    earliest: dict[str, date] = {}
    for row in rows:
        stands_for = {VOLUME_ROWS: VOLUME, SERVER_ROWS: SERVER if row.binds == OWN else None}.get(row.subject)
        if stands_for:
            key = (row.server, stands_for)
            greatest[key] = min(greatest.get(key, row.risk), row.risk)
        if row.volume and row.middle_day and row.early_day:
            earliest[row.server] = min(earliest.get(row.server, date.max), row.early_day)
    return [
        row
        for row in rows
        if row.volume
        or row.binds is None
        or (
            greatest.get((row.server, row.binds), (math.inf,)) > row.risk
            and not (
                row.subject == SERVER_ROWS
                and row.binds == VOLUME
                and row.server in earliest
                and earliest[row.server] <= (row.late_day or date.max)
            )
        )
    ]
