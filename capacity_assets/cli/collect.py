"""`capacity collect`: measure the registered servers without Dagster, with the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
from sqlalchemy import Engine

from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.base.errors import MAXIMUM_LISTED_ERRORS
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import DEFAULT_HOME, ConfigurationError, Settings
from capacity_assets.base.units import counted, first_of, human_mb
from capacity_assets.cli.options import DONE, FAILED, Line, Report, Table, json_command, progress_bar, say, wants_json
from capacity_assets.cli.report import written_report
from capacity_assets.collection.credentials import OWN
from capacity_assets.collection.measuring import ProbeOutcome, host_of
from capacity_assets.collection.servers import Server, register, registered
from capacity_assets.collection.service import CollectionSummary, share_named
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.demo.sample_fleet import refuse_the_sample_fleet
from capacity_assets.runtime import collection_service, open_engine, prepare_database, task_runner

OWN_SERVER = "capacity-database"
LIMITS_NAMED = 3


@click.command()
@click.argument("servers", nargs=-1)
@click.option("--again", is_flag=True, help="Also measure servers that were already measured today.")
@click.option(
    "--share",
    metavar="SHARE",
    help="Only a share of the servers: 2/4 is the second of four, zone=eu those with a label, zone= those without it. "
    "Shares can be measured in parallel, on one machine or several.",
)
@click.option(
    "--own", is_flag=True, help="Also measure the server with the capacity tables, and write its growth report."
)
@json_command
def collect(settings: Settings, /, *, servers: Sequence[str], again: bool, share: str | None, own: bool) -> Report:
    """Measure the registered servers, and store today's sizes.

    With SERVERS or --share, measures only those. A server that fails is reported with its reason and gets no sample;
    the others are stored. Run the command again to measure those that failed.

    \b
    Examples:
      capacity collect
      capacity collect db-7 db-9
      capacity collect --share zone=eu
      capacity collect --own
    """
    if settings.collection == "off":
        raise ConfigurationError(
            "CAPACITY_COLLECTION is off: another application fills the raw tables. Set it to on to measure here."
        )
    chosen_share = None if share is None else share_named(share)
    with open_engine(settings, existing=not own) as engine:
        if own:
            prepare_database(engine, settings)
            refuse_the_sample_fleet(engine)
            _register_own(engine)
        refuse_an_unfit_database(engine, kept="Nothing was measured.")
        service = collection_service(engine, settings)
        chosen = [*servers, *([OWN_SERVER] if own and servers else [])] or None
        with _progress() as on_outcome:
            summary = service.collect(
                service.clock.today(), chosen, again=again, share=chosen_share, progress=on_outcome
            )
        if own:
            window = PERIODS["daily"].window_of(summary.day)
            task_runner(engine, settings).run_period(PERIODS["daily"], [window], RunOptions())
    say(*_summary_lines(summary))
    lines: list[Line] = []
    if own and OWN_SERVER not in {failure.server for failure in summary.failures}:
        written = None if wants_json() else written_report(settings, period="daily", day=summary.day, server=OWN_SERVER)
        home = "" if settings.home == DEFAULT_HOME else f"CAPACITY_HOME={settings.home} "
        next_step = f"Run this command again tomorrow to add a day, or `{home}capacity up` to measure every night."
        lines = [*(written.lines if written else ()), next_step]
    elif summary.processed_instances and not own:
        lines = [
            "`capacity up` computes the figures on its next run; `capacity aggregate --period daily` computes them now."
        ]
    return Report(summary.to_dict(), lines, FAILED if summary.failed_instances else DONE)


@contextmanager
def _progress() -> Iterator[Callable[[ProbeOutcome, int], None]]:
    """Show the number of measured servers; yields a function to be called after each."""
    with progress_bar("servers measured") as update:
        measured = 0

        def on_outcome(_outcome: ProbeOutcome, left: int) -> None:
            nonlocal measured
            measured += 1
            update(completed=measured, total=measured + left)

        yield on_outcome


def _register_own(engine: Engine) -> None:
    if any(one.server.name == OWN_SERVER and one.is_collected for one in registered(engine)):
        return
    url = engine.url
    register(engine, [Server(OWN_SERVER, "postgresql", host_of(url), port=url.port, password_from=OWN, tls="off")])


def _summary_lines(summary: CollectionSummary) -> Iterator[Line]:
    yield summary.message
    if summary.processed_instances:
        yield f"Measured now: {human_mb(summary.measured_size_mb)} in {summary.duration_seconds:.1f} s."
    if summary.left_out:
        yield f"Left out, see CAPACITY_SYSTEM_DATABASES: {first_of(summary.left_out, MAXIMUM_LISTED_ERRORS)}."
    if summary.unknown_limits:
        yield f"Limits not known: {first_of(summary.unknown_limits, LIMITS_NAMED)}. `capacity limits set` declares one."
    if summary.unknown_parts:
        yield f"Not known, beside databases: {first_of(summary.unknown_parts, LIMITS_NAMED)}."
    if summary.object_databases:
        yield f"Tables and indexes measured: {counted(summary.object_databases, 'database')}."
    if summary.unknown_objects:
        yield f"Tables and indexes not known: {first_of(summary.unknown_objects, LIMITS_NAMED)}."
    if summary.failures:
        rows = [[failure.server, failure.kind.value, failure.reason] for failure in summary.failures]
        yield Table.of_first("Not measured", ("Server", "Kind", "~Reason"), rows, MAXIMUM_LISTED_ERRORS)
