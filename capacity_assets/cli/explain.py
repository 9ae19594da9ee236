"""`capacity explain`: the samples behind one row, and the arithmetic of each figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from decimal import Decimal

import click

from capacity_assets.aggregation.explanation import Explanation, Figure, Subject, explanation_of, find_subjects
from capacity_assets.aggregation.reference import Sample
from capacity_assets.cli.explain_group import explain_label
from capacity_assets.cli.explain_runway import explain_runway
from capacity_assets.cli.options import DAY, completing, json_command, once_option
from capacity_assets.cli.output import print_json, print_table, say
from capacity_assets.clock import Clock
from capacity_assets.errors import ValidationError
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.grouping.labels import labels_on
from capacity_assets.periods import PERIODS
from capacity_assets.runtime import open_task_runner, refuse_an_absent_embedded_server
from capacity_assets.runway.history_statements import DATABASE_ROWS, SERVER_ROWS, VOLUME_ROWS
from capacity_assets.settings import Settings
from capacity_assets.units import first_of

DAYS_LISTED = 5
SERVERS_NAMED = 10


@click.command()
@click.argument("database", required=False)
@click.option("--period", help=f"One of {', '.join(PERIODS)}.", shell_complete=completing(PERIODS))
@click.option("--window", "day", type=DAY, help="Any day of the window. Default: the window that is due.")
@click.option("--server", help="Name of the server; needed where several have a database of that name.")
@click.option("--runway", is_flag=True, help="Explain when it is full, instead of a period's figures.")
@click.option("--volume", help="With --runway: a volume of the server instead of a database.")
@once_option("--label", metavar="KEY=VALUE", description="The sum of a group, such as team=payments.")
@click.option("--all", "every_day", is_flag=True, help="Print the samples of every day, or every part of a group.")
@json_command
def explain(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings,
    /,
    *,
    database: str | None,
    period: str | None,
    day: date | None,
    server: str | None,
    runway: bool,
    volume: str | None,
    label: str | None,
    every_day: bool,
    as_json: bool,
) -> None:
    """Trace figures to their samples, or a group's sum to its parts.

    Every figure of a database or server is computed once more from the samples, by fractions and without the
    database's help, and compared with the stored one. Changes nothing.

    \b
    Examples:
      capacity explain orders --period monthly --window 2025-03-01
      capacity explain orders --server db-7 --period weekly
      capacity explain --server db-7 --period quarterly
      capacity explain --label team=payments --period monthly
      capacity explain orders --runway
      capacity explain --server db-7 --volume /data --runway
    """
    if label is not None and (database, server, volume, runway) != (None, None, None, False):
        raise ValidationError("--label explains a group as a whole: name no database, server, volume or --runway.")
    if database is None and server is None and volume is None and label is None:
        raise ValidationError("Name a database, a server with --server, or a group with --label.")
    if runway and (period is not None or day is not None or every_day):
        raise ValidationError(
            "--runway says when something is full as of today: it cannot be combined with --period, --window or --all."
        )
    if volume is not None and (database is not None or not runway):
        raise ValidationError("--volume goes with --runway, and in the place of a database.")
    if period is None and not runway:
        raise ValidationError(f"Say which figures: --period, one of {', '.join(PERIODS)}, or --runway.")
    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner:
        if period is None:
            refuse_an_unfit_database(runner.service.engine, settings.zone, kept="Nothing was changed.")
            kind = VOLUME_ROWS if volume else DATABASE_ROWS if database is not None else SERVER_ROWS
            explain_runway(runner.service.engine, settings, kind, volume or database, server, as_json=as_json)
            return
        chosen = runner.service.period(period)
        today = Clock(settings.zone).today()
        window = runner.service.partitions.window_holding(chosen, day or chosen.scheduled(today).start)
        if label is not None:
            refuse_an_unfit_database(runner.service.engine, settings.zone, kept="Nothing was changed.")
            engine = runner.service.engine
            explain_label(engine, settings, label, chosen, window, every_part=every_day, as_json=as_json)
            return
        subject = _only(find_subjects(runner.service.engine, database, server))
        explanation = explanation_of(runner.service.engine, subject, chosen, window, today)
        labels = labels_on(runner.service.engine, subject.server, subject.database, window.end)
    if as_json:
        print_json({**_as_dict(explanation), "labels": labels})
    else:
        _print(explanation, labels, every_day=every_day)


def _only(subjects: list[Subject]) -> Subject:
    """Return the one that was found; raises ValidationError where there are several."""
    if len(subjects) > 1:
        names = first_of((subject.server for subject in subjects), SERVERS_NAMED)
        raise ValidationError(
            f"{len(subjects)} servers have a database of the name {subjects[0].database!r}: {names}. Add --server."
        )
    return subjects[0]


def _print(explanation: Explanation, labels: Mapping[str, str], *, every_day: bool) -> None:
    period, window, samples = explanation.period, explanation.window, explanation.samples
    say(f"{explanation.subject}, {period.name} window {window.start} to {window.end}")
    if labels:
        say(f"Labels: {', '.join(f'{key}={value}' for key, value in sorted(labels.items()))}")
    _print_samples(f"Samples of the window: {len(samples.own)}", samples.own, every_day=every_day)
    if not explanation.subject.active:
        say(RETIRED)
    missing = explanation.missing_days
    if missing and samples.own:
        say(f"Days without a sample: {first_of(missing, DAYS_LISTED)}")
    for what, other, found in (
        ("of the window before", period.previous(window), samples.before),
        ("of the same window a year before", period.year_before(window), samples.year_before),
    ):
        heading = f"Samples {what}, {other.start} to {other.end}: {len(found)}"
        _print_samples(heading, found, every_day=every_day)
    if explanation.figures:
        print_table("Figures", FIGURE_COLUMNS, [_cells(explanation, figure) for figure in explanation.figures])
    say(explanation.verdict)


RETIRED = "The server is not active: it is aggregated no more, and what is stored of it stays."
FIGURE_COLUMNS = (("Figure", "left"), ("How", "text"), ("Result", "right"), ("Stored", "right"))


def _cells(explanation: Explanation, figure: Figure) -> list[object]:
    stored = "" if explanation.stored is None else _shown(figure.stored)
    differs = explanation.stored is not None and not figure.agrees
    marked = f"{stored:,} !" if isinstance(stored, int) else f"{stored} !"
    return [figure.name, figure.how, _shown(figure.computed), marked if differs else stored]


def _shown(value: object) -> object:
    """Return what a table shows: whole numbers, which get separators, also where they are stored as decimals."""
    if isinstance(value, Decimal) and value.as_tuple().exponent == 0:
        return int(value)
    return "unknown" if value is None else value


def _print_samples(heading: str, samples: tuple[Sample, ...], *, every_day: bool) -> None:
    """Print the first and the last days, or all: the days of the extremes are named beside these."""
    if not samples:
        say(heading)
        return
    columns = (("Day", "left"), *((name, "right") for name in samples[0].values))
    shown: list[list[object]] = [[sample.day, *map(_shown, sample.values.values())] for sample in samples]
    if not every_day and len(shown) > 2 * DAYS_LISTED + 1:
        between: list[object] = [f"{len(shown) - 2 * DAYS_LISTED} days", *("..." for _ in samples[0].values)]
        shown = [*shown[:DAYS_LISTED], between, *shown[-DAYS_LISTED:]]
    print_table(heading, columns, shown)


def _days(samples: tuple[Sample, ...]) -> list[dict[str, object]]:
    return [{"day": sample.day, **sample.values} for sample in samples]


def _as_dict(explanation: Explanation) -> dict[str, object]:
    return {
        "subject": asdict(explanation.subject),
        "period_type": explanation.period.name,
        "period_start": explanation.window.start,
        "period_end": explanation.window.end,
        "samples": _days(explanation.samples.own),
        "samples_before": _days(explanation.samples.before),
        "samples_year_before": _days(explanation.samples.year_before),
        "missing_days": list(explanation.missing_days),
        "figures": [{**asdict(figure), "agrees": figure.agrees} for figure in explanation.figures],
        "verdict": explanation.verdict,
    }
