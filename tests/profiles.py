"""How thorough a run of the tests is: `CAPACITY_TEST_PROFILE`, one of fast, ci and nightly."""

from __future__ import annotations

import os
from typing import NamedTuple

from hypothesis import settings as hypothesis_settings


class Profile(NamedTuple):
    """How long a run of the tests may take."""

    histories: int
    """Generated histories per property."""
    kills: int
    """Kills in a row."""
    partitions: int
    """Daily partitions of one run."""


PROFILES = {"fast": Profile(5, 2, 30), "ci": Profile(6, 2, 30), "nightly": Profile(500, 60, 400)}
PROFILE = PROFILES[os.environ.get("CAPACITY_TEST_PROFILE", "ci")]
HISTORIES = PROFILE.histories
hypothesis_settings.register_profile("capacity", deadline=None, print_blob=True, max_examples=HISTORIES)
hypothesis_settings.load_profile("capacity")
