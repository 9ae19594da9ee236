"""`capacity import`: history from a file, a legacy database, Prometheus or Zabbix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import DATABASE, INSTANCE, SERVER_LEVELS, Level
from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, human_day, printable
from capacity_assets.cli.options import (
    DAY,
    DONE,
    FAILED,
    NOTHING_CHANGED,
    Table,
    dry_run_option,
    json_command,
    password_option,
    print_json,
    progress_bar,
    say,
    wants_json,
)
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.engines.base import engine_named
from capacity_assets.collection.prometheus import VARIABLE, SourceError, login, prometheus_sources
from capacity_assets.database.engine import safe_url
from capacity_assets.database.locks import SAMPLES, HeldLock
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.demo.sample_fleet import refuse_the_sample_fleet
from capacity_assets.history import monitoring
from capacity_assets.history.legacy import (
    LegacyServers,
    add_servers,
    address_of,
    copy_aggregates,
    is_address,
    legacy_samples,
    legacy_tables,
    open_legacy,
    unknown_servers,
)
from capacity_assets.history.loading import COUNTS, SLICE_ROWS, Loader, LoadReport
from capacity_assets.history.monitoring import (
    ZABBIX_EXPORT,
    Days,
    PrometheusHistory,
    ZabbixExport,
    import_volumes,
    place_of,
    zabbix_history,
)
from capacity_assets.history.origins import FILE, LEGACY, ORIGINS, ORIGINS_OF_FILES, PROMETHEUS, ZABBIX, Origin
from capacity_assets.history.rows import (
    BYTES,
    COMMA,
    INSTANCE_ID,
    ISO,
    SERVER,
    Conventions,
    RowReader,
    Survey,
    Surveyor,
    checked_date_format,
    layout_of,
)
from capacity_assets.history.sources import FileOptions, FileSource, PositionedRow, Source, file_source
from capacity_assets.runtime import lock_manager, open_engine

OUTCOMES = {
    "read": "rows read",
    "written": "new samples",
    "replaced": "samples replaced by another value",
    "present": "already stored with the same value",
    "repeated": "same as another row",
    "conflicts": "differ from the stored sample or from another row: not imported",
    "unknown": "of a server that is not registered: not imported",
    "bad": "not a valid sample: not imported",
    "totals_written": "totals of servers derived from them",
}
PROMETHEUS_SOURCE = "prometheus:"
OF_FILES = {
    *("level", "mapping", "server", "unit", "decimal", "date_format", "encoding", "sheet"),
    *("on_conflict", "register_as", "origin", "dry_run"),
}
OF_MONITORING = {"on_conflict", "register_as", "first", "last", "dry_run"}
OF_ZABBIX = {*OF_MONITORING, "origin", "password_from"}
OF_LEGACY_DATABASES = {"on_conflict", "password_from", "dry_run"}
OPTION_NAMES = {"mapping": "map", "first": "from", "last": "to"}
NOT_SURVEYED = Survey()


@dataclass(frozen=True)
class ImportOptions:
    """The options of the command line."""

    level: str = "database"
    mapping: tuple[str, ...] = ()
    server: str | None = None
    unit: str = "mb"
    decimal: str | None = None
    date_format: str | None = None
    encoding: str | None = None
    sheet: str | None = None
    on_conflict: str = "keep"
    register_as: str | None = None
    password_from: str | None = None
    origin: str | None = None
    first: date | None = None
    last: date | None = None
    dry_run: bool = False

    @property
    def replaces(self) -> bool:
        """Whether samples replace stored ones."""
        return self.on_conflict == "replace"

    def refuse_others(self, taken: Collection[str], kind: str) -> None:
        """Refuse options that this kind of source does not take; raises ValidationError."""
        for one in fields(self):
            if one.name not in taken and getattr(self, one.name) != one.default:
                option = OPTION_NAMES.get(one.name, one.name.replace("_", "-"))
                whose = (
                    "files" if one.name in OF_FILES else "databases" if one.name == "password_from" else "monitoring"
                )
                raise ValidationError(f"--{option} is for {whose} only; omit it for {kind}.")

    def fingerprint(self, source: Source) -> str:
        """Return what identifies an import: its rows, and how they are read."""
        how = [
            self.level, sorted(self.mapping), self.server, self.unit, self.decimal, self.on_conflict, self.register_as,
        ]  # fmt: skip
        # Left out where not given, so that imports of an earlier version continue.
        how += [one for one in (self.date_format, self.encoding, self.origin) if one is not None]
        return hashlib.sha256(json.dumps([source.fingerprint, *how]).encode()).hexdigest()


@click.command("import")
@click.argument("source")
@click.option(
    "--level", default="database", show_default=True, help="What a row is: a database's size, or a server's total."
)
@click.option(
    "--map", "mapping", multiple=True, metavar="OURS=THEIRS", help="Read OURS from the column THEIRS; may be repeated."
)
@click.option("--server", help="Server of all rows; the source then needs no column for it.")
@click.option(
    "--unit", default="mb", show_default=True, type=click.Choice(["bytes", "kb", "mb", "gb"]), help="Unit of the sizes."
)
@click.option(
    "--decimal",
    type=click.Choice([".", ","]),
    help="Decimal mark. Default: detected per column; required if ambiguous.",
)
@click.option(
    "--date-format",
    metavar="FORMAT",
    help="How days are written: iso, day-first, month-first, or a format such as %d.%m.%y. Default: detected.",
)
@click.option("--encoding", help="Encoding of a CSV file, such as cp1252. Default: UTF-8, or UTF-16 if marked as such.")
@click.option("--sheet", help="Sheet of an .xlsx file. Default: the first.")
@click.option(
    "--on-conflict",
    default="keep",
    show_default=True,
    type=click.Choice(["keep", "replace"]),
    help="If another size of that day is stored: keep it, or replace it.",
)
@click.option("--register-as", metavar="ENGINE", help="Register unknown servers with this engine.")
@click.option(
    "--origin",
    type=click.Choice(ORIGINS_OF_FILES),
    help="What measured the samples, if they are of another program.",
)
@click.option("--from", "first", type=DAY, help="First day to ask monitoring for. Default: a year before the last.")
@click.option("--to", "last", type=DAY, help="Last day to ask monitoring for. Default: yesterday.")
@password_option
@dry_run_option
@json_command
def import_(settings: Settings, /, *, source: str, **values: Any) -> int:
    """Import history: from a file, a legacy database, Prometheus or Zabbix.

    SOURCE is a file (.csv, .csv.gz, .xlsx, .parquet), or with --origin zabbix an .ndjson file that Zabbix exports; or
    postgresql://user@host/database without a password, or env:NAME of a variable that holds the whole address, of a
    legacy database, or of Zabbix with --origin zabbix; or prometheus:NAME of a source in CAPACITY_VOLUME_SOURCES.
    Columns of files are server (or instance_id), database, day, size_mb, and optionally data_size_mb, log_size_mb,
    collected_at; --map names others. --dry-run shows how the first rows are read. You can interrupt it: the same
    command continues.

    \b
    Examples:
      capacity import sizes.csv --dry-run
      capacity import sizes.xlsx --sheet 2025 --date-format day-first
      capacity import sizes.csv --map server=host --map database=db --map size_mb=bytes --unit bytes
      capacity import env:LEGACY_DATABASE_URL
      capacity import prometheus:monitoring --from 2025-01-01 --dry-run
      capacity import env:ZABBIX_DATABASE_URL --origin zabbix
    """
    chosen = ImportOptions(**values)
    work_of, taken, kind = _kind_of(source, chosen)
    chosen.refuse_others(taken, kind)
    with open_engine(settings, existing=True) as engine:
        refuse_an_unfit_database(engine, kept="Nothing was imported.")
        refuse_the_sample_fleet(engine)
        # A dry run writes nothing, and must not delay a collection.
        unlocked = nullcontext(HeldLock(lambda: None))
        with unlocked if chosen.dry_run else lock_manager(engine, settings).job_lock(SAMPLES) as lock:
            reports = work_of(_Import(settings, engine, chosen, lock), source)
    return FAILED if any(report.left_out for report in reports) else DONE


def _kind_of(source: str, options: ImportOptions) -> tuple[Callable[[_Import, str], list[LoadReport]], set[str], str]:
    """Return how a source is imported, the options that it takes, and what it is called."""
    if source.startswith(PROMETHEUS_SOURCE):
        return _Import.prometheus, OF_MONITORING, "Prometheus"
    if source.lower().endswith(ZABBIX_EXPORT):
        return _Import.zabbix_export, OF_MONITORING | {"origin"}, "an export of Zabbix"
    if not is_address(source):
        return _Import.file, OF_FILES, "a file"
    if options.origin == ZABBIX.name:
        return _Import.zabbix, OF_ZABBIX, "Zabbix"
    return _Import.database, OF_LEGACY_DATABASES, "a legacy database"


@dataclass(frozen=True)
class _Import:
    settings: Settings
    engine: Engine
    options: ImportOptions
    lock: HeldLock

    def file(self, path: str) -> list[LoadReport]:
        level = SERVER_LEVELS.get(self.options.level)
        if level is None:
            raise ValidationError(f"{self.options.level!r} is not a level; use {' or '.join(SERVER_LEVELS)}.")
        chosen = self.options
        mapping, origin = _mapping(chosen.mapping), ORIGINS[chosen.origin] if chosen.origin else FILE
        if origin.suffix and INSTANCE_ID in mapping:
            raise ValidationError(
                f"--origin {origin.name} finds servers by name, not by number, and stores sizes as those of "
                f"{'NAME' + origin.suffix!r}. Map `{SERVER}`, or name the server with --server. Nothing was imported."
            )
        how = FileOptions(mapping, chosen.server, chosen.encoding, chosen.sheet)
        source = file_source(Path(path), layout_of(level), how)
        survey = self._survey(source, level)
        report = self._load(source, level, chosen.unit, origin, survey=survey)
        conventions = asdict(survey.conventions)
        document = {"dry_run": chosen.dry_run, "source": source.description, **conventions, **asdict(report)}
        self._finish(document, report)
        return [report]

    def prometheus(self, name: str) -> list[LoadReport]:
        settings, chosen = self.settings, self.options
        if settings.volume_sources is None:
            raise ValidationError(f"{VARIABLE} is unset: set it to the file that lists the sources.")
        named = {one.name: one for one in prometheus_sources(settings.volume_sources)}
        source = named.get(name.removeprefix(PROMETHEUS_SOURCE))
        if source is None:
            raise ValidationError(f"{settings.volume_sources} has no source {name!r}. It has {', '.join(named)}.")
        days, reports = self._days(), []
        headers = login(source, SecretFolders.of(settings))
        history = PrometheusHistory(source, headers, days, settings.zone, layout_of(DATABASE), self._known())
        document: dict[str, object] = {"dry_run": chosen.dry_run, "source": name, **asdict(days)}
        try:
            if source.sizes is not None:
                reports.append(
                    self._load(history, DATABASE, BYTES, PROMETHEUS, place=place_of, slice_rows=monitoring.SLICE_ROWS)
                )
                document[DATABASE.source.name] = asdict(reports[0])
            if source.volume_queries:
                document["volume_size_stats"] = self._volumes(replace(history, known=self._known()))
        except SourceError as error:
            raise SourceError(f"{name}: {error}. Stored days are kept; the same command continues.") from None
        self._finish(document, *reports)
        return reports

    def _volumes(self, history: PrometheusHistory) -> dict[str, object]:
        with _rows_read("volume_size_stats") as on_rows:
            report = import_volumes(
                self.engine,
                history,
                replace=self.options.replaces,
                dry_run=self.options.dry_run,
                progress=on_rows,
            )
        say(f"volume_size_stats: {report.read:,} read, {report.stored:,} new.")
        for what in report.left_out:
            say(f"  note: {what}.")
        return asdict(report)

    def zabbix(self, address: str) -> list[LoadReport]:
        zabbix = open_legacy(address_of(address, self.options.password_from, self.settings))
        days = self._days()
        try:
            source = zabbix_history(zabbix, days, self.settings.zone, layout_of(DATABASE))
            return self._trends(source, days)
        finally:
            zabbix.dispose()

    def zabbix_export(self, path: str) -> list[LoadReport]:
        if self.options.origin != ZABBIX.name:
            raise ValidationError(f"Only exports of Zabbix are read from such files; write --origin {ZABBIX.name}.")
        days = self._days()
        return self._trends(ZabbixExport(Path(path), days, self.settings.zone, layout_of(DATABASE)), days, place_of)

    def _trends(self, source: Source, days: Days, place: Callable[[int], str] = "row {}".format) -> list[LoadReport]:
        report = self._load(source, DATABASE, BYTES, ZABBIX, place=place)
        document = {"dry_run": self.options.dry_run, "source": source.description, **asdict(days), **asdict(report)}
        self._finish(document, report)
        return [report]

    def _days(self) -> Days:
        days = Days.between(self.options.first, self.options.last, Clock(self.settings.zone).today())
        say(f"{human_day(days.first)} to {human_day(days.last)}, of each day the last value.")
        return days

    def _known(self) -> set[str]:
        with (
            database_errors(doing="reading servers", kept="Nothing was imported."),
            self.engine.connect() as connection,
        ):
            return set(connection.execute(sa.text("SELECT name FROM instances")).scalars())

    def database(self, address: str) -> list[LoadReport]:
        legacy = open_legacy(address_of(address, self.options.password_from, self.settings))
        dry_run = self.options.dry_run
        document: dict[str, object] = {"dry_run": dry_run, "source": safe_url(legacy.url)}
        reports: list[LoadReport] = []
        try:
            tables = legacy_tables(legacy)
            servers = unknown_servers(legacy, self.engine)
            document["servers"] = len(servers.rows)
            if not dry_run:
                add_servers(servers, self.engine)
            say(
                f"{counted(len(servers.rows), 'server')} {'would be ' if dry_run else ''}registered, "
                f"{servers.known:,} already known by name."
            )
            for level in SERVER_LEVELS.values():
                if level.source.name in tables:
                    derive_totals = INSTANCE.source.name not in tables
                    source = legacy_samples(legacy, level)
                    reports.append(
                        self._load(source, level, "mb", LEGACY, derive_totals=derive_totals, servers=servers)
                    )
                    document[level.source.name] = asdict(reports[-1])
                if level.target.name in tables:
                    with _rows_read(level.target.name) as on_rows:
                        counts = copy_aggregates(legacy, self.engine, level, servers, dry_run=dry_run, progress=on_rows)
                    say(f"{level.target.name}: {counts['read']:,} read, {counts['written']:,} new.")
                    document[level.target.name] = counts
        finally:
            legacy.dispose()
        self._finish(document, *reports[:1])
        return reports

    def _finish(self, document: Mapping[str, object], *reports: LoadReport) -> None:
        if wants_json():
            print_json(document)
        for report in reports:
            self._say_next_steps(report)

    def _survey(self, source: FileSource, level: Level) -> Survey:
        chosen = self.options
        date_format = None if chosen.date_format is None else checked_date_format(chosen.date_format)
        surveyor = Surveyor(
            layout_of(level),
            server=chosen.server,
            date_format=date_format,
            decimal=chosen.decimal,
            point_is_usual=source.point_is_usual,
            last_day=Clock(self.settings.zone).today(),
        )
        with _rows_read("Detecting the format") as on_rows:
            survey = surveyor.survey(_before_anything(source.rows(0)), on_rows)
        _say_conventions(survey.conventions)
        return survey

    def _load(
        self,
        source: Source,
        level: Level,
        unit: str,
        origin: Origin,
        *,
        place: Callable[[int], str] = "row {}".format,
        slice_rows: int = SLICE_ROWS,
        survey: Survey = NOT_SURVEYED,
        derive_totals: bool = True,
        servers: LegacyServers = LegacyServers(()),  # noqa: B008 -- frozen
    ) -> LoadReport:
        zone = self.settings.zone
        now, server = Clock(zone).now(), self.options.server
        reader = RowReader(
            layout_of(level), unit, zone, now, server=server, conventions=survey.conventions, place=place
        )
        register_as = self.options.register_as
        with _rows_read(level.source.name) as on_rows:
            loader = Loader(
                self.engine,
                level,
                reader,
                self.lock,
                on_rows,
                rehearsal=servers.add,
                dry_run=self.options.dry_run,
                replace=self.options.replaces,
                register_as=register_as,
                port=engine_named(register_as).default_port if register_as else 0,
                derive_totals=derive_totals,
                slice_rows=slice_rows,
                start_date=self.settings.start_date,
                origin=origin,
                with_gaps=survey.with_gaps,
            )
            report = loader.load(source, self.options.fingerprint(source))
        _say_report(report, level, place)
        return report

    def _say_next_steps(self, report: LoadReport) -> None:
        counts = report.counts
        if counts["unknown"]:
            say("Register these servers with `capacity instances add`, or those of a file with --register-as ENGINE.")
        if counts["conflicts"] and self.options.replaces:
            say("These rows contradict other imported rows of the same day. Correct the source and import it again.")
        elif counts["conflicts"]:
            say("Stored samples were kept. --on-conflict replace replaces them.")
        if report.first_day is not None and report.before_start:
            say(
                f"{counted(report.before_start, 'row')} {'are' if report.before_start > 1 else 'is'} older than "
                f"CAPACITY_START_DATE ({human_day(self.settings.start_date)}). To aggregate "
                f"{'them' if report.before_start > 1 else 'it'}, set CAPACITY_START_DATE={report.first_day}."
            )
        if self.options.dry_run:
            say(NOTHING_CHANGED)
        elif counts["written"] or counts["replaced"] or report.resumed_after:
            _say_aggregation(report, self.settings.start_date)


@contextmanager
def _rows_read(description: str) -> Iterator[Callable[[int], None]]:
    """Show the number of rows that were read; yields its update."""
    with progress_bar(description) as update:
        yield lambda rows: update(completed=rows)


def _before_anything(rows: Iterator[PositionedRow]) -> Iterator[PositionedRow]:
    try:
        yield from rows
    except ValidationError as error:
        raise ValidationError(f"{error} Nothing was imported.") from None


def _say_conventions(conventions: Conventions) -> None:
    """Say how days and sizes are read, where that is not as in this project's own files."""
    if conventions.dates != ISO:
        say(f"Date format: {conventions.dates}.")
    with_comma = [column for column, mark in conventions.decimals.items() if mark == COMMA]
    if with_comma:
        say(f"Decimal comma in: {', '.join(with_comma)}.")


def _say_aggregation(report: LoadReport, start_date: date) -> None:
    if report.first_day is None or report.last_day is None:
        return
    first_day = max(report.first_day, start_date)
    if first_day <= report.last_day:
        # Without a last day, because later windows compare with these.
        say(f"Next: capacity aggregate --period all --from {first_day}, or backfill partitions from that day on.")
        say("While Dagster runs, it recomputes windows that were computed before. The others need the command.")


def _say_report(report: LoadReport, level: Level, place: Callable[[int], str]) -> None:
    if report.resumed_after:
        say(f"Continued after {place(report.resumed_after)}, where an earlier run was interrupted.")
    rows = [[f"{report.counts[name]:,}", OUTCOMES[name]] for name in COUNTS if report.counts[name] or name == "read"]
    say(Table(level.source.name, (">Rows", "Outcome"), rows))
    if report.first_rows:
        columns = dict.fromkeys(name for row in report.first_rows for name in row)
        _say_first_rows(list(columns), report.first_rows)
    for outcome in ("bad", "unknown", "conflicts"):
        for line in report.listed.get(outcome, []):
            say(f"  {outcome}: {line}")
    if report.gaps.servers:
        gaps = report.gaps
        say(
            f"{counted(gaps.servers, 'server')} {'have' if gaps.servers > 1 else 'has'} gaps: "
            f"{counted(gaps.days, 'day')} in total, the longest {counted(gaps.longest_days, 'day')}."
        )
        for line in report.listed["gaps"]:
            say(f"  gap: {line}")


def _say_first_rows(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Print what the first rows were read as: days and sizes as people write them."""

    def shown(column: str, value: object) -> str:
        if isinstance(value, date):
            return human_day(value)
        return f"{value:,} MiB" if column.endswith("_mb") and isinstance(value, int) else str(value or "")

    cells = [[printable(shown(column, row.get(column))) for column in columns] for row in rows]
    headings = [f">{column}" if column.endswith("_mb") or column == "row" else column for column in columns]
    say(Table("First rows, as read", headings, cells))


def _mapping(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (ours, _, theirs) in zip(texts, pairs, strict=True):
        if not ours or not theirs:
            raise ValidationError(f"--map {text!r} is not of the form OURS=THEIRS, for example size_mb=megabytes.")
    return {ours: theirs for ours, _, theirs in pairs}
