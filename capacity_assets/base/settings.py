"""The configuration: every environment variable, its type, default and description, and what follows from it.

`load_settings()` is the only reader of the environment and of the file `.env`. Its errors name the variable, say what
is wrong with the value and never repeat a secret. What does not come from the environment (the period registry, slice
sizes) does not belong here.
"""

from __future__ import annotations

import codecs
import getpass
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import AfterValidator, AliasGenerator, BeforeValidator, Field, SecretStr, ValidationInfo, model_validator
from pydantic import ValidationError as PydanticValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from tzlocal import get_localzone_name

from capacity_assets.base.declarations import LONGEST_DECLARER, is_web_address
from capacity_assets.base.label_rules import NOT_KEYS, unfit_keys
from capacity_assets.base.periods import TREND_PERCENT_PER_YEAR

HORIZONS_DAYS = (7, 30, 90, 365)


ENV_FILE = ".env"
LARGEST_BYTES = 1 << 20
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# A virtual environment may have the same name, and is none of our business.
VIRTUAL_ENVIRONMENT = "pyvenv.cfg"


class EnvFileError(ValueError):
    """The file cannot be used; the text says why and what to do, and repeats nothing of it."""


def env_file_values() -> dict[str, str]:
    """Return the variables that the file in the working folder holds; none where there is no file.

    Raises:
        EnvFileError: it is no file, cannot be read, is no text in UTF-8, or has a line that is no variable.
    """
    path = Path(ENV_FILE)
    if not path.exists() or (path / VIRTUAL_ENVIRONMENT).exists():
        return {}
    if not path.is_file():
        raise EnvFileError(f"{path.resolve()} is not a file. Rename it, or start capacity in another folder.")
    text = _text(path)
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise EnvFileError(f"line {binding.original.line} of {path.resolve()} is not NAME=value.")
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value is not None}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise EnvFileError(f"{path.resolve()} cannot be read: {error.strerror}.") from None
    if len(content) > LARGEST_BYTES:
        raise EnvFileError(f"{path.resolve()} is larger than {LARGEST_BYTES >> 20} MiB, so it holds no variables.")
    if content.startswith(UTF_16):
        raise EnvFileError(f"{path.resolve()} is in UTF-16, as some editors write it. Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise EnvFileError(f"{path.resolve()} is not UTF-8 text. Save it as UTF-8.")
    return text


HOURS_PER_DAY = 24
LEAST_TOKEN = 16
MOST_SHARES = 100
SHARE = re.compile(r"[a-z][a-z0-9_]*=.*")
# So far from the ends of the calendar that windows before and after exist.
EARLIEST_START, LATEST_START = date(1970, 1, 1), date(2999, 12, 31)
# Machines without a zone of their own have it under one or the other.
OTHER_NAMES_OF_UTC = ("Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu", "UCT", "Universal", "Zulu")


@cache  # Each time, all files of the machine's time zones are looked at.
def _zones() -> set[str]:
    return available_timezones()


def machine_zone() -> str:
    """Return the time zone of this machine, UTC where it has none that is known."""
    try:
        name = get_localzone_name()
    except ZoneInfoNotFoundError:
        name = None
    return name if name in _zones() and name not in OTHER_NAMES_OF_UTC else "UTC"


def _postgresql_url(value: SecretStr) -> SecretStr:
    try:
        url = make_url(value.get_secret_value())
    except (ArgumentError, ValueError):
        raise ValueError("is not a URL; write postgresql://user:password@host:5432/database") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        msg = f"names {url.get_backend_name()!r}; only PostgreSQL works: postgresql://user:password@host:5432/database"
        raise ValueError(msg)
    if "@" in f"{url.host}{url.database}":
        # A password with an unescaped @ would be cut there, and its rest shown as a part of the host.
        raise ValueError("holds an @ too many; write an @ in the password as %40")
    if not url.database:
        raise ValueError("names no database; write postgresql://user:password@host:5432/database")
    return value


def _web_address(value: SecretStr) -> SecretStr:
    if not is_web_address(value.get_secret_value()):
        raise ValueError("is not a web address; write https://host/path")
    return value


def _mail_server(value: SecretStr) -> SecretStr:
    msg = "is not a mail server; write smtps://user:password@host:465 or smtp://host:587, special characters as %40"
    try:
        parts = urlsplit(value.get_secret_value())
        fits = parts.scheme in {"smtp", "smtps"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        unquote(f"{parts.username}{parts.password}").encode("ascii")
    except ValueError:
        # Its own text repeats a part of the address, which may be one of the password.
        raise ValueError(msg) from None
    if not fits or parts.path not in {"", "/"}:
        raise ValueError(msg)
    return value


def _long_enough(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < LEAST_TOKEN:
        raise ValueError(f"is too short; write at least {LEAST_TOKEN} characters")
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    from redis import ConnectionPool

    try:
        ConnectionPool.from_url(value.get_secret_value()).make_connection()
    except (TypeError, ValueError):
        # The client's own text may repeat a part of the URL.
        msg = "is not a Redis URL; write redis://:password@host:6379/0, rediss://... or unix:///path"
        raise ValueError(msg) from None
    return value


def _known_zone(value: str) -> str:
    if value not in _zones():
        msg = f"{value!r} is not a known time zone; write an IANA name such as Asia/Shanghai, Europe/Berlin or UTC"
        raise ValueError(msg)
    return value


def _first_day(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        day = datetime.strptime(value.strip(), "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise ValueError(f"{value!r} is not a date; write YYYY-MM-DD, for example 2025-01-01") from None
    if day < EARLIEST_START:
        raise ValueError(f"{value!r} lies before {EARLIEST_START}; write the first day with samples")
    if day > LATEST_START:
        raise ValueError(f"{value!r} lies after {LATEST_START}; write the first day with samples")
    return day


def _listed(value: object) -> object:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _folder(value: Path) -> Path:
    try:
        fits = value.is_dir() or not value.exists()
    except OSError as error:
        # Such as a name that is longer than the file system takes.
        raise ValueError(f"cannot be used: {error.strerror}; write the path of a folder") from None
    if not fits:
        raise ValueError(f"{str(value)!r} is a file; write the path of a folder")
    return value


def _not_below_watch(act_percent: int, info: ValidationInfo) -> int:
    watch_percent = info.data.get("watch_percent", 0)
    if act_percent < watch_percent:
        raise ValueError(f"{act_percent} is less than CAPACITY_WATCH_PERCENT, {watch_percent}")
    return act_percent


def _hour(value: object) -> object:
    if str(value).strip() not in map(str, range(HOURS_PER_DAY)):
        raise ValueError(f"{value!r} is not an hour of the day; write a whole number from 0 to 23")
    return value


def _horizon(value: object) -> object:
    if str(value).strip() not in map(str, HORIZONS_DAYS):
        raise ValueError(f"{value!r} is not a horizon of the forecasts; write {', '.join(map(str, HORIZONS_DAYS))}")
    return value


def _label_keys(value: tuple[str, ...]) -> tuple[str, ...]:
    if wrong := unfit_keys(value):
        raise ValueError(
            f"{wrong[0]!r} is not a label key; write words of small letters, digits and _, and none of "
            f"{', '.join(NOT_KEYS)}"
        )
    return tuple(dict.fromkeys(value))


def numbered_shares(number: int) -> tuple[str, ...]:
    """Name the shares of a number of them."""
    return tuple(f"{share}/{number}" for share in range(1, number + 1))


def _shares(value: tuple[str, ...]) -> tuple[str, ...]:
    """Expand `4` to four shares; `collection.service` parses each."""
    if len(value) == 1 and value[0].isdecimal():
        if not 1 <= int(value[0]) <= MOST_SHARES:
            raise ValueError(f"{value[0]!r} is not a possible number of shares; write one from 1 to {MOST_SHARES}")
        return numbered_shares(int(value[0]))
    if value and value == numbered_shares(len(value)):
        return value  # as they were written for a process that this one started
    wrong = [share for share in value if not SHARE.fullmatch(share)]
    if wrong:
        msg = (
            f"{wrong[0]!r} is not a label; write a number of shares, or labels of one key such as zone=eu,zone=us,zone="
        )
        raise ValueError(msg)
    keys = {share.partition("=")[0] for share in value}
    if value and (len(keys) > 1 or f"{next(iter(keys))}=" not in value):
        msg = f"{','.join(value)!r} leaves servers out; write labels of one key, and end with KEY= for all others"
        raise ValueError(msg)
    return tuple(dict.fromkeys(value))


def as_text(value: object) -> str:
    """Return what a variable holds so that it is read as `value` again, wherever the reader is started."""
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return "" if value is None else str(value.resolve() if isinstance(value, Path) else value)


def with_driver(secret: SecretStr | None, driver: str) -> URL | None:
    """Return the URL that a variable holds, for a driver; None where it is unset."""
    return None if secret is None else make_url(secret.get_secret_value()).set(drivername=driver)


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgresql_url)]
WebAddress = Annotated[SecretStr, AfterValidator(_web_address)]
MailServer = Annotated[SecretStr, AfterValidator(_mail_server)]
Token = Annotated[SecretStr, AfterValidator(_long_enough)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
ZoneName = Annotated[str, AfterValidator(_known_zone)]
FirstDay = Annotated[date, BeforeValidator(_first_day)]
Horizon = Annotated[int, BeforeValidator(_horizon)]
ActPercent = Annotated[int, AfterValidator(_not_below_watch)]
Hour = Annotated[int, BeforeValidator(_hour)]
Folder = Annotated[Path, AfterValidator(_folder)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Shares = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_shares)]
LabelKeys = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_label_keys)]
Folders = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_listed)]


def variable(name: str) -> str | None:
    """Return a variable that is named elsewhere, such as one that holds a password: exported, or in the file `.env`."""
    return os.environ.get(name) or env_file_values().get(name)


def unknown_variables() -> list[str]:
    """Return variables that begin like ours but are none of ours: most likely misspelt, and without effect."""
    present = {*os.environ, *env_file_values()}
    return sorted(name for name in present if name.startswith(OUR_PREFIX) and name not in variable_names())


# Samples are measured at three.
DEFAULT_SCHEDULE_HOUR = 4
DEFAULT_JUMP_PERCENT = 100
DEFAULT_PARALLEL_SLICES = 2
LONGEST_SETTLING = 30
# 400 days hold a year and the month before it. Of volumes no aggregate is made, so their samples are kept as long.
DEFAULT_RETENTION_DAYS = "raw=400,daily=1096,volume_size_stats=1096"
DEFAULT_HOME = Path(".capacity")
DEFAULT_COLLECTION_CONCURRENCY = 32
# systemd mounts credentials of a unit below the second.
DEFAULT_PASSWORD_FOLDERS = (Path("/etc/capacity"), Path("/run/credentials"))
DEFAULT_LABEL_KEYS = ("team", "environment", "service", "cost_centre")
DEFAULT_PASSWORD_VARIABLES = ("*PASSWORD*",)
OUR_PREFIX = "CAPACITY_"
FORMER_NAMES = {
    "CAPACITY_DIGEST_RECEIVERS": "CAPACITY_RECEIVERS",
    "CAPACITY_FILLS_SOON_PERCENT": "CAPACITY_ACT_PERCENT",
}


class Variables(BaseSettings):
    """One field per variable, `CAPACITY_` and its name but for Dagster's; the descriptions are the reference."""

    # Like `dagster dev`, which reads .env from the folder it is started in; here what is exported wins.
    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_file=ENV_FILE,
        env_file_encoding="utf-8-sig",
        alias_generator=AliasGenerator(validation_alias=lambda name: f"{OUR_PREFIX}{name.upper()}"),
    )

    database_url: PostgresUrl | None = Field(
        default=None,
        description="PostgreSQL that holds the capacity tables, `postgresql://user:password@host:5432/name`. "
        "Unset: the embedded server under CAPACITY_HOME.",
    )
    dagster_postgres_url: PostgresUrl | None = Field(
        default=None,
        validation_alias="DAGSTER_POSTGRES_URL",
        description="PostgreSQL that holds Dagster's runs, events and schedules, "
        "`postgresql+psycopg2://user:password@host:5432/name`. Unset: the embedded server under CAPACITY_HOME.",
    )
    redis_url: RedisUrl | None = Field(
        default=None,
        description="Redis that holds the locks against writers outside Dagster, `redis://:password@host:6379/0`. "
        "Unset: rows of `capacity_locks`.",
    )
    alert_webhook_url: WebAddress | None = Field(
        default=None,
        description="Where failed runs, failed checks of severity error and what fills soon are sent, as JSON with "
        "the key `text`. Unset: nowhere.",
    )
    receivers: Path | None = Field(
        default=None,
        description="TOML file that says who gets alerts and the weekly digest, of the whole fleet or of what has a "
        "label, and how. Unset: nobody.",
    )
    digest_receivers: Path | None = Field(
        default=None,
        description="Former name of CAPACITY_RECEIVERS, read where that is unset.",
    )
    smtp_url: MailServer | None = Field(
        default=None,
        description="Mail server of digests and alerts, `smtps://user:password@host:465`, or `smtp://host:587`, "
        "encrypted where the server offers it. Unset: no mail.",
    )
    mail_from: str | None = Field(
        default=None, pattern=r"^[^@\s,;<>]+@[^@\s,;<>]+$", description="Address that digests and alerts come from."
    )
    timezone: ZoneName = Field(
        default_factory=machine_zone,
        description="Time zone (IANA name) in which days, weeks and months begin and end. Unset: this machine's. A "
        "database keeps the one it was filled in, the legacy application's being Asia/Shanghai.",
    )
    start_date: FirstDay = Field(
        default=date(2025, 1, 1),
        description="First day with samples, `YYYY-MM-DD`. Each period's first partition is the window that holds it.",
    )
    schedule_hour: Hour = Field(
        default=DEFAULT_SCHEDULE_HOUR,
        description="Hour of the day, 0 to 23 in CAPACITY_TIMEZONE, at which schedules tick; samples should be there.",
    )
    settle_seconds: int = Field(
        default=60,
        ge=0,
        description="How long samples must have rested after a change before their windows are recomputed; "
        f"while they are changed without a pause, at the latest after {LONGEST_SETTLING} times that.",
    )
    jump_percent: int = Field(
        default=DEFAULT_JUMP_PERCENT,
        gt=0,
        description="Change in percent, up or down, from which on the check `jumps_named` names a row.",
    )
    fills_soon_days: Horizon = Field(
        default=30,
        description="Within how many days nothing may fill, for the check `nothing_fills_soon`: 7, 30, 90 or 365.",
    )
    watch_percent: int = Field(
        default=20,
        gt=0,
        le=100,
        description="Something is marked *watch* from this probability, in percent, of being full within "
        "`CAPACITY_FILLS_SOON_DAYS`. Pages mark it, and the digest lists it.",
    )
    act_percent: ActPercent = Field(
        default=50,
        validate_default=True,
        gt=0,
        le=100,
        description="Something is marked *act* from this probability on: the check names it, and an alert is sent. At "
        "least `CAPACITY_WATCH_PERCENT`.",
    )
    fills_soon_percent: int | None = Field(
        default=None,
        description="Former name of CAPACITY_ACT_PERCENT, read where that is unset.",
    )
    fills_soon_severity: Literal["error", "warn"] = Field(
        default="error", description="`error`: what that check names is sent as an alert; `warn`: it is only shown."
    )
    trend_percent: Decimal | None = Field(
        default=None,
        gt=0,
        le=1000,
        decimal_places=2,
        description="Change in percent, up or down, beyond which a window counts as growing or shrinking, the same for "
        f"every period; 5 is what the legacy application used. Unset: {TREND_PERCENT_PER_YEAR} % per year, in "
        "proportion to the window's length.",
    )
    retention_days: str = Field(
        default=DEFAULT_RETENTION_DAYS,
        description="How many days rows are kept, `name=days` or `name=forever`, separated by commas. A name is `raw`, "
        "a raw table, a period, or an aggregate asset; the more exact one wins, and what is not named keeps its "
        "default. See the operations page.",
    )
    parallel_slices: int = Field(
        default=DEFAULT_PARALLEL_SLICES,
        ge=1,
        le=32,
        description="How many slices of servers a run writes side by side. Each keeps a core of the PostgreSQL server "
        "busy and takes a connection.",
    )
    collection: Literal["on", "off"] = Field(
        default="on",
        description="`on`: the raw assets measure the servers registered with `capacity instances`. `off`: another "
        "application fills the raw tables, and the raw assets observe them.",
    )
    legacy_runs: Literal["on", "off"] = Field(
        default="off",
        description="`on`: each run of a period is also entered in `task_runs` or `sync_sessions` of the legacy "
        "application, whose pages then show it.",
    )
    collection_hour: Hour = Field(
        default=3,
        description="Hour of the day, 0 to 23 in CAPACITY_TIMEZONE, at which servers are measured, or the raw tables "
        "observed.",
    )
    collection_concurrency: int = Field(
        default=DEFAULT_COLLECTION_CONCURRENCY,
        ge=1,
        le=256,
        description="How many servers are measured side by side, one connection each. Servers that do not answer "
        "in the time they usually take are waited for beside these.",
    )
    collection_shares: Shares = Field(
        default=(),
        description="The servers are measured in so many runs side by side: a number, or labels such as "
        "`zone=eu,zone=us,zone=`, the last of them for servers without one. Unset: one run.",
    )
    share_queues: Literal["on", "off"] = Field(
        default="off",
        description="`on`: where Celery starts the runs, the scheduled run of a share by label goes to the queue named "
        "after it, `zone-eu` for `zone=eu`; a worker there must listen to it. Others go to the default queue.",
    )
    system_databases: str = Field(
        default="",
        description="Databases that are not measured, by engine, instead of the defaults: "
        "`mysql=mysql|sys,postgresql=`. Engines that are not named keep theirs.",
    )
    objects: Words = Field(
        default=(),
        description="Servers whose tables and indexes are measured as well: names of servers and labels such as "
        "`environment=production`, separated by commas, or `all`. Unset: none.",
    )
    objects_days: int = Field(
        default=7,
        ge=1,
        le=31,
        description="Days from one measurement of tables and indexes to the next.",
    )
    volume_sources: Path | None = Field(
        default=None,
        description="TOML file that names Prometheus-compatible servers: those that know the file systems of servers "
        "which do not report them, and sizes of past days for imports. Unset: none.",
    )
    label_keys: LabelKeys = Field(
        default=DEFAULT_LABEL_KEYS,
        description="Keys of labels of servers and databases, separated by commas; one more word adds a key.",
    )
    declared_by: str | None = Field(
        default=None,
        max_length=LONGEST_DECLARER,
        description="Who declares limits, steps, labels, prices, servers, volumes and decisions, for commands without "
        "`--by`. Unset: the login of the operating system.",
    )
    web_database_url: PostgresUrl | None = Field(
        default=None,
        description="The same database for the pages, with a role that can only read. Unset: CAPACITY_DATABASE_URL, "
        "with the role `capacity_reader` where its role may take that on.",
    )
    sql_password: Token | None = Field(
        default=None,
        description="Password of the role `capacity_reader` while `capacity up --sql-port` is open, at least 16 "
        "characters. Unset: generated and stored in the file `sql-password` under CAPACITY_HOME.",
    )
    web_token: Token | None = Field(
        default=None,
        description="Password for readers of the pages, at least 16 characters; browsers ask for it. Unset: none.",
    )
    web_user_header: str | None = Field(
        default=None,
        description="Header in which a proxy before the pages names the user; requests without it are refused. "
        "Unset: none.",
    )
    dagster_url_of_people: str | None = Field(
        default=None,
        validation_alias="CAPACITY_DAGSTER_URL",
        pattern="^https?://",
        description="Address of Dagster's UI, used for links in the pages and alerts. Unset: no links; `capacity up` "
        "sets it.",
    )
    pages_url: str | None = Field(
        default=None,
        pattern="^https?://",
        description="Address of the pages, to which Dagster's UI, digests and alerts link. Unset: no links; "
        "`capacity up` knows it.",
    )
    secrets_folder: Path = Field(
        default=Path("/run/secrets"),
        description="Folder in which `secret:NAME` finds the file NAME: where a secret store is mounted.",
    )
    password_variables: Words = Field(
        default=DEFAULT_PASSWORD_VARIABLES,
        description="Variables that `env:NAME` may name, as names or patterns with `*`, separated by commas. Those of "
        "capacity_assets itself are refused whatever is written here.",
    )
    password_folders: Folders = Field(
        default=DEFAULT_PASSWORD_FOLDERS,
        description="Folders in which the file of `file:/PATH` must lie, links followed, separated by commas.",
    )
    home: Folder = Field(default=DEFAULT_HOME, description="Folder for the embedded server's data and Dagster's home.")

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, given: dict[str, object]) -> dict[str, object]:
        present = {FORMER_NAMES[name]: value for name, value in given.items() if name in FORMER_NAMES}
        return present | given


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


@dataclass(frozen=True)
class Thresholds:
    """From which probability of being full within so many days on, in percent, something is watched and acted on."""

    days: int = 30
    watch_percent: int = 20
    act_percent: int = 50


DEFAULT_THRESHOLDS = Thresholds()


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

    @property
    def thresholds(self) -> Thresholds:
        """From which probability on a fill date is watched, and acted on."""
        return Thresholds(self.fills_soon_days, self.watch_percent, self.act_percent)

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
    def declarer(self) -> str | None:
        """Who declares things unless a command says otherwise; None: this user has no login."""
        try:
            return self.declared_by or getpass.getuser()
        except (KeyError, OSError):
            # As in containers whose user number is in no file of users.
            return None

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
