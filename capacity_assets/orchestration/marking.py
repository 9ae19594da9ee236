"""Reports partitions that were filled elsewhere to Dagster: a materialisation each, without a run, a few per tick.

Which partitions these are is decided by the sensors that mark.
"""

from collections.abc import Iterator
from itertools import islice

import dagster as dg

from capacity_assets.orchestration.failures import dagster_failures

INTERVAL_SECONDS = 60
MOST_PER_TICK = 500


def marked(unmarked: Iterator[dg.AssetMaterialization], nothing: str) -> dg.SensorResult | dg.SkipReason:
    """Return a tick's result: the first materialisations, or the reason `nothing`; raises dagster.Failure."""
    with dagster_failures():
        events = list(islice(unmarked, MOST_PER_TICK))
    return dg.SensorResult(asset_events=events) if events else dg.SkipReason(nothing)
