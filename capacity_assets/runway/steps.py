"""Declared steps: what changed a size once and will not do so again. How forecasts leave them out is in `forecast`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

from sqlalchemy import Engine, text

from capacity_assets.errors import NotFoundError, database_errors
from capacity_assets.foundation.csv_files import things_of_file
from capacity_assets.foundation.declarations import NO_OTHER_NAMES, DatabaseName, Day
from capacity_assets.runway.subjects import (
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
from capacity_assets.storage.limit_tables import capacity_steps


@dataclass(frozen=True)
class SizeStep:
    """A step of one database, or with None of every database of the server; `day` is the first with the new size."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str
    database: DatabaseName
    day: Day
    note: str


def declare_steps(engine: Engine, steps: Sequence[SizeStep], *, dry_run: bool = False) -> list[SizeStep]:
    """Store steps, each in the place of an earlier one of the same subject and day. All of them or none.

    A dry run checks them and stores none. Returns the earlier steps that get another note.

    Raises:
        NotFoundError: a server is not registered, or a database was never measured there.
        ValidationError: two steps are of the same subject and day.
        DatabaseError: the database failed; nothing was changed.
    """
    keys = ((step.server, step.database, step.day) for step in steps)
    refuse_repeated(keys, lambda key: f"{named(key[0], key[1])}, {key[2]}", "More than one step of")
    with naming_places(steps), declaring(engine, "storing steps", dry_run=dry_run) as connection:
        subjects = keys_of(connection, [(step.server, step.database) for step in steps])
        rows = [{**key, "step_date": step.day, "note": step.note} for key, step in zip(subjects, steps, strict=True)]
        return [
            replace(steps[number], note=row["note"]) for number, row in replace_rows(connection, capacity_steps, rows)
        ]


def sizes_around(engine: Engine, step: SizeStep) -> tuple[int | None, int | None]:
    """Return the last size before a step and the first from its day on, MiB, or None; raises as `declare_steps`."""
    with database_errors(doing="reading sizes", kept="Nothing was changed."), engine.connect() as connection:
        [key] = keys_of(connection, [(step.server, step.database)])
        first, last = connection.execute(text(_STORED_DAYS)).one()
        # Listed, because the keys begin with the day.
        days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
        asked = {**key, "database": step.database, "day": step.day, "days": days}
        row = connection.execute(text(_AROUND), asked).one()
    return row.before_mb, row.after_mb


def forget_step(engine: Engine, server: str, database: str | None, day: date, *, dry_run: bool = False) -> None:
    """Delete a declared step.

    Raises NotFoundError where there is none, ValidationError for an empty name, and DatabaseError.
    """
    with declaring(engine, "removing a step", dry_run=dry_run) as connection:
        key = {**key_of(connection, server, database), "step_date": day}
        if remove_row(connection, capacity_steps, key) is None:
            raise NotFoundError(f"{named(server, database)} has no step on {day}. Nothing was changed.")


def stored_steps(engine: Engine, server: str | None = None, database: str | None = None) -> list[SizeStep]:
    """Return the declared steps by day, of one server, or that a database takes part in; raises DatabaseError."""
    found = rows_of(engine, "steps", _LIST, server=server, database=database)
    return [SizeStep(row.name, row.database_name or None, row.step_date, row.note) for row in found]


def steps_of_file(path: Path) -> list[SizeStep]:
    """Read steps from a CSV file with the columns server, database (empty: all of the server), day and note.

    Raises ValidationError, with all problems of all lines.
    """
    return things_of_file(path, SizeStep)


# Without days that were mistyped.
_STORED_DAYS = """
SELECT greatest(min(first), DATE '1900-01-01') AS first, least(max(last), current_date) AS last FROM (
    SELECT min(collected_date) AS first, max(collected_date) AS last FROM database_size_stats
    UNION ALL SELECT min(collected_date), max(collected_date) FROM instance_size_stats
    UNION ALL SELECT min(period_start), max(period_start) FROM database_size_aggregations WHERE period_type = 'daily'
    UNION ALL SELECT min(period_start), max(period_start) FROM instance_size_aggregations WHERE period_type = 'daily'
) AS ends
"""
# Samples, and before the first that is kept the daily aggregates, as forecasts have them.
_AROUND = """
WITH sizes AS (
    SELECT s.collected_date AS day, s.size_mb FROM database_size_stats s
    WHERE CAST(:database AS text) IS NOT NULL AND s.instance_id = :instance_id AND s.database_name = :database
      AND s.collected_date = ANY (CAST(:days AS date[]))
    UNION ALL
    SELECT a.period_start, a.avg_size_mb FROM database_size_aggregations a
    WHERE CAST(:database AS text) IS NOT NULL AND a.instance_id = :instance_id AND a.database_name = :database
      AND a.period_type = 'daily' AND a.period_start = ANY (CAST(:days AS date[]))
    UNION ALL
    SELECT t.collected_date, t.total_size_mb FROM instance_size_stats t
    WHERE CAST(:database AS text) IS NULL AND t.instance_id = :instance_id AND NOT t.is_deleted
      AND t.collected_date = ANY (CAST(:days AS date[]))
    UNION ALL
    SELECT a.period_start, a.total_size_mb FROM instance_size_aggregations a
    WHERE CAST(:database AS text) IS NULL AND a.instance_id = :instance_id AND a.period_type = 'daily'
      AND a.period_start = ANY (CAST(:days AS date[]))
)
SELECT (SELECT size_mb FROM sizes WHERE day < :day ORDER BY day DESC LIMIT 1) AS before_mb,
       (SELECT size_mb FROM sizes WHERE day >= :day ORDER BY day LIMIT 1) AS after_mb
"""
_LIST = """
SELECT i.name, t.database_name, t.step_date, t.note FROM capacity_steps t JOIN instances i ON i.id = t.instance_id
WHERE (CAST(:server AS text) IS NULL OR i.name = :server)
  AND (CAST(:database AS text) IS NULL OR t.database_name IN ('', :database))
ORDER BY t.step_date, i.name, t.database_name
"""
