"""Declared limits and steps of servers and databases.

A limit is the maximum size of a server or database; a step is a single change of its size, which forecasts ignore.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from sqlalchemy import Connection, Engine, text

from capacity_assets.base.declarations import NO_OTHER_NAMES, DatabaseName, Day, mb_of_gb
from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.database.cluster import copied_for_reading
from capacity_assets.database.declared_rows import (
    WHOLE_SERVER,
    Stored,
    columns_of,
    declaring,
    key_of,
    keys_of,
    places_in_errors,
    refuse_repeated,
    remove_row,
    replace_rows,
    rows_of,
    subject_text,
)
from capacity_assets.database.tables import capacity_limits, capacity_steps
from capacity_assets.forecast.results import DATABASE, SERVER, STALE_DAYS

UNLIMITED = "unlimited"
DECLARED = "declared"


def megabytes_of(limit_gb: object) -> int | None:
    """Read a limit in GiB, as 500 or 1.5, or `unlimited`, which is None; otherwise raise ValidationError."""
    if str(limit_gb).strip().lower() == UNLIMITED:
        return None
    try:
        limit_mb = mb_of_gb(limit_gb)
    except ValidationError as error:
        raise ValidationError(f"{error} If it has no limit, write --unlimited, or {UNLIMITED} in a file.") from None
    if not limit_mb:
        raise ValidationError(f"{limit_gb!r} is not a limit; it must be above zero.")
    return limit_mb


@dataclass(frozen=True)
class Limit:
    """The maximum size of a database or, with None, of its whole server; `limit_mb` None: unlimited."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str
    database: DatabaseName
    limit_mb: Annotated[int | None, BeforeValidator(megabytes_of), Field(validation_alias="limit_gb")]
    note: str | None = None


@dataclass(frozen=True)
class StoredLimit(Stored[Limit]):
    """A stored limit with its source."""

    source: str


def declare_limits(
    engine: Engine, limits: Sequence[Limit], *, by: str | None = None, dry_run: bool = False
) -> list[Limit]:
    """Store limits declared by `by`, replacing earlier ones of the same subjects. Stores all of them or none.

    A dry run only checks them. Returns the earlier limits that were replaced by different ones.

    Raises:
        NotFoundError: a server is not registered, or a database was never measured there.
        ValidationError: two limits are of the same server and database.
        DatabaseError: the database failed; nothing was changed.
    """
    subjects = [(limit.server, limit.database) for limit in limits]
    refuse_repeated(subjects, lambda key: subject_text(*key), "More than one limit of")
    with places_in_errors(limits), declaring(engine, "storing limits", dry_run=dry_run) as connection:
        rows = [
            {**key, "limit_mb": limit.limit_mb, "source": DECLARED, "note": limit.note}
            for key, limit in zip(keys_of(connection, subjects), limits, strict=True)
        ]
        replaced = replace_rows(connection, capacity_limits, rows, by)
    return [replace(limits[number], limit_mb=row["limit_mb"], note=row["note"]) for number, row in replaced]


def forget_limit(engine: Engine, server: str, database: str | None, *, dry_run: bool = False) -> None:
    """Delete the limit of a server, or of one of its databases.

    Raises NotFoundError if there is none, ValidationError for an empty name, and DatabaseError.
    """
    with declaring(engine, "removing a limit", dry_run=dry_run) as connection:
        if remove_row(connection, capacity_limits, key_of(connection, server, database)) is None:
            raise NotFoundError(f"{subject_text(server, database)} has no limit.")


def limits_below_size(engine: Engine, limits: Sequence[Limit]) -> list[tuple[Limit, int]]:
    """Return the limits below the last measured size, each with that size in MiB; raises as `declare_limits`.

    If the limits of a database apply to the used space inside its files, the size is that of the used space.
    """
    with database_errors(doing="reading sizes", kept="The limits are stored."), engine.connect() as connection:
        keys = keys_of(connection, [(limit.server, limit.database) for limit in limits])
        limits_mb = [limit.limit_mb for limit in limits]
        parameters = {**columns_of(keys), "limits_mb": limits_mb, "stale_days": STALE_DAYS}
        with copied_for_reading(connection, _SAMPLES_OF_SERVERS, parameters):
            return [(limits[row.number - 1], row.size_mb) for row in connection.execute(text(_BELOW), parameters)]


def stored_limits(engine: Engine) -> list[StoredLimit]:
    """Return all limits by server and database, that of the server first; raises DatabaseError."""
    return [
        StoredLimit(Limit(row.name, row.database_name or None, row.limit_mb, row.note), *row[4:])
        for row in rows_of(engine, "limits", _LIST)
    ]


_SAMPLES_OF_SERVERS = {
    "database_size_stats": "SELECT * FROM database_size_stats WHERE instance_id = ANY (CAST(:instance_ids AS int[]))",
    "instance_size_stats": "SELECT * FROM instance_size_stats WHERE instance_id = ANY (CAST(:instance_ids AS int[]))",
    "database_limit_stats": "SELECT * FROM database_limit_stats WHERE instance_id = ANY (CAST(:instance_ids AS int[]))",
}
_BELOW = """
SELECT g.number, newest.size_mb
FROM unnest(CAST(:instance_ids AS integer[]), CAST(:database_names AS varchar[]), CAST(:limits_mb AS bigint[]))
    WITH ORDINALITY AS g (instance_id, database_name, limit_mb, number)
CROSS JOIN LATERAL (
    SELECT * FROM (
        (SELECT coalesce(used.size_mb, s.size_mb) AS size_mb FROM database_size_stats s
         LEFT JOIN LATERAL (
             SELECT u.used_size_mb AS size_mb FROM database_size_stats u
             WHERE u.instance_id = s.instance_id AND u.database_name = s.database_name AND u.used_size_mb IS NOT NULL
               AND u.collected_date BETWEEN s.collected_date - CAST(:stale_days AS integer) AND s.collected_date
               AND (SELECT c.fills_files FROM database_limit_stats c
                    WHERE c.instance_id = s.instance_id AND c.database_name = s.database_name
                    ORDER BY c.collected_date DESC LIMIT 1)
             ORDER BY u.collected_date DESC LIMIT 1
         ) AS used ON true
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
SELECT i.name, l.database_name, l.limit_mb, l.note, l.declared_at, l.declared_by, l.source
FROM capacity_limits l JOIN instances i ON i.id = l.instance_id ORDER BY i.name, l.database_name
"""


@dataclass(frozen=True)
class SizeStep:
    """A step of a database or, with None, of all databases of a server; `day` is the first with the new size."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str
    database: DatabaseName
    day: Day
    note: str


def declare_steps(
    engine: Engine, steps: Sequence[SizeStep], *, by: str | None = None, dry_run: bool = False
) -> list[SizeStep]:
    """Store steps declared by `by`, replacing earlier ones of the same subject and day; either all or none.

    A dry run only checks them. Returns the earlier steps whose note was replaced.

    Raises:
        NotFoundError: a server is not registered, or a database was never measured there.
        ValidationError: two steps have the same subject and day.
        DatabaseError: the database failed; nothing was changed.
    """
    keys = ((step.server, step.database, step.day) for step in steps)
    refuse_repeated(keys, lambda key: f"{subject_text(key[0], key[1])}, {key[2]}", "More than one step of")
    with places_in_errors(steps), declaring(engine, "storing steps", dry_run=dry_run) as connection:
        subjects = keys_of(connection, [(step.server, step.database) for step in steps])
        rows = [{**key, "step_date": step.day, "note": step.note} for key, step in zip(subjects, steps, strict=True)]
        return [
            replace(steps[number], note=row["note"])
            for number, row in replace_rows(connection, capacity_steps, rows, by)
        ]


def sizes_around(engine: Engine, step: SizeStep) -> tuple[int | None, int | None]:
    """Return the last size before a step and the first size from its day on, MiB or None; raises as `declare_steps`."""
    with database_errors(doing="reading sizes"), engine.connect() as connection:
        [key] = keys_of(connection, [(step.server, step.database)])
        subject: tuple[Any, str, str] = (
            key["instance_id"],
            DATABASE if step.database else SERVER,
            step.database or WHOLE_SERVER,
        )
        first, last = connection.execute(text(_STORED_DAYS)).one()
        days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
        sizes = sizes_by_day(connection, [subject], days).get(subject, {})
    before = max((day for day in sizes if day < step.day), default=None)
    after = min((day for day in sizes if day >= step.day), default=None)
    return sizes[before] if before else None, sizes[after] if after else None


def sizes_by_day(
    connection: Connection,
    subjects: Collection[tuple[Any, str, str]],
    days: Sequence[date],
    used: Collection[tuple[Any, str, str]] = (),
) -> dict[tuple[int, str, str], dict[date, int]]:
    """Return the sizes in MiB of servers, databases and volumes on some days, by number, kind and name.

    The sizes of `used` databases are those of the used space inside their files. Raises DBAPIError.
    """
    ids, kinds, names = zip(*subjects, strict=True) if subjects else ((), (), ())
    parameters = {"ids": list(ids), "subjects": list(kinds), "names": list(names), "days": days}
    parameters["are_used"] = [subject in used for subject in subjects]
    sizes: dict[tuple[int, str, str], dict[date, int]] = {}
    for row in connection.execute(text(_SIZES), parameters):
        sizes.setdefault((row.instance_id, row.subject, row.name), {})[row.day] = row.size_mb
    return sizes


def forget_step(engine: Engine, server: str, database: str | None, day: date, *, dry_run: bool = False) -> None:
    """Delete a declared step.

    Raises NotFoundError if there is none, ValidationError for an empty name, and DatabaseError.
    """
    with declaring(engine, "removing a step", dry_run=dry_run) as connection:
        key = {**key_of(connection, server, database), "step_date": day}
        if remove_row(connection, capacity_steps, key) is None:
            raise NotFoundError(f"{subject_text(server, database)} has no step on {day}.")


def stored_steps(engine: Engine, server: str | None = None, database: str | None = None) -> list[Stored[SizeStep]]:
    """Return steps by day: all of them, those of a server, or those that affect a database; raises DatabaseError."""
    rows = rows_of(engine, "steps", _LIST_STEPS, server=server, database=database)
    return [Stored(SizeStep(row.name, row.database_name or None, row.step_date, row.note), *row[4:]) for row in rows]


# Mistyped days are ignored.
_STORED_DAYS = """
SELECT greatest(min(first), DATE '1900-01-01') AS first, least(max(last), current_date) AS last FROM (
    SELECT min(collected_date) AS first, max(collected_date) AS last FROM database_size_stats
    UNION ALL SELECT min(collected_date), max(collected_date) FROM instance_size_stats
    UNION ALL SELECT min(period_start), max(period_start) FROM database_size_aggregations WHERE period_type = 'daily'
    UNION ALL SELECT min(period_start), max(period_start) FROM instance_size_aggregations WHERE period_type = 'daily'
) AS ends
"""
# Samples and, if retention has dropped them, the daily aggregates. Days are listed, because the keys begin with them.
_SIZES = """
WITH requested AS (
    SELECT * FROM unnest(CAST(:ids AS integer[]), CAST(:subjects AS varchar[]), CAST(:names AS varchar[]),
                         CAST(:are_used AS boolean[])) AS g (instance_id, subject, name, is_used)
)
SELECT DISTINCT ON (instance_id, subject, name, day) * FROM (
    SELECT g.*, s.collected_date AS day, CASE WHEN g.is_used THEN s.used_size_mb ELSE s.size_mb END AS size_mb,
           1 AS rank
    FROM requested g
    JOIN database_size_stats s ON s.instance_id = g.instance_id AND s.database_name = g.name
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'database'
    UNION ALL
    SELECT g.*, a.period_start, CASE WHEN g.is_used THEN a.avg_used_size_mb ELSE a.avg_size_mb END, 2 FROM requested g
    JOIN database_size_aggregations a ON a.instance_id = g.instance_id AND a.database_name = g.name
        AND a.period_type = 'daily' AND a.period_start = ANY (CAST(:days AS date[])) WHERE g.subject = 'database'
    UNION ALL
    SELECT g.*, s.collected_date, s.total_size_mb, 1 FROM requested g
    JOIN instance_size_stats s ON s.instance_id = g.instance_id AND NOT s.is_deleted
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'server'
    UNION ALL
    SELECT g.*, a.period_start, a.total_size_mb, 2 FROM requested g
    JOIN instance_size_aggregations a ON a.instance_id = g.instance_id
        AND a.period_type = 'daily' AND a.period_start = ANY (CAST(:days AS date[])) WHERE g.subject = 'server'
    UNION ALL
    SELECT g.*, s.collected_date, coalesce(s.used_mb, s.total_mb - s.free_mb), 1 FROM requested g
    JOIN volume_size_stats s ON s.instance_id = g.instance_id AND s.volume_name = g.name
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'volume'
) AS sizes WHERE size_mb IS NOT NULL ORDER BY instance_id, subject, name, day, rank
"""
_LIST_STEPS = """
SELECT i.name, t.database_name, t.step_date, t.note, t.declared_at, t.declared_by
FROM capacity_steps t JOIN instances i ON i.id = t.instance_id
WHERE (CAST(:server AS text) IS NULL OR i.name = :server)
  AND (CAST(:database AS text) IS NULL OR t.database_name IN ('', :database))
ORDER BY t.step_date, i.name, t.database_name
"""
