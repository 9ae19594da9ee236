"""The legacy task functions, for callers without Dagster: same names, same result keys, no one-row-at-a-time.

They read the settings, open the database and go through the task runner. Failures come back as a result
with status `failed`, as legacy callers expect; only a broken configuration raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from capacity_assets.aggregation.errors import CapacityError
from capacity_assets.aggregation.levels import DATABASE, INSTANCE
from capacity_assets.aggregation.results import AggregationStatus, RunSummary
from capacity_assets.aggregation.service import SCOPE_ALL, RunOptions
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.periods import PERIODS
from capacity_assets.runtime import open_task_runner
from capacity_assets.settings import load_settings
from capacity_assets.storage.embedded import EmbeddedServerError
from capacity_assets.storage.engine import UnreachableError

TaskResult = dict[str, object]


def run_capacity_aggregation(
    periods: Sequence[str] | None = None, *, scope: str = SCOPE_ALL, overwrite: bool = False
) -> TaskResult:
    """Aggregate the scheduled window of each period (current for daily, last for the rest).

    Returns `status`, `message`, `periods_executed`, `details` (one summary per period) and `metrics`
    (`instances` and `records` counts). `scope` is database, instance or all.

    Raises:
        ConfigurationError: an environment variable holds a value that cannot work.
    """
    names = list(periods) if periods is not None else list(PERIODS)
    try:
        with _opened() as runner:
            options = RunOptions(levels=runner.service.levels_of(scope), overwrite=overwrite)
            run = runner.run_periods(names, options)
            details: TaskResult = {name: runner.service.build_period_summary(run.of_period(name)) for name in names}
    except (CapacityError, UnreachableError, EmbeddedServerError) as error:
        return _failed(error)
    return {
        "status": run.status.value,
        "message": run.message,
        "periods_executed": names,
        "details": {"periods": details},
        "metrics": _metrics(run),
    }


def run_capacity_instance_aggregation(instance_id: int, periods: Sequence[str] | None = None) -> TaskResult:
    """Aggregate the scheduled windows of one instance; the same keys as `run_capacity_aggregation`.

    Raises:
        ConfigurationError: an environment variable holds a value that cannot work.
    """
    names = list(periods) if periods is not None else list(PERIODS)
    try:
        with _opened() as runner:
            summary = runner.run_instance(instance_id, names)
    except (CapacityError, UnreachableError, EmbeddedServerError) as error:
        return _failed(error)
    details: TaskResult = {name: summary.run.of_period(name).to_dict() for name in names}
    return {
        "status": summary.status.value,
        "message": summary.message,
        "periods_executed": names if summary.active else [],
        "details": {
            "instance_id": summary.instance_id,
            "instance_name": summary.instance_name,
            "periods": details if summary.active else {},
        },
        "metrics": _metrics(summary.run),
    }


def _opened() -> AbstractContextManager[AggregationTaskRunner]:
    return open_task_runner(load_settings())


def _metrics(run: RunSummary) -> TaskResult:
    counts = run.metrics()
    outcome = {name: counts[f"{name}_instances"] for name in ("total", "processed", "failed", "skipped")}
    records = {level.name: run.of_level(level.name).total("total_records") for level in (DATABASE, INSTANCE)}
    return {"instances": outcome, "records": {**records, "total": counts["total_records"]}}


def _failed(error: Exception) -> TaskResult:
    return {
        "status": AggregationStatus.FAILED.value,
        "message": str(error),
        "periods_executed": [],
        "details": {},
        "metrics": _metrics(RunSummary()),
    }
