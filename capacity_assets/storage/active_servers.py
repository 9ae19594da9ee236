"""The one rule for which servers are active: in service, so measured and aggregated (docs/semantics.md)."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_

from capacity_assets.storage.tables import instances


def is_active() -> ColumnElement[bool]:
    """Return the condition on `instances`."""
    return and_(instances.c.is_active, instances.c.deleted_at.is_(None))


def active_condition(alias: str) -> str:
    """Return the same condition in SQL, on a table that the query calls `alias`."""
    return f"({alias}.is_active AND {alias}.deleted_at IS NULL)"
