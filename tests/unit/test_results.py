"""Summaries: totals are sums by construction, statuses follow one rule, parts add up."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from capacity_assets.aggregates.runs import InstanceError, PeriodSummary, RunSummary, WindowCoverage
from capacity_assets.base.errors import AggregationStatus
from capacity_assets.collection.service import CollectionSummary

DAY = PeriodSummary("daily", "database", date(2025, 3, 1), date(2025, 3, 1))


def failures(count: int) -> tuple[InstanceError, ...]:
    return tuple(InstanceError(number, f"server-{number}", "out of range") for number in range(count))


@pytest.mark.parametrize(
    ("processed", "failed", "skipped", "status"),
    [
        (0, 0, 0, "skipped"),
        (0, 0, 5, "skipped"),
        (1, 0, 5, "completed"),
        (5, 1, 0, "failed"),
        (0, 1, 9, "failed"),
    ],
)
def test_status_is_failed_if_any_failed_else_skipped_if_none_was_processed(
    processed: int, failed: int, skipped: int, status: str
) -> None:
    summary = replace(DAY, processed_instances=processed, failed_instances=failed, skipped_instances=skipped)

    assert summary.status.value == status
    assert summary.total_instances == processed + failed + skipped


def test_parts_of_one_window_add_up_and_errors_stay_capped_with_the_exact_count_beside() -> None:
    first = replace(DAY, processed_instances=2, failed_instances=15, written_records=4, errors=failures(15))
    second = replace(DAY, skipped_instances=1, failed_instances=15, unchanged_records=3, errors=failures(15))

    total = first + second

    assert (total.total_instances, total.total_records) == (33, 7)
    assert total.to_dict()["error_count"] == 30
    assert len(total.errors) == 20


def test_a_run_is_failed_if_any_part_is_and_skipped_only_if_all_are() -> None:
    completed = replace(DAY, processed_instances=1)
    failed = replace(DAY, level="instance", failed_instances=1, errors=failures(1))

    assert RunSummary((DAY, DAY)).status is AggregationStatus.SKIPPED
    assert RunSummary((DAY, completed)).status is AggregationStatus.COMPLETED
    assert RunSummary((completed, failed)).status is AggregationStatus.FAILED
    assert RunSummary((failed,)).everything_failed
    skipped = RunSummary((replace(DAY, skipped_instances=1),) * 2).message
    assert skipped == f"Nothing to do: no active server has samples in this window (from {DAY.period_start})."
    assert not RunSummary((completed, failed)).everything_failed


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((1, 1, 0), "1 server failed and has no sample of this day. The other server is stored."),
        ((0, 3, 2), "3 servers failed: 1 has no sample of this day, 2 kept that of an earlier run."),
        ((0, 2, 2), "2 servers failed; their samples from an earlier run today are kept."),
    ],
)
def test_a_collection_says_which_servers_that_failed_keep_a_sample(counts: tuple[int, int, int], told: str) -> None:
    message = CollectionSummary(date(2025, 7, 20), None, counts[0], counts[1], kept_instances=counts[2]).message

    assert message.endswith(f" {told} Run the same command again to measure what failed.")


def test_an_open_window_says_how_many_of_its_days_were_measured_so_far() -> None:
    run = replace(DAY, processed_instances=3, written_records=3, coverage=WindowCoverage(26, 27, 30))

    assert run.message.endswith("The window is open: samples on 26 of 27 days so far; it has 30 days.")
    kept = {name: run.to_dict()[name] for name in ("measured_days", "elapsed_days", "window_days", "coverage_percent")}
    assert kept == {"measured_days": 26, "elapsed_days": 27, "window_days": 30, "coverage_percent": 86.7}
    assert run.to_dict()["is_open"] is True
    assert replace(run, coverage=WindowCoverage(29, 30, 30)).message.endswith("Samples on 29 of 30 days.")
