"""Building blocks of SQL: views as data, schema steps, quoting, and expressions over windows and labels.

A label of a database comes before one of a pattern, a longer pattern before a shorter one, and all of them before the
label of the server. Windows in Python are in `base.periods`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.elements import quoted_name

from capacity_assets.base.units import LARGEST_MB

_VIEW = re.compile(r"-- (.+)\nCREATE VIEW (\w+) AS\n((?s:.+?));\n")
_COLUMN = re.compile(r"(\w+),?((?:\s+-- .+)+)")
_LINE_OF_COMMENT = re.compile(r"-- (.+)")


class ViewColumn(NamedTuple):
    """A column of a view, and its comment."""

    name: str
    comment: str


@dataclass(frozen=True)
class View:
    """A view: in its query, each column is followed by the comment that it gets in the database."""

    name: str
    comment: str
    query: str
    query_on_nodes: str | None = None
    """The query for distributed tables, if it differs."""

    @cached_property
    def columns(self) -> tuple[ViewColumn, ...]:
        """Its columns, as the query lists them."""
        found = _COLUMN.findall(self.query)
        return tuple(ViewColumn(name, " ".join(_LINE_OF_COMMENT.findall(lines))) for name, lines in found)

    @property
    def on_nodes(self) -> View:
        """The view for distributed tables."""
        return replace(self, query=self.query_on_nodes or self.query)

    @property
    def marked_comment(self) -> str:
        """The comment with a mark of the definition, by which an outdated view is known."""
        return f"{self.comment} (definition {hashlib.sha256(self.query.encode()).hexdigest()[:12]})"


def views_in(statements: str) -> tuple[View, ...]:
    """Parse the statements that create views; they run in psql unchanged."""
    return tuple(View(name, comment, query) for comment, name, query in _VIEW.findall(statements))


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


SERVER_SIZES = "capacity_server_sizes"
"""The view that defines the size of a server in a window; every sum over servers reads it."""
TIES = "size_mb DESC, server_id, database"
"""The order of rows with equal changes, in all lists."""


def possible(size_mb: str, change_mb: str) -> str:
    """Return the condition that a stored size and its change are possible; earlier versions stored any value."""
    return f"{size_mb} <= {LARGEST_MB} AND ({change_mb} IS NULL OR {change_mb} BETWEEN -{LARGEST_MB} AND {LARGEST_MB})"


def before(row: str) -> str:
    """Return the first day of the window before: whole months, or as many days as the window itself."""
    return f"""CASE WHEN extract(day FROM {row}.period_start) = extract(day FROM {row}.period_end + 1)
    THEN CAST({row}.period_start - age(CAST({row}.period_end + 1 AS timestamp),
                                     CAST({row}.period_start AS timestamp)) AS date)
    ELSE {row}.period_start - ({row}.period_end - {row}.period_start + 1) END"""


SPANS = "capacity_label_spans"
ESCAPED = r"replace(replace(replace(l.database_pattern, '\', '\\'), '%', '\%'), '_', '\_')"
LIKE = f"replace(replace({ESCAPED}, '*', '%'), '?', '_')"
"""The pattern as LIKE reads it; a name without wildcards matches itself."""


def holds_on(span: str, day: str) -> str:
    """Return the condition that a row of the view of spans holds on a day, with a value."""
    return f"{span}.valid_from <= {day} AND {day} < {span}.valid_until AND {span}.value IS NOT NULL"


def matches(span: str, database: str) -> str:
    """Return the condition that a span names a database, by its name or a pattern."""
    return (
        f"{span}.database_pattern <> '' "
        f"AND ({database} = {span}.database_pattern OR {database} LIKE {span}.database_like)"
    )


def weights(span: str, database: str) -> tuple[str, ...]:
    """Return the sort keys of two labels of one key: the greater applies; of equal ones, the first pattern."""
    pattern = f"{span}.database_pattern"
    return f"{pattern} = {database}", f"{pattern} <> ''", f"length(translate({pattern}, '*?', ''))"


def precedence(span: str, database: str) -> str:
    """Return what spans of one key are ordered by, the one that holds first."""
    return ", ".join((*(f"{weight} DESC" for weight in weights(span, database)), f"{span}.database_pattern"))


def labels_of(instance: str, database: str | None, day: str) -> str:
    """Return the labels of a server (database None) or a database on a day, as JSON, `{}` where there are none."""
    return _labels(f"{SPANS} l", f"l.instance_id = {instance} AND ", database, day)


_SPAN_COLUMNS = ("database_pattern", "database_like", "key", "value", "valid_from", "valid_until")
SPANS_BY_SERVER = f"""(
    SELECT instance_id, {", ".join(f"array_agg({name}) AS {name}s" for name in _SPAN_COLUMNS)}
    FROM {SPANS} GROUP BY instance_id)"""  # noqa: S608 -- names of our own
"""One row per server that has labels, for `labels_in`."""


def labels_in(spans: str, database: str | None, day: str) -> str:
    """Return the same of a row of `SPANS_BY_SERVER`.

    On nodes, every label of the fleet is looked at for each row of the other form.
    """
    arrays = ", ".join(f"{spans}.{name}s" for name in _SPAN_COLUMNS)
    return _labels(f"unnest({arrays}) AS l ({', '.join(_SPAN_COLUMNS)})", "", database, day)


def _labels(source: str, server: str, database: str | None, day: str) -> str:
    named = "" if database is None else f" OR {matches('l', database)}"
    order = "" if database is None else f", {precedence('l', database)}"
    return f"""coalesce((
    SELECT jsonb_object_agg(held.key, held.value) FROM (
        SELECT DISTINCT ON (l.key) l.key, l.value FROM {source}
        WHERE {server}{holds_on("l", day)} AND (l.database_pattern = ''{named})
        ORDER BY l.key{order}
    ) AS held), CAST('{{}}' AS jsonb))"""  # noqa: S608 -- expressions of our own views
