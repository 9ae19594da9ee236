"""The SQL against the exact oracle, over generated histories: both levels, all periods."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from benchmarks import yardstick
from capacity_assets.aggregates.levels import DATABASE, INSTANCE, LEVELS, SERVER_LEVELS, Level
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.units import LARGEST_MB
from tests import oracle
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import Row, add_database_sizes, add_instance_sizes, add_instances, figures, load_sample
from tests.profiles import generated

# Around a leap day, a year's end and a week that belongs to two years.
FIRST_DAYS = (date(2024, 2, 1), date(2024, 12, 20), date(2023, 11, 25), date(2025, 3, 1))
# Several live rows of a day add up to no more than a size can be; larger ones have their own tests.
HUGE = LARGEST_MB // 10
SIZES = st.one_of(
    st.integers(0, 12), st.integers(0, 100_000), st.just(0), st.integers(-9, 9), st.integers(HUGE - 9, HUGE)
)
LEDGER = "capacity_computed_windows, capacity_changes"
# About so many windows of a period are also computed one by one.
ALONE = 8
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
    """Samples of one to three databases of a server."""
    rows: list[Row] = []
    for name in draw(st.sets(NAMES, min_size=1, max_size=3)):
        optional = draw(st.sampled_from([st.none(), SIZES, st.one_of(st.none(), SIZES)]))
        rows += [
            {
                "database_name": name,
                "collected_date": day,
                "size_mb": draw(SIZES),
                "data_size_mb": draw(optional),
                "log_size_mb": draw(optional),
                "used_size_mb": draw(optional),
            }
            for day in draw(days())
        ]
    return rows


@st.composite
def instance_history(draw: st.DrawFn) -> list[Row]:
    """Totals of a server."""
    return [
        {
            "collected_date": day,
            "total_size_mb": draw(SIZES),
            "database_count": draw(st.integers(0, 60)),
            "is_deleted": draw(st.sampled_from([False, False, False, True])),
        }
        for day in draw(days())
        # A legacy table without its unique index may hold a day twice.
        for _ in range(draw(st.sampled_from([1, 1, 1, 2])))
    ]


Histories = dict[int, list[Row]]


def histories(strategy: st.SearchStrategy[list[Row]]) -> Histories:
    """Generate one history per server; all are computed together."""
    return {
        number: [{"instance_id": number, **row} for row in rows] for number, rows in enumerate(generated(strategy), 1)
    }


def every(found: Histories) -> list[Row]:
    return [row for rows in found.values() for row in rows]


def expected(rows: list[Row], level: Level) -> dict[object, Row]:
    """Return the figures of one server, by key and window."""
    figures_of = {"database": oracle.database_figures, "instance": oracle.instance_figures}[level.name]
    by_key: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        by_key.setdefault(tuple(row[key] for key in level.keys), []).append(row)
    return {
        (*key, period, bounds[0]): computed
        for key, own in by_key.items()
        for period in PERIODS
        for bounds in windows(period, own)
        if (computed := figures_of(own, period, bounds)) is not None
    }


def windows(period: str, rows: list[Row]) -> list[tuple[date, date]]:
    return oracle.windows(period, [row["collected_date"] for row in rows])  # type: ignore[misc]


def assert_exact(engine: Engine, found: Histories, level: Level) -> None:
    """Compute all windows of a period at once, then some one by one."""
    service = AggregationService(engine, fixed_clock())
    collected = [row["collected_date"] for row in every(found)]
    for period in PERIODS:
        compute_windows(service, period, min(collected), max(collected), scope=level.name)  # type: ignore[type-var]
    computed = figures(engine, level)
    for rows in found.values():
        right = expected(rows, level)
        assert {key: computed.pop(key, None) for key in right} == right, rows
    assert computed == {}, "rows of windows without samples"

    complete = figures(engine, level)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {level.target.name}, {LEDGER}"))
    for period in PERIODS:
        bounds = windows(period, every(found))
        for one in bounds[:: len(bounds) // ALONE + 1]:
            service.aggregate(period, [Window(*one)], RunOptions((level.name,)))
    alone = figures(engine, level)
    assert alone
    assert alone == {key: complete[key] for key in alone}


def test_every_database_figure_of_every_period_equals_the_exact_oracle(engine: Engine) -> None:
    found = histories(database_history())
    add_instances(engine, found)
    add_database_sizes(engine, every(found))

    assert_exact(engine, found, DATABASE)


def test_every_instance_figure_of_every_period_equals_the_exact_oracle(engine: Engine) -> None:
    execute(engine, "DROP INDEX uq_instance_size_stats_instance_date")
    found = histories(instance_history())
    add_instances(engine, found)
    add_instance_sizes(engine, every(found))

    assert_exact(engine, found, INSTANCE)


@pytest.mark.nightly("computes every figure once more")
@pytest.mark.single_server("runs statements for a single server")
def test_the_statements_that_the_benchmark_compares_with_compute_every_figure(engine: Engine) -> None:
    load_sample(engine)
    service, tables = AggregationService(engine, fixed_clock()), [level.target.name for level in LEVELS.values()]
    for period in PERIODS.values():
        window, found = period.window_of(date(2025, 6, 15)), []
        for is_ours in (False, True):
            execute(engine, f"TRUNCATE {', '.join(tables)}")
            if is_ours:
                service.aggregate(period, [window])
            else:
                yardstick.compute(engine, period, window)
            found.append([figures(engine, level) for level in SERVER_LEVELS.values()])
        assert found[0] == found[1] != [{}, {}], period.name
