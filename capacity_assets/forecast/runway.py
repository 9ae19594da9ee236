"""Computes runways: forecasts of sizes, the limits that bind, and plans that raise them.

The smallest known limit binds. Plans add a second fill date, with the limits that apply from their days on. The
arithmetic is in `model`, the runway itself in `results`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import first_of
from capacity_assets.forecast import history
from capacity_assets.forecast.history import KINDS, LimitedSubject
from capacity_assets.forecast.limits import DECLARED
from capacity_assets.forecast.model import (
    NOT_WITHIN_HORIZON,
    FillDays,
    SizeForecasts,
    Sizes,
    compute_fill_days,
    forecast,
)
from capacity_assets.forecast.results import (
    DATABASE,
    FORECAST,
    FULL,
    LIMIT_UNKNOWN,
    NO_LIMIT,
    OWN_CEILING,
    OWN_LIMIT,
    RECENT_DAYS,
    SERVER,
    SERVER_LIMIT,
    TOO_LITTLE_HISTORY,
    VOLUME,
    VOLUME_LIMIT,
    PlannedRunway,
    Runway,
    RunwayList,
    probability_of,
)


@dataclass(frozen=True)
class BindingLimit:
    """The limit that binds, MiB, with its kind and source; `limit_mb` None: unlimited, or unknown."""

    limit_mb: float | None
    binds: str | None
    source: str | None

    @property
    def is_known(self) -> bool:
        """Whether there is a limit, or it was declared unlimited."""
        return self.binds is not None


UNKNOWN = BindingLimit(None, None, None)


def binding_limit(limits: LimitedSubject, size_mb: float, size_then_mb: float) -> BindingLimit:
    """Return the smallest limit of a subject; `size_then_mb` is its size on the day its volumes were measured.

    If an engine reports no ceiling, the volumes are the limit; without known volumes, it is unknown. Only a declaration
    makes a subject unlimited.
    """
    is_known = limits.server_mb is not None and limits.total_mb is not None
    server_mb = size_mb + (limits.server_mb or 0) - (limits.total_mb or 0) if is_known else None
    limits_mb = (
        (limits.own_mb, VOLUME_LIMIT if limits.subject == VOLUME else OWN_LIMIT, limits.own_source),
        (limits.ceiling_mb, OWN_CEILING, limits.ceiling_source),
        (server_mb, SERVER_LIMIT, limits.server_source),
        (None if limits.free_mb is None else size_then_mb + limits.free_mb, VOLUME_LIMIT, limits.free_source),
    )
    known = [(float(limit_mb), binds, source) for limit_mb, binds, source in limits_mb if limit_mb is not None]
    if known:
        return BindingLimit(*min(known))
    if limits.own_source == DECLARED:
        return BindingLimit(None, OWN_LIMIT, DECLARED)
    return BindingLimit(None, SERVER_LIMIT, DECLARED) if limits.server_source == DECLARED else UNKNOWN


Plans: TypeAlias = Mapping[int, Sequence[Row[Any]]]
"""Plans for future days by server ID: rows with subject, name, until_day and added_mb."""


def raised_limits(limits: LimitedSubject, plans: Plans) -> tuple[date, LimitedSubject] | None:
    """Return the day of the last plan for a subject, and its limits after all plans; None: no plan."""
    raised, days = limits, []
    for plan in plans.get(limits.instance_id, ()):
        names = [name for name in _raised_by(plan, limits) if getattr(limits, name) is not None]
        raised = replace(raised, **{name: getattr(raised, name) + plan.added_mb for name in names})
        days += [plan.until_day] if names else []
    return (max(days), raised) if days else None


def _raised_by(plan: Row[Any], limits: LimitedSubject) -> Sequence[str]:
    """Return the fields of a subject's limits that a plan raises: its own, or those it shares with others."""
    if (plan.subject, plan.name) == (limits.subject, limits.name):
        # A server without its own limit is limited by its volumes.
        return ("own_mb", "ceiling_mb") if plan.subject != SERVER or limits.own_mb is not None else ("free_mb",)
    if plan.subject == VOLUME and limits.subject != VOLUME and plan.name in (limits.volumes or ()):
        return ("free_mb",)
    if plan.subject == SERVER and limits.subject == DATABASE:
        return ("server_mb",) if limits.server_mb is not None else ("free_mb",)
    return ()


def coming_plans(connection: Connection, as_of: date) -> Plans:
    """Return the plans after a day, up to the end of its forecasts; raises DBAPIError.

    On its day, a plan has been carried out, and is measured or declared.
    """
    plans: dict[int, list[Row[Any]]] = {}
    for row in connection.execute(text(_PLANS), {"as_of": as_of, "days": HORIZONS_DAYS[-1]}):
        plans.setdefault(row.instance_id, []).append(row)
    return plans


_PLANS = """
SELECT instance_id, subject, name, until_day, added_mb FROM capacity_decisions
WHERE added_mb IS NOT NULL AND closed_at IS NULL AND until_day > :as_of
  AND until_day <= CAST(:as_of AS date) + CAST(:days AS integer)
"""


NAMED = 10


def compute_runways(engine: Engine, today: date, server: str | None = None, database: str | None = None) -> RunwayList:
    """Compute the runways of all servers, or of one server, or of one of its databases.

    A database that is limited by its server or a volume has all the free space there, as if nothing else grew.

    Raises DatabaseError: the database failed.
    """
    with database_errors(doing="reading sizes and limits"), engine.connect() as connection:
        as_of = history.newest_day(connection, today)
        if as_of is None:
            return RunwayList(None, (), 0, {})
        # One server is shown with everything on it, with or without a limit.
        servers = None if server is None else (server,)
        scope = history.HistoryScope(as_of, servers, database, every=server is not None)
        kinds = KINDS if database is None else (DATABASE,)
        plans = coming_plans(connection, as_of)
        with history.open_history_reader(connection, scope, kinds) as reader:
            rows = [
                runway
                for kind in kinds
                for batch in reader.series(kind)
                for runway in runways_of_batch(batch, plans).rows
            ]
            unknown = reader.without_limit()
    rows.sort(key=lambda row: (row.risk, row.server, row.name))
    return RunwayList(as_of, rows, sum(unknown.values()), unknown)


@dataclass(frozen=True)
class RunwayWithSizes:
    """A runway with its sizes, as measured and without declared steps."""

    runway: Runway
    sizes: Sizes
    smooth: Sizes


def runway_with_sizes(
    engine: Engine, today: date, kind: str, name: str | None, server: str | None
) -> RunwayWithSizes | None:
    """Return the runway of one series with its sizes; None: it was not measured within the last month.

    Raises ValidationError if several servers have that name, and DatabaseError.
    """
    with database_errors(doing="reading sizes and limits"), engine.connect() as connection:
        as_of = history.newest_day(connection, today)
        if as_of is None:
            return None
        scope = history.HistoryScope(as_of, None if server is None else (server,), name, every=True)
        plans = coming_plans(connection, as_of)
        with history.open_history_reader(connection, scope, (kind,)) as reader:
            series = [
                RunwayWithSizes(*three)
                for batch in reader.series(kind)
                for three in zip(runways_of_batch(batch, plans).rows, batch.sizes, batch.smooth, strict=True)
            ]
    if len(series) > 1:
        names = first_of((runway.runway.server for runway in series), NAMED)
        raise ValidationError(f"{len(series)} servers have a {kind} of the name {name}: {names}. Add --server.")
    return series[0] if series else None


@dataclass(frozen=True)
class BatchRunways:
    """The runways of a batch, their forecasts and binding limits, one row each."""

    rows: Sequence[Runway]
    forecasts: SizeForecasts
    bound: Sequence[BindingLimit]


def runways_of_batch(batch: history.SeriesBatch, plans: Plans, forecasts: SizeForecasts | None = None) -> BatchRunways:
    """Compute the runways of a batch of series, with plans; by default also its forecasts."""
    forecasts = forecasts or forecast(batch.smooth, batch.sizes)
    bound = binding_limits(batch)
    limits = limits_of(bound)
    rows = runway_rows(batch, forecasts, compute_fill_days(forecasts, limits), bound, forecasts.last >= limits)
    return BatchRunways(with_plans(rows, batch, forecasts, plans), forecasts, bound)


def binding_limits(batch: history.SeriesBatch) -> list[BindingLimit]:
    """Return the binding limit of each series; shared free space is added to its files."""
    return [
        binding_limit(row, float(files[-1]), _size_on(row.free_day, row.last_day, files))
        for row, files in zip(batch.subjects, batch.files, strict=True)
    ]


def raised_limit(bound: BindingLimit, add_mb: int) -> BindingLimit:
    """Return a limit raised by a number of MiB, or lowered, to 0 at most; unlimited and unknown ones stay unchanged."""
    if not add_mb or bound.limit_mb is None:
        return bound
    return replace(bound, limit_mb=max(bound.limit_mb + add_mb, 0))


def limits_of(bound: Sequence[BindingLimit]) -> Sizes:
    """Return limits as an array for `compute_fill_days`."""
    return np.array([_limit(limit) for limit in bound], dtype=np.float64)


def runway_rows(
    batch: history.SeriesBatch,
    forecasts: SizeForecasts,
    ends: FillDays,
    bound: Sequence[BindingLimit],
    is_full: NDArray[np.bool_],
) -> list[Runway]:
    """Return the runway of each series of a batch."""
    return [
        replace(
            _runway(row, place, forecasts, ends, limit, is_full[place], _recent(batch.smooth[place])),
            allocated_mb=int(batch.files[place, -1]) if row.fills_files else None,
        )
        for place, (row, limit) in enumerate(zip(batch.subjects, bound, strict=True))
    ]


def with_plans(
    rows: Sequence[Runway], batch: history.SeriesBatch, forecasts: SizeForecasts, plans: Plans, add_mb: int = 0
) -> Sequence[Runway]:
    """Return runways with their fill dates after plans; `add_mb` is added to every limit."""
    if not plans:
        return rows
    raised = [raised_limits(row, plans) for row in batch.subjects]
    limits = np.full(len(rows), np.nan)
    for place, planned in enumerate(raised):
        if planned is not None:
            row = planned[1]
            size = _size_on(row.free_day, row.last_day, batch.files[place])
            limits[place] = _limit(raised_limit(binding_limit(row, float(batch.files[place][-1]), size), add_mb))
    ends = compute_fill_days(forecasts, limits)
    return [
        row if planned is None else replace(row, planned=_planned_runway(row, planned[0], place, limits[place], ends))
        for place, (row, planned) in enumerate(zip(rows, raised, strict=True))
    ]


def _planned_runway(row: Runway, day: date, place: int, limit: float, ends: FillDays) -> PlannedRunway | None:
    """Return the runway with a planned limit; None: it is not higher than today's, or no date is known."""
    if not np.isfinite(limit) or row.limit_mb is None or int(limit) <= row.limit_mb or not ends.has_band[place]:
        return None
    days = (_day(row.last_day, int(each[place])) for each in (ends.early_days, ends.middle_days, ends.late_days))
    # If it is full before the plan, it is still full on that day at the earliest.
    return PlannedRunway(day, int(limit), *(None if full is None else max(full, day) for full in days))


def _size_on(day: date | None, last_day: date, sizes: Sizes) -> float:
    """Return the size on the day its volumes were measured; the last size if that day has none."""
    column = len(sizes) - 1 - max((last_day - (day or last_day)).days, 0)
    size = sizes[column] if column >= 0 else np.nan
    return float(sizes[-1] if np.isnan(size) else size)


def _limit(bound: BindingLimit) -> float:
    if bound.limit_mb is None:
        return np.inf if bound.is_known else np.nan
    # On a server that is over its limit, a small database would have a negative limit.
    return max(bound.limit_mb, 0.0)


def _state(bound: BindingLimit, *, is_full: bool, has_band: bool) -> str:
    if bound.limit_mb is None:
        return NO_LIMIT if bound.is_known else LIMIT_UNKNOWN
    if is_full:
        return FULL
    return FORECAST if has_band else TOO_LITTLE_HISTORY


def _recent(smooth: Sizes) -> float | None:
    """Return the change per day over the last month without steps; None: not measured a month ago."""
    before = smooth[-1 - RECENT_DAYS] if len(smooth) > RECENT_DAYS else np.nan
    return None if np.isnan(before) else round(float(smooth[-1] - before) / RECENT_DAYS, 3)


def _runway(  # noqa: PLR0913, PLR0917 -- one row of each of the arrays
    row: LimitedSubject,
    place: int,
    forecasts: SizeForecasts,
    ends: FillDays,
    bound: BindingLimit,
    is_full: bool,
    recent: float | None,
) -> Runway:
    limit = _limit(bound)
    state = _state(bound, is_full=is_full, has_band=bool(ends.has_band[place]))
    limit_mb = int(limit) if np.isfinite(limit) else None
    days = (ends.early_days, ends.middle_days, ends.late_days)
    early, middle, late = (_day(row.last_day, int(each[place])) if state == FORECAST else None for each in days)
    within = zip(HORIZONS_DAYS, ends.probability[place], strict=True)
    probabilities = {days: probability_of(float(share)) for days, share in within} if state == FORECAST else {}
    if state == FULL:
        early = middle = late = row.last_day
        probabilities = dict.fromkeys(HORIZONS_DAYS, 1.0)
    size_mb = int(forecasts.last[place])
    return Runway(
        server=row.server,
        database=row.name if row.subject == DATABASE else None,
        volume=row.name if row.subject == VOLUME else None,
        last_day=row.last_day,
        size_mb=size_mb,
        limit_mb=limit_mb,
        binds=bound.binds,
        source=bound.source,
        headroom_mb=None if limit_mb is None else limit_mb - size_mb,
        change_mb_per_day=round(float(forecasts.drift[place]), 3),
        recent_mb_per_day=recent,
        history_days=int(forecasts.known_changes[place]) + 1,
        state=state,
        early_day=early,
        middle_day=middle,
        late_day=late,
        probabilities=probabilities,
        volumes=row.volumes,
    )


def _day(last_day: date, days: int) -> date | None:
    return None if days == NOT_WITHIN_HORIZON else last_day + timedelta(days=days)
