"""The views of labels and groups: which labels hold when, and what each group adds up to.

Sums by engine and label are stored per window (`aggregation.group_sums`). The view takes what is stored where nothing
changed since, and else adds up what the aggregates and labels hold: it is right whether or not anything is stored.
"""

from __future__ import annotations

from capacity_assets.storage.group_views_on_nodes import ON_NODES, RECORDED_ANYWHERE
from capacity_assets.storage.label_expressions import LIKE, SPANS, holds_on, matches, precedence
from capacity_assets.storage.snapshots import is_foreign, is_seen
from capacity_assets.storage.view import View, ViewColumn
from capacity_assets.storage.window_expressions import CHANGE, NOW, SERVER_SIZES, THEN, before, counted

# Of a window `w`, whose ends and the start of the one before are given: compared with expressions over other rows,
# PostgreSQL would read every window of a partition for each.
_IN_WINDOW = "{0}.period_type = w.period_type AND {0}.period_start = w.period_start"
_IN_WINDOW_BEFORE = "{0}.period_type = w.period_type AND {0}.period_start = w.before_start"
# Databases with labels of their own, each with its share of its server's measured days, as in the growth report. Labels
# are looked up before anything else is joined: most databases have none.
_LABELLED = f"""
    SELECT a.instance_id, a.key, a.value, {NOW} AS size_mb,
           {CHANGE} AS change_mb, {counted("w.period_type, w.period_start")} AS databases
    FROM (
        SELECT DISTINCT ON (d.instance_id, d.database_name, r.key)
               d.instance_id, d.database_name, d.avg_size_mb, d.data_count, d.size_change_mb, r.key, r.value
        FROM database_size_aggregations d
        JOIN {SPANS} r ON r.instance_id = d.instance_id AND {holds_on("r", "w.period_end")}
            AND {matches("r", "d.database_name")}
        WHERE {_IN_WINDOW.format("d")}
        ORDER BY d.instance_id, d.database_name, r.key, {precedence("r", "d.database_name")}
    ) AS a
    JOIN {SERVER_SIZES} s ON {_IN_WINDOW.format("s")} AND s.instance_id = a.instance_id
    LEFT JOIN {SERVER_SIZES} sb ON {_IN_WINDOW_BEFORE.format("sb")} AND sb.instance_id = a.instance_id
    LEFT JOIN database_size_aggregations b ON {_IN_WINDOW_BEFORE.format("b")} AND b.instance_id = a.instance_id
        AND b.database_name = a.database_name
    UNION ALL
    SELECT b.instance_id, b.key, b.value, 0, CASE WHEN b.total_size_change_mb IS NOT NULL THEN -{THEN} END, 0
    FROM (
        SELECT DISTINCT ON (d.instance_id, d.database_name, r.key)
               d.instance_id, s.total_size_change_mb, d.database_name, d.avg_size_mb, d.data_count, r.key, r.value
        FROM database_size_aggregations d
        JOIN {SPANS} r ON r.instance_id = d.instance_id AND {holds_on("r", "w.period_end")}
            AND {matches("r", "d.database_name")}
        JOIN {SERVER_SIZES} s ON {_IN_WINDOW.format("s")} AND s.instance_id = d.instance_id
        WHERE {_IN_WINDOW_BEFORE.format("d")} AND NOT EXISTS (
            SELECT FROM database_size_aggregations a
            WHERE {_IN_WINDOW.format("a")} AND a.instance_id = d.instance_id AND a.database_name = d.database_name)
        ORDER BY d.instance_id, d.database_name, r.key, {precedence("r", "d.database_name")}
    ) AS b
    JOIN {SERVER_SIZES} sb ON {_IN_WINDOW_BEFORE.format("sb")} AND sb.instance_id = b.instance_id"""  # noqa: S608
_OF_SERVER = f"""(SELECT l.value FROM {SPANS} l
             WHERE l.instance_id = {{0}}.instance_id AND l.key = {{1}}.key AND l.database_pattern = ''
               AND {holds_on("l", "w.period_end")})"""  # noqa: S608 -- expressions of our own views
# A database with a label of its own leaves the group of its server and enters its own: sums stay what they are.
_PARTS = f"""
    SELECT g.grouped_by, g.group_name, a.instance_id, a.total_size_mb AS size_mb, a.total_size_change_mb AS change_mb,
           a.database_count AS databases
    FROM {SERVER_SIZES} a LEFT JOIN instances i ON i.id = a.instance_id
    CROSS JOIN LATERAL (
        SELECT 'engine' AS grouped_by, coalesce(i.db_type, 'unknown') AS group_name
        UNION ALL SELECT k.key, {_OF_SERVER.format("a", "k")} FROM (SELECT DISTINCT key FROM capacity_labels) AS k
    ) AS g
    WHERE {_IN_WINDOW.format("a")} AND i.counted_by IS NULL
    UNION ALL
    SELECT m.key, side.group_name, m.instance_id, side.sign * m.size_mb, side.sign * m.change_mb,
           side.sign * m.databases
    FROM (SELECT o.*, {_OF_SERVER.format("o", "o")} AS server_value FROM ({_LABELLED}) AS o) AS m
    LEFT JOIN instances i ON i.id = m.instance_id
    CROSS JOIN LATERAL (VALUES (m.server_value, -1), (m.value, 1)) AS side (group_name, sign)
    WHERE i.counted_by IS NULL AND m.value IS DISTINCT FROM m.server_value"""  # noqa: S608 -- as above
ROWS_OF_WINDOW = """
    (SELECT period_start, period_end FROM instance_size_aggregations
     WHERE period_type = {0}.period_type AND period_start = {0}.period_start LIMIT 1)
    UNION ALL
    (SELECT period_start, period_end FROM database_size_aggregations
     WHERE period_type = {0}.period_type AND period_start = {0}.period_start LIMIT 1)"""
"""At most two rows of a window, one of servers and one of databases; none if the window has none."""
WINDOW_ENDS = f"""
    SELECT n.period_end, {before("n")} AS before_start FROM ({ROWS_OF_WINDOW.format("k")}) AS n LIMIT 1"""  # noqa: S608 -- as above
"""The last day of a window `k`, and the first one of the window before; no row where it has none."""
GROUPS_OF_WINDOW = f"""
    SELECT CAST(p.grouped_by AS text) AS grouped_by, CAST(nullif(p.group_name, '') AS text) AS group_name,
           count(DISTINCT p.instance_id) AS servers, CAST(sum(p.databases) AS bigint) AS databases,
           CAST(sum(p.size_mb) AS numeric) AS size_mb, CAST(sum(p.change_mb) AS numeric) AS change_mb
    FROM ({_PARTS}) AS p GROUP BY 1, 2"""  # noqa: S608 -- as above
"""Groups by engine and label of a window `w` with its ends, added up from the aggregates and labels."""
_SERVERS = f"""
    SELECT a.period_type, a.period_start, a.period_end, CAST('server' AS text) AS grouped_by,
           CAST(coalesce(i.name, 'server ' || a.instance_id) AS text) AS group_name, count(*) AS servers,
           CAST(sum(a.database_count) AS bigint) AS databases, sum(a.total_size_mb) AS size_mb,
           sum(a.total_size_change_mb) AS change_mb
    FROM {SERVER_SIZES} a LEFT JOIN instances i ON i.id = a.instance_id
    WHERE i.counted_by IS NULL
    GROUP BY 1, 2, 3, 4, 5"""  # noqa: S608 -- as above


LABEL_KEYS = "(SELECT coalesce(string_agg(DISTINCT key, ' ' ORDER BY key), '') FROM capacity_labels)"
"""All keys of labels as one text."""


def touches(window: str) -> tuple[str, str, str]:
    """Return the conditions that a change `c` is one of a window, of the one before it, or of labels and servers.

    Each on its own: joined by OR, PostgreSQL would compare every change with every window.
    """
    return (
        f"c.period_type = {window}.period_type AND c.period_start = {window}.period_start",
        f"c.period_type = {window}.period_type AND c.period_start = {window}.before_start",
        f"c.period_type = '' AND c.period_start <= {window}.period_end",
    )


def _holds_every_change(window: str, changes: str = "capacity_group_changes") -> str:
    unseen = (
        f"NOT EXISTS (SELECT FROM {changes} c WHERE {touch} AND NOT {is_seen('c', window)})"
        for touch in touches(window)
    )
    return "\n        AND ".join((f"NOT {is_foreign(window)}", f"{window}.label_keys = {LABEL_KEYS}", *unseen))


def is_current(window: str) -> str:
    """Return the condition that what is stored of a window holds every change that touches it.

    As in the ledger of computed windows, by PostgreSQL's own account of which transactions the sums could see. A window
    without rows is not current: a partition that is dropped takes no trigger along.
    """
    return f"""{_holds_every_change(window)}
        AND EXISTS ({ROWS_OF_WINDOW.format(window)})"""


def _outdated(changes: str, current: str) -> str:
    return f"""
    SELECT DISTINCT k.period_type, k.period_start
    FROM (SELECT period_type, period_start FROM {changes} WHERE period_type <> ''
          UNION ALL SELECT period_type, period_start FROM capacity_group_windows) AS k
    WHERE NOT EXISTS (SELECT FROM capacity_group_windows v
                      WHERE v.period_type = k.period_type AND v.period_start = k.period_start AND {current})"""  # noqa: S608 -- as above


OUTDATED_WINDOWS = _outdated("capacity_group_changes", is_current("v"))
"""Windows whose groups are not stored, or as they were before something changed."""
_STORED_WHERE = """
    SELECT v.period_type, v.period_start, v.period_end, CAST(s.grouped_by AS text) AS grouped_by,
           CAST(nullif(s.group_name, '') AS text) AS group_name, s.servers, s.databases, s.size_mb, s.change_mb
    FROM capacity_group_windows v
    JOIN capacity_group_sums s ON s.period_type = v.period_type AND s.period_start = v.period_start
    WHERE {}"""
_STORED = _STORED_WHERE.format(is_current("v"))
# On nodes rows are not looked for: retention records what it drops. Windows that are out of date by what was not
# gathered yet are named by one view only: asked twice, nodes may answer differently, and a window would be in neither.
OUTDATED_ON_NODES = _outdated("capacity_group_changes", _holds_every_change("v"))
"""The same of what was gathered of the nodes."""
_STORED_ON_NODES = _STORED_WHERE.format(_holds_every_change("v"))
_OUTDATED_ANYWHERE = f"""WITH recorded AS MATERIALIZED ({RECORDED_ANYWHERE})
    {_outdated("recorded", _holds_every_change("v", "recorded"))}"""
# Each part has the same types: else PostgreSQL hands no condition on to any of them.
_GROUPS = f"""{_SERVERS}
    UNION ALL {_STORED}
    UNION ALL
    SELECT w.period_type, w.period_start, w.period_end, g.grouped_by, g.group_name, g.servers, g.databases, g.size_mb,
           g.change_mb
    FROM (SELECT k.*, e.* FROM ({OUTDATED_WINDOWS}) AS k CROSS JOIN LATERAL ({WINDOW_ENDS}) AS e) AS w
    CROSS JOIN LATERAL ({GROUPS_OF_WINDOW}) AS g"""  # noqa: S608 -- as above

_GROUP_COLUMNS = (
    ViewColumn("period", "g.period_type", "Name of the period, such as daily or monthly"),
    ViewColumn("window_start", "g.period_start", "First day of the window"),
    ViewColumn("window_end", "g.period_end", "Last day of the window, included: its labels are taken"),
    ViewColumn("grouped_by", "g.grouped_by", "engine, server, or the key of a label: take one of them"),
    ViewColumn("group_name", "g.group_name", "Engine, server or value of the label; null: no such label"),
    ViewColumn("servers", "g.servers", "Servers with a part in it; one may be in several"),
    ViewColumn("databases", "g.databases", "Mean number of databases"),
    ViewColumn("size_mb", "g.size_mb", "Mean size, MiB"),
    ViewColumn(
        "change_mb",
        "g.change_mb",
        "Change against the window before of what belongs to it now, of what is known, MiB; null: nothing is",
    ),
)

GROUP_VIEWS = (
    View(
        SPANS,
        "Labels of servers and databases, each with the days on which it holds.",
        (
            ViewColumn("instance_id", "l.instance_id", "Number of the server"),
            ViewColumn("database_pattern", "l.database_pattern", "Database or pattern; empty: the server as a whole"),
            ViewColumn("database_like", LIKE, "The pattern as LIKE reads it"),
            ViewColumn("key", "l.key", "Key of the label, such as team"),
            ViewColumn("value", "l.value", "Its value; null: none on these days"),
            ViewColumn("valid_from", "l.valid_from", "First day on which it holds; 0001-01-01: always"),
            ViewColumn(
                "valid_until",
                "lead(l.valid_from, 1, CAST('infinity' AS date)) "
                "OVER (PARTITION BY l.instance_id, l.database_pattern, l.key ORDER BY l.valid_from)",
                "First day on which it does not hold any more; infinity: it holds",
            ),
            ViewColumn("declared_at", "l.declared_at", "When it was declared"),
        ),
        "FROM capacity_labels l",
    ),
    View(
        "capacity_groups",
        "Size of the fleet in each window by engine, by server and by each label. Each of these adds up to the fleet.",
        _GROUP_COLUMNS,
        f"FROM ({_GROUPS}) AS g",
        source_on_nodes=f"FROM ({ON_NODES}) AS g",
    ),
    # What pages read: of the view above, PostgreSQL plans for some thirty milliseconds how it would add up.
    View(
        "capacity_stored_groups",
        "Those of capacity_groups by engine and label that are stored, but for windows in capacity_outdated_groups.",
        _GROUP_COLUMNS,
        f"FROM ({_STORED}) AS g",
        source_on_nodes=f"FROM ({_STORED_ON_NODES}) AS g",
    ),
    View(
        "capacity_outdated_groups",
        "Windows whose groups are not stored, or as they were before something changed.",
        _GROUP_COLUMNS[:2],
        f"FROM ({OUTDATED_WINDOWS}) AS g",
        source_on_nodes=f"FROM ({_OUTDATED_ANYWHERE}) AS g",
    ),
)
