"""Windows in SQL: which one comes before another, by their days alone. Windows in Python are in `periods`."""

from __future__ import annotations


def before(row: str) -> str:
    """Return the first day of the window before: whole months, or as many days as the window itself."""
    return f"""CASE WHEN extract(day FROM {row}.period_start) = extract(day FROM {row}.period_end + 1)
    THEN CAST({row}.period_start - age(CAST({row}.period_end + 1 AS timestamp),
                                     CAST({row}.period_start AS timestamp)) AS date)
    ELSE {row}.period_start - ({row}.period_end - {row}.period_start + 1) END"""
