"""Two months of two servers, whose samples are taken away."""

from __future__ import annotations

from datetime import date

from sqlalchemy import Engine, delete

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.aggregates.runs import RunSummary
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.tables import database_size_stats
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, stored, totals

MARCH = [PERIODS["monthly"].window_of(date(2025, 3, 1))]
FEBRUARY_AND_MARCH = [PERIODS["monthly"].window_of(date(2025, 2, 1)), *MARCH]


def two_months(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", "2025-02-01", range(100, 159)))
    add_database_sizes(engine, sizes(1, "crm", "2025-02-01", [50] * 59))
    add_database_sizes(engine, sizes(2, "audit", "2025-02-20", [7] * 30))
    add_instance_sizes(engine, totals(1, "2025-02-01", [(200 + day, 2) for day in range(59)]))


def remove_samples(engine: Engine, database: str, first_day: date, last_day: date) -> None:
    raw = database_size_stats.c
    with engine.begin() as connection:
        connection.execute(
            delete(database_size_stats).where(
                raw.database_name == database, raw.collected_date.between(first_day, last_day)
            )
        )


def by_name(engine: Engine, start: date) -> dict[object, dict[str, object]]:
    return {row["database_name"]: row for row in stored(engine, DATABASE) if row["period_start"] == start}


def protected(run: RunSummary) -> tuple[int, int, int]:
    return tuple(run.total(f"{kind}_records") for kind in ("written", "unchanged", "protected"))  # type: ignore[return-value]
