"""What takes a database of today back to each former revision of the schema."""

from __future__ import annotations

from capacity_assets.foundation.levels import LEVELS
from capacity_assets.storage.partitions import CAPACITY_TABLES
from tests.legacy import FURTHER

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
    "0011": tuple(
        f"ALTER TABLE {level.target.name} {', '.join(f'DROP COLUMN {column}' for column in level.sums)}"
        for level in LEVELS.values()
    ),
    "0010": (
        *(
            f"DROP FUNCTION capacity_track_groups_{table} CASCADE"
            for table in ("capacity_labels", "instances", *(level.target.name for level in LEVELS.values()))
        ),
        "DROP TABLE capacity_group_sums, capacity_group_windows, capacity_group_changes CASCADE",
    ),
    "0009": ("DROP TABLE capacity_bill_lines, capacity_bills, capacity_prices, capacity_labels CASCADE",),
    "0008": ("DROP TABLE capacity_runways, capacity_steps, database_limit_stats, volume_size_stats CASCADE",),
    "0007": ("DROP TABLE capacity_limits CASCADE",),
    "0006": (
        *(
            f"ALTER TRIGGER capacity_track_{table}_{event} ON {table} RENAME TO capacity_note_{table}_{event}"
            for table in ("database_size_stats", "instance_size_stats", "instances")
            for event in ("insert", "update")
        ),
        *(
            f"ALTER TRIGGER capacity_track_invalidation ON {table.name} RENAME TO capacity_note_disturbance"
            for table in CAPACITY_TABLES
        ),
        *(
            f"ALTER FUNCTION capacity_track_{table} RENAME TO capacity_note_{table}"
            for table in ("database_size_stats", "instance_size_stats", "instances")
        ),
        "ALTER FUNCTION capacity_track_invalidation RENAME TO capacity_note_disturbance",
        "ALTER TABLE capacity_invalidations RENAME TO capacity_disturbances",
        "ALTER INDEX capacity_invalidations_pkey RENAME TO capacity_disturbances_pkey",
    ),
    "0005": (
        *(
            f"ALTER TABLE {table} DROP COLUMN {column} CASCADE"
            for table, stem in FURTHER.items()
            for column in (
                f"last_{stem}_mb",
                f"{stem}_growth_in_window_mb",
                f"{stem}_year_change_mb",
                f"{stem}_year_change_percent",
                f"{stem}_yearly_rate_percent",
            )
        ),
        "ALTER TABLE capacity_computed_windows DROP COLUMN year_before_start, DROP COLUMN year_before_end",
    ),
    "0004": (
        "DROP TABLE capacity_activations, capacity_settings",
        "ALTER TABLE database_size_stats DROP COLUMN size_bytes, DROP COLUMN data_size_bytes, "
        "DROP COLUMN log_size_bytes",
        "ALTER TABLE instance_size_stats DROP COLUMN total_size_bytes",
        "ALTER TABLE capacity_computed_windows DROP COLUMN unsampled_records",
    ),
    "0003": (
        "DROP TABLE capacity_collection_targets, capacity_collection_attempts, capacity_imports CASCADE",
        "ALTER TABLE instances DROP COLUMN counted_by CASCADE",
    ),
    "0002": (
        "DROP TABLE capacity_disturbances",
        "DROP FUNCTION capacity_note_disturbance() CASCADE",
        "ALTER TABLE capacity_computed_windows DROP COLUMN fingerprint, DROP COLUMN processed_instances, "
        "DROP COLUMN total_records, DROP COLUMN protected_records",
    ),
    "0001": (
        "DROP TABLE capacity_sample_changes, capacity_computed_windows",
        "DROP FUNCTION capacity_note_database_size_stats() CASCADE",
        "DROP FUNCTION capacity_note_instance_size_stats() CASCADE",
        "DROP FUNCTION capacity_note_instances() CASCADE",
    ),
}
