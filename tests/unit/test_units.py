"""Sizes as people read them."""

from __future__ import annotations

import pytest

from capacity_assets.units import human_change_mb, human_mb


@pytest.mark.parametrize(
    ("size_mb", "shown"),
    [
        (0, "0 MB"),
        (1023, "1,023 MB"),
        (1024, "1.0 GB"),
        (-2048, "-2.0 GB"),
        (1_048_575, "1.0 TB"),
        (1024**3, "1.0 PB"),
        (5000 * 1024**3, "5,000.0 PB"),
    ],
)
def test_a_size_has_a_fitting_unit(size_mb: int, shown: str) -> None:
    assert human_mb(size_mb) == shown


def test_a_change_has_its_sign_and_none_has_none() -> None:
    assert [human_change_mb(change) for change in (5, 0, -5)] == ["+5 MB", "0 MB", "-5 MB"]
