"""The schema as a whole: creating and upgrading it, and saying whether a database has it.

How an existing table is brought to the wanted shape is in `adoption`; what comparing tables cannot do, in `migrations`.
The revision is kept in a table of our own, because the legacy application keeps its own in the same database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from capacity_assets.base.errors import CapacityError
from capacity_assets.database.adoption import (
    build_ahead,
    comment_statements,
    default_partition_steps,
    lacking,
    present_tables,
    table_problems,
    table_steps,
    widened_columns,
)
from capacity_assets.database.changes import distrust_windows, prepare_nodes
from capacity_assets.database.cluster import change_shards_in_turn, distributed_tables
from capacity_assets.database.migrations import STEPS
from capacity_assets.database.sql import carry_out, execute
from capacity_assets.database.tables import NO_TIME_LIMIT, capacity_locks, metadata, try_lock
from capacity_assets.database.triggers import change_tracking_steps
from capacity_assets.database.views import (
    VIEWS,
    Reader,
    create_views,
    in_the_way,
    names_taken,
    outdated_views,
    take_away,
)

VERSION_TABLE = "capacity_alembic_version"
SCHEMA_REVISION = "0021"
FIRST_REVISION = "0013"
"""That of version 0.3.0, the oldest that is upgraded in place."""
QUEUE_REVISION = "0015"
NOT_RECORDED_MEANWHILE = (
    "samples written meanwhile may have been missed: recompute the windows since it was lost, and the window after them"
)
SECONDS_BETWEEN_TRIES = 0.2
IS_IN_THE_WAY = (
    "reads a column that has to be widened, or a view that has to be made again, which PostgreSQL refuses. Drop it, "
    "run `capacity init`, then create it again."
)


def untracked_changes(engine: Engine) -> tuple[str, ...]:
    """Return what keeps changed samples from being recorded; nothing if all is well."""
    with engine.connect() as connection:
        return tuple(dict.fromkeys(step.reason for step in change_tracking_steps(connection) if step.is_lossy))


class SchemaProblemsError(CapacityError):
    """The upgrade needs a person's decision; nothing was changed."""

    def __init__(self, problems: list[str]) -> None:
        """Keep the problems; the text lists them all."""
        self.problems = problems
        super().__init__("The schema was not changed, no row was touched.\n" + "\n".join(f"- {p}" for p in problems))


@dataclass(frozen=True)
class SchemaState:
    """What a database holds: its revision, and what is still to be done to the tables that exist."""

    revision: str | None
    missing_tables: tuple[str, ...]
    shortcomings: tuple[str, ...]

    @property
    def fit(self) -> bool:
        """Whether aggregation can work on this database."""
        return self.revision == SCHEMA_REVISION and not self.missing_tables and not self.shortcomings


def initialise(engine: Engine, on_step: Callable[[str], None] = lambda _line: None) -> tuple[str, ...]:
    """Create the tables, or upgrade or fix those that are there, in one transaction; return what was done.

    Indexes that filled tables lack are built before it, each beside the running work: that may take hours, and the
    transaction, in which nobody else reads or writes the tables, then takes seconds.

    Raises SchemaProblemsError if duplicates or missing columns stand in the way or the schema is newer, DBAPIError if
    the database refused a step; nothing was changed then.
    """
    locks = _build_indexes_ahead(engine, on_step)
    with _keeping_other_upgrades_out(engine) as (connection, created):
        revision = _revision(connection)
        # A column that a view reads cannot be widened.
        taken = _take_views_away(connection, ours=revision != SCHEMA_REVISION)
        done = [*locks, *created, *_adopt(connection)]
        if distributed_tables(connection):
            prepare_nodes(connection, kept="The schema was not changed.")
        # Before migrations read recorded changes: the locks of new triggers keep writers out until the commit.
        done += _track_changes(connection, revision)
        _migrate(connection, revision)
        done += _put_views_back(connection, *taken)
        execute(connection, [*comment_statements(present_tables(connection, metadata.sorted_tables))])
    return tuple(done)


def _migrate(connection: Connection, revision: str | None) -> None:
    """Run the migrations that are due, and record the new revision."""
    for name, step in STEPS.items():
        if name > (revision or ""):
            step(connection)
    if revision != SCHEMA_REVISION:
        execute(connection, _NOTE_NO_REVISION)
        connection.execute(text("INSERT INTO capacity_alembic_version VALUES (:now)"), {"now": SCHEMA_REVISION})


# Roles that read only views must also be able to detect a newer schema.
_NOTE_NO_REVISION = (
    "CREATE TABLE IF NOT EXISTS capacity_alembic_version ("
    "version_num varchar(32) NOT NULL, CONSTRAINT capacity_alembic_version_pkc PRIMARY KEY (version_num))",
    "GRANT SELECT ON capacity_alembic_version TO PUBLIC",
    "DELETE FROM capacity_alembic_version",
)


def _track_changes(connection: Connection, revision: str | None) -> list[str]:
    """Create functions and triggers that are missing, old or disabled; return what was fixed.

    Changes that were written without them are unknown. An older schema does not have them yet; the migration to
    `QUEUE_REVISION` enters the changes that it recorded.
    """
    missing = change_tracking_steps(connection)
    carry_out(connection, missing)
    if (revision or "") < QUEUE_REVISION:
        return []
    if any(step.is_lossy for step in missing):
        distrust_windows(connection)
    unseen = f"; {NOT_RECORDED_MEANWHILE}" if revision == SCHEMA_REVISION else ""
    return [*dict.fromkeys(f"fixed: {step.reason}{unseen if step.is_lossy else ''}" for step in missing)]


def _build_indexes_ahead(engine: Engine, on_step: Callable[[str], None]) -> list[str]:
    """Build missing indexes beside the running work, one upgrade at a time; return the other steps that were done.

    On a cluster none is built: there a key cannot take over an existing index.
    """
    with engine.connect() as connection:
        present = present_tables(connection, metadata.sorted_tables)
        tables = [table.wanted for table in present if any(lacking(connection, table))]
        if not tables or distributed_tables(connection):
            return []
    # The first one creates the table of locks, for which other upgrades wait.
    with _keeping_other_upgrades_out(engine) as (_, done):
        pass
    with _keeping_other_upgrades_out(engine, is_checked=True):
        build_ahead(engine, tables, on_step)
    return done


@contextmanager
def _keeping_other_upgrades_out(engine: Engine, *, is_checked: bool = False) -> Iterator[tuple[Connection, list[str]]]:
    """Yield a transaction that holds the schema lock, whose table is created first if missing, and what was done.

    Building an index beside the running work waits for each transaction that has a snapshot. So a waiting upgrade polls
    the lock, each time in a new transaction, and the holder has no snapshot. With `is_checked` no table is read,
    because dropping such an index waits for its readers.

    Raises SchemaProblemsError: the database must not be written to, or something prevents the upgrade.
    """
    while True:
        with engine.begin() as connection:
            # Widening a column rewrites its table, which may take hours; so may waiting for another upgrade.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            change_shards_in_turn(connection)
            # Before the first write, because it would run triggers of other roles.
            if not is_checked:
                _refuse(_cells(connection) or _open_doors(connection, is_init=True))
            done = _create_locks(connection)
            if try_lock(connection, "schema"):
                if not is_checked:
                    present = present_tables(connection, metadata.sorted_tables)
                    problems = (problem for table in present for problem in table_problems(connection, table))
                    _refuse(_another_schema(connection) or names_taken(connection) or [*problems])
                connection.execute(text(NO_TIME_LIMIT))
                # As the last statement: the snapshot of a SELECT lasts until the next one.
                connection.execute(text("SET LOCAL lock_timeout = DEFAULT"))
                yield connection, done
                return
        time.sleep(SECONDS_BETWEEN_TRIES)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise SchemaProblemsError(problems)


def _create_locks(connection: Connection) -> list[str]:
    """Create the table of locks if it is missing; return what was done."""
    if not inspect(connection).has_table(capacity_locks.name):
        # If another upgrade is creating the table, this waits for it.
        with suppress(IntegrityError, ProgrammingError), connection.begin_nested():
            capacity_locks.create(connection)
            return [f"created table {capacity_locks.name}"]
    return []


def _in_the_way(connection: Connection, *, ours: bool = False) -> Sequence[Reader]:
    """Find what reads columns that are to be widened, or our views if these are to be made again."""
    tables = present_tables(connection, metadata.sorted_tables)
    widened = [(table.name, column) for table in tables for column in widened_columns(table)]
    return in_the_way(connection, widened, ours=ours)


def _take_views_away(connection: Connection, *, ours: bool) -> tuple[list[str], list[str]]:
    """Drop views of others that prevent the upgrade, and with `ours` our own; return how to restore them, and names.

    Raises SchemaProblemsError: an object that prevents it cannot be restored.
    """
    readers = _in_the_way(connection, ours=ours)
    _refuse([f"{reader.described} {IS_IN_THE_WAY}" for reader in readers if not reader.movable])
    return take_away(connection, readers), [reader.name for reader in readers]


def _put_views_back(connection: Connection, back: list[str], taken: list[str]) -> list[str]:
    """Create our missing and outdated views, and restore those of others; return the steps.

    Raises SchemaProblemsError: an object that reads one of our views cannot be restored.
    """
    outdated = outdated_views(connection)
    names: list[str] = []
    try:
        with connection.begin_nested():
            create_views(connection, outdated)
    except DBAPIError:
        # A view in place can get another column, but no column another type.
        further, names = _take_views_away(connection, ours=True)
        create_views(connection, outdated_views(connection))
        back = [*further, *back]
    execute(connection, back)
    ours = {view.name for view in VIEWS}
    return [
        *(f"dropped and restored: view {name}" for name in (*taken, *names) if name not in ours),
        *(f"created or renewed view {view.name}" for view in outdated if view.name not in taken),
    ]


def _adopt(connection: Connection) -> list[str]:
    """Create missing tables, and bring the others to the wanted shape; return the steps."""
    present = {table.name: table for table in present_tables(connection, metadata.sorted_tables)}
    done: list[str] = []
    for table in metadata.sorted_tables:
        if table.name in present:
            steps = table_steps(connection, present[table.name])
            carry_out(connection, steps)
            done += dict.fromkeys(f"changed: {step.reason}" for step in steps)
        else:
            table.create(connection)
            if table.dialect_options["postgresql"]["partition_by"]:
                carry_out(connection, default_partition_steps(connection, table))
            done.append(f"created table {table.name}")
    return done


def _another_schema(connection: Connection) -> list[str]:
    revision = _revision(connection) or SCHEMA_REVISION
    if revision > SCHEMA_REVISION:
        return [newer_schema_text(revision)]
    if revision < FIRST_REVISION:
        older = f"The capacity schema is at revision {revision}, which is older than version 0.3.0."
        return [f"{older} Run 0.3.0's `capacity init` first."]
    return []


def newer_schema_text(revision: str) -> str:
    """Return the message that a newer version created the schema, with what to do."""
    return (
        f"The capacity schema is at revision {revision}, created by a newer version; this version supports "
        f"{SCHEMA_REVISION}. Install the newer version."
    )


def _open_doors(connection: Connection, *, is_init: bool = False) -> list[str]:
    """List objects through which another role could run code in statements of the owner, and what to do.

    Objects of this project must belong to a role that could replace them anyway (the owner of the schema or database, a
    superuser) or to the role that runs `capacity init`; later, to the owner of the version table.
    """
    problems = [
        f"every role may create objects in the schema {row.schema}, as PostgreSQL 14 and older allow in public. A "
        "role could place an operator or a table there that statements of the owner would use. As a superuser, or as "
        f"the owner of the schema, run: REVOKE CREATE ON SCHEMA {row.schema} FROM PUBLIC; GRANT CREATE ON SCHEMA "
        f"{row.schema} TO {row.role}"
        for row in connection.execute(text(_EVERYBODY_MAY_CREATE))
    ]
    named = [*(table.name for table in metadata.sorted_tables), VERSION_TABLE, *(view.name for view in VIEWS)]
    parameters = {"relations": named, "version": VERSION_TABLE, "is_init": is_init}
    problems += [
        f"the {row.kind} {row.name} belongs to the role {row.owner}, which could make every user of it run that "
        f"role's code. Check its definition, triggers and rules, then run: ALTER {row.kind.upper()} {row.name} OWNER "
        f"TO {row.trusted}. If {row.owner} is to own the tables, run `capacity init` as that role instead"
        for row in connection.execute(text(_OF_OTHERS), parameters)
    ]
    return problems


_EVERYBODY_MAY_CREATE = """
SELECT quote_ident(n.nspname) AS schema, quote_ident(current_user) AS role FROM pg_namespace n
WHERE n.nspname = current_schema()
  AND EXISTS (SELECT FROM aclexplode(n.nspacl) a WHERE a.grantee = 0 AND a.privilege_type = 'CREATE')
"""
_OF_OTHERS = """
WITH named AS (
    SELECT oid, relowner, relkind FROM pg_class
    WHERE relname = ANY (:relations) AND relnamespace = CAST(current_schema() AS regnamespace)
), ours AS (
    SELECT CASE relkind WHEN 'v' THEN 'view' ELSE 'table' END AS kind, CAST(CAST(oid AS regclass) AS text) AS name,
           relowner AS owner FROM named
    UNION
    SELECT 'table', CAST(tree.relid AS text), part.relowner
    FROM named CROSS JOIN LATERAL pg_partition_tree(named.oid) AS tree JOIN pg_class part ON part.oid = tree.relid
    UNION
    SELECT 'function', CAST(CAST(oid AS regprocedure) AS text), proowner FROM pg_proc
    WHERE proname LIKE 'capacity\\_%' AND pronamespace = CAST(current_schema() AS regnamespace)
), trusted AS (
    SELECT coalesce((SELECT pg_get_userbyid(relowner) FROM pg_class
                     WHERE NOT :is_init AND oid = to_regclass(:version)), current_user) AS role
)
SELECT ours.kind, ours.name, quote_ident(r.rolname) AS owner, quote_ident(trusted.role) AS trusted
FROM ours JOIN pg_roles r ON r.oid = ours.owner CROSS JOIN trusted
WHERE NOT r.rolsuper AND r.rolname <> trusted.role
  AND r.oid NOT IN (SELECT nspowner FROM pg_namespace WHERE nspname = current_schema()
                    UNION SELECT datdba FROM pg_database WHERE datname = current_database())
ORDER BY 1, 2
"""


def _cells(connection: Connection) -> list[str]:
    """Return what to do with a database in which version 0.2.0 or 0.3.0 read other capacity databases."""
    if not connection.execute(text("SELECT to_regclass('capacity_cells') IS NOT NULL")).scalar():
        return []
    drop = connection.execute(text(_DROP_CELLS)).scalar_one()
    return [
        "This database reads cells, as version 0.3.0 made it, and holds no figures. This version has no cells; "
        'docs/scale.md, "Several capacity databases", has the SQL that takes their place. '
        f"To take away what cells made here, which changes none of the databases that they read, run: {drop} -- "
        "After that, `capacity init` makes a capacity database of this one."
    ]


_DROP_CELLS = """
SELECT coalesce(string_agg(format('DROP SERVER %1$I CASCADE; DROP SCHEMA IF EXISTS %1$I CASCADE; ', srvname), ''
                           ORDER BY srvname), '')
       || 'DROP TABLE capacity_cells;'
FROM pg_foreign_server WHERE srvname LIKE 'cell\\_%'
"""


def schema_state(engine: Engine) -> SchemaState:
    """Inspect the database without changing it."""
    with engine.connect() as connection:
        present = present_tables(connection, metadata.sorted_tables)
        there = {table.name for table in present}
        missing = tuple(table.name for table in metadata.sorted_tables if table.name not in there)
        shortcomings = _open_doors(connection)
        for table in present:
            shortcomings += dict.fromkeys(step.reason for step in table_steps(connection, table))
            shortcomings += table_problems(connection, table)
        if not missing:
            shortcomings += dict.fromkeys(step.reason for step in change_tracking_steps(connection))
            shortcomings += [f"view {view.name} is missing or outdated" for view in outdated_views(connection)]
        shortcomings += [
            f"view {reader.name} reads a column that is widened: it is dropped and restored"
            if reader.movable
            else f"{reader.described} {IS_IN_THE_WAY}"
            for reader in _in_the_way(connection)
            if not reader.is_ours
        ]
        return SchemaState(_revision(connection), missing, tuple(shortcomings))


def schema_revision(engine: Engine) -> str | None:
    """Return the revision the database is at, or None where `capacity init` never ran."""
    with engine.connect() as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    if not connection.execute(text("SELECT to_regclass(:name)"), {"name": VERSION_TABLE}).scalar():
        return None
    revision = connection.execute(text("SELECT version_num FROM capacity_alembic_version")).scalar()
    return None if revision is None else str(revision)
