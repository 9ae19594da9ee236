"""The configuration: every environment variable with its type, default and description, and derived values.

`load_settings()` is the only reader of the environment and of the file `.env`. Its errors name the variable, say what
is wrong with the value and never repeat a secret. Values that do not come from the environment (the period registry,
slice sizes) are elsewhere.
"""

from __future__ import annotations

import getpass
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from functools import cache
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal
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

from capacity_assets.base.declarations import (
    LABEL,
    LONGEST_DECLARER,
    NOT_KEYS,
    checked_label,
    is_web_address,
    label_or_key,
    read_text_file,
    unfit_keys,
)
from capacity_assets.base.errors import ValidationError

HORIZONS_DAYS = (7, 30, 90, 365)
ENV_FILE = ".env"
LARGEST_BYTES = 1 << 20
# A virtual environment may have the same name; it is ignored.
VIRTUAL_ENVIRONMENT = "pyvenv.cfg"


def env_file_values() -> dict[str, str]:
    """Return the variables in the file of the working folder; none if there is no file.

    Raises ValidationError: as `read_text_file`; it is not a file, or has a line that is not a variable.
    """
    path = Path(ENV_FILE)
    if not path.exists() or (path / VIRTUAL_ENVIRONMENT).exists():
        return {}
    if not path.is_file():
        raise ValidationError(f"{path.resolve()} is not a file. Rename it, or start capacity in another folder.")
    text = read_text_file(path.resolve(), LARGEST_BYTES)
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise ValidationError(f"line {binding.original.line} of {path.resolve()} is not NAME=value.")
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value is not None}


def variable(name: str) -> str | None:
    """Return a variable that is named elsewhere, such as one that holds a password: exported, or in the file `.env`."""
    return os.environ.get(name) or env_file_values().get(name)


def unknown_variables() -> list[str]:
    """Return variables with our prefix that do not exist: most likely misspelt, and without effect."""
    present = {*os.environ, *env_file_values()}
    return sorted(name for name in present if name.startswith(OUR_PREFIX) and name not in variable_names())


HOURS_PER_DAY = 24
LEAST_TOKEN = 16
MOST_SHARES = 100
# Far enough from the ends of the calendar for earlier and later windows.
EARLIEST_START, LATEST_START = date(1970, 1, 1), date(2999, 12, 31)
# Machines without a configured zone use one of these.
OTHER_NAMES_OF_UTC = ("Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu", "UCT", "Universal", "Zulu")
POSTGRESQL_URL = "postgresql://user:password@host:5432/database"


@cache  # Each call reads all files of the machine's time zones.
def _zones() -> set[str]:
    return available_timezones()


def machine_zone() -> str:
    """Return the time zone of this machine, or UTC if it has none or an unknown one."""
    try:
        name = get_localzone_name()
    except ZoneInfoNotFoundError:
        name = None
    return name if name in _zones() and name not in OTHER_NAMES_OF_UTC else "UTC"


def _check(fits: Callable[[Any], object], what: str, how: str) -> Callable[[Any], Any]:
    """Return a validator of `what`, written as `how`; the text of its error repeats the value, but no secret."""

    def check(value: Any) -> Any:
        is_secret = isinstance(value, SecretStr)
        try:
            is_fit = fits(value.get_secret_value() if is_secret else value)
        except (TypeError, ValueError):
            # The exception's text may repeat a part of the value.
            is_fit = False
        if not is_fit:
            raise ValueError(f"{'' if is_secret else f'{value!r} '}is not {what}; write {how}") from None
        return value

    return check


def _is_one_of(numbers: Iterable[int]) -> Callable[[object], bool]:
    return lambda written: str(written).strip() in map(str, numbers)


def _postgresql_url(value: SecretStr) -> SecretStr:
    try:
        url = make_url(value.get_secret_value())
    except (ArgumentError, ValueError):
        raise ValueError(f"is not a URL; write {POSTGRESQL_URL}") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError(f"names {url.get_backend_name()!r}; only PostgreSQL works: {POSTGRESQL_URL}")
    if "@" in f"{url.host}{url.database}":
        # A password with an unescaped @ would end there, and its rest would be shown as a part of the host.
        raise ValueError("contains one @ too many; write an @ in the password as %40")
    if not url.database:
        raise ValueError(f"names no database; write {POSTGRESQL_URL}")
    return value


def _export_url(value: str) -> str:
    if urlsplit(value).password or not (value.startswith("/") or "://" in value):
        how = "write /var/lib/capacity/export, s3://bucket/capacity or another URL of fsspec"
        raise ValueError(f"must be an absolute path, or a URL without a password; {how}")
    return value.rstrip("/")


def _is_mail_server(written: str) -> bool:
    parts = urlsplit(written)
    unquote(f"{parts.username}{parts.password}").encode("ascii")
    has_port = parts.port is None or parts.port > 0
    return has_port and parts.scheme in {"smtp", "smtps"} and bool(parts.hostname) and parts.path in {"", "/"}


def _is_redis_url(written: str) -> bool:
    from redis import ConnectionPool

    ConnectionPool.from_url(written).make_connection()
    return True


def _first_day(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        day = datetime.strptime(value.strip(), "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise ValueError(f"{value!r} is not a date; write YYYY-MM-DD, for example 2025-01-01") from None
    if not EARLIEST_START <= day <= LATEST_START:
        side, end = ("before", EARLIEST_START) if day < EARLIEST_START else ("after", LATEST_START)
        raise ValueError(f"{value!r} is {side} {end}; write the first day with samples")
    return day


def _split_list(value: object) -> object:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _folder(value: Path) -> Path:
    try:
        fits = value.is_dir() or not value.exists()
    except OSError as error:
        # For example a name that is too long for the file system.
        raise ValueError(f"cannot be used: {error.strerror}; write the path of a folder") from None
    if not fits:
        raise ValueError(f"{str(value)!r} is a file; write the path of a folder")
    return value


def _not_below_watch(act_percent: int, info: ValidationInfo) -> int:
    watch_percent = info.data.get("watch_percent", 0)
    if act_percent < watch_percent:
        raise ValueError(f"{act_percent} is less than CAPACITY_WATCH_PERCENT, {watch_percent}")
    return act_percent


def _above_cost_of_acting(filling: Decimal | None, info: ValidationInfo) -> Decimal | None:
    if "cost_of_acting" not in info.data:
        # That value is invalid itself.
        return filling
    acting = info.data["cost_of_acting"]
    if (acting is None) != (filling is None):
        raise ValueError("must be set together with CAPACITY_COST_OF_ACTING; set both or neither")
    if acting is not None and filling is not None and acting >= filling:
        raise ValueError(f"{filling} is not greater than CAPACITY_COST_OF_ACTING, {acting}: acting would never pay")
    return filling


def _label_keys(value: tuple[str, ...]) -> tuple[str, ...]:
    if wrong := unfit_keys(value):
        reserved = ", ".join(NOT_KEYS)
        msg = f"{wrong[0]!r} is not a label key; write words of small letters, digits and _, and none of {reserved}"
        raise ValueError(msg)
    return tuple(dict.fromkeys(value))


def _labels(value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    for key, text in map(label_or_key, value):
        try:
            checked_label(key, text, info.data.get("label_keys") or (key,))
        except ValidationError as error:
            raise ValueError(str(error)) from None
    return value


def _servers_and_labels(value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    _labels(tuple(word for word in value if "=" in word), info)
    return value


def numbered_shares(number: int) -> tuple[str, ...]:
    """Return the names of a number of shares."""
    return tuple(f"{share}/{number}" for share in range(1, number + 1))


def _shares(value: tuple[str, ...]) -> tuple[str, ...]:
    """Expand `4` to four shares; `collection.service` parses each."""
    if len(value) == 1 and value[0].isdecimal():
        if not 1 <= int(value[0]) <= MOST_SHARES:
            raise ValueError(f"{value[0]!r} is not a possible number of shares; write one from 1 to {MOST_SHARES}")
        return numbered_shares(int(value[0]))
    if value and value == numbered_shares(len(value)):
        return value  # as they were written for a process that this one started
    wrong = [share for share in value if not LABEL.fullmatch(share)]
    if wrong:
        how = "a number of shares, or labels of one key such as zone=eu,zone=us,zone="
        raise ValueError(f"{wrong[0]!r} is not a label; write {how}")
    keys = {share.partition("=")[0] for share in value}
    if value and (len(keys) > 1 or f"{next(iter(keys))}=" not in value):
        msg = f"{','.join(value)!r} leaves servers out; write labels of one key, and end with KEY= for all others"
        raise ValueError(msg)
    return tuple(dict.fromkeys(value))


def as_text(value: object) -> str:
    """Return the text of a variable that is read as `value` again, in whatever folder the reader is started."""
    if isinstance(value, tuple):
        return ",".join(map(as_text, value)) or ","  # an empty text would be read as the default
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return "" if value is None else str(value.resolve() if isinstance(value, Path) else value)


def url_for_driver(secret: SecretStr | None, driver: str) -> URL | None:
    """Return the URL in a variable, for a driver; None if it is unset."""
    return None if secret is None else make_url(secret.get_secret_value()).set(drivername=driver)


MAIL_SERVER_URLS = "smtps://user:password@host:465 or smtp://host:587, special characters as %40"
REDIS_URLS = "redis://:password@host:6379/0, rediss://... or unix:///path"
ZONES = "an IANA name such as Asia/Shanghai, Europe/Berlin or UTC"
HORIZONS = ", ".join(map(str, HORIZONS_DAYS))

_check_web_address = _check(is_web_address, "a web address", "https://host/path")
_check_mail_server = _check(_is_mail_server, "a mail server", MAIL_SERVER_URLS)
_check_token = _check(lambda token: len(token) >= LEAST_TOKEN, "long enough", f"at least {LEAST_TOKEN} characters")
_check_redis_url = _check(_is_redis_url, "a Redis URL", REDIS_URLS)
_check_zone = _check(lambda name: name in _zones(), "a known time zone", ZONES)
_check_horizon = _check(_is_one_of(HORIZONS_DAYS), "a horizon of the forecasts", HORIZONS)
_check_hour = _check(_is_one_of(range(HOURS_PER_DAY)), "an hour of the day", "a whole number from 0 to 23")

PostgresUrl = Annotated[SecretStr, AfterValidator(_postgresql_url)]
WebAddress = Annotated[SecretStr, AfterValidator(_check_web_address)]
MailServer = Annotated[SecretStr, AfterValidator(_check_mail_server)]
Token = Annotated[SecretStr, AfterValidator(_check_token)]
RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]
ZoneName = Annotated[str, AfterValidator(_check_zone)]
FirstDay = Annotated[date, BeforeValidator(_first_day)]
Horizon = Annotated[int, BeforeValidator(_check_horizon)]
ActPercent = Annotated[int, AfterValidator(_not_below_watch)]
ExportAddress = Annotated[str, AfterValidator(_export_url)]
CostOfFilling = Annotated[Decimal | None, AfterValidator(_above_cost_of_acting)]
Hour = Annotated[int, BeforeValidator(_check_hour)]
Folder = Annotated[Path, AfterValidator(_folder)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)]
Shares = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_shares)]
ServersAndLabels = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_servers_and_labels)
]
Labels = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_labels)]
LabelKeys = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_label_keys)]
Folders = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split_list)]


# One hour after the collection.
DEFAULT_SCHEDULE_HOUR = 4
DEFAULT_JUMP_PERCENT = 100
DEFAULT_PARALLEL_SLICES = 2
LONGEST_SETTLING = 30
DEFAULT_HOME = Path(".capacity")
DEFAULT_COLLECTION_CONCURRENCY = 32
# In the second, systemd mounts the credentials of a unit.
DEFAULT_PASSWORD_FOLDERS = (Path("/etc/capacity"), Path("/run/credentials"))
DEFAULT_LABEL_KEYS = ("team", "environment", "service", "cost_centre")
DEFAULT_PASSWORD_VARIABLES = ("*PASSWORD*",)
OUR_PREFIX = "CAPACITY_"
FORMER_NAMES = {
    "CAPACITY_DIGEST_RECEIVERS": "CAPACITY_RECEIVERS",
    "CAPACITY_FILLS_SOON_PERCENT": "CAPACITY_ACT_PERCENT",
}


class Variables(BaseSettings):
    """One field per variable: `CAPACITY_` and its name, except Dagster's. The reference contains their texts."""

    # Like `dagster dev`, which reads .env from its working folder; exported variables have precedence here.
    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_file=ENV_FILE,
        env_file_encoding="utf-8-sig",
        use_attribute_docstrings=True,
        alias_generator=AliasGenerator(validation_alias=lambda name: f"{OUR_PREFIX}{name.upper()}"),
    )

    database_url: PostgresUrl | None = None
    """PostgreSQL database of the capacity tables, `postgresql://user:password@host:5432/name`. Unset: the embedded
    server under CAPACITY_HOME."""
    dagster_postgres_url: PostgresUrl | None = Field(default=None, validation_alias="DAGSTER_POSTGRES_URL")
    """PostgreSQL database of Dagster's runs, events and schedules,
    `postgresql+psycopg2://user:password@host:5432/name`. Unset: the embedded server under CAPACITY_HOME."""
    redis_url: RedisUrl | None = None
    """Redis for the locks against writers outside Dagster, `redis://:password@host:6379/0`. Unset: rows of
    `capacity_locks`."""
    alert_webhook_url: WebAddress | None = None
    """Webhook for failed runs, failed checks of severity error and alerts about what fills soon, as JSON with the key
    `text`. Unset: none."""
    receivers: Path | None = None
    """TOML file of the receivers of alerts and the weekly digest, for the whole fleet or for a label. Unset: none."""
    digest_receivers: Path | None = None
    """Former name of CAPACITY_RECEIVERS, read if that is unset."""
    smtp_url: MailServer | None = None
    """Mail server of digests and alerts, `smtps://user:password@host:465`, or `smtp://host:587`, encrypted if the
    server offers it. Unset: no mail."""
    mail_from: str | None = Field(default=None, pattern=r"^[^@\s,;<>]+@[^@\s,;<>]+$")
    """Sender address of digests and alerts."""
    timezone: ZoneName = Field(default_factory=machine_zone)
    """Time zone (IANA name) of days, weeks and months. Unset: this machine's. A database keeps the zone with which it
    was filled; that of the legacy application is Asia/Shanghai."""
    start_date: FirstDay = date(2025, 1, 1)
    """First day with samples, `YYYY-MM-DD`. The first partition of each period is the window that contains
    it."""
    schedule_hour: Hour = DEFAULT_SCHEDULE_HOUR
    """Hour of the day, 0 to 23 in CAPACITY_TIMEZONE, at which schedules tick; samples should have arrived by
    then."""
    settle_seconds: int = Field(default=60, ge=0)
    """For how many seconds samples must stay unchanged before their windows are recomputed. If they keep changing,
    windows are recomputed after 30 times as long at the latest."""
    jump_percent: int = Field(default=DEFAULT_JUMP_PERCENT, gt=0)
    """Change in percent, up or down, from which the check `jumps_named` names a row."""
    fills_soon_days: Horizon = 30
    """The check `nothing_fills_soon` looks this many days ahead: 7, 30, 90 or 365."""
    watch_percent: int = Field(default=20, gt=0, le=100)
    """Something is marked *watch* if its probability of being full within `CAPACITY_FILLS_SOON_DAYS` is at least this,
    in percent. Pages mark it, and the digest lists it."""
    act_percent: ActPercent = Field(default=50, validate_default=True, gt=0, le=100)
    """From this probability on, it is marked *act*: the check names it, and an alert is sent. At least
    `CAPACITY_WATCH_PERCENT`."""
    fills_soon_percent: int | None = None
    """Former name of CAPACITY_ACT_PERCENT, read if that is unset."""
    cost_of_acting: Decimal | None = Field(default=None, gt=0)
    """Cost of acting on a forecast, in any unit. The cost of acting divided by the cost of filling sets the *act*
    threshold; *watch* is 40 % of it. Overrides `CAPACITY_ACT_PERCENT` and `CAPACITY_WATCH_PERCENT`."""
    cost_of_filling: CostOfFilling = Field(default=None, validate_default=True, gt=0)
    """Cost of something filling up because nobody acted, in the same unit. Must be greater than
    `CAPACITY_COST_OF_ACTING`."""
    fills_soon_severity: Literal["error", "warn"] = "error"
    """`error`: findings of that check are sent as alerts; `warn`: they are only shown."""
    trend_percent: Decimal | None = Field(default=None, gt=0, le=1000, decimal_places=2)
    """Change in percent, up or down, beyond which a window counts as growing or shrinking, the same for every period;
    the legacy application used 5. Unset: 20 % per year, in proportion to the window's length."""
    retention_days: str = ""
    """How many days rows are kept: `name=days` or `name=forever`, separated by commas. A name is `raw`, a raw table, a
    period, or an aggregate asset; the more exact one wins. Other rows keep their default. See the operations page."""
    parallel_slices: int = Field(default=DEFAULT_PARALLEL_SLICES, ge=1, le=32)
    """How many slices of servers a run writes in parallel. Each keeps a core of the PostgreSQL server busy and takes a
    connection."""
    collection: Literal["on", "off"] = "on"
    """`on`: the raw assets measure the servers registered with `capacity instances`. `off`: another application fills
    the raw tables, and the raw assets observe them."""
    legacy_runs: Literal["on", "off"] = "off"
    """`on`: each run of a period is also stored in `task_runs` or `sync_sessions` of the legacy application, whose
    pages then show it."""
    collection_hour: Hour = 3
    """Hour of the day, 0 to 23 in CAPACITY_TIMEZONE, at which servers are measured, or the raw tables observed."""
    collection_concurrency: int = Field(default=DEFAULT_COLLECTION_CONCURRENCY, ge=1, le=256)
    """How many servers are measured in parallel, one connection each. Servers that take longer than usual do not count.
    """
    collection_shares: Shares = ()
    """The servers are measured in this many parallel runs: a number, or labels such as `zone=eu,zone=us,zone=`, the
    last of them for servers without one. Unset: one run."""
    share_queues: Literal["on", "off"] = "off"
    """`on`: if Celery starts the runs, the scheduled run of a share by label goes to the queue named after it,
    `zone-eu` for `zone=eu`; a worker must listen to it. Others go to the default queue."""
    system_databases: str = ""
    """Databases that are not measured, by engine, instead of the defaults: `mysql=mysql|sys,postgresql=`. Engines that
    are not named keep theirs."""
    label_keys: LabelKeys = DEFAULT_LABEL_KEYS
    """Keys of the labels of servers and databases, separated by commas. Another word adds a key."""
    bill_issuer: str = "capacity_assets"
    """Provider and issuer in `capacity bill --format focus`: the name of a team or a company."""
    objects: ServersAndLabels = ()
    """Servers whose tables and indexes are measured: names of servers and labels such as
    `environment=production`, separated by commas, or `all`. Unset: none."""
    objects_days: int = Field(default=7, ge=1, le=31)
    """Days from one measurement of tables and indexes to the next."""
    volume_sources: Path | None = None
    """TOML file of Prometheus-compatible servers. They provide file systems that measured servers do not report, and
    sizes of past days for imports. Unset: none."""
    export_url: ExportAddress | None = None
    """Folder or object storage (`/var/lib/capacity/export`, `s3://bucket/capacity`) to which the aggregates of each
    window are written as Parquet files. Unset: none are."""
    declared_by: str | None = Field(default=None, max_length=LONGEST_DECLARER)
    """Author of declared limits, steps, labels, prices, servers, volumes and decisions, for commands without `--by`.
    Unset: the login of the operating system."""
    web_dagster_postgres_url: PostgresUrl | None = None
    """Address of Dagster's database for the metrics of runs, with a role that can only read the tables `runs` and
    `daemon_heartbeats`. Unset: DAGSTER_POSTGRES_URL."""
    web_database_url: PostgresUrl | None = None
    """Address of the same database for the pages, with a role that can only read. Unset: CAPACITY_DATABASE_URL, with
    the role `capacity_reader` if its own role may switch to it."""
    sql_password: Token | None = None
    """Password of the role `capacity_reader` while `capacity up --sql-port` is open, at least 16 characters. Unset:
    generated and stored in the file `sql-password` under CAPACITY_HOME."""
    metrics_databases: Labels = ()
    """Databases to export at `/metrics`, in addition to servers and volumes: label keys such as `team`, or labels such
    as `environment=production`, separated by commas. Unset: none."""
    web_token: Token | None = None
    """Password for readers of the pages, at least 16 characters; browsers ask for it. Unset: none."""
    web_user_header: str | None = None
    """Header in which a proxy before the pages names the user; requests without it are refused. Unset: none."""
    dagster_url_of_people: str | None = Field(
        default=None, validation_alias="CAPACITY_DAGSTER_URL", pattern="^https?://"
    )
    """Address of Dagster's UI, used for links in the pages and alerts. Unset: no links; `capacity up` sets it."""
    pages_url: str | None = Field(default=None, pattern="^https?://")
    """Address of the pages, to which Dagster's UI, digests and alerts link. Unset: no links; `capacity up` sets it."""
    secrets_folder: Path = Path("/run/secrets")
    """Folder of the file NAME of a password `secret:NAME`: the mount of a secret store."""
    password_variables: Words = DEFAULT_PASSWORD_VARIABLES
    """Variables that `env:NAME` may name, as names or patterns with `*`, separated by commas. Those of capacity_assets
    itself are always refused."""
    password_folders: Folders = DEFAULT_PASSWORD_FOLDERS
    """Folders allowed for the file of a password `file:/PATH`, after links are followed, separated by commas."""
    home: Folder = DEFAULT_HOME
    """Folder for the embedded server's data and Dagster's home."""

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: dict[str, object]) -> dict[str, object]:
        present = {FORMER_NAMES[name]: value for name, value in values.items() if name in FORMER_NAMES}
        return present | values


# CAPACITY_TIMEZOEN is; CAPACITY_HOST, which container platforms set, is not.
NEARLY_THE_SAME = 0.9
# CAPACITY_DEV_DATABASE_URL is a variable of the user.
MOST_LETTERS_OFF = 2
ADDRESSES = ("database_url", "dagster_postgres_url")
CAPACITY_DRIVER = "postgresql+psycopg"
# SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3, on which dagster-postgres 0.29 fails at its
# first event (NOTIFY with a bound parameter): Dagster's own storage stays on psycopg2.
DAGSTER_DRIVER = "postgresql+psycopg2"


class ConfigurationError(Exception):
    """The environment contains an invalid value; the text names each variable and what to write."""


@dataclass(frozen=True)
class Thresholds:
    """The probabilities of being full within `days`, in percent, from which something is marked *watch* and *act*."""

    days: int = 30
    watch_percent: int = 20
    act_percent: int = 50


DEFAULT_THRESHOLDS = Thresholds()
WATCH_OF_ACT = Fraction(2, 5)
"""If costs are set, *watch* begins at this part of the *act* threshold, as in the default."""


class Settings(Variables):
    """The validated configuration."""

    @property
    def zone(self) -> ZoneInfo:
        """The configured time zone."""
        return ZoneInfo(self.timezone)

    @property
    def zone_is_chosen(self) -> bool:
        """Whether the time zone is set; otherwise it is the machine's."""
        return "timezone" in self.model_fields_set

    @property
    def capacity_url(self) -> URL | None:
        """URL of the capacity tables for our driver, or None for the embedded server."""
        return url_for_driver(self.database_url, CAPACITY_DRIVER)

    @property
    def embedded_server_exists(self) -> bool:
        """Whether the embedded server was created, running or not."""
        return (self.postgres_data / "PG_VERSION").exists()

    @property
    def has_dagster_storage(self) -> bool:
        """Whether Dagster's storage is a server of the user's own, or the embedded one, which was created."""
        return self.dagster_url is not None or self.embedded_server_exists

    @property
    def has_capacity_database(self) -> bool:
        """Whether the capacity database is on a server of the user's own, or on the embedded one, which was created."""
        return self.capacity_url is not None or self.embedded_server_exists

    @property
    def dagster_url(self) -> URL | None:
        """URL of Dagster's storage for the driver it needs, or None for the embedded server."""
        return url_for_driver(self.dagster_postgres_url, DAGSTER_DRIVER)

    @property
    def web_dagster_url(self) -> URL | None:
        """URL of Dagster's storage as the pages read it, or None for the embedded server."""
        return url_for_driver(self.web_dagster_postgres_url or self.dagster_postgres_url, CAPACITY_DRIVER)

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds *watch* and *act*: from the costs, if they are set."""
        if self.cost_of_acting is None or self.cost_of_filling is None:
            return Thresholds(self.fills_soon_days, self.watch_percent, self.act_percent)
        act_percent = 100 * Fraction(self.cost_of_acting) / Fraction(self.cost_of_filling)
        return Thresholds(self.fills_soon_days, ceil(WATCH_OF_ACT * act_percent), ceil(act_percent))

    def as_environment(self) -> dict[str, str]:
        """Return the variables of these settings for a child process, which does not read our .env file.

        The two addresses are not included: the caller passes those of the embedded server.
        """
        values = {
            str(field.validation_alias): as_text(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if name not in ADDRESSES
        }
        # Not set for the child if it was not set here, so that the child also knows whether the zone was chosen.
        return values | ({} if self.zone_is_chosen else {"CAPACITY_TIMEZONE": ""})

    @property
    def declarer(self) -> str | None:
        """The author of declarations unless a command names another; None: this user has no login."""
        try:
            return self.declared_by or getpass.getuser()
        except (KeyError, OSError):
            # For example in containers whose user ID is not in the file of users.
            return None

    @property
    def postgres_data(self) -> Path:
        """Folder of the embedded server's data."""
        return self.home.resolve() / "postgres"

    @property
    def reports(self) -> Path:
        """Folder of growth reports."""
        return self.home.resolve() / "reports"

    @property
    def dagster_home(self) -> Path:
        """Folder that serves as DAGSTER_HOME under `capacity up` and `capacity demo`."""
        return self.home.resolve() / "dagster"


def variable_names() -> dict[str, str]:
    """Return each environment variable with its description, in the order of `.env.example`."""
    fields = Variables.model_fields.values()
    return {str(field.validation_alias): " ".join((field.description or "").split()) for field in fields}


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be a valid decimal", "write a number, such as 5")


def _misspelt_variables() -> Iterator[str]:
    """Yield a line for each variable that is nearly one of these and has no effect; raises ValidationError."""
    for name in unknown_variables():
        for nearest in get_close_matches(name, list(variable_names()), n=1, cutoff=NEARLY_THE_SAME):
            ours, theirs = Counter(nearest), Counter(name)
            if (ours - theirs).total() + (theirs - ours).total() <= MOST_LETTERS_OFF:
                yield f"{name}: is not a variable of capacity_assets, so it has no effect. Did you mean {nearest}?"


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        ConfigurationError: one line for each misspelt variable or invalid value, without secrets; or the file `.env`
            cannot be used.
    """
    try:
        problems = list(_misspelt_variables())
        settings = Settings()
    except ValidationError as error:
        raise ConfigurationError(f"{ENV_FILE}: {error}") from None
    except PydanticValidationError as error:
        # The pydantic text repeats the input, which may be a URL with a password: build our own lines.
        # The error of a default that contradicts other values contains the name of its field.
        names = {name: str(field.validation_alias) for name, field in Variables.model_fields.items()}
        places = [str(item["loc"][0]) for item in error.errors()]
        reasons = [_reason(item["msg"]) for item in error.errors()]
        problems += [f"{names.get(place, place)}: {why}" for place, why in zip(places, reasons, strict=True)]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings
