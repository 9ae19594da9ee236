"""Two capacity databases read together by the statements of the documentation: sums are theirs, absence is named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.embedded import EmbeddedServer
from capacity_assets.database.engine import capacity_engine, record_zone
from capacity_assets.database.schema import initialise
from capacity_assets.database.views import READER_ROLE, ensure_reader_role
from tests.clocks import SHANGHAI, TODAY, fixed_clock
from tests.computing import compute_windows
from tests.databases import execute, rows
from tests.documents import ROOT
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.other_postgres import other_postgres

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = [
    pytest.mark.nightly("fills two regions"),
    pytest.mark.skipif(not INSTALLED, reason="no PostgreSQL of the machine: the embedded one lacks postgres_fdw"),
]
FIRST = date(2025, 5, 1)
SECTION = (ROOT / "docs" / "scale.md").read_text().split("\n## Several capacity databases\n")[1].split("\n## ")[0]
SETUP, QUERY = re.findall(r"```sql\n(.*?)```", SECTION, re.DOTALL)


def fill(engine: Engine, *, servers: range, size: int) -> None:
    initialise(engine)
    record_zone(engine, SHANGHAI.key, chosen=True)
    with engine.begin() as connection:
        ensure_reader_role(connection)
    add_instances(engine, servers)
    for number in servers:
        measured = [size + number + day for day in range(81)]
        add_database_sizes(engine, sizes(number, "orders", str(FIRST), measured))
        add_instance_sizes(engine, totals(number, str(FIRST), [(each, 1) for each in measured]))
    execute(
        engine,
        f"ALTER ROLE {READER_ROLE} LOGIN",
        "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
        f"VALUES ({servers[0]}, '', 'team', '0001-01-01', 'shop')",
    )
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", FIRST, TODAY)


@pytest.fixture(scope="module")
def regions() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """Servers of two regions: three database servers of some 1,000 MiB, and two of some 5,000."""
    with ExitStack() as stack:
        eu, us = (stack.enter_context(other_postgres(INSTALLED[-1])) for _region in range(2))
        for server, numbers, size in ((eu, range(1, 4), 1_000), (us, range(1, 3), 5_000)):
            engine = capacity_engine(server.url("postgres", CAPACITY_DRIVER))
            fill(engine, servers=numbers, size=size)
            engine.dispose()
        yield eu, us


@pytest.fixture(scope="module")
def together(regions: tuple[EmbeddedServer, EmbeddedServer]) -> Iterator[Engine]:
    """A database of the first server, on which the documented statements ran."""
    administrator = capacity_engine(regions[0].url("template1", CAPACITY_DRIVER))
    with administrator.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE overview"))
    administrator.dispose()
    statements = SETUP.replace("dbname 'capacity'", "dbname 'postgres'")
    for name, region in zip(("eu", "us"), regions, strict=True):
        folder = str(region.url("postgres", CAPACITY_DRIVER).query["host"])
        statements = statements.replace(f"db.{name}.example", folder)
    engine = capacity_engine(regions[0].url("overview", CAPACITY_DRIVER))
    execute(engine, "CREATE ROLE analyst")
    with engine.begin() as connection:
        connection.exec_driver_sql(statements.replace("%", "%%"))
        connection.execute(text("GRANT SELECT ON capacity_groups, capacity_server_growth TO analyst"))
    yield engine
    engine.dispose()


def test_sums_over_both_regions_are_sums_of_their_figures(together: Engine) -> None:
    with together.begin() as connection:
        connection.execute(text("SET LOCAL ROLE analyst"))
        found = [tuple(row) for row in connection.execute(text(QUERY))]

    # Means of June: 1046.5, 1047.5 and 1048.5 in one region, 5046.5 and 5047.5 in the other; each grew by 30.5. Of a
    # region the groups are rounded so that they add up to its total, rounded down: 3142 and 91, 10094 and 61.
    assert found == [
        ("engine", "postgresql", 5, 5, 3_142 + 10_094, 91 + 61),
        ("team", "shop", 2, 2, 1_046 + 5_046, 30 + 30),
        ("team", None, 3, 3, 2_096 + 5_048, 61 + 31),
    ]


def test_each_view_has_the_rows_of_both_regions(together: Engine) -> None:
    every = "SELECT region, server, period, window_start, size_mb, change_mb, trend FROM {} ORDER BY 1, 2, 4"
    both = rows(together, every.format("capacity_server_growth"))
    apart = [
        row
        for region in ("eu", "us")
        for row in rows(
            together, every.format(f"(SELECT '{region}' AS region, * FROM {region}.capacity_server_growth) AS one")
        )
    ]

    assert both == apart
    assert [row[:2] for row in both[::3]] == [
        ("eu", "server-1"), ("eu", "server-2"), ("eu", "server-3"), ("us", "server-1"), ("us", "server-2"),
    ]  # fmt: skip
    assert rows(together, "SELECT region, max(day) FROM capacity_coverage GROUP BY 1 ORDER BY 1") == [
        ("eu", date(2025, 7, 20)), ("us", date(2025, 7, 20)),
    ]  # fmt: skip


def test_regions_are_asked_at_the_same_time_for_what_is_wanted_only(together: Engine) -> None:
    plan = [str(line) for (line,) in rows(together, f"EXPLAIN (VERBOSE) {QUERY}")]

    assert sum("Async Foreign Scan on" in line for line in plan) == 2
    remote = [line for line in plan if "Remote SQL" in line]
    assert len(remote) == 2
    assert all("period = 'monthly'" in line and "window_start = '2025-06-01'" in line for line in remote)


def test_a_region_that_does_not_answer_is_named_and_the_other_can_be_read_alone(together: Engine) -> None:
    [(host,)] = rows(
        together,
        "SELECT option_value FROM information_schema.foreign_server_options "
        "WHERE foreign_server_name = 'us' AND option_name = 'host'",
    )
    execute(together, "ALTER SERVER us OPTIONS (SET host '/nowhere')")
    together.dispose()

    with pytest.raises(OperationalError, match='could not connect to server "us"'):
        rows(together, QUERY)

    execute(together, f"ALTER SERVER us OPTIONS (SET host '{host}')")
    [(servers,)] = rows(together, "SELECT sum(servers) FROM eu.capacity_fleet WHERE window_start = '2025-06-01'")
    assert servers == 3
