"""Windows in SQL: which one comes before another, by their days alone. Windows in Python are in `periods`."""

from __future__ import annotations

from capacity_assets.units import LARGEST_MB

SERVER_SIZES = "capacity_server_sizes"
"""The view that defines the size of a server in a window; every sum over servers reads it."""
TIES = "size_mb DESC, server_id, database"
"""The order of rows with equal changes, in all lists."""


def possible(size_mb: str, change_mb: str) -> str:
    """Return the condition that a stored size and its change are possible; earlier versions stored any value."""
    return f"{size_mb} <= {LARGEST_MB} AND ({change_mb} IS NULL OR {change_mb} BETWEEN -{LARGEST_MB} AND {LARGEST_MB})"


def before(row: str) -> str:
    """Return the first day of the window before: whole months, or as many days as the window itself."""
    return f"""CASE WHEN extract(day FROM {row}.period_start) = extract(day FROM {row}.period_end + 1)
    THEN CAST({row}.period_start - age(CAST({row}.period_end + 1 AS timestamp),
                                     CAST({row}.period_start AS timestamp)) AS date)
    ELSE {row}.period_start - ({row}.period_end - {row}.period_start + 1) END"""
