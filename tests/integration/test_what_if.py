"""The page What if: assumptions in its address, answered as the command answers them, and what it refuses."""

from __future__ import annotations

import csv
import html
import io
import json
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from jsonschema import Draft202012Validator
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.declarations import declaration
from capacity_assets.database.tables import ALWAYS
from capacity_assets.database.views import FORECAST_TABLES, READER_ROLE, SELECT_ON_SERVERS
from capacity_assets.forecast.decisions import Decision, decide
from capacity_assets.forecast.history import HistoryReader
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.limits import Limit, declare_limits
from capacity_assets.forecast.scenarios import Growth, LimitChange, NewDatabase, Purge, Scenario
from capacity_assets.ownership import scenario_results
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.ownership.scenario_results import ScenarioResult, result_of
from capacity_assets.reading.access import reading_engine, refuse_a_role_that_can_write
from capacity_assets.web import forecasts as pages_of_forecasts
from capacity_assets.web.api import arguments_schema
from capacity_assets.web.routes import PAGE_OF
from tests.clocks import TODAY, fixed_clock
from tests.command import printed
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, sizes, totals
from tests.pages import KEYS, Pages, header, served_pages
from tests.pages_fleet import FIRST, GROWING, HOSTILE, filled
from tests.profiles import nightly_except

pytestmark = pytest.mark.single_server("has pages compute scenarios")

SOON = TODAY + timedelta(days=10)
DISK = {"limit_server": "server-1", "limit_volume": "/data"}
PURGE = {"purge_server": "server-1", "purge_database": "orders"}
ASSUMED: tuple[dict[str, object], ...] = (
    {"growth_factor": "1.2"},
    {"growth_factor": "2.5", "growth_label": "team=payments"},
    {"growth_factor": "2", "growth_label": "team="},
    {"growth_factor": "0", "growth_server": "server-2"},
    {"limit_add_gb": "200"},
    {"limit_add_gb": "10.5", **DISK, "limit_day": SOON},
    {"limit_add_gb": "-2", **DISK},
    {"limit_add_gb": "-900"},
    {"new_database_gb": "3", "new_database_server": "server-1", "new_database_growth_gb_per_month": "1.5"},
    {"new_database_gb": "3", "new_database_server": "server-1", "new_database_volume": "/data"},
    {"purge_gb": "4", **PURGE, "purge_day": SOON},
    {"growth_factor": "1.1", "limit_add_gb": "5", "purge_gb": "1", **PURGE},
)


ON_DISK = """
INSERT INTO database_limit_stats (collected_date, instance_id, database_name, limit_mb, volumes, source, is_unlimited)
SELECT :today, 1, name, limit_mb, CAST(ARRAY['/data'] AS text[]), 'measured', limit_mb IS NULL
FROM (VALUES ('fast', NULL), ('slow', NULL), ('still', NULL), ('capped', 22000), ('full', 600)) AS d (name, limit_mb)
"""
OF_TODAY = "DELETE FROM database_size_stats WHERE instance_id = 1 AND collected_date = :today"


def shared_disk(engine: Engine) -> None:
    """Databases on a disk: faster than it, slower, unchanged, with a ceiling above the disk, and with one below."""
    filled(engine)
    for name, first_mb, growth_mb in (("fast", 200, 60), ("slow", 300, 2), ("capped", 500, 1), ("full", 400, 1)):
        grown = [first_mb + growth_mb * day for day in range(len(GROWING))]
        add_database_sizes(engine, sizes(1, name, FIRST.isoformat(), grown))
    with engine.begin() as connection:
        connection.execute(text("UPDATE volume_size_stats SET total_mb = 60000, free_mb = free_mb + 7000"))
        connection.execute(text(ON_DISK), {"today": TODAY})
    declare_limits(engine, [Limit("server-1", None, 40_000)])


def issued(engine: Engine) -> None:
    compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)
    issue_runways(engine, TODAY, TODAY)


def issued_disk(engine: Engine) -> None:
    """The shared disk with the forecasts of today."""
    shared_disk(engine)
    issued(engine)


def issued_disk_without_today(engine: Engine) -> None:
    """The same, where no database of the disk was measured today."""
    shared_disk(engine)
    with engine.begin() as connection:
        connection.execute(text(OF_TODAY), {"today": TODAY})
    issued(engine)


PREPARED = {
    "pages": filled,
    "fleet": filled,
    "disk": issued_disk,
    "disk_without_today": issued_disk_without_today,
}


@pytest.fixture
def fleet(engine: Engine) -> Engine:
    """The fleet of the pages; copied."""
    return engine


@pytest.fixture
def disk(engine: Engine) -> Engine:
    """See issued_disk; copied."""
    return engine


@pytest.fixture
def disk_without_today(engine: Engine) -> Engine:
    """See issued_disk_without_today; copied."""
    return engine


def address(values: dict[str, Any]) -> str:
    return f"/scenario?{urlencode(values)}"


def test_the_described_parameters_take_every_assumption() -> None:
    described = Draft202012Validator(arguments_schema(PAGE_OF["/scenario"], KEYS))
    for values in ASSUMED:
        given = {
            name: float(str(value)) if name.endswith(("_factor", "_gb", "_month")) else str(value)
            for name, value in values.items()
        }
        assert [error.message for error in described.iter_errors(given)] == [], values


@pytest.mark.usefixtures("today")
def test_the_page_equals_the_command_to_the_last_digit(pages: Pages, tmp_path: Path) -> None:
    file = tmp_path / "assumed.toml"
    for values in ASSUMED:
        page = pages.document(address(values))
        file.write_text(page["toml"])
        command = json.loads(printed("scenario", str(file), "--json"))
        shown = pages.ask(address(values)).text

        assert {**page["result"], "stored": None} == command, values
        assert page["runways"] == command["runways"]
        assert page["command"] == "capacity scenario FILE --store NAME"
        assert html.unescape(shown).count(page["answer"]) == 1
    assert page["answer"] in printed("scenario", str(file))


@pytest.mark.usefixtures("today")
def test_where_a_new_database_fits_equals_the_command(pages: Pages) -> None:
    page = pages.document(address({"new_database_gb": "5"}))

    assert page["runways"] == json.loads(printed("scenario", "--fit", "5", "--json"))
    assert (page["is_fit"], page["command"], page["result"]) == (True, "capacity scenario --fit 5", None)
    assert page["answer"].startswith("It fits best on server-1: disk /data is then full by ")
    [row] = csv.DictReader(io.StringIO(pages.ask(address({"new_database_gb": "5", "format": "csv"})).text[1:]))
    assert (row["server"], row["after_state"]) == ("server-1", "forecast")
    assert pages.document(address({"new_database_gb": "100"}))["answer"] == "It fits on no server."
    growing = pages.document(address({"new_database_gb": "5", "new_database_growth_gb_per_month": "5"}))
    assert growing["command"] is None
    assert growing["runways"][0]["after"]["middle_day"] < page["runways"][0]["after"]["middle_day"]


def test_what_assumes_nothing_changes_nothing(pages: Pages) -> None:
    for nothing in ({"growth_factor": "1"}, {"limit_add_gb": "0"}, {"purge_gb": "0", **PURGE}):
        page = pages.document(address(nothing))
        assert page["runways"] == []
        expected = "With these assumptions, no fill date changes. The next 12 months cost the same."
        assert page["answer"] == expected
        assert {one["difference"] for one in page["result"]["budget"]} == {"0.00"}


def test_the_budget_is_a_file_too(pages: Pages) -> None:
    for values in ({"growth_factor": "2"}, {"name": "twice the growth"}):
        result = pages.document(address(values))["result"]
        written = pages.ask(address({**values, "format": "csv", "list": "budget"}))
        rows = list(csv.DictReader(io.StringIO(written.text[1:])))
        headings, *cells = pages.workbook(address({**values, "list": "budget"}))

        assert [row["difference"] for row in rows] == [one["difference"] for one in result["budget"]] != []
        assert [row["name"] or None for row in rows] == [one["name"] for one in result["budget"]]
        of_budget = {(row["grouped_by"], row["last_day"], row["currency"]) for row in rows}
        assert of_budget == {("team", result["last_day"], "EUR")}
        assert (headings, len(cells)) == (list(rows[0]), len(rows))
        assert header(written, "content-disposition") == 'attachment; filename="scenario-budget.csv"'
        link = html.escape(address({**values, "format": "csv", "list": "budget"}))
        assert f'<a href="{link}" title="Budget lines, up to 10,000 rows" download>' in pages.ask(address(values)).text
    empty = pages.ask(address({"new_database_gb": "5", "format": "csv", "list": "budget"})).text
    assert empty == f"\ufeff{','.join(headings)}\r\n"
    for path, sentence in (
        ("/scenario?format=csv&list=groups", "list must be one of budget."),
        ("/budget?format=csv&list=budget", "budget has no parameter 'list'"),
    ):
        refused = pages.ask(path)
        assert (refused.status, sentence in refused.json["error"]) == (400, True), path


def test_a_label_without_a_value_selects_what_has_no_such_label(pages: Pages) -> None:
    of_nothing = pages.document(address({"growth_factor": "2", "growth_label": "environment="}))
    of_server_2 = pages.document(address({"growth_factor": "2", "growth_label": "team="}))
    everything = pages.document(address({"growth_factor": "2"}))

    assert of_nothing["runways"] == everything["runways"] != []
    assert of_nothing["assumptions"] == ["growth of everything without environment times 2"]
    assert of_server_2["runways"] == [], "its only database does not grow"


def test_the_answer_names_the_fill_date_and_the_cost(pages: Pages) -> None:
    page = pages.document(address({"limit_add_gb": "1", **DISK}))
    [disk] = page["runways"]

    assert disk["before"]["middle_day"] < disk["after"]["middle_day"]
    assert page["answer"].startswith("With these assumptions, disk /data on server-1 is full by ")
    assert " instead of " in page["answer"]
    faster = pages.document(address({"growth_factor": "2"}))
    assert faster["answer"].endswith(" EUR more.")
    higher = pages.document(address({"limit_add_gb": "0.1"}))
    assert higher["answer"].startswith("With these assumptions, 2 fill dates change. First, orders on server-1 is full")
    much = pages.document(address({"limit_add_gb": "900", **DISK}))
    assert "is not full within a year; without them, it is full by " in much["answer"]


def test_without_assumptions_there_are_examples_of_this_fleet_and_the_stored_scenarios(pages: Pages) -> None:
    page = pages.document("/scenario")
    examples = [one["text"] for one in page["examples"]]

    assert examples[0] == "What if payments grew 20 % faster?"
    assert examples[1] == "What if disk /data on server-1 were 25 % larger?"
    assert "limit_add_gb=9.766&" in page["examples"][1]["address"]
    assert examples[2] == "Where would a new database of 2 GiB fit?"
    for one in page["examples"]:
        assert pages.document(one["address"])["answer"]
    assert page["name"] == "twice the growth"
    assert pages.document("/scenario?name=twice+the+growth")["result"] == page["result"]


def test_other_pages_ask_a_question_about_what_they_show_and_it_is_answered(pages: Pages) -> None:
    asked = {
        "/server?server=1": "growth_factor=1.2&growth_server=server-1",
        "/database?server=1&name=orders": "purge_gb=3.894&purge_server=server-1&purge_database=orders",
        "/database?server=1&name=still": "purge_gb=0.122&purge_server=server-1&purge_database=still",
        "/volume?server=1&name=%2Fdata": "limit_add_gb=9.766&limit_server=server-1&limit_volume=%2Fdata",
        "/group?by=team&name=payments": "growth_factor=1.2&growth_label=team%3Dpayments&by=team",
        "/group?by=team": "growth_factor=1.2&growth_label=team%3D&by=team",
        "/budget": "growth_factor=1.2&by=team",
    }
    for page, question in asked.items():
        assert f'<a href="/scenario?{html.escape(question)}">What if ' in pages.ask(page).text, page
        assert pages.document(f"/scenario?{question}")["answer"].startswith("With these assumptions, "), page


REFUSED: tuple[tuple[dict[str, Any], int, str], ...] = (
    ({"growth_factor": "much"}, 400, "Growth: 'much' is not a number; write a factor such as 1.2."),
    ({"growth_factor": "1,5"}, 400, "Growth: '1,5' is not a number; write 1.5."),
    ({"growth_label": "team=payments"}, 400, "Growth: factor missing; write a number such as 1.2."),
    (
        {"growth_factor": "2", "growth_label": "shop"},
        400,
        "Growth: 'shop' is not a label; write key and value, such as team=shop.",
    ),
    ({"growth_factor": "2", "growth_server": "server-9"}, 404, "No server is named 'server-9'. Did you mean 'server-"),
    ({"growth_factor": "2", "growth_label": "team=x"}, 404, "the label team=x. team has archive, payments."),
    ({"growth_factor": "2", "growth_label": "tema=x"}, 404, "Nothing has the label tema=x. Did you mean 'team'?"),
    ({"limit_add_gb": "200", "limit_volume": "E:\\"}, 400, "Limit: Name the server of disk E:\\."),
    ({"limit_server": "server-1"}, 400, "Limit: A limit has either gb or add_gb."),
    (
        {"limit_add_gb": "1", "limit_server": "server-1", "limit_volume": "/x"},
        404,
        "server-1 has no measured disk '/x'; it has /data",
    ),
    ({"new_database_gb": "-1"}, 400, "'-1' is not a number of GiB from 0 to"),
    ({"purge_gb": "1", **PURGE, "purge_day": FIRST}, 422, "the sizes measured up to 20 Jul 2025 already include this."),
    ({"purge_gb": "1", **PURGE, "purge_day": "soon"}, 400, "Purge: 'soon' is not a day of the calendar"),
    ({"purge_gb": "1", "purge_server": "server-1"}, 400, "Purge: database missing."),
    ({"growth_factor": "2", "name": "twice the growth"}, 400, "Give assumptions or the name of a stored scenario"),
    ({"growth_factor": "2", "by": "colour"}, 400, "known are engine, "),
)


def test_a_refusal_is_a_sentence_above_the_form_as_it_was_filled_in(pages: Pages) -> None:
    for values, status, sentence in REFUSED:
        shown = pages.ask(address(values))

        assert shown.status == status, values
        assert sentence in html.unescape(shown.text), values
        for name, value in values.items():
            if name not in {"name", "by"}:
                assert f'name="{name}"' in shown.text
                assert f'value="{value}"' in shown.text
        answer = pages.ask(f"/api/v1{address(values)}")
        assert (answer.status, sentence in answer.json["error"]) == (status, True)


NARROW = (
    Scenario(growth=[declaration(Growth, {"factor": 2, "label": "team=payments"})]),
    Scenario(growth=[declaration(Growth, {"factor": 2, "server": "server-2"})]),
    Scenario(growth=[declaration(Growth, {"factor": 2, "database": "crm"})]),
    Scenario(limit=[declaration(LimitChange, {"add_gb": 1, "server": "server-1"})]),
    Scenario(purge=[declaration(Purge, {"server": "server-2", "database": "crm", "gb": 1})]),
    Scenario(new_database=[declaration(NewDatabase, {"server": "server-2", "gb": 1})]),
)


def shared_limits(engine: Engine) -> None:
    """On both servers, databases that the server or the volume limits, some with too little history to say."""
    young = sizes(2, "young", (TODAY - timedelta(days=4)).isoformat(), [100] * 5)
    add_database_sizes(engine, young)
    add_database_sizes(engine, sizes(2, "crm", TODAY.isoformat(), [2000]))
    add_instance_sizes(engine, totals(2, TODAY.isoformat(), [(2100, 2)]))
    with engine.begin() as connection:
        connection.execute(text("UPDATE volume_size_stats SET total_mb = 60000, used_mb = total_mb - free_mb - 10"))
        connection.execute(text(CEILINGS), {"today": TODAY})
    declare_limits(engine, [Limit("server-2", None, 2400), Limit("server-1", None, 20_000)])


CEILINGS = """
INSERT INTO database_limit_stats (collected_date, instance_id, database_name, volumes, source, is_unlimited)
SELECT :today, 1, name, CAST(ARRAY['/data'] AS text[]), 'measured', false
FROM unnest(ARRAY['orders', 'still']) AS name
"""


@pytest.mark.parametrize("is_issued", nightly_except([True, False], True))
def test_only_servers_that_may_change_are_read_and_every_figure_is_that_of_reading_all(
    fleet: Engine, monkeypatch: pytest.MonkeyPatch, *, is_issued: bool
) -> None:
    shared_limits(fleet)
    if is_issued:
        issued(fleet)
    concerned, read = scenario_results._servers_to_read, []

    def listening(*given: Any) -> Any:
        read.append(concerned(*given))
        return read[-1]

    monkeypatch.setattr(scenario_results, "_servers_to_read", listening)
    narrow = [result_of(fleet, TODAY, one, "team", KEYS) for one in NARROW]
    monkeypatch.setattr(scenario_results, "_servers_to_read", lambda *_: (None, 0))
    whole = [result_of(fleet, TODAY, one, "team", KEYS) for one in NARROW]

    assert narrow == whole
    servers = [sorted(names) for names, _ in read]
    if is_issued:
        assert servers == [["server-1"], ["server-2"], ["server-2"], ["server-1"], ["server-2"], ["server-2"]]
        assert all(unread > 0 for _, unread in read)
    else:
        assert all({"server-1", "server-2"} <= set(names) for names in servers), "declared after the forecasts"


def larger(**where: object) -> list[Scenario]:
    """Limits that are higher by less and less likely to cover what is on the disk or the server."""
    return [
        Scenario(limit=[declaration(LimitChange, {"add_gb": gb, "server": "server-1", **where})])
        for gb in (0.01, 0.5, 4, 300)
    ]


LARGER = (*larger(volume="/data"), *larger())


def both_ways(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, scenarios: Sequence[Scenario]
) -> tuple[list[set[str]], list[ScenarioResult], list[ScenarioResult]]:
    """The databases of server-1 that are read for larger limits, the results, and those of reading all of them."""
    series, read = HistoryReader.series, list[set[str]]()

    def listening(reader: HistoryReader, kind: str, *names: Any) -> Any:
        for batch in series(reader, kind, *names):
            read[-1] |= {row.name for row in batch.subjects if (row.subject, row.server) == ("database", "server-1")}
            yield batch

    def results() -> list[ScenarioResult]:
        every = []
        for scenario in scenarios:
            read.append(set())
            every.append(result_of(engine, TODAY, scenario, "team", KEYS))
        return every

    with monkeypatch.context() as patched:
        patched.setattr(HistoryReader, "series", listening)
        narrow = results()
        patched.setattr(scenario_results, "raises_only_limits", lambda _scenario: False)
        return read[: len(scenarios)], narrow, results()


@pytest.mark.nightly("computes eight scenarios twice")
def test_of_what_is_on_a_larger_disk_only_databases_that_may_change_are_read_and_every_figure_is_the_same(
    disk: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, narrow, whole = both_ways(disk, monkeypatch, LARGER)

    assert narrow == whole
    beside = {"slow", "fast", "still", "capped"}
    assert read == [set(), {"capped"}, beside, beside, *[{HOSTILE}] * 4]
    changed = [{one.name for one in result.runways} for result in narrow]
    assert changed == [{"/data"}, {"/data", "capped"}, *[{"/data", "", "capped"}] * 2, *[{HOSTILE}] * 4]


EXPECTED_READS = {
    "a sample": {"slow"},
    "a new database": {"late"},
    "a limit": {"orders", "slow", "full"},
    "a plan": {"orders", "slow", "full"},
}


@pytest.mark.parametrize("after", nightly_except(EXPECTED_READS, "a sample"))
def test_what_came_after_the_forecasts_is_seen_by_a_scenario_with_a_larger_disk(
    disk_without_today: Engine, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    engine = disk_without_today
    last = TODAY.isoformat() if after == "a sample" else (TODAY - timedelta(days=1)).isoformat()
    if after == "a sample":
        add_database_sizes(engine, sizes(1, "slow", last, [20_000]))
    elif after == "a new database":
        add_database_sizes(engine, sizes(1, "late", last, [900]))
    elif after == "a limit":
        declare_limits(engine, [Limit("server-1", "slow", 700)])
    else:
        decide(engine, [Decision("server-1", "slow", None, "planned", SOON, "a plan", added_mb=100)])

    read, narrow, whole = both_ways(engine, monkeypatch, LARGER)

    assert narrow == whole
    assert all(EXPECTED_READS[after] <= names for names in read)


@pytest.mark.parametrize(
    "number", nightly_except([1, 2], 1), ids=["on the newest day", "on the last day of a server that missed it"]
)
def test_a_database_that_was_measured_after_the_forecasts_were_issued_is_read_too(
    fleet: Engine, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    server, last = f"server-{number}", TODAY - timedelta(days=number - 1)
    begins = last - timedelta(days=len(GROWING) - 1)
    add_database_sizes(fleet, sizes(number, "late", begins.isoformat(), GROWING[:-1]))
    declare_limits(fleet, [Limit(server, "late", 20_000)])
    issued(fleet)
    add_database_sizes(fleet, sizes(number, "late", last.isoformat(), GROWING[-1:]))
    declare_labels(fleet, [Label(server, "late", "team", "late", ALWAYS)], TODAY)
    late = [
        Scenario(growth=[declaration(Growth, {"factor": 2, **of})])
        for of in ({"database": "late"}, {"label": "team=late"})
    ]

    narrow = [result_of(fleet, TODAY, one, "team", KEYS) for one in late]
    monkeypatch.setattr(scenario_results, "_servers_to_read", lambda *_: (None, 0))

    assert narrow == [result_of(fleet, TODAY, one, "team", KEYS) for one in late]
    assert [[one.name for one in result.runways] for result in narrow] == [["late"], ["late"]]


def test_a_group_whose_forecast_is_level_says_why_a_factor_changes_it(
    fleet: Engine, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = ", ".join(f"forecast_{days}_mb = size_mb" for days in (7, 30, 90, 365))
    with fleet.begin() as connection:
        connection.execute(text(f"UPDATE capacity_runways SET {stays} WHERE name = 'team=payments'"))
    sentence = (
        "The forecast of payments is level, but its databases that grow add 1.5 GiB per month. "
        "The factor applies to them."
    )
    with served_pages(database) as pages:
        for factor in ("1.2", "0.5"):
            for of in ({"growth_label": "team=payments"}, {"growth_server": "server-1"}, {}):
                page = pages.document(address({"growth_factor": factor, **of}))
                assert sentence in page["result"]["notes"], of
        same = pages.document(address({"growth_factor": "1", "growth_label": "team=payments"}))
        assert sentence not in same["result"]["notes"]
        by_engine = pages.document(address({"growth_factor": "2", "growth_label": "team=payments", "by": "engine"}))
        assert [one for one in by_engine["result"]["notes"] if "The forecast of" in one] == []
        monkeypatch.setattr(scenario_results, "OTHER_GROWTH_SHOWN", 0)
        [*_, note] = pages.document(address({"growth_factor": "3"}))["result"]["notes"]
        assert note == "Other groups whose forecast differs from the growth of their databases: payments."


def test_a_group_that_grows_otherwise_than_its_databases_says_so(fleet: Engine, database: URL) -> None:
    values = address({"growth_factor": "1.2", "growth_label": "team=payments"})
    grows = ", ".join(f"forecast_{days}_mb = size_mb + {days} * 100" for days in (7, 30, 90, 365))
    notes = ["server-1: the disk is not known, so only the server changes.", scenario_results.FACTOR_NOTE]

    with served_pages(database) as pages:
        assert pages.document(values)["result"]["notes"] == notes, "a growth has no `volume` to name"
    with fleet.begin() as connection:
        connection.execute(text(f"UPDATE capacity_runways SET {grows} WHERE name = 'team=payments'"))
    with served_pages(database) as pages:
        assert pages.document(values)["result"]["notes"] == [
            *notes,
            "The forecast of payments grows by 3.0 GiB per month, but its databases that grow add 1.5 GiB per month. "
            "The factor applies to them.",
        ]
        everything = pages.document(address({"growth_factor": "1.2"}))["result"]["notes"]
        assert [one for one in everything if "The forecast of payments grows by 3.0 GiB" in one]
        of_server = pages.document(address({"growth_factor": "1.2", "growth_server": "server-1"}))["result"]["notes"]
        assert of_server == notes, "databases on other servers may be the rest of the growth"


@pytest.mark.usefixtures("reader_role")
def test_a_role_of_an_older_release_reads_every_other_page_and_is_told_what_to_grant(
    fleet: Engine, database: URL
) -> None:
    with fleet.begin() as connection:
        connection.execute(text(f"REVOKE SELECT ON {', '.join(FORECAST_TABLES)} FROM {READER_ROLE}"))
        connection.execute(text(f"REVOKE {SELECT_ON_SERVERS} FROM {READER_ROLE}"))
    reader = reading_engine(database, role=READER_ROLE)
    refuse_a_role_that_can_write(reader)
    reader.dispose()
    with served_pages(database, role=READER_ROLE) as pages:
        assert [pages.ask(one).status for one in ("/", "/scenario", "/scenario?name=twice+the+growth")] == [200] * 3
        lacking = pages.ask(address({"growth_factor": "1.2"}))
        shown = html.unescape(lacking.text)
        assert (lacking.status, 'value="1.2"' in shown) == (503, True)
        with fleet.begin() as connection:
            for right in (f"SELECT ON {', '.join(FORECAST_TABLES)}", SELECT_ON_SERVERS):
                grant = f"GRANT {right} TO {READER_ROLE}"
                assert grant in shown
                connection.execute(text(grant))
        assert pages.ask(address({"growth_factor": "1.2"})).status == 200
        assert pages.ask(address({"new_database_gb": "1"})).status == 200


def test_a_larger_fleet_than_a_page_computes_gets_the_command(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_of_forecasts, "MOST_DATABASES", 2)
    page = pages.document(address({"growth_factor": "1.3"}))

    assert page["message"].startswith("This would forecast 4 databases; a page forecasts at most 2.")
    assert (page["result"], page["toml"]) == (None, "[[growth]]\nfactor = 1.3\n")
    grouped = pages.document(address({"growth_factor": "1.3", "by": "a; b"}))
    assert grouped["command"] == "capacity scenario FILE --group-by 'a; b' --store NAME"
    shown = pages.ask(address({"growth_factor": "1.3"}))
    assert (shown.status, "capacity scenario FILE --store NAME" in shown.text) == (200, True)
    assert pages.document(address({"growth_factor": "1.3", "growth_server": "server-2"}))["message"] is None
    assert len(pages.document(address({"new_database_gb": "5"}))["runways"]) == 1, "of two servers no database is read"


@pytest.mark.usefixtures("fleet")
def test_one_is_computed_at_a_time_and_the_other_pages_go_on(database: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    began, goes_on, running = threading.Event(), threading.Event(), []

    def slow(*given: Any, **named: Any) -> Any:
        running.append(1)
        began.set()
        assert goes_on.wait(30)
        return scenario_results.read_result(*given, **named)

    monkeypatch.setattr(pages_of_forecasts, "read_result", slow)
    with served_pages(database) as pages:
        first = threading.Thread(target=pages.ask, args=[address({"growth_factor": "1.2"})])
        first.start()
        assert began.wait(30)
        other = pages.ask(address({"growth_factor": "1.3"}))
        assert (other.status, other.headers["Refresh"], len(running)) == (202, "1", 1)
        assert pages.ask("/").status == 200
        goes_on.set()
        first.join()
        time.sleep(0.1)
        assert pages.document(address({"growth_factor": "1.3"}))["answer"]


def test_pages_ask_the_question_where_it_comes_up(pages: Pages) -> None:
    links = {
        "/server?server=1": "/scenario?growth_factor=1.2&growth_server=server-1",
        "/volume?server=1&name=%2Fdata": "/scenario?limit_add_gb=9.766&limit_server=server-1&limit_volume=%2Fdata",
        "/group?by=team&name=payments": "/scenario?growth_factor=1.2&growth_label=team%3Dpayments&by=team",
        "/group?by=server&name=server-1": "/scenario?growth_factor=1.2&growth_server=server-1",
        "/budget?by=team": "/scenario?growth_factor=1.2&by=team",
        "/bill": "/scenario?growth_factor=1.2&by=team",
        "/filling": "/scenario?growth_factor=1.2",
    }
    for page, link in links.items():
        assert f'<a href="{html.escape(link)}">What if ' in pages.ask(page).text, page
        assert pages.document(link)["answer"]
    for query in ("what if", "scenario", "If"):
        assert '<a href="/scenario">What if</a>' in pages.ask(f"/search?{urlencode({'q': query})}").text
