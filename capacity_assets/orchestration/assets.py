"""The graph downstream of the raw tables: for each period and level one partitioned aggregate.

Assets are thin: windows from the partition keys, one call of the task runner, the summary to `metadata`.
SQL and dates do not belong here.
"""

import sys
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from functools import cache

import dagster as dg
from pydantic import Field

from capacity_assets.aggregates.figures import fingerprint
from capacity_assets.aggregates.levels import INSTANCE, SERVER_LEVELS, Level
from capacity_assets.aggregates.runs import RunOptions, RunSummary
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import Period, trend_rule
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.metadata import (
    aggregate_metadata,
    check_results,
    check_specs,
    failure_metadata,
    summary_metadata,
)
from capacity_assets.orchestration.partitions import (
    OWNERS,
    PARTITIONS_PER_RUN,
    asset_name,
    days_behind_a_window,
    partitions_of,
    pool_name,
    windows_of,
)
from capacity_assets.orchestration.resources import AGGREGATION_RESOURCE, dagster_failures
from capacity_assets.reading.movers import window_sizes


class RunRetryPolicy(dg.RetryPolicy):
    """Retries steps, except those of a run that is being terminated; Dagster itself would retry these, too."""

    def calculate_delay(self, attempt_num: int) -> float:
        """Return the seconds before the next attempt; raises the interruption that ends a terminated run.

        Dagster asks while it handles the failure, the interruption included.
        """
        handled = sys.exc_info()[1]
        if isinstance(handled, dg.DagsterExecutionInterruptedError | KeyboardInterrupt) and self.is_being_terminated():
            raise handled
        return super().calculate_delay(attempt_num)

    def is_being_terminated(self) -> bool:
        """Whether the run at work is being terminated. An interrupted one may also be on a machine that goes down."""
        context = dg.OpExecutionContext.get()
        run = context.instance.get_run_by_id(context.run_id)
        return run is not None and run.status is dg.DagsterRunStatus.CANCELING


# Only transient failures are retried: the others say so (`allow_retries`). With pauses of about 5, 10, 20, 40
# and 80 seconds a run outlives a restart of PostgreSQL or Redis; the jitter keeps runs from coming back together.
RETRIES = RunRetryPolicy(max_retries=5, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


class AggregationConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    overwrite: bool = Field(
        default=False,
        description="Rebuild the windows exactly: replace protected rows and remove rows that the raw data no longer "
        "supports. Off, stored history is never replaced by a row built from fewer samples.",
    )
    recompute: bool = Field(
        default=False,
        description="Read and compute also windows that nothing has touched since they were computed. Off, these are "
        "reported as unchanged without being read.",
    )


def aggregate_asset(settings: Settings, period: Period, level: Level, retries: dg.RetryPolicy) -> dg.AssetsDefinition:
    """Build the asset of a period and level."""

    @dg.asset(
        name=asset_name(period, level),
        description=_description(period, level),
        group_name=period.name,
        code_version=code_version(level, period),
        partitions_def=partitions_of(period, settings),
        deps=_made_of(period, level),
        backfill_policy=dg.BackfillPolicy.multi_run(PARTITIONS_PER_RUN),
        pool=pool_name(period),
        retry_policy=retries,
        owners=OWNERS,
        kinds={"postgres", "sql"},
        tags={"period": period.name, "level": level.name},
        metadata=aggregate_metadata(level),
        check_specs=check_specs(asset_name(period, level), level),
        freshness_policy=freshness(period, settings),
        required_resource_keys={AGGREGATION_RESOURCE},
        # The servers' totals first: what a partition of the databases shows of the fleet is made of them.
        op_tags={"dagster/priority": "1" if level is INSTANCE else "0"},
    )
    def aggregate(context: dg.AssetExecutionContext, config: AggregationConfig) -> Iterator[dg.MaterializeResult[None]]:
        runner: AggregationTaskRunner = getattr(context.resources, AGGREGATION_RESOURCE)
        windows = windows_of(period, context.partition_keys)
        options = RunOptions(levels=(level.name,), overwrite=config.overwrite, recompute=config.recompute)
        with dagster_failures():
            summary = runner.run_period(period, windows, options)
            _refuse_a_run_without_success(summary)
            sizes = window_sizes(runner.service.engine, period, level, windows)
            for part in summary.parts:
                key = part.period_start
                metadata = summary_metadata(part, sizes[key], settings.pages_url)
                context.add_asset_metadata(metadata, partition_key=key.isoformat())
            outcomes = runner.run_checks(summary, level.name)
        yield dg.MaterializeResult(check_results=check_results(outcomes, windows))

    return aggregate


def _made_of(period: Period, level: Level) -> list[dg.AssetDep]:
    """What an asset is downstream of: the samples of its days; groups of the rows that they are made beside."""
    if level.has_servers:
        return [dg.AssetDep(level.source.name, partition_mapping=days_behind_a_window())]
    return [dg.AssetDep(asset_name(period, other)) for other in SERVER_LEVELS.values()]


def code_version(level: Level, period: Period) -> str:
    """Return what changes when the arithmetic does: twelve hexadecimal digits."""
    return fingerprint(level, period, ())[:12]


def freshness(period: Period, settings: Settings) -> dg.FreshnessPolicy:
    """Expect a materialisation within the hour in which the schedule ticks; after that the asset is shown as late."""
    return _freshness(period.cron_at(settings.schedule_hour, minute=59), settings.timezone)


@cache  # Dagster goes through a thousand ticks to see whether the bound fits.
def _freshness(deadline_cron: str, timezone: str) -> dg.FreshnessPolicy:
    return dg.FreshnessPolicy.cron(deadline_cron, lower_bound_delta=timedelta(hours=1), timezone=timezone)


def _refuse_a_run_without_success(summary: RunSummary) -> None:
    """Raise dagster.Failure where servers failed and not one was processed."""
    if summary.everything_failed:
        raise dg.Failure(
            description=f"{summary.message} Stored rows were kept as they were. Fix the named servers' "
            "samples, then run these partitions again.",
            metadata=failure_metadata(summary),
            allow_retries=False,
        )


def _description(period: Period, level: Level) -> str:
    subject = {"database": "database", "instance": "server", "group": "group (engine, team, ...)"}[level.name]
    figures = {
        "group": "Size, servers and databases, summed per day by the labels of that day: mean, largest, smallest, "
        "change.",
        "database": "Total, data and log size: mean (rounded down), largest, smallest, change.",
        "instance": "Total size and number of databases, summed per day first: mean, largest, smallest, change.",
    }[level.name]
    return textwrap.dedent(f"""\
        How each {subject} developed, one row per {period.name} window.

        Rows lie in `{level.target.name}` with `period_type = '{period.name}'`. A partition is a window; its key is
        the first day. {figures}

        - *Change* and *growth* compare exact means with those of the window before; unknown is null, not zero.
        - *Trend*: {trend_rule(f"{period.trend_percent} %")}
          (`CAPACITY_TREND_PERCENT` sets another threshold).
        - Running a window again over unchanged samples writes nothing. Rows built from more samples than the
          raw data still holds are protected; the run option `overwrite` rebuilds the window exactly.
        - A server without samples in the window counts as skipped, one whose data cannot be stored as failed;
          neither keeps the others from being written.""")
