"""Converts an unpartitioned capacity table to a partitioned one while it is in use, without losing a row.

Two steps before the rows move: an index is built beside the running work, then one short transaction puts a
partitioned table in the old one's place and hangs the old one in as its default partition. From then on everything is
as it should be; that rows still lie in the default partition only means that they cannot leave as whole partitions
yet. Moving them is the ordinary work of `retention.maintenance`, so a conversion that is stopped at any point is
continued by the same command, or by the next scheduled maintenance.

What the table is to others (views, foreign keys to it, triggers, policies, publications) is tied to the old table and
would silently see fewer and fewer rows: it is named, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection, Engine, Row, Table, text

from capacity_assets.storage.adoption import other_owner
from capacity_assets.storage.change_tracking import INVALIDATION_FUNCTION, change_tracking_steps, function_name
from capacity_assets.storage.group_tracking import group_tracking_steps, group_triggers
from capacity_assets.storage.partitions import LIKE_PARENT, layout_of
from capacity_assets.storage.schema import SchemaProblemsError
from capacity_assets.storage.steps import carry_out, execute, free_name, quoted
from capacity_assets.storage.triggers import EVENTS
from capacity_assets.storage.unique_keys import unique_keys
from capacity_assets.storage.view_upgrades import built_on_views, take_views_away
from capacity_assets.storage.views import VIEWS

NEW_KEY = "{}_partitioned_pkey"
LONGEST_STEM = 63 - len("_default_capacity")


def needs_conversion(connection: Connection, table: Table) -> bool:
    """Whether the table is there and not partitioned."""
    kind = connection.execute(
        text("SELECT relkind FROM pg_class WHERE oid = to_regclass(:table)"), {"table": table.name}
    ).scalar()
    return kind == "r" and not layout_of(connection, table).is_partitioned


def build_key(engine: Engine, table: Table) -> None:
    """Build the index of the new primary key without keeping anyone out; one left half-built is built again.

    Raises:
        sqlalchemy.exc.DBAPIError: the database failed; the table is as it was, up to that index.
    """
    name = NEW_KEY.format(table.name)
    columns = ", ".join(quoted(column.name) for column in table.primary_key)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            connection.execute(text("SET statement_timeout = 0"))
            # It waits for every transaction that is older, a dump or a report.
            connection.execute(text("SET lock_timeout = 0"))
            is_valid = connection.execute(
                text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"), {"name": name}
            ).scalar()
            if is_valid is False:
                connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {quoted(name)}")
            if not is_valid:
                connection.exec_driver_sql(
                    f"CREATE UNIQUE INDEX CONCURRENTLY {quoted(name)} ON {quoted(table.name)} ({columns})"
                )
        finally:
            connection.invalidate()  # it carries a setting of its own


def problems_of(connection: Connection, table: Table) -> list[str]:
    """Return the problems that a person has to solve before the table can be converted."""
    ours = {"table": table.name, "ours": "capacity\\_track\\_%", "views": [view.name for view in VIEWS]}
    listed = [
        f"{table.name}: {row.what} belongs to it and would be left behind with the old rows. Drop it, run "
        "`capacity partition`, and create it again."
        for row in connection.execute(text(_DEPENDENTS), ours)
    ]
    listed += [
        f"{table.name}: {what} depends on one of our views, which has to be created again. Drop it, run "
        "`capacity partition`, and create it again."
        for what in built_on_views(connection)
    ]
    needed = _partition_columns(table)
    listed += [
        f"{table.name}: its unique index {index.identifier} lacks {' or '.join(needed)}, which every unique key of the "
        "partitioned table must hold. Drop it, if it can go, and run `capacity partition` again."
        for index in _indexes(connection, table)
        if index.is_unique and not index.is_primary and not set(needed) <= set(index.columns)
    ]
    return listed


def swap(connection: Connection, table: Table) -> None:
    """Put a partitioned table in the place of a plain one, which becomes its default partition.

    In the caller's transaction, which must be rolled back if anything is raised.

    Raises:
        SchemaProblemsError: something belongs to the table that would not follow; nothing was changed.
        sqlalchemy.exc.DBAPIError: the database refused a step.
    """
    connection.exec_driver_sql(f"LOCK TABLE {quoted(table.name)} IN ACCESS EXCLUSIVE MODE")
    problems = problems_of(connection, table)
    if problems:
        raise SchemaProblemsError(problems)
    views = take_views_away(connection)
    old = free_name(connection, _aside(table.name))
    indexes = _indexes(connection, table)
    kept = [*connection.execute(text(_FOREIGN_KEYS), {"table": table.name}).scalars()]
    kept += connection.execute(text(_OWNER_AND_GRANTS), {"table": table.name}).scalars()
    statements = [
        *_row_numbers(connection, table),
        *_set_aside(connection, table, old, indexes),
        f"CREATE TABLE {quoted(table.name)} (LIKE {quoted(old)} {LIKE_PARENT}) "
        f"PARTITION BY {table.dialect_options['postgresql']['partition_by']}",
        *_keys_and_indexes(table, indexes),
        *(f"ALTER TABLE {quoted(table.name)} {clause}" for clause in kept if not clause.startswith("GRANT")),
        *(clause.replace("%TABLE%", quoted(table.name)) for clause in kept if clause.startswith("GRANT")),
        f"ALTER TABLE {quoted(table.name)} ATTACH PARTITION {quoted(old)} DEFAULT",
        *views,
    ]
    execute(connection, statements)
    for sequence in connection.execute(text(_SEQUENCES), {"table": old}).scalars().all():
        connection.exec_driver_sql(f"ALTER SEQUENCE {sequence} OWNED BY {quoted(table.name)}.id")
    carry_out(connection, (*change_tracking_steps(connection), *group_tracking_steps(connection)))


def _row_numbers(connection: Connection, table: Table) -> Iterator[str]:
    """Replace an identity column by a sequence of its own: partitions cannot have one."""
    last = connection.execute(text(_IDENTITY), {"table": table.name}).scalar()
    if last is not None:
        sequence = quoted(free_name(connection, f"{table.name}_row_number_seq"))
        yield f"ALTER TABLE {quoted(table.name)} ALTER COLUMN id DROP IDENTITY"
        yield f"CREATE SEQUENCE {sequence} START {last + 1}"
        owner = other_owner(connection, table.name)
        if owner:
            yield f"ALTER SEQUENCE {sequence} OWNER TO {quoted(owner)}"
        yield f"ALTER SEQUENCE {sequence} OWNED BY {quoted(table.name)}.id"
        yield f"ALTER TABLE {quoted(table.name)} ALTER COLUMN id SET DEFAULT nextval('{sequence}')"
        # Who may insert needed no right on the numbers of an identity column.
        for role in connection.execute(text(_WRITERS), {"table": table.name}).scalars():
            yield f"GRANT USAGE ON SEQUENCE {sequence} TO {role}"


def _set_aside(connection: Connection, table: Table, old: str, indexes: list[Row[tuple[object, ...]]]) -> Iterator[str]:
    """Rename the old table and its indexes, and give it the new primary key in place of its own."""
    yield f"ALTER TABLE {quoted(table.name)} RENAME TO {quoted(old)}"
    triggers = [f"{function_name(table.name)}_{event}" for event in EVENTS]
    for trigger in (*triggers, INVALIDATION_FUNCTION, *group_triggers(table.name)):
        yield f"DROP TRIGGER IF EXISTS {trigger} ON {quoted(old)}"
    for index in indexes:
        if index.is_primary:
            yield f"ALTER TABLE {quoted(old)} DROP CONSTRAINT {quoted(index.name)}"
        elif index.name != NEW_KEY.format(table.name):
            yield f"ALTER INDEX {index.identifier} RENAME TO {quoted(free_name(connection, _aside(index.name)))}"
    key = quoted(NEW_KEY.format(table.name))
    yield f"ALTER TABLE {quoted(old)} ADD PRIMARY KEY USING INDEX {key}"


def _keys_and_indexes(table: Table, indexes: list[Row[tuple[object, ...]]]) -> Iterator[str]:
    """The keys of the definitions, and of the other indexes those that no key makes superfluous.

    A key is a constraint where the old table has it as one: only then does its index become a part of the new one
    instead of being built anew.
    """
    name, columns = quoted(str(table.primary_key.name)), _listed(column.name for column in table.primary_key)
    yield f"ALTER TABLE {quoted(table.name)} ADD CONSTRAINT {name} PRIMARY KEY ({columns})"
    keys = [[column.name for column in table.primary_key]]
    for key in unique_keys(table):
        there = [index for index in indexes if index.is_unique and set(index.columns) == set(key.columns)]
        ordered = there[0].columns if there else key.columns
        keys.append(list(ordered))
        # By its old name, by which a writer may call it (ON CONFLICT ON CONSTRAINT).
        name = quoted(str(there[0].name) if there else key.name)
        if key.condition is None and (not there or there[0].is_constraint):
            yield f"ALTER TABLE {quoted(table.name)} ADD CONSTRAINT {name} UNIQUE ({_listed(ordered)})"
        else:
            where = there[0].definition.partition(" USING ")[2] if there else f"btree ({_listed(key.columns)})"
            yield f"CREATE UNIQUE INDEX {name} ON {quoted(table.name)} USING {where}"
    for index in indexes:
        superfluous = not index.is_unique and not index.condition
        superfluous = superfluous and any(key[: len(index.columns)] == index.columns for key in keys)
        is_key = index.is_primary or index.name == NEW_KEY.format(table.name)
        is_key = is_key or (index.is_unique and set(index.columns) in map(set, keys))
        if not is_key and not superfluous:
            create, _, clause = index.definition.partition(" USING ")
            kind = create.partition(" INDEX ")[0]
            yield f"{kind} INDEX {quoted(index.name)} ON {quoted(table.name)} USING {clause}"


def _indexes(connection: Connection, table: Table) -> list[Row[tuple[object, ...]]]:
    return list(connection.execute(text(_INDEXES), {"table": table.name}))


def _partition_columns(table: Table) -> list[str]:
    key = str(table.dialect_options["postgresql"]["partition_by"])
    return [column.name for column in table.columns if column.name in key.partition("(")[2].strip(")").split(", ")]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(quoted, names))


def _aside(name: str) -> str:
    """The name of a renamed object, within PostgreSQL's 63 characters."""
    return f"{name[:LONGEST_STEM]}_default"


_DEPENDENTS = """
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) AS what
FROM pg_depend d JOIN pg_class t ON t.oid = to_regclass(:table)
WHERE (d.refclassid, d.refobjid) IN (('pg_class'::regclass, t.oid), ('pg_type'::regclass, t.reltype))
  AND d.deptype IN ('n', 'a') AND d.classid <> 'pg_attrdef'::regclass
  AND NOT EXISTS (SELECT FROM pg_class c
                  WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind IN ('i', 'S', 't'))
  AND NOT EXISTS (SELECT FROM pg_constraint c
                  WHERE d.classid = 'pg_constraint'::regclass AND c.oid = d.objid AND c.conrelid = t.oid)
  AND NOT EXISTS (SELECT FROM pg_rewrite w JOIN pg_class v ON v.oid = w.ev_class
                  WHERE d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid AND v.relname = ANY (:views))
  AND NOT EXISTS (SELECT FROM pg_trigger g WHERE d.classid = 'pg_trigger'::regclass AND g.oid = d.objid
                  AND (g.tgisinternal OR g.tgname LIKE :ours))
UNION ALL
SELECT 'row level security' FROM pg_class WHERE oid = to_regclass(:table) AND relrowsecurity
UNION ALL
SELECT 'a privilege on column ' || attname FROM pg_attribute
WHERE attrelid = to_regclass(:table) AND attacl IS NOT NULL AND NOT attisdropped
ORDER BY 1
"""

_INDEXES = """
SELECT c.relname AS name, i.indexrelid::regclass::text AS identifier, i.indisunique AS is_unique,
       i.indisprimary AS is_primary, pg_get_indexdef(i.indexrelid) AS definition,
       pg_get_expr(i.indpred, i.indrelid) AS condition,
       EXISTS (SELECT FROM pg_constraint k
               WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid) AS is_constraint,
       ARRAY(SELECT coalesce(a.attname, '(expression)')::text
             FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
             LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND a.attnum > 0
             WHERE place <= i.indnkeyatts ORDER BY place) AS columns
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass(:table) AND i.indisvalid ORDER BY c.relname
"""

_FOREIGN_KEYS = """
SELECT format('ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint
WHERE conrelid = to_regclass(:table) AND contype = 'f' ORDER BY conname
"""

_OWNER_AND_GRANTS = """
SELECT format('OWNER TO %I', r.rolname) FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
WHERE c.oid = to_regclass(:table)
UNION ALL
SELECT format('GRANT %s ON %%TABLE%% TO %s%s', a.privilege_type, coalesce(quote_ident(r.rolname), 'PUBLIC'),
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE c.oid = to_regclass(:table) AND a.grantee <> c.relowner
"""

_WRITERS = """
SELECT coalesce(quote_ident(r.rolname), 'PUBLIC')
FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE c.oid = to_regclass(:table) AND a.grantee <> c.relowner AND a.privilege_type = 'INSERT'
"""

_SEQUENCES = """
SELECT d.objid::regclass::text FROM pg_depend d
JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attname = 'id'
WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'a' AND d.refobjid = to_regclass(:table)
"""

_IDENTITY = """
SELECT coalesce(pg_sequence_last_value(d.objid), 0) FROM pg_depend d
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attname = 'id'
WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'i' AND d.refobjid = to_regclass(:table)
"""
