"""Sends digests, each week to each receiver once; a mail server that refuses or hangs concerns its receiver only."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from email.message import EmailMessage
from functools import partial
from urllib.parse import unquote, urlsplit

from sqlalchemy import Engine, text

from capacity_assets.base.errors import database_errors
from capacity_assets.base.network import Opened, WebhookError, post_text, within
from capacity_assets.base.periods import Window
from capacity_assets.base.settings import DEFAULT_THRESHOLDS, Thresholds
from capacity_assets.database.tables import NO_TIME_LIMIT, wait_for_lock
from capacity_assets.digest.content import Digest, read_digest
from capacity_assets.digest.receivers import Receiver
from capacity_assets.digest.writing import as_mail, as_text, subject_of

# Between two bytes, and for a whole mail from the greeting to the end.
TIMEOUT_SECONDS, MAIL_SECONDS = 20, 60
PORTS = {"smtp": 587, "smtps": 465}


class SendingError(Exception):
    """A digest could not be handed over; the text says why, without any password."""


@dataclass(frozen=True)
class Channels:
    """By which ways digests are sent; None: not configured."""

    smtp_url: str | None = None
    sender: str | None = None
    webhook_url: str | None = None
    pages_url: str | None = None
    thresholds: Thresholds = DEFAULT_THRESHOLDS


@dataclass(frozen=True)
class Deliveries:
    """The receivers of a week's digest by outcome; those that failed have a reason."""

    sent: Sequence[str] = ()
    earlier: Sequence[str] = ()
    failed: tuple[tuple[str, str], ...] = ()


def send_digests(
    engine: Engine, week: Window, receivers: Sequence[Receiver], channels: Channels, *, again: bool = False
) -> Deliveries:
    """Send a week's digest to those without it, with `again` to all, and store who got it; raises DatabaseError."""
    problems: dict[str, list[str] | None] = {}
    with ExitStack() as stack:
        # One at a time, so that two runs do not both send. The lock goes with the connection.
        with database_errors(doing="locking the digest", kept="Nothing was sent."):
            connection = stack.enter_context(engine.connect())
            connection.execute(text(NO_TIME_LIMIT))
            wait_for_lock(connection, "digests")
        for receiver in receivers:
            problems[receiver.name] = _send_to(engine, week, receiver, channels, again=again)
    return Deliveries(
        [name for name, reasons in problems.items() if reasons == []],
        [name for name, reasons in problems.items() if reasons is None],
        tuple((name, " ".join(reasons)) for name, reasons in problems.items() if reasons),
    )


def _send_to(engine: Engine, week: Window, receiver: Receiver, channels: Channels, *, again: bool) -> list[str] | None:
    """Send by each channel of a receiver that has not delivered it; return what failed, None if all delivered it."""
    delivered = set() if again else set(_delivered(engine, week, receiver))
    names = [*([WEBHOOK] if receiver.webhook else []), *([MAIL] if receiver.to else [])]
    remaining = [name for name in names if name not in delivered]
    if not remaining:
        return None
    digest = read_digest(engine, week, receiver.label, channels.thresholds)
    problems = []
    for name in remaining:
        try:
            refusal = _SENDERS[name](digest, receiver, channels)
        except SendingError as error:
            problems.append(str(error))
        else:
            _store_delivery(engine, week, receiver, name)
            problems += [refusal] if refusal else []
    return problems


def _send_by_webhook(digest: Digest, _receiver: Receiver, channels: Channels) -> str:
    if channels.webhook_url is None:
        raise SendingError("CAPACITY_ALERT_WEBHOOK_URL is not set.")
    try:
        post_text(channels.webhook_url, f"{subject_of(digest)}\n{as_text(digest, channels.pages_url)}")
    except WebhookError as error:
        raise SendingError(f"The webhook {error}.") from None
    return ""


def _send_by_mail(digest: Digest, receiver: Receiver, channels: Channels) -> str:
    """Return which addresses were refused where others were not."""
    if channels.smtp_url is None or channels.sender is None:
        raise SendingError("CAPACITY_SMTP_URL and CAPACITY_MAIL_FROM are not set.")
    mail = as_mail(digest, channels.sender, receiver.to, channels.pages_url)
    return _mail(channels.smtp_url, mail)


WEBHOOK, MAIL = "webhook", "mail"
_SENDERS = {WEBHOOK: _send_by_webhook, MAIL: _send_by_mail}


def _mail(url: str, mail: EmailMessage) -> str:
    """Hand a mail over; return which addresses were refused where others were not.

    smtps:// encrypts from the start, smtp:// as soon as the server offers it. A password is never
    sent in clear: without encryption there is no login.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    context = ssl.create_default_context()
    is_encrypted = parts.scheme == "smtps"
    opened = Opened()
    encrypted = partial(opened.noting(smtplib.SMTP_SSL), context=context)
    connected = encrypted if is_encrypted else opened.noting(smtplib.SMTP)

    def hand_over() -> Mapping[str, object]:
        with connected(host, port, timeout=TIMEOUT_SECONDS) as server:
            server.ehlo()
            if not is_encrypted and server.has_extn("starttls"):
                server.starttls(context=context)
            elif not is_encrypted and parts.username:
                raise SendingError(f"{host} offers no encryption: the password was not sent to it.")
            if parts.username:
                server.login(unquote(parts.username), unquote(parts.password or ""))
            return server.send_message(mail)

    try:
        refused = within(MAIL_SECONDS, hand_over, opened.close)
    except smtplib.SMTPAuthenticationError:
        raise SendingError(f"{host} refuses the login.") from None
    except smtplib.SMTPRecipientsRefused as error:
        raise SendingError(f"{host} refuses {', '.join(error.recipients)}.") from None
    except smtplib.SMTPResponseException as error:
        raise SendingError(f"{host} refuses the mail: {error.smtp_code}.") from None
    except (smtplib.SMTPException, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SendingError(f"{host}:{port} does not take the mail: {reason}.") from None
    except ValueError:
        # Characters that do not go over the wire; the error's own text would show them.
        raise SendingError(f"{host}: CAPACITY_SMTP_URL has a login that mail servers do not take.") from None
    return f"{host} refuses {', '.join(refused)}; the others got it." if refused else ""


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
