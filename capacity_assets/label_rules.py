"""The rule of labels, in SQL: which labels apply to a server or database on a day (docs/semantics.md).

A label of a database comes before one of a pattern, a longer pattern before a shorter one, and all of them before the
label of the server: `ranks` is this order. The LIKE form of a pattern decides which names it matches: the column
`database_like` (`database.views`), or `AS_LIKE` (`ownership.labels`) for labels that are not stored yet. Views read the
labels of each row by `labels_of`, statements those of many rows at once by `LABELS_OF_SUBJECTS`.

Labels are declared in `ownership.labels`. The rule is outside that room, because views (`database.views`) and the sizes
of groups (`aggregates.groups`) need it too.
"""

from __future__ import annotations


def ranks(label: str, database: str) -> tuple[str, str, str]:
    """Return the expressions that order the labels of a key for a database; larger values come first.

    They prefer labels with the database's exact name, then those that are not the server's, then those with more
    characters that are not wildcards. Among equal ones, the first in the alphabet applies.
    """
    pattern = f"{label}.database_pattern"
    return f"{pattern} = {database}", f"{pattern} <> ''", f"length(translate({pattern}, '*?', ''))"


def precedence(label: str, database: str) -> str:
    """Return the order in which labels of a key apply to a database."""
    return ", ".join([*(f"{rank} DESC" for rank in ranks(label, database)), f"{label}.database_pattern"])


def labels_of(instance: str, database: str | None, day: str) -> str:
    """Return the labels of a server (database None) or a database on a day, as JSON, `{}` if there are none."""
    return _labels("capacity_label_spans l", f"l.instance_id = {instance} AND ", database, day)


SPANS_BY_SERVER = """(
    SELECT instance_id, array_agg(database_pattern) AS database_patterns, array_agg(database_like) AS database_likes,
           array_agg(key) AS keys, array_agg(value) AS values, array_agg(valid_from) AS valid_froms,
           array_agg(valid_until) AS valid_untils
    FROM capacity_label_spans GROUP BY instance_id)"""
"""One row per server that has labels, for `labels_in`."""


def labels_in(spans: str, database: str | None, day: str) -> str:
    """Return the same expression for a row of `SPANS_BY_SERVER`.

    For distributed tables, on which `labels_of` would read every label of the fleet for each row.
    """
    names = ("database_pattern", "database_like", "key", "value", "valid_from", "valid_until")
    arrays = ", ".join(f"{spans}.{name}s" for name in names)
    return _labels(f"unnest({arrays}) AS l ({', '.join(names)})", "", database, day)


def _labels(source: str, server: str, database: str | None, day: str) -> str:
    named = order = ""
    if database is not None:
        named = f" OR {database} = l.database_pattern OR {database} LIKE l.database_like"
        order = f", {precedence('l', database)}"
    return f"""coalesce((
    SELECT jsonb_object_agg(held.key, held.value) FROM (
        SELECT DISTINCT ON (l.key) l.key, l.value FROM {source}
        WHERE {server}l.valid_from <= {day} AND {day} < l.valid_until AND l.value IS NOT NULL
          AND (l.database_pattern = ''{named})
        ORDER BY l.key{order}
    ) AS held), CAST('{{}}' AS jsonb))"""  # noqa: S608 -- one expression for views and statements


LABELS_OF_SUBJECTS = f"""
SELECT number, jsonb_object_agg(key, value) AS labels
FROM (
    SELECT DISTINCT ON (s.number, l.key) s.number, l.key, l.value
    FROM subjects s JOIN capacity_label_spans l ON l.instance_id = s.instance_id AND l.value IS NOT NULL
        AND l.valid_from <= s.day AND s.day < l.valid_until
        AND (l.database_pattern = '' OR s.database_name = l.database_pattern OR s.database_name LIKE l.database_like)
    ORDER BY s.number, l.key, {precedence("l", "s.database_name")}
) AS held GROUP BY number
"""  # noqa: S608 -- the order is defined once
"""The labels of many at once: of each row of `subjects` (number, instance_id, database_name, day) that has any.

`database_name` null: the server. One by one, twenty thousand would take a tenth of a second.
"""
