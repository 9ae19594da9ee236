"""The legacy task functions, for callers without Dagster: same names, same result keys, no one-row-at-a-time.

They read the settings, open the database and go through the task runner. Failures come back as a result
with status `failed`, as legacy callers expect; only a broken configuration raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from capacity_assets.aggregation.errors import CapacityError
from capacity_assets.aggregation.levels import DATABASE, INSTANCE
from capacity_assets.aggregation.results import AggregationStatus, InstanceSummary, RunSummary
from capacity_assets.aggregation.service import SCOPE_ALL, RunOptions
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
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
    try:
        with _opened() as runner:
            options = RunOptions(levels=runner.service.levels_of(scope), overwrite=overwrite)
            work = runner.scheduled_work(periods)
            run, troubles = runner.run_each(work, options)
    except (CapacityError, UnreachableError, EmbeddedServerError) as error:
        return _failed(error)
    names = [period.name for period, _ in work]
    details: TaskResult = {name: run.of_period(name).to_dict() for name in names}
    return _result(run, troubles, run.message, names, {"periods": details})


def run_capacity_instance_aggregation(instance_id: int, periods: Sequence[str] | None = None) -> TaskResult:
    """Aggregate the scheduled windows of one instance; the same keys as `run_capacity_aggregation`.

    Raises:
        ConfigurationError: an environment variable holds a value that cannot work.
    """
    try:
        with _opened() as runner:
            work = runner.scheduled_work(periods)
            instance = runner.service.instance(instance_id)
            options = RunOptions(instance_ids=[instance_id])
            run, troubles = runner.run_each(work if instance.active else [], options)
    except (CapacityError, UnreachableError, EmbeddedServerError) as error:
        return _failed(error)
    summary = InstanceSummary(instance.id, instance.name, instance.active, run)
    names = [period.name for period, _ in work] if instance.active else []
    details: TaskResult = {name: run.of_period(name).to_dict() for name in names}
    own: TaskResult = {"instance_id": instance.id, "instance_name": instance.name, "periods": details}
    return _result(run, troubles, summary.message, names, own)


def _result(
    run: RunSummary, troubles: Sequence[CapacityError], message: str, names: list[str], details: TaskResult
) -> TaskResult:
    """Lay out the legacy keys; a period that could not be run makes the whole a failure and is told first."""
    status = AggregationStatus.FAILED if troubles else run.status
    return {
        "status": status.value,
        "message": " ".join([*map(str, troubles), message]),
        "periods_executed": names,
        "details": details,
        "metrics": _metrics(run),
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
