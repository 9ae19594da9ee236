"""The schema as a whole: creating and upgrading it, and refusing a database that does not have it.

`adoption` brings an existing table to its definition; steps that a comparison of tables cannot do are in `STEPS`, by
the revision to which they lead. The revision is in a separate table, because the legacy application stores its own in
the same database.

A legacy database, one of release 0.3.0 (revision 0013) and later ones are upgraded. Older programs refuse a revision
number that they do not know; a revision without a step exists for this.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine, Table, event, func, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from capacity_assets.base.errors import CapacityError, DatabaseError, ValidationError, database_errors
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.database.adoption import (
    build_ahead,
    comment_statements,
    default_partition_steps,
    existing_tables,
    missing_indexes,
    table_problems,
    table_steps,
    widened_columns,
)
from capacity_assets.database.changes import change_tracking_steps, distrust_windows, prepare_nodes
from capacity_assets.database.cluster import change_shards_in_turn, distributed_tables
from capacity_assets.database.engine import another_zone
from capacity_assets.database.locks import NO_TIME_LIMIT, try_lock
from capacity_assets.database.sql import current_schema, execute, execute_steps, quoted
from capacity_assets.database.tables import (
    SCHEMA_REVISION,
    capacity_locks,
    database_size_aggregations,
    instance_size_aggregations,
    metadata,
)
from capacity_assets.database.views import (
    VIEWS,
    Reader,
    create_views,
    drop_views,
    name_conflicts,
    outdated_views,
    readers_of,
)

VERSION_TABLE = "capacity_alembic_version"
FIRST_REVISION = "0013"
"""The revision of version 0.3.0, the oldest that is upgraded in place."""
QUEUE_REVISION = "0015"
NOT_RECORDED_MEANWHILE = (
    "changes since the trigger was lost were not recorded: recompute the windows since then, and the window after them"
)
SECONDS_BETWEEN_TRIES = 0.2
BLOCKS_THE_UPGRADE = (
    "reads a column that has to be widened, or a view that has to be created again, which PostgreSQL refuses. Drop it, "
    "run `capacity init`, then create it again."
)


def untracked_changes(engine: Engine) -> tuple[str, ...]:
    """Return the reasons why changed samples are not recorded; empty if there are none."""
    with engine.connect() as connection:
        return tuple(dict.fromkeys(step.reason for step in change_tracking_steps(connection) if step.is_lossy))


class SchemaProblemsError(CapacityError):
    """The upgrade needs a decision by a person; nothing was changed."""

    def __init__(self, problems: list[str]) -> None:
        """Store the problems; the text contains all of them."""
        self.problems = problems
        super().__init__("The schema cannot be upgraded:\n" + "\n".join(f"- {p}" for p in problems))


@dataclass(frozen=True)
class SchemaState:
    """The state of a database: its revision, missing tables, and necessary steps on existing tables."""

    revision: str | None
    missing_tables: tuple[str, ...]
    shortcomings: tuple[str, ...]

    @property
    def fit(self) -> bool:
        """Whether aggregation can work on this database."""
        return self.revision == SCHEMA_REVISION and not self.missing_tables and not self.shortcomings


def initialise(engine: Engine, on_step: Callable[[str], None] = lambda _line: None) -> tuple[str, ...]:
    """Create the tables, or upgrade or fix existing ones, in one transaction; return what was done.

    Missing indexes of tables with rows are built before that, without locking out readers and writers. That may take
    hours, while the transaction, which locks the tables, takes seconds.

    Raises SchemaProblemsError if duplicates or missing columns prevent the upgrade or the schema is newer, DBAPIError
    if the database refused a step; nothing was changed then.
    """
    locks = _build_indexes_ahead(engine, on_step)
    with _schema_lock(engine) as (connection, created):
        revision = _revision(connection)
        # A column that a view reads cannot be widened.
        dropped_views = _drop_blocking_views(connection, ours=revision != SCHEMA_REVISION)
        steps_taken = [*locks, *created, *_adopt(connection)]
        if distributed_tables(connection):
            prepare_nodes(connection)
        # Before migrations read recorded changes: the locks of new triggers keep writers out until the commit.
        steps_taken += _track_changes(connection, revision)
        _migrate(connection, revision)
        steps_taken += _restore_views(connection, *dropped_views)
        comments = [*comment_statements(existing_tables(connection, metadata.sorted_tables))]
        # Four hundred if all are missing.
        execute(connection, ["; ".join(comments)] if comments else ())
    return tuple(steps_taken)


def _migrate(connection: Connection, revision: str | None) -> None:
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

    Changes made without them are unknown. A schema before `QUEUE_REVISION` does not have them; the step to that
    revision enters the changes that it recorded.
    """
    missing = change_tracking_steps(connection)
    execute_steps(connection, missing)
    if (revision or "") < QUEUE_REVISION:
        return []
    if any(step.is_lossy for step in missing):
        distrust_windows(connection)
    unseen = f"; {NOT_RECORDED_MEANWHILE}" if revision == SCHEMA_REVISION else ""
    return [*dict.fromkeys(f"fixed: {step.reason}{unseen if step.is_lossy else ''}" for step in missing)]


def _build_indexes_ahead(engine: Engine, on_step: Callable[[str], None]) -> list[str]:
    """Build missing indexes ahead of the upgrade, one upgrade at a time; return the other steps that were done.

    Not on a cluster, where a key cannot use an existing index.
    """
    with engine.connect() as connection:
        present = existing_tables(connection, metadata.sorted_tables)
        tables = [table.wanted for table in present if any(missing_indexes(connection, table))]
        if not tables or distributed_tables(connection):
            return []
    # The first upgrade creates the table of locks.
    with _schema_lock(engine) as (_, steps_taken):
        pass
    with _schema_lock(engine, is_checked=True):
        build_ahead(engine, tables, on_step)
    return steps_taken


@contextmanager
def _schema_lock(engine: Engine, *, is_checked: bool = False) -> Iterator[tuple[Connection, list[str]]]:
    """Yield a transaction that holds the schema lock, and what was done: the table of locks is created if missing.

    Building an index concurrently waits for every transaction that has a snapshot. So a waiting upgrade polls the lock,
    each time in a new transaction, and the holder has no snapshot. With `is_checked`, no table is read, because
    dropping such an index waits for readers of its table.

    Raises SchemaProblemsError: the database must not be written to, or something prevents the upgrade.
    """
    while True:
        with engine.begin() as connection:
            # Widening a column rewrites its table, which may take hours; so may waiting for another upgrade.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            change_shards_in_turn(connection)
            # Before the first write, which could run triggers of other roles.
            if not is_checked:
                _refuse(_cell_problems(connection) or _untrusted_objects(connection, is_init=True))
            steps_taken = _create_locks(connection)
            if try_lock(connection, "schema"):
                if not is_checked:
                    present = existing_tables(connection, metadata.sorted_tables)
                    problems = (problem for table in present for problem in table_problems(connection, table))
                    _refuse(_another_schema(connection) or name_conflicts(connection) or [*problems])
                connection.execute(text(NO_TIME_LIMIT))
                # The last statement, because the snapshot of a SELECT lasts until the next statement.
                connection.execute(text("SET LOCAL lock_timeout = DEFAULT"))
                yield connection, steps_taken
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


def _blocking_readers(connection: Connection, *, ours: bool = False) -> Sequence[Reader]:
    """Find objects that read columns to be widened or, with `ours`, our views, which are created again."""
    tables = existing_tables(connection, metadata.sorted_tables)
    widened = [(table.name, column) for table in tables for column in widened_columns(table)]
    return readers_of(connection, widened, ours=ours)


def _drop_blocking_views(connection: Connection, *, ours: bool) -> tuple[list[str], list[str]]:
    """Drop views that prevent the upgrade and, with `ours`, our own; return statements to restore them, and names.

    Raises SchemaProblemsError if such an object cannot be restored.
    """
    readers = _blocking_readers(connection, ours=ours)
    _refuse([f"{reader.described} {BLOCKS_THE_UPGRADE}" for reader in readers if not reader.movable])
    return drop_views(connection, readers), [reader.name for reader in readers]


def _restore_views(connection: Connection, back: list[str], dropped: list[str]) -> list[str]:
    """Create our missing and outdated views, and restore those of others; return the steps.

    Raises SchemaProblemsError if an object that reads one of our views cannot be restored.
    """
    outdated = outdated_views(connection)
    names: list[str] = []
    try:
        with connection.begin_nested():
            create_views(connection, outdated)
    except DBAPIError:
        # Replacing a view can add columns, but not change the type of one.
        further, names = _drop_blocking_views(connection, ours=True)
        create_views(connection, outdated_views(connection))
        back = [*further, *back]
    execute(connection, back)
    ours = {view.name for view in VIEWS}
    return [
        *(f"dropped and restored: view {name}" for name in (*dropped, *names) if name not in ours),
        *(f"created or renewed view {view.name}" for view in outdated if view.name not in dropped),
    ]


def _adopt(connection: Connection) -> list[str]:
    """Create missing tables, and bring the others to their definitions; return the steps."""
    present = {table.name: table for table in existing_tables(connection, metadata.sorted_tables)}
    steps_taken: list[str] = []
    for table in metadata.sorted_tables:
        if table.name in present:
            steps = table_steps(connection, present[table.name])
            execute_steps(connection, steps)
            steps_taken += dict.fromkeys(f"changed: {step.reason}" for step in steps)
        else:
            table.create(connection)
            if table.dialect_options["postgresql"]["partition_by"]:
                execute_steps(connection, default_partition_steps(connection, table))
            steps_taken.append(f"created table {table.name}")
    return steps_taken


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


def _untrusted_objects(connection: Connection, *, is_init: bool = False) -> list[str]:
    """Return how other roles could run code in statements of the owner, and what to do.

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
        for row in connection.execute(text(_OWNED_BY_OTHERS), parameters)
    ]
    return problems


_EVERYBODY_MAY_CREATE = """
SELECT quote_ident(n.nspname) AS schema, quote_ident(current_user) AS role FROM pg_namespace n
WHERE n.nspname = current_schema()
  AND EXISTS (SELECT FROM aclexplode(n.nspacl) a WHERE a.grantee = 0 AND a.privilege_type = 'CREATE')
"""
_OWNED_BY_OTHERS = """
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


def _cell_problems(connection: Connection) -> list[str]:
    """Return what to do with a database in which version 0.2.0 or 0.3.0 read other capacity databases."""
    if not connection.execute(text("SELECT to_regclass('capacity_cells') IS NOT NULL")).scalar():
        return []
    drop = connection.execute(text(_DROP_CELLS)).scalar_one()
    return [
        "This database reads cells of version 0.3.0, and holds no figures. This version has no cells; "
        'docs/scale.md, "Several capacity databases", has the SQL that replaces them. To remove them, which changes '
        f"none of the databases that they read, run: {drop} -- After that, `capacity init` makes a capacity database "
        "of this one."
    ]


_DROP_CELLS = """
SELECT coalesce(string_agg(format('DROP SERVER %1$I CASCADE; DROP SCHEMA IF EXISTS %1$I CASCADE; ', srvname), ''
                           ORDER BY srvname), '')
       || 'DROP TABLE capacity_cells;'
FROM pg_foreign_server WHERE srvname LIKE 'cell\\_%'
"""


def schema_state(engine: Engine) -> SchemaState:
    """Return the state of the database."""
    with engine.connect() as connection:
        present = existing_tables(connection, metadata.sorted_tables)
        there = {table.name for table in present}
        missing = tuple(table.name for table in metadata.sorted_tables if table.name not in there)
        shortcomings = _untrusted_objects(connection)
        for table in present:
            shortcomings += dict.fromkeys(step.reason for step in table_steps(connection, table))
            shortcomings += table_problems(connection, table)
        if not missing:
            shortcomings += dict.fromkeys(step.reason for step in change_tracking_steps(connection))
            shortcomings += [f"view {view.name} is missing or outdated" for view in outdated_views(connection)]
        shortcomings += [
            f"view {reader.name} reads a column that is widened: it is dropped and restored"
            if reader.movable
            else f"{reader.described} {BLOCKS_THE_UPGRADE}"
            for reader in _blocking_readers(connection)
            if not reader.is_ours
        ]
        return SchemaState(_revision(connection), missing, tuple(shortcomings))


def schema_revision(engine: Engine) -> str | None:
    """Return the revision of the database; None if `capacity init` never ran."""
    with engine.connect() as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    if not connection.execute(text("SELECT to_regclass(:name)"), {"name": VERSION_TABLE}).scalar():
        return None
    revision = connection.execute(text("SELECT version_num FROM capacity_alembic_version")).scalar()
    return None if revision is None else str(revision)


def refuse_a_newer_schema(engine: Engine) -> Engine:
    """Make each new connection of an engine raise DatabaseError if a newer version created the schema.

    Data stored by that version may have another meaning, so it is not read either.
    """

    @event.listens_for(engine, "connect")
    def look(connection: Any, _record: object) -> None:
        newer = newer_schema(connection)
        connection.rollback()
        if newer:
            connection.close()
            raise DatabaseError(newer)

    return engine


def newer_schema(connection: Any) -> str | None:
    """Return the message if a newer version created the schema, otherwise None; `connection` is psycopg's."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_table_privilege(to_regclass('capacity_alembic_version'), 'SELECT')")
        if cursor.fetchone() != (True,):
            return None
        newer = "SELECT version_num FROM capacity_alembic_version WHERE version_num > %s"
        cursor.execute(newer, (SCHEMA_REVISION,))
        row = cursor.fetchone()
    return newer_schema_text(row[0]) if row else None


def refuse_an_unfit_database(engine: Engine, zone: ZoneInfo | None = None) -> None:
    """Refuse a database without this version's schema or, if `zone` is given, with days of another zone.

    Raises DatabaseError, also if the database does not answer; ValidationError for days of another zone.
    """
    with database_errors(doing="reading the schema version"):
        revision = schema_revision(engine)
        problem = another_zone(engine, zone.key) if zone and revision == SCHEMA_REVISION else None
    if revision is not None and revision > SCHEMA_REVISION:
        raise DatabaseError(newer_schema_text(revision))
    if revision != SCHEMA_REVISION:
        state = f"at revision {revision}" if revision else "missing"
        raise DatabaseError(
            f"The capacity schema is {state}; this version needs revision {SCHEMA_REVISION}. "
            "Run `capacity init`, which creates or upgrades the tables without losing a row, then run this again."
        )
    if problem:
        raise ValidationError(problem)


_REGISTER = """
INSERT INTO capacity_computed_windows
    (period_type, level, period_start, period_end, reads_from, wanted, changed, computed)
SELECT w.period_type, w.level, w.period_start, w.period_end, w.reads_from, 1, 1, 0
FROM unnest(CAST(:names AS varchar[]), CAST(:levels AS varchar[]), CAST(:starts AS date[]), CAST(:ends AS date[]),
            CAST(:reads_from AS date[])) AS w (period_type, level, period_start, period_end, reads_from)
WHERE w.level = 'database' AND EXISTS (SELECT FROM database_size_aggregations a
                                       WHERE a.period_type = w.period_type AND a.period_start = w.period_start)
   OR w.level = 'instance' AND EXISTS (SELECT FROM instance_size_aggregations a
                                       WHERE a.period_type = w.period_type AND a.period_start = w.period_start)
ON CONFLICT DO NOTHING
"""


def _enter_legacy_windows(connection: Connection) -> None:
    """Enter the windows that have rows as computed and stale, because earlier changes were not recorded.

    Each is looked up by its key; a list of the existing ones would read every row.
    """
    windows = [
        (level, period.name, window.start, window.end, period.previous(window).start)
        for level, table in (("database", database_size_aggregations), ("instance", instance_size_aggregations))
        for period in PERIODS.values()
        for window in _windows_of(connection, table, period)
    ]
    if windows:
        names = ("levels", "names", "starts", "ends", "reads_from")
        connection.execute(text(_REGISTER), dict(zip(names, map(list, zip(*windows, strict=True)), strict=True)))


def _windows_of(connection: Connection, table: Table, period: Period) -> tuple[Window, ...]:
    ends = select(func.min(table.c.period_start), func.max(table.c.period_start))
    first, last = connection.execute(ends.where(table.c.period_type == period.name)).one()
    return () if first is None else period.windows_between(first, last)


# Fingerprints of stored sums in 0.3.0, and those of the same sums today.
_SUMS = """
UPDATE capacity_computed_windows w SET fingerprint = left(w.fingerprint, 32) || s.today
FROM (VALUES ('database', 'f03ca3e05c7b819ea3e27b9d6080bba7', '10d57029dc97f2e55bd1c294f4b2853f'),
             ('instance', 'fc52ff51aa9a93534a33c35ed5ecb577', 'b41180f13b200b7e2f44ae9393fedeed'))
    AS s (level, former, today)
WHERE w.level = s.level AND right(w.fingerprint, 32) = s.former
"""
_CONVERT = """
WITH here AS (
    SELECT (SELECT CAST(system_identifier AS text) FROM pg_control_system()) AS server,
           (SELECT CAST(oid AS text) FROM pg_database WHERE datname = current_database()) AS database,
           pg_snapshot_xmax(pg_current_snapshot()) AS next
), windows AS (
    SELECT w.*, CAST(w.snapshot AS pg_snapshot) AS seen,
           CAST(w.system_identifier AS text) <> here.server OR CAST(w.database_oid AS text) <> here.database
           OR pg_snapshot_xmax(CAST(w.snapshot AS pg_snapshot)) > here.next AS is_foreign,
           w.level || '_size_stats' AS raw_table, w.level || '_size_aggregations' AS target_table
    FROM capacity_computed_windows w CROSS JOIN here WHERE w.snapshot IS NOT NULL
), changed AS (
    SELECT table_name, collected_date AS day, changed_at, CAST(CAST(transaction_id AS text) AS xid8) AS transaction
    FROM capacity_sample_changes
), from_elsewhere AS (
    SELECT EXISTS (SELECT FROM windows WHERE is_foreign)
        OR EXISTS (SELECT FROM changed CROSS JOIN here WHERE changed.transaction >= here.next) AS is_so
), unseen AS (
    SELECT w.period_type, w.level, w.period_start, min(c.changed_at) AS oldest, max(c.changed_at) AS newest
    FROM windows w CROSS JOIN from_elsewhere JOIN changed c ON c.table_name = w.raw_table
        AND (c.day BETWEEN w.reads_from AND w.period_end OR c.day BETWEEN w.year_before_start AND w.year_before_end)
        AND (from_elsewhere.is_so OR NOT pg_visible_in_snapshot(c.transaction, w.seen))
    GROUP BY w.period_type, w.level, w.period_start
), distrusted AS (
    SELECT w.period_type, w.level, w.period_start FROM windows w CROSS JOIN from_elsewhere
    WHERE from_elsewhere.is_so OR w.fingerprint IS NULL OR EXISTS (
        SELECT FROM capacity_invalidations d WHERE d.table_name IN (w.raw_table, w.target_table)
          AND NOT pg_visible_in_snapshot(CAST(CAST(d.transaction_id AS text) AS xid8), w.seen))
)
UPDATE capacity_computed_windows w
SET computed = 0, oldest_change = u.oldest, newest_change = u.newest,
    wanted = CAST(u.period_start IS NOT NULL OR d.period_start IS NOT NULL AS integer),
    changed = CAST(u.period_start IS NOT NULL OR d.period_start IS NOT NULL AS integer)
FROM windows k LEFT JOIN unseen u USING (period_type, level, period_start)
LEFT JOIN distrusted d USING (period_type, level, period_start)
WHERE w.period_type = k.period_type AND w.level = k.level AND w.period_start = k.period_start
"""
_SERVERS = """
INSERT INTO capacity_changes (table_name, kind, instance_id, changed_at)
SELECT 'instances', 'server', instance_id, min(changed_at) FROM capacity_activations GROUP BY instance_id
"""
# The tables of nodes are not dropped: a node would commit that at once, and not with this transaction.
_OF_NODES = """
INSERT INTO capacity_changes (table_name, kind, days, changed_at)
SELECT table_name, coalesce(kind, 'samples'), coalesce(daterange(day, day, '[]'), '(,)'), changed_at
FROM json_to_recordset(CAST(:records AS json)) AS r (table_name text, kind text, day date, changed_at timestamptz)
"""
_ON_NODE = """
SELECT coalesce(json_agg(r), '[]') FROM (
    SELECT table_name, NULL AS kind, collected_date AS day, changed_at FROM {schema}.capacity_sample_changes
    UNION ALL
    SELECT table_name, CASE WHEN table_name LIKE '%_stats' THEN 'deleted' ELSE 'written' END, NULL, changed_at
    FROM {schema}.capacity_invalidations) r
"""
# With its triggers, also those on shards, which DROP TRIGGER does not reach.
_FORMER_FUNCTION = "DROP FUNCTION IF EXISTS capacity_track_invalidation() CASCADE"
_FORMER_TABLES = (
    "DROP TABLE IF EXISTS capacity_sample_changes, capacity_activations, capacity_invalidations",
    "ALTER TABLE capacity_computed_windows DROP COLUMN IF EXISTS snapshot, "
    "DROP COLUMN IF EXISTS system_identifier, DROP COLUMN IF EXISTS database_oid",
)


def _convert_to_the_queue(connection: Connection) -> None:
    """Move the changes that 0.3.0 recorded, with transaction snapshots, to the queue and the windows.

    Windows that include every change stay up to date, the others become stale; servers whose days were not looked up
    yet go to the queue. If transaction numbers are from another server or database, every change counts as not
    included.
    """
    if "snapshot" not in {column["name"] for column in inspect(connection).get_columns("capacity_computed_windows")}:
        return
    execute(connection, [_FORMER_FUNCTION, _CONVERT, _SERVERS, _SUMS])
    if distributed_tables(connection):
        _take_over_from_nodes(connection)
    execute(connection, _FORMER_TABLES)


def _take_over_from_nodes(connection: Connection) -> None:
    schema = quoted(current_schema(connection))
    on_workers = text("SELECT success, result FROM run_command_on_workers(:command)")
    for row in connection.execute(on_workers, {"command": _ON_NODE.format(schema=schema)}):
        # A node that was never prepared has no such tables.
        if row.success or "does not exist" not in row.result:
            connection.execute(text(_OF_NODES), {"records": json.dumps(json.loads(row.result))})


_GONE = (
    "DROP VIEW IF EXISTS capacity_stored_groups, capacity_outdated_groups",
    "DROP FUNCTION IF EXISTS capacity_track_groups_database_size_aggregations() CASCADE",
    "DROP FUNCTION IF EXISTS capacity_track_groups_instance_size_aggregations() CASCADE",
    "DROP TABLE IF EXISTS capacity_group_sums, capacity_group_changes, capacity_group_windows",
)
# Changed once since it was computed, so it is stale and a run is requested.
_STILL_TO_COMPUTE = """
INSERT INTO capacity_computed_windows
    (period_type, level, period_start, period_end, reads_from, year_before_start, year_before_end, wanted, computed,
     changed, oldest_change, newest_change, processed_instances, total_records, protected_records, unsampled_records)
SELECT DISTINCT ON (period_type, period_start)
       period_type, 'group', period_start, period_end, reads_from, year_before_start, year_before_end, 1, 0, 1, now(),
       now(), 0, 0, 0, 0
FROM capacity_computed_windows WHERE computed IS NOT NULL AND level <> 'group'
ORDER BY period_type, period_start, level
ON CONFLICT DO NOTHING
"""


def _enter_groups(connection: Connection) -> None:
    """Drop the former sums of groups, and mark the groups of every computed window as stale.

    The next evaluation of the sensor of late data requests the runs; `capacity groups --now` computes them at once.
    """
    execute(connection, [*_GONE, _STILL_TO_COMPUTE])


STEPS = {"0012": _enter_legacy_windows, "0015": _convert_to_the_queue, "0016": _enter_groups}
