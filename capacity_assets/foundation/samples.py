"""How samples are written: the one statement behind the collection, imports and the demo.

Which rows are written, and whether stored rows are replaced, is decided by the caller.
"""

from __future__ import annotations

from capacity_assets.foundation.levels import Level
from capacity_assets.units import BYTES_PER_MB

_KEYS = {
    "database": "(instance_id, database_name, collected_date)",
    "instance": "(instance_id, collected_date) WHERE is_deleted = false",
}


def staging_columns(level: Level, *more: str) -> str:
    """Return the columns of a temporary table for the values of samples; `more` are definitions before them."""
    types = {column.name: column.type.compile() for column in level.source.columns}
    return ", ".join([*more, *(f"{name} {types[name]}" for name in (*level.values, *level.exact))])


def insert_samples(level: Level, source: str, *, replace: bool = True) -> str:
    """Return an INSERT of rows of `source`, which has the columns of the samples; equal rows are not touched.

    With `replace` a row of the same key takes the new values, else it stays as it is.
    """
    values = (*level.values, *level.exact)
    columns = (*level.keys, "collected_date", *values, "collected_at")
    flag, no_flag = (f", {level.void_flag}", ", false") if level.void_flag else ("", "")
    changes = ", ".join(f"{name} = excluded.{name}" for name in (*values, "collected_at"))
    stored, new = (", ".join(f"{side}.{name}" for name in values) for side in ("t", "excluded"))
    update = f"UPDATE SET {changes}, updated_at = excluded.updated_at WHERE ({stored}) IS DISTINCT FROM ({new})"
    return f"""
INSERT INTO {level.source.name} AS t ({", ".join(columns)}, created_at, updated_at{flag})
SELECT {", ".join(f"r.{name}" for name in columns)}, now(), now(){no_flag} FROM {source} AS r
ON CONFLICT {_KEYS[level.name]} DO {update if replace else "NOTHING"}
"""  # noqa: S608 -- names from our own table definitions


def bytes_of(size_mb: str, size_bytes: str) -> str:
    """Return the expression of a size in bytes: exact where they are known, else those of the whole megabytes."""
    return f"coalesce({size_bytes}, {size_mb} * CAST({BYTES_PER_MB} AS numeric))"
