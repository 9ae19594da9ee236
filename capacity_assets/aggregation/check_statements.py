"""The statements of the checks after a run: each lists the places where something is wrong, and counts them."""

from __future__ import annotations

from capacity_assets.foundation.levels import DATABASE, INSTANCE, Level, Measure
from capacity_assets.storage.active_servers import active_condition
from capacity_assets.storage.group_days import FLEET
from capacity_assets.units import LARGEST_MB


def _first(body: str, order: str) -> str:
    """Number the places of a query, keep the first ones, and carry the count of all."""
    return (
        f"SELECT place, count(*) OVER () AS places FROM ({body}) AS found "  # noqa: S608 -- built from our own names
        f"ORDER BY {order} LIMIT :listed"
    )


_WINDOWS = "unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)"
_ACTIVE = f"(SELECT id, name FROM instances WHERE {active_condition('instances')}) AS i"  # noqa: S608 -- constants


def _is_size(measure: Measure) -> bool:
    return measure.source.endswith("_mb")


def _live(level: Level) -> str:
    return f"AND NOT r.{level.void_flag}" if level.void_flag else ""


def _fewer_days(measured: str, joined: str) -> str:
    """Compare the days that are expected of each server with those that were measured."""
    body = f"""
        SELECT format('%s: days measured in the window from %s: %s of %s', name, period_start, measured, expected)
                   AS place,
               expected - measured AS missing, name, period_start
        FROM (
            SELECT i.name, w.period_start,
                   least(w.period_end, CAST(:today AS date)) - greatest(w.period_start, f.first_day) + 1 AS expected,
                   {measured} AS measured
            FROM {_WINDOWS}
            CROSS JOIN {_ACTIVE}
            {joined}
            WHERE f.first_day <= least(w.period_end, CAST(:today AS date))
        ) AS days
        WHERE measured < expected"""  # noqa: S608 -- built from our own names
    return _first(body, "missing DESC, name, period_start")


def missing_days(level: Level) -> str:
    """Servers with fewer measured days than days, counted from their first sample on and up to today."""
    raw, live = level.source.name, _live(level)
    measured = f"""(SELECT count(DISTINCT r.collected_date) FROM {raw} r
                    WHERE r.instance_id = i.id AND r.collected_date BETWEEN w.period_start AND w.period_end
                      AND r.collected_date <= CAST(:today AS date) {live})"""  # noqa: S608 -- built from our own names
    joined = f"""CROSS JOIN LATERAL (SELECT min(r.collected_date) AS first_day FROM {raw} r
                                WHERE r.instance_id = i.id {live}) AS f"""  # noqa: S608 -- as above
    return _fewer_days(measured, joined)


def missing_days_on_nodes(level: Level) -> str:
    """The same where rows are distributed: counted per server on the nodes, compared here."""
    raw, live = level.source.name, _live(level)
    joined = f"""JOIN (SELECT r.instance_id, min(r.collected_date) AS first_day FROM {raw} r
                  WHERE true {live} GROUP BY r.instance_id) AS f ON f.instance_id = i.id
            LEFT JOIN (SELECT r.instance_id, w.period_start, count(DISTINCT r.collected_date) AS measured
                       FROM {raw} r JOIN {_WINDOWS} ON r.collected_date BETWEEN w.period_start AND w.period_end
                       WHERE r.collected_date BETWEEN :first_day AND :last_day {live}
                       GROUP BY r.instance_id, w.period_start) AS m
              ON m.instance_id = i.id AND m.period_start = w.period_start"""  # noqa: S608 -- built from our own names
    return _fewer_days("coalesce(m.measured, 0)", joined)


def impossible_values(level: Level) -> str:
    """Stored rows with impossible values. A partial index of these rows finds them in a history of any length."""
    impossible = " OR ".join(
        f"a.{measure.minimum} < 0" + (f" OR a.{measure.maximum} > {LARGEST_MB}" if _is_size(measure) else "")
        for measure in level.measures
    )
    database = "a.database_name" if "database_name" in level.keys else "'all databases'"
    body = f"""
        SELECT format('%s, %s: an impossible size or count in the window from %s', i.name, {database}, a.period_start)
                   AS place,
               i.name, a.period_start
        FROM {level.target.name} a JOIN {_ACTIVE} ON i.id = a.instance_id
        WHERE a.period_type = :period_type AND a.period_start = ANY (CAST(:every AS date[])) AND ({impossible})"""  # noqa: S608
    return _first(body, "name, period_start")


def jumps(level: Level) -> str:
    """Stored rows whose change is beyond the configured bound, or that grew from 0 to more than a little."""
    headline = level.headline
    database = "a.database_name" if "database_name" in level.keys else "'all databases'"
    body = f"""
        SELECT format('%s, %s: %s (%s MiB) in the window from %s', i.name, {database},
                      coalesce(a.{headline.change_percent} || ' %', 'from 0'), a.{headline.change}, a.period_start)
                   AS place,
               coalesce(abs(a.{headline.change_percent}), 'infinity') AS jump
        FROM {level.target.name} a JOIN {_ACTIVE} ON i.id = a.instance_id
        WHERE a.period_type = :period_type AND a.period_start = ANY (CAST(:starts AS date[]))
          AND (abs(a.{headline.change_percent}) > :jump_percent
               OR a.{headline.change_percent} IS NULL AND a.{headline.change} >= :jump_from_zero_mb)"""  # noqa: S608 -- built from our own names
    return _first(body, "jump DESC, place")


def levels_differ(_level: Level) -> str:
    """Days on which the databases of a server do not add up to its total."""
    body = f"""
        SELECT format('%s on %s: databases %s MiB, server %s MiB', i.name, t.collected_date,
                      coalesce(d.total, 0), t.total) AS place,
               abs(t.total - coalesce(d.total, 0)) AS difference
        FROM (SELECT r.instance_id, r.collected_date, sum(r.total_size_mb) AS total FROM {INSTANCE.source.name} r
              WHERE r.collected_date BETWEEN :first_day AND :last_day {_live(INSTANCE)} GROUP BY 1, 2) AS t
        JOIN {_ACTIVE} ON i.id = t.instance_id
        LEFT JOIN (SELECT r.instance_id, r.collected_date,
                          div(sum(coalesce(r.size_bytes, r.size_mb * CAST(1048576 AS numeric))), 1048576) AS total
                   FROM {DATABASE.source.name} r
                   WHERE r.collected_date BETWEEN :first_day AND :last_day GROUP BY 1, 2) AS d
          ON d.instance_id = t.instance_id AND d.collected_date = t.collected_date
        WHERE EXISTS (SELECT FROM {_WINDOWS} WHERE t.collected_date BETWEEN w.period_start AND w.period_end)
          AND abs(t.total - coalesce(d.total, 0))
              > greatest(:tolerance_mb, t.total * :tolerance_percent / 100)"""  # noqa: S608 -- built from our own names
    return _first(body, "difference DESC, place")


def groups_differ(level: Level) -> str:
    """Keys whose values do not add up to the fleet in a window, by exact sums, of all windows."""
    body = f"""
        SELECT format('by %s in the window from %s: groups %s MiB in %s databases, fleet %s MiB in %s, added up over '
                      'its days', label_key, period_start, size, databases, fleet_size, fleet_databases) AS place
        FROM (
            SELECT period_start, label_key, sum(coalesce(sum_size_mb, avg_size_mb)) AS size,
                   sum(coalesce(sum_database_count, database_count)) AS databases
            FROM {level.target.name}
            WHERE period_type = :period_type AND period_start = ANY (CAST(:every AS date[])) GROUP BY 1, 2
        ) AS g
        LEFT JOIN (
            SELECT period_start, coalesce(sum_size_mb, avg_size_mb) AS fleet_size,
                   coalesce(sum_database_count, database_count) AS fleet_databases
            FROM {level.target.name}
            WHERE period_type = :period_type AND period_start = ANY (CAST(:every AS date[])) AND label_key = '{FLEET}'
        ) AS f USING (period_start)
        WHERE (size, databases) IS DISTINCT FROM (fleet_size, fleet_databases)"""  # noqa: S608 -- built from our own names
    return _first(body, "place")
