"""The resources behind the assets: they hand out a task runner or a collection for the length of a run.

Plain generators, not configurable resources: they have no field that the UI could show, because all they
need (a URL with a password) is secret, and the domain objects they yield know nothing of Dagster.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg
from sqlalchemy import Engine

from capacity_assets.clock import Clock
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.periods import Period
from capacity_assets.runtime import collection_service, open_engine, retention_service, task_runner
from capacity_assets.settings import Settings

if TYPE_CHECKING:
    from capacity_assets.runway.service import RunwayService

AGGREGATION_RESOURCE = "aggregation"
COLLECTION_RESOURCE = "collection"
RETENTION_RESOURCE = "retention"
RUNWAY_RESOURCE = "runway_service"


def resources(settings: Settings, clock: Clock, periods: Mapping[str, Period]) -> dict[str, dg.ResourceDefinition]:
    """Build the resources; each opens the capacity database for the length of a run."""

    def on_the_database(name: str, made: Callable[[Engine], object]) -> dg.ResourceDefinition:
        @dg.resource(description=f"{name} on the capacity database (CAPACITY_DATABASE_URL).")
        def opened(_context: dg.InitResourceContext) -> Iterator[object]:
            with dagster_failures(), open_engine(settings, connect=False) as engine:
                yield made(engine)

        return opened

    def runway_service(engine: Engine) -> "RunwayService":
        # Arrays are loaded by runs that forecast, not by the code location.
        from capacity_assets.runway.service import RunwayService

        return RunwayService(engine, clock)

    return {
        AGGREGATION_RESOURCE: on_the_database(
            "AggregationService", lambda engine: task_runner(engine, settings, clock=clock, periods=periods)
        ),
        COLLECTION_RESOURCE: on_the_database(
            "CollectionService", lambda engine: collection_service(engine, settings, clock=clock)
        ),
        RETENTION_RESOURCE: on_the_database(
            "RetentionService", lambda engine: retention_service(engine, settings, clock=clock, periods=periods)
        ),
        RUNWAY_RESOURCE: on_the_database("RunwayService", runway_service),
    }
