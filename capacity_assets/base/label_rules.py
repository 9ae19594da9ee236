"""Which keys and values a label may have; the columns that hold them are as long as these."""

from __future__ import annotations

import re
from collections.abc import Sequence

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import meant

LONGEST_KEY = 63
LONGEST_VALUE = 100
KEY = re.compile(r"[a-z][a-z0-9_]*")
# By these, groups are made without any label; a file of labels names its subjects by the others.
NOT_KEYS = ("engine", "server", "database", "from")


def unfit_keys(keys: Sequence[str]) -> list[str]:
    """Return those that cannot be the key of a label."""
    return [key for key in keys if not KEY.fullmatch(key) or len(key) > LONGEST_KEY or key in NOT_KEYS]


def fleet_or_label(label: tuple[str, str] | None) -> str:
    """Name the fleet (None), or what has a label by its value and key, as people read it."""
    return "the fleet" if label is None else f"{label[1]} ({label[0]})"


def checked(key: str, value: str | None, keys: Sequence[str]) -> tuple[str, str | None]:
    """Return key and value as they are stored; raises ValidationError for a key not in `keys`, or an unfit value."""
    if key not in keys:
        raise ValidationError(
            f"{key!r} is not a label key; CAPACITY_LABEL_KEYS has {', '.join(keys)}.{meant(key, keys)}"
        )
    if value is None:
        return key, None
    value = value.strip()
    if not value or len(value) > LONGEST_VALUE or not value.isprintable():
        raise ValidationError(f"The value of {key} must have 1 to {LONGEST_VALUE} printable characters.")
    return key, value
