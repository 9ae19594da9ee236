"""Declared limits: how much a server, or one of its databases, can hold. When one is reached is in `outlook`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from sqlalchemy import Engine, text

from capacity_assets.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.foundation.csv_files import things_of_file
from capacity_assets.foundation.declarations import NO_OTHER_NAMES, DatabaseName
from capacity_assets.runway.subjects import (
    columns_of,
    declaring,
    key_of,
    keys_of,
    named,
    naming_places,
    refuse_repeated,
    remove_row,
    replace_rows,
    rows_of,
)
from capacity_assets.storage.distribution import copied_for_reading
from capacity_assets.storage.limit_tables import capacity_limits
from capacity_assets.units import LARGEST_MB

MB_PER_GB = 1024
UNLIMITED = "unlimited"
DECLARED = "declared"


def megabytes_of(limit_gb: object) -> int | None:
    """Read a limit in GiB, as 500 or 1.5, or `unlimited`, which is None; else raise ValidationError."""
    written = str(limit_gb)
    if written.strip().lower() == UNLIMITED:
        return None
    try:
        megabytes = int(Decimal(written.strip()) * MB_PER_GB)
    except (InvalidOperation, ValueError, OverflowError):
        raise ValidationError(f"{written!r} is not a limit; write GiB as 500 or 1.5, or {UNLIMITED}.") from None
    if not 0 < megabytes <= LARGEST_MB:
        raise ValidationError(
            f"{written!r} is not a limit; it must be above zero, and at most {LARGEST_MB // MB_PER_GB:,}."
        )
    return megabytes


@dataclass(frozen=True)
class Limit:
    """How much one database, or with None the whole server, can hold; `limit_mb` None: unlimited."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str
    database: DatabaseName
    limit_mb: Annotated[int | None, BeforeValidator(megabytes_of), Field(validation_alias="limit_gb")]
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
    with naming_places(limits), declaring(engine, "storing limits", dry_run=dry_run) as connection:
        rows = [
            {**key, "limit_mb": limit.limit_mb, "source": DECLARED, "note": limit.note}
            for key, limit in zip(keys_of(connection, subjects), limits, strict=True)
        ]
        replaced = replace_rows(connection, capacity_limits, rows)
    return [replace(limits[number], limit_mb=row["limit_mb"], note=row["note"]) for number, row in replaced]


def forget(engine: Engine, server: str, database: str | None, *, dry_run: bool = False) -> None:
    """Delete the limit of a server, or of one of its databases.

    Raises NotFoundError where there is none, ValidationError for an empty name, and DatabaseError.
    """
    with declaring(engine, "removing a limit", dry_run=dry_run) as connection:
        if remove_row(connection, capacity_limits, key_of(connection, server, database)) is None:
            raise NotFoundError(f"{named(server, database)} has no limit. Nothing was changed.")


def below_the_size(engine: Engine, limits: Sequence[Limit]) -> list[tuple[Limit, int]]:
    """Return those limits below what was measured last, each with that size in MiB; raises as `declare`."""
    with database_errors(doing="reading sizes", kept="The limits are stored."), engine.connect() as connection:
        keys = keys_of(connection, [(limit.server, limit.database) for limit in limits])
        parameters = {**columns_of(keys), "limits_mb": [limit.limit_mb for limit in limits]}
        of_servers = "instance_id = ANY (CAST(:instance_ids AS integer[]))"
        wanted = dict.fromkeys(("database_size_stats", "instance_size_stats"), of_servers)
        with copied_for_reading(connection, wanted, parameters):
            return [(limits[row.number - 1], row.size_mb) for row in connection.execute(text(_BELOW), parameters)]


def stored_limits(engine: Engine) -> list[StoredLimit]:
    """Return every limit, by server and database, the server's own first; raises DatabaseError."""
    return [
        StoredLimit(Limit(row.name, row.database_name or None, row.limit_mb, row.note), row.source, row.declared_at)
        for row in rows_of(engine, "limits", _LIST)
    ]


def limits_of_file(path: Path) -> list[Limit]:
    """Read limits from a CSV file with the columns server, database (empty: the whole server), limit_gb and note.

    Raises ValidationError, with all problems of all lines.
    """
    return things_of_file(path, Limit)


_BELOW = """
SELECT g.number, newest.size_mb
FROM unnest(CAST(:instance_ids AS integer[]), CAST(:database_names AS varchar[]), CAST(:limits_mb AS bigint[]))
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
_LIST = """
SELECT i.name, l.database_name, l.limit_mb, l.source, l.note, l.declared_at
FROM capacity_limits l JOIN instances i ON i.id = l.instance_id ORDER BY i.name, l.database_name
"""
