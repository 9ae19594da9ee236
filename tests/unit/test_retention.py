"""CAPACITY_RETENTION_DAYS: the more exact rule wins, and a mistake is reported with the variable's name."""

from __future__ import annotations

import pytest

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.base.settings import ConfigurationError
from capacity_assets.history.retention import parse_retention


def test_by_default_samples_stay_400_days_daily_rows_three_years_and_the_rest_for_ever() -> None:
    retention = parse_retention("")

    assert [retention.of(level.source) for level in (DATABASE, INSTANCE)] == [400, 400]
    assert {period: retention.of(DATABASE.target, period) for period in PERIODS} == {
        "daily": 1096,
        "weekly": None,
        "monthly": None,
        "quarterly": None,
        "yearly": None,
    }


def test_a_rule_for_a_table_goes_before_the_one_for_its_kind_and_what_is_not_named_keeps_its_default() -> None:
    retention = parse_retention(" raw=100, instance_size_stats = forever ,weekly_database_aggregations=50")

    assert (retention.of(DATABASE.source), retention.of(INSTANCE.source)) == (100, None)
    assert retention.of(DATABASE.target, "weekly") == 50
    assert retention.of(INSTANCE.target, "weekly") is None
    assert retention.of(INSTANCE.target, "daily") == 1096


def test_a_period_that_is_registered_later_can_be_named() -> None:
    periods = PERIODS | {"halfyearly": Period("halfyearly", months=6)}

    assert parse_retention("halfyearly=900", periods).of(DATABASE.target, "halfyearly") == 900


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hourly=5", "CAPACITY_RETENTION_DAYS: 'hourly' is not one of capacity_runways, daily, "),
        ("raw", "CAPACITY_RETENTION_DAYS: 'raw' is not a rule; write for example raw=400"),
        ("raw=0", "'raw=0' is not a rule"),
        ("raw=-3", "'raw=-3' is not a rule"),
        ("raw=1e3", "'raw=1e3' is not a rule"),
        ("raw=10000000000", "is not a rule"),
        ("daily=never", "'daily=never' is not a rule"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(value: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_retention(value)
