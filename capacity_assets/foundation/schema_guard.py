"""Checks that a database is prepared, before any work on it.

How a schema is made and what it must hold is the business of `storage.schema`.
"""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, event

from capacity_assets.errors import DatabaseError, ValidationError, database_errors
from capacity_assets.storage.schema import (
    SCHEMA_REVISION,
    VERSION_TABLE,
    newer_schema_text,
    schema_revision,
)
from capacity_assets.storage.time_zone import another_zone


def refuse_a_newer_schema(engine: Engine) -> Engine:
    """Make each new connection of an engine raise DatabaseError if a newer version created the schema.

    Data stored by that version may have another meaning, so it is not read either.
    """

    @event.listens_for(engine, "connect")
    def look(connection: Any, _record: object) -> None:
        newer = newer_schema(connection)
        connection.rollback()
        if newer:
            connection.close()
            raise DatabaseError(newer)

    return engine


def newer_schema(connection: Any) -> str | None:
    """Return the message if a newer version created the schema, else None; `connection` is psycopg's."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT has_table_privilege(to_regclass('{VERSION_TABLE}'), 'SELECT')")
        if cursor.fetchone() != (True,):
            return None
        cursor.execute(f"SELECT version_num FROM {VERSION_TABLE} WHERE version_num > '{SCHEMA_REVISION}'")  # noqa: S608 -- constants
        found = cursor.fetchone()
    return newer_schema_text(found[0]) if found else None


def refuse_an_unfit_database(engine: Engine, zone: ZoneInfo | None = None, *, kept: str) -> None:
    """Refuse a database without this version's schema, or, with `zone`, with days of another zone.

    `kept` is a sentence about the data, for the error's text.

    Raises:
        DatabaseError: the schema is missing or another, or the database does not answer.
        ValidationError: its days are days of another zone.
    """
    with database_errors(doing="reading the schema version", kept=kept):
        revision = schema_revision(engine)
        problem = another_zone(engine, zone.key) if zone and revision == SCHEMA_REVISION else None
    if revision is not None and revision > SCHEMA_REVISION:
        raise DatabaseError(f"{newer_schema_text(revision)} {kept}")
    if revision != SCHEMA_REVISION:
        found = f"at revision {revision}" if revision else "missing"
        raise DatabaseError(
            f"The capacity schema is {found}; this version needs revision {SCHEMA_REVISION}. {kept} "
            "Run `capacity init`, which creates or upgrades the tables without losing a row, then run this again."
        )
    if problem:
        raise ValidationError(f"{problem} {kept}")
