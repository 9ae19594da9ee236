"""Two capacity databases read together through postgres_fdw: sums are theirs, and one that is away is named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.grouping.bills import issue_bill
from capacity_assets.grouping.prices import Price, declare_prices
from capacity_assets.periods import PERIODS
from capacity_assets.settings import CAPACITY_DRIVER
from capacity_assets.storage.cells import Cell, CellsRefusedError, attach, states
from capacity_assets.storage.embedded import EmbeddedServer
from capacity_assets.storage.engine import capacity_engine
from capacity_assets.storage.schema import SchemaProblemsError, initialise
from capacity_assets.storage.time_zone import record_zone
from tests.clocks import SHANGHAI, TODAY, fixed_clock
from tests.command import capacity
from tests.computing import compute_windows
from tests.databases import rows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.other_postgres import other_postgres
from tests.pages import served_pages

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = pytest.mark.skipif(
    not INSTALLED, reason="no PostgreSQL of the machine: the embedded one lacks postgres_fdw"
)
FIRST = date(2025, 5, 1)


@dataclass(frozen=True)
class Region:
    """A cell of its own server, which a test may stop."""

    cell: Cell
    engine: Engine
    server: EmbeddedServer


def fill(engine: Engine, *, servers: range, size: int) -> None:
    initialise(engine)
    record_zone(engine, SHANGHAI.key, chosen=True)
    add_instances(engine, servers)
    for number in servers:
        measured = [size + number + day for day in range(81)]
        add_database_sizes(engine, sizes(number, "orders", str(FIRST), measured))
        add_instance_sizes(engine, totals(number, str(FIRST), [(each, 1) for each in measured]))
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
                "VALUES (:id, '', 'team', '0001-01-01', 'shop')"
            ),
            {"id": servers[0]},
        )
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", FIRST, TODAY)
    compute_windows(AggregationService(engine, fixed_clock()), "daily", FIRST, TODAY)


@pytest.fixture(scope="module")
def regions() -> Iterator[list[Region]]:
    with ExitStack() as stack:
        found = []
        for name, servers in (("eu", range(1, 4)), ("us", range(1, 3))):
            server = stack.enter_context(other_postgres(INSTALLED[-1]))
            engine = capacity_engine(server.url("postgres", CAPACITY_DRIVER))
            fill(engine, servers=servers, size=1_000 if name == "eu" else 5_000)
            folder = str(server.url("postgres", CAPACITY_DRIVER).query["host"])
            found.append(Region(Cell(name, folder, 5432, "postgres", "postgres"), engine, server))
            stack.callback(engine.dispose)
        yield found


@pytest.fixture
def together(regions: list[Region]) -> Iterator[Engine]:
    """An empty database of the first server, which reads both."""
    administrator = regions[0].engine.execution_options(isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS overview WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE overview"))
    engine = capacity_engine(regions[0].server.url("overview", CAPACITY_DRIVER))
    yield engine
    engine.dispose()


def test_figures_read_together_are_those_of_the_cells(regions: list[Region], together: Engine) -> None:
    attach(together, [region.cell for region in regions])

    every = (
        "SELECT server, period, window_start, size_mb, change_mb, trend FROM capacity_server_growth ORDER BY 1, 2, 3"
    )
    own = [
        (f"{region.cell.name}/{server}", *rest) for region in regions for server, *rest in rows(region.engine, every)
    ]
    assert rows(together, every) == own
    groups = (
        "SELECT grouped_by, group_name, sum(servers), sum(size_mb), sum(change_mb) FROM capacity_groups "
        "WHERE period = 'monthly' AND window_start = '2025-06-01' AND grouped_by <> 'server' GROUP BY 1, 2"
    )
    apart = [row for region in regions for row in rows(region.engine, groups)]
    added = {
        key: tuple(sum(row[place] for row in apart if row[:2] == key) for place in (2, 3))  # type: ignore[misc]
        for key in {row[:2] for row in apart}
    }
    assert {row[:2]: row[2:4] for row in rows(together, groups)} == added
    assert ("team", "shop") in added
    assert [(s.name, s.newest_day, s.trouble) for s in states(together)] == [
        ("eu", "2025-07-20", None), ("us", "2025-07-20", None),
    ]  # fmt: skip
    numbers = rows(together, "SELECT count(*), count(DISTINCT id) FROM instances")
    assert numbers == [(5, 5)], "both cells number their servers from 1"


def test_the_report_and_the_command_line_read_them_and_nothing_writes(
    regions: list[Region], together: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(together, [region.cell for region in regions])
    monkeypatch.setenv("CAPACITY_DATABASE_URL", together.url.render_as_string(hide_password=False))

    report = capacity(
        "report", "--period", "monthly", "--window", "2025-06-01", "--output", str(tmp_path / "report.html")
    )
    top = capacity("top", "--period", "monthly", "--window", "2025-06-01", "--json")
    refused = capacity("aggregate", "--period", "daily")

    assert report.exit_code == 0, report.output
    page = (tmp_path / "report.html").read_text()
    named = set(re.findall(r"(?:eu|us)/server-\d", page))
    assert {name[:2] for name in named} == {"eu", "us"}, named
    assert top.exit_code == 0, top.output
    assert "us/server-1" in top.output
    assert refused.exit_code == 1
    assert "This database only reads cells, and holds no tables to write to. Nothing was written." in refused.output


def test_pages_are_served_from_them(regions: list[Region], together: Engine) -> None:
    attach(together, [region.cell for region in regions])

    with served_pages(together.url) as pages:
        for path in ("/", "/servers", "/databases", "/groups?by=team", "/filling", "/bill", "/search?q=ord"):
            answer = pages.ask(path)
            assert answer.status == 200, (path, answer.text[-2000:])
        servers = pages.document("/servers?period=monthly")

    assert "us/server-2" in str(servers)


def test_a_cell_that_is_away_is_named_and_nothing_is_guessed(
    regions: list[Region], together: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    eu, us = (region.cell for region in regions)
    attach(together, [eu, us])
    away = Cell("us", "/nowhere", 5432, "postgres", "postgres")
    with together.begin() as connection:
        connection.execute(text(f"ALTER SERVER cell_us OPTIONS (SET host '{away.host}')"))
    together.dispose()
    monkeypatch.setenv("CAPACITY_DATABASE_URL", together.url.render_as_string(hide_password=False))

    listed = capacity("cells", "list", "--json")
    top = capacity("top", "--period", "monthly", "--window", "2025-06-01")

    answers = {cell["name"]: cell for cell in json.loads(listed.output)["cells"]}
    assert listed.exit_code == 1
    assert answers["eu"]["trouble"] is None
    assert 'could not connect to server "cell_us"' in answers["us"]["trouble"]
    assert top.exit_code == 1
    assert 'could not connect to server "cell_us"' in top.output

    with served_pages(together.url) as pages:
        answer = pages.ask("/databases")
    assert answer.status == 503
    assert "The database refuses: could not connect to server &#34;cell_us&#34;" in answer.text

    attach(together, [eu])
    assert capacity("top", "--period", "monthly", "--window", "2025-06-01").exit_code == 0
    assert rows(together, "SELECT count(*) FROM instances") == [(3,)]


def test_servers_of_cells_never_share_a_number_whatever_is_registered_later(
    regions: list[Region], together: Engine
) -> None:
    cells = [region.cell for region in regions]
    us = regions[1].engine
    with us.begin() as connection:
        connection.execute(text("CREATE TABLE aside AS SELECT * FROM instances"))
        connection.execute(text("DELETE FROM instances"))
    attach(together, cells)  # one of them has no server yet
    with us.begin() as connection:
        connection.execute(text("INSERT INTO instances SELECT * FROM aside"))
        connection.execute(text("DROP TABLE aside"))
    assert rows(together, "SELECT count(*), count(DISTINCT id) FROM instances") == [(5, 5)]

    with us.begin() as connection:
        connection.execute(text("UPDATE instances SET id = id + 1000000"))
    attach(together, cells)
    ids = [row[0] for row in rows(together, "SELECT id FROM instances ORDER BY id")]
    with us.begin() as connection:
        connection.execute(text("UPDATE instances SET id = id - 1000000"))
    assert ids == [1, 2, 3, 1_000_001, 1_000_002], "each keeps to a million of its own, and an index finds them"


def test_a_month_that_one_cell_has_not_billed_is_not_final_and_says_so(regions: list[Region], together: Engine) -> None:
    june = PERIODS["monthly"].window_of(date(2025, 6, 1))
    eu, us = regions
    for region in regions:
        declare_prices(region.engine, [Price(Decimal(2), "EUR")], TODAY)
    issue_bill(eu.engine, june, fixed_clock(), ())
    attach(together, [eu.cell, us.cell])

    bill = "SELECT amount, is_final, reason FROM capacity_bills WHERE month = '2025-06-01'"
    lines = "SELECT sum(amount) FROM capacity_bill_lines WHERE month = '2025-06-01'"
    [(of_eu, is_final, reason)] = rows(together, bill)
    assert (is_final, reason) == (False, "without us: not billed there yet")

    issue_bill(us.engine, june, fixed_clock(), ())
    [(of_both, is_final, reason)] = rows(together, bill)
    assert (is_final, reason) == (True, None)
    [(own,)] = rows(us.engine, "SELECT amount FROM capacity_bills")
    assert of_both == of_eu + own == rows(together, lines)[0][0]  # type: ignore[operator]


def test_init_leaves_a_database_that_reads_cells_alone(regions: list[Region], together: Engine) -> None:
    attach(together, [region.cell for region in regions])

    with pytest.raises(SchemaProblemsError, match="This database only reads cells and has no tables of its own"):
        initialise(together)


def test_cells_of_another_schema_or_time_zone_are_refused_with_their_name(
    regions: list[Region], together: Engine
) -> None:
    cells = [region.cell for region in regions]
    us = regions[1].engine
    for statement, back, message in (
        ("UPDATE capacity_alembic_version SET version_num = '0011'",
         "UPDATE capacity_alembic_version SET version_num = '0013'",
         "Cell 'us' is at revision 0011, and 0013 is needed: run `capacity init` there first"),
        ("UPDATE capacity_settings SET value = 'Europe/Paris'",
         "UPDATE capacity_settings SET value = 'Asia/Shanghai'",
         "different time zones (eu: Asia/Shanghai, us: Europe/Paris)"),
    ):  # fmt: skip
        with us.begin() as connection:
            connection.execute(text(statement))
        with pytest.raises(CellsRefusedError) as refused:
            attach(together, cells)
        with us.begin() as connection:
            connection.execute(text(back))
        assert message in str(refused.value)
        assert states(together) == []
    with pytest.raises(CellsRefusedError, match="holds tables of its own"):
        attach(regions[0].engine, cells)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ('[[cell]]\nname = "eu"', "missing: database, host, user"),
        ('[[cell]]\nname = "EU"\nhost = "h"\ndatabase = "d"\nuser = "u"', "name is not a word of small letters"),
        (
            '[[cell]]\nname = "eu"\nhost = "h"\ndatabase = "d"\nuser = "u"\nport = 0',
            "port is not a number from 1 to 65535",
        ),
        ('[[cell]]\nname = "eu"\nhost = "h"\ndatabase = "d"\nuser = "u"\npassword = "x"', "unknown: password"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(
    tmp_path: Path, file: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    (tmp_path / "cells.toml").write_text(file)

    done = capacity("cells", "attach", str(tmp_path / "cells.toml"))

    assert done.exit_code == 2
    assert message in done.output
