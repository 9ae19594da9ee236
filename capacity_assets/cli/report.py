"""`capacity report`: the growth report of any window, or of one server, from a shell."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Any

import click

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_change_mb, human_mb
from capacity_assets.cli.options import STANDARD_OUTPUT, Report, json_command, window_options, writing
from capacity_assets.ownership.groups import refuse_unknown_grouping
from capacity_assets.report.data import file_name, read_report
from capacity_assets.report.issues import next_edition
from capacity_assets.report.page import make_report_folder, render, write_report
from capacity_assets.runtime import open_task_runner, refuse_an_absent_embedded_server


@click.command()
@window_options
@click.option("--server", help="Only this server, with all its databases.")
@click.option("--by", help="Group the fleet by engine or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="The file; - is standard output. Default: a file in CAPACITY_HOME/reports.",
)
@json_command
def report(settings: Settings, /, **values: Any) -> Report | None:
    """Write the growth report of a window.

    One HTML file that needs no network and prints on A4.

    \b
    Examples:
      capacity report
      capacity report --period quarterly --window 2025-04-01
      capacity report --by environment
      capacity report --server db-7 --output db-7.html
    """
    return written_report(settings, **values)


def written_report(
    settings: Settings,
    *,
    period: str,
    day: date | None,
    server: str | None,
    by: str | None = None,
    output: Path | None = None,
) -> Report | None:
    """Write the growth report of a window; return its path and size, None if it went to standard output.

    Raises:
        ValidationError: unknown period, a day outside the partition range, or a window without a stored row in it.
        NotFoundError: no such server.
        CommandFailedError: the file cannot be written.
        DatabaseError: the database failed.
    """
    if by is not None:
        refuse_unknown_grouping(by, settings.label_keys)
    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner:
        chosen = runner.service.period(period)
        window = runner.service.partitions.window_holding(chosen, day)
        by = by or next(iter(settings.label_keys), None)
        today = runner.service.clock.today()
        content = read_report(runner.service.engine, chosen, window, server, today=today, by=by)
        path = (settings.reports / file_name(chosen, window, server) if output is None else output).resolve()
        edition = next_edition(runner.service.engine, content, path)
    if content.facts.computed_at is None:
        subject = "" if server is None else f" of {server}"
        raise ValidationError(
            f"There is no stored row{subject} in the {period} window {window.start} to {window.end}. "
            f"`capacity plan --period {period} --from {window.start} --to {window.start}` shows what could be computed."
        )
    if str(output) == STANDARD_OUTPUT:
        with writing("Standard output"):
            sys.stdout.write(render(content))
            sys.stdout.flush()
        return None
    with writing(path):
        if output is None:
            make_report_folder(path.parent)
        write_report(content, path, edition)
    steps = {f"{kind}_mb": change for kind, change in content.steps}
    sizes = {"start_mb": content.start_mb, **steps, "end_mb": content.end_mb}
    known = content.known_change_mb
    change = "change unknown" if known is None else f"{human_change_mb(known)} where both windows were measured"
    is_open = " (incomplete)" if content.is_open else ""
    lines = [
        f"{period} window {window.start} to {window.end}{is_open}: {human_mb(content.end_mb)}, {change}",
        *([edition.sentence] if edition.sentence else []),
        f"Report: {path}",
    ]
    return Report({"path": str(path), "issue": edition.issue.number, **sizes}, lines)
