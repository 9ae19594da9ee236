"""`capacity status`: stored data, running and queued runs, and late and stale windows.

Dagster's storage is opened so that it creates no tables: looking must not. Which windows are late is decided by the
ledger.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from sqlalchemy import Engine

from capacity_assets.aggregates.ledger import PATIENCE_SECONDS, IncompleteWindow
from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import DATABASE_FAILURES, DatabaseError, ValidationError
from capacity_assets.base.periods import PERIODS, Clock, Window
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, first_of, human_day
from capacity_assets.cli.options import json_command, left, print_json, print_table, right, say
from capacity_assets.collection.observing import STOPPED_ADVICE, Newest, newest_samples
from capacity_assets.collection.servers import Standing, standing
from capacity_assets.database.distributing import distribution_text, placements
from capacity_assets.database.engine import UnreachableError, safe_url
from capacity_assets.database.schema import SCHEMA_REVISION, schema_revision, untracked_changes
from capacity_assets.forecast.issued import IssuedDay, recent_issue
from capacity_assets.orchestration.instance import dagster_storage
from capacity_assets.reading.coverage import servers_in_service
from capacity_assets.reading.windows import StoredWindows, sampled_days, stored_windows
from capacity_assets.runtime import open_engine, refuse_an_absent_embedded_server, task_runner

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
class LateWindows:
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
    filters = [RunsFilter(statuses=begun), RunsFilter(statuses=[failed], updated_after=an_hour_ago - FARTHEST_ZONE)]
    records = [
        record
        for run_filter in filters
        for record in storage.run_storage.get_run_records(run_filter)
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


def late_windows(runner: AggregationTaskRunner, *, followed: bool) -> list[LateWindows]:
    """Return what is due and not computed, by period, level and reason; raises DatabaseError.

    Where changes are `followed`, those of the last hour make nothing late.
    """
    return _by_reason(_late(runner, followed=followed))


def late_and_stale_windows(
    runner: AggregationTaskRunner, *, followed: bool
) -> tuple[list[LateWindows], list[LateWindows]]:
    """Return the late windows, like `late_windows`, and the other computed windows that are out of date."""
    late = _late(runner, followed=followed)
    keys = {(period, level, incomplete.window) for period, level, incomplete in late}
    outdated = runner.outdated_windows()
    stale = [one for one in outdated if (one[0], one[1], one[2].window) not in keys]
    return _by_reason(late), _by_reason(stale)


def _late(runner: AggregationTaskRunner, *, followed: bool) -> list[tuple[str, str, IncompleteWindow]]:
    patience_seconds = PATIENCE_SECONDS if followed else 0
    return [
        (period, level, incomplete)
        for period in runner.service.period_names
        for level in LEVELS
        for incomplete in runner.incomplete_windows(
            runner.service.period(period), level, patience_seconds=patience_seconds
        )
    ]


def _by_reason(every: Sequence[tuple[str, str, IncompleteWindow]]) -> list[LateWindows]:
    """Group windows by period, level and reason."""
    groups: dict[tuple[str, str, str], list[Window]] = {}
    for period, level, incomplete in every:
        groups.setdefault((period, level, incomplete.reason), []).append(incomplete.window)
    return [
        LateWindows(period, level, len(windows), min(windows).key, max(windows).key, reason)
        for (period, level, reason), windows in groups.items()
    ]


def activity_text(runs: Sequence[ActiveRun], late: Sequence[LateWindows] | None) -> str:
    """Say in one line what runs, waits and is late."""
    jobs = {state: [f"{run.job} ({run.partitions})" for run in runs if run.state == state] for state in STATES.values()}
    parts = [f"{state}: {first_of(names, NAMED_IN_A_LINE)}" for state, names in jobs.items() if names] or [
        "no run is at work or waiting"
    ]
    windows = sum(one.windows for one in late or ())
    on_time = "nothing is late" if late is not None else "late windows cannot be read, see `capacity check`"
    parts.append(f"late: {counted(windows, 'window')}, see `capacity status`" if windows else on_time)
    return "; ".join(parts)


@click.command()
@json_command
def status(settings: Settings, /, *, as_json: bool) -> None:
    """Show what is stored, what runs or waits, and what is late.

    Lists the samples, the latest stored window of each period and level, the last collection, the runs, and windows
    that are late or stale. Changes nothing.
    """
    refuse_an_absent_embedded_server(settings)
    with open_engine(settings) as engine:
        found = _read(engine, settings)
    if as_json:
        print_json(_document(found))
    else:
        _print(found, settings)


@dataclass(frozen=True)
class _Status:
    """What `capacity status` shows; None: not known, because the schema is older or Dagster does not answer."""

    today: date
    active: int
    samples: Sequence[dict[str, object]]
    stopped: Sequence[Newest]
    windows: Sequence[dict[str, object]]
    collecting: Standing | None
    runways: IssuedDay | None
    distribution: str | None
    runs: list[ActiveRun] | None
    works: bool
    silent: str | None
    late: list[LateWindows] | None
    stale: list[LateWindows] | None
    unknown: str
    untracked: Sequence[str]


def _read(engine: Engine, settings: Settings) -> _Status:
    """Read what is stored and at work; raises DatabaseError, also without a schema."""
    runs, works = _activity(settings)
    silent = silent_location(settings) if works else None
    revision = schema_revision(engine)
    if revision is None:
        raise DatabaseError(f"There is no capacity schema at {safe_url(engine.url)}. Run `capacity init` first.")
    today = Clock(settings.zone).today()
    with engine.connect() as connection:
        samples = [asdict(days) for days in sampled_days(connection, today)]
        windows = [_window_row(stored, today) for stored in stored_windows(connection, list(PERIODS))]
        active = servers_in_service(connection).active
    # With an older schema there is no ledger yet; `capacity check` says so.
    followed = works and not has_failed(runs or ())
    late, stale, unknown = _late_and_stale(engine, settings, revision, followed=followed)
    is_current = revision == SCHEMA_REVISION
    return _Status(
        today=today,
        active=active,
        samples=samples,
        stopped=[one for one in newest_samples(engine, today) if one.has_stopped],
        windows=windows,
        collecting=standing(engine) if is_current else None,
        runways=recent_issue(engine, today, shown=RISKS_SHOWN) if is_current else None,
        distribution=distribution_text(placements(engine, with_sizes=False)),
        runs=runs,
        works=works,
        silent=silent,
        late=late,
        stale=stale,
        unknown=unknown,
        untracked=untracked_changes(engine),
    )


def _document(found: _Status) -> dict[str, object]:
    stored = {
        "today": found.today,
        "active_instances": found.active,
        "samples": found.samples,
        "samples_stopped": {one.table: one.day for one in found.stopped},
        "windows": found.windows,
    }
    activity = {
        "runs": _as_dicts(found.runs),
        "daemon_works": found.works,
        "silent_location": found.silent or None,
        "late": _as_dicts(found.late),
        "stale": _as_dicts(found.stale),
        "untracked_changes": found.untracked,
    }
    further = {
        "collection": None if found.collecting is None else asdict(found.collecting),
        "runways": None if found.runways is None else asdict(found.runways),
        "distribution": found.distribution,
    }
    return {**stored, **activity, **further}


def _print(found: _Status, settings: Settings) -> None:
    say(f"Today is {human_day(found.today)} ({settings.timezone}). Active servers: {found.active:,}.")
    if found.collecting is not None:
        _print_collection(found.collecting)
    _print_stored(found)
    _print_runways(found.runways)
    _print_activity(found.runs, found.late, found.unknown)
    _print_stale(found.stale)
    if found.runs is not None and not found.works:
        say("No Dagster daemon is at work: nothing starts until `capacity up`, or a daemon of your own, runs.")
    if found.silent:
        say(found.silent)
    for shortcoming in found.untracked:
        say(f"It is not known whether figures follow their samples: {shortcoming}. Run `capacity init`.")


def _print_stored(found: _Status) -> None:
    print_table("Samples", SAMPLE_COLUMNS, [_cells(row) for row in found.samples])
    for one in found.stopped:
        say(f"{one.table}: {one.text} {STOPPED_ADVICE}")
    print_table("Latest stored window", WINDOW_COLUMNS, [_cells(row) for row in found.windows])
    if not any(row["rows_on_last_day"] for row in found.samples):
        say("There are no samples yet. Next: `capacity instances add`, `capacity import` or `capacity demo`.")
    if found.distribution is not None:
        say(f"Distributed: {found.distribution}.")


def _print_runways(issue: IssuedDay | None) -> None:
    if issue is None:
        say(
            "Fills first: no runway was issued within the last month. `capacity runway --issue` issues them now, "
            "`capacity up` every day."
        )
        return
    rows = [[risk.outlook.server, risk.outlook.display_name, *risk.outlook.days_text] for risk in issue.risks]
    if issue.is_outdated:
        issued_at = f"{issue.issued_at:%H:%M} UTC on {human_day(issue.issued_at.date())}"
        say(f"Limits or steps changed after {issued_at}: `capacity runway --issue` updates the forecasts.")
    if rows:
        print_table(f"Fills first, as of {human_day(issue.as_of)}", RISK_COLUMNS, rows)
    else:
        say(f"Fills first: nothing with a known limit within a year, as of {human_day(issue.as_of)}.")
    if issue.unknown_limits:
        say(f"Limit unknown: {counted(issue.unknown_limits, 'database')}.")


def _late_and_stale(
    engine: Engine, settings: Settings, revision: str | None, *, followed: bool
) -> tuple[list[LateWindows] | None, list[LateWindows] | None, str]:
    """Return the late windows and the other stale windows; None and the reason if they cannot be determined."""
    if revision != SCHEMA_REVISION:
        return None, None, "not known before `capacity init` has upgraded the schema."
    try:
        return *late_and_stale_windows(task_runner(engine, settings), followed=followed), ""
    except ValidationError as error:
        return None, None, f"not known. {error}"


def _print_collection(collecting: Standing) -> None:
    say(collecting.text)
    if collecting.failing:
        shown = collecting.failing[:FAILING_SHOWN]
        more = len(collecting.failing) - len(shown)
        rows = [_cells(asdict(failing)) for failing in shown]
        print_table(f"Servers that fail{f', {more:,} more' if more else ''}", FAILING_COLUMNS, rows)


def _as_dicts(every: Sequence[ActiveRun] | Sequence[LateWindows] | None) -> list[dict[str, object]] | None:
    return None if every is None else [asdict(one) for one in every]


def _activity(settings: Settings) -> tuple[list[ActiveRun] | None, bool]:
    """Return the runs, None where Dagster's storage does not exist or answer, and whether a daemon works."""
    if settings.dagster_url is None and not settings.embedded_server_exists:
        return None, False
    try:
        with dagster_storage(settings) as storage:
            return active_runs(storage), daemon_works(storage)
    except (*DATABASE_FAILURES, UnreachableError):
        return None, False


def _print_activity(runs: list[ActiveRun] | None, late: list[LateWindows] | None, unknown: str) -> None:
    if runs is None:
        say("Runs: Dagster was never started here, or its storage does not answer. `capacity up` starts it.")
    elif not runs:
        say("Runs: none is at work or waiting.")
    else:
        print_table("Runs", RUN_COLUMNS, [_run_cells(run) for run in runs])
    if late is None:
        say(f"Late: {unknown}")
    elif not late:
        say("Late: nothing. All due windows are computed.")
    else:
        print_table("Late", LATE_COLUMNS, [list(asdict(one).values()) for one in late])
        first = min(one.first_window for one in late)
        say(f"Materialise these partitions in the UI, or run `capacity aggregate --period all --from {first}`.")


def _print_stale(stale: list[LateWindows] | None) -> None:
    if stale is None:
        return
    if not stale:
        say("Stale: nothing else. All windows match their samples, and no other session wrote aggregates.")
        return
    print_table("Stale", LATE_COLUMNS, [list(asdict(one).values()) for one in stale])
    first = min(one.first_window for one in stale)
    say(
        "While the daemon runs, it recomputes windows whose samples changed. "
        f"`capacity aggregate --period all --from {first}` recomputes all of them."
    )


def _run_cells(run: ActiveRun) -> list[object]:
    return [run.run_id, run.job, run.partitions, run.state, f"{run.since:%Y-%m-%d %H:%M:%S} UTC" if run.since else ""]


FAILING_SHOWN = 10
RISKS_SHOWN = 3
RISK_COLUMNS = left("Server", "What", "Early (10 %)", "Middle (50 %)", "Late (90 %)")
FAILING_COLUMNS = (("Server", "left"), ("Kind", "left"), ("Last measured", "left"), ("Reason", "text"))
RUN_COLUMNS = (("Run", "left"), ("Job", "left"), ("Partitions", "left"), ("State", "left"), ("Since", "left"))
LATE_COLUMNS = (*left("Period", "Level"), *right("Windows"), *left("First", "Last"), ("Reason", "text"))
SAMPLE_COLUMNS = (("Table", "left"), ("First day", "left"), ("Last day", "left"), ("Rows on last day", "right"))
WINDOW_COLUMNS = (
    *left("Period", "Level", "First window", "Latest window"),
    *right("Rows in it"),
    *left("Days measured", "Its last change"),
)


def _cells(row: dict[str, object]) -> list[object]:
    return ["none" if value is None else value for value in row.values()]


def _window_row(stored: StoredWindows, today: date) -> dict[str, object]:
    latest, days = stored.latest_window, None
    if latest is not None:
        window = PERIODS[stored.period].window_of(latest)
        elapsed = window.elapsed_days(today)
        so_far = f" so far, {window.days} in all" if elapsed < window.days else ""
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
