"""Sums of groups hold what the nodes recorded, or do not count."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregation.group_sums import store_group_sums
from capacity_assets.foundation.levels import DATABASE, INSTANCE
from capacity_assets.storage.schema import initialise, schema_state
from tests import citus
from tests.citus_fleet import FIRST, LAST, service
from tests.computing import compute_windows
from tests.databases import count, execute

OUTDATED = "capacity_outdated_groups"
TRACKED = ("instances", "capacity_labels", *(level.target.name for level in (DATABASE, INSTANCE)))


def test_sums_of_groups_do_not_count_while_a_node_does_not_say_what_changed(
    distributed: Engine, nodes: citus.CitusServer, caplog: pytest.LogCaptureFixture
) -> None:
    compute_windows(service(distributed), "monthly", FIRST, LAST)
    stored = count(distributed, "capacity_group_windows")
    assert (stored, count(distributed, OUTDATED)) == (6, 0)
    place = {"port": nodes.ports[1], "database": str(distributed.url.database)}

    nodes.on_node(statement="ALTER TABLE capacity_group_changes RENAME TO away", **place)
    assert count(distributed, OUTDATED) == stored
    assert store_group_sums(distributed, 60) == 0
    assert "does not say what was changed there" in caplog.text

    nodes.on_node(statement="ALTER TABLE away RENAME TO capacity_group_changes", **place)
    assert count(distributed, OUTDATED) == 0


def test_a_cluster_of_a_version_before_stores_sums_of_groups_once_it_is_upgraded(
    distributed: Engine, nodes: citus.CitusServer
) -> None:
    execute(distributed, *(f"DROP FUNCTION capacity_track_groups_{table} CASCADE" for table in TRACKED))
    for port in nodes.ports[1:]:
        nodes.on_node(port, "DROP TABLE capacity_group_changes", str(distributed.url.database))
    assert not schema_state(distributed).fit

    assert len(initialise(distributed)) == len(TRACKED)

    assert schema_state(distributed).fit
    compute_windows(service(distributed), "monthly", FIRST, LAST)
    execute(distributed, "UPDATE database_size_aggregations SET avg_size_mb = 7 WHERE period_start = '2025-06-01'")
    assert count(distributed, OUTDATED) == 1
    assert store_group_sums(distributed, 60) == 1
    assert count(distributed, OUTDATED) == 0
