"""Groups where rows are distributed over nodes: what `group_views` adds up, as joins by server that run on the nodes.

A look that depends on the row that asks, as there, is not handed to a node. Nothing is stored; every window is added up
when it is read.
"""

from __future__ import annotations

from capacity_assets.storage.label_expressions import SPANS, holds_on, matches, precedence
from capacity_assets.storage.window_expressions import CHANGE, NOW, THEN, before

_WINDOW = "{0}.period_type, {0}.period_start, {0}.period_end"
_SAME = "{0}.instance_id = {1}.instance_id AND {0}.period_type = {1}.period_type"
_NAMED = "{0}.database_name = {1}.database_name"


def _with_label(row: str, day: str, window: str) -> str:
    """Databases with a label of their own, the one that holds first; `window` names further columns."""
    keys = f"d.instance_id, d.database_name, {window}, r.key"
    return f"""
        SELECT DISTINCT ON ({keys}) {keys}, d.period_type, d.avg_size_mb, d.data_count, d.size_change_mb, r.value
        FROM {row} JOIN {SPANS} r ON r.instance_id = d.instance_id AND {holds_on("r", day)}
            AND {matches("r", "d.database_name")}
        ORDER BY {keys}, {precedence("r", "d.database_name")}"""  # noqa: S608 -- expressions of our own views


_OWN = _with_label("database_size_aggregations d", "d.period_end", "d.period_start, d.period_end")
_OF_BEFORE = _with_label(
    f"""(SELECT o.*, s.period_start AS now_start, s.period_end AS now_end
              FROM database_size_aggregations o JOIN instance_size_aggregations s ON {_SAME.format("s", "o")}
                AND o.period_start = {before("s")}) AS d""",  # noqa: S608 -- as above
    "d.now_end",
    "d.now_start, d.now_end",
)
_LABELLED = f"""
    SELECT {_WINDOW.format("a")}, a.instance_id, a.key, a.value, {NOW} AS size_mb,
           {CHANGE} AS change_mb, 1 AS databases
    FROM ({_OWN}) AS a
    JOIN instance_size_aggregations s ON {_SAME.format("s", "a")} AND s.period_start = a.period_start
    LEFT JOIN instance_size_aggregations sb ON {_SAME.format("sb", "a")} AND sb.period_start = {before("a")}
    LEFT JOIN database_size_aggregations b ON {_SAME.format("b", "a")} AND {_NAMED.format("b", "a")}
        AND b.period_start = {before("a")}
    UNION ALL
    SELECT b.period_type, b.now_start, b.now_end, b.instance_id, b.key, b.value, 0,
           CASE WHEN s.total_size_change_mb IS NOT NULL THEN -{THEN} END, 0
    FROM ({_OF_BEFORE}) AS b
    JOIN instance_size_aggregations s ON {_SAME.format("s", "b")} AND s.period_start = b.now_start
    JOIN instance_size_aggregations sb ON {_SAME.format("sb", "b")} AND sb.period_start = {before("s")}
    LEFT JOIN database_size_aggregations a ON {_SAME.format("a", "b")} AND {_NAMED.format("a", "b")}
        AND a.period_start = b.now_start
    WHERE a.instance_id IS NULL"""  # noqa: S608 -- as above
_LABEL_OF_SERVER = (
    f"LEFT JOIN {SPANS} l ON l.instance_id = {{0}}.instance_id AND l.key = {{1}}.key AND l.database_pattern = '' "
    f"AND {holds_on('l', '{0}.period_end')}"
)
_REGISTER = "LEFT JOIN instances i ON i.id = {0}.instance_id"
_SERVER_PART = f"""{_WINDOW.format("a")}, a.instance_id, a.total_size_mb AS size_mb,
           a.total_size_change_mb AS change_mb, a.database_count AS databases"""
_PARTS = f"""
    SELECT CAST('engine' AS text) AS grouped_by, CAST(coalesce(i.db_type, 'unknown') AS text) AS group_name,
           {_SERVER_PART}
    FROM instance_size_aggregations a {_REGISTER.format("a")} WHERE i.counted_by IS NULL
    UNION ALL
    SELECT CAST('server' AS text), CAST(coalesce(i.name, 'server ' || a.instance_id) AS text), {_SERVER_PART}
    FROM instance_size_aggregations a {_REGISTER.format("a")} WHERE i.counted_by IS NULL
    UNION ALL
    SELECT CAST(k.key AS text), CAST(l.value AS text), {_SERVER_PART}
    FROM instance_size_aggregations a {_REGISTER.format("a")}
    CROSS JOIN (SELECT DISTINCT key FROM capacity_labels) AS k
    {_LABEL_OF_SERVER.format("a", "k")}
    WHERE i.counted_by IS NULL
    UNION ALL
    SELECT CAST(m.key AS text), CAST(CASE side.sign WHEN 1 THEN m.value ELSE m.server_value END AS text),
           {_WINDOW.format("m")}, m.instance_id, side.sign * m.size_mb, side.sign * m.change_mb,
           side.sign * m.databases
    FROM (SELECT o.*, l.value AS server_value FROM ({_LABELLED}) AS o {_LABEL_OF_SERVER.format("o", "o")}) AS m
    {_REGISTER.format("m")}
    CROSS JOIN (VALUES (-1), (1)) AS side (sign)
    WHERE i.counted_by IS NULL AND m.value IS DISTINCT FROM m.server_value"""  # noqa: S608 -- as above
ON_NODES = f"""
    SELECT {_WINDOW.format("p")}, p.grouped_by, CAST(nullif(p.group_name, '') AS text) AS group_name,
           count(DISTINCT p.instance_id) AS servers, CAST(sum(p.databases) AS bigint) AS databases,
           CAST(sum(p.size_mb) AS numeric) AS size_mb, CAST(sum(p.change_mb) AS numeric) AS change_mb
    FROM ({_PARTS}) AS p GROUP BY 1, 2, 3, 4, 5"""  # noqa: S608 -- as above
"""Groups of every window by engine, server and label."""
