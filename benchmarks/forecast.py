"""`python -m benchmarks.forecast FILE...`: what forecasts would have said of real series, and how far they were off.

A file is CSV, plain or .gz, with the columns source, series, day (YYYY-MM-DD) and size or size_bytes. Each series is
forecast from many of its past days with nothing but the days before; what came after is held against it. Relative
error is the sum of a series' absolute errors over that of "the last value stays"; below 1 is better. Its interval is a
bootstrap over whole sources, because series of one source resemble each other. Limits for "full within 30 days" are
made up: the size of the day and a bit more, from 1 to 100 percent.
"""

from __future__ import annotations

import csv
import gzip
import resource
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TextIO

import click
import numpy as np

from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.forecast.model import HISTORY_DAYS, Sizes, forecast
from capacity_assets.forecast.runway import runways

JUDGED_DAYS = (30, 90)
FIRST_ORIGIN = 90
ORIGIN_STEP_DAYS = 10
LIMITS_ABOVE_PERCENT = (1, 2, 5, 10, 20, 50, 100)
FULL_WITHIN_DAYS = 30
ALARM_PROBABILITY = 0.5
LAST_TENTH = 90
BATCH = 2_000
RESAMPLES = 2000
INTERVAL = (0.05, 0.95)
Series = Mapping[tuple[str, str], Sizes]


@dataclass(frozen=True)
class Judged:
    """One horizon of one series: absolute errors, actual sizes, whether they lay in the band.

    Errors are those of the forecast, of the last value, and of the one drift that fits these days best in hindsight:
    no forecast by a constant drift can do better.
    """

    error: Sizes
    last_error: Sizes
    best_drift_error: Sizes
    actual: Sizes
    in_band: np.ndarray

    @property
    def relative_error(self) -> float:
        """NaN where the series did not move."""
        return self._relative(self.error)

    @property
    def best_drift_relative_error(self) -> float:
        """The same of the drift that fits best in hindsight."""
        return self._relative(self.best_drift_error)

    def _relative(self, error: Sizes) -> float:
        staying = self.last_error.sum()
        return float(error.sum() / staying) if staying else float("nan")

    @property
    def mape(self) -> float:
        """Mean absolute percentage error over the days with a size."""
        there = self.actual > 0
        return float(100 * np.mean(self.error[there] / self.actual[there])) if there.any() else float("nan")


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


def judge(values: Sizes, horizon: int) -> Judged | None:
    """Forecast a series from its past days and hold what came after against it; None without such a day."""
    days = origins(values, horizon)
    if not len(days):
        return None
    made = forecast(histories(values, days))
    place = HORIZONS_DAYS.index(horizon)
    actual, last = values[days + horizon], values[days]
    in_band = (made.lower[:, place] <= actual) & (actual <= made.upper[:, place])
    return Judged(
        np.abs(made.middle[:, place] - actual),
        np.abs(last - actual),
        np.abs(actual - last - np.median(actual - last)),
        actual,
        in_band[~np.isnan(made.lower[:, place])],
    )


def months(values: Sizes) -> np.ndarray:
    """Database-months with made-up limits: the probability of being full within 30 days, and whether it was."""
    days = origins(values, FULL_WITHIN_DAYS)
    if not len(days):
        return np.empty((0, 2))
    made = forecast(histories(values, days))
    reached = np.array([np.nanmax(values[day + 1 : day + 1 + FULL_WITHIN_DAYS]) for day in days])
    found = []
    for percent in LIMITS_ABOVE_PERCENT:
        limits = values[days] * (1 + percent / 100)
        probability = runways(made, limits).probability[:, HORIZONS_DAYS.index(FULL_WITHIN_DAYS)]
        found.append(np.column_stack([np.nan_to_num(probability), reached >= limits]))
    return np.concatenate(found)


def interval(by_source: Mapping[str, list[float]]) -> tuple[float, float]:
    """Bootstrap the median of relative errors over whole sources; the same every time."""
    random = np.random.default_rng(20260101)
    groups = [values for values in by_source.values() if values]
    medians = [
        np.median(np.concatenate([groups[place] for place in random.integers(len(groups), size=len(groups))]))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(medians, INTERVAL)
    return float(low), float(high)


def lines(series: Series) -> Iterator[str]:
    """The figures of each source, and of all."""
    sources = sorted({source for source, _ in series})
    yield f"{'source':32} {'series':>6} {'days':>5} {'relative':>9} {'MAPE %':>7} {'median':>7} {'in band':>8}"
    for horizon in JUDGED_DAYS:
        judged = {key: found for key, values in series.items() if (found := judge(values, horizon))}
        for source in [*sources, "all"]:
            chosen = [one for (name, _), one in judged.items() if source in {name, "all"}]
            relative = [one.relative_error for one in chosen if not np.isnan(one.relative_error)]
            errors = [one.mape for one in chosen]
            in_band = np.concatenate([one.in_band for one in chosen]) if chosen else np.array([])
            yield (
                f"{source:32} {len(chosen):6} {horizon:5} {np.median(relative):9.3f} {np.nanmean(errors):7.2f} "
                f"{np.nanmedian(errors):7.2f} {100 * np.mean(in_band):7.1f}%"
            )
        by_source: dict[str, list[float]] = defaultdict(list)
        for (source, _), one in judged.items():
            if not np.isnan(one.relative_error):
                by_source[source].append(one.relative_error)
        low, high = interval(by_source)
        better = np.mean(np.concatenate([*by_source.values()]) < 1)
        best = np.nanmedian([one.best_drift_relative_error for one in judged.values()])
        yield f"{'':32} the drift of each series that fits best in hindsight: {best:.3f}"
        yield f"{'':32} 90 % interval of the median {low:.3f} to {high:.3f}; {100 * better:.0f} % of the series better"


def alarm_lines(series: Series) -> Iterator[str]:
    """How often "full within 30 days" was wrong, and how often what was given a probability happened."""
    probability, full = np.concatenate([months(values) for values in series.values()]).T
    alarm = probability >= ALARM_PROBABILITY
    yield (
        f"Full within {FULL_WITHIN_DAYS} days: {len(full):,} database-months with made-up limits, {full.sum():,.0f} "
        f"filled; alarms from {100 * ALARM_PROBABILITY:.0f} % on: {1000 * np.mean(alarm * (1 - full)):.1f} false per "
        f"1,000, {100 * np.sum(alarm * full) / max(full.sum(), 1):.1f} % recalled"
    )
    for low in range(0, 100, 10):
        within = (100 * probability >= low) & ((100 * probability < low + 10) | (low == LAST_TENTH))
        if within.any():
            happened = 100 * full[within].mean()
            yield f"  probability {low:2} to {low + 10:3} %: {within.sum():6,} times, filled {happened:5.1f} %"


def speed_line(databases: int, days: int) -> str:
    """How long a fleet takes, beside reading the same numbers once, and how much memory the process had at most."""
    random = np.random.default_rng(1)
    batch = 100_000 + np.cumsum(random.integers(-20, 30, size=(BATCH, days)), axis=1).astype(np.float64)
    began = time.perf_counter()
    for _ in range(0, databases, BATCH):
        runways(forecast(batch), np.full(BATCH, 200_000.0))
    took, began = time.perf_counter() - began, time.perf_counter()
    for _ in range(0, databases, BATCH):
        batch.sum()
    read = time.perf_counter() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return (
        f"{databases:,} databases of {days} days with bands, in batches of {BATCH:,} on one processor: {took:.1f} s; "
        f"summing the same numbers: {read:.2f} s; {peak_mb} MiB at most"
    )


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--databases", default=200_000, show_default=True, help="Databases of the fleet that is timed.")
@click.option("--days", default=400, show_default=True, help="Days of each of them.")
def main(files: tuple[Path, ...], databases: int, days: int) -> None:
    """Backtest the forecasts over the series of FILES, then time a fleet."""
    series = read(files)
    began = time.perf_counter()
    for line in lines(series):
        click.echo(line)
    for line in alarm_lines(series):
        click.echo(line)
    click.echo(f"{len(series)} series, {sum(map(len, series.values())):,} days, {time.perf_counter() - began:.1f} s")
    click.echo(speed_line(databases, days))


if __name__ == "__main__":
    main()
