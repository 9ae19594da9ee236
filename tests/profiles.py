"""How thorough a run of the tests is: `CAPACITY_TEST_PROFILE`, one of fast, ci, full and nightly."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st


class Profile(NamedTuple):
    """How long a run of the tests may take."""

    histories: int
    """Generated histories per property."""
    long_histories: int
    """The same where each takes half a second."""
    kills: int
    """Kills in a row."""
    partitions: int
    """Daily partitions of one run."""
    long_tests: bool = False
    """Whether tests marked `nightly` run too."""


CI = Profile(8, 4, 2, 15)
PROFILES = {
    "fast": Profile(5, 4, 2, 15),
    "ci": CI,
    "full": CI._replace(long_tests=True),
    "nightly": Profile(500, 500, 60, 400, long_tests=True),
}
PROFILE = PROFILES[os.environ.get("CAPACITY_TEST_PROFILE", "ci")]
HISTORIES = PROFILE.histories
hypothesis_settings.register_profile("capacity", deadline=None, print_blob=True, max_examples=HISTORIES)
hypothesis_settings.load_profile("capacity")


def nightly_except(values: Iterable[Any], *every_run: Any) -> list[Any]:
    """Return values as parameters of a test, all but `every_run` for the profiles full and nightly only."""
    further = pytest.mark.nightly("tries a further case")
    return [pytest.param(value, marks=() if value in every_run else further) for value in values]


T = TypeVar("T")


def generated(strategy: st.SearchStrategy[T], number: int = HISTORIES) -> list[T]:
    """Return examples for a test that computes all of them together; a failing one is not reduced."""
    found: list[T] = []

    @given(strategy)
    @hypothesis_settings(max_examples=number, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def keep(example: T) -> None:
        found.append(example)

    keep()
    return found
