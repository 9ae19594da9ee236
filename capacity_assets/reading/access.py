"""Access to the capacity database for reading: sessions that cannot write, their rights, and rows as typed records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, Executable, Row, text

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import first_of
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.views import FORECAST_TABLES, READ_ON_NODES, READABLE, READER_ROLE, SELECT_ON_SERVERS

STATEMENT_TIMEOUT_SECONDS = 5
CONNECTIONS = 10
NAMES_LISTED = 3

T = TypeVar("T")


def reading_engine(url: URL, *, role: str | None = None) -> Engine:
    """Create an engine with read-only sessions and a time limit per statement, as `role` if given."""
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
    )


def plan_with_loops(connection: Connection, *, allowed: bool) -> None:
    """Allow nested loops in this transaction, or forbid them while statistics are older than the rows."""
    connection.execute(text(f"SET LOCAL enable_nestloop = {'on' if allowed else 'off'}"))


def limit_seconds(connection: Connection, seconds: int) -> None:
    """Limit how long each further statement of this transaction may take."""
    connection.execute(text(f"SET LOCAL statement_timeout = '{seconds}s'"))


def rows(connection: Connection, statement: str | Executable, **parameters: object) -> Sequence[Row[Any]]:
    """Execute a statement and return its rows."""
    return connection.execute(text(statement) if isinstance(statement, str) else statement, parameters).all()


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
