"""The business: samples become aggregates. Imports neither Dagster nor, when loaded, Redis."""
