"""Partitions are the windows of the registry, in every zone, the current one included."""

from __future__ import annotations

import warnings
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.partitions import SAMPLE_DAY, days_behind_a_window, partitions_of, windows_of

# Shanghai has no daylight saving; Berlin and New York change at night; Santiago and Cairo change at
# midnight, so that one midnight a year does not exist; Kathmandu is off by a quarter of an hour.
ZONES = ["Asia/Shanghai", "Europe/Berlin", "America/New_York", "America/Santiago", "Africa/Cairo", "Asia/Kathmandu"]


def settings_in(monkeypatch: pytest.MonkeyPatch, zone: str, start: str = "2025-01-01") -> Settings:
    monkeypatch.setenv("CAPACITY_TIMEZONE", zone)
    monkeypatch.setenv("CAPACITY_START_DATE", start)
    return Settings()


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("period", PERIODS.values(), ids=PERIODS.keys())
def test_keys_are_exactly_the_windows_from_the_start_date_to_the_current_one(
    monkeypatch: pytest.MonkeyPatch, zone: str, period: Period
) -> None:
    settings = settings_in(monkeypatch, zone, "2024-02-15")
    noon = datetime(2026, 11, 24, 12, tzinfo=ZoneInfo(zone))

    keys = partitions_of(period, settings).get_partition_keys(current_time=noon)

    expected = period.windows_between(date(2024, 2, 15), date(2026, 11, 24))
    assert list(keys) == [window.key for window in expected]
    assert windows_of(period, keys) == list(expected)


def test_at_half_past_midnight_in_the_zone_today_exists_while_utc_is_still_yesterday(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_in(monkeypatch, "Asia/Shanghai")
    now = datetime(2025, 12, 31, 16, 30, tzinfo=UTC)

    newest = {
        name: partitions_of(period, settings).get_partition_keys(current_time=now)[-1]
        for name, period in PERIODS.items()
    }

    assert newest == {
        "daily": "2026-01-01",
        "weekly": "2025-12-29",
        "monthly": "2026-01-01",
        "quarterly": "2026-01-01",
        "yearly": "2026-01-01",
    }


def upstream_days(settings: Settings, period: Period, key: str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        mapping = days_behind_a_window()
    aggregate = partitions_of(period, settings)
    return list(
        mapping.get_upstream_mapped_partitions_result_for_partitions(
            aggregate.subset_with_partition_keys([key]), aggregate, partitions_of(SAMPLE_DAY, settings)
        ).partitions_subset.get_partition_keys()
    )


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    ("period", "key", "first", "last", "days"),
    [
        ("daily", "2025-06-03", "2025-06-02", "2025-06-03", 2),
        ("weekly", "2025-06-09", "2025-06-02", "2025-06-15", 14),
        ("monthly", "2025-03-01", "2025-02-01", "2025-03-31", 59),
        ("quarterly", "2025-07-01", "2025-04-01", "2025-09-30", 183),
        ("yearly", "2026-01-01", "2025-01-01", "2026-11-24", 693),
    ],
)
def test_lineage_shows_the_days_of_the_window_and_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch, zone: str, period: str, key: str, first: str, last: str, days: int
) -> None:
    from dagster._core.test_utils import freeze_time

    settings = settings_in(monkeypatch, zone)
    with freeze_time(datetime(2026, 11, 24, 12, tzinfo=ZoneInfo(zone))):
        upstream = upstream_days(settings, PERIODS[period], key)

    assert (upstream[0], upstream[-1], len(upstream)) == (first, last, days)


def test_the_first_window_has_no_days_before_the_start_date_and_that_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_in(monkeypatch, "Asia/Shanghai", "2025-01-15")

    assert upstream_days(settings, PERIODS["monthly"], "2025-01-01")[0] == "2025-01-15"


def test_a_changed_day_touches_its_window_and_the_one_after(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_in(monkeypatch, "Asia/Shanghai")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        mapping = days_behind_a_window()
    days, weeks = partitions_of(SAMPLE_DAY, settings), partitions_of(PERIODS["weekly"], settings)

    touched = mapping.get_downstream_partitions_for_partitions(
        days.subset_with_partition_keys(["2025-06-03"]), days, weeks
    )

    assert list(touched.get_partition_keys()) == ["2025-06-02", "2025-06-09"]
