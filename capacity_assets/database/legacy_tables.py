"""Writes to tables of the legacy application, if they exist, so that its pages stay current.

Newer versions of it list runs in `task_runs`, older ones in `sync_sessions`: if this is enabled, each run that ended is
a row in the first of the two that exists. `instance_databases` lists the databases of each server, and since when they
exist; it is kept current if the role may write to it. None of these tables is created here, and a failed write to them
affects neither the run nor the samples.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import date, datetime

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.base.errors import DATABASE_FAILURES, reason_of

logger = logging.getLogger(__name__)
DATABASES = "instance_databases"


def record_measured(connection: Connection, day: date, instance_ids: Sequence[int]) -> None:
    """Enter the databases of servers by their samples of a day, and mark those that no longer exist as inactive."""
    if instance_ids:
        _write(connection, (_ENTER_DAY, _MARK_GONE), {"day": day, "ids": list(instance_ids)})


def record_history(connection: Connection) -> None:
    """Enter every database with samples; a trigger of the legacy application would set the last day of each row."""
    _write(connection, (_ENTER_HISTORY,), {})


def _write(connection: Connection, statements: Sequence[str], parameters: dict[str, object]) -> None:
    """Execute in a savepoint, so that samples are kept if the other application's table refuses a row."""
    try:
        with connection.begin_nested():
            if connection.execute(text(_MAY_BE_WRITTEN), {"table": DATABASES}).scalar_one():
                for statement in statements:
                    connection.execute(text(statement), parameters)
    except DBAPIError as error:
        logger.warning(f"{DATABASES} was not updated: {reason_of(error)}. The samples are not affected.")


_MAY_BE_WRITTEN = """
SELECT coalesce(has_table_privilege(t.oid, 'SELECT') AND has_table_privilege(t.oid, 'INSERT')
                AND has_table_privilege(t.oid, 'UPDATE'), false)
FROM to_regclass(:table) AS t (oid)
"""

_ENTER_DAY = """
INSERT INTO instance_databases AS k (instance_id, database_name, is_active, first_seen_date, last_seen_date)
SELECT instance_id, database_name, true, :day, :day FROM database_size_stats
WHERE collected_date = :day AND instance_id = ANY (:ids)
ORDER BY instance_id, database_name
ON CONFLICT (instance_id, database_name) DO UPDATE
SET is_active = true, deleted_at = NULL, last_seen_date = greatest(k.last_seen_date, excluded.last_seen_date),
    updated_at = now()
WHERE NOT k.is_active OR k.deleted_at IS NOT NULL OR k.last_seen_date < excluded.last_seen_date
"""

_MARK_GONE = """
UPDATE instance_databases k SET is_active = false, deleted_at = now(), updated_at = now()
WHERE k.instance_id = ANY (:ids) AND k.is_active AND k.last_seen_date < :day
  AND NOT EXISTS (SELECT FROM database_size_stats d WHERE d.collected_date = :day
                  AND d.instance_id = k.instance_id AND d.database_name = k.database_name)
"""

_ENTER_HISTORY = """
WITH seen AS (
    SELECT instance_id, database_name, min(collected_date) AS first_day, max(collected_date) AS last_day
    FROM database_size_stats WHERE instance_id IN (SELECT id FROM instances) GROUP BY 1, 2
), newest AS (
    SELECT instance_id, max(last_day) AS last_day FROM seen GROUP BY 1
)
INSERT INTO instance_databases AS k
    (instance_id, database_name, is_active, first_seen_date, last_seen_date, deleted_at)
SELECT s.instance_id, s.database_name, s.last_day = n.last_day, s.first_day, s.last_day,
       CASE WHEN s.last_day < n.last_day THEN now() END
FROM seen s JOIN newest n USING (instance_id)
ORDER BY s.instance_id, s.database_name
ON CONFLICT (instance_id, database_name) DO UPDATE
SET first_seen_date = least(k.first_seen_date, excluded.first_seen_date),
    last_seen_date = greatest(k.last_seen_date, excluded.last_seen_date), is_active = excluded.is_active,
    deleted_at = CASE WHEN NOT excluded.is_active THEN coalesce(k.deleted_at, excluded.deleted_at) END,
    updated_at = now()
WHERE (k.first_seen_date, k.last_seen_date, k.is_active)
    IS DISTINCT FROM (least(k.first_seen_date, excluded.first_seen_date),
                      greatest(k.last_seen_date, excluded.last_seen_date), excluded.is_active)
"""


def record_legacy_run(  # noqa: PLR0913 -- what the page of the other application shows
    engine: Engine, name: str, started_at: datetime, *, total: int, failed: int, error: str | None
) -> None:
    """Enter a run that ended, with the error if it failed; if that is impossible, it is logged.

    Servers that did not fail count as successful, also those without samples.
    """
    values = {"name": name, "started_at": started_at, "total": total, "failed": failed, "error": error}
    values |= {"status": "completed" if error is None else "failed", "successful": total - failed}
    try:
        with engine.begin() as connection:
            for table, statement in _STATEMENTS.items():
                if connection.execute(text("SELECT to_regclass(:table) IS NOT NULL"), {"table": table}).scalar():
                    connection.execute(text(statement), values)
                    return
    except DATABASE_FAILURES as failure:
        logger.warning(
            f"The run could not be entered in the legacy application's table: {reason_of(failure)}. "
            "The run itself is not affected."
        )
        return
    logger.warning(f"CAPACITY_LEGACY_RUNS is on, but there is neither {' nor '.join(_STATEMENTS)}.")


_STATEMENTS = {
    "task_runs": """
INSERT INTO task_runs (run_id, task_key, task_name, task_category, trigger_source, status, started_at, completed_at,
                       progress_total, progress_completed, progress_failed, error_message, created_at, updated_at)
VALUES (CAST(gen_random_uuid() AS text), 'capacity_assets', :name, 'aggregation', 'scheduled', :status, :started_at,
        now(), :total, :successful, :failed, :error, now(), now())
""",
    "sync_sessions": """
INSERT INTO sync_sessions (session_id, sync_type, sync_category, status, started_at, completed_at,
                           total_instances, successful_instances, failed_instances, created_at, updated_at)
VALUES (CAST(gen_random_uuid() AS text), 'scheduled_task', 'aggregation', :status, :started_at, now(),
        :total, :successful, :failed, now(), now())
""",
}
