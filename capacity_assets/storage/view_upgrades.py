"""Creating, comparing and replacing the views of `views`, with their owners and grants."""

from __future__ import annotations

from sqlalchemy import Connection, text

from capacity_assets.storage.distribution import tables_are_distributed
from capacity_assets.storage.steps import literal, quoted
from capacity_assets.storage.view import View
from capacity_assets.storage.views import VIEWS


def names_taken(connection: Connection) -> list[str]:
    """List objects that have the name of one of our views."""
    names = {"views": [view.name for view in VIEWS]}
    return list(connection.execute(text(_NOT_OURS), names).scalars())


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


def take_views_away(connection: Connection) -> list[str]:
    """Drop the views; return what puts them and their grants back. Raises DBAPIError where others need them."""
    back: list[str] = []
    there = []
    present = text("SELECT to_regclass(:name) IS NOT NULL")
    foreign = names_taken(connection)
    for view in _views(connection):
        if view.name in foreign:
            continue
        # Also those that are not there: a newer view may read them.
        back += creation(view)
        if connection.execute(present, {"name": view.name}).scalar():
            there.append(view)
            back += owner_and_grants(connection, view.name)
    if not there:
        return []
    connection.exec_driver_sql(f"DROP VIEW {', '.join(quoted(view.name) for view in there)}")
    return back


def owner_and_grants(connection: Connection, view: str) -> list[str]:
    """Return the statements that give a view its grants, options and owner; the name is as SQL writes it."""
    return list(connection.execute(text(_OWNER_AND_GRANTS), {"view": view}).scalars())


def built_on_views(connection: Connection) -> list[str]:
    """List objects of others that depend on the views and would have to be dropped with them."""
    names = {"views": [view.name for view in VIEWS]}
    return list(connection.execute(text(_BUILT_ON_VIEWS), names).scalars())


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


_BUILT_ON_VIEWS = """
SELECT DISTINCT pg_describe_object('pg_class'::regclass, w.ev_class, 0)
FROM pg_depend d JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid
JOIN pg_class v ON v.oid = w.ev_class
WHERE d.refclassid = 'pg_class'::regclass
  AND d.refobjid IN (SELECT to_regclass(name) FROM unnest(CAST(:views AS text[])) AS name)
  AND v.relname <> ALL (:views)
ORDER BY 1
"""
