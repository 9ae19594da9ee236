"""Sizes as people read them: binary units, named as such, and differences that can be seen."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity_assets.base.units import (
    counted,
    first_of,
    human_change_mb,
    human_mb,
    human_pair_mb,
    human_percent,
    human_probability,
    human_range,
    human_rate,
    natural_key,
    printable,
)


@pytest.mark.parametrize(
    ("size_mb", "shown"),
    [
        (0, "0 MiB"),
        (1023, "1,023 MiB"),
        (1024, "1.0 GiB"),
        (-2048, "-2.0 GiB"),
        (6_471_861, "6.17 TiB"),
        (1_048_575, "1.00 TiB"),
        (1024**3, "1.000 PiB"),
        (5000 * 1024**3, "5,000.000 PiB"),
    ],
)
def test_a_size_has_a_fitting_binary_unit(size_mb: int, shown: str) -> None:
    assert human_mb(size_mb) == shown


def test_a_change_has_its_sign_and_none_has_none() -> None:
    assert [human_change_mb(change) for change in (5, 0, -5)] == ["+5 MiB", "0 MiB", "-5 MiB"]


def test_a_small_change_per_day_has_the_decimals_that_it_takes_to_be_seen() -> None:
    rates = {2048.4: "+2.0 GiB", 10.6: "+11 MiB", 9.96: "+10 MiB", 5: "+5 MiB", -0.42: "-0.4 MiB", 0.034: "+0.034 MiB"}
    assert {rate: human_rate(rate) for rate in (*rates, 0)} == {
        rate: f"{shown} per day" for rate, shown in (rates | {0: "0 MiB"}).items()
    }


@pytest.mark.parametrize(
    ("sizes_mb", "shown"),
    [
        ((6_275_000, 6_471_861), ("5.98 TiB", "6.17 TiB")),
        ((6_471_800, 6_471_861), ("6.17199 TiB", "6.17205 TiB")),
        ((6_471_861, 6_471_861), ("6.17 TiB", "6.17 TiB")),
        ((700, 1500), ("0.7 GiB", "1.5 GiB")),
        ((7, 9), ("7 MiB", "9 MiB")),
    ],
)
def test_two_sizes_share_a_unit_and_have_the_decimals_that_their_difference_takes(
    sizes_mb: tuple[int, int], shown: tuple[str, str]
) -> None:
    assert human_pair_mb(*sizes_mb) == shown


@given(st.integers(0, 10**10), st.integers(0, 10**10))
def test_a_difference_can_always_be_seen(one: int, other: int) -> None:
    before, now = human_pair_mb(one, other)

    assert before.split(" ")[1] == now.split(" ")[1]
    assert (before == now) == (one == other)


@pytest.mark.parametrize(
    ("change", "of", "shown"), [(1, 0, "unknown"), (0, 5, "0.0 %"), (5, 1000, "+0.5 %"), (-25, 10000, "-0.3 %")]
)
def test_shares_round_half_away_from_zero_and_from_nothing_there_is_none(change: int, of: int, shown: str) -> None:
    assert human_percent(change, of) == shown


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(0.5, "50 %"), (0.499, "49 %"), (0.57, "57 %"), (0.29, "29 %"), (0.996, "99 %"), (1, "100 %"), (0, "0 %")],
)
def test_a_probability_is_not_rounded_up_to_one_that_has_a_day_or_is_certain(probability: float, shown: str) -> None:
    assert human_probability(probability) == shown


def test_a_small_probability_is_not_zero() -> None:
    assert [human_probability(one) for one in (0.001, 0.009, 0.01)] == ["under 1 %", "under 1 %", "1 %"]


def test_control_characters_of_a_name_are_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[2Jb\nc\u202e日本") == "a\\x1b[2Jb\\nc\\u202e日本"
    assert first_of(["x\x07"], 3) == "x\\x07"


def test_one_thing_is_singular() -> None:
    assert [counted(count, "server") for count in (0, 1, 2000)] == ["0 servers", "1 server", "2,000 servers"]


def test_names_are_sorted_as_people_count() -> None:
    assert sorted(["db-10", "DB-2", "db-1", "9", "a"], key=natural_key) == ["9", "a", "db-1", "DB-2", "db-10"]


def test_a_range_of_fill_dates_says_once_what_its_ends_share_and_where_the_forecast_ends() -> None:
    early, late, beyond = date(2027, 2, 17), date(2027, 3, 17), date(2027, 11, 28)
    assert human_range(early, late, beyond) == "17 Feb to 17 Mar 2027"
    assert human_range(date(2027, 9, 10), None, beyond) == "10 Sep 2027 to beyond Nov 2027"
    assert human_range(date(2026, 12, 10), None, beyond) == "10 Dec 2026 to beyond Nov 2027"
    assert [human_range(early, early, beyond), human_range(None, None, beyond)] == ["", ""]
