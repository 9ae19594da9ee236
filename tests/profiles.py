"""How thorough a run of the tests is: `CAPACITY_TEST_PROFILE`, one of fast, ci and nightly."""

from __future__ import annotations

import os
from typing import NamedTuple, TypeVar

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
    """Whether tests marked `nightly` run."""


PROFILES = {
    "fast": Profile(5, 5, 2, 30),
    "ci": Profile(10, 5, 2, 30),
    "nightly": Profile(500, 500, 60, 400, long_tests=True),
}
PROFILE = PROFILES[os.environ.get("CAPACITY_TEST_PROFILE", "ci")]
HISTORIES = PROFILE.histories
hypothesis_settings.register_profile("capacity", deadline=None, print_blob=True, max_examples=HISTORIES)
hypothesis_settings.load_profile("capacity")


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
