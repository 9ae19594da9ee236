"""Declared limits: how much a server, or one of its databases, can hold. When one is reached is in `outlook`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from sqlalchemy import Engine, text

from capacity_assets.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.foundation.csv_files import declarations
from capacity_assets.runway.subjects import key_of, keys_of, named, refuse_repeated
from capacity_assets.storage.distribution import copied_for_reading
from capacity_assets.units import LARGEST_MB

MB_PER_GB = 1024
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


def declare(engine: Engine, limits: Sequence[Limit], *, dry_run: bool = False) -> list[Limit]:
    """Store limits, each in the place of an earlier one of the same server and database. All of them or none.

    A dry run checks them and stores none. Returns the earlier limits that are replaced by other ones.

    Raises:
        NotFoundError: a server is not registered, or a database was never measured there.
        ValidationError: two limits are of the same server and database.
        DatabaseError: the database failed; nothing was changed.
    """
    subjects = [(limit.server, limit.database) for limit in limits]
    refuse_repeated(subjects, lambda key: named(*key), "More than one limit of")
    with database_errors(doing="storing limits", kept="Nothing was changed."), engine.begin() as connection:
        parameters = {
            **keys_of(connection, subjects),
            "limits_mb": [limit.limit_mb for limit in limits],
            "notes": [limit.note for limit in limits],
            "source": DECLARED,
        }
        replaced = [
            Limit(limits[row.number - 1].server, limits[row.number - 1].database, row.limit_mb, row.note)
            for row in connection.execute(text(_REPLACED), parameters)
        ]
        if not dry_run:
            connection.execute(text(_STORE), parameters)
    return replaced


def forget(engine: Engine, server: str, database: str | None) -> None:
    """Delete the limit of a server, or of one of its databases.

    Raises NotFoundError where there is none, ValidationError for an empty name, and DatabaseError.
    """
    with database_errors(doing="removing a limit", kept="Nothing was changed."), engine.begin() as connection:
        parameters = key_of(connection, server, database)
        gone = connection.execute(text(_FORGET), parameters).rowcount
    if not gone:
        raise NotFoundError(f"{named(server, database)} has no limit. Nothing was changed.")


def below_the_size(engine: Engine, limits: Sequence[Limit]) -> list[tuple[Limit, int]]:
    """Return those limits below what was measured last, each with that size in MiB; raises as `declare`."""
    with database_errors(doing="reading sizes", kept="The limits are stored."), engine.connect() as connection:
        keys = keys_of(connection, [(limit.server, limit.database) for limit in limits])
        parameters = {**keys, "limits_mb": [limit.limit_mb for limit in limits]}
        of_servers = "instance_id = ANY (CAST(:instance_ids AS integer[]))"
        wanted = dict.fromkeys(("database_size_stats", "instance_size_stats"), of_servers)
        with copied_for_reading(connection, wanted, parameters):
            return [(limits[row.number - 1], row.size_mb) for row in connection.execute(text(_BELOW), parameters)]


def stored_limits(engine: Engine) -> list[StoredLimit]:
    """Return every limit, by server and database, the server's own first; raises DatabaseError."""
    with database_errors(doing="reading limits", kept="Nothing was changed."), engine.connect() as connection:
        return [
            StoredLimit(Limit(row.name, row.database_name or None, row.limit_mb, row.note), row.source, row.declared_at)
            for row in connection.execute(text(_LIST))
        ]


def limits_of_file(path: Path) -> list[Limit]:
    """Read limits from a CSV file with the columns server, database (empty: the whole server), limit_gb and note.

    Raises ValidationError, with all problems of all lines.
    """
    return declarations(path, COLUMNS, ("server", "limit_gb"), _limit)


def _limit(row: Mapping[str, str]) -> Limit:
    if "server" not in row:
        raise ValidationError("names no server.")
    return Limit(row["server"], row.get("database"), megabytes_of(row.get("limit_gb", "")), row.get("note"))


def megabytes_of(limit_gb: str) -> int | None:
    """Read a limit in GiB, as 500 or 1.5, or `unlimited`, which is None; else raise ValidationError."""
    if limit_gb.strip().lower() == UNLIMITED:
        return None
    try:
        megabytes = int(Decimal(limit_gb.strip()) * MB_PER_GB)
    except (InvalidOperation, ValueError, OverflowError):
        raise ValidationError(f"{limit_gb!r} is not a limit; write GiB as 500 or 1.5, or {UNLIMITED}.") from None
    if not 0 < megabytes <= LARGEST_MB:
        raise ValidationError(
            f"{limit_gb!r} is not a limit; it must be above zero, and at most {LARGEST_MB // MB_PER_GB:,}."
        )
    return megabytes


_STORE = """
INSERT INTO capacity_limits (instance_id, database_name, limit_mb, source, note)
SELECT g.instance_id, g.database_name, g.limit_mb, CAST(:source AS varchar), g.note
FROM unnest(CAST(:instance_ids AS integer[]), CAST(:databases AS varchar[]), CAST(:limits_mb AS bigint[]),
            CAST(:notes AS text[])) AS g (instance_id, database_name, limit_mb, note)
ON CONFLICT (instance_id, database_name) DO UPDATE
SET limit_mb = excluded.limit_mb, source = excluded.source, note = excluded.note, declared_at = now()
"""
_REPLACED = """
SELECT g.number, l.limit_mb, l.note
FROM unnest(CAST(:instance_ids AS integer[]), CAST(:databases AS varchar[]), CAST(:limits_mb AS bigint[]),
            CAST(:notes AS text[])) WITH ORDINALITY AS g (instance_id, database_name, limit_mb, note, number)
JOIN capacity_limits l USING (instance_id, database_name)
WHERE (l.limit_mb, l.note) IS DISTINCT FROM (g.limit_mb, g.note) ORDER BY g.number
"""
_BELOW = """
SELECT g.number, newest.size_mb
FROM unnest(CAST(:instance_ids AS integer[]), CAST(:databases AS varchar[]), CAST(:limits_mb AS bigint[]))
    WITH ORDINALITY AS g (instance_id, database_name, limit_mb, number)
CROSS JOIN LATERAL (
    SELECT * FROM (
        (SELECT s.size_mb FROM database_size_stats s
         WHERE g.database_name <> '' AND s.instance_id = g.instance_id AND s.database_name = g.database_name
         ORDER BY s.collected_date DESC LIMIT 1)
        UNION ALL
        (SELECT t.total_size_mb FROM instance_size_stats t
         WHERE g.database_name = '' AND t.instance_id = g.instance_id AND NOT t.is_deleted
         ORDER BY t.collected_date DESC LIMIT 1)
    ) AS one
) AS newest
WHERE newest.size_mb > g.limit_mb ORDER BY g.number
"""
_FORGET = "DELETE FROM capacity_limits WHERE instance_id = :instance_id AND database_name = :database_name"
_LIST = """
SELECT i.name, l.database_name, l.limit_mb, l.source, l.note, l.declared_at
FROM capacity_limits l JOIN instances i ON i.id = l.instance_id ORDER BY i.name, l.database_name
"""
