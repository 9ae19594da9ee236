"""Fleets for the views: a small one of known figures, and one of which every view has a row."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from sqlalchemy import Engine, text

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.grouping.labels import Label, declare_labels
from capacity_assets.runway.issuing import issue
from capacity_assets.runway.limits import Limit, declare
from capacity_assets.runway.steps import SizeStep, declare_steps
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, load_sample, sizes, totals


def rows(engine: Engine, query: str) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(text(query))]


def small_fleet(engine: Engine) -> None:
    """Two engines; orders grows, log is new in February, and server 2 lacks three days of February."""
    add_instances(engine, [1])
    add_instances(engine, [2], db_type="mysql")
    add_database_sizes(engine, sizes(1, "orders", "2025-01-01", [100] * 31 + [150] * 28))
    add_database_sizes(engine, sizes(1, "log", "2025-02-01", [40] * 28))
    add_database_sizes(engine, sizes(2, "orders", "2025-01-01", [900] * 31 + [None] * 3 + [800] * 25))
    add_instance_sizes(engine, totals(1, "2025-01-01", [(100, 1)] * 31 + [(190, 2)] * 28))
    add_instance_sizes(engine, totals(2, "2025-01-01", [(900, 1)] * 31 + [None] * 3 + [(800, 1)] * 25))
    service = AggregationService(engine, fixed_clock())
    for name in ("monthly", "quarterly"):
        compute_windows(service, name, date(2025, 1, 1), date(2025, 6, 30))


ATTEMPT = """
INSERT INTO capacity_collection_attempts (collected_date, instance_id, status)
SELECT CAST(:day AS date), id, 'collected' FROM instances WHERE name = :name
"""
VOLUME = """
INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source)
SELECT CAST(:day AS date), id, '/data', 1000, 10, 'measured' FROM instances WHERE name = :name
"""


def filling_fleet(engine: Engine) -> None:
    """The sample, with a limit that is reached within a year, and runways that came due."""
    load_sample(engine)
    days = rows(engine, "SELECT min(collected_date) AS first, max(collected_date) AS last FROM database_size_stats")[0]
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", days["first"], days["last"])
    [server] = rows(
        engine,
        "SELECT i.name, s.total_size_mb AS mb FROM instance_size_stats s JOIN instances i ON i.id = s.instance_id "
        f"WHERE s.collected_date = '{days['last']}' AND i.is_active AND NOT s.is_deleted ORDER BY mb DESC LIMIT 1",
    )
    declare(engine, [Limit(server["name"], None, server["mb"] + 1)])
    declare_labels(engine, [Label(server["name"], None, "team", "payments")], days["last"])
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", days["first"], days["last"], scope="group")
    declare_steps(engine, [SizeStep(server["name"], None, days["last"], "purged")])
    with engine.begin() as connection:
        asked = {"name": server["name"], "day": days["last"]}
        connection.execute(text(ATTEMPT), asked)
        connection.execute(text(VOLUME), asked)
    for day in (days["last"] - timedelta(days=7), days["last"]):
        issue(engine, day, day)
    with engine.begin() as connection:
        connection.execute(text("UPDATE capacity_runways SET in_time = true"))
