"""What fills, when, and how much is free, by the newest forecasts or those of an earlier week."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import StrEnum
from math import inf
from typing import Any

import sqlalchemy as sa

from capacity_assets.base.settings import HORIZONS_DAYS, Thresholds
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.tables import capacity_runways, instances
from capacity_assets.database.views import STANDS_FOR_ITSELF, UNKNOWN_LIMITS, headroom
from capacity_assets.forecast.decisions import OpenDecisions, StoredDecision, is_left_out, open_decisions
from capacity_assets.forecast.outlook import (
    FORECAST,
    FULL,
    NO_LIMIT,
    OWN,
    SERVER,
    VOLUME,
    PlannedOutlook,
    display_name,
)
from capacity_assets.ownership.groups import GroupFillDate
from capacity_assets.ownership.labels import labels_of_each
from capacity_assets.reading.access import rows


class Severity(StrEnum):
    """How urgent it is that something fills, by the thresholds; growth alone is not."""

    FULL = "full"
    ACT = "act"
    """An alert is sent."""
    WATCH = "watch"
    """The digest lists it."""


@dataclass(frozen=True)
class ForecastDay:
    """The forecast for a day, MiB, with its 80 % range."""

    day: date
    lower_mb: int
    size_mb: int
    upper_mb: int


_SHARED = {VOLUME, SERVER}


@dataclass(frozen=True)
class Runway:
    """When something is full, by its newest forecast; a day is None if it is beyond a year, or unknown."""

    server_id: int
    server: str
    subject: str
    name: str
    state: str
    last_day: date
    size_mb: int
    limit_mb: int | None
    headroom_mb: int | None
    binds: str | None
    limit_source: str | None
    full_early: date | None
    full_middle: date | None
    full_late: date | None
    probability_7_days: float | None
    probability_30_days: float | None
    probability_90_days: float | None
    probability_365_days: float | None
    change_mb_per_day: float
    history_days: int
    is_outdated: bool
    """Whether limits, steps or plans of its server were declared after the forecast."""
    volumes: list[str] | None
    """Volumes on which it grows; None if unknown."""
    ahead: Sequence[ForecastDay] = field(default=())
    planned: PlannedOutlook | None = None
    """With the limit that is planned; None: no plan raises it, or no day is known."""
    decision: StoredDecision | None = None
    """What was decided about it, or about the volume or server that binds it; None: nothing that is still open."""

    @property
    def display_name(self) -> str:
        """The name as people read it."""
        return display_name(self.subject, self.name)

    @property
    def is_shared(self) -> bool:
        """Whether its limit is what a disk or server has left that others fill too, as if they did not grow."""
        return self.subject != "volume" and self.binds in _SHARED


def severity_of(runway: Runway, thresholds: Thresholds) -> Severity | None:
    """Return how urgent a forecast is; None: it is not, or its probability is not known."""
    if runway.state == FULL:
        return Severity.FULL
    return _severity(getattr(runway, f"probability_{thresholds.days}_days"), thresholds)


def _severity(probability: float | None, thresholds: Thresholds) -> Severity | None:
    if probability is None or 100 * probability < thresholds.watch_percent:
        return None
    return Severity.ACT if 100 * probability >= thresholds.act_percent else Severity.WATCH


_ENDS = [f"{end}_{days}_days_mb" for days in HORIZONS_DAYS for end in ("lower", "forecast", "upper")]
_FIELDS = [name for name in Runway.__dataclass_fields__ if name not in {"ahead", "volumes", "planned", "decision"}]
_PLANNED = ["planned_from", "planned_limit_mb", "planned_full_early", "planned_full_middle", "planned_full_late"]
_RUNWAY = sa.table(
    "capacity_runway",
    *map(sa.column, (*_FIELDS, *_PLANNED, *_ENDS, "as_of", "stands_for_itself")),
    sa.column("volumes", sa.ARRAY(sa.Text)),
).alias("r")
_R = _RUNWAY.c
_RUNWAYS = sa.select(*(_R[name] for name in (*_FIELDS, "as_of", "volumes", *_PLANNED, *_ENDS)))


def fills_first(connection: sa.Connection, *, shown: int, skipped: int = 0, server: str | None = None) -> list[Runway]:
    """Return what fills within a year, of all servers or of one, earliest first.

    Databases limited by a volume or server are listed as that.
    """
    chosen = _RUNWAYS.where(_R.stands_for_itself, _R.full_middle.is_not(None))
    if server is not None:
        chosen = chosen.where(_R.server == server)
    in_order = chosen.order_by(_R.full_middle, _R.server, _R.name, _R.subject)
    return _runways(connection, in_order.limit(shown).offset(skipped))


def runways_of(connection: sa.Connection, filling: Sequence[GroupFillDate]) -> list[Runway]:
    """Return the forecasts of the subjects that fill in a group."""
    keys = [(one.server_id, one.subject, one.name) for one in filling]
    chosen = _RUNWAYS.where(sa.tuple_(_R.server_id, _R.subject, _R.name).in_(keys))
    return _runways(connection, chosen.order_by(_R.full_middle, _R.server, _R.name)) if keys else []


def runway_of(connection: sa.Connection, server_id: int, subject: str, name: str) -> Runway | None:
    """Return the forecast of a server, database or volume; None where none was issued."""
    chosen = _RUNWAYS.where(_R.server_id == server_id, _R.subject == subject, _R.name == name)
    return next(iter(_runways(connection, chosen)), None)


def binding_of(connection: sa.Connection, runway: Runway | None) -> Runway | None:
    """Return the forecast that fills first: the database, its server's own limit or a volume; None without a date."""
    if runway is None:
        return None
    chosen = _RUNWAYS.where(_R.server_id == runway.server_id, _R.subject != "database").order_by(_R.subject, _R.name)
    return _earliest(_binding(runway, _runways(connection, chosen)))


def _binding(runway: Runway, shared: Sequence[Runway]) -> list[Runway]:
    """Return a forecast and those of what it shares: of a database its server and volumes, of a server its volumes."""
    if runway.subject == "server":
        return [runway, *(one for one in shared if one.subject == "volume")]
    return [
        runway,
        *(
            one
            for one in shared
            if (one.subject == "server" and one.binds == OWN)
            or (one.subject == "volume" and one.name in (runway.volumes or ()))
        ),
    ]


@dataclass(frozen=True)
class Usage:
    """The limit that binds a server or database first, how much of it is used, MiB, and when it is reached.

    The space of a volume or server is shared: what is used of it is what all databases on it use.
    """

    state: str
    """State of its own newest forecast."""
    limit_mb: int | None
    used_mb: int | None
    subject: str | None
    """Whose limit it is: database, server or volume; None: no limit is known."""
    name: str | None
    full_by: date | None
    full_subject: str | None
    """Whose date it is: database, server or volume; None: there is no date."""
    full_name: str | None
    severity: Severity | None
    decision: str | None
    """What was decided about what fills, in a few words; None: no decision leaves it out of check and alerts."""


def usages_of(
    connection: sa.Connection, subjects: Sequence[tuple[int, str]], thresholds: Thresholds
) -> dict[tuple[int, str], Usage]:
    """Return the usage of servers (an empty name) and databases that have a forecast, by server and name."""
    named = [(server, name) for server, name in subjects if name]
    servers = sa.literal(sorted({server for server, _ in subjects}), sa.ARRAY(sa.Integer))
    chosen = _RUNWAYS.where(_R.server_id == sa.any_(servers), _R.subject.in_(["server", "volume"])).union_all(
        _of_databases(named, on_nodes=tables_are_distributed(connection))
    )
    shared: dict[int, list[Runway]] = {}
    own: dict[tuple[int, str], Runway] = {}
    for one in _runways(connection, chosen):
        if one.subject != "volume":
            own[one.server_id, one.name] = one
        if one.subject != "database":
            shared.setdefault(one.server_id, []).append(one)
    return {
        subject: _usage(own[subject], _binding(own[subject], shared.get(subject[0], ())), thresholds)
        for subject in subjects
        if subject in own
    }


def _of_databases(named: Sequence[tuple[int, str]], *, on_nodes: bool) -> sa.Select[Any]:
    """Return the query of the forecasts of databases; each is looked up by the key."""
    servers = sa.literal([server for server, _ in named], sa.ARRAY(sa.Integer))
    names = sa.literal([name for _, name in named], sa.ARRAY(sa.Text))
    is_database = _R.subject == "database"
    if on_nodes:
        # There a subquery must not depend on the outer query; names of other servers are dropped by the caller.
        return _RUNWAYS.where(_R.server_id == sa.any_(servers), is_database, _R.name == sa.any_(names))
    keys = sa.func.unnest(servers, names).table_valued("server_id", "name").render_derived("k")
    of_key = _RUNWAYS.where(_R.server_id == keys.c.server_id, is_database, _R.name == keys.c.name).limit(1)
    return sa.select(of_key.lateral("of_key")).select_from(keys)


def _usage(own: Runway, binding: Sequence[Runway], thresholds: Thresholds) -> Usage:
    # A limit that assumes that the others stand still is none to measure use by: the shared space is.
    limited = [one for one in binding if one.limit_mb is not None and not one.is_shared]
    by_use = max(limited, key=lambda one: one.size_mb / max(one.limit_mb or 0, 1), default=None)
    first = _earliest(binding)
    shown = first if first in limited else by_use
    return Usage(
        own.state,
        shown.limit_mb if shown else None,
        shown.size_mb if shown else None,
        shown.subject if shown else None,
        shown.name if shown else None,
        first.full_middle if first else None,
        first.subject if first else None,
        first.name if first else None,
        severity_of(first, thresholds) if first else None,
        first.decision.mark if first and first.decision and is_left_out(first.decision) else None,
    )


def first_on_server(connection: sa.Connection, server_id: int) -> tuple[Runway | None, Runway | None]:
    """Return what of a server fills first, and where that is a database, what of its disks and own limit does."""
    dated = _RUNWAYS.where(_R.server_id == server_id, _R.stands_for_itself, _R.full_middle.is_not(None))
    # A volume comes first, so it wins if another one is full on the same day.
    order = (_R.full_middle, _R.full_early, _R.subject.desc(), _R.name)
    first = next(iter(_runways(connection, dated.order_by(*order).limit(1))), None)
    if first is None or first.subject != "database":
        return first, None
    shared = dated.where(_R.subject != "database").order_by(*order).limit(1)
    return first, next(iter(_runways(connection, shared)), None)


def _earliest(runways: Sequence[Runway]) -> Runway | None:
    dated = [one for one in runways if one.full_middle is not None]
    return min(dated, key=lambda one: (one.full_middle, one.full_early), default=None)


def bound_by_volume(connection: sa.Connection, server_id: int, volume: str, *, shown: int) -> list[Runway]:
    """Return the databases that a volume limits, the largest first."""
    on_it = sa.or_(_R.volumes.is_(None), sa.literal(volume) == sa.any_(_R.volumes))
    chosen = _RUNWAYS.where(_R.server_id == server_id, _R.subject == "database", _R.binds == VOLUME, on_it)
    return _runways(connection, chosen.order_by(_R.size_mb.desc(), _R.name).limit(shown))


def outdated_servers(connection: sa.Connection) -> list[str]:
    """Return the servers whose limits, steps or plans changed after the newest forecast was issued."""
    chosen = sa.select(_R.server).where(_R.is_outdated).distinct().order_by(_R.server)
    return [row.server for row in rows(connection, chosen)]


def forecast_day(connection: sa.Connection) -> date | None:
    """Return the day of the newest forecasts; None: none was issued."""
    # Not max(): all rows are of one day, and it would read all of them.
    day: date | None = connection.execute(sa.select(_R.as_of).limit(1)).scalar()
    return day


def forecasts_revision(connection: sa.Connection) -> tuple[object, ...]:
    """Return values that change whenever a forecast is issued or a price or decision is declared or removed."""
    forecasts = "SELECT count(*) AS number, max(issued_at) AS newest FROM capacity_runway"
    prices = "SELECT count(*) AS number, max(declared_at) AS newest FROM capacity_prices"
    decisions = """
        SELECT count(*) AS number, max(greatest(declared_at, closed_at)) AS newest FROM capacity_declared_decisions"""
    return tuple(value for statement in (forecasts, prices, decisions) for value in rows(connection, statement)[0])


def _runways(connection: sa.Connection, chosen: sa.Select[Any] | sa.CompoundSelect[Any]) -> list[Runway]:
    found = rows(connection, chosen)
    decisions = open_decisions(connection, found[0].as_of) if found else OpenDecisions(())
    runways = []
    for row in found:
        values, ahead = row._asdict(), []
        del values["as_of"]
        planned = [values.pop(name) for name in _PLANNED]
        for days in HORIZONS_DAYS:
            band = [values.pop(f"{end}_{days}_days_mb") for end in ("lower", "forecast", "upper")]
            if None not in band:
                ahead.append(ForecastDay(row.last_day + timedelta(days=days), *band))
        values |= {"planned": PlannedOutlook(*planned) if row.planned_from else None, "decision": decisions.on(row)}
        runways.append(Runway(**values, ahead=ahead))
    return runways


@dataclass(frozen=True)
class FreeCapacity:
    """Free space of volumes, and of servers without known volumes, MiB; None: no limit is known."""

    headroom_mb: int | None
    unknown_limits: int
    """Databases without a known limit."""
    fills_soon: int
    """What is full within the days of the thresholds with the probability from which on somebody has to act."""
    as_of: date | None
    """Day of the newest forecasts; None: none was issued yet, so nothing of this is known."""


def free_capacity(connection: sa.Connection, thresholds: Thresholds) -> FreeCapacity:
    """Return the free capacity by the newest forecasts."""
    probability = _R[f"probability_{thresholds.days}_days"]
    is_soon = sa.and_(probability >= thresholds.act_percent / 100, _R.stands_for_itself)
    unknown: sa.ColumnElement[int] = sa.literal_column(UNKNOWN_LIMITS)
    statement = sa.select(
        unknown.label("unknown_limits"),
        sa.func.count().filter(is_soon).label("fills_soon"),
        sa.func.max(_R.as_of).label("as_of"),
    ).select_from(_RUNWAY)
    # Apart: where rows are distributed, no subquery may stand beside an aggregate of them.
    free = connection.execute(sa.text(headroom("capacity_runway"))).scalar()
    [counts] = rows(connection, statement)
    return FreeCapacity(headroom_mb=None if free is None else int(free), **counts._mapping)  # noqa: SLF001 -- public


WITHIN_DAYS, MOVED_DAYS = 180, 14
"""A fill date has moved if it is MOVED_DAYS or more from that of a week ago, and one of them within WITHIN_DAYS.

A date that is new moved to be sooner, and one that is no longer within a year, later.
"""


@dataclass(frozen=True)
class FillDate:
    """When something is full, by the forecasts of a week, and by those of the week before; None: not within a year."""

    server_id: int
    server: str
    subject: str
    name: str
    display_name: str
    day: date | None
    before: date | None
    probability: float
    """Probability of being full within the days of the thresholds."""
    severity: Severity | None


@dataclass(frozen=True)
class FillDates:
    """What fills soon, and what fills sooner or later than forecast a week earlier; without a forecast, all unknown."""

    has_forecast: bool
    soon: Sequence[FillDate] = ()
    """What is to be watched or acted on, the most probable first."""
    sooner: Sequence[FillDate] = ()
    later: Sequence[FillDate] = ()
    decided: int = 0
    """Fill dates that decisions leave out."""


def fill_dates(
    connection: sa.Connection, first: date, last: date, label: tuple[str, str] | None, thresholds: Thresholds
) -> FillDates:
    """Return the fill dates of what has a label, by the newest forecasts of a week up to the day after it.

    What a decision leaves out on the day of these forecasts is not among them.
    """
    newest = _newest_issue(connection, first, last + timedelta(days=1))
    if newest is None:
        return FillDates(has_forecast=False)
    older = _newest_issue(connection, first - timedelta(days=7), first)
    latest = newest + timedelta(days=WITHIN_DAYS)
    now, then, server = capacity_runways.alias("r"), capacity_runways.alias("b"), instances.alias("i")
    same = (then.c[name] == now.c[name] for name in ("instance_id", "subject", "name"))
    server_name = sa.func.coalesce(server.c.name, sa.literal("server ") + sa.cast(now.c.instance_id, sa.Text)).label(
        "server"
    )
    probability = now.c[f"probability_{thresholds.days}"].label("probability")
    before = then.c.middle_day.label("before")
    # Without a date, only what is known not to fill within a year fills later.
    is_dated = sa.or_(now.c.middle_day.is_not(None), now.c.state.in_([FORECAST, NO_LIMIT]))
    statement = (
        sa.select(
            now.c.instance_id.label("server_id"),
            server_name,
            now.c.subject,
            now.c.name,
            now.c.middle_day.label("day"),
            before,
            probability,
            now.c.binds,
            now.c.volumes,
        )
        .select_from(now)
        .outerjoin(then, sa.and_(then.c.as_of == older, *same))
        .outerjoin(server, server.c.id == now.c.instance_id)
        .where(now.c.as_of == newest, sa.text(STANDS_FOR_ITSELF), is_dated)
        .where(sa.or_(probability >= thresholds.watch_percent / 100, now.c.middle_day <= latest, before <= latest))
        .order_by(now.c.middle_day, server_name, now.c.name)
    )
    decisions = open_decisions(connection, newest)
    left_out = {_fill_date(row, thresholds): is_left_out(decisions.on(row)) for row in rows(connection, statement)}
    dates = list(left_out)
    if label is not None:
        subjects = {one: (one.server, one.name if one.subject == "database" else None) for one in dates}
        labelled = labels_of_each(connection.engine, list(dict.fromkeys(subjects.values())), newest, label=label)
        dates = [one for one, subject in subjects.items() if subject in labelled]
    decided = sum(left_out[one] for one in dates)
    dates = [one for one in dates if not left_out[one]]
    compared = dates if older is not None and older < newest else []
    return FillDates(
        True,
        sorted((one for one in dates if one.severity), key=lambda one: -one.probability),
        [one for one in compared if one.day is not None and one.day <= latest and _days_moved(one) <= -MOVED_DAYS],
        [one for one in compared if one.before is not None and _days_moved(one) >= MOVED_DAYS],
        decided,
    )


def _fill_date(row: sa.Row[Any], thresholds: Thresholds) -> FillDate:
    key = (row.server_id, row.server, row.subject, row.name)
    severity = _severity(row.probability, thresholds)
    return FillDate(*key, display_name(row.subject, row.name), row.day, row.before, row.probability, severity)


def _days_moved(one: FillDate) -> float:
    """Return how many days later it is full than forecast before; infinitely many from or to beyond a year."""
    if one.day is None:
        return inf
    return -inf if one.before is None else (one.day - one.before).days


def _newest_issue(connection: sa.Connection, first: date, last: date) -> date | None:
    issued = capacity_runways.c.as_of
    newest: date | None = connection.execute(sa.select(sa.func.max(issued)).where(issued.between(first, last))).scalar()
    return newest
