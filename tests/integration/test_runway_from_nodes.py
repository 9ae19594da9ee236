"""Series that nodes put together first, and what was measured last beside them, as on a cluster, on a single server."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, event, text

from capacity_assets.database import cluster
from capacity_assets.forecast import history
from capacity_assets.forecast.runway import compute_runways
from tests.clocks import TODAY
from tests.databases import execute
from tests.fleet import add_database_sizes, sizes
from tests.runways import add_ceiling, add_volume, declared

pytestmark = [
    pytest.mark.usefixtures("growing_servers"),
    pytest.mark.single_server("copies tables as if they were distributed"),
]
TOMORROW = TODAY + timedelta(days=1)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "tables_are_distributed", lambda _connection: True)


def test_runways_are_those_of_one_statement(engine: Engine, request: pytest.FixtureRequest) -> None:
    declared("server-1", "--gb", "4")
    for day in (TODAY - timedelta(days=1), TODAY):
        add_volume(engine, 1, "/data", day, 8000, 400)
    add_ceiling(engine, "orders", ["/data"], limit_mb=9000)
    at_once = [compute_runways(engine, TODAY), compute_runways(engine, TODAY, "server-1")]

    request.getfixturevalue("copied")
    apart = [compute_runways(engine, TODAY), compute_runways(engine, TODAY, "server-1")]

    assert apart == at_once
    assert {row.volume for row in at_once[0].rows} == {None, "/data"}


@pytest.mark.usefixtures("copied")
def test_a_sample_that_comes_between_the_series_and_what_was_measured_last_waits_for_the_next_look(
    engine: Engine,
) -> None:
    def measure(_connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("CREATE TEMPORARY TABLE present "):
            add_database_sizes(engine, sizes(1, "orders", TOMORROW.isoformat(), [88_888]))

    def newest() -> tuple[object, float]:
        scope = history.HistoryScope(TOMORROW, servers=("server-1",), every=True)
        with engine.connect() as connection, history.open_history_reader(connection, scope) as reader:
            [batch] = reader.series("database")
        place = [row.name for row in batch.subjects].index("orders")
        measured = batch.sizes[place][np.isfinite(batch.sizes[place])]
        return batch.subjects[place].last_day, float(measured[-1])

    event.listen(engine, "before_cursor_execute", measure)
    meanwhile = newest()
    event.remove(engine, "before_cursor_execute", measure)

    assert meanwhile == (TODAY, 3014)
    assert newest() == (TOMORROW, 88_888)


def test_a_server_whose_aggregates_are_newer_than_its_samples_stops_no_other(engine: Engine) -> None:
    execute(
        engine,
        "INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, period_end, "
        f"avg_size_mb, max_size_mb, min_size_mb, data_count) VALUES (1, 'orders', 'daily', '{TODAY}', '{TODAY}', "
        "3014, 3014, 3014, 1)",
    )
    with engine.begin() as connection:
        gone = "DELETE FROM database_size_stats WHERE instance_id = 1 AND collected_date = :day"
        connection.execute(text(gone), {"day": TODAY})
    declared("server-1", "orders", "--gb", "100")

    [orders] = compute_runways(engine, TODAY, "server-1", "orders").rows

    assert (orders.database, orders.size_mb, orders.last_day) == ("orders", 3014, TODAY)
