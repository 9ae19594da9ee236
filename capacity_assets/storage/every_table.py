"""All tables together: what `capacity init` creates and upgrades, and what is copied and documented."""

from __future__ import annotations

from capacity_assets.storage import group_tables, limit_tables
from capacity_assets.storage.tables import table_metadata

__all__ = ["group_tables", "limit_tables", "metadata"]

metadata = table_metadata
