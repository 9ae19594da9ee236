"""What takes a database of today back to each former revision of the schema that a release had."""

from __future__ import annotations

from capacity_assets.foundation.levels import LEVELS

# What came after each former revision, newest first. Taken away again, it leaves a database of that revision.
ADDED_LATER = {
    "0012": (
        "DROP TABLE capacity_locks",
        "DROP VIEW capacity_server_sizes CASCADE",
        *(
            f"ALTER TABLE {table} {', '.join(f'DROP COLUMN {column} CASCADE' for column in columns)}"
            for table, columns in (
                ("capacity_computed_windows", ["database_oid"]),
                ("capacity_group_windows", ["database_oid", "derived_servers"]),
                ("capacity_bills", ["samples_dropped_at", "clock_doubt"]),
                ("capacity_runways", ["volumes"]),
                ("volume_size_stats", ["used_mb"]),
                ("capacity_collection_targets", ["server_public_key"]),
            )
        ),
        *(f"DROP INDEX ix_{level.target.name}_impossible" for level in LEVELS.values()),
    ),
}
