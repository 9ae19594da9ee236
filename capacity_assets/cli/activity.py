"""What runs, what waits, what is late: for `capacity status` and the screen of `capacity up`.

Runs are read from Dagster's own table, because opening its instance would create tables, and reading must not.
Which windows are late is decided by the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

from sqlalchemy import Engine, inspect, text

from capacity_assets.aggregation.ledger import PATIENCE_SECONDS
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.foundation.levels import LEVELS
from capacity_assets.runtime import open_dagster_storage
from capacity_assets.settings import Settings
from capacity_assets.units import counted, first_of

_RUNS = """
SELECT r.run_id, r.pipeline_name AS job, r.status,
       r.start_time AS since,
       max(t.value) FILTER (WHERE t.key = 'dagster/partition') AS partition,
       max(t.value) FILTER (WHERE t.key = 'dagster/asset_partition_range_start') AS first,
       max(t.value) FILTER (WHERE t.key = 'dagster/asset_partition_range_end') AS last
FROM runs r LEFT JOIN run_tags t ON t.run_id = r.run_id
WHERE r.status = ANY (:statuses)
   OR r.status = 'FAILURE' AND r.end_time > extract(epoch FROM now()) - :failed_seconds
GROUP BY r.id, r.run_id, r.pipeline_name, r.status, r.start_time ORDER BY r.id
"""
NAMED_IN_A_LINE = 3
STATES = {
    "STARTED": "at work",
    "STARTING": "at work",
    "CANCELING": "being stopped",
    "QUEUED": "waiting",
    "NOT_STARTED": "waiting",
    "FAILURE": "failed within the hour",
}
FAILED_SECONDS = 3600
HEARTBEAT_SECONDS = 120
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
    """Windows of one period and level that are due and left, for one reason."""

    period: str
    level: str
    windows: int
    first_window: str
    last_window: str
    reason: str


def active_runs(storage: Engine) -> list[ActiveRun]:
    """Return the runs that work, wait or failed within the hour, oldest first; none where Dagster has no tables yet."""
    if not inspect(storage).has_table("runs"):
        return []
    with storage.connect() as connection:
        parameters = {"statuses": list(STATES), "failed_seconds": FAILED_SECONDS}
        rows = connection.execute(text(_RUNS), parameters).all()
    return [
        ActiveRun(
            row.run_id[:8],
            "assets" if row.job == ASSET_JOB else row.job,
            row.partition or (f"{row.first} to {row.last}" if row.first else "none"),
            STATES[row.status],
            None if row.since is None else datetime.fromtimestamp(float(row.since), tz=UTC),
        )
        for row in rows
    ]


def daemon_works(storage: Engine) -> bool:
    """Whether a Dagster daemon, which starts what is scheduled and waits, sent a heartbeat in the last minutes."""
    if not inspect(storage).has_table("daemon_heartbeats"):
        return False
    query = (
        "SELECT count(*) > 0 FROM daemon_heartbeats "
        "WHERE timestamp > (now() AT TIME ZONE 'UTC') - make_interval(secs => :age)"
    )
    with storage.connect() as connection:
        return bool(connection.execute(text(query), {"age": HEARTBEAT_SECONDS}).scalar_one())


def has_failed(runs: Sequence[ActiveRun]) -> bool:
    """Whether one of the runs failed: it may be the one that followed changed samples."""
    return any(run.state == STATES["FAILURE"] for run in runs)


def late_windows(runner: AggregationTaskRunner, *, followed: bool) -> list[Late]:
    """Return what is due and left, by period, level and reason.

    Where changes are `followed`, those of the last hour make nothing late.

    Raises:
        DatabaseError: the database failed, or the schema is missing.
    """
    found = []
    patience_seconds = PATIENCE_SECONDS if followed else 0
    for name in runner.service.period_names:
        for level in LEVELS:
            left = sorted(
                runner.inspection.incomplete_windows(
                    runner.service.period(name), level, patience_seconds=patience_seconds
                ),
                key=lambda window: window.reason,
            )
            for reason, group in groupby(left, key=lambda window: window.reason):
                windows = sorted(window.window for window in group)
                found.append(Late(name, level, len(windows), windows[0].key, windows[-1].key, reason))
    return found


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


@contextmanager
def open_runs(settings: Settings) -> Iterator[Engine | None]:
    """Yield an engine on Dagster's storage, or None where the embedded server, which would hold it, does not exist."""
    if settings.dagster_url is None and not settings.embedded_server_exists:
        yield None
        return
    with open_dagster_storage(settings) as engine:
        yield engine
