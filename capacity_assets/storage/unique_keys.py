"""The unique keys that upserts need: which a table should have, whether it has them, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Table, text
from sqlalchemy import UniqueConstraint as Unique

from capacity_assets.storage.steps import SchemaStep, free_name, quoted
from capacity_assets.units import counted


@dataclass(frozen=True)
class UniqueKey:
    """A unique key of a wanted table: its columns, and its condition if it is partial."""

    name: str
    columns: tuple[str, ...]
    condition: str | None = None


def unique_keys(table: Table) -> Iterator[UniqueKey]:
    """List the unique keys of a table definition other than its primary key."""
    for constraint in sorted((c for c in table.constraints if isinstance(c, Unique)), key=lambda c: str(c.name)):
        name = str(constraint.name or f"uq_{table.name}_{'_'.join(constraint.columns.keys())}")
        yield UniqueKey(name, tuple(constraint.columns.keys()))
    for index in table.indexes:
        if index.unique:
            condition = index.dialect_options["postgresql"]["where"]
            yield UniqueKey(str(index.name), tuple(index.columns.keys()), str(condition))


def has_unique_key(connection: Connection, wanted: Table, key: UniqueKey) -> bool:
    """Whether a valid unique index covers exactly these columns, unconditionally or under the same condition."""
    found = connection.execute(
        text(
            "SELECT pg_get_expr(i.indpred, i.indrelid) AS condition, "
            "ARRAY(SELECT a.attname::text FROM unnest(i.indkey) AS k(attnum) "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum) AS columns "
            "FROM pg_index i WHERE i.indrelid = to_regclass(:table) AND i.indisunique AND i.indisvalid "
            "AND i.indexprs IS NULL"
        ),
        {"table": wanted.name},
    )
    return any(set(row.columns) == set(key.columns) and _same_condition(row.condition, key.condition) for row in found)


def _same_condition(found: str | None, wanted: str | None) -> bool:
    """Upserts name the columns only, so an unconditional key needs an unconditional index; not so for raw rows."""
    if wanted is None:
        return found is None
    return found is None or found.strip("()").replace(" ", "") in (wanted.replace(" ", ""), "NOTis_deleted")


def duplicates_problem(connection: Connection, wanted: Table, key: UniqueKey) -> str | None:
    """Say which rows keep a unique key from being added, and how to look at and remove them; None without any."""
    columns = ", ".join(quoted(name) for name in key.columns)
    where = f" WHERE {key.condition}" if key.condition else ""
    table = quoted(wanted.name)
    groups = f"SELECT {columns}, count(*) AS copies FROM {table}{where} GROUP BY {columns} HAVING count(*) > 1"  # noqa: S608 -- names from our own table definitions, quoted
    keys, rows = connection.execute(
        text(f"SELECT count(*), coalesce(sum(copies - 1), 0) FROM ({groups}) AS duplicated")  # noqa: S608
    ).one()
    if not keys:
        return None
    found = (
        f"{wanted.name} holds {counted(keys, 'key')} ({', '.join(key.columns)}) with more than one row, "
        f"{counted(rows, 'row')} too many"
    )
    if "collected_date" not in wanted.columns and "period_type" not in wanted.columns:
        # Rows that others refer to: deleting one would orphan its history.
        return (
            f"{found}; a unique key cannot be added. No row was removed. See them: {groups}; -- Rename or merge them "
            "by hand, then run `capacity init` again."
        )
    newest_first = f"{'calculated_at' if 'calculated_at' in wanted.columns else 'updated_at'} DESC, id DESC"
    # A ctid is unique only within one partition, hence the tableoid.
    ranked = (
        f"SELECT tableoid, ctid, row_number() OVER (PARTITION BY {columns} ORDER BY {newest_first}) AS rank "  # noqa: S608
        f"FROM {table}{where}"
    )
    delete = (
        f"DELETE FROM {table} WHERE (tableoid, ctid) IN "  # noqa: S608
        f"(SELECT tableoid, ctid FROM ({ranked}) AS ranked WHERE rank > 1)"
    )
    return (
        f"{found}; a unique key cannot be added. No row was removed. See them: {groups}; -- After a backup, keep the "
        f"newest row of each key: {delete}; -- Then run `capacity init` again."
    )


def unique_key_step(connection: Connection, wanted: Table, key: UniqueKey) -> SchemaStep:
    """Return the step that adds a unique key."""
    name = free_name(connection, key.name)
    columns = ", ".join(quoted(column) for column in key.columns)
    where = f" WHERE {key.condition}" if key.condition else ""
    return SchemaStep(
        f"{wanted.name} has no unique key on ({', '.join(key.columns)})",
        f"CREATE UNIQUE INDEX {quoted(name)} ON {quoted(wanted.name)} ({columns}){where}",
    )
