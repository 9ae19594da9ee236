"""Each statement of a slice is handed to the nodes whole, and people are answered as on a single server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text

from capacity_assets.aggregates.levels import SERVER_LEVELS
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.cluster import copied_for_reading
from capacity_assets.forecast.history import SOURCES, HistoryScope
from capacity_assets.ownership.bills import READ
from tests.citus_fleet import FIRST, LAST, SHARDS, compute_everything, service
from tests.command import capacity
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, figures, sizes, totals
from tests.long_windows import days_read


def test_groups_add_up_to_the_same_as_on_a_single_server(distributed: Engine, plain: Engine) -> None:
    labels = (
        "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) VALUES "
        "(1, '', 'team', '0001-01-01', 'shop'), (2, '', 'team', '2025-03-01', 'books'), "
        "(2, 'arch*', 'team', '2025-02-01', 'archive'), (3, 'orders', 'team', '2025-04-01', 'shop')"
    )
    found = []
    for engine in (distributed, plain):
        execute(engine, labels)
        compute_everything(engine)
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT * FROM capacity_groups ORDER BY 1, 2, 3, 4, 5"))
            found.append([tuple(row) for row in rows])

    assert found[0] == found[1]
    assert {row[3] for row in found[0]} == {"engine", "server", "team"}


OURS = ("SELECT by_server", "INSERT INTO", "DELETE FROM", "SELECT database_size", "SELECT instance_size")
Plan = dict[str, object]


@contextmanager
def explained(engine: Engine) -> Iterator[dict[str, Plan]]:
    """The plan of every statement of a slice that the block executes."""
    plans: dict[str, Plan] = {}

    def explain(connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if statement.startswith(OURS) and "capacity_" not in statement.split("(", maxsplit=1)[0]:
            found = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)  # type: ignore[attr-defined]
            plans[statement] = found.scalar_one()[0]["Plan"]

    event.listen(engine, "before_cursor_execute", explain)
    yield plans
    event.remove(engine, "before_cursor_execute", explain)


def assert_that_nodes_do_all(engine: Engine, plans: dict[str, Plan]) -> None:
    """One scan each, with as many tasks as there are shards, and no row through the coordinator."""
    used = shards_used(engine)
    assert used > 2
    for statement, plan in plans.items():
        assert tasks_of(plan) in ([used], [SHARDS]), statement[:200]
    written = [plan for statement, plan in plans.items() if statement.startswith("INSERT INTO")]
    assert written
    assert {plan["Custom Plan Provider"] for plan in written} == {"Citus Adaptive"}


def shards_used(engine: Engine) -> int:
    """How many shards have a server."""
    shard = "get_shard_id_for_distribution_column('database_size_stats', id)"
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(DISTINCT {shard}) FROM instances")).scalar_one())


def tasks_of(plan: Plan) -> list[int]:
    """The number of tasks of each query that nodes are handed."""
    queries = [node["Distributed Query"] for node in nodes_of(plan) if "Distributed Query" in node]
    return [query["Job"]["Task Count"] for query in queries]  # type: ignore[index]


EXPLAINED = [(period, level, overwrite) for period in PERIODS for level in SERVER_LEVELS for overwrite in (False, True)]


@pytest.mark.parametrize(("period", "level", "overwrite"), EXPLAINED)
def test_every_statement_of_a_slice_is_handed_to_the_nodes_whole(
    distributed: Engine, period: str, level: str, *, overwrite: bool
) -> None:
    options = RunOptions((level,), overwrite=overwrite, recompute=True)
    with explained(distributed) as plans:
        for last in (FIRST, LAST):  # one window, and several
            with distributed.begin() as connection:
                connection.execute(text("TRUNCATE database_size_aggregations, instance_size_aggregations"))
            service(distributed).aggregate(period, PERIODS[period].windows_between(FIRST, last), options)

    assert_that_nodes_do_all(distributed, plans)


Spans = list[tuple[date, date]]


def days_read_on_nodes(distributed: Engine, plain: Engine, period: str, level: str) -> Spans:
    """Compute a window of both, equal and by nodes alone; return the days whose samples were read."""
    window, options = PERIODS[period].window_of(date(2025, 4, 1)), RunOptions((level,), recompute=True)
    with explained(distributed) as plans, days_read(distributed) as read:
        service(distributed).aggregate(period, [window], options)
    service(plain).aggregate(period, [window], options)
    assert_that_nodes_do_all(distributed, plans)
    assert figures(distributed, SERVER_LEVELS[level]) == figures(plain, SERVER_LEVELS[level])
    return read[level]


@pytest.mark.parametrize("level", SERVER_LEVELS)
@pytest.mark.parametrize("period", ["quarterly", "yearly"])
def test_stored_windows_are_read_on_the_nodes_where_they_cover_everything(
    distributed: Engine, plain: Engine, period: str, level: str
) -> None:
    for engine in (distributed, plain):
        # A year and more before, so that the months between are known to hold nothing.
        add_database_sizes(engine, sizes(1, "orders", "2023-12-01", [5]))
        add_instance_sizes(engine, totals(1, "2023-12-01", [(5, 1)]))
        service(engine).aggregate("monthly", PERIODS["monthly"].windows_between(date(2023, 12, 1), date(2025, 12, 1)))

    assert days_read_on_nodes(distributed, plain, period, level) == []


@pytest.mark.parametrize("level", SERVER_LEVELS)
@pytest.mark.parametrize(
    ("period", "stored", "days"),
    [
        # Its days beside stored months.
        ("monthly", [("monthly", "2024-04-01"), ("monthly", "2025-03-01")], [(date(2025, 4, 1), date(2025, 4, 30))]),
        # Its months and the quarter before, beside days of the year before.
        (
            "quarterly",
            [("monthly", f"2025-0{month}-01") for month in (4, 5, 6)] + [("quarterly", "2025-01-01")],
            [(date(2024, 4, 1), date(2024, 6, 30))],
        ),
        # The quarter before beside days.
        (
            "quarterly",
            [("quarterly", "2025-01-01")],
            [(date(2024, 4, 1), date(2024, 6, 30)), (date(2025, 4, 1), date(2025, 6, 30))],
        ),
    ],
    ids=["days beside stored windows", "stored windows beside days", "one stored window beside days"],
)
def test_stored_windows_are_read_on_the_nodes_beside_days(
    distributed: Engine, plain: Engine, period: str, stored: list[tuple[str, str]], days: Spans, level: str
) -> None:
    for engine in (distributed, plain):
        add_database_sizes(engine, sizes(1, "orders", "2024-04-01", range(100, 190)))
        add_instance_sizes(engine, totals(1, "2024-04-01", [(size, 1) for size in range(100, 190)]))
        for name, day in stored:
            service(engine).aggregate(name, [PERIODS[name].window_of(date.fromisoformat(day))])

    assert days_read_on_nodes(distributed, plain, period, level) == days


# The sizes of servers that left are added up by label, and the nodes have no labels.
@pytest.mark.parametrize("name", [name for name in SOURCES if name != "departed_group_days"])
def test_what_forecasts_look_at_is_put_together_on_the_nodes(distributed: Engine, name: str) -> None:
    with distributed.connect() as connection:
        servers = connection.execute(text("SELECT id FROM instances")).scalars().all()
        parameters = HistoryScope(LAST).parameters(servers)
        plan = connection.execute(text(f"EXPLAIN (FORMAT JSON) {SOURCES[name]}"), parameters).scalar_one()[0]["Plan"]

    assert plan["Custom Plan Provider"] == "Citus Adaptive", "the coordinator only receives"
    assert tasks_of(plan) == [shards_used(distributed)]


@pytest.mark.parametrize("name", READ)
def test_what_a_bill_rests_on_is_added_up_on_the_nodes(distributed: Engine, name: str) -> None:
    asked = {"start": date(2025, 5, 1), "end": date(2025, 5, 31), "segments": [date(2025, 5, 1), date(2025, 5, 9)]}
    with distributed.connect() as connection:
        plan = connection.execute(text(f"EXPLAIN (FORMAT JSON) {READ[name]}"), asked).scalar_one()[0]["Plan"]

    # Rows without a server cannot be joined on the nodes: the coordinator joins one row per table.
    below = plan["Distributed Query"].get("Subplans", [])
    read = [statement["Plan"] for one in below for statement in one["PlannedStmt"]] or [plan]
    assert plan["Custom Plan Provider"] == "Citus Adaptive", "the coordinator only receives"
    assert [tasks_of(one) for one in read] == [[SHARDS]] * len(read)
    assert {one["Plan Rows"] for one in read if one is not plan} <= {1}


def nodes_of(plan: dict[str, object]) -> Iterator[dict[str, object]]:
    yield plan
    for below in plan.get("Plans", ()):  # type: ignore[attr-defined]
        yield from nodes_of(below)


def test_what_people_ask_is_answered_as_on_a_single_server(
    distributed: Engine, plain: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    june = ("--period", "monthly", "--window", "2025-05-01")
    asked = (
        ("status", "--json"),
        ("top", *june, "--json"),
        ("groups", *june, "--json"),
        ("explain", "orders", "--server", "server-2", *june, "--json"),
        ("plan", "--period", "monthly", "--json"),
        ("limits", "set", "server-1", "--gb", "900"),
        ("runway", "--json"),
        ("prices", "set", "2", "--currency", "EUR"),
        ("bill", "--month", "2025-05", "--json"),
        ("report", *june, "--output", str(tmp_path / "report.html")),
    )
    answers = []
    for engine in (distributed, plain):
        compute_everything(engine)
        monkeypatch.setenv("CAPACITY_DATABASE_URL", engine.url.render_as_string(hide_password=False))
        found = {}
        for command in asked:
            done = capacity(*command)
            assert done.exit_code in (0, 1), (command, done.output)
            assert "not supported" not in done.output, command
            found[command] = done.output if command[-1] == "--json" else str(done.exit_code)
        answers.append(found)

    timed = ("status", "plan", "bill", "runway")
    for command in asked:
        if command[0] not in timed:
            assert answers[0][command] == answers[1][command], command


def test_copies_for_reading_have_statistics(distributed: Engine) -> None:
    """Without these a bill of 2,000 databases took three seconds, and one of 20,000 a hundred times as long."""
    queries = {"database_size_stats": "SELECT * FROM database_size_stats WHERE instance_id = :server"}
    with distributed.begin() as connection, copied_for_reading(connection, queries, {"server": 2}):
        known = "SELECT reltuples FROM pg_class WHERE oid = 'pg_temp.database_size_stats'::regclass"
        rows = connection.execute(text("SELECT count(*) FROM database_size_stats")).scalar_one()

        assert connection.execute(text(known)).scalar_one() == rows > 0
