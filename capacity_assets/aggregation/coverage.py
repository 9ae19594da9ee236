"""On how many days of a window there are samples, so that an open window is not taken for a finished one.

Whether each single server was measured on each day is the business of `quality`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from sqlalchemy import Engine, Table, text

from capacity_assets.aggregation.results import Coverage
from capacity_assets.errors import database_errors
from capacity_assets.foundation.levels import Level
from capacity_assets.periods import Window
from capacity_assets.storage.distribution import is_distributed


def coverage_of(
    engine: Engine, levels: Sequence[Level], windows: Sequence[Window], today: date
) -> dict[str, dict[date, Coverage]]:
    """Count the days with a sample of any server, by level and first day of each window; raises DatabaseError."""
    parameters = {
        "starts": [window.start for window in windows],
        "ends": [window.end for window in windows],
        "today": today,
    }
    tables = dict.fromkeys(table for level in levels for table in level.raw_tables)
    with (
        database_errors(doing="counting measured days", kept="What was computed is kept."),
        engine.connect() as connection,
    ):
        sampled = _SAMPLED_ON_NODES if is_distributed(engine) else _SAMPLED
        columns = ", ".join(f"{sampled.format(sampled=_sampled(table))} AS {table.name}" for table in tables)
        counts = ", ".join(f"count(*) FILTER (WHERE {_any(level)}) AS {level.name}" for level in levels)
        rows = connection.execute(text(_DAYS.format(columns=columns, counts=counts)), parameters).all()
    return {
        level.name: {
            window.start: Coverage(getattr(row, level.name), window.elapsed_days(today), window.days)
            for window, row in zip(sorted(windows), rows, strict=True)
        }
        for level in levels
    }


def _sampled(raw: Table) -> str:
    """Return what counts in a raw table, up to a further condition."""
    return f"{raw.name} r WHERE {'NOT r.is_deleted' if 'is_deleted' in raw.c else 'true'}"


def _any(level: Level) -> str:
    return " OR ".join(table.name for table in level.raw_tables)


_DAYS = """
SELECT {counts} FROM (
    SELECT w.period_start, {columns}
    FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)
    LEFT JOIN LATERAL generate_series(w.period_start, least(w.period_end, CAST(:today AS date)), interval '1 day')
        AS d (day) ON true
) AS days GROUP BY period_start ORDER BY period_start
"""
# LIMIT 1 keeps the probe a probe: EXISTS becomes a join with every sample of these days.
_SAMPLED = "(SELECT true FROM {sampled} AND r.collected_date = CAST(d.day AS date) LIMIT 1)"
# Where rows are distributed, a subquery must not depend on the row of the outer query.
_SAMPLED_ON_NODES = """CAST(d.day AS date) IN (
    SELECT DISTINCT r.collected_date FROM {sampled}
    AND r.collected_date BETWEEN (SELECT min(s) FROM unnest(CAST(:starts AS date[])) s)
    AND least((SELECT max(e) FROM unnest(CAST(:ends AS date[])) e), CAST(:today AS date)))"""
