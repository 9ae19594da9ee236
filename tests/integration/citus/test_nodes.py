"""What maintenance does on the nodes, and nodes that lack what they need or do not answer."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Engine

from capacity_assets.base.errors import DatabaseError
from capacity_assets.database.distributing import distribute
from capacity_assets.database.partitions import PARTITIONED
from capacity_assets.database.tables import SAMPLES
from capacity_assets.history.retention import MaintenanceError, TableMaintenance, parse_retention
from tests import citus
from tests.citus_fleet import FIRST, SHARDS, compute_everything, service
from tests.clocks import TODAY
from tests.databases import count, execute


def test_what_retention_frees_on_the_nodes_is_counted(distributed: Engine) -> None:
    execute(
        distributed,
        "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source) "
        "SELECT '2025-01-05', 1 + n % 6, 'volume ' || n, 100, 50, 'imported' FROM generate_series(1, 20000) n",
    )

    report = TableMaintenance(distributed, FIRST, parse_retention("volume_size_stats=30")).run(TODAY)

    assert len(report.dropped) == 1
    assert report.dropped_records == 20_000
    assert 2 <= report.freed_mb <= 6
    assert count(distributed, "volume_size_stats") == 0


def test_a_node_that_lacks_the_tables_of_changes_is_named_and_distributing_again_prepares_it(
    nodes: citus.CitusServer, distributed: Engine
) -> None:
    port, database = nodes.ports[2], str(distributed.url.database)
    nodes.on_node(port, "DROP TABLE capacity_changes", database)

    with pytest.raises(DatabaseError, match=rf"Node 127.0.0.1:{port} did not report its changes") as failed:
        service(distributed).ledger.stale()

    assert not failed.value.transient
    assert "run `capacity distribute`, which prepares nodes that were added" in str(failed.value)
    assert distribute(distributed, shards=SHARDS) == []
    assert service(distributed).ledger.stale() == []


def test_a_node_that_does_not_answer_keeps_samples_and_nothing_else_from_being_maintained(
    nodes: citus.CitusServer, distributed: Engine
) -> None:
    compute_everything(distributed)
    nodes.on_node(nodes.ports[2], "DROP TABLE capacity_changes", str(distributed.url.database))
    rows = {table.name: count(distributed, table.name) for table in SAMPLES}
    maintenance = TableMaintenance(distributed, FIRST, parse_retention("raw=400"))

    with pytest.raises(MaintenanceError, match="no further sample was dropped") as failed:
        maintenance.run(date(2027, 3, 1))

    assert {name: count(distributed, name) for name in rows} == rows
    created = {line.split(":")[0] for line in failed.value.report.created}
    assert created == {table.name for table in PARTITIONED}
