"""Access to the capacity database for reading: sessions that cannot write, their rights, and rows as typed records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, Executable, Row, text

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import first_of
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.engine import KEPT_ROWS, capacity_engine
from capacity_assets.database.views import FORECAST_TABLES, READ_ON_NODES, READABLE, READER_ROLE, SELECT_ON_SERVERS

STATEMENT_TIMEOUT_SECONDS = 5
CONNECTIONS = 10
NAMES_LISTED = 3
MOST_KEPT_ROWS = 1_000
"""Larger results of a statement are not kept in a snapshot."""

T = TypeVar("T")


def reading_engine(url: URL, *, role: str | None = None, timezone: str = "UTC") -> Engine:
    """Create an engine with read-only sessions and a time limit per statement, as `role` if given.

    The days of moments are those in `timezone`.
    """
    options = f"-c default_transaction_read_only=on -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s"
    # Starting parallel workers takes longer than most statements of pages, and pages are read concurrently.
    options += " -c max_parallel_workers_per_gather=0"
    if role is not None:
        options += f" -c role={role}"
    given = url.query.get("options", "")
    # All connections are kept, because the first page on a new one takes three times as long.
    return capacity_engine(
        url.update_query_dict({"options": f"{given} {options}".strip()}),
        connections=CONNECTIONS,
        pool_timeout_seconds=STATEMENT_TIMEOUT_SECONDS,
        timezone=timezone,
    )


WITHOUT_LOOPS = ("enable_nestloop = off",)
"""For statements whose parts have more rows than statistics or estimates say."""
BY_HASHES = (*WITHOUT_LOOPS, "enable_mergejoin = off", "work_mem = '32MB'")
"""For joins of some hundred thousand rows: hash tables in memory instead of sorting, which takes longer."""


@contextmanager
def planned_with(connection: Connection, settings: Sequence[str]) -> Iterator[None]:
    """Plan the statements within this context with settings of PostgreSQL, and those after it without."""
    for setting in settings:
        connection.execute(text(f"SET LOCAL {setting}"))
    yield
    for setting in settings:
        connection.execute(text(f"SET LOCAL {setting.split()[0]} TO DEFAULT"))


def limit_seconds(connection: Connection, seconds: int) -> None:
    """Limit how long each further statement of this transaction may take."""
    connection.execute(text(f"SET LOCAL statement_timeout = '{seconds}s'"))


def rows(connection: Connection, statement: str | Executable, **parameters: object) -> Sequence[Row[Any]]:
    """Execute a statement and return its rows; in a `snapshot`, text that is executed again has the same few rows.

    Text with `:with_derived` gets whether its `period` has windows of servers without totals. PostgreSQL plans the rows
    of these in `capacity_server_growth` for ten times as long as all others, and most fleets have none.
    """
    if not isinstance(statement, str):
        return connection.execute(statement, parameters).all()
    if ":with_derived" in statement:
        parameters["with_derived"] = has_derived(connection, str(parameters["period"]))
    known_rows: dict[object, Sequence[Row[Any]]] = connection.get_execution_options().get(KEPT_ROWS, {})
    key = None if any(isinstance(value, list) for value in parameters.values()) else (statement, repr(parameters))
    if key in known_rows:
        return known_rows[key]
    result = connection.execute(text(statement), parameters).all()
    if key is not None and len(result) <= MOST_KEPT_ROWS:
        known_rows[key] = result
    return result


def has_derived(connection: Connection, period: str) -> bool:
    """Whether a server has databases but no total in a window of a period; raises DBAPIError."""
    statement = "SELECT EXISTS (SELECT FROM capacity_derived_windows WHERE period = :period) AS has_derived"
    return bool(rows(connection, statement, period=period)[0].has_derived)


def records(
    kind: Callable[..., T], connection: Connection, statement: str | Executable, **parameters: object
) -> list[T]:
    """Execute a statement and return each row as a `kind`, its columns as fields; sums (numeric) become integers."""
    return [
        kind(**{name: int(value) if isinstance(value, Decimal) else value for name, value in row._mapping.items()})  # noqa: SLF001 -- SQLAlchemy's public name
        for row in rows(connection, statement, **parameters)
    ]


MISSING_RIGHT = (
    "Run the statements under Roles in docs/operations.md again, on a cluster also those of docs/scale.md: an upgrade "
    "adds views and tables."
)


MISSING_RIGHT_ON_HISTORY = (
    "This role may not read the tables that forecasts are made of. Their owner grants the right by "
    f"`GRANT SELECT ON {', '.join(FORECAST_TABLES)} TO {{role}}` and `GRANT {SELECT_ON_SERVERS} TO {{role}}`. All "
    "other pages work without it."
)


def role_of(connection: Connection) -> str:
    """Return the role of a connection, as an SQL identifier; raises DBAPIError."""
    [row] = rows(connection, "SELECT quote_ident(current_user) AS name")
    return str(row.name)


def refuse_a_role_that_can_write(engine: Engine) -> None:
    """Refuse a role with more or fewer rights than the pages need; raises ValidationError and DBAPIError."""
    with engine.connect() as connection:
        [role] = rows(connection, _WRITABLE_TABLES)
        names = [name for name in READABLE if name not in FORECAST_TABLES]
        names += READ_ON_NODES if tables_are_distributed(connection) else ()
        refused = rows(connection, _UNREADABLE, names=names)
        # Everything that the role lacks, so that one statement is enough.
        grant = f"`GRANT SELECT ON {', '.join(row.name for row in refused)} TO {role_of(connection)}`"
    missing, unreadable = ([row.name for row in refused if row.is_missing is kind] for kind in (True, False))
    if missing:
        raise ValidationError(
            f"The role {role.name} finds no {first_of(missing, NAMES_LISTED)}, so the pages are not served: the "
            "capacity schema is missing or of an older version. Run `capacity init`, then as the owner of the tables "
            f"{grant}. docs/operations.md has all rights of roles."
        )
    if unreadable:
        raise ValidationError(
            f"The role {role.name} cannot read {first_of(unreadable, NAMES_LISTED)}, so the pages are not served: an "
            f"upgrade adds views and tables. As their owner, run {grant}. docs/operations.md has all rights of roles, "
            "docs/scale.md those on a cluster."
        )
    if role.tables:
        raise ValidationError(
            f"The role {role.name} can write (for example {role.tables[0]}), so the pages are not served: they must "
            "only read. Create the role capacity_reader with the statements under Roles in docs/operations.md, and set "
            "CAPACITY_WEB_DATABASE_URL to its address; or use `capacity serve --allow-writing-role`."
        )


def role_to_read_with(engine: Engine) -> str | None:
    """Return the reader role if the session can write and may assume that role, otherwise None; raises DBAPIError."""
    with engine.connect() as connection:
        [role] = rows(connection, _WRITABLE_TABLES)
        parameters = {"role": READER_ROLE, "on_nodes": tables_are_distributed(connection)}
        may_take_on = connection.execute(text(_MAY_TAKE_ON), parameters).scalar()
    return READER_ROLE if role.tables and may_take_on else None


_WRITABLE_TABLES = """
SELECT current_user AS name, ARRAY(
    SELECT c.relname FROM pg_class c
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = CAST(current_schema() AS regnamespace)
      AND (c.relname LIKE 'capacity\\_%' OR c.relname IN ('instances', 'database_size_stats', 'instance_size_stats',
           'database_size_aggregations', 'instance_size_aggregations', 'group_size_aggregations'))
      AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
    ORDER BY 1
) AS tables
"""
_UNREADABLE = """
SELECT name, to_regclass(name) IS NULL AS is_missing FROM unnest(CAST(:names AS text[])) AS name
WHERE to_regclass(name) IS NULL OR NOT has_table_privilege(to_regclass(name), 'SELECT') ORDER BY 1
"""
# A session that assumes a role connects to the nodes of a cluster as that role, which must be able to log in.
_MAY_TAKE_ON = """
SELECT pg_has_role(current_user, oid, 'MEMBER') AND (rolcanlogin OR NOT CAST(:on_nodes AS boolean))
FROM pg_roles WHERE rolname = :role AND rolname <> current_user
"""
