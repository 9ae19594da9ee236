"""`capacity check`: one screen with the state of configuration, databases and schema."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import click
from rich.text import Text
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.base.errors import DATABASE_FAILURES, CapacityError, DatabaseError, reason_of, sqlstate_of
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.settings import ENV_FILE, ConfigurationError, Settings, load_settings, unknown_variables
from capacity_assets.base.units import counted, first_of
from capacity_assets.cli.options import BAD_USAGE, DONE, FAILED, json_option, print_json, print_table, without_settings
from capacity_assets.cli.status import daemon_works, silent_location
from capacity_assets.collection.credentials import OWN, SecretFolders, password_of
from capacity_assets.collection.observing import STOPPED_ADVICE, newest_samples
from capacity_assets.collection.servers import Registered, registered, standing
from capacity_assets.collection.volumes import VARIABLE as SOURCES
from capacity_assets.collection.volumes import volume_sources
from capacity_assets.database.changes import lost_nodes
from capacity_assets.database.distributing import distribution_text, placements
from capacity_assets.database.embedded import EmbeddedServerError, others_can_write
from capacity_assets.database.engine import CONNECT_TIMEOUT_SECONDS, UnreachableError, another_zone, disposed, safe_url
from capacity_assets.database.guards import judged_day
from capacity_assets.database.locks import LockUnavailableError, ask_redis
from capacity_assets.database.schema import SCHEMA_REVISION, schema_revision, schema_state
from capacity_assets.digest.receivers import receivers_of
from capacity_assets.forecast.history import HistoryScope, reading
from capacity_assets.history.retention import parse_retention
from capacity_assets.orchestration.instance import dagster_storage
from capacity_assets.reading.windows import first_days_ahead, wrong_trends
from capacity_assets.runtime import excluded_of, open_engine, open_reading_engine, retention_service

ZONE = "CAPACITY_TIMEZONE"


class Verdict(StrEnum):
    """The verdict of one line of the screen."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, the verdict, and what was found or what to do."""

    subject: str
    verdict: Verdict
    text: str


def split_problem(line: str) -> Finding:
    """Turn a line of a ConfigurationError, `VARIABLE: problem`, into a finding."""
    variable, _, problem = line.partition(": ")
    return Finding(variable, Verdict.BAD, problem)


def server_version(engine: Engine) -> tuple[int, str]:
    """Return PostgreSQL's major version and its full name."""
    with engine.connect() as connection:
        number = int(connection.execute(text("SHOW server_version_num")).scalar_one())
        return number // 10_000, str(connection.execute(text("SHOW server_version")).scalar_one())


OLDEST_SERVER = 14
NAMED = 5


def capacity_database_findings(settings: Settings) -> Iterator[Finding]:
    """Look at the capacity database: server, schema, zone, trends, partitions, registered servers."""
    subject = "capacity database"
    if settings.capacity_url is None and not settings.embedded_server_exists:
        yield Finding(
            subject, Verdict.NOTE, "the embedded server does not exist yet: run `capacity init` or `capacity demo`"
        )
        return
    try:
        with open_engine(settings) as engine:
            yield from _server(engine)
            yield from _schema(engine)
            if schema_revision(engine) == SCHEMA_REVISION:
                yield from _distribution(engine)
                yield from _zone(engine, settings)
                yield from _clock(engine, settings)
                yield from _days_ahead(engine, settings)
                yield from _newest_samples(engine, settings)
                yield from _trends(engine)
                yield from _partitions(engine, settings)
                yield from _collection(engine, settings)
                yield from _limits(engine, settings)
    except (UnreachableError, EmbeddedServerError, DatabaseError) as error:
        yield Finding(subject, Verdict.BAD, str(error))
    except DATABASE_FAILURES as error:
        yield Finding(subject, Verdict.BAD, reason_of(error))


def _server(engine: Engine) -> Iterator[Finding]:
    major, version = server_version(engine)
    old = major < OLDEST_SERVER
    advice = f"; {OLDEST_SERVER} or newer is needed" if old else ""
    yield Finding("capacity database", Verdict.BAD if old else Verdict.OK, f"PostgreSQL {version} answers{advice}")


def _schema(engine: Engine) -> Iterator[Finding]:
    state = schema_state(engine)
    if state.fit:
        yield Finding(
            "schema", Verdict.OK, f"revision {SCHEMA_REVISION}, all tables, keys, indexes and triggers are there"
        )
        return
    if state.revision != SCHEMA_REVISION:
        text = f"revision {state.revision or 'none'}, {SCHEMA_REVISION} is needed: run `capacity init`"
        yield Finding("schema", Verdict.BAD, text)
    if state.missing_tables:
        yield Finding("schema", Verdict.BAD, f"missing tables: {', '.join(state.missing_tables)}")
    for shortcoming in state.shortcomings:
        yield Finding("schema", Verdict.BAD, f"{shortcoming}; run `capacity init`, which fixes it or says what to do")


def _distribution(engine: Engine) -> Iterator[Finding]:
    """Report where distributed tables are; nothing where none is."""
    tables = placements(engine, with_sizes=False)
    text = distribution_text(tables)
    left = [one.table for one in tables if not one.is_distributed]
    again = f"{', '.join(left)}: still on the coordinator; run `capacity distribute` again"
    if text is None:
        return
    if lost_nodes(engine):
        removed = "a node was removed, with changes that it may have recorded; run `capacity distribute`"
        yield Finding("distribution", Verdict.BAD, removed)
    if not left:
        yield Finding("distribution", Verdict.OK, text)
    else:
        yield Finding("distribution", Verdict.BAD, f"{again}, nothing is computed before")


def _zone(engine: Engine, settings: Settings) -> Iterator[Finding]:
    if problem := another_zone(engine, settings.timezone):
        yield Finding(ZONE, Verdict.BAD, problem)


def _days_ahead(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Name samples of future days: they were measured with a wrong clock."""
    today = Clock(settings.zone).today()
    with engine.connect() as connection:
        ahead = first_days_ahead(connection, today)
    for table, first in ahead.items():
        yield Finding(
            table,
            Verdict.BAD,
            f"has samples of days that lie ahead, from {first} on, and today is {today}: a clock was wrong when "
            "they were measured, or is wrong now. Set the clock, then delete the samples that still lie ahead",
        )


def _clock(engine: Engine, settings: Settings) -> Iterator[Finding]:
    with engine.connect() as connection:
        doubt = judged_day(connection, Clock(settings.zone)).why_nothing_is_deleted
    if doubt:
        yield Finding("clock", Verdict.BAD, f"{doubt} Set the clock that is wrong; until then nothing is dropped")


def _newest_samples(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Report samples that stopped arriving: if Dagster is not running, no alert is sent."""
    for newest in newest_samples(engine, Clock(settings.zone).today()):
        if newest.has_stopped:
            yield Finding(newest.table, Verdict.BAD, f"{newest.text} {STOPPED_ADVICE}")


def _trends(engine: Engine) -> Iterator[Finding]:
    """Report rows of the last months that another application wrote without updating their trend."""
    with engine.connect() as connection:
        tables = wrong_trends(connection)
    for wrong in tables:
        yield Finding(
            wrong.table,
            Verdict.NOTE,
            f"a trend that contradicts the growth: {counted(wrong.rows, 'row')} since {wrong.first_day}. Another "
            "application wrote these rows without updating the trend. `capacity aggregate` for these days "
            "corrects it",
        )


def _partitions(engine: Engine, settings: Settings) -> Iterator[Finding]:
    try:
        lacks = retention_service(engine, settings).shortcomings()
    except ConfigurationError:
        return  # reported already, with the variable
    for lack in lacks:
        yield Finding("partitions", Verdict.NOTE, lack)
    if not lacks:
        yield Finding("partitions", Verdict.OK, "created for the coming month; no row is in a default partition")


def _collection(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Report who is measured, and whose password cannot be looked up, without connecting to servers."""
    every = registered(engine)
    measured = [one for one in every if one.active and one.is_collected]
    for one in measured:
        reference = one.server.password_from
        if reference is None or reference == OWN:
            continue
        try:
            password_of(reference, SecretFolders.of(settings))
        except CapacityError as error:
            yield Finding(f"server {one.server.name}", Verdict.BAD, str(error))
    yield from _warnings(measured, every)
    if settings.collection == "off":
        text = "off: another application fills the raw tables, which are observed"
        yield Finding("collection", Verdict.NOTE if measured else Verdict.OK, text)
    else:
        failing = standing(engine).failing
        text = f"{counted(len(measured), 'server')} measured daily at {settings.collection_hour:02}:00"
        if failing:
            text += f"; {len(failing):,} of them failed last: {first_of((one.server for one in failing), NAMED)}"
        yield Finding("collection", Verdict.OK if measured and not failing else Verdict.NOTE, text)


def _limits(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Count the databases without a known limit, which have no fill date."""
    today = Clock(settings.zone).today()
    with engine.connect() as connection, reading(connection, HistoryScope(today), kinds=()) as reader:
        unknown = sum(reader.without_limit().values())
    if unknown:
        text_of = f"{counted(unknown, 'database')} without a known limit: `capacity limits set` declares one"
        yield Finding("limits", Verdict.NOTE, text_of)
    else:
        yield Finding("limits", Verdict.OK, "of every database that was measured within the last month")


def _warnings(measured: Sequence[Registered], every: Sequence[Registered]) -> Iterator[Finding]:
    """Name what would make a fleet total wrong: one server registered twice, a replica that no other server counts."""
    places: dict[tuple[str, str | None], list[str]] = {}
    for one in measured:
        if one.server.counted_by is None:
            places.setdefault((one.server.place, one.server.database), []).append(one.server.name)
    for (place, _), names in places.items():
        if len(names) > 1:
            text = (
                f"{', '.join(names)} are all at {place}: fleet totals count it {len(names)} times, see `--counted-by`"
            )
            yield Finding("servers", Verdict.NOTE, text)
    active = {one.server.name for one in every if one.active}
    orphans = [
        one.server.name for one in every if one.active and (one.server.counted_by or one.server.name) not in active
    ]
    if orphans:
        text = f"counted by a server that is out of service, so not counted at all: {first_of(orphans, NAMED)}"
        yield Finding("servers", Verdict.NOTE, text)
    unreached = [one.server.name for one in every if one.active and not one.is_collected]
    if measured and unreached:
        text = f"active, but how to reach them is not registered: {first_of(unreached, NAMED)}"
        yield Finding("servers", Verdict.NOTE, text)


UNDEFINED_TABLE = "42P01"
PAGES = "pages"
DIGEST = "CAPACITY_DIGEST_RECEIVERS"
COLOURS = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BAD: "bold red"}


@click.command()
@json_option
@without_settings
def check(*, as_json: bool) -> int:
    """Check configuration, database and schema.

    Prints one screen and changes nothing. The exit code is 2 if the configuration is wrong, 1 if anything else is.
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
        yield Finding(
            ENV_FILE, Verdict.NOTE, f"{Path(ENV_FILE).resolve()} is also read; exported variables override it"
        )
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
    from capacity_assets.orchestration.schedules import pools_without_limit

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
    """Check Redis, if it holds the locks."""
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
