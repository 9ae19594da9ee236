"""The views of labels and groups: which labels hold when, and what each group has.

Rows of groups are those of the table `group_size_aggregations`. What is shown is rounded so that it adds up: a group
has its share of the fleet's mean, in whole MiB, and those with the largest remainders get one more.
"""

from __future__ import annotations

from capacity_assets.storage.group_days import FLEET, TOTAL
from capacity_assets.storage.label_expressions import LIKE
from capacity_assets.storage.view import views_in
from capacity_assets.storage.window_expressions import SERVER_SIZES, before


def _share(stem: str) -> str:
    """Return the share of a row `s` in the mean of the fleet `f`, over all its days: of one key, they add up to it."""
    total = f"coalesce(s.sum_{stem}, s.{_MEANS[stem]})"
    rest = f"mod(mod({total}, f.data_count) + f.data_count, f.data_count)"
    down = f"div({total} - {rest}, f.data_count)"
    whole = f"div(coalesce(f.sum_{stem}, f.{_MEANS[stem]}), f.data_count)"
    place = f"row_number() OVER (PARTITION BY s.label_key ORDER BY {rest} DESC, s.label_value)"
    return f"""{down} + CASE
                   WHEN {place} <= {whole} - sum({down}) OVER (PARTITION BY s.label_key) THEN 1 ELSE 0 END"""


_MEANS = {"size_mb": "avg_size_mb", "database_count": "database_count"}


def _shares(fleet: str) -> str:
    """Return the shares of the groups of the window of a row of the fleet."""
    return f"""
            SELECT s.label_key, s.label_value, s.max_server_count AS servers, {_share("database_count")} AS databases,
                   {_share("size_mb")} AS size_mb
            FROM group_size_aggregations s CROSS JOIN (SELECT {fleet}.data_count, {fleet}.sum_size_mb,
                {fleet}.avg_size_mb, {fleet}.sum_database_count, {fleet}.database_count) AS f
            WHERE s.period_type = {fleet}.period_type AND s.period_start = {fleet}.period_start
              AND s.label_key <> ALL (ARRAY['{FLEET}', '{TOTAL}'])"""  # noqa: S608 -- names of our own


# What is gone since the window before has a row, with nothing in it: changes of groups add up as well.
_LABELLED = f"""
    SELECT w.period_type, w.period_start, w.period_end, CAST(g.label_key AS text) AS grouped_by,
           CAST(nullif(g.label_value, '') AS text) AS group_name, CAST(g.servers AS bigint) AS servers,
           CAST(g.databases AS bigint) AS databases, CAST(g.size_mb AS numeric) AS size_mb,
           CAST(CASE WHEN b.period_start IS NOT NULL THEN g.size_mb - g.before_mb END AS numeric) AS change_mb
    FROM group_size_aggregations w
    LEFT JOIN group_size_aggregations b ON b.period_type = w.period_type AND b.period_start = {before("w")}
        AND b.label_key = '{FLEET}' AND b.label_value = '{FLEET}'
    CROSS JOIN LATERAL (
        SELECT label_key, label_value, sum(servers) AS servers, sum(databases) AS databases, sum(size_mb) AS size_mb,
               sum(before_mb) AS before_mb
        FROM (
            SELECT n.*, 0 AS before_mb FROM ({_shares("w")}) AS n
            UNION ALL
            SELECT o.label_key, o.label_value, 0, 0, 0, o.size_mb FROM ({_shares("b")}) AS o
        ) AS both_windows GROUP BY label_key, label_value
    ) AS g
    WHERE w.label_key = '{FLEET}' AND w.label_value = '{FLEET}'"""  # noqa: S608 -- as above
_SERVERS = f"""
    SELECT a.period_type, a.period_start, a.period_end, CAST('server' AS text) AS grouped_by,
           CAST(coalesce(i.name, 'server ' || a.instance_id) AS text) AS group_name, CAST(1 AS bigint) AS servers,
           CAST(a.database_count AS bigint) AS databases, CAST(a.total_size_mb AS numeric) AS size_mb,
           CAST(a.total_size_change_mb AS numeric) AS change_mb
    FROM {SERVER_SIZES} a LEFT JOIN instances i ON i.id = a.instance_id
    WHERE i.counted_by IS NULL"""  # noqa: S608 -- as above

GROUP_VIEWS = views_in(rf"""
-- Labels of servers and databases, each with the days on which it holds.
CREATE VIEW capacity_label_spans AS
SELECT l.instance_id,  -- Number of the server
       l.database_pattern,  -- Database or pattern; empty: the server as a whole
       {LIKE} AS database_like,  -- The pattern as LIKE reads it
       l.key,  -- Key of the label, such as team
       l.value,  -- Its value; null: none on these days
       l.valid_from,  -- First day on which it holds; 0001-01-01: always
       lead(l.valid_from, 1, CAST('infinity' AS date))
           OVER (PARTITION BY l.instance_id, l.database_pattern, l.key ORDER BY l.valid_from) AS valid_until,
          -- First day on which it does not hold any more; infinity: it holds
       l.declared_at  -- When it was declared
FROM capacity_labels l;

-- Size of the fleet in each window by engine, by server and by each label.
CREATE VIEW capacity_groups AS
SELECT g.period_type AS period,  -- Name of the period, such as daily or monthly
       g.period_start AS window_start,  -- First day of the window
       g.period_end AS window_end,  -- Last day of the window, included
       g.grouped_by,  -- engine, server, or the key of a label: take one of them
       g.group_name,  -- Engine, server or value of the label; null: no such label
       g.servers,  -- Largest number of servers with a part in it on a day
       g.databases,  -- Mean number of databases per measured day of the fleet
       g.size_mb,  -- Mean size per measured day of the fleet, MiB
       g.change_mb  -- Change of that against the window before, MiB; null: that was not measured
FROM ({_LABELLED}
    UNION ALL {_SERVERS}) AS g;
""")  # noqa: S608 -- as above
