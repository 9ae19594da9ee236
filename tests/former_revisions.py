"""Takes a current database back to former revisions of the schema, down to 0013, that of version 0.3.0."""

from __future__ import annotations

from capacity_assets.aggregates.levels import SERVER_LEVELS

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
    "0028": ("DROP VIEW capacity_left_out_servers",),
    "0027": ("ALTER TABLE capacity_runways DROP COLUMN stands_for_itself CASCADE",),
    "0026": ("DROP VIEW capacity_derived_windows",),
    "0025": ("DROP INDEX ix_capacity_runways_issued",),
    "0024": ("DROP INDEX ix_capacity_bill_lines_database",),
    "0023": (
        "ALTER TABLE object_size_stats DROP COLUMN counted_since CASCADE",
        "DROP INDEX ix_object_size_stats_measured",
        "DROP INDEX ix_object_size_stats_largest",
    ),
    "0022": ("ALTER TABLE object_size_stats DROP COLUMN written_rows CASCADE",),
    "0021": (
        *(
            f"ALTER TABLE {table} DROP COLUMN {column} CASCADE"
            for table, columns in (
                ("database_size_stats", ("used_size_mb", "used_size_bytes")),
                (
                    "database_size_aggregations",
                    (
                        *("avg_used_size_mb", "max_used_size_mb", "min_used_size_mb"),
                        *("used_size_change_mb", "used_size_change_percent"),
                        *("sum_used_size_mb", "count_used_size_mb"),
                    ),
                ),
                ("database_limit_stats", ("fills_files",)),
                ("capacity_runways", ("allocated_mb",)),
            )
            for column in columns
        ),
    ),
    "0020": (
        "DROP TABLE object_size_stats CASCADE",
        "DROP TABLE capacity_object_sizes",
        "DROP TABLE capacity_budgets",
    ),
    "0019": (
        "DROP TABLE server_part_stats CASCADE",
        "DROP TABLE capacity_imported_days CASCADE",
        "ALTER TABLE capacity_imports DROP COLUMN origin CASCADE",
    ),
    "0018": ("DROP TABLE capacity_scenarios",),
    "0017": (
        "DROP TABLE capacity_alerts",
        "DROP TABLE capacity_decisions CASCADE",
        *(
            f"ALTER TABLE capacity_runways DROP COLUMN planned_{what} CASCADE"
            for what in ("day", "limit_mb", "early_day", "middle_day", "late_day")
        ),
        *(
            f"ALTER TABLE {table} DROP COLUMN declared_by CASCADE"
            for table in (
                *("capacity_limits", "capacity_steps", "capacity_labels", "capacity_prices"),
                *("capacity_collection_targets", "volume_size_stats"),
            )
        ),
    ),
    "0016": (
        "DROP TABLE capacity_bill_groups",
        "ALTER TABLE capacity_bills DROP COLUMN billed_until",
    ),
    "0015": (
        "DROP TABLE group_size_aggregations CASCADE",
        "DELETE FROM capacity_computed_windows WHERE level = 'group'",
        "DELETE FROM capacity_changes WHERE kind = 'groups'",
        "CREATE TABLE capacity_group_sums (period_type varchar(20), period_start date, size_mb numeric(30))",
        "CREATE TABLE capacity_group_windows (period_type varchar(20), period_start date, derived_servers integer[], "
        "database_oid bigint)",
        "CREATE TABLE capacity_group_changes (period_type varchar(20), period_start date)",
        "CREATE VIEW capacity_stored_groups AS SELECT s.* FROM capacity_group_sums s",
        "CREATE VIEW capacity_outdated_groups AS SELECT c.* FROM capacity_group_changes c",
        *(
            f"CREATE FUNCTION capacity_track_groups_{level.target.name}() RETURNS trigger LANGUAGE plpgsql "
            "AS 'BEGIN RETURN NULL; END'"
            for level in SERVER_LEVELS.values()
        ),
        # What they recorded of 0.3.0 is gone.
        *(
            f"CREATE OR REPLACE FUNCTION capacity_track_groups_{table}() RETURNS trigger LANGUAGE plpgsql "
            "AS 'BEGIN RETURN NULL; END'"
            for table in ("instances", "capacity_labels")
        ),
    ),
    "0014": (
        "DROP VIEW capacity_stale_windows",
        "DROP FUNCTION capacity_track_writes CASCADE",
        *(
            f"DROP TRIGGER capacity_track_{table}_{event} ON {table}"
            for table in ("database_size_stats", "instance_size_stats")
            for event in ("delete", "truncate")
        ),
        "DROP TABLE capacity_changes",
        "ALTER TABLE capacity_computed_windows ADD COLUMN snapshot text, "
        "ADD COLUMN system_identifier bigint NOT NULL DEFAULT (pg_control_system()).system_identifier, "
        "ADD COLUMN database_oid bigint NOT NULL DEFAULT "
        "CAST(substring(pg_relation_filepath('pg_class'::regclass), '([0-9]+)/[0-9]+$') AS bigint)",
        "UPDATE capacity_computed_windows SET snapshot = CAST(pg_current_snapshot() AS text) "
        "WHERE computed IS NOT NULL",
        "ALTER TABLE capacity_computed_windows DROP COLUMN wanted, DROP COLUMN computed, DROP COLUMN changed, "
        "DROP COLUMN oldest_change, DROP COLUMN newest_change",
        *(
            f"CREATE TABLE {table} ({', '.join(f'{name} {kind} NOT NULL' for name, kind in keys.items())}, "
            "transaction_id bigint NOT NULL DEFAULT (pg_current_xact_id()::text)::bigint, "
            "changed_at timestamptz NOT NULL DEFAULT now(), "
            f"PRIMARY KEY ({', '.join([*keys, 'transaction_id'])}))"
            for table, keys in (
                ("capacity_sample_changes", {"table_name": "varchar(63)", "collected_date": "date"}),
                ("capacity_invalidations", {"table_name": "varchar(63)"}),
                ("capacity_activations", {"instance_id": "integer"}),
            )
        ),
        # What they recorded of 0.3.0, shortened.
        *(
            f"CREATE OR REPLACE FUNCTION capacity_track_{table}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            f"AS $$ BEGIN INSERT INTO public.{log} SELECT DISTINCT {what} FROM new_rows n ON CONFLICT DO NOTHING; "
            "RETURN NULL; END $$"
            for table, log, what in (
                ("database_size_stats", "capacity_sample_changes", "'database_size_stats', n.collected_date"),
                ("instance_size_stats", "capacity_sample_changes", "'instance_size_stats', n.collected_date"),
                ("instances", "capacity_activations", "n.id"),
            )
        ),
        "CREATE FUNCTION capacity_track_invalidation() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN "
        "INSERT INTO public.capacity_invalidations VALUES (TG_ARGV[0]) ON CONFLICT DO NOTHING; RETURN NULL; END $$",
        *(
            f"CREATE TRIGGER capacity_track_invalidation AFTER {event} ON {level.source if raw else level.target} "
            "FOR EACH STATEMENT EXECUTE FUNCTION "
            f"capacity_track_invalidation('{level.source if raw else level.target}')"
            for level in SERVER_LEVELS.values()
            for raw, event in ((True, "DELETE"), (False, "INSERT OR UPDATE OR DELETE"))
        ),
    ),
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
}
