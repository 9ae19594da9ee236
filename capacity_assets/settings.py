"""The configuration: what follows from the environment variables, which are read and validated once.

`load_settings()` is the only reader of the environment. Its errors name the variable, say what is
wrong with the value and never repeat a secret. What does not come from the environment (the period
registry, slice sizes) does not belong here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from zoneinfo import ZoneInfo

from pydantic import ValidationError as PydanticValidationError
from sqlalchemy.engine import URL

from capacity_assets.env_file import ENV_FILE, EnvFileError, env_file_values
from capacity_assets.setting_values import as_text, with_driver
from capacity_assets.variables import OUR_PREFIX, Variables

# CAPACITY_TIMEZOEN is, CAPACITY_HOST, which containers are given, is not.
NEARLY_THE_SAME = 0.9
# CAPACITY_DEV_DATABASE_URL is somebody's own.
MOST_LETTERS_OFF = 2
ADDRESSES = ("database_url", "dagster_postgres_url")
CAPACITY_DRIVER = "postgresql+psycopg"
# SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3, on which dagster-postgres 0.29 fails at its
# first event (NOTIFY with a bound parameter): Dagster's own storage stays on psycopg2.
DAGSTER_DRIVER = "postgresql+psycopg2"


class ConfigurationError(Exception):
    """The environment holds a value that cannot work; the text names each variable and what to write."""


class Settings(Variables):
    """The validated configuration."""

    @property
    def zone(self) -> ZoneInfo:
        """The configured time zone."""
        return ZoneInfo(self.timezone)

    @property
    def zone_is_chosen(self) -> bool:
        """Whether the time zone is set; else it is the machine's."""
        return "timezone" in self.model_fields_set

    @property
    def capacity_url(self) -> URL | None:
        """URL of the capacity tables for our driver, or None for the embedded server."""
        return with_driver(self.database_url, CAPACITY_DRIVER)

    @property
    def embedded_server_exists(self) -> bool:
        """Whether the embedded server was created, running or not."""
        return (self.postgres_data / "PG_VERSION").exists()

    @property
    def dagster_url(self) -> URL | None:
        """URL of Dagster's storage for the driver it needs, or None for the embedded server."""
        return with_driver(self.dagster_postgres_url, DAGSTER_DRIVER)

    def as_environment(self) -> dict[str, str]:
        """Return the variables of these settings for a child process, which does not read our .env file.

        The two addresses are left out: who starts the child knows where the embedded server is.
        """
        values = {
            str(field.validation_alias): as_text(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if name not in ADDRESSES
        }
        # Left to the child as it was to us, which tells a zone that was chosen from the machine's.
        return values | ({} if self.zone_is_chosen else {"CAPACITY_TIMEZONE": ""})

    @property
    def postgres_data(self) -> Path:
        """Folder of the embedded server's data."""
        return self.home.resolve() / "postgres"

    @property
    def reports(self) -> Path:
        """Where growth reports are written."""
        return self.home.resolve() / "reports"

    @property
    def dagster_home(self) -> Path:
        """Folder that serves as DAGSTER_HOME under `capacity up` and `capacity demo`."""
        return self.home.resolve() / "dagster"


def variable_names() -> dict[str, str]:
    """Return each environment variable with its description, in the order of `.env.example`."""
    return {str(field.validation_alias): field.description or "" for field in Settings.model_fields.values()}


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be a valid decimal", "write a number, such as 5")


def _misspelt() -> Iterator[str]:
    """Name variables that are nearly ours and would have no effect, without a word; raises EnvFileError."""
    known = list(variable_names())
    for name in sorted({*os.environ, *env_file_values()}):
        if name.startswith(OUR_PREFIX) and name not in known:
            for nearest in get_close_matches(name, known, n=1, cutoff=NEARLY_THE_SAME):
                ours, theirs = Counter(nearest), Counter(name)
                if (ours - theirs).total() + (theirs - ours).total() > MOST_LETTERS_OFF:
                    continue
                yield f"{name}: is not a variable of capacity_assets, so it has no effect. Did you mean {nearest}?"


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        ConfigurationError: one line for each variable that is misspelt or whose value cannot work, never with a secret
            in it; or the file `.env` cannot be used.
    """
    try:
        problems = list(_misspelt())
        settings = Settings()
    except EnvFileError as error:
        raise ConfigurationError(f"{ENV_FILE}: {error}") from None
    except PydanticValidationError as error:
        # The pydantic text repeats the input, which may be a URL with a password: build our own lines.
        problems += [f"{item['loc'][0]}: {_reason(item['msg'])}" for item in error.errors()]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings
