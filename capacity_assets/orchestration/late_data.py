"""Late and corrected samples: the sensor that requests runs for exactly the windows they affect.

It keeps no state of its own. The ledger says which computed windows have not followed a change; a run that succeeds
takes its windows off that list, so nothing is lost by a restart and nothing is requested for ever. Which
windows follow from a changed day is decided in `storage.changes`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import dagster as dg

from capacity_assets.aggregation.ledger import StaleWindow
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.clock import Clock
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.orchestration.jobs import run_request
from capacity_assets.orchestration.naming import asset_name, job_name
from capacity_assets.orchestration.partitions import PARTITIONS_PER_RUN
from capacity_assets.orchestration.private.definitions import SENSOR_NAME_TAG, UnresolvedAssetJobDefinition
from capacity_assets.orchestration.resources import AGGREGATION_RESOURCE
from capacity_assets.periods import Period, Window, adjacent_spans
from capacity_assets.variables import LONGEST_SETTLING

LATE_DATA_SENSOR = "late_data_sensor"
INTERVAL_SECONDS = 30
# Scattered days beyond this many stretches go in ranges that include the windows between: those are found
# unchanged, or computed where they never were, and a flood of corrections stays a bounded number of runs.
EXACT_SPANS = 10
TAGS = {"capacity/reason": "samples changed"}
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def late_data_sensor(
    jobs: Sequence[UnresolvedAssetJobDefinition], periods: Mapping[str, Period], clock: Clock, settle_seconds: int
) -> dg.SensorDefinition:
    """Build the sensor over the jobs of all periods; it runs from the first start on, until switched off in the UI."""

    @dg.sensor(
        name=LATE_DATA_SENSOR,
        jobs=jobs,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={AGGREGATION_RESOURCE},
        description="Requests runs that recompute the windows whose samples arrived late or were corrected, and the "
        "later windows that are compared with them.",
    )
    def request_stale_windows(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        runner: AggregationTaskRunner = getattr(context.resources, AGGREGATION_RESOURCE)
        with dagster_failures():
            stale = runner.inspection.stale_windows()
        if not stale:
            return dg.SkipReason("Every computed window is up to date.")
        moving = {found.period_type for found in stale if not _has_settled(found, settle_seconds)}
        names = [name for name in dict.fromkeys(found.period_type for found in stale) if name not in moving]
        waiting = [name for name in names if _is_at_work(context.instance, periods[name])]
        now = clock.local_now()
        requests = [
            request
            for name in names
            if name not in waiting
            for request in _requests(periods[name], [found for found in stale if found.period_type == name], now)
        ]
        reasons = {"samples are still being written": moving, "the runs requested before are not done yet": waiting}
        sentences = [f"{reason} ({', '.join(sorted(held))})" for reason, held in reasons.items() if held]
        return requests or dg.SkipReason("; ".join(sentences))

    return request_stale_windows


def _has_settled(stale: StaleWindow, settle_seconds: int) -> bool:
    """Whether samples have been quiet since the last change, or have been changing for too long to wait.

    Without it, a collection that commits server by server for an hour would have its windows computed all that time.
    """
    return stale.quiet_seconds >= settle_seconds or stale.waiting_seconds >= settle_seconds * LONGEST_SETTLING


def _is_at_work(instance: dg.DagsterInstance, period: Period) -> bool:
    """Whether a run requested by this sensor is queued or running; meanwhile changes are left to the next tick."""
    tags = {SENSOR_NAME_TAG: LATE_DATA_SENSOR}
    return bool(instance.get_run_ids(dg.RunsFilter(job_name=job_name(period), statuses=UNFINISHED, tags=tags), limit=1))


def _requests(period: Period, stale: Sequence[StaleWindow], now: datetime) -> Iterator[dg.RunRequest]:
    """Request the windows in few runs.

    The key holds the changes, so that a tick evaluated again requests nothing twice, and the hour, so that windows
    whose run failed are tried again in the next one.
    """
    for levels, together, changes in _groups(stale):
        assets = [dg.AssetKey(asset_name(period, LEVELS[level])) for level in levels]
        for windows in _ranges(period, together):
            key = [period.name, *levels, windows[0].key, windows[-1].key, changes]
            yield run_request(
                "/".join([*key, f"{now:%Y-%m-%dT%H}"]), windows, job=job_name(period), assets=assets, tags=TAGS
            )


def _groups(stale: Iterable[StaleWindow]) -> list[tuple[tuple[str, ...], tuple[Window, ...], str]]:
    """Levels, the windows of one period that are stale at just these, and a token that any further change changes."""
    changes: dict[Window, dict[str, int]] = {}
    for found in stale:
        changes.setdefault(found.window, {})[found.level] = found.wanted
    groups: dict[tuple[str, ...], list[Window]] = {}
    for window in sorted(changes):
        groups.setdefault(tuple(sorted(changes[window])), []).append(window)
    return [
        (levels, tuple(windows), _token([(window, changes[window][level]) for window in windows for level in levels]))
        for levels, windows in sorted(groups.items())
    ]


def _token(changes: Sequence[tuple[Window, int]]) -> str:
    listed = " ".join(f"{window.key}:{wanted}" for window, wanted in changes)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _ranges(period: Period, windows: Sequence[Window]) -> list[Sequence[Window]]:
    """Cut windows into ranges of at most one run's worth: exact stretches, or fewer that bridge gaps."""
    spans: list[Sequence[Window]] = [*adjacent_spans(windows)]
    if len(spans) > EXACT_SPANS:
        spans = [period.windows_between(windows[0].start, windows[-1].end)]
    runs = [
        span[first : first + PARTITIONS_PER_RUN] for span in spans for first in range(0, len(span), PARTITIONS_PER_RUN)
    ]
    wanted = set(windows)
    return [run for run in runs if not wanted.isdisjoint(run)]
