"""`capacity check`: one screen that says whether configuration, databases and schema are fit."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.cli.database import server_version
from capacity_assets.cli.errors import BAD_USAGE, DONE, FAILED
from capacity_assets.cli.output import Coloured, print_json, print_table
from capacity_assets.clock import Clock
from capacity_assets.collection.credentials import OWN, SecretFolders, password_of
from capacity_assets.collection.registry import Registered, registered
from capacity_assets.collection.standing import standing
from capacity_assets.foundation.errors import CapacityError, reason_of
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.foundation.locks import LockUnavailableError, ask_redis
from capacity_assets.periods import PERIODS
from capacity_assets.retention.rules import parse_retention
from capacity_assets.runtime import excluded_of, open_engine, retention_service
from capacity_assets.settings import ENV_FILE, ConfigurationError, Settings, load_settings, unknown_variables
from capacity_assets.storage.embedded import EmbeddedServerError
from capacity_assets.storage.engine import CONNECT_TIMEOUT_SECONDS, UnreachableError, safe_url
from capacity_assets.storage.schema import (
    EVERYBODY_MAY_CREATE,
    SCHEMA_REVISION,
    everybody_may_create,
    schema_revision,
    schema_state,
)
from capacity_assets.storage.zone import another_zone
from capacity_assets.units import counted, first_of

OLDEST_SERVER = 14
NAMED = 5
ZONE = "CAPACITY_TIMEZONE"


class Verdict(StrEnum):
    """The verdict of one line of the screen."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


AGGREGATES = tuple(level.target.name for level in LEVELS.values())
# The last thirteen months, so that a long history is not read as a whole.
_CONTRADICTING = """
SELECT count(*) AS rows, min(period_start) AS first_day FROM {table}
WHERE period_start >= current_date - 400
  AND (growth_rate < 0 AND trend_direction = 'growing' OR growth_rate > 0 AND trend_direction = 'shrinking')
"""
COLOURS = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BAD: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, the verdict, and what was found or what to do."""

    subject: str
    verdict: Verdict
    text: str


def check_all(*, as_json: bool) -> int:
    """Look at everything, print it, return the exit code: 2 for configuration, 1 for anything else bad."""
    try:
        settings = load_settings()
    except ConfigurationError as error:
        findings = [Finding(*_split(line)) for line in str(error).splitlines()]
        _print(findings, as_json=as_json)
        return BAD_USAGE
    configuration = list(_configuration(settings))
    database = list(_capacity_database(settings))
    if any(finding.subject == ZONE for finding in database):
        # What the database says of the zone stands for what was set.
        configuration = [finding for finding in configuration if finding.subject != ZONE]
    findings = [*configuration, *database, *_dagster_storage(settings), *_redis(settings)]
    _print(findings, as_json=as_json)
    if any(finding.verdict is Verdict.BAD for finding in configuration):
        return BAD_USAGE
    return FAILED if any(finding.verdict is Verdict.BAD for finding in findings) else DONE


def _split(line: str) -> tuple[str, Verdict, str]:
    variable, _, problem = line.partition(": ")
    return variable, Verdict.BAD, problem


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
        yield Finding(*_split(str(error)))
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


def _home(settings: Settings) -> Finding:
    home = settings.home.resolve()
    if home.exists() and home.stat().st_mode & stat.S_IWOTH:
        text = f"{home} can be written by every user of this machine: chmod o-w {home}"
        return Finding("CAPACITY_HOME", Verdict.BAD, text)
    return Finding("CAPACITY_HOME", Verdict.OK, str(home))


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
        return Finding(*_split(str(error)))
    rules = [f"{name} {'for ever' if days is None else f'{days} days'}" for name, days in retention.days.items()]
    return Finding("CAPACITY_RETENTION_DAYS", Verdict.OK, f"{', '.join(rules)}; what is not named, for ever")


def _capacity_database(settings: Settings) -> Iterator[Finding]:
    subject = "capacity database"
    if settings.capacity_url is None and not settings.embedded_server_exists:
        yield Finding(
            subject, Verdict.NOTE, "the embedded server does not exist yet: `capacity init` or `capacity demo`"
        )
        return
    try:
        with open_engine(settings) as engine:
            yield from _server(engine)
            yield from _schema(engine)
            if schema_revision(engine) == SCHEMA_REVISION:
                yield from _zone(engine, settings)
                yield from _trends(engine)
                yield from _partitions(engine, settings)
                yield from _collection(engine, settings)
    except (UnreachableError, EmbeddedServerError) as error:
        yield Finding(subject, Verdict.BAD, str(error))
    except DBAPIError as error:
        yield Finding(subject, Verdict.BAD, reason_of(error))


def _server(engine: Engine) -> Iterator[Finding]:
    major, version = server_version(engine)
    old = major < OLDEST_SERVER
    advice = f"; {OLDEST_SERVER} or newer is needed" if old else ""
    yield Finding("capacity database", Verdict.BAD if old else Verdict.OK, f"PostgreSQL {version} answers{advice}")


def _schema(engine: Engine) -> Iterator[Finding]:
    if everybody_may_create(engine):
        yield Finding("schema", Verdict.NOTE, EVERYBODY_MAY_CREATE)
    state = schema_state(engine)
    if state.fit:
        yield Finding(
            "schema", Verdict.OK, f"revision {SCHEMA_REVISION}, all tables, keys, indexes and triggers are there"
        )
        return
    if state.revision != SCHEMA_REVISION:
        found = "none" if state.revision is None else state.revision
        text = f"revision {found}, {SCHEMA_REVISION} is needed: run `capacity init`"
        yield Finding("schema", Verdict.BAD, text)
    if state.missing_tables:
        yield Finding("schema", Verdict.BAD, f"missing tables: {', '.join(state.missing_tables)}")
    for shortcoming in state.shortcomings:
        yield Finding("schema", Verdict.BAD, f"{shortcoming}; run `capacity init`, which fixes it or says what to do")


def _zone(engine: Engine, settings: Settings) -> Iterator[Finding]:
    if problem := another_zone(engine, settings.timezone):
        yield Finding(ZONE, Verdict.BAD, problem)


def _trends(engine: Engine) -> Iterator[Finding]:
    """Look for rows of the last months that another application has written without their trend."""
    with engine.connect() as connection:
        rows = {name: connection.execute(text(_CONTRADICTING.format(table=name))).one() for name in AGGREGATES}
    for name, found in rows.items():
        if found.rows:
            yield Finding(
                name,
                Verdict.NOTE,
                f"{found.rows:,} rows since {found.first_day} have a trend against their growth: another application "
                "wrote them and left the trend. `capacity aggregate` for these days corrects it",
            )


def _partitions(engine: Engine, settings: Settings) -> Iterator[Finding]:
    try:
        lacks = retention_service(engine, settings).shortcomings()
    except ConfigurationError:
        return  # told already, with the variable
    for lack in lacks:
        yield Finding("partitions", Verdict.NOTE, lack)
    if not lacks:
        yield Finding("partitions", Verdict.OK, "there are some for the coming month; no row lies in a default one")


def _collection(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Say who is measured, and whose password cannot be looked up; no server is asked."""
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
        found = f"{counted(len(measured), 'server')} measured daily at {settings.collection_hour:02}:00"
        if failing:
            found += f"; {len(failing):,} of them failed last: {first_of((one.server for one in failing), NAMED)}"
        yield Finding("collection", Verdict.OK if measured and not failing else Verdict.NOTE, found)


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


def _dagster_storage(settings: Settings) -> Iterator[Finding]:
    """Look at Dagster's own storage; the embedded one is prepared anew whenever something starts Dagster on it."""
    url = settings.dagster_url
    if url is None:
        return
    engine = create_engine(url, connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS})
    try:
        yield Finding("Dagster storage", Verdict.OK, f"PostgreSQL {server_version(engine)[1]} answers")
        yield _pools(engine)
    except DBAPIError as error:
        yield Finding("Dagster storage", Verdict.BAD, f"cannot reach {safe_url(url)}: {reason_of(error)}")
    finally:
        engine.dispose()


def _pools(engine: Engine) -> Finding:
    from capacity_assets.orchestration.pools import pools_without_limit

    open_pools = pools_without_limit(engine, PERIODS.values())
    if open_pools is None:
        return Finding("pools", Verdict.BAD, "Dagster has no tables here yet: run `capacity init`")
    if open_pools:
        listed = ", ".join(open_pools)
        return Finding("pools", Verdict.BAD, f"not limited to one run at a time: {listed}; run `capacity init`")
    return Finding("pools", Verdict.OK, "one run per period at a time")


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


def _print(findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    columns = (("Checked", "left"), ("Verdict", "left"), ("Found", "text"))
    print_table(
        "capacity check",
        columns,
        [[f.subject, Coloured(f.verdict.value, COLOURS[f.verdict]), f.text] for f in findings],
    )
