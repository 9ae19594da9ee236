"""`capacity check`: one screen with the state of configuration, databases and schema.

The checks that Dagster runs are in `aggregates.checks` and `orchestration.checks`.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import click
from rich.text import Text
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.base import errors
from capacity_assets.base.declarations import label_or_key
from capacity_assets.base.errors import DATABASE_FAILURES, CapacityError, DatabaseError, reason_of
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.settings import ENV_FILE, ConfigurationError, Settings, load_settings, unknown_variables
from capacity_assets.base.units import counted, first_of, suggestion
from capacity_assets.cli.options import BAD_USAGE, DONE, FAILED, Report, Table, command_without_settings, json_option
from capacity_assets.cli.status import daemon_works, silent_location
from capacity_assets.collection.credentials import OWN, SecretFolders, password_of
from capacity_assets.collection.prometheus import VARIABLE as SOURCES
from capacity_assets.collection.prometheus import PrometheusSource, prometheus_sources
from capacity_assets.collection.servers import RegisteredServer, collection_state, registered_servers
from capacity_assets.collection.service import ALL, parse_share, servers_of_share
from capacity_assets.database import engine as database
from capacity_assets.database.changes import lost_nodes
from capacity_assets.database.distributing import distribution_text, placements
from capacity_assets.database.embedded import EmbeddedServerError, others_can_write
from capacity_assets.database.engine import UnreachableError, check_today, safe_url
from capacity_assets.database.locks import ask_redis
from capacity_assets.database.schema import schema_revision, schema_state
from capacity_assets.database.tables import SCHEMA_REVISION
from capacity_assets.forecast.history import HistoryScope, open_history_reader
from capacity_assets.history.retention import Retention, parse_retention
from capacity_assets.messages.channels import Receiver, SendingSettings, receivers_of, unreachable
from capacity_assets.orchestration.instance import dagster_storage
from capacity_assets.ownership.labels import label_of_nothing
from capacity_assets.reading.space import retained_wal_on
from capacity_assets.reading.windows import STOPPED_ADVICE, first_days_ahead, newest_samples, wrong_trends
from capacity_assets.runtime import excluded_databases_of, open_engine, open_reading_engine, retention_service

ZONE = "CAPACITY_TIMEZONE"
CAPACITY = "capacity database"
PAGES = "pages"
RECEIVERS = "CAPACITY_RECEIVERS"
OBJECTS, METRICS = "CAPACITY_OBJECTS", "CAPACITY_METRICS_DATABASES"
RETENTION = "CAPACITY_RETENTION_DAYS"
SYSTEM_DATABASES = "CAPACITY_SYSTEM_DATABASES"
OLDEST_SERVER = 14
NAMED = 5
UNDEFINED_TABLE = "42P01"
NO_TABLES = "Dagster has no tables here yet: run `capacity init`"

Value = TypeVar("Value")


class Verdict(StrEnum):
    """The verdict of one line of the screen."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


COLOURS = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BAD: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line: the subject, the result, and the findings or what to do."""

    subject: str
    verdict: Verdict
    text: str


def _ok(subject: str, text: str) -> Finding:
    return Finding(subject, Verdict.OK, text)


def _note(subject: str, text: str) -> Finding:
    return Finding(subject, Verdict.NOTE, text)


def _bad(subject: str, text: str) -> Finding:
    return Finding(subject, Verdict.BAD, text)


def _problem_or(subject: str, text: str, problem: str | None, verdict: Verdict = Verdict.BAD) -> Finding:
    """Return the finding of a problem, or the text if there is none."""
    return Finding(subject, verdict, problem) if problem else _ok(subject, text)


@click.command()
@json_option
@command_without_settings
def check() -> Report:
    """Check configuration, database and schema.

    Prints one screen and changes nothing. The exit code is 2 if the configuration is wrong, 1 if anything else is.
    """
    try:
        settings = load_settings()
    except ConfigurationError as error:
        # One line per variable, `VARIABLE: problem`.
        problems = (line.partition(": ") for line in str(error).splitlines())
        return _report([_bad(variable, problem) for variable, _, problem in problems], BAD_USAGE)
    today = Clock(settings.zone).today()
    configuration = list(_configuration(settings, today))
    stored = list(_capacity_database(settings, today))
    # The database's message on a setting, such as the zone, replaces the line of the setting.
    judged = {finding.subject for finding in stored}
    configuration = [
        finding for finding in configuration if finding.subject not in judged or finding.verdict is not Verdict.OK
    ]
    others = [*stored, *_dagster_storage(settings), *_location(settings), *_redis(settings), *_pages(settings)]
    code = BAD_USAGE if _is_bad(configuration) else FAILED if _is_bad(others) else DONE
    return _report([*configuration, *others], code)


def _is_bad(findings: Sequence[Finding]) -> bool:
    return any(finding.verdict is Verdict.BAD for finding in findings)


def _report(findings: Sequence[Finding], code: int) -> Report:
    rows = [
        [finding.subject, Text(finding.verdict.value, style=COLOURS[finding.verdict]), finding.text]
        for finding in findings
    ]
    table = Table("capacity check", ("Checked", "Verdict", "~Found"), rows)
    return Report(findings, [table], code)


def _configuration(settings: Settings, today: date) -> Iterator[Finding]:
    yield _ok(ZONE, f"{settings.timezone}, where it is {today}")
    yield _ok("CAPACITY_SCHEDULE_HOUR", f"schedules tick at {settings.schedule_hour:02}:00")
    future = f"{settings.start_date} is in the future, so there is no partition yet"
    begins_later = future if settings.start_date > today else None
    yield _problem_or("CAPACITY_START_DATE", f"{settings.start_date}, first day with samples", begins_later)
    if Path(ENV_FILE).is_file():
        yield _note(ENV_FILE, f"{Path(ENV_FILE).resolve()} is also read; exported variables override it")
    for name in unknown_variables():
        yield _note(name, "is not a variable of capacity_assets, so it has no effect; see .env.example")
    yield from _check_value(RETENTION, lambda: parse_retention(settings.retention_days), _retention_text)
    yield from _check_value(SYSTEM_DATABASES, lambda: excluded_databases_of(settings), None)
    if (sources := settings.volume_sources) is not None:
        yield from _check_value(SOURCES, lambda: prometheus_sources(sources), _sources_text)
    yield from _receivers(settings)
    yield from _folders(settings)
    for name, url in (("CAPACITY_DATABASE_URL", settings.capacity_url), ("DAGSTER_POSTGRES_URL", settings.dagster_url)):
        yield _ok(name, "unset: the embedded server" if url is None else safe_url(url))
    written = settings.dagster_postgres_url
    if written and not written.get_secret_value().startswith("postgresql+psycopg2://"):
        yield _note(
            "DAGSTER_POSTGRES_URL",
            "if you run `dagster dev` yourself, the URL must start with postgresql+psycopg2:// "
            "(`capacity up` adds this)",
        )


def _check_value(subject: str, read: Callable[[], Value], text_of: Callable[[Value], str] | None) -> Iterator[Finding]:
    """Yield the problem of a setting, or the text of its value; without `text_of`, nothing."""
    try:
        value = read()
    except (CapacityError, ConfigurationError) as error:
        yield _unreadable(subject, error)
    else:
        if text_of is not None:
            yield _ok(subject, text_of(value))


def _unreadable(subject: str, error: Exception) -> Finding:
    return _bad(subject, " ".join(str(error).removeprefix(f"{subject}: ").splitlines()))


def _retention_text(rules: Retention) -> str:
    named = [f"{name} {'forever' if days is None else f'{days} days'}" for name, days in rules.days.items()]
    return f"{', '.join(named)}; everything else forever"


def _sources_text(sources: Sequence[PrometheusSource]) -> str:
    return f"{', '.join(source.name for source in sources) or 'none'}; `capacity volumes fetch --dry-run` queries them"


def _receivers(settings: Settings) -> Iterator[Finding]:
    if settings.receivers is None:
        return
    try:
        receivers = receivers_of(settings.receivers, settings.label_keys)
    except CapacityError as error:
        yield _unreadable(RECEIVERS, error)
        return
    problems = dict.fromkeys(unreachable(receivers, SendingSettings.of(settings)))
    yield from (_bad(RECEIVERS, problem) for problem in problems)
    if not problems:
        yield _ok(RECEIVERS, ", ".join(receiver.name for receiver in receivers) or "nobody")


def _labels_of_receivers(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Name receivers that get nothing, because nothing has their label."""
    receivers: list[Receiver] = []
    with suppress(CapacityError):  # reported with the configuration
        receivers = receivers_of(settings.receivers, settings.label_keys)
    for receiver in receivers:
        if receiver.label is not None and (nothing := label_of_nothing(engine, *receiver.label)):
            yield _note(RECEIVERS, f"{receiver.name} gets nothing: {nothing[0].lower()}{nothing[1:]}")


def _folders(settings: Settings) -> Iterator[Finding]:
    """Name folders that other users can write, and files with secrets or names that everyone can read."""
    home, env_file = settings.home.resolve(), Path(ENV_FILE).resolve()
    yield _problem_or("CAPACITY_HOME", str(home), others_can_write(home) or others_can_write(settings.dagster_home))
    if env_file.is_file() and env_file.stat().st_mode & stat.S_IROTH:
        yield _note(
            ENV_FILE,
            f"{env_file} can be read by every user of this machine, and may hold passwords: chmod 600 {env_file}",
        )
    if settings.reports.is_dir() and home.stat().st_mode & settings.reports.stat().st_mode & stat.S_IXOTH:
        yield _note(
            "reports",
            f"every user of this machine can read {settings.reports}, which names your databases: chmod 700 {home}",
        )


def _capacity_database(settings: Settings, today: date) -> Iterator[Finding]:
    if not settings.has_capacity_database:
        yield _note(CAPACITY, "the embedded server does not exist yet: run `capacity init` or `capacity demo`")
        return
    try:
        with open_engine(settings) as engine:
            major, version = _server_version(engine)
            answers = f"PostgreSQL {version} answers"
            too_old = f"{answers}; {OLDEST_SERVER} or newer is needed" if major < OLDEST_SERVER else None
            yield _problem_or(CAPACITY, answers, too_old)
            yield from _schema(engine)
            if schema_revision(engine) == SCHEMA_REVISION:
                for subject, findings in _findings_in_tables(engine, settings, today).items():
                    yield from _as_allowed(subject, findings)
    except (UnreachableError, EmbeddedServerError, DatabaseError, *DATABASE_FAILURES) as error:
        yield _bad(CAPACITY, reason_of(error))


def _findings_in_tables(engine: Engine, settings: Settings, today: date) -> Mapping[str, Iterator[Finding]]:
    return {
        "distribution": _distribution(engine),
        "samples": _samples(engine, settings, today),
        "partitions": _partitions(engine, settings),
        "collection": _collection(engine, settings),
        "limits": _limits(engine, today),
        "retained WAL": _retained_wal(engine, today),
        RECEIVERS: _labels_of_receivers(engine, settings),
        OBJECTS: _objects(engine, settings, today),
        METRICS: _labels_of_metrics(engine, settings),
    }


def _as_allowed(subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield findings as far as the role may read; missing rights of the role are no fault of the database."""
    try:
        yield from findings
    except (DatabaseError, DBAPIError) as error:
        sqlstate = error.sqlstate if isinstance(error, DatabaseError) else errors.sqlstate_of(error)
        if sqlstate != errors.INSUFFICIENT_PRIVILEGE:
            raise
        yield _note(subject, "not checked: this role may not read it; `capacity check` as the owner of the tables can")


def _server_version(engine: Engine) -> tuple[int, str]:
    with engine.connect() as connection:
        number = int(connection.execute(text("SHOW server_version_num")).scalar_one())
        return number // 10_000, str(connection.execute(text("SHOW server_version")).scalar_one())


def _schema(engine: Engine) -> Iterator[Finding]:
    state = schema_state(engine)
    if state.fit:
        yield _ok("schema", f"revision {SCHEMA_REVISION}; all tables, keys, indexes and triggers exist")
        return
    if state.revision != SCHEMA_REVISION:
        yield _bad("schema", f"revision {state.revision or 'none'}, {SCHEMA_REVISION} is needed: run `capacity init`")
    if state.missing_tables:
        yield _bad("schema", f"missing tables: {', '.join(state.missing_tables)}")
    for shortcoming in state.shortcomings:
        yield _bad("schema", f"{shortcoming}; run `capacity init`, which fixes it or says what to do")


def _distribution(engine: Engine) -> Iterator[Finding]:
    """Report where distributed tables are, if there are any."""
    tables = placements(engine, with_sizes=False)
    text = distribution_text(tables)
    if text is None:
        return
    if lost_nodes(engine):
        yield _bad(
            "distribution", "a node was removed, and changes recorded on it may be lost; run `capacity distribute`"
        )
    undistributed = ", ".join(placement.table for placement in tables if not placement.is_distributed)
    again = f"{undistributed}: still on the coordinator; nothing is computed until `capacity distribute` has run again"
    yield _problem_or("distribution", text, again if undistributed else None)


def _samples(engine: Engine, settings: Settings, today: date) -> Iterator[Finding]:
    """Check time zone and clocks, samples of days ahead or that stopped arriving, and trends of another application."""
    if problem := database.another_zone(engine, settings.timezone):
        yield _bad(ZONE, problem)
    with engine.connect() as connection:
        doubt = check_today(connection, Clock(settings.zone)).why_nothing_is_deleted
        ahead = first_days_ahead(connection, today)
        contradicting = wrong_trends(connection)
    if doubt:
        yield _bad("clock", f"{doubt} Correct the wrong clock; until then, nothing is dropped")
    for table, first in ahead.items():
        yield _bad(
            table,
            f"has samples of future days, from {first} on; today is {today}. A clock was wrong when they were "
            "measured, or is wrong now. Correct the clock, then delete the samples that are still in the future",
        )
    for newest in newest_samples(engine, today):
        # If Dagster is not running, no alert is sent.
        if newest.has_stopped:
            yield _bad(newest.table, f"{newest.text} {STOPPED_ADVICE}")
    for wrong in contradicting:
        yield _note(
            wrong.table,
            f"a trend that contradicts the growth: {counted(wrong.rows, 'row')} since {wrong.first_day}. Another "
            "application wrote these rows without updating the trend. `capacity aggregate` for these days corrects it",
        )


def _partitions(engine: Engine, settings: Settings) -> Iterator[Finding]:
    try:
        lacks = retention_service(engine, settings).shortcomings()
    except ConfigurationError:
        return  # reported already, with the variable
    yield from (_note("partitions", lack) for lack in lacks)
    if not lacks:
        yield _ok("partitions", "created for the coming month; no row is in a default partition")


def _collection(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Report the number of measured servers, and those whose password cannot be looked up; connect to none."""
    every = registered_servers(engine)
    measured = [registered for registered in every if registered.active and registered.is_collected]
    for registered in measured:
        reference = registered.server.password_from
        if reference is None or reference == OWN:
            continue
        try:
            password_of(reference, SecretFolders.of(settings))
        except CapacityError as error:
            yield _bad(f"server {registered.name}", str(error))
    yield from (_note("servers", warning) for warning in _warnings(measured, every))
    if settings.collection == "off":
        off = "off: another application fills the raw tables, which are observed"
        yield _problem_or("collection", off, off if measured else None, Verdict.NOTE)
        return
    failing = collection_state(engine).failing
    at = f"{counted(len(measured), 'server')} measured daily at {settings.collection_hour:02}:00"
    if failing:
        names = first_of((server.server for server in failing), NAMED)
        yield _note("collection", f"{at}; the last attempt failed on {len(failing):,} of them: {names}")
    else:
        yield _ok("collection", at) if measured else _note("collection", at)


def _warnings(measured: Sequence[RegisteredServer], every: Sequence[RegisteredServer]) -> Iterator[str]:
    """Report causes of wrong totals of the fleet: a server registered twice, a replica that no other server counts."""
    places: dict[tuple[str, str | None], list[str]] = {}
    for registered in measured:
        if registered.server.counted_by is None:
            places.setdefault((registered.server.place, registered.server.database), []).append(registered.name)
    for (place, _), names in places.items():
        if len(names) > 1:
            yield f"{', '.join(names)} are all at {place}: fleet totals count it {len(names)} times; see `--counted-by`"
    in_service = {registered.name: registered for registered in every if registered.active}
    orphans = [name for name, known in in_service.items() if (known.server.counted_by or name) not in in_service]
    if orphans:
        yield f"counted by a server that is out of service, so not counted at all: {first_of(orphans, NAMED)}"
    unreached = [name for name, registered in in_service.items() if not registered.is_collected]
    if measured and unreached:
        yield f"active, but without a registered connection: {first_of(unreached, NAMED)}"


def _objects(engine: Engine, settings: Settings, today: date) -> Iterator[Finding]:
    """Name servers and labels of CAPACITY_OBJECTS by which no server is chosen."""
    servers = {registered.name: registered for registered in registered_servers(engine)} if settings.objects else {}
    ids = [registered.id for registered in servers.values()]
    for word in settings.objects:
        key, value = label_or_key(word)
        if value and not servers_of_share(engine, parse_share(word), ids, today):
            own = f"No server has the label {word}; labels of databases do not count"
            yield _note(OBJECTS, label_of_nothing(engine, key, value) or own)
        elif "=" not in word and word not in {ALL, *servers}:
            yield _note(OBJECTS, f"No server is named {word!r}.{suggestion(word, servers)}")
        elif word in servers and not (servers[word].active and servers[word].is_collected):
            yield _note(OBJECTS, f"Server {word!r} is not measured here: {servers[word].state}")


def _labels_of_metrics(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Name labels of CAPACITY_METRICS_DATABASES that nothing has."""
    labels = map(label_or_key, settings.metrics_databases)
    missing = (label_of_nothing(engine, key, value) for key, value in labels if value)
    yield from (_note(METRICS, text) for text in missing if text)


def _limits(engine: Engine, today: date) -> Iterator[Finding]:
    """Count the databases without a known limit, which have no fill date."""
    with engine.connect() as connection, open_history_reader(connection, HistoryScope(today), kinds=()) as reader:
        unknown = sum(reader.without_limit().values())
    of_all = "of every database that was measured within the last month"
    lack = f"{counted(unknown, 'database')} without a known limit: `capacity limits set` declares one"
    yield _problem_or("limits", of_all, lack if unknown else None, Verdict.NOTE)


def _retained_wal(engine: Engine, today: date) -> Iterator[Finding]:
    with engine.connect() as connection:
        retained = retained_wal_on(connection, today)
    yield from (_note("retained WAL", f"{wal.text}. {wal.advice}") for wal in retained)


def _dagster_storage(settings: Settings) -> Iterator[Finding]:
    """Check Dagster's own storage; the embedded one is prepared by the command that starts Dagster on it."""
    url = settings.dagster_url
    if url is None:
        return
    options = {"connect_timeout": database.CONNECT_TIMEOUT_SECONDS}
    with database.disposed(create_engine(url, connect_args=options)) as engine:
        try:
            yield _ok("Dagster storage", f"PostgreSQL {_server_version(engine)[1]} answers")
            yield _pools(settings)
        except DATABASE_FAILURES as error:
            yield _bad("Dagster storage", f"cannot reach {safe_url(url)}: {reason_of(error)}")


def _pools(settings: Settings) -> Finding:
    from capacity_assets.orchestration.graph import pools_without_limit

    try:
        with dagster_storage(settings) as storage:
            shares = len(settings.collection_shares)
            unlimited = pools_without_limit(storage.event_log_storage, PERIODS.values(), shares)
    except (DBAPIError, UnreachableError) as error:
        if isinstance(error, DBAPIError) and errors.sqlstate_of(error) != UNDEFINED_TABLE:
            raise
        return _bad("pools", NO_TABLES)
    lack = f"not limited to one run at a time: {', '.join(unlimited)}; run `capacity init`"
    return _problem_or("pools", "one run per period at a time", lack if unlimited else None)


def _location(settings: Settings) -> Iterator[Finding]:
    """Check the code location if a daemon is running, because the daemon cannot start runs without it."""
    if not settings.has_dagster_storage:
        return
    try:
        with dagster_storage(settings) as storage:
            silent = silent_location(settings) if daemon_works(storage) else None
    except (*DATABASE_FAILURES, CapacityError):
        return  # reported for the storage itself
    if silent is not None:
        yield _problem_or("code location", "answers", silent)


def _redis(settings: Settings) -> Iterator[Finding]:
    if (url := settings.redis_url) is None:
        yield _ok("CAPACITY_REDIS_URL", "unset: PostgreSQL holds the locks")
    else:
        answers = "answers, with the rights that locks need"
        yield from _check_value("Redis", lambda: ask_redis(url.get_secret_value()), lambda _: answers)


def _pages(settings: Settings) -> Iterator[Finding]:
    """Check, on the user's own server, whether the pages can be served with a role that can only read."""
    if settings.capacity_url is None and settings.web_database_url is None:
        return
    try:
        with open_reading_engine(settings):
            yield _ok(PAGES, "served with a role that can only read")
    except UnreachableError as error:
        yield _bad(PAGES, str(error))
    except CapacityError as error:
        yield _note(PAGES, str(error))
