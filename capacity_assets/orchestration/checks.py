"""The checks in the graph: their names, subjects and results.

A check of the rows of aggregates is an entry of `CHECKS` in `aggregates.checks`; `result_of` turns its outcome into a
result. All other checks are here, one function each. The module of an asset calls the checks of its runs; the job
`standing_check_job` makes the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date

import dagster as dg
from sqlalchemy import Engine

from capacity_assets.aggregates.checks import (
    PARTITIONS_COMPLETE,
    PARTITIONS_COMPLETE_DESCRIPTION,
    CheckOutcome,
    CheckSeverity,
    partitions_complete,
)
from capacity_assets.aggregates.levels import LEVELS, SERVER_LEVELS
from capacity_assets.base.errors import MAXIMUM_LISTED_ERRORS, DatabaseError, database_errors
from capacity_assets.base.periods import Period
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, human_day
from capacity_assets.collection.servers import collection_state
from capacity_assets.collection.service import CollectionSummary
from capacity_assets.forecast.decisions import is_left_out
from capacity_assets.orchestration.graph import Graph, Services, asset_name, dagster_failures
from capacity_assets.orchestration.metadata import (
    PAGES_LISTED,
    MetadataMapping,
    bullets,
    first_bullets,
    markdown,
    pages_metadata,
)
from capacity_assets.reading.forecasts import ForecastIssue, StoredRunway, needs_action
from capacity_assets.reading.space import MOST_RETAINED_PERCENT, retained_wal_on
from capacity_assets.reading.subjects import server_id_of, subject_address
from capacity_assets.reading.windows import STOPPED_ADVICE, newest_samples

STANDING_CHECK_JOB = "standing_check_job"
NOTHING_FILLS_SOON = "nothing_fills_soon"
DIGEST_SENT, DIGEST_SENT_DESCRIPTION = "digest_sent", "Every receiver got the newest digest."
SERVERS_MEASURED, LITTLE_WAL_RETAINED, SAMPLES_RECENT = "servers_measured", "little_wal_retained", "samples_recent"
SERVERS_MEASURED_DESCRIPTION = "Every server that is registered for collection was measured on this day."
LITTLE_WAL_RETAINED_DESCRIPTION = (
    f"No replication slot or WAL archiver retains more than {MOST_RETAINED_PERCENT} % of its volume or, if no "
    "volume is known, of the databases of its server."
)
SAMPLES_RECENT_DESCRIPTION = "The newest sample is from today or yesterday."


def check_result(  # noqa: PLR0913 -- what a result is made of
    name: str,
    text: str,
    lines: Sequence[str],
    *,
    is_error: bool,
    places: int | None = None,
    metadata: MetadataMapping | None = None,
    asset: dg.AssetKey | None = None,
    further: str = "",
) -> dg.AssetCheckResult:
    """Return the result of a check.

    `lines` are the problems, or the first of them if `places`, their number, is given.
    """
    places = len(lines) if places is None else places
    shown = lines[:MAXIMUM_LISTED_ERRORS]
    # The UI renders the text as Markdown; `bullets` escapes names.
    list_text = bullets(shown, hidden=places - len(shown))
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=not places,
        severity=dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN,
        description="\n\n".join(filter(None, [text, list_text, further])),
        metadata={"places": places, **(metadata or {}), "found": markdown(list_text or "nothing")},
    )


def result_of(
    outcome: CheckOutcome, metadata: MetadataMapping, asset: dg.AssetKey | None = None
) -> dg.AssetCheckResult:
    """Turn an outcome into a result."""
    incident = {"incident": outcome.incident} if outcome.incident else {}
    return check_result(
        outcome.name,
        outcome.text.partition("\n")[0],
        outcome.listed,
        is_error=outcome.severity is CheckSeverity.ERROR,
        places=outcome.places,
        metadata={**metadata, **incident},
        asset=asset,
    )


def servers_result(
    measured: CollectionSummary | None, engine: Engine, pages_url: str | None, asset: dg.AssetKey
) -> dg.AssetCheckResult:
    """Return the result that names the servers that failed in this run.

    After a run that measured nothing, or only a share, it names those of the newest day, so that no failure disappears.
    """
    if measured:
        failing, failed = list(map(str, measured.failures)), measured.failed_instances
        servers = [failure.server for failure in measured.failures]
        not_measured = f"{counted(failed, 'server')} not measured on {human_day(measured.day)}."
        text = not_measured if failing else "All servers measured."
    else:
        fleet = collection_state(engine)
        failing = [f"{one.server}: {one.kind}: {one.reason}" for one in fleet.failing]
        # Also those of earlier days, which `fleet.failed` does not count.
        failed = len(failing)
        servers, text = [one.server for one in fleet.failing], fleet.text
    with database_errors(doing="looking up servers"), engine.connect() as connection:
        numbers = {server: server_id_of(connection, server) for server in servers[:PAGES_LISTED]}
    pages = {name: subject_address("server", number) for name, number in numbers.items() if number is not None}
    shown = pages_metadata(pages, pages_url)
    return check_result(SERVERS_MEASURED, text, failing, is_error=True, places=failed, metadata=shown, asset=asset)


def retained_wal_result(engine: Engine, today: date, pages_url: str | None, asset: dg.AssetKey) -> dg.AssetCheckResult:
    """Return the result that names what retains too much WAL, by the newest measurements, not only of this run."""
    try:
        with database_errors(doing="looking up retained WAL"), engine.connect() as connection:
            retained = retained_wal_on(connection, today)
    except DatabaseError as error:
        # Only a warning, because the samples are stored and their aggregates must not wait for this.
        text = "Retained WAL could not be looked up."
        return check_result(LITTLE_WAL_RETAINED, text, [str(error)], is_error=False, asset=asset)
    pages = {wal.server: subject_address("server", wal.server_id) for wal in retained[:PAGES_LISTED]}
    text = (
        f"Too much WAL is retained in {counted(len(retained), 'place')}."
        if retained
        else "Nothing retains too much WAL."
    )
    # The incident is named without sizes, which change every day.
    incident = "\n".join(sorted(f"{wal.server}: {wal.part or wal.holder}" for wal in retained))
    metadata = {**pages_metadata(pages, pages_url), **({"incident": incident} if incident else {})}
    lines = [f"{wal.text}. {wal.advice}" for wal in retained]
    return check_result(LITTLE_WAL_RETAINED, text, lines, is_error=True, metadata=metadata, asset=asset)


def samples_recent(graph: Graph) -> dg.AssetChecksDefinition:
    """Build the check that sends an alert when samples stop arriving, whatever program writes them."""
    tables = {graph.key(level.source.name): level.source.name for level in SERVER_LEVELS.values()}

    @graph.standing_check(SAMPLES_RECENT, tables, SAMPLES_RECENT, SAMPLES_RECENT_DESCRIPTION)
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with dagster_failures():
            service = Services.of(context).collection
            by_table = {samples.table: samples for samples in newest_samples(service.engine, service.clock.today())}
        for key in context.selected_asset_check_keys:
            newest = by_table[tables[key.asset_key]]
            yield dg.AssetCheckResult(
                asset_key=key.asset_key,
                check_name=SAMPLES_RECENT,
                passed=not newest.has_stopped,
                severity=dg.AssetCheckSeverity.ERROR,
                description=f"{newest.text} {STOPPED_ADVICE}" if newest.has_stopped else newest.text,
                # The incident is named without the age, which changes every day.
                metadata={"newest_day": f"{newest.day or 'none'}", "incident": f"{newest.day}"},
            )

    return check


def partitions_complete_check(graph: Graph, period: Period) -> dg.AssetChecksDefinition:
    """Build the check that lists the failed and missing partitions of a period's assets.

    Only the daily job sends alerts, because during a backfill windows are missing after every run but the last.
    """
    levels = {graph.key(asset_name(period, level)): level.name for level in LEVELS.values()}

    @graph.standing_check(
        f"{period.name}_{PARTITIONS_COMPLETE}", levels, PARTITIONS_COMPLETE, PARTITIONS_COMPLETE_DESCRIPTION
    )
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        severity = CheckSeverity.ERROR if context.run.job_name == STANDING_CHECK_JOB else CheckSeverity.WARN
        for key in context.selected_asset_check_keys:
            with dagster_failures():
                left = Services.of(context).runner.incomplete_windows(period, levels[key.asset_key])
            yield result_of(partitions_complete(left, severity), {}, key.asset_key)

    return check


def fills_soon_description(settings: Settings, nothing: str = "Nothing") -> str:
    """Return the sentence that the check `nothing_fills_soon` tests."""
    thresholds = settings.thresholds
    return (
        f"{nothing} is full within {thresholds.days} days with a probability of {thresholds.act_percent} percent or "
        "more."
    )


def soon_risks(issue: ForecastIssue | None, settings: Settings, *, decided: bool = False) -> Sequence[StoredRunway]:
    """Return what fills soon without a decision; with `decided`, what a decision excludes."""
    risks = issue.risks if issue else ()
    return [risk for risk in risks if needs_action(risk, settings.thresholds) and is_left_out(risk.decision) == decided]


def fills_soon_result(issue: ForecastIssue | None, settings: Settings, *, in_time: bool) -> dg.AssetCheckResult:
    """Return the result that names what fills soon; a failure is a warning if the forecasts were not issued in time."""
    soon, decided = soon_risks(issue, settings), soon_risks(issue, settings, decided=True)
    left_out = first_bullets([f"{_name_of(risk)}: {risk.decision.sentence}" for risk in decided if risk.decision])
    pages = {_name_of(risk): subject_address(risk.subject, risk.server_id, risk.name) for risk in soon}
    text = "No recent forecast."
    if issue is not None:
        nothing = "" if soon else f" {fills_soon_description(settings, 'Nothing else' if decided else 'Nothing')}"
        text = f"As of {human_day(issue.as_of)}:{nothing}"
    return check_result(
        NOTHING_FILLS_SOON,
        text,
        [_risk_text(risk, settings) for risk in soon],
        is_error=in_time and settings.fills_soon_severity == "error",
        metadata={"decided": len(decided), **pages_metadata(pages, settings.pages_url)},
        further=f"Left out by decisions:\n\n{left_out}" if decided else "",
    )


def _name_of(risk: StoredRunway) -> str:
    return f"{risk.display_name} on {risk.server}"


def _risk_text(risk: StoredRunway, settings: Settings) -> str:
    """Return a sentence on when it is full, and on the decision about it if the risk has grown since."""
    text = risk.runway.sentence(settings.fills_soon_days)
    return text if risk.decision is None else f"{text} {risk.decision.sentence}"


def digest_sent_result(failed: Sequence[tuple[str, str]], waiting: Mapping[str, str]) -> dg.AssetCheckResult:
    """Return the result that names receivers not reached, with the reason; `waiting` describes those in quiet hours."""
    failures = [f"{name}: {reason}" for name, reason in failed]
    text = "" if failures else "All receivers got the digest, or none is configured."
    return check_result(DIGEST_SENT, text, failures, is_error=False, metadata=waiting)
