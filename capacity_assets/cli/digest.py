"""`capacity digest`: what happened in a week, on the screen, in a file, or to those who should know."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path

import click
from sqlalchemy import Engine

from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.files import atomic_write
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.settings import Settings
from capacity_assets.cli.options import (
    DAY,
    STANDARD_OUTPUT,
    CommandFailedError,
    json_command,
    label_filter,
    once_option,
    print_json,
    say,
    writing,
)
from capacity_assets.digest.content import read_digest
from capacity_assets.digest.receivers import receivers_of
from capacity_assets.digest.sending import send_digests
from capacity_assets.digest.writing import as_html, as_text
from capacity_assets.ownership.labels import refuse_unknown_label
from capacity_assets.runtime import digest_channels, open_task_runner, refuse_an_absent_embedded_server

WEEKLY = PERIODS["weekly"]


@click.command()
@click.option("--week", "day", type=DAY, help="Any day of the week. Default: the last complete one.")
@once_option("--label", metavar="KEY=VALUE", description="Of what has this label. Default: the fleet.")
@click.option("--output", default=STANDARD_OUTPUT, help="An HTML file. Default: plain text on the screen.")
@click.option("--send", is_flag=True, help="Send it to those in CAPACITY_DIGEST_RECEIVERS who did not get it yet.")
@click.option("--again", is_flag=True, help="With --send: also to those who got it.")
@json_command
def digest(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings, /, *, day: date | None, label: str | None, output: str, send: bool, again: bool, as_json: bool
) -> None:
    """Show what was out of the ordinary in a week.

    Lists databases that grew or shrank more than usual, forecasts that moved to an earlier date, servers that are no
    longer measured, and databases that were created or removed. A week without such news has one line.

    \b
    Examples:
      capacity digest
      capacity digest --label team=payments --output digest.html
      capacity digest --send
    """
    key, value = label_filter(label)
    if send and (label is not None or output != STANDARD_OUTPUT):
        raise ValidationError("--send goes to the receivers of the file, each with its own label. Nothing was sent.")
    if again and not send:
        raise ValidationError("--again goes with --send.")
    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner:
        week = runner.service.partitions.window_holding(WEEKLY, day)
        if send:
            _send(settings, runner.service.engine, week, again=again, as_json=as_json)
            return
        found = read_digest(runner.service.engine, week, None if key is None else (key, str(value)))
        if key is not None and not found.history:
            refuse_unknown_label(runner.service.engine, key, str(value))
            raise NotFoundError(
                f"Nothing has {label} in the weeks up to {week.end}: it holds from a later day on, or these weeks were "
                "not computed."
            )
    if as_json:
        print_json(asdict(found))
    elif output == STANDARD_OUTPUT:
        say(as_text(found, settings.pages_url).rstrip("\n"))
    else:
        with writing(output), atomic_write(Path(output)) as begun:
            begun.write_text(as_html(found, settings.pages_url), encoding="utf-8")
        say(f"Digest written to {output}")


def _send(settings: Settings, engine: Engine, week: Window, *, again: bool, as_json: bool) -> None:
    if settings.digest_receivers is None:
        raise ValidationError("CAPACITY_DIGEST_RECEIVERS names no file of receivers. Nothing was sent.")
    receivers = receivers_of(settings.digest_receivers, settings.label_keys)
    done = send_digests(engine, week, receivers, digest_channels(settings), again=again)
    if as_json:
        print_json(asdict(done))
    else:
        for name in done.sent:
            say(f"Sent to {name}.")
        for name in done.earlier:
            say(f"{name} got it before; --again sends it once more.")
    if done.failed:
        failures = " ".join(f"{name}: {reason}" for name, reason in done.failed)
        raise CommandFailedError(f"Not sent. {failures} The others were sent; run it again for the rest.")
