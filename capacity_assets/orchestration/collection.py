"""The raw tables as assets that are measured; where another application fills them, see `observation`.

One step for all of them, today's partition only, every failed server in the metadata and in a check.
The job also computes the day's aggregates, which so follow when the measuring is done. How servers are measured is
the business of `collection`.
"""

import textwrap
from collections.abc import Iterator, Mapping
from datetime import date, datetime

import dagster as dg
from pydantic import Field
from sqlalchemy import Engine

from capacity_assets.collection.results import CollectionSummary
from capacity_assets.collection.service import CollectionService
from capacity_assets.collection.shares import share_named
from capacity_assets.collection.standing import standing
from capacity_assets.errors import CapacityError
from capacity_assets.foundation.levels import INSTANCE, LEVELS
from capacity_assets.foundation.raw_tables import RAW_TABLES, RawTable
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.orchestration.metadata import MetadataMapping, bullets, first_bullets, table_metadata, typed
from capacity_assets.orchestration.naming import OWNERS, asset_name
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN, sample_days
from capacity_assets.orchestration.pools import COLLECTION_POOL
from capacity_assets.orchestration.private.definitions import UnresolvedAssetJobDefinition
from capacity_assets.orchestration.requested_days import RequestedDays, measure_requested
from capacity_assets.orchestration.resources import COLLECTION_RESOURCE
from capacity_assets.orchestration.runways import RUNWAY
from capacity_assets.periods import Period
from capacity_assets.setting_values import HOURS_PER_DAY
from capacity_assets.settings import Settings
from capacity_assets.units import counted

RAW_GROUP = "raw"
STEP = "collection"
SHARE_TAG = "capacity/share"
"""Tag of a run that measures a share: what routes it to a place, such as a queue, can go by it."""
QUEUE_TAG = "dagster-celery/queue"
"""Read by dagster-celery, which is optional."""
COLLECTION_JOB, COLLECTION_SCHEDULE = "collection_job", "collection_schedule"
SERVERS_MEASURED = "servers_measured"
SERVERS_MEASURED_DESCRIPTION = "Every server that is registered for collection was measured on this day."
# Those that failed are measured once more half an hour later, and three times in the day: one that was down at night,
# or a fleet whose samples were being imported, still gets its day.
MINUTES = (0, 30)
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
            description=_collected_description(raw),
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
            dg.AssetCheckSpec(SERVERS_MEASURED, asset=INSTANCE.source.name, description=SERVERS_MEASURED_DESCRIPTION)
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
            check = _check_result(measured, service.engine)
        if done.summary and len(done.days) == 1 and done.missing:
            _refuse_a_day_without_samples(done.summary)
        if done.missing:
            yield from _reported_day_by_day(context, done, check)
            return
        for raw in RAW_TABLES:
            for day in done.days:
                context.add_asset_metadata(_metadata_of(done, day), raw.name, partition_key=day.isoformat())
            results = [check] if raw.table is INSTANCE.source else []
            yield dg.MaterializeResult(asset_key=raw.name, check_results=results)

    return collection


def _reported_day_by_day(
    context: dg.AssetExecutionContext, done: RequestedDays, check: dg.AssetCheckResult
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
                context.log_event(
                    dg.AssetMaterialization(raw.name, metadata=_metadata_of(done, day), partition=day.isoformat())
                )
    yield check


def _metadata_of(done: RequestedDays, day: date) -> MetadataMapping:
    if done.summary and done.is_measured(day):
        return collection_metadata(done.summary)
    message = f"{day} is not measured again; its samples were kept as they are."
    return typed({"status": "kept", "collected_date": day.isoformat(), "message": message})


def _refuse_a_day_without_samples(summary: CollectionSummary) -> None:
    """Raise dagster.Failure where nothing was measured, so that nothing downstream takes the day as measured."""
    if summary.is_empty:
        raise dg.Failure(description=summary.message, metadata=collection_metadata(summary), allow_retries=False)


def collection_metadata(summary: CollectionSummary) -> MetadataMapping:
    """Turn a summary into metadata: flat, and numbers where they are numbers."""
    left_out = (f"{name} on {counted(servers, 'server')}" for name, servers in summary.left_out.items())
    return {
        **typed(summary.to_dict()),
        "errors": dg.MetadataValue.md(first_bullets(_failures(summary)) or "none"),
        "not_counted": dg.MetadataValue.md(first_bullets(summary.not_counted) or "nothing"),
        "left_out": dg.MetadataValue.md(bullets(left_out, hidden=0) or "nothing"),
        "unknown_limits": dg.MetadataValue.md(first_bullets(summary.unknown_limits) or "nothing"),
    }


def _failures(summary: CollectionSummary) -> list[str]:
    return list(map(str, summary.failures))


def _check_result(measured: CollectionSummary | None, engine: Engine) -> dg.AssetCheckResult:
    """Name the servers that failed in this run; one that measured nothing repeats the newest day and hides none."""
    if measured:
        failing, failed = _failures(measured), measured.failed_instances
        text = f"Not measured on {measured.day}: {failed}." if failing else "Every server was measured."
    else:
        found = standing(engine)
        failing, failed = [f"{one.server}: {one.kind}: {one.reason}" for one in found.failing], found.failed
        text = found.text
    listed = first_bullets(failing)
    return dg.AssetCheckResult(
        check_name=SERVERS_MEASURED,
        # One of two assets, so it is named.
        asset_key=INSTANCE.source.name,
        passed=not failing,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{text}\n\n{listed}" if listed else text,
        metadata={"places": failed, "found": dg.MetadataValue.md(listed or "nothing")},
    )


def collection_job(periods: Mapping[str, Period]) -> UnresolvedAssetJobDefinition:
    """Build the job: measure, then compute the aggregates of the day and issue its runways."""
    followers = [asset_name(periods[FOLLOWING], level) for level in LEVELS.values()] if FOLLOWING in periods else []
    followers.append(RUNWAY)
    return dg.define_asset_job(
        COLLECTION_JOB,
        selection=dg.AssetSelection.assets(*(raw.name for raw in RAW_TABLES), *followers),
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
    later = [hour + hours for hours in HOURS_LATER if hour + hours < HOURS_PER_DAY]
    crons = [f"{','.join(map(str, MINUTES))} {hour} * * *"]
    return crons + ([f"0 {','.join(map(str, later))} * * *"] if later else [])


def level_tags(raw: RawTable) -> dict[str, str]:
    """Return the tag of the level that a raw table feeds, if it feeds one."""
    return {"level": raw.level} if raw.level else {}


READERS = {
    False: "Aggregates read the days of their window and of the window before it.",
    True: "The runway of a day reads the newest of the month before it.",
}
"""What reads a raw table, by whether it holds limits."""


def _collected_description(raw: RawTable) -> str:
    return textwrap.dedent(f"""\
        {raw.row}

        Materialising today's partition measures every server registered with `capacity instances`, all raw tables in
        one step. Days gone by cannot be measured: those with samples keep them, the others stay missing. A server
        that does not answer or refuses counts as failed, with the reason; it has no sample
        of the day, and the others are stored. A second run of the day measures those that failed. With
        `CAPACITY_COLLECTION=off` another application fills the tables.

        A partition is one day. {READERS[raw.level is None]}""")
