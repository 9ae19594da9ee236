"""Gaps: days between the first and the last day of a server for which no sample is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, text

from capacity_assets.aggregates.levels import Level
from capacity_assets.base.units import counted, human_day
from capacity_assets.database.cluster import copied_for_reading
from capacity_assets.database.sql import with_parts
from capacity_assets.history.conventions import Span
from capacity_assets.history.rows import count_of


@dataclass(frozen=True)
class Gaps:
    """How many servers have gaps, how many days these are in total, and how many the longest has."""

    servers: int = 0
    days: int = 0
    longest_days: int = 0


@dataclass(frozen=True)
class ServerGaps:
    """The missing days of a server between two days, and its longest gap."""

    server: str
    first_day: date
    last_day: date
    days: int
    longest: int
    longest_from: date

    def __str__(self) -> str:
        """As one line."""
        missing = f"{counted(self.days, 'day')} missing"
        return (
            f"{self.server}: {missing} between {human_day(self.first_day)} and {human_day(self.last_day)}; longest "
            f"gap: {counted(self.longest, 'day')} from {human_day(self.longest_from)}"
        )


_SERVERS = """
SELECT id, name FROM instances WHERE name = ANY (CAST(:names AS text[])) OR id = ANY (CAST(:numbers AS integer[]))
"""
_IS_VALID = {"database": "true", "instance": "NOT m.is_deleted"}
_ASKED = """
SELECT * FROM unnest(CAST(:servers AS integer[]), CAST(:firsts AS date[]), CAST(:lasts AS date[]))
    AS s (server_id, first_day, last_day)
"""
# A lookup per server and day reads one row of each; DISTINCT would read every database of every day.
_MISSING = """
SELECT s.server_id, CAST(d.day AS date) AS day
FROM asked s CROSS JOIN LATERAL generate_series(s.first_day, s.last_day, interval '1 day') AS d (day)
LEFT JOIN LATERAL (
    SELECT true AS is_measured FROM {table} m
    WHERE m.instance_id = s.server_id AND m.collected_date = CAST(d.day AS date) AND {is_valid} LIMIT 1
) AS m ON true
WHERE m.is_measured IS NULL
"""
_STRETCHES = """
SELECT server_id, min(day) AS first_day, count(*) AS days
FROM (SELECT server_id, day,
             day - CAST(row_number() OVER (PARTITION BY server_id ORDER BY day) AS integer) AS stretch
      FROM missing) AS numbered
GROUP BY server_id, stretch
"""
_GAPS = """
SELECT i.name AS server, s.first_day, s.last_day, g.days, g.longest, g.longest_from
FROM (SELECT server_id, CAST(sum(days) AS bigint) AS days, max(days) AS longest,
             (array_agg(first_day ORDER BY days DESC, first_day))[1] AS longest_from
      FROM stretches GROUP BY server_id) AS g
JOIN asked s USING (server_id) JOIN instances i ON i.id = g.server_id ORDER BY g.days DESC, g.server_id
"""
# Where statements cannot read the raw tables themselves.
_MEASURED = """
SELECT DISTINCT m.instance_id, m.collected_date, false AS is_deleted FROM {table} m
WHERE m.instance_id = ANY (CAST(:servers AS integer[])) AND m.collected_date BETWEEN :first AND :last AND {is_valid}
"""


def gaps_of(connection: Connection, level: Level, spans: Sequence[Span]) -> list[ServerGaps]:
    """Return the days of each span without a stored sample, most days first; raises DBAPIError.

    Servers that are not registered are left out.
    """
    named = {span.server: span for span in spans if span.server}
    # The import has refused rows with other numbers.
    numbered = {number: one for one in spans if not one.server and (number := count_of(one.instance_id)) is not None}
    wanted = {"names": list(named), "numbers": list(numbered)}
    servers = connection.execute(text(_SERVERS), wanted).all() if named or numbered else []
    found = {row.id: span for row in servers if (span := named.get(row.name) or numbered.get(row.id))}
    if not found:
        return []
    of_level = {"table": level.source.name, "is_valid": _IS_VALID[level.name]}
    statement = with_parts(_GAPS, asked=_ASKED, missing=_MISSING.format(**of_level), stretches=_STRETCHES)
    firsts, lasts = ([getattr(span, end) for span in found.values()] for end in ("first_day", "last_day"))
    every_day = {"servers": list(found), "first": min(firsts), "last": max(lasts)}
    with copied_for_reading(connection, {level.source.name: _MEASURED.format(**of_level)}, every_day):
        rows = connection.execute(statement, {"servers": list(found), "firsts": firsts, "lasts": lasts})
        return [ServerGaps(**row) for row in rows.mappings()]
