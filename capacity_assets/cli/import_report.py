"""What `capacity import` prints: progress, the outcome of every row, and what to do next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import Progress, TextColumn, TimeElapsedColumn

from capacity_assets.cli.output import NOTHING_CHANGED, error_console, print_table, say
from capacity_assets.foundation.levels import Level
from capacity_assets.importing.loading import COUNTS, LoadReport
from capacity_assets.settings import Settings

MEANINGS = {
    "read": "rows read",
    "written": "new samples",
    "replaced": "samples replaced by another value",
    "present": "stored already, with the same value",
    "repeated": "the same as another row",
    "conflicts": "another value than stored or than another row: not imported",
    "unknown": "of a server that is not registered: not imported",
    "bad": "not a valid sample: not imported",
    "totals_written": "totals of servers derived from them",
}


@contextmanager
def progress(what: str, *, as_json: bool) -> Iterator[Callable[[int], None]]:
    """Show how many rows were read, on standard error, for people only."""
    columns = (TextColumn("{task.description}: {task.completed:,.0f} rows"), TimeElapsedColumn())
    with Progress(*columns, console=error_console(), disable=as_json) as bar:
        task = bar.add_task(what, total=None)

        def on_rows(rows: int) -> None:
            bar.update(task, completed=rows)

        yield on_rows


def print_report(report: LoadReport, level: Level) -> None:
    """Print what became of the rows, and the first of those that somebody should check."""
    if report.resumed_after:
        say(f"Continued behind row {report.resumed_after:,}, where an earlier run was interrupted.")
    rows = [[f"{report.counts[name]:,}", MEANINGS[name]] for name in COUNTS if report.counts[name] or name == "read"]
    print_table(level.source.name, (("Rows", "right"), ("What became of them", "left")), rows)
    for what in ("bad", "unknown", "conflicts"):
        for line in report.listed.get(what, []):
            say(f"  {what}: {line}")


REPLACED_TWICE = (
    "These rows contradict others of the same day in what was imported. Correct the source and import it again."
)


def say_next(report: LoadReport, settings: Settings, *, dry_run: bool, replaces: bool = False) -> None:
    """Say what to do about rows that were left out, and how aggregates follow."""
    if report.counts["unknown"]:
        say("Register these servers with `capacity instances add`, or those of a file with --register-as ENGINE.")
    if report.counts["conflicts"]:
        say(REPLACED_TWICE if replaces else "Stored samples were kept. --on-conflict replace takes the file's instead.")
    new = report.counts["written"] or report.counts["replaced"]
    if dry_run:
        say(NOTHING_CHANGED)
    if dry_run or report.first_day is None or not (new or report.resumed_after):
        return
    if report.first_day < settings.start_date:
        say(f"CAPACITY_START_DATE is {settings.start_date}: set it to {report.first_day} to aggregate all of it.")
    first = max(report.first_day, settings.start_date)
    if report.last_day is not None and first <= report.last_day:
        # Without an end: later windows are compared with these.
        say(f"Next: capacity aggregate --period all --from {first}, or backfill these partitions and the later ones.")
        say("While Dagster runs, it recomputes windows that were computed before. The others need the command above.")
