"""KEY=VALUE as people write a label: on the command line and in files. Not which keys exist."""

from __future__ import annotations

from capacity_assets.errors import ValidationError


def key_and_value(written: str, hint: str = "") -> tuple[str, str]:
    """Return key and value as they are written, the value perhaps empty.

    Raises ValidationError without `=`, with the `hint` in its text.
    """
    key, equals, value = written.partition("=")
    if not equals:
        raise ValidationError(f"{written!r} is not a label; write team=payments.{hint} Nothing was changed.")
    return key, value
