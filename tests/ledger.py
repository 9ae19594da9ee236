"""What tests of the ledger share: computing everything, following changes, reading what was recorded."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from itertools import groupby

from sqlalchemy import Engine

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.changes import gather_records
from tests.clocks import fixed_clock
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, text, totals

FIRST, LAST = date(2025, 1, 1), date(2025, 7, 20)


def compute_everything(
    service: AggregationService, *, recompute: bool = False, levels: Iterable[str] = LEVELS, first: date = FIRST
) -> int:
    options = RunOptions(tuple(levels), recompute=recompute)
    runs = [service.aggregate(period, period.windows_between(first, LAST), options) for period in PERIODS.values()]
    return sum(run.total("written_records") for run in runs)


def half_a_year_of_two_servers(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "orders", "2025-01-01", range(100, 301)))
        add_instance_sizes(engine, totals(instance_id, "2025-01-01", [(size, 1) for size in range(100, 301)]))
    compute_everything(AggregationService(engine, fixed_clock()))


def redo(service: AggregationService) -> None:
    """What the sensor has runs do."""
    for (period, level), windows in groupby(service.ledger.stale(), key=lambda stale: (stale.period_type, stale.level)):
        service.aggregate(period, [stale.window for stale in windows], RunOptions((level,)))


def stale(service: AggregationService) -> set[tuple[str, str, str]]:
    return {(found.level, found.period_type, found.window.key) for found in service.ledger.stale()}


def recorded(engine: Engine, kind: str = "samples") -> list[tuple[str, date]]:
    """Tables and days of a kind of change that nobody has read, in order: nodes record in any."""
    gather_records(engine)
    days = (
        "SELECT table_name, CAST(day AS date) FROM capacity_changes "
        "CROSS JOIN LATERAL generate_series(lower(days), upper(days) - 1, '1 day') AS day "
        "WHERE kind = :kind ORDER BY table_name, day"
    )
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(days), {"kind": kind})]
