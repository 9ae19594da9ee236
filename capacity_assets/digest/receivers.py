"""The file CAPACITY_DIGEST_RECEIVERS: who gets the weekly digest, of the whole fleet or of what has a label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from capacity_assets.errors import ValidationError
from capacity_assets.foundation.pairs import key_and_value
from capacity_assets.foundation.toml_files import named_tables
from capacity_assets.grouping.labels import checked

TABLE = "receivers"
# One at sign, no blank and no line break: such an address could add headers of its own.
ADDRESS = re.compile(r"[^@\s,;<>]+@[^@\s,;<>]+")


@dataclass(frozen=True)
class Receiver:
    """Who gets a digest: mail addresses, the alert webhook, or both. `label` None: of the whole fleet."""

    name: str
    to: Sequence[str] = ()
    webhook: bool = False
    label: tuple[str, str] | None = None


def receivers_of(path: Path, keys: Sequence[str]) -> list[Receiver]:
    """Read the file, one table `[[receivers]]` each; raises ValidationError with all problems."""
    return named_tables(path, TABLE, "receiver", lambda values: _receiver(values, keys))


def _receiver(values: Mapping[str, Any], keys: Sequence[str]) -> Receiver:
    known = [one.name for one in fields(Receiver)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValidationError(f"{unknown[0]!r} is none of {', '.join(known)}.")
    name, to, webhook = values.get("name"), values.get("to", []), values.get("webhook", False)
    if not isinstance(name, str) or not name.strip():
        raise ValidationError("name is missing.")
    if not isinstance(to, list) or not all(isinstance(one, str) and ADDRESS.fullmatch(one) for one in to):
        raise ValidationError('to is a list of mail addresses, as ["dba@example.com"].')
    if not isinstance(webhook, bool) or not (to or webhook):
        raise ValidationError("nobody would get it: write to = [...], or webhook = true.")
    return Receiver(name, tuple(to), webhook, _label(values.get("label"), keys))


def _label(written: object, keys: Sequence[str]) -> tuple[str, str] | None:
    if written is None:
        return None
    key, found = checked(*key_and_value(str(written)), keys)
    return key, str(found)
