"""What changed a group besides growth: declared steps, and databases that moved, on its page and on Changes."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.tables import ALWAYS
from capacity_assets.forecast.limits import SizeStep, declare_steps
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.reading import groups
from capacity_assets.reading.groups import group_moves
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.digests import FIRST, WEEK, WEEKLY, weekly
from tests.fleet import add_database_sizes, add_instances, sizes
from tests.pages import Pages, served_pages, values_of

TUESDAY, EARLIER = WEEK.start + timedelta(days=1), WEEKLY.window_of(WEEK.start - timedelta(weeks=3))


def moved_and_stepped(engine: Engine) -> None:
    """server-1 is of sales: crm jumps in the week, and its audit moves to finance; three weeks before, it got ledger.

    server-2 is of finance, and its orders jump too.
    """
    add_instances(engine, [1, 2])
    for name, values in {"crm": [500] * 14 + [900], "audit": [300] * 15, "ledger": [200] * 15}.items():
        add_database_sizes(engine, sizes(1, name, FIRST.isoformat(), weekly(values)))
    add_database_sizes(engine, sizes(2, "orders", FIRST.isoformat(), weekly([100] * 15)))
    labels = [
        Label("server-1", None, "team", "sales", ALWAYS),
        Label("server-1", "ledger", "team", "finance", ALWAYS),
        Label("server-2", None, "team", "finance", ALWAYS),
        Label("server-1", "ledger", "team", "sales", EARLIER.start),
        Label("server-1", "audit", "team", "finance", TUESDAY),
    ]
    for label in labels:
        declare_labels(engine, [label], TODAY)
    steps = [SizeStep("server-1", "crm", TUESDAY, "history imported"), SizeStep("server-2", None, TUESDAY, "moved")]
    declare_steps(engine, steps)
    compute_windows(AggregationService(engine, fixed_clock()), "weekly", FIRST, WEEK.end)


PREPARED = {"pages": moved_and_stepped}
OF_WEEK = f"period=weekly&window={WEEK.start}"


def test_changes_names_declared_steps_and_databases_that_moved_in_the_window(pages: Pages) -> None:
    page, html = pages.document(f"/changes?{OF_WEEK}"), pages.ask(f"/changes?{OF_WEEK}").text

    assert [(one["server"], one["database"], one["note"]) for one in page["steps"]] == [
        ("server-1", "crm", "history imported"),
        ("server-2", None, "moved"),
    ]
    [move] = page["moves"]
    assert (move["database"], move["size_mb"], move["from_group"], move["to_group"]) == (
        "audit",
        300,
        "sales",
        "finance",
    )
    assert '<section id="steps">' in html
    assert "Moved: " in html
    assert pages.document(f"/changes?{OF_WEEK}&by=engine")["moves"] == []
    before = pages.document(f"/changes?period=weekly&window={WEEK.start - timedelta(weeks=1)}")
    assert (before["steps"], before["moves"]) == ([], [])


def test_the_page_of_a_group_names_its_steps_and_moves_in_the_windows_it_shows(pages: Pages) -> None:
    sales, finance = (pages.document(f"/group?by=team&name={name}&{OF_WEEK}") for name in ("sales", "finance"))

    assert values_of(sales["steps"], "note") == ["history imported"]
    assert values_of(finance["steps"], "note") == ["moved"]
    for group in (sales, finance):
        assert [(one["window_start"], one["database"], one["to_group"]) for one in group["moves"]] == [
            (str(WEEK.start), "audit", "finance"),
            (str(EARLIER.start), "ledger", "sales"),
        ]
    html = pages.ask(f"/group?by=team&name=sales&{OF_WEEK}").text
    assert "Declared step of " in html
    assert "Moved in " in html
    for by, name, notes in (("engine", "postgresql", ["history imported", "moved"]), ("server", "server-2", ["moved"])):
        group = pages.document(f"/group?by={by}&name={name}&{OF_WEEK}")
        assert (values_of(group["steps"], "note"), group["moves"]) == (notes, [])


@pytest.mark.single_server("derives totals from samples of databases")
def test_a_database_that_moved_is_no_growth_of_all_groups_where_one_is_compared_like_for_like(
    engine: Engine, service: AggregationService
) -> None:
    """audit moves from sales to finance on Tuesday. Of sales, server-2 was measured on four days of the week."""
    add_instances(engine, [1, 2, 3])
    for server, name, size in ((1, "crm", 500), (1, "audit", 700), (3, "orders", 100)):
        add_database_sizes(engine, sizes(server, name, FIRST.isoformat(), weekly([size] * 15)))
    add_database_sizes(engine, sizes(2, "log", FIRST.isoformat(), weekly([900] * 15)[:-3]))
    teams = {"server-1": "sales", "server-2": "sales", "server-3": "finance"}
    declare_labels(engine, [Label(server, None, "team", team, ALWAYS) for server, team in teams.items()], TODAY)
    declare_labels(engine, [Label("server-1", "audit", "team", "finance", TUESDAY)], TODAY)
    compute_windows(service, "weekly", FIRST, WEEK.end)

    with served_pages(engine.url) as pages:
        page, changes = pages.document(f"/groups?{OF_WEEK}"), pages.document(f"/changes?{OF_WEEK}")
        sales = pages.document(f"/group?by=team&name=sales&{OF_WEEK}")

    moved = 700 * 6 // 7
    assert {one["name"]: (one["change_mb"], one["is_change_partial"]) for one in page["groups"]} == {
        "sales": (-moved, True),
        "finance": (moved, False),
    }
    assert {one["name"]: one["known_before_mb"] for one in page["groups"]} == {"sales": 2100, "finance": 100}
    assert page["change_mb"] == changes["size"]["change_mb"] == 0
    assert (changes["rest_change_mb"], sales["sizes"][-1]["change_mb"]) == (0, -moved)


@pytest.mark.single_server("derives totals from samples of databases")
def test_a_group_into_which_all_its_databases_moved_was_nothing_before(
    engine: Engine, service: AggregationService
) -> None:
    """Half of its 901 MiB is no whole number, and must not be rounded to a size before."""
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "crm", "2025-05-01", [500] * 61))
    add_database_sizes(engine, sizes(2, "log", "2025-05-01", [901] * 58))
    for server in ("server-1", "server-2"):
        declare_labels(engine, [Label(server, None, "team", "sales", ALWAYS)], TODAY)
    declare_labels(engine, [Label("server-2", None, "team", "finance", date(2025, 6, 16))], TODAY)
    compute_windows(service, "monthly", date(2025, 5, 1), date(2025, 6, 30))

    with served_pages(engine.url) as pages:
        page = pages.document("/groups?period=monthly&window=2025-06-01")

    found = {one["name"]: (one["known_before_mb"], one["change_mb"], one["change_percent"]) for one in page["groups"]}
    assert found == {"sales": (1401, -451, -32.2), "finance": (0, 450, None)}


def test_moves_of_many_servers_are_searched_among_their_largest_databases_first(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_and_stepped(engine)
    declare_labels(engine, [Label("server-1", None, "team", "support", TUESDAY)], TODAY)
    week = PERIODS["weekly"]
    with engine.connect() as connection:
        every = group_moves(connection, week, [EARLIER, WEEK], "team", shown=5, every=True)
        assert [one.database for one in every] == ["crm", "audit", "ledger"]
        monkeypatch.setattr(groups, "FEW_SERVERS", 0)
        for tried in (1, 2, 1_000):
            monkeypatch.setattr(groups, "LARGEST_TRIED", tried)
            for shown in (1, 2, 5):
                found = group_moves(connection, week, [EARLIER, WEEK], "team", shown=shown, every=True)
                assert found == every[:shown], (tried, shown)
