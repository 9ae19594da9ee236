"""Cells read together: several capacity databases, each exact in itself, as foreign tables of one that only reads.

The database has a schema per cell with foreign tables, a view of each table over all cells under the table's own name,
and the views of readers on top. Nothing is copied and nothing written; a cell that does not answer fails the statement
with its name. Which cells there are is declared in a file, see `cli.cells`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from psycopg.errors import UndefinedTable
from sqlalchemy import Connection, Engine, Table, inspect, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.errors import DATABASE_FAILURES, ValidationError, reason_of
from capacity_assets.storage.every_table import metadata
from capacity_assets.storage.group_tables import (
    capacity_bill_lines,
    capacity_bills,
    capacity_digests,
    capacity_group_changes,
    capacity_group_sums,
    capacity_group_windows,
    capacity_prices,
)
from capacity_assets.storage.row_locks import capacity_locks
from capacity_assets.storage.schema import CELLS_TABLE, SCHEMA_REVISION, VERSION_TABLE, reads_cells
from capacity_assets.storage.steps import DIALECT, execute, literal, quoted
from capacity_assets.storage.tables import (
    activations,
    capacity_settings,
    collection_targets,
    computed_windows,
    imports,
    instances,
    invalidations,
    sample_changes,
)
from capacity_assets.storage.view_upgrades import creation
from capacity_assets.storage.views import VIEWS

NUMBERS_PER_CELL = 10_000_000
"""Servers of the second cell are numbered from here on, and so forth, unless each cell keeps to a block of its own."""
OWN_BLOCK = 1_000_000
"""What a block is: a cell that numbers its servers from 3,000,001 on has the fourth."""
MOST_CELLS = 200

OWN = (
    capacity_group_sums, capacity_group_windows, capacity_group_changes, capacity_settings, capacity_digests,
    capacity_prices, capacity_locks, collection_targets, imports, sample_changes, invalidations, activations,
    computed_windows,
)  # fmt: skip
"""Tables that stay empty here, or hold what is this database's own: how each cell is written is its own business."""
READ = tuple(table for table in metadata.sorted_tables if table not in OWN)


@dataclass(frozen=True)
class Cell:
    """One capacity database as it is reached from the reading one."""

    name: str
    host: str
    port: int
    database: str
    user: str
    password: str | None = field(default=None, repr=False)

    @property
    def server(self) -> str:
        """The name of its foreign server, and of the schema with its foreign tables."""
        return f"cell_{self.name}"


@dataclass(frozen=True)
class CellState:
    """What a cell says of itself: its newest day, or why it does not."""

    name: str
    first_number: int
    newest_day: str | None
    trouble: str | None


class CellsRefusedError(ValidationError):
    """The cells cannot be read together; the text says why. Nothing was changed."""


def attach(engine: Engine, cells: Sequence[Cell]) -> None:
    """Make a database read exactly these cells; it must be empty, or read cells already.

    Raises:
        CellsRefusedError: it holds other tables, the extension is missing, or the cells differ in schema or time zone;
            nothing was changed.
        sqlalchemy.exc.DBAPIError: the database or a cell failed; nothing was changed.
    """
    with engine.begin() as connection:
        _refuse_a_filled_database(connection)
        _forget(connection)
        execute(connection, ["CREATE EXTENSION IF NOT EXISTS postgres_fdw"])
        for cell in cells:
            execute(connection, _foreign(cell))
        zone = _refuse_cells_that_differ(connection, cells)
        for table in OWN:
            table.create(connection, checkfirst=True)
        connection.execute(
            text("INSERT INTO capacity_settings (name, value) VALUES ('timezone', :zone)"), {"zone": zone}
        )
        numbers = _first_numbers(connection, cells)
        execute(connection, [f"CREATE TABLE {CELLS_TABLE} (name text PRIMARY KEY, first_number integer NOT NULL)"])
        for name, number in numbers.items():
            insert = text(f"INSERT INTO {CELLS_TABLE} VALUES (:name, :number)")  # noqa: S608 -- constant
            connection.execute(insert, {"name": name, "number": number})
        execute(connection, [_together(table, cells, numbers) for table in READ])
        execute(connection, [statement for view in VIEWS for statement in creation(view.over_cells)])


def states(engine: Engine) -> list[CellState]:
    """Ask each cell for its newest day, one by one; none where the database reads no cells. Raises DBAPIError."""
    with engine.connect() as connection:
        if not reads_cells(connection):
            return []
        known = connection.execute(text(f"SELECT name, first_number FROM {CELLS_TABLE} ORDER BY name")).all()  # noqa: S608 -- constant
    return [_state(engine, row.name, row.first_number) for row in known]


def _state(engine: Engine, name: str, number: int) -> CellState:
    newest = text(f"SELECT max(collected_date) FROM {quoted(f'cell_{name}')}.instance_size_stats")  # noqa: S608 -- checked where it is declared
    try:
        with engine.connect() as connection:
            day = connection.execute(newest).scalar()
    except DATABASE_FAILURES as error:
        return CellState(name, number, None, reason_of(error))
    return CellState(name, number, None if day is None else f"{day}", None)


def _refuse_a_filled_database(connection: Connection) -> None:
    if reads_cells(connection):
        return
    found = [name for name in inspect(connection).get_table_names() if name in metadata.tables or name == VERSION_TABLE]
    if found:
        raise CellsRefusedError(
            f"The database holds tables of its own ({found[0]}), and one that reads cells holds none. Nothing was "
            "changed. Name an empty database in CAPACITY_DATABASE_URL."
        )


def _forget(connection: Connection) -> None:
    """Take away what read other cells: all of it was made here, and holds no row but names."""
    if not reads_cells(connection):
        return
    servers = connection.execute(text("SELECT srvname FROM pg_foreign_server WHERE srvname LIKE 'cell\\_%'")).scalars()
    drop = [f"DROP VIEW IF EXISTS {quoted(view.name)} CASCADE" for view in VIEWS]
    drop += [f"DROP VIEW IF EXISTS {quoted(table.name)} CASCADE" for table in READ]
    drop += [f"DROP TABLE IF EXISTS {quoted(name)}" for name in (*(table.name for table in OWN), CELLS_TABLE)]
    for server in servers.all():
        drop += [f"DROP SCHEMA {quoted(server)} CASCADE", f"DROP SERVER {quoted(server)} CASCADE"]
    execute(connection, drop)


def _foreign(cell: Cell) -> Iterator[str]:
    """Declare a cell: its server, how to log in there, and its tables."""
    server = quoted(cell.server)
    reached = {"host": cell.host, "port": str(cell.port), "dbname": cell.database}
    yield (
        f"CREATE SERVER {server} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({_options(reached)}, "
        "fetch_size '10000', async_capable 'true', updatable 'false', connect_timeout '10')"
    )
    login = {"user": cell.user} | ({"password": cell.password} if cell.password else {"password_required": "false"})
    yield f"CREATE USER MAPPING FOR CURRENT_USER SERVER {server} OPTIONS ({_options(login)})"
    yield f"CREATE SCHEMA {server}"
    for table in (*READ, capacity_settings):
        columns = ", ".join(f"{quoted(column.name)} {column.type.compile(dialect=DIALECT)}" for column in table.columns)
        yield (
            f"CREATE FOREIGN TABLE {server}.{quoted(table.name)} ({columns}) SERVER {server} "
            f"OPTIONS (schema_name 'public', table_name '{table.name}')"
        )
    yield (
        f"CREATE FOREIGN TABLE {server}.{VERSION_TABLE} (version_num text) SERVER {server} "
        f"OPTIONS (schema_name 'public', table_name '{VERSION_TABLE}')"
    )


def _options(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {literal(value)}" for name, value in values.items())


def _refuse_cells_that_differ(connection: Connection, cells: Sequence[Cell]) -> str:
    """Compare schema and time zone; return the zone."""
    zones: dict[str, str] = {}
    for cell in cells:
        revision, zones[cell.name] = _revision_and_zone(connection, cell)
        if revision != SCHEMA_REVISION:
            raise CellsRefusedError(
                f"Cell {cell.name!r} is at revision {revision}, and {SCHEMA_REVISION} is needed: run `capacity init` "
                "there first. Nothing was changed."
            )
    if len(set(zones.values())) > 1:
        listed = ", ".join(f"{name}: {zone}" for name, zone in zones.items())
        raise CellsRefusedError(
            f"The days of the cells are days of different time zones ({listed}), and cannot be added up. Nothing was "
            "changed."
        )
    return next(iter(zones.values()))


def _revision_and_zone(connection: Connection, cell: Cell) -> tuple[str, str]:
    server = quoted(cell.server)
    asked = text(
        f"SELECT (SELECT version_num FROM {server}.{VERSION_TABLE}), "  # noqa: S608 -- quoted
        f"(SELECT value FROM {server}.capacity_settings WHERE name = 'timezone')"
    )
    try:
        revision, zone = connection.execute(asked).one()
    except DBAPIError as error:
        if not isinstance(error.orig, UndefinedTable):
            raise
        raise CellsRefusedError(
            f"Cell {cell.name!r} has no capacity tables in its schema public. Nothing was changed."
        ) from None
    return str(revision), str(zone)


def _first_numbers(connection: Connection, cells: Sequence[Cell]) -> dict[str, int]:
    """Say what is added to the numbers of each cell's servers: nothing where each keeps to a block of its own."""
    blocks, largest = [], 0
    for cell in cells:
        ends = text(f"SELECT min(id) AS first, max(id) AS last FROM {quoted(cell.server)}.instances")  # noqa: S608 -- quoted
        row = connection.execute(ends).one()
        first, last = row.first or 0, row.last or 0
        largest = max(largest, last)
        # One without servers may begin with any number.
        blocks.append(first // OWN_BLOCK if row.last and first // OWN_BLOCK == last // OWN_BLOCK else None)
    if None not in blocks and len(set(blocks)) == len(cells):
        return dict.fromkeys((cell.name for cell in cells), 0)
    if largest >= NUMBERS_PER_CELL:
        raise CellsRefusedError(
            f"A cell has a server with the number {largest}, and cells that are not numbered apart have room for "
            f"{NUMBERS_PER_CELL:,} each. Give each cell a million of its own: ALTER SEQUENCE instances_id_seq RESTART, "
            "with another million in each. Nothing was changed."
        )
    return {cell.name: place * NUMBERS_PER_CELL for place, cell in enumerate(cells)}


def _together(table: Table, cells: Sequence[Cell], numbers: Mapping[str, int]) -> str:
    """The view of a table over all cells."""
    if table is capacity_bills:
        return _BILLS.format(each=_each(table, cells, numbers), name=table.name, cells=CELLS_TABLE)
    if table is capacity_bill_lines:
        listed = ", ".join(f"l.{quoted(column.name)}" for column in table.columns if column.name not in _LINE)
        return _LINES.format(each=_each(table, cells, numbers), name=table.name, listed=listed)
    return f"CREATE VIEW {quoted(table.name)} AS {_each(table, cells, numbers)}"


def _each(table: Table, cells: Sequence[Cell], numbers: Mapping[str, int]) -> str:
    return " UNION ALL ".join(_of_cell(table, cell, numbers[cell.name]) for cell in cells)


def _of_cell(table: Table, cell: Cell, number: int) -> str:
    columns = []
    for column in table.columns:
        name = quoted(column.name)
        numbered = column.name == "instance_id" or (table is instances and column.name in ("id", "counted_by"))
        if numbered and number:
            columns.append(f"{name} + {number} AS {name}")
        elif (table is instances and column.name == "name") or (
            table is capacity_bill_lines and column.name == "server"
        ):
            columns.append(f"CAST({literal(cell.name + '/')} || {name} AS varchar(255)) AS {name}")
        else:
            columns.append(name)
    return f"SELECT {literal(cell.name)} AS cell, {', '.join(columns)} FROM {quoted(cell.server)}.{quoted(table.name)}"  # noqa: S608 -- quoted


_LINE = ("month", "issue", "line")
# The newest issue of each cell; months that are billed in several currencies have no sum.
_BILLS = """
CREATE VIEW {name} AS
SELECT month, 1 AS issue, max(issued_at) AS issued_at,
       bool_and(is_final) AND count(DISTINCT cell) = (SELECT count(*) FROM {cells}) AS is_final,
       max(currency) AS currency,
       sum(amount) AS amount, sum(gib_months) AS gib_months, sum(unpriced_gib_months) AS unpriced_gib_months,
       CAST(sum(measured_days) AS bigint) AS measured_days, CAST(sum(billed_days) AS bigint) AS billed_days,
       CAST(sum(unbilled_servers) AS integer) AS unbilled_servers,
       (SELECT coalesce(json_agg(DISTINCT key), '[]') FROM unnest(array_agg(label_keys)) AS keys (listed)
        CROSS JOIN LATERAL json_array_elements_text(listed) AS key) AS label_keys,
       (SELECT 'without ' || string_agg(c.name, ', ' ORDER BY c.name) || ': not billed there yet' FROM {cells} c
        WHERE c.name <> ALL (array_agg(newest.cell))) AS reason,
       CAST(NULL AS text) AS declared_state, min(samples_dropped_at) AS samples_dropped_at,
       string_agg(clock_doubt, '; ') AS clock_doubt
FROM (SELECT DISTINCT ON (cell, month) * FROM ({each}) AS b ORDER BY cell, month, issue DESC) AS newest
GROUP BY month HAVING count(DISTINCT currency) <= 1
"""
_LINES = """
CREATE VIEW {name} AS
SELECT l.month, 1 AS issue, CAST(row_number() OVER (PARTITION BY l.month ORDER BY l.cell, l.line) AS integer) AS line,
       {listed}
FROM (SELECT each.*, max(issue) OVER (PARTITION BY cell, month) AS newest FROM ({each}) AS each) AS l
WHERE l.issue = l.newest
"""
