"""`capacity aggregate` and `capacity plan`: the task runner from a shell, with a progress bar and a table or JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

import click
from rich.progress import Progress

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.results import PeriodSummary, RunSummary
from capacity_assets.aggregates.runs import SCOPE_ALL, RunOptions
from capacity_assets.aggregates.runs import Progress as ReportProgress
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import AggregationStatus, CapacityError
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.settings import Settings
from capacity_assets.cli.options import (
    DAY,
    DONE,
    FAILED,
    NOTHING_CHANGED,
    CommandFailedError,
    command,
    completing,
    error_console,
    json_option,
    options,
    print_json,
    print_table,
    say,
)
from capacity_assets.runtime import open_task_runner, refuse_an_absent_embedded_server


@dataclass(frozen=True)
class AggregateRequest:
    """The options of the command line; open days are None."""

    periods: tuple[str, ...]
    first_day: date | None
    last_day: date | None
    scope: str
    names: tuple[str, ...]
    overwrite: bool
    recompute: bool


work_options = options(
    click.option(
        "--period",
        "periods",
        multiple=True,
        required=True,
        help=f"{', '.join(PERIODS)}; may be repeated, or 'all'.",
        shell_complete=completing((*PERIODS, SCOPE_ALL)),
    ),
    click.option("--from", "first_day", type=DAY, help="First day; its whole window is computed."),
    click.option("--to", "last_day", type=DAY, help="Last day; its whole window is computed."),
    click.option(
        "--level",
        "scope",
        default=SCOPE_ALL,
        show_default=True,
        help=f"{', '.join(LEVELS)} or {SCOPE_ALL}.",
        shell_complete=completing((*LEVELS, SCOPE_ALL)),
    ),
    click.option(
        "--server", "--instance", "names", multiple=True, help="Only this one, by name or number; may be repeated."
    ),
    click.option(
        "--recompute", is_flag=True, help="Also compute windows that nothing has touched since they were computed."
    ),
    click.option("--overwrite", is_flag=True, help="Rebuild exactly: replace protected rows, remove unsupported ones."),
    json_option,
)


@click.command()
@work_options
@command
def aggregate(settings: Settings, /, *, as_json: bool, **asked: Any) -> int:
    """Compute aggregates without Dagster.

    Without --from and --to the window that is due is computed: today's for daily, the last complete one
    for the other periods. An open --from is the first partition, an open --to is today.

    \b
    Examples:
      capacity aggregate --period daily
      capacity aggregate --period monthly --from 2025-01-01 --to 2025-06-30
      capacity aggregate --period all --from 2025-01-01 --json
    """
    run, troubles = _run(settings, AggregateRequest(**asked), dry_run=False)
    if as_json:
        print_json({**run.to_dict(), "troubles": [str(trouble) for trouble in troubles]})
    elif run.parts:
        print_run(run)
    return _exit_code(run, troubles)


@click.command()
@work_options
@command
def plan(settings: Settings, /, *, as_json: bool, **asked: Any) -> int:
    """Say what `capacity aggregate` would do, and write nothing.

    The options are the same. For each window: servers with and without samples, rows that would be written, rows that
    are already right, and rows that would be kept because their samples are gone.

    \b
    Examples:
      capacity plan --period monthly --from 2025-01-01 --to 2025-06-30
      capacity plan --period all --from 2025-01-01 --overwrite
    """
    run, troubles = _run(settings, AggregateRequest(**asked), dry_run=True)
    if as_json:
        windows = [_planned(part) for part in run.parts]
        print_json({"dry_run": True, "windows": windows, "troubles": [str(trouble) for trouble in troubles]})
    elif run.parts:
        print_plan(run)
    return _exit_code(run, troubles)


def _exit_code(run: RunSummary, troubles: tuple[CapacityError, ...]) -> int:
    """Return the exit code of a run; raises CommandFailedError with the reasons where a period failed as a whole."""
    if troubles:
        raise CommandFailedError("\n".join(map(str, troubles)))
    return FAILED if run.status is AggregationStatus.FAILED else DONE


def _run(
    settings: Settings, request: AggregateRequest, *, dry_run: bool
) -> tuple[RunSummary, tuple[CapacityError, ...]]:
    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner:
        asked = [runner.service.period(name, SCOPE_ALL) for name in dict.fromkeys(request.periods) if name != SCOPE_ALL]
        periods = list(PERIODS.values()) if SCOPE_ALL in request.periods else asked
        work = [(period, _windows(runner, period, request)) for period in periods]
        levels = runner.service.levels_of(request.scope)
        # Refuses an unknown server before anything is written.
        instance_ids = runner.service.ids_of(request.names) if request.names else None
        active = sum(instance.active for instance in runner.service.instances(instance_ids))
        with _progress_bar(active * len(levels) * len(work)) as report:
            options = RunOptions(
                levels, instance_ids, request.overwrite, request.recompute, dry_run=dry_run, progress=report
            )
            return runner.run_each(work, options)


def _windows(runner: AggregationTaskRunner, period: Period, request: AggregateRequest) -> list[Window] | None:
    if request.first_day is None and request.last_day is None:
        return None
    return runner.service.partitions.windows_between(period, request.first_day, request.last_day)


@contextmanager
def _progress_bar(total: int) -> Iterator[ReportProgress]:
    """Show a bar while slices are written, for people only."""
    with Progress(console=error_console(), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("servers computed", total=total)
        yield lambda instances: bar.advance(task, instances)


COUNTS = {
    "Processed": "processed_instances",
    "Failed": "failed_instances",
    "Skipped": "skipped_instances",
    "Written": "written_records",
    "Unchanged": "unchanged_records",
    "Protected": "protected_records",
    "Removed": "removed_records",
}


PLANNED = {
    "With": "processed_instances",
    "Without": "skipped_instances",
    "Failing": "failed_instances",
    "Write": "written_records",
    "Unchanged": "unchanged_records",
    "Protected": "protected_records",
    "Remove": "removed_records",
}
ALWAYS_LISTED = 24


def print_run(run: RunSummary) -> None:
    """Print one line for each period and level, then the verdict and the failed instances."""
    # Rows are removed only by --overwrite: without any, ten columns become nine, which fit eighty characters.
    counts = {heading: name for heading, name in COUNTS.items() if heading != "Removed" or run.total(name)}
    columns = [("Period", "left"), ("Level", "left"), *((heading, "right") for heading in ("Windows", *counts))]
    rows = []
    for period, level in dict.fromkeys((part.period_type, part.level) for part in run.parts):
        part = run.of_period(period).of_level(level)
        rows.append([period, level, len(part.parts), *map(part.total, counts.values())])
    print_table("Servers (counted once for each window) and rows", columns, rows)
    say(f"{run.status.value}: {run.message}")
    for error in run.errors[1:]:
        say(f"  {error}")


def print_plan(run: RunSummary) -> None:
    """Print one line for each window and level in which something would happen, and count the others."""
    idle = [part for part in run.parts if not _has_work(part)]
    listed = run.parts if len(run.parts) <= ALWAYS_LISTED else [part for part in run.parts if _has_work(part)]
    counts = {heading: key for heading, key in PLANNED.items() if heading != "Remove" or run.total(key)}
    columns = [("Period", "left"), ("Level", "left"), ("Window", "left"), *((heading, "right") for heading in counts)]
    rows = [
        [part.period_type, part.level, part.period_start, *(getattr(part, key) for key in counts.values())]
        for part in listed
    ]
    if listed:
        print_table("Servers with and without samples, and rows that would be written", columns, rows)
    if len(listed) < len(run.parts):
        say(f"Windows and levels in which nothing would be written, not listed: {len(idle):,}")
    removed = run.total("removed_records")
    also = f" and remove {removed:,}" if removed else ""
    say(
        f"Rows: would write {run.total('written_records'):,}{also}, leave {run.total('unchanged_records'):,} as they "
        f"are and keep {run.total('protected_records'):,} whose samples are gone."
    )
    for error in run.errors:
        say(f"  would fail: {error}")
    say(NOTHING_CHANGED)


def _has_work(part: PeriodSummary) -> bool:
    return bool(part.written_records or part.removed_records or part.failed_instances)


def _planned(part: PeriodSummary) -> dict[str, object]:
    window = {
        "period_type": part.period_type,
        "level": part.level,
        "period_start": part.period_start.isoformat(),
        "period_end": part.period_end.isoformat(),
    }
    return {**window, **{key: getattr(part, key) for key in PLANNED.values()}, "errors": list(map(str, part.errors))}
