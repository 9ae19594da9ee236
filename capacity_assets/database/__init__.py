"""The capacity database: tables, schema, views, triggers, partitions, locks, the embedded server."""
