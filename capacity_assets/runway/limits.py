"""Declared limits: how much a server, or one of its databases, can hold. When one is reached is in `outlook`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from capacity_assets.foundation.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.units import printable

WHOLE_SERVER = ""
"""Stands for a server as a whole where a database is named; no database has this name."""

MB_PER_GB = 1024
MOST_MB = 2**53
UNLIMITED = "unlimited"
COLUMNS = ("server", "database", "limit_gb", "note")
DECLARED = "declared"


@dataclass(frozen=True)
class Limit:
    """How much one database, or with None the whole server, can hold; `limit_mb` None: unlimited."""

    server: str
    database: str | None
    limit_mb: int | None
    note: str | None = None


@dataclass(frozen=True)
class StoredLimit:
    """A limit, where it comes from and since when it holds."""

    limit: Limit
    source: str
    declared_at: datetime


def declare(engine: Engine, limits: Sequence[Limit]) -> None:
    """Store limits, each in the place of an earlier one of the same server and database. All of them or none.

    Raises:
        NotFoundError: a server is not registered, or a database was never measured there.
        ValidationError: two limits are of the same server and database.
        DatabaseError: the database failed; nothing was changed.
    """
    keys = [(limit.server, limit.database) for limit in limits]
    repeated = sorted({_named(*key) for key in keys if keys.count(key) > 1})
    if repeated:
        raise ValidationError(f"{', '.join(repeated)}: more than one limit. Nothing was changed.")
    with database_errors(doing="storing limits", kept="Nothing was changed."), engine.begin() as connection:
        ids = _ids(connection, {limit.server for limit in limits})
        _refuse_unknown_databases(connection, ids, limits)
        for limit in limits:
            connection.execute(
                text(_STORE),
                {
                    "instance_id": ids[limit.server],
                    "database_name": limit.database or WHOLE_SERVER,
                    "limit_mb": limit.limit_mb,
                    "source": DECLARED,
                    "note": limit.note,
                },
            )


def forget(engine: Engine, server: str, database: str | None) -> None:
    """Delete the limit of a server, or of one of its databases.

    Raises:
        NotFoundError: there is none.
        DatabaseError: the database failed; nothing was changed.
    """
    with database_errors(doing="removing a limit", kept="Nothing was changed."), engine.begin() as connection:
        ids = _ids(connection, {server})
        parameters = {"instance_id": ids[server], "database_name": database or WHOLE_SERVER}
        gone = connection.execute(text(_FORGET), parameters).rowcount
    if not gone:
        raise NotFoundError(f"{_named(server, database)} has no limit. Nothing was changed.")


def stored_limits(engine: Engine) -> list[StoredLimit]:
    """Return every limit, by server and database, the server's own first.

    Raises:
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading limits", kept="Nothing was changed."), engine.connect() as connection:
        return [
            StoredLimit(Limit(row.name, row.database_name or None, row.limit_mb, row.note), row.source, row.declared_at)
            for row in connection.execute(text(_LIST))
        ]


def limits_of_file(path: Path) -> list[Limit]:
    """Read limits from a CSV file with the columns server, database (empty: the whole server), limit_gb and note.

    Raises:
        ValidationError: it cannot be read, or a line cannot be a limit; all problems are reported together.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=first.count), strict=True)
            missing = {"server", "limit_gb"} - set(reader.fieldnames or ())
            if missing:
                raise ValidationError(f"{path} has no column {', '.join(sorted(missing))}; columns are {COLUMNS}.")
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValidationError(f"{path} cannot be read: {error}.") from None
    found, problems = [], []
    for line, row in rows:
        if not row["server"]:
            problems.append(f"line {line}: names no server.")
            continue
        try:
            limit_mb = megabytes_of(row["limit_gb"] or "")
        except ValidationError as error:
            problems.append(f"line {line}: {error}")
        else:
            found.append(Limit(row["server"], row.get("database") or None, limit_mb, row.get("note") or None))
    if problems:
        raise ValidationError("\n".join([*problems, "Nothing was changed."]))
    return found


def megabytes_of(limit_gb: str) -> int | None:
    """Read a limit in GiB, as 500 or 1.5, or `unlimited`, which is None.

    Raises:
        ValidationError: it is neither.
    """
    if limit_gb.strip().lower() == UNLIMITED:
        return None
    try:
        megabytes = int(Decimal(limit_gb.strip()) * MB_PER_GB)
    except (InvalidOperation, ValueError, OverflowError):
        raise ValidationError(f"{limit_gb!r} is no limit; write GiB as 500 or 1.5, or {UNLIMITED}.") from None
    if not 0 < megabytes <= MOST_MB:
        raise ValidationError(f"{limit_gb!r} is no limit; it must be above zero.")
    return megabytes


def _named(server: str, database: str | None) -> str:
    return printable(server if database is None else f"{database} on {server}")


def _ids(connection: Connection, names: set[str]) -> dict[str, int]:
    rows = connection.execute(text("SELECT name, id FROM instances WHERE name = ANY (:names)"), {"names": list(names)})
    ids: dict[str, int] = {row.name: row.id for row in rows}
    missing = sorted(names - set(ids))
    if missing:
        raise NotFoundError(f"No server {', '.join(map(repr, missing))} is registered. Nothing was changed.")
    return ids


def _refuse_unknown_databases(connection: Connection, ids: dict[str, int], limits: Sequence[Limit]) -> None:
    """A mistyped name would be a limit of nothing."""
    for limit in limits:
        if limit.database is None:
            continue
        parameters = {"instance_id": ids[limit.server], "database_name": limit.database}
        if not connection.execute(text(_WAS_MEASURED), parameters).scalar():
            raise NotFoundError(
                f"No database {limit.database!r} was ever measured on {printable(limit.server)}. Nothing was changed."
            )


_STORE = """
INSERT INTO capacity_limits (instance_id, database_name, limit_mb, source, note)
VALUES (:instance_id, :database_name, :limit_mb, :source, :note)
ON CONFLICT (instance_id, database_name) DO UPDATE
SET limit_mb = excluded.limit_mb, source = excluded.source, note = excluded.note, declared_at = now()
"""
_FORGET = "DELETE FROM capacity_limits WHERE instance_id = :instance_id AND database_name = :database_name"
_LIST = """
SELECT i.name, l.database_name, l.limit_mb, l.source, l.note, l.declared_at
FROM capacity_limits l JOIN instances i ON i.id = l.instance_id ORDER BY i.name, l.database_name
"""
_WAS_MEASURED = """
SELECT EXISTS (
    SELECT FROM database_size_stats WHERE instance_id = :instance_id AND database_name = :database_name
    UNION ALL
    SELECT FROM database_size_aggregations WHERE instance_id = :instance_id AND database_name = :database_name
)
"""
