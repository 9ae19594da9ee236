"""A week of a fleet with unusual events, and the receivers of its digest."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from tests.clocks import TODAY, fixed_clock
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

WEEKLY = PERIODS["weekly"]
WEEK = WEEKLY.last(TODAY)
MONDAYS = [WEEK.start - timedelta(weeks=number) for number in range(14, -1, -1)]
FIRST = MONDAYS[0]
DAYS = 7 * 15
HOSTILE = "<b>x</b>\r\nBcc: all@example.com"


def weekly(values: list[int]) -> list[int]:
    return [value for value in values for _ in range(7)]


STEADY = [10_000 + 300 * number for number in range(15)]
JUMPED = [*STEADY[:-1], STEADY[-1] + 9_000]


def filled(engine: Engine) -> None:
    """Fill server-1: `steady` grows as usual, `jumped` ten times as much, `new` came, `gone` went. server-2 stopped."""
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "steady", FIRST.isoformat(), weekly(STEADY)))
    add_database_sizes(engine, sizes(1, "jumped", FIRST.isoformat(), weekly(JUMPED)))
    add_database_sizes(engine, sizes(1, "gone", FIRST.isoformat(), weekly([70] * 14)))
    add_database_sizes(engine, sizes(1, HOSTILE, WEEK.start.isoformat(), [50] * 7))
    pairs = zip(weekly(STEADY), weekly(JUMPED), strict=True)
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(one + other + 70, 3) for one, other in pairs]))
    add_database_sizes(engine, sizes(2, "crm", FIRST.isoformat(), [500] * (DAYS - 5)))
    add_instance_sizes(engine, totals(2, FIRST.isoformat(), [(500, 1)] * (DAYS - 5)))
    compute_windows(AggregationService(engine, fixed_clock()), "weekly", FIRST, WEEK.end)
    with engine.begin() as connection:
        for as_of, middle in ((WEEK.start - timedelta(days=1), 150), (WEEK.end, 40)):
            values = {"as_of": as_of, "middle": WEEK.end + timedelta(days=middle)}
            connection.execute(text(RUNWAY), values)


RUNWAY = """
INSERT INTO capacity_runways (as_of, instance_id, subject, name, state, last_day, size_mb, limit_mb, binds,
                              change_mb_per_day, history_days, middle_day, in_time, probability_7, probability_30,
                              probability_90, probability_365)
VALUES (:as_of, 1, 'database', 'jumped', 'forecast', :as_of, 1, 2, 'own limit', 1, 100, :middle, true, 0, 0, 0, 1)
"""
TEAM = '[[receivers]]\nname = "dba"\nto = ["dba@example.com", "boss@example.com"]\n'
