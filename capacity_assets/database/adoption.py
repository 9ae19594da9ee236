"""Bringing existing tables, whatever their state, to their definitions, only by adding and widening.

`existing_tables` reads the tables as they are. `table_steps` compares one with its definition and returns the steps,
each with a reason for people; `capacity init` executes them, `capacity check` shows them. Steps never drop a row or a
column; they drop checks that refuse registered periods, and keys and indexes that another one replaces.
`table_problems` returns problems that no step can fix, such as duplicate keys, with what to do.

The key of a capacity table begins with the day or the window: it serves queries for some days, upserts (which name
columns in any order), and the history of one database, whose windows are listed. If a table has another key,
`build_ahead` builds the index of the new one during normal operation, partition by partition, and the steps of
`index_steps` replace the old key with it, which changes only the catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.schema import CreateColumn

from capacity_assets.base.periods import PERIODS
from capacity_assets.base.units import counted
from capacity_assets.database.sql import DIALECT, SchemaStep, free_name, literal, quoted, sql_text

Index = sa.Row[Any]
"""An index in the database, see `_INDEXES`."""


@dataclass(frozen=True)
class ExistingTable:
    """An existing table, and the definition that it is to have."""

    wanted: sa.Table
    columns: Mapping[str, ReflectedColumn]
    indexes: Sequence[Index]
    facts: sa.Row[Any]
    """Its comment, whether it lacks_default_partition, its partition_triggers and period_checks, see `_FACTS`."""

    @property
    def name(self) -> str:
        """The name of the table."""
        return self.wanted.name


def existing_tables(connection: sa.Connection, wanted: Iterable[sa.Table]) -> list[ExistingTable]:
    """Return the tables that exist, in the given order."""
    inspector = sa.inspect(connection)
    there = set(inspector.get_table_names())
    tables = [table for table in wanted if table.name in there]
    names = [table.name for table in tables]
    # Without names, it would read all tables.
    reflected = inspector.get_multi_columns(filter_names=names) if names else {}
    columns = {name: columns_of_table for (_, name), columns_of_table in reflected.items()}
    facts = {row.name: row for row in connection.execute(sa.text(_FACTS), {"names": names})}
    indexes = indexes_of(connection, names)
    return [
        ExistingTable(
            table, {column["name"]: column for column in columns[table.name]}, indexes[table.name], facts[table.name]
        )
        for table in tables
    ]


def indexes_of(connection: sa.Connection, relations: Sequence[str]) -> dict[str, list[Index]]:
    """Return the indexes of tables or partitions, by their name, with the facts by which `WantedIndex` judges them."""
    indexes: dict[str, list[Index]] = {relation: [] for relation in relations}
    for index in connection.execute(sa.text(_INDEXES), {"relations": relations}):
        indexes[index.relation].append(index)
    return indexes


# Partition triggers are row triggers of the legacy application that create partitions during an insert. Period checks
# are those on `period_type` alone, with their definitions.
_FACTS = """
SELECT t.name, obj_description(c.oid, 'pg_class') AS comment,
       coalesce(p.partdefid = 0, false) AS lacks_default_partition,
       ARRAY(SELECT CAST(g.tgname AS text) FROM pg_trigger g JOIN pg_proc f ON f.oid = g.tgfoid
             WHERE g.tgrelid = p.partrelid AND NOT g.tgisinternal AND g.tgenabled <> 'D' AND g.tgtype & 7 = 7
               AND f.prosrc ~* '(PARTITION\\s+OF|create_\\w*partition)' ORDER BY 1) AS partition_triggers,
       coalesce((SELECT json_object_agg(k.conname, pg_get_constraintdef(k.oid) ORDER BY k.conname)
                 FROM pg_constraint k JOIN pg_attribute a ON a.attrelid = k.conrelid AND k.conkey = ARRAY[a.attnum]
                 WHERE k.conrelid = c.oid AND k.contype = 'c' AND a.attname = 'period_type'), '{}') AS period_checks
FROM unnest(CAST(:names AS text[])) AS t (name) JOIN pg_class c ON c.oid = to_regclass(t.name)
LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
"""
_INDEXES = """
SELECT r.relation, c.relname AS name, i.indexrelid::regclass::text AS identifier, i.indisunique AS is_unique,
       i.indisprimary AS is_primary, i.indisvalid AS is_valid,
       c.relispartition AS is_attached, pg_get_indexdef(i.indexrelid) AS definition,
       pg_get_expr(i.indpred, i.indrelid) AS condition,
       EXISTS (SELECT FROM pg_constraint k
               WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid) AS is_constraint,
       EXISTS (SELECT FROM pg_constraint k
               WHERE k.conindid = i.indexrelid AND k.contype = 'f') AS is_referred_to,
       ARRAY(SELECT coalesce(a.attname, '(expression)')::text
             FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
             LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND a.attnum > 0
             WHERE place <= i.indnkeyatts ORDER BY place) AS columns
FROM unnest(CAST(:relations AS text[])) AS r (relation) JOIN pg_index i ON i.indrelid = to_regclass(r.relation)
JOIN pg_class c ON c.oid = i.indexrelid
ORDER BY c.relname
"""


def table_steps(connection: sa.Connection, present: ExistingTable) -> list[SchemaStep]:
    """Compare an existing table with its definition."""
    return [
        *_column_steps(present.wanted, present.columns),
        *_period_check_steps(present),
        *(default_partition_steps(connection, present.wanted) if present.facts.lacks_default_partition else ()),
        *_partition_trigger_steps(present),
        *index_steps(connection, present),
    ]


def table_problems(connection: sa.Connection, present: ExistingTable) -> list[str]:
    """Return what prevents the steps, or inserts after them, in words."""
    return [*_column_problems(present.wanted, present.columns)] or [*key_problems(connection, present)]


def _column_steps(wanted: sa.Table, present: Mapping[str, ReflectedColumn]) -> Iterator[SchemaStep]:
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
            yield SchemaStep(f"{name} must allow null for unknown values", f"{alter} DROP NOT NULL")


def _column_problems(wanted: sa.Table, present: Mapping[str, ReflectedColumn]) -> Iterator[str]:
    for name, stored in present.items():
        filled = stored["nullable"] or stored.get("default") or stored.get("identity")
        if name not in wanted.columns and "period_type" in wanted.columns and not filled:
            yield (
                f"{wanted.name}.{name} is an unknown column that must not be null and has no default, so no row can be "
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


def widened_columns(present: ExistingTable) -> list[str]:
    """List the columns of an existing table whose type has to change; no view may read them during the change."""
    both = [
        (present.columns[column.name], column) for column in present.wanted.columns if column.name in present.columns
    ]
    return [wanted.name for stored, wanted in both if _is_widened(stored, wanted)]


def _is_widened(stored: ReflectedColumn, wanted: sa.Column[object]) -> bool:
    """Whether values of the wanted type may not fit the existing type; row numbers of others stay."""
    there, here = stored["type"], wanted.type
    if wanted.name == "id":
        return False
    if isinstance(here, sa.BigInteger):
        return isinstance(there, sa.Integer) and not isinstance(there, sa.BigInteger)
    if isinstance(here, sa.Numeric) and isinstance(there, sa.Numeric):
        return there.precision is not None and there.precision < (here.precision or 0)
    if isinstance(here, sa.String) and isinstance(there, sa.String):
        return there.length is not None and there.length < (here.length or 0)
    return False


def _period_check_steps(present: ExistingTable) -> Iterator[SchemaStep]:
    """Drop a legacy check on period_type alone that lists fewer periods than are registered."""
    for name, definition in present.facts.period_checks.items():
        listed = [period for period in PERIODS if f"'{period}'" in definition]
        if listed and len(listed) < len(PERIODS):
            yield SchemaStep(
                f"{present.name} accepts only the periods listed in its check {name}: {', '.join(listed)}",
                f"ALTER TABLE {quoted(present.name)} DROP CONSTRAINT {quoted(name)}",
            )


def default_partition_steps(connection: sa.Connection, wanted: sa.Table) -> Iterator[SchemaStep]:
    """Add a default partition; without one, a table refuses rows outside its partitions."""
    name = free_name(connection, f"{wanted.name}_default")
    yield SchemaStep(
        f"{wanted.name} is partitioned and refuses rows outside its partitions",
        f"CREATE TABLE {quoted(name)} PARTITION OF {quoted(wanted.name)} DEFAULT",
    )
    owner = other_owner(connection, wanted.name)
    if owner:
        yield SchemaStep(
            f"{name} does not belong to the owner of {wanted.name}",
            f"ALTER TABLE {quoted(name)} OWNER TO {quoted(owner)}",
        )


def _partition_trigger_steps(present: ExistingTable) -> Iterator[SchemaStep]:
    """Disable a row trigger of the legacy application that creates partitions during an insert.

    PostgreSQL refuses that once the row belongs to a partition, even the default one. Here, partitions are added ahead.
    """
    for name in present.facts.partition_triggers:
        yield SchemaStep(
            f"{present.name} has the trigger {name}, which creates partitions during an insert and so refuses rows; "
            "it is disabled, not dropped",
            f"ALTER TABLE {quoted(present.name)} DISABLE TRIGGER {quoted(name)}",
        )


def other_owner(connection: sa.Connection, table: str) -> str | None:
    """Return the owner of a table if it is another role, because additions should have the same owner."""
    return connection.execute(sa.text(_OTHER_OWNER), {"table": table}).scalar()


_OTHER_OWNER = """
SELECT r.rolname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
WHERE c.oid = to_regclass(:table) AND r.rolname <> current_user
"""


def comment_statements(tables: Iterable[ExistingTable]) -> Iterator[str]:
    """Yield statements for the comments of tables and columns that are missing or differ."""
    for table in tables:
        if table.wanted.comment and table.facts.comment != table.wanted.comment:
            yield f"COMMENT ON TABLE {quoted(table.name)} IS {literal(table.wanted.comment)}"
        present = {name: column.get("comment") for name, column in table.columns.items()}
        for column in table.wanted.columns:
            if column.comment and present.get(column.name) != column.comment:
                named = f"{quoted(table.name)}.{quoted(column.name)}"
                yield f"COMMENT ON COLUMN {named} IS {literal(column.comment)}"


@dataclass(frozen=True)
class WantedIndex:
    """An index of a definition; a primary key has the name of the unique key that older versions had in its place."""

    name: str
    columns: tuple[str, ...]
    is_primary: bool = False
    is_unique: bool = False
    condition: str | None = None

    def is_like(self, index: Index) -> bool:
        """Whether an index has the same columns in the same order, and the same condition."""
        same = tuple(index.columns) == self.columns and _compact(index.condition) == _compact(self.condition)
        return same and index.is_unique == self.is_unique

    def is_served_by(self, index: Index) -> bool:
        """Whether an index serves the same purpose as this one."""
        if not index.is_valid:
            return False
        if self.is_unique and not self.is_primary:
            # Upserts name the columns in any order; an unconditional key does for samples that are not void.
            conditions = (_compact(self.condition), "")
            return index.is_unique and self.has_columns_of(index) and _compact(index.condition) in conditions
        return self.is_like(index) and (index.is_constraint or not self.is_primary)

    def has_columns_of(self, index: Index) -> bool:
        """Whether an index has the same columns, in any order."""
        return set(index.columns) == set(self.columns) and len(index.columns) == len(self.columns)

    @property
    def columns_and_condition(self) -> str:
        """Columns and condition, for people and for PostgreSQL."""
        where = f" WHERE {self.condition}" if self.condition else ""
        return f"({', '.join(map(quoted, self.columns))}){where}"


def wanted_indexes(table: sa.Table) -> Iterator[WantedIndex]:
    """Yield primary key, unique keys and further indexes of a definition."""
    key = table.primary_key
    if key.columns:
        name = str(key.name or f"{table.name}_pkey")
        yield WantedIndex(name, tuple(key.columns.keys()), is_primary=True, is_unique=True)
    for constraint in table.constraints:
        if isinstance(constraint, sa.UniqueConstraint):
            columns = tuple(constraint.columns.keys())
            yield WantedIndex(f"uq_{table.name}_{'_'.join(columns)}", columns, is_unique=True)
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        where = index.dialect_options["postgresql"]["where"]
        condition, columns = None if where is None else str(where), tuple(index.columns.keys())
        yield WantedIndex(str(index.name), columns, is_unique=index.unique, condition=condition)


def is_by_number(index: Index) -> bool:
    """Whether an index is the primary key of the legacy application, which begins with the row number."""
    return bool(index.is_primary and index.columns[0] == "id")


def index_steps(connection: sa.Connection, present: ExistingTable) -> Iterator[SchemaStep]:
    """Yield the steps that add the keys and indexes of a table, and drop those that they replace."""
    table, indexes = present.wanted, present.indexes
    for wanted in wanted_indexes(table):
        there = next((index for index in indexes if wanted.is_served_by(index)), None)
        if wanted.is_primary:
            if there is None:
                yield from _key_steps(connection, table, wanted, indexes)
        elif there is None or (there.name != wanted.name and any(index.name == wanted.name for index in indexes)):
            yield from _further_steps(connection, table, wanted, indexes, there)
    first = next(iter(table.primary_key.columns.keys()), None)
    former = (f"ix_{table.name}_{first}_instance_id", f"{table.name}_partitioned_pkey")
    for index in indexes:
        if index.name in former and not index.is_constraint:
            reason = f"{table.name} has the index {index.name}, which its key replaces"
            yield SchemaStep(reason, _drop(table, index))


def key_problems(connection: sa.Connection, present: ExistingTable) -> Iterator[str]:
    """Yield messages on rows that prevent a unique key."""
    for wanted in wanted_indexes(present.wanted):
        if wanted.is_unique and not _is_unique(wanted, present.indexes):
            yield from _duplicates(connection, present.wanted, wanted)


def build_ahead(engine: sa.Engine, tables: Iterable[sa.Table], on_step: Callable[[str], None]) -> None:
    """Build missing indexes without locking out readers or writers; an index left invalid is built again.

    Raises DBAPIError: indexes that were built stay, and the next call uses them.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            connection.execute(sa.text("SET statement_timeout = 0"))
            # It waits for every older transaction, such as a dump or a report.
            connection.execute(sa.text("SET lock_timeout = 0"))
            for present in existing_tables(connection, tables):
                for leaf, of_leaf, wanted in list(missing_indexes(connection, present)):
                    _drop_unfinished(connection, of_leaf, wanted)
                    _build(connection, present.wanted, leaf, wanted, on_step)
        finally:
            connection.invalidate()  # it has its own settings


def missing_indexes(
    connection: sa.Connection, present: ExistingTable
) -> Iterator[tuple[str, list[Index], WantedIndex]]:
    """Yield the partitions (or the table) with their indexes, and the missing ones that can be built ahead.

    A table without a unique key may have duplicates; a search for them precedes adding a key. No index is built on
    columns that do not exist yet.
    """
    table, indexes = present.wanted, present.indexes
    to_come = {column.name for column in table.columns} - present.columns.keys()
    for wanted in wanted_indexes(table):
        missing = not any(wanted.is_served_by(index) for index in indexes)
        named = {*wanted.columns, *re.findall(r"\w+", wanted.condition or "")}
        if indexes and missing and not named & to_come and (not wanted.is_unique or _is_unique(wanted, indexes)):
            leaves = _partitions_with_rows(connection, table) or [quoted(table.name)]
            for leaf, of_leaf in indexes_of(connection, leaves).items():
                if _built_index(of_leaf, wanted) is None:
                    yield leaf, of_leaf, wanted


def _drop_unfinished(connection: sa.Connection, of_leaf: Iterable[Index], wanted: WantedIndex) -> None:
    for index in of_leaf:
        if not index.is_valid and wanted.is_like(index):
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {index.identifier}")


def _build(
    connection: sa.Connection, table: sa.Table, leaf: str, wanted: WantedIndex, on_step: Callable[[str], None]
) -> None:
    on_step(f"{leaf}: building an index on {wanted.columns_and_condition} without locking the table")
    # PostgreSQL names indexes of partitions, and a key gets the name of the one that it replaces.
    is_whole = leaf == quoted(table.name) and not wanted.is_primary
    name = f"{quoted(free_name(connection, wanted.name))} " if is_whole else ""
    unique = "UNIQUE " if wanted.is_unique else ""
    connection.exec_driver_sql(f"CREATE {unique}INDEX CONCURRENTLY {name}ON {leaf} {wanted.columns_and_condition}")


def _is_unique(wanted: WantedIndex, indexes: Iterable[Index]) -> bool:
    """Whether a valid unique index on these columns, or on some of them, excludes duplicates."""
    return any(
        index.is_valid
        and index.is_unique
        and set(index.columns) <= set(wanted.columns)
        and _compact(index.condition) in ("", _compact(wanted.condition))
        for index in indexes
    )


def _key_steps(
    connection: sa.Connection, table: sa.Table, wanted: WantedIndex, indexes: Sequence[Index]
) -> Iterator[SchemaStep]:
    """Replace the primary key, and the unique key of the same columns, by one with the name of the latter.

    A key that foreign keys of others refer to stays, and so does the primary key of the legacy application, which looks
    rows up by their number.
    """
    reason = f"{table.name} has no key on {wanted.columns_and_condition}"
    leaves = _partitions_with_rows(connection, table)
    # The index of the new key itself may exist, of a table without partitions.
    others = [
        index for index in indexes if index.is_unique and not index.condition and (leaves or not wanted.is_like(index))
    ]
    former = [index for index in others if index.is_primary or wanted.has_columns_of(index)]
    staying = [index for index in former if index.is_referred_to or is_by_number(index)]
    replaced = [index for index in former if index not in staying]
    yield from (SchemaStep(reason, _drop(table, index)) for index in replaced)
    by_name = [index.name for index in replaced if wanted.has_columns_of(index) and index.is_constraint]
    by_name += [index.name for index in replaced if wanted.has_columns_of(index) or index.name == wanted.name]
    name = quoted(next(iter(by_name), None) or free_name(connection, wanted.name))
    kind = "UNIQUE" if any(index.is_primary for index in staying) else "PRIMARY KEY"
    for leaf, of_leaf in indexes_of(connection, leaves or [quoted(table.name)]).items():
        built = _built_index(of_leaf, wanted)
        if built is not None:
            called = "" if leaves else f"CONSTRAINT {name} "
            yield SchemaStep(reason, f"ALTER TABLE {leaf} ADD {called}{kind} USING INDEX {quoted(built.name)}")
            if not leaves:
                return
    # It uses the keys that partitions have, and builds those that are missing.
    columns = ", ".join(map(quoted, wanted.columns))
    yield SchemaStep(reason, f"ALTER TABLE {quoted(table.name)} ADD CONSTRAINT {name} {kind} ({columns})")


def _further_steps(
    connection: sa.Connection, table: sa.Table, wanted: WantedIndex, indexes: Sequence[Index], built: Index | None
) -> Iterator[SchemaStep]:
    """Add an index other than the primary key, in the place of one of the same name."""
    reason = f"{table.name} has no {'unique key' if wanted.is_unique else 'index'} on {wanted.columns_and_condition}"
    former = next((index for index in indexes if index.name == wanted.name), None)
    if former is not None:
        yield SchemaStep(reason, _drop(table, former))
    name = quoted(wanted.name if former is not None else free_name(connection, wanted.name))
    if built is not None:
        yield SchemaStep(reason, f"ALTER INDEX {built.identifier} RENAME TO {name}")
        return
    unique = "UNIQUE " if wanted.is_unique else ""
    yield SchemaStep(reason, f"CREATE {unique}INDEX {name} ON {quoted(table.name)} {wanted.columns_and_condition}")


def _partitions_with_rows(connection: sa.Connection, table: sa.Table) -> list[str]:
    """Return the names of the partitions that contain rows; none if the table is not partitioned."""
    return list(connection.execute(sa.text(_LEAVES), {"table": table.name}).scalars())


def _built_index(of_leaf: Iterable[Index], wanted: WantedIndex) -> Index | None:
    """Return the index of a partition that `build_ahead` built, or an equal one of others."""
    return next((i for i in of_leaf if i.is_valid and not i.is_attached and wanted.is_like(i)), None)


def _drop(table: sa.Table, index: Index) -> str:
    if index.is_constraint:
        return f"ALTER TABLE {quoted(table.name)} DROP CONSTRAINT {quoted(index.name)}"
    return f"DROP INDEX {index.identifier}"


def _compact(condition: str | None) -> str:
    """Return the condition of an index in a normalised form; empty if it covers all rows."""
    compact = re.sub(r"[()\s]", "", condition or "")
    return "is_deleted=false" if compact == "NOTis_deleted" else compact


def _duplicates(connection: sa.Connection, wanted: sa.Table, key: WantedIndex) -> Iterator[str]:
    """Yield a message if duplicates prevent a unique key: how many, and how to see and remove them."""
    # By their bare names, since people read these statements.
    columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in key.columns]
    rows = sa.table(wanted.name)
    condition = [sa.text(key.condition)] if key.condition else []
    copies = sa.select(*columns, sa.func.count().label("copies")).select_from(rows).where(*condition)
    copies = copies.group_by(*columns).having(sa.func.count() > 1)
    duplicated = copies.subquery("duplicated")
    too_many = sa.func.coalesce(sa.func.sum(duplicated.c.copies - 1), 0)
    keys, superfluous = connection.execute(sa.select(sa.func.count(), too_many).select_from(duplicated)).one()
    if not keys:
        return
    duplicates = (
        f"{wanted.name} holds {counted(keys, 'key')} ({', '.join(key.columns)}) with more than one row, "
        f"{counted(superfluous, 'row')} too many; a unique key cannot be added. List them: "
        f"{_in_one_line(copies)}; -- "
    )
    if "collected_date" not in wanted.columns and "period_type" not in wanted.columns:
        # Rows that others refer to: deleting one would orphan its history.
        yield f"{duplicates}Rename or merge them by hand, then run `capacity init` again."
        return
    written = "calculated_at" if "calculated_at" in wanted.columns else "updated_at"
    newest_first: list[sa.ColumnElement[Any]] = [sa.literal_column(name).desc() for name in (written, "id")]
    rank = sa.func.row_number().over(partition_by=columns, order_by=newest_first).label("rank")
    # A ctid is unique only within one partition, hence the tableoid.
    places: list[sa.ColumnClause[Any]] = [sa.column("tableoid"), sa.column("ctid")]
    ranked = sa.select(*places, rank).select_from(rows).where(*condition).subquery("ranked")
    older = sa.select(ranked.c.tableoid, ranked.c.ctid).where(ranked.c.rank > 1)
    yield (
        f"{duplicates}After a backup, keep the newest row of each key: "
        f"{_in_one_line(sa.delete(rows).where(sa.tuple_(*places).in_(older)))}; -- Then run `capacity init` again."
    )


def _in_one_line(statement: sa.ClauseElement) -> str:
    return " ".join(sql_text(statement).split())


_LEAVES = """
SELECT CAST(relid::regclass AS text) FROM pg_partition_tree(to_regclass(:table)) WHERE isleaf ORDER BY 1
"""
