"""Sizes and lists as people read them. Figures stay whole megabytes everywhere else."""

from __future__ import annotations

from collections.abc import Iterable

_KILO = 1024
_MB_PER_UNIT = (("PB", 1024**3), ("TB", 1024**2), ("GB", 1024))


def human_mb(size_mb: int, places: int = 1) -> str:
    """Render megabytes with a fitting unit and one decimal, or as many as asked for: 2048 -> '2.0 GB'."""
    for unit, size in _MB_PER_UNIT:
        # What rounds up to 1,024.0 of the smaller unit is 1.0 of this one.
        if abs(size_mb) >= size or (size > _KILO and round(abs(size_mb) / size * _KILO, 1) >= _KILO):
            return f"{size_mb / size:,.{places}f} {unit}"
    return f"{size_mb:,} MB"


def human_change_mb(change_mb: int) -> str:
    """Render a change with its sign: 2048 -> '+2.0 GB'."""
    return f"+{human_mb(change_mb)}" if change_mb > 0 else human_mb(change_mb)


def first_of(names: Iterable[object], shown: int) -> str:
    """List the first names in one line and count the rest: 'a, b and 3 more'."""
    listed = list(map(str, names))
    more = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {more:,} more" if more > 0 else "")
