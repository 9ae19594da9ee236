"""The asset of the tables' partitions: each materialisation adds future partitions and applies retention.

It also deletes old check records of Dagster. It is an asset so that the history is in one place: what was added, moved
and dropped each day, and what was kept and why.
"""

import dagster as dg
from pydantic import Field

from capacity_assets.base.settings import Settings
from capacity_assets.history.retention import MaintenanceError, MaintenanceReport, RetentionService
from capacity_assets.orchestration.metadata import MetadataMapping, first_bullets, markdown, plain
from capacity_assets.orchestration.partitions import OWNERS, schedule_of
from capacity_assets.orchestration.private.postgres import purge_check_records
from capacity_assets.orchestration.resources import RETENTION_RESOURCE, dagster_failures

TABLE_PARTITIONS = "table_partitions"
MAINTENANCE_GROUP = "maintenance"
MAINTENANCE_JOB = "table_maintenance_job"
MAINTENANCE_MINUTE = 30
LINES_SHOWN = 50

DESCRIPTION = """\
The partitions of the four capacity tables, and the retention of their rows.

A materialisation adds the partitions of the next two months (from November on, of the next year), moves rows out of
the default partitions, and drops partitions whose rows are older than `CAPACITY_RETENTION_DAYS` allows. Samples are
dropped only after every window that reads them is over and computed from them as they are now. Check records in
Dagster's own storage that nothing reads any more are deleted. If today's date may be wrong, nothing is dropped, and the
run fails if a partition was due. `dry_run` only reports what would be done.
"""


class MaintenanceConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    dry_run: bool = Field(default=False, description="Only say what would be done; nothing is changed.")


def table_partitions(retries: dg.RetryPolicy) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=TABLE_PARTITIONS,
        description=DESCRIPTION,
        group_name=MAINTENANCE_GROUP,
        retry_policy=retries,
        owners=OWNERS,
        kinds={"postgres"},
        required_resource_keys={RETENTION_RESOURCE},
    )
    def maintain(context: dg.AssetExecutionContext, config: MaintenanceConfig) -> dg.MaterializeResult[None]:
        retention: RetentionService = getattr(context.resources, RETENTION_RESOURCE)
        with dagster_failures():
            try:
                report = retention.maintain(dry_run=config.dry_run)
            except MaintenanceError as error:
                done = maintenance_metadata(error.report)
                raise dg.Failure(description=str(error), metadata=done, allow_retries=error.transient) from None
            events, runs = context.instance.event_log_storage, context.instance.run_storage
            report.purged_check_records = purge_check_records(events, runs, dry_run=config.dry_run)
        return dg.MaterializeResult(metadata=maintenance_metadata(report))

    return maintain


def maintenance_metadata(report: MaintenanceReport) -> MetadataMapping:
    """Return the counts, which plot over time, and the lists as one text."""
    values = report.to_dict()
    lists = {key: first_bullets(lines, LINES_SHOWN) for key, lines in values.items() if isinstance(lines, list)}
    return {**plain(values), **{key: markdown(listed or "none") for key, listed in lists.items()}}


maintenance_job = dg.define_asset_job(
    MAINTENANCE_JOB,
    [TABLE_PARTITIONS],
    description="Adds partitions ahead of time and drops those that need not be kept.",
)


def maintenance_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Build the schedule: once a day, when the day's aggregates have had time to be computed."""
    description = "Keeps partitions ahead and applies CAPACITY_RETENTION_DAYS, once a day."
    cron = f"{MAINTENANCE_MINUTE} {settings.schedule_hour} * * *"
    return schedule_of(settings, "table_maintenance_schedule", MAINTENANCE_JOB, cron, description)
