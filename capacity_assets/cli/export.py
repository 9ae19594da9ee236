"""`capacity export`: aggregates, runways, or samples of tables and indexes as a file, from the views."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from psycopg import sql
from psycopg.errors import Error as PostgresError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from capacity_assets.aggregates.levels import SERVER_LEVELS
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.declarations import atomic_write
from capacity_assets.base.errors import ValidationError, database_error
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import FORMULA, counted
from capacity_assets.cli import options
from capacity_assets.cli.options import Report
from capacity_assets.database.views import VIEWS
from capacity_assets.runtime import open_task_runner

if TYPE_CHECKING:
    from psycopg import Connection
    from xlsxwriter import Workbook
    from xlsxwriter.worksheet import Worksheet

VIEW_OF_LEVEL = {"database": "capacity_growth", "instance": "capacity_server_growth"}
RUNWAY_VIEW = "capacity_runway"
OBJECT_VIEW = "capacity_objects"
OBJECT_ORDER = ["day", "server", "database", "kind", "schema_name", "table_name", "object_name"]
FORMAT_BY_SUFFIX = {"": "csv", ".csv": "csv", ".txt": "csv", ".parquet": "parquet", ".xlsx": "xlsx"}
ROWS_AT_ONCE = 50_000
# The most rows of a sheet below its headings.
SHEET_ROWS = 1_048_575
WIDTHS = {"timestamptz": 20, "text": 24, "varchar": 24}
TIME_FORMAT = "yyyy-mm-dd hh:mm:ss"
# Columns of names, which others chose and a spreadsheet might run as a formula.
NAMES = {"server", "engine", "database", "name", "labels", "volumes", "schema_name", "table_name", "object_name"}
# Compounded over twelve months, a percentage can exceed the digits of a Parquet decimal.
TEXTS = {"yearly_rate_percent"}
_AS_TEXT = sql.SQL("CAST({name} AS text) AS {name}")
# The same as base.units.as_plain_text, in SQL, because the rows do not pass through Python.
_GUARDED = sql.SQL(f"regexp_replace(CAST({{name}} AS text), '{FORMULA}', '''\\1', 'g') AS {{name}}")


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
        return RUNWAY_VIEW if self.runway else VIEW_OF_LEVEL[self.level]

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
    with open_task_runner(settings, existing=True) as runner, _open_driver(runner.service.engine) as connection:
        query = _query(runner, chosen, guarded=extension == "csv" and not chosen.raw)
        if chosen.output == options.STANDARD_OUTPUT:
            with options.writing("Standard output"):
                _copy(connection, query, sys.stdout.buffer.write)
                sys.stdout.buffer.flush()
            return None
        with options.writing(path), atomic_write(path) as new_file:
            rows = _WRITERS[extension](connection, query, new_file)
    document = {"path": str(path), "rows": rows, "view": chosen.view}
    return Report(document, [f"{counted(rows, 'row')} of {chosen.view} written to {path}"])


@contextmanager
def _open_driver(engine: Engine) -> Iterator[Connection[Any]]:
    """Yield the connection of the driver, which streams rows, so that memory does not grow with the history."""
    with engine.connect() as connection:
        driver: Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        try:
            driver.execute("SET TRANSACTION READ ONLY")
            driver.execute("SET LOCAL statement_timeout = 0")
            yield driver
        except PostgresError as error:
            wrapped = DBAPIError(None, None, error)
            kept = "A file that existed before is unchanged; standard output is incomplete."
            raise database_error(wrapped, doing="reading the rows", kept=kept) from error


def _query(runner: AggregationTaskRunner, chosen: Export, *, guarded: bool) -> sql.Composed:
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
        order = ["window_start", "server", *(["database"] if chosen.level == "database" else [])]
    [view] = [view for view in VIEWS if view.name == chosen.view]
    columns = [
        _expression(column.name, guarded=guarded).format(name=sql.Identifier(column.name)) for column in view.columns
    ]
    return sql.SQL("SELECT {columns} FROM {view} WHERE {condition} ORDER BY {order}").format(
        columns=sql.SQL(", ").join(columns),
        view=sql.Identifier(view.name),
        condition=condition,
        order=sql.SQL(", ").join(map(sql.Identifier, order)),
    )


def _expression(column: str, *, guarded: bool) -> sql.SQL:
    if column in NAMES and guarded:
        return _GUARDED
    return _AS_TEXT if column in NAMES | TEXTS else sql.SQL("{name}")


def _write_csv(connection: Connection[Any], query: sql.Composed, path: Path) -> int:
    with path.open("wb") as file:
        return _copy(connection, query, file.write)


def _copy(connection: Connection[Any], query: sql.Composed, write: Callable[[bytes], object]) -> int:
    with connection.cursor() as cursor:
        with cursor.copy(sql.SQL("COPY ({}) TO STDOUT WITH (FORMAT csv, HEADER)").format(query)) as rows:
            for block in rows:
                write(bytes(block))
        return cursor.rowcount


@contextmanager
def _read_in_batches(
    connection: Connection[Any], query: sql.Composed
) -> Iterator[tuple[list[tuple[str, str]], Iterator[list[tuple[Any, ...]]]]]:
    """Yield the names and types of the columns, and the rows in batches, so that memory does not grow."""
    with connection.cursor(name="export") as cursor:
        cursor.execute(query)
        types = connection.adapters.types
        columns = [(column.name, types[column.type_code].name) for column in cursor.description or []]
        yield columns, iter(lambda: cursor.fetchmany(ROWS_AT_ONCE), [])


def _write_parquet(connection: Connection[Any], query: sql.Composed, path: Path) -> int:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise options.CommandFailedError(
            "Writing Parquet needs pyarrow: pip install 'capacity_assets[parquet]', or use --format csv or xlsx."
        ) from error
    kinds = {
        "int8": pyarrow.int64(),
        "int4": pyarrow.int64(),
        "date": pyarrow.date32(),
        "numeric": pyarrow.decimal128(38, 2),
        "bool": pyarrow.bool_(),
        "float8": pyarrow.float64(),
        "timestamptz": pyarrow.timestamp("us", tz="UTC"),
    }
    written = 0
    with _read_in_batches(connection, query) as (columns, batches):
        schema = pyarrow.schema([(name, kinds.get(kind, pyarrow.string())) for name, kind in columns])
        with parquet.ParquetWriter(path, schema) as writer:
            for rows in batches:
                arrays = [
                    pyarrow.array(values, field.type)
                    for values, field in zip(zip(*rows, strict=True), schema, strict=True)
                ]
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
                written += len(rows)
    return written


def _write_excel(connection: Connection[Any], query: sql.Composed, path: Path) -> int:
    """Write a workbook with a sheet for each SHEET_ROWS rows; times are in UTC, because cells have no zone."""
    from xlsxwriter import Workbook
    from xlsxwriter.exceptions import FileCreateError

    written = 0
    # Rows go to a file beside it as they are written.
    how: dict[str, object] = {"constant_memory": True, "tmpdir": str(path.parent), "default_date_format": "yyyy-mm-dd"}
    # A text stays a text, whatever it begins with.
    how |= dict.fromkeys(("strings_to_formulas", "strings_to_urls", "strings_to_numbers"), False)
    try:
        with Workbook(str(path), how) as workbook, _read_in_batches(connection, query) as (columns, batches):
            workbook.use_zip64()
            time = workbook.add_format({"num_format": TIME_FORMAT})
            sheet = _new_sheet(workbook, columns)
            for row in chain.from_iterable(batches):
                if written and written % SHEET_ROWS == 0:
                    sheet = _new_sheet(workbook, columns)
                line = written % SHEET_ROWS + 1
                for place, value in enumerate(row):
                    if isinstance(value, datetime):
                        sheet.write_datetime(line, place, value.astimezone(UTC).replace(tzinfo=None), time)
                    else:
                        sheet.write(line, place, value)
                written += 1
    except FileCreateError as error:
        # It wraps the error of the operating system.
        raise error.args[0] from None
    return written


def _new_sheet(workbook: Workbook, columns: Sequence[tuple[str, str]]) -> Worksheet:
    sheet, heading = workbook.add_worksheet(), workbook.add_format({"bold": True})
    sheet.freeze_panes(1, 0)
    for place, (name, kind) in enumerate(columns):
        sheet.set_column(place, place, max(len(name) + 2, WIDTHS.get(kind, 12)))
        sheet.write_string(0, place, name, heading)
    return sheet


_WRITERS = {"csv": _write_csv, "parquet": _write_parquet, "xlsx": _write_excel}
