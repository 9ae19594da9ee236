"""The baseline: one database at a time, as the replaced service worked.

For each database: read the samples of the window and of the one before, look for the stored row, write it, commit. The
arithmetic is done in Python, without the exactness of ours, which would not change the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.base.periods import Period, Window

_DATABASES = """
SELECT DISTINCT instance_id, database_name FROM database_size_stats
WHERE instance_id = :instance AND collected_date BETWEEN :start AND :end
"""
_SAMPLES = """
SELECT size_mb, data_size_mb, log_size_mb FROM database_size_stats
WHERE instance_id = :instance AND database_name = :name AND collected_date BETWEEN :start AND :end
"""
_STORED = """
SELECT id FROM database_size_aggregations
WHERE instance_id = :instance AND database_name = :name AND period_type = :period AND period_start = :start
"""
_INSERT = """
INSERT INTO database_size_aggregations (instance_id, database_name, period_type, period_start, period_end,
    avg_size_mb, max_size_mb, min_size_mb, data_count, size_change_mb)
VALUES (:instance, :name, :period, :start, :end, :mean, :largest, :smallest, :count, :change)
"""
_UPDATE = """
UPDATE database_size_aggregations SET avg_size_mb = :mean, max_size_mb = :largest, min_size_mb = :smallest,
    data_count = :count, size_change_mb = :change, calculated_at = now() WHERE id = :id
"""


def compute(engine: Engine, period: Period, window: Window) -> None:
    """Compute one window of every database."""
    before = period.previous(window)
    with engine.connect() as connection:
        instances = connection.execute(text("SELECT id FROM instances WHERE is_active AND deleted_at IS NULL")).all()
        for instance in instances:
            days = {"instance": instance.id, "start": window.start, "end": window.end}
            for _, name in connection.execute(text(_DATABASES), days).all():
                _compute_one(connection, period, {**days, "name": name}, {**days, "name": name, **_ends(before)})


def _ends(window: Window) -> dict[str, object]:
    return {"start": window.start, "end": window.end}


def _compute_one(connection: Connection, period: Period, own: dict[str, Any], before: dict[str, Any]) -> None:
    now, then = (_sizes(connection.execute(text(_SAMPLES), days).all()) for days in (own, before))
    mean = sum(now) // len(now)
    figures = {
        "mean": mean,
        "largest": max(now),
        "smallest": min(now),
        "count": len(now),
        "change": mean - sum(then) // len(then) if then else None,
        "period": period.name,
    }
    key = {name: own[name] for name in ("instance", "name", "start")} | {"period": period.name}
    stored = connection.execute(text(_STORED), key).scalar()
    if stored is None:
        connection.execute(text(_INSERT), {**own, **figures})
    else:
        connection.execute(text(_UPDATE), {**figures, "id": stored})
    connection.commit()


def _sizes(rows: Sequence[Row[Any]]) -> list[int]:
    return [row.size_mb for row in rows]
