"""The resources behind the assets: they hand out a task runner or a collection for the length of a run.

Plain generators, not configurable resources: they have no field that the UI could show, because all they need (a URL
with a password) is secret, and the domain objects they yield know nothing of Dagster. Our errors become Dagster's
failures here, whose text a run or tick shows; which of them are transient is decided in `base.errors`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from sqlalchemy import Engine

from capacity_assets.base.errors import CapacityError
from capacity_assets.base.periods import Clock, Period
from capacity_assets.base.settings import Settings
from capacity_assets.runtime import collection_service, open_engine, retention_service, task_runner

if TYPE_CHECKING:
    from capacity_assets.forecast.issuing import RunwayService


logger = logging.getLogger(__name__)


@contextmanager
def dagster_failures() -> Iterator[None]:
    """Raise an error of the block as a dagster.Failure with its text alone; only a transient one may be retried."""
    try:
        yield
    except CapacityError as error:
        # Not chained: Dagster stores the whole chain in the event, statement and parameters included.
        logger.debug("cause of the failure", exc_info=error)
        raise dg.Failure(description=str(error), allow_retries=error.transient) from None


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
        from capacity_assets.forecast.issuing import RunwayService

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
