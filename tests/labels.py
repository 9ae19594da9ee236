"""A fleet of two months with databases to label, and how a test labels them."""

from __future__ import annotations

from datetime import date

from sqlalchemy import Engine

from capacity_assets.aggregates.service import AggregationService
from tests.clocks import fixed_clock
from tests.command import printed
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

MONTH, BEFORE = date(2025, 4, 1), date(2025, 3, 1)
DAYS = 61
FIRST = BEFORE.isoformat()


def labelled(*arguments: str) -> str:
    return printed("labels", *arguments)


def fill_to_label(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    add_instances(engine, [3], counted_by=2)
    growing = [100 + day for day in range(DAYS)]
    add_database_sizes(engine, sizes(1, "pay_a", FIRST, growing))
    add_database_sizes(engine, sizes(1, "pay_b", MONTH.isoformat(), [300] * 15))
    add_database_sizes(engine, sizes(1, "other", FIRST, [1000] * DAYS))
    add_instance_sizes(
        engine,
        totals(1, FIRST, [(size + 1000 + (300 if 31 <= n < 46 else 0), 3) for n, size in enumerate(growing)]),
    )
    for server in (2, 3):
        add_database_sizes(engine, sizes(server, "pay_a", FIRST, [50] * DAYS))
        add_instance_sizes(engine, totals(server, FIRST, [(50, 1)] * DAYS))
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", BEFORE, MONTH)
