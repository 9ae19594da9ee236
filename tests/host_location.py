"""A code location of somebody else's, in which the graph lives beside assets, an executor and resources of its own."""

# No postponed annotations: Dagster reads those of an asset.
import dagster as dg

from capacity_assets.base.settings import load_settings
from capacity_assets.orchestration.build import build_definitions
from tests.clocks import fixed_clock

OWN_JOB = "own_job"


@dg.asset(deps=[dg.AssetKey(["dba", "daily_database_aggregations"])], required_resource_keys={"collection"})
def own_costs(context: dg.AssetExecutionContext) -> str:
    """An asset downstream of ours, with a resource of a common name."""
    return str(context.resources.collection)


def host() -> dg.Definitions:
    """The definitions of the code location."""
    return dg.Definitions.merge(
        build_definitions(load_settings(), clock=fixed_clock(), key_prefix="dba", owners=["team:platform"]),
        dg.Definitions(
            assets=[own_costs],
            jobs=[dg.define_asset_job(OWN_JOB, [own_costs])],
            resources={"collection": "theirs", "aggregation": "theirs", "retention": "theirs"},
            executor=dg.multiprocess_executor,
        ),
    )
