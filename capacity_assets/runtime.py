"""Opens databases and puts services together by the settings, for the graph, the tasks and the commands.

A database, the user's own or the embedded one, is open for the length of a `with` block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import URL, Engine

from capacity_assets.aggregates.service import AggregationService, PartitionRange
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import DatabaseError, ValidationError
from capacity_assets.base.periods import PERIODS, Clock, Period, with_trend_threshold
from capacity_assets.base.settings import CAPACITY_DRIVER, DAGSTER_DRIVER, ConfigurationError, Settings, url_for_driver
from capacity_assets.base.units import counted
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.engines.base import excluded_databases
from capacity_assets.collection.measuring import ProbeContext
from capacity_assets.collection.service import CollectionService
from capacity_assets.database.embedded import CAPACITY_DATABASE, DAGSTER_DATABASE, embedded_server
from capacity_assets.database.engine import capacity_engine, disposed, ensure_reachable, record_zone
from capacity_assets.database.locks import CapacityLockManager
from capacity_assets.database.schema import initialise, refuse_a_newer_schema
from capacity_assets.database.views import ensure_reader_role
from capacity_assets.history.retention import RetentionService, TableMaintenance, parse_retention
from capacity_assets.ownership.bills import store_missing_groups

logger = logging.getLogger("capacity_assets")


@contextmanager
def open_dagster_database(settings: Settings) -> Iterator[URL]:
    """Yield the URL of Dagster's storage; without DAGSTER_POSTGRES_URL the embedded server serves it."""
    with _serve(settings, settings.dagster_url, DAGSTER_DATABASE) as url:
        yield url.set(drivername=DAGSTER_DRIVER)


@contextmanager
def _serve(settings: Settings, url: URL | None, database: str) -> Iterator[URL]:
    if url is not None:
        yield url
        return
    with embedded_server(settings.postgres_data) as server:
        yield server.url(database, CAPACITY_DRIVER)


@contextmanager
def open_engine(settings: Settings, *, connect: bool = True, existing: bool = False) -> Iterator[Engine]:
    """Yield an engine on the capacity database; without `connect` it connects at its first statement.

    Raises:
        DatabaseError: a newer version created the schema; also raised by later statements of the engine. With
            `existing`, also if there is no embedded server yet.
        UnreachableError: no connection within the time limit.
        EmbeddedServerError: the embedded server did not start.
    """
    if existing:
        refuse_an_absent_embedded_server(settings)
    with (
        _serve(settings, settings.capacity_url, CAPACITY_DATABASE) as url,
        disposed(capacity_engine(url, parallel_slices=settings.parallel_slices)) as engine,
    ):
        refuse_a_newer_schema(engine)
        if connect:
            ensure_reachable(engine)
        yield engine


@contextmanager
def open_reading_engine(settings: Settings, *, allow_writing_role: bool = False) -> Iterator[Engine]:
    """Yield an engine for the pages, with a role that can only read.

    This is the role of CAPACITY_WEB_DATABASE_URL, otherwise `capacity_reader` if the configured role may switch to it.

    Raises:
        ValidationError: the role can write, and that is not allowed.
        DatabaseError: a newer version created the schema, or there is no embedded server yet.
        UnreachableError: no connection within the time limit.
        EmbeddedServerError: the embedded server did not start.
    """
    from capacity_assets.reading.access import reading_engine, refuse_a_role_that_can_write, role_to_read_with

    own = settings.web_database_url
    if own is None:
        refuse_an_absent_embedded_server(settings)
    variable = "CAPACITY_DATABASE_URL" if own is None else "CAPACITY_WEB_DATABASE_URL"
    configured_url = settings.capacity_url if own is None else url_for_driver(own, CAPACITY_DRIVER)
    with _serve(settings, configured_url, CAPACITY_DATABASE) as url:
        if configured_url is None:
            _make_reader_role(url)
        with disposed(refuse_a_newer_schema(reading_engine(url, timezone=settings.timezone))) as plain:
            ensure_reachable(plain, variable)
            role = role_to_read_with(plain)
            if role is None:
                if not allow_writing_role:
                    refuse_a_role_that_can_write(plain)
                yield plain
                return
        with disposed(refuse_a_newer_schema(reading_engine(url, role=role, timezone=settings.timezone))) as engine:
            yield engine


@contextmanager
def open_runs_engine(settings: Settings) -> Iterator[Engine | None]:
    """Yield an engine that reads Dagster's storage, for metrics; None if its address is not known.

    It connects at its first statement. Raises EmbeddedServerError if the embedded server did not start.
    """
    from capacity_assets.reading.access import reading_engine

    address = settings.web_dagster_url
    if address is None and (settings.capacity_url is not None or settings.web_database_url is not None):
        # If the figures are on another server, the embedded one is not started for the metrics of runs.
        yield None
        return
    with _serve(settings, address, DAGSTER_DATABASE) as url:
        # Two seconds: a response must not wait longer for a connection.
        limited = url.set(drivername=CAPACITY_DRIVER).update_query_dict({"connect_timeout": "2"})
        with disposed(reading_engine(limited)) as engine:
            yield engine


def _make_reader_role(url: URL) -> None:
    """Create the role on the embedded server; on other servers, the owner decides."""
    with disposed(capacity_engine(url)) as owner, owner.begin() as connection:
        ensure_reader_role(connection)


def refuse_an_absent_embedded_server(settings: Settings) -> None:
    """Raise DatabaseError if no URL is set and there is no embedded server: a new one would be empty."""
    if not settings.has_capacity_database:
        raise DatabaseError(
            f"CAPACITY_DATABASE_URL is unset and there is no embedded server under {settings.home.resolve()} yet. "
            "Run `capacity init` or `capacity demo` to create it, or point CAPACITY_HOME at the folder that contains "
            "it."
        )


@contextmanager
def open_task_runner(
    settings: Settings, *, connect: bool = True, existing: bool = False
) -> Iterator[AggregationTaskRunner]:
    """Yield a task runner on the configured database; the options and what it raises are those of `open_engine`."""
    with open_engine(settings, connect=connect, existing=existing) as engine:
        yield task_runner(engine, settings)


def prepare_database(
    engine: Engine, settings: Settings, on_step: Callable[[str], None] = logger.info
) -> tuple[str, ...]:
    """Create or upgrade the schema, and add the partitions that are needed today; return what was done.

    `on_step` is called before each step that may take long.

    Raises:
        SchemaProblemsError: as `database.schema.initialise`; nothing was changed.
        DatabaseError: a partition could not be added; the schema was created; run it again to continue.
        sqlalchemy.exc.DBAPIError: the database refused a step of the schema; nothing was changed.
    """
    steps = initialise(engine, on_step)
    record_zone(engine, settings.timezone, chosen=settings.zone_is_chosen)
    if settings.capacity_url is None:
        _make_reader_role(engine.url)
    # Bills of former versions have no groups.
    with engine.begin() as connection:
        store_missing_groups(connection)
    report = retention_service(engine, settings).prepare()
    if report.created:
        moved = f", {counted(report.moved_records, 'row')} moved there" if report.moved_records else ""
        steps += (f"added {counted(len(report.created), 'partition')}{moved}",)
    return steps


def collection_service(engine: Engine, settings: Settings, *, clock: Clock | None = None) -> CollectionService:
    """Return the service of the collection on an open engine; raises as `excluded_databases_of`."""
    context = ProbeContext(SecretFolders.of(settings), engine.url, excluded_databases_of(settings))
    the_clock = clock or Clock(settings.zone)
    return CollectionService(
        engine,
        the_clock,
        lock_manager(engine, settings),
        context,
        settings.collection_concurrency,
        volume_sources=settings.volume_sources,
        objects=settings.objects,
        objects_days=settings.objects_days,
    )


def excluded_databases_of(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the databases that are not measured, by engine; raises ConfigurationError if the setting is wrong."""
    try:
        return excluded_databases(settings.system_databases)
    except ValidationError as error:
        raise ConfigurationError(str(error)) from None


def lock_manager(engine: Engine, settings: Settings) -> CapacityLockManager:
    """Return the manager of locks, which are in Redis if it is configured, otherwise in PostgreSQL."""
    return CapacityLockManager(engine, settings.redis_url.get_secret_value() if settings.redis_url else None)


def task_runner(
    engine: Engine, settings: Settings, *, clock: Clock | None = None, periods: Mapping[str, Period] = PERIODS
) -> AggregationTaskRunner:
    """Return a task runner on an open engine; raises ConfigurationError if the retention is wrong."""
    the_clock = clock or Clock(settings.zone)
    periods = with_trend_threshold(periods, settings.trend_percent)
    # A wrong rule is refused here, before any work, and not by the nightly maintenance.
    parse_retention(settings.retention_days, periods)
    service = AggregationService(
        engine,
        the_clock,
        periods=periods,
        partitions=PartitionRange(the_clock, settings.start_date, settings.schedule_hour),
        locks=lock_manager(engine, settings),
        parallel_slices=settings.parallel_slices,
    )
    return AggregationTaskRunner(
        service, jump_percent=settings.jump_percent, records_legacy_runs=settings.legacy_runs == "on"
    )


def retention_service(
    engine: Engine, settings: Settings, *, clock: Clock | None = None, periods: Mapping[str, Period] = PERIODS
) -> RetentionService:
    """Return the service that maintains the tables, on an open engine."""
    rules = parse_retention(settings.retention_days, periods)
    tables = TableMaintenance(engine, settings.start_date, rules, periods)
    return RetentionService(engine, clock or Clock(settings.zone), tables)
