"""Optionally enters runs in the legacy application's table, so that its page of runs shows them beside its own.

Its newer versions list `task_runs`, its older ones `sync_sessions`. A run that ended is one row of the first of the two
that exists. Dagster's own record of a run is authoritative; if the table refuses the row, the run is not affected.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Engine, text

from capacity_assets.errors import DATABASE_FAILURES, reason_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndedRun:
    """What their page shows. Servers that did not fail succeeded, those without samples too."""

    name: str
    started_at: datetime
    total: int
    failed: int
    error: str | None
    """Why it failed; None: it did not."""

    @property
    def parameters(self) -> dict[str, object]:
        """The row, by the parameters of the statements."""
        status = "completed" if self.error is None else "failed"
        return {**asdict(self), "status": status, "successful": self.total - self.failed}


def record_legacy_run(engine: Engine, run: EndedRun) -> None:
    """Enter a run that ended; without either table, or where it refuses, only the log says so."""
    try:
        with engine.begin() as connection:
            for table, statement in _STATEMENTS.items():
                if connection.execute(text("SELECT to_regclass(:table) IS NOT NULL"), {"table": table}).scalar():
                    connection.execute(text(statement), run.parameters)
                    return
    except DATABASE_FAILURES as error:
        logger.warning(
            f"The run could not be entered in the legacy application's table: {reason_of(error)}. "
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
