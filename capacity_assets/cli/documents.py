"""`capacity report`, `digest` and `export`: documents of a window or week, and rows of views as files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
from psycopg import sql
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import SERVER_LEVELS
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.declarations import atomic_write
from capacity_assets.base.errors import NotFoundError, ValidationError, refuse
from capacity_assets.base.periods import Window
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, human_change_mb, human_mb
from capacity_assets.cli import options
from capacity_assets.cli.options import Report
from capacity_assets.collection.servers import refuse_unknown_engine
from capacity_assets.digest import as_html, as_text, read_digest, send_digests
from capacity_assets.history.exporting import WRITERS, Query, copy_csv, open_driver, rows_of_view
from capacity_assets.messages.channels import SendingSettings, receivers_of
from capacity_assets.ownership.labels import refuse_unknown_grouping, refuse_unknown_label
from capacity_assets.report.page import file_name, make_report_folder, next_edition, read_report, render, write_report
from capacity_assets.runtime import open_task_runner


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
@click.option("--again", is_flag=True, help="With --send: send it again to those who have received it.")
@options.json_command
def digest(
    settings: Settings, /, *, day: date | None, label: tuple[str, str] | None, output: str, send: bool, again: bool
) -> Report:
    """Show what was unusual in a week.

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
            return _report_of_sending(settings, engine, week, today=today, again=again)
        content = read_digest(engine, week, label, settings.thresholds, today=today)
        if label is not None and not content.history:
            refuse_unknown_label(engine, *label)
            raise NotFoundError(
                f"No database has {'='.join(label)} in the weeks up to {week.end}: the label begins later, or these "
                "weeks were not computed."
            )
    if output == options.STANDARD_OUTPUT:
        return Report(content, [as_text(content, settings.pages_url).rstrip("\n")])
    options.write_text(output, as_html(content, settings.pages_url))
    return Report(content, [f"Digest written to {output}"])


def _report_of_sending(settings: Settings, engine: Engine, week: Window, **how: Any) -> Report:
    if settings.receivers is None:
        raise ValidationError("CAPACITY_RECEIVERS is unset: set it to the file that lists the receivers.")
    receivers = receivers_of(settings.receivers, settings.label_keys)
    result = send_digests(engine, week, receivers, SendingSettings.of(settings), **how)
    lines = [
        *(f"Sent to {name}." for name in result.sent),
        *(f"{name} has already received it; --again sends it once more." for name in result.earlier),
    ]
    failures = " ".join(f"{name}: {reason}" for name, reason in result.failed)
    retry = "All other digests were sent. Run the command again to retry."
    failure = f"Could not send to {failures} {retry}" if failures else ""
    return Report(result, lines, failure=failure)


DEFAULT_LEVEL = "database"
RUNWAY_VIEW = "capacity_runway"
OBJECT_VIEW = "capacity_objects"
OBJECT_ORDER = ["day", "server", "database", "kind", "schema_name", "table_name", "object_name"]
FORMAT_BY_SUFFIX = {"": "csv", ".csv": "csv", ".txt": "csv", ".parquet": "parquet", ".xlsx": "xlsx"}


@dataclass(frozen=True)
class Export:
    """The options of the command line; None: not given."""

    period: str | None
    level: str
    engine: str | None
    label: tuple[str, str] | None
    first_day: date | None
    last_day: date | None
    runway: bool
    objects: bool
    form: str | None
    output: str
    raw: bool

    @property
    def view(self) -> str:
        """The view that is written."""
        if self.objects:
            return OBJECT_VIEW
        return RUNWAY_VIEW if self.runway else SERVER_LEVELS[self.level].view

    def checked_format(self) -> str:
        """Return the format, by the extension if it is not given; raises ValidationError for contradictory options."""
        one_of_three = (self.runway, self.objects, self.period is not None).count(True) == 1
        has_filters = (self.engine, self.label) != (None, None)
        has_days = (self.first_day, self.last_day) != (None, None)
        unknown_level = f"Unknown level {self.level!r}; known: {', '.join(SERVER_LEVELS)}."
        refuse(
            (not one_of_three, "Give either --period, --runway or --objects."),
            (self.objects and has_filters, "--objects writes all tables and indexes: omit --engine and --label."),
            (self.runway and has_days, "--runway writes the newest forecasts: omit --from and --to."),
            (self.level not in SERVER_LEVELS, unknown_level),
            (self.period is None and self.level != DEFAULT_LEVEL, "--level needs --period."),
        )
        if self.output == options.STANDARD_OUTPUT:
            if self.form in {"parquet", "xlsx"} or options.wants_json():
                raise ValidationError("Parquet, xlsx and --json need a file: name one with --output.")
            return "csv"
        path = Path(self.output).resolve()
        extension = path.suffix.lower()
        if self.form is None and extension not in FORMAT_BY_SUFFIX:
            raise ValidationError(f"{extension} is not a known format: use .csv, .xlsx or .parquet, or give --format.")
        if extension and self.form not in {None, FORMAT_BY_SUFFIX.get(extension, self.form)}:
            raise ValidationError(f"{path.name} would not be a {self.form} file: omit --format, or rename the file.")
        if path.exists() and not path.is_file():
            raise ValidationError(f"{path} exists and is not an ordinary file.")
        return self.form or FORMAT_BY_SUFFIX[extension]


@click.command()
@options.period_option()
@click.option(
    "--level",
    default=DEFAULT_LEVEL,
    show_default=True,
    help=f"{' or '.join(SERVER_LEVELS)}.",
    shell_complete=options.completion_of(SERVER_LEVELS),
)
@click.option("--from", "first_day", type=options.DAY, help="First day; its whole window is included.")
@click.option("--to", "last_day", type=options.DAY, help="Last day; windows that begin later are excluded.")
@options.filter_options
@click.option("--runway", is_flag=True, help="Write the newest forecasts instead of the aggregates of a period.")
@click.option("--objects", is_flag=True, help="Write the samples of tables and indexes instead.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "parquet", "xlsx"]),
    help="Default: by the extension of the file, otherwise csv.",
)
@click.option("--output", default="-", help="A file. Default: standard output.")
@click.option("--raw", is_flag=True, help="CSV: do not escape names that a spreadsheet would run as a formula.")
@options.json_command
def export(settings: Settings, /, **values: Any) -> Report | None:
    """Write stored aggregates or runways as CSV, Excel or Parquet.

    The file has the columns of the views.

    \b
    Examples:
      capacity export --period monthly --from 2025-01-01 > growth.csv
      capacity export --period daily --level instance --format parquet --output servers.parquet
      capacity export --runway --output runways.xlsx
      capacity export --objects --from 2025-01-01 --output tables.xlsx
    """
    chosen = Export(**values)
    extension = chosen.checked_format()
    path = Path(chosen.output).resolve()
    with open_task_runner(settings, existing=True) as runner:
        if chosen.engine is not None:
            refuse_unknown_engine(runner.service.engine, chosen.engine)
        query = _query(runner, chosen, is_guarded=extension == "csv" and not chosen.raw)
        rows = write_rows(runner.service.engine, query, chosen.output, extension)
    if rows is None:
        return None
    document = {"path": str(path), "rows": rows, "view": chosen.view}
    return Report(document, [f"{counted(rows, 'row')} of {chosen.view} written to {path}"])


def write_rows(engine: Engine, query: Query, output: str, form: str) -> int | None:
    """Write rows to a file, replaced whole, and return their number; or as CSV to standard output, and return None.

    Raises CapacityError: the file cannot be written, or the database failed.
    """
    with open_driver(engine) as connection:
        if output == options.STANDARD_OUTPUT:
            with options.writing("Standard output"):
                copy_csv(connection, query, sys.stdout.buffer.write)
                sys.stdout.buffer.flush()
            return None
        path = Path(output).resolve()
        with options.writing(path), atomic_write(path) as new_file:
            return WRITERS[form](connection, query, new_file)


def _query(runner: AggregationTaskRunner, chosen: Export, *, is_guarded: bool) -> sql.Composed:
    first, last = chosen.first_day or date.min, chosen.last_day or date.max
    if first > last:
        raise ValidationError(f"The first day {first} is after the last day {last}.")
    key, value = chosen.label or (None, None)
    condition = sql.SQL(
        "({engine} IS NULL OR engine = {engine}) AND ({key} IS NULL OR coalesce(labels ->> {key}, '') = {value})"
    ).format(engine=chosen.engine, key=key, value=value)
    order = ["server", "subject", "name"]
    if chosen.objects:
        condition, order = sql.SQL("day BETWEEN {} AND {}").format(first, last), OBJECT_ORDER
    elif chosen.period is not None:
        period = runner.service.period(chosen.period)
        # The whole window of the first day is included.
        start = date.min if chosen.first_day is None else period.window_of(chosen.first_day).start
        condition += sql.SQL(" AND period = {} AND window_start BETWEEN {} AND {}").format(chosen.period, start, last)
        order = ["window_start", *SERVER_LEVELS[chosen.level].view_order]
    return rows_of_view(chosen.view, condition, order, is_guarded=is_guarded)
