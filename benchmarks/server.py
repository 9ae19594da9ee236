"""A PostgreSQL for the length of a benchmark, whose files go with it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capacity_assets.database.embedded import EmbeddedServer, embedded_server


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A temporary folder for the files of an embedded server."""
    with tempfile.TemporaryDirectory() as folder:
        # As root, the data would otherwise lie in a folder of the server's user, and stay there.
        Path(folder).chmod(0o711)
        yield Path(folder)


@contextmanager
def temporary_server() -> Iterator[EmbeddedServer]:
    """An embedded server in a temporary folder."""
    with temporary_home() as folder, embedded_server(folder / "postgres") as server:
        yield server
