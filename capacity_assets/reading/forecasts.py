"""Stored forecasts: what fills and when, its urgency, the free space, and earlier forecasts.

The newest ones are rows of the view `capacity_runway`, those of other days of `capacity_issued_runways`. Decisions are
those open today, for a forecast of any day.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from math import inf
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from capacity_assets.base.errors import database_errors
from capacity_assets.base.settings import HORIZONS_DAYS, Thresholds
from capacity_assets.base.units import LARGEST_MB
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.tables import capacity_runways, instances
from capacity_assets.database.views import ISSUED_RUNWAYS_VIEW, RUNWAY_VIEW
from capacity_assets.forecast.decisions import StoredDecision, is_left_out, open_decisions
from capacity_assets.forecast.limits import sizes_by_day
from capacity_assets.forecast.results import (
    DATABASE,
    FORECAST,
    FULL,
    LIMIT_UNKNOWN,
    NO_LIMIT,
    OWN_LIMIT,
    RISK_DAYS,
    SERVER,
    SERVER_LIMIT,
    STALE_DAYS,
    TOO_LITTLE_HISTORY,
    VOLUME,
    VOLUME_LIMIT,
    PlannedRunway,
    Runway,
    RunwayFigures,
    display_name,
    end_of_range,
)
from capacity_assets.ownership.labels import read_labels
from capacity_assets.reading.access import rows
from capacity_assets.reading.accuracy import Accuracy, scores_of

MOST_RISKS = 1_000
"""Most risks that are read of an issue."""


class SubjectKey(NamedTuple):
    """A server, database or volume; `name` is empty for a server."""

    server_id: int
    subject: str
    name: str


class Severity(StrEnum):
    """How urgent a forecast is, by the thresholds."""

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


@dataclass(frozen=True)
class RunwaySubject:
    """The subject of a stored forecast; `name` is empty for a server."""

    server_id: int
    server: str
    subject: str
    name: str


class SizesAhead:
    """Properties of a forecast of sizes."""

    change_mb_per_day: float
    ahead: Sequence[ForecastDay]

    @property
    def is_range_narrowing(self) -> bool:
        """Whether the range of a horizon is narrower than that of a shorter one, as with regular purges."""
        widths = [forecast.upper_mb - forecast.lower_mb for forecast in self.ahead]
        return widths != sorted(widths)

    @property
    def is_level(self) -> bool:
        """Whether sizes changed, but the last one was a better forecast than a trend."""
        return self.change_mb_per_day == 0 and any(forecast.upper_mb > forecast.lower_mb for forecast in self.ahead)

    @property
    def end_of_range(self) -> str | None:
        """The end of the range at which the last forecast size is, by `forecast.results.end_of_range`."""
        last = self.ahead[-1] if self.ahead else None
        return None if last is None else end_of_range(last.size_mb, last.lower_mb, last.upper_mb)


@dataclass(frozen=True)
class GroupSizeForecast(SizesAhead):
    """The forecast of a group: its size on the last day without a missing server, MiB, and the sizes ahead."""

    last_day: date
    size_mb: int
    change_mb_per_day: float
    ahead: Sequence[ForecastDay] = ()


@dataclass(frozen=True, kw_only=True)
class StoredRunway(SizesAhead, RunwayFigures, RunwaySubject):
    """A stored forecast. Its fields are named as the columns of the view; days are None beyond a year or if unknown."""

    limit_source: str | None
    full_early: date | None
    full_middle: date | None
    full_late: date | None
    probability_7_days: float | None
    probability_30_days: float | None
    probability_90_days: float | None
    probability_365_days: float | None
    is_outdated: bool
    """Whether limits, steps or plans of its server were declared after the forecast."""
    stands_for_itself: bool
    """False if another forecast is about the same space and at least as urgent: a volume covers its databases."""
    ahead: Sequence[ForecastDay] = field(default=())
    planned: PlannedRunway | None = None
    """The runway with planned limits; None: no plan raises its limit, or no day is known."""
    decision: StoredDecision | None = None
    """The open decision on it, or on the volume or server that limits it; None: none."""

    @property
    def key(self) -> SubjectKey:
        """Its subject."""
        return _key(self)

    @property
    def display_name(self) -> str:
        """The name as people read it."""
        return display_name(self.subject, self.name)

    @property
    def is_shared(self) -> bool:
        """Whether its limit is free space that others use too: it applies only if these do not grow."""
        return self.subject != VOLUME and self.binds in {VOLUME_LIMIT, SERVER_LIMIT}

    def probability_within(self, days: int) -> float | None:
        """Return the probability of being full within a horizon; None: unknown."""
        probability: float | None = getattr(self, f"probability_{days}_days")
        return probability

    @property
    def runway(self) -> Runway:
        """The runway that was stored, which has sentences."""
        known = {days: self.probability_within(days) for days in HORIZONS_DAYS}
        return Runway(
            **{
                attribute.name: getattr(self, attribute.name)
                for attribute in fields(Runway)
                if hasattr(self, attribute.name)
            },
            database=self.name if self.subject == DATABASE else None,
            volume=self.name if self.subject == VOLUME else None,
            source=self.limit_source,
            early_day=self.full_early,
            middle_day=self.full_middle,
            late_day=self.full_late,
            probabilities={days: share for days, share in known.items() if share is not None},
        )


def _key(row: Any) -> SubjectKey:
    return SubjectKey(row.server_id, row.subject, row.name)


def severity_of(runway: StoredRunway, thresholds: Thresholds) -> Severity | None:
    """Return how urgent a forecast is; None: not urgent, or its probability is unknown."""
    probability = runway.probability_within(thresholds.days)
    if runway.state == FULL:
        return Severity.FULL
    if probability is None or probability < thresholds.watch_percent / 100:
        return None
    return Severity.ACT if probability >= thresholds.act_percent / 100 else Severity.WATCH


def open_severity_of(runway: StoredRunway, thresholds: Thresholds) -> Severity | None:
    """Return how urgent a forecast is; None: not urgent, or a decision excludes it."""
    return None if is_left_out(runway.decision) else severity_of(runway, thresholds)


def volume_severities(
    connection: sa.Connection, today: date, server_id: int, thresholds: Thresholds
) -> dict[str, Severity]:
    """Return how urgent the newest forecasts of the volumes of a server are, by volume; others are left out."""
    of_volumes = _select(_NEWEST).where(_R.server_id == server_id, _R.subject == VOLUME)
    severities = {
        runway.name: open_severity_of(runway, thresholds) for runway in _runways(connection, today, of_volumes)
    }
    return {name: severity for name, severity in severities.items() if severity}


def needs_action(runway: StoredRunway, thresholds: Thresholds) -> bool:
    """Whether somebody has to act, regardless of decisions: it is full, or likely to be full soon."""
    return severity_of(runway, thresholds) in {Severity.FULL, Severity.ACT}


def _view(name: str) -> sa.TableClause:
    """Return one of the two views, which have the same columns."""
    kinds = {"volumes": sa.ARRAY(sa.Text)}
    return sa.table(name, *(sa.column(column.name, kinds.get(column.name)) for column in RUNWAY_VIEW.columns))


_NEWEST, _ISSUED = _view(RUNWAY_VIEW.name).alias("r"), _view(ISSUED_RUNWAYS_VIEW.name)
_PLANNED = ("planned_from", "planned_limit_mb", "planned_full_early", "planned_full_middle", "planned_full_late")
_ENDS = {days: [f"{end}_{days}_days_mb" for end in ("lower", "forecast", "upper")] for days in HORIZONS_DAYS}
_OWN = [
    attribute.name
    for attribute in fields(StoredRunway)
    if attribute.name in {column.name for column in RUNWAY_VIEW.columns}
]


def _issued_on(day: date | None) -> sa.Subquery:
    """Return the forecasts of a day with the columns of the view; None: no forecast."""
    return sa.select(_ISSUED).where(_ISSUED.c.as_of == day).subquery("r")


def _select(source: sa.FromClause) -> sa.Select[Any]:
    names = (*_OWN, *_PLANNED, *(name for ends in _ENDS.values() for name in ends))
    return sa.select(*(source.c[name] for name in names))


def _runways(
    connection: sa.Connection, today: date, chosen: sa.Select[Any] | sa.CompoundSelect[Any]
) -> list[StoredRunway]:
    stored = rows(connection, chosen)
    decisions = open_decisions(connection, today, [*{row.server_id for row in stored}]) if stored else None
    runways = []
    for row in stored:
        values = row._mapping  # noqa: SLF001 -- SQLAlchemy's public name
        runways.append(
            StoredRunway(
                **{name: values[name] for name in _OWN},
                ahead=_ahead(values),
                planned=PlannedRunway(*(values[name] for name in _PLANNED)) if row.planned_from else None,
                decision=decisions.on(row) if decisions else None,
            )
        )
    return runways


def _ahead(values: sa.RowMapping) -> list[ForecastDay]:
    """Return the known sizes at the horizons, from the columns of a row."""
    bands = {days: [values[name] for name in ends] for days, ends in _ENDS.items()}
    return [
        ForecastDay(values["last_day"] + timedelta(days=days), *band)
        for days, band in bands.items()
        if None not in band
    ]


def forecast_of_group(
    connection: sa.Connection, grouped_by: str, name: str | None, today: date
) -> GroupSizeForecast | None:
    """Return the newest forecast of a group, if it is of the last month; `name` None: databases without the label."""
    statement = """
        SELECT * FROM capacity_group_forecasts
        WHERE grouped_by = :by AND group_name IS NOT DISTINCT FROM CAST(:name AS text) AND as_of > :stale"""
    forecasts = rows(connection, statement, by=grouped_by, name=name, stale=today - timedelta(days=STALE_DAYS))
    if not forecasts:
        return None
    row = forecasts[0]
    return GroupSizeForecast(row.last_day, row.size_mb, row.change_mb_per_day, _ahead(row._mapping))  # noqa: SLF001 -- SQLAlchemy's public name


_R = _NEWEST.c
_SERVERS = sa.table("capacity_servers", sa.column("server_id"), sa.column("server"))


def fills_first(  # noqa: PLR0913 -- which part of which issue
    connection: sa.Connection,
    today: date,
    *,
    shown: int,
    skipped: int = 0,
    server: str | None = None,
    as_of: date | None = None,
) -> list[StoredRunway]:
    """Return what fills within a year, of all servers or of one, earliest first; by the newest issue or that of a day.

    If a volume or server limits several databases, only the volume or server is listed.
    """
    # An index has the order of the dates of a day; those of one server are few.
    is_newest = server is not None and as_of is None
    source = _NEWEST if is_newest else _issued_on(as_of or forecast_day(connection))
    of = source.c
    chosen = _select(source).where(of.stands_for_itself, of.full_middle.is_not(None))
    if server is not None:
        # By its number, because the condition on the name is checked after what stands for itself.
        named = sa.select(_SERVERS.c.server_id).where(_SERVERS.c.server == server)
        chosen = chosen.where(of.server_id == named.scalar_subquery())
    in_order = chosen.order_by(of.full_middle, of.server, of.name, of.subject)
    return _runways(connection, today, in_order.limit(shown).offset(skipped))


def runways_of(connection: sa.Connection, today: date, keys: Collection[tuple[int, str, str]]) -> list[StoredRunway]:
    """Return the newest forecasts of subjects, earliest fill date first; those without one are left out."""
    runways = _runways_of_keys(connection, today, _NEWEST, keys)
    return sorted(runways, key=lambda runway: (runway.full_middle or date.max, runway.server, runway.name))


def _runways_of_keys(
    connection: sa.Connection, today: date, source: sa.FromClause, keys: Collection[tuple[int, str, str]]
) -> list[StoredRunway]:
    """Return the forecasts of subjects; those without one are left out."""
    if not keys:
        return []
    chosen = _of_keys(source, keys, on_nodes=tables_are_distributed(connection))
    return [runway for runway in _runways(connection, today, chosen) if runway.key in keys]


def newest_runways(
    connection: sa.Connection, today: date, labels: Collection[tuple[str, str | None]] = (), *, most_databases: int
) -> list[StoredRunway]:
    """Return the newest forecasts of all servers and volumes, and of the largest databases with one of the labels.

    A label is a key and a value; a value of None takes every value of the key.
    """
    held = sa.type_coerce(_R.labels, JSONB)
    labelled = [held[key].astext.is_not(None) if value is None else held[key].astext == value for key, value in labels]
    of_servers = _select(_NEWEST).where(_R.subject != DATABASE).order_by(_R.server, _R.subject, _R.name)
    of_databases = _select(_NEWEST).where(_R.subject == DATABASE, sa.or_(sa.false(), *labelled))
    largest_first = of_databases.order_by(_R.size_mb.desc(), _R.server, _R.name).limit(most_databases)
    runways = _runways(connection, today, of_servers)
    return [*runways, *_runways(connection, today, largest_first)] if labels else runways


def runway_of(connection: sa.Connection, today: date, server_id: int, subject: str, name: str) -> StoredRunway | None:
    """Return the newest forecast of a server, database or volume; None: there is none."""
    return next(iter(runways_of(connection, today, [(server_id, subject, name)])), None)


def binding_of(connection: sa.Connection, today: date, runway: StoredRunway | None) -> StoredRunway | None:
    """Return what fills first: a database, the limit of its server or one of its volumes; None: no date is known."""
    if runway is None:
        return None
    chosen = _select(_NEWEST).where(_R.server_id == runway.server_id, _R.subject != DATABASE)
    return _earliest(_binding(runway, _runways(connection, today, chosen.order_by(_R.subject, _R.name))))


def _binding(runway: StoredRunway, shared: Sequence[StoredRunway]) -> list[StoredRunway]:
    """Return a forecast and those of its shared space: server and volumes of a database, volumes of a server."""
    if runway.subject == SERVER:
        return [runway, *(stored for stored in shared if stored.subject == VOLUME)]
    own = [stored for stored in shared if stored.subject == SERVER and stored.binds == OWN_LIMIT]
    volumes = [stored for stored in shared if stored.subject == VOLUME and stored.name in (runway.volumes or ())]
    return [runway, *own, *volumes]


def _earliest(runways: Sequence[StoredRunway]) -> StoredRunway | None:
    dated = [runway for runway in runways if runway.full_middle is not None]
    return min(dated, key=lambda runway: (runway.full_middle, runway.full_early), default=None)


def first_on_server(
    connection: sa.Connection, today: date, server_id: int
) -> tuple[StoredRunway | None, StoredRunway | None]:
    """Return what fills first on a server and, if that is a database, which disk or limit of the server does."""
    first = _first_on_servers(connection, today, [server_id]).get(server_id)
    if first is None or first.subject != DATABASE:
        return first, None
    return first, _first_on_servers(connection, today, [server_id], (SERVER, VOLUME)).get(server_id)


def bound_by_volume(
    connection: sa.Connection, today: date, server_id: int, volume: str, *, shown: int
) -> list[StoredRunway]:
    """Return the databases that a volume limits, the largest first."""
    on_it = sa.or_(_R.volumes.is_(None), sa.literal(volume) == sa.any_(_R.volumes))
    of_server = _select(_NEWEST).where(_R.server_id == server_id, _R.subject == DATABASE, _R.binds == VOLUME_LIMIT)
    return _runways(connection, today, of_server.where(on_it).order_by(_R.size_mb.desc(), _R.name).limit(shown))


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The outlook of a server or database in a list: its recent sizes, MiB, and the limit that it reaches first.

    A volume or server is used by all databases on it.
    """

    recent: Sequence[int | None] = ()
    """Sizes in the last windows up to that of the list, oldest first; None: not measured."""
    limit_mb: int | None = None
    """The limit that it reaches first: its own, or that of a volume or server; None: unknown."""
    limit_used_mb: int | None = None
    """Used part of that limit, including other databases on the same volume or server."""
    limit_used_percent: float | None = None
    limit_subject: str | None = None
    """The kind of subject with the limit: database, server or volume."""
    limit_name: str | None = None
    limit_severity: Severity | None = None
    """How urgent the forecast of that limit is; None: not urgent, or a decision excludes it."""
    full_by: date | None = None
    """Day by which it is full with a probability of 50 %; None: not within a year, or unknown."""
    forecast_state: str | None = None
    """State of its newest forecast; None: there is none."""
    full_subject: str | None = None
    """The kind of subject with the date; for a server, this may be a database on it."""
    full_name: str | None = None
    severity: Severity | None = None
    decision: str | None = None
    """The decision on what fills, in a few words; None: no decision excludes it from check and alerts."""


def usages_of(
    connection: sa.Connection, today: date, subjects: Sequence[tuple[int, str]], thresholds: Thresholds
) -> dict[tuple[int, str], Usage]:
    """Return the usage of servers (empty name) and databases with a forecast, by server and name."""
    named = [(server, DATABASE, name) for server, name in subjects if name]
    servers = sa.literal(sorted({server for server, _ in subjects}), sa.ARRAY(sa.Integer))
    of_servers = _select(_NEWEST).where(_R.server_id == sa.any_(servers), _R.subject.in_([SERVER, VOLUME]))
    of_databases = _of_keys(_NEWEST, named, on_nodes=tables_are_distributed(connection))
    shared: dict[int, list[StoredRunway]] = {}
    own: dict[tuple[int, str], StoredRunway] = {}
    for runway in _runways(connection, today, of_servers.union_all(of_databases)):
        if runway.subject != VOLUME:
            own[runway.server_id, runway.name] = runway
        if runway.subject != DATABASE:
            shared.setdefault(runway.server_id, []).append(runway)
    first_on = _first_on_servers(connection, today, [server for server, name in subjects if not name])
    usages = {}
    for server, name in (subject for subject in subjects if subject in own):
        binding = _binding(own[server, name], shared.get(server, ()))
        first = _earliest(binding) if name else first_on.get(server)
        usages[server, name] = _usage(own[server, name].state, binding, first, thresholds)
    return usages


def _first_on_servers(
    connection: sa.Connection,
    today: date,
    servers: Sequence[int],
    subjects: Sequence[str] = (SERVER, VOLUME, DATABASE),
) -> dict[int, StoredRunway]:
    """Return which subject of these kinds fills first on each server; those without a fill date are left out."""
    if not servers:
        return {}
    first_rows = rows(connection, _FIRST_ON_SERVERS, servers=[*servers], subjects=[*subjects])
    runways = _runways_of_keys(connection, today, _NEWEST, [_key(row) for row in first_rows])
    return {runway.server_id: runway for runway in runways}


# On the same day, a volume comes before a server or database.
_FIRST_ON_SERVERS = """
SELECT DISTINCT ON (server_id) server_id, subject, name FROM capacity_runway
WHERE server_id = ANY (CAST(:servers AS integer[])) AND subject = ANY (CAST(:subjects AS text[]))
  AND full_middle IS NOT NULL AND stands_for_itself
ORDER BY server_id, full_middle, full_early, subject DESC, name
"""


def _of_keys(source: sa.FromClause, keys: Collection[tuple[int, str, str]], *, on_nodes: bool) -> sa.Select[Any]:
    servers, subjects, names = ([key[place] for key in keys] for place in range(3))
    every: list[sa.ColumnElement[Any]] = [sa.literal(servers, sa.ARRAY(sa.Integer))]
    every += [sa.literal(values, sa.ARRAY(sa.Text)) for values in (subjects, names)]
    columns = [source.c.server_id, source.c.subject, source.c.name]
    if on_nodes:
        # On distributed rows, a subquery must not depend on the outer query. The caller ignores other subjects.
        return _select(source).where(
            *(column == sa.any_(values) for column, values in zip(columns, every, strict=True))
        )
    key = sa.func.unnest(*every).table_valued("server_id", "subject", "name").render_derived("k")
    of_key = _select(source).where(*(column == key.c[column.name] for column in columns)).limit(1)
    return sa.select(of_key.lateral("of_key")).select_from(key)


def _usage(state: str, binding: Sequence[StoredRunway], first: StoredRunway | None, thresholds: Thresholds) -> Usage:
    """Return the usage by what may bind and by what fills first."""
    # Free space below a shared limit is not its own limit; the use of the volume or server is shown.
    limited = [runway for runway in binding if runway.limit_mb is not None and not runway.is_shared]
    by_use = max(limited, key=lambda runway: runway.size_mb / max(runway.limit_mb or 0, 1), default=None)
    shown = first if first in limited else by_use
    values: dict[str, Any] = {"forecast_state": state}
    if shown is not None:
        values |= {"limit_mb": shown.limit_mb, "limit_used_mb": shown.size_mb}
        values |= {"limit_subject": shown.subject, "limit_name": shown.name}
        values["limit_used_percent"] = 100 * shown.size_mb / shown.limit_mb if shown.limit_mb else None
        values["limit_severity"] = open_severity_of(shown, thresholds)
    if first is not None:
        values |= {"full_by": first.full_middle, "full_subject": first.subject, "full_name": first.name}
        values["severity"] = severity_of(first, thresholds)
        values["decision"] = first.decision.mark if first.decision and is_left_out(first.decision) else None
    return Usage(**values)


def stored_fill_days(connection: sa.Connection) -> dict[SubjectKey, date]:
    """Return the fill dates of subjects; databases limited by a shared disk or server are left out."""
    dated = sa.select(_R.server_id, _R.subject, _R.name, _R.full_middle)
    dated = dated.where(_R.stands_for_itself, _R.full_middle.is_not(None))
    return {_key(row): row.full_middle for row in rows(connection, dated)}


def outdated_servers(connection: sa.Connection) -> list[str]:
    """Return the servers whose limits, steps or plans changed after the newest issue."""
    chosen = sa.select(_R.server).where(_R.is_outdated).distinct().order_by(_R.server)
    return [row.server for row in rows(connection, chosen)]


def median_database_mb(connection: sa.Connection) -> int | None:
    """Return the median size of the databases with a forecast, MiB; None: there is none."""
    median = sa.func.percentile_disc(0.5).within_group(_R.size_mb)
    size_mb: int | None = connection.execute(sa.select(median).where(_R.subject == DATABASE)).scalar()
    return size_mb


def forecast_day(connection: sa.Connection) -> date | None:
    """Return the day of the newest issue; None: there is none."""
    # All rows are of the same day, and max() would read all of them.
    day: date | None = connection.execute(sa.select(_R.as_of).limit(1)).scalar()
    return day


def forecasts_revision(connection: sa.Connection) -> tuple[object, ...]:
    """Return values that change when forecasts are issued, or what they or the figures of groups follow is declared."""
    day = forecast_day(connection)
    # The time of the newest one is read from an index, because there are many, and this is read every few seconds.
    newest = sa.select(_ISSUED.c.issued_at).where(_ISSUED.c.as_of == day).order_by(_ISSUED.c.issued_at.desc()).limit(1)
    declared = (value for statement in _DECLARED for value in rows(connection, statement)[0])
    return (day, connection.execute(newest).scalar(), *declared)


_DECLARED = (
    "SELECT count(*) AS number, max(declared_at) AS newest FROM capacity_label_spans",
    "SELECT count(*) AS number, max(declared_at) AS newest FROM capacity_prices",
    "SELECT count(*) AS number, max(declared_at) AS newest FROM capacity_budgets",
    "SELECT count(*) AS number, max(declared_at) AS newest FROM capacity_declared_limits",
    "SELECT count(*) AS number, max(declared_at) AS newest FROM capacity_declared_steps",
    "SELECT count(*) AS number, max(greatest(declared_at, closed_at)) AS newest FROM capacity_declared_decisions",
)


@dataclass(frozen=True)
class FreeCapacity:
    """Free space of volumes, and of servers without known volumes, MiB; None: no limit is known."""

    headroom_mb: int | None
    unknown_limits: int
    """Databases without a known limit."""
    fills_soon: int
    """Number of subjects that need action by the thresholds."""
    judged: int
    """Forecasts of what has a known limit and enough history; 0: none says that nothing fills."""
    too_little_history: int
    """Number of databases with a known limit and too few measured days for a fill date."""
    history_days: int | None
    """Most measured days of these; None: there are none."""
    as_of: date | None
    """Day of the newest forecasts; None: none was issued, so none of this is known."""


def free_capacity(connection: sa.Connection, thresholds: Thresholds) -> FreeCapacity:
    """Return the free capacity by the newest forecasts."""
    probability = _R[f"probability_{thresholds.days}_days"]
    is_soon = sa.and_(probability >= thresholds.act_percent / 100, _R.stands_for_itself)
    fills_soon, as_of = sa.func.count().filter(is_soon).label("fills_soon"), sa.func.max(_R.as_of).label("as_of")
    judged = sa.func.count().filter(_R.state.in_([FORECAST, FULL])).label("judged")
    is_young = sa.and_(_R.subject == DATABASE, _R.state == TOO_LITTLE_HISTORY)
    young = sa.func.count().filter(is_young).label("too_little_history")
    days = sa.func.max(_R.history_days).filter(is_young).label("history_days")
    [counts] = rows(connection, sa.select(_unknown_limits(_NEWEST), fills_soon, judged, young, days, as_of))
    return FreeCapacity(_headroom(connection, _NEWEST), **counts._mapping)  # noqa: SLF001 -- SQLAlchemy's public name


def _unknown_limits(source: sa.FromClause, server: str | None = None) -> sa.Label[int]:
    """Count databases without a known limit, including replicas, because their disks fill as well."""
    of = source.c
    is_chosen = sa.true() if server is None else of.server == server
    number = sa.func.count().filter(of.subject == DATABASE, of.state == LIMIT_UNKNOWN, is_chosen)
    return number.label("unknown_limits")


def _headroom(connection: sa.Connection, source: sa.FromClause, server: str | None = None) -> int | None:
    """Return the free space of volumes and, for servers without volumes, up to their own limit, MiB.

    Full ones count as 0; those without a known limit are left out, and so are servers with more than 8 EiB of free
    space, which is impossible. None: no limit is known.
    """
    of = source.c
    is_chosen = of.counted if server is None else of.server == server
    chosen = sa.select(of.server_id, of.subject, of.headroom_mb).where(of.subject != DATABASE, is_chosen)
    left_over = chosen.cte("left_over")
    own, volume = left_over.alias("l"), left_over.alias("v")
    has_volumes = sa.exists().where(volume.c.server_id == own.c.server_id, volume.c.subject == VOLUME)
    free_mb = sa.func.sum(sa.func.greatest(own.c.headroom_mb, 0))
    of_servers = (
        sa.select(free_mb.label("free_mb"))
        .where(own.c.headroom_mb.is_not(None), sa.or_(own.c.subject == VOLUME, ~has_volumes))
        .group_by(own.c.server_id)
        .having(free_mb <= LARGEST_MB)
        .subquery("of_servers")
    )
    total = sa.select(sa.func.sum(of_servers.c.free_mb))
    # A separate query: on distributed rows, a subquery may not be combined with an aggregate.
    headroom_mb = connection.execute(total).scalar()
    return None if headroom_mb is None else int(headroom_mb)


@dataclass(frozen=True)
class ForecastIssue:
    """The forecasts that were issued on a day."""

    as_of: date
    issued_at: datetime
    """When the newest of them was computed."""
    is_outdated: bool
    """Whether limits, steps or plans were declared or removed since."""
    risks: Sequence[StoredRunway]
    """What is full within a year with 10 % probability or more, greatest risk first; shared space is listed once."""
    headroom_mb: int | None
    """Free space of volumes and, for servers without volumes, up to their own limit; None: no limit is known."""
    unknown_limits: int
    """Databases without a known limit."""
    scores: Sequence[Accuracy]
    """Scores of the forecasts that came due in the chosen days, by horizon."""
    fills_first: Sequence[StoredRunway] = ()
    """What has a fill date, the earliest first, as `fills_first` returns it."""
    histories: Mapping[tuple[int, str, str], Mapping[date, int]] = field(default_factory=dict)
    """Sizes of `fills_first` by day in the last HISTORY_SHOWN_DAYS; `with_histories` adds them."""


def newest_issue(  # noqa: PLR0913 -- which issue, and which part of it
    connection: sa.Connection,
    first: date,
    last: date,
    server: str | None = None,
    *,
    shown: int,
    dated: int = 0,
    today: date,
) -> ForecastIssue | None:
    """Return the newest issue from `first` to `last`, of all servers or one; None: there is none. Raises DBAPIError.

    It has the `shown` greatest risks and the first `dated` fill dates.
    """
    as_of = newest_day_of_issue(connection, first, last)
    if as_of is None:
        return None
    source = _issued_on(as_of)
    issued_at, is_outdated = sa.func.max(source.c.issued_at), sa.func.bool_or(source.c.is_outdated)
    facts = sa.select(issued_at.label("issued_at"), is_outdated.label("is_outdated"), _unknown_limits(source, server))
    return ForecastIssue(
        as_of=as_of,
        **rows(connection, facts)[0]._mapping,  # noqa: SLF001 -- SQLAlchemy's public name
        risks=greatest_risks(connection, as_of, today, server, shown=shown) if shown else (),
        fills_first=fills_first(connection, today, shown=dated, server=server, as_of=as_of) if dated else (),
        headroom_mb=_headroom(connection, source, server),
        scores=scores_of(connection, first, last, server),
    )


def recent_issue(engine: sa.Engine, today: date, *, shown: int = MOST_RISKS) -> ForecastIssue | None:
    """Return the newest issue of the last month, of all servers; None: there is none. Raises DatabaseError."""
    with database_errors(doing="reading runways"), engine.connect() as connection:
        return newest_issue(connection, today - timedelta(days=STALE_DAYS), today, shown=shown, today=today)


def issue_of(engine: sa.Engine, as_of: date, today: date, *, dated: int = 0) -> ForecastIssue | None:
    """Return the issue of a day with the first `dated` fill dates; None: there is none. Raises DatabaseError."""
    with database_errors(doing="reading runways"), engine.connect() as connection:
        return newest_issue(connection, as_of, as_of, shown=MOST_RISKS, dated=dated, today=today)


def figures_of(issue: ForecastIssue | None) -> dict[str, object]:
    """Return the figures of an issue as flat plain values, as metadata has them."""
    if issue is None:
        return {"unknown_limits": 0}
    headroom = {} if issue.headroom_mb is None else {"headroom_mb": issue.headroom_mb}
    scores = {key: value for accuracy in issue.scores for key, value in accuracy.to_dict().items()}
    return {"unknown_limits": issue.unknown_limits, **headroom, **scores}


def newest_day_of_issue(connection: sa.Connection, first: date, last: date) -> date | None:
    """Return the day of the newest issue in a range of days; None: there is none."""
    issued = _ISSUED.c.as_of
    newest: date | None = connection.execute(
        sa.select(issued).where(issued.between(first, last)).order_by(issued.desc()).limit(1)
    ).scalar()
    return newest


def greatest_risks(
    connection: sa.Connection, as_of: date, today: date, server: str | None = None, *, shown: int
) -> list[StoredRunway]:
    """Return what is full within a year with 10 % probability or more by the issue of a day, greatest risk first."""
    source = _issued_on(as_of)
    chosen = _select(source).where(source.c.full_early.is_not(None), source.c.stands_for_itself)
    if server is not None:
        chosen = chosen.where(source.c.server == server)
    probabilities = (source.c[f"probability_{days}_days"].desc() for days in RISK_DAYS)
    in_order = chosen.order_by(*probabilities, source.c.full_early, source.c.server, source.c.name)
    return _runways(connection, today, in_order.limit(shown))


WITHIN_DAYS, MOVED_DAYS = 180, 14
"""In the digest a fill date has moved if it differs by MOVED_DAYS, and one of the two is within WITHIN_DAYS.

A new date counts as sooner; a date that is no longer within a year counts as later.
"""


@dataclass(frozen=True)
class FillDateChange:
    """A fill date by the newest forecasts of a window, and `before`, at its beginning; None: not within a year."""

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

    @property
    def days_moved(self) -> float:
        """By how many days it is later than before; infinite from or to beyond a year."""
        if self.day is None:
            return inf
        return -inf if self.before is None else (self.day - self.before).days


@dataclass(frozen=True)
class FillDateChanges:
    """What fills soon, and what fills sooner or later than in an earlier forecast."""

    soon: Sequence[FillDateChange] = ()
    """Subjects to watch or act on, most probable first."""
    sooner: Sequence[FillDateChange] = ()
    later: Sequence[FillDateChange] = ()
    decided: int = 0
    """Number of fill dates that decisions leave out."""
    as_of: date | None = None
    """Day of the forecasts; None: none was issued, so nothing is known."""
    compared_as_of: date | None = None
    """Day of the earlier forecasts; None: there are none."""


def moved_fill_dates(  # noqa: PLR0913, PLR0917 -- of what, when, and how it is judged
    connection: sa.Connection,
    first: date,
    last: date,
    label: tuple[str, str] | None,
    thresholds: Thresholds,
    today: date,
    *,
    moved_days: int = MOVED_DAYS,
    within_days: int = WITHIN_DAYS,
    with_soon: bool = True,
) -> FillDateChanges:
    """Return the fill dates of the fleet or of a label, by the newest issue of a window or of the day after it.

    They are compared with the newest issue of the seven days up to the first day of the window. Subjects that decisions
    exclude are only counted. Without `with_soon`, what fills soon is not read.
    """
    newest = newest_day_of_issue(connection, first, last + timedelta(days=1))
    if newest is None:
        return FillDateChanges()
    older = newest_day_of_issue(connection, first - timedelta(days=7), first)
    if older == newest:
        older = None
    days = {"older": older, "newest": newest, "latest": newest + timedelta(days=within_days), "moved_days": moved_days}
    before = {_key(row): row.before for row in rows(connection, _MOVED, **days)} if older else {}
    forecasts = _runways_of_keys(connection, today, _issued_on(newest), before)
    if with_soon:
        forecasts += [
            runway for runway in _to_be_watched(connection, newest, today, thresholds) if runway.key not in before
        ]
    # Without a date, only subjects known not to fill within a year count as later.
    is_dated = (runway.full_middle is not None or runway.state in {FORECAST, NO_LIMIT} for runway in forecasts)
    runways = [runway for runway, dated in zip(forecasts, is_dated, strict=True) if dated and runway.stands_for_itself]
    if label is not None:
        subjects = {
            runway.key: (runway.server, runway.name if runway.subject == DATABASE else None) for runway in runways
        }
        labelled = read_labels(connection, list(dict.fromkeys(subjects.values())), newest, label=label)
        runways = [runway for runway in runways if subjects[runway.key] in labelled]
    runways.sort(key=lambda runway: (runway.full_middle or date.max, runway.server, runway.name))
    dates = [
        FillDateChange(
            *(
                runway.server_id,
                runway.server,
                runway.subject,
                runway.name,
                runway.display_name,
                runway.full_middle,
                before.get(runway.key),
            ),
            probability=runway.probability_within(thresholds.days) or 0.0,
            severity=severity_of(runway, thresholds),
        )
        for runway in runways
        if not is_left_out(runway.decision)
    ]
    moved = [change for change in dates if SubjectKey(change.server_id, change.subject, change.name) in before]
    return FillDateChanges(
        sorted((change for change in dates if change.severity), key=lambda change: -change.probability)
        if with_soon
        else (),
        [change for change in moved if change.days_moved < 0],
        [change for change in moved if change.days_moved > 0],
        len(runways) - len(dates),
        newest,
        older,
    )


# Only fill dates are compared, by their index: there are many, and few of them have moved.
_MOVED = """
SELECT server_id, subject, name, b.full_middle AS before
FROM (SELECT server_id, subject, name, full_middle FROM capacity_issued_runways
      WHERE as_of = :newest AND full_middle IS NOT NULL) AS n
FULL JOIN (SELECT server_id, subject, name, full_middle FROM capacity_issued_runways
           WHERE as_of = :older AND full_middle IS NOT NULL) AS b USING (server_id, subject, name)
WHERE n.full_middle <= :latest AND (b.full_middle IS NULL OR b.full_middle - n.full_middle >= :moved_days)
   OR b.full_middle <= :latest AND (n.full_middle IS NULL OR n.full_middle - b.full_middle >= :moved_days)
"""


def _to_be_watched(connection: sa.Connection, as_of: date, today: date, thresholds: Thresholds) -> list[StoredRunway]:
    """Return subjects that are full, or to be watched, by the issue of a day."""
    source = _issued_on(as_of)
    is_probable = source.c[f"probability_{thresholds.days}_days"] >= thresholds.watch_percent / 100
    is_urgent = sa.or_(is_probable, source.c.state == FULL)
    return _runways(connection, today, _select(source).where(source.c.stands_for_itself, is_urgent))


HISTORY_SHOWN_DAYS = 180


def with_histories(connection: sa.Connection, issue: ForecastIssue) -> ForecastIssue:
    """Return an issue with the histories of what fills first, which should be few; raises DBAPIError."""
    days = [issue.as_of - timedelta(days=back) for back in range(HISTORY_SHOWN_DAYS + 1)]
    used = [runway.key for runway in issue.fills_first if runway.allocated_mb is not None]
    histories = sizes_by_day(connection, [runway.key for runway in issue.fills_first], days, used)
    return replace(issue, histories=histories)


@dataclass(frozen=True)
class EarlierForecast:
    """A forecast that was issued a horizon ago, and the size measured since."""

    horizon_days: int
    as_of: date
    state: str
    middle_day: date | None
    forecast_mb: int | None
    actual_mb: int | None


def earlier_forecasts(connection: sa.Connection, runway: Runway) -> list[EarlierForecast]:
    """Return the newest forecasts of a subject that are a horizon old, by horizon; raises DBAPIError."""
    runways, issues = capacity_runways.c, capacity_runways.alias("issues").c
    number = sa.select(instances.c.id).where(instances.c.name == runway.server).scalar_subquery()
    forecasts = []
    for days in HORIZONS_DAYS:
        until = runway.last_day - timedelta(days=days)
        is_recent = sa.and_(issues.as_of <= until, issues.as_of > until - timedelta(days=STALE_DAYS))
        sizes = (runways[f"forecast_{days}_mb"], runways[f"actual_{days}_mb"])
        forecasts.append(
            sa.select(sa.literal(days), runways.as_of, runways.state, runways.middle_day, *sizes).where(
                runways.instance_id == number,
                runways.subject == runway.subject,
                runways.name == runway.name,
                runways.as_of == sa.select(sa.func.max(issues.as_of)).where(is_recent).scalar_subquery(),
            )
        )
    return [EarlierForecast(*row) for row in connection.execute(sa.union_all(*forecasts))]
