"""Receivers of digests and alerts, read from the file CAPACITY_RECEIVERS, and the channels that deliver to them.

A further channel is an entry of `CHANNELS` and a field of `Receiver`. Every delivery has a time limit. Error texts
contain no webhook address and no password.
"""

from __future__ import annotations

import math
import re
import smtplib
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Annotated
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import BeforeValidator
from sqlalchemy import Engine, text

from capacity_assets.base.declarations import (
    NO_OTHER_NAMES,
    checked_label,
    declaration,
    is_web_address,
    key_and_value,
    named_tables,
)
from capacity_assets.base.errors import ValidationError, database_errors, refuse
from capacity_assets.base.network import Connections, WebhookError, post_json, run_within
from capacity_assets.base.settings import DEFAULT_THRESHOLDS, Settings, Thresholds
from capacity_assets.base.units import suggestion
from capacity_assets.collection.credentials import CredentialError, SecretFolders, checked_reference, password_of
from capacity_assets.database.locks import NO_TIME_LIMIT, wait_for_lock
from capacity_assets.messages.message import MESSAGE_FORMATS, PAGERDUTY, RENDERERS, Message, mail_of, pagerduty_events

TABLE = "receivers"
LONGEST_NAME = 255
# One at sign, no space and no line break: with these, an address could add mail headers.
ADDRESS = re.compile(r"[^@\s,;<>]+@[^@\s,;<>]+")
DIGEST, ALERTS = "digest", "alerts"
DEFAULT = "default"
"""The receiver of failed runs and checks: CAPACITY_ALERT_WEBHOOK_URL, unless the file has a receiver of this name."""
HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")

WEBHOOK, MAIL = "webhook", "mail"
# Per network operation, and for a whole mail.
TIMEOUT_SECONDS, MAIL_SECONDS = 20, 60
CONCURRENT_DELIVERIES = 64
PORTS = {"smtp": 587, "smtps": 465}
PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"


class SendingError(Exception):
    """A message could not be delivered. The text says why and contains no password."""


def _label(written: object) -> tuple[str, str]:
    return key_and_value(str(written))


def _hours(written: object) -> tuple[time, time]:
    match = HOURS.fullmatch(str(written))
    if match is None:
        raise ValidationError(f"quiet is {written!r}; write the hours without messages as 22:00-07:00.")
    first_hour, first_minute, last_hour, last_minute = map(int, match.groups())
    return time(first_hour, first_minute), time(last_hour, last_minute)


@dataclass(frozen=True)
class Receiver:
    """A receiver of messages by mail, webhook or both. `label` None: about the whole fleet."""

    __pydantic_config__ = NO_OTHER_NAMES

    name: str
    to: Sequence[str] = ()
    webhook: bool | str = False
    """A reference to its webhook address (`env:NAME`, `file:/PATH` or `secret:NAME`); true: the alert webhook."""
    format: str = "text"
    """Format of the webhook, one of MESSAGE_FORMATS."""
    label: Annotated[tuple[str, str], BeforeValidator(_label)] | None = None
    gets: Sequence[str] = (DIGEST,)
    """digest, alerts or both."""
    quiet: Annotated[tuple[time, time], BeforeValidator(_hours)] | None = None
    """Start and end of the hours without messages, in CAPACITY_TIMEZONE."""
    events_url: str | None = None
    """Events endpoint of PagerDuty; None: that of its service in the United States."""

    @property
    def channels(self) -> list[str]:
        """The names of its channels: webhook, mail or both."""
        return [name for name, channel in CHANNELS.items() if channel.reaches(self)]

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether messages about a subject with these labels are sent to this receiver."""
        return self.label is None or labels.get(self.label[0]) == self.label[1]

    def quiet_until(self, now: datetime) -> datetime | None:
        """Return the end of the current quiet hours; None outside of them. `now` is in the configured zone."""
        if self.quiet is None:
            return None
        first, last = self.quiet
        moment = now.time()
        is_quiet = first <= moment < last if first <= last else moment >= first or moment < last
        if not is_quiet:
            return None
        day = now.date() if moment < last else now.date() + timedelta(days=1)
        return datetime.combine(day, last, tzinfo=now.tzinfo)


def receivers_of(path: Path | None, keys: Sequence[str]) -> list[Receiver]:
    """Read the file, if there is one, one table `[[receivers]]` each; raises ValidationError with all problems."""
    return named_tables(path, TABLE, "receiver", lambda values: _receiver(values, keys)) if path else []


def receivers_of_alerts(path: Path | None, keys: Sequence[str], *, has_alert_webhook: bool) -> list[Receiver]:
    """Return the receivers of alerts, the default one first if it exists; raises as `receivers_of`."""
    declared = receivers_of(path, keys)
    alerted = [receiver for receiver in declared if ALERTS in receiver.gets]
    if has_alert_webhook and all(receiver.name != DEFAULT for receiver in declared):
        alerted.append(Receiver(DEFAULT, webhook=True, gets=(ALERTS,)))
    return sorted(alerted, key=lambda receiver: receiver.name != DEFAULT)


def _receiver(values: Mapping[str, object], keys: Sequence[str]) -> Receiver:
    receiver = declaration(Receiver, values)
    gets, known = tuple(receiver.gets), ", ".join(MESSAGE_FORMATS)
    if isinstance(receiver.webhook, str):
        _refuse_an_address(receiver.webhook)
    refuse(
        (
            len(receiver.name) > LONGEST_NAME or not receiver.name.isprintable(),
            f"name must have 1 to {LONGEST_NAME} printable characters.",
        ),
        (
            not all(ADDRESS.fullmatch(address) for address in receiver.to),
            'to is a list of mail addresses, as ["dba@example.com"].',
        ),
        (not receiver.channels, "it has no address: write to = [...], or webhook = true."),
        (
            receiver.format not in MESSAGE_FORMATS,
            f"format is {receiver.format!r}; write one of {known}.{suggestion(receiver.format, MESSAGE_FORMATS)}",
        ),
        (not gets or not set(gets) <= {DIGEST, ALERTS}, f'gets is a list of "{DIGEST}" and "{ALERTS}".'),
        (
            receiver.name == DEFAULT and ALERTS not in gets,
            f'the receiver {DEFAULT} gets failed runs and checks: write gets = ["{ALERTS}"].',
        ),
        (
            receiver.format == PAGERDUTY and (DIGEST in gets or receiver.webhook is True),
            'PagerDuty takes alerts only, and webhook refers to its routing key: write gets = ["alerts"] and '
            'webhook = "env:NAME".',
        ),
        (
            receiver.events_url is not None and not is_web_address(receiver.events_url),
            "events_url is not a web address; write https://host/path.",
        ),
    )
    key, value = checked_label(*receiver.label, keys) if receiver.label else (None, None)
    label = None if key is None else (key, str(value))
    return replace(receiver, to=tuple(receiver.to), gets=gets, label=label)


def _refuse_an_address(reference: str) -> None:
    try:
        if checked_reference(reference) != "own":
            return
    except ValidationError:
        pass
    raise ValidationError(
        "webhook is true or a reference to the address, which is a secret: write env:NAME, file:/PATH or secret:NAME. "
        "The value is not repeated here."
    )


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
    """When all sending must end, on the clock `time.monotonic`; None: each message has only its own time limit."""

    @classmethod
    def of(cls, settings: Settings) -> SendingSettings:
        """Return the configured receivers. A writer of the file can refer to any variable and file."""
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
        """Remaining time; infinite without `ends_at`, zero or negative when it is over."""
        return math.inf if self.ends_at is None else self.ends_at - monotonic()

    def webhook_of(self, receiver: Receiver) -> str:
        """Return the webhook address of a receiver, or its routing key; raises SendingError."""
        if not isinstance(receiver.webhook, str):
            if self.webhook_url is None:
                raise SendingError("CAPACITY_ALERT_WEBHOOK_URL is not set.")
            return self.webhook_url
        assert self.secrets is not None  # noqa: S101 -- configured wherever receivers have references
        try:
            secret = password_of(receiver.webhook, self.secrets)
        except CredentialError as error:
            raise SendingError(f"No webhook: {error.reason}") from None
        except ValidationError as error:
            raise SendingError(str(error)) from None
        if receiver.format != PAGERDUTY and not is_web_address(secret):
            raise SendingError(f"No webhook: the value of {receiver.webhook} is not a web address.")
        return secret


def send(
    message: Message, receiver: Receiver, channel: str, settings: SendingSettings, *, html: str | None = None
) -> str:
    """Send a message to a receiver; return which mail addresses were refused while others were accepted.

    `html` replaces the HTML part of a mail; an empty one leaves plain text only.

    Raises SendingError: it was not delivered to anybody.
    """
    if settings.seconds_left <= 0:
        raise SendingError("No time was left after the other receivers.")
    return CHANNELS[channel].deliver(message, receiver, settings, html)


def unreachable(receivers: Sequence[Receiver], settings: SendingSettings) -> Iterator[str]:
    """Yield the settings that these receivers lack, in words."""
    for receiver in receivers:
        for channel in receiver.channels:
            yield from CHANNELS[channel].problems(receiver, settings)


def _deliver_to_webhook(message: Message, receiver: Receiver, settings: SendingSettings, _html: str | None) -> str:
    address = settings.webhook_of(receiver)
    if receiver.format == PAGERDUTY:
        url, payloads = receiver.events_url or PAGERDUTY_URL, pagerduty_events(message, address)
    else:
        url, payloads = address, [RENDERERS[receiver.format](message)]
    for payload in payloads:
        try:
            post_json(url, payload, settings.seconds_left)
        except WebhookError as error:
            raise SendingError(f"The webhook {error}.") from None
    return ""


def _problems_of_webhook(receiver: Receiver, settings: SendingSettings) -> Iterator[str]:
    if receiver.webhook is not True:
        try:
            settings.webhook_of(receiver)
        except SendingError as error:
            yield f"{receiver.name}: {error}"
    elif settings.webhook_url is None:
        yield "webhook = true needs CAPACITY_ALERT_WEBHOOK_URL too"


def _deliver_by_mail(message: Message, receiver: Receiver, settings: SendingSettings, html: str | None) -> str:
    if settings.smtp_url is None or settings.sender is None:
        raise SendingError("CAPACITY_SMTP_URL and CAPACITY_MAIL_FROM are not set.")
    mail = mail_of(message, settings.sender, receiver.to, html)
    return _send_mail(settings.smtp_url, mail, min(MAIL_SECONDS, settings.seconds_left))


def _problems_of_mail(_receiver: Receiver, settings: SendingSettings) -> Iterator[str]:
    if settings.smtp_url is None or settings.sender is None:
        yield "mail needs CAPACITY_SMTP_URL and CAPACITY_MAIL_FROM too"


@dataclass(frozen=True)
class Channel:
    """A way to receivers: whether a receiver uses it, how it delivers (see `send`), and the settings that it lacks."""

    reaches: Callable[[Receiver], bool]
    deliver: Callable[[Message, Receiver, SendingSettings, str | None], str]
    problems: Callable[[Receiver, SendingSettings], Iterator[str]]


CHANNELS = {
    WEBHOOK: Channel(lambda receiver: bool(receiver.webhook), _deliver_to_webhook, _problems_of_webhook),
    MAIL: Channel(lambda receiver: bool(receiver.to), _deliver_by_mail, _problems_of_mail),
}


def _send_mail(url: str, mail: EmailMessage, seconds: float) -> str:
    """Send a mail; return which addresses were refused while others were accepted.

    smtps:// encrypts from the start, smtp:// once the server offers it. A password is never sent in clear: without
    encryption, sending fails instead of logging in.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    context = ssl.create_default_context()
    opened = Connections()
    encrypted = partial(opened.noting(smtplib.SMTP_SSL), context=context)
    connected = encrypted if parts.scheme == "smtps" else opened.noting(smtplib.SMTP)
    connect = partial(connected, host, port, timeout=TIMEOUT_SECONDS)
    try:
        refused = run_within(seconds, partial(_hand_over, connect, mail, parts, context), opened.close)
    except smtplib.SMTPAuthenticationError:
        raise SendingError(f"{host} refuses the login.") from None
    except smtplib.SMTPRecipientsRefused as error:
        raise SendingError(f"{host} refuses {', '.join(error.recipients)}.") from None
    except smtplib.SMTPResponseException as error:
        raise SendingError(f"{host} refuses the mail: {error.smtp_code}.") from None
    except (smtplib.SMTPException, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SendingError(f"{host}:{port} did not accept the mail: {reason}.") from None
    except ValueError:
        # The original text would show the login.
        raise SendingError(f"{host}: CAPACITY_SMTP_URL has a login that cannot be sent to a mail server.") from None
    return f"{host} refuses {', '.join(refused)}; the other addresses got it." if refused else ""


def _hand_over(
    connect: Callable[[], smtplib.SMTP], mail: EmailMessage, parts: SplitResult, context: ssl.SSLContext
) -> Mapping[str, object]:
    """Send a mail by a new connection; return the refused addresses."""
    with connect() as server:
        server.ehlo()
        is_encrypted = parts.scheme == "smtps"
        if not is_encrypted and server.has_extn("starttls"):
            server.starttls(context=context)
        elif not is_encrypted and parts.username:
            raise SendingError(f"{parts.hostname} offers no encryption: the password was not sent.")
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        return server.send_message(mail)


@contextmanager
def one_at_a_time(engine: Engine, what: str) -> Iterator[None]:
    """Hold a lock while sending, so that no receiver gets a message twice; it ends with its connection."""
    with ExitStack() as stack:
        with database_errors(doing=f"locking the {what}"):
            connection = stack.enter_context(engine.connect())
            connection.execute(text(NO_TIME_LIMIT))
            wait_for_lock(connection, what)
        yield
