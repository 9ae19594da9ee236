"""A coordinator and two workers, each a real PostgreSQL: the tests of this folder are skipped without one.

`CAPACITY_TEST_CITUS_BIN` is the folder of a PostgreSQL's programs that has the extension. With it the other tests of
the integration folder run on distributed tables too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.distributing import distribute
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.schema import initialise
from capacity_assets.history.retention import Retention, TableMaintenance
from tests import citus
from tests.citus_fleet import FIRST, SERVERS, SHARDS, opened
from tests.clocks import TODAY
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

PROGRAMS = os.environ.get(citus.VARIABLE)


def fill(engine: Engine) -> None:
    """The schema; servers on different nodes, one that was measured with gaps, one database that goes."""
    initialise(engine)
    TableMaintenance(engine, FIRST, Retention({})).prepare(TODAY)
    add_instances(engine, SERVERS)
    for number in SERVERS:
        days = [None if day % 30 < number - 4 else 100 * number + day for day in range(170)]
        add_database_sizes(engine, sizes(number, "orders", str(FIRST), days, data_size_mb=7))
        add_instance_sizes(engine, totals(number, str(FIRST), [None if d is None else (d, 1) for d in days]))
    add_database_sizes(engine, sizes(2, "archive", "2025-02-10", range(500, 540)))


@pytest.fixture(scope="session")
def nodes() -> Iterator[citus.CitusServer]:
    if not PROGRAMS:
        pytest.skip(f"{citus.VARIABLE} names no PostgreSQL with the extension citus")
    with citus.citus_cluster(Path(PROGRAMS)) as started:
        yield started


@pytest.fixture(scope="session")
def databases(nodes: citus.CitusServer) -> Iterator[citus.CitusDatabases]:
    found = citus.CitusDatabases(nodes)
    for name in ("template_empty", "template_distributed"):
        found.execute(f"CREATE DATABASE {name}")
        nodes.join(name)
        engine = capacity_engine(nodes.url(name, CAPACITY_DRIVER))
        fill(engine)
        if name == "template_distributed":
            distribute(engine, shards=SHARDS)
        engine.dispose()
    found.filled("plain", fill, basis="template1")
    yield found
    found.close()


@pytest.fixture
def undistributed(databases: citus.CitusDatabases) -> Iterator[Engine]:
    """A database of the cluster whose tables lie on the coordinator."""
    with opened(databases, "template_empty") as engine:
        yield engine


@pytest.fixture
def distributed(databases: citus.CitusDatabases) -> Iterator[Engine]:
    with opened(databases, "template_distributed") as engine:
        yield engine


@pytest.fixture
def plain(databases: citus.CitusDatabases) -> Iterator[Engine]:
    """A database of the coordinator without the extension."""
    with opened(databases, "template_plain") as engine:
        yield engine
