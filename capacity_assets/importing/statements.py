"""The statements of an import: a slice of rows compared with what is stored, then written, set by set.

All work on two temporary tables: `staged` holds the rows of a slice, `compared` what each of them is. Names come from
our own table definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capacity_assets.foundation.levels import DATABASE, LEVELS, Level
from capacity_assets.importing.rows import layout_of

TYPES = {"database_name": "varchar(255)", "day": "date", "database_count": "integer"}


@dataclass(frozen=True)
class SliceStatements:
    """The statements of one level."""

    copy: str
    stage: str
    compare: str
    write: str
    conflicts: str
    totals: str | None


def _statements(level: Level) -> SliceStatements:
    of_database = level is DATABASE
    keys = ("database_name", "day") if of_database else ("day",)
    values = ("size_mb", "data_size_mb", "log_size_mb") if of_database else ("total_size_mb", "database_count")
    exact = layout_of(level).exact
    columns = (*keys, *values, *exact)
    typed = "".join(f", {name} {TYPES.get(name, 'bigint')}" for name in columns)
    return SliceStatements(
        copy=f"COPY staged (position, server, instance_id, {', '.join(columns)}, collected_at) FROM STDIN",
        stage=f"CREATE TEMPORARY TABLE staged (position bigint, server text, instance_id integer{typed}, "
        "collected_at timestamptz, found_id integer) ON COMMIT DROP",
        compare=_compare(level, keys, values, exact[0]),
        write=_write(level, (*values, *exact)),
        conflicts=_conflicts(level, values[0]),
        totals=TOTALS if of_database else None,
    )


def _compare(level: Level, keys: Sequence[str], values: Sequence[str], exact: str) -> str:
    """Say of each row which turn it has among those of its key, and whether it is new, present or in conflict.

    Of rows that contradict each other the first one counts, or with `replace` the last: as if each came in a slice of
    its own.
    """
    same_database = "AND o.database_name = s.database_name" if level is DATABASE else "AND o.is_deleted = false"
    row, stored = (", ".join(f"{side}.{name}" for name in values) for side in ("s", "o"))
    first = ", ".join(f"first_value(s.{name}) OVER w" for name in values)
    key = ", ".join(f"s.{name}" for name in ("found_id", *keys))
    return f"""
CREATE TEMPORARY TABLE compared ON COMMIT DROP AS
SELECT c.*, turn = 1 AND (stored_mb IS NULL OR (CAST(:replace AS boolean) AND NOT same_stored)) AS taken,
       (turn = 1 AND NOT same_stored AND NOT CAST(:replace AS boolean)) OR (turn > 1 AND NOT same_first) AS conflicting
FROM (
    SELECT s.*, row_number() OVER w AS turn, ({row}) IS NOT DISTINCT FROM ({first}) AS same_first,
           first_value(s.{values[0]}) OVER w AS first_mb, o.{values[0]} AS stored_mb, o.{exact} AS stored_bytes,
           o.instance_id IS NULL OR ({row}) IS NOT DISTINCT FROM ({stored}) AS same_stored
    FROM staged s LEFT JOIN {level.source.name} o
        ON o.instance_id = s.found_id AND o.collected_date = s.day {same_database}
    WHERE s.found_id IS NOT NULL
    WINDOW w AS (PARTITION BY {key} ORDER BY CASE WHEN CAST(:replace AS boolean) THEN -s.position ELSE s.position END)
) AS c
"""  # noqa: S608 -- see the module


def _write(level: Level, values: Sequence[str]) -> str:
    listed = ", ".join(values)
    changes = ", ".join(f"{name} = excluded.{name}" for name in values)
    extra, extra_value, database, key = (
        ("", "", ", database_name", "(instance_id, database_name, collected_date)")
        if level is DATABASE
        else (", is_deleted", ", false", "", "(instance_id, collected_date) WHERE is_deleted = false")
    )
    return f"""
INSERT INTO {level.source.name}
    (instance_id{database}, collected_date, {listed}, collected_at, created_at, updated_at{extra})
SELECT found_id{database}, day, {listed}, collected_at, now(), now(){extra_value} FROM compared WHERE taken
ON CONFLICT {key} DO UPDATE SET {changes}, collected_at = excluded.collected_at, updated_at = now()
"""  # noqa: S608 -- see the module


def _conflicts(level: Level, size: str) -> str:
    database = "c.database_name" if level is DATABASE else "NULL"
    return f"""
SELECT c.position, i.name AS server, {database} AS database, c.day, c.{size} AS size_mb, c.turn > 1 AS another,
       CASE WHEN c.turn > 1 THEN c.first_mb ELSE c.stored_mb END AS other_mb
FROM compared c JOIN instances i ON i.id = c.found_id WHERE c.conflicting ORDER BY c.position LIMIT :listed
"""  # noqa: S608 -- see the module


def _bytes_of(size_mb: str, size_bytes: str) -> str:
    """The exact bytes where they are known, else those of the whole megabytes."""
    return f"coalesce({size_bytes}, {size_mb} * CAST(1048576 AS numeric))"


# The total of a server and day is derived where there is none, and follows where it was the sum of its databases before
# this slice; one that somebody measured otherwise is kept.
TOTALS = f"""
WITH touched AS (
    SELECT found_id AS instance_id, day, max(collected_at) AS collected_at,
           sum({_bytes_of("size_mb", "size_bytes")} - coalesce({_bytes_of("stored_mb", "stored_bytes")}, 0))
               AS grown_bytes,
           count(*) FILTER (WHERE stored_mb IS NULL) AS added
    FROM compared WHERE taken GROUP BY found_id, day
    UNION ALL
    SELECT found_id, day, max(collected_at), 0, 0 FROM compared c
    WHERE NOT EXISTS (SELECT FROM instance_size_stats o
                      WHERE o.instance_id = c.found_id AND o.collected_date = c.day AND o.is_deleted = false)
    GROUP BY found_id, day HAVING NOT bool_or(taken)
), derived AS (
    SELECT t.instance_id, t.day, t.collected_at, t.grown_bytes, t.added, count(*) AS database_count,
           sum({_bytes_of("d.size_mb", "d.size_bytes")}) AS total_bytes,
           count(d.size_bytes) = count(*) AS is_exact
    FROM touched t JOIN database_size_stats d ON d.instance_id = t.instance_id AND d.collected_date = t.day
    GROUP BY t.instance_id, t.day, t.collected_at, t.grown_bytes, t.added
), written AS (
    INSERT INTO instance_size_stats AS s
        (instance_id, total_size_mb, total_size_bytes, database_count, collected_date, collected_at, is_deleted,
         created_at, updated_at)
    SELECT d.instance_id, div(d.total_bytes, 1048576), CASE WHEN d.is_exact THEN d.total_bytes END, d.database_count,
           d.day, d.collected_at, false, now(), now()
    FROM derived d LEFT JOIN instance_size_stats o
        ON o.instance_id = d.instance_id AND o.collected_date = d.day AND o.is_deleted = false
    WHERE o.instance_id IS NULL
       OR (o.total_size_mb = div(d.total_bytes - d.grown_bytes, 1048576)
           AND o.database_count = d.database_count - d.added)
    ON CONFLICT (instance_id, collected_date) WHERE is_deleted = false DO UPDATE
    SET total_size_mb = excluded.total_size_mb, total_size_bytes = excluded.total_size_bytes,
        database_count = excluded.database_count, collected_at = excluded.collected_at, updated_at = now()
    WHERE (s.total_size_mb, s.total_size_bytes, s.database_count)
        IS DISTINCT FROM (excluded.total_size_mb, excluded.total_size_bytes, excluded.database_count)
    RETURNING 1
)
SELECT count(*) AS totals_written FROM written
"""  # noqa: S608 -- see the module
COUNT = """
SELECT count(*) FILTER (WHERE taken AND stored_mb IS NULL) AS written,
       count(*) FILTER (WHERE taken AND stored_mb IS NOT NULL) AS replaced,
       count(*) FILTER (WHERE turn = 1 AND stored_mb IS NOT NULL AND same_stored) AS present,
       count(*) FILTER (WHERE turn > 1 AND same_first) AS repeated,
       count(*) FILTER (WHERE conflicting) AS conflicts
FROM compared
"""
DAYS = "SELECT min(day) AS first_day, max(day) AS last_day FROM compared"
# A server that is registered by an import is known by name only, and measured once somebody says where it is.
REGISTER = """
INSERT INTO instances (name, db_type, host, port, is_active)
SELECT DISTINCT s.server, :engine, 'unknown', CAST(:port AS integer), true FROM staged s
WHERE s.server IS NOT NULL ON CONFLICT (name) DO NOTHING
"""
FIND_BY_NAME = "UPDATE staged s SET found_id = i.id FROM instances i WHERE i.name = s.server"
FIND_BY_NUMBER = "UPDATE staged s SET found_id = i.id FROM instances i WHERE s.server IS NULL AND i.id = s.instance_id"
UNKNOWN = """
SELECT coalesce(server, 'number ' || instance_id) AS who, count(*) AS rows FROM staged WHERE found_id IS NULL
GROUP BY 1 ORDER BY 2 DESC, 1
"""
NOTE = """
INSERT INTO capacity_imports AS i (fingerprint, source, target, position, counts)
VALUES (:fingerprint, :source, :target, :position, CAST(:counts AS json))
ON CONFLICT (fingerprint) DO UPDATE SET position = excluded.position, counts = excluded.counts, finished_at = NULL
"""
POSITION = "SELECT position, counts FROM capacity_imports WHERE fingerprint = :fingerprint AND finished_at IS NULL"
FINISH = "UPDATE capacity_imports SET finished_at = now() WHERE fingerprint = :fingerprint"

STATEMENTS = {level.name: _statements(level) for level in LEVELS.values()}
