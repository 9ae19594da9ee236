"""Running and queued runs, and late and stale windows, for `capacity status` and the screen of `capacity up`.

Dagster's storage is opened so that it creates no tables: looking must not. Which windows are late is decided by the
ledger.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from capacity_assets.aggregation.ledger import PATIENCE_SECONDS, IncompleteWindow
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.periods import Window
from capacity_assets.settings import Settings
from capacity_assets.units import counted, first_of

if TYPE_CHECKING:
    from dagster import DagsterRun
    from dagster_postgres import DagsterPostgresStorage

NAMED_IN_A_LINE = 3
STATES = {
    "STARTED": "at work",
    "STARTING": "at work",
    "CANCELING": "being stopped",
    "QUEUED": "waiting",
    "NOT_STARTED": "waiting",
    "FAILURE": "failed within the hour",
}
FAILED_FOR = timedelta(hours=1)
FARTHEST_ZONE = timedelta(days=1)
HEARTBEAT_SECONDS = 120
LOCATION_SECONDS = 10
# File in Dagster's home that contains the address of the code location.
WORKSPACE = "workspace.yaml"
# The name under which Dagster runs what was launched from assets, not from a job.
ASSET_JOB = "__ASSET_JOB"


@dataclass(frozen=True)
class ActiveRun:
    """A run that has not ended, or failed a short while ago; `since` is when it started, None for one that waits."""

    run_id: str
    job: str
    partitions: str
    state: str
    since: datetime | None


@dataclass(frozen=True)
class Late:
    """Windows of one period and level that should be computed, or computed again, for one reason."""

    period: str
    level: str
    windows: int
    first_window: str
    last_window: str
    reason: str


def active_runs(storage: DagsterPostgresStorage) -> list[ActiveRun]:
    """Return runs that work, wait or failed within the hour, oldest first; raises DBAPIError, also without tables."""
    from dagster import DagsterRunStatus, RunsFilter

    failed = DagsterRunStatus.FAILURE
    begun = [DagsterRunStatus(status) for status in STATES if status != failed.value]
    an_hour_ago = datetime.now(tz=UTC) - FAILED_FOR
    # The times by which Dagster filters are shifted where its PostgreSQL has another time zone than UTC.
    every = [RunsFilter(statuses=begun), RunsFilter(statuses=[failed], updated_after=an_hour_ago - FARTHEST_ZONE)]
    records = [
        record
        for wanted in every
        for record in storage.run_storage.get_run_records(wanted)
        if record.dagster_run.status is not failed or (record.end_time or 0.0) > an_hour_ago.timestamp()
    ]
    return [
        ActiveRun(
            record.dagster_run.run_id[:8],
            "assets" if record.dagster_run.job_name == ASSET_JOB else record.dagster_run.job_name,
            _partitions(record.dagster_run),
            STATES[record.dagster_run.status.value],
            None if record.start_time is None else datetime.fromtimestamp(record.start_time, tz=UTC),
        )
        for record in sorted(records, key=lambda record: record.storage_id)
    ]


def _partitions(run: DagsterRun) -> str:
    first, last = (run.tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end"))
    return run.tags.get("dagster/partition") or (f"{first} to {last}" if first else "none")


def daemon_works(storage: DagsterPostgresStorage) -> bool:
    """Whether a daemon of Dagster, which starts what is scheduled, sent a heartbeat lately; raises as `active_runs`."""
    newest = max((beat.timestamp for beat in storage.run_storage.get_daemon_heartbeats().values()), default=0.0)
    return datetime.now(tz=UTC).timestamp() - newest < HEARTBEAT_SECONDS


def silent_location(settings: Settings) -> str | None:
    """Return a message if the code location does not answer, "" if it answers, None if its address is not known.

    Its address is read from workspace.yaml in Dagster's home.
    """
    from capacity_assets.orchestration.private.serving import (
        DagsterUserCodeUnreachableError,
        GrpcServerCodeLocationOrigin,
        WorkspaceFileTarget,
    )

    workspace = settings.dagster_home / WORKSPACE
    if not os.access(workspace, os.R_OK):
        return None
    for origin in WorkspaceFileTarget(paths=[str(workspace)]).create_origins():
        if not isinstance(origin, GrpcServerCodeLocationOrigin):
            continue
        if origin.socket and _is_of_another_user(origin.socket):
            return None
        try:
            origin.create_client().get_server_id(timeout=LOCATION_SECONDS)
        except DagsterUserCodeUnreachableError:
            return (
                f"The code location at {origin.socket or f'{origin.host}:{origin.port}'} does not answer. Until it "
                "does, no run, schedule or alert starts. End `capacity up` with Ctrl-C and start it again. If systemd "
                "or containers run the code location, restart its unit or container."
            )
    return ""


def _is_of_another_user(socket: str) -> bool:
    try:
        Path(socket).exists()
    except PermissionError:
        return True
    return False


def has_failed(runs: Sequence[ActiveRun]) -> bool:
    """Whether one of the runs failed: it may be the one that followed changed samples."""
    return any(run.state == STATES["FAILURE"] for run in runs)


def late_windows(runner: AggregationTaskRunner, *, followed: bool) -> list[Late]:
    """Return what is due and left, by period, level and reason; raises DatabaseError.

    Where changes are `followed`, those of the last hour make nothing late.
    """
    return _grouped(_left(runner, followed=followed))


def late_and_stale_windows(runner: AggregationTaskRunner, *, followed: bool) -> tuple[list[Late], list[Late]]:
    """Return the late windows, like `late_windows`, and the other computed windows that are out of date."""
    left = _left(runner, followed=followed)
    late = {(name, level, found.window) for name, level, found in left}
    outdated = runner.inspection.outdated_windows()
    return _grouped(left), _grouped([found for found in outdated if (*found[:2], found[2].window) not in late])


def _left(runner: AggregationTaskRunner, *, followed: bool) -> list[tuple[str, str, IncompleteWindow]]:
    patience_seconds = PATIENCE_SECONDS if followed else 0
    return [
        (name, level, found)
        for name in runner.service.period_names
        for level in LEVELS
        for found in runner.inspection.incomplete_windows(
            runner.service.period(name), level, patience_seconds=patience_seconds
        )
    ]


def _grouped(found: Sequence[tuple[str, str, IncompleteWindow]]) -> list[Late]:
    """Group windows by period, level and reason."""
    together: dict[tuple[str, str, str], list[Window]] = {}
    for name, level, one in found:
        together.setdefault((name, level, one.reason), []).append(one.window)
    return [
        Late(name, level, len(windows), min(windows).key, max(windows).key, reason)
        for (name, level, reason), windows in together.items()
    ]


def activity_text(runs: Sequence[ActiveRun], late: Sequence[Late] | None) -> str:
    """Say in one line what runs, waits and is late."""
    jobs = {state: [f"{run.job} ({run.partitions})" for run in runs if run.state == state] for state in STATES.values()}
    parts = [f"{state}: {first_of(names, NAMED_IN_A_LINE)}" for state, names in jobs.items() if names] or [
        "no run works or waits"
    ]
    windows = sum(found.windows for found in late or ())
    on_time = "nothing is late" if late is not None else "what is late cannot be read, see `capacity check`"
    parts.append(f"late: {counted(windows, 'window')}, see `capacity status`" if windows else on_time)
    return "; ".join(parts)
