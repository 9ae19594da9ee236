"""Creating, comparing and replacing the views of `views`, with owners and grants, and what others built on them.

PostgreSQL refuses to widen a column that a view reads, and to drop a view that another one reads. Such views of others
are taken away and put back as they were, with owner, grants, options, comments, triggers and rules, in the transaction
of the upgrade. What cannot be put back from its definition alone (a materialised view, a rule on a table) is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from capacity_assets.storage.distribution import tables_are_distributed
from capacity_assets.storage.steps import literal, quoted
from capacity_assets.storage.view import View
from capacity_assets.storage.views import VIEWS

_NAMES = [view.name for view in VIEWS]


@dataclass(frozen=True)
class TakenViews:
    """Views that were dropped: the statements that make ours, those that put others back, and the names of these."""

    ours: tuple[str, ...] = ()
    theirs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class InTheWay:
    """What reads columns or views that are to be changed: views that can be put back, nearest last, and what cannot."""

    views: tuple[str, ...] = ()
    immovable: tuple[str, ...] = ()


def names_taken(connection: Connection) -> list[str]:
    """List objects that have the name of one of our views."""
    return list(connection.execute(text(_NOT_OURS), {"views": _NAMES}).scalars())


def outdated_views(connection: Connection) -> list[View]:
    """Return the views that are missing or of another definition."""
    comment = text("SELECT obj_description(to_regclass(:name), 'pg_class')")
    views = _views(connection)
    return [view for view in views if connection.execute(comment, {"name": view.name}).scalar() != view.marked_comment]


def _views(connection: Connection) -> tuple[View, ...]:
    return tuple(view.on_nodes for view in VIEWS) if tables_are_distributed(connection) else VIEWS


def creation(view: View) -> list[str]:
    """Return the statements that create a view or renew it in place, so that grants and what is built on it stay."""
    named = quoted(view.name)
    return [
        f"CREATE OR REPLACE VIEW {named} AS {view.query}",
        f"COMMENT ON VIEW {named} IS {literal(view.marked_comment)}",
        *(f"COMMENT ON COLUMN {named}.{quoted(column.name)} IS {literal(column.comment)}" for column in view.columns),
    ]


def in_the_way(connection: Connection, columns: Sequence[tuple[str, str]], *, ours: bool = False) -> InTheWay:
    """Find what reads one of the columns, given as (table, column), or one of our views, directly or through a view."""
    parameters = {
        "tables": [table for table, _ in columns],
        "columns": [column for _, column in columns],
        "again": _NAMES if ours else [],
        "ours": _NAMES,
    }
    rows = connection.execute(text(_READERS), parameters).all()
    return InTheWay(
        views=tuple(row.name for row in rows if row.movable),
        immovable=tuple(row.described for row in rows if not row.movable),
    )


def take_away(connection: Connection, views: Sequence[str], *, ours: bool) -> TakenViews:
    """Drop views of others, given in an order in which they can be dropped, and our own if wanted."""
    theirs: list[str] = []
    for view in views:
        found = connection.execute(text(_DEFINITION), {"view": view}).one()
        theirs = [found.creation, *found.others, *_owner_and_grants(connection, view), *theirs]
        connection.exec_driver_sql(f"DROP VIEW {view}".replace("%", "%%"))
    made, there = [], []
    for view_of_ours in _views(connection) if ours else ():
        # Also those that are not there: a newer view may read them.
        made += creation(view_of_ours)
        if connection.execute(text("SELECT to_regclass(:name) IS NOT NULL"), {"name": view_of_ours.name}).scalar():
            there.append(quoted(view_of_ours.name))
            made += _owner_and_grants(connection, view_of_ours.name)
    if there:
        connection.exec_driver_sql(f"DROP VIEW {', '.join(there)}")
    return TakenViews(tuple(made) if there else (), tuple(theirs), tuple(views))


def _owner_and_grants(connection: Connection, view: str) -> list[str]:
    """Return the statements that give a view its grants, options and owner; the name is as SQL writes it."""
    return list(connection.execute(text(_OWNER_AND_GRANTS), {"view": view}).scalars())


_OWNER_AND_GRANTS = """
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
       pg_describe_object('pg_class'::regclass, c.oid, 0) AS described, max(readers.depth) AS depth
FROM readers JOIN pg_class c ON c.oid = readers.oid
WHERE NOT (c.relname = ANY (:ours) AND c.relkind = 'v')
GROUP BY c.oid, c.relkind
UNION ALL
-- A function, say, that takes a row of a view.
SELECT NULL, false, pg_describe_object(d.classid, d.objid, d.objsubid), 0
FROM (SELECT DISTINCT oid FROM readers) r JOIN pg_class c ON c.oid = r.oid AND c.relkind = 'v'
JOIN pg_type t ON t.oid = c.reltype
JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.oid, t.typarray) AND d.deptype = 'n'
ORDER BY depth DESC, name DESC
"""

_DEFINITION = """
SELECT format('CREATE VIEW %s AS %s', c.oid::regclass, pg_get_viewdef(c.oid)) AS creation,
       ARRAY(SELECT format('COMMENT ON VIEW %s IS %L', c.oid::regclass, d.description)
             FROM pg_description d WHERE d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0)
       || ARRAY(SELECT format('COMMENT ON COLUMN %s.%I IS %L', c.oid::regclass, a.attname, d.description)
                FROM pg_description d JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid
                WHERE d.objoid = c.oid AND d.classoid = 'pg_class'::regclass)
       || ARRAY(SELECT format('ALTER VIEW %s ALTER COLUMN %I SET DEFAULT %s', c.oid::regclass, a.attname,
                              pg_get_expr(e.adbin, e.adrelid))
                FROM pg_attrdef e JOIN pg_attribute a ON a.attrelid = e.adrelid AND a.attnum = e.adnum
                WHERE e.adrelid = c.oid)
       || ARRAY(SELECT pg_get_ruledef(r.oid) FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN')
       || ARRAY(SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
       AS others
FROM pg_class c WHERE c.oid = to_regclass(:view)
"""
