"""Task functions for callers without Dagster, with the names and results of the legacy application.

They read the settings, open the database and use the task runner. A failure is a result with status `failed`, as legacy
callers expect; only a wrong configuration raises an error (ConfigurationError).

The `run_…` functions have the names and keys of this project. `calculate_database`,
`calculate_database_size_aggregations` and `aggregate_current_period` take the arguments that schedulers and routes of
the legacy application pass, and return the keys that they read.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from uuid import uuid4

from capacity_assets.aggregates.levels import DATABASE, LEVELS
from capacity_assets.aggregates.runs import (
    SCOPE_ALL,
    InstanceRef,
    InstanceSummary,
    PeriodSummary,
    RunOptions,
    RunSummary,
    combine,
)
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import AggregationStatus, CapacityError
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.settings import load_settings
from capacity_assets.runtime import open_task_runner

TaskResult = dict[str, object]
ProgressCallbacks = Mapping[str, Mapping[str, Callable[..., None]]]
"""By level (`database`, `instance`): `on_start(instance)`, `on_complete(instance, payload)`, `on_error` as well."""

logger = logging.getLogger(__name__)


def run_capacity_aggregation(
    periods: Sequence[str] | None = None, *, scope: str = SCOPE_ALL, overwrite: bool = False
) -> TaskResult:
    """Aggregate the scheduled window of each period (current for daily, last for the rest).

    Returns `status`, `message`, `periods_executed`, `details` (one summary per period) and `metrics`
    (`instances` and `records` counts). `scope` is a level or all.
    """
    try:
        with open_task_runner(load_settings()) as runner:
            options = RunOptions(levels=runner.service.levels_of(scope), overwrite=overwrite)
            work = runner.scheduled_work(periods)
            run, troubles = runner.run_each(work, options)
    except CapacityError as error:
        return _failure(error)
    return _result(run, troubles, run.message, [period.name for period, _ in work])


def run_capacity_instance_aggregation(instance_id: int, periods: Sequence[str] | None = None) -> TaskResult:
    """Aggregate the scheduled windows of one instance; returns the same keys as `run_capacity_aggregation`."""
    try:
        with open_task_runner(load_settings()) as runner:
            work = runner.scheduled_work(periods)
            instance = runner.service.instance(instance_id)
            options = RunOptions(instance_ids=[instance_id])
            run, troubles = runner.run_each(work if instance.active else [], options)
    except CapacityError as error:
        return _failure(error)
    summary = InstanceSummary(instance.id, instance.name, instance.active, run)
    names = [period.name for period, _ in work] if instance.active else []
    return _result(run, troubles, summary.message, names, instance_id=instance.id, instance_name=instance.name)


def calculate_database_size_aggregations(
    manual_run: bool = False, periods: Sequence[str] | None = None, created_by: int | None = None
) -> TaskResult:
    """Do what `calculate_database` does, under its older name and with its older arguments."""
    return calculate_database(manual_run=manual_run, periods=periods, created_by=created_by)


def calculate_database(
    *,
    manual_run: bool = False,
    periods: Sequence[str] | None = None,
    created_by: int | None = None,
    run_id: str | None = None,
    log: logging.Logger = logger,
    **_ignored: object,
) -> TaskResult:
    """Aggregate the scheduled window of each period at both levels, for callers of the legacy application.

    Unknown periods are logged and left out. `manual_run`, `created_by` and `run_id` are logged too; no session is
    written, so `session_id` is None. Returns `status`, `message`, `run_id`, `session_id`, `periods_executed`, `details`
    (`periods`: a summary per period, of the databases; `instances`: failures by id) and `metrics` (`instances`:
    `total`, `successful`, `failed`, each server counted once; `records`), and `error` if nothing could be done.
    """
    run_id = run_id or str(uuid4())
    run, instances, chosen, errors = RunSummary(), list[InstanceRef](), list[str](), list[str]()
    try:
        with open_task_runner(load_settings()) as runner:
            chosen = _known_periods(periods, runner.service.period_names, log)
            log.info("Aggregation %s: periods %s, manual %s, by %s.", run_id, chosen, manual_run, created_by)
            instances = [instance for instance in runner.service.instances(None) if instance.active]
            run, troubles = runner.run_each(runner.scheduled_work(chosen))
            errors = list(map(str, troubles))
    except CapacityError as trouble:
        errors, chosen = [str(trouble)], []
    if errors:
        log.error("Aggregation %s: %s", run_id, " ".join(errors))
    reasons: dict[int, list[str]] = {}
    for error in (error for summary in run.summaries for error in summary.errors):
        reasons.setdefault(error.instance_id, []).append(error.reason)
    # Each server counts once, not once per window and level. A part lists only its first failures, but counts all.
    failed = max([len(reasons), *(summary.failed_instances for summary in run.summaries)])
    counted_once = {"total": len(instances), "successful": len(instances) - failed, "failed": failed}
    details = {
        "periods": [
            summary.to_dict() for name in chosen for summary in run.of_level(DATABASE.name).of_period(name).summaries
        ],
        "instances": {
            ref.id: {"instance_id": ref.id, "instance_name": ref.name, "errors": reasons.get(ref.id, [])}
            for ref in instances
        },
    }
    message = run.message if chosen else "" if errors else "No registered period was requested."
    return {
        "status": (AggregationStatus.FAILED if errors else run.status).value,
        "message": " ".join(filter(None, [*errors, message])),
        "run_id": run_id,
        "session_id": None,
        "periods_executed": chosen,
        "details": details,
        "metrics": {"instances": counted_once, "records": _metrics(run)["records"]},
        **({"error": " ".join(errors)} if errors else {}),
    }


def aggregate_current_period(
    period_type: str = "daily", *, scope: str = SCOPE_ALL, progress_callbacks: ProgressCallbacks | None = None
) -> TaskResult:
    """Aggregate the window that contains today, as the button of the legacy application does.

    With `progress_callbacks`, each active server is first computed separately, which takes longer: its callbacks get
    the server (`id`, `name`) and a payload of `status`, `message`, `processed_records`, `errors`, `instance_id`,
    `instance_name` and `period_type`. An error of a callback ends the work and is raised here; servers done before are
    kept. Returns `status`, `message`, `period_type`, `period_start`, `period_end`, `scope`, and `database_summary`,
    `instance_summary` and `group_summary` (null if the scope leaves the level out).
    """
    summaries: TaskResult = {f"{level}_summary": None for level in LEVELS}
    request: TaskResult = {"period_type": period_type, "period_start": None, "period_end": None, "scope": scope}
    try:
        with open_task_runner(load_settings()) as runner:
            levels, period = runner.service.levels_of(scope), runner.service.period(period_type)
            window = period.current(runner.service.clock.today())
            request |= {"period_start": window.start.isoformat(), "period_end": window.end.isoformat()}
            parts = [
                part
                for level in levels
                for part in _run_by_instance(runner, level, period, window, (progress_callbacks or {}).get(level, {}))
            ]
            run = runner.run_period(period, [window], RunOptions(levels))
            # The second computation finds everything unchanged, so the summary of the first is returned.
            first = {part.level: part for part in combine(parts)}
            run = RunSummary(tuple(first.get(summary.level, summary) for summary in run.summaries))
    except CapacityError as error:
        return {"status": AggregationStatus.FAILED.value, "message": str(error), **request, **summaries}
    summaries |= {f"{summary.level}_summary": summary.to_dict() for summary in run.summaries}
    return {"status": run.status.value, "message": run.message, **request, **summaries}


def _run_by_instance(
    runner: AggregationTaskRunner,
    level: str,
    period: Period,
    window: Window,
    callbacks: Mapping[str, Callable[..., None]],
) -> list[PeriodSummary]:
    """Compute one server after the other and call its callbacks; without callbacks, compute nothing."""
    summaries: list[PeriodSummary] = []
    call = defaultdict(lambda: lambda *_: None, callbacks)
    for instance in runner.service.instances(None) if callbacks else ():
        if not instance.active:
            continue
        call["on_start"](instance)
        [summary] = runner.run_period(period, [window], RunOptions([level], instance_ids=[instance.id])).summaries
        payload = {
            "status": summary.status.value,
            "message": summary.message,
            "processed_records": summary.total_records,
            "errors": [error.reason for error in summary.errors],
            "instance_id": instance.id,
            "instance_name": instance.name,
            "period_type": period.name,
        }
        call["on_error" if summary.status is AggregationStatus.FAILED else "on_complete"](instance, payload)
        summaries.append(summary)
    return summaries


def _known_periods(periods: Sequence[str] | None, known: Sequence[str], log: logging.Logger) -> list[str]:
    """Return the registered ones, in the order of the registry; log the others."""
    unknown = [name for name in periods or () if name not in known]
    if unknown:
        log.warning("Unknown periods were left out: %s. Registered: %s.", ", ".join(unknown), ", ".join(known))
    return [name for name in known if periods is None or name in periods]


def _result(
    run: RunSummary, troubles: Sequence[CapacityError], message: str, names: list[str], **about: object
) -> TaskResult:
    """Return the legacy keys; if a period could not be run, the status is failed, and the message begins with why."""
    status = AggregationStatus.FAILED if troubles else run.status
    return {
        "status": status.value,
        "message": " ".join(filter(None, [*map(str, troubles), message])),
        "periods_executed": names,
        "details": {**about, "periods": {name: run.of_period(name).to_dict() for name in names}},
        "metrics": _metrics(run),
    }


def _metrics(run: RunSummary) -> TaskResult:
    counts = run.metrics()
    outcome = {name: counts[f"{name}_instances"] for name in ("total", "processed", "failed", "skipped")}
    records = {level.name: run.of_level(level.name).total("total_records") for level in LEVELS.values()}
    return {"instances": outcome, "records": {**records, "total": counts["total_records"]}}


def _failure(error: CapacityError) -> TaskResult:
    return {**_result(RunSummary(), [error], "", []), "details": {}}
