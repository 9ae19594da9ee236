"""References to secrets: the tables and files say where a password is, never what it is.

`env:NAME` is a variable of the process or of the file `.env`, `file:PATH` a file, `secret:NAME` a file of that name
in CAPACITY_SECRETS_FOLDER, where Docker, Kubernetes and agents of secret stores mount theirs. `own` is the
connection to the capacity database itself, for measuring the server that holds it. Passwords are
looked up when a server is measured, so a rotated one is used without a restart (an exported variable excepted).
"""

from __future__ import annotations

import re
from pathlib import Path

from capacity_assets.aggregation.errors import CapacityError, ValidationError
from capacity_assets.settings import variable

OWN = "own"
FORMS = "env:NAME, file:/PATH or secret:NAME"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOUNTED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class CredentialError(CapacityError):
    """A password cannot be looked up; the text names the reference, never a value."""


def checked_reference(reference: str) -> str:
    """Return the reference if it has one of the known forms.

    Raises:
        ValidationError: it has none; the text does not repeat it, because it may be the password itself.
    """
    scheme, _, place = reference.partition(":")
    well_formed = {
        OWN: reference == OWN,
        "env": bool(_VARIABLE.fullmatch(place)),
        "file": Path(place).is_absolute(),
        "secret": bool(_MOUNTED.fullmatch(place)),
    }
    if not well_formed.get(scheme, False):
        raise ValidationError(
            f"A password is given by where it is, not by itself: write {FORMS}, the path from / on. "
            "What was written is not repeated here."
        )
    return reference


def password_of(reference: str, secrets_folder: Path) -> str:
    """Look a password up.

    Raises:
        CredentialError: the variable or file is missing, unreadable or empty.
        ValidationError: the reference has none of the known forms.
    """
    scheme, _, place = checked_reference(reference).partition(":")
    if scheme == "env":
        found = variable(place)
        where = f"the variable {place}"
    else:
        path = Path(place) if scheme == "file" else secrets_folder / place
        found = _content(reference, path)
        where = f"the file {path}"
    if not found:
        raise CredentialError(f"No password: {where} is missing or empty. Provide it ({reference}), then run again.")
    return found


def readable_by_others(reference: str | None, secrets_folder: Path) -> bool:
    """Whether the file behind a reference can be read by any user of this machine."""
    scheme, _, place = (reference or "").partition(":")
    path = {"file": Path(place), "secret": secrets_folder / place}.get(scheme)
    try:
        return path is not None and path.is_file() and bool(path.stat().st_mode & 0o004)
    except OSError:
        return False  # what may not even be looked at


def _content(reference: str, path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CredentialError(f"No password: the file {path} cannot be read ({reason}). Mend {reference}.") from None
