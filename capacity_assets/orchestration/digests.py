"""The digest as an asset: one partition per week, sent on Monday, and on the next two days to whom it did not reach.

What it says and how it is sent is the business of `digest`; here it gets a partition, metadata, a check and a schedule.
"""

from collections.abc import Iterator, Sequence

import dagster as dg
from pydantic import Field

from capacity_assets.aggregation.task_runner import AggregationTaskRunner
from capacity_assets.digest.content import Digest, read_digest
from capacity_assets.digest.receivers import receivers_of
from capacity_assets.digest.sending import Sent, send_digests
from capacity_assets.digest.writing import opening, sections
from capacity_assets.orchestration.after_aggregates import made_of_aggregates
from capacity_assets.orchestration.failures import dagster_failures
from capacity_assets.orchestration.metadata import MetadataMapping, bullets, escaped
from capacity_assets.orchestration.partitions import windows_of
from capacity_assets.orchestration.resources import AGGREGATION_RESOURCE
from capacity_assets.periods import Period, Window
from capacity_assets.runtime import digest_channels
from capacity_assets.settings import Settings

DIGEST, DIGEST_GROUP = "digest", "reports"
DIGEST_JOB, DIGEST_SCHEDULE = "digest_job", "digest_schedule"
DIGEST_SENT = "digest_sent"
DIGEST_PERIOD = "weekly"
# After the week's aggregates and the day's runways.
MINUTE = 50

DESCRIPTION = """\
What happened in a week that is out of the ordinary: databases that grew more than usual, runways that moved, servers
that are not measured any more, databases that came and went. A week without such news has one line.

The newest complete week is sent to those in `CAPACITY_DIGEST_RECEIVERS` who did not get it yet, as mail or to the alert
webhook; of older weeks nothing is sent. A mail server that refuses or hangs fails its receiver only: the check
`digest_sent` names it, and the next two days try again.
"""


class DigestConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    again: bool = Field(default=False, description="Send also to those who got it before.")


def digest_asset(settings: Settings, period: Period, retries: dg.RetryPolicy) -> dg.AssetsDefinition:
    """Build the asset."""

    @dg.asset(
        name=DIGEST,
        description=DESCRIPTION,
        group_name=DIGEST_GROUP,
        kinds={"mail"},
        check_specs=[dg.AssetCheckSpec(DIGEST_SENT, asset=DIGEST, description="Every receiver got the newest digest.")],
        **made_of_aggregates(settings, period, retries),
    )
    def make_digest(context: dg.AssetExecutionContext, config: DigestConfig) -> Iterator[dg.MaterializeResult[None]]:
        runner: AggregationTaskRunner = getattr(context.resources, AGGREGATION_RESOURCE)
        newest = period.last(runner.service.clock.today())
        failed: tuple[tuple[str, str], ...] = ()
        with dagster_failures():
            path = settings.digest_receivers
            receivers = [] if path is None else receivers_of(path, settings.label_keys)
            for week in windows_of(period, context.partition_keys):
                done = Sent()
                if week == newest:
                    channels = digest_channels(settings)
                    done = send_digests(runner.service.engine, week, receivers, channels, again=config.again)
                    failed = done.failed
                digest = read_digest(runner.service.engine, week)
                context.add_asset_metadata(digest_metadata(digest, done), partition_key=week.key)
        yield dg.MaterializeResult(check_results=[_check_result(failed)])

    return make_digest


def digest_metadata(digest: Digest, done: Sent) -> MetadataMapping:
    """Return what a week's materialisation shows: the digest of the fleet, then counts, which plot."""
    return {
        "digest": dg.MetadataValue.md(digest_text(digest)),
        **{name: dg.MetadataValue.int(count) for name, count in digest.counts.items()},
        "sent": dg.MetadataValue.int(len(done.sent)),
        "sent_earlier": dg.MetadataValue.int(len(done.earlier)),
        "not_sent": dg.MetadataValue.int(len(done.failed)),
    }


def digest_text(digest: Digest) -> str:
    """Return the digest as Markdown."""
    parts = [
        escaped(sentence.text) + (f" `{sentence.command}`" if sentence.command else "") for sentence in opening(digest)
    ]
    parts += [f"**{section.heading}**\n\n{bullets(section.lines, hidden=section.more)}" for section in sections(digest)]
    return "\n\n".join(parts)


def _check_result(failed: Sequence[tuple[str, str]]) -> dg.AssetCheckResult:
    failures = bullets([f"{name}: {reason}" for name, reason in failed], hidden=0)
    return dg.AssetCheckResult(
        check_name=DIGEST_SENT,
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN,
        description=failures or "All receivers got the digest, or none is configured.",
        metadata={"places": len(failed), "found": dg.MetadataValue.md(failures or "nothing")},
    )


digest_job = dg.define_asset_job(
    DIGEST_JOB, selection=dg.AssetSelection.assets(DIGEST), description="Makes and sends the digest of a week."
)


def digest_schedule(settings: Settings, period: Period) -> dg.ScheduleDefinition:
    """Build the schedule: Monday, and two days more for receivers that were not reached."""

    @dg.schedule(
        name=DIGEST_SCHEDULE,
        job_name=DIGEST_JOB,
        cron_schedule=f"{MINUTE} {settings.schedule_hour} * * 1-3",
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Sends the digest of the last week on Monday, and on the next two days to whom it did not reach.",
    )
    def request_week(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        day = context.scheduled_execution_time.astimezone(settings.zone).date()
        week: Window = period.last(day)
        if week.start < period.window_of(settings.start_date).start:
            return dg.SkipReason("The last week lies before the first partition.")
        return dg.RunRequest(run_key=day.isoformat(), partition_key=week.key)

    return request_week
