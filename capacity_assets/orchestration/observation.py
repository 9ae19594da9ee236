"""The raw tables as observed assets, where another application fills them: each of their newest days has a version."""

import textwrap
import warnings

import dagster as dg

from capacity_assets.collection.observing import data_versions
from capacity_assets.collection.service import CollectionService
from capacity_assets.foundation.raw_tables import RAW_TABLES, RawTable
from capacity_assets.orchestration.collection import KINDS, RAW_GROUP, READERS, level_tags
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.orchestration.metadata import table_metadata
from capacity_assets.orchestration.partitions import sample_days
from capacity_assets.orchestration.private.definitions import create_external_asset_from_source_asset
from capacity_assets.orchestration.resources import COLLECTION_RESOURCE
from capacity_assets.settings import Settings

OBSERVATION_JOB, OBSERVATION_SCHEDULE = "observation_job", "observation_schedule"


def observed_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """Build the raw tables as observed assets: each of their newest days gets a data version."""
    with warnings.catch_warnings():
        # Dagster 1.13 makes this conversion itself, and warns there of a property that it alone uses.
        warnings.filterwarnings("ignore", message="Property `OpDefinition.version` is deprecated")
        return [create_external_asset_from_source_asset(_observed_asset(settings, raw)) for raw in RAW_TABLES]


def _observed_asset(settings: Settings, raw: RawTable) -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=raw.name,
        description=_observed_description(raw),
        group_name=RAW_GROUP,
        partitions_def=sample_days(settings),
        tags={**level_tags(raw), **{f"dagster/kind/{kind}": "" for kind in KINDS}},
        metadata=table_metadata(raw.table),
        required_resource_keys={COLLECTION_RESOURCE},
    )
    def observe(context: dg.OpExecutionContext) -> dg.DataVersionsByPartition:
        service: CollectionService = getattr(context.resources, COLLECTION_RESOURCE)
        with dagster_failures():
            versions = data_versions(service.engine, raw, service.clock.today())
        known = {
            day.isoformat(): dg.DataVersion(version) for day, version in versions.items() if day >= settings.start_date
        }
        with warnings.catch_warnings():
            # The class is marked beta; the pinned minor release bounds that.
            warnings.simplefilter("ignore", dg.BetaWarning)
            return dg.DataVersionsByPartition(known)

    return observe


observation_job = dg.define_asset_job(
    OBSERVATION_JOB,
    selection=dg.AssetSelection.assets(*(raw.name for raw in RAW_TABLES)),
    description="Looks at the newest days of the raw tables, which another application fills. Writes nothing.",
)


def observation_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Build the schedule: every day."""
    return dg.ScheduleDefinition(
        name=OBSERVATION_SCHEDULE,
        job_name=OBSERVATION_JOB,
        cron_schedule=f"0 {settings.collection_hour} * * *",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Observes the newest days of the raw tables.",
    )


def _observed_description(raw: RawTable) -> str:
    return textwrap.dedent(f"""\
        {raw.row} Written by another application, or imported.

        Observing gives the newest days a data version: how many rows there are, their sum, and the last change.

        A partition is one day. {READERS[raw.level is None]}""")
