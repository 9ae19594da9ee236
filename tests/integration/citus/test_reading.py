"""Every view, page and command reads distributed tables, and says what it says of a single server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capacity_assets.base.periods import Clock
from capacity_assets.database.distributing import distribute
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.schema import initialise
from capacity_assets.database.views import VIEWS
from capacity_assets.history.retention import Retention, TableMaintenance
from tests import citus
from tests.citus_fleet import SHARDS, service
from tests.clocks import TODAY
from tests.command import printed
from tests.fleet import add_beside_sizes, add_database_sizes, sizes
from tests.pages import KEYS, Pages, served_pages
from tests.pages_fleet import ADDRESSES, filled

# When something was declared, computed or issued.
MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d\.\d+(Z|[+-]\d\d(:\d\d)?)| UTC)")
SELECTED = (
    "/changes?period=daily&by=team",
    "/servers?order=growth&engine=postgresql",
    "/databases?period=monthly&label=team%3Dpayments&order=growth",
    "/groups?by=server&period=monthly",
    "/tables?period=monthly&label=team%3Dpayments&order=size",
    "/tables?period=monthly&server=1",
    "/server?server=3",
    "/database?server=2&name=crm",
    "/bill?month=2025-06&by=engine",
    "/scenario?name=twice+the+growth",
)
JUNE = ("--period", "monthly", "--window", "2025-06-01")
COMMANDS = (
    ("volumes", "list", "--json"),
    ("limits", "list", "--json"),
    ("steps", "list", "--json"),
    ("decisions", "list", "--json"),
    ("runway", "--json"),
    ("runway", "--add-gb", "20", "--label", "team=payments", "--json"),
    ("scenario", "--fit", "5", "--json"),
    ("labels", "list", "--json"),
    ("prices", "list", "--json"),
    ("bill", "--month", "2025-06", "--group-by", "server", "--json"),
    ("bill", "--month", "2025-06", "--format", "focus"),
    ("budget", "--json"),
    ("top", *JUNE, "--json"),
    ("inside", "server-1", "orders", *JUNE, "--json"),
    ("groups", *JUNE, "--group-by", "team", "--json"),
    ("explain", "orders", "--server", "server-1", *JUNE, "--json"),
    ("explain", "orders", "--server", "server-1", "--runway", "--json"),
    ("explain", *JUNE, "--label", "team=payments", "--json"),
    ("digest", "--week", "2025-07-14", "--json"),
    ("plan", "--period", "monthly", "--json"),
    ("export", "--period", "monthly"),
    ("export", "--runway"),
    ("export", "--objects"),
)


@pytest.fixture(scope="module")
def both(databases: citus.CitusDatabases, nodes: citus.CitusServer) -> Iterator[tuple[Engine, Engine]]:
    """The same fleet on distributed tables and on a single server."""
    with databases.copy("template1") as cluster, databases.copy("template1") as single:
        nodes.join(str(cluster.database))
        engines = capacity_engine(cluster), capacity_engine(single)
        for engine in engines:
            initialise(engine)
            TableMaintenance(engine, date(2025, 1, 1), Retention({})).prepare(TODAY)
        distribute(engines[0], shards=SHARDS)
        for engine in engines:
            filled(engine)
            add_beside_sizes(engine, "server-2", TODAY - timedelta(days=1))
            add_database_sizes(engine, sizes(2, "crm", TODAY.isoformat(), [2100]))
            service(engine).ledger.gather()
        yield engines
        for engine in engines:
            engine.dispose()


@pytest.fixture(scope="module")
def pages_of_both(both: tuple[Engine, Engine]) -> Iterator[tuple[Pages, Pages]]:
    with served_pages(both[0].url) as cluster, served_pages(both[1].url) as single:
        yield cluster, single


def rows_of(engine: Engine, view: str) -> list[str]:
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        with raw.cursor().copy(f"COPY (SELECT * FROM {view}) TO STDOUT") as rows:  # type: ignore[union-attr]
            return sorted(MOMENT.sub("now", bytes(row).decode()) for row in rows)


def test_every_view_has_the_rows_of_a_single_server(both: tuple[Engine, Engine]) -> None:
    for view in VIEWS:
        cluster, single = (rows_of(engine, view.name) for engine in both)
        assert cluster == single, view.name
        # On distributed tables, servers without a total are in no sum, so the fleet has none. None is left out.
        is_empty = view.name in ("capacity_derived_windows", "capacity_left_out_servers")
        assert (single == []) == is_empty, view.name


def test_every_page_says_what_it_says_of_a_single_server(pages_of_both: tuple[Pages, Pages]) -> None:
    for address in (*ADDRESSES, *SELECTED):
        answers = [pages.ask(f"{address}{'&' if '?' in address else '?'}format=json") for pages in pages_of_both]
        assert [answer.status for answer in answers] == [200, 200], (address, answers[0].text)
        cluster, single = (MOMENT.sub("now", answer.text) for answer in answers)
        assert cluster == single, address


def test_what_if_names_the_command_that_answers_on_a_cluster(pages_of_both: tuple[Pages, Pages]) -> None:
    page = pages_of_both[0].document("/scenario?growth_factor=2&growth_label=team%3Dpayments")

    assert page["message"] == "On a cluster, pages cannot compute scenarios. The command below can."
    assert page["command"] == "capacity scenario FILE --store NAME"


def test_every_command_prints_what_it_prints_of_a_single_server(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)
    monkeypatch.setenv("CAPACITY_LABEL_KEYS", ",".join(KEYS))
    report = tmp_path / "report.html"
    for command in (*COMMANDS, ("report", *JUNE, "--output", str(report))):
        said = []
        for engine in both:
            monkeypatch.setenv("CAPACITY_DATABASE_URL", engine.url.render_as_string(hide_password=False))
            output = printed(*command)
            said.append(MOMENT.sub("now", report.read_text() if command[0] == "report" else output))
        assert said[0] == said[1], command
