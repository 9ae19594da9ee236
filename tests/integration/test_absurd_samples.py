"""Impossible samples from other programs: a size that no engine can have, or a future day."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates import runs
from capacity_assets.aggregates.checks import CheckScope, run_checks
from capacity_assets.aggregates.levels import DATABASE, SERVER_LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.units import LARGEST_MB
from capacity_assets.collection.volumes import volumes_of_file
from capacity_assets.database.tables import ALWAYS
from capacity_assets.digest import read_digest
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.limits import Limit, declare_limits
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.reading.changes import window_sizes
from capacity_assets.reading.forecasts import issue_of
from capacity_assets.report.page import read_report, render
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import LARGEST_BIGINT, add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import served_pages
from tests.pages_fleet import ADDRESSES

FIRST = TODAY - timedelta(days=69)
GROWING = [1000 + 10 * day for day in range(70)]
PERIODS_SHOWN = ("daily", "weekly", "monthly")


def add_growing(engine: Engine, servers: list[int]) -> None:
    """Add servers of two databases that grow, with a limit."""
    add_instances(engine, servers)
    for server in servers:
        for name in ("orders", "log"):
            add_database_sizes(engine, sizes(server, name, FIRST.isoformat(), GROWING))
        add_instance_sizes(engine, totals(server, FIRST.isoformat(), [(2 * size, 2) for size in GROWING]))
    declare_limits(engine, [Limit(f"server-{server}", None, 5000) for server in servers])


@pytest.fixture
def fleet(engine: Engine) -> Engine:
    """server-1 and server-2, which grow and have a limit."""
    add_growing(engine, [1, 2])
    declare_labels(engine, [Label("server-1", None, "team", "red", ALWAYS)], TODAY)
    return engine


def computed(engine: Engine) -> dict[str, list[str]]:
    """Compute everything; return the failures by period and level."""
    service = AggregationService(engine, fixed_clock())
    found = {}
    for period in PERIODS_SHOWN:
        for part in compute_windows(service, period, FIRST, TODAY).summaries:
            found.setdefault(f"{period} {part.level}", []).extend(str(error) for error in part.errors)
    return found


def assert_everything_answers(engine: Engine, database: URL) -> None:
    """Pages, reports, digests and metadata of every period; server-1 is in each."""
    with served_pages(database) as pages:
        for address in (*ADDRESSES, "/?period=monthly", "/groups?by=server", "/server?server=2", "/groups?by=engine"):
            if not address.startswith(("/volume", "/group?", "/bill", "/table?")):
                assert pages.ask(address).status == 200, address
                assert pages.ask(f"{address}{'&' if '?' in address else '?'}format=json").status == 200, address
    for name in PERIODS_SHOWN:
        window = PERIODS[name].window_of(TODAY)
        assert render(read_report(engine, PERIODS[name], window, today=TODAY))
        assert {*window_sizes(engine, PERIODS[name], DATABASE, [window])} == {window.start}
    assert read_digest(engine, PERIODS["weekly"].window_of(TODAY)).size_mb > 0


# By server: a size that no engine can hold, and its day.
ABSURD = {
    2: (5 * 10**18, TODAY),
    3: (LARGEST_BIGINT, TODAY - timedelta(days=1)),
    4: (LARGEST_MB + 1, TODAY - timedelta(days=1)),
}


@pytest.mark.nightly("computes every period of further servers")
def test_samples_that_no_engine_can_hold_fail_their_own_servers_alone(
    fleet: Engine, database: URL, caplog: pytest.LogCaptureFixture
) -> None:
    add_growing(fleet, [3, 4])
    execute(
        fleet,
        *(
            f"UPDATE {table}_size_stats SET {column} = {absurd} "
            f"WHERE instance_id = {server} AND collected_date = '{day}'"
            for server, (absurd, day) in ABSURD.items()
            for table, column in (("database", "size_mb"), ("instance", "total_size_mb"))
        ),
    )

    failed = computed(fleet)
    with caplog.at_level(logging.WARNING):
        issued = issue_runways(fleet, TODAY, TODAY)

    names = {f"server-{server}" for server in ABSURD}
    for part, errors in failed.items():
        assert {name for name in names if any(name in error for error in errors)} == names, part
        assert all("8 EiB" in error and "server-1" not in error for error in errors), part
    assert {*issued.left_out} == names
    assert all(name in caplog.text for name in names)
    stored = issue_of(fleet, TODAY, TODAY)
    assert stored is not None
    assert {risk.server for risk in stored.risks} == {"server-1"}
    assert_everything_answers(fleet, database)
    with fleet.connect() as connection:
        newest = text("SELECT size_mb FROM capacity_fleet WHERE period = 'daily' AND window_start = :day")
        size_mb = connection.execute(newest, {"day": TODAY}).scalar_one()
    # The next day is compared with it, so its change is impossible as well, except for the smallest size: of server-4.
    assert size_mb == 2 * GROWING[-1] * 2


def test_days_that_cannot_be_meant_stop_no_computation_forecast_or_explanation(
    fleet: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", fleet.url.render_as_string(hide_password=False))
    monkeypatch.setattr(runs, "INSTANCE_DAYS_PER_SLICE", 1)
    days = "unnest(ARRAY['-infinity', 'infinity', '9999-12-31', '0001-01-01']::date[])"
    execute(
        fleet,
        f"INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
        f"SELECT 1, 'orders', 1, {days}",
        f"INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date) "
        f"SELECT 1, 1, 1, {days}",
        "UPDATE instances SET is_active = false WHERE id = 2",
    )

    done = compute_windows(AggregationService(fleet, fixed_clock()), "monthly", FIRST, FIRST)
    explained = capacity(
        "explain", "orders", "--server", "server-1", "--period", "monthly", "--window", FIRST.isoformat()
    )
    unknown = capacity("explain", "order", "--server", "server-1")

    assert [part.errors for part in done.summaries] == [(), (), ()]
    assert issue_runways(fleet, TODAY, TODAY).left_out == []
    assert explained.exit_code == 0, explained.output
    assert "Did you mean 'orders'?" in unknown.output


@pytest.mark.nightly("computes every period of absurd sizes")
def test_the_largest_size_that_can_be_is_computed(fleet: Engine) -> None:
    execute(
        fleet,
        f"UPDATE database_size_stats SET size_mb = {LARGEST_MB} WHERE database_name = 'log'",
        "DELETE FROM database_size_stats WHERE database_name = 'orders'",
        f"UPDATE instance_size_stats SET total_size_mb = {LARGEST_MB}, database_count = 1",
    )

    failed = {name for name, errors in computed(fleet).items() if errors}
    assert failed == {f"{period} group" for period in PERIODS_SHOWN}, "two such servers are more than can be computed"
    assert issue_runways(fleet, TODAY, TODAY).left_out == []


def test_rows_that_versions_before_computed_of_it_stop_no_page_and_are_named(fleet: Engine, database: URL) -> None:
    computed(fleet)
    add_instances(fleet, [3, 4])
    execute(
        fleet,
        *(
            "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, "
            f"period_end, data_count, avg_size_mb, max_size_mb, min_size_mb, size_change_mb) SELECT s, 'd' || n, "
            f"period_type, period_start, period_end, 1, {LARGEST_BIGINT}, {LARGEST_BIGINT}, 1, {LARGEST_BIGINT} "
            f"FROM database_size_aggregations, generate_series(1, 2) n "
            f"WHERE instance_id = 1 AND database_name = 'log'".replace("SELECT s", f"SELECT {server}")
            for server in (3, 4)
        ),
        f"UPDATE instance_size_aggregations SET total_size_mb = {LARGEST_BIGINT}, max_size_mb = {LARGEST_BIGINT}, "
        f"total_size_change_mb = {LARGEST_BIGINT} WHERE instance_id = 2",
    )

    assert_everything_answers(fleet, database)
    for level in SERVER_LEVELS.values():
        scope = CheckScope("daily", level, [PERIODS["daily"].window_of(TODAY)], TODAY, 50)
        named = {one.name: one.listed for one in run_checks(fleet, scope)}["values_possible"]
        assert any("server-3" in place or "server-2, all databases" in place for place in named)


@pytest.mark.usefixtures("today")
def test_a_sample_of_a_day_that_lies_ahead_is_of_no_newest_day(fleet: Engine, database: URL) -> None:
    ahead = TODAY + timedelta(days=40)
    add_database_sizes(fleet, sizes(1, "orders", ahead.isoformat(), [5000]))
    add_instance_sizes(fleet, totals(1, ahead.isoformat(), [(5000, 1)]))
    computed(fleet)

    with served_pages(database) as pages:
        page = pages.document("/")
    trust = page["trust"]
    assert (trust["newest_day"], trust["measured_servers"], page["unmeasured"]) == (str(TODAY), 2, [])
    for row in json.loads(capacity("status", "--json").output)["samples"]:
        assert row["last_day"] == str(TODAY)
    assert issue_runways(fleet, TODAY, TODAY).as_of == TODAY


def test_of_a_database_whose_clock_is_right_a_day_ahead_is_not_the_newest_one(engine: Engine) -> None:
    with engine.connect() as connection:
        now = connection.execute(text("SELECT current_date")).scalar_one()
    add_instances(engine, [1, 2])
    for server in (1, 2):
        add_instance_sizes(engine, totals(server, (now - timedelta(days=20)).isoformat(), [(10, 1)] * 20))
    add_instance_sizes(engine, totals(1, (now + timedelta(days=40)).isoformat(), [(10, 1)]))
    week = PERIODS["weekly"].window_of(now + timedelta(days=40))

    assert read_report(engine, PERIODS["weekly"], week).facts.last_sample == now - timedelta(days=1)
    assert read_digest(engine, PERIODS["weekly"].window_of(now)).silent == []


def test_a_file_of_volumes_of_a_day_that_lies_ahead_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "volumes.csv"
    file.write_text("server,volume,day,total_gb,free_gb\n" + f"server-1,/data,{TODAY + timedelta(days=1)},10,1\n")

    with pytest.raises(ValidationError, match="is in the future"):
        volumes_of_file(file, TODAY)
    assert len(volumes_of_file(file, TODAY + timedelta(days=1))) == 1
