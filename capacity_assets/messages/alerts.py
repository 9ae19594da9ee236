"""Alerts about what fills soon: sent once to each receiver concerned, again when it gets worse, once when resolved.

What a receiver was told is in `capacity_alerts`. A row is written when somebody has to act and updated when the message
was handed over, so what a receiver that is away or has quiet hours did not get is sent by a later call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from typing import NamedTuple

from sqlalchemy import ColumnElement, Engine, delete, select, update
from sqlalchemy.dialects.postgresql import insert

from capacity_assets.base.errors import database_errors
from capacity_assets.base.label_rules import fleet_or_label
from capacity_assets.base.periods import Clock
from capacity_assets.base.units import human_change_mb, human_day, human_mb, printable
from capacity_assets.database.tables import capacity_alerts
from capacity_assets.forecast.decisions import decide_command
from capacity_assets.forecast.history_statements import DATABASE_ROWS
from capacity_assets.forecast.outlook import RECENT_DAYS, VOLUME
from capacity_assets.messages.message import NEW, PAGERDUTY, RESOLVED, WORSE, Event, Line, Message, Section
from capacity_assets.messages.receivers import Receiver
from capacity_assets.messages.sending import (
    SENT_SIDE_BY_SIDE,
    SendingError,
    SendingSettings,
    channels_of,
    one_at_a_time,
    send,
)
from capacity_assets.reading.links import address, page_url, subject_address
from capacity_assets.reading.risks import AlertRisk, OpenAlert, RiskKey, Risks, read_risks, subject_of


class Destination(NamedTuple):
    """A receiver and one of its channels, mail or webhook."""

    receiver: str
    channel: str


@dataclass(frozen=True)
class SentAlert:
    """What was sent about a subject by one channel; `sent_on` None: nothing yet."""

    opened: date
    sent_on: date | None
    full_by: date | None


@dataclass(frozen=True)
class News:
    """Something that a receiver is to be told: a risk that is new or worse, or an alert that is resolved."""

    kind: str
    key: RiskKey
    opened: date
    told: SentAlert | None = None
    risk: AlertRisk | None = None
    alert: OpenAlert | None = None
    reason: str = ""
    """Why it is resolved."""


@dataclass(frozen=True)
class AlertDeliveries:
    """Receivers that were told something, the end of the first quiet hours, and who failed, with the reason."""

    sent: Sequence[str] = ()
    quiet_until: datetime | None = None
    failed: Sequence[tuple[str, str]] = ()


def send_alerts(
    engine: Engine, clock: Clock, receivers: Sequence[Receiver], settings: SendingSettings, *, off_because: str = ""
) -> AlertDeliveries:
    """Tell each receiver in one message what it does not know yet of what fills soon; raises DatabaseError.

    Receivers are reached side by side: one that fails or hangs concerns nobody else, and is told by a later call.
    With `off_because`, no risk is told, and open alerts are resolved for this reason.
    """
    now = clock.local_now()
    with one_at_a_time(engine, "alerts"):
        told = _told(engine, [one.name for one in receivers], clock)
        risks = read_risks(engine, clock.today(), settings.thresholds, {key for sent in told.values() for key in sent})
        if risks is None:
            return AlertDeliveries()
        risks = risks.all_resolved(off_because) if off_because else risks
        due, ends = [], []
        for receiver in receivers:
            for channel in channels_of(receiver):
                destination = Destination(receiver.name, channel)
                news = list(news_of(receiver, risks, told.get(destination, {})))
                unsent = _open_alerts_for(engine, destination, news)
                quiet_until = receiver.quiet_until(now)
                if unsent and quiet_until is not None:
                    ends.append(quiet_until)
                elif unsent:
                    due.append((receiver, channel, unsent))

        def hand_over(delivery: tuple[Receiver, str, Sequence[News]]) -> tuple[str, str]:
            receiver, channel, unsent = delivery
            # PagerDuty gets an event for each anyway: what it took is not sent again because a later one failed.
            parts = [[one] for one in unsent] if receiver.format == PAGERDUTY else [unsent]
            for news in parts:
                try:
                    send(message_of(receiver, news, settings, risks.installation), receiver, channel, settings)
                except SendingError as error:
                    return receiver.name, str(error)
                _store(engine, Destination(receiver.name, channel), news, risks.as_of, now)
            return receiver.name, ""

        with ThreadPoolExecutor(SENT_SIDE_BY_SIDE) as threads:
            outcomes = list(threads.map(hand_over, due))
    sent = tuple(dict.fromkeys(name for name, problem in outcomes if not problem))
    return AlertDeliveries(sent, min(ends, default=None), tuple(outcome for outcome in outcomes if outcome[1]))


def news_of(receiver: Receiver, risks: Risks, told: Mapping[RiskKey, SentAlert]) -> Iterator[News]:
    """Yield what a receiver must be told, given what it was told before; the greatest risk comes first."""
    concerning = {risk.key: risk for risk in risks.risks if receiver.has(risk.labels)}
    for key, risk in concerning.items():
        before = told.get(key)
        if before is None or before.sent_on is None:
            yield News(NEW, key, before.opened if before else risks.as_of, before, risk)
        elif is_worse(before, risk):
            yield News(WORSE, key, before.opened, before, risk)
    for key, before in sorted(told.items()):
        if key in concerning:
            continue
        alert = risks.open_alerts[key]
        reason = alert.reason
        if reason is None and not receiver.has(alert.labels):
            reason = f"it no longer has the label {'='.join(receiver.label or ())}"
        if reason is not None:
            yield News(RESOLVED, key, before.opened, before, alert=alert, reason=reason)


def is_worse(told: SentAlert, risk: AlertRisk) -> bool:
    """Whether a risk has grown by a step since it was told: it is full now, or less than half of the time is left.

    That is the time from the day of the message to the day on which it was to be full. Days that pass are no step:
    the day on which it is full must have come nearer. A first day is a step too.
    """
    if told.sent_on is None or risk.full_by is None:
        return False
    if told.full_by is None or (risk.is_full and told.full_by > told.sent_on):
        return True
    return told.full_by > told.sent_on and risk.full_by - told.sent_on < (told.full_by - told.sent_on) / 2


def message_of(receiver: Receiver, news: Sequence[News], settings: SendingSettings, installation: str = "") -> Message:
    """Return the message that tells a receiver its news, with links where `settings` has the address of the pages."""
    pages_url = settings.pages_url
    sections = [_section(one, settings.thresholds.days, pages_url, installation) for one in news]
    headings = [section.heading for section in sections]
    title = f"{headings[0]}, and {len(headings) - 1} more" if len(headings) > 1 else headings[0]
    label = receiver.label
    page = "/filling" if label is None else address("/group", by=label[0], name=label[1])
    more = f"More about {printable(fleet_or_label(label))}"
    link = None if pages_url is None else Line(more, page_url(pages_url, page))
    return Message(title, sections=sections, link=link)


def _section(news: News, within_days: int, pages_url: str | None, installation: str) -> Section:
    key = news.key
    url = None if pages_url is None else page_url(pages_url, subject_address(key.subject, key.server_id, key.name))
    dedup = dedup_key(key, installation)
    if news.risk is None:
        assert news.alert is not None  # noqa: S101 -- news is about one or the other
        return _resolved(news, news.alert, url, dedup)
    lines, event = list(_lines(news, news.risk, within_days)), _event(news, news.risk, within_days, dedup)
    command = printable(decide_command(news.risk.outlook.server, key.subject, key.name))
    return Section(_heading(news.risk, within_days), lines, url=url, command=command, event=event)


def _heading(risk: AlertRisk, within_days: int) -> str:
    named = printable(subject_of(risk.key, risk.outlook.server))
    if risk.key.subject != DATABASE_ROWS:
        named = f"{named[0].upper()}{named[1:]}"
    if risk.full_by is None:
        return f"{named}: {_probability_text(risk, within_days)}"
    return f"{named} is full" if risk.is_full else f"{named} is likely full by {human_day(risk.full_by)}"


def _probability_text(risk: AlertRisk, within_days: int) -> str:
    return f"{100 * risk.probability:.0f} % within {within_days} days"


def _lines(news: News, risk: AlertRisk, within_days: int) -> Iterator[Line]:
    """Yield what a responder needs: size and limit, day, probability, growth, since when, whose it is."""
    outlook = risk.outlook
    binds = "disk" if outlook.binds == VOLUME else outlook.binds
    yield Line(
        f"{human_mb(outlook.size_mb)} of {human_mb(outlook.limit_mb or 0)} ({binds}, {outlook.source})", name="Used"
    )
    if risk.range_text:
        yield Line(risk.range_text, name="80 % range")
    if not risk.is_full:
        yield Line(_probability_text(risk, within_days), name="Probability")
    if news.kind == WORSE and news.told is not None and news.told.sent_on:
        before = "no day" if news.told.full_by is None else human_day(news.told.full_by)
        yield Line(f"{before}, sent on {human_day(news.told.sent_on)}", name="Last message")
    growth = f"{human_change_mb(round(outlook.change_mb_per_day))} per day"
    yield Line(growth + ("" if outlook.sooner_day is None else f". {outlook.remark}"), name="Forecast growth")
    if risk.growers:
        grown = ", ".join(f"{name} {human_change_mb(change)}" for name, change in risk.growers)
        yield Line(printable(grown), name=f"Grew most in {RECENT_DAYS} days")
    yield Line(human_day(news.opened), name="Act since")
    if outlook.planned is not None:
        yield Line(outlook.planned.sentence, name="Planned")
    if risk.decision is not None:
        yield Line(risk.decision.sentence, name="Decided")
    labels = ", ".join("=".join(label) for label in sorted(risk.labels.items()))
    yield Line(printable(labels) or "none", name="Labels")


def _resolved(news: News, alert: OpenAlert, url: str | None, dedup: str) -> Section:
    named = printable(subject_of(news.key, alert.server))
    lines = [Line(printable(news.reason), name="Why"), Line(human_day(news.opened), name="Act since")]
    figures = {"server": alert.server, **_subject(news.key), "labels": dict(alert.labels), "reason": news.reason}
    event = Event(RESOLVED, dedup, "info", alert.server, figures)
    return Section(f"Resolved: {named}", lines, url=url, event=event)


def _event(news: News, risk: AlertRisk, within_days: int, dedup: str) -> Event:
    outlook = risk.outlook
    days = {"full_by": risk.full_by, "early": outlook.early_day, "late": outlook.late_day}
    figures = {
        "server": outlook.server,
        **_subject(news.key),
        "size_mb": outlook.size_mb,
        "limit_mb": outlook.limit_mb,
        "binds": outlook.binds,
        "limit_source": outlook.source,
        "state": outlook.state,
        **{name: day and day.isoformat() for name, day in days.items()},
        "probability": risk.probability,
        "within_days": within_days,
        "change_mb_per_day": outlook.change_mb_per_day,
        "grew": [{"database": name, "change_mb": change} for name, change in risk.growers],
        "since": news.opened.isoformat(),
        "labels": dict(risk.labels),
        "decision": risk.decision and risk.decision.sentence,
    }
    severity = "critical" if risk.is_full else "error"
    return Event(news.kind, dedup, severity, outlook.server, figures)


def _subject(key: RiskKey) -> dict[str, object]:
    return {"server_id": key.server_id, "subject": key.subject, "name": key.name}


def dedup_key(key: RiskKey, installation: str) -> str:
    """Return the key of an alert, the same in all its messages; names may be longer than PagerDuty takes.

    Numbers of servers are the same in several installations, which may share a service of PagerDuty.
    """
    return f"capacity-{sha256(repr((installation, *key)).encode()).hexdigest()[:32]}"


def _told(engine: Engine, receivers: Sequence[str], clock: Clock) -> dict[Destination, dict[RiskKey, SentAlert]]:
    """Return the open alerts by receiver and channel."""
    told: dict[Destination, dict[RiskKey, SentAlert]] = {}
    alerts = capacity_alerts.c
    open_ones = select(capacity_alerts).where(alerts.receiver.in_(receivers), alerts.resolved.is_(None))
    with database_errors(doing="reading what was sent", kept="No alert was sent."), engine.connect() as connection:
        for row in connection.execute(open_ones):
            sent_on = None if row.sent_at is None else row.sent_at.astimezone(clock.zone).date()
            of_destination = told.setdefault(Destination(row.receiver, row.channel), {})
            key = RiskKey(row.instance_id, row.subject, row.name)
            of_destination[key] = SentAlert(row.opened, sent_on, row.full_by)
    return told


def _open_alerts_for(engine: Engine, destination: Destination, news: Sequence[News]) -> list[News]:
    """Store alerts of new risks, and delete those resolved before anything was sent; return what is to be sent."""
    new = [_row(destination, one.key) | {"opened": one.opened} for one in news if one.told is None]
    unsaid = [one for one in news if one.kind == RESOLVED and one.told is not None and one.told.sent_on is None]
    again = {"sent_at": None, "probability": None, "full_by": None, "resolved": None}
    with database_errors(doing="storing what is to be sent", kept="No alert was sent."), engine.begin() as connection:
        if new:
            entered = insert(capacity_alerts).values(new)
            opened = {"opened": entered.excluded.opened, **again}
            connection.execute(entered.on_conflict_do_update(index_elements=KEY, set_=opened))
        for one in unsaid:
            connection.execute(delete(capacity_alerts).where(*_is(destination, one.key)))
    return [one for one in news if one not in unsaid]


def _store(engine: Engine, destination: Destination, news: Sequence[News], as_of: date, now: datetime) -> None:
    """Store what a receiver was told."""
    kept = f"{destination.receiver!r} was told and may be told again."
    with database_errors(doing="storing what was sent", kept=kept), engine.begin() as connection:
        for one in news:
            values: dict[str, object] = {"sent_at": now}
            if one.risk is None:
                values["resolved"] = as_of
            else:
                values |= {"probability": one.risk.probability, "full_by": one.risk.full_by}
            connection.execute(update(capacity_alerts).where(*_is(destination, one.key)).values(values))


KEY = [column.name for column in capacity_alerts.primary_key.columns]


def _row(destination: Destination, key: RiskKey) -> dict[str, object]:
    return dict(zip(KEY, (*destination, *key), strict=True))


def _is(destination: Destination, key: RiskKey) -> Iterator[ColumnElement[bool]]:
    return (capacity_alerts.c[name] == value for name, value in _row(destination, key).items())
