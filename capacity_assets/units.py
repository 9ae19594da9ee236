"""Sizes as people read them. Figures stay whole megabytes everywhere else."""

from __future__ import annotations

_MB_PER_UNIT = (("PB", 1024**3), ("TB", 1024**2), ("GB", 1024))


def human_mb(size_mb: int) -> str:
    """Render megabytes with a fitting unit and one decimal: 2048 -> '2.0 GB'."""
    for unit, size in _MB_PER_UNIT:
        if abs(size_mb) >= size:
            return f"{size_mb / size:,.1f} {unit}"
    return f"{size_mb:,} MB"


def human_change_mb(change_mb: int) -> str:
    """Render a change with its sign: 2048 -> '+2.0 GB'."""
    return f"+{human_mb(change_mb)}" if change_mb > 0 else human_mb(change_mb)
