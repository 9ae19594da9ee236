"""Runs of Dagster, from its own tables: waiting, active and ended runs, and whether its daemon works.

They are read by SQL, so that the pages do not import Dagster, and show failed runs also while the code location, whose
sensor sends alerts, is unreachable. Columns of `runs` and `daemon_heartbeats` are read; a test runs this on Dagster's
storage.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from capacity_assets.reading.access import records, rows

MOST = 100
RECENT = timedelta(days=1)


@dataclass(frozen=True)
class JobRuns:
    """The runs of a job: present ones, those that ended in the last day, and the last success and failure (Unix time).

    The job of runs that were launched from assets, such as backfills, is called `assets`, unless another one is.
    """

    job: str
    waiting: int
    running: int
    succeeded: int
    failed: int
    canceled: int
    last_success: float | None
    last_failure: float | None


def job_runs(connection: Connection) -> list[JobRuns]:
    """Return the runs of each job that has any, by name, for 100 jobs at most; raises DBAPIError."""
    return records(JobRuns, connection, _JOB_RUNS, most=MOST, recent_seconds=RECENT.total_seconds())


def daemon_heartbeat(connection: Connection) -> float | None:
    """Return when Dagster's daemon last reported (Unix time); None: never. Raises DBAPIError."""
    heartbeat: float | None = rows(connection, _HEARTBEAT)[0].newest
    return heartbeat


# Each part reads entries of an index. The first one steps from name to name. Runs that ended recently were updated
# recently; Dagster writes this time in the zone of the session, so a day is added. The last end is among the newest
# runs.
_JOB_RUNS = """
WITH RECURSIVE jobs (name) AS (
    (SELECT pipeline_name FROM runs ORDER BY pipeline_name LIMIT 1)
    UNION ALL
    SELECT (SELECT r.pipeline_name FROM runs r WHERE r.pipeline_name > j.name ORDER BY r.pipeline_name LIMIT 1)
    FROM jobs j WHERE j.name IS NOT NULL
), named AS (
    SELECT name FROM jobs WHERE name IS NOT NULL LIMIT :most
), present AS (
    SELECT pipeline_name AS name,
        CASE WHEN status IN ('QUEUED', 'NOT_STARTED') THEN 'waiting' ELSE 'running' END AS state
    FROM runs WHERE status IN ('QUEUED', 'NOT_STARTED', 'STARTING', 'STARTED', 'CANCELING')
    UNION ALL
    SELECT pipeline_name, status FROM runs
    WHERE status IN ('SUCCESS', 'FAILURE', 'CANCELED')
      AND update_timestamp > CURRENT_TIMESTAMP - make_interval(secs => :recent_seconds + 86400)
      AND end_time > extract(epoch FROM CURRENT_TIMESTAMP) - :recent_seconds
), counted AS (
    SELECT name, count(*) FILTER (WHERE state = 'waiting') AS waiting,
        count(*) FILTER (WHERE state = 'running') AS running,
        count(*) FILTER (WHERE state = 'SUCCESS') AS succeeded, count(*) FILTER (WHERE state = 'FAILURE') AS failed,
        count(*) FILTER (WHERE state = 'CANCELED') AS canceled
    FROM present GROUP BY name
)
SELECT CASE WHEN named.name = '__ASSET_JOB' AND NOT EXISTS (SELECT 1 FROM named WHERE name = 'assets') THEN 'assets'
            ELSE named.name END AS job,
    coalesce(waiting, 0) AS waiting, coalesce(running, 0) AS running, coalesce(succeeded, 0) AS succeeded,
    coalesce(failed, 0) AS failed, coalesce(canceled, 0) AS canceled,
    (SELECT max(end_time) FROM (
        SELECT end_time FROM runs WHERE pipeline_name = named.name AND status = 'SUCCESS' ORDER BY id DESC LIMIT :most
    ) AS newest) AS last_success,
    (SELECT max(end_time) FROM (
        SELECT end_time FROM runs WHERE pipeline_name = named.name AND status = 'FAILURE' ORDER BY id DESC LIMIT :most
    ) AS newest) AS last_failure
FROM named LEFT JOIN counted USING (name) ORDER BY 1
"""
# The column `timestamp` is in the zone of the session that wrote it. A body of another form is passed over.
_HEARTBEAT = r"""
SELECT max(CAST(substring(body FROM '"timestamp": ?(\d+\.?\d*)') AS double precision)) AS newest FROM daemon_heartbeats
"""
