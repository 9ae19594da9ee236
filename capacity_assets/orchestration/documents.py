"""Growth report, showback, digest and Parquet files as assets: created again when their aggregates are recomputed.

The report has one page per month, showback one bill per month, the digest one partition per week, sent on Monday and on
the next two days to receivers that it did not reach, the data set files for each window of each period. Their content
is computed in `report`, `ownership`, `digest` and `history`; this module gives them a partition, a file or metadata,
and an automation condition.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.aggregates.task_runner import AggregationTaskRunner
from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.units import counted, human_change_mb, human_pair_mb
from capacity_assets.database.tables import capacity_bill_lines
from capacity_assets.digest import Digest, DigestDeliveries, opening, read_digest, sections, send_digests
from capacity_assets.history.exporting import WrittenFile, write_window
from capacity_assets.messages.channels import SendingSettings, receivers_of
from capacity_assets.orchestration.checks import DIGEST_SENT, DIGEST_SENT_DESCRIPTION, digest_sent_result
from capacity_assets.orchestration.graph import (
    REPORTS_PATH,
    Graph,
    Requests,
    Services,
    asset_name,
    dagster_failures,
)
from capacity_assets.orchestration.metadata import (
    PARTITION_ROW_COUNT,
    MetadataMapping,
    bullets,
    escaped,
    linked_bullets,
    markdown,
    markdown_table,
    table_metadata,
)
from capacity_assets.orchestration.partitions import windows_of
from capacity_assets.ownership import bills
from capacity_assets.ownership.labels import default_grouping
from capacity_assets.reading.changes import ChangeKind
from capacity_assets.report.page import (
    Edition,
    Report,
    file_name,
    make_report_folder,
    next_edition,
    read_report,
    write_report,
)

REPORT_PERIOD, DIGEST_PERIOD = "monthly", "weekly"
REPORT_GROUP, SHOWBACK_GROUP, EXPORT_GROUP = "reports", "showback", "exports"
GROWTH_REPORT, GROWTH_REPORT_JOB = "growth_report", "growth_report_job"
SHOWBACK, SHOWBACK_JOB = "showback", "showback_job"
DIGEST, DIGEST_JOB, DIGEST_SCHEDULE = "digest", "digest_job", "digest_schedule"
WAITING_WEEK = "waiting_week"
# After the week's aggregates and the day's runways.
DIGEST_MINUTE = 50
GROWN_LISTED, GROUPS_SHOWN = 5, 20


def document_definitions(graph: Graph) -> dg.Definitions:
    """Return report and showback if there are months, the digest if there are weeks, and files if configured."""
    month, week = graph.periods.get(REPORT_PERIOD), graph.periods.get(DIGEST_PERIOD)
    reports = [growth_report(graph, month), showback(graph, month)] if month else []
    exports = [export(graph, period) for period in graph.periods.values() if graph.settings.export_url]
    return dg.Definitions.merge(*reports, *([digest(graph, week)] if week else []), *exports)


MakeDocument = Callable[[AggregationTaskRunner, Window], MetadataMapping]
"""Creates the document of a window; returns the metadata of its partition."""


def _document_asset(
    graph: Graph, name: str, period: Period, **more: Any
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    deps = [graph.key(asset_name(period, level)) for level in LEVELS.values()]
    return graph.asset(name, period, deps=deps, tags={"period": period.name}, **more)


def _make_each(context: dg.AssetExecutionContext, period: Period, make: MakeDocument) -> None:
    with dagster_failures():
        runner = Services.of(context).runner
        for window in windows_of(period, context.partition_keys):
            context.add_asset_metadata(make(runner, window), partition_key=window.key)


def _automated_document(
    graph: Graph, name: str, period: Period, make: MakeDocument, what: str, **more: Any
) -> dg.Definitions:
    """Return the asset of a document that is created whenever its aggregates are, with its job and sensor."""

    @_document_asset(graph, name, period, automation_condition=whenever_aggregates_are_made(), **more)
    def make_documents(context: dg.AssetExecutionContext) -> None:
        _make_each(context, period, make)

    sensor = dg.AutomationConditionSensorDefinition(
        f"{name}_sensor",
        target=dg.AssetSelection.assets(graph.key(name)),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"{what} whenever its aggregates were made.",
    )
    return dg.Definitions(
        assets=[make_documents], jobs=[graph.job(f"{name}_job", [name], f"{what}.")], sensors=[sensor]
    )


def whenever_aggregates_are_made() -> dg.AutomationCondition[dg.AssetKey | dg.AssetCheckKey]:
    """As `eager`, for every partition: a backfill or late samples change old months.

    `since_last_handled` would forget aggregates that are recomputed while a report is rendered: a report may be
    rendered once too often, never once too little.
    """
    condition = dg.AutomationCondition
    has_new_aggregates = condition.any_deps_updated().since(condition.newly_requested() & ~condition.any_deps_updated())
    quiet = ~condition.any_deps_missing() & ~condition.any_deps_in_progress() & ~condition.in_progress()
    return (has_new_aggregates & quiet).with_label("whenever the aggregates of its window are made")


REPORT_DESCRIPTION = """\
One page per month: size by engine over time, a waterfall from the previous month that adds up exactly, the largest
growers and shrinkers, new and dropped databases, and the days that were not measured.

The metadata names the file, in the folder `reports` under `CAPACITY_HOME`. It needs no network and prints on A4. It is
written again whenever the month's aggregates are. If the figures of a closed month change, the issued page is kept, and
the new page shows the old and new figures and the reason. For other windows, or a single server, use `capacity report`.
"""


def growth_report(graph: Graph, period: Period) -> dg.Definitions:
    """Return the asset, its job and its sensor."""
    settings = graph.settings

    def make(runner: AggregationTaskRunner, window: Window) -> MetadataMapping:
        engine, today = runner.service.engine, runner.service.clock.today()
        report = read_report(engine, period, window, today=today, by=next(iter(settings.label_keys), None))
        path = settings.reports / file_name(period, window)
        try:
            edition = next_edition(engine, report, path)
            make_report_folder(settings.reports)
            write_report(report, path, edition)
        except OSError as error:
            raise dg.Failure(
                description=f"The report cannot be written to {settings.reports}: {error.strerror}. Pages written "
                "before were kept. Make room or fix the folder's rights, then run these partitions again."
            ) from None
        return report_metadata(report, edition, path)

    return _automated_document(
        graph,
        GROWTH_REPORT,
        period,
        make,
        "Writes a month's growth report",
        description=REPORT_DESCRIPTION,
        group_name=REPORT_GROUP,
        kinds={"html"},
    )


def report_metadata(report: Report, edition: Edition, path: Path) -> MetadataMapping:
    """Return the metadata of a month's materialisation: the page, and the waterfall's numbers, which plot."""
    return {
        "Open the report": dg.MetadataValue.url(f"{REPORTS_PATH}/{path.name}"),
        "report": path,
        "summary": markdown(report_text(report, edition)),
        "issue": edition.issue.number,
        "start_mb": report.start_mb,
        **{f"{kind}_mb": change for kind, change in report.steps},
        "end_mb": report.end_mb,
        "unmeasured_servers": sum(server.last_day is not None for server in report.missing),
    }


def report_text(report: Report, edition: Edition) -> str:
    """Return the waterfall as text, in Markdown."""
    steps = [f"- {kind}: {human_change_mb(change)}" for kind, change in report.steps if change]
    before, now = human_pair_mb(report.start_mb, report.end_mb)
    growers = [
        f"- {escaped(database.server)} / {escaped(database.name)}: {human_change_mb(database.change_mb)}"
        for database in report.databases.largest[ChangeKind.GROWN][:GROWN_LISTED]
    ]
    parts = [
        *([escaped(edition.sentence)] if edition.sentence else []),
        f"From **{before}** to **{now}**",
        "\n".join(steps or ["- nothing changed"]),
        "Largest growers:",
        "\n".join(growers or ["- none"]),
    ]
    return "\n\n".join(parts)


SHOWBACK_DESCRIPTION = """\
The cost of each database in a month: its size on each day, with the labels and prices of that day.

Lines are stored in `capacity_bill_lines`, their sums by group in `capacity_bill_groups`, bills in `capacity_bills`. The
bill of an unfinished month is replaced. The bill of a closed month is kept; if late samples, labels or prices change
it, a new version states by how much and why.
After retention has dropped samples of the month, its bill no longer changes.
`capacity bill` shows it by team or any other group, as a table, CSV, JSON or a page. Rules: docs/groups.md.
"""


def showback(graph: Graph, period: Period) -> dg.Definitions:
    """Return the asset, its job and its sensor."""
    label_keys = graph.settings.label_keys

    def make(runner: AggregationTaskRunner, window: Window) -> MetadataMapping:
        engine = runner.service.engine
        try:
            bills.issue_bill(engine, window, runner.service.clock, label_keys)
        except NotFoundError as nothing:
            return {"bill": markdown(escaped(str(nothing)))}
        return bill_metadata(bills.read_bill(engine, window, default_grouping(label_keys)))

    return _automated_document(
        graph,
        SHOWBACK,
        period,
        make,
        "Issues a month's bill",
        description=SHOWBACK_DESCRIPTION,
        group_name=SHOWBACK_GROUP,
        kinds={"postgres", "table"},
        metadata=table_metadata(capacity_bill_lines),
    )


def bill_metadata(issued: bills.BillByGroup) -> MetadataMapping:
    """Return the metadata of a month's materialisation: the groups, then the numbers, which plot."""
    bill = issued.bill
    return {
        "bill": markdown(_table(issued)),
        **({} if bill.amount is None else {"amount": float(bill.amount)}),
        **({} if issued.difference is None else {"difference": float(issued.difference)}),
        "currency": bill.currency or "none",
        "issue": bill.issue,
        "gib_months": float(bill.gib_months),
        "unpriced_gib_months": float(bill.unpriced_gib_months),
        "measured_days": bill.measured_days,
        "billed_days": bill.billed_days,
    }


def _table(issued: bills.BillByGroup) -> str:
    rows = [
        [
            escaped(bills.group_named(group.name, issued.grouped_by)),
            bills.gib(group.gib_months),
            f"{group.amount or 'no price'}",
        ]
        for group in issued.groups[:GROUPS_SHOWN]
    ]
    table = markdown_table([issued.grouped_by, "GiB", f"Amount, {issued.bill.currency or 'no currency'}"], rows)
    remarks = bullets([note.strip() for note in bills.bill_notes(issued)], hidden=0)
    hidden = len(issued.groups) - GROUPS_SHOWN
    more = f"\n\nand {counted(hidden, 'more group')}" if hidden > 0 else ""
    return f"Total: **{bills.amount_text(issued.bill)}**\n\n{table}{more}\n\n{remarks}"


EXPORT_DESCRIPTION = """\
The aggregates of each {period} window as Parquet files, for DuckDB, Spark, Athena and other readers of files.

`CAPACITY_EXPORT_URL` has a file for each level: `level=database/period={period}/window=2025-01-01/rows.parquet`, with
the columns of the views {views}. A file is replaced as a
whole. Files of windows that retention has dropped stay.
"""


def export(graph: Graph, period: Period) -> dg.Definitions:
    """Return the asset of the Parquet files of a period, its job and its sensor."""
    url = str(graph.settings.export_url)
    views = ", ".join(f"`{level.view}`" for level in LEVELS.values())

    def make(runner: AggregationTaskRunner, window: Window) -> MetadataMapping:
        engine = runner.service.engine
        return export_metadata([write_window(engine, url, level, period, window) for level in LEVELS.values()])

    return _automated_document(
        graph,
        f"{period.name}_export",
        period,
        make,
        f"Writes the Parquet files of a {period.noun}",
        description=EXPORT_DESCRIPTION.format(period=period.name, views=views),
        group_name=EXPORT_GROUP,
        kinds={"parquet"},
    )


def export_metadata(files: Sequence[WrittenFile]) -> MetadataMapping:
    """Return the metadata of a window's materialisation: the files of all levels, and the numbers, which plot."""
    rows = sum(file.rows for file in files)
    return {
        "path": markdown(bullets((file.path for file in files), hidden=0)),
        "rows": rows,
        "bytes": sum(file.bytes for file in files),
        PARTITION_ROW_COUNT: rows,
    }


DIGEST_DESCRIPTION = """\
The unusual events of a week: databases that grew more than usual, runways that moved, servers that are no longer
measured, new and dropped databases. A week without such news has one line.

The newest complete week is sent to the receivers in `CAPACITY_RECEIVERS` that have not got it yet, by mail or to their
channel, after their quiet hours; older weeks are not sent. A mail server that refuses or hangs affects only its
receiver: the check `digest_sent` names it, and the next two days try again.
"""


class DigestConfig(dg.Config):
    """Options of one run, shown in the launchpad."""

    again: bool = Field(default=False, description="Also send to receivers that already have it.")


def digest(graph: Graph, period: Period) -> dg.Definitions:
    """Return the asset, its job and its schedule: Monday, and two days more for receivers that were not reached."""
    settings = graph.settings

    @_document_asset(
        graph,
        DIGEST,
        period,
        description=DIGEST_DESCRIPTION,
        group_name=REPORT_GROUP,
        kinds={"mail"},
        check_specs=[dg.AssetCheckSpec(DIGEST_SENT, asset=graph.key(DIGEST), description=DIGEST_SENT_DESCRIPTION)],
    )
    def make_digest(context: dg.AssetExecutionContext, config: DigestConfig) -> Iterator[dg.MaterializeResult[None]]:
        failed: list[tuple[str, str]] = []
        waiting: dict[str, str] = {}

        def make(runner: AggregationTaskRunner, week: Window) -> MetadataMapping:
            service, deliveries = runner.service, DigestDeliveries()
            receivers, today = receivers_of(settings.receivers, settings.label_keys), service.clock.today()
            if week == period.last(today):
                sending, now = SendingSettings.of(settings), service.clock.local_now()
                deliveries = send_digests(
                    service.engine, week, receivers, sending, today=today, again=config.again, now=now
                )
                failed.extend(deliveries.failed)
                if deliveries.waiting:
                    # The alert sensor sends it when their quiet hours end.
                    waiting.update({WAITING_WEEK: week.key, "waiting": ", ".join(deliveries.waiting)})
            content = read_digest(service.engine, week, thresholds=settings.thresholds, today=today)
            return digest_metadata(content, deliveries, settings.pages_url)

        _make_each(context, period, make)
        yield dg.MaterializeResult(check_results=[digest_sent_result(failed, waiting)])

    def request_week(_context: dg.ScheduleEvaluationContext, moment: datetime) -> Requests:
        week: Window = period.last(moment.date())
        if week.start < period.window_of(settings.start_date).start:
            return dg.SkipReason("The last week is before the first partition.")
        return dg.RunRequest(run_key=moment.date().isoformat(), partition_key=week.key)

    schedule = graph.schedule(
        DIGEST_SCHEDULE,
        DIGEST_JOB,
        f"{DIGEST_MINUTE} {settings.schedule_hour} * * 1-3",
        "Sends the digest of the last week on Monday, and on the next two days to receivers that it did not reach.",
        request_week,
    )
    job = graph.job(DIGEST_JOB, [DIGEST], "Writes and sends the digest of a week.")
    return dg.Definitions(assets=[make_digest], jobs=[job], schedules=[schedule])


def digest_metadata(digest: Digest, deliveries: DigestDeliveries, pages_url: str | None = None) -> MetadataMapping:
    """Return the metadata of a week's materialisation: the digest of the fleet, then counts, which plot."""
    return {
        "digest": markdown(digest_text(digest, pages_url)),
        **digest.counts,
        "sent": len(deliveries.sent),
        "sent_earlier": len(deliveries.earlier),
        "not_sent": len(deliveries.failed),
    }


def digest_text(digest: Digest, pages_url: str | None = None) -> str:
    """Return the digest as Markdown."""
    parts = [
        escaped(sentence.text) + (f" `{sentence.command}`" if sentence.command else "") for sentence in opening(digest)
    ]
    for section in sections(digest, pages_url):
        lines = linked_bullets(((line.text, line.url) for line in section.lines), hidden=section.more)
        parts.append(f"**{section.heading}**\n\n{lines}")
    return "\n\n".join(parts)
