"""Every name of Dagster that is not in its public interface. Checked against Dagster 1.13.27.

Because of these, `pyproject.toml` limits Dagster to this minor release. Before you raise the limit, check this module.
No other module may import a private name; a test checks this.

This module also contains everything that uses them for more than a call: evaluations of checks by partition, Dagster's
storage on PostgreSQL with pooled connections, and the purge of its check records. Outside its web server Dagster opens
a connection for each statement, which costs the server more than the statement. In its web server it pools connections,
but the first statement on each fails after a restart of the server.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckResult,
    AssetExecutionContext,
    AssetRecordsFilter,
    JobDefinition,
    Output,
)
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.definitions.external_asset import create_external_asset_from_source_asset
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.partitions.subset import TimeWindowPartitionsSubset
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata, DagsterEventType, StepMaterializationData
from dagster._core.execution.api import execute_run
from dagster._core.instance.utils import RUNLESS_JOB_NAME, RUNLESS_RUN_ID
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster._core.storage.event_log.base import EventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    PARTITION_NAME_TAG,
    SCHEDULE_NAME_TAG,
    SENSOR_NAME_TAG,
    WILL_RETRY_TAG,
)
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._grpc.client import DagsterGrpcClient
from dagster._serdes import serialize_value
from dagster._utils.interrupts import setup_interrupt_handlers
from dagster._utils.warnings import disable_dagster_warnings
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
from sqlalchemy import Integer, column, delete, event, func, insert, select, text, update, values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dagster._core.events.log import EventLogEntry
    from dagster._serdes import ConfigurableClassData
    from dagster_postgres.auth import PgTokenProvider

# Most processes use no more at once. Further connections are opened and closed as without a pool.
KEPT_CONNECTIONS = 2
# Firewalls forget connections that are not used for long.
LONGEST_SECONDS = 600
PLANNED = "PLANNED"


class OwnedJob(UnresolvedAssetJobDefinition):
    """A job over assets that is loaded without a warning: its owners are in beta in Dagster 1.13."""

    def resolve(self, *arguments: Any, **options: Any) -> JobDefinition:
        """Return the job over an asset graph."""
        with disable_dagster_warnings():
            return super().resolve(*arguments, **options)


class PooledPostgresStorage(DagsterPostgresStorage):
    """Dagster's storage whose three parts share connections; named in dagster.yaml.

    A connection is tested before it is used, so that a restart of the server causes no error.
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
        # The parts create no tables, because they exist now.
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


class _PooledStorage:
    """Shared by the parts. Connections already stay open, and `_Runs` limits the statements of all parts."""

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Change nothing."""


class _Events(_PooledStorage, PostgresEventLogStorage):
    """The events and the tables derived from them."""

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
        evaluated = [pair for pair in stored if pair[0].dagster_event_type is DagsterEventType.ASSET_CHECK_EVALUATION]
        if evaluated:
            self._store_evaluations(evaluated)
        for entry, number in stored:
            if entry.dagster_event_type is DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED:
                self.store_asset_check_event(entry, number)

    def _store_evaluations(self, evaluated: Sequence[tuple[EventLogEntry, int]]) -> None:
        """Enter evaluations of a run into the records of its planned checks; insert records for the others."""
        records, rows = AssetCheckExecutionsTable, [_evaluation_record(entry, number) for entry, number in evaluated]
        given = values(*(column(name, records.c[name].type) for name in rows[0]), name="given").data(
            [tuple(row.values()) for row in rows]
        )
        is_same = [records.c[name] == given.c[name] for name in ("asset_key", "check_name", "run_id")]
        is_same.append(records.c.partition.is_not_distinct_from(given.c.partition))
        enter = update(records).where(*is_same).values({name: given.c[name] for name in rows[0]})
        with self.index_connection() as connection:
            entered = set(connection.execute(enter.returning(given.c.evaluation_event_storage_id)).scalars())
            others = [row for row in rows if row["evaluation_event_storage_id"] not in entered]
            if others:
                connection.execute(insert(records), others)

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


def _evaluation_record(entry: EventLogEntry, number: int) -> dict[str, Any]:
    """Return the columns of the record of an evaluation, as Dagster's own method fills them."""
    evaluation = entry.get_dagster_event().asset_check_evaluation_data
    target = evaluation.target_materialization_data
    return {
        "asset_key": evaluation.asset_key.to_string(),
        "check_name": evaluation.check_name,
        "run_id": entry.run_id,
        "partition": evaluation.partition,
        "execution_status": "SUCCEEDED" if evaluation.passed else "FAILED",
        "evaluation_event": serialize_value(entry),
        # The column has no zone; Dagster writes UTC.
        "evaluation_event_timestamp": datetime.fromtimestamp(entry.timestamp, UTC).replace(tzinfo=None),
        "evaluation_event_storage_id": number,
        "materialization_event_storage_id": target.storage_id if target else None,
    }


class _Schedules(_PooledStorage, PostgresScheduleStorage):
    """The ticks of schedules and sensors."""


class _Runs(PostgresRunStorage):
    """The runs. Only this part is called when the instance is closed."""

    def optimize_for_webserver(self, statement_timeout: int, *_: int, **__: int) -> None:
        """Limit the statements of all parts, in milliseconds."""
        event.listen(self._engine, "connect", lambda opened, _: set_pg_statement_timeout(opened, statement_timeout))
        # Connections that are open already have no limit, so they are closed.
        self._engine.dispose()

    def dispose(self) -> None:
        """Close the connections."""
        super().dispose()
        self._engine.dispose()


def evaluate_partitions(
    context: AssetExecutionContext, results: Mapping[str, Sequence[AssetCheckResult]]
) -> Iterator[DagsterEvent | Output[None]]:
    """Yield the evaluations of an asset's checks by partition, as one batch of events, and the outputs of the checks.

    An `AssetCheckResult` has a partition only if its step has exactly one: the results of a range run would all have no
    partition. The asset must have been materialised before, because an evaluation counts for the newest materialisation
    of its partition.
    """
    step, batch = context.get_step_execution_context(), uuid4().hex
    evaluations = [
        AssetCheckEvaluation(
            asset_key=context.asset_key,
            check_name=str(result.check_name),
            passed=result.passed,
            metadata=result.metadata,
            target_materialization_data=target,
            severity=result.severity,
            description=result.description,
            partition=partition,
        )
        for partition, target in _targets(context, list(results)).items()
        for result in results[partition]
    ]
    for number, evaluation in enumerate(evaluations, start=1):
        verdict = "passed" if evaluation.passed else "did not pass"
        yield DagsterEvent.from_step(
            DagsterEventType.ASSET_CHECK_EVALUATION,
            step,
            evaluation,
            f"Asset check '{evaluation.check_name}' on '{context.asset_key.to_user_string()}', partition "
            f"{evaluation.partition}, {verdict}.",
            DagsterEventBatchMetadata(batch, is_end=number == len(evaluations)),
        )
    for key in dict.fromkeys(evaluation.asset_check_key for evaluation in evaluations):
        output = step.job_def.asset_layer.get_op_output_name(key)
        if output:
            yield Output(None, output)


def _targets(
    context: AssetExecutionContext, partitions: Sequence[str]
) -> dict[str, AssetCheckEvaluationTargetMaterializationData | None]:
    """Return the newest materialisations: of this run's partitions by one query, of others one by one."""
    ours = [key for key in context.partition_keys if key in partitions]
    questions = [ours, *([key] for key in partitions if key not in ours)]
    newest = {
        record.partition_key: AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
        for keys in questions
        if keys
        for record in context.instance.fetch_materializations(
            AssetRecordsFilter(context.asset_key, asset_partitions=keys), limit=len(keys)
        ).records
    }
    return {key: newest.get(key) for key in partitions}


def failing_partitions(context: AssetExecutionContext, check: str) -> set[str]:
    """Return the partitions of the asset whose newest evaluation of a check failed."""
    infos = context.instance.event_log_storage.get_asset_check_partition_info([AssetCheckKey(context.asset_key, check)])
    return {
        info.partition_key
        for info in infos
        if info.partition_key and info.is_current and info.latest_execution_status.value == "FAILED"
    }


# The newest record and the newest evaluation of each check are kept; of a check with partitions, those of each
# partition. A record without a run was reported outside a run.
_UNREAD_CHECK_RECORDS = """
SELECT e.id
FROM (SELECT id, run_id, execution_status, is_partitioned, max(id) OVER subject AS newest,
             max(id) FILTER (WHERE execution_status <> 'PLANNED') OVER subject AS evaluated
      FROM asset_check_executions
      JOIN (SELECT asset_key, check_name, count(partition) FILTER (WHERE execution_status <> 'PLANNED') > 0
                       AS is_partitioned
            FROM asset_check_executions GROUP BY asset_key, check_name) AS k USING (asset_key, check_name)
      WINDOW subject AS (PARTITION BY asset_key, check_name, CASE WHEN is_partitioned THEN partition END)) AS e
LEFT JOIN runs r ON r.run_id = e.run_id
WHERE e.run_id <> '' AND e.id IS DISTINCT FROM e.evaluated
  AND (e.id <> e.newest AND r.run_id IS NULL
       OR e.id <> e.newest AND e.execution_status = 'PLANNED' AND r.status IN ('SUCCESS', 'FAILURE', 'CANCELED')
       -- Of before the check had partitions, which would be shown as skipped.
       OR e.is_partitioned AND e.execution_status = 'PLANNED' AND r.status = 'SUCCESS')
"""


def purge_check_records(events: EventLogStorage, *, dry_run: bool = False) -> int:
    """Delete check records that nothing reads any more; return their number.

    For each check and partition of a run, Dagster stores a record of the planned check. The evaluation of a check
    without partitions is a separate record, so the planned records stay forever, even after the run is deleted. This
    deletes the planned records of runs that have ended, and all records of deleted runs.

    Raises DBAPIError; nothing was deleted then.
    """
    if not isinstance(events, PostgresEventLogStorage):
        return 0
    with events.index_connection() as connection:
        unread = text(_UNREAD_CHECK_RECORDS).columns(column("id", Integer))
        if dry_run:
            return connection.execute(select(func.count()).select_from(unread.subquery())).scalar_one()
        # In a separate transaction, so either all or none.
        records = AssetCheckExecutionsTable
        return connection.execute(delete(records).where(records.c.id.in_(unread))).rowcount
