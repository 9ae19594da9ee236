"""`python -m benchmarks.calibration FILE...`: fits the weights that turn evidence into the probability of being full.

A *case* is a series, a past day of it, and a made-up limit: the size of that day and a bit more, from 1 to 100 percent.
It *fills* if the largest size within the horizon reaches the limit; what is known of it is the `evidence` of
`forecast.model`. The weights are those of a logistic regression in which every source weighs the same, however many
series it has. The command prints them for `WEIGHTS`; files are those of `benchmarks.forecast`, which judges them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.series import Series, histories, origins, read
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.forecast.model import PIECES, RISE_DAYS, WEIGHTS, Sizes, compute_fill_days, evidence, forecast

LIMITS_ABOVE_PERCENT = (1, 2, 5, 10, 20, 50, 100)
STEP_SHARE = 0.5
RIDGE = 0.001
"""Holds weights back where the cases say little."""
ENOUGH = 1e-8
NEWTON_STEPS = 60


@dataclass(frozen=True)
class Cases:
    """Cases of one horizon; every array has one entry per case."""

    source: NDArray[np.str_]
    above_percent: NDArray[np.int64]
    """How far the limit was above the size."""
    evidence: Sizes
    """One row per case, one column for each of PIECES; 0 for a piece that the product leaves out at this horizon."""
    probability: Sizes
    """What the product says."""
    fill_day: NDArray[np.int64]
    """Days until the limit was reached; 0: not within the horizon."""
    by_step: NDArray[np.bool_]
    """Whether the largest change of a day up to then was at least STEP_SHARE of what was free."""

    @property
    def filled(self) -> Sizes:
        """1 for what filled within the horizon, else 0."""
        return (self.fill_day > 0).astype(np.float64)

    @property
    def sources(self) -> list[str]:
        """The sources, in order."""
        return sorted(set(self.source.tolist()))

    @property
    def weight(self) -> Sizes:
        """Weights under which every source counts the same."""
        weight = np.empty(len(self.source))
        for source in self.sources:
            own = self.source == source
            weight[own] = 1 / (own.sum() * len(self.sources))
        return weight

    def where(self, chosen: NDArray[np.bool_]) -> Cases:
        """Some of the cases."""
        return replace(self, **{one.name: getattr(self, one.name)[chosen] for one in fields(self)})


def cases_of(series: Series, horizon: int) -> Cases:
    """Make the cases of all series for a horizon of HORIZONS_DAYS."""
    parts = [part for (source, _), values in series.items() if (part := _cases(source, values, horizon))]
    return Cases(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _cases(source: str, values: Sizes, horizon: int) -> tuple[NDArray[np.generic], ...] | None:
    days = origins(values, horizon)
    if not len(days):
        return None
    made = forecast(histories(values, days))
    sizes = values[days[:, None] + np.arange(horizon + 1)]
    free = values[days, None] * (np.array(LIMITS_ABOVE_PERCENT) / 100)
    fill_day, by_step = _fills(sizes, free)
    shown = [RISE_DAYS.index(horizon), HORIZONS_DAYS.index(horizon)]
    used = np.array(WEIGHTS[horizon]) != 0
    known, said = [], []
    for column in free.T:
        known.append(evidence(made, values[days] + column)[:, shown[0]] * used)
        said.append(np.nan_to_num(compute_fill_days(made, values[days] + column).probability[:, shown[1]]))
    above = np.tile(LIMITS_ABOVE_PERCENT, (len(days), 1))
    in_rows = np.stack(known, axis=1).reshape(-1, len(PIECES)), np.stack(said, axis=1).ravel()
    return np.full(above.size, source), above.ravel(), *in_rows, fill_day.ravel(), by_step.ravel()


def _fills(sizes: Sizes, free: Sizes) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return after how many days each limit is reached, 0 for never, and whether by a single step."""
    rise = np.fmax.accumulate(sizes - sizes[:, :1], axis=1)
    largest_change = np.fmax.accumulate(np.diff(sizes, axis=1), axis=1)
    reached = rise[:, None, :] >= free[:, :, None]
    fill_day = np.where(reached.any(axis=2), reached.argmax(axis=2), 0)
    change = np.take_along_axis(largest_change, np.maximum(fill_day - 1, 0), axis=1)
    return fill_day, (fill_day > 0) & (change >= STEP_SHARE * free)


def fitted(cases: Cases) -> Sizes:
    """Return the weights of PIECES that fit the cases best; a piece that would speak against filling has none."""
    kept = list(range(len(PIECES)))
    while True:
        weights = _regression(cases.evidence[:, kept], cases.filled, cases.weight)
        if (weights[1:] >= 0).all():
            break
        kept.pop(1 + int(np.argmin(weights[1:])))
    result = np.zeros(len(PIECES))
    result[kept] = weights
    return result


def _regression(known: Sizes, filled: Sizes, weight: Sizes) -> Sizes:
    weights = np.zeros(known.shape[1])
    ridge = np.full(len(weights), RIDGE)
    ridge[0] = 0
    for _ in range(NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-known @ weights))
        slope = known.T @ (weight * (probability - filled)) + ridge * weights
        curve = (known * (weight * probability * (1 - probability))[:, None]).T @ known + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < ENOUGH:
            break
    return weights


def from_others(cases: Cases) -> Sizes:
    """Return the probability of each case by weights that are fitted on the other sources."""
    probability = np.empty(len(cases.source))
    for source in cases.sources:
        own = cases.source == source
        probability[own] = 1 / (1 + np.exp(-cases.evidence[own] @ fitted(cases.where(~own))))
    return probability


def watermark(cases: Cases) -> Sizes:
    """Return how often what had as much free space filled on the other sources; less free space never fills less."""
    levels = np.searchsorted(LIMITS_ABOVE_PERCENT, cases.above_percent)
    frequency = np.empty(len(cases.source))
    for source in cases.sources:
        own = cases.source == source
        others = cases.where(~own) if not own.all() else cases
        at_level = [others.above_percent == percent for percent in LIMITS_ABOVE_PERCENT]
        filled, weight = others.filled, others.weight
        shares = [np.average(filled[there], weights=weight[there]) for there in at_level]
        frequency[own] = np.array(_descending(shares))[levels[own]]
    return frequency


def _descending(values: Sequence[float]) -> list[float]:
    """Replace neighbours that ascend by their mean, until none does."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) < np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [float(np.mean(pool)) for pool in pools for _ in pool]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    """Print the weights fitted on all sources of FILES, and how much they vary where a source is left out."""
    series = read(files)
    for horizon in HORIZONS_DAYS:
        cases = cases_of(series, horizon)
        weights = ", ".join(f"{weight:.2f}" for weight in fitted(cases))
        click.echo(f"    {horizon}: ({weights}),")
        without = [fitted(cases.where(cases.source != source)) for source in cases.sources]
        low, high = np.min(without, axis=0), np.max(without, axis=0)
        spans = (f"{name} {least:.2f} to {most:.2f}" for name, least, most in zip(PIECES, low, high, strict=True))
        click.echo(f"        # {len(cases.source):,} cases; without a source: {', '.join(spans)}")


if __name__ == "__main__":
    main()
