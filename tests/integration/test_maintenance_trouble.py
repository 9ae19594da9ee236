"""Maintenance beside writers, foreign partitions and failures: what can be done is done, the rest is named."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import Engine, select, text

from capacity_assets.database import partitions
from capacity_assets.database.tables import database_size_stats
from capacity_assets.history import retention
from capacity_assets.history.retention import MaintenanceError
from tests.clocks import TODAY
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, sizes, totals
from tests.partitions import (
    FIRST,
    everything,
    keeper,
    rows_by_partition,
)


def test_rows_beside_a_partition_of_another_shape_stay_and_are_reported(two_servers: Engine) -> None:
    execute(
        two_servers,
        "CREATE TABLE odd PARTITION OF database_size_stats FOR VALUES FROM ('2023-08-01') TO ('2023-08-12')",
    )
    add_database_sizes(two_servers, sizes(1, "old", "2023-08-11", [5, 6]))

    report = keeper(two_servers).run(TODAY)

    message = "database_size_stats: rows of 2023-08-01 to 2023-08-31, of which another partition holds a part, stay in"
    assert report.notes == [f"{message} database_size_stats_default"]
    assert rows_by_partition(two_servers, "database_size_stats")["database_size_stats_default"] == 1


def test_a_writer_that_has_read_the_default_partition_is_given_way_to(two_servers: Engine) -> None:
    """Both would wait for each other, and PostgreSQL would end the one that only wanted to write a sample."""
    add_database_sizes(two_servers, sizes(1, "old", "2023-01-01", [5]))
    inserted = text(
        "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
        "VALUES (1, 'looked first', 5, '2023-01-02')"
    )
    moving = threading.Event()
    reports = []

    def maintain() -> None:
        reports.append(keeper(two_servers).run(TODAY))

    with two_servers.connect() as writer:
        writer.execute(select(database_size_stats).where(database_size_stats.c.collected_date < FIRST)).all()
        thread = threading.Thread(target=maintain)
        thread.start()
        moving.wait(0.5)
        writer.execute(inserted)
        writer.commit()
    thread.join()

    assert reports[0].moved_records == 2
    assert rows_by_partition(two_servers, "database_size_stats")["database_size_stats_2023_01"] == 2


def test_the_trouble_of_one_table_hides_none_of_the_others_and_what_was_done_is_reported(
    two_servers: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "ATTACH_SECONDS", 0.5)
    monkeypatch.setattr(retention, "TRIES", 1)
    add_database_sizes(two_servers, sizes(1, "old", "2023-01-01", [5]))
    add_instance_sizes(two_servers, totals(1, "2023-01-01", [(5, 1)]))
    before = everything(two_servers)

    with two_servers.connect() as reader:
        reader.execute(text("SELECT * FROM database_size_stats_default")).all()
        with pytest.raises(MaintenanceError, match="while adding the partition of database_size_stats") as caught:
            keeper(two_servers).run(TODAY)

    assert caught.value.report.created == ["instance_size_stats: 2023-01-01 to 2023-01-31"]
    assert caught.value.transient
    assert everything(two_servers) == before
    assert keeper(two_servers).run(TODAY).moved_records == 1


def test_a_half_made_run_continues_where_it_stopped(two_servers: Engine) -> None:
    add_database_sizes(two_servers, sizes(1, "old", "2023-01-01", range(365)))
    before = everything(two_servers)
    done_steps: list[str] = []

    def stop_after_three(step: str) -> None:
        done_steps.append(step)
        if len(done_steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keeper(two_servers, on_step=stop_after_three).run(TODAY)
    assert everything(two_servers) == before

    assert len(keeper(two_servers).run(TODAY).created) == 9
    assert everything(two_servers) == before
