"""What grew inside: changes of tables and indexes that add up to the change of their database, whatever was listed."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.collection import storing
from capacity_assets.collection.engines.base import DatabaseObjects, DatabaseSize, Objects, ObjectSize
from capacity_assets.collection.measuring import ProbeOutcome
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.tables import ALWAYS
from capacity_assets.demo import FIXED_FILES, declare_sample, load_sample_fleet
from capacity_assets.forecast.limits import stored_steps
from capacity_assets.forecast.results import FORECAST, OWN_CEILING
from capacity_assets.forecast.runway import compute_runways
from capacity_assets.ownership.bills import issue_bill
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.ownership.prices import Price, declare_prices
from capacity_assets.reading import table_growth as reading
from capacity_assets.reading.subjects import address
from capacity_assets.reading.table_growth import compared_samples, growth_inside, list_objects
from tests.clocks import TODAY, fixed_clock
from tests.collecting import OBJECTS_THAT_ADD_UP
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.fleet import add_instances
from tests.pages import KEYS, served_pages

MIB = 1024**2
FIRST, LAST = date(2025, 5, 25), date(2025, 6, 22)
NUMBERS = count(1000)


def measured(
    engine: Engine,
    day: date,
    objects: Sequence[ObjectSize],
    size_bytes: int,
    *,
    server: int = 1,
    database: str = "orders",
    others: tuple[int, int] = (0, 0),
    hour: int = 0,
) -> None:
    """Store what a server said on a day."""
    moment = datetime.combine(day, time(hour), UTC)
    outcome = ProbeOutcome(
        (DatabaseSize.of_bytes(database, size_bytes),),
        objects=Objects((DatabaseObjects(database, tuple(objects), *others),)),
        instance_id=server,
        server=f"server-{server}",
        ended_at=moment,
    )
    storing.store_outcomes(engine, day, [outcome])


def table(name: str, size_mb: int, **values: object) -> ObjectSize:
    return ObjectSize("public", name, "table", size_mb * MIB, **values)  # type: ignore[arg-type]


@pytest.fixture
def story(settings: Settings, engine: Engine) -> None:
    """An audit log that grew, an index that doubled, a table that is new, one that was dropped, and small ones."""
    assert settings
    add_instances(engine, [1])
    index = ObjectSize("public", "orders_when", "index", 100 * MIB, "orders")
    small = [table(f"small_{number}", 1) for number in range(3)]
    audit = {"index_bytes": 0, "free_bytes": 100 * MIB}
    before = [table("audit", 500, estimated_rows=10, **audit), table("orders", 900), index, table("old", 40), *small]
    doubled = ObjectSize("public", "orders_when", "index", 200 * MIB, "orders")
    audit["free_bytes"] = 300 * MIB
    after = [table("audit", 900, estimated_rows=20, **audit), table("orders", 900), doubled, table("new", 60), *small]
    measured(engine, FIRST, before, 1600 * MIB)
    measured(engine, LAST, after, 2100 * MIB)


@pytest.mark.usefixtures("story", "today")
def test_the_objects_behind_a_change_are_listed_and_add_up_to_it() -> None:
    found = json.loads(printed("inside", "server-1", "orders", "--from", "2025-06-01", "--json"))

    assert [
        (one["name"], one["kind"], one["change_bytes"] // MIB, one["before_is_bound"]) for one in found["objects"]
    ] == [
        ("audit", "table", 400, False),
        ("orders_when", "index", 100, False),
        ("new", "table", 60, False),
        ("old", "table", -40, False),
    ]
    assert (found["first_day"], found["last_day"]) == ("2025-05-25", "2025-06-22")
    assert (found["others_change_bytes"], found["unexplained_change_bytes"] // MIB) == (0, -20)
    assert found["change_bytes"] == 500 * MIB
    shown = printed("inside", "server-1", "orders", "--period", "monthly", "--window", "2025-06-10", "--limit", "2")
    assert "orders on server-1: 1.6 GiB on 25 May 2025, 2.1 GiB on 22 Jun 2025, +500 MiB." in shown
    assert "public.orders_when on orders" in shown
    assert "2 others that changed" in shown
    assert "unexplained" in shown
    [schema] = json.loads(printed("inside", "server-1", "orders", "--from", "2025-06-01", "--by", "schema", "--json"))
    assert (schema["schema"], schema["objects"], schema["change_bytes"] // MIB) == ("public", 4, 520)
    by_schema = printed("inside", "server-1", "orders", "--from", "2025-06-01", "--by", "schema")
    assert re.findall(r"[+-]\d+ MiB$", by_schema, re.MULTILINE) == ["+520 MiB", "-20 MiB", "+500 MiB"]


@pytest.mark.usefixtures("story", "today")
def test_what_grew_most_over_the_fleet_is_listed_with_its_database() -> None:
    found = json.loads(printed("top", "--tables", "--window", "2025-06-10", "--limit", "3", "--json"))

    assert [(one["server"], one["database"], one["name"], one["change_bytes"] // MIB) for one in found] == [
        ("server-1", "orders", "audit", 400),
        ("server-1", "orders", "orders_when", 100),
        ("server-1", "orders", "new", 60),
    ]
    assert "+400 MiB" in printed("top", "--tables", "--window", "2025-06-10", "--server", "server-1")
    assert capacity("top", "--tables", "--by", "size").exit_code == 2


@pytest.mark.usefixtures("settings", "today")
def test_tables_of_which_none_grew_are_an_empty_list(engine: Engine) -> None:
    add_instances(engine, [1])
    for day in (FIRST, LAST):
        measured(engine, day, [table("audit", 500)], 1600 * MIB)

    assert json.loads(printed("top", "--tables", "--window", "2025-06-10", "--json")) == []
    assert printed("top", "--tables", "--window", "2025-06-10") == (
        "No table or index is known to have grown in June 2025.\n"
    )
    assert capacity("top", "--tables", "--window", "2024-06-10").exit_code == 2


@pytest.mark.usefixtures("story", "today")
def test_what_was_not_measured_twice_is_refused_with_what_to_do() -> None:
    refused = capacity("inside", "server-1", "orders", "--from", "2025-07-01")
    unknown = capacity("inside", "server-1", "nothing", "--from", "2025-07-01")

    assert (refused.exit_code, unknown.exit_code) == (2, 2)
    assert "were not measured twice between 1 Jul 2025" in refused.stderr
    assert "No database 'nothing' on server-1 was ever measured." in unknown.stderr


def test_an_object_that_was_not_listed_is_compared_with_the_most_that_it_can_have_been(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings
    add_instances(engine, [1])
    for module in (storing, reading):
        monkeypatch.setattr(module, "LARGEST_LISTED", 2)
    measured(engine, FIRST, [table("a", 10), table("b", 8), table("c", 7)], 25 * MIB)
    measured(engine, LAST, [table("a", 10), table("c", 30), table("b", 9)], 49 * MIB)

    with engine.connect() as connection:
        found = growth_inside(connection, 1, "orders", FIRST, LAST)

    assert found is not None
    [grown, still] = found.objects
    assert (grown.name, grown.before_bytes, grown.change_bytes, grown.is_bound) == ("c", 8 * MIB, 22 * MIB, True)
    assert (still.name, still.change_bytes) == ("b", MIB)
    assert (found.others_change_bytes, found.change_bytes) == (MIB, 24 * MIB), "one MiB that the bound hides"


@pytest.mark.usefixtures("story", "today")
def test_samples_of_objects_are_exported_with_the_columns_of_their_view() -> None:
    written = list(csv.DictReader(io.StringIO(printed("export", "--objects", "--from", "2025-06-01"))))

    assert {row["day"] for row in written} == {"2025-06-22"}
    assert len(written) == 9
    assert sum(int(row["size_bytes"]) for row in written) == 2100 * MIB
    assert [row["object_name"] for row in written if row["kind"] == "index"] == ["orders_when"]
    refused = capacity("export", "--objects", "--engine", "mysql")
    assert (refused.exit_code, "omit --engine and --label" in refused.stderr) == (2, True)


@pytest.mark.usefixtures("story")
def test_the_page_of_a_database_says_what_grew_inside(database: URL) -> None:
    place = "/database?server=1&name=orders&first={}&last={}"
    with served_pages(database) as pages:
        found = pages.document(place.format("2025-06-01", "2025-06-30"))["inside"]
        html = pages.ask(place.format("2025-06-01", "2025-06-30")).text
        never = pages.document(place.format("2025-01-01", "2025-02-01"))["inside"]

    assert [(one["name"], one["change_bytes"] // MIB) for one in found["objects"]][:2] == [
        ("audit", 400),
        ("orders_when", 100),
    ]
    assert (found["change_bytes"] // MIB, found["unexplained_change_bytes"] // MIB) == (500, -20)
    assert never is None
    assert "What grew inside" in html
    assert "capacity inside server-1 orders --from 2025-05-25 --to 2025-06-22" in html


@pytest.mark.usefixtures("story")
def test_the_page_of_a_table_has_its_history_growth_in_a_week_dead_space_and_cost(
    database: URL, engine: Engine
) -> None:
    between = FIRST + timedelta(days=14)
    measured(engine, between, [table("orders", 905)], 1700 * MIB, others=(3, 700 * MIB))
    bill_at_half_a_euro(engine)
    with served_pages(database) as pages:
        inside = pages.ask("/database?server=1&name=orders&first=2025-06-01&last=2025-06-30").text
        audit = "/table?server=1&database=orders&schema=public&name=audit"
        found, html = pages.document(audit), pages.ask(audit).text
        orders = pages.document(audit.replace("audit", "orders"))
        ranged = pages.document(f"{audit}&first=2025-06-20&last=2025-06-30")
        missing = pages.ask(audit.replace("audit", "nothing"))

    assert f'<a href="{audit.replace("&", "&amp;")}">public.audit</a>' in inside
    assert (
        f'<a href="{audit.replace("&", "&amp;").replace("audit", "orders")}">public.orders_when on orders</a>' in inside
    )
    sizes = [(one["day"], one["total_bytes"] and one["total_bytes"] // MIB) for one in found["sizes"]]
    assert sizes == [("2025-05-25", 500), (f"{between}", None), ("2025-06-22", 900)], "a gap is no zero"
    assert found["weekly_change_bytes"] == 100 * MIB
    assert (found["amount"], found["free_amount"], found["currency"]) == ("0.44", "0.15", "EUR")
    assert [text in html for text in ("not listed", "+100 MiB", "0.15 EUR a month", "20")] == [True] * 4
    assert [one["day"] for one in ranged["sizes"]] == ["2025-06-22"]
    assert (ranged["weekly_change_bytes"], ranged["sizes"][0]["free_bytes"]) == (None, 300 * MIB)
    assert [(one["name"], one["before_bytes"] // MIB, one["after_bytes"] // MIB) for one in orders["indexes"]] == [
        ("orders_when", 100, 200)
    ]
    assert [one["total_bytes"] // MIB for one in orders["sizes"]] == [1000, 905, 1100]
    assert (missing.status, "table &#39;nothing&#39; in orders on server-1" in missing.text) == (404, True)


@pytest.mark.usefixtures("story")
def test_tables_of_the_fleet_are_sorted_by_growth_and_by_what_their_dead_space_costs(
    database: URL, engine: Engine
) -> None:
    add_instances(engine, [2], db_type="mysql")
    add_instances(engine, [3], counted_by=1)
    for server in (2, 3):
        queue = [table("queue", size, free_bytes=size * MIB // 5) for size in (10_000, 10_050)]
        new = [table("sessions", 2000, free_bytes=1500 * MIB)]
        before = [table("events", 2000, free_bytes=200 * MIB), queue[0]]
        grown = table("events", 2890, free_bytes=1124 * MIB)
        measured(engine, FIRST, before, 13_000 * MIB, server=server, database="web")
        measured(engine, LAST, [grown, queue[1], *new], 15_000 * MIB, server=server, database="web")
    declare_labels(engine, [Label("server-2", None, "team", "web", ALWAYS)], TODAY)
    bill_at_half_a_euro(engine)
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", FIRST, LAST)
    with served_pages(database) as pages:
        place = "/tables?period=monthly&window=2025-06-10"

        def listed(**asked: object) -> list[str]:
            asked |= {"period": "monthly", "window": "2025-06-10"}
            return [one["name"] for one in pages.document(address("/tables", **asked))["tables"]]

        grown, free = (pages.document(f"{place}{order}") for order in ("", "&order=free"))
        rows = list(csv.DictReader(io.StringIO(pages.ask(f"{place}&format=csv").text.lstrip("\ufeff"))))
        html = pages.ask(f"{place}&order=free").text
        fleet = pages.ask("/").text
        others = {"server": 1}, {"label": "team=web"}, {"engine": "mysql"}, {"label": "team="}
        assert [listed(**asked)[0] for asked in others] == ["audit", "sessions", "sessions", "audit"]
        assert listed(label="team=web", server=1) == []
        assert listed(order="shrinkage") == ["old"]
        assert listed(order="size")[:5] == ["queue", "events", "sessions", "audit", "orders"]
        assert listed(order="name")[:2] == ["audit", "events"]
        assert pages.ask("/tables?order=age").status == 400
        of_server = pages.ask("/tables?window=2024-01-01&server=1").text
        assert "No tables of server-1 were measured in this window and before it. <code>CAPACITY_OBJECTS" in of_server
        empty = pages.ask("/tables?window=2024-01-01").text
        without_free = pages.ask("/tables?window=2024-01-01&order=free").text
        assert (
            "No table has 1 GiB or more of dead and free space that grew both in bytes and as a share of the table."
            in without_free
        )
        assert '<a href="/tables?window=2024-01-01&amp;order=size">Tables by size</a>' in without_free
        written = pages.ask("/tables?window=2024-01-01&order=unwritten").text
        assert "No table is known to have had no written rows between the compared days." in written
        inside = pages.ask("/database?server=2&name=web&first=2025-06-01&last=2025-06-30").text
    *_, more_free = printed("inside", "server-2", "web", "--from", "2025-06-01").splitlines()

    assert [(one["server"], one["name"], one["change_bytes"] // MIB) for one in grown["tables"]] == [
        ("server-2", "sessions", 2000),
        ("server-2", "events", 890),
        ("server-1", "audit", 400),
        ("server-1", "orders_when", 100),
        ("server-1", "new", 60),
        ("server-2", "queue", 50),
    ], "a replica is not counted twice"
    assert [(one["name"], one["free_change_bytes"], one["amount"]) for one in free["tables"]] == [
        ("events", 924 * MIB, "0.55"),
    ], "neither what is below 1 GiB, nor a fifth that was always free, nor what was not measured before"
    assert (free["counted_bytes"] // MIB, free["amount"], free["currency"]) == (1124, "0.55", "EUR")
    assert (grown["counted_bytes"], grown["amount"]) == (None, None)
    assert [row["name"] for row in rows] == ["sessions", "events", "audit", "orders_when", "new", "queue"]
    shown, shown_inside = (re.sub("<[^>]+>", "", page) for page in (html, inside))
    assert "Free space that a table always has is not listed. Listed space: 1.1 GiB, 0.55 EUR a month." in shown
    assert more_free == "Dead and free space grew, also as a share of the table: public.events +924 MiB to 1.1 GiB."
    assert '<a href="/tables">Tables and indexes that grew most</a>' in fleet
    assert "No matches." in empty
    assert more_free in shown_inside


@pytest.mark.parametrize("order", reading.ORDERS)
@pytest.mark.usefixtures("story")
def test_the_pages_of_a_list_of_tables_are_its_rows_one_after_another(
    database: URL, engine: Engine, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr("capacity_assets.web.reader.ROWS_PER_PAGE", 1)
    monkeypatch.setattr("capacity_assets.web.subjects.TABLES_AT_ONCE", 2)
    add_instances(engine, [2])
    for day, more in ((FIRST, 0), (LAST, 500)):
        free = {"free_bytes": (1500 + more) * MIB, "written_rows": 7}
        tables = [table(f"events_{number}", 9_000 + number - more % number, **free) for number in (1, 2, 3)]
        measured(engine, day, tables, 30_000 * MIB, server=2, database="web")
    bill_at_half_a_euro(engine)
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", FIRST, LAST)
    place = f"/tables?period=monthly&window=2025-06-10&order={order}"

    with served_pages(database) as pages:
        rows = list(csv.DictReader(io.StringIO(pages.ask(f"{place}&format=csv").text.lstrip("\ufeff"))))
        parts = [pages.document(f"{place}&page={number}") for number in range(1, len(rows) + 1)]

    assert [one["name"] for part in parts for one in part["tables"]] == [row["name"] for row in rows]
    assert [part["has_more"] for part in parts] == [True] * (len(rows) - 1) + [False]
    assert len({(part["counted_bytes"], part["amount"]) for part in parts}) == 1


def test_a_list_of_tables_is_kept_until_a_sample_is_taken_again(
    database: URL, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("app.SECONDS_KEPT", "subjects.COMPARED_SECONDS"):
        monkeypatch.setattr(f"capacity_assets.web.{name}", 0)
    add_instances(engine, [1])
    for day, size_mb in ((FIRST, 100), (LAST, 130)):
        measured(engine, day, [table("events", size_mb)], 200 * MIB)
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", FIRST, LAST)

    with served_pages(database) as pages:

        def changes() -> list[int]:
            found = pages.document("/tables?period=monthly&window=2025-06-10")["tables"]
            return [one["change_bytes"] // MIB for one in found]

        first = changes()
        with engine.begin() as connection:
            connection.execute(text("UPDATE object_size_stats SET size_bytes = 0 WHERE kind = 'table'"))
        kept = changes()
        measured(engine, LAST, [table("events", 140)], 200 * MIB, hour=1)
        corrected = changes()

    assert (first, kept, corrected) == ([30], [30], [140])


def test_tables_that_were_not_written_to_are_known_where_the_counter_began_before_the_first_sample(
    settings: Settings, engine: Engine
) -> None:
    assert settings
    add_instances(engine, [1])
    before, after = (datetime.combine(day, datetime.min.time(), UTC) for day in (FIRST - timedelta(days=9), LAST))
    for day, more in ((FIRST, 0), (LAST, 5)):
        tables = [
            table("still", 100, index_bytes=MIB, written_rows=7),
            table("busy", 100, written_rows=7 + more),
            table("since_before", 80, written_rows=0, counted_since=before),
            table("restarted", 90 + more, written_rows=0, counted_since=before if day == FIRST else after),
            table("unknown", 300),
        ]
        measured(engine, day, tables, 700 * MIB)

    with engine.connect() as connection:
        found = list_objects(connection, compared_samples(connection, LAST, LAST), order="unwritten", shown=10)
        inside = growth_inside(connection, 1, "orders", LAST, LAST)

    assert [(one.name, one.written_rows) for one in found.objects] == [("still", 0), ("since_before", 0)]
    assert found.counted_bytes == 181 * MIB
    assert inside is not None
    assert [(one.name, one.written_rows) for one in inside.objects] == [("restarted", None)]


def bill_at_half_a_euro(engine: Engine) -> None:
    declare_prices(engine, [Price(Decimal("0.5"), "EUR", valid_from=ALWAYS)], TODAY)
    issue_bill(engine, PERIODS["monthly"].window_of(LAST), fixed_clock(), KEYS)


@pytest.mark.nightly("fills the sample fleet once more")
def test_the_sample_fleet_has_two_databases_with_a_story_inside_and_one_that_fills_fixed_files(
    settings: Settings, engine: Engine
) -> None:
    assert settings
    load_sample_fleet(engine, date(2025, 1, 1), date(2025, 12, 31))
    load_sample_fleet(engine, date(2025, 1, 1), date(2025, 12, 31))

    stories = {}
    with engine.connect() as connection:
        numbers = dict(connection.execute(text("SELECT name, id FROM instances")).fetchall())
        for server, name in (("postgresql-core-01", "audit"), ("mysql-orders-01", "orders")):
            found = growth_inside(connection, numbers[server], name, date(2025, 7, 1), date(2025, 12, 31))
            assert found is not None
            stories[name] = found.objects[0]
        days = compared_samples(connection, date(2025, 10, 1), date(2025, 12, 31))
        listed = {
            order: [one.name for one in list_objects(connection, days, order=order, shown=9).objects]
            for order in ("free", "unwritten")
        }
        samples = connection.execute(text("SELECT count(DISTINCT collected_date) FROM object_size_stats")).scalar_one()
        sums = (
            "SELECT count(*) FROM (SELECT sum(o.size_bytes) - max(d.size_mb) * 1048576 AS off FROM object_size_stats o "
        )
        sums += "JOIN database_size_stats d USING (collected_date, instance_id, database_name) GROUP BY "
        sums += "o.collected_date, o.instance_id, o.database_name) x WHERE off <> 0"
        assert connection.execute(text(sums)).scalar_one() == 0
    assert 50 <= samples <= 52
    assert listed == {"free": ["actors"], "unwritten": ["orders_2019"]}
    assert stories["audit"].label == "public.audit_log"
    assert stories["orders"].label == "by_product on order_lines"
    assert round(stories["orders"].after_bytes / stories["orders"].before_bytes) == 2
    declare_sample(engine, date(2025, 12, 31))
    declared = {(one.declaration.server, one.declaration.day) for one in stored_steps(engine)}
    assert declared == {("oracle-archive-01", date(2025, 3, 1)), ("sqlserver-bi-01", date(2025, 6, 1))}, (
        "after the first"
    )
    fixed = {row.database: row for row in compute_runways(engine, date(2025, 12, 1), server=FIXED_FILES[0]).rows}
    shipping = fixed[FIXED_FILES[1]]
    assert (shipping.binds, shipping.state, shipping.headroom_mb) == (OWN_CEILING, FORECAST, 4367), "inside its files"
    assert shipping.allocated_mb == 55_431
    assert shipping.middle_day is not None
    assert 100 < (shipping.middle_day - date(2025, 12, 1)).days < 200


SIZES = st.lists(st.integers(0, 5000), min_size=0, max_size=12)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(days=st.lists(st.tuples(SIZES, st.integers(0, 9000), st.integers(0, 50)), min_size=2, max_size=4))
def test_objects_add_up_to_their_database_in_every_sample_and_their_changes_to_its_change(
    engine: Engine, days: list[tuple[list[int], int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LARGEST_LISTED", "FASTEST_LISTED"):
            patch.setattr(storing, name, 3)
        patch.setattr(reading, "LARGEST_LISTED", 3)
        server = next(NUMBERS)
        totals = []
        for number, (sizes, more, others) in enumerate(days):
            objects = [ObjectSize("", f"t{place}", "table", size) for place, size in enumerate(sizes) if size]
            totals.append(sum(sizes) // 2 + more)
            day = FIRST + timedelta(days=number)
            measured(engine, day, objects, totals[-1], server=server, others=(others, others * 10))
        with engine.connect() as connection:
            last = FIRST + timedelta(days=len(days) - 1)
            found = growth_inside(connection, server, "orders", FIRST, last)
            # The first ones of a list are found without comparing the others.
            patch.setattr(reading, "LARGEST_TRIED", 1)
            lists, on_nodes = ({}, {})
            # Nodes of a cluster cannot execute the form for a single server.
            compared = compared_samples(connection, FIRST, last, servers=[server])
            forms = ((tables_are_distributed(connection), lists), (True, on_nodes))
            for is_on_nodes, found_lists in forms:
                patch.setattr(reading, "tables_are_distributed", lambda _connection, answer=is_on_nodes: answer)
                for order in ("growth", "shrinkage", "size", "name"):
                    found_lists[order] = list_objects(connection, compared, order=order, shown=2).objects
            of_server = f"{OBJECTS_THAT_ADD_UP} AND o.instance_id = {server}"
            listed = connection.execute(
                text(
                    "SELECT max(n) FROM (SELECT count(*) AS n FROM object_size_stats "
                    f"WHERE instance_id = {server} GROUP BY collected_date) c"
                )
            ).scalar_one()

            assert connection.execute(text(of_server)).scalar_one() == len(days)
    assert listed <= 8
    assert found is not None
    of_growth = sorted((one.change_bytes for one in found.objects if one.change_bytes > 0), reverse=True)
    of_shrinkage = sorted(one.change_bytes for one in found.objects if one.change_bytes < 0)
    assert [one.change_bytes for one in lists["growth"]] == of_growth[:2]
    assert [one.change_bytes for one in lists["shrinkage"]] == of_shrinkage[:2]
    assert len(lists["size"]) == len(lists["name"])
    assert lists == on_nodes
    assert (found.before_bytes, found.after_bytes) == (totals[0], totals[-1])
    explained = sum(one.change_bytes for one in found.objects)
    assert explained + found.others_change_bytes + found.unexplained_change_bytes == totals[-1] - totals[0]
    for one in found.objects:
        first, end = (dict(enumerate(days[place][0])) for place in (0, -1))
        number = int(one.name[1:])
        real = end.get(number, 0) - first.get(number, 0)
        assert (one.change_bytes == real) or (one.is_bound and abs(one.change_bytes) <= abs(real))
