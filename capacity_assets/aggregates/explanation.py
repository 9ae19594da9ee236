"""One stored row traced to its samples, and its figures computed a second way, with fractions, in words.

The second way deliberately shares nothing with the SQL in `figures`, so that a person can check a figure by hand. It is
not used to compute stored figures.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import cached_property

from sqlalchemy import ARRAY, ColumnElement, Connection, Date, Engine, Table, any_, func, literal, select, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, Level
from capacity_assets.base.errors import NotFoundError, database_errors
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.trend import explained_trend
from capacity_assets.base.units import counted, suggestion
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.measures import Measure

Value = int | Decimal | str | date | None
Arithmetic = tuple[str, Value]
"""A sentence on how a figure is computed, and its value."""
Days = Mapping[date, int]
"""The measured values of one column, by day, in order."""
PLACES_SHOWN = 4


@dataclass(frozen=True)
class ValuesOfDay:
    """The measured values of one day, by column, MiB or a number."""

    day: date
    values: Mapping[str, int | None]


@dataclass(frozen=True)
class SamplesOfWindows:
    """Samples in the order of their days: of a window, of the one before, and of the one a year before."""

    own: tuple[ValuesOfDay, ...]
    before: tuple[ValuesOfDay, ...]
    year_before: tuple[ValuesOfDay, ...]


def reference_figures(
    level: Level, period: Period, window: Window, samples: SamplesOfWindows
) -> Iterator[tuple[str, Arithmetic]]:
    """Yield each figure of a row with its arithmetic; only the window itself needs a sample."""
    yield "period_end", ("last day of the window", window.end)
    yield "data_count", ("days with a sample", len(samples.own))
    for measure in level.measures:
        now, before = _days(samples.own, measure.source), _days(samples.before, measure.source)
        yield from _own_figures(measure, now)
        yield from _compared_figures(measure.change, measure.change_percent, now, before, "in the previous window")
        if measure.further:
            a_year_ago = _days(samples.year_before, measure.source)
            names = (measure.further.year_change, measure.further.year_change_percent)
            yield from _compared_figures(*names, now, a_year_ago, "a year before")
            yield measure.further.yearly_rate_percent, _yearly_rate(now, before, period.windows_per_year)
        total = (f"sum of {counted(len(now), 'value')}", Decimal(sum(now.values()))) if now else UNMEASURED
        count = UNMEASURED if measure.since and not now else ("values measured", len(now))
        sums = {f"sum_{measure.source}": total, f"count_{measure.source}": count}
        for name in sums.keys() & level.sums:
            yield name, sums[name] if window.days > 1 else ("not kept for a single day", None)
        if measure is level.headline:
            percent, total_before = _percent(now, before), sum(before.values()) if before else None
            yield "growth_rate", (f"the same as {measure.change_percent}", percent)
            yield "trend_direction", explained_trend(percent, sum(now.values()), total_before, period.trend_percent)
    for ratio in level.ratios:
        above, below = (sum(_days(samples.own, name).values()) for name in (ratio.numerator, ratio.denominator))
        how = f"{above:,} / {below:,}, rounded down" if below else "no database: 0"
        yield ratio.target, (how, above // below if below else 0)


UNMEASURED: Arithmetic = ("no value was measured", None)


def _days(samples: Sequence[ValuesOfDay], column: str) -> Days:
    return {sample.day: value for sample in samples if (value := sample.values[column]) is not None}


def _own_figures(measure: Measure, now: Days) -> Iterator[tuple[str, Arithmetic]]:
    if not now:
        further = measure.further.own if measure.further else ()
        names = (measure.average, measure.maximum, measure.minimum, measure.average_two_decimals, *further)
        yield from ((name, UNMEASURED) for name in names if name)
        return
    mean = f"{_fraction(now)} = {_decimal(_mean(now))}"
    yield measure.average, (f"{mean}, rounded down", math.floor(_mean(now)))
    for name, word, extreme in ((measure.maximum, "largest", max), (measure.minimum, "smallest", min)):
        day = extreme(now, key=now.__getitem__)
        yield name, (f"{word} of {counted(len(now), 'value')}, on {day}", now[day])
    if measure.average_two_decimals:
        yield measure.average_two_decimals, (f"{mean}, to two decimals", _two_decimals(_mean(now)))
    if measure.further:
        first, *_, last = [*now, *now]
        yield measure.further.last, (f"value of {last}, the last measured day", now[last])
        growth = (f"{now[last]:,} on {last} - {now[first]:,} on {first}", now[last] - now[first])
        yield measure.further.growth, growth if len(now) > 1 else ("a single measured day: unknown", None)


def _yearly_rate(now: Days, before: Days, windows_per_year: int | None) -> Arithmetic:
    if windows_per_year is None:
        return "only for windows of whole months", None
    if not now or not before or not _mean(before):
        return "no growth from an unknown mean, or from 0", None
    factor = _mean(now) / _mean(before)
    if factor < 0:
        return "no rate for a factor below zero", None
    how = f"({_decimal(_mean(now))} / {_decimal(_mean(before))}) to the power of {windows_per_year}, less 1, x 100"
    return how, _two_decimals((factor**windows_per_year - 1) * 100)


def _compared_figures(
    change: str, change_percent: str, now: Days, before: Days, when: str
) -> Iterator[tuple[str, Arithmetic]]:
    if not now or not before:
        unknown = (f"no value {when if now else 'was measured'}: unknown", None)
        yield from ((change, unknown), (change_percent, unknown))
        return
    difference, percent = _mean(now) - _mean(before), _percent(now, before)
    fractions = f"{_fraction(now)} - {_fraction(before)} = {_decimal(difference)}"
    yield change, (f"{fractions}, cut toward zero", math.trunc(difference))
    how = f"{_decimal(difference)} / {_decimal(_mean(before))} x 100, half away from zero"
    yield change_percent, ("the mean before is 0: no percent" if percent is None else how, percent)


def _percent(now: Days, before: Days) -> Decimal | None:
    if not now or not before or not _mean(before):
        return None
    return _two_decimals((_mean(now) - _mean(before)) / _mean(before) * 100)


def _mean(days: Days) -> Fraction:
    return Fraction(sum(days.values()), len(days))


def _fraction(days: Days) -> str:
    return f"{sum(days.values()):,} / {len(days)}"


def _two_decimals(value: Fraction) -> Decimal:
    """Round half away from zero."""
    hundredths = math.floor(abs(value) * 100 + Fraction(1, 2))
    # Not by division, which rounds to the digits of Python's decimal context.
    return Decimal(f"{hundredths if value >= 0 else -hundredths}e-2")


def _decimal(value: Fraction) -> str:
    """Return a fraction as a decimal number, with dots if digits are left out."""
    scaled = value * 10**PLACES_SHOWN
    shown = f"{Decimal(math.trunc(scaled)).scaleb(-PLACES_SHOWN):,f}"
    return shown.rstrip("0").rstrip(".") if scaled.denominator == 1 else f"{shown}..."


NAMES_COMPARED = 10_000
"""If a name is not found, it is compared with at most this many others."""


@dataclass(frozen=True)
class ExplainedSubject:
    """A server, or one of its databases."""

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
        return self.server if self.database is None else f"{self.database} on {self.server}"


@dataclass(frozen=True)
class Figure:
    """One figure: its arithmetic, its result, and the stored value."""

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
    """A window of one subject: its samples, those of the previous window and of a year before, and the figures."""

    subject: ExplainedSubject
    period: Period
    window: Window
    samples: SamplesOfWindows
    stored: Mapping[str, Value] | None
    today: date

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        """Every figure of the row, in the order of the table; none without a sample."""
        if not self.samples.own:
            return ()
        computed = dict(reference_figures(self.subject.level, self.period, self.window, self.samples))
        stored = self.stored or {}
        return tuple(Figure(name, *computed[name], stored.get(name)) for name in self.subject.level.figures)

    @property
    def missing_days(self) -> tuple[date, ...]:
        """Days of the window up to today without a sample."""
        there = {sample.day for sample in self.samples.own}
        return tuple(day for day in self.window.dates if day <= self.today and day not in there)

    @property
    def verdict(self) -> str:
        """A sentence on whether the stored row equals the result of its samples, and if not, on possible reasons."""
        if not self.samples.own:
            rest = "no row is stored either." if self.stored is None else "the stored row was kept."
            return f"There are no samples in this window; {rest}"
        if self.stored is None and not self.subject.active:
            return "Nothing is stored for this window, and nothing will be: the server is not active."
        if self.stored is None:
            return "Nothing is stored for this window: it was not computed yet."
        wrong = [figure.name for figure in self.figures if not figure.agrees]
        if not wrong:
            return "Every stored figure is what its samples give."
        return self._why_different(wrong, self.stored)

    def _why_different(self, wrong: list[str], stored: Mapping[str, Value]) -> str:
        """Return why stored figures may differ from those of the samples."""
        stored_samples = stored["data_count"]
        if isinstance(stored_samples, int) and stored_samples > len(self.samples.own):
            rebuild = "`capacity aggregate --overwrite` would rebuild it from those"
            return (
                f"The stored row was built from {counted(stored_samples, 'sample')}; {len(self.samples.own)} remain. "
                f"It is protected; {rebuild if self.subject.active else 'the server is not active, so it stays'}."
            )
        if all(name in self.subject.level.added_later and stored[name] is None for name in wrong):
            return (
                f"{', '.join(wrong)}: not stored, because an older version computed this window, or samples were "
                "imported since. Materialise it again."
            )
        return (
            f"{', '.join(wrong)}: the stored values differ from the current samples. These changed after the row was "
            "computed, or samples of the previous window or of a year before are gone. `capacity plan` says what a run "
            "would do."
        )


def find_subjects(engine: Engine, database: str | None, server: str | None) -> list[ExplainedSubject]:
    """Return the databases of that exact name, or the server itself; of one server if it is named.

    A database is found by its samples or, if these were dropped, by its aggregates.

    Raises:
        NotFoundError: no registered server has a database of that name, or is named so.
        DatabaseError: the database failed.
    """
    parameters = {"database": database, "server": server, "most": NAMES_COMPARED}
    with database_errors(doing="looking up the name"), engine.connect() as connection:
        servers = _SERVERS_ON_NODES if tables_are_distributed(connection) else _SERVERS
        rows = connection.execute(text(servers), parameters).all()
        if not rows:
            raise _unknown(connection, parameters)
    return [ExplainedSubject(row.id, row.name, database, row.active) for row in rows]


def _unknown(connection: Connection, parameters: Mapping[str, object]) -> NotFoundError:
    database, server = parameters["database"], parameters["server"]
    where = "" if server is None else f" on server {server!r}"
    what, written, names = f"database {database!r}{where}", database, _NAMES if server is None else _NAMES_ON_SERVER
    servers = connection.execute(text("SELECT name FROM instances")).scalars().all()
    if database is None or (server is not None and server not in servers):
        what, written, known = f"server {server!r}", server, servers
        listing = "`capacity instances list` shows all."
    else:
        listing = "The view capacity_latest lists all known names."
        if server is not None:
            listing = f"`capacity runway {shlex.quote(str(server))}` lists its databases."
        known = connection.execute(text(names), parameters).scalars().all()
    return NotFoundError(
        f"There is no {what} among the registered servers: names must match exactly."
        f"{suggestion(str(written), known)} {listing}"
    )


# Searched by server and day, because keys begin with the day and there is no index on names. Implausible days, such as
# infinity, would be as many days to search.
_SERVERS = """
SELECT i.id, i.name, i.is_active AND i.deleted_at IS NULL AS active FROM instances i
WHERE (CAST(:server AS text) IS NULL OR i.name = :server) AND (
    CAST(:database AS text) IS NULL
    OR EXISTS (
        SELECT FROM (SELECT min(collected_date) AS first, max(collected_date) AS last FROM database_size_stats
                     WHERE collected_date BETWEEN DATE '1900-01-01' AND current_date + 1) AS e
        CROSS JOIN LATERAL generate_series(0, e.last - e.first) AS back
        CROSS JOIN LATERAL (
            SELECT FROM database_size_stats r
            WHERE r.collected_date = e.last - back AND r.instance_id = i.id AND r.database_name = :database LIMIT 1
        ) AS sampled
    ) OR EXISTS (
        SELECT FROM capacity_computed_windows w CROSS JOIN LATERAL (
            SELECT FROM database_size_aggregations a
            WHERE a.period_type = w.period_type AND a.period_start = w.period_start
              AND a.instance_id = i.id AND a.database_name = :database LIMIT 1
        ) AS stored
        WHERE w.level = 'database'
    )
) ORDER BY i.name
"""
# On distributed rows, each node searches its own servers.
_SERVERS_ON_NODES = """
SELECT i.id, i.name, i.is_active AND i.deleted_at IS NULL AS active FROM instances i
WHERE (CAST(:server AS text) IS NULL OR i.name = :server) AND (
    CAST(:database AS text) IS NULL
    OR i.id IN (SELECT DISTINCT instance_id FROM database_size_stats WHERE database_name = :database)
    OR i.id IN (SELECT DISTINCT instance_id FROM database_size_aggregations WHERE database_name = :database)
) ORDER BY i.name
"""
# Only of the newest day, so that not every sample of the fleet is read.
_NAMES = """
SELECT DISTINCT database_name FROM database_size_stats
WHERE collected_date = (SELECT max(collected_date) FROM database_size_stats)
  AND instance_id IN (SELECT id FROM instances)
LIMIT :most
"""
# Of all days, which are listed because the key begins with the day.
_NAMES_ON_SERVER = """
SELECT DISTINCT database_name FROM database_size_stats
WHERE instance_id = (SELECT id FROM instances WHERE name = :server) AND collected_date = ANY (ARRAY(
    SELECT e.last - back
    FROM (SELECT min(collected_date) AS first, max(collected_date) AS last FROM database_size_stats
          WHERE collected_date BETWEEN DATE '1900-01-01' AND current_date + 1) AS e
    CROSS JOIN LATERAL generate_series(0, e.last - e.first) AS back))
LIMIT :most
"""


def explanation_of(
    engine: Engine, subject: ExplainedSubject, period: Period, window: Window, today: date
) -> Explanation:
    """Read the samples and the stored row of one window; raises DatabaseError."""
    level, target, raw = subject.level, subject.level.target, subject.level.source
    day, sums = raw.c.collected_date, [func.sum(raw.c[name]) for name in level.values]

    def of_subject(table: Table) -> list[ColumnElement[bool]]:
        return [table.c[name] == value for name, value in subject.key.items()]

    def samples_of(connection: Connection, some: Window) -> tuple[ValuesOfDay, ...]:
        # Listed, because the key begins with the day.
        days = day == any_(literal(some.dates, ARRAY(Date)))
        rows = select(day, *sums).where(*of_subject(raw), days, *level.live()).group_by(day).order_by(day)
        values = (
            (day, [None if value is None else int(value) for value in sums]) for day, *sums in connection.execute(rows)
        )
        return tuple(ValuesOfDay(day, dict(zip(level.values, some, strict=True))) for day, some in values)

    is_window = (target.c.period_type == period.name, target.c.period_start == window.start)
    row = select(*(target.c[name] for name in level.figures)).where(*of_subject(target), *is_window)
    with database_errors(doing="reading the samples"), engine.connect() as connection:
        windows = (window, period.previous(window), period.year_before(window))
        read = SamplesOfWindows(*(samples_of(connection, some) for some in windows))
        stored = connection.execute(row).mappings().one_or_none()
    return Explanation(subject, period, window, read, None if stored is None else dict(stored), today)
