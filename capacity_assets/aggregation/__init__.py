"""The business: turning raw samples into aggregates. Imports neither Dagster nor Redis."""
