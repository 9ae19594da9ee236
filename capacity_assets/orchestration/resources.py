"""The resource behind the assets: it hands out a task runner for the length of a run.

A plain generator, not a configurable resource: it has no field that the UI could show, because all it
needs (a URL with a password) is secret, and the domain object it yields knows nothing of Dagster.
"""

from collections.abc import Iterator, Mapping

import dagster as dg

from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.clock import Clock
from capacity_assets.periods import Period
from capacity_assets.runtime import open_task_runner_lazily
from capacity_assets.settings import Settings
from capacity_assets.storage.embedded import EmbeddedServerError

AGGREGATION_RESOURCE = "aggregation"


def aggregation_resource(settings: Settings, *, clock: Clock, periods: Mapping[str, Period]) -> dg.ResourceDefinition:
    """Build the resource: a task runner on the capacity database for the length of a run."""

    @dg.resource(description="AggregationService on the capacity database (CAPACITY_DATABASE_URL).")
    def aggregation(_context: dg.InitResourceContext) -> Iterator[AggregationTaskRunner]:
        try:
            with open_task_runner_lazily(settings, clock=clock, periods=periods) as runner:
                yield runner
        except EmbeddedServerError as error:
            raise dg.Failure(description=str(error)) from None

    return aggregation
