"""Bringing tables to a wanted shape by adding and widening only, whatever is there already.

`table_steps` compares one existing table with the wanted one and returns the steps, each with a reason a person can
read; `capacity init` executes them, `capacity check` shows them. Steps never drop a row or a column; they drop checks
that refuse registered periods, and keys and indexes that another one replaces. What no step can fix (duplicate keys,
for example) is one of the `table_problems`, which say what to do. Which tables are wanted is decided by the callers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from sqlalchemy import BigInteger, Column, Connection, Integer, Numeric, String, Table, text
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.schema import CreateColumn

from capacity_assets.base.periods import PERIODS
from capacity_assets.database.catalogue import PresentTable
from capacity_assets.database.indexes import index_steps, key_problems
from capacity_assets.database.sql import DIALECT, SchemaStep, free_name, literal, quoted


def table_steps(connection: Connection, present: PresentTable) -> list[SchemaStep]:
    """Compare an existing table with the wanted one."""
    return [
        *_column_steps(present.wanted, present.columns),
        *_period_check_steps(present),
        *(default_partition_steps(connection, present.wanted) if present.facts.lacks_default_partition else ()),
        *_partition_trigger_steps(present),
        *index_steps(connection, present),
    ]


def table_problems(connection: Connection, present: PresentTable) -> list[str]:
    """Say what keeps the steps from being carried out, or rows from being inserted afterwards."""
    return [*_column_problems(present.wanted, present.columns)] or [*key_problems(connection, present)]


def _column_steps(wanted: Table, present: Mapping[str, ReflectedColumn]) -> Iterator[SchemaStep]:
    for column in wanted.columns:
        name = f"{wanted.name}.{column.name}"
        alter = f"ALTER TABLE {quoted(wanted.name)} ALTER COLUMN {quoted(column.name)}"
        if column.name not in present:
            if column.nullable or column.server_default is not None:
                definition = CreateColumn(column).compile(dialect=DIALECT)
                yield SchemaStep(f"{name} is missing", f"ALTER TABLE {quoted(wanted.name)} ADD COLUMN {definition}")
            continue
        stored = present[column.name]
        if _is_widened(stored, column):
            wanted_type = column.type.compile(dialect=DIALECT)
            reason = f"{name} is {stored['type'].compile(dialect=DIALECT)}, too narrow: {wanted_type} is needed"
            yield SchemaStep(reason, f"{alter} TYPE {wanted_type}")
        if column.nullable and not stored["nullable"]:
            yield SchemaStep(f"{name} refuses null, but unknown is not zero", f"{alter} DROP NOT NULL")


def _column_problems(wanted: Table, present: Mapping[str, ReflectedColumn]) -> Iterator[str]:
    for name, stored in present.items():
        filled = stored["nullable"] or stored.get("default") or stored.get("identity")
        if name not in wanted.columns and "period_type" in wanted.columns and not filled:
            yield (
                f"{wanted.name}.{name} is none of our columns, must not be null and has no default, so no row can be "
                f"inserted. Give it a default or allow null, then run `capacity init` again."
            )
    for column in wanted.columns:
        ours = present.get(column.name)
        if ours is None and not column.nullable and column.server_default is None:
            yield (
                f"{wanted.name}.{column.name} is missing and has no default to fill existing rows with. "
                f"Add the column and fill it, then run `capacity init` again."
            )
        if ours is not None and column.name == "id" and not (ours.get("default") or ours.get("identity")):
            sequence = f"{wanted.name}_id_seq"
            yield (
                f"{wanted.name}.id has no default, so no row can be inserted. Create sequence {sequence} beginning "
                f"above the largest id and make it the default: ALTER TABLE {wanted.name} ALTER COLUMN id "
                f"SET DEFAULT nextval('{sequence}'); then run `capacity init` again."
            )


def widened_columns(present: PresentTable) -> list[str]:
    """List the columns of an existing table whose type has to change; no view may read them meanwhile."""
    both = [(present.columns[one.name], one) for one in present.wanted.columns if one.name in present.columns]
    return [wanted.name for stored, wanted in both if _is_widened(stored, wanted)]


def _is_widened(stored: ReflectedColumn, wanted: Column[object]) -> bool:
    """Whether values of the wanted type may not fit the type that is there; a row number of others stays as it is."""
    there, here = stored["type"], wanted.type
    if wanted.name == "id":
        return False
    if isinstance(here, BigInteger):
        return isinstance(there, Integer) and not isinstance(there, BigInteger)
    if isinstance(here, Numeric) and isinstance(there, Numeric):
        return there.precision is not None and there.precision < (here.precision or 0)
    if isinstance(here, String) and isinstance(there, String):
        return there.length is not None and there.length < (here.length or 0)
    return False


def _period_check_steps(present: PresentTable) -> Iterator[SchemaStep]:
    """A legacy check on period_type alone that lists four periods; which ones exist is decided by the registry."""
    for name, definition in present.facts.period_checks.items():
        listed = [period for period in PERIODS if f"'{period}'" in definition]
        if listed and len(listed) < len(PERIODS):
            yield SchemaStep(
                f"{present.name} accepts only the periods listed in its check {name}: {', '.join(listed)}",
                f"ALTER TABLE {quoted(present.name)} DROP CONSTRAINT {quoted(name)}",
            )


def default_partition_steps(connection: Connection, wanted: Table) -> Iterator[SchemaStep]:
    """A range-partitioned table without a default partition refuses rows outside its partitions."""
    name = free_name(connection, f"{wanted.name}_default")
    yield SchemaStep(
        f"{wanted.name} is partitioned and refuses rows outside its partitions",
        f"CREATE TABLE {quoted(name)} PARTITION OF {quoted(wanted.name)} DEFAULT",
    )
    owner = other_owner(connection, wanted.name)
    if owner:
        yield SchemaStep(
            f"{name} belongs to another than {wanted.name}", f"ALTER TABLE {quoted(name)} OWNER TO {quoted(owner)}"
        )


def _partition_trigger_steps(present: PresentTable) -> Iterator[SchemaStep]:
    """A row trigger of the legacy application makes partitions in mid-insert.

    PostgreSQL refuses that as soon as the row goes to a partition, a default one too; partitions are made ahead here.
    """
    for name in present.facts.partition_triggers:
        yield SchemaStep(
            f"{present.name} has the trigger {name}, which makes partitions in mid-insert and so refuses rows; it is "
            "switched off, not dropped",
            f"ALTER TABLE {quoted(present.name)} DISABLE TRIGGER {quoted(name)}",
        )


def other_owner(connection: Connection, table: str) -> str | None:
    """Return the owner of a table unless that is the current role: what is added should have the same owner."""
    return connection.execute(text(_OTHER_OWNER), {"table": table}).scalar()


_OTHER_OWNER = """
SELECT r.rolname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
WHERE c.oid = to_regclass(:table) AND r.rolname <> current_user
"""


def comment_statements(tables: Iterable[PresentTable]) -> Iterator[str]:
    """Yield what gives tables and columns their comments, where these are missing or differ."""
    for table in tables:
        if table.wanted.comment and table.facts.comment != table.wanted.comment:
            yield f"COMMENT ON TABLE {quoted(table.name)} IS {literal(table.wanted.comment)}"
        present = {name: column.get("comment") for name, column in table.columns.items()}
        for column in table.wanted.columns:
            if column.comment and present.get(column.name) != column.comment:
                named = f"{quoted(table.name)}.{quoted(column.name)}"
                yield f"COMMENT ON COLUMN {named} IS {literal(column.comment)}"
