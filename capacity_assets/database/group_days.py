"""What each group has on each day, added up from the samples: the one rule of groups (docs/semantics.md, "Groups").

A day's labels are those that hold on it. A server counts with its total, or where it has none on the day, with the sum
of its databases. A database with a label of its own leaves its server's group and enters its own with its size of that
day. Everything is in whole MiB, so the groups of one key add up to the fleet exactly.

Where no sample of a day is left, its stored daily aggregates stand for them: they hold the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from sqlalchemy import Connection, text

from capacity_assets.base.units import LARGEST_MB
from capacity_assets.database.sql import SPANS, holds_on, matches, precedence
from capacity_assets.database.tables import database_size_stats, instance_size_stats

FLEET, ENGINE, TOTAL = "(fleet)", "engine", "(total)"
"""Keys that are made without any label: everything, by engine, and by whether a server has a total on the day. None can
be the key of a label."""
MEASURED, DERIVED = "measured", "derived"
WITHOUT = ""
"""The value of what has no label of a key."""

_TOTALS = f"""
    SELECT instance_id, collected_date, sum(total_size_mb) AS size_mb, sum(database_count) AS databases
    FROM instance_size_stats
    WHERE collected_date = ANY (CAST(:days AS date[])) AND NOT is_deleted AND total_size_mb <= {LARGEST_MB}
      AND {{of_servers}}
    GROUP BY instance_id, collected_date
    UNION ALL
    SELECT instance_id, period_start, total_size_mb, database_count FROM instance_size_aggregations
    WHERE period_type = 'daily' AND period_start = ANY (CAST(:without_instance_size_stats AS date[]))
      AND total_size_mb <= {LARGEST_MB} AND {{of_servers}}"""  # noqa: S608 -- a constant of our own
_DATABASES = f"""
    SELECT instance_id, collected_date, database_name, size_mb FROM database_size_stats
    WHERE collected_date = ANY (CAST(:days AS date[])) AND size_mb <= {LARGEST_MB} AND {{of_servers}}
    UNION ALL
    SELECT instance_id, period_start, database_name, avg_size_mb FROM database_size_aggregations
    WHERE period_type = 'daily' AND period_start = ANY (CAST(:without_database_size_stats AS date[]))
      AND avg_size_mb <= {LARGEST_MB} AND {{of_servers}}"""  # noqa: S608 -- as above
_PARTS = f"""
WITH totals AS MATERIALIZED ({_TOTALS}
), databases AS MATERIALIZED ({_DATABASES}
), servers AS MATERIALIZED (
    SELECT s.*, coalesce(i.db_type, 'unknown') AS engine
    FROM (
        SELECT totals.*, '{MEASURED}' AS total FROM totals
        UNION ALL
        SELECT d.instance_id, d.collected_date, sum(d.size_mb), count(*), '{DERIVED}' FROM databases d
        WHERE NOT EXISTS (SELECT FROM totals t
                          WHERE t.instance_id = d.instance_id AND t.collected_date = d.collected_date)
        GROUP BY d.instance_id, d.collected_date
    ) AS s LEFT JOIN instances i ON i.id = s.instance_id
    WHERE i.counted_by IS NULL
), spans AS MATERIALIZED (
    SELECT * FROM {SPANS} WHERE value IS NOT NULL
), labelled AS (
    SELECT DISTINCT ON (d.instance_id, d.database_name, d.collected_date, r.key)
           d.instance_id, d.database_name, d.collected_date, r.key, r.value, d.size_mb
    FROM databases d
    JOIN spans r ON r.instance_id = d.instance_id AND {holds_on("r", "d.collected_date")}
        AND {matches("r", "d.database_name")}
    ORDER BY d.instance_id, d.database_name, d.collected_date, r.key, {precedence("r", "d.database_name")}
), parts AS (
    SELECT s.collected_date, b.label_key, b.label_value, s.instance_id, CAST(NULL AS varchar) AS database_name,
           s.size_mb, s.databases
    FROM servers s
    CROSS JOIN LATERAL (VALUES ('{FLEET}', '{FLEET}'), ('{ENGINE}', s.engine), ('{TOTAL}', s.total))
        AS b (label_key, label_value)
    UNION ALL
    SELECT s.collected_date, k.key, coalesce(l.value, '{WITHOUT}'), s.instance_id, NULL, s.size_mb, s.databases
    FROM servers s CROSS JOIN (SELECT DISTINCT key FROM capacity_labels) AS k
    LEFT JOIN spans l ON l.instance_id = s.instance_id AND l.key = k.key AND l.database_pattern = ''
        AND {holds_on("l", "s.collected_date")}
    UNION ALL
    SELECT d.collected_date, d.key, side.value, d.instance_id, CASE side.sign WHEN 1 THEN d.database_name END,
           side.sign * d.size_mb, side.sign
    FROM labelled d JOIN servers s ON s.instance_id = d.instance_id AND s.collected_date = d.collected_date
    LEFT JOIN spans l ON l.instance_id = d.instance_id AND l.key = d.key AND l.database_pattern = ''
        AND {holds_on("l", "d.collected_date")}
    CROSS JOIN LATERAL (VALUES (coalesce(l.value, '{WITHOUT}'), -1), (d.value, 1)) AS side (value, sign)
    WHERE d.value IS DISTINCT FROM l.value
)
"""  # noqa: S608 -- names and constants of our own


def group_parts(of_servers: str = "true") -> str:
    """Return the WITH of a query over days of those servers that a condition on `instance_id` chooses.

    `servers` has a row per server and day. `parts` has the parts of each group on a day: a server without its databases
    that have labels of their own, and each of these databases. Parameters are those of `asked_days`.
    """
    return _PARTS.format(of_servers=of_servers)


def asked_days(connection: Connection, days: Sequence[date]) -> dict[str, list[date]]:
    """Return the parameters of days: all of them, and for each raw table those without a sample."""
    asked = {"days": list(days)}
    for raw in (database_size_stats, instance_size_stats):
        sampled = set(connection.execute(text(_SAMPLED.format(raw=raw.name)), {"days": asked["days"]}).scalars())
        asked[f"without_{raw.name}"] = [day for day in days if day not in sampled]
    return asked


_SAMPLED = "SELECT DISTINCT collected_date FROM {raw} WHERE collected_date = ANY (CAST(:days AS date[]))"
GROUP_DAYS = f"""{group_parts()}
SELECT collected_date, label_key, label_value, CAST(sum(size_mb) AS bigint) AS size_mb,
       count(DISTINCT instance_id) AS server_count, CAST(sum(databases) AS bigint) AS database_count
FROM parts GROUP BY collected_date, label_key, label_value
"""  # noqa: S608 -- as above
"""One row per day and group. Its columns are those of the source of the level, in order."""
