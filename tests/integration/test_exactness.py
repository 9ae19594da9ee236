"""The SQL against the exact oracle, over generated histories: both levels, all periods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregation.options import RunOptions
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.foundation.levels import DATABASE, INSTANCE, Level
from capacity_assets.periods import PERIODS, Window
from capacity_assets.storage.engine import capacity_engine
from capacity_assets.units import LARGEST_MB
from tests import oracle
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.databases import TEMPLATE, Databases
from tests.fleet import Row, add_database_sizes, add_instance_sizes, add_instances, figures
from tests.profiles import HISTORIES

# Around a leap day, a year's end and a week that belongs to two years.
FIRST_DAYS = (date(2024, 2, 1), date(2024, 12, 20), date(2023, 11, 25), date(2025, 3, 1))
# Several live rows of a day add up to no more than a size can be; larger ones have their own tests.
HUGE = LARGEST_MB // 10
SIZES = st.one_of(
    st.integers(0, 12), st.integers(0, 100_000), st.just(0), st.integers(-9, 9), st.integers(HUGE - 9, HUGE)
)
LEDGER = "capacity_computed_windows, capacity_changes"
NAMES = st.one_of(
    st.sampled_from(
        ["orders", "Orders", 'a"b', "o'clock; DROP TABLE instances;--", "two\nlines", "💾", "x" * 255, " "]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=8),
)


@st.composite
def days(draw: st.DrawFn) -> list[date]:
    """A few days with gaps, spread over one to three hundred days; some of them a year later once more."""
    first = draw(st.sampled_from(FIRST_DAYS))
    spread = draw(st.sampled_from([3, 20, 100, 300]))
    offsets = draw(st.sets(st.integers(0, spread), min_size=1, max_size=12))
    years_later = draw(st.sets(st.sampled_from(sorted(offsets)), max_size=4)) if draw(st.booleans()) else set()
    offsets |= {offset + draw(st.sampled_from([364, 365, 366])) for offset in years_later}
    return [first + timedelta(days=offset) for offset in sorted(offsets)]


@st.composite
def database_history(draw: st.DrawFn) -> list[Row]:
    rows: list[Row] = []
    for instance_id in range(1, draw(st.integers(1, 3)) + 1):
        for name in draw(st.sets(NAMES, min_size=1, max_size=2)):
            optional = draw(st.sampled_from([st.none(), SIZES, st.one_of(st.none(), SIZES)]))
            rows += [
                {
                    "instance_id": instance_id,
                    "database_name": name,
                    "collected_date": day,
                    "size_mb": draw(SIZES),
                    "data_size_mb": draw(optional),
                    "log_size_mb": draw(optional),
                }
                for day in draw(days())
            ]
    return rows


@st.composite
def instance_history(draw: st.DrawFn) -> list[Row]:
    return [
        {
            "instance_id": instance_id,
            "collected_date": day,
            "total_size_mb": draw(SIZES),
            "database_count": draw(st.integers(0, 60)),
            "is_deleted": draw(st.sampled_from([False, False, False, True])),
        }
        for instance_id in range(1, draw(st.integers(1, 3)) + 1)
        for day in draw(days())
        # A legacy table without its unique index may hold a day twice.
        for _ in range(draw(st.sampled_from([1, 1, 1, 2])))
    ]


@pytest.fixture(scope="module")
def emptied(cluster: Databases) -> Iterator[Callable[[], Engine]]:
    """An engine on one database for the whole module, emptied for each history."""
    with cluster.copy(TEMPLATE) as url:
        engine = capacity_engine(url)
        yield _emptying(engine)
        engine.dispose()


def _emptying(engine: Engine) -> Callable[[], Engine]:
    add_instances(engine, range(1, 4))
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX uq_instance_size_stats_instance_date"))

    def empty() -> Engine:
        with engine.begin() as connection:
            for level in (DATABASE, INSTANCE):
                connection.execute(text(f"DELETE FROM {level.source.name}"))
                connection.execute(text(f"DELETE FROM {level.target.name}"))
            # Else every window of every history before would be looked at too.
            connection.execute(text(f"TRUNCATE {LEDGER}"))
        return engine

    return empty


def expected(rows: list[Row], level: Level, figures_of: Callable[..., oracle.Figures | None]) -> dict[object, Row]:
    by_key: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        by_key.setdefault(tuple(row[key] for key in level.keys), []).append(row)
    result: dict[object, Row] = {}
    for key, own in by_key.items():
        for period in PERIODS:
            for bounds in oracle.windows(period, [row["collected_date"] for row in own]):  # type: ignore[misc]
                computed = figures_of(own, period, bounds)
                if computed is not None:
                    result[(*key, period, bounds[0])] = computed
    return result


def compute_everything(engine: Engine, rows: list[Row], level: Level, *, one_by_one: bool) -> None:
    """All windows of a period at once, or each by itself, for which the statement has another form."""
    service = AggregationService(engine, fixed_clock())
    collected = [row["collected_date"] for row in rows]
    for period in PERIODS:
        if one_by_one:
            for bounds in oracle.windows(period, collected):  # type: ignore[arg-type]
                service.aggregate(period, [Window(*bounds)], RunOptions((level.name,)))
        else:
            compute_windows(service, period, min(collected), max(collected), scope=level.name)  # type: ignore[type-var]


@given(rows=database_history(), one_by_one=st.booleans())
@settings(max_examples=HISTORIES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_every_database_figure_of_every_period_equals_the_exact_oracle(
    emptied: Callable[[], Engine], rows: list[Row], *, one_by_one: bool
) -> None:
    engine = emptied()
    add_database_sizes(engine, rows)

    compute_everything(engine, rows, DATABASE, one_by_one=one_by_one)

    assert figures(engine, DATABASE) == expected(rows, DATABASE, oracle.database_figures)


@given(rows=instance_history(), one_by_one=st.booleans())
@settings(max_examples=HISTORIES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_every_instance_figure_of_every_period_equals_the_exact_oracle(
    emptied: Callable[[], Engine], rows: list[Row], *, one_by_one: bool
) -> None:
    engine = emptied()
    add_instance_sizes(engine, rows)

    compute_everything(engine, rows, INSTANCE, one_by_one=one_by_one)

    assert figures(engine, INSTANCE) == expected(rows, INSTANCE, oracle.instance_figures)
