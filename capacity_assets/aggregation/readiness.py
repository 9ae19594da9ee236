"""Whether a database is prepared for the work: asked before it by everything that runs in the graph.

How a schema is made and what it must hold is the business of `storage.schema`.
"""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from capacity_assets.aggregation.errors import DatabaseError, database_error
from capacity_assets.storage.schema import SCHEMA_REVISION, schema_revision


def refuse_a_missing_schema(engine: Engine, *, kept: str) -> None:
    """Refuse a database without the schema of this version; `kept` is a sentence about the data.

    Raises:
        DatabaseError: the schema is missing or another, or the database does not answer.
    """
    try:
        revision = schema_revision(engine)
    except DBAPIError as error:
        raise database_error(error, doing="reading the schema version", kept=kept) from error
    if revision != SCHEMA_REVISION:
        found = f"at revision {revision}" if revision else "missing"
        raise DatabaseError(
            f"The capacity schema is {found}; this version needs revision {SCHEMA_REVISION}. {kept} "
            "Run `capacity init`, which creates or upgrades the tables without losing a row, then run this again."
        )
