"""Sends digests, each week to each receiver once; a mail server that refuses or hangs concerns its receiver only."""

from __future__ import annotations

import json
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

from sqlalchemy import Engine, text

from capacity_assets.digest.content import read_digest
from capacity_assets.digest.receivers import Receiver
from capacity_assets.digest.writing import as_mail, as_text, subject_of
from capacity_assets.foundation.errors import database_errors
from capacity_assets.periods import Window

TIMEOUT_SECONDS = 20
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


@dataclass(frozen=True)
class Sent:
    """What became of a week's digests: by name of receiver, those that failed with the reason."""

    sent: Sequence[str] = ()
    earlier: Sequence[str] = ()
    failed: tuple[tuple[str, str], ...] = ()


def send_digests(
    engine: Engine, week: Window, receivers: Sequence[Receiver], channels: Channels, *, again: bool = False
) -> Sent:
    """Send the digest of a week to those who did not get it yet, or with `again` to all.

    Raises:
        DatabaseError: the database failed; who got a digest before is remembered.
    """
    before = set() if again else set(_sent_before(engine, week))
    sent, failed = [], []
    for receiver in receivers:
        if receiver.name in before:
            continue
        try:
            _send(engine, week, receiver, channels)
        except SendingError as error:
            failed.append((receiver.name, str(error)))
        else:
            _remember(engine, week, receiver)
            sent.append(receiver.name)
    earlier = [receiver.name for receiver in receivers if receiver.name in before]
    return Sent(sent, earlier, tuple(failed))


def _send(engine: Engine, week: Window, receiver: Receiver, channels: Channels) -> None:
    digest = read_digest(engine, week, receiver.label)
    if receiver.webhook:
        if channels.webhook_url is None:
            raise SendingError("CAPACITY_ALERT_WEBHOOK_URL is not set.")
        _post(channels.webhook_url, f"{subject_of(digest)}\n{as_text(digest, channels.pages_url)}")
    if receiver.to:
        if channels.smtp_url is None or channels.sender is None:
            raise SendingError("CAPACITY_SMTP_URL and CAPACITY_MAIL_FROM are not set.")
        mail = as_mail(digest, channels.sender, receiver.to, channels.pages_url)
        _mail(channels.smtp_url, mail)


def _post(url: str, message: str) -> None:
    body = json.dumps({"text": message}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310 -- checked where it is read
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310 -- as above
            return
    except urllib.error.HTTPError as error:
        raise SendingError(f"The webhook answers {error.code}.") from None
    except (OSError, urllib.error.URLError) as error:
        raise SendingError(f"The webhook does not answer: {getattr(error, 'reason', error)}.") from None


def _mail(url: str, mail: EmailMessage) -> None:
    """Hand a mail over: smtps:// encrypts from the start, smtp:// as soon as the server offers it.

    A password is never sent in clear: without encryption there is no login.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    context = ssl.create_default_context()
    try:
        with _connected(parts.scheme, host, port, context) as server:
            server.ehlo()
            is_encrypted = parts.scheme == "smtps"
            if not is_encrypted and server.has_extn("starttls"):
                server.starttls(context=context)
                server.ehlo()
                is_encrypted = True
            if parts.username:
                if not is_encrypted:
                    raise SendingError(f"{host} offers no encryption: the password was not sent to it.")
                server.login(unquote(parts.username), unquote(parts.password or ""))
            refused = server.send_message(mail)
    except smtplib.SMTPAuthenticationError:
        raise SendingError(f"{host} refuses the login.") from None
    except smtplib.SMTPRecipientsRefused as error:
        raise SendingError(f"{host} refuses {', '.join(error.recipients)}.") from None
    except smtplib.SMTPResponseException as error:
        raise SendingError(f"{host} refuses the mail: {error.smtp_code}.") from None
    except (smtplib.SMTPException, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SendingError(f"{host}:{port} does not take the mail: {reason}.") from None
    if refused:
        raise SendingError(f"{host} refuses {', '.join(refused)}; the others got it.")


def _connected(scheme: str, host: str, port: int, context: ssl.SSLContext) -> smtplib.SMTP:
    if scheme == "smtps":
        return smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_SECONDS, context=context)
    return smtplib.SMTP(host, port, timeout=TIMEOUT_SECONDS)


def _sent_before(engine: Engine, week: Window) -> list[str]:
    query = text("SELECT receiver FROM capacity_digests WHERE week = :week")
    with database_errors(doing="reading who got a digest", kept="Nothing was sent."), engine.connect() as connection:
        return list(connection.execute(query, {"week": week.start}).scalars())


def _remember(engine: Engine, week: Window, receiver: Receiver) -> None:
    statement = text(
        "INSERT INTO capacity_digests (week, receiver) VALUES (:week, :receiver) "
        "ON CONFLICT (week, receiver) DO UPDATE SET sent_at = now()"
    )
    kept = f"The digest was sent to {receiver.name!r} and may be sent again."
    with database_errors(doing="noting a digest as sent", kept=kept), engine.begin() as connection:
        connection.execute(statement, {"week": week.start, "receiver": receiver.name})
