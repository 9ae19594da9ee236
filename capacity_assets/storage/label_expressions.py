"""Labels in SQL: which one holds for a server or database on a day. What people declare is in `grouping.labels`.

A label of a database comes before one of a pattern, a longer pattern before a shorter one, and all of them before the
label of the server.
"""

from __future__ import annotations

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
