"""A statement that changes the schema, with its reason, and what building one takes: quoting, free names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.elements import quoted_name

DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves this constructor untyped


@dataclass(frozen=True)
class SchemaStep:
    """One statement that brings a table closer to the wanted shape, and why.

    It `is_lossy` where writes may have gone unrecorded before it.
    """

    reason: str
    statement: str
    is_lossy: bool = False


def carry_out(connection: Connection, steps: Iterable[SchemaStep]) -> None:
    """Execute steps, in order."""
    execute(connection, (step.statement for step in steps))


def execute(connection: Connection, statements: Iterable[str]) -> None:
    """Execute statements of our own; they hold no parameters, so a percent sign in them is itself."""
    for statement in statements:
        connection.exec_driver_sql(statement.replace("%", "%%"))


def free_name(connection: Connection, name: str) -> str:
    """Return a name for a table or index: the wanted one, or a longer one where it is taken."""
    taken = connection.execute(text("SELECT to_regclass(:name) IS NOT NULL"), {"name": name}).scalar()
    return f"{name}_capacity" if taken else name


def quoted(name: str) -> str:
    """Quote a name where PostgreSQL needs it."""
    return DIALECT.identifier_preparer.quote(quoted_name(name, quote=None))


def literal(value: str) -> str:
    """Write a text as SQL does, also where a server reads backslashes as escapes."""
    doubled = value.replace("'", "''")
    return f"'{doubled}'" if "\\" not in value else "E'" + doubled.replace("\\", "\\\\") + "'"
