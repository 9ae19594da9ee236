"""Puts the code location together. Tests, the command line and production share this one assembly.

Parts are passed in, never patched: other settings, another period registry, a fixed clock.
"""

import warnings
from collections.abc import Mapping

import dagster as dg

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.base.periods import PERIODS, Clock, Period, with_trend_threshold
from capacity_assets.base.settings import Settings
from capacity_assets.history.retention import parse_retention
from capacity_assets.orchestration import collection, documents, late_data, maintenance, metadata, runways, schedules
from capacity_assets.orchestration.alerts import alert_sensors
from capacity_assets.orchestration.assets import RETRIES, aggregate_asset
from capacity_assets.orchestration.resources import resources
from capacity_assets.runtime import excluded_of


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
    is_measured = settings.collection != "off"
    # A registry without months has no report and no bill, one without weeks no digest.
    month, week = periods.get(documents.REPORT_PERIOD), periods.get(documents.DIGEST_PERIOD)
    jobs = schedules.aggregation_jobs(periods.values())
    with warnings.catch_warnings():
        # Backfill policies, lenient partition mappings and code references are beta; the pinned release bounds that.
        warnings.simplefilter("ignore", dg.BetaWarning)
        assets: list[dg.AssetsDefinition] = [
            *(
                [collection.collected_assets(settings, retries)]
                if is_measured
                else collection.observed_assets(settings)
            ),
            *(aggregate_asset(settings, one, level, retries) for one in periods.values() for level in LEVELS.values()),
            runways.runway_asset(settings, retries),
            maintenance.table_partitions(retries),
        ]
        if month:
            assets += [build(settings, month, retries) for build in (documents.growth_report, documents.showback_asset)]
        if week:
            assets.append(documents.digest_asset(settings, week, retries))
        # The page of an asset names the file and line of its function on the machine of the code location.
        with_references = dg.with_source_code_references(assets)
    return dg.Definitions(
        assets=with_references,
        asset_checks=[
            metadata.samples_recent(retries),
            *(metadata.standing_check(period, retries) for period in periods.values()),
        ],
        jobs=[
            *jobs,
            collection.collection_job(periods) if is_measured else collection.observation_job,
            schedules.standing_check_job(periods.values()),
            maintenance.maintenance_job,
            runways.runway_job,
            *([documents.growth_report_job, documents.showback_job] if month else []),
            *([documents.digest_job] if week else []),
        ],
        schedules=[
            *(
                [collection.collection_schedule(settings)]
                if is_measured
                else [collection.observation_schedule(settings), runways.runway_schedule(settings)]
            ),
            *(schedules.aggregation_schedule(settings, period) for period in periods.values()),
            maintenance.maintenance_schedule(settings),
            schedules.standing_check_schedule(settings),
            *([documents.digest_schedule(settings, week)] if week else []),
        ],
        sensors=[
            late_data.late_data_sensor(jobs, periods, the_clock, settings.settle_seconds),
            late_data.computed_windows_sensor(periods),
            *([late_data.sample_days_sensor(settings)] if is_measured else []),
            *([documents.growth_report_sensor, documents.showback_sensor] if month else []),
            *alert_sensors(settings, the_clock),
        ],
        resources=resources(settings, the_clock, periods),
        # A run has two short steps that do their work in PostgreSQL: a process for each would cost more.
        executor=dg.in_process_executor,
    )
