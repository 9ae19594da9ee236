"""The file CAPACITY_DIGEST_RECEIVERS: who gets the weekly digest, of the whole fleet or of what has a label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from capacity_assets.base.declarations import NO_OTHER_NAMES, declaration
from capacity_assets.base.errors import ValidationError
from capacity_assets.base.files import key_and_value, named_tables
from capacity_assets.base.label_rules import checked

TABLE = "receivers"
# One at sign, no blank and no line break: such an address could add headers of its own.
ADDRESS = re.compile(r"[^@\s,;<>]+@[^@\s,;<>]+")


def _label(written: object) -> tuple[str, str]:
    return key_and_value(str(written))


@dataclass(frozen=True)
class Receiver:
    """Who gets a digest: mail addresses, the alert webhook, or both. `label` None: of the whole fleet."""

    __pydantic_config__ = NO_OTHER_NAMES

    name: str
    to: Sequence[str] = ()
    webhook: bool = False
    label: Annotated[tuple[str, str], BeforeValidator(_label)] | None = None


def receivers_of(path: Path, keys: Sequence[str]) -> list[Receiver]:
    """Read the file, one table `[[receivers]]` each; raises ValidationError with all problems."""
    return named_tables(path, TABLE, "receiver", lambda values: _receiver(values, keys))


def _receiver(values: Mapping[str, object], keys: Sequence[str]) -> Receiver:
    receiver = declaration(Receiver, values)
    if not all(ADDRESS.fullmatch(address) for address in receiver.to):
        raise ValidationError('to is a list of mail addresses, as ["dba@example.com"].')
    if not (receiver.to or receiver.webhook):
        raise ValidationError("nobody would get it: write to = [...], or webhook = true.")
    key, value = checked(*receiver.label, keys) if receiver.label else (None, None)
    return replace(receiver, to=tuple(receiver.to), label=None if key is None else (key, str(value)))
