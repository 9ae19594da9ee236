"""A foreign code location that contains the graph, with its own assets, executor and resources."""

# No postponed annotations: Dagster reads those of an asset.
import dagster as dg

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.settings import load_settings
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.graph import Services
from tests.clocks import fixed_clock

OWN_JOB = "own_job"


@dg.asset(deps=[dg.AssetKey(["dba", "daily_database_aggregations"])], required_resource_keys={"collection"})
def own_costs(context: dg.AssetExecutionContext) -> str:
    """An asset downstream of the graph, with a resource of a common name."""
    return str(context.resources.collection)


@dg.asset
def own_stale_windows(capacity_services: dg.ResourceParam[Services]) -> int:
    """An asset that takes the typed services of the graph, as in docs/extending.md."""
    assert isinstance(capacity_services.runner.service, AggregationService)
    return len(capacity_services.runner.stale_windows())


def host() -> dg.Definitions:
    """The definitions of the code location."""
    return dg.Definitions.merge(
        build_definitions(load_settings(), clock=fixed_clock(), key_prefix="dba", owners=["team:platform"]),
        dg.Definitions(
            assets=[own_costs, own_stale_windows],
            jobs=[dg.define_asset_job(OWN_JOB, [own_costs])],
            resources={"collection": "theirs", "aggregation": "theirs", "retention": "theirs"},
            executor=dg.multiprocess_executor,
        ),
    )
