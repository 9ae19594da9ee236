"""`CapacityFleet`: the whole graph as one component of a project of one's own, with its servers declared in a file.

A component's `defs.yaml` names the file; everything else comes from the environment, as in the code location of this
project. Nothing is registered when definitions load: materialising `registered_servers` does it.
"""

from dataclasses import asdict
from pathlib import Path

import dagster as dg

from capacity_assets.base.settings import load_settings
from capacity_assets.collection.servers import declared_servers, register
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.demo.sample_fleet import refuse_the_sample_fleet
from capacity_assets.forecast.limits import declare
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.graph import RETRIES, dagster_failures
from capacity_assets.runtime import open_engine

REGISTERED_SERVERS = "registered_servers"


class CapacityFleet(dg.Component, dg.Model, dg.Resolvable):
    """The capacity graph, and the servers of a TOML or CSV file as `capacity instances import` takes them."""

    fleet: str | None = None
    """The file, beside `defs.yaml`; without it servers are registered by the command only."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the definitions from the settings of the environment."""
        settings = load_settings()
        definitions = build_definitions(settings)
        if self.fleet is None:
            return definitions
        path = Path(context.path) / self.fleet

        @dg.asset(name=REGISTERED_SERVERS, group_name="samples", kinds={"postgres"}, retry_policy=RETRIES)
        def servers() -> dg.MaterializeResult[None]:
            """The servers that the fleet's file declares, registered for collection; all of them or none."""
            with dagster_failures(), open_engine(settings, connect=False) as engine:
                refuse_an_unfit_database(engine, kept="Nothing was registered.")
                refuse_the_sample_fleet(engine)
                declared = declared_servers(path)
                changes = register(engine, declared.servers, by=settings.declarer)
                declare(engine, declared.limits, by=settings.declarer)
            return dg.MaterializeResult(
                metadata={f"{name}_servers": len(names) for name, names in asdict(changes).items()}
            )

        return dg.Definitions.merge(definitions, dg.Definitions(assets=[servers]))
