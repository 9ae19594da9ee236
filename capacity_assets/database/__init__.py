"""The capacity database: tables, measures, label rules, schema, views, triggers, partitions, locks, embedded server."""
