"""`capacity maintain`: adds partitions, and drops expired ones."""

from __future__ import annotations

import click

from capacity_assets.base.errors import DATABASE_FAILURES, reason_of
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted
from capacity_assets.cli.options import NOTHING_CHANGED, Report, dry_run_option, json_command, print_report
from capacity_assets.database.engine import UnreachableError
from capacity_assets.history.retention import MaintenanceError, MaintenanceReport
from capacity_assets.orchestration.instance import dagster_storage
from capacity_assets.runtime import open_engine, retention_service


@click.command()
@dry_run_option
@click.option("--despite-clock", is_flag=True, help="Drop expired partitions even if the clock may be wrong.")
@json_command
def maintain(settings: Settings, /, *, dry_run: bool, despite_clock: bool) -> Report:
    """Add partitions ahead of time, and drop expired ones.

    Also moves rows from default partitions to their own, and deletes check records in Dagster's storage that are no
    longer read. CAPACITY_RETENTION_DAYS sets how long rows are kept. Samples are dropped only after all windows that
    read them have ended and are computed. Under Dagster, table_maintenance_schedule does this every day.

    Nothing is dropped if today is more than 45 days after the newest sample, if the samples of the last 45 days began
    after such a gap, or if this machine's clock and PostgreSQL's differ by more than an hour.

    \b
    Examples:
      capacity maintain --dry-run
      CAPACITY_RETENTION_DAYS=raw=800,daily=forever capacity maintain --dry-run
    """
    with open_engine(settings, existing=True) as engine:
        try:
            report = retention_service(engine, settings).maintain(dry_run=dry_run, despite_clock=despite_clock)
        except MaintenanceError as error:
            print_report(_report(error.report))
            raise
        _purge(settings, report)
    return _report(report)


def _purge(settings: Settings, report: MaintenanceReport) -> None:
    """Delete old check records from Dagster's storage, if it exists; if that fails, note the reason."""
    if settings.dagster_url is None and not settings.embedded_server_exists:
        return
    try:
        with dagster_storage(settings) as storage:
            from capacity_assets.orchestration.private import purge_check_records

            report.purged_check_records = purge_check_records(storage.event_log_storage, dry_run=report.dry_run)
    except (UnreachableError, *DATABASE_FAILURES) as error:
        report.notes.append(f"Check records in Dagster's storage: {reason_of(error)}")


def _report(report: MaintenanceReport) -> Report:
    would = "would be " if report.dry_run else ""
    lists = {
        f"Partitions that {would or 'were '}added": report.created,
        f"Partitions that {would or 'were '}dropped": report.dropped,
        "Expired, but kept": report.kept,
        "Skipped": report.notes,
    }
    lines = ["\n  ".join([f"{title}:", *listed]) for title, listed in lists.items() if listed]
    lines.append(
        f"{counted(len(report.created), 'partition')} {would}added, "
        f"{counted(report.moved_records, 'row')} {would}moved, "
        f"{counted(len(report.dropped), 'partition')} with {counted(report.dropped_records, 'row')} {would}dropped "
        f"({report.freed_mb:,} MiB)."
    )
    if report.purged_check_records:
        purged = counted(report.purged_check_records, "check record")
        lines.append(f"{purged} {would}deleted from Dagster's storage.")
    return Report(report.to_dict(), [*lines, *([NOTHING_CHANGED] if report.dry_run else [])])
