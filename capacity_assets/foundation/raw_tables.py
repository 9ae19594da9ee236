"""The raw tables as data: those of sizes, which the levels aggregate, and those of limits, which forecasts look at."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Table

from capacity_assets.foundation.levels import DATABASE, INSTANCE
from capacity_assets.storage.limit_tables import database_limit_stats, volume_size_stats


@dataclass(frozen=True)
class RawTable:
    """One raw table, which is one asset: what a row of a day is about, and by which columns a change of it shows."""

    table: Table
    row: str
    summed: str
    changed: str
    level: str | None = None

    @property
    def name(self) -> str:
        """Name of the table and key of the asset."""
        return self.table.name


RAW_TABLES = (
    RawTable(DATABASE.source, "Raw size samples, one row per database and day.", "size_mb", "updated_at", "database"),
    RawTable(
        INSTANCE.source, "Raw size samples, one row per server and day.", "total_size_mb", "updated_at", "instance"
    ),
    RawTable(
        volume_size_stats,
        "Volumes of servers (file systems, disk groups, pools), one row per volume and day.",
        "free_mb",
        "collected_at",
    ),
    RawTable(
        database_limit_stats,
        "How much each database may hold and on which volumes it grows, one row per database and day.",
        "limit_mb",
        "collected_at",
    ),
)
