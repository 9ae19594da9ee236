"""`capacity report` and `digest`: the growth report of a window, and the news of a week as a file or as messages."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine

from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.periods import Window
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_change_mb, human_mb
from capacity_assets.cli import options
from capacity_assets.cli.options import Report
from capacity_assets.digest import as_html, as_text, read_digest, send_digests
from capacity_assets.messages.transports import SendingSettings, receivers_of
from capacity_assets.ownership.labels import refuse_unknown_grouping, refuse_unknown_label
from capacity_assets.report.page import file_name, make_report_folder, next_edition, read_report, render, write_report


@click.command()
@options.window_options
@click.option("--server", help="Only this server, with all its databases.")
@options.grouping_option("Group the fleet by engine or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="The file; - is standard output. Default: a file in CAPACITY_HOME/reports.",
)
@options.json_command
def report(settings: Settings, /, **values: Any) -> Report | None:
    """Write the growth report of a window.

    One HTML file that needs no network and prints on A4.

    \b
    Examples:
      capacity report
      capacity report --period quarterly --window 2025-04-01
      capacity report --group-by environment
      capacity report --server db-7 --output db-7.html
    """
    return write_growth_report(settings, **values)


def write_growth_report(
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
    by = by or next(iter(settings.label_keys), None)
    with options.open_window(settings, period, day) as (runner, chosen, window):
        engine, today = runner.service.engine, runner.service.clock.today()
        content = read_report(engine, chosen, window, server, today=today, by=by)
        path = (settings.reports / file_name(chosen, window, server) if output is None else output).resolve()
        edition = next_edition(engine, content, path)
    if content.facts.computed_at is None:
        subject = "" if server is None else f" of {server}"
        raise ValidationError(
            f"There is no stored row{subject} in the {period} window {window.start} to {window.end}. "
            f"`capacity plan --period {period} --from {window.start} --to {window.start}` shows what could be computed."
        )
    if str(output) == options.STANDARD_OUTPUT:
        with options.writing("Standard output"):
            sys.stdout.write(render(content))
            sys.stdout.flush()
        return None
    with options.writing(path):
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


@click.command()
@click.option("--week", "day", type=options.DAY, help="Any day of the week. Default: the last complete one.")
@options.label_option("Only databases with this label. Default: the fleet.")
@click.option("--output", default=options.STANDARD_OUTPUT, help="An HTML file. Default: plain text on the screen.")
@click.option("--send", is_flag=True, help="Send it to those in CAPACITY_RECEIVERS who have not received it.")
@click.option("--again", is_flag=True, help="With --send: also to those who have received it.")
@options.json_command
def digest(
    settings: Settings, /, *, day: date | None, label: tuple[str, str] | None, output: str, send: bool, again: bool
) -> Report:
    """Show what was out of the ordinary in a week.

    Lists databases that grew or shrank more than usual, forecasts that moved, servers that are no longer measured, and
    databases that were created or removed. A week without such news has one line.

    \b
    Examples:
      capacity digest
      capacity digest --label team=payments --output digest.html
      capacity digest --send
    """
    if send and (label is not None or output != options.STANDARD_OUTPUT):
        raise ValidationError("--send uses the labels of the receivers: omit --label and --output.")
    if again and not send:
        raise ValidationError("--again needs --send.")
    with options.open_window(settings, "weekly", day) as (runner, _, week):
        engine, today = runner.service.engine, runner.service.clock.today()
        if send:
            return _sent(settings, engine, week, today=today, again=again)
        content = read_digest(engine, week, label, settings.thresholds, today=today)
        if label is not None and not content.history:
            refuse_unknown_label(engine, *label)
            raise NotFoundError(
                f"No database has {'='.join(label)} in the weeks up to {week.end}: the label begins later, or these "
                "weeks were not computed."
            )
    if output == options.STANDARD_OUTPUT or options.wants_json():
        return Report(content, [as_text(content, settings.pages_url).rstrip("\n")])
    options.write_text(output, as_html(content, settings.pages_url))
    return Report(content, [f"Digest written to {output}"])


def _sent(settings: Settings, engine: Engine, week: Window, **how: Any) -> Report:
    if settings.receivers is None:
        raise ValidationError("CAPACITY_RECEIVERS is unset: set it to the file that lists the receivers.")
    receivers = receivers_of(settings.receivers, settings.label_keys)
    result = send_digests(engine, week, receivers, SendingSettings.of(settings), **how)
    lines = [
        *(f"Sent to {name}." for name in result.sent),
        *(f"{name} has already received it; --again sends it once more." for name in result.earlier),
    ]
    failures = " ".join(f"{name}: {reason}" for name, reason in result.failed)
    failure = f"Not sent. {failures} All others were sent. Run it again for the rest." if failures else ""
    return Report(result, lines, failure=failure)
