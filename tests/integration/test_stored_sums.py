"""Long windows are made of stored shorter ones, and equal those that are computed from the days, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, LEVELS, Level
from capacity_assets.aggregates.runs import (
    AggregationWork,
    InstanceRef,
    RunOptions,
    StoredWindow,
    candidate_windows,
    shorter_periods,
)
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.database.engine import capacity_engine, disposed
from tests.clocks import fixed_clock
from tests.databases import TEMPLATE, Databases, execute, keep_rows, put_rows_back
from tests.fleet import Row, figures
from tests.long_windows import DAYS, FIRST, FromDays, days_read, fill, parts_read, windows
from tests.profiles import PROFILE

RECOMPUTE = RunOptions(recompute=True)
MONTHLY, QUARTERLY, YEARLY = (PERIODS[name] for name in ("monthly", "quarterly", "yearly"))
MIXED = "reads days and stored months of one window"
PUT_BACK = "replaces rows without firing triggers, which the nodes of a cluster have"
UNNOTICED = "deletes rows without firing triggers, which the nodes of a cluster have"


def months_computed(engine: Engine) -> None:
    fill(engine)
    AggregationService(engine, fixed_clock()).aggregate(MONTHLY, windows("monthly"))


PREPARED = {"filled": fill, "months": months_computed}


@pytest.fixture
def filled(engine: Engine) -> Engine:
    """Two years of samples."""
    return engine


@pytest.fixture
def months(engine: Engine) -> Engine:
    """Two years of samples, every month computed."""
    return engine


def starts(period: str, *days: str) -> list[tuple[str, date]]:
    return [(period, date.fromisoformat(day)) for day in days]


def test_a_quarter_is_made_of_its_months_and_a_year_of_its_quarters(months: Engine) -> None:
    service = AggregationService(months, fixed_clock())

    with parts_read(months) as quarter:
        service.aggregate(QUARTERLY, [QUARTERLY.window_of(date(2024, 5, 1))])
    with parts_read(months) as before_is_stored:
        service.aggregate(QUARTERLY, [QUARTERLY.window_of(date(2024, 8, 1))])
    service.aggregate(QUARTERLY, windows("quarterly"))
    with parts_read(months) as year:
        service.aggregate(YEARLY, [YEARLY.window_of(date(2025, 5, 1))])

    # Of 2023 there are no samples, and so nothing is stored.
    january_to_june = [f"2024-0{month}-01" for month in range(1, 7)]
    assert quarter["database"] == quarter["instance"] == starts("monthly", *january_to_june)
    # The quarter before is stored: its own row is compared with.
    of_the_third = starts("monthly", "2024-07-01", "2024-08-01", "2024-09-01")
    assert before_is_stored["database"] == of_the_third
    quarters = [f"{year}-{month:02}-01" for year in (2024, 2025) for month in (1, 4, 7, 10)]
    assert year["database"] == starts("quarterly", *quarters)


def test_the_newest_month_takes_those_it_is_compared_with_as_they_are_stored(filled: Engine) -> None:
    service = AggregationService(filled, fixed_clock())
    service.aggregate(MONTHLY, windows("monthly")[:-1])

    with days_read(filled) as read:
        service.aggregate(MONTHLY, windows("monthly")[-1:])

    assert read == {level: [(date(2025, 12, 1), date(2025, 12, 31))] for level in LEVELS}


def test_a_month_is_made_of_its_own_row_where_only_the_month_before_has_changed(filled: Engine) -> None:
    service = AggregationService(filled, fixed_clock())
    service.aggregate(MONTHLY, windows("monthly"))
    execute(filled, "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-11-09'")

    with parts_read(filled) as parts, days_read(filled) as days:
        service.aggregate(MONTHLY, windows("monthly")[-2:])

    assert parts["database"] == starts("monthly", "2025-12-01")
    assert days["database"] == [(date(2025, 11, 1), date(2025, 11, 30))]
    from_days = FromDays(filled, fixed_clock()).aggregate(
        MONTHLY, windows("monthly"), RunOptions(recompute=True, dry_run=True)
    )
    assert (from_days.total("written_records"), from_days.total("protected_records")) == (0, 0)


@pytest.mark.single_server(MIXED)
@pytest.mark.parametrize(
    ("statement", "unusable"),
    [
        ("UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2024-06-09'", ["2024-06-01"]),
        ("INSERT INTO database_size_stats (instance_id, database_name, collected_date, size_mb) "
         "VALUES (2, 'new', '2024-04-30', 1)", ["2024-04-01"]),
        ("DELETE FROM database_size_stats WHERE collected_date = '2024-06-09'", ["2024-06-01"]),
        ("UPDATE database_size_aggregations SET sum_size_mb = 7 WHERE period_start = '2024-06-01'",
         ["2024-04-01", "2024-05-01", "2024-06-01"]),
        ("UPDATE capacity_computed_windows SET fingerprint = repeat('0', 64) WHERE period_start = '2024-05-01'",
         ["2024-05-01"]),
        ("UPDATE capacity_computed_windows SET failed_instances = 1 WHERE period_start = '2024-05-01'",
         ["2024-05-01"]),
        ("DROP TRIGGER capacity_track_database_size_stats_insert ON database_size_stats",
         ["2024-04-01", "2024-05-01", "2024-06-01"]),
        # Other samples, servers and times than those of the months' own rows.
        ("UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2024-03-31'", []),
        ("UPDATE database_size_stats SET collected_at = now()", []),
        ("UPDATE instances SET is_active = false WHERE id = 2", []),
    ],
)  # fmt: skip
def test_a_month_that_may_not_hold_todays_samples_is_read_day_by_day(
    months: Engine, statement: str, unusable: list[str]
) -> None:
    service = AggregationService(months, fixed_clock())
    execute(months, statement)

    with parts_read(months) as read:
        service.aggregate(QUARTERLY, [QUARTERLY.window_of(date(2024, 5, 1))])

    own = {("monthly", date(2024, month, 1)) for month in (4, 5, 6)}
    assert own - set(read["database"]) == set(starts("monthly", *unusable))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM database_size_stats WHERE collected_date = '2024-05-09' AND instance_id = 1",
        "DELETE FROM database_size_stats WHERE collected_date >= '2024-05-01' AND database_name = 'archive'",
    ],
    ids=["some", "all"],
)
def test_a_month_whose_rows_differ_from_its_days_is_read_day_by_day(months: Engine, statement: str) -> None:
    service = AggregationService(months, fixed_clock())
    execute(months, statement)
    service.aggregate(MONTHLY, windows("monthly"))

    with parts_read(months) as read:
        service.aggregate(QUARTERLY, [QUARTERLY.window_of(date(2024, 5, 1))])

    assert ("monthly", date(2024, 5, 1)) not in read["database"]
    assert ("monthly", date(2024, 4, 1)) in read["database"]


@pytest.mark.single_server(UNNOTICED)
def test_a_month_whose_rows_left_with_their_partition_is_read_day_by_day(months: Engine) -> None:
    service = AggregationService(months, fixed_clock())
    # Which takes no trigger along.
    execute(
        months,
        "SET LOCAL session_replication_role = replica; "
        "DELETE FROM database_size_aggregations WHERE period_start = '2024-05-01'",
    )

    with parts_read(months) as read:
        service.aggregate(QUARTERLY, [QUARTERLY.window_of(date(2024, 5, 1))])

    assert ("monthly", date(2024, 5, 1)) not in read["database"]
    assert ("monthly", date(2024, 4, 1)) in read["database"]


def test_rows_of_an_older_version_without_sums_are_filled_by_computing_again(months: Engine) -> None:
    service = AggregationService(months, fixed_clock())
    complete = figures(months, DATABASE)
    with months.begin() as connection:
        emptied = ", ".join(f"{name} = NULL" for name in DATABASE.sums)
        connection.execute(text(f"UPDATE database_size_aggregations SET {emptied}"))

    service.aggregate(MONTHLY, windows("monthly"))

    assert figures(months, DATABASE) == complete
    assert tuple(DATABASE.sums) == ("sum_size_mb", "sum_data_size_mb", "count_data_size_mb", "sum_log_size_mb",
                             "count_log_size_mb", "sum_used_size_mb", "count_used_size_mb")  # fmt: skip
    assert tuple(INSTANCE.sums) == ("sum_total_size_mb", "sum_database_count")


def test_a_registered_half_year_is_made_of_quarters_and_half_years_make_a_year() -> None:
    half = Period("half_yearly", months=6)
    periods = {**PERIODS, half.name: half}
    year, first_half = YEARLY.window_of(date(2025, 1, 1)), half.window_of(date(2025, 3, 1))
    made_of = {period.name: shorter_periods(periods, period, DATABASE) for period in (YEARLY, half)}
    stored = candidate_windows(made_of["yearly"], YEARLY, [year]) | candidate_windows(
        made_of[half.name], half, [first_half]
    )

    def reading(period: Period, window: Window, usable: set[StoredWindow]) -> tuple[list[StoredWindow], list[Window]]:
        return AggregationWork(
            period, [window], [InstanceRef(1, "db-1")], shorter=made_of[period.name], usable=usable
        ).inputs

    quarters = [("quarterly", one) for one in _halves(QUARTERLY, first_half)]
    assert reading(half, first_half, stored - {(half.name, first_half)}) == (quarters, [])
    assert reading(half, first_half, stored) == ([(half.name, first_half)], []), "its own row"
    own_and_before, _ = reading(YEARLY, year, stored - {("yearly", YEARLY.window_of(date(2024, 1, 1)))})
    assert {name for name, _ in own_and_before} == {"half_yearly"}
    assert reading(half, first_half, set()) == ([], [Window(date(2024, 1, 1), date(2025, 6, 30))])


def _halves(period: Period, window: Window) -> tuple[Window, ...]:
    return period.windows_between(window.start, window.end)


CHANGES = {
    "late sample": "INSERT INTO {raw} ({keys}, {values}, collected_date) SELECT {keys}, {values}, date '{day}' "
    "FROM {raw} WHERE instance_id = {server} ORDER BY collected_date LIMIT 1 ON CONFLICT DO NOTHING",
    "correction": "UPDATE {raw} SET {headline} = {headline} + 5 WHERE collected_date = '{day}' "
    "AND instance_id = {server}",
    "foreign write": "UPDATE {target} SET data_count = data_count + 1 WHERE period_start <= '{day}' "
    "AND instance_id = {server} AND period_type = '{period}'",
    "rows gone": "DELETE FROM {target} WHERE period_start <= '{day}' AND period_type = '{period}'",
    "out of service": "UPDATE instances SET is_active = false WHERE id = {server}",
    "into service": "UPDATE instances SET is_active = true",
}
COMPUTED = ("weekly", "monthly", "quarterly", "yearly")
actions = st.lists(
    st.tuples(
        st.sampled_from([*CHANGES, *(f"compute {name}" for name in COMPUTED)]),
        st.integers(0, DAYS - 1),
        st.sampled_from([1, 2]),
        st.sampled_from(COMPUTED),
    ),
    min_size=1,
    max_size=6,
)


def _apply(engine: Engine, level: Level, action: tuple[str, int, int, str]) -> None:
    name, offset, server, period = action
    day = FIRST + timedelta(days=offset)
    if name.startswith("compute "):
        chosen = PERIODS[name.removeprefix("compute ")]
        last = min(day + timedelta(days=200), windows("daily")[-1].end)
        service = AggregationService(engine, fixed_clock())
        service.aggregate(chosen, chosen.windows_between(day, last), RunOptions((level.name,)))
        return
    words = {
        "raw": level.source.name, "target": level.target.name, "day": day, "server": server, "period": period,
        "keys": ", ".join(level.keys), "values": ", ".join(level.values), "headline": level.headline.source,
    }  # fmt: skip
    execute(engine, CHANGES[name].format(**words))


@pytest.fixture(scope="module")
def computed(cluster: Databases) -> Iterator[Engine]:
    """Two years of samples, with every window but the years computed; the rows are kept under `computed`."""
    with cluster.copy(TEMPLATE) as url, disposed(capacity_engine(url)) as engine:
        fill(engine)
        keep_rows(engine, "samples")
        service = AggregationService(engine, fixed_clock())
        for period in ("weekly", "monthly", "quarterly"):
            service.aggregate(period, windows(period))
        keep_rows(engine, "computed")
        yield engine


@pytest.mark.nightly("computes long histories")
@pytest.mark.single_server(PUT_BACK)
@given(
    history=actions,
    period=st.sampled_from(COMPUTED),
    level=st.sampled_from([DATABASE, INSTANCE]),
    span=st.tuples(st.integers(0, DAYS - 1), st.integers(0, 400)),
    overwrite=st.booleans(),
)
@hypothesis_settings(max_examples=PROFILE.long_histories, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happened_windows_equal_those_computed_from_the_days(
    computed: Engine,
    history: list[tuple[str, int, int, str]],
    period: str,
    level: Level,
    span: tuple[int, int],
    *,
    overwrite: bool,
) -> None:
    first = FIRST + timedelta(days=span[0])
    last = min(first + timedelta(days=span[1]), FIRST + timedelta(days=DAYS - 1))
    asked = PERIODS[period].windows_between(first, last)
    options = RunOptions((level.name,), overwrite=overwrite, recompute=True)
    put_rows_back(computed, "computed")
    for action in history:
        _apply(computed, level, action)
    keep_rows(computed, "before")

    from_days = FromDays(computed, fixed_clock()).aggregate(period, asked, options)
    expected = figures(computed, level)
    put_rows_back(computed, "before")
    made = AggregationService(computed, fixed_clock()).aggregate(period, asked, options)

    assert figures(computed, level) == expected
    assert [
        (p.processed_instances, p.total_records, p.protected_records, p.removed_records) for p in made.summaries
    ] == [(p.processed_instances, p.total_records, p.protected_records, p.removed_records) for p in from_days.summaries]


@pytest.fixture(scope="module")
def from_days(computed: Engine) -> dict[str, dict[tuple[object, ...], Row]]:
    """The figures of every window by level, computed from the days."""
    put_rows_back(computed, "samples")
    service = FromDays(computed, fixed_clock())
    for period in COMPUTED:
        service.aggregate(period, windows(period), RunOptions((DATABASE.name, INSTANCE.name)))
    return {level.name: figures(computed, level) for level in (DATABASE, INSTANCE)}


@pytest.mark.single_server(PUT_BACK)
@given(
    data=st.data(),
    level=st.sampled_from([DATABASE, INSTANCE]),
    purge=st.one_of(st.none(), st.integers(40, DAYS - 1)),
)
@hypothesis_settings(
    max_examples=max(3, PROFILE.long_histories // 3),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_in_any_order_and_in_any_batches_before_and_after_retention_the_rows_are_the_same(
    computed: Engine,
    from_days: dict[str, dict[tuple[object, ...], Row]],
    data: st.DataObject,
    level: Level,
    purge: int | None,
) -> None:
    """From samples or from stored windows: what was once computed stays what it was when samples are dropped."""
    options = RunOptions((level.name,), recompute=True)
    batches = [(period, batch) for period in COMPUTED for batch in _batches(data, windows(period))]
    put_rows_back(computed, "samples")
    service = AggregationService(computed, fixed_clock())
    for period, batch in data.draw(st.permutations(batches), "first"):
        service.aggregate(period, batch, options)
    assert figures(computed, level) == from_days[level.name]

    if purge is not None:
        day = FIRST + timedelta(days=purge)
        # As retention does, which drops a partition without a trigger.
        execute(
            computed,
            "SET LOCAL session_replication_role = replica; "
            f"DELETE FROM {level.source.name} WHERE collected_date < '{day}'",
        )
    for period, batch in data.draw(st.permutations(batches), "again"):
        service.aggregate(period, batch, options)
    assert figures(computed, level) == from_days[level.name]


def _batches(data: st.DataObject, every: tuple[Window, ...]) -> list[list[Window]]:
    """Cut all windows into some batches, in any order."""
    mixed = data.draw(st.permutations(every))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(every) - 1), max_size=2)) if len(every) > 1 else [])
    return [list(mixed[first:last]) for first, last in zip([0, *cuts], [*cuts, len(mixed)], strict=True)]
