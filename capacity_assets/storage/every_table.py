"""All tables together: what `capacity init` creates and upgrades, and what is copied and documented."""

from __future__ import annotations

from capacity_assets.storage import group_tables, limit_tables, row_locks
from capacity_assets.storage.tables import table_metadata

__all__ = ["group_tables", "limit_tables", "metadata", "row_locks"]

metadata = table_metadata
