"""Building blocks of SQL: views as data, schema steps, quoting, and statements made of named parts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import ClauseElement, Column, Connection, MetaData, Table, TextualSelect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.elements import quoted_name

_VIEW = re.compile(r"-- (.+)\nCREATE VIEW (\w+) AS\n((?s:.+?));\n")
_COLUMN = re.compile(r"(\w+),?((?:\s+-- .+)+)")
_LINE_OF_COMMENT = re.compile(r"-- (.+)")


class ViewColumn(NamedTuple):
    """A column of a view, and its comment."""

    name: str
    comment: str


@dataclass(frozen=True)
class View:
    """A view: in its query, each column is followed by the comment that it gets in the database.

    If the query is not written by hand, its columns are `described` instead.
    """

    name: str
    comment: str
    query: str
    query_on_nodes: str | None = None
    """The query for distributed tables, if it differs."""
    described: tuple[ViewColumn, ...] = ()

    @cached_property
    def columns(self) -> tuple[ViewColumn, ...]:
        """Its columns, as the query lists them."""
        if self.described:
            return self.described
        named = _COLUMN.findall(self.query)
        return tuple(ViewColumn(name, " ".join(_LINE_OF_COMMENT.findall(lines))) for name, lines in named)

    @property
    def on_nodes(self) -> View:
        """The view for distributed tables."""
        return replace(self, query=self.query_on_nodes or self.query)

    @property
    def marked_comment(self) -> str:
        """The comment with a mark of the definition, which identifies an outdated view."""
        made_of = self.query + "".join(comment for _, comment in self.described)
        return f"{self.comment} (definition {hashlib.sha256(made_of.encode()).hexdigest()[:12]})"


def views_in(statements: str) -> tuple[View, ...]:
    """Parse the statements that create views; they run in psql unchanged."""
    return tuple(View(name, comment, query) for comment, name, query in _VIEW.findall(statements))


DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves this constructor untyped
_NAMED_DIALECT = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # where a percent sign stands for itself


@dataclass(frozen=True)
class SchemaStep:
    """One statement that brings a table closer to the wanted shape, and why.

    It `is_lossy` if changes may not have been recorded before it.
    """

    reason: str
    statement: str
    is_lossy: bool = False


def execute_steps(connection: Connection, steps: Iterable[SchemaStep]) -> None:
    """Execute steps, in order."""
    execute(connection, (step.statement for step in steps))


def execute(connection: Connection, statements: Iterable[str]) -> None:
    """Execute statements without parameters; a percent sign in them is literal."""
    for statement in statements:
        connection.exec_driver_sql(statement.replace("%", "%%"))


def current_schema(connection: Connection) -> str:
    """Return the schema of the tables, for statements that are sent to nodes: these may have another search path."""
    return str(connection.execute(text("SELECT current_schema()")).scalar_one())


def free_name(connection: Connection, name: str) -> str:
    """Return the name for a table or index, or a longer one if it is taken."""
    is_taken = connection.execute(text("SELECT to_regclass(:name) IS NOT NULL"), {"name": name}).scalar()
    return f"{name}_capacity" if is_taken else name


def quoted(name: str) -> str:
    """Quote a name if PostgreSQL requires it."""
    return DIALECT.identifier_preparer.quote(quoted_name(name, quote=None))


def literal(value: str) -> str:
    """Return a text as an SQL literal, also for a server that reads backslashes as escapes."""
    doubled = value.replace("'", "''")
    return f"'{doubled}'" if "\\" not in value else "E'" + doubled.replace("\\", "\\\\") + "'"


def with_queries(query: str, *, materialized: Collection[str] = (), **parts: str) -> TextualSelect:
    """Return a statement that reads `parts`, which are queries, by name; a later part may read an earlier one.

    PostgreSQL evaluates the `materialized` parts once, others perhaps for each row that reads them.
    """
    named = {name: text(part).columns().cte(name) for name, part in parts.items()}
    return (
        text(query)
        .columns()
        .add_cte(*(part.prefix_with("MATERIALIZED") if name in materialized else part for name, part in named.items()))
    )


def temporary_table(name: str, *columns: Column[Any]) -> Table:
    """Return a table that lasts until the transaction ends."""
    return Table(name, MetaData(), *columns, prefixes=["TEMPORARY"], postgresql_on_commit="DROP")


def sql_text(statement: ClauseElement) -> str:
    """Return a statement without parameters as text."""
    return str(statement.compile(dialect=_NAMED_DIALECT, compile_kwargs={"literal_binds": True}))


SERVER_SIZES = "capacity_server_sizes"
"""The view that defines the size of a server in a window; every sum over servers reads it."""
