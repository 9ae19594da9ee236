"""Shared by all parts of the graph: public names, pools, retries, services, and their declaration.

A pool of one slot lets one run of a period run at a time, however it is started. Dagster sets the limit of a new pool
only after the first dequeue, so two runs of a new pool can run in parallel. Therefore set-up sets each limit
explicitly, and `capacity check` checks it. The lock around a run excludes writers outside Dagster.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import Level, aggregates_name
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import CapacityError
from capacity_assets.base.periods import PERIODS, Clock, Period
from capacity_assets.base.settings import Settings
from capacity_assets.collection.service import CollectionService
from capacity_assets.history.retention import RetentionService
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN, SAMPLE_DAY, partitions_of
from capacity_assets.orchestration.private import EventLogStorage, OwnedJob
from capacity_assets.runtime import collection_service, open_engine, retention_service, task_runner

if TYPE_CHECKING:
    from capacity_assets.forecast.issuing import RunwayService

logger = logging.getLogger(__name__)

OWNERS = ["team:dba"]
# The path of the growth reports on the web server, for links of the UI.
REPORTS_PATH = "/capacity/reports"


def asset_name(period: Period, level: Level) -> str:
    """Return the key of an aggregate asset, for example `daily_database_aggregations`."""
    return aggregates_name(period.name, level)


def job_name(period: Period) -> str:
    """Return the name of a period's job, for example `daily_aggregation_job`."""
    return f"{period.name}_aggregation_job"


def schedule_name(period: Period) -> str:
    """Return the name of a period's schedule, for example `daily_aggregation_schedule`."""
    return f"{period.name}_aggregation_schedule"


def pool_name(period: Period) -> str:
    """Return the pool of a period, for example `capacity_daily`; all its assets are in it."""
    return f"capacity_{period.name}"


COLLECTION_POOL, RUNWAY_POOL = "capacity_collection", "capacity_runway"


def set_pool_limits(storage: EventLogStorage, periods: Iterable[Period], shares: int) -> None:
    """Give the pools of periods and runways their single slot, and the pool of the collection one slot per share.

    An existing limit is not written again, because this takes several statements per pool.
    """
    for name, slots in pools_without_limit(storage, periods, shares).items():
        storage.set_concurrency_slots(name, slots)


def pools_without_limit(storage: EventLogStorage, periods: Iterable[Period], shares: int) -> dict[str, int]:
    """Return the slots that pools need, for each pool whose explicit limit differs.

    Raises DBAPIError, also if Dagster has no tables yet.
    """
    needed = {**{pool_name(period): 1 for period in periods}, COLLECTION_POOL: max(1, shares), RUNWAY_POOL: 1}
    limits = {pool.name: pool.limit for pool in storage.get_pool_limits() if not pool.from_default}
    return {name: slots for name, slots in needed.items() if limits.get(name) != slots}


class RunRetryPolicy(dg.RetryPolicy):
    """Retries steps, except those of a run that is being terminated, which Dagster would retry too."""

    def calculate_delay(self, attempt_num: int) -> float:
        """Return the seconds before the next attempt; raises the interruption that ends a terminated run.

        Dagster calls this while it handles the failure, including an interruption.
        """
        handled = sys.exc_info()[1]
        if isinstance(handled, dg.DagsterExecutionInterruptedError | KeyboardInterrupt) and self.is_being_terminated():
            raise handled
        return super().calculate_delay(attempt_num)

    def is_being_terminated(self) -> bool:
        """Whether the active run is being terminated. An interrupted run may also be on a machine that shuts down."""
        context = dg.OpExecutionContext.get()
        run = context.instance.get_run_by_id(context.run_id)
        return run is not None and run.status is dg.DagsterRunStatus.CANCELING


# Only transient failures are retried; the others set `allow_retries`. With pauses of about 5, 10, 20, 40 and 80
# seconds, a run survives a restart of PostgreSQL or Redis; the jitter prevents runs from returning together.
RETRIES = RunRetryPolicy(max_retries=5, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


@contextmanager
def dagster_failures() -> Iterator[None]:
    """Raise an error of the block as a dagster.Failure with only its text; only a transient one may be retried."""
    try:
        yield
    except CapacityError as error:
        # Not chained: Dagster stores the whole chain in the event, statement and parameters included.
        logger.debug("cause of the failure", exc_info=error)
        raise dg.Failure(description=str(error), allow_retries=error.transient) from None


SERVICES = "capacity_services"
"""The resource behind all assets and ticks. It has no field that the UI could show: a URL holds a password."""


@dataclass(frozen=True)
class Services:
    """The services of assets, schedules and sensors, on the capacity database, which is open during a run."""

    engine: Engine
    settings: Settings
    clock: Clock
    periods: Mapping[str, Period]

    @cached_property
    def runner(self) -> AggregationTaskRunner:
        """Computes windows, and returns stale ones."""
        return task_runner(self.engine, self.settings, clock=self.clock, periods=self.periods)

    @cached_property
    def collection(self) -> CollectionService:
        """Measures servers."""
        return collection_service(self.engine, self.settings, clock=self.clock)

    @cached_property
    def retention(self) -> RetentionService:
        """Maintains the partitions of the tables."""
        return retention_service(self.engine, self.settings, clock=self.clock, periods=self.periods)

    @cached_property
    def runways(self) -> "RunwayService":
        """Issues runways. Arrays are loaded by runs that forecast, not by the code location."""
        from capacity_assets.forecast.issuing import RunwayService

        return RunwayService(self.engine, self.clock)

    @staticmethod
    def of(context: Any) -> "Services":
        """Return the services of a run or a tick."""
        services: Services = getattr(context.resources, SERVICES)
        return services


Requests = dg.RunRequest | dg.SkipReason | list[dg.RunRequest]


@dataclass(frozen=True)
class Graph:
    """The options of one graph, and how its assets, checks, jobs, schedules and sensors are declared."""

    settings: Settings
    clock: Clock
    periods: Mapping[str, Period] = field(default_factory=lambda: PERIODS)
    retries: dg.RetryPolicy = RETRIES
    executor: dg.ExecutorDefinition = dg.in_process_executor
    """Executor of the jobs: one process, because a run has two short steps that do their work in PostgreSQL."""
    prefix: tuple[str, ...] = ()
    """Prefix of the keys of all assets."""
    owners: Sequence[str] = field(default_factory=lambda: OWNERS)
    fleet: Path | None = None
    """A file of servers, for which there is an asset that registers them."""

    def key(self, name: str) -> dg.AssetKey:
        """Return the key of an asset."""
        return dg.AssetKey([*self.prefix, name])

    def services(self) -> dg.ResourceDefinition:
        """Build the resource."""

        @dg.resource(description="Services on the capacity database (CAPACITY_DATABASE_URL).")
        def open_services(_context: dg.InitResourceContext) -> Iterator[Services]:
            with dagster_failures(), open_engine(self.settings, connect=False) as engine:
                yield Services(engine, self.settings, self.clock, self.periods)

        return open_services

    def partitions(self, period: Period = SAMPLE_DAY) -> dg.TimeWindowPartitionsDefinition:
        """Return the partitions of a period; those of the raw tables are days."""
        return partitions_of(period, self.settings)

    def asset(
        self, name: str, period: Period | None, **more: Any
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """Return the decorator of an asset with the partitions of a period, or with none."""
        if period:
            more |= {
                "partitions_def": self.partitions(period),
                "backfill_policy": dg.BackfillPolicy.multi_run(PARTITIONS_PER_RUN),
            }
        decorator: Callable[[Callable[..., Any]], dg.AssetsDefinition] = dg.asset(
            key=self.key(name),
            retry_policy=self.retries,
            owners=self.owners,
            required_resource_keys={SERVICES},
            **more,
        )
        return decorator

    def standing_check(
        self, name: str, assets: Iterable[dg.AssetKey], check: str, description: str
    ) -> Callable[[Callable[..., Any]], dg.AssetChecksDefinition]:
        """Return the decorator of a check of several assets that computes nothing."""
        return dg.multi_asset_check(
            name=name,
            specs=[dg.AssetCheckSpec(check, asset=asset, description=description) for asset in assets],
            can_subset=True,
            required_resource_keys={SERVICES},
            retry_policy=self.retries,
        )

    def job(self, name: str, selection: Sequence[str] | dg.AssetSelection, description: str, **more: Any) -> OwnedJob:
        """Build a job over assets or checks."""
        if not isinstance(selection, dg.AssetSelection):
            selection = dg.AssetSelection.assets(*map(self.key, selection))
        return OwnedJob(
            name, selection, description=description, executor_def=self.executor, owners=self.owners, **more
        )

    def schedule(  # noqa: PLR0913 -- what a schedule has
        self,
        name: str,
        job: str,
        cron: str | Sequence[str],
        description: str,
        request: Callable[[dg.ScheduleEvaluationContext, datetime], Requests] = lambda _context, _moment: (
            dg.RunRequest()
        ),
        *,
        needs_services: bool = False,
    ) -> dg.ScheduleDefinition:
        """Build a schedule that is on from the first start, until switched off in the UI.

        `request` gets the moment that the tick was scheduled for, in the configured zone.
        """

        @dg.schedule(
            name=name,
            job_name=job,
            cron_schedule=cron,
            execution_timezone=self.settings.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            required_resource_keys={SERVICES} if needs_services else None,
            description=description,
        )
        def evaluate(context: dg.ScheduleEvaluationContext) -> Requests:
            return request(context, context.scheduled_execution_time.astimezone(self.settings.zone))

        return evaluate

    def freshness(self, period: Period) -> dg.FreshnessPolicy:
        """Expect a materialisation within the hour in which the schedule ticks; after that the asset is late."""
        return _freshness(period.cron_at(self.settings.schedule_hour, minute=59), self.settings.timezone)

    def daily(self, minute: int) -> str:
        """Return the cron of a minute of the configured hour."""
        return f"{minute} {self.settings.schedule_hour} * * *"

    def sensor(
        self, name: str, seconds: int, description: str, *, needs_services: bool = True, **more: Any
    ) -> Callable[[Callable[..., Any]], dg.SensorDefinition]:
        """Return the decorator of a sensor that is on from the first start, until switched off in the UI."""
        return dg.sensor(
            name=name,
            minimum_interval_seconds=seconds,
            default_status=dg.DefaultSensorStatus.RUNNING,
            required_resource_keys={SERVICES} if needs_services else None,
            description=description,
            **more,
        )


MARKING_SECONDS = 60
MOST_MARKED = 500
"""How many partitions a tick marks."""


def marking_result(unmarked: Iterator[dg.AssetMaterialization], nothing: str) -> dg.SensorResult | dg.SkipReason:
    """Return a tick's result: the first materialisations, or the reason `nothing`; raises dagster.Failure."""
    with dagster_failures():
        events = list(islice(unmarked, MOST_MARKED))
    return dg.SensorResult(asset_events=events) if events else dg.SkipReason(nothing)


@cache  # Dagster evaluates a thousand ticks to check the bound.
def _freshness(deadline_cron: str, timezone: str) -> dg.FreshnessPolicy:
    return dg.FreshnessPolicy.cron(deadline_cron, lower_bound_delta=timedelta(hours=1), timezone=timezone)
