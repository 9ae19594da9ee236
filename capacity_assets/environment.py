"""Variables beside the settings: those that other settings name, and those that are none of ours."""

from __future__ import annotations

import os

from dotenv import dotenv_values

from capacity_assets.settings import ENV_FILE, variable_names


def variable(name: str) -> str | None:
    """Return a variable that is named elsewhere, such as one that holds a password: exported, or in the file `.env`."""
    return os.environ.get(name) or dotenv_values(ENV_FILE).get(name)


def file_variables() -> dict[str, str]:
    """Return what the file `.env` holds, for a child process that is started in another folder."""
    return {name: value for name, value in dotenv_values(ENV_FILE).items() if value is not None}


def unknown_variables() -> list[str]:
    """Return variables that begin like ours but are none of ours: most likely misspelt, and without effect."""
    present = {*os.environ, *dotenv_values(ENV_FILE)}
    return sorted(name for name in present if name.startswith("CAPACITY_") and name not in variable_names())
