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


def coverage_of(engine: Engine, level: Level, windows: Sequence[Window], today: date) -> dict[date, Coverage]:
    """Count the days with a sample of any server in each window, by first day; raises DatabaseError."""
    parameters = {
        "starts": [window.start for window in windows],
        "ends": [window.end for window in windows],
        "today": today,
    }
    with (
        database_errors(doing="counting measured days", kept="What was computed is kept."),
        engine.connect() as connection,
    ):
        distributed = is_distributed(engine)
        sampled = [_sampled(table) for table in level.raw_tables]
        if distributed:
            query = " UNION ".join(_DISTINCT.format(sampled=one) for one in sampled)
            rows = connection.execute(text(query), parameters).all()
            measured = {w.start: sum(w.start <= row.collected_date <= w.end for row in rows) for w in windows}
        else:
            days = (f"(SELECT true FROM {one} AND r.collected_date = CAST(d.day AS date) LIMIT 1)" for one in sampled)  # noqa: S608 -- our own names
            query = _DAYS.format(is_sampled=f"coalesce({', '.join(days)})")
            measured = {row.period_start: row.measured for row in connection.execute(text(query), parameters)}
    return {
        window.start: Coverage(measured[window.start], window.elapsed_days(today), window.days) for window in windows
    }


def _sampled(raw: Table) -> str:
    """Return what counts in a raw table, up to a further condition."""
    return f"{raw.name} r WHERE {'NOT r.is_deleted' if 'is_deleted' in raw.c else 'true'}"


# Where rows are distributed, a subquery must not depend on the row of the outer query.
_DISTINCT = """
SELECT DISTINCT r.collected_date FROM {sampled}
  AND r.collected_date BETWEEN (SELECT min(s) FROM unnest(CAST(:starts AS date[])) s)
  AND least((SELECT max(e) FROM unnest(CAST(:ends AS date[])) e), CAST(:today AS date))
"""
# LIMIT 1 keeps the probe a probe: EXISTS becomes a join with every sample of these days.
_DAYS = """
SELECT w.period_start,
       (SELECT count({is_sampled})
        FROM generate_series(w.period_start, least(w.period_end, CAST(:today AS date)), interval '1 day') AS d (day)
       ) AS measured
FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)
"""
