"""Series of sizes in files, and the past days from which `benchmarks.forecast` and `benchmarks.calibration` forecast.

A file is CSV, plain or .gz, with the columns source, series, day (YYYY-MM-DD) and size or size_bytes.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import TextIO

import numpy as np

from capacity_assets.forecast.model import Sizes
from capacity_assets.forecast.results import HISTORY_DAYS

FIRST_ORIGIN = 90
ORIGIN_STEP_DAYS = 10
Series = Mapping[tuple[str, str], Sizes]


def read(paths: Iterable[Path]) -> Series:
    """Read the series of files by source and name: one value per day, NaN where none is given."""
    found: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for path in paths:
        with _opened(path) as file:
            for row in csv.DictReader(file):
                size = row.get("size") or row["size_bytes"]
                found[row["source"], row["series"]][date.fromisoformat(row["day"]).toordinal()] = float(size)
    return {key: _by_day(days) for key, days in found.items()}


def _opened(path: Path) -> TextIO:
    return gzip.open(path, "rt") if path.suffix == ".gz" else path.open()


def _by_day(days: Mapping[int, float]) -> Sizes:
    values = np.full(max(days) - min(days) + 1, np.nan)
    for day, size in days.items():
        values[day - min(days)] = size
    return values


def origins(values: Sizes, horizon: int) -> np.ndarray:
    """The days from which a series is forecast: measured ones, with a measured day at the horizon."""
    days = np.arange(FIRST_ORIGIN, len(values) - horizon, ORIGIN_STEP_DAYS)
    return days[(values[days] > 0) & ~np.isnan(values[days + horizon])]


def histories(values: Sizes, days: np.ndarray) -> Sizes:
    """What was known on each of `days`, one row each, aligned at the right."""
    rows = np.full((len(days), HISTORY_DAYS), np.nan)
    for row, day in zip(rows, days, strict=True):
        known = values[max(0, day + 1 - HISTORY_DAYS) : day + 1]
        row[-len(known) :] = known
    return rows
