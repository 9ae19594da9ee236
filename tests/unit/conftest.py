"""Fixtures that several files of this folder begin with."""

from __future__ import annotations

import dagster as dg
import pytest

from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.build import build_definitions


@pytest.fixture
def definitions() -> dg.Definitions:
    """The code location with the settings of nobody."""
    return build_definitions(Settings())
