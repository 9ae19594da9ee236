"""Sends digests, each week to each receiver once; a mail server that refuses or hangs concerns its receiver only."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, text

from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import Window
from capacity_assets.digest.content import Digest, read_digest
from capacity_assets.digest.writing import as_html, message_of
from capacity_assets.messages.receivers import DIGEST, Receiver
from capacity_assets.messages.sending import (
    SENT_SIDE_BY_SIDE,
    SendingError,
    SendingSettings,
    channels_of,
    one_at_a_time,
    send,
)


@dataclass(frozen=True)
class Deliveries:
    """The receivers of a week's digest by outcome; those that failed have a reason."""

    sent: Sequence[str] = ()
    earlier: Sequence[str] = ()
    failed: tuple[tuple[str, str], ...] = ()
    waiting: tuple[str, ...] = ()
    """Those that have quiet hours, or for which no time was left."""


def send_digests(  # noqa: PLR0913 -- what sending has
    engine: Engine,
    week: Window,
    receivers: Sequence[Receiver],
    settings: SendingSettings,
    *,
    again: bool = False,
    now: datetime | None = None,
) -> Deliveries:
    """Send a week's digest to those without it, with `again` to all, and store who got it; raises DatabaseError.

    Digests are read one after the other and sent side by side. Who has quiet hours `now` gets it later; None:
    everybody gets it.
    """
    problems: dict[str, Future[list[str]] | None] = {}
    waiting = []
    with one_at_a_time(engine, "digests"), ThreadPoolExecutor(SENT_SIDE_BY_SIDE) as threads:
        for receiver in receivers:
            if DIGEST not in receiver.gets:
                continue
            is_quiet = now is not None and receiver.quiet_until(now) is not None
            if is_quiet or settings.seconds_left <= 0:
                waiting.append(receiver.name)
                continue
            delivered = set() if again else set(_delivered(engine, week, receiver))
            remaining = [channel for channel in channels_of(receiver) if channel not in delivered]
            problems[receiver.name] = None
            if remaining:
                digest = read_digest(engine, week, receiver.label, settings.thresholds)
                problems[receiver.name] = threads.submit(_send_to, engine, digest, receiver, remaining, settings)
    outcomes = {name: future and future.result() for name, future in problems.items()}
    return Deliveries(
        [name for name, reasons in outcomes.items() if reasons == []],
        [name for name, reasons in outcomes.items() if reasons is None],
        tuple((name, " ".join(reasons)) for name, reasons in outcomes.items() if reasons),
        tuple(waiting),
    )


def _send_to(
    engine: Engine, digest: Digest, receiver: Receiver, channels: Sequence[str], settings: SendingSettings
) -> list[str]:
    """Send by each of these channels of a receiver; return what failed."""
    message, html = message_of(digest, settings.pages_url), as_html(digest, settings.pages_url)
    problems = []
    for channel in channels:
        try:
            refused = send(message, receiver, channel, settings, html=html if digest.has_news else "")
        except SendingError as error:
            problems.append(str(error))
            continue
        problems += [refused] if refused else []
        _store_delivery(engine, digest.week, receiver, channel)
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
