"""The time zone whose days a database holds: recorded when it is prepared, compared by everything that writes.

Samples carry a day, not a moment: written in two zones, the days of one history would not be the same days.
"""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine, text

ZONE = "timezone"
TODAY = """CAST(now() AT TIME ZONE coalesce(
    (SELECT value FROM capacity_settings WHERE name = 'timezone'), current_setting('TimeZone')) AS date)"""
"""Today in that zone, in SQL: samples of later days are never the newest."""
# Two in each month tell any two zones apart whose days differ by more than the week of a change of the clocks.
_MOMENTS = [datetime(year, month, day) for year in range(1990, 2038) for month in range(1, 13) for day in (1, 16)]  # noqa: DTZ001 -- a wall clock
# What unset meant before the zone was recorded, and what the legacy application is shipped with.
FORMER_DEFAULT = "Asia/Shanghai"


def record_zone(engine: Engine, zone: str, *, chosen: bool) -> str:
    """Record the zone unless one is, or nothing is stored yet; return the one that holds.

    A database that holds figures already, and for which no zone was chosen, keeps the former default.
    """
    with engine.begin() as connection:
        found = _recorded(connection)
        filled = connection.execute(text(_FILLED)).scalar_one()
        if found is not None and filled:
            return found
        zone = zone if chosen or not filled else FORMER_DEFAULT
        if zone != found:
            connection.execute(text(_RECORD), {"name": ZONE, "value": zone})
    return zone


def recorded_zone(engine: Engine) -> str | None:
    """Return the zone of the days in a database, or None where it is not recorded."""
    with engine.connect() as connection:
        return _recorded(connection)


def are_same_days(one: str, other: str) -> bool:
    """Whether two names of zones stand for the same days: the same zone, or another name of it."""
    return one == other or all(
        ZoneInfo(one).utcoffset(moment) == ZoneInfo(other).utcoffset(moment) for moment in _MOMENTS
    )


def another_zone(engine: Engine, configured: str) -> str | None:
    """Say that a database is of another zone than configured, and what to do; None where it is of this one."""
    recorded = recorded_zone(engine)
    if recorded is None or are_same_days(recorded, configured):
        return None
    return (
        f"This database holds days of the time zone {recorded}, but {configured} is configured (CAPACITY_TIMEZONE, or "
        f"this machine's zone). Set CAPACITY_TIMEZONE={recorded}; for days of another zone, use another database."
    )


def _recorded(connection: Connection) -> str | None:
    value = connection.execute(text("SELECT value FROM capacity_settings WHERE name = :name"), {"name": ZONE}).scalar()
    return None if value is None else str(value)


_FILLED = """
SELECT EXISTS (SELECT 1 FROM database_size_stats) OR EXISTS (SELECT 1 FROM instance_size_stats)
    OR EXISTS (SELECT 1 FROM database_size_aggregations) OR EXISTS (SELECT 1 FROM instance_size_aggregations)
"""
_RECORD = """
INSERT INTO capacity_settings (name, value) VALUES (:name, :value)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, set_at = now()
"""
