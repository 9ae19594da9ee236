"""`capacity check`: one screen that says whether configuration, databases and schema are fit."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
from rich.text import Text
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from capacity_assets.cli.activity import daemon_works, silent_location
from capacity_assets.cli.check_database import capacity_database_findings
from capacity_assets.cli.errors import BAD_USAGE, DONE, FAILED
from capacity_assets.cli.findings import ZONE, Finding, Verdict, server_version, split_problem
from capacity_assets.cli.options import json_option, without_settings
from capacity_assets.cli.output import print_json, print_table
from capacity_assets.clock import Clock
from capacity_assets.collection.fetching import VARIABLE as SOURCES
from capacity_assets.collection.volume_sources import volume_sources
from capacity_assets.digest.receivers import receivers_of
from capacity_assets.env_file import ENV_FILE
from capacity_assets.environment import unknown_variables
from capacity_assets.errors import DATABASE_FAILURES, CapacityError, reason_of, sqlstate_of
from capacity_assets.foundation.lock_errors import LockUnavailableError
from capacity_assets.foundation.redis_locks import ask_redis
from capacity_assets.orchestration.instance import dagster_storage
from capacity_assets.periods import PERIODS
from capacity_assets.retention.rules import parse_retention
from capacity_assets.runtime import excluded_of, open_reading_engine
from capacity_assets.settings import ConfigurationError, Settings, load_settings
from capacity_assets.storage.embedded_folders import others_can_write
from capacity_assets.storage.engine import CONNECT_TIMEOUT_SECONDS, UnreachableError, disposed, safe_url

UNDEFINED_TABLE = "42P01"
PAGES = "pages"
DIGEST = "CAPACITY_DIGEST_RECEIVERS"
COLOURS = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BAD: "bold red"}


@click.command()
@json_option
@without_settings
def check(*, as_json: bool) -> int:
    """Say whether configuration, database and schema are fit.

    Prints one screen, changes nothing. The exit code is 2 where the configuration is wrong, 1 where anything else is.
    """
    try:
        settings = load_settings()
    except ConfigurationError as error:
        findings = [split_problem(line) for line in str(error).splitlines()]
        _print(findings, as_json=as_json)
        return BAD_USAGE
    configuration = list(_configuration(settings))
    database = list(capacity_database_findings(settings))
    if any(finding.subject == ZONE for finding in database):
        # What the database says of the zone stands for what was set.
        configuration = [finding for finding in configuration if finding.subject != ZONE]
    elsewhere = [*_dagster_storage(settings), *_location(settings), *_redis(settings), *_pages(settings)]
    findings = [*configuration, *database, *elsewhere]
    _print(findings, as_json=as_json)
    if any(finding.verdict is Verdict.BAD for finding in configuration):
        return BAD_USAGE
    return FAILED if any(finding.verdict is Verdict.BAD for finding in findings) else DONE


def _configuration(settings: Settings) -> Iterator[Finding]:
    today = Clock(settings.zone).today()
    yield Finding(ZONE, Verdict.OK, f"{settings.timezone}, where it is {today}")
    ahead = settings.start_date > today
    note = "lies ahead: there is no partition yet" if ahead else "first day with samples"
    yield Finding("CAPACITY_SCHEDULE_HOUR", Verdict.OK, f"schedules tick at {settings.schedule_hour:02}:00")
    yield Finding("CAPACITY_START_DATE", Verdict.BAD if ahead else Verdict.OK, f"{settings.start_date}, {note}")
    if Path(ENV_FILE).is_file():
        yield Finding(ENV_FILE, Verdict.NOTE, f"{Path(ENV_FILE).resolve()} is read too; what is exported wins")
    for name in unknown_variables():
        yield Finding(name, Verdict.NOTE, "is set but not known, so it has no effect; see .env.example")
    yield _retention(settings)
    try:
        excluded_of(settings)
    except ConfigurationError as error:
        yield split_problem(str(error))
    yield from _volume_sources(settings)
    yield from _digest(settings)
    yield _home(settings)
    yield from _open_files(settings)
    for name, url in (("CAPACITY_DATABASE_URL", settings.capacity_url), ("DAGSTER_POSTGRES_URL", settings.dagster_url)):
        yield Finding(name, Verdict.OK, "unset: the embedded server" if url is None else safe_url(url))
    written = settings.dagster_postgres_url
    if written and not written.get_secret_value().startswith("postgresql+psycopg2://"):
        yield Finding(
            "DAGSTER_POSTGRES_URL",
            Verdict.NOTE,
            "for plain `dagster dev` begin it with postgresql+psycopg2:// (`capacity up` does that by itself)",
        )


def _volume_sources(settings: Settings) -> Iterator[Finding]:
    if settings.volume_sources is None:
        return
    try:
        sources = volume_sources(settings.volume_sources)
    except CapacityError as error:
        yield Finding(SOURCES, Verdict.BAD, " ".join(str(error).splitlines()))
    else:
        named = ", ".join(source.name for source in sources) or "none"
        yield Finding(SOURCES, Verdict.OK, f"{named}; `capacity volumes fetch --dry-run` asks them")


def _home(settings: Settings) -> Finding:
    home = settings.home.resolve()
    problem = others_can_write(home) or others_can_write(settings.dagster_home)
    return Finding("CAPACITY_HOME", Verdict.BAD if problem else Verdict.OK, problem or str(home))


def _open_files(settings: Settings) -> Iterator[Finding]:
    """Name what every user of this machine can read although it may hold passwords, or names of databases."""
    home = settings.home.resolve()
    env_file = Path(ENV_FILE).resolve()
    if env_file.is_file() and env_file.stat().st_mode & stat.S_IROTH:
        text = f"{env_file} can be read by every user of this machine, and may hold passwords: chmod 600 {env_file}"
        yield Finding(ENV_FILE, Verdict.NOTE, text)
    if settings.reports.is_dir() and home.stat().st_mode & settings.reports.stat().st_mode & stat.S_IXOTH:
        text = f"every user of this machine can read {settings.reports}, which names your databases: chmod 700 {home}"
        yield Finding("reports", Verdict.NOTE, text)


def _retention(settings: Settings) -> Finding:
    try:
        retention = parse_retention(settings.retention_days)
    except ConfigurationError as error:
        return split_problem(str(error))
    rules = [f"{name} {'for ever' if days is None else f'{days} days'}" for name, days in retention.days.items()]
    return Finding("CAPACITY_RETENTION_DAYS", Verdict.OK, f"{', '.join(rules)}; what is not named, for ever")


def _dagster_storage(settings: Settings) -> Iterator[Finding]:
    """Look at Dagster's own storage; the embedded one is prepared anew whenever something starts Dagster on it."""
    url = settings.dagster_url
    if url is None:
        return
    with disposed(create_engine(url, connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS})) as engine:
        try:
            yield Finding("Dagster storage", Verdict.OK, f"PostgreSQL {server_version(engine)[1]} answers")
            yield _pools(settings)
        except DATABASE_FAILURES as error:
            yield Finding("Dagster storage", Verdict.BAD, f"cannot reach {safe_url(url)}: {reason_of(error)}")


NO_TABLES = "Dagster has no tables here yet: run `capacity init`"


def _pools(settings: Settings) -> Finding:
    from capacity_assets.orchestration.pools import pools_without_limit

    try:
        with dagster_storage(settings) as storage:
            shares = len(settings.collection_shares)
            open_pools = pools_without_limit(storage.event_log_storage, PERIODS.values(), shares)
    except DBAPIError as error:
        if sqlstate_of(error) != UNDEFINED_TABLE:
            raise
        return Finding("pools", Verdict.BAD, NO_TABLES)
    except UnreachableError:
        return Finding("pools", Verdict.BAD, NO_TABLES)
    if open_pools:
        listed = ", ".join(open_pools)
        return Finding("pools", Verdict.BAD, f"not limited to one run at a time: {listed}; run `capacity init`")
    return Finding("pools", Verdict.OK, "one run per period at a time")


def _location(settings: Settings) -> Iterator[Finding]:
    """Check the code location if a daemon is running, because the daemon cannot start runs without it."""
    if settings.dagster_url is None and not settings.embedded_server_exists:
        return
    try:
        with dagster_storage(settings) as storage:
            silent = silent_location(settings) if daemon_works(storage) else None
    except (*DATABASE_FAILURES, CapacityError):
        return  # reported for the storage itself
    if silent is not None:
        yield Finding("code location", Verdict.BAD if silent else Verdict.OK, silent or "answers")


def _redis(settings: Settings) -> Iterator[Finding]:
    """Ask Redis, where one holds the locks."""
    if settings.redis_url is None:
        yield Finding("CAPACITY_REDIS_URL", Verdict.OK, "unset: PostgreSQL holds the locks")
        return
    try:
        ask_redis(settings.redis_url.get_secret_value())
    except LockUnavailableError as error:
        yield Finding("Redis", Verdict.BAD, str(error))
    else:
        yield Finding("Redis", Verdict.OK, "answers, and allows what locks need")


def _digest(settings: Settings) -> Iterator[Finding]:
    """Look at the file of receivers, and whether there is a way to reach them."""
    if settings.digest_receivers is None:
        return
    try:
        receivers = receivers_of(settings.digest_receivers, settings.label_keys)
    except CapacityError as error:
        yield Finding(DIGEST, Verdict.BAD, " ".join(str(error).splitlines()))
        return
    yield Finding(DIGEST, Verdict.OK, ", ".join(receiver.name for receiver in receivers) or "nobody")
    if any(receiver.to for receiver in receivers) and (settings.smtp_url is None or settings.mail_from is None):
        yield Finding(DIGEST, Verdict.BAD, "mail needs CAPACITY_SMTP_URL and CAPACITY_MAIL_FROM too")
    if any(receiver.webhook for receiver in receivers) and settings.alert_webhook_url is None:
        yield Finding(DIGEST, Verdict.BAD, "webhook = true needs CAPACITY_ALERT_WEBHOOK_URL too")


def _pages(settings: Settings) -> Iterator[Finding]:
    """Look whether the pages could be served with a role that only reads, where the server is one's own."""
    if settings.capacity_url is None and settings.web_database_url is None:
        return
    try:
        with open_reading_engine(settings):
            yield Finding(PAGES, Verdict.OK, "served with a role that only reads")
    except UnreachableError as error:
        yield Finding(PAGES, Verdict.BAD, str(error))
    except CapacityError as error:
        yield Finding(PAGES, Verdict.NOTE, str(error))


def _print(findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    columns = (("Checked", "left"), ("Verdict", "left"), ("Found", "text"))
    print_table(
        "capacity check",
        columns,
        [[f.subject, Text(f.verdict.value, style=COLOURS[f.verdict]), f.text] for f in findings],
    )
