"""TOML files as people write them: one reader for declarations of servers, of sources of volumes, of receivers."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from capacity_assets.errors import ValidationError
from capacity_assets.foundation.declarations import read_each
from capacity_assets.foundation.text_lines import refuse_the_beginning_of_a_workbook

# A file of 100,000 servers has less.
LARGEST_BYTES = 64 << 20


class HasName(Protocol):
    """What a table declares has a name of its own."""

    @property
    def name(self) -> str:
        """By which it is told from the others."""


T = TypeVar("T", bound=HasName)


def toml_document(path: Path) -> dict[str, Any]:
    """Read a file; raises ValidationError that repeats no text of it, which may be a password."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise ValidationError(f"{path} cannot be read: it is larger than {LARGEST_BYTES >> 20} MiB.")
        refuse_the_beginning_of_a_workbook(path, content)
        return tomllib.loads(content.decode())
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # The parser names place and expectation, not the text that is there.
        raise ValidationError(f"{path} cannot be read: {str(error).partition(':')[0]}.") from None


def named_tables(path: Path, table: str, called: str, declared: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """Read a file of tables `[[table]]` alone; `called` is what people call what one declares.

    Raises ValidationError with all problems: of the file, of what `declared` refuses, of names used twice.
    """
    document = toml_document(path)
    entries = document.get(table)
    if set(document) != {table} or not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise ValidationError(f"{path} holds tables [[{table}]], one per {called}, and nothing else.")
    found = read_each(((f"{called} {n}", values) for n, values in enumerate(entries, start=1)), declared)
    names = [one.name for one in found]
    twice = [f"two {called}s are called {name!r}." for name in sorted(set(names)) if names.count(name) > 1]
    if twice:
        raise ValidationError("\n".join(twice))
    return found
