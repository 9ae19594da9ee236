"""`capacity maintain` and `capacity partition`: the partitions of the tables, and what leaves with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from capacity_assets.cli.database import refuse_an_absent_embedded_server
from capacity_assets.cli.errors import DONE
from capacity_assets.cli.output import error_console, print_json, say
from capacity_assets.retention.report import MaintenanceError, MaintenanceReport
from capacity_assets.runtime import open_engine, retention_service
from capacity_assets.settings import Settings


def maintain_tables(settings: Settings, *, dry_run: bool, as_json: bool) -> int:
    """Keep partitions ahead, apply retention, print what was done; raises as `RetentionService.maintain`."""
    refuse_an_absent_embedded_server(settings)
    with open_engine(settings) as engine, _told(as_json=as_json):
        _print(retention_service(engine, settings).maintain(dry_run=dry_run), as_json=as_json)
    return DONE


def partition_tables(settings: Settings, *, dry_run: bool, as_json: bool) -> int:
    """Make unpartitioned tables partitioned, print it; raises as `RetentionService.convert`."""
    refuse_an_absent_embedded_server(settings)
    with open_engine(settings) as engine, _told(as_json=as_json):
        _print(retention_service(engine, settings, tell=_tell).convert(dry_run=dry_run), as_json=as_json)
    return DONE


@contextmanager
def _told(*, as_json: bool) -> Iterator[None]:
    """Print what was done before the error, too."""
    try:
        yield
    except MaintenanceError as error:
        _print(error.report, as_json=as_json)
        raise


def _tell(step: str) -> None:
    """Say what goes on where it does not mix with the result: a month of a large fleet takes its time."""
    error_console().print(step, markup=False, soft_wrap=True)


def _print(report: MaintenanceReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    would = "would be " if report.dry_run else ""
    _print_list(f"Tables that {would or 'were '}made partitioned", report.converted)
    _print_list(f"Partitions that {would or 'were '}added", report.created)
    _print_list(f"Partitions that {would or 'were '}dropped", report.dropped)
    _print_list("Older than they need be kept, but kept", report.kept)
    _print_list("Left alone", report.notes)
    say(
        f"{'Nothing was changed. ' if report.dry_run else ''}{len(report.created)} partitions {would}added, "
        f"{report.moved_records:,} rows {would}moved, {len(report.dropped)} partitions with "
        f"{report.dropped_records:,} rows {would}dropped ({report.freed_mb:,} MiB)."
    )


def _print_list(title: str, lines: Sequence[str]) -> None:
    if lines:
        say(f"{title}:")
        for line in lines:
            say(f"  {line}")
