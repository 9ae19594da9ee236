"""Alerts to a webhook: failed runs, and failed checks of severity error.

One sensor reads both kinds of event after its cursor, so that a receiver that is away loses nothing: the tick
fails, the cursor stays, the next tick sends again. It runs beside the work and can harm no run. The first
tick begins at the present; history is not sent.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import dagster as dg
from dagster import DagsterEventType, EventLogEntry, EventRecordsFilter

from capacity_assets.base.network import WebhookError, post_text
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import first_of, printable
from capacity_assets.orchestration.metadata import PAGES, page_of_asset, unescaped
from capacity_assets.orchestration.private.definitions import (
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    IMPLICIT_ASSET_JOB_NAME,
    PARTITION_NAME_TAG,
    WILL_RETRY_TAG,
    TimeWindowPartitionsSubset,
)
from capacity_assets.reading.links import address, page_url

ALERT_SENSOR = "alert_sensor"
RUNS_NAMED = 5
ASSETS_NAMED = 4
INTERVAL_SECONDS = 30
EVENTS_PER_TICK = 500
KINDS = (DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_SUCCESS, DagsterEventType.ASSET_CHECK_EVALUATION)
TEXTS_REMEMBERED = 20


class ReceiverError(Exception):
    """The receiver refused an alert; it is not lost, the next tick sends it again."""


@dataclass(frozen=True)
class Links:
    """Where alerts link to: Dagster's UI and the pages; None: not configured."""

    dagster_url: str | None = None
    pages_url: str | None = None

    def run(self, address: str) -> list[str]:
        """Return the address of a run or backfill in Dagster's UI, if known."""
        return [] if self.dagster_url is None else [page_url(self.dagster_url, f"/runs/{address}")]

    def check(self, evaluation: dg.AssetCheckEvaluation) -> list[str]:
        """Return lines with the pages of what a check found; else of its asset, on the pages or in Dagster's UI."""
        pages = evaluation.metadata.get(PAGES)
        if isinstance(pages, dg.JsonMetadataValue) and isinstance(pages.data, dict):
            return [f"{printable(name)}: {url}" for name, url in pages.data.items()]
        if self.pages_url is not None:
            return [page_url(self.pages_url, page_of_asset(evaluation.asset_key.path[-1]))]
        asset = "/".join(evaluation.asset_key.path)
        return (
            [] if self.dagster_url is None else [page_url(self.dagster_url, address(f"/assets/{asset}", view="checks"))]
        )


def alert_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """Build the sensor, or none if no receiver is configured."""
    if settings.alert_webhook_url is None:
        return []
    webhook_url = settings.alert_webhook_url.get_secret_value()
    links = Links(settings.dagster_url_of_people, settings.pages_url)

    @dg.sensor(
        name=ALERT_SENSOR,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sends failed runs and failed checks of severity error to CAPACITY_ALERT_WEBHOOK_URL.",
    )
    def send_alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        if context.cursor is None:
            context.update_cursor(json.dumps(asdict(_State(newest_event(context.instance)))))
            return dg.SkipReason("Begins here; what failed before is not sent.")
        state = _State.of(json.loads(context.cursor))
        messages = _new_incidents(context.instance, state, links)
        for message in messages:
            send(webhook_url, message)
        context.update_cursor(json.dumps(asdict(state)))
        return dg.SkipReason(f"{len(messages)} alerts sent.")

    return [send_alerts]


@dataclass
class _State:
    """The state of the sensor: the last event it saw, and the failing checks, jobs and assets it has reported.

    It also holds runs that Dagster is about to retry, with their jobs; the outcome is checked later.
    """

    after: int
    failing: dict[str, str] = field(default_factory=dict)
    failing_jobs: dict[str, list[str]] = field(default_factory=dict)
    retried: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, remembered: Mapping[str, Any]) -> "_State":
        """Read what was remembered, by whatever version."""
        return cls(**{name: value for name, value in remembered.items() if name in cls.__dataclass_fields__})


def newest_event(instance: dg.DagsterInstance) -> int:
    """Return the storage id of the newest event of a kind that is sent."""
    newest = [
        record.storage_id
        for kind in KINDS
        for record in instance.event_log_storage.get_event_records(EventRecordsFilter(kind), limit=1)
    ]
    return max(newest, default=0)


def _events_after(instance: dg.DagsterInstance, after: int) -> list[tuple[int, EventLogEntry]]:
    events = [
        (record.storage_id, record.event_log_entry)
        for kind in KINDS
        for record in instance.event_log_storage.get_event_records(
            EventRecordsFilter(kind, after_cursor=after), limit=EVENTS_PER_TICK, ascending=True
        )
    ]
    # Both kinds were cut at the same number: what lies beyond the shorter reach waits for the next tick.
    return sorted(events, key=lambda pair: pair[0])[:EVENTS_PER_TICK]


def _new_incidents(instance: dg.DagsterInstance, state: _State, links: Links) -> list[str]:
    """Turn the events since the state into messages, one per incident.

    Runs that failed alike are reported together and once until a run of their job succeeds, a check once until
    it passes or finds something else.
    """
    runs: dict[str, list[str]] = {}
    messages: list[str] = []

    def record(run_id: str, job: str) -> None:
        subject = _subject(instance, run_id, job)
        before = state.failing_jobs.setdefault(subject, [])
        text = _failure_text(instance, run_id, subject)
        if text in runs or text not in before:
            runs.setdefault(text, []).append(run_id)
            state.failing_jobs[subject] = [*dict.fromkeys([*before, text])][-TEXTS_REMEMBERED:]

    for run_id, job in _not_started_again(instance, state):
        record(run_id, job)
    for storage_id, entry in _events_after(instance, state.after):
        state.after = max(state.after, storage_id)
        event = entry.dagster_event
        if event is None:
            continue
        job = str(entry.job_name)
        if event.event_type is DagsterEventType.RUN_SUCCESS:
            state.failing_jobs.pop(_subject(instance, entry.run_id, job), None)
        elif event.event_type is DagsterEventType.RUN_FAILURE:
            if _is_retried(instance.get_run_by_id(entry.run_id)):
                state.retried[entry.run_id] = job
            else:
                record(entry.run_id, job)
        elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            messages += _check_incident(event.asset_check_evaluation_data, state.failing, links)
    return messages + [_runs_text(instance, text, run_ids, links) for text, run_ids in runs.items()]


def _subject(instance: dg.DagsterInstance, run_id: str, job: str) -> str:
    """Return the job of a run, or its assets if it has no job, as in a backfill."""
    if job != IMPLICIT_ASSET_JOB_NAME:
        return job
    run = instance.get_run_by_id(run_id)
    keys = sorted(key.to_user_string() for key in (run.asset_selection if run else None) or ())
    return first_of(keys, ASSETS_NAMED) or "assets"


def _is_retried(run: dg.DagsterRun | None) -> bool:
    """Whether Dagster starts the run again by itself; the last attempt is reported."""
    return run is not None and run.tags.get(WILL_RETRY_TAG) == "true"


def _not_started_again(instance: dg.DagsterInstance, state: _State) -> list[tuple[str, str]]:
    """Return the runs that Dagster could not start again, and drop those it has started; the others wait."""
    waiting, state.retried, ended = state.retried, {}, []
    for run_id, job in waiting.items():
        run = instance.get_run_by_id(run_id)
        if not _is_retried(run):
            ended.append((run_id, job))
        elif run is not None and AUTO_RETRY_RUN_ID_TAG not in run.tags:
            state.retried[run_id] = job
    return ended


def _check_incident(evaluation: dg.AssetCheckEvaluation, failing: dict[str, str], links: Links) -> list[str]:
    name = f"{evaluation.asset_key.to_user_string()}: {evaluation.check_name}"
    if evaluation.passed:
        failing.pop(name, None)
    if evaluation.passed or evaluation.severity is not dg.AssetCheckSeverity.ERROR:
        return []
    text = unescaped(str(evaluation.description or "failed"))
    message = "\n".join([f"Check failed. {name}", text, *links.check(evaluation)])
    # Some checks say in different words each day what is one and the same incident.
    incident = evaluation.metadata.get("incident")
    if incident:
        known = set(filter(None, failing.get(name, "").split("\n")))
        now = set(str(incident.value).split("\n"))
        failing[name] = "\n".join(sorted(known | now))
        return [] if now <= known else [message]
    if failing.get(name) == text:
        return []
    failing[name] = text
    return [message]


def _failure_text(instance: dg.DagsterInstance, run_id: str, subject: str) -> str:
    """Return the failed steps' own messages; never a traceback, which may hold a secret."""
    failures = instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE)
    reasons = [
        data.user_failure_data.description or ""
        for failure in failures
        if failure.dagster_event and (data := failure.dagster_event.step_failure_data).user_failure_data
    ]
    reason = " ".join(dict.fromkeys(reasons)) or "It ended without saying why; its log in the UI has more."
    return f"{subject}: {reason}"


def _runs_text(instance: dg.DagsterInstance, text: str, run_ids: list[str], links: Links) -> str:
    """Describe which runs failed and why, their partitions, and the link to them."""
    runs = list(filter(None, map(instance.get_run_by_id, run_ids)))
    keys = sorted({key for run in runs for key in _partition_keys(run)})
    lines = [f"Run failed ({first_of((run_id[:8] for run_id in run_ids), RUNS_NAMED)}). {text}"]
    if keys:
        lines.append(f"Partition: {keys[0]}" if len(keys) == 1 else f"{len(keys)} partitions, {keys[0]} to {keys[-1]}")
    backfills = {run.tags.get(BACKFILL_ID_TAG) for run in runs}
    [backfill] = backfills if len(backfills) == 1 else [None]
    return "\n".join([*lines, *links.run(f"b/{backfill}" if backfill else run_ids[0])])


def _partition_keys(run: dg.DagsterRun) -> Iterable[str]:
    if isinstance(run.partitions_subset, TimeWindowPartitionsSubset):
        return run.partitions_subset.get_partition_keys()
    key = run.tags.get(PARTITION_NAME_TAG)
    return [key] if key else []


def send(webhook_url: str, text: str) -> None:
    """Post one message; raises ReceiverError, which names neither the address nor its secret path."""
    try:
        post_text(webhook_url, text)
    except WebhookError as error:
        raise ReceiverError(
            f"The receiver in CAPACITY_ALERT_WEBHOOK_URL {error}. Nothing is lost: the next tick sends again."
        ) from None
