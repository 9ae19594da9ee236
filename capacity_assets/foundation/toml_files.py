"""TOML files as people write them: one reader for declarations of servers and of sources of volumes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from capacity_assets.foundation.errors import ValidationError


def toml_document(path: Path) -> dict[str, Any]:
    """Read a file.

    Raises:
        ValidationError: it cannot be read; the text that is there is not repeated, it may be a password.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # The parser names place and expectation, not the text that is there.
        raise ValidationError(f"{path} cannot be read: {str(error).partition(':')[0]}.") from None
