"""Asset checks: the outcomes of `aggregation.quality` for the UI. A failed check does not fail the run.

Most are part of the asset's own computation, so that they know which windows were written, in a range run too. The
standing check looks for windows that are left: after every run, and once a day by a job of its own. Only the daily one
sends alerts, because during a backfill windows are missing after every run but the last.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import dagster as dg

from capacity_assets.aggregation.quality import (
    PARTITIONS_COMPLETE,
    PARTITIONS_COMPLETE_DESCRIPTION,
    CheckOutcome,
    Severity,
    checks_of,
    partitions_complete,
)
from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.collection.observing import STOPPED_ADVICE, newest_samples
from capacity_assets.collection.service import CollectionService
from capacity_assets.foundation.levels import LEVELS, SERVER_LEVELS, Level
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.orchestration.metadata import bullets
from capacity_assets.orchestration.naming import asset_name
from capacity_assets.orchestration.resources import AGGREGATION_RESOURCE, COLLECTION_RESOURCE
from capacity_assets.periods import Period, Window

STANDING_CHECK_JOB = "standing_check_job"
SAMPLES_RECENT = "samples_recent"
SAMPLES_RECENT_DESCRIPTION = "The newest sample is from today or yesterday."
SEVERITIES = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARN: dg.AssetCheckSeverity.WARN}


def check_specs(asset: str, level: Level) -> list[dg.AssetCheckSpec]:
    """Declare the checks of an asset."""
    return [dg.AssetCheckSpec(name, asset=asset, description=description) for name, description in checks_of(level)]


def check_results(outcomes: Sequence[CheckOutcome], windows: Sequence[Window]) -> list[dg.AssetCheckResult]:
    """Turn outcomes into results that name their windows."""
    span = {"first_partition": min(windows).key, "last_partition": max(windows).key}
    return [_result(outcome, span) for outcome in outcomes]


def _result(outcome: CheckOutcome, metadata: Mapping[str, str], asset: str | None = None) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=outcome.name,
        passed=outcome.passed,
        severity=SEVERITIES[outcome.severity],
        description=_text(outcome),
        metadata={
            "places": outcome.places,
            **metadata,
            **({"incident": outcome.incident} if outcome.incident else {}),
            "found": dg.MetadataValue.md(bullets(outcome.listed, hidden=0) or "nothing"),
        },
    )


def _text(outcome: CheckOutcome) -> str:
    """The outcome in words; the UI reads them as Markdown, so no name may be markup."""
    first = outcome.text.partition("\n")[0]
    if outcome.passed:
        return first
    return f"{first}\n\n{bullets(outcome.listed, hidden=outcome.places - len(outcome.listed))}"


def standing_check_keys(periods: Iterable[Period]) -> list[dg.AssetCheckKey]:
    """Return the keys of the standing checks of all assets of samples and aggregates."""
    return [dg.AssetCheckKey(dg.AssetKey(level.source.name), SAMPLES_RECENT) for level in SERVER_LEVELS.values()] + [
        dg.AssetCheckKey(dg.AssetKey(asset_name(period, level)), PARTITIONS_COMPLETE)
        for period in periods
        for level in LEVELS.values()
    ]


def samples_recent(retries: dg.RetryPolicy) -> dg.AssetChecksDefinition:
    """Build the check that sends an alert when samples stop arriving, whatever program writes them."""

    @dg.multi_asset_check(
        name=SAMPLES_RECENT,
        specs=[
            dg.AssetCheckSpec(SAMPLES_RECENT, asset=level.source.name, description=SAMPLES_RECENT_DESCRIPTION)
            for level in SERVER_LEVELS.values()
        ],
        can_subset=True,
        required_resource_keys={COLLECTION_RESOURCE},
        retry_policy=retries,
    )
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        service: CollectionService = getattr(context.resources, COLLECTION_RESOURCE)
        with dagster_failures():
            found = {one.table: one for one in newest_samples(service.engine, service.clock.today())}
        for key in context.selected_asset_check_keys:
            newest = found[key.asset_key.to_user_string()]
            yield dg.AssetCheckResult(
                asset_key=key.asset_key,
                check_name=SAMPLES_RECENT,
                passed=not newest.has_stopped,
                severity=dg.AssetCheckSeverity.ERROR,
                description=f"{newest.text} {STOPPED_ADVICE}" if newest.has_stopped else newest.text,
                # The text contains an age that changes daily, but the incident is the same.
                metadata={"newest_day": f"{newest.day or 'none'}", "incident": f"{newest.day}"},
            )

    return check


def standing_check(period: Period, retries: dg.RetryPolicy) -> dg.AssetChecksDefinition:
    """Build the check that lists the failed and missing partitions of a period's assets."""
    levels = {asset_name(period, level): level.name for level in LEVELS.values()}

    @dg.multi_asset_check(
        name=f"{period.name}_{PARTITIONS_COMPLETE}",
        specs=[
            dg.AssetCheckSpec(PARTITIONS_COMPLETE, asset=asset, description=PARTITIONS_COMPLETE_DESCRIPTION)
            for asset in levels
        ],
        can_subset=True,
        required_resource_keys={AGGREGATION_RESOURCE},
        retry_policy=retries,
    )
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        runner: AggregationTaskRunner = getattr(context.resources, AGGREGATION_RESOURCE)
        severity = Severity.ERROR if context.run.job_name == STANDING_CHECK_JOB else Severity.WARN
        for key in context.selected_asset_check_keys:
            asset = key.asset_key.to_user_string()
            with dagster_failures():
                left = runner.inspection.incomplete_windows(period, levels[asset])
            yield _result(partitions_complete(left, severity), {}, asset)

    return check
