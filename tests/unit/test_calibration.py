"""How the weights of a probability are fitted, and what a probability is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibration import LIMITS_ABOVE_PERCENT, Cases, cases_of, fitted, from_others, watermark
from benchmarks.forecast import probability_lines, skill, with_best_offsets
from capacity_assets.forecast.model import PIECES

SOURCES = ("a", "b", "c")


def made_up(weights: list[float], number: int = 30_000) -> Cases:
    """Cases of three sources that fill with the probability that these weights give."""
    random = np.random.default_rng(7)
    known = np.column_stack([np.ones(number), random.normal(size=(number, len(PIECES) - 1))])
    filled = random.random(number) < 1 / (1 + np.exp(-known @ np.array(weights)))
    source = np.array(SOURCES)[random.integers(len(SOURCES), size=number)]
    above = np.array(LIMITS_ABOVE_PERCENT)[random.integers(len(LIMITS_ABOVE_PERCENT), size=number)]
    return Cases(source, above, known, np.full(number, 0.5), filled.astype(np.int64), np.zeros(number, dtype=np.bool_))


def test_the_weights_that_made_the_cases_are_found_and_none_is_below_zero() -> None:
    found = fitted(made_up([-1.0, 0.5, 1.0, 0.3, -0.8, 0.2, 0.7, 0.4]))

    assert found[[0, 1, 2, 3, 5, 6, 7]] == pytest.approx([-1.0, 0.5, 1.0, 0.3, 0.2, 0.7, 0.4], abs=0.2)
    assert found[4] == 0


def test_a_probability_that_holds_has_skill_and_a_constant_has_none() -> None:
    cases = made_up([-1.0, 0.5, 1.0, 0.3, 0.0, 0.2, 0.7, 0.0])
    reference = watermark(cases)

    assert skill(cases, from_others(cases), reference) == pytest.approx(0.26, abs=0.03)
    assert skill(cases, cases.probability, reference) < 0
    assert skill(cases, reference, reference) == 0
    assert any("weights fitted on the other sources: skill 0.2" in line for line in probability_lines(cases, 30))


def test_the_best_offset_in_hindsight_repairs_a_source_that_is_off_by_one_and_leaves_what_holds() -> None:
    cases = made_up([-1.0, 0.5, 1.0, 0.3, 0.0, 0.2, 0.7, 0.0])
    odds = cases.evidence @ np.array([-1.0, 0.5, 1.0, 0.3, 0.0, 0.2, 0.7, 0.0])
    holds = 1 / (1 + np.exp(-odds))
    off = np.where(cases.source == "b", 1 / (1 + np.exp(1 - odds)), holds)

    assert with_best_offsets(cases, off) == pytest.approx(holds, abs=0.03)
    assert with_best_offsets(cases, holds) == pytest.approx(holds, abs=0.03)


def test_what_has_less_free_space_never_fills_less_in_the_reference() -> None:
    cases = made_up([-1.0, 0, 0, 0, 0, 0, 0, 0])
    own = cases.source == "a"
    by_level = [watermark(cases)[own & (cases.above_percent == percent)] for percent in LIMITS_ABOVE_PERCENT]

    assert [len(set(level.tolist())) for level in by_level] == [1] * len(LIMITS_ABOVE_PERCENT)
    assert [level[0] for level in by_level] == sorted((level[0] for level in by_level), reverse=True)


def test_a_fill_by_a_step_is_one_before_which_a_day_changed_by_half_of_what_was_free() -> None:
    """From day 90 on: one percent a day, and a step of 15 percent on day 100."""
    sizes = np.full(140, 1000.0)
    sizes[90:] += 10 * np.arange(50)
    sizes[100:] += 150

    cases = cases_of({("a", "x"): sizes}, 30)

    first = slice(0, len(LIMITS_ABOVE_PERCENT))  # the origin is day 90
    assert cases.fill_day[first].tolist() == [1, 2, 5, 10, 10, 0, 0]
    assert cases.by_step[first].tolist() == [True, True, False, True, True, False, False]
