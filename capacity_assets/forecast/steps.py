"""Declared steps: changes that will not repeat, taken out of a series before it is forecast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from capacity_assets.forecast.model import Sizes


def without_steps(sizes: Sizes, steps: Sequence[Sequence[int]]) -> Sizes:
    """Move what was measured before each step to the level after it; `steps` has the columns of each row's steps.

    A step is the difference between the first size measured on its day or later and the last one before. It is left
    alone where one of the two is not known. Without any step the array itself is returned.
    """
    if not any(steps):
        return sizes
    smooth = sizes.copy()
    for place, columns in enumerate(steps):
        measured = np.flatnonzero(~np.isnan(sizes[place]))
        # Two steps between the same two measured days are one change.
        for after in sorted({int(np.searchsorted(measured, column)) for column in columns}):
            if 0 < after < len(measured):
                jump = sizes[place, measured[after]] - sizes[place, measured[after - 1]]
                smooth[place, : measured[after]] += jump
    return smooth
