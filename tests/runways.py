"""A fleet that grows toward its limits, and how a test declares and reads them."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from sqlalchemy import Engine, text

from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.limits import Limit, declare_limits
from capacity_assets.forecast.results import Runway
from capacity_assets.forecast.runway import compute_runways
from tests.clocks import TODAY
from tests.command import printed
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

FIRST = TODAY - timedelta(days=199)
ORDERS_DAYS = ORDERS_EARLY, ORDERS_FULL, ORDERS_LATE = [TODAY + timedelta(days=days) for days in (25, 57, 215)]
"""When `orders` is full with a limit of 3,584 MiB, which its line meets after 57 days."""
GROWING = [1024 + 10 * day for day in range(200)]


def declared(*arguments: str) -> None:
    """Declare a limit by the command."""
    printed("limits", "set", *arguments)


def found(engine: Engine, **options: Any) -> dict[tuple[str, str | None], Runway]:
    """Runways of servers and databases, by server and database."""
    return {
        (row.server, row.database): row for row in compute_runways(engine, TODAY, **options).rows if row.volume is None
    }


def add_volume(engine: Engine, server: int, name: str, day: date, total_mb: int, free_mb: int) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source) "
                "VALUES (:day, :server, :name, :total, :free, 'measured')"
            ),
            {"day": day, "server": server, "name": name, "total": total_mb, "free": free_mb},
        )


def add_ceiling(
    engine: Engine, database: str, volumes: list[str] | None, limit_mb: int | None = None, day: date = TODAY
) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO database_limit_stats "
                "(collected_date, instance_id, database_name, limit_mb, is_unlimited, volumes, source) "
                "VALUES (:day, 1, :database, CAST(:mb AS bigint), :mb IS NULL, CAST(:volumes AS varchar[]), 'measured')"
            ),
            {"day": day, "database": database, "mb": limit_mb, "volumes": volumes},
        )


def fill_with_limits(engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), GROWING))
    add_database_sizes(engine, sizes(1, "still", FIRST.isoformat(), [500] * 200))
    add_database_sizes(engine, sizes(1, "young", (TODAY - timedelta(days=9)).isoformat(), [100] * 10))
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(size + 500, 2) for size in GROWING]))
    declare_limits(engine, [Limit("server-1", "orders", 3214), Limit("server-1", "young", 1000)])


def fill_with_forecasts(engine: Engine) -> None:
    fill_with_limits(engine)
    issue_runways(engine, TODAY, TODAY)


def fill_with_growing_servers(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), GROWING))
    add_database_sizes(engine, sizes(1, "still", FIRST.isoformat(), [500] * 200))
    add_database_sizes(engine, sizes(2, "young", (TODAY - timedelta(days=9)).isoformat(), [100] * 10))
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(size + 500, 2) for size in GROWING]))
    add_instance_sizes(engine, totals(2, (TODAY - timedelta(days=9)).isoformat(), [(100, 1)] * 10))


def stored_runways(engine: Engine, as_of: date = TODAY) -> dict[str, dict[str, object]]:
    """The stored runways of a day, by name."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM capacity_runways WHERE as_of = :day"), {"day": as_of})
        return {str(row["name"]): dict(row) for row in rows.mappings()}


def add_day(engine: Engine, day: date, orders_mb: int) -> None:
    add_database_sizes(engine, sizes(1, "orders", day.isoformat(), [orders_mb]))
    add_database_sizes(engine, sizes(1, "still", day.isoformat(), [500]))
    add_instance_sizes(engine, totals(1, day.isoformat(), [(orders_mb + 500, 2)]))
