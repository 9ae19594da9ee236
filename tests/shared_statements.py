"""Statements compiled once per test process instead of once per test.

Every test has engines of its own, and SQLAlchemy keeps what it has compiled per dialect, of which each engine has one:
a quarter of a second of each test that aggregates. All of ours speak to PostgreSQL through psycopg in the same way.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from capacity_assets.storage import engine

_COMPILED: dict[Any, Any] = {}


def share_compiled_statements(patched: pytest.MonkeyPatch) -> None:
    """Let all engines of the product share what they compile, by SQLAlchemy's option for that."""
    options = {"compiled_cache": _COMPILED}
    patched.setattr(engine, "create_engine", partial(create_engine, execution_options=options))
    # The key of what is kept holds the dialect, of which each engine has its own.
    patched.setattr(PGDialect_psycopg, "__hash__", lambda _self: hash(PGDialect_psycopg))
    patched.setattr(PGDialect_psycopg, "__eq__", lambda _self, other: type(other) is PGDialect_psycopg)
