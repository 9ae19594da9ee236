"""On how many days of a window there are samples, so that an open window is not taken for a finished one.

Whether each single server was measured on each day is the business of `quality`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from sqlalchemy import Engine, text

from capacity_assets.aggregation.results import Coverage
from capacity_assets.errors import database_errors
from capacity_assets.foundation.levels import Level
from capacity_assets.periods import Window
from capacity_assets.storage.distribution import is_distributed


def coverage_of(engine: Engine, level: Level, windows: Sequence[Window], today: date) -> dict[date, Coverage]:
    """Count the days with a sample of any server in each window, by first day; raises DatabaseError."""
    live = f"AND NOT r.{level.void_flag}" if level.void_flag else ""
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
        query = (_DISTINCT if distributed else _DAYS).format(raw=level.source.name, live=live)
        rows = connection.execute(text(query), parameters).all()
    if distributed:
        measured = {w.start: sum(w.start <= row.collected_date <= w.end for row in rows) for w in windows}
    else:
        measured = {row.period_start: row.measured for row in rows}
    return {
        window.start: Coverage(measured[window.start], window.elapsed_days(today), window.days) for window in windows
    }


# Where rows are distributed, a subquery must not depend on the row of the outer query.
_DISTINCT = """
SELECT DISTINCT r.collected_date FROM {raw} r
WHERE r.collected_date BETWEEN (SELECT min(s) FROM unnest(CAST(:starts AS date[])) s)
  AND least((SELECT max(e) FROM unnest(CAST(:ends AS date[])) e), CAST(:today AS date)) {live}
"""
# LIMIT 1 keeps the probe a probe: EXISTS becomes a join with every sample of these days.
_DAYS = """
SELECT w.period_start,
       (SELECT count((SELECT true FROM {raw} r WHERE r.collected_date = CAST(d.day AS date) {live} LIMIT 1))
        FROM generate_series(w.period_start, least(w.period_end, CAST(:today AS date)), interval '1 day') AS d (day)
       ) AS measured
FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)
"""
