"""`capacity explain`: the samples of a row and the arithmetic of each figure, the parts of a group, or a runway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from decimal import Decimal

import click
from sqlalchemy import Engine

from capacity_assets.aggregates.explanation import Explanation, Figure, Sample, Subject, explanation_of, find_subjects
from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.files import key_and_value
from capacity_assets.base.label_rules import checked
from capacity_assets.base.periods import PERIODS, Clock, Period, Window
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, first_of, human_mb
from capacity_assets.cli.declaring import since
from capacity_assets.cli.options import (
    DAY,
    json_command,
    label_option,
    left,
    period_option,
    print_json,
    print_table,
    right,
    say,
)
from capacity_assets.database.guards import refuse_an_unfit_database
from capacity_assets.forecast.history_statements import DATABASE_ROWS, SERVER_ROWS, VOLUME_ROWS
from capacity_assets.ownership.groups import ExplainedGroup, GroupPart, being_computed, explain_group, groups_changed_at
from capacity_assets.ownership.labels import labels_on
from capacity_assets.reading.access import snapshot
from capacity_assets.runtime import open_task_runner, refuse_an_absent_embedded_server

DAYS_LISTED = 5
SERVERS_NAMED = 10
PARTS_LISTED = 20
FIGURE_COLUMNS = (*left("Figure"), ("How", "text"), *right("Result", "Stored"))
GROUP_COLUMNS = (*left("Server", "Database"), *right("Days", "Size per measured day"), *left("Label"))


@click.command()
@click.argument("database", required=False)
@period_option()
@click.option("--window", "day", type=DAY, help="Any day of the window. Default: the window that is due.")
@click.option("--server", help="Name of the server. Needed if several servers have a database of that name.")
@click.option("--runway", is_flag=True, help="Explain when it will be full, instead of a period's figures.")
@click.option("--volume", help="With --runway: a volume of the server instead of a database.")
@label_option("The sum of a group, such as team=payments.")
@click.option("--all", "list_all", is_flag=True, help="List the samples of all days, or all parts of a group.")
@json_command
def explain(
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
    list_all: bool,
    as_json: bool,
) -> None:
    """Trace figures to their samples, or a group's sum to its parts.

    Recomputes every figure of a database or server from the samples, with fractions and without PostgreSQL, and
    compares it with the stored figure. Changes nothing.

    \b
    Examples:
      capacity explain orders --period monthly --window 2025-03-01
      capacity explain orders --server db-7 --period weekly
      capacity explain --server db-7 --period quarterly
      capacity explain --label team=payments --period monthly
      capacity explain orders --runway
      capacity explain --server db-7 --volume /data --runway
    """
    _refuse_subjects(database, server, volume, label, runway=runway)
    if runway and (period, day, list_all) != (None, None, False):
        raise ValidationError("--runway is as of today: it cannot be combined with --period, --window or --all.")
    if period is None and not runway:
        raise ValidationError(f"Give --period, one of {', '.join(PERIODS)}, or --runway.")
    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner:
        service, engine = runner.service, runner.service.engine
        if period is None or label is not None:
            refuse_an_unfit_database(engine, settings.zone)
        if period is None:
            _explain_runway(engine, settings, database, server, volume, as_json=as_json)
            return
        chosen = service.period(period)
        today = Clock(settings.zone).today()
        window = service.partitions.window_holding(chosen, day or chosen.scheduled(today).start)
        if label is not None:
            _explain_group(engine, settings, label, chosen, window, list_all=list_all, as_json=as_json)
            return
        subject = _only(find_subjects(engine, database, server))
        explanation = explanation_of(engine, subject, chosen, window, today)
        _explain_figures(engine, explanation, list_all=list_all, as_json=as_json)


def _explain_figures(engine: Engine, explanation: Explanation, *, list_all: bool, as_json: bool) -> None:
    subject = explanation.subject
    labels = labels_on(engine, subject.server, subject.database, explanation.window.end)
    if as_json:
        print_json({**_as_dict(explanation), "labels": labels})
    else:
        _print(explanation, labels, list_all=list_all)


def _explain_runway(
    engine: Engine, settings: Settings, database: str | None, server: str | None, volume: str | None, *, as_json: bool
) -> None:
    from capacity_assets.cli.explain_runway import explain_runway

    kind = VOLUME_ROWS if volume else DATABASE_ROWS if database is not None else SERVER_ROWS
    explain_runway(engine, settings, kind, volume or database, server, as_json=as_json)


def _refuse_subjects(
    database: str | None, server: str | None, volume: str | None, label: str | None, *, runway: bool
) -> None:
    """Refuse options that name no subject, or several; raises ValidationError."""
    if label is not None and (database, server, volume, runway) != (None, None, None, False):
        raise ValidationError("--label explains a whole group: omit the database, --server, --volume and --runway.")
    if (database, server, volume, label) == (None, None, None, None):
        raise ValidationError("Name a database, a server with --server, or a group with --label.")
    if volume is not None and (database is not None or not runway):
        raise ValidationError("--volume needs --runway, and replaces the database.")


def _only(subjects: Sequence[Subject]) -> Subject:
    """Return the only subject; raises ValidationError for several."""
    if len(subjects) > 1:
        names = first_of((subject.server for subject in subjects), SERVERS_NAMED)
        raise ValidationError(
            f"{len(subjects)} servers have a database named {subjects[0].database!r}: {names}. Add --server."
        )
    return subjects[0]


def _explain_group(
    engine: Engine, settings: Settings, label: str, period: Period, window: Window, *, list_all: bool, as_json: bool
) -> None:
    key, value = key_and_value(label)
    key, _ = checked(key, value, settings.label_keys)
    # One snapshot for all queries: a row that is written meanwhile would seem to differ.
    with database_errors(doing="reading a group"), snapshot(engine) as connection:
        group = explain_group(connection, period, window, key, value)
        changed_at = groups_changed_at(connection, period, [window])
    if as_json:
        window_json = {"period_type": period.name, "period_start": window.start, "period_end": window.end}
        sums = {"sum_mb": group.sum_mb, "size_mb": group.size_mb, "agrees": group.agrees}
        print_json({**asdict(group), **window_json, **sums})
        return
    parts = group.parts if list_all else group.parts[:PARTS_LISTED]
    title = f"{key}={value}, {period.name_of(window)}, by the labels of each day"
    print_table(title, GROUP_COLUMNS, [_part_cells(part, group.days) for part in parts])
    if hidden := len(group.parts) - len(parts):
        say(f"and {counted(hidden, 'smaller part')}; --all lists them.")
    say(_verdict(group))
    if changed_at:
        say(being_computed(changed_at))


def _part_cells(part: GroupPart, days: int) -> list[object]:
    label = f"of {'the server' if part.label_of is None else part.label_of}, {since(part.valid_from)}"
    database = part.database or "all without another value"
    return [part.server, database, part.days, human_mb(part.sum_mb // days), label]


def _verdict(group: ExplainedGroup) -> str:
    total = f"Total: {group.sum_mb:,} MiB over {counted(group.days, 'measured day')}"
    if group.agrees:
        return f"{total}, {human_mb(group.size_mb)} per day. The stored row has the same."
    if not group.is_whole:
        return f"{total}. The stored row covers {group.row_days} days; the samples of the others no longer exist."
    stored = "There is no stored row" if group.row_sum_mb is None else f"The stored row has {group.row_sum_mb:,} MiB"
    return f"{total}. {stored}: `capacity aggregate` recomputes this window."


def _print(explanation: Explanation, labels: Mapping[str, str], *, list_all: bool) -> None:
    period, window, samples = explanation.period, explanation.window, explanation.samples
    say(f"{explanation.subject}, {period.name} window {window.start} to {window.end}")
    if labels:
        say(f"Labels: {', '.join(f'{key}={value}' for key, value in sorted(labels.items()))}")
    _print_samples(f"Samples of the window: {len(samples.own)}", samples.own, list_all=list_all)
    if not explanation.subject.active:
        say("The server is not active: it is no longer aggregated, and its stored rows are kept.")
    missing = explanation.missing_days
    if missing and samples.own:
        say(f"Days without a sample: {first_of(missing, DAYS_LISTED)}")
    for description, other, earlier in (
        ("previous window", period.previous(window), samples.before),
        ("same window a year before", period.year_before(window), samples.year_before),
    ):
        heading = f"Samples of the {description}, {other.start} to {other.end}: {len(earlier)}"
        _print_samples(heading, earlier, list_all=list_all)
    if explanation.figures:
        print_table("Figures", FIGURE_COLUMNS, [_figure_cells(explanation, figure) for figure in explanation.figures])
    say(explanation.verdict)


def _figure_cells(explanation: Explanation, figure: Figure) -> list[object]:
    if explanation.stored is None:
        return [figure.name, figure.how, _shown(figure.computed), ""]
    stored = _shown(figure.stored)
    if not figure.agrees:
        stored = f"{stored:,} !" if isinstance(stored, int) else f"{stored} !"
    return [figure.name, figure.how, _shown(figure.computed), stored]


def _shown(value: object) -> object:
    """Return a value for a table; whole numbers get separators, also if they are stored as decimals."""
    if isinstance(value, Decimal) and value.as_tuple().exponent == 0:
        return int(value)
    return "unknown" if value is None else value


def _print_samples(heading: str, samples: Sequence[Sample], *, list_all: bool) -> None:
    """Print the first and last samples, or all; the figures name the days of the extremes."""
    if not samples:
        say(heading)
        return
    rows: list[list[object]] = [[sample.day, *map(_shown, sample.values.values())] for sample in samples]
    if not list_all and len(rows) > 2 * DAYS_LISTED + 1:
        hidden: list[object] = [f"{len(rows) - 2 * DAYS_LISTED} days", *("..." for _ in samples[0].values)]
        rows = [*rows[:DAYS_LISTED], hidden, *rows[-DAYS_LISTED:]]
    print_table(heading, (*left("Day"), *right(*samples[0].values)), rows)


def _as_dict(explanation: Explanation) -> dict[str, object]:
    samples = {
        "samples": explanation.samples.own,
        "samples_before": explanation.samples.before,
        "samples_year_before": explanation.samples.year_before,
    }
    return {
        "subject": asdict(explanation.subject),
        "period_type": explanation.period.name,
        "period_start": explanation.window.start,
        "period_end": explanation.window.end,
        **{key: [{"day": sample.day, **sample.values} for sample in days] for key, days in samples.items()},
        "missing_days": list(explanation.missing_days),
        "figures": [{**asdict(figure), "agrees": figure.agrees} for figure in explanation.figures],
        "verdict": explanation.verdict,
    }
