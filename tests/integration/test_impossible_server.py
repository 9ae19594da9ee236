"""A server whose sizes cannot be added up fails alone: every other figure is that of the fleet without it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.units import LARGEST_MB
from capacity_assets.database.tables import ALWAYS
from capacity_assets.digest import read_digest
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.ownership.bills import bill_notes, issue_bill, read_bill
from capacity_assets.ownership.labels import Label, declare_labels
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import LARGEST_BIGINT, add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import KEYS, served_pages
from tests.pages_fleet import FIRST, filled
from tests.profiles import HISTORIES, generated

BAD = 9
DAYS = (TODAY - FIRST).days + 1
EACH = st.integers(LARGEST_MB // 2 + 1, LARGEST_MB)
# Each alone is possible, or none is; the total of the server is their sum, unknown, or impossible as well.
IMPOSSIBLE = st.tuples(
    st.lists(EACH, min_size=2, max_size=4)
    | st.lists(st.integers(LARGEST_MB + 1, LARGEST_BIGINT), min_size=1, max_size=2),
    st.sampled_from(["sum", "none", "largest"]),
)


def add_bad_server(engine: Engine, of_databases: list[int], total: str) -> None:
    add_instances(engine, [BAD])
    for number, size in enumerate(of_databases):
        add_database_sizes(engine, sizes(BAD, f"d{number}", FIRST.isoformat(), [size] * DAYS))
    if total != "none":
        size = min(sum(of_databases), LARGEST_BIGINT) if total == "sum" else LARGEST_BIGINT
        add_instance_sizes(engine, totals(BAD, FIRST.isoformat(), [(size, len(of_databases))] * DAYS))
    execute(
        engine,
        "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source) "
        f"SELECT '{TODAY}', {BAD}, '/' || n, {LARGEST_MB}, {LARGEST_MB}, 'measured' FROM generate_series(1, 2) n",
    )
    declare_labels(engine, [Label("server-9", None, "team", "payments", ALWAYS)], TODAY)
    declare_labels(engine, [Label("server-9", "d0", "team", "archive", ALWAYS)], TODAY)


def compute(engine: Engine) -> list[str]:
    service = AggregationService(engine, fixed_clock())
    errors = []
    for period in ("daily", "monthly"):
        run = compute_windows(service, period, FIRST, TODAY)
        errors += [f"{period} {part.level}: {error}" for part in run.summaries for error in part.errors]
    issue_runways(engine, TODAY, TODAY)
    issue_bill(engine, PERIODS["monthly"].window_of(TODAY), fixed_clock(), KEYS)
    return errors


# Whole answers about others.
SAME = (
    *("/databases", "/filling", "/budget", "/decisions", "/accuracy", "/tables?period=monthly"),
    *("/server?server=1", "/database?server=1&name=orders", "/volume?server=1&name=%2Fdata"),
)
# Their figures are the same; that the server is missing, and which changes are comparable, is said beside them.
MARKED = ("/", "/changes?period=monthly", "/servers", "/groups?by=team", "/groups?by=engine", "/bill")
MARKED += ("/group?by=team&name=payments", "/group?by=team&name=archive")
SAID = {
    "left_out",
    "is_partial",
    "is_change_partial",
    "missed",
    "out_of_service",
    "headline",
    "is_outdated",
    "unmeasured",
    "trust",
}
COMPARABLE = {"change_mb", "change_percent", "known_before_mb", "rest_change_mb", "once_measured_mb", "never_measured"}
COMPARABLE |= {"growth_servers"}
COUNTED = {
    "total_servers",
    "servers",
    "active",
    "issued_at",
    "issue",
    "issues",
    "notes",
    "unbilled_servers",
    "unknown_limits",
}
COMMANDS = (("top", "--period", "monthly"), ("runway",), ("bill",), ("budget",), ("groups",))


def others(document: Any, dropped: set[str]) -> Any:
    """Return a document without entries of the bad server and without keys."""
    if isinstance(document, dict):
        return {key: others(value, dropped) for key, value in document.items() if key not in {*dropped, "server-9"}}
    if isinstance(document, list):
        of_bad = ({"server": "server-9"}, {"server_id": BAD}, {"name": "server-9"})
        return [
            others(one, dropped)
            for one in document
            if not (isinstance(one, dict) and any(one.items() >= bad.items() for bad in of_bad))
        ]
    return document


def shown(engine: Engine, database: URL) -> dict[str, Any]:
    """Return what is shown of the others, by where."""
    with served_pages(database) as pages:
        found = {address: others(pages.document(address), {"revision"}) for address in SAME}
        found |= {address: others(pages.document(address), SAID | COMPARABLE | COUNTED) for address in MARKED}
        found["headroom"] = pages.document("/")["headroom"]["headroom_mb"]
        lines = pages.ask("/metrics").text.splitlines()
        found["metrics"] = [line for line in lines if line.startswith(FLEET_METRICS)]
    digest = read_digest(engine, PERIODS["weekly"].window_of(TODAY - timedelta(days=7)))
    found["digest"] = (digest.size_mb, digest.change_mb)
    for words in COMMANDS:
        answer = capacity(*words, "--json")
        assert answer.exit_code == 0, answer.output
        found[" ".join(words)] = others(json.loads(answer.output), SAID | COMPARABLE | COUNTED)
    return found


FLEET_METRICS = ("capacity_fleet_size_bytes", "capacity_forecast")


@pytest.mark.usefixtures("today")
def test_every_other_figure_is_that_of_the_fleet_without_the_server(
    engine: Engine, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", database.render_as_string(hide_password=False))
    filled(engine)
    assert compute(engine) == []
    without = shown(engine, database)

    for of_databases, total in generated(IMPOSSIBLE, max(2, HISTORIES // 4)):
        add_bad_server(engine, of_databases, total)
        errors = compute(engine)
        with_it = shown(engine, database)
        execute(engine, *(f"DELETE FROM {table} WHERE instance_id = {BAD}" for table in TABLES))
        execute(engine, f"DELETE FROM instances WHERE id = {BAD}")

        case = f"{of_databases} MiB, total {total}"
        assert errors, case
        assert all("server 9 (server-9)" in error for error in errors), case
        assert {error.split()[1] for error in errors} >= {"database:", "group:"}, case
        assert {where: what for where, what in with_it.items() if what != without[where]} == {}, case
    compute(engine)
    assert shown(engine, database) == without, "as before once it is gone"


TABLES = (
    *("database_size_stats", "instance_size_stats", "volume_size_stats"),
    *("database_size_aggregations", "instance_size_aggregations", "capacity_runways", "capacity_labels"),
)


def test_groups_say_which_server_they_leave_out_and_why(engine: Engine, database: URL) -> None:
    filled(engine)
    add_bad_server(engine, [LARGEST_MB - 5] * 3, "none")
    compute(engine)
    named = "Not in any group (sizes above 8 EiB, alone or together with the rest of the fleet): server-9 (30 days)."

    with served_pages(database) as pages:
        groups = pages.document("/groups?by=team")
        group = pages.document("/group?by=team&name=archive")
        page = pages.ask("/group?by=team&name=archive").text
        servers = pages.ask("/servers?period=monthly").text
        on_first_page = pages.document("/")["left_out"]
    assert groups["left_out"].startswith(named)
    assert on_first_page.startswith(named.replace("30 days", "1 day"))
    assert {one["name"]: one["is_partial"] for one in groups["groups"]} == {
        "payments": True, "archive": True, None: False,
    }  # fmt: skip
    assert group["missed"][-1] | {"window_start": ""} == {
        "window_start": "", "server_id": BAD, "server": "server-9", "measured_days": None, "days": 30,
        "left_out_days": 30,
    }  # fmt: skip
    assert "left out on 30 days of 30: sizes above 8 EiB, alone or together with the rest of the fleet" in page
    assert "not computed: sizes above 8 EiB, alone or together with the rest of the fleet" in servers
    bill = read_bill(engine, PERIODS["monthly"].window_of(TODAY), "team")
    assert any(
        note == "Not billed: 1 server without measured databases, or with impossible sizes (above 8 EiB)."
        for note in bill_notes(bill)
    )


def test_a_server_that_is_impossible_on_one_day_fails_in_the_windows_of_that_day_and_is_whole_in_others(
    engine: Engine,
) -> None:
    filled(engine)
    day = TODAY - timedelta(days=2)
    execute(
        engine,
        f"UPDATE database_size_stats SET size_mb = {LARGEST_MB} WHERE instance_id = 1 AND collected_date = '{day}'",
        f"DELETE FROM instance_size_stats WHERE instance_id = 1 AND collected_date = '{day}'",
    )

    errors = compute(engine)

    failed = {error.split(":")[0] for error in errors}
    assert failed == {"daily database", "daily group", "monthly database", "monthly group"}
    assert all("server 1 (server-1)" in error for error in errors)
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT window_start, group_name, size_mb FROM capacity_groups WHERE period = 'daily' "
                "AND grouped_by = 'team' AND window_start >= :day ORDER BY 1, 2"
            ),
            {"day": day},
        ).all()
    of_day = {(row.window_start, row.group_name): int(row.size_mb) for row in rows}
    assert of_day[day, None] == 2000, "server-2"
    assert (day, "payments") not in of_day or of_day[day, "payments"] == 0
    assert of_day[day + timedelta(days=1), "archive"] == 500
