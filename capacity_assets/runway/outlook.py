"""When servers and databases are full: sizes, forecasts and limits put together, in the order of their risk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Engine, Row

from capacity_assets.forecast.model import HORIZONS_DAYS, Forecasts, Sizes, forecast
from capacity_assets.forecast.runway import NOT_WITHIN_HORIZON, Runways, runways
from capacity_assets.foundation.errors import ValidationError, database_errors
from capacity_assets.runway import history
from capacity_assets.units import first_of

NAMED = 10
OWN, SERVER = "own limit", "server limit"
FORECAST, TOO_LITTLE_HISTORY, NO_LIMIT = "forecast", "too little history", "unlimited"


@dataclass(frozen=True)
class Outlook:
    """One server (`database` None) or database: how much it holds, may hold, and when that is reached.

    Days and probabilities count from `last_day`. A day is None where the limit is not reached within a year, or `state`
    is not `forecast`.
    """

    server: str
    database: str | None
    last_day: date
    size_mb: int
    limit_mb: int | None
    """The binding limit: the smallest that is known; None: unlimited."""
    has_own_limit: bool
    binds: str
    source: str
    headroom_mb: int | None
    change_mb_per_day: float
    state: str
    early_day: date | None
    middle_day: date | None
    late_day: date | None
    probabilities: dict[int, float]
    """Probability of being full within so many days; empty where `state` is not `forecast`."""

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


def outlooks(engine: Engine, today: date, server: str | None = None, *, add_mb: int = 0) -> Outlooks:
    """Read sizes and limits and forecast; `add_mb` is what every limit would be raised by.

    A database that has no limit of its own, or a higher one, is bound by its server's: by its size and what the server
    has left, as if the others stood still.

    Raises:
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading sizes and limits", kept="Nothing was changed."), engine.connect() as connection:
        as_of = history.newest_day(connection, today)
        if as_of is None:
            return Outlooks(None, (), 0)
        rows = [
            outlook
            for read in (history.servers, history.databases)
            for batch in read(connection, as_of, server)
            for outlook in _of_batch(batch, add_mb)
        ]
        unknown = history.without_limit(connection, as_of, server)
    rows.sort(key=lambda row: (row.risk, row.server, row.database or ""))
    return Outlooks(as_of, rows, unknown)


def outlook_with_sizes(
    engine: Engine, today: date, database: str | None, server: str | None
) -> tuple[Outlook, Sizes] | None:
    """Return the outlook of one database, or with None of the whole server, and its sizes; None: it has no limit.

    Raises:
        ValidationError: several servers have a database of that name.
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading sizes and limits", kept="Nothing was changed."), engine.connect() as connection:
        as_of = history.newest_day(connection, today)
        if as_of is None:
            return None
        batches = (
            history.servers(connection, as_of, server)
            if database is None
            else history.databases(connection, as_of, server, database)
        )
        found = [pair for batch in batches for pair in zip(_of_batch(batch, 0), batch.sizes, strict=True)]
    if len(found) > 1:
        names = first_of((outlook.server for outlook, _ in found), NAMED)
        raise ValidationError(f"{len(found)} servers have a database of the name {database!r}: {names}. Add --server.")
    return found[0] if found else None


def _of_batch(batch: history.Histories, add_mb: int) -> Iterator[Outlook]:
    made = forecast(batch.sizes)
    bound = [_binding(row, float(size)) for row, size in zip(batch.subjects, made.last, strict=True)]
    # A server that is more than full leaves a small database less than nothing.
    limits = np.array([np.inf if limit is None else max(limit + add_mb, 0.0) for limit, _, _ in bound])
    ends = runways(made, limits)
    for place, (row, (_, binds, source)) in enumerate(zip(batch.subjects, bound, strict=True)):
        yield _outlook(row, place, made, ends, limits[place], binds, source)


def _binding(row: Row[Any], size_mb: float) -> tuple[float | None, str, str]:
    """Return the smallest limit that is known, whose it is and where it comes from; None: unlimited."""
    known: list[tuple[float, str, str]] = []
    if row.own_mb is not None:
        known.append((float(row.own_mb), OWN, row.own_source))
    if row.server_mb is not None and row.total_mb is not None:
        known.append((size_mb + row.server_mb - row.total_mb, SERVER, row.server_source))
    if known:
        return min(known)
    return (None, OWN, row.own_source) if row.own_source else (None, SERVER, row.server_source)


def _outlook(  # noqa: PLR0913, PLR0917 -- one row of each of the arrays
    row: Row[Any], place: int, made: Forecasts, ends: Runways, limit: float, binds: str, source: str
) -> Outlook:
    limited, has_band = bool(np.isfinite(limit)), bool(ends.has_band[place])
    state = NO_LIMIT if not limited else FORECAST if has_band else TOO_LITTLE_HISTORY
    days = (ends.early_days, ends.middle_days, ends.late_days)
    early, middle, late = (_day(row.last_day, int(each[place])) if state == FORECAST else None for each in days)
    within = zip(HORIZONS_DAYS, ends.probability[place], strict=True)
    probabilities = {days: round(float(share), 3) for days, share in within} if state == FORECAST else {}
    size_mb = int(made.last[place])
    return Outlook(
        row.server,
        row.database,
        row.last_day,
        size_mb,
        int(limit) if limited else None,
        row.own_source is not None,
        binds,
        source,
        int(limit) - size_mb if limited else None,
        round(float(made.drift[place]), 3),
        state,
        early,
        middle,
        late,
        probabilities,
    )


def _day(last_day: date, days: int) -> date | None:
    return None if days == NOT_WITHIN_HORIZON else last_day + timedelta(days=days)
