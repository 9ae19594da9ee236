"""Rows of the database as files: the result of a query as CSV, Parquet or Excel, and windows as a Parquet data set.

Rows are streamed. If PostgreSQL can write the format, they do not pass through Python.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias
from uuid import uuid4

from psycopg import sql
from psycopg.errors import Error as PostgresError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from capacity_assets.aggregates.levels import Level
from capacity_assets.base.errors import CapacityError, database_error
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.units import FORMULA
from capacity_assets.database.views import VIEWS

if TYPE_CHECKING:
    from psycopg import Connection
    from xlsxwriter import Workbook
    from xlsxwriter.worksheet import Worksheet

Query: TypeAlias = sql.SQL | sql.Composed
ROWS_AT_ONCE = 50_000
# The most rows of a sheet below its headings.
SHEET_ROWS = 1_048_575
WIDTHS, LEAST_WIDTH, MOST_WIDTH = {"timestamptz": 20, "text": 24, "varchar": 24}, 12, 60
TIME_FORMAT = "yyyy-mm-dd hh:mm:ss"
# Columns of names, which others chose and a spreadsheet might run as a formula.
NAMES = {"server", "engine", "database", "name", "labels", "volumes", "schema_name", "table_name", "object_name"}
# Compounded over twelve months, a percentage can exceed the digits of a Parquet decimal.
COLUMNS_AS_TEXT = {"yearly_rate_percent"}
_AS_TEXT = sql.SQL("CAST({name} AS text) AS {name}")
# The same as base.units.as_plain_text, in SQL, because the rows do not pass through Python.
_GUARDED = sql.SQL(f"regexp_replace(CAST({{name}} AS text), '{FORMULA}', '''\\1', 'g') AS {{name}}")


def rows_of_view(
    name: str,
    condition: sql.Composable,
    order: Sequence[str],
    *,
    is_guarded: bool = False,
    without: Collection[str] = (),
) -> sql.Composed:
    """Return the query of the rows of a view, `without` some columns.

    If `is_guarded`, names that a spreadsheet might run as a formula are escaped.
    """
    [view] = [view for view in VIEWS if view.name == name]
    columns = (
        _expression(column.name, is_guarded=is_guarded).format(name=sql.Identifier(column.name))
        for column in view.columns
        if column.name not in without
    )
    return sql.SQL("SELECT {columns} FROM {view} WHERE {condition} ORDER BY {order}").format(
        columns=sql.SQL(", ").join(columns),
        view=sql.Identifier(view.name),
        condition=condition,
        order=sql.SQL(", ").join(map(sql.Identifier, order)),
    )


def _expression(column: str, *, is_guarded: bool) -> sql.SQL:
    if column in NAMES and is_guarded:
        return _GUARDED
    return _AS_TEXT if column in NAMES | COLUMNS_AS_TEXT else sql.SQL("{name}")


@contextmanager
def open_driver(engine: Engine) -> Iterator[Connection[Any]]:
    """Yield a connection of the driver, which can only read and streams rows; raises DatabaseError."""
    with engine.connect() as connection:
        driver: Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        try:
            driver.execute("SET TRANSACTION READ ONLY")
            driver.execute("SET LOCAL statement_timeout = 0")
            yield driver
        except PostgresError as error:
            wrapped = DBAPIError(None, None, error)
            kept = "An existing file is unchanged; standard output is incomplete."
            raise database_error(wrapped, doing="reading the rows", kept=kept) from error


def _write_csv(connection: Connection[Any], query: Query, path: Path) -> int:
    with path.open("wb") as file:
        return copy_csv(connection, query, file.write)


def copy_csv(connection: Connection[Any], query: Query, write: Callable[[bytes], object]) -> int:
    """Write rows as CSV with headings; return their number."""
    with connection.cursor() as cursor:
        with cursor.copy(sql.SQL("COPY ({}) TO STDOUT WITH (FORMAT csv, HEADER)").format(query)) as rows:
            for block in rows:
                write(bytes(block))
        return cursor.rowcount


@contextmanager
def _read_in_batches(
    connection: Connection[Any], query: Query
) -> Iterator[tuple[list[tuple[str, str]], Iterator[list[tuple[Any, ...]]]]]:
    """Yield the names and types of the columns, and the rows in batches, so that memory does not grow."""
    with connection.cursor(name="export") as cursor:
        cursor.execute(query)
        types = connection.adapters.types
        columns = [(column.name, types[column.type_code].name) for column in cursor.description or []]
        yield columns, iter(lambda: cursor.fetchmany(ROWS_AT_ONCE), [])


def _write_parquet(connection: Connection[Any], query: Query, path: Path) -> int:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CapacityError(
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


def _write_excel(connection: Connection[Any], query: Query, path: Path) -> int:
    from xlsxwriter.exceptions import FileCreateError

    # Rows are written to a file in the same folder first.
    options = {"constant_memory": True, "tmpdir": str(path.parent)}
    try:
        with _read_in_batches(connection, query) as (columns, batches):
            widths = {name: WIDTHS.get(kind, LEAST_WIDTH) for name, kind in columns}
            return write_workbook(str(path), widths, chain.from_iterable(batches), options)
    except FileCreateError as error:
        # It wraps the error of the operating system.
        raise error.args[0] from None


def write_workbook(
    target: str | BinaryIO,
    columns: Mapping[str, int],
    rows: Iterable[Sequence[Any]],
    options: Mapping[str, object] = MappingProxyType({}),
) -> int:
    """Write a workbook with a sheet for each SHEET_ROWS rows, and return the number of rows.

    `columns` are the least widths by name, in characters. Times are in UTC, because cells have no zone. Raises
    FileCreateError.
    """
    from xlsxwriter import Workbook

    written = 0
    # A text stays a text, whatever its first character is.
    as_text = dict.fromkeys(("strings_to_formulas", "strings_to_urls", "strings_to_numbers"), False)
    with Workbook(target, {**options, **as_text, "default_date_format": "yyyy-mm-dd"}) as workbook:
        workbook.use_zip64()
        time = workbook.add_format({"num_format": TIME_FORMAT})
        sheet = _new_sheet(workbook, columns)
        for row in rows:
            if written and written % SHEET_ROWS == 0:
                sheet = _new_sheet(workbook, columns)
            line = written % SHEET_ROWS + 1
            for place, value in enumerate(row):
                # Writing values by their type takes half of the time.
                if value is None or value == "":
                    continue
                if isinstance(value, str):
                    sheet.write_string(line, place, value)
                elif isinstance(value, datetime):
                    sheet.write_datetime(line, place, value.astimezone(UTC).replace(tzinfo=None), time)
                else:
                    sheet.write(line, place, value)
            written += 1
    return written


def _new_sheet(workbook: Workbook, columns: Mapping[str, int]) -> Worksheet:
    sheet, heading = workbook.add_worksheet(), workbook.add_format({"bold": True})
    sheet.freeze_panes(1, 0)
    for place, (name, width) in enumerate(columns.items()):
        sheet.set_column(place, place, max(len(name) + 2, min(width, MOST_WIDTH)))
        sheet.write_string(0, place, name, heading)
    return sheet


WRITERS = {"csv": _write_csv, "parquet": _write_parquet, "xlsx": _write_excel}


class WrittenFile(NamedTuple):
    """A file of a data set."""

    path: str
    rows: int
    bytes: int


def write_window(engine: Engine, url: str, level: Level, period: Period, window: Window) -> WrittenFile:
    """Write the rows of a window as a file of the data set, in a folder or at another address of fsspec.

    The folders name level, period and window, as Hive does. The file is written in the same folder and then replaces
    the former one: if the storage renames or copies files in one step, readers see either the one or the other.

    Raises CapacityError: the file cannot be written, a package is missing, or the database failed.
    """
    condition = sql.SQL("period = {} AND window_start = {}").format(period.name, window.start)
    query = rows_of_view(level.view, condition, level.view_order, without={"period"})
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows"
        with open_driver(engine) as connection:
            rows = _write_parquet(connection, query, file)
        path = _upload(file, url, f"level={level.name}/period={period.name}/window={window.key}")
        return WrittenFile(path, rows, file.stat().st_size)


def _upload(file: Path, url: str, folder: str) -> str:
    from fsspec.core import url_to_fs

    try:
        storage, root = url_to_fs(url)
        path, begun = (f"{root}/{folder}/{name}" for name in ("rows.parquet", f".{uuid4().hex}"))
        storage.makedirs(f"{root}/{folder}", exist_ok=True)
        try:
            storage.put_file(str(file), begun)
            storage.mv(begun, path)
        except BaseException:
            with suppress(OSError):
                storage.rm_file(begun)
            raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        kept = "An existing file is unchanged."
        raise CapacityError(f"{url}/{folder} cannot be written: {reason}. {kept}", transient=True) from error
    except (ImportError, ValueError) as error:
        # An unknown kind of storage, or one whose package is missing.
        raise CapacityError(f"{url}/{folder} cannot be written: {error}.") from error
    return str(storage.unstrip_protocol(path))
