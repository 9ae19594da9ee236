"""Compile only once: statements for all engines of a test process, and the test files for all test processes.

Each engine has a cache of its own, and a test makes several: to compile the same statements for each took a tenth of
the tests' time. Compiled statements depend on the kind of database and its version.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from _pytest.assertion import rewrite
from sqlalchemy import Connection, Engine, event
from sqlalchemy.util import LRUCache


class _Statements(LRUCache[Any, Any]):
    """Shares between engines of the same kind of dialect what SQLAlchemy caches per engine."""

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


def compile_test_files(config: pytest.Config) -> None:
    """Compile test files with rewritten assertions, unless they are compiled already.

    Test processes that begin at the same time would each do it for all files, three seconds long.
    """
    if sys.dont_write_bytecode or config.option.assertmode != "rewrite":
        return
    state = config.stash[rewrite.assertstate_key]
    for named in config.args:
        path = Path(named.partition("::")[0])
        for file in path.rglob("test_*.py") if path.is_dir() else [path]:
            folder = rewrite.get_cache_dir(file.resolve())
            compiled = folder / f"{file.stem}{rewrite.PYC_TAIL}"
            if rewrite._read_pyc(file, compiled) is None and rewrite.try_makedirs(folder):
                source_hash, code = rewrite._rewrite_test(file.resolve(), config)
                rewrite._write_pyc(state, code, source_hash, compiled)
