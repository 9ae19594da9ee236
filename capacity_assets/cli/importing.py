"""`capacity import`: history from files or a legacy database; `capacity copy`: all of it into another PostgreSQL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import INSTANCE, SERVER_LEVELS, Level
from capacity_assets.base.errors import DATABASE_FAILURES, CapacityError, ValidationError, database_errors, reason_of
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted
from capacity_assets.cli.options import (
    DONE,
    FAILED,
    NOTHING_CHANGED,
    CommandFailedError,
    dry_run_option,
    error_console,
    json_command,
    password_option,
    print_json,
    print_table,
    say,
)
from capacity_assets.collection.engines.base import engine_named
from capacity_assets.database.engine import capacity_engine, disposed, ensure_reachable, safe_url
from capacity_assets.database.guards import refuse_an_unfit_database
from capacity_assets.database.locks import SAMPLES, HeldLock
from capacity_assets.demo.sample_fleet import refuse_the_sample_fleet
from capacity_assets.history.copying import KEPT, copy_database
from capacity_assets.history.legacy import (
    Legacy,
    LegacyServers,
    add_servers,
    address_of,
    copy_aggregates,
    is_address,
    open_legacy,
    unknown_servers,
)
from capacity_assets.history.loading import COUNTS, Loader, LoadOptions, LoadReport
from capacity_assets.history.rows import POINT, RowReader, layout_of
from capacity_assets.history.sources import Source, file_source
from capacity_assets.runtime import lock_manager, open_engine, prepare_database, refuse_an_absent_embedded_server

MEANINGS = {
    "read": "rows read",
    "written": "new samples",
    "replaced": "samples replaced by another value",
    "present": "stored already, with the same value",
    "repeated": "the same as another row",
    "conflicts": "another value than stored or than another row: not imported",
    "unknown": "of a server that is not registered: not imported",
    "bad": "not a valid sample: not imported",
    "totals_written": "totals of servers derived from them",
}


@contextmanager
def progress(what: str, *, as_json: bool) -> Iterator[Callable[[int], None]]:
    """Show how many rows were read, on standard error, for people only."""
    columns = (TextColumn("{task.description}: {task.completed:,.0f} rows"), TimeElapsedColumn())
    with Progress(*columns, console=error_console(), disable=as_json) as bar:
        task = bar.add_task(what, total=None)

        def on_rows(rows: int) -> None:
            bar.update(task, completed=rows)

        yield on_rows


def print_report(report: LoadReport, level: Level) -> None:
    """Print what became of the rows, and the first of those that somebody should check."""
    if report.resumed_after:
        say(f"Continued behind row {report.resumed_after:,}, where an earlier run was interrupted.")
    rows = [[f"{report.counts[name]:,}", MEANINGS[name]] for name in COUNTS if report.counts[name] or name == "read"]
    print_table(level.source.name, (("Rows", "right"), ("What became of them", "left")), rows)
    for what in ("bad", "unknown", "conflicts"):
        for line in report.listed.get(what, []):
            say(f"  {what}: {line}")


REPLACED_TWICE = (
    "These rows contradict others of the same day in what was imported. Correct the source and import it again."
)


def say_next(report: LoadReport, settings: Settings, *, dry_run: bool, replaces: bool = False) -> None:
    """Say what to do about rows that were left out, and how aggregates follow."""
    if report.counts["unknown"]:
        say("Register these servers with `capacity instances add`, or those of a file with --register-as ENGINE.")
    if report.counts["conflicts"]:
        say(REPLACED_TWICE if replaces else "Stored samples were kept. --on-conflict replace takes the file's instead.")
    new = report.counts["written"] or report.counts["replaced"]
    if dry_run:
        say(NOTHING_CHANGED)
    if dry_run or report.first_day is None or not (new or report.resumed_after):
        return
    if report.first_day < settings.start_date:
        say(f"CAPACITY_START_DATE is {settings.start_date}: set it to {report.first_day} to aggregate all of it.")
    first = max(report.first_day, settings.start_date)
    if report.last_day is not None and first <= report.last_day:
        # Without an end: later windows are compared with these.
        say(f"Next: capacity aggregate --period all --from {first}, or backfill these partitions and the later ones.")
        say("While Dagster runs, it recomputes windows that were computed before. The others need the command above.")


@dataclass(frozen=True)
class ImportRequest:
    """The options of the command line."""

    level: str = "database"
    mapping: tuple[str, ...] = ()
    server: str | None = None
    unit: str = "mb"
    decimal: str | None = None
    on_conflict: str = "keep"
    register_as: str | None = None
    password_from: str | None = None
    dry_run: bool = False

    @property
    def replaces(self) -> bool:
        """Whether samples take the place of stored ones."""
        return self.on_conflict == "replace"

    def refuse_what_is_for_files(self) -> None:
        """Refuse options that mean something else, or nothing, for a legacy database; raises ValidationError."""
        known = ImportRequest()
        for name, option in {
            "level": "--level",
            "mapping": "--map",
            "server": "--server",
            "unit": "--unit",
            "decimal": "--decimal",
            "register_as": "--register-as",
        }.items():
            if getattr(self, name) != getattr(known, name):
                raise ValidationError(f"{option} is for files; a legacy database is imported as it is.")

    def options(self) -> LoadOptions:
        """Return how rows are loaded; raises ValidationError where there is no such engine."""
        port = engine_named(self.register_as).default_port if self.register_as else 0
        return LoadOptions(self.replaces, self.register_as, port, self.dry_run)


@click.command("import")
@click.argument("source")
@click.option(
    "--level", default="database", show_default=True, help="What a row is: a database's size, or a server's total."
)
@click.option(
    "--map", "mapping", multiple=True, metavar="OURS=THEIRS", help="Read OURS from the column THEIRS; may be repeated."
)
@click.option("--server", help="All rows are of this server; the source needs no column for it.")
@click.option(
    "--unit", default="mb", show_default=True, type=click.Choice(["bytes", "kb", "mb", "gb"]), help="Unit of the sizes."
)
@click.option(
    "--decimal",
    type=click.Choice([".", ","]),
    help="Decimal mark. Needed where fields are separated by semicolons and have decimals; otherwise a point.",
)
@click.option(
    "--on-conflict",
    default="keep",
    show_default=True,
    type=click.Choice(["keep", "replace"]),
    help="Where another size of that day is stored: keep it, or replace it.",
)
@click.option("--register-as", metavar="ENGINE", help="Register servers that are not known yet, with this engine.")
@password_option
@dry_run_option
@json_command
def import_(settings: Settings, /, *, source: str, as_json: bool, **given: Any) -> int:
    """Bring in history: samples from a file, or a legacy database.

    SOURCE is a file (.csv, .csv.gz, .parquet), or postgresql://user@host/database without a password, or env:NAME of a
    variable that holds the whole address. Columns are server (or instance_id), database, day, size_mb, and optionally
    data_size_mb, log_size_mb, collected_at; --map names others. Interrupt it when you like: the same command continues.

    \b
    Examples:
      capacity import sizes.csv --dry-run
      capacity import sizes.csv --map server=host --map database=db --map size_mb=bytes --unit bytes
      capacity import env:LEGACY_DATABASE_URL
    """
    asked = ImportRequest(**given)
    if is_address(source):
        asked.refuse_what_is_for_files()
    refuse_an_absent_embedded_server(settings)
    with open_engine(settings) as engine:
        refuse_an_unfit_database(engine, kept="Nothing was imported.")
        refuse_the_sample_fleet(engine, kept="Nothing was imported.")
        # A dry run writes nothing, and must not keep a collection from its day.
        with nullcontext(_Unlocked()) if asked.dry_run else lock_manager(engine, settings).job_lock(SAMPLES) as held:
            importing = _Import(settings, engine, asked, held, as_json)
            reports = importing.database(source) if is_address(source) else importing.file(Path(source))
    return FAILED if any(report.left_out for report in reports) else DONE


class _Unlocked:
    """Stands for a lock where none is needed."""

    def ensure_held(self) -> None:
        """Never lost."""


@dataclass(frozen=True)
class _Import:
    """One import at work."""

    settings: Settings
    engine: Engine
    asked: ImportRequest
    held: HeldLock
    as_json: bool

    def file(self, path: Path) -> list[LoadReport]:
        """Import a file."""
        if self.asked.level not in SERVER_LEVELS:
            raise ValidationError(f"{self.asked.level!r} is not a level; there are {' and '.join(SERVER_LEVELS)}.")
        level = SERVER_LEVELS[self.asked.level]
        source = file_source(path, layout_of(level), _mapping(self.asked.mapping), self.asked.server)
        report = self._loaded(source, level, self.asked.unit)
        if self.as_json:
            print_json({"dry_run": self.asked.dry_run, "source": source.description, **asdict(report)})
        else:
            say_next(report, self.settings, dry_run=self.asked.dry_run, replaces=self.asked.replaces)
        return [report]

    def database(self, address: str) -> list[LoadReport]:
        """Import the tables of a legacy database, those that it has."""
        legacy = open_legacy(address_of(address, self.asked.password_from, self.settings))
        result: dict[str, object] = {"dry_run": self.asked.dry_run, "source": legacy.description}
        reports: list[LoadReport] = []
        try:
            there = legacy.tables()
            servers = unknown_servers(legacy, self.engine)
            result["servers"] = len(servers.rows)
            if not self.asked.dry_run:
                add_servers(servers, self.engine)
            if not self.as_json:
                would = "would be " if self.asked.dry_run else ""
                known = f"{servers.known:,} known here by name already"
                say(f"{counted(len(servers.rows), 'server')} {would}registered, {known}.")
            for level in SERVER_LEVELS.values():
                if level.source.name in there:
                    has_totals = INSTANCE.source.name in there
                    reports.append(
                        self._loaded(legacy.samples(level), level, "mb", derive_totals=not has_totals, servers=servers)
                    )
                    result[level.source.name] = asdict(reports[-1])
                if level.target.name in there:
                    result[level.target.name] = self._aggregates(legacy, level, servers)
        finally:
            legacy.engine.dispose()
        if self.as_json:
            print_json(result)
        elif reports:
            say_next(reports[0], self.settings, dry_run=self.asked.dry_run, replaces=self.asked.replaces)
        return reports

    def _loaded(
        self,
        source: Source,
        level: Level,
        unit: str,
        *,
        derive_totals: bool = True,
        servers: LegacyServers = LegacyServers(()),  # noqa: B008 -- frozen
    ) -> LoadReport:
        zone = self.settings.zone
        decimal = self.asked.decimal or (None if source.decimal_is_ambiguous else POINT)
        reader = RowReader(layout_of(level), unit, zone, Clock(zone).now(), self.asked.server, decimal)
        with progress(level.source.name, as_json=self.as_json) as on_rows:
            options = replace(self.asked.options(), derive_totals=derive_totals)
            loader = Loader(self.engine, level, reader, options, self.held, on_rows, servers.add)
            report = loader.load(source, _fingerprint(source, self.asked))
        if not self.as_json:
            print_report(report, level)
        return report

    def _aggregates(self, legacy: Legacy, level: Level, servers: LegacyServers) -> dict[str, int]:
        with progress(level.target.name, as_json=self.as_json) as on_rows:
            dry_run = self.asked.dry_run
            counts = copy_aggregates(legacy, self.engine, level, servers, dry_run=dry_run, progress=on_rows)
        if not self.as_json:
            say(f"{level.target.name}: {counts['read']:,} read, {counts['written']:,} new.")
        return counts


def _mapping(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in given]
    wrong = [ours for ours, sign, theirs in pairs if not (ours and sign and theirs)]
    if wrong:
        raise ValidationError(f"--map {wrong[0]!r} is not of the form OURS=THEIRS, for example size_mb=megabytes.")
    return {ours: theirs for ours, _, theirs in pairs}


def _fingerprint(source: Source, asked: ImportRequest) -> str:
    """Return what identifies an import: its rows, and how they are read."""
    reading = [
        asked.level,
        sorted(asked.mapping),
        asked.server,
        asked.unit,
        asked.decimal,
        asked.on_conflict,
        asked.register_as,
    ]
    return hashlib.sha256(json.dumps([source.fingerprint, *reading]).encode()).hexdigest()


@click.command()
@click.argument("address")
@password_option
@json_command
def copy(settings: Settings, /, *, address: str, password_from: str | None, as_json: bool) -> None:
    """Copy everything in the capacity database to an empty one.

    Samples, aggregates, servers and how they are reached. ADDRESS is postgresql://user@host/database without a
    password, or env:NAME of a variable that holds the whole address. The tables are made there; it must hold no rows.
    This database is only read. The two may be of different versions of PostgreSQL.

    \b
    Examples:
      capacity copy env:NEW_CAPACITY_URL
      capacity copy postgresql://capacity@db.example/capacity --password-from env:CAPACITY_OWNER_PASSWORD
    """
    refuse_an_absent_embedded_server(settings)
    with disposed(capacity_engine(address_of(address, password_from, settings))) as target:
        with open_engine(settings) as source:
            refuse_an_unfit_database(source, kept="Nothing was copied.")
            ensure_reachable(target, "ADDRESS")
            with database_errors(doing="preparing the target", kept=KEPT):
                prepare_database(target, settings)
            copied = copy_database(source, target, (lambda _table, _rows: None) if as_json else _report_table)
        try:
            # Rows of months without a partition are in the default one until now.
            prepare_database(target, settings)
        except (CapacityError, *DATABASE_FAILURES) as error:
            reason = reason_of(error) if isinstance(error, DATABASE_FAILURES) else str(error).rstrip(".")
            raise CommandFailedError(
                f"Everything was copied. Moving rows into partitions of the target failed: {reason}. Set "
                "CAPACITY_DATABASE_URL to it and run `capacity init`, which does that."
            ) from None
    if as_json:
        print_json({"copied": copied, "database": safe_url(target.url)})
        return
    say(f"Copied {counted(sum(copied.values()), 'row')} to {safe_url(target.url)}. This database was only read.")
    say("Next: set CAPACITY_DATABASE_URL to that address, then `capacity check` and `capacity up`.")
    say("What Dagster keeps (runs, history) was not copied; its sensors mark the partitions that are there.")


def _report_table(table: str, rows: int) -> None:
    say(f"  {table}: {counted(rows, 'row')}")
