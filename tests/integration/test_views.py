"""The views for everyone else, and the Grafana dashboard that reads them: what they say equals the tables."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.engine import rows_of_issue, snapshot
from capacity_assets.database.schema import SchemaProblemsError, initialise, schema_state
from capacity_assets.database.views import VIEWS
from capacity_assets.forecast.decisions import EXCLUDED, Decision, decide
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.limits import Limit, SizeStep, declare_limits, declare_steps
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.reading import access
from capacity_assets.reading.changes import window_sizes
from capacity_assets.reading.windows import newest_day
from capacity_assets.report.page import notes, read_report
from capacity_assets.web.reader import Reader
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import (
    add_beside_sizes,
    add_database_sizes,
    add_instance_sizes,
    add_instances,
    load_sample,
    sizes,
    totals,
)


def rows(engine: Engine, query: str) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(text(query))]


def small_fleet(engine: Engine) -> None:
    """Two engines; orders grows, log is new in February, and server 2 lacks three days of February."""
    add_instances(engine, [1])
    add_instances(engine, [2], db_type="mysql")
    add_database_sizes(engine, sizes(1, "orders", "2025-01-01", [100] * 31 + [150] * 28))
    add_database_sizes(engine, sizes(1, "log", "2025-02-01", [40] * 28))
    add_database_sizes(engine, sizes(2, "orders", "2025-01-01", [900] * 31 + [None] * 3 + [800] * 25))
    add_instance_sizes(engine, totals(1, "2025-01-01", [(100, 1)] * 31 + [(190, 2)] * 28))
    add_instance_sizes(engine, totals(2, "2025-01-01", [(900, 1)] * 31 + [None] * 3 + [(800, 1)] * 25))
    service = AggregationService(engine, fixed_clock())
    for name in ("monthly", "quarterly"):
        compute_windows(service, name, date(2025, 1, 1), date(2025, 6, 30))


PREPARED = {"two_engines": small_fleet}


@pytest.fixture
def two_engines(engine: Engine) -> None:
    """The servers of `small_fleet`, computed; copied."""


def filling_fleet(engine: Engine) -> None:
    """The sample, with a limit that is reached within a year, and runways that came due."""
    load_sample(engine)
    days = rows(engine, "SELECT min(collected_date) AS first, max(collected_date) AS last FROM database_size_stats")[0]
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", days["first"], days["last"])
    [server] = rows(
        engine,
        "SELECT i.name, s.total_size_mb AS mb FROM instance_size_stats s JOIN instances i ON i.id = s.instance_id "
        f"WHERE s.collected_date = '{days['last']}' AND i.is_active AND NOT s.is_deleted ORDER BY mb DESC LIMIT 1",
    )
    declare_limits(engine, [Limit(server["name"], None, server["mb"] + 1)])
    declare_labels(engine, [Label(server["name"], None, "team", "payments")], days["last"])
    for period in ("monthly", "daily"):
        compute_windows(AggregationService(engine, fixed_clock()), period, days["first"], days["last"], scope="group")
    declare_steps(engine, [SizeStep(server["name"], None, days["last"], "purged")])
    decide(engine, [Decision(server["name"], None, None, EXCLUDED, days["last"] + timedelta(days=30), "scratch")])
    add_beside_sizes(engine, server["name"], days["last"])
    for day in (days["last"] - timedelta(days=7), days["last"]):
        issue_runways(engine, day, day)
    execute(engine, "UPDATE capacity_runways SET in_time = true")


DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "capacity.json"


@pytest.mark.usefixtures("two_engines")
def test_growth_speaks_of_servers_and_databases_by_name_and_says_how_much_was_measured(engine: Engine) -> None:
    found = rows(
        engine,
        "SELECT server, engine, database, size_mb, change_mb, change_percent, trend, measured_days, window_days, "
        "coverage_percent FROM capacity_growth WHERE period = 'monthly' AND window_start = '2025-02-01' "
        "ORDER BY server, database",
    )

    assert [tuple(row.values())[:7] for row in found] == [
        ("server-1", "postgresql", "log", 40, None, None, None),
        ("server-1", "postgresql", "orders", 150, 50, Decimal("50.00"), "growing"),
        ("server-2", "mysql", "orders", 800, -100, Decimal("-11.11"), "shrinking"),
    ]
    assert [(row["measured_days"], row["window_days"], float(row["coverage_percent"])) for row in found] == [
        (28, 28, 100.0),
        (28, 28, 100.0),
        (25, 28, 89.3),
    ]


@pytest.mark.usefixtures("two_engines")
def test_the_fleet_adds_up_by_engine_and_counts_the_servers_whose_size_is_no_growth(engine: Engine) -> None:
    add_instances(engine, [3])
    add_instance_sizes(engine, totals(3, "2025-02-01", [(7, 1)] * 28))
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", date(2025, 2, 1), date(2025, 2, 1))

    found = rows(
        engine,
        "SELECT engine, servers, databases, size_mb, change_mb, servers_without_change FROM capacity_fleet "
        "WHERE period = 'monthly' AND window_start = '2025-02-01' ORDER BY engine",
    )

    assert [tuple(row.values()) for row in found] == [("mysql", 1, 1, 800, -100, 0), ("postgresql", 2, 3, 197, 90, 1)]


@pytest.mark.usefixtures("two_engines")
def test_latest_holds_the_newest_stored_window_of_each_period_and_no_other(engine: Engine) -> None:
    found = rows(engine, "SELECT DISTINCT period, window_start::text FROM capacity_latest ORDER BY period")

    assert [tuple(row.values()) for row in found] == [("monthly", "2025-02-01"), ("quarterly", "2025-01-01")]


def test_a_day_without_samples_has_no_row_in_the_coverage(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    add_instance_sizes(engine, totals(1, "2025-01-01", [(10, 1), None, (12, 1)]))
    add_instance_sizes(engine, totals(2, "2025-01-01", [(5, 2)]))

    found = rows(engine, "SELECT day::text, servers, databases, size_mb FROM capacity_coverage ORDER BY day")

    assert [tuple(row.values()) for row in found] == [("2025-01-01", 2, 3, 15), ("2025-01-03", 1, 1, 12)]


@pytest.mark.usefixtures("two_engines")
def test_the_history_of_a_server_that_is_registered_no_more_keeps_its_rows(engine: Engine) -> None:
    execute(engine, "DELETE FROM instances WHERE id = 2")

    found = rows(engine, "SELECT DISTINCT server, engine FROM capacity_growth ORDER BY server DESC")

    assert [tuple(row.values()) for row in found] == [("server-1", "postgresql"), ("server 2", "unknown")]


def test_init_makes_a_missing_view_again_and_renews_an_outdated_one_keeping_grants(engine: Engine) -> None:
    execute(
        engine,
        "DROP VIEW capacity_fleet",
        "CREATE ROLE view_reader",
        "GRANT SELECT ON capacity_growth TO view_reader",
        "COMMENT ON VIEW capacity_growth IS 'of an older version (definition 0)'",
    )
    try:
        assert schema_state(engine).shortcomings == (
            "view capacity_growth is missing or outdated",
            "view capacity_fleet is missing or outdated",
        )
        assert initialise(engine) == (
            "created or renewed view capacity_growth",
            "created or renewed view capacity_fleet",
        )
        assert schema_state(engine).fit
        assert initialise(engine) == ()
        granted = "SELECT has_table_privilege('view_reader', 'capacity_growth', 'SELECT') AS granted"
        assert rows(engine, granted) == [{"granted": True}]
    finally:
        execute(engine, "DROP OWNED BY view_reader", "DROP ROLE view_reader")


def remade_coverage(engine: Engine, *further: str) -> None:
    """Make the columns of a view others, as an older version might have had them."""
    execute(
        engine,
        "DROP VIEW capacity_coverage",
        "CREATE VIEW capacity_coverage AS SELECT 1::integer AS day",
        "COMMENT ON VIEW capacity_coverage IS 'of an older version (definition 0)'",
        "GRANT SELECT ON capacity_fleet TO PUBLIC",
        *further,
    )


def test_a_view_whose_columns_were_others_is_made_anew_and_what_somebody_built_on_it_is_put_back(
    engine: Engine,
) -> None:
    remade_coverage(
        engine,
        "CREATE VIEW theirs AS SELECT day FROM capacity_coverage",
        "CREATE VIEW of_theirs AS SELECT t.day, f.size_mb FROM theirs t CROSS JOIN capacity_fleet f",
        "GRANT SELECT ON of_theirs TO PUBLIC",
    )

    assert initialise(engine) == (
        "dropped and restored: view of_theirs",
        "dropped and restored: view theirs",
        "created or renewed view capacity_coverage",
    )

    assert schema_state(engine).fit
    assert initialise(engine) == ()
    for view in ("capacity_coverage", "theirs", "of_theirs"):
        assert rows(engine, f"SELECT day FROM {view}") == []
    granted = "SELECT has_table_privilege('public', '{}', 'SELECT') AS granted"
    for view in ("capacity_fleet", "of_theirs"):
        assert rows(engine, granted.format(view)) == [{"granted": True}], view


def test_a_materialised_view_on_a_view_that_is_made_anew_is_named_and_nothing_is_changed(engine: Engine) -> None:
    remade_coverage(engine, "CREATE MATERIALIZED VIEW theirs AS SELECT day FROM capacity_coverage")

    with pytest.raises(
        SchemaProblemsError, match=r"materialized view theirs reads .* view that has to be created again"
    ):
        initialise(engine)

    assert rows(engine, "SELECT day FROM theirs") == [{"day": 1}]


@pytest.mark.single_server("reads without a right on the tables below")
def test_who_may_read_the_views_needs_no_right_on_the_tables(engine: Engine) -> None:
    filling_fleet(engine)
    with engine.begin() as connection:
        # Groups are behind their labels.
        connection.execute(text("UPDATE capacity_labels SET value = 'search'"))
        # In the months, server-1 is left out.
        left_out = (
            "UPDATE group_size_aggregations SET label_value = 'left out 1' "
            "WHERE period_type = 'monthly' AND label_key = '(total)' AND label_value = 'measured'"
        )
        connection.execute(text(left_out))
        connection.execute(text("CREATE ROLE dashboard"))
        for view in VIEWS:
            connection.execute(text(f"GRANT SELECT ON {view.name} TO dashboard"))
    try:
        with engine.connect() as connection:
            connection.execute(text("SET ROLE dashboard"))
            for view in VIEWS:
                assert connection.execute(text(f"SELECT count(*) FROM {view.name}")).scalar_one() > 0
            with pytest.raises(ProgrammingError, match="permission denied"):
                connection.execute(text("SELECT count(*) FROM instances"))
    finally:
        execute(engine, "DROP OWNED BY dashboard", "DROP ROLE dashboard")


def test_every_column_of_a_view_has_a_comment_in_the_database(engine: Engine) -> None:
    found = rows(
        engine,
        "SELECT c.relname AS view, a.attname AS name, col_description(c.oid, a.attnum) AS comment "
        "FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 "
        "WHERE c.relkind = 'v' AND c.relname LIKE 'capacity%' ORDER BY c.relname, a.attnum",
    )

    wanted = {(view.name, column.name, column.comment) for view in VIEWS for column in view.columns}
    assert {tuple(row.values()) for row in found} == wanted


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def filled(query: str) -> str:
    """The query as Grafana sends it, for the sample's first server."""
    query = re.sub(r"\$__timeFilter\((\w+)\)", r"\1 BETWEEN '2020-01-01T00:00:00Z' AND '2030-01-01T00:00:00Z'", query)
    values = {"$period": "monthly", "$grouped_by": "team", "$engine": "'mysql','postgresql','sqlserver','oracle'"}
    for name, value in values.items():
        query = query.replace(name, value)
    return query


def test_a_legacy_object_of_a_views_name_stands_in_the_way_and_is_kept(empty_engine: Engine) -> None:
    execute(empty_engine, "CREATE TABLE capacity_fleet (theirs integer)")

    with pytest.raises(SchemaProblemsError, match="capacity_fleet is the name of one of our views"):
        initialise(empty_engine)

    assert rows(empty_engine, "SELECT count(*) AS found FROM capacity_fleet") == [{"found": 0}]


def test_every_query_of_the_dashboard_finds_rows_in_the_views(engine: Engine) -> None:
    filling_fleet(engine)
    server = str(rows(engine, "SELECT min(server_id) AS id FROM capacity_growth")[0]["id"])
    queries = {panel["title"]: panel["targets"][0]["rawSql"] for panel in dashboard()["panels"]}
    queries |= {v["name"]: v["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query"}

    for title, query in queries.items():
        read = set(re.findall(r"FROM (\w+)", query))
        assert read <= {view.name for view in VIEWS}, title
        assert rows(engine, filled(query).replace("$server", server)), title


def test_the_dashboard_offers_every_period_and_its_panels_do_not_overlap() -> None:
    loaded = dashboard()
    [period] = [variable for variable in loaded["templating"]["list"] if variable["name"] == "period"]
    cells = [
        (x, y)
        for panel in loaded["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert period["query"].split(",") == list(PERIODS)
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in loaded["panels"]}) == len(loaded["panels"])
    assert all(panel["description"] for panel in loaded["panels"])


def test_a_replica_is_measured_and_shown_and_counted_once(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    execute(engine, "UPDATE instances SET counted_by = 1 WHERE id = 2")
    for number in (1, 2):
        add_database_sizes(engine, sizes(number, "orders", "2025-03-01", [100] * 31 + [160] * 30))
        add_instance_sizes(engine, totals(number, "2025-03-01", [(100, 1)] * 31 + [(160, 1)] * 30))
    service = AggregationService(engine, fixed_clock())
    compute_windows(service, "monthly", date(2025, 3, 1), date(2025, 4, 30))
    april = PERIODS["monthly"].window_of(date(2025, 4, 1))

    latest = rows(engine, "SELECT server, size_mb, counted FROM capacity_latest ORDER BY 1")
    assert [tuple(row.values()) for row in latest] == [("server-1", 160, True), ("server-2", 160, False)]
    [row] = rows(engine, "SELECT servers, size_mb, change_mb FROM capacity_fleet WHERE window_start = '2025-04-01'")
    assert tuple(row.values()) == (1, 160, 60)
    [row] = rows(engine, "SELECT servers, size_mb FROM capacity_coverage WHERE day = '2025-04-01'")
    assert tuple(row.values()) == (2, 160)
    for level in LEVELS.values():
        found = window_sizes(engine, PERIODS["monthly"], level, [april])[april.start]
        assert (found.total_size_mb, found.total_change_mb) == (160, 60)
        assert len(found.growers) == (level.has_servers), "there is no label"
    fleet = read_report(engine, PERIODS["monthly"], april)
    alone = read_report(engine, PERIODS["monthly"], april, "server-2")
    assert (fleet.end_mb, fleet.in_service.counted_by_others, alone.end_mb) == (160, 1, 160)
    assert "Left out: 1 of 2 active servers, because" in " ".join(notes(fleet))
    assert "Left out" not in " ".join(notes(alone))


def test_the_fleet_names_servers_that_fell_silent_instead_of_calling_them_shrinkage(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    add_instance_sizes(engine, totals(1, "2025-03-01", [(100, 1)] * 61))
    add_instance_sizes(engine, totals(2, "2025-03-01", [(900, 1)] * 31))
    service = AggregationService(engine, fixed_clock())
    compute_windows(service, "monthly", date(2025, 3, 1), date(2025, 4, 30))

    [april] = rows(engine, "SELECT * FROM capacity_fleet WHERE window_start = '2025-04-01'")

    assert (april["servers"], april["size_mb"], april["change_mb"], april["servers_without_change"]) == (1, 100, 0, 0)
    assert (april["servers_missing"], april["missing_size_mb"]) == (1, 900)
    [march] = rows(engine, "SELECT * FROM capacity_fleet WHERE window_start = '2025-03-01'")
    assert (march["servers"], march["servers_missing"], march["missing_size_mb"]) == (2, 0, None)


@pytest.mark.single_server("nodes plan their own partitions")
@pytest.mark.parametrize(
    ("query", "planned"),
    [
        # The day itself, and what is behind the last partition.
        (
            "SELECT size_mb FROM capacity_server_growth WHERE {of_day} AND NOT is_derived",
            {"instance_size_aggregations"},
        ),
        (
            "SELECT size_mb FROM capacity_server_growth WHERE {of_day}",
            {"instance_size_aggregations", "database_size_aggregations", "group_size_aggregations"},
        ),
        ("SELECT size_mb FROM capacity_groups WHERE {of_day} AND grouped_by = 'team'", {"group_size_aggregations"}),
    ],
)
@pytest.mark.usefixtures("two_engines")
def test_only_the_tables_of_a_question_are_planned(engine: Engine, query: str, planned: set[str]) -> None:
    """Planning the partitions of servers without totals takes longer than reading all others."""
    with engine.connect() as connection:
        of_day = "period = 'daily' AND window_start = DATE '2025-02-03'"
        connection.execute(text(f"EXPLAIN {query.format(of_day=of_day)}"))
        opened = connection.execute(
            text("SELECT CAST(relation AS regclass) FROM pg_locks WHERE pid = pg_backend_pid()")
        )
        names = [str(name) for name in opened.scalars()]
    of_periods = re.compile(r"(.*_aggregations)_(?:default|(?:daily|weekly|monthly|quarterly|yearly).*)")
    assert {found.group(1) for name in names if (found := of_periods.fullmatch(name))} == planned


def test_a_snapshot_answers_the_same_question_once(engine: Engine) -> None:
    question = "SELECT clock_timestamp() AS now, CAST(:number AS integer) AS number"
    with snapshot(engine) as connection:
        first = access.rows(connection, question, number=1)
        assert access.rows(connection, question, number=1) == first
        assert access.rows(connection, question, number=2) != first
        many = "SELECT clock_timestamp() AS now FROM generate_series(1, 1001)"
        assert access.rows(connection, many) != access.rows(connection, many), "large results are not kept"
    with snapshot(engine) as connection:
        assert access.rows(connection, question, number=1) != first
    with engine.connect() as connection:
        assert access.rows(connection, question, number=1) != access.rows(connection, question, number=1)


def test_rows_of_an_issue_are_read_once_for_all_snapshots_until_there_is_another_one(engine: Engine) -> None:
    reader = Reader(engine)
    question = text("SELECT clock_timestamp() AS now, CAST(:number AS integer) AS number")

    def asked(revision: object, number: int = 1) -> object:
        with reader.transaction(revision) as connection:
            return rows_of_issue(connection, question, number=number)

    first = asked("an issue")
    assert asked("an issue") == first
    assert asked("an issue", 2) != first
    assert asked("another issue") != first
    assert asked(None) != asked(None)
    with engine.connect() as connection:
        assert rows_of_issue(connection, question, number=1) != rows_of_issue(connection, question, number=1)
    reader.close()


def test_the_newest_day_with_samples_is_found_however_old_it_is_and_never_in_the_future(engine: Engine) -> None:
    today = date(2025, 6, 1)
    add_instances(engine, [1])
    with engine.connect() as connection:
        assert newest_day(connection, today) is None
        for day in (date(2024, 12, 31), date(2025, 5, 1), date(2025, 5, 31), today):
            add_database_sizes(engine, sizes(1, "orders", day.isoformat(), [100]))
            connection.rollback()
            assert newest_day(connection, today) == day
        add_instance_sizes(engine, totals(1, "2025-06-01", [(100, 1), (100, 1)]))
        connection.rollback()
        assert newest_day(connection, today) == today
