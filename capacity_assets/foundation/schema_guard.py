"""Whether a database is prepared for the work: asked before it by everything that runs in the graph.

How a schema is made and what it must hold is the business of `storage.schema`.
"""

from __future__ import annotations

from zoneinfo import ZoneInfo

from sqlalchemy import Engine

from capacity_assets.foundation.errors import DatabaseError, ValidationError, database_errors
from capacity_assets.storage.schema import SCHEMA_REVISION, schema_revision
from capacity_assets.storage.zone import another_zone


def refuse_an_unfit_database(engine: Engine, zone: ZoneInfo, *, kept: str) -> None:
    """Refuse a database without this version's schema, or with days of another zone; `kept` says so of the data.

    Raises:
        DatabaseError: the schema is missing or another, or the database does not answer.
        ValidationError: its days are days of another zone.
    """
    with database_errors(doing="reading the schema version", kept=kept):
        revision = schema_revision(engine)
        problem = another_zone(engine, zone.key) if revision == SCHEMA_REVISION else None
    if revision != SCHEMA_REVISION:
        found = f"at revision {revision}" if revision else "missing"
        raise DatabaseError(
            f"The capacity schema is {found}; this version needs revision {SCHEMA_REVISION}. {kept} "
            "Run `capacity init`, which creates or upgrades the tables without losing a row, then run this again."
        )
    if problem:
        raise ValidationError(f"{problem} {kept}")
