"""Showback as an asset: one bill per month, issued again where samples, labels or prices changed it.

What a bill is made of is the business of `grouping`; here it gets a partition, metadata and an automation condition.
"""

from collections.abc import Iterator

import dagster as dg

from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.errors import NotFoundError
from capacity_assets.grouping.bill_words import gib, group_named, notes
from capacity_assets.grouping.bills import IssuedBill, amount_text, issue_bill, read_bill
from capacity_assets.grouping.groups import default_grouping
from capacity_assets.orchestration.after_aggregates import made_of_aggregates, sensor_of, whenever_aggregates_are_made
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.orchestration.metadata import MetadataMapping, bullets, escaped, markdown_table, table_metadata
from capacity_assets.orchestration.partitions import windows_of
from capacity_assets.orchestration.resources import AGGREGATION_RESOURCE
from capacity_assets.periods import Period
from capacity_assets.settings import Settings
from capacity_assets.storage.group_tables import capacity_bill_lines
from capacity_assets.units import counted

SHOWBACK, SHOWBACK_GROUP = "showback", "showback"
SHOWBACK_JOB, SHOWBACK_SENSOR = "showback_job", "showback_sensor"
GROUPS_SHOWN = 20

DESCRIPTION = """\
The cost of each database in a month: its size on each day, with the labels and prices of that day.

Lines are stored in `capacity_bill_lines`, bills in `capacity_bills`. The bill of an unfinished month is replaced. The
bill of a closed month is kept; if late samples, labels or prices change it, a new issue states by how much and why.
Once retention has dropped samples of the month, its bill no longer changes.
`capacity bill` shows it by team or any other group, as a table, CSV, JSON or a page. Rules: docs/groups.md.
"""


def showback_asset(settings: Settings, period: Period, retries: dg.RetryPolicy) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=SHOWBACK,
        description=DESCRIPTION,
        group_name=SHOWBACK_GROUP,
        automation_condition=whenever_aggregates_are_made(),
        kinds={"postgres", "table"},
        metadata=table_metadata(capacity_bill_lines),
        **made_of_aggregates(settings, period, retries),
    )
    def make_bill(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        runner: AggregationTaskRunner = getattr(context.resources, AGGREGATION_RESOURCE)
        with dagster_failures():
            for window in windows_of(period, context.partition_keys):
                try:
                    issue_bill(runner.service.engine, window, runner.service.clock, settings.label_keys)
                except NotFoundError as nothing:
                    metadata: MetadataMapping = {"bill": dg.MetadataValue.md(escaped(str(nothing)))}
                else:
                    metadata = bill_metadata(
                        read_bill(runner.service.engine, window, default_grouping(settings.label_keys))
                    )
                context.add_asset_metadata(metadata, partition_key=window.key)
        yield dg.MaterializeResult()

    return make_bill


def bill_metadata(found: IssuedBill) -> MetadataMapping:
    """Return what a month's materialisation shows: the groups, then the numbers, which plot."""
    bill = found.bill
    amounts = {} if bill.amount is None else {"amount": dg.MetadataValue.float(float(bill.amount))}
    restated = {} if found.difference is None else {"difference": dg.MetadataValue.float(float(found.difference))}
    return {
        "bill": dg.MetadataValue.md(_table(found)),
        **amounts,
        **restated,
        "currency": dg.MetadataValue.text(bill.currency or "none"),
        "issue": dg.MetadataValue.int(bill.issue),
        "gib_months": dg.MetadataValue.float(float(bill.gib_months)),
        "unpriced_gib_months": dg.MetadataValue.float(float(bill.unpriced_gib_months)),
        "measured_days": dg.MetadataValue.int(bill.measured_days),
        "billed_days": dg.MetadataValue.int(bill.billed_days),
    }


def _table(found: IssuedBill) -> str:
    rows = [
        [escaped(group_named(group.name, found.grouped_by)), gib(group.gib_months), f"{group.amount or 'no price'}"]
        for group in found.groups[:GROUPS_SHOWN]
    ]
    table = markdown_table([found.grouped_by, "GiB", f"Amount, {found.bill.currency or 'no currency'}"], rows)
    remarks = bullets([note.strip() for note in notes(found)], hidden=0)
    hidden = len(found.groups) - GROUPS_SHOWN
    more = f"\n\nand {counted(hidden, 'more group')}" if hidden > 0 else ""
    return f"Total: **{amount_text(found.bill)}**\n\n{table}{more}\n\n{remarks}"


showback_sensor = sensor_of(SHOWBACK_SENSOR, SHOWBACK, "Issues a month's bill whenever its aggregates were made.")
showback_job = dg.define_asset_job(
    SHOWBACK_JOB, selection=dg.AssetSelection.assets(SHOWBACK), description="Issues the bill of a month."
)
