"""One size of the fleet: every output has the same sums, counts and order, also for servers without a total."""

from __future__ import annotations

import random
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.checks import CheckScope, run_checks
from capacity_assets.aggregates.levels import DATABASE, GROUP, INSTANCE, SERVER_LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.aggregates.task_runner import AggregationTaskRunner, follow_labels
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.cli.growth import top_databases
from capacity_assets.database.schema import initialise
from capacity_assets.database.tables import ALWAYS
from capacity_assets.digest import read_digest
from capacity_assets.ownership.labels import Label, declare_labels, explain_group
from capacity_assets.reading.changes import ChangeKind, window_sizes
from capacity_assets.reading.groups import groups_of
from capacity_assets.reading.windows import complete_window, newest_window
from capacity_assets.report.page import read_report
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.former_revisions import ADDED_LATER
from tests.pages import Pages, served_pages
from tests.profiles import nightly_except

DAYS = 75
FIRST = TODAY - timedelta(days=DAYS - 1)
Sums = tuple[int, int, int, int | None]
"""Servers, databases, size and change in MiB."""
SHOWN = ("daily", "weekly", "monthly", "yearly")


def random_fleet(engine: Engine, seed: int) -> None:
    """Servers with totals, with databases alone, or with totals on some days; replicas; equal changes."""
    choose = random.Random(seed)  # noqa: S311 -- reproducible
    for server in range(1, 8):
        engine_name = choose.choice(["postgresql", "mysql"])
        add_instances(engine, [server], db_type=engine_name, counted_by=1 if server in {5, 6} else None)
        with_totals = range(DAYS) if server == 1 else choose.choice([range(0), range(DAYS), range(40), range(40, DAYS)])
        day_sums = [[0, 0] for _ in range(DAYS)]
        for number in range(choose.randint(1, 4)):
            begin = choose.choice([0, 0, 10, DAYS - 6])
            base, step = choose.choice([100, 250, 2_000]), choose.choice([-1, 0, 3, 3, 30])
            history = [base + step * (day // 3) if day >= begin else None for day in range(DAYS)]
            add_database_sizes(engine, sizes(server, f"db-{number}", FIRST.isoformat(), history))
            for day, size in enumerate(history):
                if size is not None:
                    day_sums[day] = [day_sums[day][0] + size, day_sums[day][1] + 1]
        measured = [(size, many) if day in with_totals else None for day, (size, many) in enumerate(day_sums)]
        if any(measured):
            add_instance_sizes(engine, totals(server, FIRST.isoformat(), measured))
    labels = [Label("server-1", "db-0", "team", "red", ALWAYS), Label("server-2", "db-*", "team", "red", ALWAYS)]
    declare_labels(engine, [*labels, Label("server-3", None, "team", "blue", ALWAYS)], TODAY)


def computed(engine: Engine) -> None:
    service = AggregationService(engine, fixed_clock())
    for period in SHOWN:
        compute_windows(service, period, FIRST, TODAY)


def add_up(rows: list[dict[str, Any]]) -> Sums:
    changes = [row["change_mb"] for row in rows if row["change_mb"] is not None]
    servers, databases, size = (int(sum(row[name] for row in rows)) for name in ("servers", "databases", "size_mb"))
    return servers, databases, size, int(sum(changes)) if changes else None


def rows(engine: Engine, query: str, **asked: object) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(query), asked).mappings()]


OF_WINDOW = "WHERE period = :period AND window_start = :start"
FROM_VIEWS = {
    "fleet": f"SELECT servers, databases, size_mb, change_mb FROM capacity_fleet {OF_WINDOW}",
    "export": f"SELECT 1 AS servers, databases, size_mb, change_mb FROM capacity_server_growth {OF_WINDOW} AND counted",
}


def from_tables(engine: Engine, period: Period, window: Window) -> Sums:
    """The definition, computed by hand from the rows of the tables."""

    def of(start: date) -> dict[int, tuple[int, int, int | None, bool]]:
        asked = {"period": period.name, "start": start}
        by_server: dict[int, list[dict[str, Any]]] = {}
        query = "SELECT * FROM {} WHERE period_type = :period AND period_start = :start"
        for row in rows(engine, query.format(DATABASE.target.name), **asked):
            by_server.setdefault(row["instance_id"], []).append(row)
        found = {}
        for server, of_server in by_server.items():
            days = max(row["data_count"] for row in of_server)
            size = sum(row["avg_size_mb"] * row["data_count"] for row in of_server) // days
            found[server] = (sum(row["data_count"] for row in of_server) // days, size, None, True)
        for row in rows(engine, query.format(INSTANCE.target.name), **asked):
            figures = (row["database_count"], row["total_size_mb"], row["total_size_change_mb"], False)
            found[row["instance_id"]] = figures
        return found

    replicas = {row["id"] for row in rows(engine, "SELECT id FROM instances WHERE counted_by IS NOT NULL")}
    now, before = of(window.start), of(period.previous(window).start)
    summed = []
    for server, (databases, size, change, is_derived) in now.items():
        like = before.get(server)
        known = size - like[1] if is_derived and like is not None and like[3] else change
        if server not in replicas:
            summed.append({"servers": 1, "databases": databases, "size_mb": size, "change_mb": known})
    return add_up(summed)


def sums_of(engine: Engine, period: Period, window: Window) -> dict[str, Sums]:
    """The figures of a window in each output."""
    asked = {"period": period.name, "start": window.start}
    found = {name: add_up(rows(engine, query, **asked)) for name, query in FROM_VIEWS.items()}
    with engine.connect() as connection:
        groups = {by: groups_of(connection, period, window, by) for by in ("engine", "server", "team")}
    found["groups by server"] = add_up([vars(group) for group in groups["server"]])
    # Means per day of what was measured on it, which are other ones where a server was not measured on each.
    of_groups = "SELECT * FROM capacity_groups WHERE period = :period AND window_start = :start AND grouped_by = :by"
    by_engine, by_team = (add_up(rows(engine, of_groups, **asked, by=by))[1:] for by in ("engine", "team"))
    assert by_engine == by_team
    # Changes are like for like where a server was not measured on each day.
    assert {add_up([vars(group) for group in groups[by]])[1:3] for by in ("engine", "team")} == {by_team[:2]}
    report = read_report(engine, period, window, by="team")
    assert sum(group.size_mb for group in report.groups) == by_team[1]
    assert report.start_mb + sum(change for _, change in report.steps) == report.end_mb
    found["report"] = (report.size.servers, report.size.databases, report.end_mb, report.known_change_mb)
    for level in SERVER_LEVELS.values():
        of_level = window_sizes(engine, period, level, [window])[window.start]
        found[f"metadata of {level.name}"] = (*found["fleet"][:2], of_level.total_size_mb, of_level.total_change_mb)
        assert of_level.known_before_mb == report.size.known_before_mb
    if period.name == "weekly":
        digest = read_digest(engine, window)
        found["digest"] = (*found["fleet"][:2], digest.size_mb, digest.change_mb)
    return found


def assert_one_size(engine: Engine, pages: Pages) -> None:
    for name in SHOWN:
        period = PERIODS[name]
        for window in period.windows_between(FIRST, TODAY)[-3:]:
            wanted = from_tables(engine, period, window)
            for surface, sums in sums_of(engine, period, window).items():
                assert sums == wanted[-len(sums) :], (surface, name, window)
        page = pages.document(f"/?period={name}")
        newest = page["sizes"][-1]
        assert (newest["size_mb"], newest["change_mb"]) == wanted[2:], name
        windows = period.windows_between(FIRST, TODAY)[-3:]
        scope = CheckScope(name, GROUP, windows, TODAY, 50)
        assert {one.listed for one in run_checks(engine, scope) if one.name == "groups_add_up"} == {()}


@pytest.mark.parametrize("seed", nightly_except(range(2), 0))
def test_every_surface_has_the_same_size_and_counts_of_the_fleet(engine: Engine, database: URL, seed: int) -> None:
    random_fleet(engine, seed)
    computed(engine)

    with served_pages(database) as pages:
        assert_one_size(engine, pages)


def test_a_group_is_explained_by_parts_of_servers_without_a_total(engine: Engine) -> None:
    random_fleet(engine, 1)
    execute(engine, "DELETE FROM instance_size_stats WHERE instance_id IN (2, 3)")
    computed(engine)

    for window in PERIODS["monthly"].windows_between(FIRST, TODAY):
        for team in ("red", "blue"):
            with engine.connect() as connection:
                explained = explain_group(connection, PERIODS["monthly"], window, "team", team)
            assert explained.agrees, (window, team, explained)


@pytest.mark.nightly("computes every group of a former revision")
def test_a_database_of_before_gives_the_same_figures_once_its_groups_are_computed(
    engine: Engine, database: URL
) -> None:
    random_fleet(engine, 2)
    computed(engine)
    execute(engine, *ADDED_LATER["0015"], "UPDATE capacity_alembic_version SET version_num = '0015'")

    initialise(engine)
    runner = AggregationTaskRunner(AggregationService(engine, fixed_clock()))
    assert {stale.level for stale in runner.stale_windows()} == {"group"}
    follow_labels(AggregationTaskRunner(AggregationService(engine, fixed_clock())), None)

    assert runner.stale_windows() == []
    with served_pages(database) as pages:
        assert_one_size(engine, pages)


def equal_changes(engine: Engine) -> None:
    """Databases with equal changes, on servers whose names sort differently from their IDs."""
    add_instances(engine, [1], name="z")
    add_instances(engine, [2], name="a")
    declare_labels(engine, [Label("z", None, "team", "red", ALWAYS)], TODAY)
    for server, names in ((1, ("b", "a", "small")), (2, ("c", "large"))):
        for name in names:
            size = {"small": 5000, "large": 90_000}.get(name, 20_000)
            for sign in (1, -1):
                history = [size] * (DAYS - 7) + [size + sign * 2000] * 7
                add_database_sizes(engine, sizes(server, f"{name}{sign:+}", FIRST.isoformat(), history))


def test_the_newest_window_is_that_of_servers_or_of_databases_whichever_is_newer(engine: Engine) -> None:
    daily = PERIODS["daily"]

    def shown() -> tuple[date | None, date | None]:
        with engine.connect() as connection:
            newest = newest_window(connection, daily)
            complete = complete_window(connection, daily, newest, FIRST + timedelta(days=1))
        return newest.start if newest else None, complete.start if complete else None

    assert shown() == (None, None)
    add_instances(engine, [1, 2])
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(100, 1), (110, 1)]))
    computed(engine)
    assert shown() == (FIRST + timedelta(days=1), FIRST + timedelta(days=1)), "of a server without databases"
    add_database_sizes(engine, sizes(2, "orders", FIRST.isoformat(), [100, 100, 100]))
    computed(engine)
    assert shown() == (FIRST + timedelta(days=2), FIRST), "of a database, and the last day that was over then"


def test_rows_of_equal_change_have_one_order(engine: Engine, database: URL) -> None:
    equal_changes(engine)
    service = AggregationService(engine, fixed_clock())
    for period in ("daily", "weekly", "monthly"):
        compute_windows(service, period, FIRST, TODAY)
    weekly = PERIODS["weekly"]
    window = weekly.window_of(TODAY)
    grown = [("a", "large+1"), ("z", "a+1"), ("z", "b+1"), ("a", "c+1"), ("z", "small+1")]
    shrunk = [(server, name.replace("+", "-")) for server, name in grown]

    report = read_report(engine, weekly, window)
    sums = window_sizes(engine, weekly, DATABASE, [window])[window.start]
    digest = read_digest(engine, window)
    found = {
        "metadata": [(mover.server, mover.database) for mover in sums.growers],
        "report": [(one.server, one.name) for one in report.databases.largest[ChangeKind.GROWN]],
        "digest": [(one.server, one.database) for one in digest.growers],
        "top": top_of(engine, window, "growth"),
    }
    fallen = {
        "metadata": [(mover.server, mover.database) for mover in sums.shrinkers],
        "report": [(one.server, one.name) for one in report.databases.largest[ChangeKind.SHRUNK]],
        "top": top_of(engine, window, "shrinkage"),
    }
    # On the day after, the week is over.
    with served_pages(database, clock=fixed_clock(TODAY + timedelta(days=1))) as pages:
        for named, order in ((found, "growth"), (fallen, "shrinkage")):
            listed = pages.document(f"/databases?period=weekly&window={window.start}&order={order}")["databases"]
            named["databases"] = [(row["server"], row["database"]) for row in listed][:5]
        weekly_moved = next(one for one in pages.document("/")["moved"] if one["period"] == "weekly")
        found["fleet"] = [(row["server"], row["database"]) for row in weekly_moved["growers"]]
        fallen["fleet"] = [(row["server"], row["database"]) for row in weekly_moved["shrinkers"]]
    assert found == dict.fromkeys(found, grown)
    assert fallen == dict.fromkeys(fallen, shrunk)


def top_of(engine: Engine, window: Window, by: str) -> list[tuple[str, str]]:
    return [(row.server, row.database) for row in top_databases(engine, PERIODS["weekly"], window, by=by, limit=10)]
