"""Alerts about what fills soon: sent once to each receiver, again when the risk gets worse, and once when resolved.

`capacity_alerts` stores what each receiver was sent. A row is inserted when a risk becomes an alert and updated after
its message is delivered, so a later call sends what a receiver missed in quiet hours or while unreachable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from hashlib import sha256
from typing import NamedTuple

from sqlalchemy import ColumnElement, Engine, delete, select, update
from sqlalchemy.dialects.postgresql import insert

from capacity_assets.base.declarations import fleet_or_label
from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.units import human_change_mb, human_day, human_mb, human_probability, human_rate, printable
from capacity_assets.database.tables import capacity_alerts
from capacity_assets.forecast.decisions import decide_command
from capacity_assets.forecast.results import DATABASE, RECENT_DAYS, VOLUME_LIMIT
from capacity_assets.messages.channels import (
    CONCURRENT_DELIVERIES,
    Receiver,
    SendingError,
    SendingSettings,
    one_at_a_time,
    send,
)
from capacity_assets.messages.message import NEW, PAGERDUTY, RESOLVED, WORSE, Event, Message, MessageLine, Section
from capacity_assets.reading.forecasts import SubjectKey
from capacity_assets.reading.risks import AlertRisk, OpenAlert, Risks, read_risks, subject_of
from capacity_assets.reading.subjects import address, page_url, subject_address


class Destination(NamedTuple):
    """A receiver and one of its channels, such as mail."""

    receiver: str
    channel: str


@dataclass(frozen=True)
class SentAlert:
    """The last message about a subject by one channel; `sent_on` None: none was delivered yet."""

    opened: date
    sent_on: date | None
    full_by: date | None


@dataclass(frozen=True)
class AlertUpdate:
    """An update for a receiver: a new or worse risk, or a resolved alert."""

    kind: str
    key: SubjectKey
    opened: date
    earlier: SentAlert | None = None
    risk: AlertRisk | None = None
    alert: OpenAlert | None = None
    reason: str = ""
    """Why it is resolved."""


@dataclass(frozen=True)
class AlertDeliveries:
    """Receivers that were sent something, the end of the first quiet hours, and failed receivers with the reason."""

    sent: Sequence[str] = ()
    quiet_until: datetime | None = None
    failed: Sequence[tuple[str, str]] = ()


def send_alerts(
    engine: Engine, clock: Clock, receivers: Sequence[Receiver], settings: SendingSettings, *, off_because: str = ""
) -> AlertDeliveries:
    """Send each receiver one message with all of its new updates; raises DatabaseError.

    Messages are sent concurrently, so that a receiver that fails or hangs delays no other; a later call tries it again.
    With `off_because`, no risk is sent, and open alerts are resolved for this reason.
    """
    now = clock.local_now()
    with one_at_a_time(engine, "alerts"):
        open_alerts = _open_alerts(engine, [receiver.name for receiver in receivers], clock)
        risks = read_risks(
            engine, clock.today(), settings.thresholds, {key for sent in open_alerts.values() for key in sent}
        )
        risks = risks.all_resolved(off_because) if off_because else risks
        due, ends = [], []
        for receiver in receivers:
            for channel in receiver.channels:
                destination = Destination(receiver.name, channel)
                updates = list(updates_for(receiver, risks, open_alerts.get(destination, {})))
                unsent = _open_alerts_for(engine, destination, updates)
                quiet_until = receiver.quiet_until(now)
                if unsent and quiet_until is not None:
                    ends.append(quiet_until)
                elif unsent:
                    due.append((receiver, channel, unsent))
        with ThreadPoolExecutor(CONCURRENT_DELIVERIES) as threads:
            outcomes = list(threads.map(partial(_deliver, engine, risks, settings, now), due))
    sent = tuple(dict.fromkeys(name for name, problem in outcomes if not problem))
    return AlertDeliveries(sent, min(ends, default=None), tuple(outcome for outcome in outcomes if outcome[1]))


def _deliver(
    engine: Engine,
    risks: Risks,
    settings: SendingSettings,
    now: datetime,
    delivery: tuple[Receiver, str, Sequence[AlertUpdate]],
) -> tuple[str, str]:
    """Send updates by a channel of a receiver, and store that; return its name, and why it was not reached."""
    receiver, channel, unsent = delivery
    # PagerDuty takes one event per message. An event that it accepted is not sent again if a later one fails.
    parts = [[update] for update in unsent] if receiver.format == PAGERDUTY else [unsent]
    try:
        for updates in parts:
            send(message_of(receiver, updates, settings, risks.installation), receiver, channel, settings)
            _store(engine, Destination(receiver.name, channel), updates, risks.as_of, now)
    except SendingError as error:
        return receiver.name, str(error)
    return receiver.name, ""


def updates_for(receiver: Receiver, risks: Risks, sent: Mapping[SubjectKey, SentAlert]) -> Iterator[AlertUpdate]:
    """Yield the updates that a receiver has not been sent yet, the greatest risk first."""
    concerning = {risk.key: risk for risk in risks.risks if receiver.has(risk.labels)}
    for key, risk in concerning.items():
        before = sent.get(key)
        if before is None or before.sent_on is None:
            yield AlertUpdate(NEW, key, before.opened if before else risks.as_of, before, risk)
        elif is_worse(before, risk):
            yield AlertUpdate(WORSE, key, before.opened, before, risk)
    for key, before in sorted(sent.items()):
        if key in concerning:
            continue
        alert = risks.open_alerts[key]
        reason = alert.reason
        if reason is None and not receiver.has(alert.labels):
            reason = f"it no longer has the label {'='.join(receiver.label or ())}"
        if reason is not None:
            yield AlertUpdate(RESOLVED, key, before.opened, before, alert=alert, reason=reason)


def is_worse(sent: SentAlert, risk: AlertRisk) -> bool:
    """Whether a risk is worth another message: it is full, has a fill date for the first time, or fills much sooner.

    Much sooner: less than half of the time remains between the day of the last message and the fill date it gave. Only
    a nearer fill date counts, not the passing of days.
    """
    if sent.sent_on is None or risk.full_by is None:
        return False
    if sent.full_by is None or (risk.is_full and sent.full_by > sent.sent_on):
        return True
    return sent.full_by > sent.sent_on and risk.full_by - sent.sent_on < (sent.full_by - sent.sent_on) / 2


def message_of(
    receiver: Receiver, updates: Sequence[AlertUpdate], settings: SendingSettings, installation: str = ""
) -> Message:
    """Return the message with these updates; it has links if `settings` has the address of the pages."""
    pages_url = settings.pages_url
    sections = [_section(update, settings.thresholds.days, pages_url, installation) for update in updates]
    headings = [section.heading for section in sections]
    title = f"{headings[0]}, and {len(headings) - 1} more" if len(headings) > 1 else headings[0]
    label = receiver.label
    page = "/filling" if label is None else address("/group", by=label[0], name=label[1])
    more = f"More about {printable(fleet_or_label(label))}"
    link = None if pages_url is None else MessageLine(more, page_url(pages_url, page))
    return Message(title, sections=sections, link=link)


def _section(update: AlertUpdate, within_days: int, pages_url: str | None, installation: str) -> Section:
    key = update.key
    url = None if pages_url is None else page_url(pages_url, subject_address(key.subject, key.server_id, key.name))
    dedup = dedup_key(key, installation)
    risk = update.risk
    if risk is None:
        assert update.alert is not None  # noqa: S101 -- an update has a risk or an alert
        return _resolution(update, update.alert, url, dedup)
    lines, event = list(_lines(update, risk, within_days)), _event(update, risk, within_days, dedup)
    command = printable(decide_command(risk.runway.server, key.subject, key.name))
    return Section(_heading(risk, within_days), lines, url=url, command=command, event=event)


def _heading(risk: AlertRisk, within_days: int) -> str:
    named = printable(subject_of(risk.key, risk.runway.server))
    if risk.key.subject != DATABASE:
        named = f"{named[0].upper()}{named[1:]}"
    if risk.full_by is None:
        return f"{named}: {_probability_text(risk, within_days)}"
    return f"{named} is full" if risk.is_full else f"{named} is likely full by {human_day(risk.full_by)}"


def _probability_text(risk: AlertRisk, within_days: int) -> str:
    return f"{human_probability(risk.probability)} within {within_days} days"


def _lines(update: AlertUpdate, risk: AlertRisk, within_days: int) -> Iterator[MessageLine]:
    """Return the facts for a responder: size and limit, fill date, probability, growth, age of the alert, labels."""
    runway, earlier = risk.runway, update.earlier if update.kind == WORSE else None
    binds = "disk" if runway.binds == VOLUME_LIMIT else runway.binds
    last_message = ""
    if earlier is not None and earlier.sent_on:
        before = "no date" if earlier.full_by is None else human_day(earlier.full_by)
        last_message = f"{before}, sent on {human_day(earlier.sent_on)}"
    growth = human_rate(runway.change_mb_per_day)
    grown = ", ".join(f"{name} {human_change_mb(change)}" for name, change in risk.growers)
    labels = ", ".join("=".join(label) for label in sorted(risk.labels.items()))
    facts = {
        "Used": f"{human_mb(runway.size_mb)} of {human_mb(runway.limit_mb or 0)} ({binds}, {runway.source})",
        "80 % range": risk.range_text,
        "Probability": "" if risk.is_full else _probability_text(risk, within_days),
        "Last message": last_message,
        "Forecast growth": growth if runway.sooner_day is None else f"{growth}. {runway.remark}",
        f"Grew most in {RECENT_DAYS} days": printable(grown),
        "Act since": human_day(update.opened),
        "Planned": runway.planned and runway.planned.sentence,
        "Decided": risk.decision and risk.decision.sentence,
        "Labels": printable(labels) or "none",
    }
    return (MessageLine(text, name=name) for name, text in facts.items() if text)


def _resolution(update: AlertUpdate, alert: OpenAlert, url: str | None, dedup: str) -> Section:
    named = printable(subject_of(update.key, alert.server))
    lines = [MessageLine(printable(update.reason), name="Why"), MessageLine(human_day(update.opened), name="Act since")]
    figures = {"server": alert.server, **_subject(update.key), "labels": dict(alert.labels), "reason": update.reason}
    event = Event(RESOLVED, dedup, "info", alert.server, figures)
    return Section(f"Resolved: {named}", lines, url=url, event=event)


def _event(update: AlertUpdate, risk: AlertRisk, within_days: int, dedup: str) -> Event:
    runway = risk.runway
    days = {"full_by": risk.full_by, "early": runway.early_day, "late": runway.late_day}
    figures = {
        "server": runway.server,
        **_subject(update.key),
        "size_mb": runway.size_mb,
        "limit_mb": runway.limit_mb,
        "binds": runway.binds,
        "limit_source": runway.source,
        "state": runway.state,
        **{name: day and day.isoformat() for name, day in days.items()},
        "probability": risk.probability,
        "within_days": within_days,
        "change_mb_per_day": runway.change_mb_per_day,
        "grew": [{"database": name, "change_mb": change} for name, change in risk.growers],
        "since": update.opened.isoformat(),
        "labels": dict(risk.labels),
        "decision": risk.decision and risk.decision.sentence,
    }
    severity = "critical" if risk.is_full else "error"
    return Event(update.kind, dedup, severity, runway.server, figures)


def _subject(key: SubjectKey) -> dict[str, object]:
    return {"server_id": key.server_id, "subject": key.subject, "name": key.name}


def dedup_key(key: SubjectKey, installation: str) -> str:
    """Return the key of an alert, the same in all of its messages.

    It is a hash because names may be longer than PagerDuty accepts, and includes the installation because several may
    share a PagerDuty service and use the same server IDs.
    """
    return f"capacity-{sha256(repr((installation, *key)).encode()).hexdigest()[:32]}"


def _open_alerts(
    engine: Engine, receivers: Sequence[str], clock: Clock
) -> dict[Destination, dict[SubjectKey, SentAlert]]:
    """Return the open alerts by receiver and channel."""
    open_alerts: dict[Destination, dict[SubjectKey, SentAlert]] = {}
    alerts = capacity_alerts.c
    open_ones = select(capacity_alerts).where(alerts.receiver.in_(receivers), alerts.resolved.is_(None))
    with database_errors(doing="reading what was sent"), engine.connect() as connection:
        for row in connection.execute(open_ones):
            sent_on = None if row.sent_at is None else row.sent_at.astimezone(clock.zone).date()
            of_destination = open_alerts.setdefault(Destination(row.receiver, row.channel), {})
            key = SubjectKey(row.instance_id, row.subject, row.name)
            of_destination[key] = SentAlert(row.opened, sent_on, row.full_by)
    return open_alerts


def _open_alerts_for(engine: Engine, destination: Destination, updates: Sequence[AlertUpdate]) -> list[AlertUpdate]:
    """Store alerts of new risks, delete those resolved before anything was sent, and return the updates to send."""
    new = [_row(destination, update.key) | {"opened": update.opened} for update in updates if update.earlier is None]
    unsaid = [
        update
        for update in updates
        if update.kind == RESOLVED and update.earlier is not None and update.earlier.sent_on is None
    ]
    again = {"sent_at": None, "probability": None, "full_by": None, "resolved": None}
    with database_errors(doing="storing what is to be sent"), engine.begin() as connection:
        if new:
            entered = insert(capacity_alerts).values(new)
            opened = {"opened": entered.excluded.opened, **again}
            connection.execute(entered.on_conflict_do_update(index_elements=KEY, set_=opened))
        for alert_update in unsaid:
            connection.execute(delete(capacity_alerts).where(*_is(destination, alert_update.key)))
    return [update for update in updates if update not in unsaid]


def _store(
    engine: Engine, destination: Destination, updates: Sequence[AlertUpdate], as_of: date, now: datetime
) -> None:
    kept = f"{destination.receiver!r} got the alert, and may get it again."
    with database_errors(doing="storing what was sent", kept=kept), engine.begin() as connection:
        for alert_update in updates:
            values: dict[str, object] = {"sent_at": now}
            if alert_update.risk is None:
                values["resolved"] = as_of
            else:
                values |= {"probability": alert_update.risk.probability, "full_by": alert_update.risk.full_by}
            connection.execute(update(capacity_alerts).where(*_is(destination, alert_update.key)).values(values))


KEY = [column.name for column in capacity_alerts.primary_key.columns]


def _row(destination: Destination, key: SubjectKey) -> dict[str, object]:
    return dict(zip(KEY, (*destination, *key), strict=True))


def _is(destination: Destination, key: SubjectKey) -> Iterator[ColumnElement[bool]]:
    return (capacity_alerts.c[name] == value for name, value in _row(destination, key).items())
