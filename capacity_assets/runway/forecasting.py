"""Puts sizes, forecasts and limits together, in the order of their risk. What comes out is in `outlook`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Engine, Row

from capacity_assets.errors import ValidationError, database_errors
from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.forecast.model import Forecasts, Sizes, forecast
from capacity_assets.forecast.runway import NOT_WITHIN_HORIZON, Runways, runways
from capacity_assets.runway import history
from capacity_assets.runway.binding import Binding, binding_limit
from capacity_assets.runway.history_statements import DATABASE_ROWS, VOLUME_ROWS
from capacity_assets.runway.outlook import (
    FORECAST,
    FULL,
    LIMIT_UNKNOWN,
    NO_LIMIT,
    RECENT_DAYS,
    TOO_LITTLE_HISTORY,
    Outlook,
    Outlooks,
)
from capacity_assets.units import first_of

NAMED = 10


def outlooks(
    engine: Engine, today: date, server: str | None = None, database: str | None = None, *, add_mb: int = 0
) -> Outlooks:
    """Read sizes and limits and forecast, of all servers or one, or one database of it.

    `add_mb` is what every limit would be raised by.

    A database that is bound by its server's limit, or by a volume, has its size and what is left there, as if the
    others stood still.

    Raises:
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading sizes and limits", kept="Nothing was changed."), engine.connect() as connection:
        as_of = history.newest_day(connection, today)
        if as_of is None:
            return Outlooks(None, (), 0, {})
        # One server is shown with everything on it, limited or not.
        servers = None if server is None else (server,)
        asked = history.HistoryScope(as_of, servers, database, every=server is not None)
        kinds = history.KINDS if database is None else (DATABASE_ROWS,)
        with history.reading(connection, asked, kinds) as reader:
            rows = [
                outlook for kind in kinds for batch in reader.series(kind) for outlook in of_batch(batch, add_mb).rows
            ]
            unknown = reader.without_limit()
    rows.sort(key=lambda row: (row.risk, row.server, row.name))
    return Outlooks(as_of, rows, sum(unknown.values()), unknown)


@dataclass(frozen=True)
class SeriesOutlook:
    """One outlook with its sizes: as measured, and without declared steps."""

    outlook: Outlook
    sizes: Sizes
    smooth: Sizes


def outlook_with_sizes(
    engine: Engine, today: date, kind: str, name: str | None, server: str | None
) -> SeriesOutlook | None:
    """Return the outlook of one series and its sizes, limited or not; None: it was not measured within the last month.

    Raises ValidationError where several servers have that name, and DatabaseError.
    """
    with database_errors(doing="reading sizes and limits", kept="Nothing was changed."), engine.connect() as connection:
        as_of = history.newest_day(connection, today)
        if as_of is None:
            return None
        asked = history.HistoryScope(as_of, None if server is None else (server,), name, every=True)
        with history.reading(connection, asked, (kind,)) as reader:
            found = [
                SeriesOutlook(*three)
                for batch in reader.series(kind)
                for three in zip(of_batch(batch, 0).rows, batch.sizes, batch.smooth, strict=True)
            ]
    if len(found) > 1:
        names = first_of((one.outlook.server for one in found), NAMED)
        raise ValidationError(f"{len(found)} servers have a {kind} of the name {name}: {names}. Add --server.")
    return found[0] if found else None


@dataclass(frozen=True)
class BatchOutlooks:
    """The outlooks of a batch, and the forecasts they were made of, one row each."""

    rows: Sequence[Outlook]
    made: Forecasts


def of_batch(batch: history.Histories, add_mb: int = 0) -> BatchOutlooks:
    """Forecast a batch of series and hold it against its limits."""
    made = forecast(batch.smooth, batch.sizes)
    bound = [
        binding_limit(row, float(size), _size_on(row.free_day, row.last_day, sizes))
        for row, size, sizes in zip(batch.subjects, made.last, batch.sizes, strict=True)
    ]
    limits = np.array([_raised(one, add_mb) for one in bound])
    ends = runways(made, limits)
    rows = [
        _outlook(row, place, made, ends, one, limits[place], _recent(batch.smooth[place]))
        for place, (row, one) in enumerate(zip(batch.subjects, bound, strict=True))
    ]
    return BatchOutlooks(rows, made)


def _size_on(day: date | None, last_day: date, sizes: Sizes) -> float:
    """The size on the day on which volumes were measured; the last one where that day has none."""
    column = len(sizes) - 1 - max((last_day - (day or last_day)).days, 0)
    size = sizes[column] if column >= 0 else np.nan
    return float(sizes[-1] if np.isnan(size) else size)


def _raised(bound: Binding, add_mb: int) -> float:
    if bound.limit_mb is None:
        return np.inf if bound.is_known else np.nan
    # A server that is more than full leaves a small database less than nothing.
    return max(bound.limit_mb + add_mb, 0.0)


def _state(bound: Binding, *, is_full: bool, has_band: bool) -> str:
    if bound.limit_mb is None:
        return NO_LIMIT if bound.is_known else LIMIT_UNKNOWN
    if is_full:
        return FULL
    return FORECAST if has_band else TOO_LITTLE_HISTORY


def _recent(smooth: Sizes) -> float | None:
    """Change per day over the last month, without declared steps; None where it was not measured a month ago."""
    before = smooth[-1 - RECENT_DAYS] if len(smooth) > RECENT_DAYS else np.nan
    return None if np.isnan(before) else round(float(smooth[-1] - before) / RECENT_DAYS, 3)


def _outlook(  # noqa: PLR0913, PLR0917 -- one row of each of the arrays
    row: Row[Any], place: int, made: Forecasts, ends: Runways, bound: Binding, limit: float, recent: float | None
) -> Outlook:
    is_full = bool(made.last[place] >= limit)
    state = _state(bound, is_full=is_full, has_band=bool(ends.has_band[place]))
    limit_mb = int(limit) if np.isfinite(limit) else None
    days = (ends.early_days, ends.middle_days, ends.late_days)
    early, middle, late = (_day(row.last_day, int(each[place])) if state == FORECAST else None for each in days)
    within = zip(HORIZONS_DAYS, ends.probability[place], strict=True)
    probabilities = {days: round(float(share), 3) for days, share in within} if state == FORECAST else {}
    if state == FULL:
        early = middle = late = row.last_day
        probabilities = dict.fromkeys(HORIZONS_DAYS, 1.0)
    size_mb = int(made.last[place])
    return Outlook(
        server=row.server,
        database=row.name if row.subject == DATABASE_ROWS else None,
        volume=row.name if row.subject == VOLUME_ROWS else None,
        last_day=row.last_day,
        size_mb=size_mb,
        limit_mb=limit_mb,
        binds=bound.binds,
        source=bound.source,
        headroom_mb=None if limit_mb is None else limit_mb - size_mb,
        change_mb_per_day=round(float(made.drift[place]), 3),
        recent_mb_per_day=recent,
        history_days=int(made.known_changes[place]) + 1,
        state=state,
        early_day=early,
        middle_day=middle,
        late_day=late,
        probabilities=probabilities,
    )


def _day(last_day: date, days: int) -> date | None:
    return None if days == NOT_WITHIN_HORIZON else last_day + timedelta(days=days)
