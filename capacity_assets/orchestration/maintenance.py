"""The asset of the tables' partitions: each materialisation adds future partitions and applies retention.

It also deletes old check records of Dagster. It is an asset so that the history is in one place: what was added, moved
and dropped each day, and what was kept and why.
"""

import dagster as dg
from pydantic import Field

from capacity_assets.history.retention import MaintenanceError, MaintenanceReport
from capacity_assets.orchestration.graph import Graph, Services, dagster_failures
from capacity_assets.orchestration.metadata import MetadataMapping, first_bullets, markdown, plain
from capacity_assets.orchestration.private import purge_check_records

TABLE_PARTITIONS = "table_partitions"
MAINTENANCE_GROUP = "maintenance"
MAINTENANCE_JOB, MAINTENANCE_SCHEDULE = "table_maintenance_job", "table_maintenance_schedule"
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


def maintenance_definitions(graph: Graph) -> dg.Definitions:
    """Return the asset, its job and its schedule."""

    @graph.asset(TABLE_PARTITIONS, None, description=DESCRIPTION, group_name=MAINTENANCE_GROUP, kinds={"postgres"})
    def maintain(context: dg.AssetExecutionContext, config: MaintenanceConfig) -> dg.MaterializeResult[None]:
        with dagster_failures():
            try:
                report = Services.of(context).retention.maintain(dry_run=config.dry_run)
            except MaintenanceError as error:
                done = maintenance_metadata(error.report)
                raise dg.Failure(description=str(error), metadata=done, allow_retries=error.transient) from None
            events = context.instance.event_log_storage
            report.purged_check_records = purge_check_records(events, dry_run=config.dry_run)
        return dg.MaterializeResult(metadata=maintenance_metadata(report))

    job = graph.job(
        MAINTENANCE_JOB, [TABLE_PARTITIONS], "Adds partitions ahead of time and drops those that need not be kept."
    )
    schedule = graph.schedule(
        MAINTENANCE_SCHEDULE,
        MAINTENANCE_JOB,
        # When the day's aggregates have had time to be computed.
        graph.daily(MAINTENANCE_MINUTE),
        "Keeps partitions ahead and applies CAPACITY_RETENTION_DAYS, once a day.",
    )
    return dg.Definitions(assets=[maintain], jobs=[job], schedules=[schedule])


def maintenance_metadata(report: MaintenanceReport) -> MetadataMapping:
    """Return the counts, which plot over time, and the lists as one text."""
    values = report.to_dict()
    lists = {key: first_bullets(lines, LINES_SHOWN) for key, lines in values.items() if isinstance(lines, list)}
    return {**plain(values), **{key: markdown(listed or "none") for key, listed in lists.items()}}
