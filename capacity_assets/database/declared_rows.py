"""Storing declarations: rows by the key of a server or database, either all or none.

Files and commands name servers and databases; this module returns their keys, and the errors for unknown names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row, RowMapping, Table, text
from sqlalchemy.dialects.postgresql import insert

from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.units import first_of, printable, suggestion
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.tables import ALWAYS

WHOLE_SERVER = ""
"""The database name of a server as a whole; no database has it."""

NAMED = 10

Key = TypeVar("Key")
Declaration = TypeVar("Declaration")


@dataclass(frozen=True)
class Stored(Generic[Declaration]):
    """A stored declaration, with the time and author of the declaration; None: not known."""

    declaration: Declaration
    declared_at: datetime
    declared_by: str | None


class UnknownSubjectError(NotFoundError):
    """Servers are not registered, or databases were never measured; `subjects` lists them (database None: a server)."""

    def __init__(self, message: str, subjects: Collection[tuple[str, str | None]]) -> None:
        """Keep the subjects, so that `places_in_errors` can name their places in a file."""
        super().__init__(message)
        self.subjects = subjects


@contextmanager
def places_in_errors(things: Sequence[Any]) -> Iterator[None]:
    """Prefix the error about unknown servers and databases with their places in a file."""
    try:
        yield
    except UnknownSubjectError as error:
        places = [
            place
            for thing, place in zip(things, getattr(things, "places", ()), strict=False)
            if {(thing.server, getattr(thing, of, None)) for of in ("", "database", "volume")} & {*error.subjects}
        ]
        raise NotFoundError(f"{first_of(places, NAMED)}: {error}" if places else str(error)) from None


@contextmanager
def declaring(engine: Engine, doing: str, *, dry_run: bool = False) -> Iterator[Connection]:
    """Yield a connection and commit at the end; a dry run is rolled back.

    Raises DatabaseError: the database failed; nothing was changed.
    """
    with database_errors(doing=doing), engine.connect() as connection:
        yield connection
        if not dry_run:
            connection.commit()


def rows_of(engine: Engine, what: str, statement: str, **parameters: object) -> Sequence[Any]:
    """Return the rows of a query; raises DatabaseError, whose text says that `what` was being read."""
    with database_errors(doing=f"reading {what}"), engine.connect() as connection:
        return connection.execute(text(statement), parameters).all()


def replace_rows(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, object]], by: str | None
) -> list[tuple[int, RowMapping]]:
    """Insert rows, or replace those with the same keys, declared now by `by` (None: not known).

    Returns the replaced rows that differ, each with the number of the new row.
    """
    if not rows:
        return []
    keys = [column.name for column in table.primary_key]
    stored = {tuple(row[key] for key in keys): row for row in connection.execute(sa.select(table)).mappings()}
    earlier = [(number, stored.get(tuple(row[key] for key in keys))) for number, row in enumerate(rows)]
    values = [name for name in rows[0] if name not in keys]
    # In one statement, because triggers fire once per statement.
    new = rows_of_values(table, list(rows[0]), rows).add_columns(sa.literal(by, sa.Text()))
    store = insert(table).from_select([*rows[0], "declared_by"], new)
    changes = {name: store.excluded[name] for name in (*values, "declared_by")} | {"declared_at": sa.func.now()}
    connection.execute(store.on_conflict_do_update(index_elements=keys, set_=changes))
    return [(number, row) for number, row in earlier if row and any(row[name] != rows[number][name] for name in values)]


def clear_history(connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Delete all other declarations of subjects for which a row applies to all of history."""
    subject = [column.name for column in table.primary_key if column.name != "valid_from"]
    always = [row for row in rows if row["valid_from"] == ALWAYS]
    if always:
        key = sa.tuple_(*(table.c[name] for name in subject))
        connection.execute(sa.delete(table).where(key.in_(rows_of_values(table, subject, always))))


def rows_of_values(table: Table, names: Sequence[str], rows: Sequence[Mapping[str, object]]) -> sa.Select[Any]:
    """Return a query of these columns of the rows, whose values are one parameter per column."""
    columns = {name: [row[name] for row in rows] for name in names}
    # A cast to varchar(n) would truncate.
    types = {name: sa.Text() if isinstance(table.c[name].type, sa.String) else table.c[name].type for name in names}
    return sa.select(*(sa.func.unnest(sa.literal(columns[name], sa.ARRAY(types[name]))).label(name) for name in names))


def remove_row(connection: Connection, table: Table, key: Mapping[str, object]) -> Row[Any] | None:
    """Delete the row with a key and return it; None: there is none."""
    chosen = sa.delete(table).where(*(table.c[name] == value for name, value in key.items()))
    return connection.execute(chosen.returning(table)).first()


def subject_text(server: str, database: str | None) -> str:
    """Return the name of a server, or of a database on it, for people: `db-7`, or `orders on db-7`."""
    return printable(server if database is None else f"{database} on {server}")


def refuse_repeated(keys: Iterable[Key], name_of: Callable[[Key], str], problem: str) -> None:
    """Refuse repeated keys; raises ValidationError whose text begins with `problem`."""
    repeated = [name_of(key) for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise ValidationError(f"{problem} {first_of(repeated, NAMED)}.")


def key_of(connection: Connection, server: str, database: str | None) -> dict[str, object]:
    """Return the key of a server or database, measured or not; raises as `keys_of`."""
    return _keys(connection, [(server, database)])[0]


def ids_of(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """Return the IDs of servers by name; raises NotFoundError if one is not registered."""
    rows = connection.execute(text("SELECT name, id FROM instances WHERE name = ANY (:names)"), {"names": list(names)})
    ids: dict[str, int] = {row.name: row.id for row in rows}
    missing = sorted(set(names) - set(ids))
    if missing:
        every = connection.execute(text("SELECT name FROM instances")).scalars()
        message = f"No server {first_of(map(repr, missing), NAMED)} is registered.{suggestion(missing[0], every)}"
        message += " `capacity instances list` shows all."
        raise UnknownSubjectError(message, [(name, None) for name in missing])
    return ids


def keys_of(connection: Connection, subjects: Sequence[tuple[str, str | None]]) -> list[dict[str, object]]:
    """Return `instance_id` and `database_name` of servers (database None) and databases, in the given order.

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
        message = f"No database {names} was ever measured.{suggestion(str(database), every)}"
        raise UnknownSubjectError(message, unknown)
    return keys


def _keys(connection: Connection, subjects: Sequence[tuple[str, str | None]]) -> list[dict[str, object]]:
    if any(database == WHOLE_SERVER for _, database in subjects):
        raise ValidationError("The name of a database is empty.")
    ids = ids_of(connection, {server for server, _ in subjects})
    return [{"instance_id": ids[server], "database_name": database or WHOLE_SERVER} for server, database in subjects]


def columns_of(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Return the values of each column as a list, named in the plural: `instance_ids` for `instance_id`."""
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
# On distributed rows, a subquery must not depend on the row of the outer query.
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
