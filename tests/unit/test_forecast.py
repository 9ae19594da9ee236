"""How sizes go on and when a limit is reached: laws that hold for any series, and figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.database.views import RUNWAY_VIEWS, STANDS_FOR_ITSELF
from capacity_assets.forecast.model import (
    BAND,
    DRIFT_DAYS,
    GROWTH_OF_ERRORS,
    JUDGED_BY_DAYS,
    LARGEST_FREE,
    LEAST_SLOPE_CHANGES,
    LEAST_SLOPE_ERRORS,
    MEAN_CHANGE,
    MOST_ACTIVE,
    MOST_ORIGINS,
    MOST_PROBABLE,
    MOST_SLOPE_ERROR,
    MOST_USED,
    NOT_WITHIN_HORIZON,
    RISE_DAYS,
    SLOPE,
    SMALLEST_FREE,
    WEIGHTS,
    WINSORISED_SHARE,
    SizeForecasts,
    Sizes,
    compute_fill_days,
    forecast,
    with_growth,
    without_steps,
)
from capacity_assets.forecast.reference import reference
from capacity_assets.forecast.results import (
    DAY_PROBABILITIES,
    HISTORY_DAYS,
    LEAST_CHANGES,
    LEAST_ERRORS,
    ORIGIN_STEP_DAYS,
    probability_of,
)
from tests.documents import ROOT

MANY_DAYS = 500


def line(per_day: float, days: int = MANY_DAYS, start: float = 10_000) -> Sizes:
    return start + per_day * np.arange(days, dtype=np.float64)


def one(values: Sizes) -> SizeForecasts:
    return forecast(values[None, :])


@st.composite
def series(draw: st.DrawFn) -> Sizes:
    """Growth with noise, steps, gaps and flat stretches: whole numbers, so that sums are exact."""
    seed, days = draw(st.integers(0, 2**32 - 1)), draw(st.integers(2, 700))
    random = np.random.default_rng(seed)
    changes = random.integers(-20, 30, size=days)
    changes[random.random(days) < draw(st.sampled_from([0.0, 0.5, 0.95]))] = 0
    changes[random.random(days) < draw(st.sampled_from([0.0, 0.02]))] = draw(st.integers(-3000, 5000))
    values = 100_000 + np.cumsum(changes).astype(np.float64)
    values[random.random(days) < draw(st.sampled_from([0.0, 0.1]))] = np.nan
    values[0] = 100_000
    return values


def sawtooth(phase: int) -> Sizes:
    """150 days that shrink by 20 per day and grow by 120 every twelfth day."""
    changes = np.full(149, -20.0)
    changes[phase::12] += 120
    return 10_000 + np.concatenate([[0.0], np.cumsum(changes)])


def purged_growth(days: int, purge_days: int, purged: int, offset: int = 0) -> Sizes:
    """Growth of 30 per day, of which a part is purged at regular intervals."""
    day = np.arange(days, dtype=np.float64)
    return 10_000 + 30 * day - purged * ((day + offset) // purge_days)


def test_a_probability_that_has_no_day_is_not_stored_as_one_that_has() -> None:
    shares = [share - less for share in DAY_PROBABILITIES for less in (0, 1e-4, 1e-9)]

    assert [probability_of(share) for share in shares] == [0.1, 0.099, 0.099, 0.5, 0.499, 0.499, 0.9, 0.899, 0.899]


def test_a_series_that_grows_evenly_goes_on_so_and_its_limit_has_a_date() -> None:
    made = one(line(5))

    assert made.drift.tolist() == [5]
    assert made.middle[0].tolist() == [12_495 + 5 * days for days in HORIZONS_DAYS]
    assert made.lower[0, :3].tolist() == made.upper[0, :3].tolist() == [12_495 + 5 * days for days in (7, 30, 90)]
    ends = compute_fill_days(made, np.array([12_495.0 + 5 * 40]))
    assert (ends.early_days[0], ends.middle_days[0], ends.late_days[0]) == (21, 40, 91)
    assert ends.probability[0].round(3).tolist() == [0.022, 0.162, 0.899, 0.975]


@given(st.sampled_from([0, 100, 10_000, 1_000_000]), st.floats(0.001, 10_000), st.integers(1, 180))
def test_the_middle_day_of_even_growth_is_the_one_on_which_its_line_meets_the_limit(
    days_before: int, per_day: float, due: int
) -> None:
    made = one(line(per_day, start=per_day * days_before))
    ends = compute_fill_days(made, made.last + per_day * due)

    # Where the last digit of a size decides whether a past rise reaches the limit, it is the day after.
    assert due <= ends.middle_days[0] <= due + 1
    assert 0 < ends.early_days[0] <= due + 1
    assert ends.late_days[0] == NOT_WITHIN_HORIZON or due <= ends.late_days[0]


@pytest.mark.parametrize(
    ("history", "due", "days"),
    [
        (1_096, 3, (3, 3, 3)),
        (1_096, 20, (16, 20, 23)),
        (1_096, 60, (29, 60, 111)),
        (1_096, 120, (48, 120, 199)),
        (1_096, 200, (67, 200, 307)),
        (1_096, 300, (90, 300, NOT_WITHIN_HORIZON)),
        (MANY_DAYS, 20, (15, 20, 33)),
        (MANY_DAYS, 60, (26, 60, 133)),
        (MANY_DAYS, 300, (75, 283, NOT_WITHIN_HORIZON)),
        (100, 20, (9, 20, 76)),
        (100, 120, (20, 109, 353)),
        (100, 300, (33, 206, NOT_WITHIN_HORIZON)),
    ],
)
def test_how_far_the_days_of_even_growth_are_apart_depends_on_its_history(
    history: int, due: int, days: tuple[int, int, int]
) -> None:
    made = one(line(5, history))
    ends = compute_fill_days(made, made.last + 5 * due)

    assert (ends.early_days[0], ends.middle_days[0], ends.late_days[0]) == days


@given(st.sampled_from([60, 100, MANY_DAYS, 1_096]), st.floats(0.001, 10_000), st.floats(0.5, 400))
@example(MANY_DAYS, 10, 115)
def test_a_limit_one_part_in_a_thousand_higher_moves_days_of_even_growth_by_little(
    history: int, per_day: float, due: float
) -> None:
    made = one(line(per_day, history))
    free = per_day * due
    low, high = (compute_fill_days(made, made.last + more) for more in (free, free * 1.001))

    for name in ("early_days", "middle_days", "late_days"):
        before, after = (
            RISE_DAYS[-1] + 1 if day == NOT_WITHIN_HORIZON else day
            for [day] in (getattr(low, name), getattr(high, name))
        )
        assert before <= after <= before + 2, name


@given(st.sampled_from([60, 100, MANY_DAYS, 1_096]), st.integers(1, 100), st.integers(0, 100), st.integers(1, 400))
def test_even_growth_with_more_growth_is_that_of_the_steeper_line(
    history: int, per_day: int, more: int, due: int
) -> None:
    start = 1_000_000
    made = one(line(per_day, history, start + more * (history - 1)))
    steeper = one(line(per_day + more, history, start))

    changed = with_growth(made, made.last, made.drift + more)

    limit = made.last + (per_day + more) * due + 0.5
    for name in ("early_days", "middle_days", "late_days", "probability"):
        found, expected = (getattr(compute_fill_days(each, limit), name) for each in (changed, steeper))
        np.testing.assert_allclose(found, expected, err_msg=name)
    for name in ("lower", "middle", "upper", "pace", "spread"):
        np.testing.assert_allclose(getattr(changed, name), getattr(steeper, name), err_msg=name)


def test_no_more_growth_changes_no_digit() -> None:
    made = one(purged_growth(700, 60, 1_200))
    same = with_growth(made, made.last, made.drift)

    for name in ("drift", "lower", "upper", "rises", "pace", "spread"):
        np.testing.assert_array_equal(getattr(same, name), getattr(made, name))


def test_a_series_that_stands_still_is_seldom_full_but_nothing_is_certain() -> None:
    made = one(line(0))
    nearly_full = compute_fill_days(made, np.array([10_001.0]))

    assert nearly_full.probability[0].round(3).tolist() == [0.004, 0.021, 0.071, 0.213]
    assert (nearly_full.early_days[0], nearly_full.middle_days[0]) == (121, NOT_WITHIN_HORIZON)
    assert compute_fill_days(made, np.array([20_000.0])).probability[0].round(3).tolist() == [0.002, 0.008, 0.031, 0.13]


def test_only_what_is_full_is_certain() -> None:
    made = one(line(500, 1_096))

    assert compute_fill_days(made, made.last + 1).probability[0].max() == MOST_PROBABLE
    assert compute_fill_days(made, made.last).probability[0].tolist() == [1, 1, 1, 1]


def test_a_step_is_no_trend() -> None:
    moved = line(2)
    moved[300:] += 5_000

    assert one(moved).drift.tolist() == [2]


def test_with_a_purge_every_45_days_the_band_is_narrower_after_90_days_than_after_30() -> None:
    days = np.arange(700, dtype=np.float64)

    found = one(10_000 + 22 * (days % 45))

    widths = dict(zip(HORIZONS_DAYS, (found.upper - found.lower)[0], strict=True))
    assert widths[7] > 800, "a purge of 990 MiB may come within a week"
    assert widths[30] > 800
    assert widths[90] == pytest.approx(0, abs=1e-6), "90 days later it lies at the same place between two purges"


def test_growth_under_regular_purges_is_forecast_by_the_slope_of_its_sizes() -> None:
    """It grows by 1,800 and loses 1,200 of that every 60 days: by 10 a day, and not by 30 or 0."""
    made = one(purged_growth(700, 60, 1_200))

    assert made.method.tolist() == [SLOPE]
    assert made.drift[0] == pytest.approx(10, abs=0.5)
    year = HORIZONS_DAYS.index(365)
    assert made.middle[0, year] == pytest.approx(made.last[0] + 3_650, abs=200)
    assert made.last[0] < made.lower[0, year] <= made.middle[0, year] <= made.upper[0, year]


def test_the_slope_needs_477_days_of_history() -> None:
    least = LEAST_SLOPE_CHANGES + JUDGED_BY_DAYS + ORIGIN_STEP_DAYS * (LEAST_SLOPE_ERRORS - 1) + 1

    assert one(purged_growth(least, 60, 1_200)).method.tolist() == [SLOPE]
    assert one(purged_growth(least - 1, 60, 1_200)).method.tolist() != [SLOPE]


def test_even_growth_keeps_its_mean_change() -> None:
    assert one(line(5, 1_096)).method.tolist() == [MEAN_CHANGE]


@pytest.mark.nightly("forecasts thousands of series")
def test_errors_of_rounding_choose_no_method() -> None:
    random = np.random.default_rng(5)
    for days in (479, 668, 1_030):
        for _ in range(20):
            even = line(0.1, days, 100)
            even[1:-1][random.random(days - 2) < 0.05] = np.nan

            made, other = one(even), reference([None if np.isnan(size) else float(size) for size in even])

            assert made.method.tolist() == [MEAN_CHANGE]
            assert [len(errors) for errors in other.errors.values()] == made.counts[0].tolist(), "of the same method"


def test_what_has_been_empty_for_a_year_fills_by_the_rises_before_in_both_calculations() -> None:
    """Its rises are more than 10,000 times the largest size of the last year, which counts as 1 MiB."""
    emptied = np.where(np.arange(471) < 471 - 367, line(3_000, 471, 0), 0)
    made, other = one(emptied), reference(emptied.tolist())
    ends = compute_fill_days(made, np.array([15_000.0]))

    for percent, days in ((10, ends.early_days), (50, ends.middle_days)):
        day = other.day(15_000, percent)
        assert days.tolist() == [NOT_WITHIN_HORIZON if day is None else day]
    assert ends.early_days.tolist() == [271], "nothing tells which day after the 270th"


def test_where_the_drift_was_the_worse_forecast_the_last_value_stays() -> None:
    """Growth that is purged every sixty days: without the purges, which are cut, it looks like a trend."""
    purged = 10_000 + 30.0 * (np.arange(800) % 60)

    made = one(purged)

    assert made.drift.tolist() == [0]
    assert made.middle[0].tolist() == [purged[-1]] * len(HORIZONS_DAYS)
    assert made.lower[0, 1] <= 10_000 <= made.upper[0, 1], "the purge is in the band"


@pytest.mark.parametrize("changes", [0, 1, LEAST_CHANGES - 1, 55])
def test_too_little_history_has_no_band_and_no_date(changes: int) -> None:
    made = one(line(50, changes + 1))
    ends = compute_fill_days(made, np.array([10_050.0]))

    assert made.known_changes.tolist() == [changes]
    assert np.isnan(made.upper).all()
    assert not ends.has_band[0]
    assert np.isnan(ends.probability).all()
    assert ends.middle_days.tolist() == [NOT_WITHIN_HORIZON]


def test_fifty_six_known_changes_are_enough_for_a_band() -> None:
    assert not np.isnan(one(line(50, 57)).upper).any()


def test_an_unknown_limit_gives_no_probability_and_no_limit_gives_none_of_being_full() -> None:
    ends = compute_fill_days(forecast(np.stack([line(5), line(5)])), np.array([np.nan, np.inf]))

    assert ends.is_known.tolist() == [False, True]
    assert np.isnan(ends.probability[0]).all()
    assert ends.probability[1].tolist() == [0, 0, 0, 0]
    assert ends.early_days.tolist() == [NOT_WITHIN_HORIZON] * 2


def test_the_middle_day_agrees_with_the_probabilities() -> None:
    """Purged every sixty days: the last size stays, but most weeks end above it."""
    made = one(10_000 + 30.0 * (np.arange(805) % 60))
    ends = compute_fill_days(made, made.last + 150)

    assert made.drift.tolist() == [0]
    assert ends.probability[0, 0] > 0.7
    assert 1 <= ends.middle_days[0] <= 7


def test_what_is_full_already_is_full_today() -> None:
    ends = compute_fill_days(one(line(5)), np.array([12_495.0]))

    assert (ends.early_days[0], ends.late_days[0]) == (0, 0)
    assert ends.probability[0].tolist() == [1, 1, 1, 1]


def test_days_without_a_measurement_lie_on_the_line_between_their_neighbours() -> None:
    whole, gaps = line(5), line(5)
    gaps[100:140] = np.nan
    gaps[::7] = np.nan
    gaps[0] = whole[0]

    assert one(gaps).drift == pytest.approx(one(whole).drift)


def test_only_so_many_days_are_looked_at() -> None:
    longer = np.concatenate([line(1_000, 200), line(5, HISTORY_DAYS)])

    assert one(longer).drift.tolist() == one(line(5, HISTORY_DAYS)).drift.tolist()


@given(st.lists(series(), min_size=2, max_size=4))
def test_a_forecast_depends_on_its_own_series_alone(every: list[Sizes]) -> None:
    width = max(map(len, every))
    batch = np.full((len(every), width), np.nan)
    for row, values in zip(batch, every, strict=True):
        row[width - len(values) :] = values
    order = np.random.default_rng(1).permutation(len(every))

    together, shuffled = forecast(batch), forecast(batch[order])

    for name in ("drift", "lower", "upper", "errors", "rises", "pace", "spread", "fallen"):
        np.testing.assert_array_equal(getattr(together, name)[order], getattr(shuffled, name))
    ends, again = (compute_fill_days(each, each.last * 1.05) for each in (together, shuffled))
    np.testing.assert_array_equal(ends.probability[order], again.probability)
    for place, values in enumerate(every):
        np.testing.assert_array_equal(forecast(values[None, :]).upper[0], together.upper[place])


GROWTH_WITH_PURGES = st.builds(
    purged_growth, st.integers(300, 900), st.integers(5, 90), st.integers(0, 2_000), st.integers(0, 90)
)


@given(
    st.one_of(series(), st.builds(sawtooth, st.integers(0, 11)), GROWTH_WITH_PURGES),
    st.integers(0, 5_000),
    st.sampled_from([0, 90_000]),
)
def test_the_forecast_equals_the_calculation_value_by_value(values: Sizes, missing: int, less: int) -> None:
    values = np.maximum(values - less, 0)  # to zero, below which no forecast goes
    made = one(values)
    other = reference([None if np.isnan(value) else float(value) for value in values])
    # No size is a whole number and a bit, so that the last digit of a sum decides nothing.
    limit = made.last[0] + missing + 0.3721
    ends = compute_fill_days(made, np.array([limit]))

    assert made.drift[0] == pytest.approx(other.drift, abs=1e-6)
    assert [len(errors) >= LEAST_ERRORS for errors in other.errors.values()] == (made.counts[0] > 0).tolist()
    for place, days in enumerate(HORIZONS_DAYS):
        band = (made.lower[0, place], made.upper[0, place])
        assert band == pytest.approx(other.band.get(days, (np.nan, np.nan)), abs=1e-3, nan_ok=True), days
        probability = other.probabilities(limit).get(days, np.nan)
        assert ends.probability[0, place] == pytest.approx(probability, nan_ok=True), days
    for percent, found in ((10, ends.early_days), (50, ends.middle_days), (90, ends.late_days)):
        day = other.day(limit, percent)
        assert found[0] == (NOT_WITHIN_HORIZON if day is None else day)


@given(series(), st.integers(1, 50))
def test_adding_a_constant_moves_forecast_and_band_by_it(values: Sizes, hundred_thousands: int) -> None:
    moved = 100_000.0 * hundred_thousands
    # Far from zero, below which no size goes.
    before, after = one(values + 10_000_000), one(values + 10_000_000 + moved)

    assert after.drift == pytest.approx(before.drift, abs=1e-6)
    np.testing.assert_allclose(after.upper - moved, before.upper, atol=1e-3)
    np.testing.assert_allclose(after.lower - moved, before.lower, atol=1e-3)


@given(series(), st.sampled_from([0.5, 2.0, 1024.0]))
def test_scaling_all_sizes_scales_the_band(values: Sizes, factor: float) -> None:
    before, after = one(values), one(values * factor)

    for name in ("drift", "lower", "upper"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name) * factor)


@given(series(), st.floats(0, 2), st.floats(0, 2))
def test_a_raised_limit_is_never_reached_sooner_and_a_longer_horizon_never_less_likely(
    values: Sizes, share: float, more: float
) -> None:
    made = forecast(np.stack([values, values]))
    limit = made.last[0] * (1 + share)
    ends = compute_fill_days(made, np.array([limit, limit * (1 + more)]))

    for days in (ends.early_days, ends.middle_days, ends.late_days):
        low, high = (HORIZONS_DAYS[-1] + 1 if day == NOT_WITHIN_HORIZON else day for day in days)
        assert low <= high
    if ends.has_band[0]:
        assert (ends.probability[0] >= ends.probability[1]).all()
        assert (np.diff(ends.probability, axis=1) >= 0).all()


@given(series())
def test_the_early_day_comes_before_the_late_one(values: Sizes) -> None:
    made = one(values)
    ends = compute_fill_days(made, made.last * 1.05)
    in_order = [
        HORIZONS_DAYS[-1] + 1 if day == NOT_WITHIN_HORIZON else day
        for day in (ends.early_days[0], ends.middle_days[0], ends.late_days[0])
    ]

    assert in_order == sorted(in_order)
    if not np.isnan(made.upper[0, 0]):
        assert (made.lower <= made.middle).all()
        assert (made.middle <= made.upper).all()


@given(series(), st.integers(1, 699), st.integers(-50_000, 50_000))
def test_a_declared_step_leaves_the_forecast_as_if_the_size_had_always_been_the_new_one(
    values: Sizes, day: int, jump: int
) -> None:
    day %= len(values)
    measured = np.flatnonzero(~np.isnan(values))
    after = int(np.searchsorted(measured, day))
    if 0 < after < len(measured):  # on the day of the step nothing else changes
        values[measured[after] :] += values[measured[after - 1]] - values[measured[after]]
    stepped = values.copy()
    stepped[day:] += jump

    smooth = without_steps(stepped[None, :], [[day]])

    if 0 < after < len(measured):
        assert np.array_equal(smooth[0], values + jump, equal_nan=True)
        assert np.allclose(forecast(smooth).drift, one(values).drift), "up to the last digits of sizes between gaps"
    else:
        assert np.array_equal(smooth[0], stepped, equal_nan=True), "what was not measured on both sides stays"


@given(series(), st.lists(st.integers(1, 699), max_size=3))
def test_a_series_with_steps_is_forecast_the_same_by_both_ways(values: Sizes, days: list[int]) -> None:
    smooth = without_steps(values[None, :], [days])
    made = forecast(smooth, values[None, :])
    plain, measured = ([None if np.isnan(size) else float(size) for size in each] for each in (smooth[0], values))

    again = reference(plain, measured)

    assert np.isclose(made.drift[0], again.drift)
    for place, horizon in enumerate(HORIZONS_DAYS):
        lower, upper = again.band.get(horizon, (np.nan, np.nan))
        assert np.allclose([made.lower[0, place], made.upper[0, place]], [lower, upper], equal_nan=True, rtol=1e-6)


@given(
    st.one_of(series(), st.builds(sawtooth, st.integers(0, 11))),
    st.one_of(st.integers(1, 200), st.integers(1, 5_000), st.floats(0.01, 100_000)),
)
@example(sawtooth(10), 2)
def test_a_day_lies_within_a_horizon_if_and_only_if_the_probability_there_is_its_share(
    values: Sizes, missing: float
) -> None:
    made = one(values)
    ends = compute_fill_days(made, made.last + missing)

    for place, horizon in enumerate(HORIZONS_DAYS):
        for share, days in ((0.1, ends.early_days), (0.5, ends.middle_days), (0.9, ends.late_days)):
            assert (0 <= days[0] <= horizon) == (ends.probability[0, place] >= share), (horizon, share)
    reached = [day for day in (ends.early_days[0], ends.middle_days[0], ends.late_days[0]) if day >= 0]
    assert reached == sorted(reached)


def test_two_steps_between_the_same_two_measured_days_are_one_change() -> None:
    sizes = np.array([[100.0, 100.0, np.nan, np.nan, 50.0, 50.0]])

    assert without_steps(sizes, [[2, 3]])[0].tolist()[:2] == [50, 50]


def test_the_document_has_the_rules_and_an_example_that_can_be_recomputed() -> None:
    document = " ".join((ROOT / "docs" / "forecast.md").read_text().split())
    example = reference([1_000 + 2 * day + 45 * (day // 30) for day in range(200)])
    limit = 1_708

    assert f"to the range from {example.lowest_change:g} to {example.highest_change:g}" in document
    early, middle, late = (example.day(limit, percent) for percent in (10, 50, 90))
    assert (
        f"early date is after {early} days, the middle date after {middle}, and the late date after {late}" in document
    )
    for days, (lower, upper) in example.band.items():
        figures = f"{len(example.errors[days])} | {lower:,.1f} | {example.ahead(days):,.1f} | {upper:,.1f}"
        assert f"| {days} days | {figures} | {example.probabilities(limit)[days]:.1%} |".replace("%", " %") in document
        weights = " | ".join(f"{weight:.2f}" for weight in WEIGHTS[days])
        assert f"| {days} days | {weights} |" in document
    for rule in (
        f"for the {HISTORY_DAYS:,} days up to",
        f"{WINSORISED_SHARE:.0%} and {1 - WINSORISED_SHARE:.0%} quantiles".replace("%", " %"),
        f"mean of the last {DRIFT_DAYS} changes",
        f"at most {MOST_ORIGINS}, each with at least {LEAST_CHANGES} changes before it",
        f"at least {LEAST_SLOPE_CHANGES} changes before the day",
        f"{MOST_SLOPE_ERROR} times the smaller of the other two sums",
        f"at least {LEAST_SLOPE_ERRORS} errors",
        f"The deciding horizon is {JUDGED_BY_DAYS} days",
        f"*m* = {ORIGIN_STEP_DAYS} *n* / *h*",
        f"*t* = {(1 - BAND) / 2:.1f} ",
        f"to the power of {GROWTH_OF_ERRORS}",
        f"within {', '.join(map(str, RISE_DAYS[:-1]))} and {RISE_DAYS[-1]} days",
        f"to the range from 0 to {MOST_USED:g}",
        f"not below {SMALLEST_FREE} and not above {LARGEST_FREE:g}",
        f"at most {MOST_ACTIVE}",
        f"at most {MOST_PROBABLE:.0%}".replace("%", " %"),
    ):
        assert rule in document, rule


def test_the_statements_that_list_horizons_list_all_of_them() -> None:
    [errors] = [view for view in RUNWAY_VIEWS if view.name == "capacity_forecast_errors"]

    for days in HORIZONS_DAYS:
        assert f"({days}, r.forecast_{days}_mb, " in errors.query
        assert f"r.probability_{days}" in STANDS_FOR_ITSELF
