"""Asset checks: what `aggregation.quality` finds, as the UI shows it. Evaluated in the run, for its partitions.

They are part of the asset's own run, so that they see exactly the windows that were written, in a range run
too. A failed check does not fail the run.
"""

from collections.abc import Sequence

import dagster as dg

from capacity_assets.aggregation.levels import Level
from capacity_assets.aggregation.quality import Outcome, Severity, checks_of
from capacity_assets.orchestration.metadata import escaped
from capacity_assets.periods import Window

SEVERITIES = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARN: dg.AssetCheckSeverity.WARN}


def check_specs(asset: str, level: Level) -> list[dg.AssetCheckSpec]:
    """Declare the checks of an asset."""
    return [dg.AssetCheckSpec(name, asset=asset, description=description) for name, description in checks_of(level)]


def check_results(outcomes: Sequence[Outcome], windows: Sequence[Window]) -> list[dg.AssetCheckResult]:
    """Turn outcomes into results that name the windows they speak of."""
    first, last = min(windows).key, max(windows).key
    return [
        dg.AssetCheckResult(
            check_name=outcome.name,
            passed=outcome.passed,
            severity=SEVERITIES[outcome.severity],
            description=outcome.text,
            metadata={
                "places": outcome.places,
                "first_partition": first,
                "last_partition": last,
                "found": dg.MetadataValue.md("\n".join(f"- {escaped(place)}" for place in outcome.listed) or "nothing"),
            },
        )
        for outcome in outcomes
    ]
