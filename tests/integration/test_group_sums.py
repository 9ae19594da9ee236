"""Stored sums of groups: read where nothing changed since, and never once anything did, whoever changed it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from capacity_assets.aggregation.group_sums import store_group_sums
from tests.databases import count, execute
from tests.group_sums import APRIL, MARCH, SECONDS, added_up, falsify, groups

pytestmark = pytest.mark.usefixtures("grouped_fleet")


def test_a_run_stores_the_sums_and_readers_take_them(engine: Engine) -> None:
    assert count(engine, "capacity_group_windows") == 2
    assert count(engine, "capacity_group_changes") == 0
    assert store_group_sums(engine, SECONDS) == 0, "nothing is left"
    before = groups(engine)
    assert before == added_up(engine)

    falsify(engine)

    found = groups(engine)
    assert {row.size_mb for row in found if row.grouped_by != "server"} == {-1}
    assert [row for row in found if row.grouped_by == "server"] == [row for row in before if row.grouped_by == "server"]


ALL, SINCE_APRIL = {MARCH, APRIL}, {APRIL}
CHANGES = {
    "a figure of a server": (
        "UPDATE instance_size_aggregations SET total_size_mb = 7 WHERE instance_id = 2 AND period_start = '2025-04-01'",
        SINCE_APRIL,
    ),
    "a figure with which the next window compares": (
        "UPDATE database_size_aggregations SET avg_size_mb = 7 WHERE period_start = '2025-03-01'",
        ALL,
    ),
    "a row that goes": ("DELETE FROM database_size_aggregations WHERE period_start = '2025-04-01'", SINCE_APRIL),
    "a row that comes": (
        "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, period_end, "
        "avg_size_mb, max_size_mb, min_size_mb, data_count) "
        "VALUES (1, 'new', 'monthly', '2025-04-01', '2025-04-30', 5, 5, 5, 30)",
        SINCE_APRIL,
    ),
    "all rows that go": ("TRUNCATE instance_size_aggregations", ALL),
    "an owner": (
        "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
        "VALUES (2, '', 'team', '2025-04-02', 'green')",
        SINCE_APRIL,
    ),
    "an owner of another name": ("UPDATE capacity_labels SET value = 'green' WHERE value = 'blue'", ALL),
    "an owner that goes": ("DELETE FROM capacity_labels WHERE database_pattern <> ''", ALL),
    "a key that was not there": (
        "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
        "VALUES (2, '', 'service', '2025-04-20', 'shop')",
        ALL,
    ),
    "a key that was not there, on two servers at once": (
        "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
        "VALUES (1, '', 'service', '2025-04-20', 'shop'), (2, '', 'service', '2025-04-20', 'shop')",
        ALL,
    ),
    "another key for two labels": ("UPDATE capacity_labels SET key = 'owner'", ALL),
    "every label": ("TRUNCATE capacity_labels", ALL),
    "an engine": ("UPDATE instances SET db_type = 'oracle' WHERE id = 1", ALL),
    "a replica": ("UPDATE instances SET counted_by = 1 WHERE id = 2", ALL),
    "a server that is not registered any more": ("DELETE FROM instances WHERE id = 2", ALL),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_at_once_whoever_made_it(engine: Engine, change: str) -> None:
    statement, windows = CHANGES[change]
    falsify(engine)
    execute(engine, statement)

    stored = {row.window_start for row in groups(engine) if row.size_mb == -1}
    assert stored == ALL - windows
    store_group_sums(engine, SECONDS)
    if not stored:
        assert groups(engine) == added_up(engine)
    assert count(engine, "capacity_group_changes") == 0


@pytest.mark.parametrize(
    "harmless",
    [
        "UPDATE instances SET host = 'elsewhere'",
        "INSERT INTO instances (id, name, db_type, host, port) VALUES (9, 'server-9', 'oracle', '192.0.2.9', 1521)",
    ],
)
def test_what_changes_no_group_leaves_the_sums_stored(engine: Engine, harmless: str) -> None:
    execute(engine, harmless)

    assert count(engine, "capacity_group_changes") == 0


OF_APRIL = "UPDATE instance_size_aggregations SET total_size_mb = 7 WHERE period_start = '2025-04-01'"


def test_a_change_that_is_committed_late_is_not_missed(engine: Engine) -> None:
    with engine.connect() as late:
        late.execute(text(f"{OF_APRIL} AND instance_id = 1"))
        execute(engine, f"{OF_APRIL} AND instance_id = 2")
        assert store_group_sums(engine, SECONDS) == 1
        late.commit()

    found = [row for row in groups(engine) if row.window_start == APRIL and row.grouped_by == "engine"]
    assert [row.size_mb for row in found] == [14]
    assert groups(engine) == added_up(engine)


STATEMENTS = st.one_of(
    *(st.just(statement) for statement, _ in CHANGES.values()),
    st.builds(
        "UPDATE instance_size_aggregations SET total_size_mb = {} WHERE instance_id = {}".format,
        st.integers(0, 5000),
        st.integers(1, 2),
    ),
    st.just("store"),
)


@given(done=st.lists(STATEMENTS, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_changes_and_any_storing_the_groups_are_those_added_up_anew(engine: Engine, done: list[str]) -> None:
    for statement in done:
        if statement == "store":
            store_group_sums(engine, SECONDS)
        else:
            # The same again may be refused, and then changes nothing.
            with suppress(IntegrityError):
                execute(engine, statement)
        assert groups(engine) == added_up(engine)
