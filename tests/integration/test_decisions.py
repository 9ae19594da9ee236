"""Decisions on what may fill: what they leave out and until when, what a plan changes, and what they never change."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.units import human_day
from capacity_assets.digest import as_text, read_digest
from capacity_assets.forecast.decisions import (
    ACKNOWLEDGED,
    DECISION_KINDS,
    EXCLUDED,
    PLANNED,
    Decision,
    StoredDecision,
    decide,
    is_left_out,
    open_decisions,
    stored_decisions,
    withdraw,
)
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.limits import Limit, declare_limits
from capacity_assets.reading.forecasts import StoredRunway, newest_issue, recent_issue
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.databases import rows
from tests.pages import served_pages
from tests.runways import add_ceiling, add_day, add_volume, stored_runways

pytestmark = pytest.mark.usefixtures("fleet_with_limits")
SOON = TODAY + timedelta(days=25)


def decision(database: str | None = "orders", kind: str = ACKNOWLEDGED, **values: object) -> Decision:
    given = {"volume": None, "until": SOON, "note": "seen", **values}
    return Decision("server-1", database, kind=kind, **given)  # type: ignore[arg-type]  # a test's own values


def risks(engine: Engine, today: date = TODAY) -> dict[str, StoredRunway]:
    with engine.connect() as connection:
        issued = newest_issue(connection, TODAY, TODAY + timedelta(days=60), shown=10, today=today)
    assert issued is not None
    return {risk.name: risk for risk in issued.risks}


def only(engine: Engine) -> StoredDecision:
    [stored] = stored_decisions(engine, TODAY)
    return stored


@pytest.mark.usefixtures("issued_today")
def test_a_decision_leaves_its_subject_out_through_its_last_day_and_no_longer(engine: Engine) -> None:
    decide(engine, [decision(until=TODAY + timedelta(days=1))], by="anna")
    today = risks(engine)["orders"]
    for day in (1, 2):
        add_day(engine, TODAY + timedelta(days=day), 3014 + 10 * day)
    issue_runways(engine, TODAY + timedelta(days=1), TODAY + timedelta(days=1))
    on_its_day = risks(engine, TODAY + timedelta(days=1))["orders"]
    issue_runways(engine, TODAY + timedelta(days=2), TODAY + timedelta(days=2))
    after = risks(engine, TODAY + timedelta(days=2))["orders"]

    assert today.decision is not None
    assert (today.decision.declared_by, today.decision.state(TODAY)) == ("anna", "in force")
    assert [is_left_out(risk.decision) for risk in (today, on_its_day, after)] == [True, True, False]
    [past] = stored_decisions(engine, TODAY + timedelta(days=2), every=True)
    assert past.state(TODAY + timedelta(days=2)) == "past"
    assert stored_decisions(engine, TODAY + timedelta(days=2)) == []


@pytest.mark.parametrize(("kind", "is_still_left_out"), [(ACKNOWLEDGED, False), (EXCLUDED, True)])
def test_a_risk_that_grows_past_what_was_decided_on_ends_it_unless_the_subject_is_excluded(
    kind: str, is_still_left_out: bool, engine: Engine
) -> None:
    declare_limits(engine, [Limit("server-1", "orders", 3400)])
    issue_runways(engine, TODAY, TODAY)
    decide(engine, [decision(kind=kind)])
    before = only(engine)
    declare_limits(engine, [Limit("server-1", "orders", 3100)])
    issue_runways(engine, TODAY, TODAY)
    after = risks(engine)["orders"].decision

    assert (before.probability, before.probability_now) == (before.probability, before.probability)
    assert after is not None
    assert after.probability_now is not None
    assert before.probability is not None
    assert after.probability_now > before.probability + 0.1
    assert (is_left_out(after), after.state(TODAY) == "risk has grown") == (is_still_left_out, not is_still_left_out)


@pytest.mark.usefixtures("issued_today")
def test_a_plan_gives_a_second_date_with_the_raised_limit_and_leaves_the_first_as_it_was(engine: Engine) -> None:
    before = stored_runways(engine)["orders"]
    decide(engine, [decision(kind=PLANNED, added_mb=1000)])
    issue_runways(engine, TODAY, TODAY)
    planned = stored_runways(engine)["orders"]
    full = risks(engine)["orders"].planned
    declare_limits(engine, [Limit("server-1", "orders", 4214)])
    withdraw(engine, decision())
    issue_runways(engine, TODAY, TODAY)
    carried_out = stored_runways(engine)["orders"]

    unchanged = [name for name in before if not name.startswith("planned_") and name != "issued_at"]
    assert {name: planned[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert (planned["planned_day"], planned["planned_limit_mb"]) == (SOON, 4214)
    assert [planned[f"planned_{end}_day"] for end in ("early", "middle", "late")] == [
        carried_out[f"{end}_day"] for end in ("early", "middle", "late")
    ]
    assert before["middle_day"] < SOON < planned["planned_middle_day"]  # type: ignore[operator]  # days
    assert full is not None
    assert full.middle_day == planned["planned_middle_day"]
    assert carried_out["planned_day"] is None


def test_a_plan_for_a_disk_raises_what_its_server_and_databases_have_left_there(engine: Engine) -> None:
    for name in ("/data", "/log"):
        add_volume(engine, 1, name, TODAY, 4000, 100)
    add_ceiling(engine, "orders", ["/data"])
    add_ceiling(engine, "still", ["/data"])
    issue_runways(engine, TODAY, TODAY)
    decide(engine, [decision(None, PLANNED, volume="/data", added_mb=50)])
    issue_runways(engine, TODAY, TODAY)

    stored = stored_runways(engine)

    assert {name: row["planned_limit_mb"] for name, row in stored.items() if row["limit_mb"]} == {
        # Those of a volume with too little history have no second date.
        "/data": None,
        "/log": None,
        "": 3514 + 150,
        "orders": 3014 + 150,
        "still": 500 + 150,
        "young": None,
    }


def test_a_decision_on_a_disk_or_server_leaves_out_what_it_limits(engine: Engine) -> None:
    add_volume(engine, 1, "/data", TODAY, 4000, 100)
    for name in ("orders", "still"):
        add_ceiling(engine, name, ["/data"])
    issue_runways(engine, TODAY, TODAY)
    decide(engine, [decision(None, volume="/data")])

    with engine.connect() as connection:
        decisions = open_decisions(connection, TODAY)

    def on(subject: str, name: str, binds: str, volumes: list[str] | None) -> StoredDecision | None:
        forecast = {"server": "server-1", "subject": subject, "name": name, "binds": binds, "volumes": volumes}
        return decisions.on(SimpleNamespace(**forecast))

    decided = on("database", "orders", "volume", ["/data"])
    assert decided is not None
    assert decided.volume == "/data"
    assert on("server", "", "volume", ["/data"]) == decided
    assert on("database", "orders", "volume", None) is None, "what is on an unknown disk is not covered"
    assert on("database", "orders", "own limit", ["/data"]) is None
    assert on("database", "orders", "volume", ["/log"]) is None
    decide(engine, [decision(None)])
    with engine.connect() as connection:
        decisions = open_decisions(connection, TODAY)
    assert on("database", "orders", "volume", ["/data"]) == decided
    whole = on("server", "", "volume", None)
    assert whole is not None
    assert whole.subject == "server"
    assert on("volume", "/log", "volume", None) == on("database", "still", "server limit", None) == whole
    assert on("database", "orders", "own limit", ["/data"]) is None


@pytest.mark.usefixtures("issued_today")
def test_a_new_decision_closes_the_one_before_and_both_stay_listed(engine: Engine) -> None:
    decide(engine, [decision(note="first")], by="anna")
    closed = decide(engine, [decision(note="second")], by="ben").closed
    withdraw(engine, decision(), by="carla")

    assert [one.note for one in closed] == ["first"]
    assert stored_decisions(engine, TODAY) == []
    assert [
        (one.note, one.declared_by, one.closed_by, one.state(TODAY))
        for one in stored_decisions(engine, TODAY, every=True)
    ] == [("first", "anna", "ben", "closed"), ("second", "ben", "carla", "closed")]


SLOW_TO_STORE = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END';
CREATE TRIGGER slow BEFORE INSERT ON capacity_decisions FOR EACH ROW EXECUTE FUNCTION wait();
"""


def test_decisions_that_several_people_declare_at_once_leave_one_open(engine: Engine) -> None:
    made = [[decision(note=f"note {number}")] for number in range(3)]
    with engine.begin() as connection:
        # Nobody sees what the others have stored before all of them have begun.
        connection.execute(text(SLOW_TO_STORE))

    with ThreadPoolExecutor(len(made)) as people:
        list(people.map(lambda one: decide(engine, one), made))

    states = [one.state(TODAY) for one in stored_decisions(engine, TODAY, every=True)]
    assert sorted(states) == ["closed", "closed", "in force"]


@pytest.mark.usefixtures("today")
def test_a_decision_on_a_disk_that_is_gone_can_be_removed(engine: Engine) -> None:
    add_volume(engine, 1, "/data", TODAY, 4000, 100)
    decide(engine, [decision(None, volume="/data")])
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM volume_size_stats"))

    removed = json.loads(capacity("decisions", "remove", "server-1", "/data", "--json").output)["removed"]

    assert (removed["volume"], removed["state"]) == ("/data", "closed")
    assert stored_decisions(engine, TODAY) == []
    again = capacity("decisions", "remove", "server-1", "/data")
    assert (again.exit_code, "There is no decision on" in again.output) == (2, True)


GROWN = [
    (0.7, 0.8, False),
    (0.7, 0.801, True),
    (0.95, 1.0, True),
    (1.0, 1.0, False),
    (None, 0.9, False),
    (None, 1.0, True),
    (0.2, None, False),
]


def test_a_risk_has_grown_by_more_than_ten_points_or_to_full_also_if_it_was_unknown(engine: Engine) -> None:
    decide(engine, [decision()])

    for before, now, has_grown in GROWN:
        assert replace(only(engine), probability=before, probability_now=now).has_grown is has_grown, (before, now)
    unknown = replace(only(engine), probability=None, probability_now=1.0)
    assert unknown.growth == (
        "The risk has grown: the probability of being full by then is 100 %. It was not known when this was decided."
    )


SIZES = """
SELECT 'database', database_name, collected_date, size_mb FROM database_size_stats
UNION ALL SELECT 'server', '', collected_date, total_size_mb FROM instance_size_stats
UNION ALL SELECT subject, name, as_of, size_mb FROM capacity_runways ORDER BY 1, 2, 3
"""


@pytest.mark.usefixtures("issued_today")
def test_no_decision_changes_a_size_a_limit_or_the_forecast_of_today(engine: Engine) -> None:
    figures = "SELECT * FROM capacity_forecasts ORDER BY as_of, server, subject, name, horizon_days"
    before = rows(engine, SIZES), rows(engine, figures)

    for kind in DECISION_KINDS:
        for added_mb in (None, 1, 10_000_000) if kind == PLANNED else (None,):
            for until in (TODAY, TODAY + timedelta(days=3650)):
                made = [
                    decision(name, kind, added_mb=added_mb, until=until) for name in ("orders", "still", "young", None)
                ]
                decide(engine, made)
                issue_runways(engine, TODAY, TODAY)

                assert (rows(engine, SIZES), rows(engine, figures)) == before, made


@pytest.mark.usefixtures("today")
@pytest.mark.usefixtures("issued_today")
def test_commands_declare_list_import_and_remove_decisions(engine: Engine, tmp_path: Path) -> None:
    add_volume(engine, 1, "/data", TODAY, 4000, 100)
    until = ["--until", str(SOON), "--note", "new disk", "--by", "anna"]

    rehearsed = printed("decide", "server-1", "/data", "planned", *until, "--gb", "50", "--dry-run")
    none_yet = printed("decisions", "list")
    planned = printed(
        *("decide", "server-1", "orders", "planned", *until, "--gb", "1", "--ticket", "https://tickets.example/1")
    )
    [listed] = json.loads(capacity("decisions", "list", "--json").output)
    full = stored_runways(engine)["orders"]["planned_middle_day"]
    file = tmp_path / "decisions.csv"
    file.write_text(
        f"server,database,volume,kind,until,note\nserver-1,,,excluded,{SOON},all\nserver-1,,/data,acknowledged,{SOON},d\n"
    )
    replacing = json.loads(capacity("decide", "server-1", "orders", "planned", *until, "--gb", "1", "--json").output)
    imported = printed("decisions", "import", str(file), "--by", "ben")
    removed = printed("decisions", "remove", "server-1", "orders", "--by", "carla")
    every = printed("decisions", "list", "--all")

    assert rehearsed.splitlines()[-1] == "Dry run: nothing was changed."
    assert none_yet.startswith("No decision is open.")
    assert f"orders on server-1: planned for {human_day(SOON)}." in planned
    assert isinstance(full, date)
    assert f"With 4.1 GiB from {human_day(SOON)} on: full by {human_day(full)}." in planned
    assert (listed["database"], listed["kind"], listed["added_mb"], listed["state"]) == (
        *("orders", "planned", 1024),
        "in force",
    )
    assert (listed["declared_by"], listed["ticket"]) == ("anna", "https://tickets.example/1")
    assert listed["probability"] == listed["probability_now"]
    [replaced] = replacing["replaced"]
    assert (replaced["declared_at"], replaced["state"]) == (listed["declared_at"], "closed")
    assert f"2 decisions declared from {file}." in imported
    assert "With " not in imported, "no date stands alone after decisions on many"
    assert f"Removed the decision on orders on server-1: planned for {human_day(SOON)}." in removed
    assert [line.split()[1] for line in every.splitlines()[2:]] == ["orders", "orders", "whole", "disk"]
    assert " closed " in every


NO_DECISIONS = [
    (
        ["orders", "planned", "--until", "2020-01-01", "--note", "x"],
        "--until 2020-01-01 is in the past; give today or a later day.",
    ),
    (["orders", "acknowledged", "--until", str(SOON), "--note", "x", "--gb", "5"], "--gb is only for planned."),
    (["orders", "planned", "--until", str(SOON), "--note", " "], "note is empty: say why."),
    (["orders", "planned", "--until", str(SOON), "--note", "x", "--gb", "much"], "'much' is not a number of GiB"),
    (["orders", "planned", "--until", str(SOON), "--note", "x", "--ticket", "javascript:1"], "write https://host/path"),
    (["orders", "planned", "--until", str(SOON), "--note", "x", "--ticket", "http://[::1"], "write https://host/path"),
    (["orders", "planned", "--until", str(SOON), "--note", "x", "--ticket", "http://a b/"], "write https://host/path"),
    (["orders", "planned", "--until", str(SOON), "--note", "x" * 1001], "note has 1,001 characters; at most 1,000"),
    (["orders", "planned", "--until", str(SOON), "--note", "x", "--gb", "1e999999999"], "is not a number of GiB"),
    (["ordres", "planned", "--until", str(SOON), "--note", "x"], "Did you mean 'orders'?"),
    (
        ["/d", "planned", "--until", str(SOON), "--note", "x"],
        "was ever measured. It is not a volume either (known volumes: none)",
    ),
    (["/data", "planned", "--volume", "--until", str(SOON), "--note", "x"], "No disk '/data' on server-1 was measured"),
    (["orders", "still", "planned", "--until", str(SOON), "--note", "x"], "'orders still' is more than one name"),
    (["orders", "ack", "--until", str(SOON), "--note", "x"], "'ack' is not one of"),
]


@pytest.mark.usefixtures("today")
def test_invalid_decisions_are_refused_in_a_sentence() -> None:
    for arguments, message in NO_DECISIONS:
        refused = capacity("decide", "server-1", *arguments)

        assert (refused.exit_code, message in refused.output) == (2, True), (arguments, refused.output)


@pytest.mark.usefixtures("today")
@pytest.mark.usefixtures("issued_today")
def test_digest_leaves_out_what_was_decided_on_and_pages_commands_and_report_mark_it(engine: Engine) -> None:
    week = PERIODS["weekly"].window_of(TODAY)
    before = read_digest(engine, week, today=TODAY)
    with served_pages(engine.url) as pages:
        undecided = pages.ask("/database?server=1&name=orders").text
    made = decision(kind=PLANNED, added_mb=1024, note="new <disk>", ticket="https://tickets.example/1?a=1&b=2")
    decide(engine, [made], by="anna")
    issue_runways(engine, TODAY, TODAY)

    with served_pages(engine.url) as pages:
        page = pages.ask("/database?server=1&name=orders").text
        listed = pages.ask("/filling").text
        document = pages.document("/filling")
    after = read_digest(engine, week, today=TODAY)
    runway, explained = printed("runway"), printed("explain", "orders", "--server", "server-1", "--runway")
    [row] = [one for one in json.loads(capacity("runway", "--json").output)["rows"] if one["database"] == "orders"]

    mark = f"planned for {human_day(SOON)} (+1.0 GiB)"
    middle = stored_runways(engine)["orders"]["planned_middle_day"]
    assert isinstance(middle, date)
    full = f"With 4.1 GiB from {human_day(SOON)} on: full by {human_day(middle)}."
    sentence = f"Planned for {human_day(SOON)}, 1.0 GiB more, by anna: new <disk>."
    assert [one.name for one in before.soon] == ["orders"]
    assert [one.name for one in (*after.soon, *after.runways, *after.later)] == []
    assert "Decisions leave out 1 fill date: capacity decisions list" in as_text(after)
    assert "capacity decide server-1 orders acknowledged --until DAY --note TEXT" in undecided
    assert f"P{mark[1:]}. {full}" in page
    assert "new &lt;disk&gt;" in page
    assert "new <disk>" not in page + listed
    assert '<a href="https://tickets.example/1?a=1&amp;b=2" rel="noreferrer">Ticket</a>' in page
    assert mark in listed
    chip = '<p class="headline"><span class="chip'
    assert (chip in undecided, chip in page, chip in listed) == (True, False, False), "the decision stands in its place"
    assert document["runways"][0]["decision"]["declared_by"] == "anna"
    assert f"note: orders on server-1. {sentence} {full}" in runway
    assert f"{sentence}\n{full}" in explained
    assert (row["decision"]["kind"], row["planned"]["limit_mb"]) == ("planned", 3214 + 1024)
    assert mark in printed("status")


@pytest.mark.usefixtures("today")
def test_a_file_of_decisions_names_the_lines_that_cannot_be_declared(engine: Engine, tmp_path: Path) -> None:
    add_volume(engine, 1, "E:\\", TODAY, 90_000, 80_000)
    file = tmp_path / "decisions.csv"
    file.write_text(
        "server,database,volume,kind,until,note,ticket,gb\n"
        "server-1,orders,,planned,9999-12-31,x,,\n"
        f"server-1,orders,,planned,{SOON},x,http://[::1,\n"
        f"server-1,orders,,planned,{SOON},x,,1e999999999\n"
    )
    refused = capacity("decisions", "import", str(file))
    file.write_text(f"server,database,volume,kind,until,note\nserver-1,orders,,excluded,{SOON},x\0y\n")
    with_nul = capacity("decisions", "import", str(file))
    file.write_text(
        "server,database,volume,kind,until,note\n"
        f"server-1,orders,,excluded,{SOON},x\nserver-1,,/nosuch,excluded,{SOON},x\n"
    )
    unknown = capacity("decisions", "import", str(file))
    unquoted = capacity("decide", "server-1", "E:", "excluded", "--until", str(SOON), "--note", "x")

    assert [one.exit_code for one in (refused, with_nul, unknown, unquoted)] == [2, 2, 2, 2]
    assert "line 2: 9999-12-31 is outside the years 1900 to 2999." in refused.output
    assert "line 3: 'http://[::1' is not the address of a ticket" in refused.output
    assert "line 4: '1e999999999' is not a number of GiB" in refused.output
    assert "line 2 contains a NUL character." in with_nul.output
    assert "line 3: No disk '/nosuch' on server-1 was measured" in unknown.output
    assert "For the disk, write 'E:\\', in quotes." in unquoted.output


def test_decisions_are_those_of_today_and_not_of_the_day_of_the_forecast(engine: Engine) -> None:
    compute_windows(AggregationService(engine, fixed_clock()), "weekly", TODAY, TODAY)
    issue_runways(engine, TODAY, TODAY)
    decide(engine, [decision(until=TODAY + timedelta(days=1))])
    week = PERIODS["weekly"].window_of(TODAY)

    def judged_on(today: date) -> list[bool]:
        issued = recent_issue(engine, today, shown=10)
        assert issued is not None
        with served_pages(engine.url, clock=fixed_clock(today)) as pages:
            [listed] = pages.document("/filling")["runways"]
            [row] = [
                one for one in pages.document("/databases?period=weekly")["databases"] if one["database"] == "orders"
            ]
            said = pages.ask("/database?server=1&name=orders").text
        return [
            issued.risks[0].decision is not None,
            listed["decision"] is not None,
            row["decision"] is not None,
            "cknowledged until" in said,
            read_digest(engine, week, today=today).decided == 1,
        ]

    assert judged_on(TODAY + timedelta(days=1)) == [True] * 5
    assert judged_on(TODAY + timedelta(days=2)) == [False] * 5


def test_a_plan_beyond_the_end_of_the_forecast_says_nothing_of_a_date(engine: Engine) -> None:
    decide(engine, [decision(kind=PLANNED, added_mb=1000, until=TODAY + timedelta(days=400))])
    issue_runways(engine, TODAY, TODAY)

    assert stored_runways(engine)["orders"]["planned_day"] is None


@pytest.mark.usefixtures("today")
@pytest.mark.usefixtures("issued_today")
def test_a_plan_without_a_second_date_says_why() -> None:
    until = ["--until", str(TODAY + timedelta(days=400)), "--note", "disk"]

    beyond = printed("decide", "server-1", "orders", "planned", *until, "--gb", "1")

    assert "No date with the raised limit is known: its day is beyond the forecasts, which reach a year." in beyond
