"""Capacity history of a fleet of database servers, as partitioned Dagster assets on PostgreSQL."""
