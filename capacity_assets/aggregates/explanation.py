"""One stored row traced to its samples, and its figures computed a second way, by fractions, in words.

The second way shares nothing with the SQL in `figures` on purpose, so that a person can check one by hand. It is not
for computing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cached_property

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Date,
    Engine,
    FromClause,
    ScalarSelect,
    Select,
    Table,
    TableValuedAlias,
    and_,
    any_,
    bindparam,
    func,
    literal,
    or_,
    select,
    true,
)

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, Further, Level, Measure
from capacity_assets.base.errors import NotFoundError, database_errors
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.units import counted, meant
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.tables import computed_windows, instances, is_active

Value = int | Decimal | str | date | None
PLACES_SHOWN = 4


@dataclass(frozen=True)
class Sample:
    """What counts of one day, by column, MiB or a number."""

    day: date
    values: Mapping[str, int | None]


@dataclass(frozen=True)
class WindowSamples:
    """Samples in the order of their days: of a window, of the one before, and of the same window a year before."""

    own: tuple[Sample, ...]
    before: tuple[Sample, ...]
    year_before: tuple[Sample, ...]


def reference_figures(
    level: Level, period: Period, window: Window, window_samples: WindowSamples
) -> Iterator[tuple[str, tuple[str, Value]]]:
    """Yield each figure of a row with its arithmetic; the window has at least one sample, the others may have none."""
    samples, before = window_samples.own, window_samples.before
    yield "period_end", ("last day of the window", window.end)
    yield "data_count", ("days with a sample", len(samples))
    for measure in level.measures:
        now, earlier = _known(samples, measure), _known(before, measure)
        yield from _own_figures(measure, samples)
        yield from _compared_figures(measure.change, measure.change_percent, now, earlier, "in the window before")
        if measure.further:
            a_year_ago = _known(window_samples.year_before, measure)
            yield from _ends(measure, measure.further, samples)
            names = (measure.further.year_change, measure.further.year_change_percent)
            yield from _compared_figures(*names, now, a_year_ago, "a year before")
            yield measure.further.yearly_rate_percent, _yearly_rate(now, earlier, period.windows_per_year)
        yield from _sums(level, window, measure, now)
    for ratio in level.ratios:
        above, below = (sum(_values(samples, name)) for name in (ratio.numerator, ratio.denominator))
        how = f"{above:,} / {below:,}, rounded down" if below else "no database: 0"
        yield ratio.target, (how, above // below if below else 0)
    now, earlier = _known(samples, level.headline), _known(before, level.headline)
    yield "growth_rate", (f"{level.headline.change_percent} once more", _percent(now, earlier))
    yield "trend_direction", _trend(now, earlier, period.trend_percent)


def _values(samples: Sequence[Sample], column: str) -> list[int]:
    return [value for sample in samples if (value := sample.values[column]) is not None]


def _known(samples: Sequence[Sample], measure: Measure) -> list[int]:
    return _values(samples, measure.source)


def _own_figures(measure: Measure, samples: Sequence[Sample]) -> Iterator[tuple[str, tuple[str, Value]]]:
    now = _known(samples, measure)
    if not now:
        names = (measure.average, measure.maximum, measure.minimum, measure.average_two_decimals)
        yield from ((name, ("no value was measured", None)) for name in names if name)
        return
    mean = f"{sum(now):,} / {len(now)} = {_shown(_mean(now))}"
    yield measure.average, (f"{mean}, rounded down", math.floor(_mean(now)))
    for name, word, extreme in ((measure.maximum, "largest", max(now)), (measure.minimum, "smallest", min(now))):
        day = next(sample.day for sample in samples if sample.values[measure.source] == extreme)
        yield name, (f"{word} of {counted(len(now), 'value')}, on {day}", extreme)
    if measure.average_two_decimals:
        yield measure.average_two_decimals, (f"{mean}, to two decimals", _two_decimals(_mean(now)))


def _sums(
    level: Level, window: Window, measure: Measure, now: Sequence[int]
) -> Iterator[tuple[str, tuple[str, Value]]]:
    """The exact sum that longer windows are made of, and the count of values where it is not that of the samples."""
    total = (f"sum of {counted(len(now), 'value')}", Decimal(sum(now))) if now else ("no value was measured", None)
    kept = {f"sum_{measure.source}": total, f"count_{measure.source}": ("values measured", len(now))}
    for name, figure in kept.items():
        if name in level.sums:
            yield name, figure if window.days > 1 else ("not kept for a single day", None)


def _ends(measure: Measure, further: Further, samples: Sequence[Sample]) -> Iterator[tuple[str, tuple[str, Value]]]:
    dated = [(sample.day, value) for sample in samples if (value := sample.values[measure.source]) is not None]
    if not dated:
        yield from ((name, ("no value was measured", None)) for name in further.own)
        return
    (first_day, first), (last_day, last) = dated[0], dated[-1]
    yield further.last, (f"value of {last_day}, the last measured day", last)
    if len(dated) == 1:
        yield further.growth, ("a single measured day: unknown", None)
    else:
        how = f"{last:,} on {last_day} - {first:,} on {first_day}"
        yield further.growth, (how, last - first)


def _yearly_rate(now: Sequence[int], before: Sequence[int], windows_per_year: int | None) -> tuple[str, Value]:
    if windows_per_year is None:
        return "only of windows that are whole months", None
    if not now or not before or not sum(before):
        return "no mean before to grow from", None
    factor = _mean(now) / _mean(before)
    if factor < 0:
        return "a factor below zero says nothing", None
    how = f"({_shown(_mean(now))} / {_shown(_mean(before))}) to the power of {windows_per_year}, less 1, x 100"
    return how, _two_decimals((factor**windows_per_year - 1) * 100)


def _compared_figures(
    change: str, change_percent: str, now: Sequence[int], before: Sequence[int], when: str
) -> Iterator[tuple[str, tuple[str, Value]]]:
    if not now or not before:
        reason = f"no value {when if now else 'was measured'}: unknown"
        yield change, (reason, None)
        yield change_percent, (reason, None)
        return
    difference = _mean(now) - _mean(before)
    fractions = f"{sum(now):,} / {len(now)} - {sum(before):,} / {len(before)} = {_shown(difference)}"
    yield change, (f"{fractions}, cut toward zero", math.trunc(difference))
    percent = _percent(now, before)
    if percent is None:
        yield change_percent, ("the mean before is 0: no percent", None)
    else:
        how = f"{_shown(difference)} / {_shown(_mean(before))} x 100, half away from zero"
        yield change_percent, (how, percent)


def _trend(now: Sequence[int], before: Sequence[int], threshold: Decimal) -> tuple[str, Value]:
    if not before:
        return "nothing to compare with", None
    percent = _percent(now, before)
    if percent is None:
        return "from 0", "growing" if sum(now) > 0 else "stable"
    if percent > threshold:
        return f"{percent} % is above {threshold} %", "growing"
    if percent < -threshold:
        return f"{percent} % is below -{threshold} %", "shrinking"
    return f"{percent} % is within {threshold} %", "stable"


def _percent(now: Sequence[int], before: Sequence[int]) -> Decimal | None:
    if not now or not before or not sum(before):
        return None
    return _two_decimals((_mean(now) - _mean(before)) / _mean(before) * 100)


def _mean(values: Sequence[int]) -> Fraction:
    return Fraction(sum(values), len(values))


def _two_decimals(value: Fraction) -> Decimal:
    """Round half away from zero."""
    hundredths = math.floor(abs(value) * 100 + Fraction(1, 2))
    # Not by dividing, which rounds to the digits of Python's decimal context.
    return Decimal(f"{hundredths if value >= 0 else -hundredths}e-2")


def _shown(value: Fraction) -> str:
    """Render a fraction as a decimal number, marked where places are left out."""
    scaled = value * 10**PLACES_SHOWN
    shown = f"{Decimal(math.trunc(scaled)).scaleb(-PLACES_SHOWN):,f}"
    return shown.rstrip("0").rstrip(".") if scaled.denominator == 1 else f"{shown}..."


NAMES_COMPARED = 10_000
"""Where a name is not found, it is compared with so many others at most."""


@dataclass(frozen=True)
class Subject:
    """What is explained: a server, or one of its databases."""

    instance_id: int
    server: str
    database: str | None = None
    active: bool = True

    @property
    def level(self) -> Level:
        """The level of its rows."""
        return INSTANCE if self.database is None else DATABASE

    @property
    def key(self) -> dict[str, object]:
        """The columns that identify its rows."""
        known = {"instance_id": self.instance_id, "database_name": self.database}
        return {name: known[name] for name in self.level.keys}

    def __str__(self) -> str:
        """Name it."""
        return self.server if self.database is None else f"{self.database} on {self.server}"


@dataclass(frozen=True)
class Figure:
    """One figure: its arithmetic, its result, and what is stored."""

    name: str
    how: str
    computed: Value
    stored: Value

    @property
    def agrees(self) -> bool:
        """Whether the stored figure is the computed one."""
        return self.computed == self.stored


@dataclass(frozen=True)
class Explanation:
    """A window of one subject: its samples, those of the window before and of a year before, and the figures."""

    subject: Subject
    period: Period
    window: Window
    samples: WindowSamples
    stored: Mapping[str, Value] | None
    today: date

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        """Every figure of the row, in the order of the table; none without a sample."""
        if not self.samples.own:
            return ()
        computed = dict(reference_figures(self.subject.level, self.period, self.window, self.samples))
        stored = self.stored or {}
        return tuple(
            Figure(name, how, value, stored.get(name))
            for name in self.subject.level.figures
            for how, value in [computed[name]]
        )

    @property
    def missing_days(self) -> tuple[date, ...]:
        """Days of the window up to today without a sample."""
        there = {sample.day for sample in self.samples.own}
        last = min(self.window.end, self.today)
        days = (self.window.start + timedelta(days=n) for n in range((last - self.window.start).days + 1))
        return tuple(day for day in days if day not in there)

    @property
    def verdict(self) -> str:
        """Say in one sentence whether the stored row equals what its samples give, and if not, possible reasons."""
        if not self.samples.own:
            rest = "no row is stored either." if self.stored is None else "the row that is stored was kept."
            return f"The samples hold nothing for this window; {rest}"
        if self.stored is None and not self.subject.active:
            return "Nothing is stored for this window, and nothing will be: the server is not active."
        if self.stored is None:
            return "Nothing is stored for this window: it was not computed yet."
        wrong = [figure.name for figure in self.figures if not figure.agrees]
        if not wrong:
            return "Every stored figure is what its samples give."
        return self._why(wrong, self.stored)

    def _why(self, wrong: list[str], stored: Mapping[str, Value]) -> str:
        """Say why stored figures may differ from those of the samples."""
        stored_samples = stored["data_count"]
        if isinstance(stored_samples, int) and stored_samples > len(self.samples.own):
            rebuild = "`capacity aggregate --overwrite` would rebuild it from those"
            return (
                f"The stored row was built from {counted(stored_samples, 'sample')}; {len(self.samples.own)} remain. "
                f"It is protected; {rebuild if self.subject.active else 'the server is not active, so it stays'}."
            )
        level = self.subject.level
        further = {name for one in level.further for name in (*one.own, *one.compared)} | set(level.sums)
        if all(name in further and stored[name] is None for name in wrong):
            return (
                f"{', '.join(wrong)}: not stored, because an older version computed this window, or samples were "
                "imported since. Materialise it again."
            )
        return (
            f"{', '.join(wrong)}: stored otherwise than the samples give now. They changed after the row was computed, "
            "or those of the window before or of a year before are gone. `capacity plan` says what a run would do."
        )


def find_subjects(engine: Engine, database: str | None, server: str | None) -> list[Subject]:
    """Return the databases of that exact name, or the server itself; of one server if it is named.

    A database is known by its samples, and where these are gone, by its aggregates.

    Raises:
        NotFoundError: no registered server has anything of that name.
        DatabaseError: the database failed.
    """
    known = select(instances.c.id, instances.c.name, is_active().label("active"))
    with database_errors(doing="looking the name up", kept="Nothing was written."), engine.connect() as connection:
        those_with = _those_with_on_nodes if tables_are_distributed(connection) else _those_with
        query = known if database is None else those_with(database, known)
        if server is not None:
            query = query.where(instances.c.name == server)
        named = select(instances.c.id).where(instances.c.name == server)
        if server is not None and connection.execute(named).first() is None:
            database = None  # the server is what is wrong
        rows = connection.execute(query.order_by(instances.c.name)).all()
        if not rows:
            raise _unknown(connection, database, server)
    return [Subject(row.id, row.name, database, row.active) for row in rows]


def _unknown(connection: Connection, database: str | None, server: str | None) -> NotFoundError:
    """Say that there is no such server, or no such database, and which may have been meant."""
    what = f"server {server!r}" if database is None else f"database {database!r}"
    where = f" on server {server!r}" if server is not None and database is not None else ""
    if database is None:
        close = meant(server or "", connection.execute(select(instances.c.name)).scalars())
    else:
        raw = DATABASE.source.c
        number = select(instances.c.id).where(instances.c.name == server).scalar_subquery()
        # Of one server the names of all days, else those of the newest day: not every sample of the fleet is read.
        newest = raw.collected_date == select(func.max(raw.collected_date)).scalar_subquery()
        registered = raw.instance_id.in_(select(instances.c.id))
        last, back = _sampled_days()
        every = raw.collected_date == any_(func.array(select(last - back.c.back).scalar_subquery()))
        there = and_(newest, registered) if server is None else and_(every, raw.instance_id == number)
        names = select(raw.database_name).where(there).distinct().limit(NAMES_COMPARED)
        close = meant(database, connection.execute(names).scalars())
    return NotFoundError(
        f"There is no {what}{where} among the registered servers: names are compared letter by letter.{close} "
        "The view capacity_latest lists those that are known."
    )


def explanation_of(engine: Engine, subject: Subject, period: Period, window: Window, today: date) -> Explanation:
    """Read the samples and the stored row of one window; raises DatabaseError."""
    target = subject.level.target
    row = select(*(target.c[name] for name in subject.level.figures)).where(
        *(target.c[name] == value for name, value in subject.key.items()),
        target.c.period_type == period.name,
        target.c.period_start == window.start,
    )
    with database_errors(doing="reading the samples", kept="Nothing was written."), engine.connect() as connection:
        samples = WindowSamples(
            own=_read_samples(connection, subject, window),
            before=_read_samples(connection, subject, period.previous(window)),
            year_before=_read_samples(connection, subject, period.year_before(window)),
        )
        stored = connection.execute(row).mappings().one_or_none()
    return Explanation(subject, period, window, samples, None if stored is None else dict(stored), today)


def _read_samples(connection: Connection, subject: Subject, window: Window) -> tuple[Sample, ...]:
    source = subject.level.source
    day, columns = source.c.collected_date, [measure.source for measure in subject.level.measures]
    query = (
        select(day.label("day"), *(func.sum(source.c[name]).label(name) for name in columns))
        .where(
            and_(*(source.c[name] == value for name, value in subject.key.items())),
            # Listed, because the key begins with the day.
            day == any_(bindparam("days", window.dates, type_=ARRAY(Date))),
            *subject.level.live(),
        )
        .group_by(day)
        .order_by(day)
    )
    rows = connection.execute(query).mappings()
    return tuple(Sample(one["day"], {name: _whole(one[name]) for name in columns}) for one in rows)


def _those_with(database: str, servers: Select[int, str, bool]) -> Select[int, str, bool]:
    """Search server by server and day by day, as the keys begin with the day: there is no index on names alone."""
    raw, target, windows = DATABASE.source, DATABASE.target, computed_windows
    last, back = _sampled_days()
    of_window = and_(
        windows.c.level == DATABASE.name,
        target.c.period_type == windows.c.period_type,
        target.c.period_start == windows.c.period_start,
    )
    sampled = _has_any(database, raw, back, raw.c.collected_date == last - back.c.back)
    return servers.where(or_(sampled, _has_any(database, target, windows, of_window)))


def _sampled_days() -> tuple[ScalarSelect[date], TableValuedAlias]:
    """Return the newest day with samples, and how many days back each day is, up to the first one."""
    day = DATABASE.source.c.collected_date
    first, last = (select(day).order_by(order).limit(1).scalar_subquery() for order in (day, day.desc()))
    return last, func.generate_series(0, last - first).table_valued("back").render_derived()


def _has_any(database: str, table: Table, windows: FromClause, of_window: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a server has a row of a database in any window, each looked up by the key."""
    of_database = and_(of_window, table.c.instance_id == instances.c.id, table.c.database_name == database)
    row = select(literal(1).label("there")).where(of_database).limit(1).correlate(instances, windows).lateral()
    return select(literal(1)).select_from(windows.join(row, true())).correlate(instances).exists()


def _those_with_on_nodes(database: str, servers: Select[int, str, bool]) -> Select[int, str, bool]:
    """The same where rows are distributed: each node looks through the servers that it has."""
    has_database = (
        instances.c.id.in_(select(table.c.instance_id).where(table.c.database_name == database).distinct())
        for table in (DATABASE.source, DATABASE.target)
    )
    return servers.where(or_(*has_database))


def _whole(value: object) -> int | None:
    return None if value is None else int(str(value))
