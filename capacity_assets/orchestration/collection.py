"""The raw tables as assets: measured here, or observed if another application fills them.

Measuring is one step for all of them, only for today's partition, with every failed server in the metadata and in a
check. The job also computes the day's aggregates afterwards. A past day that has samples keeps them and counts as done,
so that a backfill over all days is harmless. `collection.service` measures servers.

Dagster shows days with samples that were not measured here (imported ones, the demo's, those from before the collection
was introduced) as missing, and warns before a backfill. A sensor therefore marks their partitions: it reports a
materialisation for each, without a run, a few per tick.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path

import dagster as dg
from pydantic import Field
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import INSTANCE, LEVELS, RAW_TABLES, SERVER_LEVELS, RawTable
from capacity_assets.base.errors import CapacityError
from capacity_assets.base.settings import HOURS_PER_DAY, Settings
from capacity_assets.base.units import counted, human_day, human_days
from capacity_assets.collection.servers import declared_servers, register_servers
from capacity_assets.collection.service import CollectionService, CollectionShare, CollectionSummary, parse_share
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.database.tables import server_part_stats
from capacity_assets.forecast.limits import declare_limits
from capacity_assets.orchestration.checks import (
    LITTLE_WAL_RETAINED,
    LITTLE_WAL_RETAINED_DESCRIPTION,
    SERVERS_MEASURED,
    SERVERS_MEASURED_DESCRIPTION,
    retained_wal_result,
    samples_recent,
    servers_result,
)
from capacity_assets.orchestration.graph import (
    COLLECTION_POOL,
    MARKING_SECONDS,
    SERVICES,
    Graph,
    Requests,
    Services,
    asset_name,
    dagster_failures,
    marking_result,
)
from capacity_assets.orchestration.metadata import (
    MetadataMapping,
    bullets,
    first_bullets,
    markdown,
    plain,
    table_metadata,
)
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN
from capacity_assets.orchestration.private import create_external_asset_from_source_asset
from capacity_assets.orchestration.runways import RUNWAY, runway_schedule
from capacity_assets.ownership.labels import declare_labels
from capacity_assets.reading.windows import data_versions, days_with_samples

RAW_GROUP = "raw"
RAW_ASSETS = [raw.name for raw in RAW_TABLES]
STEP = "collection"
SHARE_TAG = "capacity/share"
"""Tag of a run that measures a share. A run can be routed by it, for example to a queue."""
QUEUE_TAG = "dagster-celery/queue"
"""Read by dagster-celery, which is optional."""
REGISTERED_SERVERS = "registered_servers"
COLLECTION_JOB, COLLECTION_SCHEDULE = "collection_job", "collection_schedule"
OBSERVATION_JOB, OBSERVATION_SCHEDULE = "observation_job", "observation_schedule"
SAMPLE_DAYS_SENSOR = "sample_days_sensor"
ORIGIN_OF_SAMPLES = "not measured here: imported, or written by another application"
# Failed servers are measured again half an hour later, and three more times on the day. So a server that was down at
# night, or a fleet whose samples were being imported, still gets a sample of the day.
MINUTES = "0,30"
HOURS_LATER = (3, 9, 15)
FOLLOWING = "daily"
KINDS = {"postgres", "table"}


def collection_definitions(graph: Graph) -> dg.Definitions:
    """Return the assets of the raw tables with their job, schedule, sensor and standing check."""
    recent, registering = samples_recent(graph), [registered_servers(graph, graph.fleet)] if graph.fleet else []
    if graph.settings.collection == "off":
        job = graph.job(
            OBSERVATION_JOB,
            RAW_ASSETS,
            "Looks at the newest days of the raw tables, which another application fills. Writes nothing.",
        )
        cron = f"0 {graph.settings.collection_hour} * * *"
        schedule = graph.schedule(
            OBSERVATION_SCHEDULE, OBSERVATION_JOB, cron, "Observes the newest days of the raw tables."
        )
        return dg.Definitions(
            assets=[*observed_assets(graph), *registering],
            asset_checks=[recent],
            jobs=[job],
            # With the collection on, its run issues the runways; without it, this schedule does.
            schedules=[schedule, runway_schedule(graph)],
        )
    daily = graph.periods.get(FOLLOWING)
    followers = [asset_name(daily, level) for level in LEVELS.values()] if daily else []
    job = graph.job(
        COLLECTION_JOB,
        [*RAW_ASSETS, *followers, RUNWAY],
        "Measures every registered server for today, then computes the aggregates of the day and issues its runways.",
    )
    return dg.Definitions(
        assets=[collected_assets(graph), *registering],
        asset_checks=[recent],
        jobs=[job],
        schedules=[collection_schedule(graph)],
        sensors=[sample_days_sensor(graph)],
    )


@dataclass(frozen=True)
class RequestedDays:
    """The days of a run, those that already had samples, and the measurements of today."""

    days: tuple[date, ...]
    earlier_days: frozenset[date]
    summary: CollectionSummary | None

    @property
    def missing_days(self) -> list[date]:
        """The days that have no samples after the run either."""
        return [day for day in self.days if day not in self.earlier_days and self.measured_on(day) is None]

    def measured_on(self, day: date) -> CollectionSummary | None:
        """Return the measurements of this day, if there are any."""
        summary = self.summary
        return summary if summary is not None and summary.day == day and not summary.is_empty else None


def measure_requested(
    service: CollectionService, keys: Sequence[str], *, again: bool, share: CollectionShare | None = None
) -> RequestedDays:
    """Measure all servers or a share if today is among the days, and find which of the other days have samples.

    Raises:
        ValidationError: the only day is not today and has no samples.
        LockHeldError, DatabaseError: as `CollectionService.collect`.
    """
    days = tuple(sorted(date.fromisoformat(key) for key in keys))
    today = service.clock.today()
    earlier_days = _days_with_samples(service, days)
    measurable = today in days and (today not in earlier_days or service.has_servers())
    if not measurable and earlier_days.issuperset(days):
        return RequestedDays(days, earlier_days, None)
    day = today if measurable else days[0]
    summary = service.collect(day, again=again, share=share) if measurable or len(days) == 1 else None
    # Samples of today that another application wrote count even if every server measured here failed.
    measured = {today} if summary is not None and not summary.is_empty else set[date]()
    return RequestedDays(days, earlier_days - measured, summary)


def _days_with_samples(service: CollectionService, days: Sequence[date]) -> frozenset[date]:
    measured = [
        set(days_with_samples(service.engine, level.source, days[0], days[-1] + timedelta(days=1)))
        for level in SERVER_LEVELS.values()
    ]
    return frozenset(set.intersection(*measured) & set(days))


class CollectionConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    again: bool = Field(
        default=False,
        description="Also measure servers that were already measured on this day. If off, a second run of the day "
        "measures the failed ones.",
    )
    share: str = Field(
        default="",
        description="Only a share of the servers, such as 2/4, zone=eu or zone=. Empty: all.",
    )


def collected_assets(graph: Graph) -> dg.AssetsDefinition:
    """Build the raw tables as one step that measures."""
    settings = graph.settings
    servers, parts = graph.key(INSTANCE.source.name), graph.key(server_part_stats.name)
    specs = [
        dg.AssetSpec(
            key=graph.key(raw.name),
            description=_description(raw, "", HOW_COLLECTED),
            group_name=RAW_GROUP,
            partitions_def=graph.partitions(),
            owners=graph.owners,
            kinds=KINDS,
            tags=level_tags(raw),
            metadata=table_metadata(raw.table),
            # Of several days, those without samples stay missing.
            skippable=True,
        )
        for raw in RAW_TABLES
    ]

    @dg.multi_asset(
        name=STEP,
        specs=specs,
        check_specs=[
            dg.AssetCheckSpec(SERVERS_MEASURED, asset=servers, description=SERVERS_MEASURED_DESCRIPTION),
            dg.AssetCheckSpec(LITTLE_WAL_RETAINED, asset=parts, description=LITTLE_WAL_RETAINED_DESCRIPTION),
        ],
        pool=COLLECTION_POOL,
        retry_policy=graph.retries,
        backfill_policy=dg.BackfillPolicy.multi_run(PARTITIONS_PER_RUN),
        required_resource_keys={SERVICES},
    )
    def collection(
        context: dg.AssetExecutionContext, config: CollectionConfig
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        with dagster_failures():
            service = Services.of(context).collection
            share = parse_share(config.share) if config.share else None
            run_days = measure_requested(service, context.partition_keys, again=config.again, share=share)
            # A share contains no other servers, so the check then uses the newest day.
            measured = run_days.summary if share is None else None
            checks = [
                servers_result(measured, service.engine, settings.pages_url, servers),
                retained_wal_result(service.engine, service.clock.today(), settings.pages_url, parts),
            ]
        if run_days.summary and len(run_days.days) == 1 and run_days.missing_days and run_days.summary.is_empty:
            # The step fails, so that nothing downstream takes the day as measured.
            shown = collection_metadata(run_days.summary)
            raise dg.Failure(description=run_days.summary.message, metadata=shown, allow_retries=False)
        if run_days.missing_days:
            # One result would apply to all requested days, so those that have samples are reported one by one.
            _warn_of_missing(context, run_days)
            for materialization in _materializations(graph, run_days):
                context.log_event(materialization)
            yield from checks
            return
        for key in _measured_tables(graph, run_days.summary):
            for day in run_days.days:
                context.add_asset_metadata(_metadata_of(run_days, day), key, partition_key=day.isoformat())
            of_table = [check for check in checks if check.asset_key == key]
            yield dg.MaterializeResult(asset_key=key, check_results=of_table)

    return collection


def _measured_tables(graph: Graph, measured: CollectionSummary | None) -> list[dg.AssetKey]:
    """Return the raw tables with samples of a measurement: tables and indexes are not measured on every day."""
    has_objects = measured is not None and measured.object_databases > 0
    return [graph.key(raw.name) for raw in RAW_TABLES if has_objects or not raw.is_optional]


def _materializations(graph: Graph, run_days: RequestedDays) -> Iterator[dg.AssetMaterialization]:
    for day in sorted({*run_days.days} - {*run_days.missing_days}):
        for key in _measured_tables(graph, run_days.measured_on(day)):
            yield dg.AssetMaterialization(key, metadata=_metadata_of(run_days, day), partition=day.isoformat())


def _warn_of_missing(context: dg.AssetExecutionContext, run_days: RequestedDays) -> None:
    context.log.warning(
        f"No samples for {len(run_days.missing_days)} of {counted(len(run_days.days), 'day')}, "
        f"{human_days(run_days.missing_days[0], run_days.missing_days[-1])}: a server reports only the current size of "
        "its databases. Use `capacity import` for samples taken elsewhere. The aggregates of this run are skipped: "
        "materialise them in a separate run."
    )


def _metadata_of(run_days: RequestedDays, day: date) -> MetadataMapping:
    measured = run_days.measured_on(day)
    if measured:
        return collection_metadata(measured)
    message = f"{human_day(day)} is not measured again; its samples were kept as they are."
    return plain({"status": "kept", "collected_date": day.isoformat(), "message": message})


def collection_metadata(summary: CollectionSummary) -> MetadataMapping:
    """Turn a summary into metadata: flat, and numbers where they are numbers."""
    left_out = (f"{name} on {counted(servers, 'server')}" for name, servers in summary.left_out.items())
    return {
        **plain(summary.to_dict()),
        "errors": markdown(first_bullets(list(map(str, summary.failures))) or "none"),
        "not_counted": markdown(first_bullets(summary.not_counted) or "nothing"),
        "left_out": markdown(bullets(left_out, hidden=0) or "nothing"),
        "unknown_used": markdown(first_bullets(summary.unknown_used) or "nothing"),
        "unknown_limits": markdown(first_bullets(summary.unknown_limits) or "nothing"),
        "unknown_parts": markdown(first_bullets(summary.unknown_parts) or "nothing"),
        "unknown_objects": markdown(first_bullets(summary.unknown_objects) or "nothing"),
    }


def registered_servers(graph: Graph, path: Path) -> dg.AssetsDefinition:
    """Build the asset that registers the servers of a file; nothing is registered while definitions load."""

    @graph.asset(REGISTERED_SERVERS, None, group_name="samples", kinds={"postgres"})
    def servers(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        """The servers that the fleet's file declares, registered for collection; all of them or none."""
        # Imported here, because it loads the computation of forecasts, which the graph does not need.
        from capacity_assets.demo import refuse_the_sample_fleet

        with dagster_failures():
            engine, declarer = Services.of(context).engine, graph.settings.declarer
            refuse_an_unfit_database(engine)
            refuse_the_sample_fleet(engine)
            declared = declared_servers(path, graph.settings.label_keys)
            changes = register_servers(engine, declared.servers, by=declarer)
            declare_limits(engine, declared.limits, by=declarer)
            declare_labels(engine, declared.labels, Services.of(context).collection.clock.today(), by=declarer)
        return dg.MaterializeResult(metadata={f"{name}_servers": len(names) for name, names in asdict(changes).items()})

    return servers


def collection_schedule(graph: Graph) -> dg.ScheduleDefinition:
    """Build the schedule: every day, and later in the day once more for servers that failed."""
    settings = graph.settings
    later = [str(settings.collection_hour + hours) for hours in HOURS_LATER]
    later = [hour for hour in later if int(hour) < HOURS_PER_DAY]
    return graph.schedule(
        COLLECTION_SCHEDULE,
        COLLECTION_JOB,
        [f"{MINUTES} {settings.collection_hour} * * *", *([f"0 {','.join(later)} * * *"] if later else [])],
        "Measures the registered servers, and later in the day those that failed.",
        partial(_request_today, settings),
        needs_services=True,
    )


def _request_today(settings: Settings, context: dg.ScheduleEvaluationContext, moment: datetime) -> Requests:
    day = moment.date()
    with dagster_failures():
        service = Services.of(context).collection
    if day != service.clock.today():
        return dg.SkipReason(f"{human_day(day)} is over; only today can be measured.")
    shares = list(settings.collection_shares) or [""]
    try:
        shares = [name for name in shares if service.count_remaining(day, parse_share(name) if name else None)]
    except CapacityError as error:
        # Request the run anyway: it retries the database, while a failed tick is not repeated.
        context.log.warning(str(error))
    if not shares:
        return dg.SkipReason(f"No registered server is left to measure on {human_day(day)}.")
    return [_request(moment, name, queues=settings.share_queues == "on") for name in shares]


def _request(moment: datetime, share: str, *, queues: bool) -> dg.RunRequest:
    key, day = f"{moment:%Y-%m-%dT%H:%M}", moment.date().isoformat()
    if not share:
        return dg.RunRequest(run_key=key, partition_key=day)
    config = dg.RunConfig(ops={STEP: CollectionConfig(share=share)})
    return dg.RunRequest(
        run_key=f"{key} {share}", partition_key=day, run_config=config, tags=share_tags(share, queues=queues)
    )


def share_tags(share: str, *, queues: bool) -> dict[str, str]:
    """Return the tags of the run of a share; with `queues`, a share by label goes to a separate queue."""
    label = parse_share(share)
    return {SHARE_TAG: share} | ({QUEUE_TAG: f"{label.key}-{label.value}"} if queues and label.value else {})


def sample_days_sensor(graph: Graph) -> dg.SensorDefinition:
    """Build the sensor that marks days with samples that were not measured here."""

    @graph.sensor(
        SAMPLE_DAYS_SENSOR,
        MARKING_SECONDS,
        "Marks the partitions of the raw assets whose days have samples that were not measured here.",
    )
    def mark_days(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        services = Services.of(context)
        unmarked = unmarked_days(graph, context.instance, services.engine, before=services.clock.today())
        return marking_result(unmarked, "Every day with samples is marked.")

    return mark_days


def unmarked_days(
    graph: Graph, instance: dg.DagsterInstance, engine: Engine, *, before: date
) -> Iterator[dg.AssetMaterialization]:
    """Yield materialisations of raw tables for unmarked days with samples before `before`; raises DatabaseError."""
    for raw in RAW_TABLES:
        key = graph.key(raw.name)
        known = instance.get_materialized_partitions(key)
        for day in days_with_samples(engine, raw.table, graph.settings.start_date, before):
            if day.isoformat() not in known:
                yield dg.AssetMaterialization(key, partition=day.isoformat(), metadata={"origin": ORIGIN_OF_SAMPLES})


def level_tags(raw: RawTable) -> dict[str, str]:
    """Return the tag of the level that a raw table feeds, if it feeds one."""
    return {"level": raw.level} if raw.level else {}


def _description(raw: RawTable, source: str, how: str) -> str:
    reader = "Aggregates read the days of their window and of the previous window."
    if raw.level is None:
        reader = "The runway of a day reads the newest samples of the month before that day."
    if not raw.has_forecasts:
        reader = "Pages, digest and checks read the newest samples of the last month."
    return f"{raw.row}{source}\n\n{how}\n\nA partition is one day. {reader}"


HOW_COLLECTED = """\
Materialising today's partition measures every server registered with `capacity instances`, for all raw tables in
one step. Past days cannot be measured: those with samples keep them, the others stay missing. If a server
refuses or does not respond, it counts as failed, with the reason, and has no sample of the day; the other servers
are stored. A second run on the same day measures the failed servers. With `CAPACITY_COLLECTION=off`, another
application fills the tables."""
HOW_OBSERVED = "Observing gives the newest days a data version: their number of rows, the sum, and the last change."


def observed_assets(graph: Graph) -> list[dg.AssetsDefinition]:
    """Build the raw tables as observed assets: each of their newest days gets a data version."""
    with warnings.catch_warnings():
        # Dagster 1.13 does this conversion itself, but warns of a property that only Dagster uses.
        warnings.filterwarnings("ignore", message="Property `OpDefinition.version` is deprecated")
        return [create_external_asset_from_source_asset(_observed_asset(graph, raw)) for raw in RAW_TABLES]


def _observed_asset(graph: Graph, raw: RawTable) -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=graph.key(raw.name),
        description=_description(raw, " Written by another application, or imported.", HOW_OBSERVED),
        group_name=RAW_GROUP,
        partitions_def=graph.partitions(),
        tags={**level_tags(raw), **{f"dagster/kind/{kind}": "" for kind in KINDS}},
        metadata=table_metadata(raw.table),
        required_resource_keys={SERVICES},
    )
    def observe(context: dg.OpExecutionContext) -> dg.DataVersionsByPartition:
        services = Services.of(context)
        with dagster_failures():
            versions = data_versions(services.engine, raw, services.clock.today())
        first = graph.settings.start_date
        known = {day.isoformat(): dg.DataVersion(version) for day, version in versions.items() if day >= first}
        with warnings.catch_warnings():
            # The class is marked beta; the pinned minor release bounds that.
            warnings.simplefilter("ignore", dg.BetaWarning)
            return dg.DataVersionsByPartition(known)

    return observe
