"""One stored row traced to its samples: every figure computed once more, by fractions in Python, with its arithmetic.

A second way to the same numbers on purpose: it shares nothing with the SQL that wrote them, so that a person can
check one by hand. Not for computing: that is the business of `statements`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cached_property

from sqlalchemy import Engine, Select, Table, and_, func, literal, or_, select, true
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.selectable import LateralFromClause

from capacity_assets.aggregation.errors import NotFoundError, database_error
from capacity_assets.aggregation.figures import TREND_THRESHOLD_PERCENT
from capacity_assets.aggregation.levels import DATABASE, INSTANCE, Level, Measure
from capacity_assets.aggregation.statements import is_active
from capacity_assets.periods import Period, Window
from capacity_assets.storage.tables import instances

Value = int | Decimal | str | date | None
PLACES_SHOWN = 4


@dataclass(frozen=True)
class Subject:
    """What is explained: a server, or one of its databases."""

    instance_id: int
    server: str
    database: str | None = None
    active: bool = True

    @property
    def level(self) -> Level:
        """The level whose rows speak of it."""
        return INSTANCE if self.database is None else DATABASE

    @property
    def key(self) -> dict[str, object]:
        """The columns that tell its rows from others."""
        known = {"instance_id": self.instance_id, "database_name": self.database}
        return {name: known[name] for name in self.level.keys}

    def __str__(self) -> str:
        """Name it."""
        return self.server if self.database is None else f"{self.database} on {self.server}"


@dataclass(frozen=True)
class Sample:
    """What counts of one day, by column, MB or a number."""

    day: date
    values: Mapping[str, int | None]


@dataclass(frozen=True)
class Figure:
    """One figure: how it comes about, what comes out, and what is stored."""

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
    """A window of one subject: its samples, those of the window before, and the figures."""

    subject: Subject
    period: Period
    window: Window
    samples: tuple[Sample, ...]
    samples_before: tuple[Sample, ...]
    stored: Mapping[str, Value] | None
    today: date

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        """Every figure of the row, in the order of the table; none without a sample."""
        if not self.samples:
            return ()
        computed = dict(_figures(self.subject.level, self.window, self.samples, self.samples_before))
        stored = self.stored or {}
        return tuple(
            Figure(name, how, value, stored.get(name))
            for name in self.subject.level.figures
            for how, value in [computed[name]]
        )

    @property
    def missing_days(self) -> tuple[date, ...]:
        """Days of the window up to today without a sample."""
        there = {sample.day for sample in self.samples}
        last = min(self.window.end, self.today)
        days = (self.window.start + timedelta(days=n) for n in range((last - self.window.start).days + 1))
        return tuple(day for day in days if day not in there)

    @property
    def verdict(self) -> str:
        """Say in one sentence whether the stored row is what its samples give, and if not, why that may be."""
        if not self.samples:
            rest = "no row is stored either." if self.stored is None else "the row that is stored was kept."
            return f"The samples hold nothing for this window; {rest}"
        if self.stored is None and not self.subject.active:
            return "Nothing is stored for this window, and nothing will be: the server is not active."
        if self.stored is None:
            return "Nothing is stored for this window: it was not computed yet."
        wrong = [figure.name for figure in self.figures if not figure.agrees]
        if not wrong:
            return "Every stored figure is what its samples give."
        stored_samples = self.stored["data_count"]
        if isinstance(stored_samples, int) and stored_samples > len(self.samples):
            rebuild = "`capacity aggregate --overwrite` would rebuild it from those"
            return (
                f"The stored row was built from {stored_samples} samples, of which {len(self.samples)} are left. It is "
                f"protected; {rebuild if self.subject.active else 'the server is not active, so it stays'}."
            )
        return (
            f"{', '.join(wrong)}: stored otherwise than the samples give now. They changed after the row was computed, "
            "or those of the window before are gone. `capacity plan` says what a run would do."
        )


def find_subjects(engine: Engine, database: str | None, server: str | None) -> list[Subject]:
    """Return the databases of that exact name, or the server itself; of one server if it is named.

    A database is known by its samples, and where these are gone, by its aggregates.

    Raises:
        NotFoundError: no registered server has anything of that name.
        DatabaseError: the database failed.
    """
    known = select(instances.c.id, instances.c.name, is_active().label("active"))
    query = known if database is None else _those_with(database, known)
    if server is not None:
        query = query.where(instances.c.name == server)
    try:
        with engine.connect() as connection:
            named = select(instances.c.id).where(instances.c.name == server)
            if server is not None and connection.execute(named).first() is None:
                database = None  # the server is what is wrong
            rows = connection.execute(query.order_by(instances.c.name)).all()
    except DBAPIError as error:
        raise database_error(error, doing="looking the name up", kept="Nothing was written.") from error
    if not rows:
        what = f"server {server!r}" if database is None else f"database {database!r}"
        where = f" on server {server!r}" if server is not None and database is not None else ""
        raise NotFoundError(
            f"There is no {what}{where} among the registered servers: names are compared letter by letter. "
            "The view capacity_latest lists those that are known."
        )
    return [Subject(row.id, row.name, database, row.active) for row in rows]


def explain(engine: Engine, subject: Subject, period: Period, window: Window, today: date) -> Explanation:
    """Read the samples and the stored row of one window.

    Raises:
        DatabaseError: the database failed.
    """
    before = period.previous(window)
    target = subject.level.target
    row = select(*(target.c[name] for name in subject.level.figures)).where(
        *(target.c[name] == value for name, value in subject.key.items()),
        target.c.period_type == period.name,
        target.c.period_start == window.start,
    )
    try:
        with engine.connect() as connection:
            found = connection.execute(_samples(subject, before.start, window.end)).mappings().all()
            stored = connection.execute(row).mappings().one_or_none()
    except DBAPIError as error:
        raise database_error(error, doing="reading the samples", kept="Nothing was written.") from error
    samples = [Sample(one["day"], {m.source: _whole(one[m.source]) for m in subject.level.measures}) for one in found]
    return Explanation(
        subject,
        period,
        window,
        samples=tuple(sample for sample in samples if sample.day >= window.start),
        samples_before=tuple(sample for sample in samples if sample.day < window.start),
        stored=None if stored is None else dict(stored),
        today=today,
    )


def _those_with(database: str, servers: Select[int, str, bool]) -> Select[int, str, bool]:
    """Look server by server, by the keys that begin with the server: there is no index on names alone."""

    def rows_of(table: Table) -> LateralFromClause:
        named = and_(table.c.instance_id == instances.c.id, table.c.database_name == database)
        return select(literal(1).label("found")).where(named).limit(1).lateral()

    sampled, stored = rows_of(DATABASE.source), rows_of(DATABASE.target)
    either = or_(sampled.c.found.is_not(None), stored.c.found.is_not(None))
    return servers.select_from(instances.outerjoin(sampled, true()).outerjoin(stored, true())).where(either)


def _samples(subject: Subject, first: date, last: date) -> Select[object]:
    source = subject.level.source
    day = source.c.collected_date
    sums = (func.sum(source.c[measure.source]).label(measure.source) for measure in subject.level.measures)
    return (
        select(day.label("day"), *sums)
        .where(
            and_(*(source.c[name] == value for name, value in subject.key.items())),
            day.between(first, last),
            *subject.level.live(),
        )
        .group_by(day)
        .order_by(day)
    )


def _whole(value: object) -> int | None:
    return None if value is None else int(str(value))


def _figures(
    level: Level, window: Window, samples: Sequence[Sample], before: Sequence[Sample]
) -> Iterator[tuple[str, tuple[str, Value]]]:
    yield "period_end", ("last day of the window", window.end)
    yield "data_count", ("days with a sample", len(samples))
    for measure in level.measures:
        now, earlier = _known(samples, measure), _known(before, measure)
        yield from _own_figures(measure, samples)
        yield from _compared_figures(measure, now, earlier)
    for ratio in level.ratios:
        above, below = (sum(_values(samples, name)) for name in (ratio.numerator, ratio.denominator))
        how = f"{above:,} / {below:,}, rounded down" if below else "no database: 0"
        yield ratio.target, (how, above // below if below else 0)
    now, earlier = _known(samples, level.headline), _known(before, level.headline)
    yield "growth_rate", (f"{level.headline.change_percent} once more", _percent(now, earlier))
    yield "trend_direction", _trend(now, earlier)


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
        yield name, (f"{word} of {len(now)} values, on {day}", extreme)
    if measure.average_two_decimals:
        yield measure.average_two_decimals, (f"{mean}, to two decimals", _two_decimals(_mean(now)))


def _compared_figures(
    measure: Measure, now: Sequence[int], before: Sequence[int]
) -> Iterator[tuple[str, tuple[str, Value]]]:
    if not now or not before:
        reason = f"no value {'in the window before' if now else 'was measured'}: unknown"
        yield measure.change, (reason, None)
        yield measure.change_percent, (reason, None)
        return
    difference = _mean(now) - _mean(before)
    fractions = f"{sum(now):,} / {len(now)} - {sum(before):,} / {len(before)} = {_shown(difference)}"
    yield measure.change, (f"{fractions}, cut toward zero", math.trunc(difference))
    percent = _percent(now, before)
    if percent is None:
        yield measure.change_percent, ("the mean before is 0: no percent", None)
    else:
        how = f"{_shown(difference)} / {_shown(_mean(before))} x 100, half away from zero"
        yield measure.change_percent, (how, percent)


def _trend(now: Sequence[int], before: Sequence[int]) -> tuple[str, Value]:
    if not before:
        return "nothing to compare with", None
    percent = _percent(now, before)
    if percent is None:
        return "from 0", "growing" if sum(now) > 0 else "stable"
    if percent > TREND_THRESHOLD_PERCENT:
        return f"{percent} % is above {TREND_THRESHOLD_PERCENT} %", "growing"
    if percent < -TREND_THRESHOLD_PERCENT:
        return f"{percent} % is below -{TREND_THRESHOLD_PERCENT} %", "shrinking"
    return f"{percent} % is within {TREND_THRESHOLD_PERCENT} %", "stable"


def _percent(now: Sequence[int], before: Sequence[int]) -> Decimal | None:
    if not now or not before or not sum(before):
        return None
    return _two_decimals((_mean(now) - _mean(before)) / _mean(before) * 100)


def _mean(values: Sequence[int]) -> Fraction:
    return Fraction(sum(values), len(values))


def _two_decimals(value: Fraction) -> Decimal:
    """Round half away from zero."""
    hundredths = math.floor(abs(value) * 100 + Fraction(1, 2))
    return Decimal(hundredths if value >= 0 else -hundredths) / 100


def _shown(value: Fraction) -> str:
    """Render a fraction as a decimal number, marked where places are left out."""
    scaled = value * 10**PLACES_SHOWN
    shown = f"{Decimal(math.trunc(scaled)).scaleb(-PLACES_SHOWN):,f}"
    return shown.rstrip("0").rstrip(".") if scaled.denominator == 1 else f"{shown}..."
