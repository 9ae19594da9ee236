"""What people declare of a server or one of its databases: how it is named, and stored as a whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Row, RowMapping, Table, delete, select, text

from capacity_assets.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.storage.distribution import tables_are_distributed
from capacity_assets.storage.group_tables import ALWAYS
from capacity_assets.units import first_of, meant, printable

WHOLE_SERVER = ""
"""Stands for a server as a whole where a database is named; no database has this name."""

NAMED = 10

Key = TypeVar("Key")


class UnknownSubjectError(NotFoundError):
    """A server is not registered (its database None), or a database was never measured: `subjects` are all of them."""

    def __init__(self, message: str, subjects: Collection[tuple[str, str | None]]) -> None:
        """Keep the subjects with the text, for whoever knows where they were written."""
        super().__init__(message)
        self.subjects = subjects


@contextmanager
def naming_places(things: Sequence[Any]) -> Iterator[None]:
    """Begin the refusal of things that were read from a file with the places of unknown servers and databases."""
    try:
        yield
    except UnknownSubjectError as error:
        places = [
            place
            for thing, place in zip(things, getattr(things, "places", ()), strict=False)
            if {(thing.server, None), (thing.server, getattr(thing, "database", None))} & {*error.subjects}
        ]
        raise NotFoundError(f"{first_of(places, NAMED)}: {error}" if places else str(error)) from None


@contextmanager
def declaring(engine: Engine, doing: str, *, dry_run: bool = False) -> Iterator[Connection]:
    """Yield a connection whose work is committed at the end as a whole, in a dry run not at all.

    Raises DatabaseError: the database failed; nothing was changed.
    """
    with database_errors(doing=doing, kept="Nothing was changed."), engine.connect() as connection:
        yield connection
        if not dry_run:
            connection.commit()


def rows_of(engine: Engine, what: str, statement: str, **asked: object) -> Sequence[Any]:
    """Return what a statement reads; raises DatabaseError, where `what` completes "while reading …"."""
    with database_errors(doing=f"reading {what}", kept="Nothing was changed."), engine.connect() as connection:
        return connection.execute(text(statement), asked).all()


def replace_rows(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]
) -> list[tuple[int, RowMapping]]:
    """Store rows, each in the place of one with its key; return earlier ones that were different, by number of row."""
    keys = [column.name for column in table.primary_key]
    stored = {tuple(row[key] for key in keys): row for row in connection.execute(select(table)).mappings()}
    earlier = [(number, stored.get(tuple(row[key] for key in keys))) for number, row in enumerate(rows)]
    names = list(rows[0]) if rows else []
    values = [name for name in names if name not in keys]
    if rows:
        changes = ", ".join(f"{name} = excluded.{name}" for name in values)
        # In one statement: triggers look at what each one changed.
        statement = f"""
INSERT INTO {table.name} ({", ".join(names)}) SELECT {", ".join(names)} FROM {_given(table)} AS g
ON CONFLICT ({", ".join(keys)}) DO UPDATE SET {changes}, declared_at = now()"""  # noqa: S608 -- names of our own
        connection.execute(text(statement), {"rows": json.dumps(rows, default=str)})
    return [(number, row) for number, row in earlier if row and any(row[name] != rows[number][name] for name in values)]


def clear_history(connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Delete all that was declared, on whatever day, of the subjects of those rows that always hold."""
    subject = [column.name for column in table.primary_key if column.name != "valid_from"]
    same = " AND ".join(f"t.{name} = g.{name}" for name in subject)
    always = [row for row in rows if row["valid_from"] == ALWAYS]
    statement = f"DELETE FROM {table.name} t USING {_given(table)} AS g WHERE {same}"  # noqa: S608 -- names of our own
    if always:
        connection.execute(text(statement), {"rows": json.dumps(always, default=str)})


def _given(table: Table) -> str:
    return f"json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json))"


def remove_row(connection: Connection, table: Table, key: Mapping[str, object]) -> Row[Any] | None:
    """Delete the row of a key; return it, or None where there is none."""
    chosen = delete(table).where(*(table.c[name] == value for name, value in key.items()))
    return connection.execute(chosen.returning(table)).first()


def named(server: str, database: str | None) -> str:
    """Return a server, or a database of it, as people read it."""
    return printable(server if database is None else f"{database} on {server}")


def refuse_repeated(keys: Iterable[Key], name_of: Callable[[Key], str], problem: str) -> None:
    """Refuse what is listed twice: raises ValidationError whose text begins with `problem`."""
    repeated = [name_of(key) for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise ValidationError(f"{problem} {first_of(repeated, NAMED)}. Nothing was changed.")


def key_of(connection: Connection, server: str, database: str | None) -> dict[str, object]:
    """Return the key of a server, or of a database of it, measured or not; raises as `keys_of`."""
    return _keys(connection, [(server, database)])[0]


def ids_of(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """Return the numbers of servers by name; raises NotFoundError where one is not registered."""
    rows = connection.execute(text("SELECT name, id FROM instances WHERE name = ANY (:names)"), {"names": list(names)})
    ids: dict[str, int] = {row.name: row.id for row in rows}
    missing = sorted(set(names) - set(ids))
    if missing:
        every = connection.execute(text("SELECT name FROM instances")).scalars()
        message = f"No server {first_of(map(repr, missing), NAMED)} is registered.{meant(missing[0], every)}"
        raise UnknownSubjectError(f"{message} Nothing was changed.", [(name, None) for name in missing])
    return ids


def keys_of(connection: Connection, subjects: Sequence[tuple[str, str | None]]) -> list[dict[str, object]]:
    """Return `instance_id` and `database_name` of servers (database None) and databases, in their order.

    Raises:
        NotFoundError: a server is not registered, or a database was never measured.
        ValidationError: a name is empty, which stands for the whole server in the tables.
    """
    keys = _keys(connection, subjects)
    if not keys:
        return []
    never = _NEVER_MEASURED_ON_NODES if tables_are_distributed(connection) else _NEVER_MEASURED
    unknown = [subjects[number - 1] for number in connection.execute(text(never), columns_of(keys)).scalars()]
    if unknown:
        names = first_of((f"{database!r} on {server}" for server, database in unknown), NAMED)
        [(server, database), *_] = unknown
        every = connection.execute(text(_NAMES), {"server": server}).scalars()
        message = f"No database {names} was ever measured.{meant(str(database), every)} Nothing was changed."
        raise UnknownSubjectError(message, unknown)
    return keys


def _keys(connection: Connection, subjects: Sequence[tuple[str, str | None]]) -> list[dict[str, object]]:
    if any(database == WHOLE_SERVER for _, database in subjects):
        raise ValidationError("The name of a database is empty. Nothing was changed.")
    ids = ids_of(connection, {server for server, _ in subjects})
    return [{"instance_id": ids[server], "database_name": database or WHOLE_SERVER} for server, database in subjects]


def columns_of(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Return the values of rows by column, as `instance_ids` of `instance_id`."""
    return {f"{name}s": [row[name] for row in rows] for name in (rows[0] if rows else ())}


_NAMES = """
SELECT DISTINCT s.database_name FROM database_size_stats s JOIN instances i ON i.id = s.instance_id
WHERE i.name = :server
"""
_NEVER_MEASURED = """
SELECT g.number FROM unnest(CAST(:instance_ids AS integer[]), CAST(:database_names AS varchar[])) WITH ORDINALITY
    AS g (instance_id, database_name, number)
WHERE g.database_name <> '' AND NOT EXISTS (
    SELECT FROM database_size_stats s WHERE s.instance_id = g.instance_id AND s.database_name = g.database_name
    UNION ALL
    SELECT FROM database_size_aggregations a
    WHERE a.instance_id = g.instance_id AND a.database_name = g.database_name
)
ORDER BY g.number
"""
# Where rows are distributed, a subquery must not depend on the row of the outer query.
_NEVER_MEASURED_ON_NODES = """
SELECT g.number FROM unnest(CAST(:instance_ids AS integer[]), CAST(:database_names AS varchar[])) WITH ORDINALITY
    AS g (instance_id, database_name, number)
WHERE g.database_name <> '' AND (g.instance_id, g.database_name) NOT IN (
    SELECT DISTINCT s.instance_id, s.database_name FROM database_size_stats s
    WHERE s.instance_id = ANY (CAST(:instance_ids AS integer[]))
) AND (g.instance_id, g.database_name) NOT IN (
    SELECT DISTINCT a.instance_id, a.database_name FROM database_size_aggregations a
    WHERE a.instance_id = ANY (CAST(:instance_ids AS integer[]))
)
ORDER BY g.number
"""
