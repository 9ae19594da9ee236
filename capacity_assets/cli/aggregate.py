"""`capacity aggregate` and `plan`: compute aggregates without Dagster, and show what that would do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import click

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.runs import SCOPE_ALL, PeriodSummary, RunOptions, RunSummary
from capacity_assets.base.errors import AggregationStatus, CapacityError
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.cli import options
from capacity_assets.cli.options import DONE, FAILED, Line, Report, Table
from capacity_assets.runtime import open_task_runner

work_options = options.combined_options(
    click.option(
        "--period",
        "periods",
        multiple=True,
        required=True,
        type=options.OneOf((*PERIODS, SCOPE_ALL)),
        help=f"{', '.join(PERIODS)}; may be repeated, or 'all'.",
        shell_complete=options.completion_of((*PERIODS, SCOPE_ALL)),
    ),
    click.option("--from", "first_day", type=options.DAY, help="First day; its whole window is computed."),
    click.option("--to", "last_day", type=options.DAY, help="Last day; its whole window is computed."),
    click.option(
        "--level",
        "scope",
        default=SCOPE_ALL,
        show_default=True,
        help=f"{', '.join(LEVELS)} or {SCOPE_ALL}.",
        shell_complete=options.completion_of((*LEVELS, SCOPE_ALL)),
    ),
    click.option(
        "--server", "--instance", "names", multiple=True, help="Only this server, by name or number; may be repeated."
    ),
    click.option(
        "--recompute", is_flag=True, help="Also recompute windows that did not change since they were computed."
    ),
    click.option("--overwrite", is_flag=True, help="Rebuild exactly: replace protected rows, remove unsupported ones."),
)


@click.command()
@work_options
@options.json_command
def aggregate(settings: Settings, /, **values: Any) -> Report:
    """Compute aggregates without Dagster.

    Without --from and --to, computes the window that is due: today's for daily, the last complete one for the other
    periods. With --from alone the range ends today, with --to alone it begins with the first partition.

    \b
    Examples:
      capacity aggregate --period daily
      capacity aggregate --period monthly --from 2025-01-01 --to 2025-06-30
      capacity aggregate --period all --from 2025-01-01 --json
    """
    run, troubles = _run(settings, **values, dry_run=False)
    return _report(run, run.to_dict(), _run_lines(run), troubles)


@click.command()
@work_options
@options.json_command
def plan(settings: Settings, /, **values: Any) -> Report:
    """Show what `capacity aggregate` would do; write nothing.

    Takes the same options. Shows for each window: servers with and without samples, rows to be written, rows that are
    up to date, and rows that are kept because their samples no longer exist.

    \b
    Examples:
      capacity plan --period monthly --from 2025-01-01 --to 2025-06-30
      capacity plan --period all --from 2025-01-01 --overwrite
    """
    run, troubles = _run(settings, **values, dry_run=True)
    document = {"dry_run": True, "windows": [_planned(part) for part in run.parts]}
    return _report(run, document, _plan_lines(run), troubles)


def _report(
    run: RunSummary, document: Mapping[str, object], lines: Iterable[Line], troubles: Sequence[CapacityError]
) -> Report:
    """Report a run; if whole periods failed, their `troubles` are the failure of the command."""
    texts = [str(trouble) for trouble in troubles]
    code = FAILED if run.status is AggregationStatus.FAILED else DONE
    return Report({**document, "troubles": texts}, lines if run.parts else (), code, "\n".join(texts))


def _run(
    settings: Settings,
    *,
    periods: Sequence[str],
    first_day: date | None,
    last_day: date | None,
    scope: str,
    names: Sequence[str],
    **how: Any,
) -> tuple[RunSummary, tuple[CapacityError, ...]]:
    with open_task_runner(settings, existing=True) as runner:
        service = runner.service
        # Refuses an unknown period beside `all`, too.
        named = [service.period(name, SCOPE_ALL) for name in dict.fromkeys(periods) if name != SCOPE_ALL]
        chosen = list(PERIODS.values()) if SCOPE_ALL in periods else named
        is_due = first_day is None and last_day is None
        windows = [
            None if is_due else service.partitions.windows_between(period, first_day, last_day) for period in chosen
        ]
        levels = service.levels_of(scope)
        # Refuses an unknown server before anything is written.
        instance_ids = service.ids_of(names) if names else None
        active = sum(instance.active for instance in service.instances(instance_ids))
        with options.progress_bar("servers computed", active * len(levels) * len(chosen)) as update:
            chosen_options = RunOptions(levels, instance_ids, progress=lambda done: update(advance=done), **how)
            return runner.run_each(zip(chosen, windows, strict=True), chosen_options)


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


def _without_removed(counts: Mapping[str, str], run: RunSummary) -> dict[str, str]:
    """Omit the column of removed rows if there are none, so that the table fits in 80 characters."""
    return {heading: name for heading, name in counts.items() if name != "removed_records" or run.total(name)}


def _run_lines(run: RunSummary) -> Iterator[Line]:
    counts = _without_removed(COUNTS, run)
    rows = []
    for period, level in dict.fromkeys((part.period_type, part.level) for part in run.parts):
        part = run.of_period(period).of_level(level)
        rows.append([period, level, len(part.parts), *map(part.total, counts.values())])
    headings = ("Period", "Level", ">Windows", *(f">{heading}" for heading in counts))
    yield Table("Servers (counted once for each window) and rows", headings, rows)
    yield f"{run.status.value}: {run.message}"
    yield from (f"  {error}" for error in run.errors[1:])


def _plan_lines(run: RunSummary) -> Iterator[Line]:
    """Yield one row for each window and level that would change, and say how many would not."""
    with_work = [part for part in run.parts if part.written_records or part.removed_records or part.failed_instances]
    listed = run.parts if len(run.parts) <= ALWAYS_LISTED else with_work
    counts = _without_removed(PLANNED, run)
    rows = [
        [part.period_type, part.level, part.period_start, *(getattr(part, key) for key in counts.values())]
        for part in listed
    ]
    headings = ("Period", "Level", "Window", *(f">{heading}" for heading in counts))
    if listed:
        yield Table("Servers with and without samples, and rows that would be written", headings, rows)
    if len(listed) < len(run.parts):
        yield f"Not listed, because nothing would be written: {len(run.parts) - len(listed):,} windows and levels."
    removed = run.total("removed_records")
    yield (
        f"Rows: would write {run.total('written_records'):,}{f' and remove {removed:,}' if removed else ''}; "
        f"{run.total('unchanged_records'):,} are up to date, {run.total('protected_records'):,} are kept because their "
        "samples no longer exist."
    )
    yield from (f"  would fail: {error}" for error in run.errors)
    yield options.NOTHING_CHANGED


def _planned(part: PeriodSummary) -> dict[str, object]:
    columns = ("period_type", "level", "period_start", "period_end", *PLANNED.values())
    return {**{name: getattr(part, name) for name in columns}, "errors": list(map(str, part.errors))}
