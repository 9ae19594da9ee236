"""A database whose files are allocated ahead is full when they are full inside: its limits, forecasts and scores."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.collection.engines.base import Ceiling, DatabaseSize, Limits, Volume, floor_mb
from capacity_assets.collection.measuring import ProbeOutcome
from capacity_assets.collection.storing import store_outcomes
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.results import (
    FORECAST,
    FULL,
    LIMIT_UNKNOWN,
    OWN_CEILING,
    TOO_LITTLE_HISTORY,
    VOLUME_LIMIT,
    Runway,
)
from tests.clocks import TODAY
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.fleet import add_instances
from tests.pages import served_pages
from tests.runways import found, stored_runways

pytestmark = pytest.mark.usefixtures("settings")
GIB, MIB = 1024**3, 1024**2
DAYS = 60
"""Days of history, up to today."""
EARLIEST = TODAY - timedelta(days=DAYS)


def register(engine: Engine) -> None:
    add_instances(engine, [1], name="erp", db_type="sqlserver")


def measure(
    engine: Engine,
    day: date,
    files: int,
    used: int | None,
    *,
    ceiling: Ceiling | None = None,
    volume: Volume | None = None,
    fills_files: bool = True,
) -> None:
    """Store what a server says on a day: bytes of the files of its one database, and of what is used inside."""
    size = DatabaseSize.of_bytes("crm", files, data_size=files)
    limits = Limits((volume,) if volume else (), (ceiling,) if ceiling else (), fills_files=fills_files)
    sizes = (size if used is None else size.with_used(used, floor_mb),)
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    store_outcomes(engine, day, [ProbeOutcome(sizes, limits=limits, instance_id=1, server="erp", ended_at=noon)])


def crm(engine: Engine) -> Runway:
    return found(engine, server="erp")["erp", "crm"]


def fill_with_fixed_files(engine: Engine) -> None:
    register(engine)
    for back in range(DAYS):
        used = (440 - 2 * back) * GIB
        measure(engine, TODAY - timedelta(days=back), 500 * GIB, used, ceiling=Ceiling("crm", 500 * GIB))


def fill_with_growing_files(engine: Engine, *, fills_files: bool = True) -> None:
    register(engine)
    for back in range(DAYS):
        used = 195 - back
        files = -(-used // 10) * 10
        measure(
            engine,
            TODAY - timedelta(days=back),
            files * GIB,
            used * GIB,
            ceiling=Ceiling("crm", is_unlimited=True, volumes=("D:\\",)),
            volume=Volume("D:\\", 1000 * GIB, (40 + 200 - files) * GIB),
            fills_files=fills_files,
        )


PREPARED = {"fixed_files": fill_with_fixed_files, "growing_files": fill_with_growing_files}


@pytest.fixture
def fixed_files() -> None:
    """Files of 500 GiB that cannot grow, in which 2 GiB more are used each day: 440 today; copied."""


@pytest.fixture
def growing_files() -> None:
    """Files that grow by 10 GiB when they are full, on a disk with 40 GiB left today; 1 GiB more a day; copied."""


def forget_used(engine: Engine, first: date, last: date = TODAY) -> None:
    """The used space of some days was not measured."""
    with engine.begin() as connection:
        unknown = (
            "UPDATE database_size_stats SET used_size_mb = NULL, used_size_bytes = NULL "
            "WHERE collected_date BETWEEN :first AND :last"
        )
        connection.execute(text(unknown), {"first": first, "last": last})


@pytest.mark.usefixtures("fixed_files")
def test_a_ceiling_of_files_that_cannot_grow_binds_on_what_is_used_inside_them(engine: Engine) -> None:
    row = crm(engine)

    assert (row.size_mb, row.allocated_mb, row.limit_mb) == (440 * 1024, 500 * 1024, 500 * 1024)
    assert (row.binds, row.headroom_mb, row.state) == (OWN_CEILING, 60 * 1024, FORECAST)
    assert row.change_mb_per_day == 2048
    assert row.middle_day is not None
    assert abs((row.middle_day - TODAY).days - 30) <= 3
    assert "440.0 GiB used of 500.0 GiB (own ceiling, measured), in files of 500.0 GiB." in row.sentence(30)


@pytest.mark.usefixtures("fixed_files")
def test_without_the_used_space_such_a_ceiling_says_nothing(engine: Engine) -> None:
    forget_used(engine, EARLIEST)

    row = crm(engine)

    assert (row.size_mb, row.allocated_mb, row.limit_mb, row.state) == (500 * 1024, None, None, LIMIT_UNKNOWN)


@pytest.mark.usefixtures("fixed_files")
def test_of_files_that_never_grew_the_used_space_before_it_was_measured_is_unknown(engine: Engine) -> None:
    forget_used(engine, EARLIEST, TODAY - timedelta(days=3))

    row = crm(engine)

    assert (row.headroom_mb, row.state, row.history_days) == (60 * 1024, TOO_LITTLE_HISTORY, 3)


def test_files_that_are_full_inside_are_full(engine: Engine) -> None:
    register(engine)
    measure(engine, TODAY, 500 * GIB, 500 * GIB, ceiling=Ceiling("crm", 500 * GIB))

    assert crm(engine).state == FULL


@pytest.mark.usefixtures("growing_files")
def test_what_is_free_inside_counts_beside_what_is_free_on_the_disk(engine: Engine) -> None:
    row = crm(engine)

    # 5 GiB inside, 40 on the disk.
    assert (row.binds, row.size_mb, row.limit_mb, row.headroom_mb) == (VOLUME_LIMIT, 195 * 1024, 240 * 1024, 45 * 1024)
    assert (row.allocated_mb, row.change_mb_per_day) == (200 * 1024, 1024)


@pytest.mark.usefixtures("growing_files")
def test_before_the_used_space_was_measured_files_that_grew_stand_for_it(engine: Engine) -> None:
    forget_used(engine, EARLIEST, TODAY - timedelta(days=2))

    row = crm(engine)

    assert (row.state, row.size_mb, row.headroom_mb) == (FORECAST, 195 * 1024, 45 * 1024)
    assert abs(row.change_mb_per_day - 1024) < 200
    assert row.history_days == DAYS


@pytest.mark.nightly("forecasts a further fleet")
def test_of_an_engine_that_does_not_share_free_space_between_tables_files_are_forecast(engine: Engine) -> None:
    fill_with_growing_files(engine, fills_files=False)

    row = crm(engine)

    assert (row.size_mb, row.allocated_mb, row.headroom_mb) == (200 * 1024, None, 40 * 1024)


@pytest.mark.usefixtures("fixed_files")
def test_a_day_without_the_used_space_changes_nothing_else(engine: Engine) -> None:
    forget_used(engine, TODAY)

    row = crm(engine)

    assert (row.size_mb, row.last_day, row.state) == (438 * 1024, TODAY - timedelta(days=1), FORECAST)


@pytest.mark.usefixtures("fixed_files")
def test_an_issued_forecast_of_the_used_space_is_scored_by_it(engine: Engine) -> None:
    issue_runways(engine, TODAY, TODAY)
    due = TODAY + timedelta(days=7)
    measure(engine, due, 500 * GIB, 455 * GIB, ceiling=Ceiling("crm", 500 * GIB))

    issue_runways(engine, due, due)

    row = stored_runways(engine)["crm"]
    assert (row["size_mb"], row["allocated_mb"], row["actual_7_mb"]) == (440 * 1024, 500 * 1024, 455 * 1024)
    assert row["forecast_7_mb"] == 454 * 1024


@pytest.mark.usefixtures("fixed_files")
def test_commands_say_that_a_size_is_what_is_used(engine: Engine) -> None:
    issue_runways(engine, TODAY, TODAY)

    listed = json.loads(printed("runway", "--json"))
    [row] = [one for one in listed["rows"] if one["database"] == "crm"]
    explained = capacity("explain", "crm", "--runway").output

    assert (row["size_mb"], row["allocated_mb"]) == (440 * 1024, 500 * 1024)
    assert "440.0 GiB used" in printed("runway")
    assert "440.0 GiB used in files of 500.0 GiB" in explained


@pytest.mark.usefixtures("fixed_files")
def test_a_limit_is_below_the_size_only_if_it_is_below_what_is_used(engine: Engine) -> None:
    fits = capacity("limits", "set", "erp", "crm", "--gb", "450").output
    exceeded = capacity("limits", "set", "erp", "crm", "--gb", "430").output
    with engine.begin() as connection:
        connection.execute(text("UPDATE database_limit_stats SET fills_files = false"))
    of_files = capacity("limits", "set", "erp", "crm", "--gb", "450").output

    assert "more than its limit" not in fits
    assert "note: crm on erp holds 440.0 GiB, more than its limit." in exceeded
    assert "note: crm on erp holds 500.0 GiB, more than its limit." in of_files


@pytest.mark.usefixtures("fixed_files")
def test_the_page_of_a_database_draws_what_its_forecast_is_of(engine: Engine, service: AggregationService) -> None:
    compute_windows(service, "daily", TODAY - timedelta(days=DAYS - 1), TODAY)
    issue_runways(engine, TODAY, TODAY)

    with served_pages(engine.url) as pages:
        page = pages.document("/database?server=1&name=crm&period=daily")
        html = pages.ask("/database?server=1&name=crm&period=daily").text
        filling = pages.ask("/filling").text

    assert [one["size_mb"] for one in page["used"]][-2:] == [438 * 1024, 440 * 1024]
    assert page["sizes"][-1]["size_mb"] == 500 * 1024
    assert (page["runway"]["size_mb"], page["runway"]["allocated_mb"]) == (440 * 1024, 500 * 1024)
    assert "Used space of crm by day" in html
    assert "in files of <data" in html
    assert '440.0 GiB</data> <span class="under">used</span>' in filling
