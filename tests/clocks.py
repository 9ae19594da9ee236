"""The day that is today in tests, and a clock stopped at its noon."""

from __future__ import annotations

from datetime import UTC, date, datetime
from datetime import time as time_of_day
from zoneinfo import ZoneInfo

from capacity_assets.base.periods import Clock

SHANGHAI = ZoneInfo("Asia/Shanghai")
TODAY = date(2025, 7, 20)


def fixed_clock(day: date = TODAY, zone: ZoneInfo = SHANGHAI) -> Clock:
    """A clock stopped at noon of `day` in its zone; PostgreSQL's clock shows the same."""
    noon = datetime.combine(day, time_of_day(12), tzinfo=zone)
    return Clock(zone, now=lambda: noon.astimezone(UTC), database_now=lambda _connection: noon)
