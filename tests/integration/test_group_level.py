"""The level of groups: its rows are those of a naive computation, whatever changes in between, and add up."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import date, timedelta

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.checks import CheckScope, run_checks
from capacity_assets.aggregates.levels import GROUP
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.aggregates.task_runner import AggregationTaskRunner, follow_labels
from capacity_assets.base.periods import PERIODS as PERIODS_BY_NAME
from capacity_assets.base.units import LARGEST_MB
from capacity_assets.ownership.labels import Label, declare_labels, explain_group
from capacity_assets.reading.groups import groups_of, short_servers
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, figures, sizes, totals
from tests.long_windows import FromDays, days_read
from tests.oracle_groups import ALWAYS, Fleet, Held, expected
from tests.profiles import HISTORIES

FIRST = date(2024, 6, 20)
DAYS = 395
PERIODS = ("daily", "weekly", "monthly", "quarterly", "yearly")
NAMES = ("pay_a", "pay_b", "other")
# Of the days of a server: those on which a database is impossible, or leaves no room for another like it.
HUGE_SHARE = 0.01
# All histories are computed together; each has servers and values of labels of its own.
EACH = 3


def random_fleet(choose: random.Random) -> Fleet:
    """Servers with totals, some totals or none; databases that come and go; labels that change in between."""
    fleet = Fleet({}, {}, {}, random_labels(choose))
    for server in range(1, EACH * HISTORIES + 1):
        fleet.engines[server] = choose.choice(("mysql", "oracle"))
        if server % EACH == 0 and choose.random() < 0.5:
            fleet.counted_by[server] = server - 1
        has_totals = choose.choice((0, 1, 1, 0.8))
        begins = {name: choose.choice((0, 0, 100, 390)) for name in NAMES}
        spread = choose.choice((8, 40, DAYS))
        first = choose.randint(0, DAYS - spread)
        # The first is there on every day.
        numbers = choose.sample(range(first, first + spread), min(spread, 12)) if server > 1 else range(DAYS)
        for number in numbers:
            day = FIRST + timedelta(days=number)
            here = {name: choose.randint(0, 500) for name in NAMES if number >= begins[name]}
            if choose.random() < HUGE_SHARE:
                here[NAMES[0]] = choose.choice((LARGEST_MB // 2, LARGEST_MB, LARGEST_MB + 1, 2**63 - 1))
            fleet.sizes.update({(server, name, day): size for name, size in here.items()})
            if choose.random() < has_totals:
                measured = min(2**63 - 1, max(0, sum(here.values()) + choose.randint(-3, 9)))
                fleet.totals[server, day] = (measured, len(here) + choose.randint(0, 1))
    return fleet


def random_labels(choose: random.Random) -> list[Held]:
    found = {}
    for history in range(HISTORIES):
        for _ in range(9):
            server = EACH * history + choose.randint(1, EACH)
            pattern = choose.choice(("", "", "pay_a", "pay_*", "*", "oth*", "p?y_b"))
            key = choose.choice(("team", "service"))
            value = choose.choice((f"red {history}", f"blue {history}", None))
            day = choose.choice((ALWAYS, FIRST + timedelta(days=choose.randint(0, DAYS))))
            found[server, pattern, key, day] = Held(server, pattern, key, value, day)
    return list(found.values())


def fill(engine: Engine, fleet: Fleet) -> None:
    for server, db_type in fleet.engines.items():
        add_instances(engine, [server], db_type=db_type, counted_by=fleet.counted_by.get(server))
    add_database_sizes(
        engine,
        [
            {"instance_id": server, "database_name": name, "collected_date": day, "size_mb": size}
            for (server, name, day), size in fleet.sizes.items()
        ],
    )
    add_instance_sizes(
        engine,
        [
            {"instance_id": server, "collected_date": day, "total_size_mb": total, "database_count": many}
            for (server, day), (total, many) in fleet.totals.items()
        ],
    )
    declare(engine, fleet.labels)


def declare(engine: Engine, labels: Sequence[Held]) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM capacity_labels"))
        connection.execute(
            text(
                "INSERT INTO capacity_labels (instance_id, database_pattern, key, value, valid_from) "
                "VALUES (:server, :pattern, :key, :value, :valid_from)"
            ),
            [vars(one) for one in labels],
        )


def compute(service: AggregationService, order: tuple[str, ...]) -> None:
    for period in order:
        compute_windows(service, period, FIRST, TODAY, scope="group")


def assert_as_expected(engine: Engine, fleet: Fleet) -> None:
    days = fleet.days()
    for period in PERIODS:
        assert figures(engine, GROUP, period) == expected(days, period), period


def assert_adding_up(engine: Engine) -> None:
    """The values of each key add up to the fleet exactly, and what is measured is what the servers have."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT *, coalesce(sum_size_mb, avg_size_mb) AS size FROM group_size_aggregations")
        ).all()
    sums: dict[tuple[str, date, str], int] = defaultdict(int)
    for row in rows:
        sums[row.period_type, row.period_start, row.label_key] += row.size
    for (period, start, _), size in sums.items():
        assert size == sums.get((period, start, "(fleet)"), 0), "where every server is left out, there is no fleet"


def test_groups_equal_a_naive_computation_after_any_change(engine: Engine, service: AggregationService) -> None:
    choose = random.Random(7)  # noqa: S311 -- reproducible
    fleet = random_fleet(choose)
    fill(engine, fleet)
    compute(service, PERIODS)
    assert_as_expected(engine, fleet)
    assert_adding_up(engine)

    # In each history labels, an engine and a replica change, and a database is gone on some days.
    second = range(2, EACH * HISTORIES + 1, EACH)
    changed = Fleet(
        fleet.engines | dict.fromkeys(second, "postgresql"),
        {key: size for key, size in fleet.sizes.items() if key[0] % EACH or key[1] != "other" or key[2].day > 20},
        fleet.totals,
        random_labels(choose),
        {server: server - 1 for server in second},
    )
    declare(engine, changed.labels)
    execute(
        engine,
        f"UPDATE instances SET db_type = 'postgresql' WHERE id % {EACH} = 2",
        f"UPDATE instances SET counted_by = CASE id % {EACH} WHEN 2 THEN id - 1 END",
        f"DELETE FROM database_size_stats WHERE instance_id % {EACH} = 0 AND database_name = 'other' "
        "AND extract(day FROM collected_date) <= 20",
    )
    compute(service, tuple(choose.sample(PERIODS, len(PERIODS))))

    assert_as_expected(engine, changed)
    assert_adding_up(engine)


@pytest.mark.nightly("computes every history once more")
def test_windows_of_stored_days_equal_those_of_samples_in_any_order(
    engine: Engine, service: AggregationService
) -> None:
    choose = random.Random(7)  # noqa: S311 -- reproducible
    fill(engine, random_fleet(choose))
    compute(FromDays(engine, fixed_clock()), PERIODS)
    from_samples = figures(engine, GROUP)
    execute(engine, "TRUNCATE group_size_aggregations, capacity_computed_windows")

    spans = [(period, FIRST + timedelta(days=day)) for period in PERIODS for day in range(0, DAYS, 80)]
    for period, first in choose.sample(spans, len(spans)):
        compute_windows(service, period, first, first + timedelta(days=79), scope="group")

    assert figures(engine, GROUP) == from_samples


@pytest.mark.usefixtures("two_months")
def test_only_days_that_are_not_stored_or_changed_are_added_up_again(
    engine: Engine, service: AggregationService
) -> None:
    execute(
        engine,
        "UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-04-05'",
        "DELETE FROM capacity_computed_windows WHERE period_start = '2025-04-09' AND period_type = 'daily'",
    )

    with days_read(engine) as read:
        compute_windows(service, "monthly", APRIL, APRIL, scope="group")

    assert [first.day for first, last in read["group"] if first == last] == [5, 9]
    assert len(read["group"]) == 2 + 1, "the month a year before was never computed"


MARCH, APRIL, SIXTY_ONE = date(2025, 3, 1), date(2025, 4, 1), 61


def fill_two_months(engine: Engine) -> None:
    """March and April of two servers, of whose databases one has an owner of its own."""
    add_instances(engine, [1, 2])
    for server, size in ((1, 100), (2, 50)):
        add_database_sizes(engine, sizes(server, "pay", MARCH.isoformat(), [size + day for day in range(SIXTY_ONE)]))
        add_database_sizes(engine, sizes(server, "other", MARCH.isoformat(), [1000] * SIXTY_ONE))
        measured = [(1000 + size + day, 2) for day in range(SIXTY_ONE)]
        add_instance_sizes(engine, totals(server, MARCH.isoformat(), measured))
    declare_labels(engine, [Label("server-1", None, "team", "red"), Label("server-1", "pay", "team", "blue")], TODAY)
    service = AggregationService(engine, fixed_clock())
    for period in ("daily", "monthly"):
        compute_windows(service, period, MARCH, APRIL + timedelta(days=29))


PREPARED = {"two_months": fill_two_months}


@pytest.fixture
def two_months(engine: Engine) -> Engine:
    return engine


def runner_of(service: AggregationService) -> AggregationTaskRunner:
    return AggregationTaskRunner(service)


def stale(service: AggregationService) -> set[tuple[str, str, date]]:
    found = runner_of(service).stale_windows()
    return {(one.period_type, one.level, one.window.start) for one in found}


def size_of(engine: Engine, key: str, value: str, start: date, period: str = "monthly") -> int | None:
    return figures(engine, GROUP, period).get((key, value, period, start), {}).get("avg_size_mb")  # type: ignore[return-value]


ALL, SINCE_APRIL = {MARCH, APRIL}, {APRIL}
CHANGES = {
    "an owner": (
        "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
        "VALUES (2, '', 'team', '2025-04-02', 'green')",
        SINCE_APRIL,
    ),
    "an owner of another name": ("UPDATE capacity_labels SET value = 'green' WHERE value = 'blue'", ALL),
    "an owner that goes": ("DELETE FROM capacity_labels WHERE database_pattern <> ''", ALL),
    "a key that was not there": (
        "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
        "VALUES (1, '', 'service', '2025-04-20', 'shop'), (2, '', 'service', '2025-04-20', 'shop')",
        ALL,
    ),
    "another key for two labels": ("UPDATE capacity_labels SET key = 'owner'", ALL),
    "every label": ("TRUNCATE capacity_labels", ALL),
    "an engine": ("UPDATE instances SET db_type = 'oracle' WHERE id = 1", ALL),
    "a replica": ("UPDATE instances SET counted_by = 1 WHERE id = 2", ALL),
    "a server that is not registered any more": ("DELETE FROM instances WHERE id = 2", ALL),
    "a sample": ("UPDATE database_size_stats SET size_mb = 7 WHERE collected_date = '2025-04-05'", SINCE_APRIL),
    "a label of days to come": (
        "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
        "VALUES (2, '', 'team', '2030-01-01', 'green')",
        set(),
    ),
    "where a server is": ("UPDATE instances SET host = 'elsewhere'", set()),
    "a server that is new": (
        "INSERT INTO instances (id, name, db_type, host, port) VALUES (9, 'server-9', 'oracle', '192.0.2.9', 1521)",
        set(),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.usefixtures("two_months")
def test_a_change_makes_the_groups_stale_that_it_touches_whoever_made_it(
    engine: Engine, service: AggregationService, change: str
) -> None:
    statement, touched = CHANGES[change]
    execute(engine, statement)

    found = {start for period, level, start in stale(service) if (period, level) == ("monthly", "group")}
    assert found == touched
    follow_labels(runner_of(service), None)

    assert {level for _, level, _ in stale(service)} <= {"database"}
    followed = figures(engine, GROUP)
    for period in ("daily", "monthly"):
        windows_of = service.period(period).windows_between(MARCH, APRIL + timedelta(days=29))
        service.aggregate(period, windows_of, RunOptions(levels=("group",), overwrite=True))
    assert figures(engine, GROUP) == followed
    assert_adding_up(engine)


@pytest.mark.usefixtures("two_months")
def test_a_label_that_is_committed_late_is_not_missed(engine: Engine, service: AggregationService) -> None:
    with engine.connect() as late:
        late.execute(text("UPDATE capacity_labels SET value = 'green' WHERE value = 'blue'"))
        execute(engine, "UPDATE capacity_labels SET value = 'gold' WHERE value = 'red'")
        follow_labels(runner_of(service), None)
        late.commit()

    assert ("monthly", "group", APRIL) in stale(service)
    follow_labels(runner_of(service), None)

    assert stale(service) == set()
    assert (size_of(engine, "team", "green", APRIL), size_of(engine, "team", "blue", APRIL)) == (145, None)


@pytest.mark.usefixtures("two_months")
def test_the_check_finds_rows_of_any_window_that_do_not_add_up(engine: Engine) -> None:
    every = PERIODS_BY_NAME["monthly"].windows_between(MARCH, APRIL)
    scope = CheckScope("monthly", GROUP, every[-1:], TODAY, 50, every=every)

    def found() -> tuple[str, ...]:
        outcomes = [one for one in run_checks(engine, scope) if one.name == "groups_add_up"]
        return tuple(sorted(place for outcome in outcomes for place in outcome.listed))

    assert found() == ()
    execute(engine, "UPDATE group_size_aggregations SET sum_size_mb = 1 WHERE label_value IN ('red', 'postgresql')")
    assert [place.partition(": ")[0] for place in found()] == [
        "by engine in the window from 2025-03-01",
        "by engine in the window from 2025-04-01",
        "by team in the window from 2025-03-01",
        "by team in the window from 2025-04-01",
    ]


@pytest.mark.usefixtures("two_months")
def test_daily_rows_stand_for_samples_that_retention_has_dropped(engine: Engine, service: AggregationService) -> None:
    before = figures(engine, GROUP)
    execute(engine, *(f"TRUNCATE {table}" for table in ("database_size_stats", "instance_size_stats")))

    compute(service, ("daily", "monthly"))
    assert figures(engine, GROUP) == before

    declare_labels(engine, [Label("server-2", "pay", "team", "blue", ALWAYS)], TODAY)
    follow_labels(runner_of(service), None)
    # 50 less of the other server, on each day.
    assert size_of(engine, "team", "blue", APRIL) == 145 + 96
    assert_adding_up(engine)


@pytest.mark.usefixtures("two_months")
def test_a_window_of_which_days_are_gone_is_kept_and_compared_with_as_it_is_stored(
    engine: Engine, service: AggregationService
) -> None:
    before = figures(engine, GROUP, "monthly")
    for table in ("database_size", "instance_size"):
        execute(
            engine,
            f"DELETE FROM {table}_stats WHERE collected_date < '2025-03-20'",
            f"DELETE FROM {table}_aggregations WHERE period_type = 'daily' AND period_start < '2025-03-20'",
        )
    declare_labels(engine, [Label("server-2", None, "team", "red", ALWAYS)], TODAY)

    compute_windows(service, "monthly", MARCH, APRIL, scope="group")

    after = figures(engine, GROUP, "monthly")
    assert {key: row for key, row in after.items() if key[3] == MARCH} == {
        key: row for key, row in before.items() if key[3] == MARCH
    }
    assert after["(fleet)", "(fleet)", "monthly", APRIL] == before["(fleet)", "(fleet)", "monthly", APRIL]
    # In March, server-2 had no owner.
    assert after["team", "red", "monthly", APRIL]["size_change_mb"] == 1000 + 95
    assert_adding_up(engine)


@pytest.mark.usefixtures("two_months")
def test_a_day_that_lost_a_server_with_its_samples_is_kept(engine: Engine, service: AggregationService) -> None:
    compute_windows(service, "daily", MARCH, date(2025, 3, 31), scope="group")
    before = {period: figures(engine, GROUP, period) for period in ("daily", "monthly")}
    for table in ("database_size", "instance_size"):
        execute(
            engine,
            f"DELETE FROM {table}_stats WHERE collected_date = '2025-03-10'",
            # As if server-2 had been out of service before its day was computed.
            f"DELETE FROM {table}_aggregations WHERE period_type = 'daily' AND period_start = '2025-03-10' "
            "AND instance_id = 2",
        )
    declare_labels(engine, [Label("server-1", None, "team", "red", ALWAYS)], TODAY)

    for period in ("daily", "monthly"):
        compute_windows(service, period, MARCH, date(2025, 3, 31), scope="group")

    after = {period: figures(engine, GROUP, period) for period in ("daily", "monthly")}
    lost = date(2025, 3, 10)
    assert [row for key, row in after["daily"].items() if key[3] == lost] == [
        row for key, row in before["daily"].items() if key[3] == lost
    ]
    fleet = ("(fleet)", "(fleet)", "monthly", MARCH)
    assert after["monthly"][fleet] == before["monthly"][fleet]
    assert ("team", "red", "daily", date(2025, 3, 11)) in after["daily"]


@pytest.mark.usefixtures("two_months")
def test_an_impossible_total_gives_way_to_the_sum_of_its_databases(engine: Engine, service: AggregationService) -> None:
    before = size_of(engine, "(fleet)", "(fleet)", date(2025, 4, 5), "daily")
    execute(
        engine,
        f"UPDATE instance_size_stats SET total_size_mb = {2**60} "
        "WHERE instance_id = 1 AND collected_date = '2025-04-05'",
    )

    compute_windows(service, "daily", date(2025, 4, 5), date(2025, 4, 5), scope="group")

    assert size_of(engine, "(fleet)", "(fleet)", date(2025, 4, 5), "daily") == before
    assert size_of(engine, "(total)", "derived", date(2025, 4, 5), "daily") == 1135


@pytest.mark.usefixtures("two_months")
def test_a_server_with_which_the_fleet_would_be_too_large_is_left_out_alone_and_named(
    engine: Engine, service: AggregationService
) -> None:
    day = date(2025, 4, 5)
    before = figures(engine, GROUP, "daily")
    execute(
        engine,
        f"UPDATE instance_size_stats SET total_size_mb = {LARGEST_MB} "
        f"WHERE collected_date = '{day}' AND instance_id = 1",
    )

    run = compute_windows(service, "daily", day - timedelta(days=1), day + timedelta(days=2), scope="group")

    of_day = run.summaries[1]
    assert {part.period_start.day: part.failed_instances for part in run.summaries} == {4: 0, 5: 1, 6: 0, 7: 0}
    assert (of_day.processed_instances, of_day.skipped_instances) == (1, 0)
    assert [error.instance_name for error in of_day.errors] == ["server-1"]
    assert "left out of all groups on at least one day of this window" in of_day.errors[0].reason
    assert of_day.message.endswith("1 of 2 servers failed; groups do not include them on days with impossible sizes.")
    assert size_of(engine, "(fleet)", "(fleet)", day, "daily") == 1085, "the size of server-2"
    assert size_of(engine, "team", "red", day, "daily") is None
    assert size_of(engine, "(total)", "left out 1", day, "daily") == 0
    after = figures(engine, GROUP, "daily")
    assert {key: row["avg_size_mb"] for key, row in after.items() if key[3] != day} == {
        key: row["avg_size_mb"] for key, row in before.items() if key[3] != day
    }
    assert_adding_up(engine)

    of_month = compute_windows(service, "monthly", APRIL, APRIL, scope="group").summaries[0]
    assert (of_month.processed_instances, of_month.failed_instances) == (1, 1)

    execute(engine, f"UPDATE instance_size_stats SET total_size_mb = 1135 WHERE total_size_mb = {LARGEST_MB}")
    for period in ("daily", "monthly"):
        run = compute_windows(service, period, MARCH, APRIL + timedelta(days=29), scope="group")
        assert run.total("failed_instances") == 0
    assert figures(engine, GROUP, "daily") == before


@pytest.mark.usefixtures("two_months")
def test_a_day_on_which_every_server_is_left_out_is_not_lost(engine: Engine, service: AggregationService) -> None:
    day = date(2025, 4, 5)
    execute(
        engine, f"UPDATE instance_size_stats SET total_size_mb = {LARGEST_MB} - 1 WHERE collected_date = '{day}'",
        f"UPDATE database_size_stats SET size_mb = {LARGEST_MB} WHERE collected_date = '{day}'",
    )  # fmt: skip

    [of_day] = compute_windows(service, "daily", day, day, scope="group").summaries
    [of_month] = compute_windows(service, "monthly", APRIL, APRIL, scope="group").summaries

    assert (of_day.processed_instances, of_day.failed_instances, of_day.unsampled_records) == (0, 2, 0)
    assert size_of(engine, "(fleet)", "(fleet)", day, "daily") is None
    assert (of_month.failed_instances, of_month.unsampled_records) == (2, 0)
    row = figures(engine, GROUP, "monthly")["(fleet)", "(fleet)", "monthly", APRIL]
    assert row["data_count"] == 29
    scope = CheckScope("daily", GROUP, [PERIODS_BY_NAME["daily"].window_of(day)], TODAY, 50)
    assert [one.listed for one in run_checks(engine, scope) if one.name == "groups_add_up"] == [()]


@pytest.mark.usefixtures("two_months")
def test_a_server_that_is_left_out_marks_the_group_that_it_had_on_that_day(
    engine: Engine, service: AggregationService
) -> None:
    declare_labels(engine, [Label("server-2", None, "team", "green", ALWAYS)], TODAY)
    declare_labels(engine, [Label("server-2", None, "team", "gold", date(2025, 4, 10))], TODAY)
    execute(engine, f"UPDATE instance_size_stats SET total_size_mb = {LARGEST_MB} "
                    "WHERE collected_date = '2025-04-05' AND instance_id = 2")  # fmt: skip
    for period in ("daily", "monthly"):
        compute_windows(service, period, MARCH, APRIL + timedelta(days=29))

    with engine.connect() as connection:
        month = PERIODS_BY_NAME["monthly"]
        groups = groups_of(connection, month, month.window_of(APRIL), "team")
        [short] = short_servers(connection, month, [month.window_of(APRIL)], "team", "green")

    assert {one.name for one in groups if one.is_partial} == {"green"}
    assert (short.server, short.left_out_days, short.measured_days) == ("server-2", 1, 30)


@pytest.mark.usefixtures("two_months")
def test_a_server_out_of_service_that_is_left_out_does_not_reduce_the_processed_ones(
    engine: Engine, service: AggregationService
) -> None:
    day = date(2025, 4, 5)
    execute(
        engine,
        "UPDATE instances SET is_active = false WHERE id = 2",
        f"UPDATE instance_size_stats SET total_size_mb = {LARGEST_MB} "
        f"WHERE collected_date = '{day}' AND instance_id = 2",
    )

    [of_day] = compute_windows(service, "daily", day, day, scope="group").summaries

    assert (of_day.processed_instances, of_day.failed_instances, of_day.skipped_instances) == (1, 1, 0)
    assert str(of_day.errors[0]).startswith("server 2 (not active): left out")


@pytest.mark.usefixtures("two_months")
def test_a_group_is_explained_without_the_servers_that_are_left_out(
    engine: Engine, service: AggregationService
) -> None:
    execute(engine, f"UPDATE instance_size_stats SET total_size_mb = {LARGEST_MB} "
                    "WHERE collected_date = '2025-04-05' AND instance_id = 2")  # fmt: skip
    declare_labels(engine, [Label("server-2", None, "team", "red", ALWAYS)], TODAY)
    execute(engine, "DELETE FROM group_size_aggregations WHERE period_type = 'daily'")
    compute_windows(service, "monthly", APRIL, APRIL, scope="group")

    with engine.connect() as connection:
        month = PERIODS_BY_NAME["monthly"]
        explained = explain_group(connection, month, month.window_of(APRIL), "team", "red")

    assert explained.agrees
    assert {part.days for part in explained.parts if part.server == "server-2"} == {29}
