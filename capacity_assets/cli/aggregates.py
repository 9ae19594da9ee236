"""`capacity aggregate`, `plan` and `explain`: compute aggregates without Dagster, and trace figures to their samples.

`explain_runway` in `cli.runway` explains a runway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from decimal import Decimal
from typing import Any

import click
from sqlalchemy import Engine

from capacity_assets.aggregates.explanation import (
    ExplainedSubject,
    Explanation,
    Figure,
    ValuesOfDay,
    explanation_of,
    find_subjects,
)
from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.runs import SCOPE_ALL, PeriodSummary, RunOptions, RunSummary
from capacity_assets.base.declarations import checked_label
from capacity_assets.base.errors import AggregationStatus, CapacityError, ValidationError, database_errors
from capacity_assets.base.periods import PERIODS, Clock, Period, Window
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, first_of, human_mb
from capacity_assets.cli import options
from capacity_assets.cli.declaring import since_text
from capacity_assets.cli.options import (
    DAY,
    DONE,
    FAILED,
    Line,
    Report,
    Table,
    json_command,
    label_option,
    period_option,
)
from capacity_assets.database.engine import snapshot
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.forecast.results import DATABASE, SERVER, VOLUME
from capacity_assets.ownership import labels as ownership
from capacity_assets.ownership.labels import GroupExplanation, GroupPart, read_labels
from capacity_assets.reading.subjects import SampleOrigin, origins_of
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
        "--server", "--instance", "names", multiple=True, help="Only this server, by name or ID; may be repeated."
    ),
    click.option(
        "--recompute", is_flag=True, help="Also recompute windows that did not change since they were computed."
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Rebuild windows exactly: replace protected rows, remove rows that samples no longer support.",
    ),
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
    document = {"dry_run": True, "windows": [_plan_fields(part) for part in run.summaries]}
    return _report(run, document, _plan_lines(run), troubles)


def _report(
    run: RunSummary, document: Mapping[str, object], lines: Iterable[Line], troubles: Sequence[CapacityError]
) -> Report:
    """Report a run; if whole periods failed, their `troubles` are the failure of the command."""
    texts = [str(trouble) for trouble in troubles]
    code = FAILED if run.status is AggregationStatus.FAILED else DONE
    return Report({**document, "troubles": texts}, lines if run.summaries else (), code, "\n".join(texts))


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
        # Also refuses an unknown period together with `all`.
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
    for period, level in dict.fromkeys((part.period_type, part.level) for part in run.summaries):
        part = run.of_period(period).of_level(level)
        rows.append([period, level, len(part.summaries), *map(part.total, counts.values())])
    headings = ("Period", "Level", ">Windows", *(f">{heading}" for heading in counts))
    yield Table("Servers (counted once for each window) and rows", headings, rows)
    yield f"{run.status.value}: {run.message}"
    yield from (f"  {error}" for error in run.errors[1:])


def _plan_lines(run: RunSummary) -> Iterator[Line]:
    """Yield one row for each window and level that would change, and one with the number of the others."""
    with_work = [
        part for part in run.summaries if part.written_records or part.removed_records or part.failed_instances
    ]
    listed = run.summaries if len(run.summaries) <= ALWAYS_LISTED else with_work
    counts = _without_removed(PLANNED, run)
    rows = [
        [part.period_type, part.level, part.period_start, *(getattr(part, key) for key in counts.values())]
        for part in listed
    ]
    headings = ("Period", "Level", "Window", *(f">{heading}" for heading in counts))
    if listed:
        yield Table("Servers with and without samples, and rows that would be written", headings, rows)
    if len(listed) < len(run.summaries):
        yield f"Not listed, because nothing would be written: {len(run.summaries) - len(listed):,} windows and levels."
    removed = run.total("removed_records")
    yield (
        f"Rows: would write {run.total('written_records'):,}{f' and remove {removed:,}' if removed else ''}; "
        f"{run.total('unchanged_records'):,} are up to date, {run.total('protected_records'):,} are kept because their "
        "samples no longer exist."
    )
    yield from (f"  would fail: {error}" for error in run.errors)
    yield options.NOTHING_CHANGED


def _plan_fields(part: PeriodSummary) -> dict[str, object]:
    columns = ("period_type", "level", "period_start", "period_end", *PLANNED.values())
    return {**{name: getattr(part, name) for name in columns}, "errors": list(map(str, part.errors))}


DAYS_LISTED = 5
SERVERS_NAMED = 10
PARTS_LISTED = 20
GROUP_HEADINGS = ("Server", "Database", ">Days", ">Size per measured day", "Label")


@click.command()
@click.argument("database", required=False)
@period_option()
@click.option("--window", "day", type=DAY, help="Any day of the window. Default: the window that is due.")
@click.option("--server", help="Name of the server. Needed if several servers have a database of that name.")
@click.option("--runway", is_flag=True, help="Explain the forecast instead of the figures of a period.")
@click.option("--volume", help="With --runway: a volume of the server instead of a database.")
@label_option("Explain the sum of a group, such as team=payments.")
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
    label: tuple[str, str] | None,
    list_all: bool,
) -> Report:
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
        raise ValidationError("--runway explains today's forecast: omit --period, --window and --all.")
    needs_period = period is None and not runway
    or_runway = f"Give --period, one of {', '.join(PERIODS)}, or --runway."
    if needs_period and label is not None:
        raise ValidationError(or_runway)
    with open_task_runner(settings, existing=True) as runner:
        service, engine = runner.service, runner.service.engine
        if needs_period:
            # A wrong name is reported first.
            find_subjects(engine, database, server)
            raise ValidationError(or_runway)
        if period is None or label is not None:
            refuse_an_unfit_database(engine, settings.zone)
        if period is None:
            from capacity_assets.cli.runway import explain_runway

            kind = VOLUME if volume else DATABASE if database is not None else SERVER
            return explain_runway(engine, settings, kind, volume or database, server)
        chosen = service.period(period)
        today = Clock(settings.zone).today()
        window = service.partitions.window_holding(chosen, day or chosen.scheduled(today).start)
        if label is not None:
            return _explain_group(engine, settings, label, chosen, window, list_all=list_all)
        subject = _only(find_subjects(engine, database, server))
        explanation = explanation_of(engine, subject, chosen, window, today)
        named = (subject.server, subject.database)
        with database_errors(doing="reading labels and imports"), engine.connect() as connection:
            labels = read_labels(connection, [named], window.end).get(named, {})
            origins = origins_of(connection, subject.instance_id, subject.database, window.start, window.end)
    document = {**_explanation_json(explanation), "labels": labels, "imported": origins}
    return Report(document, _explanation_lines(explanation, labels, origins, list_all=list_all))


def _refuse_subjects(
    database: str | None, server: str | None, volume: str | None, label: object, *, runway: bool
) -> None:
    if label is not None and (database, server, volume, runway) != (None, None, None, False):
        raise ValidationError("--label explains a whole group: omit the database, --server, --volume and --runway.")
    if (database, server, volume, label) == (None, None, None, None):
        raise ValidationError("Name a database, a server with --server, or a group with --label.")
    if volume is not None and (database is not None or not runway):
        raise ValidationError("--volume needs --runway and cannot be combined with a database.")


def _only(subjects: Sequence[ExplainedSubject]) -> ExplainedSubject:
    if len(subjects) > 1:
        names = first_of((subject.server for subject in subjects), SERVERS_NAMED)
        raise ValidationError(
            f"{len(subjects)} servers have a database named {subjects[0].database!r}: {names}. Add --server."
        )
    return subjects[0]


def _explain_group(
    engine: Engine, settings: Settings, label: tuple[str, str], period: Period, window: Window, *, list_all: bool
) -> Report:
    key, value = label
    checked_label(key, value or None, settings.label_keys)
    if not value:
        raise ValidationError(
            f"--label needs a value, such as {key}=NAME. Databases without {key} cannot be explained as a group."
        )
    # All queries read one snapshot; otherwise a row that is written in between would seem to differ.
    with database_errors(doing="reading a group"), snapshot(engine) as connection:
        group = ownership.explain_group(connection, period, window, key, value)
        changed_at = ownership.groups_changed_at(connection, period, [window])
    document = {
        **asdict(group),
        **{"period_type": period.name, "period_start": window.start, "period_end": window.end},
        **{"sum_mb": group.sum_mb, "size_mb": group.size_mb, "agrees": group.agrees},
    }
    parts = group.parts if list_all else group.parts[:PARTS_LISTED]
    title = f"{key}={value}, {period.name_of(window)}, by the labels of each day"
    hidden = len(group.parts) - len(parts)
    lines: list[Line] = [
        Table(title, GROUP_HEADINGS, [_part_cells(part, group.days) for part in parts]),
        *([f"and {counted(hidden, 'smaller part')}; --all lists them."] if hidden else []),
        _verdict(group),
        *([ownership.stale_groups_notice(changed_at)] if changed_at else []),
    ]
    return Report(document, lines)


def _part_cells(part: GroupPart, days: int) -> list[object]:
    label = f"of {'the server' if part.label_of is None else part.label_of}, {since_text(part.valid_from)}"
    database = part.database or "all without their own label"
    return [part.server, database, part.days, human_mb(part.sum_mb // days), label]


def _verdict(group: GroupExplanation) -> str:
    total = f"Total: {group.sum_mb:,} MiB over {counted(group.days, 'measured day')}"
    if group.agrees:
        return f"{total}, {human_mb(group.size_mb)} per day. The stored row has the same."
    if not group.is_whole:
        return f"{total}. The stored row covers {group.row_days} days; the samples of the others no longer exist."
    stored = "There is no stored row" if group.row_sum_mb is None else f"The stored row has {group.row_sum_mb:,} MiB"
    return f"{total}. {stored}: `capacity aggregate` recomputes this window."


def _explanation_lines(
    explanation: Explanation, labels: Mapping[str, str], origins: Sequence[SampleOrigin], *, list_all: bool
) -> Iterator[Line]:
    period, window, samples = explanation.period, explanation.window, explanation.samples
    yield f"{explanation.subject}, {period.name} window {window.start} to {window.end}"
    if labels:
        yield f"Labels: {', '.join(f'{key}={value}' for key, value in sorted(labels.items()))}"
    yield _samples(f"Samples of the window: {len(samples.own)}", samples.own, list_all=list_all)
    yield from (origin.sentence for origin in origins)
    if not explanation.subject.active:
        yield "The server is not active: it is no longer aggregated, and its stored rows are kept."
    missing = explanation.missing_days
    if missing and samples.own:
        yield f"Days without a sample: {first_of(missing, DAYS_LISTED)}"
    for description, other, earlier in (
        ("previous window", period.previous(window), samples.before),
        ("same window a year before", period.year_before(window), samples.year_before),
    ):
        heading = f"Samples of the {description}, {other.start} to {other.end}: {len(earlier)}"
        yield _samples(heading, earlier, list_all=list_all)
    if explanation.figures:
        rows = [_figure_cells(explanation, figure) for figure in explanation.figures]
        yield Table("Figures", ("Figure", "~How", ">Result", ">Stored"), rows)
    yield explanation.verdict


def _figure_cells(explanation: Explanation, figure: Figure) -> list[object]:
    if explanation.stored is None:
        return [figure.name, figure.how, _cell(figure.computed), ""]
    stored = _cell(figure.stored)
    if not figure.agrees:
        stored = f"{stored:,} !" if isinstance(stored, int) else f"{stored} !"
    return [figure.name, figure.how, _cell(figure.computed), stored]


def _cell(value: object) -> object:
    """Return a value for a table; whole numbers get separators, also if they are stored as decimals."""
    if isinstance(value, Decimal) and value.as_tuple().exponent == 0:
        return int(value)
    return "unknown" if value is None else value


def _samples(heading: str, samples: Sequence[ValuesOfDay], *, list_all: bool) -> Line:
    """Return a table of the first and last samples, or of all; the figures name the days of the extremes."""
    if not samples:
        return heading
    rows: list[list[object]] = [[sample.day, *map(_cell, sample.values.values())] for sample in samples]
    if not list_all and len(rows) > 2 * DAYS_LISTED + 1:
        hidden: list[object] = [f"{len(rows) - 2 * DAYS_LISTED} days", *("..." for _ in samples[0].values)]
        rows = [*rows[:DAYS_LISTED], hidden, *rows[-DAYS_LISTED:]]
    return Table(heading, ("Day", *(f">{name}" for name in samples[0].values)), rows)


def _explanation_json(explanation: Explanation) -> dict[str, object]:
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
