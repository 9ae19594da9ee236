"""The storage with open connections for dagster.yaml; its parts are private to Dagster."""

from capacity_assets.orchestration.private import PooledPostgresStorage

__all__ = ["PooledPostgresStorage"]
