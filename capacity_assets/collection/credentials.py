"""References to secrets: tables and files contain the place of a password, never the password.

`env:NAME` is a variable of the process or of the file `.env`, `file:PATH` a file, and `secret:NAME` a file in
CAPACITY_SECRETS_FOLDER, where Docker, Kubernetes and agents of secret stores mount secrets. `own` is the connection to
the capacity database, for measuring its own server. Passwords are read when a server is measured, so a new password is
used without a restart, except for an exported variable.

A person who may register servers can name any reference, and a host to which the password is sent. Therefore only
variables and files that an administrator has allowed are read, and never those of capacity_assets itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from capacity_assets.base.errors import CapacityError, ValidationError, refuse
from capacity_assets.base.settings import (
    DEFAULT_PASSWORD_FOLDERS,
    DEFAULT_PASSWORD_VARIABLES,
    ENV_FILE,
    OUR_PREFIX,
    Settings,
    variable,
    variable_names,
)

OWN = "own"
REFERENCE_FORMS = "env:NAME, file:/PATH or secret:NAME"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNMENT = re.compile(rf"(export\s+)?({OUR_PREFIX}|DAGSTER_)[A-Z0-9_]+=")
_MOUNTED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class CredentialError(CapacityError):
    """A password, or another secret, cannot be read; `reason` names the reference, never a value."""

    def __init__(self, reason: str) -> None:
        """Take the reason, which completes "No password: "."""
        super().__init__(f"No password: {reason}")
        self.reason = reason


def checked_reference(reference: str) -> str:
    """Return a reference of a known form; raises ValidationError without the reference, which may be the password."""
    scheme, _, place = reference.partition(":")
    well_formed = {
        OWN: reference == OWN,
        "env": bool(_VARIABLE.fullmatch(place)),
        "file": Path(place).is_absolute(),
        "secret": bool(_MOUNTED.fullmatch(place)),
    }
    if not well_formed.get(scheme, False):
        raise ValidationError(
            f"Give the place of a password instead of the password: {REFERENCE_FORMS}, with a path that begins with /. "
            "The value is not repeated here."
        )
    return reference


@dataclass(frozen=True)
class SecretFolders:
    """The places from which passwords may be read: the mounted folder, patterns of variables, folders of files."""

    mounted: Path
    variables: tuple[str, ...] = DEFAULT_PASSWORD_VARIABLES
    folders: tuple[Path, ...] = DEFAULT_PASSWORD_FOLDERS

    @classmethod
    def of(cls, settings: Settings) -> SecretFolders:
        """Return the configured folders and patterns."""
        return cls(settings.secrets_folder, settings.password_variables, settings.password_folders)

    def path_of(self, reference: str) -> Path | None:
        """Return the file of a reference; None: the reference is to a variable."""
        scheme, _, place = reference.partition(":")
        return {"file": Path(place), "secret": self.mounted / place}.get(scheme)

    def refuse_what_is_not_allowed(self, reference: str) -> None:
        """Raise CredentialError for a variable or file that is not allowed; the text names the setting to change."""
        scheme, _, place = reference.partition(":")
        is_variable, path, allowed = scheme == "env", self.path_of(reference), (self.mounted, *self.folders)
        refuse(
            (
                is_variable and (place in variable_names() or place.startswith("DAGSTER_")),
                f"{place} is a variable of capacity_assets and cannot hold the password of a server.",
            ),
            (
                is_variable and not any(fnmatchcase(place, pattern) for pattern in self.variables),
                f"variable {place} may not hold the password of a server. CAPACITY_PASSWORD_VARIABLES "
                f"allows {', '.join(self.variables) or 'none'}: rename the variable, or add it there.",
            ),
            (
                # Folders of passwords also contain our own environment file, /etc/capacity/capacity.env.
                path is not None and ENV_FILE in {path.name[-4:], path.resolve().name[-4:]},
                f"{path} is an environment file, not a password file. Write the password to a separate file.",
            ),
            (
                path is not None and not any(path.resolve().is_relative_to(folder.resolve()) for folder in allowed),
                f"the file {path} is not in a folder for passwords of servers. "
                f"CAPACITY_PASSWORD_FOLDERS allows {', '.join(map(str, self.folders)) or 'none'}.",
            ),
            error=CredentialError,
        )


def password_of(reference: str, folders: SecretFolders) -> str:
    """Read a password.

    Raises:
        CredentialError: the variable or file is not allowed, missing, unreadable or empty.
        ValidationError: the reference has no known form.
    """
    _, _, place = checked_reference(reference).partition(":")
    folders.refuse_what_is_not_allowed(reference)
    path = folders.path_of(reference)
    if path is None:
        password = variable(place)
        where = f"the variable {place}"
    else:
        password = _content(reference, path)
        where = f"the file {path}"
    if not password:
        raise CredentialError(f"{where} is missing or empty. Set it ({reference}), then run again.")
    return password


def readable_by_others(reference: str | None, folders: SecretFolders) -> bool:
    """Whether every user of this machine can read the file of a reference."""
    path = folders.path_of(reference or "")
    try:
        return path is not None and path.is_file() and bool(path.stat().st_mode & 0o004)
    except OSError:
        return False  # not even its state can be read


def _content(reference: str, path: Path) -> str | None:
    try:
        content = path.read_text(encoding="utf-8").rstrip("\r\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CredentialError(f"the file {path} cannot be read ({reason}). Fix {reference}.") from None
    if "\n" in content or _ASSIGNMENT.match(content):
        raise CredentialError(
            f"the file {path} must contain the password and nothing else, on one line. Fix {reference}."
        )
    return content
