"""The legacy system's own rows: equal where docs/semantics.md says so, different only where it says why."""

from __future__ import annotations

import csv
from datetime import date
from decimal import Decimal
from fractions import Fraction

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, Level
from capacity_assets.aggregates.service import AggregationService
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.fleet import SAMPLE, Row, figures, load_sample

FIRST_DAY, LAST_DAY = date(2025, 1, 1), date(2025, 7, 20)
LEGACY_PERIODS = ("daily", "weekly", "monthly", "quarterly")


def legacy_rows(level: Level) -> dict[tuple[object, ...], dict[str, str]]:
    with (SAMPLE / f"legacy_{level.target.name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(*_key(level, row), row["period_type"], date.fromisoformat(row["period_start"])): row for row in rows}


def _key(level: Level, row: dict[str, str]) -> tuple[object, ...]:
    return (int(row["instance_id"]), row["database_name"]) if level is DATABASE else (int(row["instance_id"]),)


def as_text(value: object) -> str:
    return "" if value is None else str(value)


def compared_columns(level: Level) -> list[str]:
    differ = ("change", "growth", "trend")
    # Neither log sizes, used space nor further measures were ever aggregated by the legacy code.
    added = ("log_size", "used_size", "last_", "yearly_rate", *level.sums)
    return [name for name in level.figures if not any(word in name for word in (*differ, *added))]


def the_sample_in_the_legacy_periods(engine: Engine) -> None:
    load_sample(engine)
    service = AggregationService(engine, fixed_clock())
    for period in LEGACY_PERIODS:
        compute_windows(service, period, FIRST_DAY, LAST_DAY)


PREPARED = {"computed": the_sample_in_the_legacy_periods}


@pytest.fixture
def computed(engine: Engine) -> Engine:
    return engine


@pytest.mark.parametrize("level", [DATABASE, INSTANCE], ids=lambda level: level.name)
def test_all_columns_but_change_growth_and_trend_agree_with_the_legacy_rows(computed: Engine, level: Level) -> None:
    legacy, ours = legacy_rows(level), figures(computed, level)

    assert ours.keys() == legacy.keys()
    assert len(ours) > 700
    differences = [
        (key, name, row[name], as_text(ours[key][name]))
        for key, row in legacy.items()
        for name in compared_columns(level)
        if row[name] != as_text(ours[key][name])
    ]
    assert differences == []


def is_tie(row: Row) -> bool:
    """Whether the exact percent of a daily row lies half-way between two hundredths."""
    size, change = int(str(row["avg_size_mb"])), int(str(row["size_change_mb"]))
    return (Fraction(change, size - change) * 100 * 100).denominator == 2


def test_daily_changes_agree_with_the_legacy_rows_wherever_the_day_before_was_measured(computed: Engine) -> None:
    """A day has one sample, so the legacy truncation of the mean cannot show.

    Two differences are the law's: unknown was 0 there and is null here, and a tie was rounded to even there
    and is rounded away from zero here.
    """
    legacy, ours = legacy_rows(DATABASE), figures(computed, DATABASE, "daily")
    known = {key: row for key, row in ours.items() if row["size_change_mb"] is not None}

    assert len(known) > 2800
    for key, row in known.items():
        assert int(legacy[key]["size_change_mb"]) == row["size_change_mb"], key
    different = [
        key
        for key, row in known.items()
        if row["size_change_percent"] is not None
        and Decimal(legacy[key]["size_change_percent"]) != row["size_change_percent"]
    ]
    assert 0 < len(different) < 100
    assert all(is_tie(known[key]) for key in different)
    for key in ours.keys() - known.keys():
        assert int(legacy[key]["size_change_mb"]) == 0, key


@pytest.mark.parametrize("period", ["weekly", "monthly"])
def test_longer_changes_differ_from_the_legacy_rows_by_its_truncated_mean_only(computed: Engine, period: str) -> None:
    """Legacy subtracted an exact mean from a truncated one, which is off by less than one megabyte."""
    legacy, ours = legacy_rows(DATABASE), figures(computed, DATABASE, period)
    known = {key: int(str(row["size_change_mb"])) for key, row in ours.items() if row["size_change_mb"] is not None}

    assert len(known) > 90
    assert all(abs(int(legacy[key]["size_change_mb"]) - change) <= 1 for key, change in known.items())


def test_instances_that_are_inactive_or_have_no_samples_have_no_rows(computed: Engine) -> None:
    present = {key[0] for key in figures(computed, DATABASE)}

    assert present == {1, 3, 8, 14}
