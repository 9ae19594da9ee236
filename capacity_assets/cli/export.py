"""`capacity export`: the aggregates of a period as a file for other tools, read from the public views."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from psycopg import sql
from psycopg.errors import Error as PostgresError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from capacity_assets.aggregates.levels import SERVER_LEVELS
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import ValidationError, database_error
from capacity_assets.base.files import atomic_write
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import FORMULA, counted
from capacity_assets.cli.options import (
    DAY,
    STANDARD_OUTPUT,
    CommandFailedError,
    completing,
    filter_options,
    json_command,
    label_filter,
    print_json,
    say,
    writing,
)
from capacity_assets.database.views import VIEWS
from capacity_assets.runtime import open_task_runner, refuse_an_absent_embedded_server

if TYPE_CHECKING:
    from psycopg import Connection

VIEW_OF_LEVEL = {"database": "capacity_growth", "instance": "capacity_server_growth"}
RUNWAY_VIEW = "capacity_runway"
ROWS_AT_ONCE = 50_000
# Columns with names that others chose.
NAMES = {"server", "engine", "database", "name", "labels", "volumes"}
# Compounded over twelve months, a percentage may have hundreds of digits, more than a Parquet decimal holds.
TEXTS = {"yearly_rate_percent"}
_AS_TEXT = sql.SQL("CAST({name} AS text) AS {name}")
# The same as base.units.as_plain_text, in SQL, because the rows do not pass through Python.
_GUARDED = sql.SQL(f"regexp_replace(CAST({{name}} AS text), '{FORMULA}', '''\\1', 'g') AS {{name}}")


@dataclass(frozen=True)
class Export:
    """The options of the command line; open days are None."""

    period: str | None
    level: str
    engine: str | None
    label: str | None
    first_day: date | None
    last_day: date | None
    runway: bool
    form: str | None
    output: str
    raw: bool
    as_json: bool

    @property
    def view(self) -> str:
        """The view that is written."""
        return RUNWAY_VIEW if self.runway else VIEW_OF_LEVEL[self.level]


@click.command()
@click.option("--period", help=f"One of {', '.join(PERIODS)}.", shell_complete=completing(PERIODS))
@click.option(
    "--level",
    default="database",
    show_default=True,
    help=f"{' or '.join(SERVER_LEVELS)}.",
    shell_complete=completing(SERVER_LEVELS),
)
@click.option("--from", "first_day", type=DAY, help="First day; its whole window is written.")
@click.option("--to", "last_day", type=DAY, help="Last day; windows that begin later are left out.")
@filter_options
@click.option("--runway", is_flag=True, help="The newest runways instead of a period's aggregates.")
@click.option(
    "--format", "form", type=click.Choice(["csv", "parquet"]), help="Default: by the name of the file, else csv."
)
@click.option("--output", default="-", help="A file. Default: standard output.")
@click.option("--raw", is_flag=True, help="CSV: leave names as they are that a spreadsheet would run as a formula.")
@json_command
def export(settings: Settings, /, **asked: Any) -> None:
    """Write stored aggregates or runways as CSV or Parquet.

    The columns are those of the views.

    \b
    Examples:
      capacity export --period monthly --from 2025-01-01 > growth.csv
      capacity export --period daily --level instance --format parquet --output servers.parquet
      capacity export --runway > runways.csv
    """
    wanted = Export(**asked)
    if wanted.runway == (wanted.period is not None):
        raise ValidationError("Say what to write: either --period or --runway. Nothing was written.")
    if wanted.level not in SERVER_LEVELS:
        raise ValidationError(
            f"Unknown level {wanted.level!r}; known: {', '.join(SERVER_LEVELS)}. Nothing was written."
        )
    to_file = wanted.output != STANDARD_OUTPUT
    if not to_file and (wanted.form == "parquet" or wanted.as_json):
        raise ValidationError("Parquet and --json need a file: name one with --output. Nothing was written.")
    form = wanted.form or _form_of(wanted.output)
    path = Path(wanted.output).resolve()
    if to_file and path.exists() and not path.is_file():
        raise ValidationError(f"{path} exists and is not an ordinary file. Nothing was written.")
    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner, _reading(runner.service.engine) as connection:
        query = _rows(runner, wanted, guarded=form == "csv" and not wanted.raw)
        if not to_file:
            with writing("Standard output"):
                _copy(connection, query, sys.stdout.buffer.write)
                sys.stdout.buffer.flush()
            return
        with writing(path), atomic_write(path) as begun:
            if form == "parquet":
                rows = _write_parquet(connection, query, begun)
            else:
                with begun.open("wb") as file:
                    rows = _copy(connection, query, file.write)
    if wanted.as_json:
        print_json({"path": str(path), "rows": rows, "view": wanted.view})
    else:
        say(f"{counted(rows, 'row')} of {wanted.view} written to {path}")


def _form_of(output: str) -> str:
    """Tell the form by the name of the file; raises ValidationError where its ending means another one."""
    ending = Path(output).suffix.lower()
    if output == STANDARD_OUTPUT or ending in {"", ".csv", ".txt"}:
        return "csv"
    if ending == ".parquet":
        return "parquet"
    raise ValidationError(
        f"{ending} files are not made: name it .csv or .parquet, or say what it is with --format. Nothing was written."
    )


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection[Any]]:
    """Yield the driver's own connection: it streams, so that memory does not grow with the history."""
    with engine.connect() as connection:
        driver: Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        try:
            driver.execute("SET TRANSACTION READ ONLY")
            driver.execute("SET LOCAL statement_timeout = 0")
            yield driver
        except PostgresError as error:
            wrapped = DBAPIError(None, None, error)
            kept = "A file that was there before is as it was; what went to standard output is not whole."
            raise database_error(wrapped, doing="reading the rows", kept=kept) from error


def _rows(runner: AggregationTaskRunner, wanted: Export, *, guarded: bool) -> sql.Composed:
    [view] = [view for view in VIEWS if view.name == wanted.view]
    columns = sql.SQL(", ").join(
        _form(column.name, guarded=guarded).format(name=sql.Identifier(column.name)) for column in view.columns
    )
    key, value = label_filter(wanted.label)
    chosen = sql.SQL(
        "({engine} IS NULL OR engine = {engine}) AND ({key} IS NULL OR labels ->> {key} = {value})"
    ).format(engine=sql.Literal(wanted.engine), key=sql.Literal(key), value=sql.Literal(value))
    if wanted.period is None:
        return sql.SQL("SELECT {columns} FROM {view} WHERE {chosen} ORDER BY server, subject, name").format(
            columns=columns, view=sql.Identifier(wanted.view), chosen=chosen
        )
    period = runner.service.period(wanted.period)
    first, last = wanted.first_day or date.min, wanted.last_day or date.max
    if first > last:
        raise ValidationError(f"The first day {first} lies after the last day {last}. Nothing was written.")
    # The window that holds the first day counts as a whole.
    start = date.min if wanted.first_day is None else period.window_of(wanted.first_day).start
    order = ("window_start", "server", "database") if wanted.level == "database" else ("window_start", "server")
    return sql.SQL(
        "SELECT {columns} FROM {view} "
        "WHERE period = {period} AND window_start BETWEEN {first} AND {last} AND {chosen} ORDER BY {order}"
    ).format(
        chosen=chosen,
        columns=columns,
        view=sql.Identifier(wanted.view),
        period=sql.Literal(wanted.period),
        first=sql.Literal(start),
        last=sql.Literal(last),
        order=sql.SQL(", ").join(map(sql.Identifier, order)),
    )


def _form(column: str, *, guarded: bool) -> sql.SQL:
    if column in NAMES and guarded:
        return _GUARDED
    return _AS_TEXT if column in NAMES | TEXTS else sql.SQL("{name}")


def _copy(connection: Connection[Any], query: sql.Composed, write: Callable[[bytes], object]) -> int:
    with connection.cursor() as cursor:
        with cursor.copy(sql.SQL("COPY ({}) TO STDOUT WITH (FORMAT csv, HEADER)").format(query)) as rows:
            for block in rows:
                write(bytes(block))
        return cursor.rowcount


def _write_parquet(connection: Connection[Any], query: sql.Composed, path: Path) -> int:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CommandFailedError(
            "Parquet needs the package pyarrow: `pip install pyarrow`. Nothing was written; --format csv works without."
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
    with connection.cursor(name="export") as cursor:
        cursor.execute(query)
        described = cursor.description or []
        types = connection.adapters.types
        schema = pyarrow.schema(
            [(column.name, kinds.get(types[column.type_code].name, pyarrow.string())) for column in described]
        )
        with parquet.ParquetWriter(path, schema) as writer:
            while rows := cursor.fetchmany(ROWS_AT_ONCE):
                columns = [
                    pyarrow.array(values, field.type)
                    for values, field in zip(zip(*rows, strict=True), schema, strict=True)
                ]
                writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
                written += len(rows)
    return written
