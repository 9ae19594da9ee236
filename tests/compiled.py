"""One cache of compiled statements for all engines of a test process.

Each engine has a cache of its own, and a test makes several: to compile the same statements for each took a tenth of
the tests' time. Compiled statements depend on the kind of database and its version.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.util import LRUCache


class _Statements(LRUCache[Any, Any]):
    """Finds by the kind of a dialect what SQLAlchemy stores by the dialect of an engine."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(_by_kind(key), default)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_by_kind(key), value)


def _by_kind(key: tuple[Any, ...]) -> tuple[Any, ...]:
    dialect, *further = key
    return type(dialect), dialect.server_version_info, *further


STATEMENTS = _Statements(3_000)


@event.listens_for(Engine, "engine_connect")
def _remember(connection: Connection) -> None:
    connection.execution_options(compiled_cache=STATEMENTS)
