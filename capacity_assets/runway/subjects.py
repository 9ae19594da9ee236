"""What people name when they declare something: a server, or one of its databases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

from sqlalchemy import Connection, text

from capacity_assets.errors import NotFoundError, ValidationError
from capacity_assets.storage.distribution import tables_are_distributed
from capacity_assets.units import first_of, meant, printable

WHOLE_SERVER = ""
"""Stands for a server as a whole where a database is named; no database has this name."""

NAMED = 10

Key = TypeVar("Key")


def named(server: str, database: str | None) -> str:
    """Return a server, or a database of it, as people read it."""
    return printable(server if database is None else f"{database} on {server}")


def refuse_repeated(keys: Iterable[Key], name_of: Callable[[Key], str], problem: str) -> None:
    """Refuse what is listed twice: raises ValidationError whose text begins with `problem`."""
    repeated = [name_of(key) for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise ValidationError(f"{problem} {first_of(repeated, NAMED)}. Nothing was changed.")


def key_of(connection: Connection, server: str, database: str | None) -> dict[str, object]:
    """Return `instance_id` and `database_name` of a server, or of a database of it, measured or not.

    Raises NotFoundError; ValidationError for an empty name, which stands for the whole server in the tables.
    """
    if database == WHOLE_SERVER:
        raise ValidationError("The name of a database is empty. Nothing was changed.")
    ids = ids_of(connection, {server})
    return {"instance_id": ids[server], "database_name": WHOLE_SERVER if database is None else database}


def ids_of(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """Return the numbers of servers by name; raises NotFoundError where one is not registered."""
    rows = connection.execute(text("SELECT name, id FROM instances WHERE name = ANY (:names)"), {"names": list(names)})
    ids: dict[str, int] = {row.name: row.id for row in rows}
    missing = sorted(set(names) - set(ids))
    if missing:
        every = connection.execute(text("SELECT name FROM instances")).scalars()
        raise NotFoundError(
            f"No server {first_of(map(repr, missing), NAMED)} is registered.{meant(missing[0], every)} "
            "Nothing was changed."
        )
    return ids


def keys_of(connection: Connection, subjects: Sequence[tuple[str, str | None]]) -> dict[str, list[object]]:
    """Return `instance_ids` and `databases` of servers (database None) and databases, in their order.

    Raises NotFoundError, also for a database that was never measured: a mistyped name would be declared for nothing.
    """
    ids = ids_of(connection, {server for server, _ in subjects})
    keys: dict[str, list[object]] = {
        "instance_ids": [ids[server] for server, _ in subjects],
        "databases": [WHOLE_SERVER if database is None else database for _, database in subjects],
    }
    never = _NEVER_MEASURED_ON_NODES if tables_are_distributed(connection) else _NEVER_MEASURED
    unknown = [subjects[number - 1] for number in connection.execute(text(never), keys).scalars()]
    missing = [(server, database) for server, database in unknown if database is not None]
    if missing:
        names = first_of((f"{database!r} on {server}" for server, database in missing), NAMED)
        [(server, database), *_] = missing
        every = connection.execute(text(_NAMES), {"server": server}).scalars()
        raise NotFoundError(f"No database {names} was ever measured.{meant(database, every)} Nothing was changed.")
    return keys


_NAMES = """
SELECT DISTINCT s.database_name FROM database_size_stats s JOIN instances i ON i.id = s.instance_id
WHERE i.name = :server
"""
_NEVER_MEASURED = """
SELECT g.number FROM unnest(CAST(:instance_ids AS integer[]), CAST(:databases AS varchar[])) WITH ORDINALITY
    AS g (instance_id, database_name, number)
WHERE NOT EXISTS (
    SELECT FROM database_size_stats s WHERE s.instance_id = g.instance_id AND s.database_name = g.database_name
    UNION ALL
    SELECT FROM database_size_aggregations a
    WHERE a.instance_id = g.instance_id AND a.database_name = g.database_name
)
ORDER BY g.number
"""
# Where rows are distributed, a subquery must not depend on the row of the outer query.
_NEVER_MEASURED_ON_NODES = """
SELECT g.number FROM unnest(CAST(:instance_ids AS integer[]), CAST(:databases AS varchar[])) WITH ORDINALITY
    AS g (instance_id, database_name, number)
WHERE (g.instance_id, g.database_name) NOT IN (
    SELECT DISTINCT s.instance_id, s.database_name FROM database_size_stats s
    WHERE s.instance_id = ANY (CAST(:instance_ids AS integer[]))
) AND (g.instance_id, g.database_name) NOT IN (
    SELECT DISTINCT a.instance_id, a.database_name FROM database_size_aggregations a
    WHERE a.instance_id = ANY (CAST(:instance_ids AS integer[]))
)
ORDER BY g.number
"""
