"""A fleet with something to see on every page."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.database.tables import ALWAYS
from capacity_assets.forecast.decisions import Decision, decide
from capacity_assets.forecast.issuing import issue_runways
from capacity_assets.forecast.limits import Limit, SizeStep, declare_limits, declare_steps
from capacity_assets.forecast.scenarios import Growth, Scenario
from capacity_assets.ownership.bills import issue_bill
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.ownership.prices import Price, declare_prices
from capacity_assets.ownership.scenario_results import result_of, store_scenario
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import KEYS

HOSTILE = '<script>alert(1)</script> & "orders" \''
DAYS = 120
FIRST = TODAY - timedelta(days=DAYS - 1)
GROWING = [10_000 + 50 * day for day in range(DAYS)]
ADDRESSES = (
    "/",
    "/changes?period=monthly",
    "/servers",
    "/databases",
    "/groups",
    "/filling",
    "/bill",
    "/accuracy",
    "/budget",
    "/decisions",
    "/scenario",
    "/tables?period=monthly",
    "/server?server=1",
    "/database?server=1&name=orders",
    "/table?server=1&database=orders&schema=public&name=audit",
    "/volume?server=1&name=%2Fdata",
    "/group?by=team&name=payments",
    "/search?q=ord",
)


def filled(engine: Engine) -> None:
    """server-1 with orders, still and a hostile name, and the volume /data; server-2, failed today; a replica."""
    add_instances(engine, [1, 2])
    add_instances(engine, [3], counted_by=1)
    add_database_sizes(engine, sizes(1, "orders", FIRST.isoformat(), GROWING))
    add_database_sizes(engine, sizes(1, "still", FIRST.isoformat(), [500] * DAYS))
    add_database_sizes(engine, sizes(1, HOSTILE, FIRST.isoformat(), [100] * DAYS))
    gone = [None if day in {60, DAYS - 1} else 2000 for day in range(DAYS)]
    add_database_sizes(engine, sizes(2, "crm", FIRST.isoformat(), gone))
    add_database_sizes(engine, sizes(3, "orders", FIRST.isoformat(), GROWING))
    whole = [(size + 600, 3) for size in GROWING]
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), whole))
    add_instance_sizes(engine, totals(2, FIRST.isoformat(), [None if size is None else (size, 1) for size in gone]))
    add_instance_sizes(engine, totals(3, FIRST.isoformat(), [(size, 1) for size in GROWING]))
    with engine.begin() as connection:
        connection.execute(text(VOLUMES), {"first": FIRST, "today": TODAY})
        connection.execute(text(FAILED), {"today": TODAY})
        connection.execute(text(OBJECTS), {"days": [date(2025, 5, 26), date(2025, 6, 23)]})
    declare_labels(engine, [Label("server-1", None, "team", "payments")], TODAY)
    declare_labels(engine, [Label("server-1", "still", "team", "archive", ALWAYS)], TODAY)
    declare_limits(engine, [Limit("server-1", "orders", GROWING[-1] + 500)])
    declare_steps(engine, [SizeStep("server-1", "orders", TODAY - timedelta(days=50), "imported <b>history</b>")])
    service = AggregationService(engine, fixed_clock())
    for period in ("daily", "monthly"):
        compute_windows(service, period, FIRST, TODAY)
    decide(engine, [Decision("server-2", "crm", None, "excluded", TODAY + timedelta(days=90), "scratch space")])
    for ago in (20, 0):
        issue_runways(engine, TODAY - timedelta(days=ago), TODAY)
    declare_prices(engine, [Price(Decimal("0.5"), "EUR", valid_from=ALWAYS)], TODAY)
    issue_bill(engine, PERIODS["monthly"].window_of(date(2025, 6, 1)), fixed_clock(), KEYS)
    twice = Scenario(growth=[Growth(factor=Decimal(2), database="orders")])
    store_scenario(engine, "twice the growth", result_of(engine, TODAY, twice, "team", KEYS))


VOLUMES = """
INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source)
SELECT CAST(d AS date), 1, '/data', 40000, 20000 - (CAST(d AS date) - CAST(:first AS date)) * 50, 'measured'
FROM generate_series(CAST(:first AS date), CAST(:today AS date), interval '1 day') AS d
"""
OBJECTS = """
INSERT INTO object_size_stats (collected_date, instance_id, database_name, kind, schema_name, table_name, object_name,
                               size_bytes, free_bytes, is_exact)
SELECT day, 1, 'orders', o.kind, 'public', o.of_table, o.name, o.size_bytes * month,
       o.size_bytes * month - o.size_bytes / 2, true
FROM unnest(CAST(:days AS date[])) WITH ORDINALITY AS d (day, month)
CROSS JOIN (VALUES ('table', '', 'audit', 2000000000), ('index', 'audit', 'audit_when', 500000000),
                   ('unexplained', '', '', 1000000)) AS o (kind, of_table, name, size_bytes)
"""
FAILED = """
INSERT INTO capacity_collection_attempts (collected_date, instance_id, status, failure, reason)
VALUES (:today, 2, 'failed', 'unreachable', 'no answer from 192.0.2.1:5432')
"""
