"""Who stores sums of groups, who takes them away, and what is read meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date

import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregation import group_sums
from capacity_assets.aggregation.group_sums import store_group_sums
from capacity_assets.aggregation.quality import CheckScope, run_checks
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.foundation.levels import INSTANCE
from capacity_assets.grouping.labels import Label, declare_labels
from capacity_assets.periods import PERIODS
from capacity_assets.retention.maintenance import TableMaintenance
from capacity_assets.retention.rules import Retention
from capacity_assets.storage.group_tracking import lock_group_sums
from capacity_assets.storage.schema import initialise, untracked_changes
from tests.clocks import TODAY
from tests.computing import compute_windows
from tests.databases import count, execute
from tests.fleet import add_instances
from tests.group_sums import APRIL, MARCH, SECONDS, added_up, falsify, groups

pytestmark = pytest.mark.usefixtures("grouped_fleet")


def test_several_that_store_at_once_while_others_write_end_with_the_right_sums(engine: Engine) -> None:
    failures: list[BaseException] = []

    def repeatedly(work: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                for number in range(15):
                    work(number)
            except BaseException as error:  # noqa: BLE001 -- raised below
                failures.append(error)

        return run

    def write(number: int) -> None:
        execute(engine, f"UPDATE instance_size_aggregations SET total_size_mb = {number} WHERE instance_id = 1")

    work = (lambda _: store_group_sums(engine, SECONDS), lambda _: groups(engine), write)
    threads = [threading.Thread(target=repeatedly(one)) for one in (*work[:1] * 2, *work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failures == []
    assert groups(engine) == added_up(engine)
    store_group_sums(engine, SECONDS)
    assert count(engine, "capacity_group_changes") == 0
    assert groups(engine) == added_up(engine)


def test_sums_that_cannot_be_stored_fail_no_run(
    engine: Engine, service: AggregationService, caplog: pytest.LogCaptureFixture
) -> None:
    execute(engine, "ALTER TABLE capacity_group_sums RENAME TO away")

    execute(engine, "UPDATE instance_size_aggregations SET total_size_mb = 7 WHERE instance_id = 2")
    summary = compute_windows(service, "monthly", MARCH, APRIL, overwrite=True)

    assert summary.status.value == "completed"
    assert "Sums of groups were not stored, and are added up when they are read" in caplog.text


def test_the_check_of_a_run_finds_stored_sums_of_any_window_that_are_not_those_of_the_fleet(engine: Engine) -> None:
    windows = PERIODS["monthly"].windows_between(MARCH, APRIL)
    scope = CheckScope("monthly", INSTANCE, windows[-1:], TODAY, 50, every=windows)

    def found() -> dict[str, tuple[str, ...]]:
        return {outcome.name: outcome.listed for outcome in run_checks(engine, scope)}

    assert found()["groups_add_up"] == ()
    falsify(engine)
    assert [place.partition(": ")[0] for place in found()["groups_add_up"]] == [
        "by engine in the window from 2025-03-01",
        "by engine in the window from 2025-04-01",
        "by team in the window from 2025-03-01",
        "by team in the window from 2025-04-01",
    ]


PARTITION = "SELECT tableoid::regclass FROM {} WHERE period_start = '2025-03-01' LIMIT 1"


def partition_of(engine: Engine, table: str) -> str:
    with engine.connect() as connection:
        return str(connection.execute(text(PARTITION.format(table))).scalar_one())


@pytest.mark.parametrize("kept", [(), ("monthly_instance_aggregations",), ("monthly_database_aggregations",)])
@pytest.mark.parametrize("is_storing", [False, True])
def test_retention_takes_the_sums_along_with_their_rows(
    engine: Engine, kept: tuple[str, ...], *, is_storing: bool
) -> None:
    rules = {"monthly_database_aggregations": 100, "monthly_instance_aggregations": 100}
    maintenance = TableMaintenance(
        engine, MARCH, Retention({name: days for name, days in rules.items() if name not in kept})
    )
    with engine.connect() as connection:
        if is_storing:
            lock_group_sums(connection)
        report = maintenance.run(date(2026, 12, 31))

    assert len(report.dropped) == 2 - len(kept)
    assert groups(engine) == added_up(engine)
    store_group_sums(engine, SECONDS)
    assert groups(engine) == added_up(engine)
    assert count(engine, "capacity_group_changes") == 0


@pytest.mark.single_server("drops a partition, which only retention records there")
def test_sums_of_a_partition_that_somebody_drops_are_not_shown(engine: Engine) -> None:
    tables = ("instance_size_aggregations", "database_size_aggregations")
    execute(engine, *(f"DROP TABLE {partition_of(engine, table)}" for table in tables))

    assert groups(engine) == []
    assert store_group_sums(engine, SECONDS) == 2
    assert count(engine, "capacity_group_sums") == 0


def test_a_name_that_is_empty_is_none(engine: Engine) -> None:
    execute(
        engine,
        "UPDATE instances SET db_type = '' WHERE id = 1",
        "UPDATE capacity_labels SET value = '' WHERE database_pattern = ''",
    )
    unstored = groups(engine)

    assert store_group_sums(engine, SECONDS) == 2
    assert groups(engine) == unstored == added_up(engine)
    assert None in {row.group_name for row in unstored if row.grouped_by == "engine"}


def test_a_register_that_changes_before_the_first_aggregates_are_committed_is_not_missed(engine: Engine) -> None:
    add_instances(engine, [3])
    with engine.connect() as first, engine.connect() as second:
        first.execute(text(LIKE_SERVER_2))
        second.execute(text("UPDATE instances SET counted_by = 1 WHERE id = 3"))
        first.commit()
        store_group_sums(engine, SECONDS)
        second.commit()

    assert groups(engine) == added_up(engine)


LIKE_SERVER_2 = """
INSERT INTO instance_size_aggregations (instance_id, period_type, period_start, period_end, total_size_mb, avg_size_mb,
    max_size_mb, min_size_mb, data_count, database_count)
SELECT 3, period_type, period_start, period_end, total_size_mb, avg_size_mb, max_size_mb, min_size_mb, data_count,
       database_count FROM instance_size_aggregations WHERE instance_id = 2
"""


def test_labels_of_days_to_come_leave_nothing_behind(engine: Engine) -> None:
    declare_labels(engine, [Label("server-2", None, "team", "green", date(2030, 1, 1))], TODAY)

    assert count(engine, "capacity_group_changes") == 0


@pytest.mark.parametrize(
    "elsewhere",
    [
        "UPDATE capacity_group_windows SET system_identifier = 1",
        "UPDATE capacity_group_windows SET database_oid = 1",
        "UPDATE capacity_group_windows SET snapshot = '900000000:900000000:'",
        "INSERT INTO capacity_group_changes VALUES ('', '0001-01-01', 900000000)",
    ],
)
def test_sums_of_another_server_or_database_count_as_unknown(engine: Engine, elsewhere: str) -> None:
    """A dump loaded elsewhere keeps transaction IDs that are meaningless there, such as one from the future."""
    falsify(engine)
    execute(engine, elsewhere)

    assert groups(engine) == added_up(engine)
    assert store_group_sums(engine, SECONDS) == 2
    assert groups(engine) == added_up(engine)
    assert store_group_sums(engine, SECONDS) == 0
    assert count(engine, "capacity_group_changes") == 0


def test_who_finds_another_one_storing_waits_for_a_moment_and_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(group_sums, "LOCK_SECONDS", 1)
    with engine.connect() as connection:
        lock_group_sums(connection)
        execute(engine, "UPDATE capacity_labels SET value = 'green' WHERE value = 'blue'")
        assert store_group_sums(engine, SECONDS) == 0

    assert "lock timeout" in caplog.text
    assert groups(engine) == added_up(engine)
    assert store_group_sums(engine, SECONDS) == 2


def test_a_trigger_that_was_missing_is_named_and_everything_is_stored_anew(engine: Engine) -> None:
    execute(engine, "DROP TRIGGER capacity_track_groups_instances_update ON instances")
    execute(engine, "UPDATE instances SET db_type = 'oracle'")
    assert untracked_changes(engine) == (
        "changes of groups of instances are not recorded: a trigger is missing, old or disabled",
    )
    assert groups(engine) != added_up(engine)

    assert "fixed: changes of groups of instances are not recorded" in " ".join(initialise(engine))

    assert groups(engine) == added_up(engine)
    assert untracked_changes(engine) == ()


def test_many_windows_are_stored_some_per_transaction(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_sums, "WINDOWS_PER_TRANSACTION", 1)
    execute(engine, "UPDATE capacity_labels SET value = 'green' WHERE value = 'blue'")

    assert store_group_sums(engine, 0) == 0, "no time, and nothing is wrong"
    assert groups(engine) == added_up(engine)
    assert store_group_sums(engine, SECONDS) == 2
    assert groups(engine) == added_up(engine)
