"""When a limit is reached: sizes, forecasts and limits put together, in the order of their risk.

How sizes continue is in `model`; the outlook of one server, database or volume is in `outlook`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, Row

from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import first_of
from capacity_assets.forecast import history
from capacity_assets.forecast.decisions import Plans, coming_plans
from capacity_assets.forecast.history_statements import DATABASE_ROWS, KINDS, VOLUME_ROWS
from capacity_assets.forecast.model import ORIGIN_STEP_DAYS, RISE_DAYS, Forecasts, Sizes, forecast
from capacity_assets.forecast.outlook import (
    FORECAST,
    FULL,
    LIMIT_UNKNOWN,
    NO_LIMIT,
    RECENT_DAYS,
    SHARES,
    TOO_LITTLE_HISTORY,
    Binding,
    Outlook,
    Outlooks,
    PlannedOutlook,
    binding_limit,
)

NOT_WITHIN_HORIZON = -1
EARLY, MIDDLE, LATE = SHARES


@dataclass(frozen=True)
class Runways:
    """When each series of a batch reaches its limit; every array has one row per series.

    Days count from the last known size, 0: reached already. NOT_WITHIN_HORIZON also stands where the limit is unknown
    (NaN), or where there is no band; `is_known` and `has_band` tell these apart.
    """

    early_days: NDArray[np.int64]
    """P10: reached by then with a probability of a tenth."""
    middle_days: NDArray[np.int64]
    """P50."""
    late_days: NDArray[np.int64]
    """P90."""
    probability: Sizes
    """Probability of being full within each of HORIZONS_DAYS; NaN without limit or band."""
    is_known: NDArray[np.bool_]
    has_band: NDArray[np.bool_]


def runways(forecasts: Forecasts, limits: Sizes) -> Runways:
    """Compare forecasts with limits, in the unit of the sizes: NaN is an unknown limit, infinity means unlimited.

    The days follow from the probabilities: a day lies within a horizon if and only if the probability there is at least
    its share. Raising a limit never makes its day earlier, and a longer horizon never has a smaller probability.
    """
    known = ~np.isnan(limits)
    has_band = ~np.isnan(forecasts.upper[:, 0])
    goal = np.where(known, limits, np.inf)
    probability = _probabilities(forecasts, goal)
    is_full = forecasts.last >= goal
    early, middle, late = (
        np.where(has_band, np.where(is_full, 0, days), NOT_WITHIN_HORIZON)
        for days in _reached(forecasts, goal, probability).T
    )
    within = [RISE_DAYS.index(days) for days in HORIZONS_DAYS]
    at_horizons = np.where((known & has_band)[:, None], probability[:, within], np.nan)
    return Runways(early, middle, late, at_horizons, known, has_band)


PIECES = ("constant", "small free share", "drift", "last week", "spread", "fallen", "past rises")
WEIGHTS = {
    7: (-2.74, 0.08, 0.38, 0.53, 0.66, 0.07, 0.60),
    30: (-2.84, 0.16, 0.72, 0.46, 0.61, 0.19, 0.45),
    90: (-2.45, 0.19, 0.89, 0.42, 0.59, 0.24, 0.43),
    365: (-1.55, 0.13, 1.24, 0.38, 0.73, 0.27, 0.62),
}
"""Of the PIECES by days: fitted once, by `benchmarks.calibration`, so that probabilities hold; never to a fleet."""
MOST_USED = 4.0
SMALLEST_FREE, LARGEST_FREE = 0.01, 100.0
MOST_PROBABLE = 0.99
"""No forecast is more certain; what is full already has the probability 1."""


def evidence(forecasts: Forecasts, limits: Sizes) -> Sizes:
    """What speaks for reaching limits that are not reached, series by RISE_DAYS by PIECES; a higher limit has less."""
    free = np.maximum(limits - forecasts.last, np.finfo(np.float64).tiny)[:, None]
    last, grown, count, days = _known(forecasts)
    rises = _rises_piece(np.sum(forecasts.rises >= free[:, :, None], axis=2), count, days)
    return np.stack([np.ones_like(rises), *_size_pieces(free, last, grown), rises], axis=2)


def _known(forecasts: Forecasts) -> tuple[Sizes, list[Sizes], Sizes, Sizes]:
    """The last size, what is compared with the free space, the number of rises, and the days: series by RISE_DAYS."""
    days = np.broadcast_to(np.asarray(RISE_DAYS, dtype=np.float64), forecasts.rises.shape[:2])
    columns = (forecasts.last, forecasts.drift, forecasts.pace, forecasts.spread, forecasts.fallen)
    last, drift, pace, spread, fallen = (np.broadcast_to(column[:, None], days.shape) for column in columns)
    return last, [drift * days, pace * days, spread, fallen], np.sum(~np.isnan(forecasts.rises), axis=2), days


def _size_pieces(free: Sizes, last: Sizes, grown: Sequence[Sizes]) -> list[Sizes]:
    """The PIECES from the free share on, up to what has fallen."""
    with np.errstate(divide="ignore", over="ignore"):
        used = [np.sqrt(np.clip(size / free, 0.0, MOST_USED)) for size in grown]
        return [-np.log(np.clip(free / last, SMALLEST_FREE, LARGEST_FREE)), *used]


def _rises_piece(reached: NDArray[np.int64], count: Sizes, days: Sizes) -> Sizes:
    """The last of PIECES: so many of the rises within so many days reach the free space."""
    share = reached / np.maximum(count, 1)
    # Days a week apart see the same rises: over more days they count as fewer independent ones.
    independent = count * ORIGIN_STEP_DAYS / days
    return np.log((independent * share + 0.5) / (independent * (1 - share) + 0.5))


_WEIGHTS_BY_DAYS = np.stack(
    [np.interp(np.log(RISE_DAYS), np.log(list(WEIGHTS)), column) for column in zip(*WEIGHTS.values(), strict=True)],
    axis=1,
)


def _probabilities(forecasts: Forecasts, goal: Sizes) -> Sizes:
    """Probability of having reached the goal within each of RISE_DAYS."""
    odds = np.sum(evidence(forecasts, goal) * _WEIGHTS_BY_DAYS, axis=2)
    probability = np.minimum(np.maximum.accumulate(1 / (1 + np.exp(-odds)), axis=1), MOST_PROBABLE)
    probability = np.where(np.isinf(goal)[:, None], 0.0, probability)
    return np.where((forecasts.last >= goal)[:, None], 1.0, probability)


LEAST_FREE, MOST_FREE = 1e-6, 1e4
"""Times the largest size of the last year: free space that is looked at; less is none, more is without bounds."""
HALVINGS = 26
"""Of the logarithm of these bounds: to the seventh digit."""
ROUNDING_DAYS = 1e-6
"""A day is not rounded up for less than this, which is an error of rounding."""


def _reached(forecasts: Forecasts, goal: Sizes, probability: Sizes) -> NDArray[np.int64]:
    """The first day by which the goal is reached with each of SHARES, series by share.

    Between two of RISE_DAYS, and from 0 to the first, days are interpolated by free space, not by probability: that
    jumps where the free space is what the series rose in the past.
    """
    days = np.array([0, *RISE_DAYS])
    first = np.sum(probability[:, :, None] < np.array(SHARES), axis=1)
    is_ahead = (forecasts.last < goal) & ~np.isnan(forecasts.upper[:, 0])
    series, share = np.nonzero(is_ahead[:, None] & (first < len(RISE_DAYS)))
    after = first[series, share] + 1
    ends = _free_by_days(forecasts, series, share, after)
    low, high = (np.take_along_axis(ends, place[:, None], axis=1)[:, 0] for place in (after - 1, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        grown = (goal[series] - forecasts.last[series] - low) / (high - low)
    width = days[after] - days[after - 1]
    # Without bounds nothing tells where between the two it is: the day after the first of them.
    steps = np.ceil(np.where(np.isfinite(grown), grown, 0.0) * width - ROUNDING_DAYS)
    found = np.where(first < len(RISE_DAYS), 0, NOT_WITHIN_HORIZON)
    found[series, share] = days[after - 1] + np.clip(steps, 1, width).astype(np.int64)
    return found


def _free_by_days(
    forecasts: Forecasts, series: NDArray[np.int64], share: NDArray[np.int64], until: NDArray[np.int64]
) -> Sizes:
    """The largest free space with which each share is reached within 0 and each of RISE_DAYS, up to the `until`th."""
    ends = np.zeros((len(series), 1 + len(RISE_DAYS)))
    case, column = np.nonzero(np.arange(len(RISE_DAYS)) < until[:, None])
    odds = np.log(np.array(SHARES) / (1 - np.array(SHARES)))
    ends[case, column + 1] = _largest_free(forecasts, series[case], column, odds[share[case]])
    return np.maximum.accumulate(ends, axis=1)


def _largest_free(forecasts: Forecasts, series: NDArray[np.int64], column: NDArray[np.int64], needed: Sizes) -> Sizes:
    """The largest free space with which each series has the odds within the day count of the column; 0: there is none.

    Between two neighbouring rises of its past, the number of rises that reach the free space is the same. So these two
    are found first, and then the free space between them.
    """
    of = (series, column)
    last, grown, count, days = _known(forecasts)
    last, grown, count, days = last[of], [size[of] for size in grown], count[of], days[of]
    constant, *by_size, by_rises = _WEIGHTS_BY_DAYS[column].T

    def odds(free: Sizes) -> Sizes:
        total: Sizes = constant
        for weight, piece in zip(by_size, _size_pieces(free, last, grown), strict=True):
            total = total + weight * piece
        return total

    every, reaching = _levels(forecasts)
    levels, reaching = every.shape[2], reaching[of]
    missed, found = np.full_like(column, -1), np.full_like(column, levels)
    for _ in range(levels.bit_length()):
        place = np.maximum((missed + found) // 2, 0)
        rises = by_rises * _rises_piece(np.minimum(place, reaching), count, days)
        holds = odds(every[(*of, place)]) + rises >= needed
        missed, found = np.where(holds, missed, place), np.where(holds, place, found)
    low, high = (every[(*of, np.clip(place, 0, levels - 1))] for place in (found, found - 1))
    rises = by_rises * _rises_piece(np.clip(found - 1, 0, reaching), count, days)
    for _ in range(HALVINGS):
        between = np.sqrt(low * high)
        holds = odds(between) + rises >= needed
        low, high = np.where(holds, between, low), np.where(holds, high, between)
    return np.select([found == 0, found < levels], [np.inf, low])


def _levels(forecasts: Forecasts) -> tuple[Sizes, NDArray[np.int64]]:
    """The bounds of free space and the past rises between them, the largest first, and the number of these rises.

    As many rises reach a level as its place says, but no more than their number.
    """
    largest = np.maximum(forecasts.last + forecasts.fallen, 1.0)[:, None, None] * np.ones((1, len(RISE_DAYS), 1))
    least, most = LEAST_FREE * largest, MOST_FREE * largest
    rises = -np.sort(-np.clip(np.nan_to_num(forecasts.rises), least, most), axis=2)
    return np.concatenate([most, rises, least], axis=2), np.sum(forecasts.rises >= least, axis=2)


NAMED = 10


def outlooks(engine: Engine, today: date, server: str | None = None, database: str | None = None) -> Outlooks:
    """Read sizes and limits and forecast, of all servers or one, or one database of it.

    A database that is bound by its server's limit, or by a volume, has its size and what is left there, as if the
    others stood still.

    Raises:
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading sizes and limits"), engine.connect() as connection:
        as_of = history.newest_day(connection, today)
        if as_of is None:
            return Outlooks(None, (), 0, {})
        # One server is shown with everything on it, limited or not.
        servers = None if server is None else (server,)
        scope = history.HistoryScope(as_of, servers, database, every=server is not None)
        kinds = KINDS if database is None else (DATABASE_ROWS,)
        plans = coming_plans(connection, as_of)
        with history.reading(connection, scope, kinds) as reader:
            rows = [
                outlook for kind in kinds for batch in reader.series(kind) for outlook in of_batch(batch, plans).rows
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
    with database_errors(doing="reading sizes and limits"), engine.connect() as connection:
        as_of = history.newest_day(connection, today)
        if as_of is None:
            return None
        scope = history.HistoryScope(as_of, None if server is None else (server,), name, every=True)
        plans = coming_plans(connection, as_of)
        with history.reading(connection, scope, (kind,)) as reader:
            series = [
                SeriesOutlook(*three)
                for batch in reader.series(kind)
                for three in zip(of_batch(batch, plans).rows, batch.sizes, batch.smooth, strict=True)
            ]
    if len(series) > 1:
        names = first_of((one.outlook.server for one in series), NAMED)
        raise ValidationError(f"{len(series)} servers have a {kind} of the name {name}: {names}. Add --server.")
    return series[0] if series else None


@dataclass(frozen=True)
class BatchOutlooks:
    """The outlooks of a batch, and the forecasts they were made of, one row each."""

    rows: Sequence[Outlook]
    made: Forecasts


def of_batch(batch: history.Histories, plans: Plans) -> BatchOutlooks:
    """Forecast a batch of series and hold it against its limits, and against those that are planned."""
    made = forecast(batch.smooth, batch.sizes)
    bound = bindings(batch, made)
    limits = limits_of(bound)
    rows = outlook_rows(batch, made, runways(made, limits), bound, made.last >= limits)
    return BatchOutlooks(with_plans(rows, batch, made, plans), made)


def bindings(batch: history.Histories, made: Forecasts) -> list[Binding]:
    """Return the limit that binds each series."""
    return [
        binding_limit(row, float(size), _size_on(row.free_day, row.last_day, sizes))
        for row, size, sizes in zip(batch.subjects, made.last, batch.sizes, strict=True)
    ]


def raised_by(bound: Binding, add_mb: int) -> Binding:
    """Return a limit that is so many MiB higher, where there is one."""
    if not add_mb or bound.limit_mb is None:
        return bound
    return replace(bound, limit_mb=bound.limit_mb + add_mb)


def limits_of(bound: Sequence[Binding]) -> Sizes:
    """Return limits as `runways` takes them."""
    return np.array([_limit(one) for one in bound], dtype=np.float64)


def outlook_rows(
    batch: history.Histories, made: Forecasts, ends: Runways, bound: Sequence[Binding], is_full: NDArray[np.bool_]
) -> list[Outlook]:
    """Return the outlook of each series of a batch."""
    return [
        _outlook(row, place, made, ends, one, is_full[place], _recent(batch.smooth[place]))
        for place, (row, one) in enumerate(zip(batch.subjects, bound, strict=True))
    ]


def with_plans(
    rows: Sequence[Outlook], batch: history.Histories, made: Forecasts, plans: Plans, add_mb: int = 0
) -> Sequence[Outlook]:
    """Return outlooks with the days on which they are full once plans have raised their limits.

    `add_mb` is what every limit is higher by.
    """
    if not plans:
        return rows
    raised = [plans.raised(row) for row in batch.subjects]
    limits = np.full(len(rows), np.nan)
    for place, planned in enumerate(raised):
        if planned is not None:
            row = planned[1]
            size = _size_on(row.free_day, row.last_day, batch.sizes[place])
            limits[place] = _limit(raised_by(binding_limit(row, float(batch.sizes[place][-1]), size), add_mb))
    ends = runways(made, limits)
    return [
        row if planned is None else replace(row, planned=_planned(row, planned[0], place, limits[place], ends))
        for place, (row, planned) in enumerate(zip(rows, raised, strict=True))
    ]


def _planned(row: Outlook, day: date, place: int, limit: float, ends: Runways) -> PlannedOutlook | None:
    """Return when it is full with a planned limit; None: that is no higher than today's, or nothing is known."""
    if not np.isfinite(limit) or row.limit_mb is None or int(limit) <= row.limit_mb or not ends.has_band[place]:
        return None
    days = (_day(row.last_day, int(each[place])) for each in (ends.early_days, ends.middle_days, ends.late_days))
    # What is full before is full on that day.
    return PlannedOutlook(day, int(limit), *(None if full is None else max(full, day) for full in days))


def _size_on(day: date | None, last_day: date, sizes: Sizes) -> float:
    """The size on the day on which volumes were measured; the last one where that day has none."""
    column = len(sizes) - 1 - max((last_day - (day or last_day)).days, 0)
    size = sizes[column] if column >= 0 else np.nan
    return float(sizes[-1] if np.isnan(size) else size)


def _limit(bound: Binding) -> float:
    if bound.limit_mb is None:
        return np.inf if bound.is_known else np.nan
    # A server that is more than full leaves a small database less than nothing.
    return max(bound.limit_mb, 0.0)


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
    row: Row[Any], place: int, made: Forecasts, ends: Runways, bound: Binding, is_full: bool, recent: float | None
) -> Outlook:
    limit = _limit(bound)
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
        volumes=row.volumes,
    )


def _day(last_day: date, days: int) -> date | None:
    return None if days == NOT_WITHIN_HORIZON else last_day + timedelta(days=days)
