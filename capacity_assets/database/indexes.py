"""The keys and indexes of the tables: which there should be, what is there instead, and what stands in the way.

The key of a capacity table is that of its rows, and begins with the day or the window: it serves every look at some
days, upserts (which name columns in any order), and the history of one database, whose windows are listed. Where a
table has another key, `build_ahead` builds the index of the new one beside the running work, partition by partition,
and the steps of `index_steps` put it in the old one's place, which changes the catalogue only.
"""

# ruff: noqa: S608 -- names come from the definitions or the catalogue

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Table, UniqueConstraint, text

from capacity_assets.base.units import counted
from capacity_assets.database.catalogue import Index, PresentTable, indexes_of, indexes_of_each, present_tables
from capacity_assets.database.sql import SchemaStep, free_name, quoted


@dataclass(frozen=True)
class WantedIndex:
    """An index of a definition; a primary key is called as the unique key that older versions had in its place."""

    name: str
    columns: tuple[str, ...]
    is_primary: bool = False
    is_unique: bool = False
    condition: str | None = None

    def is_like(self, index: Index) -> bool:
        """Whether an index is of the same columns in the same order, under the same condition."""
        same = tuple(index.columns) == self.columns and _compact(index.condition) == _compact(self.condition)
        return same and index.is_unique == self.is_unique

    def is_served_by(self, index: Index) -> bool:
        """Whether an index does what this one is for."""
        if not index.is_valid:
            return False
        if self.is_unique and not self.is_primary:
            # Upserts name the columns in any order; an unconditional key does for samples that are not void.
            conditions = (_compact(self.condition), "")
            return index.is_unique and self.has_columns_of(index) and _compact(index.condition) in conditions
        return self.is_like(index) and (index.is_constraint or not self.is_primary)

    def has_columns_of(self, index: Index) -> bool:
        """Whether an index is of the same columns, in any order."""
        return set(index.columns) == set(self.columns) and len(index.columns) == len(self.columns)

    @property
    def listed(self) -> str:
        """Columns and condition, for people and for PostgreSQL."""
        where = f" WHERE {self.condition}" if self.condition else ""
        return f"({', '.join(map(quoted, self.columns))}){where}"


def wanted_indexes(table: Table) -> Iterator[WantedIndex]:
    """List primary key, unique keys and further indexes of a definition."""
    key = table.primary_key
    if key.columns:
        name = str(key.name or f"{table.name}_pkey")
        yield WantedIndex(name, tuple(key.columns.keys()), is_primary=True, is_unique=True)
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            columns = tuple(constraint.columns.keys())
            yield WantedIndex(f"uq_{table.name}_{'_'.join(columns)}", columns, is_unique=True)
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        where = index.dialect_options["postgresql"]["where"]
        condition, columns = None if where is None else str(where), tuple(index.columns.keys())
        yield WantedIndex(str(index.name), columns, is_unique=index.unique, condition=condition)


def is_by_number(index: Index) -> bool:
    """Whether an index is a primary key that begins with the row number: the legacy application made it."""
    return bool(index.is_primary and index.columns[0] == "id")


def index_steps(connection: Connection, present: PresentTable) -> Iterator[SchemaStep]:
    """Yield the steps that give a table its keys and indexes, and take away those that they replace."""
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
            reason = f"{table.name} has the index {index.name}, which its key makes superfluous"
            yield SchemaStep(reason, _drop(table, index))


def key_problems(connection: Connection, present: PresentTable) -> Iterator[str]:
    """Say which rows keep a unique key from being added."""
    for wanted in wanted_indexes(present.wanted):
        if wanted.is_unique and not _is_unique(wanted, present.indexes):
            yield from _duplicates(connection, present.wanted, wanted)


def build_ahead(engine: Engine, tables: Iterable[Table], on_step: Callable[[str], None]) -> None:
    """Build indexes of tables that have others, without keeping anyone out; what was built half is built again.

    Raises DBAPIError: indexes that were built stay, and serve the next call.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            connection.execute(text("SET statement_timeout = 0"))
            # It waits for every transaction that is older, a dump or a report.
            connection.execute(text("SET lock_timeout = 0"))
            for present in present_tables(connection, tables):
                for leaf, wanted in list(lacking(connection, present)):
                    _build(connection, present.wanted, leaf, wanted, on_step)
        finally:
            connection.invalidate()  # it carries settings of its own


def lacking(connection: Connection, present: PresentTable) -> Iterator[tuple[str, WantedIndex]]:
    """Yield the partitions (or the table), and the indexes that they lack and that can be built ahead.

    A table whose rows no unique key holds may have duplicates: what adds one looks for them first. No index is built of
    columns that are still to be added.
    """
    table, indexes = present.wanted, present.indexes
    to_come = {column.name for column in table.columns} - present.columns.keys()
    for wanted in wanted_indexes(table):
        missing = not any(wanted.is_served_by(index) for index in indexes)
        named = {*wanted.columns, *re.findall(r"\w+", wanted.condition or "")}
        if indexes and missing and not named & to_come and (not wanted.is_unique or _is_unique(wanted, indexes)):
            leaves = _leaves(connection, table) or [quoted(table.name)]
            for leaf, of_leaf in indexes_of_each(connection, leaves).items():
                if _built(of_leaf, wanted) is None:
                    yield leaf, wanted


def _build(
    connection: Connection, table: Table, leaf: str, wanted: WantedIndex, on_step: Callable[[str], None]
) -> None:
    for index in indexes_of(connection, leaf):
        if not index.is_valid and wanted.is_like(index):
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {index.identifier}")
    on_step(f"{leaf}: building an index on {wanted.listed}, beside whatever is at work")
    # PostgreSQL names those of partitions, and a key gets the name of the one that it replaces.
    is_whole = leaf == quoted(table.name) and not wanted.is_primary
    name = f"{quoted(free_name(connection, wanted.name))} " if is_whole else ""
    unique = "UNIQUE " if wanted.is_unique else ""
    connection.exec_driver_sql(f"CREATE {unique}INDEX CONCURRENTLY {name}ON {leaf} {wanted.listed}")


def _is_unique(wanted: WantedIndex, indexes: Iterable[Index]) -> bool:
    """Whether a valid unique index sees to it that no two rows have the same values in these columns, or in fewer."""
    return any(
        index.is_valid
        and index.is_unique
        and set(index.columns) <= set(wanted.columns)
        and _compact(index.condition) in ("", _compact(wanted.condition))
        for index in indexes
    )


def _key_steps(
    connection: Connection, table: Table, wanted: WantedIndex, indexes: Sequence[Index]
) -> Iterator[SchemaStep]:
    """Replace the primary key, and the unique key of the same columns, by one under the name of the latter.

    What a foreign key of others refers to stays, and so does the primary key of the legacy application, which looks
    rows up by their number as long as it is at work.
    """
    reason = f"{table.name} has no key on {wanted.listed}"
    leaves = _leaves(connection, table)
    # Of a table without partitions, the index of the new key may be there.
    others = [
        index for index in indexes if index.is_unique and not index.condition and (leaves or not wanted.is_like(index))
    ]
    former = [index for index in others if index.is_primary or wanted.has_columns_of(index)]
    staying = [index for index in former if index.is_referred_to or is_by_number(index)]
    replaced = [index for index in former if index not in staying]
    for index in replaced:
        yield SchemaStep(reason, _drop(table, index))
    by_name = [index.name for index in replaced if wanted.has_columns_of(index) and index.is_constraint]
    by_name += [index.name for index in replaced if wanted.has_columns_of(index) or index.name == wanted.name]
    name = quoted(next(iter(by_name), None) or free_name(connection, wanted.name))
    kind = "UNIQUE" if any(index.is_primary for index in staying) else "PRIMARY KEY"
    for leaf, of_leaf in indexes_of_each(connection, leaves or [quoted(table.name)]).items():
        built = _built(of_leaf, wanted)
        if built is not None:
            called = "" if leaves else f"CONSTRAINT {name} "
            yield SchemaStep(reason, f"ALTER TABLE {leaf} ADD {called}{kind} USING INDEX {quoted(built.name)}")
            if not leaves:
                return
    # Of each partition it takes the key that is there, and builds one where there is none.
    columns = ", ".join(map(quoted, wanted.columns))
    yield SchemaStep(reason, f"ALTER TABLE {quoted(table.name)} ADD CONSTRAINT {name} {kind} ({columns})")


def _further_steps(
    connection: Connection, table: Table, wanted: WantedIndex, indexes: Sequence[Index], built: Index | None
) -> Iterator[SchemaStep]:
    """Add an index other than the primary key, in the place of one of the same name."""
    reason = f"{table.name} has no {'unique key' if wanted.is_unique else 'index'} on {wanted.listed}"
    former = next((index for index in indexes if index.name == wanted.name), None)
    if former is not None:
        yield SchemaStep(reason, _drop(table, former))
    name = quoted(wanted.name if former is not None else free_name(connection, wanted.name))
    if built is not None:
        yield SchemaStep(reason, f"ALTER INDEX {built.identifier} RENAME TO {name}")
        return
    unique = "UNIQUE " if wanted.is_unique else ""
    yield SchemaStep(reason, f"CREATE {unique}INDEX {name} ON {quoted(table.name)} {wanted.listed}")


def _leaves(connection: Connection, table: Table) -> list[str]:
    """Name the partitions that hold rows; none where the table is not partitioned."""
    return list(connection.execute(text(_LEAVES), {"table": table.name}).scalars())


def _built(of_leaf: Iterable[Index], wanted: WantedIndex) -> Index | None:
    """Return the index of a partition that `build_ahead` built, or one like it of somebody else."""
    return next((i for i in of_leaf if i.is_valid and not i.is_attached and wanted.is_like(i)), None)


def _drop(table: Table, index: Index) -> str:
    if index.is_constraint:
        return f"ALTER TABLE {quoted(table.name)} DROP CONSTRAINT {quoted(index.name)}"
    return f"DROP INDEX {index.identifier}"


def _compact(condition: str | None) -> str:
    """Return the condition of an index in normalised form; empty if it covers all rows."""
    compact = re.sub(r"[()\s]", "", condition or "")
    return "is_deleted=false" if compact == "NOTis_deleted" else compact


def _duplicates(connection: Connection, wanted: Table, key: WantedIndex) -> Iterator[str]:
    """Say which rows keep a unique key from being added, and how to look at and remove them."""
    table, columns = quoted(wanted.name), ", ".join(map(quoted, key.columns))
    rows = f"{table} WHERE {key.condition}" if key.condition else table
    groups = f"SELECT {columns}, count(*) AS copies FROM {rows} GROUP BY {columns} HAVING count(*) > 1"
    counts = f"SELECT count(*), coalesce(sum(copies - 1), 0) FROM ({groups}) AS duplicated"
    keys, copies = connection.exec_driver_sql(counts).one()
    if not keys:
        return
    duplicates = (
        f"{wanted.name} holds {counted(keys, 'key')} ({', '.join(key.columns)}) with more than one row, "
        f"{counted(copies, 'row')} too many; a unique key cannot be added. No row was removed. See them: {groups}; -- "
    )
    if "collected_date" not in wanted.columns and "period_type" not in wanted.columns:
        # Rows that others refer to: deleting one would orphan its history.
        yield f"{duplicates}Rename or merge them by hand, then run `capacity init` again."
        return
    written = "calculated_at" if "calculated_at" in wanted.columns else "updated_at"
    # A ctid is unique only within one partition, hence the tableoid.
    ranked = (
        f"SELECT tableoid, ctid, row_number() OVER (PARTITION BY {columns} ORDER BY {written} DESC, id DESC) AS rank "
        f"FROM {rows}"
    )
    yield (
        f"{duplicates}After a backup, keep the newest row of each key: DELETE FROM {table} WHERE (tableoid, ctid) IN "
        f"(SELECT tableoid, ctid FROM ({ranked}) AS ranked WHERE rank > 1); -- Then run `capacity init` again."
    )


_LEAVES = """
SELECT CAST(relid::regclass AS text) FROM pg_partition_tree(to_regclass(:table)) WHERE isleaf ORDER BY 1
"""
