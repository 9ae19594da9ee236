"""The growth report as an asset: one page per month, rendered again when the month's aggregates are recomputed.

What the page says is the business of `report`; here it gets a partition, a file and an automation condition.
"""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.orchestration.after_aggregates import made_of_aggregates, sensor_of, whenever_aggregates_are_made
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.orchestration.metadata import MetadataMapping, escaped
from capacity_assets.orchestration.naming import REPORTS_PATH
from capacity_assets.orchestration.partitions import windows_of
from capacity_assets.orchestration.resources import AGGREGATION_RESOURCE
from capacity_assets.periods import Period
from capacity_assets.report.data import ChangeKind, Report, file_name
from capacity_assets.report.issues import Edition
from capacity_assets.report.reading import read_report
from capacity_assets.settings import Settings
from capacity_assets.units import human_change_mb, human_pair_mb

GROWTH_REPORT = "growth_report"
GROWTH_REPORT_JOB = "growth_report_job"
GROWTH_REPORT_SENSOR = "growth_report_sensor"
REPORT_PERIOD = "monthly"
REPORT_GROUP = "reports"
GROWN_LISTED = 5

DESCRIPTION = """\
A page for people, one per month: size by engine over time, a waterfall from the month before that adds up exactly, the
largest growers and shrinkers, new and vanished databases, and the days that were not measured.

The file, named in the materialisation, lies under `CAPACITY_HOME` in `reports`. It needs no network and prints on A4.
It is written again whenever the month's aggregates are. Where the figures of a closed month change, the page that was
issued is kept beside it, and the new one says what it was, what it is, and why. Any other window, or one server:
`capacity report`.
"""


def growth_report(settings: Settings, period: Period, retries: dg.RetryPolicy) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=GROWTH_REPORT,
        description=DESCRIPTION,
        group_name=REPORT_GROUP,
        automation_condition=whenever_aggregates_are_made(),
        kinds={"html"},
        **made_of_aggregates(settings, period, retries),
    )
    def make_report(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        # Only here: drawing is loaded by runs that draw, not by the code location.
        from capacity_assets.report.issues import next_edition
        from capacity_assets.report.page import make_report_folder, write_report

        runner: AggregationTaskRunner = getattr(context.resources, AGGREGATION_RESOURCE)
        try:
            with dagster_failures():
                for window in windows_of(period, context.partition_keys):
                    report = read_report(
                        runner.service.engine,
                        period,
                        window,
                        today=runner.service.clock.today(),
                        by=next(iter(settings.label_keys), None),
                    )
                    path = settings.reports / file_name(period, window)
                    edition = next_edition(runner.service.engine, report, path)
                    make_report_folder(settings.reports)
                    write_report(report, path, edition)
                    metadata = report_metadata(report, edition, path)
                    context.add_asset_metadata(metadata, partition_key=window.key)
        except OSError as error:
            raise dg.Failure(
                description=f"The report cannot be written to {settings.reports}: {error.strerror}. Pages written "
                "before were kept. Make room or fix the folder's rights, then run these partitions again."
            ) from None
        yield dg.MaterializeResult()

    return make_report


growth_report_sensor = sensor_of(
    GROWTH_REPORT_SENSOR, GROWTH_REPORT, "Makes a month's growth report whenever its aggregates were made."
)
growth_report_job = dg.define_asset_job(
    GROWTH_REPORT_JOB,
    selection=dg.AssetSelection.assets(GROWTH_REPORT),
    description="Makes the growth report of a month.",
)


def report_metadata(report: Report, edition: Edition, path: Path) -> MetadataMapping:
    """Return what a month's materialisation shows: where the page is, and the waterfall's numbers, which plot."""
    steps = {f"{kind}_mb": dg.MetadataValue.int(change) for kind, change in report.steps}
    return {
        "Open the report": dg.MetadataValue.url(f"{REPORTS_PATH}/{path.name}"),
        "report": dg.MetadataValue.path(path),
        "summary": dg.MetadataValue.md(report_text(report, edition)),
        "issue": dg.MetadataValue.int(edition.issue.number),
        "start_mb": dg.MetadataValue.int(report.start_mb),
        **steps,
        "end_mb": dg.MetadataValue.int(report.end_mb),
        "unmeasured_servers": dg.MetadataValue.int(len(report.unmeasured_servers)),
    }


def report_text(report: Report, edition: Edition) -> str:
    """Say the waterfall in words, as Markdown."""
    lines = [f"- {kind}: {human_change_mb(change)}" for kind, change in report.steps if change]
    before, now = human_pair_mb(report.start_mb, report.end_mb)
    restated = [escaped(edition.sentence), ""] if edition.sentence else []
    growers = [
        f"- {escaped(database.server)} / {escaped(database.name)}: {human_change_mb(database.change_mb)}"
        for database in report.databases[ChangeKind.GROWN][:GROWN_LISTED]
    ]
    return "\n".join(
        [
            *restated,
            f"From **{before}** to **{now}**",
            "",
            *(lines or ["- nothing changed"]),
            "",
            "Largest growers:",
            "",
            *(growers or ["- none"]),
        ]
    )
