"""Declared limits and steps of servers and databases, and what declarations of any kind share.

A limit is how much a server or database can hold; a step is a single change of its size, which forecasts ignore.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import sqlalchemy as sa
from pydantic import BeforeValidator, Field
from sqlalchemy import Connection, Engine, Row, RowMapping, Table, text
from sqlalchemy.dialects.postgresql import insert

from capacity_assets.base.declarations import NO_OTHER_NAMES, DatabaseName, Day, items_of_file, mb_of_gb
from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.units import first_of, meant, printable
from capacity_assets.database.cluster import copied_for_reading, tables_are_distributed
from capacity_assets.database.tables import ALWAYS, capacity_limits, capacity_steps
from capacity_assets.forecast.results import DATABASE, SERVER

WHOLE_SERVER = ""
"""The database name of a server as a whole; no database has it."""

NAMED = 10

Key = TypeVar("Key")


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
    """Return the rows of a query; raises DatabaseError, which says that it happened while reading `what`."""
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
    new = _rows_of_values(table, list(rows[0]), rows).add_columns(sa.literal(by, sa.Text()))
    store = insert(table).from_select([*rows[0], "declared_by"], new)
    changes = {name: store.excluded[name] for name in (*values, "declared_by")} | {"declared_at": sa.func.now()}
    connection.execute(store.on_conflict_do_update(index_elements=keys, set_=changes))
    return [(number, row) for number, row in earlier if row and any(row[name] != rows[number][name] for name in values)]


def clear_history(connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Delete all other declarations of subjects for which a row holds for all of history."""
    subject = [column.name for column in table.primary_key if column.name != "valid_from"]
    always = [row for row in rows if row["valid_from"] == ALWAYS]
    if always:
        key = sa.tuple_(*(table.c[name] for name in subject))
        connection.execute(sa.delete(table).where(key.in_(_rows_of_values(table, subject, always))))


def _rows_of_values(table: Table, names: Sequence[str], rows: Sequence[Mapping[str, object]]) -> sa.Select[Any]:
    """Return a query of these columns of the rows."""
    columns = {name: [row[name] for row in rows] for name in names}
    # A cast to varchar(n) would cut what is too long.
    types = {name: sa.Text() if isinstance(table.c[name].type, sa.String) else table.c[name].type for name in names}
    return sa.select(*(sa.func.unnest(sa.literal(columns[name], sa.ARRAY(types[name]))).label(name) for name in names))


def remove_row(connection: Connection, table: Table, key: Mapping[str, object]) -> Row[Any] | None:
    """Delete the row with a key and return it; None: there is none."""
    chosen = sa.delete(table).where(*(table.c[name] == value for name, value in key.items()))
    return connection.execute(chosen.returning(table)).first()


def subject_text(server: str, database: str | None) -> str:
    """Return a server, or a database of it, as people read it."""
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
        message = f"No server {first_of(map(repr, missing), NAMED)} is registered.{meant(missing[0], every)}"
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
        message = f"No database {names} was ever measured.{meant(str(database), every)}"
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


UNLIMITED = "unlimited"
DECLARED = "declared"


def megabytes_of(limit_gb: object) -> int | None:
    """Read a limit in GiB, as 500 or 1.5, or `unlimited`, which is None; else raise ValidationError."""
    if str(limit_gb).strip().lower() == UNLIMITED:
        return None
    try:
        limit_mb = mb_of_gb(limit_gb)
    except ValidationError as error:
        raise ValidationError(f"{error} Without a limit, write {UNLIMITED}.") from None
    if not limit_mb:
        raise ValidationError(f"{limit_gb!r} is not a limit; it must be above zero.")
    return limit_mb


@dataclass(frozen=True)
class Limit:
    """How much a database can hold, or with None its whole server; `limit_mb` None: unlimited."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str
    database: DatabaseName
    limit_mb: Annotated[int | None, BeforeValidator(megabytes_of), Field(validation_alias="limit_gb")]
    note: str | None = None


@dataclass(frozen=True)
class StoredLimit:
    """A limit with its source, when it was declared and by whom; None: not known."""

    limit: Limit
    source: str
    declared_at: datetime
    declared_by: str | None


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

    Raises NotFoundError where there is none, ValidationError for an empty name, and DatabaseError.
    """
    with declaring(engine, "removing a limit", dry_run=dry_run) as connection:
        if remove_row(connection, capacity_limits, key_of(connection, server, database)) is None:
            raise NotFoundError(f"{subject_text(server, database)} has no limit.")


def limits_below_size(engine: Engine, limits: Sequence[Limit]) -> list[tuple[Limit, int]]:
    """Return the limits below the last measured size, each with that size in MiB; raises as `declare_limits`."""
    with database_errors(doing="reading sizes", kept="The limits are stored."), engine.connect() as connection:
        keys = keys_of(connection, [(limit.server, limit.database) for limit in limits])
        parameters = {**columns_of(keys), "limits_mb": [limit.limit_mb for limit in limits]}
        with copied_for_reading(connection, _SAMPLES_OF_SERVERS, parameters):
            return [(limits[row.number - 1], row.size_mb) for row in connection.execute(text(_BELOW), parameters)]


def stored_limits(engine: Engine) -> list[StoredLimit]:
    """Return all limits by server and database, that of the server first; raises DatabaseError."""
    return [
        StoredLimit(Limit(row.name, row.database_name or None, row.limit_mb, row.note), *row[4:])
        for row in rows_of(engine, "limits", _LIST)
    ]


def limits_of_file(path: Path) -> list[Limit]:
    """Read limits from a CSV file with the columns server, database (empty: the whole server), limit_gb and note.

    Raises ValidationError, with all problems of all lines.
    """
    return items_of_file(path, Limit)


_SAMPLES_OF_SERVERS = {
    "database_size_stats": "SELECT * FROM database_size_stats WHERE instance_id = ANY (CAST(:instance_ids AS int[]))",
    "instance_size_stats": "SELECT * FROM instance_size_stats WHERE instance_id = ANY (CAST(:instance_ids AS int[]))",
}
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
SELECT i.name, l.database_name, l.limit_mb, l.note, l.source, l.declared_at, l.declared_by
FROM capacity_limits l JOIN instances i ON i.id = l.instance_id ORDER BY i.name, l.database_name
"""


@dataclass(frozen=True)
class SizeStep:
    """A step of a database, or with None of all databases of a server; `day` is the first with the new size."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str
    database: DatabaseName
    day: Day
    note: str


@dataclass(frozen=True)
class StoredStep:
    """A step with when it was declared and by whom; None: not known."""

    step: SizeStep
    declared_at: datetime
    declared_by: str | None


def declare_steps(
    engine: Engine, steps: Sequence[SizeStep], *, by: str | None = None, dry_run: bool = False
) -> list[SizeStep]:
    """Store steps declared by `by`, replacing earlier ones of the same subject and day. Stores all of them or none.

    A dry run only checks them. Returns the earlier steps whose note was replaced.

    Raises:
        NotFoundError: a server is not registered, or a database was never measured there.
        ValidationError: two steps are of the same subject and day.
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

    Those of `used` databases are what is used inside their files. Raises DBAPIError.
    """
    ids, kinds, names = zip(*subjects, strict=True) if subjects else ((), (), ())
    asked = {"ids": list(ids), "subjects": list(kinds), "names": list(names), "days": days}
    asked["are_used"] = [one in used for one in subjects]
    sizes: dict[tuple[int, str, str], dict[date, int]] = {}
    for row in connection.execute(text(_SIZES), asked):
        sizes.setdefault((row.instance_id, row.subject, row.name), {})[row.day] = row.size_mb
    return sizes


def forget_step(engine: Engine, server: str, database: str | None, day: date, *, dry_run: bool = False) -> None:
    """Delete a declared step.

    Raises NotFoundError where there is none, ValidationError for an empty name, and DatabaseError.
    """
    with declaring(engine, "removing a step", dry_run=dry_run) as connection:
        key = {**key_of(connection, server, database), "step_date": day}
        if remove_row(connection, capacity_steps, key) is None:
            raise NotFoundError(f"{subject_text(server, database)} has no step on {day}.")


def stored_steps(engine: Engine, server: str | None = None, database: str | None = None) -> list[StoredStep]:
    """Return steps by day: all of them, those of a server, or those that affect a database; raises DatabaseError."""
    rows = rows_of(engine, "steps", _LIST_STEPS, server=server, database=database)
    return [
        StoredStep(SizeStep(row.name, row.database_name or None, row.step_date, row.note), *row[4:]) for row in rows
    ]


def steps_of_file(path: Path) -> list[SizeStep]:
    """Read steps from a CSV file with the columns server, database (empty: all of the server), day and note.

    Raises ValidationError, with all problems of all lines.
    """
    return items_of_file(path, SizeStep)


# Mistyped days are ignored.
_STORED_DAYS = """
SELECT greatest(min(first), DATE '1900-01-01') AS first, least(max(last), current_date) AS last FROM (
    SELECT min(collected_date) AS first, max(collected_date) AS last FROM database_size_stats
    UNION ALL SELECT min(collected_date), max(collected_date) FROM instance_size_stats
    UNION ALL SELECT min(period_start), max(period_start) FROM database_size_aggregations WHERE period_type = 'daily'
    UNION ALL SELECT min(period_start), max(period_start) FROM instance_size_aggregations WHERE period_type = 'daily'
) AS ends
"""
# Samples, and where retention has dropped them, the daily aggregates. Days are listed: the keys begin with them.
_SIZES = """
WITH asked AS (
    SELECT * FROM unnest(CAST(:ids AS integer[]), CAST(:subjects AS varchar[]), CAST(:names AS varchar[]),
                         CAST(:are_used AS boolean[])) AS g (instance_id, subject, name, is_used)
)
SELECT DISTINCT ON (instance_id, subject, name, day) * FROM (
    SELECT g.*, s.collected_date AS day, CASE WHEN g.is_used THEN s.used_size_mb ELSE s.size_mb END AS size_mb,
           1 AS rank
    FROM asked g
    JOIN database_size_stats s ON s.instance_id = g.instance_id AND s.database_name = g.name
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'database'
    UNION ALL
    SELECT g.*, a.period_start, CASE WHEN g.is_used THEN a.avg_used_size_mb ELSE a.avg_size_mb END, 2 FROM asked g
    JOIN database_size_aggregations a ON a.instance_id = g.instance_id AND a.database_name = g.name
        AND a.period_type = 'daily' AND a.period_start = ANY (CAST(:days AS date[])) WHERE g.subject = 'database'
    UNION ALL
    SELECT g.*, s.collected_date, s.total_size_mb, 1 FROM asked g
    JOIN instance_size_stats s ON s.instance_id = g.instance_id AND NOT s.is_deleted
        AND s.collected_date = ANY (CAST(:days AS date[])) WHERE g.subject = 'server'
    UNION ALL
    SELECT g.*, a.period_start, a.total_size_mb, 2 FROM asked g
    JOIN instance_size_aggregations a ON a.instance_id = g.instance_id
        AND a.period_type = 'daily' AND a.period_start = ANY (CAST(:days AS date[])) WHERE g.subject = 'server'
    UNION ALL
    SELECT g.*, s.collected_date, coalesce(s.used_mb, s.total_mb - s.free_mb), 1 FROM asked g
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
