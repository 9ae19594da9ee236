"""Scenarios: runways with assumptions, compared with those without them, the base case. Nothing is stored here.

An assumption changes sizes or limits from a day on. It changes single databases; their server, volumes and groups
change by the sum. Everything that no assumption touches equals the base case. The rules are in docs/forecast.md,
"Scenarios".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import BeforeValidator, Field
from sqlalchemy import Connection, Engine

from capacity_assets.base.declarations import (
    NO_OTHER_NAMES,
    Day,
    change_mb_of_gb,
    declaration,
    key_and_value,
    mb_of_gb,
    number_of,
    read_each,
    toml_document,
)
from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors, refuse
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import first_of, human_change_mb, human_day, human_mb, suggestion
from capacity_assets.forecast import history
from capacity_assets.forecast.history import LimitedSubject
from capacity_assets.forecast.model import (
    NOT_WITHIN_HORIZON,
    FillDays,
    SizeForecasts,
    Sizes,
    compute_fill_days,
    forecast,
    with_growth,
)
from capacity_assets.forecast.results import (
    DATABASE,
    DAY_PROBABILITIES,
    SERVER,
    SERVER_LIMIT,
    VOLUME,
    VOLUME_LIMIT,
    Runway,
    RunwayList,
    least_risks,
)
from capacity_assets.forecast.runway import (
    BatchRunways,
    BindingLimit,
    Plans,
    binding_limits,
    coming_plans,
    limits_of,
    raised_limit,
    runway_rows,
    runways_of_batch,
    with_plans,
)

Subject: TypeAlias = tuple[str, str]
"""A server and a database of it."""
LabelFilter: TypeAlias = Callable[[Sequence[Subject], tuple[str, str]], Collection[Subject]]
"""A function that returns which of some databases have a label (key, value) today; empty value: those without this
label."""

MOST_FACTOR = 1000


class ContradictionError(ValidationError):
    """Valid assumptions that contradict each other or the measured sizes."""


def _factor(written: object) -> Decimal:
    factor = number_of(written)
    if factor.is_nan():
        instead = str(written).strip().replace(",", ".")
        example = "a factor such as 1.2" if number_of(instead).is_nan() else instead
        raise ValidationError(f"{written!r} is not a number; write {example}.")
    if factor > MOST_FACTOR:
        # A float that is too large for Python has become infinite.
        raise ValidationError(f"The factor is too large; the largest is {MOST_FACTOR:,}.")
    if not 0 <= factor <= MOST_FACTOR:
        raise ValidationError(f"{written!r} is not a factor from 0 to {MOST_FACTOR:,}.")
    return factor


def _label(written: object) -> tuple[str, str]:
    return key_and_value(str(written))


SizeMb = Annotated[int, BeforeValidator(mb_of_gb), Field(validation_alias="gb", examples=["300"])]
AtOnce = Annotated[Day | None, Field(default=None)]
"""A day; None: today."""


@dataclass(frozen=True)
class Growth:
    """A factor for the forecast growth of databases: those with a label, those of a server, one, or all."""

    __pydantic_config__ = NO_OTHER_NAMES

    factor: Annotated[Decimal, BeforeValidator(_factor), Field(examples=["1.2"])]
    label: Annotated[tuple[str, str] | None, BeforeValidator(_label)] = None
    server: str | None = None
    database: str | None = None

    @property
    def text(self) -> str:
        """The assumption as people read it."""
        on = f" on {self.server}" if self.server else ""
        of = f"{self.database}{on}" if self.database else self.server
        if self.label:
            key, value = self.label
            of = f"{key}={value}" if value else f"everything without {key}"
        return f"growth of {of or 'everything'} times {self.factor}"


@dataclass(frozen=True)
class NewDatabase:
    """A new database on a server or, without a server, one on each, to see where it fits."""

    __pydantic_config__ = NO_OTHER_NAMES

    size_mb: SizeMb
    server: str | None = None
    database: str = "new database"
    volume: str | None = None
    day: AtOnce = None
    growth_mb_per_month: Annotated[int, BeforeValidator(mb_of_gb), Field(validation_alias="growth_gb_per_month")] = 0

    @property
    def text(self) -> str:
        """The assumption as people read it."""
        grows = f", growing by {human_mb(self.growth_mb_per_month)} per month" if self.growth_mb_per_month else ""
        where = self.server or "each server"
        return f"{self.database} of {human_mb(self.size_mb)} on {where}{_from(self.day)}{grows}"


@dataclass(frozen=True)
class Purge:
    """A decrease of a database."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str
    database: str
    size_mb: SizeMb
    day: AtOnce = None

    @property
    def text(self) -> str:
        """The assumption as people read it."""
        return f"{human_mb(self.size_mb)} less in {self.database} on {self.server}{_from(self.day)}"


@dataclass(frozen=True)
class LimitChange:
    """A limit of a server, database or volume: `gb`, or a change by `add_gb`; without a server, all limits."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str | None = None
    database: str | None = None
    volume: str | None = None
    limit_mb: Annotated[int | None, BeforeValidator(mb_of_gb), Field(validation_alias="gb")] = None
    add_mb: Annotated[int | None, BeforeValidator(change_mb_of_gb), Field(validation_alias="add_gb")] = None
    day: AtOnce = None

    def __post_init__(self) -> None:
        """Refuse both sizes or neither, a size for all limits, and two subjects."""
        what = f"disk {self.volume}" if self.volume else f"database {self.database}"
        is_for_all = self.server is None
        refuse(
            ((self.limit_mb is None) == (self.add_mb is None), "A limit has either gb or add_gb."),
            (is_for_all and (self.database or self.volume), f"Name the server of {what}."),
            (is_for_all and self.limit_mb is not None, "A limit needs a server; only add_gb may be for every limit."),
            (self.database and self.volume, "A limit is that of a database or of a volume."),
        )

    @property
    def text(self) -> str:
        """The assumption as people read it."""
        what = f"{self.database or f'disk {self.volume}'} on " if self.database or self.volume else ""
        of = f"limit of {what}{self.server}" if self.server else "every limit"
        to = f"{human_change_mb(self.add_mb or 0)}" if self.limit_mb is None else human_mb(self.limit_mb)
        return f"{of}: {to}{_from(self.day)}"


@dataclass(frozen=True)
class Move:
    """A database that moves to another server, with its growth."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str
    database: str
    to: str
    day: AtOnce = None
    volume: str | None = None
    """Its volume on the other server."""

    @property
    def text(self) -> str:
        """The assumption as people read it."""
        return f"{self.database} moves from {self.server} to {self.to}{_from(self.day)}"


def _from(day: date | None) -> str:
    return "" if day is None else f" from {human_day(day)}"


@dataclass(frozen=True)
class Scenario:
    """A set of assumptions."""

    growth: Sequence[Growth] = ()
    new_database: Sequence[NewDatabase] = ()
    purge: Sequence[Purge] = ()
    limit: Sequence[LimitChange] = ()
    move: Sequence[Move] = ()

    @property
    def texts(self) -> list[str]:
        """The assumptions as people read them."""
        return [assumption.text for kind in fields(self) for assumption in getattr(self, kind.name)]

    @property
    def servers(self) -> set[str]:
        """Names of the servers in its assumptions."""
        every: tuple[Growth | NewDatabase | Purge | LimitChange | Move, ...]
        every = (*self.growth, *self.new_database, *self.purge, *self.limit, *self.move)
        return {change.server for change in every if change.server} | {move.to for move in self.move}

    @property
    def is_of_all(self) -> bool:
        """Whether an assumption concerns every server."""
        additions: list[NewDatabase | LimitChange] = [*self.new_database, *self.limit]
        return any(change.server is None for change in additions) or any(
            growth.server is None and growth.label is None and growth.database is None for growth in self.growth
        )


KINDS_OF_ASSUMPTIONS: dict[str, type[Any]] = {
    "growth": Growth,
    "new_database": NewDatabase,
    "purge": Purge,
    "limit": LimitChange,
    "move": Move,
}


def scenario_of_file(path: Path) -> Scenario:
    """Read a TOML file with tables `[[growth]]`, `[[new_database]]`, `[[purge]]`, `[[limit]]` and `[[move]]`.

    Raises ValidationError, with all problems of all tables.
    """
    document = toml_document(path)
    unknown = [name for name in document if name not in KINDS_OF_ASSUMPTIONS]
    every = [tables if isinstance(tables, list) else [None] for tables in document.values()]
    if unknown or not all(isinstance(table, dict) for tables in every for table in tables):
        known = ", ".join(f"[[{name}]]" for name in KINDS_OF_ASSUMPTIONS)
        close = suggestion(unknown[0], KINDS_OF_ASSUMPTIONS) if unknown else ""
        raise ValidationError(f"{path} must contain only tables {known}.{close}")
    if not any(every):
        raise ValidationError(f"{path} assumes nothing: write at least one table, such as [[growth]].")
    return scenario_of_tables(document)


def scenario_of_tables(
    document: Mapping[str, Sequence[Mapping[str, Any]]], headings: Mapping[str, str] | None = None
) -> Scenario:
    """Read assumptions, as tables of values by kind; raises ValidationError with all problems.

    With `headings`, a problem begins with the heading of its kind, otherwise with the place of its table: `growth 1`.
    """
    entries = [
        (headings[name] if headings else f"{name} {number}", (name, values))
        for name, tables in document.items()
        for number, values in enumerate(tables, start=1)
    ]
    read = read_each(entries, lambda entry: (entry[0], declaration(KINDS_OF_ASSUMPTIONS[entry[0]], entry[1])))
    return Scenario(**{name: [assumed for kind, assumed in read if kind == name] for name in KINDS_OF_ASSUMPTIONS})


def higher_limits(add_gb: Decimal) -> Scenario:
    """Return the scenario in which all limits are higher by so many GiB."""
    return Scenario(limit=[declaration(LimitChange, {"add_gb": add_gb})])


def new_database_everywhere(gb: Decimal) -> Scenario:
    """Return the scenario with a new database of so many GiB on each server."""
    return Scenario(new_database=[declaration(NewDatabase, {"gb": gb})])


def no_label(_subjects: Sequence[Subject], _label: tuple[str, str]) -> Collection[Subject]:
    """Return no database: the LabelFilter of scenarios without labels."""
    return ()


@dataclass(frozen=True)
class Effect:
    """The effect of an assumption on a database: MiB on a day, and MiB per day after it."""

    server: str
    database: str
    volume: str | None
    """The volume of the database; None: not known, or several."""
    day: date
    size_mb: float
    mb_per_day: float
    of: Growth | NewDatabase | Purge | Move
    """The assumption."""


@dataclass(frozen=True)
class ScenarioComparison:
    """Runways without and with assumptions; `pairs` has both of each subject, greatest risk with assumptions first."""

    as_of: date | None
    base: RunwayList
    changed: RunwayList
    pairs: Sequence[tuple[Runway, Runway]] = ()
    effects: Sequence[Effect] = ()
    notes: Sequence[str] = ()
    """Assumptions that could only be applied in part."""
    unread: int = 0
    """Number of databases with a known limit that stand for themselves and do not change, and were not read."""


NOTHING_MEASURED = ScenarioComparison(None, RunwayList(None, (), 0, {}), RunwayList(None, (), 0, {}))
KINDS_IN_ORDER = (VOLUME, DATABASE, SERVER)


def compare(
    engine: Engine,
    today: date,
    scenario: Scenario,
    having: LabelFilter,
    shown: tuple[str | None, str | None] = (None, None),
) -> ScenarioComparison:
    """Compute runways without and with assumptions; stores nothing.

    `shown` are the server and the database to compare; None: all.

    Raises:
        NotFoundError: a database of an assumption is not in the newest sample of its server, or a server or volume is
            not measured.
        ValidationError: a day is already measured, or a database moves twice or to its own server.
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading sizes and limits"), engine.connect() as connection:
        as_of = history.newest_day(connection, today)
        if as_of is None:
            return NOTHING_MEASURED
        server, database = shown
        # Assumptions about databases also change other subjects, and apply to databases without a limit.
        names_servers = any(limit.server for limit in scenario.limit)
        reads_all = bool(scenario.growth or scenario.move or scenario.purge or scenario.new_database or names_servers)
        servers = None if server is None or reads_all else (server,)
        scope = history.HistoryScope(as_of, servers, None if reads_all else database, every=True)
        kinds = (DATABASE,) if database is not None and not reads_all else KINDS_IN_ORDER
        return compare_within(connection, scope, scenario, having, kinds=kinds, shown=shown)


def compare_within(  # noqa: PLR0913 -- what is read, and what is made of it
    connection: Connection,
    scope: history.HistoryScope,
    scenario: Scenario,
    having: LabelFilter,
    *,
    kinds: Sequence[str] = KINDS_IN_ORDER,
    shown: tuple[str | None, str | None] = (None, None),
    issued: Mapping[Subject, IssuedLimit] | None = None,
) -> ScenarioComparison:
    """Compare as `compare`, within a scope that includes everything the scenario names; raises DBAPIError.

    If the scenario `raises_only_limits`, `issued` may be the stored forecasts of databases by server and name. Then
    those that cannot change are not read.
    """
    plans = coming_plans(connection, scope.as_of)
    with history.open_history_reader(connection, scope, kinds) as reader:
        forecasts = _Forecasts(reader)
        measured = _measurements(forecasts, scenario, kinds)
        _refuse_unknown(scenario, measured)
        _refuse_contradictions(scenario, measured, scope.as_of)
        effects, notes = _effects(scenario, measured, having, scope.as_of)
        changes = _ScenarioForecaster(scenario, effects, measured, plans)

        def compared(kind: str, only: Collection[Subject] | None = None) -> list[tuple[Runway, Runway]]:
            names = None if only is None else {name for _, name in only}
            return [
                pair
                for batch, without in forecasts.of_kind(kind, names)
                for base in (runways_of_batch(batch, plans, without),)
                for pair in zip(base.rows, changes.of_batch(batch, base), strict=True)
                if _is_shown(pair[0], *shown) and (only is None or (pair[0].server, pair[0].name) in only)
            ]

        by_kind = {kind: compared(kind) for kind in kinds if kind != DATABASE}
        databases, unread = None, 0
        if issued is not None and not plans:
            wholes = [pair for of_kind in by_kind.values() for pair in of_kind]
            databases, unread = _databases_that_may_change(reader.limits(), issued, scenario.limit, wholes)
        if DATABASE in kinds:
            by_kind[DATABASE] = [] if databases == set() else compared(DATABASE, databases)
    pairs = [pair for kind in kinds for pair in by_kind[kind]]
    unknown = Counter(before.server for before, _ in pairs if before.subject == DATABASE and before.binds is None)
    server = shown[0]
    shown_pairs = [pair for pair in pairs if server is not None or any(runway.binds is not None for runway in pair)]
    shown_pairs.sort(key=lambda pair: _order(pair[1]))
    every = (sorted((pair[place] for pair in shown_pairs), key=_order) for place in (0, 1))
    base, changed = (RunwayList(scope.as_of, rows, unknown.total(), unknown) for rows in every)
    return ScenarioComparison(scope.as_of, base, changed, shown_pairs, effects, [*notes, *changes.notes], unread)


@dataclass(frozen=True)
class IssuedLimit:
    """The stored forecast of a database: what a comparison with its disk or server needs."""

    binds: str | None
    last_day: date
    size_mb: int
    limit_mb: int | None
    risk: tuple[object, ...]
    """As that of its runway."""
    stands_for_itself: bool


LIMIT_MARGIN_MB = 2
"""Limits that are closer than this may be in another order in the stored forecast, which has whole MiB."""


def raises_only_limits(scenario: Scenario) -> bool:
    """Whether it only raises limits of servers and their disks, at once: then nothing becomes more urgent."""
    others = (scenario.growth, scenario.new_database, scenario.purge, scenario.move)
    return not any(others) and all(
        limit.server is not None and limit.database is None and limit.day is None and (limit.add_mb or -1) >= 0
        for limit in scenario.limit
    )


def _databases_that_may_change(
    databases: Sequence[LimitedSubject],
    issued: Mapping[Subject, IssuedLimit],
    limits: Sequence[LimitChange],
    wholes: Sequence[tuple[Runway, Runway]],
) -> tuple[set[Subject], int]:
    """Return the databases that larger limits may change or show, and the number of others that stand for themselves.

    A database that is limited by its disk or server changes with it. It is not shown if that is at least as urgent
    with the larger limit as the database is without it, because a larger limit makes nothing more urgent.
    """
    raised: Counter[tuple[str, str]] = Counter()
    for change in limits:
        raised[str(change.server), SERVER_LIMIT if change.volume is None else VOLUME_LIMIT] += change.add_mb or 0
    least = [least_risks([pair[place] for pair in wholes]) for place in (0, 1)]
    read, unread = set[Subject](), 0
    for row in databases:
        one = issued.get((row.server, row.name))
        if one is None or one.last_day != row.last_day:
            read.add((row.server, row.name))
            continue
        key = (row.server, one.binds or "")
        if key not in raised:
            unread += one.binds is not None and one.stands_for_itself
            continue
        is_covered = all(key in risks and risks[key] <= one.risk for risks in least)
        if not is_covered or not _binds_still(row, one, raised[key]):
            read.add((row.server, row.name))
    return read, unread


def _binds_still(row: LimitedSubject, one: IssuedLimit, more_mb: int) -> bool:
    """Whether the limit that binds a database is still its smallest one when it is higher by some MiB."""
    size_mb, others = one.size_mb, [row.own_mb, row.ceiling_mb]
    if one.binds == SERVER_LIMIT:
        others.append(None if row.free_mb is None else size_mb + row.free_mb)
    elif row.server_mb is not None:
        others.append(size_mb + row.server_mb - (row.total_mb or 0))
    highest_mb = (one.limit_mb or 0) + more_mb + LIMIT_MARGIN_MB
    return not row.fills_files and all(other is None or highest_mb < other for other in others)


def _order(row: Runway) -> tuple[object, ...]:
    return (row.risk, row.server, row.name)


def _is_shown(row: Runway, server: str | None, database: str | None) -> bool:
    return server in {None, row.server} and database in {None, row.database}


@dataclass(frozen=True)
class _MeasuredDatabase:
    """The last measured size of a database and its forecast change."""

    last_day: date
    size_mb: float
    mb_per_day: float
    volumes: Sequence[str] | None


@dataclass(frozen=True)
class _Measurements:
    """The measured databases, volumes and servers that assumptions refer to."""

    databases: Mapping[Subject, _MeasuredDatabase]
    volumes: Mapping[str, Mapping[str, float]]
    """Capacity by server and volume, MiB."""
    servers: Collection[str]


VOLUMES_NAMED = 8
MOST_HELD = 5000
"""The maximum number of series of a kind in memory, some 25 KiB each with their forecasts."""
_ForecastBatch: TypeAlias = tuple[history.SeriesBatch, SizeForecasts]


class _Forecasts:
    """Reads the series of a kind and forecasts them, once unless they are more than MOST_HELD."""

    def __init__(self, reader: history.HistoryReader) -> None:
        self._reader = reader
        self._held: dict[str, Sequence[_ForecastBatch]] = {}

    def of_kind(self, kind: str, names: Collection[str] | None = None) -> Iterator[_ForecastBatch]:
        """Yield each batch of series with its forecasts; of databases, only those with these names if given."""
        if kind in self._held:
            yield from self._held[kind]
            return
        held: list[_ForecastBatch] = []
        number = 0
        for batch in self._reader.series(kind, names):
            one = (batch, forecast(batch.smooth, batch.sizes))
            number += len(batch.subjects)
            held = [*held, one] if number <= MOST_HELD else []
            yield one
        if number <= MOST_HELD and names is None:
            self._held[kind] = held


def _measurements(forecasts: _Forecasts, scenario: Scenario, kinds: Sequence[str]) -> _Measurements:
    databases: dict[Subject, _MeasuredDatabase] = {}
    volumes: dict[str, dict[str, float]] = {}
    servers: set[str] = set()
    if VOLUME in kinds:
        for batch, _ in forecasts.of_kind(VOLUME):
            for row in batch.subjects:
                volumes.setdefault(row.server, {})[row.name] = row.own_mb or 0.0
    new_databases = any(database.server for database in scenario.new_database)
    limits = any(limit.database for limit in scenario.limit)
    if scenario.growth or scenario.move or scenario.purge or new_databases or limits:
        for batch, ahead in forecasts.of_kind(DATABASE):
            for place, row in enumerate(batch.subjects):
                figures = (float(ahead.last[place]), float(ahead.drift[place]))
                databases[row.server, row.name] = _MeasuredDatabase(row.last_day, *figures, row.volumes)
    if scenario.new_database or scenario.move or any(limit.server for limit in scenario.limit):
        servers = {row.server for batch, _ in forecasts.of_kind(SERVER) for row in batch.subjects}
    return _Measurements(databases, volumes, servers)


def _refuse_unknown(scenario: Scenario, measured: _Measurements) -> None:
    """Refuse servers, databases and volumes that are not measured; raises NotFoundError."""
    taking: list[Purge | Move] = [*scenario.purge, *scenario.move]
    named = [(change.server, change.database) for change in taking]
    limited = [(str(limit.server), limit.database) for limit in scenario.limit if limit.database]
    for server, database in (*named, *limited):
        if (server, database) not in measured.databases:
            close = suggestion(str(database), (name for on, name in measured.databases if on == server))
            raise NotFoundError(f"{database!r} is not in the newest sample of {server!r}.{close}")
    additions: list[NewDatabase | LimitChange] = [*scenario.new_database, *scenario.limit]
    on_servers = (change.server for change in additions if change.server)
    for name in (*on_servers, *(move.to for move in scenario.move)):
        if name not in measured.servers:
            raise NotFoundError(f"Server {name!r} is out of service, or was not measured within the last month.")
    disks = [(new.server, new.volume) for new in scenario.new_database]
    disks += [(limit.server, limit.volume) for limit in scenario.limit]
    disks += [(move.to, move.volume) for move in scenario.move]
    for on, volume in disks:
        if on is not None and volume is not None and volume not in measured.volumes.get(on, {}):
            known = first_of(sorted(measured.volumes.get(on, ())), VOLUMES_NAMED)
            there = f"; it has {known}" if known else ""
            raise NotFoundError(f"{on} has no measured disk {volume!r}{there}.")


def _refuse_contradictions(scenario: Scenario, measured: _Measurements, as_of: date) -> None:
    """Refuse past days, repeated moves, and databases that exist already; raises ContradictionError."""
    dated: list[NewDatabase | Purge | LimitChange | Move]
    dated = [*scenario.new_database, *scenario.purge, *scenario.limit, *scenario.move]
    for change in dated:
        if change.day is not None and change.day < as_of:
            raise ContradictionError(
                f"{change.text}: the sizes measured up to {human_day(as_of)} already include this."
            )
    moved = Counter((move.server, move.database) for move in scenario.move)
    for (server, database), count in moved.items():
        if count > 1:
            raise ContradictionError(f"{database} on {server} moves more than once.")
    arriving = [(new.server, new.database) for new in scenario.new_database if new.server]
    for server, database in (*arriving, *((move.to, move.database) for move in scenario.move)):
        if (server, database) in measured.databases:
            raise ContradictionError(f"{server} already has a database {database!r}.")


def _effects(
    scenario: Scenario, measured: _Measurements, having: LabelFilter, as_of: date
) -> tuple[list[Effect], list[str]]:
    rates = {subject: database.mb_per_day for subject, database in measured.databases.items()}
    effects: list[Effect] = []
    for growth in scenario.growth:
        chosen = chosen_databases(growth, list(measured.databases), having)
        if not chosen:
            raise NotFoundError(f"No measured database matches: {growth.text}.")
        for subject in chosen:
            database = measured.databases[subject]
            # A factor does not change databases that do not grow.
            more = max(rates[subject], 0.0) * float(growth.factor - 1)
            rates[subject] += more
            effects.append(Effect(*subject, _only_name(database.volumes), database.last_day, 0.0, more, growth))
    for new in scenario.new_database:
        rate = new.growth_mb_per_month * 12 / HORIZONS_DAYS[-1]
        for server in sorted(measured.servers) if new.server is None else (new.server,):
            volume = new.volume or _only_name(measured.volumes.get(server))
            effects.append(Effect(server, new.database, volume, new.day or as_of, float(new.size_mb), rate, new))
    notes = []
    for subject, takings in _takings(scenario, as_of).items():
        effects_of_takings = list(_effects_of_takings(takings, measured, subject, rates[subject], as_of))
        effects += [effect for _, effect in effects_of_takings]
        notes += [
            f"{purge.text}: {purge.database} has only {human_mb(round(-effect.size_mb))} then."
            for purge, effect in effects_of_takings
            if isinstance(purge, Purge) and -effect.size_mb < purge.size_mb
        ]
    return effects, notes


def _takings(scenario: Scenario, as_of: date) -> dict[Subject, list[Purge | Move]]:
    """Return the purges and the move of each database by day; on the same day the purge comes first."""
    every: list[Purge | Move] = [*scenario.purge, *scenario.move]
    takings: dict[Subject, list[Purge | Move]] = {}
    for change in sorted(every, key=lambda assumption: assumption.day or as_of):
        takings.setdefault((change.server, change.database), []).append(change)
    return takings


def _effects_of_takings(
    takings: Sequence[Purge | Move], measured: _Measurements, subject: Subject, rate: float, as_of: date
) -> Iterator[tuple[Purge | Move, Effect]]:
    """Yield the effects of the purges and the move of one database, each with its assumption.

    A purge takes no more than the size. A move takes the rest with its growth, and later purges apply to the new place.
    """
    database = measured.databases[subject]
    server, volume, purged_mb = subject[0], _only_name(database.volumes), 0.0
    for change in takings:
        day = change.day or as_of
        size_mb = max(database.size_mb + rate * (day - database.last_day).days - purged_mb, 0.0)
        if isinstance(change, Purge):
            less_mb = min(float(change.size_mb), size_mb)
            purged_mb += less_mb
            yield change, Effect(server, change.database, volume, day, -less_mb, 0.0, change)
        else:
            # A database that has shrunk to nothing does not shrink further.
            moved_rate = rate if size_mb else 0.0
            yield change, Effect(server, change.database, volume, day, -size_mb, -moved_rate, change)
            server, volume = change.to, change.volume or _only_name(measured.volumes.get(change.to))
            yield change, Effect(server, change.database, volume, day, size_mb, moved_rate, change)


def chosen_databases(growth: Growth, subjects: Sequence[Subject], having: LabelFilter) -> list[Subject]:
    """Return the databases of `subjects` to which a growth factor applies."""
    chosen = [
        subject for subject in subjects if growth.server in {None, subject[0]} and growth.database in {None, subject[1]}
    ]
    if growth.label is None:
        return chosen
    labelled = having(chosen, growth.label)
    return [subject for subject in chosen if subject in labelled]


def _only_name(names: Iterable[str] | None) -> str | None:
    """Return the only name; None if there is none or several."""
    listed = list(names or ())
    return listed[0] if len(listed) == 1 else None


@dataclass(frozen=True)
class _Interval:
    """The series of a batch from some day on: subjects with limits, last size, change per day and binding limit."""

    subjects: Sequence[LimitedSubject]
    last: Sizes
    drift: Sizes
    bound: Sequence[BindingLimit]

    def forecasts(self, base: SizeForecasts, places: Sequence[int]) -> SizeForecasts:
        """Return the forecasts of some of the series; `base` are those without assumptions."""
        last, drift = self.last[places], self.drift[places]
        is_same = (last == base.last).all() and (drift == base.drift).all()
        return base if is_same else with_growth(base, last, drift)


class _ScenarioForecaster:
    """Applies assumptions to batches of series, in intervals of days with their own sizes and limits."""

    def __init__(self, scenario: Scenario, effects: Sequence[Effect], measured: _Measurements, plans: Plans) -> None:
        self._limits, self._measured, self._plans = scenario.limit, measured, plans
        self._limits_by_day = sorted(scenario.limit, key=lambda limit: limit.day or date.min)
        self._by_server: dict[str, list[Effect]] = {}
        for effect in effects:
            self._by_server.setdefault(effect.server, []).append(effect)
        days = {effect.day for effect in effects} | {limit.day for limit in scenario.limit if limit.day}
        self._days = [date.min, *sorted(days)]
        self._applied: set[LimitChange] = set()
        placeless = [effect for effect in effects if effect.volume is None and measured.volumes.get(effect.server)]
        # Growth and purges belong to databases, whose disk is the measured one.
        named = {effect.server for effect in placeless if isinstance(effect.of, NewDatabase | Move)}
        self._placeless = [
            f"{name}: the disk is not known, so only the server changes."
            f"{' `volume` names the disk.' if name in named else ''}"
            for name in sorted({effect.server for effect in placeless})
        ]

    @property
    def notes(self) -> list[str]:
        """Which assumptions changed less than they name; complete once every batch was forecast."""
        without = [limit for limit in self._limits if limit.server and limit.add_mb != 0 and limit not in self._applied]
        return [*self._placeless, *(self._without_limit(limit) for limit in without)]

    def _without_limit(self, limit: LimitChange) -> str:
        what = limit.database or "the server"
        disks = ", ".join(sorted(self._measured.volumes.get(str(limit.server), ())))
        named = f" `volume` names a disk of the server: {disks}." if disks else ""
        return f"{limit.text}: {what} has no known limit of its own, so nothing changes.{named}"

    def of_batch(self, batch: history.SeriesBatch, without: BatchRunways) -> Sequence[Runway]:
        """Return the runways of a batch with the assumptions; untouched ones are those of the base case."""
        if not any(row.server in self._by_server or self._limits_on(row.server, date.max) for row in batch.subjects):
            return without.rows
        intervals = [self._interval(batch, without.forecasts, day) for day in self._days]
        places = [place for place in range(len(batch.subjects)) if self._is_touched(place, batch, without, intervals)]
        if not places:
            return without.rows
        touched, base = batch.of(places), without.forecasts.of(places)
        last_days = np.array([row.last_day.toordinal() for row in touched.subjects])
        starts = [np.maximum(day.toordinal() - last_days, 0) for day in self._days]
        forecasts = [interval.forecasts(base, places) for interval in intervals]
        bounds = [[interval.bound[place] for place in places] for interval in intervals]
        limits = [limits_of(bound) for bound in bounds]
        ends = _combine(starts, [compute_fill_days(*interval) for interval in zip(forecasts, limits, strict=True)])
        # The interval of today is the last one that has begun.
        now = np.sum([start == 0 for start in starts], axis=0) - 1
        is_full = np.array([forecasts[number].last[place] >= limits[number][place] for place, number in enumerate(now)])
        newest = replace(touched, subjects=[intervals[-1].subjects[place] for place in places])
        rows = runway_rows(touched, replace(base, drift=forecasts[-1].drift), ends, bounds[-1], is_full)
        changed = with_plans(rows, newest, forecasts[-1], self._plans, self._higher_by(date.max))
        by_place = dict(zip(places, changed, strict=True))
        return [by_place.get(place, row) for place, row in enumerate(without.rows)]

    def _is_touched(
        self, place: int, batch: history.SeriesBatch, without: BatchRunways, intervals: Sequence[_Interval]
    ) -> bool:
        """Whether an interval has another size, change or binding limit, or other limits that a plan may raise."""
        row, base, bound = batch.subjects[place], without.forecasts, without.bound[place]
        has_plans = row.instance_id in self._plans
        return any(
            interval.last[place] != base.last[place]
            or interval.drift[place] != base.drift[place]
            or interval.bound[place] != bound
            or (has_plans and interval.subjects[place] != row)
            for interval in intervals
        )

    def _interval(self, batch: history.SeriesBatch, base: SizeForecasts, day: date) -> _Interval:
        last, drift = base.last.copy(), base.drift.copy()
        rows = list(batch.subjects)
        for place, row in enumerate(batch.subjects):
            every = [effect for effect in self._by_server.get(row.server, ()) if effect.day <= day]
            own = [effect for effect in every if _is_of(effect, row)]
            fraction = _applied_fraction(own, base.drift[place])
            for effect in own:
                rate = effect.mb_per_day * fraction if isinstance(effect.of, Growth) else effect.mb_per_day
                drift[place] += rate
                last[place] += effect.size_mb - rate * (effect.day - row.last_day).days
            rows[place] = self._limited_subject(row, every, own, day)
        # The limit of a database on a shared disk follows from its measured size.
        bound = [raised_limit(limit, self._higher_by(day)) for limit in binding_limits(replace(batch, subjects=rows))]
        return _Interval(rows, np.maximum(last, 0.0), drift, bound)

    def _higher_by(self, day: date) -> int:
        """Return by how much all limits are higher from a day on, MiB; negative: lower."""
        return sum(
            limit.add_mb or 0 for limit in self._limits if limit.server is None and (limit.day or date.min) <= day
        )

    def _limits_on(self, server: str, day: date) -> list[LimitChange]:
        """Return the limits that hold on a day; a new one replaces what was assumed of its subject before."""
        held: dict[object, list[LimitChange]] = {}
        for limit in self._limits_by_day:
            if limit.server in {None, server} and (limit.day or date.min) <= day and limit.add_mb != 0:
                of_subject = held.setdefault((limit.server, limit.database, limit.volume), [])
                if limit.limit_mb is not None:
                    of_subject.clear()
                of_subject.append(limit)
        return [limit for of_subject in held.values() for limit in of_subject]

    def _limited_subject(
        self, row: LimitedSubject, every: Sequence[Effect], own: Sequence[Effect], day: date
    ) -> LimitedSubject:
        others = [effect for effect in every if effect not in own] if row.subject == DATABASE else []
        # The space that other databases take of a shared limit; an unknown volume may be any.
        on_disk = [effect for effect in others if not effect.volume or not row.volumes or effect.volume in row.volumes]
        if row.server_mb is not None:
            row = replace(row, server_mb=row.server_mb - sum(effect.size_mb for effect in others))
        if row.free_mb is not None:
            row = replace(row, free_mb=row.free_mb - sum(effect.size_mb for effect in on_disk))
        for limit in self._limits_on(row.server, day):
            row = row if limit.server is None else self._with_limit(row, limit)
        return row

    def _with_limit(self, row: LimitedSubject, change: LimitChange) -> LimitedSubject:
        if change.volume is not None:
            self._applied.add(change)
            before_mb = self._measured.volumes[str(change.server)][change.volume]
            more_mb = float(change.add_mb or 0) if change.limit_mb is None else change.limit_mb - before_mb
            volumes, name = ([row.name], "own_mb") if row.subject == VOLUME else (row.volumes or (), "free_mb")
            known = getattr(row, name)
            is_on_it = change.volume in volumes and known is not None
            return replace(row, **{name: known + more_mb}) if is_on_it else row
        known_mb, limit = row.own_mb, "own"
        if row.subject != (DATABASE if change.database else SERVER) or change.database not in {None, row.name}:
            if change.database is not None or row.subject != DATABASE:
                return row
            known_mb, limit = row.server_mb, "server"
        changes: dict[str, Any] = {}
        if change.limit_mb is not None:
            changes = {f"{limit}_mb": change.limit_mb, f"{limit}_source": ASSUMED}
        elif known_mb is not None:
            changes = {f"{limit}_mb": max(known_mb + (change.add_mb or 0), 0)}
        if changes:
            self._applied.add(change)
        return replace(row, **changes)


def _applied_fraction(effects: Sequence[Effect], drift: float) -> float:
    """Return which fraction of growth changes applies: a decrease takes no more than the forecast growth."""
    less = -sum(effect.mb_per_day for effect in effects if isinstance(effect.of, Growth))
    return min(max(drift, 0.0) / less, 1.0) if less > 0 else 1.0


def _is_of(effect: Effect, row: LimitedSubject) -> bool:
    if row.subject == DATABASE:
        return effect.database == row.name
    return row.subject == SERVER or effect.volume == row.name


ASSUMED = "assumed"
"""Source of limits that a scenario sets."""


def _combine(starts: Sequence[Sizes], every: Sequence[FillDays]) -> FillDays:
    """Combine the runways of intervals; each counts from its first day until the next interval begins."""
    if len(every) == 1:
        return every[0]
    ends = [*starts[1:], np.full(len(starts[0]), np.iinfo(np.int64).max)]
    days = {}
    for name in ("early_days", "middle_days", "late_days"):
        combined = np.full(len(starts[0]), NOT_WITHIN_HORIZON)
        for start, end, fill_days in zip(starts, ends, every, strict=True):
            reached = getattr(fill_days, name)
            day = np.maximum(reached, start)
            counts = (reached != NOT_WITHIN_HORIZON) & (day < end) & (combined == NOT_WITHIN_HORIZON)
            combined = np.where(counts & (day <= HORIZONS_DAYS[-1]), day, combined)
        days[name] = combined
    probability = np.zeros_like(every[0].probability)
    for start, end, fill_days in zip(starts, ends, every, strict=True):
        for place, horizon in enumerate(HORIZONS_DAYS):
            # An interval that has ended counts with the probability at its end.
            last = np.sum(np.asarray(HORIZONS_DAYS)[None, : place + 1] < end[:, None], axis=1) - 1
            upto = np.where(last >= 0, fill_days.probability[np.arange(len(last)), np.maximum(last, 0)], 0.0)
            # What is full at once is certain, even if the interval ends before the first horizon.
            upto = np.where(fill_days.late_days == 0, 1.0, upto)
            has_begun = (start <= horizon) & (start < end)
            probability[:, place] = np.where(has_begun, np.fmax(probability[:, place], upto), probability[:, place])
    # An interval that ends between two horizons may have a day there.
    for least, combined in zip(DAY_PROBABILITIES, days.values(), strict=True):
        within = (combined != NOT_WITHIN_HORIZON)[:, None] & (combined[:, None] <= np.asarray(HORIZONS_DAYS))
        probability = np.where(within, np.fmax(probability, least), probability)
    newest = every[-1]
    probability = np.where(
        (newest.is_known & newest.has_band)[:, None], np.maximum.accumulate(probability, axis=1), np.nan
    )
    return FillDays(**days, probability=probability, is_known=newest.is_known, has_band=newest.has_band)
