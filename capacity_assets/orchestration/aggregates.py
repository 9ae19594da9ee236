"""The aggregates in the graph: one partitioned asset per period and level, one job and one schedule per period.

Assets are thin: windows from the partition keys, one call of the task runner, the summary to `metadata`. A job runs all
levels of a period in one run. Each period has its own job, because Dagster does not allow a job over different
partitions. A schedule runs on the day on which a window is due, and computes its window from the scheduled time, never
from the clock. After a downtime, Dagster evaluates only the last missed tick (measured on 1.13.27), so a tick also
requests the windows since the last one that its schedule requested.

A sensor requests runs for exactly the windows that late or corrected samples affect. It has no state: the ledger lists
the computed windows that have not followed a change, and a successful run removes its windows from this list, so no
change is lost by a restart, and no window is requested forever. Another sensor marks the partitions of windows that the
command line, the task functions or another deployment computed, because Dagster knows a partition only by its
materialisations.

The partitions of the tables are an asset too: each materialisation adds future ones and applies retention, and reports
what was added, moved, dropped and kept, and why. It also deletes old check records of Dagster.

Most checks are part of an asset's own computation, so that they know which windows were written. Each partition has its
own result, also in a range run. A check of severity error also corrects the results of other partitions: a wrong
partition fails, whatever program computed it, and a corrected partition passes. The standing check searches for
incomplete windows, after every run and once a day in a separate job. Only the daily one sends alerts, because during a
backfill windows are missing after every run but the last.
"""

import hashlib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any

import dagster as dg
from pydantic import Field

from capacity_assets.aggregates.checks import PARTITIONS_COMPLETE, CheckOutcome, CheckSeverity, checks_of
from capacity_assets.aggregates.figures import fingerprint
from capacity_assets.aggregates.ledger import StaleWindow
from capacity_assets.aggregates.levels import INSTANCE, LEVELS, SERVER_LEVELS, Level
from capacity_assets.aggregates.runs import RunOptions, RunSummary
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.periods import Period, Window, adjacent_spans
from capacity_assets.base.settings import LONGEST_SETTLING
from capacity_assets.base.trend import trend_rule
from capacity_assets.history.retention import MaintenanceError, MaintenanceReport
from capacity_assets.orchestration.checks import (
    SAMPLES_RECENT,
    STANDING_CHECK_JOB,
    partitions_complete_check,
    result_of,
)
from capacity_assets.orchestration.collection import COLLECTION_JOB
from capacity_assets.orchestration.graph import (
    MARKING_SECONDS,
    Graph,
    Requests,
    Services,
    asset_name,
    dagster_failures,
    job_name,
    marking_result,
    pool_name,
    schedule_name,
)
from capacity_assets.orchestration.metadata import (
    MetadataMapping,
    aggregate_metadata,
    failure_metadata,
    first_bullets,
    markdown,
    plain,
    summary_metadata,
)
from capacity_assets.orchestration.partitions import (
    PARTITIONS_PER_RUN,
    bounded_spans,
    days_behind_a_window,
    run_request,
    windows_of,
)
from capacity_assets.orchestration.private import (
    ASSET_PARTITION_RANGE_END_TAG,
    IN_PROGRESS_RUN_STATUSES,
    PARTITION_NAME_TAG,
    SCHEDULE_NAME_TAG,
    SENSOR_NAME_TAG,
    OwnedJob,
    evaluate_partitions,
    failing_partitions,
    purge_check_records,
)
from capacity_assets.reading.changes import window_sizes

LATE_DATA_SENSOR, COMPUTED_WINDOWS_SENSOR = "late_data_sensor", "computed_windows_sensor"
STANDING_CHECK_SCHEDULE = "standing_check_schedule"
STANDING_CHECK_MINUTE = 45
INTERVAL_SECONDS = 30
# At most one run of missed windows is requested. A person can backfill a longer gap.
MOST_CAUGHT_UP = PARTITIONS_PER_RUN
RUNS_LOOKED_AT = 200
# Scattered days beyond this many stretches are requested in ranges that include the windows between them, so that a
# flood of corrections stays a bounded number of runs. The windows between are found unchanged, or computed if missing.
EXACT_SPANS = 10
TAGS = {"capacity/reason": "samples changed"}
ORIGIN_OF_WINDOWS = "computed outside this Dagster: by the command line, a task function, or another deployment"
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def aggregate_definitions(graph: Graph) -> dg.Definitions:
    """Return the assets, checks, jobs, schedules and sensors of the aggregates."""
    periods = graph.periods.values()
    jobs = [
        graph.job(
            job_name(period),
            [asset_name(period, level) for level in LEVELS.values()],
            f"Aggregate {period.name} windows: databases, servers and groups in one run.",
            tags={"period": period.name},
        )
        for period in periods
    ]
    standing_checks = [
        *(dg.AssetCheckKey(graph.key(level.source.name), SAMPLES_RECENT) for level in SERVER_LEVELS.values()),
        *(
            dg.AssetCheckKey(graph.key(asset_name(period, level)), PARTITIONS_COMPLETE)
            for period in periods
            for level in LEVELS.values()
        ),
    ]
    standing_job = graph.job(
        STANDING_CHECK_JOB,
        dg.AssetSelection.checks(*standing_checks),
        "Look for failed or missing partitions and for samples that stopped arriving, and say how to recover. "
        "Computes nothing.",
    )
    return dg.Definitions(
        assets=[aggregate_asset(graph, period, level) for period in periods for level in LEVELS.values()],
        asset_checks=[partitions_complete_check(graph, period) for period in periods],
        jobs=[*jobs, standing_job],
        schedules=[
            *(aggregation_schedule(graph, period) for period in periods),
            graph.schedule(
                STANDING_CHECK_SCHEDULE,
                STANDING_CHECK_JOB,
                # Late enough for the day's runs to have ended.
                graph.daily(STANDING_CHECK_MINUTE),
                "Looks once a day for failed or missing partitions and for samples that stopped arriving.",
            ),
        ],
        sensors=[late_data_sensor(graph, jobs), computed_windows_sensor(graph)],
    )


class AggregationConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    overwrite: bool = Field(
        default=False,
        description="Rebuild the windows exactly: replace protected rows and remove rows that the raw data no longer "
        "supports. If off, stored history is never replaced by a row built from fewer samples.",
    )
    recompute: bool = Field(
        default=False,
        description="Also compute windows that have not changed since they were computed. If off, these are "
        "reported as unchanged without being read.",
    )


def aggregate_asset(graph: Graph, period: Period, level: Level) -> dg.AssetsDefinition:
    """Build the asset of a period and level."""
    name = asset_name(period, level)

    @graph.asset(
        name,
        period,
        description=_description(period, level),
        group_name=period.name,
        code_version=code_version(level, period),
        deps=_made_of(graph, period, level),
        pool=pool_name(period),
        kinds={"postgres", "sql"},
        tags={"period": period.name, "level": level.name},
        metadata=aggregate_metadata(level, graph.key(level.source.name)),
        check_specs=[
            dg.AssetCheckSpec(check, asset=graph.key(name), description=text, partitions_def=graph.partitions(period))
            for check, text in checks_of(level)
        ],
        freshness_policy=graph.freshness(period),
        # The servers' totals are computed first, because a partition of the databases shows the fleet by them.
        op_tags={"dagster/priority": "1" if level is INSTANCE else "0"},
    )
    def aggregate(context: dg.AssetExecutionContext, config: AggregationConfig) -> Iterator[Any]:
        runner = Services.of(context).runner
        windows = windows_of(period, context.partition_keys)
        options = RunOptions(levels=(level.name,), overwrite=config.overwrite, recompute=config.recompute)
        with dagster_failures():
            summary = runner.run_period(period, windows, options)
            _refuse_a_run_without_success(summary)
            sizes = window_sizes(runner.service.engine, period, level, windows)
            for part in summary.summaries:
                key = part.period_start
                metadata = summary_metadata(part, sizes[key], graph.settings.pages_url)
                context.add_asset_metadata(metadata, partition_key=key.isoformat())
            outcomes = runner.run_checks(summary, level.name)
        yield dg.MaterializeResult()
        yield from evaluate_partitions(context, _results(context, outcomes))

    return aggregate


def _results(
    context: dg.AssetExecutionContext, outcomes: Iterable[CheckOutcome]
) -> dict[str, list[dg.AssetCheckResult]]:
    """Return the results of the run's partitions, and of other partitions whose recorded result is wrong now."""
    by_check: dict[str, dict[str, CheckOutcome]] = {}
    for outcome in outcomes:
        by_check.setdefault(outcome.name, {})[str(outcome.period_start)] = outcome
    ours = context.partition_keys
    results: dict[str, list[dg.AssetCheckResult]] = {key: [] for key in ours}
    for check, of_check in by_check.items():
        example = next(iter(of_check.values()))
        failing = failing_partitions(context, check) if example.severity is CheckSeverity.ERROR else set()
        mended = {key: replace(example, places=0, listed=(), incident=None) for key in failing - set(of_check)}
        for key, outcome in (of_check | mended).items():
            if key in ours or (key in failing) == outcome.passed:
                span = {"first_partition": key, "last_partition": key}
                results.setdefault(key, []).append(result_of(outcome, span))
    return results


def _made_of(graph: Graph, period: Period, level: Level) -> list[dg.AssetDep]:
    """Return the upstream of an asset: samples of its days; for groups, the aggregates of the same windows."""
    if level.has_servers:
        return [dg.AssetDep(graph.key(level.source.name), partition_mapping=days_behind_a_window())]
    return [dg.AssetDep(graph.key(asset_name(period, other))) for other in SERVER_LEVELS.values()]


def code_version(level: Level, period: Period) -> str:
    """Return a value that changes with the arithmetic: twelve hexadecimal digits."""
    return fingerprint(level, period, ())[:12]


def _refuse_a_run_without_success(summary: RunSummary) -> None:
    if summary.everything_failed:
        raise dg.Failure(
            description=f"{summary.message} Stored rows were kept as they were. Fix the named servers' "
            "samples, then run these partitions again.",
            metadata=failure_metadata(summary),
            allow_retries=False,
        )


SUBJECTS = {
    "database": (
        "database",
        "Total, data, log and used size: mean (rounded down), largest, smallest, change.",
    ),
    "instance": (
        "server",
        "Total size and number of databases, summed per day first: mean, largest, smallest, change.",
    ),
    "group": (
        "group (engine, team, ...)",
        "Size, servers and databases, summed per day by the labels of that day: mean, largest, smallest, change.",
    ),
}
"""The subject of a row at each level, and its figures."""


def _description(period: Period, level: Level) -> str:
    subject, figures = SUBJECTS[level.name]
    return textwrap.dedent(f"""\
        How each {subject} developed, one row per {period.name} window.

        Rows lie in `{level.target.name}` with `period_type = '{period.name}'`. A partition is a window; its key is
        the first day. {figures}

        - *Change* and *growth* compare exact means with those of the previous window; unknown is null, not zero.
        - *Trend*: {trend_rule(f"{period.trend_percent} %")}
          (`CAPACITY_TREND_PERCENT` sets another threshold).
        - Running a window again over unchanged samples writes nothing. Rows built from more samples than the
          raw data still holds are protected; the run option `overwrite` rebuilds the window exactly.
        - A server without samples in the window counts as skipped, one whose data cannot be stored as failed;
          neither keeps the others from being written.""")


def aggregation_schedule(graph: Graph, period: Period) -> dg.ScheduleDefinition:
    """Build the schedule of a period."""
    which = "that holds the day" if period.scheduled_current else "just closed"
    name = schedule_name(period)
    first = period.window_of(graph.settings.start_date)

    def request_windows(context: dg.ScheduleEvaluationContext, moment: datetime) -> Requests:
        due = period.scheduled(moment.date())
        if due.start < first.start:
            return dg.SkipReason(f"The window {due.key} is before the first partition, {first.key}.")
        before = _last_requested_before(context.instance, name, due.start)
        windows = [due]
        if before is not None:
            # Partitions may begin later than when it was requested.
            missed = period.windows_between(max(before, first.start), due.start)
            windows = [window for window in missed if window.start > before]
        if len(windows) > MOST_CAUGHT_UP:
            context.log.warning(
                f"{len(windows)} windows were missed; the newest {MOST_CAUGHT_UP} are requested. "
                f"Backfill those from {windows[0].key} to {windows[-MOST_CAUGHT_UP - 1].key}."
            )
        return run_request(due.key, windows[-MOST_CAUGHT_UP:])

    return graph.schedule(
        name,
        job_name(period),
        period.cron_at(graph.settings.schedule_hour),
        f"Aggregates the {period.name} window {which}, databases, servers and groups in one run; "
        f"after a downtime also those missed, at most {MOST_CAUGHT_UP}.",
        request_windows,
    )


def _last_requested_before(instance: dg.DagsterInstance, name: str, due: date) -> date | None:
    """Return the newest window before `due` that a run of the schedule itself was requested for.

    A run that was created but never submitted (the daemon died in between) does not count, nor does a
    re-execution, which carries the tags of the old run. The window that is due now does not count either: a
    tick evaluated again must request the same, and the run key sees to it that it runs once.
    """
    runs = instance.get_runs(dg.RunsFilter(tags={SCHEDULE_NAME_TAG: name}), limit=RUNS_LOOKED_AT)
    submitted = [run for run in runs if run.status is not dg.DagsterRunStatus.NOT_STARTED and run.parent_run_id is None]
    keys = [run.tags.get(PARTITION_NAME_TAG) or run.tags.get(ASSET_PARTITION_RANGE_END_TAG) for run in submitted]
    windows = [date.fromisoformat(key) for key in keys if key]
    return max((window for window in windows if window < due), default=None)


def late_data_sensor(graph: Graph, jobs: Sequence[OwnedJob]) -> dg.SensorDefinition:
    """Build the sensor over the jobs of all periods."""

    @graph.sensor(
        LATE_DATA_SENSOR,
        INTERVAL_SECONDS,
        "Requests runs that recompute the windows whose samples arrived late or were corrected, and the later windows "
        "that are compared with them.",
        jobs=jobs,
    )
    def request_stale_windows(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        with dagster_failures():
            stale = Services.of(context).runner.stale_windows()
        if not stale:
            return dg.SkipReason("Every computed window is up to date.")
        moving = {window.period_type for window in stale if not is_settled(window, graph.settings.settle_seconds)}
        names = [name for name in dict.fromkeys(window.period_type for window in stale) if name not in moving]
        waiting = [name for name in names if _is_at_work(context.instance, graph.periods[name])]
        requests = [
            request
            for name in names
            if name not in waiting
            for request in run_requests(graph, name, [window for window in stale if window.period_type == name])
        ]
        reasons = {"samples are still being written": moving, "the runs requested before are not done yet": waiting}
        sentences = [f"{reason} ({', '.join(sorted(held))})" for reason, held in reasons.items() if held]
        return requests or dg.SkipReason("; ".join(sentences))

    return request_stale_windows


def is_settled(stale: StaleWindow, settle_seconds: int) -> bool:
    """Whether samples have been quiet since the last change, or have been changing for too long to wait.

    Without this wait, a collection that commits server by server for an hour would have its windows computed all that
    time.
    """
    return stale.quiet_seconds >= settle_seconds or stale.waiting_seconds >= settle_seconds * LONGEST_SETTLING


def _is_at_work(instance: dg.DagsterInstance, period: Period) -> bool:
    """Whether a run requested by this sensor is queued or running; until it ends, changes wait for a later tick."""
    tags = {SENSOR_NAME_TAG: LATE_DATA_SENSOR}
    return bool(instance.get_run_ids(dg.RunsFilter(job_name=job_name(period), statuses=UNFINISHED, tags=tags), limit=1))


def run_requests(graph: Graph, name: str, stale: Sequence[StaleWindow]) -> Iterator[dg.RunRequest]:
    """Request the windows of a period in few runs.

    The key contains the changes, so that a tick evaluated again requests nothing twice, and the hour, so that windows
    whose run failed are tried again in the next hour.
    """
    period, hour = graph.periods[name], f"{graph.clock.local_now():%Y-%m-%dT%H}"
    for levels, together, changes in _groups(stale):
        assets = [graph.key(asset_name(period, LEVELS[level])) for level in levels]
        for windows in _ranges(period, together):
            key = "/".join([name, *levels, windows[0].key, windows[-1].key, changes, hour])
            yield run_request(key, windows, job_name=job_name(period), asset_selection=assets, tags=TAGS)


def _groups(stale: Iterable[StaleWindow]) -> Iterator[tuple[tuple[str, ...], list[Window], str]]:
    """Yield levels, the windows of a period that are stale at exactly these levels, and a token of their changes."""
    changes: dict[Window, dict[str, int]] = {}
    for stale_window in stale:
        changes.setdefault(stale_window.window, {})[stale_window.level] = stale_window.wanted
    groups: dict[tuple[str, ...], list[Window]] = {}
    for window in sorted(changes):
        groups.setdefault(tuple(sorted(changes[window])), []).append(window)
    for levels, windows in sorted(groups.items()):
        listed = " ".join(f"{window.key}:{changes[window][level]}" for window in windows for level in levels)
        yield levels, windows, hashlib.sha256(listed.encode()).hexdigest()[:16]


def _ranges(period: Period, windows: Sequence[Window]) -> list[Sequence[Window]]:
    """Cut windows into ranges of at most one run's worth: exact stretches, or fewer that bridge gaps."""
    spans: list[Sequence[Window]] = [*adjacent_spans(windows)]
    if len(spans) > EXACT_SPANS:
        spans = [period.windows_between(windows[0].start, windows[-1].end)]
    return [run for run in bounded_spans(spans) if not set(windows).isdisjoint(run)]


def computed_windows_sensor(graph: Graph) -> dg.SensorDefinition:
    """Build the sensor that marks the partitions of windows that were computed elsewhere."""
    ours = {graph.key(asset_name(period, level)) for period in graph.periods.values() for level in LEVELS.values()}
    jobs = {COLLECTION_JOB, *map(job_name, graph.periods.values())}

    @graph.sensor(
        COMPUTED_WINDOWS_SENSOR,
        MARKING_SECONDS,
        "Marks the partitions of the aggregates whose windows were computed outside this Dagster.",
    )
    def mark_windows(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        at_work = context.instance.get_runs(dg.RunsFilter(statuses=list(IN_PROGRESS_RUN_STATUSES)))
        if any(run.job_name in jobs or ours & set(run.asset_selection or ()) for run in at_work):
            # A run marks its own windows at its end, so they must not be marked before.
            return dg.SkipReason("A run is under way.")
        runner = Services.of(context).runner
        with dagster_failures():
            last = runner.last_computation()
        if context.cursor == last:
            return dg.SkipReason("Nothing was computed since.")
        result = marking_result(_unmarked_windows(graph, context.instance, runner), "Every computed window is marked.")
        if isinstance(result, dg.SkipReason):
            context.update_cursor(last)
        return result

    return mark_windows


def _unmarked_windows(
    graph: Graph, instance: dg.DagsterInstance, runner: AggregationTaskRunner
) -> Iterator[dg.AssetMaterialization]:
    """Yield a materialisation for each asset and computed window that has none yet; raises DatabaseError."""
    for period in graph.periods.values():
        for level in LEVELS.values():
            key = graph.key(asset_name(period, level))
            known = instance.get_materialized_partitions(key)
            for computed in runner.computed_windows(period, level.name):
                if computed.window.key not in known:
                    metadata = plain({"origin": ORIGIN_OF_WINDOWS, **vars(computed)})
                    yield dg.AssetMaterialization(key, partition=computed.window.key, metadata=metadata)


TABLE_PARTITIONS = "table_partitions"
MAINTENANCE_GROUP = "maintenance"
MAINTENANCE_JOB, MAINTENANCE_SCHEDULE = "table_maintenance_job", "table_maintenance_schedule"
MAINTENANCE_MINUTE = 30
MAINTENANCE_LINES_SHOWN = 50

MAINTENANCE_DESCRIPTION = """\
The partitions of the capacity tables, and the retention of their rows.

A materialisation adds the partitions of the next two months (from November on, of the next year), moves rows out of
the default partitions, and drops partitions whose rows are older than `CAPACITY_RETENTION_DAYS` allows. Samples are
dropped only after every window that reads them is over and computed from the present samples. Unused check records in
Dagster's own storage are deleted. If today's date may be wrong, nothing is dropped, and the
run fails if a partition was due. `dry_run` only reports what would be done.
"""


class MaintenanceConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    dry_run: bool = Field(default=False, description="Only report what would be done; nothing is changed.")


def maintenance_definitions(graph: Graph) -> dg.Definitions:
    """Return the asset, its job and its schedule."""

    @graph.asset(
        TABLE_PARTITIONS, None, description=MAINTENANCE_DESCRIPTION, group_name=MAINTENANCE_GROUP, kinds={"postgres"}
    )
    def maintain(context: dg.AssetExecutionContext, config: MaintenanceConfig) -> dg.MaterializeResult[None]:
        with dagster_failures():
            try:
                report = Services.of(context).retention.maintain(dry_run=config.dry_run)
            except MaintenanceError as error:
                done = maintenance_metadata(error.report)
                raise dg.Failure(description=str(error), metadata=done, allow_retries=error.transient) from None
            events = context.instance.event_log_storage
            report.purged_check_records = purge_check_records(events, dry_run=config.dry_run)
        return dg.MaterializeResult(metadata=maintenance_metadata(report))

    job = graph.job(MAINTENANCE_JOB, [TABLE_PARTITIONS], "Adds partitions ahead of time and drops expired ones.")
    schedule = graph.schedule(
        MAINTENANCE_SCHEDULE,
        MAINTENANCE_JOB,
        # Late enough for the day's aggregates to have been computed.
        graph.daily(MAINTENANCE_MINUTE),
        "Keeps partitions ahead and applies CAPACITY_RETENTION_DAYS, once a day.",
    )
    return dg.Definitions(assets=[maintain], jobs=[job], schedules=[schedule])


def maintenance_metadata(report: MaintenanceReport) -> MetadataMapping:
    """Return the counts, which plot over time, and the lists as one text."""
    values = report.to_dict()
    lists = {
        key: first_bullets(lines, MAINTENANCE_LINES_SHOWN) for key, lines in values.items() if isinstance(lines, list)
    }
    return {**plain(values), **{key: markdown(listed or "none") for key, listed in lists.items()}}
