"""Tables as they are in the database: columns, indexes and what else decides whether they have the wanted shape.

All tables are read at once, in a few statements. Nothing here says what they should be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Table, inspect, text
from sqlalchemy.engine.interfaces import ReflectedColumn

Index = Row[Any]
"""An index of the catalogue, see `indexes_of`."""


@dataclass(frozen=True)
class PresentTable:
    """An existing table, and the definition that it is to have."""

    wanted: Table
    columns: Mapping[str, ReflectedColumn]
    indexes: Sequence[Index]
    facts: Row[Any]
    """Its comment, whether it lacks_default_partition, its partition_triggers and period_checks, see `_FACTS`."""

    @property
    def name(self) -> str:
        """The name of the table."""
        return self.wanted.name


def present_tables(connection: Connection, wanted: Iterable[Table]) -> list[PresentTable]:
    """Return those of the tables that exist, in the given order."""
    inspector = inspect(connection)
    there = set(inspector.get_table_names())
    tables = [table for table in wanted if table.name in there]
    names = [table.name for table in tables]
    # Without a name, it would read those of all tables.
    reflected = inspector.get_multi_columns(filter_names=names) if names else {}
    columns = {name: found for (_, name), found in reflected.items()}
    facts = {row.name: row for row in connection.execute(text(_FACTS), {"names": names})}
    indexes = indexes_of_each(connection, names)
    return [
        PresentTable(table, {one["name"]: one for one in columns[table.name]}, indexes[table.name], facts[table.name])
        for table in tables
    ]


def indexes_of(connection: Connection, relation: str) -> list[Index]:
    """Return the indexes of a table or a partition, with what decides whether they serve."""
    return indexes_of_each(connection, [relation])[relation]


def indexes_of_each(connection: Connection, relations: Sequence[str]) -> dict[str, list[Index]]:
    """Return the indexes of tables or partitions, by their name."""
    found: dict[str, list[Index]] = {relation: [] for relation in relations}
    for index in connection.execute(text(_INDEXES), {"relations": relations}):
        found[index.relation].append(index)
    return found


# Triggers for each row, before an insert, by which the legacy application makes partitions in mid-insert. Checks are
# those on `period_type` alone, with their definitions.
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
