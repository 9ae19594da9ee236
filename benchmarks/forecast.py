"""`python -m benchmarks.forecast FILE...`: what forecasts would have said of real series, and how far they were off.

Files are described in `benchmarks.series`. Each series is forecast from many of its past days with nothing but the
days before; what came after is held against it. Relative error is the sum of a series' absolute errors over that of
"the last value stays"; below 1 is better. Intervals are a bootstrap over whole sources, because series of one source
resemble each other.

Limits for the probability of being full are made up, as `benchmarks.calibration` says; the event is the largest size
within the horizon. Skill compares the Brier score with that of the *watermark*: how often what has as much free space
fills, on the other sources. The weights of the product are fitted on some sources; on these, only weights fitted
without the source that is judged say how good it is elsewhere.

A *fill by a step* is one before which, from the day of the forecast on, the size changed within a single day by at
least half of what was free; every other one is a *fill by drift*. *Named* is the share of fills with at least the
threshold's probability, *right* the share of what has it that fills, *false* what does not, per 1,000 cases, and *days
of warning* the days from the forecast to the fill, of those named.
"""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.calibration import Cases, cases_of, from_others, watermark
from benchmarks.series import Series, histories, origins, read
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.forecast.history import BATCH
from capacity_assets.forecast.model import Sizes, compute_fill_days, forecast

JUDGED_DAYS = (30, 90)
THRESHOLDS_PERCENT = (10, 20, 30, 50)
RESAMPLES = 2000
INTERVAL = (0.05, 0.95)
LEAST_PROBABILITY = 1e-6
OFFSETS = np.linspace(-2, 2, 81)


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


def skill(cases: Cases, probability: Sizes, reference: Sizes) -> float:
    """Brier skill: 1 is certain and right, 0 as good as the reference, below 0 worse; every source weighs the same."""
    error, of_reference = _brier(cases, probability), _brier(cases, reference)
    return float(1 - error.sum() / of_reference.sum())


def _brier(cases: Cases, probability: Sizes) -> Sizes:
    """Return the mean squared error of a probability, by source."""
    error = (probability - cases.filled) ** 2
    return np.array([error[cases.source == source].mean() for source in cases.sources])


def _skill_interval(cases: Cases, probability: Sizes, reference: Sizes) -> tuple[float, float]:
    """Bootstrap the skill over whole sources; the same every time."""
    error, of_reference = _brier(cases, probability), _brier(cases, reference)
    drawn = np.random.default_rng(20260101).integers(len(error), size=(RESAMPLES, len(error)))
    low, high = np.quantile(1 - error[drawn].sum(axis=1) / of_reference[drawn].sum(axis=1), INTERVAL)
    return float(low), float(high)


def probability_lines(cases: Cases, horizon: int) -> Iterator[str]:
    """How much better than the free space the probability says what fills, whether it holds, and what it is good for.

    First by the weights of the product, then by weights fitted without the source that is judged.
    """
    yield f"Full within {horizon} days: {len(cases.source):,} cases, {100 * cases.filled.mean():.1f} % filled"
    reference = watermark(cases)
    said = {"weights of the product": cases.probability}
    if len(cases.sources) > 1:
        said["weights fitted on the other sources"] = from_others(cases)
    for name, probability in said.items():
        low, high = _skill_interval(cases, probability, reference)
        yield f"  {name}: skill {skill(cases, probability, reference):.3f}, 90 % interval {low:.3f} to {high:.3f}"
        for source in cases.sources:
            own = cases.source == source
            yield f"    {source:32} {skill(cases.where(own), probability[own], reference[own]):7.3f}"
        best = skill(cases, with_best_offsets(cases, probability), reference)
        yield f"    {best:.3f} with the offset of log odds that fits each source best in hindsight"
        yield from _calibration_lines(cases, probability)
        yield from _threshold_lines(cases, probability)


def with_best_offsets(cases: Cases, probability: Sizes) -> Sizes:
    """Move the log odds of each source by what makes its Brier score best, chosen in hindsight.

    What a fleet could learn of its calibration from its own outcomes is at most as good.
    """
    bounded = np.clip(probability, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    odds = np.log(bounded / (1 - bounded))
    moved = np.array([1 / (1 + np.exp(-odds - offset)) for offset in OFFSETS])
    best = np.empty(len(odds))
    for source in cases.sources:
        own = cases.source == source
        error = ((moved[:, own] - cases.filled[own]) ** 2).mean(axis=1)
        best[own] = moved[error.argmin(), own]
    return best


def _calibration_lines(cases: Cases, probability: Sizes) -> Iterator[str]:
    tenth = np.minimum((10 * probability).astype(np.int64), 9)
    for place in sorted(set(tenth.tolist())):
        there = tenth == place
        mean, filled = 100 * probability[there].mean(), 100 * cases.filled[there].mean()
        said = f"{10 * place:2} to {10 * place + 10:3} %: {there.sum():6,} cases, mean {mean:5.1f} %"
        yield f"    {said}, filled {filled:5.1f} %"


def _threshold_lines(cases: Cases, probability: Sizes) -> Iterator[str]:
    filled = cases.filled > 0
    for percent in THRESHOLDS_PERCENT:
        named = 100 * probability >= percent
        right = named & filled
        of_all, by_step, by_drift = (
            100 * named[chosen].mean() if chosen.any() else np.nan
            for chosen in (filled, filled & cases.by_step, filled & ~cases.by_step)
        )
        days = np.median(cases.fill_day[right]) if right.any() else np.nan
        yield (
            f"    from {percent} %: {of_all:.1f} % of fills named ({by_step:.1f} % by a step, {by_drift:.1f} % by "
            f"drift), {100 * right.sum() / max(named.sum(), 1):.1f} % of alarms right, "
            f"{1000 * (named & ~filled).mean():.1f} false per 1,000, {days:.0f} days of warning (median)"
        )


def speed_line(databases: int, days: int) -> str:
    """How long a fleet takes, beside reading the same numbers once, and how much memory the process had at most."""
    random = np.random.default_rng(1)
    batch = 100_000 + np.cumsum(random.integers(-20, 30, size=(BATCH, days)), axis=1).astype(np.float64)
    # Processor time: what else the machine does is not counted.
    began = time.process_time()
    for _ in range(0, databases, BATCH):
        compute_fill_days(forecast(batch), np.full(BATCH, 200_000.0))
    took, began = time.process_time() - began, time.process_time()
    for _ in range(0, databases, BATCH):
        batch.sum()
    read = time.process_time() - began
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
    for horizon in JUDGED_DAYS:
        for line in probability_lines(cases_of(series, horizon), horizon):
            click.echo(line)
    click.echo(f"{len(series)} series, {sum(map(len, series.values())):,} days, {time.perf_counter() - began:.1f} s")
    click.echo(speed_line(databases, days))


if __name__ == "__main__":
    main()
