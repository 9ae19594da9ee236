"""Which labels hold on a day, as one expression for views and statements.

A label of a database comes before one of a pattern, a longer pattern before a shorter one, and all of them before the
label of the server. `database.group_days`, `ownership.groups` and `ownership.labels` repeat this order in statements of
their own.
"""

from __future__ import annotations


def labels_of(instance: str, database: str | None, day: str) -> str:
    """Return the labels of a server (database None) or a database on a day, as JSON, `{}` where there are none."""
    return _labels("capacity_label_spans l", f"l.instance_id = {instance} AND ", database, day)


SPANS_BY_SERVER = """(
    SELECT instance_id, array_agg(database_pattern) AS database_patterns, array_agg(database_like) AS database_likes,
           array_agg(key) AS keys, array_agg(value) AS values, array_agg(valid_from) AS valid_froms,
           array_agg(valid_until) AS valid_untils
    FROM capacity_label_spans GROUP BY instance_id)"""
"""One row per server that has labels, for `labels_in`."""


def labels_in(spans: str, database: str | None, day: str) -> str:
    """Return the same expression for a row of `SPANS_BY_SERVER`.

    On nodes, the other form would look at every label of the fleet for each row.
    """
    names = ("database_pattern", "database_like", "key", "value", "valid_from", "valid_until")
    arrays = ", ".join(f"{spans}.{name}s" for name in names)
    return _labels(f"unnest({arrays}) AS l ({', '.join(names)})", "", database, day)


def _labels(source: str, server: str, database: str | None, day: str) -> str:
    named = order = ""
    if database is not None:
        named = f" OR {database} = l.database_pattern OR {database} LIKE l.database_like"
        order = (
            f", l.database_pattern = {database} DESC, l.database_pattern <> '' DESC, "
            "length(translate(l.database_pattern, '*?', '')) DESC, l.database_pattern"
        )
    return f"""coalesce((
    SELECT jsonb_object_agg(held.key, held.value) FROM (
        SELECT DISTINCT ON (l.key) l.key, l.value FROM {source}
        WHERE {server}l.valid_from <= {day} AND {day} < l.valid_until AND l.value IS NOT NULL
          AND (l.database_pattern = ''{named})
        ORDER BY l.key{order}
    ) AS held), CAST('{{}}' AS jsonb))"""  # noqa: S608 -- one expression for views and statements


LABELS_OF_SUBJECTS = """
SELECT number, jsonb_object_agg(key, value) AS labels
FROM (
    SELECT DISTINCT ON (s.number, l.key) s.number, l.key, l.value
    FROM subjects s JOIN capacity_label_spans l ON l.instance_id = s.instance_id AND l.value IS NOT NULL
        AND l.valid_from <= s.day AND s.day < l.valid_until
        AND (l.database_pattern = '' OR s.database_name = l.database_pattern OR s.database_name LIKE l.database_like)
    ORDER BY s.number, l.key, l.database_pattern = s.database_name DESC, l.database_pattern <> '' DESC,
             length(translate(l.database_pattern, '*?', '')) DESC, l.database_pattern
) AS held GROUP BY number
"""
"""The labels of many at once: of each row of `subjects` (number, instance_id, database_name, day) that has any.

`database_name` null: the server. One by one, twenty thousand would take a tenth of a second.
"""
