"""Creating, comparing and replacing the views of `views`, with owners and grants, and what others built on them.

PostgreSQL refuses to widen a column that a view reads, and to drop a view that another one reads. Such views of others
are taken away and put back as they were, with owner, grants, options, comments, triggers and rules, in the transaction
of the upgrade. What cannot be put back from its definition alone (a materialised view, a rule on a table) is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from capacity_assets.storage.distribution import tables_are_distributed
from capacity_assets.storage.steps import execute, literal, quoted
from capacity_assets.storage.view import View
from capacity_assets.storage.views import VIEWS

_NAMES = [view.name for view in VIEWS]

Reader = Row[Any]
"""What reads a column or a view, see `in_the_way`."""


def names_taken(connection: Connection) -> list[str]:
    """Return what to do about objects that have the name of one of our views."""
    return [
        f"{name} is the name of one of our views, and another object has that name. Rename that object, then run "
        "`capacity init` again."
        for name in connection.execute(text(_NOT_OURS), {"views": _NAMES}).scalars()
    ]


def outdated_views(connection: Connection) -> list[View]:
    """Return the views that are missing or of another definition."""
    comment = text("SELECT obj_description(to_regclass(:name), 'pg_class')")
    views = [view.on_nodes for view in VIEWS] if tables_are_distributed(connection) else VIEWS
    return [view for view in views if connection.execute(comment, {"name": view.name}).scalar() != view.marked_comment]


def create_views(connection: Connection, views: Iterable[View]) -> None:
    """Create views, or renew them in place, so that grants and what is built on them stay."""
    for view in views:
        comments = [(f"{view.name}.{quoted(column.name)}", column.comment) for column in view.columns]
        execute(connection, [f"CREATE OR REPLACE VIEW {view.name} AS {view.query}"])
        execute(connection, [f"COMMENT ON VIEW {view.name} IS {literal(view.marked_comment)}"])
        execute(connection, (f"COMMENT ON COLUMN {name} IS {literal(comment)}" for name, comment in comments))


def in_the_way(connection: Connection, columns: Sequence[tuple[str, str]], *, ours: bool = False) -> Sequence[Reader]:
    """Find what reads one of the columns, given as (table, column), or one of our views, directly or through a view.

    Views come in an order in which they can be dropped. What is not `movable` cannot be put back.
    """
    parameters = {
        "tables": [table for table, _ in columns],
        "columns": [column for _, column in columns],
        "again": _NAMES if ours else [],
        "ours": _NAMES,
    }
    return connection.execute(text(_READERS), parameters).all()


def take_away(connection: Connection, readers: Iterable[Reader]) -> list[str]:
    """Drop views; return the statements that put them back, ours as soon as they were created again."""
    back: list[str] = []
    for view in readers:
        back = [*connection.execute(text(_AS_IT_WAS), {"view": view.name, "is_ours": view.is_ours}).scalars(), *back]
        execute(connection, [f"DROP VIEW {view.name}"])
    return back


_AS_IT_WAS = """
SELECT format('CREATE VIEW %s AS %s', c.oid::regclass, pg_get_viewdef(c.oid)) AS statement
FROM pg_class c WHERE c.oid = to_regclass(:view) AND NOT :is_ours
UNION ALL
SELECT CASE objsubid WHEN 0 THEN format('COMMENT ON VIEW %s IS %L', c.oid::regclass, d.description)
       ELSE format('COMMENT ON COLUMN %s.%I IS %L', c.oid::regclass, a.attname, d.description) END
FROM pg_class c JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid
WHERE c.oid = to_regclass(:view) AND NOT :is_ours
UNION ALL
SELECT format('ALTER VIEW %s ALTER COLUMN %I SET DEFAULT %s', c.oid::regclass, a.attname,
              pg_get_expr(e.adbin, e.adrelid))
FROM pg_class c JOIN pg_attrdef e ON e.adrelid = c.oid
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = e.adnum
WHERE c.oid = to_regclass(:view)
UNION ALL
SELECT pg_get_ruledef(oid) FROM pg_rewrite WHERE ev_class = to_regclass(:view) AND rulename <> '_RETURN'
UNION ALL
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = to_regclass(:view) AND NOT tgisinternal
UNION ALL
SELECT format('ALTER VIEW %s OWNER TO %I', c.oid::regclass, r.rolname)
FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
WHERE c.oid = to_regclass(:view) AND r.rolname <> current_user
UNION ALL
-- The owner may have taken rights from himself.
SELECT format('REVOKE ALL ON %s FROM %I', c.oid::regclass, r.rolname)
FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
WHERE c.oid = to_regclass(:view) AND c.relacl IS NOT NULL
UNION ALL
SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, c.oid::regclass, coalesce(quote_ident(r.rolname), 'PUBLIC'),
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE c.oid = to_regclass(:view)
UNION ALL
SELECT format('GRANT %s (%I) ON %s TO %s%s', a.privilege_type, t.attname, c.oid::regclass,
              coalesce(quote_ident(r.rolname), 'PUBLIC'),
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid CROSS JOIN LATERAL aclexplode(t.attacl) a
LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE c.oid = to_regclass(:view) AND a.grantee <> c.relowner
UNION ALL
SELECT format('ALTER VIEW %s SET (%s)', c.oid::regclass, array_to_string(c.reloptions, ', '))
FROM pg_class c WHERE c.oid = to_regclass(:view) AND c.reloptions IS NOT NULL
"""

_NOT_OURS = """
SELECT c.relname FROM pg_class c
WHERE c.oid IN (SELECT to_regclass(name) FROM unnest(CAST(:views AS text[])) AS name)
  AND (c.relkind <> 'v' OR coalesce(obj_description(c.oid, 'pg_class'), '') NOT LIKE '%(definition %)')
ORDER BY 1
"""

# A rule on a table and a materialised view's contents are more than a definition.
_READERS = """
WITH RECURSIVE wanted AS (
    SELECT a.attrelid, a.attnum
    FROM unnest(CAST(:tables AS text[]), CAST(:columns AS text[])) AS w (name, column_name)
    JOIN pg_attribute a ON a.attrelid = to_regclass(w.name) AND a.attname = w.column_name
), readers AS (
    SELECT r.ev_class AS oid, 1 AS depth
    FROM wanted JOIN pg_depend d
        ON d.refclassid = 'pg_class'::regclass AND d.refobjid = wanted.attrelid AND d.refobjsubid = wanted.attnum
    JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    UNION
    SELECT to_regclass(name), 0 FROM unnest(CAST(:again AS text[])) AS name WHERE to_regclass(name) IS NOT NULL
    UNION
    SELECT r.ev_class, readers.depth + 1
    FROM readers JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = readers.oid
    JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid AND r.ev_class <> readers.oid
)
SELECT c.oid::regclass::text AS name, c.relkind = 'v' AS movable,
       c.relname = ANY (:ours) AND c.relkind = 'v' AS is_ours,
       pg_describe_object('pg_class'::regclass, c.oid, 0) AS described, max(readers.depth) AS depth
FROM readers JOIN pg_class c ON c.oid = readers.oid
GROUP BY c.oid, c.relkind
UNION ALL
-- A function, say, that takes a row of a view.
SELECT NULL, false, false, pg_describe_object(d.classid, d.objid, d.objsubid), 0
FROM (SELECT DISTINCT oid FROM readers) r JOIN pg_class c ON c.oid = r.oid AND c.relkind = 'v'
JOIN pg_type t ON t.oid = c.reltype
JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.oid, t.typarray) AND d.deptype = 'n'
ORDER BY depth DESC, name DESC
"""
