"""Hands messages over by mail or webhook, in bounded time; no address or password is in an error text."""

from __future__ import annotations

import math
import smtplib
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import Engine, text

from capacity_assets.base.declarations import is_web_address
from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.network import Opened, WebhookError, post_json, within
from capacity_assets.base.settings import DEFAULT_THRESHOLDS, Settings, Thresholds
from capacity_assets.collection.credentials import CredentialError, SecretFolders, password_of
from capacity_assets.database.tables import NO_TIME_LIMIT, wait_for_lock
from capacity_assets.messages.message import FORMS, PAGERDUTY, Message, mail_of, pagerduty_events
from capacity_assets.messages.receivers import Receiver

# Between two bytes, and for a whole mail from the greeting to the end.
TIMEOUT_SECONDS, MAIL_SECONDS = 20, 60
SENT_SIDE_BY_SIDE = 64
PORTS = {"smtp": 587, "smtps": 465}
PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"
WEBHOOK, MAIL = "webhook", "mail"


class SendingError(Exception):
    """A message could not be handed over; the text says why, without any password."""


@dataclass(frozen=True)
class SendingSettings:
    """How messages are sent, and the thresholds of alerts. None: not configured."""

    smtp_url: str | None = None
    sender: str | None = None
    webhook_url: str | None = None
    pages_url: str | None = None
    secrets: SecretFolders | None = None
    thresholds: Thresholds = DEFAULT_THRESHOLDS
    ends_at: float | None = None
    """By when all sending ends, on the clock `time.monotonic`; None: each message has its own limit only."""

    @classmethod
    def of(cls, settings: Settings) -> SendingSettings:
        """Return what is configured. Whoever can write the file of receivers can have any variable or file read."""
        return cls(
            settings.smtp_url.get_secret_value() if settings.smtp_url else None,
            settings.mail_from,
            settings.alert_webhook_url.get_secret_value() if settings.alert_webhook_url else None,
            settings.pages_url,
            SecretFolders(settings.secrets_folder, ("*",), (Path("/"),)),
            settings.thresholds,
        )

    @property
    def seconds_left(self) -> float:
        """How long sending may take; infinity without `ends_at`, not above 0 when the time is over."""
        return math.inf if self.ends_at is None else self.ends_at - time.monotonic()


def channels_of(receiver: Receiver) -> list[str]:
    """Return by which channels a receiver gets messages: webhook, mail or both."""
    return [*([WEBHOOK] if receiver.webhook else []), *([MAIL] if receiver.to else [])]


def send(
    message: Message, receiver: Receiver, channel: str, settings: SendingSettings, *, html: str | None = None
) -> str:
    """Hand a message over; return which mail addresses were refused where others were not.

    `html` replaces the HTML part of a mail; an empty one leaves plain text only.

    Raises:
        SendingError: nobody got it.
    """
    if settings.seconds_left <= 0:
        raise SendingError("Other receivers took all the time there was.")
    if channel == MAIL:
        if settings.smtp_url is None or settings.sender is None:
            raise SendingError("CAPACITY_SMTP_URL and CAPACITY_MAIL_FROM are not set.")
        mail = mail_of(message, settings.sender, receiver.to, html)
        return _mail(settings.smtp_url, mail, min(MAIL_SECONDS, settings.seconds_left))
    address = _webhook_of(receiver, settings)
    if receiver.format == PAGERDUTY:
        url, payloads = receiver.events_url or PAGERDUTY_URL, pagerduty_events(message, address)
    else:
        url, payloads = address, [FORMS[receiver.format](message)]
    for payload in payloads:
        try:
            post_json(url, payload, settings.seconds_left)
        except WebhookError as error:
            raise SendingError(f"The webhook {error}.") from None
    return ""


def unreachable(receivers: Sequence[Receiver], settings: SendingSettings) -> Iterator[str]:
    """Say what is missing to reach receivers."""
    for receiver in receivers:
        if receiver.to and (settings.smtp_url is None or settings.sender is None):
            yield "mail needs CAPACITY_SMTP_URL and CAPACITY_MAIL_FROM too"
        if receiver.webhook is True and settings.webhook_url is None:
            yield "webhook = true needs CAPACITY_ALERT_WEBHOOK_URL too"
        elif receiver.webhook:
            try:
                _webhook_of(receiver, settings)
            except SendingError as error:
                yield f"{receiver.name}: {error}"


def _webhook_of(receiver: Receiver, settings: SendingSettings) -> str:
    """Return the address of a receiver's webhook, or its routing key."""
    if isinstance(receiver.webhook, str):
        assert settings.secrets is not None  # noqa: S101 -- of channels that are configured
        try:
            secret = password_of(receiver.webhook, settings.secrets)
        except (CredentialError, ValidationError) as error:
            raise SendingError(str(error).replace("No password: ", "No webhook: ")) from None
        if receiver.format != PAGERDUTY and not is_web_address(secret):
            raise SendingError(f"No webhook: what {receiver.webhook} holds is not a web address.")
        return secret
    if settings.webhook_url is None:
        raise SendingError("CAPACITY_ALERT_WEBHOOK_URL is not set.")
    return settings.webhook_url


def _mail(url: str, mail: EmailMessage, seconds: float) -> str:
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
        refused = within(seconds, hand_over, opened.close)
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


@contextmanager
def one_at_a_time(engine: Engine, what: str) -> Iterator[None]:
    """Keep others from sending the same, so that nobody gets it twice; the lock goes with its connection."""
    with ExitStack() as stack:
        with database_errors(doing=f"locking the {what}", kept="Nothing was sent."):
            connection = stack.enter_context(engine.connect())
            connection.execute(text(NO_TIME_LIMIT))
            wait_for_lock(connection, what)
        yield
