"""Dagster's storage on PostgreSQL with pooled connections, its error, and the purge of its check records.

Outside its web server Dagster opens a connection for each statement, which costs the server more than the statement. In
its web server it pools connections, but the first statement on each fails after a restart of the server.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from dagster import RunsFilter
from dagster._core.events import ASSET_CHECK_EVENTS
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._serdes import serialize_value
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import (
    DagsterPostgresException,
    create_pg_engine,
    get_token_provider_from_config,
    pg_url_from_config,
    set_pg_statement_timeout,
)
from sqlalchemy import Connection, case, delete, event, func, select

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dagster._core.events.log import EventLogEntry
    from dagster._core.storage.event_log.base import EventLogStorage
    from dagster._core.storage.runs import RunStorage
    from dagster._serdes import ConfigurableClassData
    from dagster_postgres.auth import PgTokenProvider

__all__ = ["DagsterPostgresException", "PooledPostgresStorage", "purge_check_records"]

# As many are kept per process as are used at once by most; beyond that there are as many as without a pool.
KEPT_CONNECTIONS = 2
# Firewalls forget connections that are not used for long.
LONGEST_SECONDS = 600
RECORDS_PER_BATCH = 5_000
PLANNED = "PLANNED"


class PooledPostgresStorage(DagsterPostgresStorage):
    """Dagster's storage whose three parts share connections; named in dagster.yaml.

    A connection is tried before it is used, so that a restart of the server is not noticed.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: PgTokenProvider | None = None,
    ) -> None:
        """Open the storage, and create its tables unless told otherwise."""
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)
        engine = create_pg_engine(
            postgres_url,
            token_provider,
            isolation_level="AUTOCOMMIT",
            pool_size=KEPT_CONNECTIONS,
            max_overflow=-1,
            pool_recycle=LONGEST_SECONDS,
            pool_pre_ping=True,
        )
        # The tables are there now.
        self._run_storage = _Runs(postgres_url, should_autocreate_tables=False, token_provider=token_provider)
        self._event_log_storage = _Events(postgres_url, should_autocreate_tables=False, token_provider=token_provider)
        self._schedule_storage = _Schedules(postgres_url, should_autocreate_tables=False, token_provider=token_provider)
        for part in (self._run_storage, self._event_log_storage, self._schedule_storage):
            part._engine = engine  # noqa: SLF001

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Open the storage that dagster.yaml describes."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )


class _Part:
    """What the parts share. Their connections are kept already, and the part of the runs limits statements for all."""

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Change nothing."""


class _Events(_Part, PostgresEventLogStorage):
    """The events and what follows from them."""

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Write events of assets with one statement per table.

        Dagster's own method does so for materialisations, but writes planned ones one at a time.
        """
        insert = SqlEventLogStorageTable.insert().returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)
        with self.index_connection() as connection:
            numbers = connection.execute(insert, [self._event_to_row(entry) for entry in events]).scalars().all()
            stored = list(zip(events, numbers, strict=True))
            self._store_asset_event_tags(connection, events, numbers)
            newest = {entry.get_dagster_event().asset_key: (entry, number) for entry, number in stored}
            for entry, number in newest.values():
                self._store_asset_event(connection, entry, number)
        for entry, number in stored:
            if entry.dagster_event_type in ASSET_CHECK_EVENTS:
                self.store_asset_check_event(entry, number)

    def _store_asset_check_evaluation_planned(self, event: EventLogEntry, event_id: int | None) -> None:
        """Write one record of a planned check per partition; Dagster's own method serialises the event for each."""
        planned = event.get_dagster_event().asset_check_planned_data
        record = {
            "asset_key": planned.asset_key.to_string(),
            "check_name": planned.check_name,
            "run_id": event.run_id,
            "execution_status": PLANNED,
            "evaluation_event": serialize_value(event),
            # The column has no zone; Dagster writes UTC.
            "evaluation_event_timestamp": datetime.fromtimestamp(event.timestamp, UTC).replace(tzinfo=None),
            "evaluation_event_storage_id": event_id,
        }
        subset = planned.partitions_subset
        keys = subset.get_partition_keys() if subset else [None]
        with self.index_connection() as connection:
            connection.execute(AssetCheckExecutionsTable.insert(), [record | {"partition": key} for key in keys])


class _Schedules(_Part, PostgresScheduleStorage):
    """The ticks of schedules and sensors."""


class _Runs(PostgresRunStorage):
    """The runs; the one of the parts that is told when the instance is closed."""

    def optimize_for_webserver(self, statement_timeout: int, *_: int, **__: int) -> None:
        """Limit the statements of all parts, in milliseconds."""
        event.listen(self._engine, "connect", lambda opened, _: set_pg_statement_timeout(opened, statement_timeout))
        # Those that are open already have no limit.
        self._engine.dispose()

    def dispose(self) -> None:
        """Close the connections."""
        super().dispose()
        self._engine.dispose()


def purge_check_records(events: EventLogStorage, runs: RunStorage, *, dry_run: bool = False) -> int:
    """Delete check records that nothing reads any more, in batches; return their number.

    For each check and partition of a run, Dagster stores a record of the planned check. The evaluation of a check
    without partitions is a separate record, so the planned records stay forever, even after the run is deleted. For
    checks without partitions this deletes the planned records of runs that have ended and all records of deleted runs.
    The newest record and the newest evaluation of each check are kept.

    Raises DBAPIError. Deleted batches stay deleted, and a repeated call continues.
    """
    if not isinstance(events, SqlEventLogStorage):
        return 0
    with events.index_connection() as connection:
        kept, partitioned = _kept_records(connection)
    purged = 0
    for page in _pages_of_records(events, max(kept, default=0)):
        wanted = sorted({row.run_id for row in page if row.run_id})
        has_ended = {run.run_id: run.is_finished for run in runs.get_runs(RunsFilter(run_ids=wanted))} if wanted else {}
        gone = [
            row.id
            for row in page
            # An evaluation reported outside a run has an empty run ID.
            if row.run_id
            and row.id not in kept
            and (row.asset_key, row.check_name) not in partitioned
            and has_ended.get(row.run_id, True)
            and (row.execution_status == PLANNED or row.run_id not in has_ended)
        ]
        purged += len(gone)
        if gone and not dry_run:
            with events.index_connection() as connection:
                connection.execute(delete(AssetCheckExecutionsTable).where(AssetCheckExecutionsTable.c.id.in_(gone)))
    return purged


def _kept_records(connection: Connection) -> tuple[set[int], set[tuple[str, str]]]:
    """Return the IDs of the newest records and evaluations, and the checks that were evaluated by partition."""
    record = AssetCheckExecutionsTable.c
    is_evaluation = record.execution_status != PLANNED
    newest = (func.max(record.id), func.max(case((is_evaluation, record.id))))
    by_partition = func.count(case((is_evaluation, record.partition)))
    query = select(record.asset_key, record.check_name, by_partition, *newest).group_by(
        record.asset_key, record.check_name
    )
    rows = connection.execute(query).all()
    kept = {number for row in rows for number in row[3:] if number is not None}
    return kept, {(row.asset_key, row.check_name) for row in rows if row[2]}


def _pages_of_records(events: SqlEventLogStorage, newest: int) -> Iterator[Sequence[Any]]:
    """Yield records in the order of their IDs, up to the newest."""
    record = AssetCheckExecutionsTable.c
    columns = (record.id, record.asset_key, record.check_name, record.run_id, record.execution_status)
    last = 0
    while True:
        query = select(*columns).where(record.id > last, record.id <= newest).order_by(record.id)
        with events.index_connection() as connection:
            page = connection.execute(query.limit(RECORDS_PER_BATCH)).all()
        if not page:
            return
        last = page[-1].id
        yield page
