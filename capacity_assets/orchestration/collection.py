"""The raw tables as assets: measured here, or observed where another application fills them.

Measuring is one step for all of them, today's partition only, with every failed server in the metadata and in a check.
The job also computes the day's aggregates afterwards. A past day that has samples keeps them and counts as done, so
that a backfill over all days is harmless. How servers are measured is in `collection.service`.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import dagster as dg
from pydantic import Field
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import INSTANCE, LEVELS, RAW_TABLES, SERVER_LEVELS, RawTable
from capacity_assets.base.errors import CapacityError, DatabaseError, database_errors
from capacity_assets.base.periods import Period
from capacity_assets.base.settings import HOURS_PER_DAY, Settings
from capacity_assets.base.units import counted, human_day
from capacity_assets.collection.observing import data_versions, days_with_samples
from capacity_assets.collection.results import CollectionSummary
from capacity_assets.collection.servers import standing
from capacity_assets.collection.service import CollectionService, Share, share_named
from capacity_assets.database.tables import server_part_stats
from capacity_assets.orchestration.metadata import (
    PAGES_LISTED,
    MetadataMapping,
    bullets,
    check_result,
    first_bullets,
    markdown,
    pages_metadata,
    plain,
    table_metadata,
)
from capacity_assets.orchestration.partitions import OWNERS, PARTITIONS_PER_RUN, asset_name, sample_days, schedule_of
from capacity_assets.orchestration.private.definitions import (
    UnresolvedAssetJobDefinition,
    create_external_asset_from_source_asset,
)
from capacity_assets.orchestration.resources import COLLECTION_RESOURCE, dagster_failures
from capacity_assets.orchestration.runways import RUNWAY
from capacity_assets.orchestration.schedules import COLLECTION_POOL
from capacity_assets.reading.links import subject_address
from capacity_assets.reading.parts import MOST_SLOT_PERCENT, slots_named_on
from capacity_assets.reading.subjects import server_id_of


@dataclass(frozen=True)
class RequestedDays:
    """The days of a run, those that already had samples, and the measurements of today."""

    days: tuple[date, ...]
    kept: frozenset[date]
    summary: CollectionSummary | None

    @property
    def missing(self) -> list[date]:
        """The days that have no samples after the run either."""
        return [day for day in self.days if day not in self.kept and not self.is_measured(day)]

    def is_measured(self, day: date) -> bool:
        """Whether servers were measured for this day."""
        return self.summary is not None and self.summary.day == day and not self.summary.is_empty


def measure_requested(
    service: CollectionService, keys: Sequence[str], *, again: bool, share: Share | None = None
) -> RequestedDays:
    """Measure all servers or a share if today is among the days, and find which others have samples.

    Raises:
        ValidationError: the only day is not today and has no samples.
        LockHeldError, DatabaseError: as `CollectionService.collect`.
    """
    days = tuple(sorted(date.fromisoformat(key) for key in keys))
    today = service.clock.today()
    kept = _days_with_samples(service, days)
    measurable = today in days and (today not in kept or service.has_servers())
    if not measurable and kept.issuperset(days):
        return RequestedDays(days, kept, None)
    day = today if measurable else days[0]
    summary = service.collect(day, again=again, share=share) if measurable or len(days) == 1 else None
    # Samples of today that others have taken are there also where every server of ours failed.
    measured = {today} if summary is not None and not summary.is_empty else set[date]()
    return RequestedDays(days, kept - measured, summary)


def _days_with_samples(service: CollectionService, days: Sequence[date]) -> frozenset[date]:
    measured = [
        set(days_with_samples(service.engine, level.source, days[0], days[-1] + timedelta(days=1)))
        for level in SERVER_LEVELS.values()
    ]
    return frozenset(set.intersection(*measured) & set(days))


RAW_GROUP = "raw"
STEP = "collection"
SHARE_TAG = "capacity/share"
"""Tag of a run that measures a share: what routes it to a place, such as a queue, can go by it."""
QUEUE_TAG = "dagster-celery/queue"
"""Read by dagster-celery, which is optional."""
COLLECTION_JOB, COLLECTION_SCHEDULE = "collection_job", "collection_schedule"
SERVERS_MEASURED = "servers_measured"
SLOTS_RETAIN_LITTLE = "slots_retain_little"
SLOTS_RETAIN_LITTLE_DESCRIPTION = (
    f"No replication slot retains more than {MOST_SLOT_PERCENT} % of its volume, or of the databases of its server "
    "where no volume is known."
)
SERVERS_MEASURED_DESCRIPTION = "Every server that is registered for collection was measured on this day."
# Those that failed are measured once more half an hour later, and three times in the day: one that was down at night,
# or a fleet whose samples were being imported, still gets its day.
MINUTES = "0,30"
HOURS_LATER = (3, 9, 15)
FOLLOWING = "daily"
KINDS = {"postgres", "table"}


class CollectionConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    again: bool = Field(
        default=False,
        description="Measure also servers that were measured before on this day. Off, a second run of the day "
        "measures those that failed.",
    )
    share: str = Field(
        default="",
        description="Only a share of the servers, such as 2/4, zone=eu or zone=. Empty: all.",
    )


def collected_assets(settings: Settings, retries: dg.RetryPolicy) -> dg.AssetsDefinition:
    """Build the raw tables as one step that measures."""
    specs = [
        dg.AssetSpec(
            key=raw.name,
            description=_description(raw, "", HOW_COLLECTED),
            group_name=RAW_GROUP,
            partitions_def=sample_days(settings),
            owners=OWNERS,
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
            dg.AssetCheckSpec(SERVERS_MEASURED, asset=INSTANCE.source.name, description=SERVERS_MEASURED_DESCRIPTION),
            dg.AssetCheckSpec(
                SLOTS_RETAIN_LITTLE, asset=server_part_stats.name, description=SLOTS_RETAIN_LITTLE_DESCRIPTION
            ),
        ],
        pool=COLLECTION_POOL,
        retry_policy=retries,
        backfill_policy=dg.BackfillPolicy.multi_run(PARTITIONS_PER_RUN),
        required_resource_keys={COLLECTION_RESOURCE},
    )
    def collection(
        context: dg.AssetExecutionContext, config: CollectionConfig
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        service: CollectionService = getattr(context.resources, COLLECTION_RESOURCE)
        with dagster_failures():
            share = share_named(config.share) if config.share else None
            done = measure_requested(service, context.partition_keys, again=config.again, share=share)
            # What one share measured says nothing of the others.
            measured = done.summary if share is None else None
            checks = {
                INSTANCE.source.name: _check_result(measured, service.engine, settings.pages_url),
                server_part_stats.name: _slots_result(service.engine, service.clock.today(), settings.pages_url),
            }
        if done.summary and len(done.days) == 1 and done.missing and done.summary.is_empty:
            # So that nothing downstream takes the day as measured.
            shown = collection_metadata(done.summary)
            raise dg.Failure(description=done.summary.message, metadata=shown, allow_retries=False)
        if done.missing:
            yield from _reported_day_by_day(context, done, checks.values())
            return
        for raw in RAW_TABLES:
            if raw.is_optional and not (done.summary and done.summary.object_databases):
                continue
            for day in done.days:
                context.add_asset_metadata(_metadata_of(done, day), raw.name, partition_key=day.isoformat())
            results = [check for asset, check in checks.items() if asset == raw.name]
            yield dg.MaterializeResult(asset_key=raw.name, check_results=results)

    return collection


def _reported_day_by_day(
    context: dg.AssetExecutionContext, done: RequestedDays, checks: Iterable[dg.AssetCheckResult]
) -> Iterator[dg.AssetCheckResult]:
    """Report the days that have samples one by one; one result would stand for all requested days."""
    context.log.warning(
        f"No samples for {len(done.missing)} of {counted(len(done.days), 'day')}, {done.missing[0]} to "
        f"{done.missing[-1]}: a server reports only the current size of its databases. Use `capacity import` for "
        "samples taken elsewhere. The aggregates of this run are skipped: materialise them in a separate run."
    )
    for day in done.days:
        if day not in done.missing:
            for raw in RAW_TABLES:
                if raw.is_optional and not (done.summary and done.is_measured(day) and done.summary.object_databases):
                    continue
                context.log_event(
                    dg.AssetMaterialization(raw.name, metadata=_metadata_of(done, day), partition=day.isoformat())
                )
    yield from checks


def _metadata_of(done: RequestedDays, day: date) -> MetadataMapping:
    if done.summary and done.is_measured(day):
        return collection_metadata(done.summary)
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
        "unknown_limits": markdown(first_bullets(summary.unknown_limits) or "nothing"),
        "unknown_parts": markdown(first_bullets(summary.unknown_parts) or "nothing"),
        "unknown_objects": markdown(first_bullets(summary.unknown_objects) or "nothing"),
    }


def _check_result(measured: CollectionSummary | None, engine: Engine, pages_url: str | None) -> dg.AssetCheckResult:
    """Name the servers that failed in this run; one that measured nothing repeats the newest day and hides none."""
    if measured:
        failing, failed = list(map(str, measured.failures)), measured.failed_instances
        servers = [one.server for one in measured.failures]
        not_measured = f"{counted(failed, 'server')} not measured on {human_day(measured.day)}."
        text = not_measured if failing else "All servers measured."
    else:
        fleet = standing(engine)
        failing, failed = [f"{one.server}: {one.kind}: {one.reason}" for one in fleet.failing], fleet.failed
        servers, text = [one.server for one in fleet.failing], fleet.text
    with database_errors(doing="looking up servers"), engine.connect() as connection:
        numbers = {server: server_id_of(connection, server) for server in servers[:PAGES_LISTED]}
    pages = {name: subject_address("server", number) for name, number in numbers.items() if number is not None}
    listed = first_bullets(failing)
    return check_result(
        SERVERS_MEASURED,
        f"{text}\n\n{listed}" if listed else text,
        listed,
        places=failed,
        is_error=True,
        metadata=pages_metadata(pages, pages_url),
        # One of several assets, so it is named.
        asset=INSTANCE.source.name,
    )


def _slots_result(engine: Engine, today: date, pages_url: str | None) -> dg.AssetCheckResult:
    """Name the replication slots that retain too much by the newest measurements, whatever this run measured."""
    try:
        with database_errors(doing="looking up replication slots"), engine.connect() as connection:
            slots = slots_named_on(connection, today)
    except DatabaseError as error:
        # What was measured is stored, and what follows from it must not wait for this.
        text = f"Not looked at. {error}"
        return check_result(SLOTS_RETAIN_LITTLE, text, "", places=1, is_error=False, asset=server_part_stats.name)
    pages = {slot.server: subject_address("server", slot.server_id) for slot in slots[:PAGES_LISTED]}
    listed = first_bullets([slot.text for slot in slots])
    text = (
        f"{counted(len(slots), 'replication slot')} retaining too much WAL." if slots else "No slot retains too much."
    )
    # The sizes change every day, the incident does not.
    incident = "\n".join(sorted(f"{slot.server}: {slot.slot}" for slot in slots))
    return check_result(
        SLOTS_RETAIN_LITTLE,
        f"{text}\n\n{listed}" if listed else text,
        listed,
        places=len(slots),
        is_error=True,
        metadata={**pages_metadata(pages, pages_url), **({"incident": incident} if incident else {})},
        asset=server_part_stats.name,
    )


RAW_ASSETS = [raw.name for raw in RAW_TABLES]


def collection_job(periods: Mapping[str, Period]) -> UnresolvedAssetJobDefinition:
    """Build the job: measure, then compute the aggregates of the day and issue its runways."""
    followers = [asset_name(periods[FOLLOWING], level) for level in LEVELS.values()] if FOLLOWING in periods else []
    return dg.define_asset_job(
        COLLECTION_JOB,
        [*RAW_ASSETS, *followers, RUNWAY],
        description="Measures every registered server for today, then computes the aggregates of the day and issues "
        "its runways.",
    )


def collection_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Build the schedule: every day, and later in the day once more for servers that failed."""

    @dg.schedule(
        name=COLLECTION_SCHEDULE,
        job_name=COLLECTION_JOB,
        cron_schedule=_crons(settings.collection_hour),
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        required_resource_keys={COLLECTION_RESOURCE},
        description="Measures the registered servers, and later in the day those that failed.",
    )
    def request_today(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        service: CollectionService = getattr(context.resources, COLLECTION_RESOURCE)
        tick = context.scheduled_execution_time.astimezone(settings.zone)
        if tick.date() != service.clock.today():
            return dg.SkipReason(f"{tick.date()} is over; only today can be measured.")
        shares = list(settings.collection_shares) or [""]
        try:
            shares = [name for name in shares if service.left(tick.date(), share_named(name) if name else None)]
        except CapacityError as error:
            # The run waits for the database; a tick that failed would not come back.
            context.log.warning(str(error))
        if not shares:
            return dg.SkipReason(f"No registered server is left to measure on {tick.date()}.")
        return [_request(tick, name, queues=settings.share_queues == "on") for name in shares]

    return request_today


def _request(tick: datetime, share: str, *, queues: bool) -> dg.RunRequest:
    """Request the run of a share, or of all servers where it has no name."""
    key, day = f"{tick:%Y-%m-%dT%H:%M}", tick.date().isoformat()
    if not share:
        return dg.RunRequest(run_key=key, partition_key=day)
    config = dg.RunConfig(ops={STEP: CollectionConfig(share=share)})
    return dg.RunRequest(
        run_key=f"{key} {share}", partition_key=day, run_config=config, tags=share_tags(share, queues=queues)
    )


def share_tags(share: str, *, queues: bool) -> dict[str, str]:
    """Return the tags of the run of a share; with `queues`, one by label goes to a queue of its own."""
    key, _, value = share.partition("=")
    return {SHARE_TAG: share} | ({QUEUE_TAG: f"{key}-{value}"} if queues and value else {})


def _crons(hour: int) -> list[str]:
    later = [str(hour + hours) for hours in HOURS_LATER if hour + hours < HOURS_PER_DAY]
    return [f"{MINUTES} {hour} * * *", *([f"0 {','.join(later)} * * *"] if later else [])]


def level_tags(raw: RawTable) -> dict[str, str]:
    """Return the tag of the level that a raw table feeds, if it feeds one."""
    return {"level": raw.level} if raw.level else {}


def _description(raw: RawTable, source: str, how: str) -> str:
    reader = "Aggregates read the days of their window and of the window before it."
    if raw.level is None:
        reader = "The runway of a day reads the newest of the month before it."
    if not raw.has_forecasts:
        reader = "Pages, digest and checks read the newest of the month before."
    return f"{raw.row}{source}\n\n{how}\n\nA partition is one day. {reader}"


HOW_COLLECTED = """\
Materialising today's partition measures every server registered with `capacity instances`, all raw tables in
one step. Days gone by cannot be measured: those with samples keep them, the others stay missing. A server
that does not answer or refuses counts as failed, with the reason; it has no sample
of the day, and the others are stored. A second run of the day measures those that failed. With
`CAPACITY_COLLECTION=off` another application fills the tables."""
HOW_OBSERVED = (
    "Observing gives the newest days a data version: how many rows there are, their sum, and the last change."
)

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
        description=_description(raw, " Written by another application, or imported.", HOW_OBSERVED),
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
    RAW_ASSETS,
    description="Looks at the newest days of the raw tables, which another application fills. Writes nothing.",
)


def observation_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Build the schedule: every day."""
    description = "Observes the newest days of the raw tables."
    cron = f"0 {settings.collection_hour} * * *"
    return schedule_of(settings, OBSERVATION_SCHEDULE, OBSERVATION_JOB, cron, description)
