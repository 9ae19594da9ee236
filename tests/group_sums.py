"""Two servers with groups whose sums are stored, and how a test reads and falsifies them."""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.grouping.labels import Label, declare_labels
from capacity_assets.storage.distribution import tables_are_distributed
from capacity_assets.storage.group_tracking import forget_group_sums
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

MARCH, APRIL, DAYS = date(2025, 3, 1), date(2025, 4, 1), 61
Groups = list[Row[Any]]
SECONDS = 60


_ORDER = "ORDER BY period, window_start, grouped_by, group_name NULLS LAST"
# As readers are told: what is stored but for windows that are out of date, and what is added up of these and by server.
_STORED_OR_ADDED_UP = f"""
WITH outdated AS MATERIALIZED (SELECT period, window_start FROM capacity_outdated_groups)
SELECT * FROM capacity_stored_groups WHERE (period, window_start) NOT IN (SELECT period, window_start FROM outdated)
UNION ALL
SELECT * FROM capacity_groups
WHERE grouped_by = 'server' OR (period, window_start) IN (SELECT period, window_start FROM outdated)
{_ORDER}
"""


def read(connection: Connection) -> Groups:
    found = [*connection.execute(text(_STORED_OR_ADDED_UP))]
    if not tables_are_distributed(connection):
        assert [*connection.execute(text(f"SELECT * FROM capacity_groups {_ORDER}"))] == found
    return found


def groups(engine: Engine) -> Groups:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        return read(connection)


def added_up(engine: Engine) -> Groups:
    """The groups as they are without anything that is stored."""
    with engine.connect() as connection:
        forget_group_sums(connection)
        found = read(connection)
        connection.rollback()
    return found


def falsify(engine: Engine) -> None:
    """Make what is stored recognisable."""
    execute(engine, "UPDATE capacity_group_sums SET size_mb = -1")


def fill_with_groups(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    for server, size in ((1, 100), (2, 50)):
        add_database_sizes(engine, sizes(server, "pay", MARCH.isoformat(), [size + day for day in range(DAYS)]))
        add_database_sizes(engine, sizes(server, "other", MARCH.isoformat(), [1000] * DAYS))
        add_instance_sizes(engine, totals(server, MARCH.isoformat(), [(1000 + size + day, 2) for day in range(DAYS)]))
    declare_labels(engine, [Label("server-1", None, "team", "red"), Label("server-1", "pay", "team", "blue")], TODAY)
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", MARCH, APRIL)
