"""`capacity export`: aggregates, runways, or samples of tables and indexes as a file, from the views."""

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
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted
from capacity_assets.cli import options
from capacity_assets.cli.options import Report
from capacity_assets.history.exporting import WRITERS, Query, copy_csv, open_driver, rows_of_view
from capacity_assets.runtime import open_task_runner

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
        """Return the format, by the extension if it is not given; raises ValidationError for contradicting options."""
        if (self.runway, self.objects, self.period is not None).count(True) != 1:
            raise ValidationError("Give either --period, --runway or --objects.")
        if self.objects and (self.engine is not None or self.label is not None):
            raise ValidationError("--objects writes all tables and indexes: give neither --engine nor --label.")
        if self.level not in SERVER_LEVELS:
            raise ValidationError(f"Unknown level {self.level!r}; known: {', '.join(SERVER_LEVELS)}.")
        if self.output == options.STANDARD_OUTPUT:
            if self.form in {"parquet", "xlsx"} or options.wants_json():
                raise ValidationError("Parquet, xlsx and --json need a file: name one with --output.")
            return "csv"
        path = Path(self.output).resolve()
        extension = path.suffix.lower()
        if self.form is None and extension not in FORMAT_BY_SUFFIX:
            raise ValidationError(f"{extension} is not a known format: use .csv, .xlsx or .parquet, or give --format.")
        if path.exists() and not path.is_file():
            raise ValidationError(f"{path} exists and is not an ordinary file.")
        return self.form or FORMAT_BY_SUFFIX[extension]


@click.command()
@options.period_option()
@click.option(
    "--level",
    default="database",
    show_default=True,
    help=f"{' or '.join(SERVER_LEVELS)}.",
    shell_complete=options.completion_of(SERVER_LEVELS),
)
@click.option("--from", "first_day", type=options.DAY, help="First day; its whole window is included.")
@click.option("--to", "last_day", type=options.DAY, help="Last day; windows that begin later are excluded.")
@options.filter_options
@click.option("--runway", is_flag=True, help="Write the newest runways instead of a period's aggregates.")
@click.option("--objects", is_flag=True, help="Write the samples of tables and indexes instead.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "parquet", "xlsx"]),
    help="Default: by the extension of the file, else csv.",
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
        raise ValidationError(f"The first day {first} lies after the last day {last}.")
    key, value = chosen.label or (None, None)
    condition = sql.SQL(
        "({engine} IS NULL OR engine = {engine}) AND ({key} IS NULL OR labels ->> {key} = {value})"
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
