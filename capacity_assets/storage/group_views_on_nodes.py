"""Groups where rows are distributed over nodes: what `group_views` adds up, as joins by server that run on the nodes.

A look that depends on the row that asks, as there, is not handed to a node, and neither is a condition on the result of
a union. So windows that are asked for are chosen in each part. The view without such a choice adds up all of history:
our own readers take what is stored, and add up what is missing there.
"""

from __future__ import annotations

from capacity_assets.storage.label_expressions import SPANS, holds_on, matches, precedence
from capacity_assets.storage.window_expressions import CHANGE, NOW, THEN, before, counted

_EVERY_ROW = "{}"
_CHOSEN = "(SELECT * FROM {{}} WHERE period_type = :period_type AND period_start = ANY (CAST(:{} AS date[])))"

_WINDOW = "{0}.period_type, {0}.period_start, {0}.period_end"
_SAME = "{0}.instance_id = {1}.instance_id AND {0}.period_type = {1}.period_type"
_NAMED = "{0}.database_name = {1}.database_name"
_DATABASES, _SERVERS = "database_size_aggregations", "instance_size_aggregations"


def _with_label(row: str, day: str, window: str) -> str:
    """Databases with a label of their own, the one that holds first; `window` names further columns."""
    keys = f"d.instance_id, d.database_name, {window}, r.key"
    return f"""
        SELECT DISTINCT ON ({keys}) {keys}, d.period_type, d.avg_size_mb, d.data_count, d.size_change_mb, r.value
        FROM {row} JOIN {SPANS} r ON r.instance_id = d.instance_id AND {holds_on("r", day)}
            AND {matches("r", "d.database_name")}
        ORDER BY {keys}, {precedence("r", "d.database_name")}"""  # noqa: S608 -- expressions of our own views


def _labelled(chosen: str, chosen_before: str) -> str:
    servers = chosen.format(_SERVERS)
    servers_before, databases_before = (chosen_before.format(table) for table in (_SERVERS, _DATABASES))
    own = _with_label(f"{chosen.format(_DATABASES)} d", "d.period_end", "d.period_start, d.period_end")
    of_before = _with_label(
        f"""(SELECT o.*, s.period_start AS now_start, s.period_end AS now_end
              FROM {databases_before} o JOIN {servers} s ON {_SAME.format("s", "o")}
                AND o.period_start = {before("s")}) AS d""",  # noqa: S608 -- as above
        "d.now_end",
        "d.now_start, d.now_end",
    )
    return f"""
    SELECT {_WINDOW.format("a")}, a.instance_id, a.key, a.value, {NOW} AS size_mb,
           {CHANGE} AS change_mb, {counted("a.period_type, a.period_start")} AS databases
    FROM ({own}) AS a
    JOIN {servers} s ON {_SAME.format("s", "a")} AND s.period_start = a.period_start
    LEFT JOIN {servers_before} sb ON {_SAME.format("sb", "a")} AND sb.period_start = {before("a")}
    LEFT JOIN {databases_before} b ON {_SAME.format("b", "a")} AND {_NAMED.format("b", "a")}
        AND b.period_start = {before("a")}
    UNION ALL
    SELECT b.period_type, b.now_start, b.now_end, b.instance_id, b.key, b.value, 0,
           CASE WHEN s.total_size_change_mb IS NOT NULL THEN -{THEN} END, 0
    FROM ({of_before}) AS b
    JOIN {servers} s ON {_SAME.format("s", "b")} AND s.period_start = b.now_start
    JOIN {servers_before} sb ON {_SAME.format("sb", "b")} AND sb.period_start = {before("s")}
    LEFT JOIN {chosen.format(_DATABASES)} a ON {_SAME.format("a", "b")} AND {_NAMED.format("a", "b")}
        AND a.period_start = b.now_start
    WHERE a.instance_id IS NULL"""  # noqa: S608 -- as above


_LABEL_OF_SERVER = (
    f"LEFT JOIN {SPANS} l ON l.instance_id = {{0}}.instance_id AND l.key = {{1}}.key AND l.database_pattern = '' "
    f"AND {holds_on('l', '{0}.period_end')}"
)
_REGISTER = "LEFT JOIN instances i ON i.id = {0}.instance_id"
_SERVER_PART = f"""{_WINDOW.format("a")}, a.instance_id, a.total_size_mb AS size_mb,
           a.total_size_change_mb AS change_mb, a.database_count AS databases"""
_BY_SERVER = f"""
    UNION ALL
    SELECT CAST('server' AS text), CAST(coalesce(i.name, 'server ' || a.instance_id) AS text), {_SERVER_PART}
    FROM {_SERVERS} a {_REGISTER.format("a")} WHERE i.counted_by IS NULL"""  # noqa: S608 -- as above


def _by_engine(chosen: str) -> str:
    return f"""
    SELECT CAST('engine' AS text) AS grouped_by, CAST(coalesce(i.db_type, 'unknown') AS text) AS group_name,
           {_SERVER_PART}
    FROM {chosen.format(_SERVERS)} a {_REGISTER.format("a")} WHERE i.counted_by IS NULL"""  # noqa: S608 -- as above


def _by_label(chosen: str, chosen_before: str) -> str:
    labelled = _labelled(chosen, chosen_before)
    return f"""
    UNION ALL
    SELECT CAST(k.key AS text), CAST(l.value AS text), {_SERVER_PART}
    FROM {chosen.format(_SERVERS)} a {_REGISTER.format("a")}
    CROSS JOIN (SELECT DISTINCT key FROM capacity_labels) AS k
    {_LABEL_OF_SERVER.format("a", "k")}
    WHERE i.counted_by IS NULL
    UNION ALL
    SELECT CAST(m.key AS text), CAST(CASE side.sign WHEN 1 THEN m.value ELSE m.server_value END AS text),
           {_WINDOW.format("m")}, m.instance_id, side.sign * m.size_mb, side.sign * m.change_mb,
           side.sign * m.databases
    FROM (SELECT o.*, l.value AS server_value FROM ({labelled}) AS o {_LABEL_OF_SERVER.format("o", "o")}) AS m
    {_REGISTER.format("m")}
    CROSS JOIN (VALUES (-1), (1)) AS side (sign)
    WHERE i.counted_by IS NULL AND m.value IS DISTINCT FROM m.server_value"""  # noqa: S608 -- as above


def _sums(*parts: str) -> str:
    return f"""
    SELECT {_WINDOW.format("p")}, p.grouped_by, CAST(nullif(p.group_name, '') AS text) AS group_name,
           count(DISTINCT p.instance_id) AS servers, CAST(sum(p.databases) AS bigint) AS databases,
           CAST(sum(p.size_mb) AS numeric) AS size_mb, CAST(sum(p.change_mb) AS numeric) AS change_mb
    FROM ({"".join(parts)}) AS p GROUP BY 1, 2, 3, 4, 5"""  # noqa: S608 -- as above


ON_NODES = _sums(_by_engine(_EVERY_ROW), _BY_SERVER, _by_label(_EVERY_ROW, _EVERY_ROW))
"""Groups of every window by engine, server and label."""
_NOW = _CHOSEN.format("starts")
OF_WINDOWS_ON_NODES = _sums(_by_engine(_NOW), _by_label(_NOW, _CHOSEN.format("befores")))
"""Groups of some windows of one period by engine and label, given the first days of these and of those before them."""
ENGINES_OF_WINDOWS_ON_NODES = _sums(_by_engine(_NOW))
"""Those by engine alone."""
NODES = "(SELECT coalesce(string_agg(DISTINCT CAST(groupid AS text), ','), '') FROM pg_dist_node)"
"""The numbers of the nodes there are, as `node_records.prepare_nodes` keeps them."""
LOST_NODES = f"""
    SELECT known.node FROM capacity_settings s CROSS JOIN unnest(string_to_array(s.value, ',')) AS known (node)
    WHERE s.name = 'nodes' AND known.node <> ALL (string_to_array({NODES}, ','))"""  # noqa: S608 -- as above
"""Those that were removed since."""
# A node that does not say what it recorded counts as one where everything changed, and so does one that was removed:
# nobody knows what it had recorded.
_CHANGED_ON_NODES = f"""
    SELECT c.period_type, c.period_start
    FROM run_command_on_workers(format(
        'SELECT coalesce(json_agg(n), ''[]'') FROM (SELECT period_type, period_start FROM %s.capacity_group_changes) n',
        (SELECT CAST(relnamespace AS regnamespace) FROM pg_class WHERE oid = CAST('capacity_group_changes' AS regclass))
    )) AS r
    CROSS JOIN LATERAL json_to_recordset(CAST(CASE WHEN r.success THEN r.result
        ELSE '[{{"period_type": "", "period_start": "0001-01-01"}}]' END AS json))
        AS c (period_type varchar(20), period_start date)
    UNION ALL
    SELECT CAST('' AS varchar(20)), DATE '0001-01-01' WHERE EXISTS ({LOST_NODES})"""  # noqa: S608 -- as above
RECORDED_ANYWHERE = f"""
    SELECT period_type, period_start, CAST(CAST(transaction_id AS text) AS xid8) AS transaction_id
    FROM capacity_group_changes
    UNION ALL
    SELECT n.period_type, n.period_start, CAST('18446744073709551615' AS xid8) FROM ({_CHANGED_ON_NODES}) AS n"""  # noqa: S608 -- as above
"""Changes of groups with their transactions. What was not gathered is newer than anything that is stored."""
