"""The time zone whose days a database holds: recorded when it is prepared, compared by everything that writes.

Samples carry a day, not a moment: written in two zones, the days of one history would not be the same days.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

ZONE = "timezone"
# What unset meant before the zone was recorded, and what the legacy application is shipped with.
FORMER_DEFAULT = "Asia/Shanghai"


def record_zone(engine: Engine, zone: str, *, chosen: bool) -> str:
    """Record the zone unless one is, or nothing is stored yet; return the one that holds.

    A database that holds figures already, and for which nobody has chosen, keeps what unset meant then.
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


def another_zone(recorded: str, configured: str) -> str:
    """Say that a database is of another zone than configured, and what to do."""
    return (
        f"The days of this database are days of {recorded}, and CAPACITY_TIMEZONE is {configured} (unset, it is this "
        f"machine's own). Set CAPACITY_TIMEZONE={recorded}; for days of another zone, use another database."
    )


def _recorded(connection: Connection) -> str | None:
    value = connection.execute(text("SELECT value FROM capacity_settings WHERE name = :name"), {"name": ZONE}).scalar()
    return None if value is None else str(value)


_FILLED = """
SELECT EXISTS (SELECT FROM database_size_stats) OR EXISTS (SELECT FROM instance_size_stats)
    OR EXISTS (SELECT FROM database_size_aggregations) OR EXISTS (SELECT FROM instance_size_aggregations)
"""
_RECORD = """
INSERT INTO capacity_settings (name, value) VALUES (:name, :value)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, set_at = now()
"""
