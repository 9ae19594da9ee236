"""Every environment variable of the project: its name, type, default and description, which the reference shows.

How a text becomes a value is in `setting_values`; what follows from the values, and how they are read, in `settings`.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import AliasGenerator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from capacity_assets.env_file import ENV_FILE
from capacity_assets.setting_values import (
    FirstDay,
    Folder,
    Folders,
    Horizon,
    Hour,
    LabelKeys,
    MailServer,
    PostgresUrl,
    RedisUrl,
    Shares,
    Token,
    WebAddress,
    Words,
    ZoneName,
    machine_zone,
)

# Samples are measured at three.
DEFAULT_SCHEDULE_HOUR = 4
DEFAULT_JUMP_PERCENT = 100
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
        description="Where failed runs and failed checks of severity error are sent, as JSON with the key `text`. "
        "Unset: nowhere.",
    )
    digest_receivers: Path | None = Field(
        default=None,
        description="TOML file that says who gets the weekly digest, of all or of what has a label. Unset: nobody.",
    )
    smtp_url: MailServer | None = Field(
        default=None,
        description="Mail server of the digests, `smtps://user:password@host:465`, or `smtp://host:587`, encrypted "
        "where the server offers it. Unset: no mail.",
    )
    mail_from: str | None = Field(
        default=None,
        pattern=r"^[^@\s,;<>]+@[^@\s,;<>]+$",
        description="Address that digests come from.",
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
    fills_soon_percent: int = Field(
        default=50,
        gt=0,
        le=100,
        description="Probability in percent from which on that check names a server, database or volume.",
    )
    fills_soon_severity: Literal["error", "warn"] = Field(
        default="error",
        description="`error`: what that check names is sent as an alert; `warn`: it is only shown.",
    )
    trend_percent: Decimal | None = Field(
        default=None,
        gt=0,
        le=1000,
        decimal_places=2,
        description="Change in percent, up or down, beyond which a window counts as growing or shrinking, the same for "
        "every period; 5 is what the legacy application used. Unset: 20 % per year, in proportion to the window's "
        "length.",
    )
    retention_days: str = Field(
        default=DEFAULT_RETENTION_DAYS,
        description="How many days rows are kept, `name=days` or `name=forever`, separated by commas. A name is `raw`, "
        "a raw table, a period, or an aggregate asset; the more exact one wins, and what is not named keeps its "
        "default. See the operations page.",
    )
    parallel_slices: int = Field(
        default=1,
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
    volume_sources: Path | None = Field(
        default=None,
        description="TOML file that names Prometheus-compatible servers which know the file systems of servers that do "
        "not report them. Unset: none.",
    )
    label_keys: LabelKeys = Field(
        default=DEFAULT_LABEL_KEYS,
        description="Keys of labels of servers and databases, separated by commas; one more word adds a key.",
    )
    web_database_url: PostgresUrl | None = Field(
        default=None,
        description="The same database for the pages, with a role that can only read. Unset: CAPACITY_DATABASE_URL, "
        "with the role `capacity_reader` where its role may take that on.",
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
        description="Address of the pages, to which Dagster's UI links. Unset: no links; `capacity up` knows it.",
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
    home: Folder = Field(
        default=DEFAULT_HOME,
        description="Folder for the embedded server's data and Dagster's home.",
    )
