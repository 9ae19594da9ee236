"""Everything that imports Dagster: the asset graph over the business in `capacity_assets.aggregates`."""
