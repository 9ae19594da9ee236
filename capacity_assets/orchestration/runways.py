"""The runway as an asset: one partition per day, with every forecast that was issued, and a check that calls a person.

How a runway is computed is in `forecast.runway`; here it gets a partition, metadata, a check and a schedule.
"""

from collections.abc import Iterator
from datetime import date, datetime
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from capacity_assets.aggregates.levels import RAW_TABLES
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_mb, human_probability
from capacity_assets.database.tables import capacity_runways
from capacity_assets.orchestration.checks import (
    NOTHING_FILLS_SOON,
    fills_soon_description,
    fills_soon_result,
    soon_risks,
)
from capacity_assets.orchestration.graph import RUNWAY_POOL, Graph, Requests, Services, dagster_failures
from capacity_assets.orchestration.metadata import (
    MetadataMapping,
    escaped,
    markdown,
    markdown_table,
    plain,
    table_metadata,
)
from capacity_assets.orchestration.partitions import SAMPLE_DAY
from capacity_assets.reading.forecasts import figures_of, issue_of, recent_issue

if TYPE_CHECKING:
    from capacity_assets.forecast.issuing import IssuedRunways
    from capacity_assets.reading.forecasts import ForecastIssue, StoredRunway

RUNWAY, RUNWAY_GROUP = "runway", "forecasts"
RUNWAY_JOB, RUNWAY_SCHEDULE = "runway_job", "runway_schedule"
SHOWN = 10
# Change it with the method, so that the UI shows which partitions an earlier method computed.
METHOD_VERSION = "4"
MINUTE = 20

DESCRIPTION = """\
The fill dates of servers, databases and volumes: every issued forecast, and its error.

A partition is a day. Its runways are computed from the samples up to that day, and from limits that are declared or
were measured in the month before. Rows are in `capacity_runways`; the view `capacity_runway` has the newest. After the
horizon of a forecast, the measured size is stored with it, and the partition of that day shows the error.

People have seen forecasts that were issued in time, so materialising a partition again does not change them, unless the
run option `overwrite` is set. Method, measured errors and limits of the method: docs/forecast.md.
"""


class RunwayConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    overwrite: bool = Field(
        default=False, description="Also replace runways that were issued in time, on a day that is over."
    )


def runway_definitions(graph: Graph) -> dg.Definitions:
    """Return the asset with its check and its job."""
    settings = graph.settings

    @graph.asset(
        RUNWAY,
        SAMPLE_DAY,
        description=DESCRIPTION,
        group_name=RUNWAY_GROUP,
        deps=[graph.key(raw.name) for raw in RAW_TABLES if raw.has_forecasts],
        code_version=METHOD_VERSION,
        pool=RUNWAY_POOL,
        kinds={"postgres", "table"},
        metadata=table_metadata(capacity_runways),
        check_specs=[
            dg.AssetCheckSpec(NOTHING_FILLS_SOON, asset=graph.key(RUNWAY), description=fills_soon_description(settings))
        ],
        freshness_policy=graph.freshness(SAMPLE_DAY),
    )
    def make_runway(context: dg.AssetExecutionContext, config: RunwayConfig) -> Iterator[dg.MaterializeResult[None]]:
        with dagster_failures():
            service = Services.of(context).runways
            today = service.clock.today()
            for key in context.partition_keys:
                issued = service.issue(date.fromisoformat(key), overwrite=config.overwrite)
                # Stored forecasts are shown, because another run may have issued them.
                shown = issue_of(service.engine, issued.as_of, today, dated=SHOWN)
                context.add_asset_metadata(runway_metadata(issued, shown, settings), partition_key=key)
            # The check uses the newest day, whichever days were requested, so that a backfill does not change today's
            # result.
            newest = recent_issue(service.engine, today)
            in_time = newest is not None and service.is_in_time(newest.as_of)
        yield dg.MaterializeResult(check_results=[fills_soon_result(newest, settings, in_time=in_time)])

    job = graph.job(RUNWAY_JOB, [RUNWAY], "Issues the runways of a day: when servers, databases and volumes are full.")
    return dg.Definitions(assets=[make_runway], jobs=[job])


def runway_schedule(graph: Graph) -> dg.ScheduleDefinition:
    """Build the schedule, for raw tables that another application fills."""

    def request_today(_context: dg.ScheduleEvaluationContext, moment: datetime) -> Requests:
        day = moment.date().isoformat()
        return dg.RunRequest(run_key=day, partition_key=day)

    description = "Issues the runways of the day, once a day."
    return graph.schedule(RUNWAY_SCHEDULE, RUNWAY_JOB, graph.daily(MINUTE), description, request_today)


def runway_metadata(issued: "IssuedRunways", issue: "ForecastIssue | None", settings: Settings) -> MetadataMapping:
    """Return the metadata of a day's materialisation: what fills first, then the counts, which plot."""
    risks = [_risk_cells(risk) for risk in issue.fills_first] if issue else []
    columns = ["Server", "What", "Size", "Limit", "Binds", "Early", "Middle", "Late", "Within 30 days", "Decision"]
    return {
        "Fills first": markdown(markdown_table(columns, risks) if risks else "nothing within a year"),
        "Fills soon": len(soon_risks(issue, settings)),
        **plain(issued.to_dict() | figures_of(issue)),
    }


def _risk_cells(risk: "StoredRunway") -> list[str]:
    row = risk.runway
    sizes = [human_mb(row.size_mb), human_mb(row.limit_mb or 0)]
    mark = risk.decision.mark if risk.decision else ""
    named = [escaped(row.server), escaped(row.display_name)]
    return [*named, *sizes, f"{row.binds}", *row.ends, human_probability(row.probabilities[30]), mark]
