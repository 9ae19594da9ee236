"""The resources behind the assets: they hand out a task runner or a collection for the length of a run.

Plain generators, not configurable resources: they have no field that the UI could show, because all they
need (a URL with a password) is secret, and the domain objects they yield know nothing of Dagster.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.clock import Clock
from capacity_assets.collection.service import CollectionService
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.periods import Period
from capacity_assets.retention.service import RetentionService
from capacity_assets.runtime import collection_service, open_engine, open_task_runner_lazily, retention_service
from capacity_assets.settings import Settings

if TYPE_CHECKING:
    from capacity_assets.runway.service import RunwayService

AGGREGATION_RESOURCE = "aggregation"
COLLECTION_RESOURCE = "collection"
RETENTION_RESOURCE = "retention"
RUNWAY_RESOURCE = "runway_service"


def aggregation_resource(settings: Settings, *, clock: Clock, periods: Mapping[str, Period]) -> dg.ResourceDefinition:
    """Build the resource: a task runner on the capacity database for the length of a run."""

    @dg.resource(description="AggregationService on the capacity database (CAPACITY_DATABASE_URL).")
    def aggregation(_context: dg.InitResourceContext) -> Iterator[AggregationTaskRunner]:
        with dagster_failures(), open_task_runner_lazily(settings, clock=clock, periods=periods) as runner:
            yield runner

    return aggregation


def retention_resource(settings: Settings, *, clock: Clock, periods: Mapping[str, Period]) -> dg.ResourceDefinition:
    """Build the resource: what maintains the tables of the capacity database, for the length of a run."""

    @dg.resource(description="RetentionService on the capacity database (CAPACITY_DATABASE_URL).")
    def retention(_context: dg.InitResourceContext) -> Iterator[RetentionService]:
        with dagster_failures(), open_engine(settings, connect=False) as engine:
            yield retention_service(engine, settings, clock=clock, periods=periods)

    return retention


def runway_resource(settings: Settings, *, clock: Clock) -> dg.ResourceDefinition:
    """Build the resource: what issues runways on the capacity database, for the length of a run."""

    @dg.resource(description="RunwayService on the capacity database (CAPACITY_DATABASE_URL).")
    def runway_service(_context: dg.InitResourceContext) -> "Iterator[RunwayService]":
        # Arrays are loaded by runs that forecast, not by the code location.
        from capacity_assets.runway.service import RunwayService

        with dagster_failures(), open_engine(settings, connect=False) as engine:
            yield RunwayService(engine, clock)

    return runway_service


def collection_resource(settings: Settings, *, clock: Clock) -> dg.ResourceDefinition:
    """Build the resource: a collection on the capacity database for the length of a run."""

    @dg.resource(description="CollectionService on the capacity database (CAPACITY_DATABASE_URL).")
    def collection(_context: dg.InitResourceContext) -> Iterator[CollectionService]:
        with dagster_failures(), open_engine(settings, connect=False) as engine:
            yield collection_service(engine, settings, clock=clock)

    return collection
