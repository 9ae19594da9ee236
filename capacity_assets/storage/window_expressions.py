"""Windows in SQL: which one comes before another, by their days alone. Windows in Python are in `periods`."""

from __future__ import annotations

from capacity_assets.units import LARGEST_MB

SERVER_SIZES = "capacity_server_sizes"
"""The view that defines the size of a server in a window; every sum over servers reads it."""
TIES = "size_mb DESC, server_id, database"
"""The order of rows with equal changes, in all lists."""

_PART = "floor({0}.avg_size_mb * CAST({0}.data_count AS numeric) / greatest({0}.data_count, {1}.data_count))"
NOW, THEN = _PART.format("a", "s"), _PART.format("b", "sb")
"""The share of a database `a` in the size of its server `s`, by measured days, and of `b` in `sb` before, in MiB.

Rounded down like the total of the server, so that the remainder is never negative.
"""
CHANGE = f"""CASE WHEN s.total_size_change_mb IS NULL THEN NULL
                WHEN a.size_change_mb IS NOT NULL AND (sb.instance_id IS NULL
                     OR a.data_count >= s.data_count AND b.data_count >= sb.data_count)
                THEN a.size_change_mb ELSE {NOW} - coalesce({THEN}, 0) END"""
"""The part of `a` in the change of its server, MiB; null: that is not known."""


def counted(window: str) -> str:
    """Return 1 if `a` counts in the mean number of databases of its server `s` in each `window`, else 0.

    If databases existed one after the other, only as many count as the server had on average, those with most days
    first.
    """
    return f"""CASE WHEN s.database_count >= row_number()
                OVER (PARTITION BY {window}, a.instance_id, a.key ORDER BY a.data_count DESC, a.database_name)
                THEN 1 ELSE 0 END"""


def possible(size_mb: str, change_mb: str) -> str:
    """Return the condition that a stored size and its change are possible; earlier versions stored any value."""
    return f"{size_mb} <= {LARGEST_MB} AND ({change_mb} IS NULL OR {change_mb} BETWEEN -{LARGEST_MB} AND {LARGEST_MB})"


def before(row: str) -> str:
    """Return the first day of the window before: whole months, or as many days as the window itself."""
    return f"""CASE WHEN extract(day FROM {row}.period_start) = extract(day FROM {row}.period_end + 1)
    THEN CAST({row}.period_start - age(CAST({row}.period_end + 1 AS timestamp),
                                     CAST({row}.period_start AS timestamp)) AS date)
    ELSE {row}.period_start - ({row}.period_end - {row}.period_start + 1) END"""
