"""Where dagster.yaml finds the storage that keeps its connections; what it is made of is private to Dagster."""

from capacity_assets.orchestration.private import PooledPostgresStorage

__all__ = ["PooledPostgresStorage"]
