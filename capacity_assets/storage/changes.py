"""The queue of changes: which windows a change touches, who has read it, and which windows are stale.

Triggers append rows to `capacity_changes` (see `change_tracking`). Whoever gathers deletes the rows that it sees and
raises `wanted` of the windows that they touch, in one transaction. A computation notes `wanted` before it reads the
first sample, and stores it as `computed` when it has written. So a window is stale while `computed` is less than
`wanted`, or while an unread row touches it: a change that commits late is in the queue until somebody sees it, and one
that commits during a computation has the window computed once more. Readers ask the view `capacity_stale_windows`.

The kind of a row decides what follows. Added and corrected samples, servers put into service, and labels, engines or
counting servers that change, request a run. Deleted samples and aggregates written by others do not; but their windows
are not skipped as unchanged, nor read as stored sums.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from capacity_assets.storage.tables import SAMPLES
from capacity_assets.storage.view import View

STALE_WINDOWS = "capacity_stale_windows"


def gather_changes(connection: Connection) -> None:
    """Read the queue: raise `wanted` of the windows that its rows touch, and delete these rows.

    Other gatherings wait for the rows that this one has taken, until its transaction ends; rows and windows are locked
    in order. A server's days are looked up now: its trigger did not see samples that others were about to commit.
    """
    unread = connection.execute(text(_UNREAD_KINDS)).scalars().all()
    if not unread:
        return
    servers = connection.execute(text(_TAKE_SERVERS)).all() if "server" in unread else []
    if servers:
        asked = {"servers": [row.instance_id for row in servers], "changed_at": max(row.changed_at for row in servers)}
        for table in SAMPLES:
            connection.execute(text(_DAYS_OF_SERVERS.format(table=table.name)), asked)
    connection.execute(text(_GATHER))


def distrust_windows(connection: Connection) -> None:
    """Have no window skipped as unchanged, or read as stored sums, before it is computed again."""
    connection.execute(text(_DISTRUST))


_DISTRUST = """
INSERT INTO capacity_changes (table_name, kind, days)
SELECT name, 'written', '(,)'
FROM unnest(ARRAY['database_size_aggregations', 'instance_size_aggregations', 'group_size_aggregations']) AS name
"""
# Nearly always there is nothing to read, or no server among it.
_UNREAD_KINDS = "SELECT DISTINCT CASE WHEN days IS NULL THEN 'server' ELSE 'days' END FROM capacity_changes"
_TAKE_SERVERS = """
DELETE FROM capacity_changes c
USING (SELECT ctid AS row FROM capacity_changes WHERE days IS NULL ORDER BY change_id FOR UPDATE) AS taken
WHERE c.ctid = taken.row RETURNING c.instance_id, c.changed_at
"""
_DAYS_OF_SERVERS = """
INSERT INTO capacity_changes (table_name, kind, days, changed_at)
SELECT '{table}', 'samples', unnest(range_agg(daterange(collected_date, collected_date, '[]'))), :changed_at
FROM (SELECT DISTINCT collected_date FROM {table} WHERE instance_id = ANY (CAST(:servers AS integer[]))) AS days
"""
# Given rows `changed`, the windows that they touch. A window reads its own days, those of the window before and of the
# one a year before.
_TOUCHED = """
    SELECT w.period_type, w.level, w.period_start,
           bool_or(c.days && daterange(w.period_start, w.period_end, '[]')) AS own,
           min(c.oldest) FILTER (WHERE c.kind IN ('samples', 'server', 'groups')) AS oldest_change,
           max(c.newest) FILTER (WHERE c.kind IN ('samples', 'server', 'groups')) AS newest_change
    FROM changed c JOIN (VALUES
        ('database_size_stats', 'database'), ('database_size_stats', 'group'),
        ('database_size_aggregations', 'database'), ('instance_size_stats', 'instance'),
        ('instance_size_stats', 'group'), ('instance_size_aggregations', 'instance'),
        ('group_size_aggregations', 'group'), ('capacity_labels', 'group'), ('instances', 'group')
    ) AS pair (table_name, level) ON pair.table_name = c.table_name
    JOIN capacity_computed_windows w ON w.level = pair.level
        AND (c.days && daterange(w.reads_from, w.period_end, '[]')
             OR w.year_before_start IS NOT NULL AND c.days && daterange(w.year_before_start, w.year_before_end, '[]'))
    GROUP BY w.period_type, w.level, w.period_start
"""
_GATHER = f"""
WITH taken AS (
    DELETE FROM capacity_changes c
    USING (SELECT ctid AS row FROM capacity_changes WHERE days IS NOT NULL ORDER BY change_id FOR UPDATE) AS seen
    WHERE c.ctid = seen.row RETURNING c.table_name, c.kind, c.days, c.changed_at
), changed AS (
    SELECT table_name, kind, days, min(changed_at) AS oldest, max(changed_at) AS newest
    FROM taken GROUP BY table_name, kind, days
), touched AS ({_TOUCHED}
), locked AS (
    SELECT t.* FROM touched t
    JOIN capacity_computed_windows w USING (period_type, level, period_start)
    ORDER BY period_type, level, period_start FOR UPDATE OF w
)
UPDATE capacity_computed_windows w
SET wanted = w.wanted + 1, changed = CASE WHEN t.own THEN w.wanted + 1 ELSE w.changed END,
    oldest_change = least(w.oldest_change, t.oldest_change), newest_change = greatest(w.newest_change, t.newest_change)
FROM locked t
WHERE w.period_type = t.period_type AND w.level = t.level AND w.period_start = t.period_start
"""  # noqa: S608 -- built from the constants above
_UNREAD = """
    SELECT table_name, kind, days, min(changed_at) AS oldest, max(changed_at) AS newest
    FROM capacity_changes WHERE days IS NOT NULL GROUP BY table_name, kind, days
"""
_UNREAD_SERVERS = "".join(
    f"""    UNION ALL
    SELECT '{table.name}', c.kind, daterange(s.collected_date, s.collected_date, '[]'), min(c.changed_at),
           max(c.changed_at)
    FROM capacity_changes c JOIN {table.name} s ON s.instance_id = c.instance_id
    WHERE c.days IS NULL GROUP BY c.kind, s.collected_date
"""  # noqa: S608 -- names of our own tables
    for table in SAMPLES
)


def _stale(unread: str) -> str:
    return f"""FROM capacity_computed_windows w LEFT JOIN (
    WITH changed AS ({unread})
    {_TOUCHED}) AS t ON t.period_type = w.period_type AND t.level = w.level AND t.period_start = w.period_start
WHERE w.computed IS NOT NULL AND (w.computed < w.wanted OR t.period_start IS NOT NULL)"""


_COLUMNS = """
SELECT w.period_type,  -- Name of the period, such as daily or monthly
       w.level,  -- database, instance or group
       w.period_start,  -- First day of the window
       w.period_end,  -- Last day of the window, included
       w.wanted + CASE WHEN t.period_start IS NULL THEN 0 ELSE 1 END AS wanted,
          -- How often a change has touched it; unread ones count as one
       least(w.oldest_change, t.oldest_change) AS oldest_change,
          -- When the first change of samples or labels began that it has not followed; null: no run is requested,
          -- samples were only deleted, or its rows written by others
       greatest(w.newest_change, t.newest_change) AS newest_change,  -- When the last one began
       w.computed >= w.changed AND t.own IS NOT TRUE AS has_its_sums
          -- Whether only a window that it compares with has changed, so that its sums are those of its samples
"""
STALE_WHEN_GATHERED = f"""(
    SELECT period_type, level, period_start, has_its_sums FROM ({_COLUMNS}{_stale(_UNREAD)}
    ) AS gathered
    UNION ALL
    SELECT period_type, level, period_start, false FROM capacity_computed_windows
    WHERE computed IS NOT NULL AND EXISTS (SELECT true FROM capacity_changes WHERE days IS NULL))"""  # noqa: S608 -- as above
"""For a run, which has just gathered: what the view says, without planning for the samples of servers put into service.
While one is unread, every window counts as stale. Citus keeps no result without a column: so `true` is selected."""
STALE_WINDOWS_VIEW = View(
    STALE_WINDOWS,
    "Computed windows that are not as they would be computed now, or may not be.",
    _COLUMNS + _stale(_UNREAD + _UNREAD_SERVERS),
    # Nodes are not asked by a view: what they recorded, and servers put into service, count once they are gathered.
    query_on_nodes=_COLUMNS + _stale(_UNREAD),
)
