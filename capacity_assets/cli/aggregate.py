"""`capacity aggregate`: the task runner from a shell, with a progress bar and a table or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

from rich.progress import Progress

from capacity_assets.aggregation.results import AggregationStatus, RunSummary
from capacity_assets.aggregation.runners import Progress as ReportProgress
from capacity_assets.aggregation.runners import Watch
from capacity_assets.aggregation.service import SCOPE_ALL, RunOptions
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.cli.database import refuse_an_absent_embedded_server
from capacity_assets.cli.errors import DONE, FAILED, CommandFailedError
from capacity_assets.cli.output import error_console, is_terminal, print_json, print_table, say
from capacity_assets.periods import PERIODS, Period, Window
from capacity_assets.runtime import open_task_runner
from capacity_assets.settings import Settings


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; open days are None."""

    periods: tuple[str, ...]
    first_day: date | None
    last_day: date | None
    scope: str
    instance_ids: tuple[int, ...]
    overwrite: bool
    recompute: bool


def run_aggregate(settings: Settings, request: Request, *, as_json: bool) -> int:
    """Compute what was asked for and print it; return the exit code.

    Raises: as `AggregationTaskRunner.run_period`; every name and date is checked before anything is written.
    """
    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner:
        named = [runner.service.period(name) for name in dict.fromkeys(request.periods) if name != SCOPE_ALL]
        periods = list(PERIODS.values()) if SCOPE_ALL in request.periods else named
        work = [(period, _windows(runner, period, request)) for period in periods]
        levels = runner.service.levels_of(request.scope)
        # Refuses an unknown id before anything is written.
        active = sum(instance.active for instance in runner.service.instances(request.instance_ids or None))
        with _progress_bar(active * len(levels) * len(work)) as report:
            how = {"overwrite": request.overwrite, "recompute": request.recompute}
            options = RunOptions(levels, request.instance_ids or None, **how, watch=Watch(progress=report))
            run, troubles = runner.run_each(work, options)
    if as_json:
        print_json({**run.to_dict(), "troubles": [str(trouble) for trouble in troubles]})
    elif run.parts:
        print_run(run)
    if troubles:
        raise CommandFailedError("\n".join(map(str, troubles)))
    return FAILED if run.status is AggregationStatus.FAILED else DONE


def _windows(runner: AggregationTaskRunner, period: Period, request: Request) -> list[Window] | None:
    if request.first_day is None and request.last_day is None:
        return None
    return runner.windows_between(period, request.first_day, request.last_day)


@contextmanager
def _progress_bar(total: int) -> Iterator[ReportProgress | None]:
    """Show a bar while slices are written, for people only."""
    if not is_terminal():
        yield None
        return
    with Progress(console=error_console(), transient=True) as bar:
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


def print_run(run: RunSummary) -> None:
    """Print one line for each period and level, then the verdict and the failed instances."""
    # Rows are removed only by --overwrite: without any, ten columns become nine, which fit eighty characters.
    counts = {heading: name for heading, name in COUNTS.items() if heading != "Removed" or run.total(name)}
    columns = [("Period", "left"), ("Level", "left"), *((heading, "right") for heading in ("Windows", *counts))]
    rows = []
    for period, level in dict.fromkeys((part.period_type, part.level) for part in run.parts):
        part = run.of_period(period).of_level(level)
        rows.append([period, level, len(part.parts), *map(part.total, counts.values())])
    print_table("Instances (counted once for each window) and rows", columns, rows)
    say(f"{run.status.value}: {run.message}")
    for error in run.errors[1:]:
        say(f"  {error}")
