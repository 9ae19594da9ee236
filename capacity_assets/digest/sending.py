"""Sends digests, each week to each receiver once; a mail server that refuses or hangs concerns its receiver only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, text

from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import Window
from capacity_assets.digest.content import read_digest
from capacity_assets.digest.writing import as_html, message_of
from capacity_assets.messages.receivers import DIGEST, Receiver
from capacity_assets.messages.sending import Channels, SendingError, one_at_a_time, send, ways_of


@dataclass(frozen=True)
class Deliveries:
    """The receivers of a week's digest by outcome; those that failed have a reason."""

    sent: Sequence[str] = ()
    earlier: Sequence[str] = ()
    failed: tuple[tuple[str, str], ...] = ()
    waiting: tuple[str, ...] = ()
    """Those that have quiet hours."""


def send_digests(  # noqa: PLR0913 -- what sending has
    engine: Engine,
    week: Window,
    receivers: Sequence[Receiver],
    channels: Channels,
    *,
    again: bool = False,
    now: datetime | None = None,
) -> Deliveries:
    """Send a week's digest to those without it, with `again` to all, and store who got it; raises DatabaseError.

    Who has quiet hours `now` gets it later; None: everybody gets it.
    """
    problems: dict[str, list[str] | None] = {}
    waiting = []
    with one_at_a_time(engine, "digests"):
        for receiver in receivers:
            if DIGEST not in receiver.gets:
                continue
            if now is not None and receiver.quiet_until(now) is not None:
                waiting.append(receiver.name)
            else:
                problems[receiver.name] = _send_to(engine, week, receiver, channels, again=again)
    return Deliveries(
        [name for name, reasons in problems.items() if reasons == []],
        [name for name, reasons in problems.items() if reasons is None],
        tuple((name, " ".join(reasons)) for name, reasons in problems.items() if reasons),
        tuple(waiting),
    )


def _send_to(engine: Engine, week: Window, receiver: Receiver, channels: Channels, *, again: bool) -> list[str] | None:
    """Send by each way of a receiver that has not delivered it; return what failed, None if all delivered it."""
    delivered = set() if again else set(_delivered(engine, week, receiver))
    remaining = [way for way in ways_of(receiver) if way not in delivered]
    if not remaining:
        return None
    digest = read_digest(engine, week, receiver.label, channels.thresholds)
    message, html = message_of(digest, channels.pages_url), as_html(digest, channels.pages_url)
    problems = []
    for way in remaining:
        try:
            refused = send(message, receiver, way, channels, html=html if digest.has_news else "")
        except SendingError as error:
            problems.append(str(error))
            continue
        problems += [refused] if refused else []
        _store_delivery(engine, week, receiver, way)
    return problems


def _delivered(engine: Engine, week: Window, receiver: Receiver) -> list[str]:
    query = text("SELECT channel FROM capacity_digests WHERE week = :week AND receiver = :receiver")
    with database_errors(doing="reading who got a digest", kept="Nothing was sent."), engine.connect() as connection:
        return list(connection.execute(query, {"week": week.start, "receiver": receiver.name}).scalars())


def _store_delivery(engine: Engine, week: Window, receiver: Receiver, channel: str) -> None:
    statement = text(
        "INSERT INTO capacity_digests (week, receiver, channel) VALUES (:week, :receiver, :channel) "
        "ON CONFLICT (week, receiver, channel) DO UPDATE SET sent_at = now()"
    )
    kept = f"The digest was sent to {receiver.name!r} and may be sent again."
    with database_errors(doing="recording a digest as sent", kept=kept), engine.begin() as connection:
        connection.execute(statement, {"week": week.start, "receiver": receiver.name, "channel": channel})
