"""The error of Dagster's PostgreSQL storage when it gives up connecting."""

from dagster_postgres.utils import DagsterPostgresException
