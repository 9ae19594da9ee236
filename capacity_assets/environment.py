"""Variables beside the settings: those that other settings name, and those that are none of ours."""

from __future__ import annotations

import os

from capacity_assets.env_file import env_file_values
from capacity_assets.settings import variable_names
from capacity_assets.variables import OUR_PREFIX


def variable(name: str) -> str | None:
    """Return a variable that is named elsewhere, such as one that holds a password: exported, or in the file `.env`."""
    return os.environ.get(name) or env_file_values().get(name)


def unknown_variables() -> list[str]:
    """Return variables that begin like ours but are none of ours: most likely misspelt, and without effect."""
    present = {*os.environ, *env_file_values()}
    return sorted(name for name in present if name.startswith(OUR_PREFIX) and name not in variable_names())
