"""Days between the first and the last day of a server for which no sample is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, text

from capacity_assets.aggregates.levels import Level
from capacity_assets.base.units import counted, human_day
from capacity_assets.database.sql import with_parts
from capacity_assets.history.conventions import Span


@dataclass(frozen=True)
class Holes:
    """How many servers lack days, how many days in all, and how many in the longest stretch."""

    servers: int = 0
    days: int = 0
    longest_days: int = 0


@dataclass(frozen=True)
class Hole:
    """The days that a server lacks between two days, and the longest stretch of them."""

    server: str
    first_day: date
    last_day: date
    days: int
    longest: int
    longest_from: date

    def __str__(self) -> str:
        """As one line."""
        longest = "" if self.longest == self.days else f", at most {self.longest:,} in a row"
        return (
            f"{self.server}: {counted(self.days, 'day')} without a sample from {human_day(self.first_day)} to "
            f"{human_day(self.last_day)}{longest}, from {human_day(self.longest_from)}"
        )


_SERVERS = """
SELECT id, name FROM instances WHERE name = ANY (CAST(:names AS text[])) OR id = ANY (CAST(:numbers AS integer[]))
"""
_SAMPLES = {
    "database": """
        SELECT DISTINCT instance_id, collected_date FROM database_size_stats
        WHERE instance_id = ANY (CAST(:servers AS integer[])) AND collected_date BETWEEN :first AND :last""",
    "instance": """
        SELECT DISTINCT instance_id, collected_date FROM instance_size_stats
        WHERE instance_id = ANY (CAST(:servers AS integer[])) AND collected_date BETWEEN :first AND :last
          AND NOT is_deleted""",
}
_MISSING = """
SELECT s.server_id, CAST(d.day AS date) AS day
FROM unnest(CAST(:servers AS integer[]), CAST(:firsts AS date[]), CAST(:lasts AS date[]))
    AS s (server_id, first_day, last_day)
CROSS JOIN generate_series(CAST(:first AS date), CAST(:last AS date), interval '1 day') AS d (day)
LEFT JOIN measured m ON m.instance_id = s.server_id AND m.collected_date = CAST(d.day AS date)
WHERE d.day BETWEEN s.first_day AND s.last_day AND m.instance_id IS NULL
"""
_STRETCHES = """
SELECT server_id, min(day) AS first_day, count(*) AS days
FROM (SELECT server_id, day,
             day - CAST(row_number() OVER (PARTITION BY server_id ORDER BY day) AS integer) AS stretch
      FROM missing) AS numbered
GROUP BY server_id, stretch
"""
_HOLES = """
SELECT server_id, CAST(sum(days) AS bigint) AS days, max(days) AS longest,
       (array_agg(first_day ORDER BY days DESC, first_day))[1] AS longest_from
FROM stretches GROUP BY server_id ORDER BY 2 DESC, server_id
"""


def holes_of(connection: Connection, level: Level, spans: Sequence[Span]) -> list[Hole]:
    """Return the days of each span without a stored sample, most days first; servers that are not registered have none.

    Raises:
        sqlalchemy.exc.DBAPIError: the database failed.
    """
    if not spans:
        return []
    names = [span.server for span in spans if span.server]
    numbers = [int(span.instance_id) for span in spans if not span.server and span.instance_id.isdecimal()]
    servers = connection.execute(text(_SERVERS), {"names": names, "numbers": numbers}).all()
    by_key = {key: row for row in servers for key in (row.name, f"{row.id}")}
    found = {by_key[key].id: span for span in spans if (key := span.server or span.instance_id) in by_key}
    statement = with_parts(
        _HOLES, materialized=["measured"], measured=_SAMPLES[level.name], missing=_MISSING, stretches=_STRETCHES
    )
    days = {
        "servers": list(found),
        "firsts": [span.first_day for span in found.values()],
        "lasts": [span.last_day for span in found.values()],
        "first": min(span.first_day for span in spans),
        "last": max(span.last_day for span in spans),
    }
    named = {row.id: row.name for row in servers}
    return [
        Hole(named[row.server_id], found[row.server_id].first_day, found[row.server_id].last_day, *row[1:])
        for row in connection.execute(statement, days)
    ]
