"""Alerts: failed runs and failed checks of severity error to the default receiver, what fills soon to its owners.

`messages.channels` delivers messages to receivers.

One sensor reads both kinds of event after its cursor, so that an unreachable receiver loses nothing: the tick fails,
the cursor stays, and the next tick sends again. It runs outside of runs and cannot harm them. The first tick begins at
the present; history is not sent.

After a result of the check `nothing_fills_soon`, or a decision, the sensor reads what fills. The database records sent
messages, so a receiver that is unreachable, or has quiet hours, gets them from a later tick, and the others do not get
them again.
"""

import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from hashlib import sha256

import dagster as dg
from dagster import DagsterEventType, EventLogEntry, EventRecordsFilter
from sqlalchemy import Engine

from capacity_assets.base.errors import CapacityError, ValidationError
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, first_of, printable
from capacity_assets.digest import send_digests
from capacity_assets.forecast.decisions import newest_decision
from capacity_assets.messages.alerts import send_alerts
from capacity_assets.messages.channels import (
    DEFAULT,
    Receiver,
    SendingError,
    SendingSettings,
    receivers_of,
    receivers_of_alerts,
    send,
)
from capacity_assets.messages.message import NEW, Event, Message, Sentence
from capacity_assets.orchestration.checks import DIGEST_SENT, NOTHING_FILLS_SOON
from capacity_assets.orchestration.documents import DIGEST_PERIOD, WAITING_WEEK
from capacity_assets.orchestration.graph import Graph
from capacity_assets.orchestration.metadata import PAGES, page_of_asset, unescaped
from capacity_assets.orchestration.private import (
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    IMPLICIT_ASSET_JOB_NAME,
    PARTITION_NAME_TAG,
    WILL_RETRY_TAG,
    TimeWindowPartitionsSubset,
)
from capacity_assets.reading.subjects import address, page_url
from capacity_assets.runtime import open_engine

ALERT_SENSOR = "alert_sensor"
RUNS_NAMED = 5
ASSETS_NAMED = 4
INTERVAL_SECONDS = 30
# Less than 60 seconds, after which Dagster ends a tick and loses its result.
TICK_SECONDS = 45
EVENTS_PER_TICK = 500
KINDS = (DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_SUCCESS, DagsterEventType.ASSET_CHECK_EVALUATION)
TEXTS_REMEMBERED, FAILURES_REMEMBERED = 20, 1_000
LINES_SHOWN = 50
ALERTS_OFF = "alerts are switched off by CAPACITY_FILLS_SOON_SEVERITY=warn"


class ReceiverError(Exception):
    """The receiver refused an alert; it is not lost, the next tick sends it again."""


def alert_definitions(graph: Graph) -> dg.Definitions:
    """Return the sensor, or nothing if no receiver is configured."""
    settings = graph.settings
    if settings.alert_webhook_url is None and settings.receivers is None:
        return dg.Definitions()

    @graph.sensor(
        ALERT_SENSOR,
        INTERVAL_SECONDS,
        "Sends failed runs and failed checks of severity error to CAPACITY_ALERT_WEBHOOK_URL, and what fills soon to "
        "the receivers in CAPACITY_RECEIVERS.",
        needs_services=False,
    )
    def tell(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        if context.cursor is None:
            context.update_cursor(_SensorState(newest_event(context.instance)).recorded())
            return dg.SkipReason("Alerting starts now; earlier failures are not sent.")
        state = _SensorState.of(context.cursor)
        links = Links(settings.dagster_url_of_people, settings.pages_url)
        state.held += _Events(context.instance, state, links).messages()
        outcome = _Outbox(settings, graph.clock, state, links).send()
        context.update_cursor(state.recorded())
        return dg.SkipReason(outcome)

    return dg.Definitions(sensors=[tell])


@dataclass
class _SensorState:
    """The state of the sensor: the last event it read, and the failing checks, jobs and assets it has reported.

    It also contains runs that Dagster is about to retry, with their jobs; the outcome is checked later.
    """

    after: int
    failing: dict[str, str] = field(default_factory=dict)
    failing_jobs: dict[str, list[str]] = field(default_factory=dict)
    retried: dict[str, str] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)
    """Messages that wait until quiet hours end, or the receiver answers."""
    next_look: float | None = None
    """The time of the next reading of what fills soon; None: not before something changes."""
    decided_at: float | None = None
    """When the newest decision was made or closed, as of the last reading."""
    off_because: str = ""
    """Why alerts were switched off at the last reading; empty: they were on."""
    digest_week: str | None = None
    """The week whose digest waits for the end of quiet hours."""

    @classmethod
    def of(cls, recorded: str) -> "_SensorState":
        """Read the cursor, which another version may have recorded."""
        return cls(**{name: value for name, value in json.loads(recorded).items() if name in cls.__dataclass_fields__})

    def recorded(self) -> str:
        """Return the state as the cursor."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Links:
    """The addresses for links of alerts: Dagster's UI and the pages; None: not configured."""

    dagster_url: str | None = None
    pages_url: str | None = None

    def run(self, address: str) -> list[str]:
        """Return the address of a run or backfill in Dagster's UI, if known."""
        return [] if self.dagster_url is None else [page_url(self.dagster_url, f"/runs/{address}")]

    def check(self, evaluation: dg.AssetCheckEvaluation) -> list[str]:
        """Return lines with the pages of a check's findings; without any, the page of its asset, ours or Dagster's."""
        pages = evaluation.metadata.get(PAGES)
        if isinstance(pages, dg.JsonMetadataValue) and isinstance(pages.data, dict):
            return [f"{printable(name)}: {url}" for name, url in pages.data.items()]
        if self.pages_url is not None:
            return [page_url(self.pages_url, page_of_asset(evaluation.asset_key.path[-1]))]
        asset = "/".join(evaluation.asset_key.path)
        return (
            [] if self.dagster_url is None else [page_url(self.dagster_url, address(f"/assets/{asset}", view="checks"))]
        )


class _Outbox:
    """Sends held messages, and what fills soon, within one tick."""

    def __init__(self, settings: Settings, clock: Clock, state: _SensorState, links: Links) -> None:
        self._settings, self._clock, self._state, self._links = settings, clock, state, links
        self._sending = replace(SendingSettings.of(settings), ends_at=time.monotonic() + TICK_SECONDS)
        self._problem, has_webhook = "", settings.alert_webhook_url is not None
        try:
            self._receivers = receivers_of_alerts(
                settings.receivers, settings.label_keys, has_alert_webhook=has_webhook
            )
        except ValidationError as error:
            # While the file is invalid, messages are sent only to the alert webhook.
            self._problem = f"CAPACITY_RECEIVERS: {' '.join(str(error).splitlines())}"
            self._receivers = receivers_of_alerts(None, settings.label_keys, has_alert_webhook=has_webhook)

    def send(self) -> str:
        """Send, and return a text about it; raises ReceiverError, as `_send_held`."""
        # Sent in parallel, so that a receiver that hangs delays only its own messages.
        with ThreadPoolExecutor() as threads:
            held = threads.submit(self._send_held)
            outcome = self._tell_owners()
        if self._problem and outcome:
            # Read again, because the receivers are known only when the file can be read.
            self._state.next_look = self._clock.now().timestamp()
        return " ".join(filter(None, [f"{counted(held.result(), 'alert')} sent.", self._problem, outcome]))

    def _send_held(self) -> int:
        """Send failed runs and checks to the default receiver, and return their number.

        They are held during its quiet hours, and while the file of receivers cannot be read. If some could not be sent,
        the next tick sends them. If none could be sent, raises ReceiverError, whose text contains no address and no
        secret.
        """
        state = self._state
        default = next((receiver for receiver in self._receivers if receiver.name == DEFAULT), None)
        if default is None:
            state.held = state.held if self._problem else []
            return 0
        if default.quiet_until(self._clock.local_now()) is not None:
            return 0
        for number, text in enumerate(state.held):
            try:
                self._send(default, text)
            except ReceiverError:
                if number == 0:
                    raise
                state.held = state.held[number:]
                return number
        sent, state.held = len(state.held), []
        return sent

    def _send(self, default: Receiver, text: str) -> None:
        title, *rest = text.split("\n")
        installation = (self._links.dagster_url, self._links.pages_url)
        key = f"capacity-{sha256(repr((installation, title)).encode()).hexdigest()[:32]}"
        message = Message(
            title, [Sentence(line) for line in rest], event=Event(NEW, key, "error", "capacity_assets", {})
        )
        problems = []
        for channel in default.channels:
            try:
                send(message, default, channel, self._sending)
            except SendingError as error:
                problems.append(str(error))
        # A message that arrived by one channel is not sent again because of the other.
        if len(problems) == len(default.channels):
            raise ReceiverError(f"{default.name}: {' '.join(problems)} Nothing is lost: the next tick sends again.")

    def _tell_owners(self) -> str:
        """Send what fills soon, and a waiting digest, to its receivers; return who got it and who was not reached.

        The next tick tries unreached receivers again. Another reading is due after quiet hours. Returns "" if no
        reading was due.
        """
        settings, state = self._settings, self._state
        off_because = "" if settings.fills_soon_severity == "error" else ALERTS_OFF
        try:
            with open_engine(settings, connect=False) as engine, ThreadPoolExecutor() as threads:
                if not self._look_is_due(engine, off_because):
                    return ""
                digest = threads.submit(self._send_digest, engine)
                deliveries = send_alerts(engine, self._clock, self._receivers, self._sending, off_because=off_because)
                ends = digest.result()
        except CapacityError as error:
            return str(error)
        ends += [deliveries.quiet_until] if deliveries.quiet_until else []
        next_end = min((end.timestamp() for end in ends), default=None)
        state.next_look = self._clock.now().timestamp() if deliveries.failed else next_end
        reached = f"What fills soon: sent to {', '.join(deliveries.sent) or 'nobody'}."
        failures = " ".join(f"{name}: {reason} The next tick sends again." for name, reason in deliveries.failed)
        return f"{reached} {failures}".rstrip()

    def _look_is_due(self, engine: Engine, off_because: str) -> bool:
        """Whether to read what fills: after a check, quiet hours, a decision, or a change of the severity."""
        newest, state = newest_decision(engine), self._state
        decided_at = None if newest is None else newest.timestamp()
        if (state.decided_at, state.off_because) != (decided_at, off_because):
            state.next_look, state.decided_at, state.off_because = 0, decided_at, off_because
        return state.next_look is not None and state.next_look <= self._clock.now().timestamp()

    def _send_digest(self, engine: Engine) -> list[datetime]:
        """Send the digest of the week that waited; return when to try again each receiver that still waits."""
        settings, state = self._settings, self._state
        if state.digest_week is None:
            return []
        now = self._clock.local_now()
        week = PERIODS[DIGEST_PERIOD].window_of(date.fromisoformat(state.digest_week))
        receivers = receivers_of(settings.receivers, settings.label_keys)
        waiting = send_digests(engine, week, receivers, self._sending, today=now.date(), now=now).waiting
        state.digest_week = state.digest_week if waiting else None
        return [receiver.quiet_until(now) or now for receiver in receivers if receiver.name in waiting]


def newest_event(instance: dg.DagsterInstance) -> int:
    """Return the storage id of the newest event of a kind that is sent."""
    newest = [
        record.storage_id
        for kind in KINDS
        for record in instance.event_log_storage.get_event_records(EventRecordsFilter(kind), limit=1)
    ]
    return max(newest, default=0)


@dataclass(frozen=True)
class _Events:
    """The events after those of a state, as messages: one per incident.

    Runs that failed for the same reason are reported together, and not again until a run of their job succeeds. A
    failed check is not reported again until it passes or finds something else.
    """

    instance: dg.DagsterInstance
    state: _SensorState
    links: Links

    def messages(self) -> list[str]:
        """Return the messages, and record the read events in the state."""
        state = self.state
        runs: dict[str, list[str]] = {}
        checks: dict[str, list[dg.AssetCheckEvaluation]] = {}
        for run_id, job in self._not_started_again():
            self._record(runs, run_id, job)
        for storage_id, entry in self._new():
            state.after = max(state.after, storage_id)
            event, job = entry.dagster_event, str(entry.job_name)
            if event is None:
                continue
            if event.event_type is DagsterEventType.RUN_SUCCESS:
                state.failing_jobs.pop(self._subject(entry.run_id, job), None)
            elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
                self._look_at(event.asset_check_evaluation_data, checks)
            elif _is_retried(self.instance.get_run_by_id(entry.run_id)):
                state.retried[entry.run_id] = job
            else:
                self._record(runs, entry.run_id, job)
        texts = [self._check_text(name, failed) for name, failed in checks.items()]
        return texts + [self._runs_text(text, run_ids) for text, run_ids in runs.items()]

    def _new(self) -> list[tuple[int, EventLogEntry]]:
        events = [
            (record.storage_id, record.event_log_entry)
            for kind in KINDS
            for record in self.instance.event_log_storage.get_event_records(
                EventRecordsFilter(kind, after_cursor=self.state.after), limit=EVENTS_PER_TICK, ascending=True
            )
        ]
        # The first events of all kinds are taken. Later ones wait for the next tick, because some of a kind may not be
        # read.
        return sorted(events, key=lambda pair: pair[0])[:EVENTS_PER_TICK]

    def _record(self, runs: dict[str, list[str]], run_id: str, job: str) -> None:
        """Add a failed run to `runs`, by its text, unless the same text was reported before."""
        subject = self._subject(run_id, job)
        before = self.state.failing_jobs.setdefault(subject, [])
        text = self._failure_text(run_id, subject)
        if text in runs or text not in before:
            runs.setdefault(text, []).append(run_id)
            self.state.failing_jobs[subject] = [*dict.fromkeys([*before, text])][-TEXTS_REMEMBERED:]

    def _subject(self, run_id: str, job: str) -> str:
        """Return the job of a run, or its assets if it has no job, as in a backfill."""
        if job != IMPLICIT_ASSET_JOB_NAME:
            return job
        run = self.instance.get_run_by_id(run_id)
        keys = sorted(key.to_user_string() for key in (run.asset_selection if run else None) or ())
        return first_of(keys, ASSETS_NAMED) or "assets"

    def _not_started_again(self) -> list[tuple[str, str]]:
        """Return the runs that Dagster could not start again, and forget those it has started; the rest waits."""
        waiting, self.state.retried, ended = self.state.retried, {}, []
        for run_id, job in waiting.items():
            run = self.instance.get_run_by_id(run_id)
            if not _is_retried(run):
                ended.append((run_id, job))
            elif run is not None and AUTO_RETRY_RUN_ID_TAG not in run.tags:
                self.state.retried[run_id] = job
        return ended

    def _look_at(self, evaluation: dg.AssetCheckEvaluation, checks: dict[str, list[dg.AssetCheckEvaluation]]) -> None:
        """Add an evaluation to `checks`, by name, if it newly failed; record failures in the state."""
        state, is_error = self.state, evaluation.severity is dg.AssetCheckSeverity.ERROR
        if evaluation.check_name == NOTHING_FILLS_SOON:
            state.next_look = 0 if is_error else state.next_look
            return
        if evaluation.check_name == DIGEST_SENT and WAITING_WEEK in evaluation.metadata:
            state.next_look, state.digest_week = 0, str(evaluation.metadata[WAITING_WEEK].value)
        name = f"{evaluation.asset_key.to_user_string()}: {evaluation.check_name}"
        # Each partition fails and passes on its own.
        of_partition = f"{evaluation.partition} " if evaluation.partition else ""
        known = [line for line in state.failing.pop(name, "").split("\n") if line]
        before = [line for line in known if line.startswith(of_partition)]
        others = [line for line in known if line not in before]
        # A check whose text changes daily names its incident in the metadata, so that it is reported once.
        incident = evaluation.metadata.get("incident")
        details = str(incident.value) if incident else sha256(str(evaluation.description).encode()).hexdigest()[:12]
        now = [f"{of_partition}{line}" for line in details.split("\n")]
        if evaluation.passed:
            known = others
        elif is_error:
            if not set(now) <= set(before):
                checks.setdefault(name, []).append(evaluation)
            # An incident is remembered until its check passes.
            known = [*dict.fromkeys([*(known if incident and not of_partition else others), *now])]
        if known:
            state.failing[name] = "\n".join(known[-FAILURES_REMEMBERED:])

    def _check_text(self, name: str, failed: Sequence[dg.AssetCheckEvaluation]) -> str:
        keys = sorted(filter(None, (evaluation.partition for evaluation in failed)))
        texts = (unescaped(str(evaluation.description or "failed")) for evaluation in failed)
        lines = [*dict.fromkeys(line for text in texts for line in text.split("\n"))]
        hidden = len(lines) - LINES_SHOWN
        more = [f"… and {hidden} more lines"] if hidden > 0 else []
        links = dict.fromkeys(link for evaluation in failed for link in self.links.check(evaluation))
        return "\n".join([f"Check failed. {name}", *_span_of(keys), *lines[:LINES_SHOWN], *more, *links])

    def _failure_text(self, run_id: str, subject: str) -> str:
        """Return the failed steps' own messages; never a traceback, which may contain a secret."""
        failures = self.instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE)
        reasons = [
            data.user_failure_data.description or ""
            for failure in failures
            if failure.dagster_event and (data := failure.dagster_event.step_failure_data).user_failure_data
        ]
        reason = " ".join(dict.fromkeys(reasons)) or "It ended without a reason; see its log in the UI."
        return f"{subject}: {reason}"

    def _runs_text(self, text: str, run_ids: list[str]) -> str:
        """Describe which runs failed and why, their partitions, and the link to them."""
        runs = list(filter(None, map(self.instance.get_run_by_id, run_ids)))
        keys = sorted({key for run in runs for key in _partition_keys(run)})
        lines = [f"Run failed ({first_of((run_id[:8] for run_id in run_ids), RUNS_NAMED)}). {text}"]
        lines += _span_of(keys)
        backfills = {run.tags.get(BACKFILL_ID_TAG) for run in runs}
        [backfill] = backfills if len(backfills) == 1 else [None]
        return "\n".join([*lines, *self.links.run(f"b/{backfill}" if backfill else run_ids[0])])


def _span_of(keys: Sequence[str]) -> list[str]:
    if len(keys) > 1:
        return [f"{len(keys)} partitions, {keys[0]} to {keys[-1]}"]
    return [f"Partition: {key}" for key in keys]


def _is_retried(run: dg.DagsterRun | None) -> bool:
    """Whether Dagster retries the run; only the last attempt is reported."""
    return run is not None and run.tags.get(WILL_RETRY_TAG) == "true"


def _partition_keys(run: dg.DagsterRun) -> Iterable[str]:
    if isinstance(run.partitions_subset, TimeWindowPartitionsSubset):
        return run.partitions_subset.get_partition_keys()
    key = run.tags.get(PARTITION_NAME_TAG)
    return [key] if key else []
