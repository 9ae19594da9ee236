"""What takes a database of today back to each former revision of the schema that a release had."""

from __future__ import annotations

from capacity_assets.foundation.levels import LEVELS

# Each table whose key was another until 0013, the beginning of that key, and the unique key beside it.
_KEYS = (
    ("database_size_stats", "collected_date", "uq_daily_database_size", "instance_id, database_name, collected_date"),
    (
        "database_size_aggregations",
        "period_type, period_start",
        "uq_database_size_aggregation",
        "instance_id, database_name, period_type, period_start",
    ),
    (
        "instance_size_aggregations",
        "period_type, period_start",
        "uq_instance_size_aggregation",
        "instance_id, period_type, period_start",
    ),
)

# What came after each former revision, newest first. Taken away again, it leaves a database of that revision.
ADDED_LATER = {
    "0013": (
        *(
            statement
            for table, window, name, columns in _KEYS
            for statement in (
                f"ALTER TABLE {table} DROP CONSTRAINT {name}",
                f"ALTER TABLE {table} ADD CONSTRAINT {table}_pkey PRIMARY KEY ({window}, instance_id, id)",
                f"ALTER TABLE {table} ADD CONSTRAINT {name} UNIQUE ({columns})",
            )
        ),
        *(
            statement
            for name, column in (("change", "size_change_mb"), ("size", "avg_size_mb"))
            for statement in (
                f"DROP INDEX ix_database_size_aggregations_{name}",
                f"CREATE INDEX ix_database_size_aggregations_{name} ON database_size_aggregations "
                f"(period_type, period_start, {column})",
            )
        ),
    ),
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
