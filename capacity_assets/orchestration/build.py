"""Puts the code location together. Tests, the command line and production share this one assembly.

Parts are passed in, never patched: other settings, another period registry, a fixed clock.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.base.periods import PERIODS, Clock, Period, with_trend_threshold
from capacity_assets.base.settings import Settings
from capacity_assets.history.retention import parse_retention
from capacity_assets.orchestration.alerts import alert_sensors
from capacity_assets.orchestration.assets import RETRIES, aggregate_asset
from capacity_assets.orchestration.collection import (
    collected_assets,
    collection_job,
    collection_schedule,
    observation_job,
    observation_schedule,
    observed_assets,
)
from capacity_assets.orchestration.documents import (
    DIGEST_PERIOD,
    REPORT_PERIOD,
    digest_asset,
    digest_job,
    digest_schedule,
    growth_report,
    growth_report_job,
    growth_report_sensor,
    showback_asset,
    showback_job,
    showback_sensor,
)
from capacity_assets.orchestration.late_data import computed_windows_sensor, late_data_sensor, sample_days_sensor
from capacity_assets.orchestration.maintenance import maintenance_job, maintenance_schedule, table_partitions
from capacity_assets.orchestration.metadata import samples_recent, standing_check
from capacity_assets.orchestration.private.definitions import UnresolvedAssetJobDefinition
from capacity_assets.orchestration.resources import resources
from capacity_assets.orchestration.runways import runway_asset, runway_job, runway_schedule
from capacity_assets.orchestration.schedules import (
    aggregation_jobs,
    aggregation_schedules,
    standing_check_job,
    standing_check_schedule,
)
from capacity_assets.runtime import excluded_of

MONTHLY_ASSETS = (growth_report, showback_asset)


def build_definitions(
    settings: Settings,
    *,
    periods: Mapping[str, Period] = PERIODS,
    clock: Clock | None = None,
    retries: dg.RetryPolicy = RETRIES,
) -> dg.Definitions:
    """Build the definitions of the code location.

    Nothing is opened here: the database is reached when a run starts.

    Raises:
        ConfigurationError: CAPACITY_RETENTION_DAYS or CAPACITY_SYSTEM_DATABASES names something that does not exist.
    """
    periods = with_trend_threshold(periods, settings.trend_percent)
    parse_retention(settings.retention_days, periods)
    the_clock = clock or Clock(settings.zone)
    excluded_of(settings)
    with warnings.catch_warnings():
        # Backfill policies, lenient partition mappings and code references are beta; the pinned release bounds that.
        warnings.simplefilter("ignore", dg.BetaWarning)
        raw = _raw(settings, periods, retries)
        assets: list[dg.AssetSpec | dg.AssetsDefinition] = [
            *raw.assets,
            *(aggregate_asset(settings, one, level, retries) for one in periods.values() for level in LEVELS.values()),
            runway_asset(settings, retries),
            table_partitions(retries),
        ]
        # A registry without months has no report and no bill, one without weeks no digest.
        monthly = [period for name, period in periods.items() if name == REPORT_PERIOD]
        assets += [build(settings, period, retries) for period in monthly for build in MONTHLY_ASSETS]
        weekly = [period for name, period in periods.items() if name == DIGEST_PERIOD]
        assets += [digest_asset(settings, period, retries) for period in weekly]
        # The page of an asset names the file and line of its function on the machine of the code location.
        with_references = dg.with_source_code_references(assets)
    jobs = aggregation_jobs(periods.values())
    return dg.Definitions(
        assets=with_references,
        asset_checks=[samples_recent(retries), *(standing_check(period, retries) for period in periods.values())],
        jobs=[
            *jobs,
            raw.job,
            standing_check_job(periods.values()),
            maintenance_job,
            runway_job,
            *(job for _ in monthly for job in (growth_report_job, showback_job)),
            *(digest_job for _ in weekly),
        ],
        schedules=[
            *raw.schedules,
            *aggregation_schedules(settings, periods.values()),
            maintenance_schedule(settings),
            standing_check_schedule(settings),
            *(digest_schedule(settings, period) for period in weekly),
        ],
        sensors=[
            late_data_sensor(jobs, periods, the_clock, settings.settle_seconds),
            computed_windows_sensor(periods),
            *raw.sensors,
            *(sensor for _ in monthly for sensor in (growth_report_sensor, showback_sensor)),
            *alert_sensors(settings),
        ],
        resources=resources(settings, the_clock, periods),
        # A run has two short steps that do their work in PostgreSQL: a process for each would cost more.
        executor=dg.in_process_executor,
    )


@dataclass(frozen=True)
class _Raw:
    """The raw tables in the graph, and what fills or observes them."""

    assets: Sequence[dg.AssetsDefinition]
    job: UnresolvedAssetJobDefinition
    schedules: Sequence[dg.ScheduleDefinition]
    sensors: Sequence[dg.SensorDefinition] = ()


def _raw(settings: Settings, periods: Mapping[str, Period], retries: dg.RetryPolicy) -> _Raw:
    if settings.collection == "off":
        return _Raw(
            observed_assets(settings), observation_job, [observation_schedule(settings), runway_schedule(settings)]
        )
    collected = collected_assets(settings, retries)
    schedules, sensors = [collection_schedule(settings)], [sample_days_sensor(settings)]
    return _Raw([collected], collection_job(periods), schedules, sensors)
