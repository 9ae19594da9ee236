"""`capacity status`: stored data, running and queued runs, and late and stale windows.

Dagster's storage is opened so that no tables are created, because this command changes nothing. The ledger decides
which windows are late.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy import Engine

from capacity_assets.aggregates.ledger import PATIENCE_SECONDS, IncompleteWindow
from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import DATABASE_FAILURES, DatabaseError, ValidationError
from capacity_assets.base.periods import PERIODS, Clock, Window
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, first_of, human_day
from capacity_assets.cli.options import Line, Report, Table, json_command
from capacity_assets.collection.servers import CollectionState, collection_state
from capacity_assets.database.distributing import distribution_text, placements
from capacity_assets.database.engine import UnreachableError, check_today, safe_url
from capacity_assets.database.schema import schema_revision, untracked_changes
from capacity_assets.database.tables import SCHEMA_REVISION
from capacity_assets.orchestration.instance import dagster_storage
from capacity_assets.reading.coverage import servers_in_service
from capacity_assets.reading.forecasts import ForecastIssue, StoredRunway, recent_issue
from capacity_assets.reading.windows import (
    STOPPED_ADVICE,
    NewestSamples,
    SampledDays,
    StoredWindows,
    newest_samples,
    sampled_days,
    stored_windows,
)
from capacity_assets.runtime import open_engine, task_runner

if TYPE_CHECKING:
    from dagster import DagsterRun
    from dagster_postgres import DagsterPostgresStorage


NAMED_IN_A_LINE = 3
FAILING_SHOWN = 10
RISKS_SHOWN = 3
NOT_BEFORE_THE_UPGRADE = "not known before `capacity init` has upgraded the schema."
STATES = {
    "STARTED": "running",
    "STARTING": "running",
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
# Dagster's name for runs that were launched from assets, not from a job.
ASSET_JOB = "__ASSET_JOB"
LATE_HEADINGS = ("Period", "Level", ">Windows", "First", "Last", "~Reason")
WINDOW_HEADINGS = (
    *("Period", "Level", "First window", "Latest window"),
    *(">Rows in it", "Days measured", "Its last change"),
)


@dataclass(frozen=True)
class ActiveRun:
    """A run that has not ended, or failed within the hour; `since` is when it started, None if it waits."""

    run_id: str
    job: str
    partitions: str
    state: str
    since: datetime | None


@dataclass(frozen=True)
class LateWindows:
    """Windows of one period and level that should be computed, or computed again, for one reason."""

    period: str
    level: str
    windows: int
    first_window: str
    last_window: str
    reason: str


def active_runs(storage: DagsterPostgresStorage) -> list[ActiveRun]:
    """Return runs that run, wait, or failed within the hour, oldest first; raises DBAPIError."""
    from dagster import DagsterRunStatus, RunsFilter

    failed = DagsterRunStatus.FAILURE
    begun = [DagsterRunStatus(status) for status in STATES if status != failed.value]
    an_hour_ago = datetime.now(tz=UTC) - FAILED_FOR
    # The times by which Dagster filters are shifted if its PostgreSQL has another time zone than UTC.
    filters = [RunsFilter(statuses=begun), RunsFilter(statuses=[failed], updated_after=an_hour_ago - FARTHEST_ZONE)]
    records = [
        record
        for run_filter in filters
        for record in storage.run_storage.get_run_records(run_filter)
        if record.dagster_run.status is not failed or (record.end_time or 0.0) > an_hour_ago.timestamp()
    ]
    runs = []
    for record in sorted(records, key=lambda record: record.storage_id):
        run, since = record.dagster_run, record.start_time
        job = "assets" if run.job_name == ASSET_JOB else run.job_name
        started = None if since is None else datetime.fromtimestamp(since, tz=UTC)
        runs.append(ActiveRun(run.run_id[:8], job, _partitions(run), STATES[run.status.value], started))
    return runs


def _partitions(run: DagsterRun) -> str:
    first, last = (run.tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end"))
    return run.tags.get("dagster/partition") or (f"{first} to {last}" if first else "none")


def daemon_works(storage: DagsterPostgresStorage) -> bool:
    """Whether Dagster's daemon, which starts scheduled runs, sent a heartbeat lately; raises DBAPIError."""
    newest = max((beat.timestamp for beat in storage.run_storage.get_daemon_heartbeats().values()), default=0.0)
    return datetime.now(tz=UTC).timestamp() - newest < HEARTBEAT_SECONDS


def silent_location(settings: Settings) -> str | None:
    """Return a message if the code location does not respond, "" if it responds, None if its address is not known.

    Its address is read from workspace.yaml in Dagster's home.
    """
    from capacity_assets.orchestration.private import (
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
    """Whether a run failed, which may be why windows of changed samples were not recomputed."""
    return any(run.state == STATES["FAILURE"] for run in runs)


def late_windows(runner: AggregationTaskRunner, *, followed: bool) -> list[IncompleteWindow]:
    """Return windows that are due and not computed; raises DatabaseError.

    If Dagster follows changes of samples (`followed`), changes of the last hour make no window late.
    """
    patience_seconds = PATIENCE_SECONDS if followed else 0
    return [
        incomplete
        for period in map(runner.service.period, runner.service.period_names)
        for level in LEVELS
        for incomplete in runner.incomplete_windows(period, level, patience_seconds=patience_seconds)
    ]


def _by_reason(every: Sequence[IncompleteWindow]) -> list[LateWindows]:
    groups: dict[tuple[str, str, str], list[Window]] = {}
    for window in every:
        groups.setdefault((window.period_type, window.level, window.reason), []).append(window.window)
    return [
        LateWindows(period, level, len(windows), min(windows).key, max(windows).key, reason)
        for (period, level, reason), windows in groups.items()
    ]


def activity_text(runs: Sequence[ActiveRun], late: Sequence[IncompleteWindow] | None) -> str:
    """Return one line on what runs, waits and is late."""
    jobs = {state: [f"{run.job} ({run.partitions})" for run in runs if run.state == state] for state in STATES.values()}
    parts = [f"{state}: {first_of(names, NAMED_IN_A_LINE)}" for state, names in jobs.items() if names] or [
        "no run is running or waiting"
    ]
    on_time = "nothing is late" if late is not None else "late windows cannot be read, see `capacity check`"
    parts.append(f"late: {counted(len(late), 'window')}, see `capacity status`" if late else on_time)
    return "; ".join(parts)


NO_DAEMON = "No Dagster daemon is running, so no run starts. Start `capacity up` or your own daemon."


@click.command()
@json_command
def status(settings: Settings, /) -> Report:
    """Show what is stored, what runs or waits, and what is late.

    Lists the samples, the latest stored window of each period and level, the last collection, the runs, and windows
    that are late or stale. Changes nothing.
    """
    today = Clock(settings.zone).today()
    with open_engine(settings, existing=True) as engine:
        runs, works = _activity(settings)
        silent = silent_location(settings) if works else None
        revision = schema_revision(engine)
        if revision is None:
            raise DatabaseError(f"There is no capacity schema at {safe_url(engine.url)}. Run `capacity init` first.")
        with engine.connect() as connection:
            samples = sampled_days(connection, today)
            windows = [_window_row(stored, today) for stored in stored_windows(connection, list(PERIODS))]
            active = servers_in_service(connection).active
            apart = check_today(connection, Clock(settings.zone)).apart
        followed = works and not has_failed(runs or ())
        late, stale, unknown = _late_and_stale(engine, settings, revision, followed=followed)
        stopped = [samples for samples in newest_samples(engine, today) if samples.has_stopped]
        # An older schema has none of these; `capacity check` reports this.
        is_current = revision == SCHEMA_REVISION
        collecting = collection_state(engine) if is_current else None
        runways = recent_issue(engine, today, shown=RISKS_SHOWN) if is_current else None
        distribution = distribution_text(placements(engine, with_sizes=False))
        untracked = untracked_changes(engine)
    document = {
        "today": today,
        "clocks_apart": apart,
        "active_instances": active,
        "samples": samples,
        "samples_stopped": {samples.table: samples.day for samples in stopped},
        "windows": windows,
        "runs": runs,
        "daemon_works": works,
        "silent_location": silent or None,
        "late": late,
        "stale": stale,
        "untracked_changes": untracked,
        "collection": collecting,
        "runways": runways and _issue_json(runways),
        "distribution": distribution,
    }
    lines: list[Line] = [
        f"Today is {human_day(today)} ({settings.timezone}). Active servers: {active:,}.",
        *([f"{apart} This machine's clock decides what is late."] if apart else []),
        *_collection_lines(collecting),
        *_stored_lines(samples, windows, stopped),
        *([f"Distributed: {distribution}."] if distribution else []),
        *(_runway_lines(runways) if is_current else [f"Greatest risks: {NOT_BEFORE_THE_UPGRADE}"]),
        *_activity_lines(runs, late, unknown),
        *_stale_lines(stale, late),
        *([NO_DAEMON] if runs is not None and not works else []),
        *([silent] if silent else []),
        *(
            f"Figures may be out of date without being listed as stale: {lack}. Run `capacity init`."
            for lack in untracked
        ),
    ]
    return Report(document, lines)


def _activity(settings: Settings) -> tuple[list[ActiveRun] | None, bool]:
    """Return the runs, None if Dagster's storage does not exist or answer, and whether a daemon works."""
    if not settings.has_dagster_storage:
        return None, False
    try:
        with dagster_storage(settings) as storage:
            return active_runs(storage), daemon_works(storage)
    except (*DATABASE_FAILURES, UnreachableError):
        return None, False


def _late_and_stale(
    engine: Engine, settings: Settings, revision: str, *, followed: bool
) -> tuple[list[LateWindows] | None, list[LateWindows] | None, str]:
    """Return the late windows and the other stale windows, or None, None and the reason why they are not known."""
    if revision != SCHEMA_REVISION:
        return None, None, NOT_BEFORE_THE_UPGRADE
    try:
        runner = task_runner(engine, settings)
        late = late_windows(runner, followed=followed)
        outdated = runner.outdated_windows()
    except ValidationError as error:
        return None, None, f"not known. {error}"
    known = {(window.period_type, window.level, window.window) for window in late}
    stale = [window for window in outdated if (window.period_type, window.level, window.window) not in known]
    return _by_reason(late), _by_reason(stale), ""


def _collection_lines(collecting: CollectionState | None) -> Iterator[Line]:
    if collecting is None:
        return
    yield collecting.text
    if collecting.failing:
        headings = ("Server", "Kind", "Last measured", "~Reason")
        rows = [_cells(asdict(server)) for server in collecting.failing]
        yield Table.of_first("Servers that fail", headings, rows, FAILING_SHOWN)


def _stored_lines(
    samples: Sequence[SampledDays], windows: Sequence[dict[str, object]], stopped: Sequence[NewestSamples]
) -> Iterator[Line]:
    sampled = [_cells(asdict(days)) for days in samples]
    yield Table("Samples", ("Table", "First day", "Last day", ">Rows on last day"), sampled)
    yield from (f"{newest_samples.table}: {newest_samples.text} {STOPPED_ADVICE}" for newest_samples in stopped)
    yield Table("Latest stored window", WINDOW_HEADINGS, list(map(_cells, windows)))
    if not any(days.rows_on_last_day for days in samples):
        yield "There are no samples yet. Next: `capacity instances add`, `capacity import` or `capacity demo`."


def _cells(row: dict[str, Any]) -> list[object]:
    return ["none" if value is None else value for value in row.values()]


def _window_row(stored: StoredWindows, today: date) -> dict[str, object]:
    latest, days = stored.latest_window, None
    if latest is not None:
        window = PERIODS[stored.period].window_of(latest)
        elapsed = window.elapsed_days(today)
        so_far = f" so far, {window.days} in total" if elapsed < window.days else ""
        days = f"{stored.measured_days} of {elapsed}{so_far}"
    return {
        "period": stored.period,
        "level": stored.level,
        "first_window": stored.first_window,
        "latest_window": latest,
        "rows": stored.rows,
        "days": days,
        "last_change": None if stored.changed_at is None else f"{stored.changed_at:%Y-%m-%d %H:%M} UTC",
    }


def _issue_json(issue: ForecastIssue) -> dict[str, object]:
    figures = {name: value for name, value in vars(issue).items() if name != "histories"}
    return {**figures, "risks": list(map(_risk_json, issue.risks))}


def _risk_json(risk: StoredRunway) -> dict[str, object]:
    bands = {
        (forecast.day - risk.last_day).days: {
            "lower_mb": forecast.lower_mb,
            "middle_mb": forecast.size_mb,
            "upper_mb": forecast.upper_mb,
        }
        for forecast in risk.ahead
    }
    return {"instance_id": risk.server_id, "outlook": risk.runway, "bands": bands, "decision": risk.decision}


def _runway_lines(issue: ForecastIssue | None) -> Iterator[Line]:
    if issue is None:
        yield (
            "Greatest risks: no forecast was issued within the last month. `capacity runway --issue` issues them now, "
            "`capacity up` every day."
        )
        return
    if issue.is_outdated:
        issued_at = f"{issue.issued_at:%H:%M} UTC on {human_day(issue.issued_at.date())}"
        yield f"Limits, steps or plans changed after {issued_at}: `capacity runway --issue` updates the forecasts."
    if issue.risks:
        marks = [risk.decision.mark if risk.decision else "" for risk in issue.risks]
        runways = (risk.runway for risk in issue.risks)
        rows = [
            [runway.server, runway.display_name, *runway.days_text, mark]
            for runway, mark in zip(runways, marks, strict=True)
        ]
        headings = ("Server", "What", "Early (10 %)", "Middle (50 %)", "Late (90 %)", "Decision")
        yield Table(f"Greatest risks, by the forecasts of {human_day(issue.as_of)}", headings, rows)
    else:
        day = human_day(issue.as_of)
        yield f"Greatest risks: by the forecasts of {day}, nothing with a known limit fills within a year."
    if issue.unknown_limits:
        yield f"Limit unknown: {counted(issue.unknown_limits, 'database')}."


def _activity_lines(runs: list[ActiveRun] | None, late: list[LateWindows] | None, unknown: str) -> Iterator[Line]:
    if runs is None:
        yield "Runs: Dagster was never started here, or its storage does not answer. `capacity up` starts it."
    elif not runs:
        yield "Runs: none is running or waiting."
    else:
        rows = [
            [run.run_id, run.job, run.partitions, run.state, f"{run.since:%Y-%m-%d %H:%M:%S} UTC" if run.since else ""]
            for run in runs
        ]
        yield Table("Runs", ("Run", "Job", "Partitions", "State", "Since"), rows)
    if late is None:
        yield f"Late: {unknown}"
    elif not late:
        yield "Late: nothing. All due windows are computed."
    else:
        yield _late_table("Late", late)
        first = _first_window(late)
        yield f"Materialise these partitions in the UI, or run `capacity aggregate --period all --from {first}`."


def _stale_lines(stale: list[LateWindows] | None, late: list[LateWindows] | None) -> Iterator[Line]:
    if stale:
        yield _late_table("Stale", stale)
        yield (
            "While the daemon runs, it recomputes windows whose samples changed. "
            f"`capacity aggregate --period all --from {_first_window(stale)}` recomputes all of them."
        )
    elif stale is not None:
        which, what = ("All other windows", "nothing else") if late else ("All windows", "nothing")
        yield f"Stale: {what}. {which} match their samples, and no other session wrote aggregates."


def _late_table(title: str, late: Sequence[LateWindows]) -> Table:
    return Table(title, LATE_HEADINGS, [_cells(asdict(late_windows)) for late_windows in late])


def _first_window(late: Sequence[LateWindows]) -> str:
    return min(late_windows.first_window for late_windows in late)
