"""`capacity digest`: the news of a week, on the screen, in a file, or sent to its receivers."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path

import click

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.files import atomic_write, key_and_value
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.settings import Settings
from capacity_assets.cli.options import DAY, STANDARD_OUTPUT, Report, json_command, label_option, wants_json, writing
from capacity_assets.digest import as_html, as_text, read_digest, send_digests
from capacity_assets.messages.sending import SendingSettings, receivers_of
from capacity_assets.ownership.labels import refuse_unknown_label
from capacity_assets.runtime import open_task_runner

WEEKLY = PERIODS["weekly"]


@click.command()
@click.option("--week", "day", type=DAY, help="Any day of the week. Default: the last complete one.")
@label_option("Only databases with this label. Default: the fleet.")
@click.option("--output", default=STANDARD_OUTPUT, help="An HTML file. Default: plain text on the screen.")
@click.option("--send", is_flag=True, help="Send it to those in CAPACITY_RECEIVERS who have not received it.")
@click.option("--again", is_flag=True, help="With --send: also to those who have received it.")
@json_command
def digest(
    settings: Settings, /, *, day: date | None, label: str | None, output: str, send: bool, again: bool
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
    chosen = None if label is None else key_and_value(label)
    if send and (label is not None or output != STANDARD_OUTPUT):
        raise ValidationError("--send uses the labels of the receivers: omit --label and --output.")
    if again and not send:
        raise ValidationError("--again needs --send.")
    with open_task_runner(settings, existing=True) as runner:
        week = runner.service.partitions.window_holding(WEEKLY, day)
        if send:
            return _sent(settings, runner.service, week, again=again)
        today = runner.service.clock.today()
        content = read_digest(runner.service.engine, week, chosen, settings.thresholds, today=today)
        if chosen is not None and not content.history:
            refuse_unknown_label(runner.service.engine, *chosen)
            raise NotFoundError(
                f"No database has {label} in the weeks up to {week.end}: the label begins later, or these weeks were "
                "not computed."
            )
    if output == STANDARD_OUTPUT or wants_json():
        return Report(asdict(content), [as_text(content, settings.pages_url).rstrip("\n")])
    with writing(output), atomic_write(Path(output)) as new_file:
        new_file.write_text(as_html(content, settings.pages_url), encoding="utf-8")
    return Report(asdict(content), [f"Digest written to {output}"])


def _sent(settings: Settings, service: AggregationService, week: Window, *, again: bool) -> Report:
    if settings.receivers is None:
        raise ValidationError("CAPACITY_RECEIVERS is unset: set it to the file that lists the receivers.")
    receivers = receivers_of(settings.receivers, settings.label_keys)
    result = send_digests(
        service.engine, week, receivers, SendingSettings.of(settings), today=service.clock.today(), again=again
    )
    lines = [
        *(f"Sent to {name}." for name in result.sent),
        *(f"{name} has already received it; --again sends it once more." for name in result.earlier),
    ]
    failures = " ".join(f"{name}: {reason}" for name, reason in result.failed)
    failure = f"Not sent. {failures} All others were sent. Run it again for the rest." if failures else ""
    return Report(asdict(result), lines, failure=failure)
