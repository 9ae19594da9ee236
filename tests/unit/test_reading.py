"""What a single window and the two it is compared with are read from, where rows are distributed and where not."""

from __future__ import annotations

from datetime import date

import pytest

from capacity_assets.aggregation.options import DEFAULT_OPTIONS
from capacity_assets.aggregation.parts import Part, Parts
from capacity_assets.aggregation.work import InstanceRef, Work
from capacity_assets.periods import PERIODS

APRIL = date(2025, 4, 1)
MONTHS = ["2025-04", "2025-05", "2025-06"]


def stored(period: str, *months: str) -> list[Part]:
    return [(period, PERIODS[period].window_of(date.fromisoformat(f"{month}-01"))) for month in months]


def work(period: str, usable: list[Part], *, distributed: bool = True, windows: int = 1) -> Work:
    chosen = PERIODS[period]
    asked = [chosen.window_of(APRIL)]
    while len(asked) < windows:
        asked.insert(0, chosen.previous(asked[0]))
    return Work(chosen, asked, [InstanceRef(1, "db-1")], DEFAULT_OPTIONS, Parts(PERIODS, usable), distributed)


@pytest.mark.parametrize(
    ("period", "usable", "sources"),
    [
        ("monthly", stored("monthly", "2024-04", "2025-03"), ("days", "stored", "stored")),
        ("monthly", stored("monthly", "2025-03"), ("days", "stored", "days")),
        ("quarterly", stored("monthly", *MONTHS), ("stored", "days", "days")),
        ("quarterly", stored("monthly", *MONTHS) + stored("quarterly", "2025-01"), ("stored", "stored", "days")),
        ("quarterly", stored("quarterly", "2024-04"), ("days", "days", "stored")),
        # The window before a year is that of a year before.
        ("yearly", stored("yearly", "2024-01"), ("days", "stored", "stored")),
    ],
)
def test_each_of_three_windows_is_read_from_one_source(
    period: str, usable: list[Part], sources: tuple[str, ...]
) -> None:
    distributed, alone = work(period, usable), work(period, usable, distributed=False)

    assert distributed.form.sources == sources
    assert distributed.reading == alone.reading
    assert (alone.form.sources, alone.form.from_stored, alone.form.reads_days) == ((), True, True)


@pytest.mark.parametrize(
    ("usable", "sources", "days"),
    [
        # A month of it, beside the quarter before.
        (
            stored("monthly", "2025-04") + stored("quarterly", "2025-01"),
            ("days", "stored", "days"),
            ["2024-04", "2025-04"],
        ),
        # All of its months, and one of the quarter before.
        (stored("monthly", *MONTHS, "2025-02"), ("stored", "days", "days"), ["2024-04", "2025-01"]),
    ],
)
def test_a_window_that_is_stored_in_part_is_read_from_its_days_on_nodes(
    usable: list[Part], sources: tuple[str, ...], days: list[str]
) -> None:
    found = work("quarterly", usable)

    assert found.form.sources == sources
    assert found.reading.days == tuple(window for _, window in stored("quarterly", *days))


@pytest.mark.parametrize(
    ("period", "usable", "windows"),
    [
        ("quarterly", stored("monthly", "2025-04"), 1),  # a part of the window alone
        ("monthly", stored("monthly", "2025-02"), 2),  # several windows
        ("monthly", [], 1),
    ],
)
def test_where_one_window_would_be_read_from_both_nodes_read_days_alone(
    period: str, usable: list[Part], windows: int
) -> None:
    found = work(period, usable, windows=windows)

    assert (found.form.sources, found.form.from_stored, found.reading.parts) == ((), False, ())
    assert bool(work(period, usable, windows=windows, distributed=False).reading.parts) == bool(usable)


@pytest.mark.parametrize("distributed", [True, False])
def test_a_month_whose_others_are_stored_reads_its_own_days_only(*, distributed: bool) -> None:
    found = work("monthly", stored("monthly", "2024-04", "2025-03"), distributed=distributed)

    assert found.reading.days == (PERIODS["monthly"].window_of(APRIL),)
    assert found.parameters()["cuts"] == [APRIL, date(2025, 5, 1)]


def test_what_is_stored_whole_needs_no_join() -> None:
    found = work("monthly", stored("monthly", "2025-03"))
    whole = work("quarterly", stored("monthly", *MONTHS) + stored("quarterly", "2024-04", "2025-01"))

    assert found.form.sources == ("days", "stored", "days")
    assert (whole.form.sources, whole.form.from_stored, whole.form.reads_days) == ((), True, False)
