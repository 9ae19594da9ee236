"""Where issued runways are read: the views, the status, exports and explanations."""

from __future__ import annotations

import csv
import itertools
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pyarrow.parquet import read_table
from sqlalchemy import URL, Engine, insert, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import HORIZONS_DAYS, Thresholds
from capacity_assets.base.units import human_day
from capacity_assets.database.locks import wait_for_lock
from capacity_assets.database.tables import ALWAYS, capacity_runways
from capacity_assets.digest import read_digest
from capacity_assets.forecast import issuing
from capacity_assets.forecast.issuing import issue_runways, update_forecasts
from capacity_assets.forecast.limits import Limit, SizeStep, declare_limits, declare_steps, forget_limit
from capacity_assets.forecast.results import (
    OWN_LIMIT,
    SERVER_LIMIT,
    STORED,
    VOLUME_LIMIT,
    Runway,
    standing_for_themselves,
)
from capacity_assets.ownership.budgets import MonthBudget, declare_budgets
from capacity_assets.ownership.labels import Label, declare_labels, first_fill_date_of_groups
from capacity_assets.reading.forecasts import (
    ForecastIssue,
    figures_of,
    first_on_server,
    forecasts_revision,
    issue_of,
    newest_issue,
    usages_of,
)
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import served_pages
from tests.runways import FIRST, GROWING, add_ceiling, add_day, add_volume, stored_runways

pytestmark = pytest.mark.usefixtures("fleet_with_limits")


def any_runways(engine: Engine) -> list[Runway]:
    """Stored runways of servers with few different values, so that many are equally urgent; unknown ones among them."""
    choose = Random(7).choice  # noqa: S311 -- the same values in every run
    rows = []
    for server, place in itertools.product(range(1000, 1200), range(8)):
        is_dated = choose([True, True, False])
        early, middle, late = sorted(choose([5, 5, 9, 400]) for _ in range(3))
        days = [TODAY + timedelta(days=day) if is_dated and day < 400 else None for day in (early, middle, late)]
        own_limits = [OWN_LIMIT, VOLUME_LIMIT] if place == 0 else [OWN_LIMIT, VOLUME_LIMIT, SERVER_LIMIT, None]
        rows.append(
            Runway(
                server=f"server {server}",
                database=f"db-{place}" if place > 2 else None,
                volume=f"/{place}" if place in {1, 2} else None,
                **{"state": "forecast", "last_day": TODAY, "size_mb": 9, "limit_mb": 10, "headroom_mb": 1},
                binds=VOLUME_LIMIT if place in {1, 2} else choose(own_limits),
                **{"source": "measured", "change_mb_per_day": 1, "recent_mb_per_day": None, "history_days": 99},
                **dict(zip(("early_day", "middle_day", "late_day"), days, strict=True)),
                probabilities={horizon: choose([0.1, 0.2]) for horizon in HORIZONS_DAYS} if is_dated else {},
            )
        )
    names = [column for column in STORED if column not in {"volumes", "allocated_mb"}]
    values = [
        {
            **{"instance_id": int(row.server.split()[1]), "subject": row.subject, "name": row.name},
            **{column: getattr(row, STORED[column]) for column in names},
            **{f"probability_{horizon}": row.probabilities.get(horizon) for horizon in HORIZONS_DAYS},
        }
        for row in rows
    ]
    with engine.begin() as connection:
        connection.execute(insert(capacity_runways), [{"as_of": TODAY, "in_time": True, **one} for one in values])
    return rows


def test_views_leave_out_the_same_rows_as_lists_of_runways_that_are_not_stored(engine: Engine) -> None:
    rows = any_runways(engine)

    with engine.connect() as connection:
        stored = connection.execute(text("SELECT server, subject, name FROM capacity_runway WHERE stands_for_itself"))
        standing = {tuple(row) for row in stored}

    assert standing == {(row.server, row.subject, row.name) for row in standing_for_themselves(rows)}
    assert 100 < len(standing) < len(rows) - 100


def test_runways_are_stored_with_whether_they_stand_for_themselves(engine: Engine) -> None:
    def standing(as_of: date) -> tuple[Sequence[Any], Sequence[Any]]:
        """What is stored, and what the view says where nothing is."""
        stored = "SELECT subject, name, stands_for_itself FROM capacity_runways WHERE as_of = :day ORDER BY 1, 2"
        shown = "SELECT subject, name, stands_for_itself FROM capacity_issued_runways WHERE as_of = :day ORDER BY 1, 2"
        with engine.connect() as connection:
            found = [tuple(row) for row in connection.execute(text(stored), {"day": as_of})]
            connection.execute(text("UPDATE capacity_runways SET stands_for_itself = NULL"))
            computed = [tuple(row) for row in connection.execute(text(shown), {"day": as_of})]
            connection.rollback()
        return [row for row in found if row[0] != "group"], computed

    day_before = TODAY - timedelta(days=1)
    declare_limits(engine, [Limit("server-1", None, 9999)])
    for name in ("orders", "still"):
        for day in (day_before, TODAY):
            add_ceiling(engine, name, ["/data"], day=day)
    free = [(TODAY - timedelta(days=ago), 310 + 10 * ago) for ago in range(100)]
    for day, free_mb in free:
        add_volume(engine, 1, "/data", day, 50_000, free_mb)
    issue_runways(engine, TODAY, TODAY)
    stored, computed = standing(TODAY)
    assert stored == computed
    of_disk = {("database", "still"): False, ("volume", "/data"): True}
    assert {row[:2]: row[2] for row in stored if row[:2] in of_disk} == of_disk

    execute(engine, "DELETE FROM volume_size_stats")
    issue_runways(engine, TODAY, TODAY)
    stored, computed = standing(TODAY)
    assert stored == computed
    assert ("volume", "/data") not in [row[:2] for row in stored]

    # Forecasts of a past day are kept; a volume is added whose samples arrive later.
    issue_runways(engine, day_before, day_before)
    assert None not in {row[2] for row in standing(day_before)[0]}
    for day, free_mb in free[1:]:
        add_volume(engine, 1, "/data", day, 50_000, free_mb)
    issue_runways(engine, day_before, TODAY + timedelta(days=9))
    stored, computed = standing(day_before)
    assert ("volume", "/data") in [row[:2] for row in stored]
    assert {row[2] for row in stored} == {None}
    assert None not in {row[2] for row in computed}


def test_a_list_of_servers_names_what_fills_first_on_each_as_the_page_of_the_server_does(engine: Engine) -> None:
    servers = sorted({int(row.server.split()[1]) for row in any_runways(engine)})

    with engine.connect() as connection:
        usages = usages_of(connection, TODAY, [(server, "") for server in servers], Thresholds())
        of_pages = {server: first_on_server(connection, TODAY, server)[0] for server in servers}

    listed = {server: (one.full_by, one.full_subject, one.full_name) for (server, _), one in usages.items()}
    assert listed == {
        server: (first.full_middle, first.subject, first.name) if first else (None, None, None)
        for server, first in of_pages.items()
    }
    assert {first.subject for first in of_pages.values() if first} == {"server", "database", "volume"}


def issued(engine: Engine) -> ForecastIssue:
    """What is stored of today once its forecasts are issued."""
    issue_runways(engine, TODAY, TODAY)
    stored = issue_of(engine, TODAY, TODAY)
    assert stored is not None
    return stored


def revision_of(engine: Engine) -> tuple[object, ...]:
    with engine.connect() as connection:
        return forecasts_revision(connection)


def test_pages_notice_that_a_forecast_was_removed_although_no_other_one_changed(engine: Engine) -> None:
    issue_runways(engine, TODAY, TODAY)
    first = revision_of(engine)
    assert issue_runways(engine, TODAY, TODAY).written == 0
    assert revision_of(engine) == first
    execute(engine, f"DELETE FROM database_size_stats WHERE database_name = 'orders' AND collected_date = '{TODAY}'")

    assert issue_runways(engine, TODAY, TODAY).written == 1

    assert "orders" not in stored_runways(engine)
    assert revision_of(engine) != first


def test_pages_notice_what_is_declared_for_forecasts_and_what_is_removed(engine: Engine) -> None:
    issue_runways(engine, TODAY, TODAY)
    revisions = [revision_of(engine)]
    for declare in (
        lambda: declare_limits(engine, [Limit("server-1", "orders", 20_000)]),
        lambda: declare_limits(engine, [Limit("server-1", "orders", 30_000)]),
        lambda: declare_steps(engine, [SizeStep("server-1", "orders", TODAY, "purged")]),
        lambda: declare_budgets(engine, [MonthBudget("team=payments", TODAY.replace(day=1), Decimal(5), "EUR")]),
        lambda: execute(engine, "DELETE FROM capacity_limits"),
        lambda: execute(engine, "DELETE FROM capacity_steps"),
    ):
        declare()
        revisions.append(revision_of(engine))
    assert len(set(revisions)) == 7


def test_more_databases_than_are_told_on_one_full_volume_hide_nothing_else(engine: Engine) -> None:
    add_instances(engine, [2])
    for n in range(30):
        add_database_sizes(engine, sizes(2, f"db-{n}", (TODAY - timedelta(days=1)).isoformat(), [10, 10]))
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source) "
                "VALUES (:day, 2, '/full', 900, 0, 'measured')"
            ),
            {"day": TODAY},
        )
        connection.execute(
            text(
                "INSERT INTO database_limit_stats "
                "(collected_date, instance_id, database_name, is_unlimited, volumes, source) "
                "SELECT :day, 2, 'db-' || n, true, ARRAY['/full'], 'measured' FROM generate_series(0, 29) n"
            ),
            {"day": TODAY},
        )
    issue_runways(engine, TODAY, TODAY)

    with engine.connect() as connection:
        shown = newest_issue(connection, TODAY, TODAY, shown=5, today=TODAY)

    assert shown is not None
    assert [(risk.server, risk.display_name) for risk in shown.risks] == [
        ("server-2", "disk /full"),
        ("server-1", "orders"),
    ]


@pytest.mark.usefixtures("issued_today")
def test_the_view_has_the_newest_day_and_the_error_view_every_month(engine: Engine) -> None:
    for day in range(1, 8):
        add_day(engine, TODAY + timedelta(days=day), 3014 + 10 * day)
    due = TODAY + timedelta(days=7)
    issue_runways(engine, due, due)

    with engine.connect() as connection:
        newest = connection.execute(
            text(
                "SELECT server, subject, name, as_of, full_middle, probability_30_days FROM capacity_runway "
                "WHERE state = 'forecast'"
            )
        ).all()
        errors = connection.execute(
            text(
                "SELECT month, subject, horizon_days, issued_in_time, forecasts, error_percent, covered_percent "
                "FROM capacity_forecast_errors ORDER BY subject"
            )
        ).all()

    assert newest == [("server-1", "database", "orders", due, due + timedelta(days=13), 0.848)]
    month = due.replace(day=1)
    # The test's clock is not that of the database.
    assert [(row[0], row[1], row[2], row[4], float(row[5]), float(row[6])) for row in errors] == [
        (month, "database", 7, 2, 0, 100),
        (month, "server", 7, 1, 0, 100),
    ]


def test_the_headroom_of_a_server_is_that_of_its_volumes_where_they_are_measured(engine: Engine) -> None:
    declare_limits(engine, [Limit("server-1", None, 9999)])
    declared = issued(engine).headroom_mb
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source) "
                "VALUES (:day, 1, '/a', 1000, 300, 'measured'), (:day, 1, '/b', 1000, 40, 'measured')"
            ),
            {"day": TODAY},
        )

    assert (declared, issued(engine).headroom_mb) == (9999 - 3514, 340)


@pytest.mark.usefixtures("today")
def test_status_and_exports_have_the_newest_runways(engine: Engine, tmp_path: Path) -> None:
    before = capacity("status", columns=200)
    for name in ("/data", "=log"):
        add_volume(engine, 1, name, TODAY, 90_000, 80_000)
    add_ceiling(engine, "orders", ["/data", "=log"])
    issue_runways(engine, TODAY, TODAY)

    shown = capacity("status", columns=200)
    document = json.loads(capacity("status", "--json").output)
    exported = capacity("export", "--runway").output.splitlines()
    parquet = tmp_path / "runways.parquet"
    written = capacity("export", "--runway", "--output", str(parquet))
    unclear = [capacity("export"), capacity("export", "--runway", "--period", "daily")]
    with engine.begin() as connection:
        connection.execute(text("UPDATE capacity_alembic_version SET version_num = '0018'"))
    before_the_upgrade = printed("status")

    early, full, late = (TODAY + timedelta(days=days) for days in (13, 20, 73))
    assert "Greatest risks: no forecast was issued within the last month." in before.output
    lines = shown.output.splitlines()
    place = lines.index(f"Greatest risks, by the forecasts of {human_day(TODAY)}")
    assert lines[place + 2].split() == [
        "server-1",
        "orders",
        *(word for day in (early, full, late) for word in human_day(day).split()),
    ]
    assert "Limit unknown: 1 database." in lines
    assert "Greatest risks: not known before `capacity init` has upgraded the schema." in before_the_upgrade
    assert document["runways"]["risks"][0]["outlook"]["middle_day"] == str(full)
    rows = list(csv.DictReader(exported))
    assert [(row["subject"], row["name"]) for row in rows] == [
        ("database", "orders"),
        ("database", "still"),
        ("database", "young"),
        ("server", ""),
        ("volume", "'=log"),
        ("volume", "/data"),
    ]
    assert (rows[0]["volumes"], rows[1]["volumes"]) == ("{/data,=log}", "")
    assert (rows[0]["full_middle"], rows[0]["probability_30_days"], rows[1]["limit_mb"]) == (str(full), "0.793", "")
    assert written.output == f"6 rows of capacity_runway written to {parquet}\n"
    table = read_table(parquet)
    assert str(table.schema.field("probability_30_days").type) == "double"
    assert table.column("full_middle").to_pylist()[0] == full
    assert {refused.exit_code for refused in unclear} == {2}
    assert all("Give either --period, --runway or --objects." in refused.output for refused in unclear)


@pytest.mark.usefixtures("today")
@pytest.mark.usefixtures("issued_today")
def test_status_says_when_limits_are_newer_than_the_runways(engine: Engine) -> None:
    before = capacity("status", columns=200).output
    declare_limits(engine, [Limit("server-1", "still", 501)])

    assert "changed after" not in before
    assert ": `capacity runway --issue` updates the forecasts." in capacity("status", columns=200).output


@pytest.mark.usefixtures("today")
def test_an_explanation_says_what_was_said_before_and_what_became_of_it(engine: Engine) -> None:
    for ago in (30, 7):
        issue_runways(engine, TODAY - timedelta(days=ago), TODAY)

    message = capacity("explain", "orders", "--runway", columns=200).output.splitlines()
    document = json.loads(capacity("explain", "orders", "--runway", "--json").output)

    place = message.index("Earlier forecasts")
    ahead, later = (human_day(TODAY + timedelta(days=days)).split() for days in (20, 20))
    assert [line.split() for line in message[place + 2 : place + 4]] == [
        [*human_day(TODAY - timedelta(days=7)).split(), *ahead, "7", "days", "2.9", "GiB", "2.9", "GiB", "+0.0%"],
        [*human_day(TODAY - timedelta(days=30)).split(), *later, "30", "days", "2.9", "GiB", "2.9", "GiB", "+0.0%"],
    ]
    assert [(one["forecast_mb"], one["actual_mb"]) for one in document["said_before"]] == [(3014, 3014)] * 2


@pytest.mark.usefixtures("today")
def test_an_error_is_what_was_measured_less_what_was_forecast_in_past_and_present(engine: Engine) -> None:
    issue_runways(engine, TODAY - timedelta(days=7), TODAY)
    execute(engine, "UPDATE capacity_runways SET forecast_7_mb = actual_7_mb / 2 WHERE name = 'orders'")

    message = capacity("explain", "orders", "--runway", columns=200).output.splitlines()

    assert message[message.index("Earlier forecasts") + 2].split()[-1] == "+50.0%"
    assert "Evidence of being full, each piece times its weight" in message


@pytest.mark.usefixtures("issued_today")
def test_what_was_declared_before_a_forecast_is_in_it_whether_or_not_its_row_changed(engine: Engine) -> None:
    declare_limits(engine, [Limit("server-1", "orders", 4000)])
    query = "SELECT name, is_outdated FROM capacity_runway WHERE subject = 'database' AND name <> 'young' ORDER BY 1"

    def outdated() -> list[tuple[str, bool]]:
        with engine.connect() as connection:
            return [(row.name, row.is_outdated) for row in connection.execute(text(query))]

    assert outdated() == [("orders", True), ("still", True)]
    issue_runways(engine, TODAY, TODAY)
    assert outdated() == [("orders", False), ("still", False)]


@pytest.mark.usefixtures("today")
def test_a_limit_that_was_removed_since_a_forecast_outdates_what_was_computed_with_it(engine: Engine) -> None:
    declare_limits(engine, [Limit("server-1", "orders", 4000)])
    issue_runways(engine, TODAY, TODAY)
    before = capacity("status", columns=200).output

    forget_limit(engine, "server-1", "orders")

    query = "SELECT name FROM capacity_runway WHERE is_outdated"
    with engine.connect() as connection:
        assert connection.execute(text(query)).scalars().all() == ["orders"]
    assert "changed after" not in before
    assert "changed after" in capacity("status", columns=200).output


def shown(engine: Engine, name: str) -> Any:
    """The row of a database or volume in the view that the pages read."""
    with engine.connect() as connection:
        return connection.execute(text("SELECT * FROM capacity_runway WHERE name = :name"), {"name": name}).one()


@pytest.mark.usefixtures("today")
def test_a_declaration_issues_the_forecasts_of_its_servers_anew_and_those_of_no_other(
    engine: Engine, tmp_path: Path
) -> None:
    add_instances(engine, [2])
    add_database_sizes(engine, sizes(2, "other", FIRST.isoformat(), GROWING))
    issue_runways(engine, TODAY, TODAY)
    execute(engine, "UPDATE capacity_runways SET issued_at = '2025-07-20 01:00+08'")
    before, other = shown(engine, "orders"), shown(engine, "other")

    said = printed("limits", "set", "server-1", "orders", "--gb", "3")
    after = shown(engine, "orders")

    assert "Forecast of server-1 updated." in said
    assert (before.full_middle, after.full_middle) == (TODAY + timedelta(days=20), TODAY + timedelta(days=6))
    assert (after.as_of, after.forecast_7_days_mb, after.is_outdated) == (TODAY, before.forecast_7_days_mb, False)
    assert shown(engine, "other") == other
    assert stored_runways(engine)["orders"]["in_time"]

    printed("limits", "remove", "server-1", "orders")
    assert shown(engine, "orders").state == "limit unknown"
    file = tmp_path / "declared.csv"
    file.write_text("server,database,limit_gb\nserver-1,orders,4\n")
    printed("limits", "import", str(file), "--dry-run")
    assert shown(engine, "orders").state == "limit unknown"
    printed("limits", "import", str(file))
    assert shown(engine, "orders").limit_mb == 4096
    jumped = ("server-1", "orders", "--day", str(TODAY - timedelta(days=3)))
    execute(
        engine,
        f"UPDATE database_size_stats SET size_mb = size_mb - 900 WHERE database_name = 'orders' "
        f"AND collected_date < '{TODAY - timedelta(days=3)}'",
    )
    printed("steps", "add", *jumped, "--note", "moved")
    stepped = shown(engine, "orders").upper_30_days_mb
    printed("steps", "remove", *jumped)
    assert shown(engine, "orders").upper_30_days_mb > stepped
    file.write_text(f"server,volume,day,total_gb,free_gb\nserver-1,/data,{TODAY},4,0.5\n")
    printed("volumes", "import", str(file))
    assert (shown(engine, "orders").binds, shown(engine, "/data").headroom_mb) == ("volume", 512)
    assert shown(engine, "other") == other


@pytest.mark.usefixtures("today")
def test_a_server_that_is_taken_out_of_service_leaves_the_forecasts_at_once_and_comes_back_with_it(
    engine: Engine, tmp_path: Path
) -> None:
    add_instances(engine, [2])
    add_database_sizes(engine, sizes(2, "other", FIRST.isoformat(), GROWING))
    issue_runways(engine, TODAY - timedelta(days=1), TODAY)
    issue_runways(engine, TODAY, TODAY)
    execute(engine, "UPDATE capacity_runways SET issued_at = '2025-07-20 01:00+08'")
    every = {"", "orders", "still", "young", "other"}
    revisions = [revision_of(engine)]
    other = {**stored_runways(engine)["other"], "issued_at": None}

    def named(*arguments: str) -> str:
        said = printed("instances", *arguments).replace("\n", " ")
        revisions.append(revision_of(engine))
        return said

    with served_pages(engine.url) as pages:
        assert "orders" in pages.ask("/filling").text
        assert "server-1" in pages.ask("/metrics").text
        said = named("disable", "server-1")
        assert "No forecast: server-1. A forecast needs a server in service" in said
        assert set(stored_runways(engine)) == {"other"}
        assert {**stored_runways(engine)["other"], "issued_at": None} == other
        assert set(stored_runways(engine, TODAY - timedelta(days=1))) == every, "earlier forecasts stay"
        deadline = time.monotonic() + 20
        while "orders" in pages.ask("/filling").text:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert "server-1" not in pages.ask("/metrics").text

    assert "Forecast of server-1 updated." in named("enable", "server-1")
    assert set(stored_runways(engine)) == every

    named("disable", "server-1", "server-2")
    assert set(stored_runways(engine)) == set()
    named("enable", "server-1", "server-2")
    assert set(stored_runways(engine)) == every

    for server in ("server-1", "server-2"):
        named("add", server, "--replace", "--engine", "postgresql", "--host", "db.example")
    file = tmp_path / "servers.csv"
    file.write_text("name,engine,host\nserver-2,postgresql,db.example\n")
    named("import", str(file), "--disable-others", "--dry-run")
    assert set(stored_runways(engine)) == every
    named("import", str(file), "--disable-others")
    assert set(stored_runways(engine)) == {"other"}

    named("remove", "server-2")
    assert set(stored_runways(engine)) == set()
    moved = [before != after for before, after in itertools.pairwise(revisions)]
    assert moved == [True, True, True, True, False, False, False, True, True]


@pytest.mark.usefixtures("today")
def test_a_server_that_is_taken_out_of_service_takes_no_mark_of_older_forecasts_away(engine: Engine) -> None:
    add_instances(engine, [2, 3])
    add_database_sizes(engine, sizes(2, "other", FIRST.isoformat(), GROWING))
    add_database_sizes(engine, sizes(3, "third", FIRST.isoformat(), GROWING))
    issue_runways(engine, TODAY, TODAY)
    execute(engine, "UPDATE capacity_runways SET issued_at = '2025-07-20 01:00+08'")
    declare_limits(engine, [Limit("server-1", "orders", 3072)])
    before = revision_of(engine)

    printed("instances", "disable", "server-2")

    assert shown(engine, "orders").is_outdated
    assert revision_of(engine) != before


@pytest.mark.usefixtures("today")
@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("large", "4 are too many for this command."),
        ("large and old", "Today's forecasts do not exist yet, and there are too many (over 3) to issue here."),
        ("busy", "Another run is issuing forecasts."),
    ],
)
def test_forecasts_that_a_command_does_not_update_are_said_to_be_older_until_they_are_issued(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, why: str, said: str
) -> None:
    issue_runways(engine, TODAY - timedelta(days=2 if "old" in why else 0), TODAY)
    if "large" in why:
        monkeypatch.setattr(issuing, "MOST_AT_ONCE", 3)
    monkeypatch.setattr(issuing, "BUSY_SECONDS", 0)
    before = shown(engine, "orders")

    with engine.begin() as connection:
        if why == "busy":
            wait_for_lock(connection, "runways")
        message = printed("limits", "set", "server-1", "orders", "--gb", "3")

    assert f"The forecasts of server-1 are not updated yet: {said}" in message
    assert "`capacity runway --issue` updates them now; otherwise the next run does." in message
    after = shown(engine, "orders")
    assert (after.full_middle, after.issued_at, after.is_outdated) == (before.full_middle, before.issued_at, True)

    assert f"4 forecasts of {human_day(TODAY)} stored." in printed("runway", "--issue")
    renewed = shown(engine, "orders")
    assert (renewed.as_of, renewed.limit_mb, renewed.is_outdated) == (TODAY, 3072, False)


@pytest.mark.usefixtures("today")
@pytest.mark.parametrize("issued_ago", [None, 1, 40])
def test_the_first_declaration_of_a_day_issues_every_forecast_as_the_asset_does(
    engine: Engine, issued_ago: int | None
) -> None:
    add_instances(engine, [2, 3])
    add_database_sizes(engine, sizes(2, "other", FIRST.isoformat(), GROWING))
    if issued_ago is not None:
        issue_runways(engine, TODAY - timedelta(days=issued_ago), TODAY)

    said = printed("limits", "set", "server-1", "orders", "--gb", "3")
    declared = stored_runways(engine)
    again = issue_runways(engine, TODAY, TODAY)

    assert "Forecast of server-1 updated." in said
    assert (again.written, stored_runways(engine)) == (0, declared), "the asset stores the same"
    assert set(declared) == {"", "orders", "still", "young", "other"}
    assert (declared["orders"]["limit_mb"], declared["orders"]["in_time"]) == (3072, True)
    said = printed("limits", "set", "server-3", "--gb", "3")
    assert "No forecast: server-3." in said
    document = json.loads(printed("limits", "set", "server-1", "still", "--gb", "1", "--json"))
    assert document["forecasts"] == {"as_of": str(TODAY), "updated": ["server-1"], "not_measured": [], "later": None}


@pytest.mark.usefixtures("today")
@pytest.mark.usefixtures("issued_today")
def test_a_declaration_whose_forecasts_fail_is_stored_and_the_message_says_so(engine: Engine) -> None:
    execute(engine, "ALTER TABLE capacity_runways ADD CONSTRAINT broken CHECK (limit_mb IS DISTINCT FROM 3072)")

    failed = capacity("limits", "set", "server-1", "orders", "--gb", "3")
    as_json = capacity("limits", "set", "server-1", "orders", "--gb", "3", "--json")

    assert (failed.exit_code, as_json.exit_code) == (1, 1)
    assert "orders on server-1: 3.0 GiB." in failed.stdout
    assert "The declaration is stored, but the forecasts are not updated." in failed.output.replace("\n", " ")
    document = json.loads(as_json.stdout)
    assert (document["limits"][0]["limit_mb"], document["forecasts"]) == (3072, None)
    assert "server-1 orders     3.0 GiB" in printed("limits", "list")
    assert shown(engine, "orders").is_outdated


@pytest.mark.usefixtures("today")
@pytest.mark.usefixtures("issued_today")
def test_a_declaration_waits_for_a_run_that_may_have_read_the_limits_before(engine: Engine) -> None:
    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as connection:
            wait_for_lock(connection, "runways")
            declare_limits(engine, [Limit("server-1", "orders", 3072)])
            issuing_anew = threads.submit(update_forecasts, engine, {"server-1"}, fixed_clock())
            wait([issuing_anew], timeout=1)
            assert not issuing_anew.done()
        assert issuing_anew.result(timeout=30).updated == ["server-1"]
    assert shown(engine, "orders").limit_mb == 3072


@pytest.mark.usefixtures("today")
def test_a_declaration_updates_the_forecasts_of_today_that_another_run_issues_meanwhile(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_instances(engine, [2])
    add_database_sizes(engine, sizes(2, "other", FIRST.isoformat(), GROWING))
    issue_runways(engine, TODAY - timedelta(days=1), TODAY)
    monkeypatch.setattr(issuing, "MOST_AT_ONCE", 4)
    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as connection:
            wait_for_lock(connection, "runways")
            declare_limits(engine, [Limit("server-1", "orders", 3072)])
            updating = threads.submit(update_forecasts, engine, {"server-1"}, fixed_clock())
            wait([updating], timeout=1)
            connection.execute(text("UPDATE capacity_runways SET as_of = :today"), {"today": TODAY})
        done = updating.result(timeout=30)
    assert (done.as_of, done.updated) == (TODAY, ["server-1"])
    assert (shown(engine, "orders").as_of, shown(engine, "orders").limit_mb) == (TODAY, 3072)


@pytest.mark.usefixtures("today")
def test_an_issue_of_one_server_leaves_the_mark_of_another_that_its_forecasts_are_older(engine: Engine) -> None:
    add_instances(engine, [2])
    add_database_sizes(engine, sizes(2, "other", FIRST.isoformat(), GROWING))
    issue_runways(engine, TODAY, TODAY)
    declare_limits(engine, [Limit("server-2", "other", 4000)])

    printed("limits", "set", "server-1", "orders", "--gb", "3")

    assert (shown(engine, "orders").is_outdated, shown(engine, "other").is_outdated) == (False, True)
    assert "changed after" in capacity("status", columns=200).output
    issue_runways(engine, TODAY, TODAY)
    assert not shown(engine, "other").is_outdated
    assert "changed after" not in capacity("status", columns=200).output


def test_where_no_limit_is_known_what_is_left_is_unknown_everywhere(engine: Engine, database: URL) -> None:
    add_instances(engine, [7])
    add_database_sizes(engine, sizes(7, "free", (TODAY - timedelta(days=40)).isoformat(), [10] * 41))
    add_instance_sizes(engine, totals(7, (TODAY - timedelta(days=40)).isoformat(), [(10, 1)] * 41))
    execute(engine, "DELETE FROM capacity_limits")
    summary = issued(engine)
    compute_windows(AggregationService(engine, fixed_clock()), "daily", TODAY, TODAY)

    assert "headroom_mb" not in figures_of(summary)
    with served_pages(database) as pages:
        assert pages.document("/")["headroom"]["headroom_mb"] is None
        left = pages.ask("/").text.partition("Free capacity")[2].partition("</div>")[0]
        assert "unknown" in left
        assert "MiB" not in left


def test_a_replica_whose_disk_is_full_is_shown_where_others_are_and_counts_in_no_sum(
    engine: Engine, database: URL
) -> None:
    first = (TODAY - timedelta(days=40)).isoformat()
    add_instances(engine, [2], counted_by=1)
    for name in ("copy", "other"):
        add_database_sizes(engine, sizes(2, name, first, [1000] * 41))
    add_instance_sizes(engine, totals(2, first, [(2000, 2)] * 41))
    labels = [Label(server, None, "team", "red", ALWAYS) for server in ("server-1", "server-2")]
    declare_labels(engine, labels, TODAY)
    week = PERIODS["weekly"].window_of(TODAY)
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", TODAY, TODAY)
    for server, free_mb in ((1, 100), (2, 70)):
        add_volume(engine, server, "/data", TODAY, 5000, free_mb)
    declare_limits(engine, [Limit("server-2", "copy", 1000)])

    summary = issued(engine)

    first_risk = summary.risks[0]
    assert (first_risk.server, first_risk.name, first_risk.state) == ("server-2", "copy", "full")
    assert summary.headroom_mb == 100
    with served_pages(database) as pages:
        page = pages.document("/")
        assert page["fills_first"][0]["name"] == "copy"
        assert page["headroom"]["unknown_limits"] == summary.unknown_limits == 2
        assert page["headroom"]["headroom_mb"] == summary.headroom_mb
        assert page["headroom"]["fills_soon"] == 2, "and orders on server-1"
        assert pages.document("/filling")["runways"][0]["name"] == "copy"
        assert pages.document("/group?by=team&name=red")["fills_first"][0]["name"] == "copy"
    with engine.connect() as connection:
        assert first_fill_date_of_groups(connection, "team")["red"].name == "copy"
    digest = read_digest(engine, week, today=TODAY)
    assert [(one.server, one.display_name) for one in digest.soon] == [("server-2", "copy"), ("server-1", "orders")]
    assert read_digest(engine, week, ("team", "red"), today=TODAY).soon == digest.soon
