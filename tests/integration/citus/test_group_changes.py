"""Sums of groups hold what the nodes recorded, or do not count, whoever reads and gathers meanwhile."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregation.group_sums import store_group_sums
from capacity_assets.foundation.levels import DATABASE, INSTANCE
from capacity_assets.grouping.group_reading import GroupReader, reading_groups
from capacity_assets.grouping.labels import Label, declare_labels
from capacity_assets.periods import PERIODS
from capacity_assets.storage.distributing import distribute
from capacity_assets.storage.node_records import gather_records, lost_nodes
from capacity_assets.storage.schema import initialise, schema_state
from tests import citus
from tests.citus_fleet import FIRST, LAST, SERVERS, SHARDS, service
from tests.computing import compute_windows
from tests.databases import count, execute
from tests.fleet import add_instances

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


JUNE = PERIODS["monthly"].window_of(date(2025, 6, 1))
LARGER = "UPDATE instance_size_aggregations SET total_size_mb = total_size_mb + 1000 WHERE period_start = '2025-06-01'"


def by_engine(reader: GroupReader) -> list[int]:
    return [group.size_mb for group in reader.groups_of(PERIODS["monthly"], JUNE, "engine", {})]


def test_a_change_between_the_question_and_the_sums_leaves_no_window_out(distributed: Engine) -> None:
    compute_windows(service(distributed), "monthly", FIRST, LAST)
    with reading_groups(distributed) as reader:
        before = by_engine(reader)
        source = reader.source(PERIODS["monthly"], [JUNE], "engine")
        execute(distributed, LARGER)
        query = f"SELECT size_mb FROM {source} WHERE window_start = '2025-06-01' AND grouped_by = 'engine'"
        assert [*reader.connection.execute(text(query)).scalars()] == before

    with reading_groups(distributed) as reader:
        assert by_engine(reader) == [size + 1000 * len(SERVERS) for size in before]


def test_what_is_gathered_while_somebody_reads_is_seen_by_him(distributed: Engine) -> None:
    compute_windows(service(distributed), "monthly", FIRST, LAST)
    with reading_groups(distributed) as reader:
        before = by_engine(reader)
    execute(distributed, LARGER)
    with reading_groups(distributed) as reader:
        # Now the state is fixed that the reader sees, and the change moves to where he does not look.
        reader.connection.execute(text("SELECT 1 FROM instances"))
        gather_records(distributed)
        assert by_engine(reader) == [size + 1000 * len(SERVERS) for size in before]


def test_a_window_that_is_out_of_date_is_added_up_alone_and_as_it_is_stored(distributed: Engine, plain: Engine) -> None:
    found = []
    for engine in (distributed, plain):
        declare_labels(
            engine, [Label("server-1", None, "team", "shop"), Label("server-2", "arch*", "team", "old")], LAST
        )
        compute_windows(service(engine), "monthly", FIRST, LAST)
        execute(engine, LARGER)
        with reading_groups(engine) as reader:
            source = reader.source(PERIODS["monthly"], PERIODS["monthly"].back(JUNE, 6), "team")
            query = f"SELECT * FROM {source} WHERE period = 'monthly' AND grouped_by <> 'server' ORDER BY 2, 4, 5"
            found.append([tuple(row) for row in reader.connection.execute(text(query))])
        assert store_group_sums(engine, 60) == 1

    assert found[0] == found[1]
    assert len({row[1] for row in found[0]}) == 6


def test_of_a_node_that_was_removed_nothing_counts_until_the_tables_are_distributed_again(
    distributed: Engine, nodes: citus.CitusServer
) -> None:
    compute_windows(service(distributed), "monthly", FIRST, LAST)
    execute(distributed, LARGER)
    port = nodes.ports[1]
    execute(
        distributed,
        f"SELECT citus_drain_node('127.0.0.1', {port}, 'block_writes')",
        f"SELECT citus_remove_node('127.0.0.1', {port})",
    )
    assert count(distributed, OUTDATED) == count(distributed, "capacity_group_windows") == 6
    assert len(lost_nodes(distributed)) == 1

    assert distribute(distributed, shards=SHARDS) == []
    assert count(distributed, "capacity_group_windows") == 0
    assert lost_nodes(distributed) == []
    assert store_group_sums(distributed, 60) == 6
    assert count(distributed, OUTDATED) == 0


def test_servers_are_registered_while_a_node_does_not_answer(distributed: Engine, nodes: citus.CitusServer) -> None:
    compute_windows(service(distributed), "monthly", FIRST, LAST)
    nodes.control(nodes.ports[1], "-m", "fast", "stop")
    try:
        # So many that each node has a shard of theirs.
        add_instances(distributed, range(77, 97))
    finally:
        nodes.control(nodes.ports[1], "start")

    assert count(distributed, OUTDATED) == 6
    assert store_group_sums(distributed, 60) == 6
