"""The file CAPACITY_RECEIVERS: who gets digests and alerts, of the whole fleet or of what has a label, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from capacity_assets.base.declarations import NO_OTHER_NAMES, declaration, is_web_address
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.files import key_and_value, named_tables
from capacity_assets.base.label_rules import checked
from capacity_assets.base.units import meant
from capacity_assets.collection.credentials import checked_reference
from capacity_assets.messages.message import FORMATS, PAGERDUTY

TABLE = "receivers"
LONGEST_NAME = 255
# One at sign, no blank and no line break: such an address could add headers of its own.
ADDRESS = re.compile(r"[^@\s,;<>]+@[^@\s,;<>]+")
DIGEST, ALERTS = "digest", "alerts"
DEFAULT = "default"
"""The receiver of failed runs and checks: CAPACITY_ALERT_WEBHOOK_URL, unless the file has one of this name."""
HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def _label(written: object) -> tuple[str, str]:
    return key_and_value(str(written))


def _hours(written: object) -> tuple[time, time]:
    found = HOURS.fullmatch(str(written))
    if found is None:
        raise ValidationError(f"quiet is {written!r}; write the hours without messages as 22:00-07:00.")
    first_hour, first_minute, last_hour, last_minute = map(int, found.groups())
    return time(first_hour, first_minute), time(last_hour, last_minute)


@dataclass(frozen=True)
class Receiver:
    """Who gets messages: mail addresses, a webhook, or both. `label` None: of the whole fleet."""

    __pydantic_config__ = NO_OTHER_NAMES

    name: str
    to: Sequence[str] = ()
    webhook: bool | str = False
    """Where the address of its webhook is: `env:NAME`, `file:/PATH` or `secret:NAME`; true: the alert webhook."""
    format: str = "text"
    """What the webhook takes, one of FORMATS."""
    label: Annotated[tuple[str, str], BeforeValidator(_label)] | None = None
    gets: Sequence[str] = (DIGEST,)
    """digest, alerts or both."""
    quiet: Annotated[tuple[time, time], BeforeValidator(_hours)] | None = None
    """From when to when nothing is sent, in CAPACITY_TIMEZONE."""
    events_url: str | None = None
    """Where PagerDuty takes events; not given: its service in the United States."""

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether something with these labels concerns it."""
        return self.label is None or labels.get(self.label[0]) == self.label[1]

    def quiet_until(self, now: datetime) -> datetime | None:
        """Return when the current quiet hours end; None outside of them. `now` is in the configured zone."""
        if self.quiet is None:
            return None
        first, last = self.quiet
        moment = now.time()
        is_quiet = first <= moment < last if first <= last else moment >= first or moment < last
        if not is_quiet:
            return None
        day = now.date() if moment < last else now.date() + timedelta(days=1)
        return datetime.combine(day, last, tzinfo=now.tzinfo)


def receivers_of(path: Path, keys: Sequence[str]) -> list[Receiver]:
    """Read the file, one table `[[receivers]]` each; raises ValidationError with all problems."""
    return named_tables(path, TABLE, "receiver", lambda values: _receiver(values, keys))


def receivers_of_alerts(path: Path | None, keys: Sequence[str], *, has_alert_webhook: bool) -> list[Receiver]:
    """Return who gets alerts, the default receiver first if there is one; raises as `receivers_of`."""
    declared = [] if path is None else receivers_of(path, keys)
    alerted = [one for one in declared if ALERTS in one.gets]
    if has_alert_webhook and all(one.name != DEFAULT for one in declared):
        alerted.append(Receiver(DEFAULT, webhook=True, gets=(ALERTS,)))
    return sorted(alerted, key=lambda one: one.name != DEFAULT)


def _receiver(values: Mapping[str, object], keys: Sequence[str]) -> Receiver:
    receiver = declaration(Receiver, values)
    if len(receiver.name) > LONGEST_NAME or not receiver.name.isprintable():
        raise ValidationError(f"name must have 1 to {LONGEST_NAME} printable characters.")
    if not all(ADDRESS.fullmatch(address) for address in receiver.to):
        raise ValidationError('to is a list of mail addresses, as ["dba@example.com"].')
    if not (receiver.to or receiver.webhook):
        raise ValidationError("nobody would get it: write to = [...], or webhook = true.")
    if isinstance(receiver.webhook, str):
        _refuse_an_address(receiver.webhook)
    if receiver.format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValidationError(f"format is {receiver.format!r}; write one of {known}.{meant(receiver.format, FORMATS)}")
    gets = tuple(receiver.gets)
    if not gets or not set(gets) <= {DIGEST, ALERTS}:
        raise ValidationError(f'gets is a list of "{DIGEST}" and "{ALERTS}".')
    if receiver.name == DEFAULT and ALERTS not in gets:
        raise ValidationError(f'the receiver called {DEFAULT} gets failed runs and checks: write gets = ["{ALERTS}"].')
    if receiver.format == PAGERDUTY and (DIGEST in gets or receiver.webhook is True):
        raise ValidationError(
            'PagerDuty takes alerts only, and webhook is where its routing key is: write gets = ["alerts"] and '
            'webhook = "env:NAME".'
        )
    if receiver.events_url is not None and not is_web_address(receiver.events_url):
        raise ValidationError("events_url is not a web address; write https://host/path.")
    key, value = checked(*receiver.label, keys) if receiver.label else (None, None)
    label = None if key is None else (key, str(value))
    return replace(receiver, to=tuple(receiver.to), gets=gets, label=label)


def _refuse_an_address(reference: str) -> None:
    try:
        if checked_reference(reference) != "own":
            return
    except ValidationError:
        pass
    raise ValidationError(
        "webhook is true, or where the address is, which is a secret: write env:NAME, file:/PATH or secret:NAME. "
        "What was written is not repeated here."
    )
