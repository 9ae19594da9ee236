"""The rule of groups, in SQL: the size of each group on a day (docs/semantics.md).

A server counts in a group with its total or, if it has none on the day, with the sum of its databases. A database with
a label of its own leaves its server's group and enters its own with its size of that day; `label_rules`
determines its label. Everything is in whole MiB, so the groups of one key add up to the fleet exactly. If no sample of
a day is left, its stored daily aggregates are used, which contain the same values.

A group of more than 8 EiB is impossible. On a day that has one, servers are added in order of size, smallest first,
until the sum would exceed 8 EiB; the remaining servers are left out of all groups. `GROUP_DAYS` takes them as
parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

from sqlalchemy import ARRAY, Connection, Date, Row, any_, literal, select

from capacity_assets.database.tables import database_size_stats, instance_size_stats
from capacity_assets.label_rules import ranks

FLEET, ENGINE, TOTAL = "(fleet)", "engine", "(total)"
"""Keys that exist without any label: everything, by engine, and by whether a server has a total on the day or is left
out. Labels cannot have these keys."""
WITHOUT = ""
"""The value of subjects without a label of a key."""
LEFT_OUT = "left out "
"""Prefix of the value of `TOTAL` for a left-out server; its ID follows. The row has size 0 and no databases."""

_EXACT, _, _LONGEST = ranks("r", "d.database_name")
_SAMPLES = """
totals AS MATERIALIZED (
    SELECT instance_id, collected_date, sum(total_size_mb) AS size_mb, sum(database_count) AS databases
    FROM instance_size_stats
    WHERE collected_date = ANY (CAST(:days AS date[])) AND NOT is_deleted
      AND total_size_mb BETWEEN -8796093022207 AND 8796093022207
    GROUP BY instance_id, collected_date
    UNION ALL
    SELECT instance_id, period_start, total_size_mb, database_count FROM instance_size_aggregations
    WHERE period_type = 'daily' AND period_start = ANY (CAST(:without_instance_size_stats AS date[]))
      AND total_size_mb BETWEEN -8796093022207 AND 8796093022207
), databases AS MATERIALIZED (
    SELECT instance_id, collected_date, database_name, size_mb FROM database_size_stats
    WHERE collected_date = ANY (CAST(:days AS date[]))
    UNION ALL
    SELECT instance_id, period_start, database_name, avg_size_mb FROM database_size_aggregations
    WHERE period_type = 'daily' AND period_start = ANY (CAST(:without_database_size_stats AS date[]))
)"""
GROUP_PARTS = f"""
WITH {_SAMPLES}, left_out AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:left_out_servers AS int[]), CAST(:left_out_days AS date[]))
        AS l (instance_id, collected_date)
), servers AS MATERIALIZED (
    SELECT s.*, coalesce(i.db_type, 'unknown') AS engine
    FROM (
        SELECT totals.*, 'measured' AS total FROM totals
        UNION ALL
        SELECT d.instance_id, d.collected_date, sum(d.size_mb), count(*), 'derived' FROM databases d
        WHERE NOT EXISTS (SELECT FROM totals t
                          WHERE t.instance_id = d.instance_id AND t.collected_date = d.collected_date)
        GROUP BY d.instance_id, d.collected_date
    ) AS s LEFT JOIN instances i ON i.id = s.instance_id
    WHERE i.counted_by IS NULL AND NOT EXISTS (SELECT FROM left_out l WHERE l.instance_id = s.instance_id
                                               AND l.collected_date = s.collected_date)
), spans AS MATERIALIZED (
    SELECT * FROM capacity_label_spans WHERE value IS NOT NULL
), labelled AS (
    -- Of the labels of a key that name a database, the one that `database.labels` puts first.
    SELECT DISTINCT ON (d.instance_id, d.database_name, d.collected_date, r.key)
           d.instance_id, d.database_name, d.collected_date, r.key, r.value, d.size_mb
    FROM databases d
    JOIN spans r ON r.instance_id = d.instance_id
        AND r.valid_from <= d.collected_date AND d.collected_date < r.valid_until AND r.database_pattern <> ''
        AND (d.database_name = r.database_pattern OR d.database_name LIKE r.database_like)
    ORDER BY d.instance_id, d.database_name, d.collected_date, r.key, {_EXACT} DESC,
             {_LONGEST} DESC, r.database_pattern
)
SELECT s.collected_date, b.label_key, b.label_value, s.instance_id, CAST(NULL AS varchar) AS database_name,
       s.size_mb, s.databases
FROM servers s
CROSS JOIN LATERAL (VALUES ('(fleet)', '(fleet)'), ('engine', s.engine), ('(total)', s.total))
    AS b (label_key, label_value)
UNION ALL
SELECT s.collected_date, k.key, coalesce(l.value, ''), s.instance_id, NULL, s.size_mb, s.databases
FROM servers s CROSS JOIN (SELECT DISTINCT key FROM capacity_labels) AS k
LEFT JOIN spans l ON l.instance_id = s.instance_id AND l.key = k.key AND l.database_pattern = ''
    AND l.valid_from <= s.collected_date AND s.collected_date < l.valid_until
UNION ALL
SELECT d.collected_date, d.key, side.value, d.instance_id, CASE side.sign WHEN 1 THEN d.database_name END,
       side.sign * d.size_mb, side.sign
FROM labelled d JOIN servers s ON s.instance_id = d.instance_id AND s.collected_date = d.collected_date
LEFT JOIN spans l ON l.instance_id = d.instance_id AND l.key = d.key AND l.database_pattern = ''
    AND l.valid_from <= d.collected_date AND d.collected_date < l.valid_until
CROSS JOIN LATERAL (VALUES (coalesce(l.value, ''), -1), (d.value, 1)) AS side (value, sign)
WHERE d.value IS DISTINCT FROM l.value
UNION ALL
SELECT collected_date, '(total)', '{LEFT_OUT}' || instance_id, instance_id, NULL, 0, 0 FROM left_out
"""  # noqa: S608 -- the order is defined once
"""The parts of each group on each day: a server without its databases that have labels of their own, and each of these.

Parameters are those of `day_parameters`. A total above 8 EiB counts as no total.
"""
GROUP_DAYS = f"""
SELECT collected_date, label_key, label_value,
       -- A sum above 8 EiB is cut. Its day is then added up again, without the servers that are left out.
       CAST(least(greatest(sum(size_mb), -8796093022208), 8796093022208) AS bigint) AS size_mb,
       count(DISTINCT instance_id) AS server_count, CAST(sum(databases) AS bigint) AS database_count
FROM ({GROUP_PARTS}) AS parts GROUP BY collected_date, label_key, label_value
"""  # noqa: S608 -- an explanation reads the parts themselves
"""One row per day and group. Its columns are those of the source of the level, in order."""

ROWS_OF_SERVERS = {
    "database_size_stats": "SELECT * FROM database_size_stats WHERE instance_id = ANY (CAST(:servers AS int[]))",
    "instance_size_stats": "SELECT * FROM instance_size_stats WHERE instance_id = ANY (CAST(:servers AS int[]))",
    "database_size_aggregations": (
        "SELECT * FROM database_size_aggregations WHERE instance_id = ANY (CAST(:servers AS int[]))"
    ),
    "instance_size_aggregations": (
        "SELECT * FROM instance_size_aggregations WHERE instance_id = ANY (CAST(:servers AS int[]))"
    ),
}
"""Parts with the rows of some servers. `GROUP_PARTS` reads parts that are named like its tables instead of these."""
GROUP_DAYS_OF_SERVERS = f"""
WITH {", ".join(f"{name} AS ({rows})" for name, rows in ROWS_OF_SERVERS.items())} {GROUP_DAYS}
"""
"""What some servers contribute to each group on each day."""


SERVERS_LEFT_OUT = f"""
WITH {_SAMPLES}, largest AS (
    SELECT instance_id, collected_date, max(size_mb) AS size_mb FROM (
        SELECT instance_id, collected_date, abs(size_mb) AS size_mb FROM totals
        UNION ALL
        -- The smallest bigint has no absolute value.
        SELECT instance_id, collected_date, sum(abs(greatest(size_mb, -8796093022208))) FROM databases
        GROUP BY instance_id, collected_date
    ) AS total_and_databases GROUP BY instance_id, collected_date
)
SELECT instance_id, collected_date FROM (
    SELECT l.instance_id, l.collected_date,
           sum(l.size_mb) OVER (PARTITION BY l.collected_date ORDER BY l.size_mb, l.instance_id
                                ROWS UNBOUNDED PRECEDING) AS added_mb
    FROM largest l LEFT JOIN instances i ON i.id = l.instance_id WHERE i.counted_by IS NULL
) AS added WHERE added_mb > 8796093022207
"""  # noqa: S608 -- the samples are read in one way
"""The servers to leave out on days on which a group is above 8 EiB; parameters as those of `GROUP_PARTS`.

A server counts with its total or with the sum of its databases, whichever is larger. So no group of the others can be
above 8 EiB.
"""
STORED_SERVERS_LEFT_OUT = """
SELECT server_id AS instance_id, window_start AS collected_date FROM capacity_left_out_servers
WHERE period = 'daily' AND window_start = ANY (CAST(:days AS date[]))
"""
"""The servers that were left out when the groups of days were computed."""


GROUPS_REVISION = 1
"""Raise it if the same samples give other groups: stored windows then become stale. A test fails when the text of the
statements changes."""


def left_out_parameters(rows: Iterable[Row[Any]]) -> dict[str, list[Any]]:
    """Return the parameters of servers to leave out, from rows of a server and a day."""
    pairs = list(rows)
    return {
        "left_out_servers": [row.instance_id for row in pairs],
        "left_out_days": [row.collected_date for row in pairs],
    }


def day_parameters(connection: Connection, days: Sequence[date]) -> dict[str, list[Any]]:
    """Return the parameters of days: all of them, for each raw table those without a sample, and no server left out."""
    parameters: dict[str, list[Any]] = {"days": list(days), **left_out_parameters(())}
    for raw in (database_size_stats, instance_size_stats):
        sampled = select(raw.c.collected_date).where(raw.c.collected_date == any_(literal(list(days), ARRAY(Date))))
        known = set(connection.execute(sampled.distinct()).scalars())
        parameters[f"without_{raw.name}"] = [day for day in days if day not in known]
    return parameters
