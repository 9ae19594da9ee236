"""Views of others that read a column which has to be widened: PostgreSQL refuses that while they are there.

They are taken away and put back as they were, with owner, grants, options, comments, triggers and rules, in the
transaction of the upgrade. What cannot be put back from its definition alone (a materialised view, a rule on a table)
is named instead. The views of our own are the business of `views`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from capacity_assets.storage.view_upgrades import owner_and_grants
from capacity_assets.storage.views import VIEWS


@dataclass(frozen=True)
class InTheWay:
    """What reads columns that are to be widened: views that can be put back, nearest last, and what cannot."""

    views: tuple[str, ...] = ()
    immovable: tuple[str, ...] = ()


def in_the_way(connection: Connection, columns: Sequence[tuple[str, str]]) -> InTheWay:
    """Find what reads one of the columns, given as (table, column), directly or through a view."""
    parameters = {
        "tables": [table for table, _ in columns],
        "columns": [column for _, column in columns],
        "ours": [view.name for view in VIEWS],
    }
    rows = connection.execute(text(_READERS), parameters).all()
    return InTheWay(
        views=tuple(row.name for row in rows if row.movable),
        immovable=tuple(row.described for row in rows if not row.movable),
    )


def take_foreign_views_away(connection: Connection, views: Iterable[str]) -> list[str]:
    """Drop the views, in the caller's transaction; return the statements that put them back.

    `views` are in an order in which they can be dropped.
    """
    back: list[str] = []
    for view in views:
        found = connection.execute(text(_DEFINITION), {"view": view}).one()
        back = [found.creation, *found.others, *owner_and_grants(connection, view), *back]
        connection.exec_driver_sql(f"DROP VIEW {view}".replace("%", "%%"))
    return back


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
