"""The one clock: what day it is in the configured time zone.

Whatever needs today's date takes a `Clock`; tests pass a fixed one. `foundation.clock_guard` decides whether the date
is reliable enough to delete something or make it final. Durations do not belong here: they come from
`time.perf_counter`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, text


def _now_of(connection: Connection) -> datetime:
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


@dataclass(frozen=True)
class Clock:
    """Tells the calendar day in `zone`; `now`, and `database_now` for PostgreSQL's clock, return aware datetimes."""

    zone: ZoneInfo
    now: Callable[[], datetime] = lambda: datetime.now(tz=UTC)
    database_now: Callable[[Connection], datetime] = _now_of

    def today(self) -> date:
        """Return the present day in the clock's zone, which may differ from the UTC day."""
        return self.local_now().date()

    def local_now(self) -> datetime:
        """Return the present moment in the clock's zone."""
        return self.now().astimezone(self.zone)

    def local_database_now(self, connection: Connection) -> datetime:
        """Return the current time of PostgreSQL's clock, in the zone of this clock; raises DBAPIError."""
        return self.database_now(connection).astimezone(self.zone)
