"""`capacity import`: history from a file, a legacy database, Prometheus or Zabbix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from capacity_assets.cli import options
from capacity_assets.cli.options import DONE, FAILED, Line, Table, say
from capacity_assets.collection import prometheus
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.engines.base import engine_named
from capacity_assets.database.engine import disposed, safe_url
from capacity_assets.database.locks import SAMPLES, HeldLock
from capacity_assets.demo import refuse_the_sample_fleet
from capacity_assets.history import loading, monitoring, other_databases, rows, sources
from capacity_assets.history.loading import LoadReport
from capacity_assets.history.rows import FileSurvey
from capacity_assets.history.sources import FileSource, Origin, Source
from capacity_assets.runtime import lock_manager

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
NOT_SURVEYED = FileSurvey()


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

    def refuse_others(self, accepted: Collection[str], kind: str) -> None:
        """Refuse options that this kind of source does not take; raises ValidationError."""
        for attribute in fields(self):
            if attribute.name not in accepted and getattr(self, attribute.name) != attribute.default:
                option = OPTION_NAMES.get(attribute.name, attribute.name.replace("_", "-"))
                others = "databases" if attribute.name == "password_from" else "monitoring"
                whose = "files" if attribute.name in OF_FILES else others
                raise ValidationError(f"--{option} is for {whose} only; omit it for {kind}.")

    def fingerprint(self, source: Source) -> str:
        """Return the identity of an import: its rows, and their formats."""
        how = [
            self.level, sorted(self.mapping), self.server, self.unit, self.decimal, self.on_conflict, self.register_as,
        ]  # fmt: skip
        # Left out if not given, so that imports by an earlier version continue.
        how += [option for option in (self.date_format, self.encoding, self.origin) if option is not None]
        return hashlib.sha256(json.dumps([source.fingerprint, *how]).encode()).hexdigest()


@click.command("import")
@click.argument("source")
@click.option(
    "--level",
    default="database",
    show_default=True,
    help="What a row contains: the size of a database, or the total of a server.",
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
    help="Format of days: iso, day-first, month-first, or a format such as %d.%m.%y. Default: detected.",
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
    type=click.Choice(sources.ORIGINS_OF_FILES),
    help="Program that measured the samples.",
)
@click.option(
    "--from", "first", type=options.DAY, help="First day to read from monitoring. Default: a year before the last."
)
@click.option("--to", "last", type=options.DAY, help="Last day to read from monitoring. Default: yesterday.")
@options.password_option
@options.dry_run_option
@options.json_command
def import_(settings: Settings, /, *, source: str, **values: Any) -> int:
    """Import history: from a file, a legacy database, Prometheus or Zabbix.

    SOURCE is a file (.csv, .csv.gz, .xlsx, .parquet), or with --origin zabbix an .ndjson file that Zabbix exports; or
    postgresql://user@host/database without a password, or env:NAME of a variable that holds the whole address, of a
    legacy database, or of Zabbix with --origin zabbix; or prometheus:NAME of a source in CAPACITY_VOLUME_SOURCES.
    Columns of files are server (or instance_id), database, day, size_mb, and optionally other sizes such as
    log_size_mb, and collected_at; --map names others. --dry-run shows how the first rows are read. You can interrupt
    it: the same command continues.

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
    work_of, accepted, kind = _kind_of(source, chosen)
    chosen.refuse_others(accepted, kind)
    with options.open_database(settings) as engine:
        refuse_the_sample_fleet(engine)
        # A dry run writes nothing, and must not delay a collection.
        unlocked = nullcontext(HeldLock(lambda: None))
        with unlocked if chosen.dry_run else lock_manager(engine, settings).job_lock(SAMPLES) as lock:
            reports = work_of(_Import(settings, engine, chosen, lock), source)
    return FAILED if any(report.left_out for report in reports) else DONE


def _kind_of(source: str, chosen: ImportOptions) -> tuple[Callable[[_Import, str], list[LoadReport]], set[str], str]:
    """Return how a source is imported, its options, and its name."""
    if source.startswith(PROMETHEUS_SOURCE):
        return _Import.prometheus, OF_MONITORING, "Prometheus"
    if source.lower().endswith(monitoring.ZABBIX_EXPORT):
        return _Import.zabbix_export, OF_MONITORING | {"origin"}, "an export of Zabbix"
    if not other_databases.is_address(source):
        return _Import.file, OF_FILES, "a file"
    if chosen.origin == sources.ZABBIX.name:
        return _Import.zabbix, OF_ZABBIX, "Zabbix"
    return _Import.database, OF_LEGACY_DATABASES, "a legacy database"


@dataclass(frozen=True)
class _Import:
    settings: Settings
    engine: Engine
    options: ImportOptions
    lock: HeldLock

    def file(self, path: str) -> list[LoadReport]:
        chosen, level = self.options, SERVER_LEVELS.get(self.options.level)
        if level is None:
            raise ValidationError(f"{chosen.level!r} is not a level; use {' or '.join(SERVER_LEVELS)}.")
        mapping, origin = _mapping(chosen.mapping), sources.ORIGINS[chosen.origin] if chosen.origin else sources.FILE
        if origin.suffix and rows.INSTANCE_ID in mapping:
            raise ValidationError(
                f"--origin {origin.name} finds servers by name, not by number, and stores sizes as those of "
                f"{'NAME' + origin.suffix!r}. Map `{rows.SERVER}`, or name the server with --server. Nothing was "
                "imported."
            )
        how = sources.FileOptions(mapping, chosen.server, chosen.encoding, chosen.sheet)
        source = sources.file_source(Path(path), rows.layout_of(level), how)
        place = source.place_of if isinstance(source, sources.CsvSource) else "row {}".format
        survey = self._survey(source, level, place)
        report = self._load(source, level, chosen.unit, origin, place=place, survey=survey)
        return self._finish([report], source=source.description, **asdict(survey.conventions), **asdict(report))

    def prometheus(self, name: str) -> list[LoadReport]:
        settings = self.settings
        if settings.volume_sources is None:
            raise ValidationError(f"{prometheus.VARIABLE} is unset: set it to the file that lists the sources.")
        named = {source.name: source for source in prometheus.prometheus_sources(settings.volume_sources)}
        source = named.get(name.removeprefix(PROMETHEUS_SOURCE))
        if source is None:
            raise ValidationError(f"{settings.volume_sources} has no source {name!r}. It has {', '.join(named)}.")
        days, reports = self._days(), []
        headers = prometheus.login(source, SecretFolders.of(settings))
        layout = rows.layout_of(DATABASE)
        history = monitoring.PrometheusHistory(source, headers, days, settings.zone, layout, self._server_names())
        document: dict[str, object] = {**asdict(days)}
        try:
            if source.sizes is not None:
                how: dict[str, Any] = {"place": monitoring.place_of, "slice_rows": monitoring.SLICE_ROWS}
                reports.append(self._load(history, DATABASE, rows.BYTES, sources.PROMETHEUS, **how))
                document[DATABASE.source.name] = reports[0]
            if source.volume_queries:
                document["volume_size_stats"] = self._volumes(replace(history, known=self._server_names()))
        except prometheus.SourceError as error:
            text = f"{name}: {error}. Stored days are kept; the same command continues."
            raise prometheus.SourceError(text) from None
        return self._finish(reports, source=name, **document)

    def _volumes(self, history: monitoring.PrometheusHistory) -> monitoring.VolumeReport:
        chosen = self.options
        with _rows_read("volume_size_stats") as on_rows:
            report = monitoring.import_volumes(
                self.engine, history, replace=chosen.replaces, dry_run=chosen.dry_run, progress=on_rows
            )
        say(f"volume_size_stats: {report.read:,} read, {report.stored:,} new.")
        say(*(f"  note: {what}." for what in report.left_out))
        return report

    def zabbix(self, address: str) -> list[LoadReport]:
        with self._open_source(address) as zabbix:
            days = self._days()
            source = monitoring.zabbix_history(zabbix, days, self.settings.zone, rows.layout_of(DATABASE))
            return self._trends(source, days)

    def zabbix_export(self, path: str) -> list[LoadReport]:
        if self.options.origin != sources.ZABBIX.name:
            name = sources.ZABBIX.name
            raise ValidationError(f"Files of this kind are read only as exports of Zabbix; add --origin {name}.")
        days, layout = self._days(), rows.layout_of(DATABASE)
        source = monitoring.ZabbixExport(Path(path), days, self.settings.zone, layout)
        return self._trends(source, days, place=monitoring.place_of)

    def _trends(self, source: Source, days: monitoring.ImportDays, **how: Any) -> list[LoadReport]:
        report = self._load(source, DATABASE, rows.BYTES, sources.ZABBIX, **how)
        return self._finish([report], source=source.description, **asdict(days), **asdict(report))

    def _open_source(self, address: str) -> AbstractContextManager[Engine]:
        return disposed(
            other_databases.open_legacy(other_databases.address_of(address, self.options.password_from, self.settings))
        )

    def _days(self) -> monitoring.ImportDays:
        today = Clock(self.settings.zone).today()
        days = monitoring.ImportDays.between(self.options.first, self.options.last, today)
        say(f"{human_day(days.first)} to {human_day(days.last)}, the last value of each day.")
        return days

    def _server_names(self) -> set[str]:
        with database_errors(doing="reading servers"), self.engine.connect() as connection:
            return set(connection.execute(sa.text("SELECT name FROM instances")).scalars())

    def database(self, address: str) -> list[LoadReport]:
        dry_run = self.options.dry_run
        reports: list[LoadReport] = []
        with self._open_source(address) as opened:
            tables = other_databases.legacy_tables(opened)
            servers = other_databases.unknown_servers(opened, self.engine)
            document: dict[str, object] = {"source": safe_url(opened.url), "servers": len(servers.rows)}
            if not dry_run:
                other_databases.add_servers(servers, self.engine)
            say(
                f"{counted(len(servers.rows), 'server')} {'would be ' if dry_run else ''}registered, "
                f"{servers.known:,} already known by name."
            )
            derive_totals = INSTANCE.source.name not in tables
            for level in SERVER_LEVELS.values():
                samples, aggregates = level.source.name, level.target.name
                if samples in tables:
                    source = other_databases.legacy_samples(opened, level)
                    how: dict[str, Any] = {"derive_totals": derive_totals, "rehearsal": servers.add}
                    reports.append(self._load(source, level, "mb", sources.LEGACY, **how))
                    document[samples] = reports[-1]
                if aggregates in tables:
                    with _rows_read(aggregates) as on_rows:
                        counts = other_databases.copy_aggregates(
                            opened, self.engine, level, servers, dry_run=dry_run, progress=on_rows
                        )
                    say(f"{aggregates}: {counts['read']:,} read, {counts['written']:,} new.")
                    document[aggregates] = counts
        self._finish(reports[:1], **document)
        return reports

    def _finish(self, reports: list[LoadReport], **document: object) -> list[LoadReport]:
        """Print the document, or what to do next."""
        if options.wants_json():
            options.print_json({"dry_run": self.options.dry_run, **document})
        for report in reports:
            say(*self._next_steps(report))
        return reports

    def _survey(self, source: FileSource, level: Level, place: Callable[[int], str]) -> FileSurvey:
        chosen = self.options
        surveyor = rows.FileSurveyor(
            rows.layout_of(level),
            server=chosen.server,
            date_format=None if chosen.date_format is None else rows.checked_date_format(chosen.date_format),
            decimal=chosen.decimal,
            point_is_usual=source.point_is_usual,
            last_day=Clock(self.settings.zone).today(),
            place=place,
        )
        with _rows_read("Detecting the format") as on_rows:
            survey = surveyor.survey(source.rows(0), on_rows)
        # Formats of this project's own files are not mentioned.
        if survey.conventions.dates != rows.ISO:
            say(f"Date format: {survey.conventions.dates}.")
        with_comma = [column for column, mark in survey.conventions.decimals.items() if mark == rows.COMMA]
        if with_comma:
            say(f"Decimal comma in: {', '.join(with_comma)}.")
        return survey

    def _load(
        self,
        source: Source,
        level: Level,
        unit: str,
        origin: Origin,
        *,
        place: Callable[[int], str] = "row {}".format,
        survey: FileSurvey = NOT_SURVEYED,
        **how: Any,
    ) -> LoadReport:
        """Load a source into the raw table of a level; `how` has further fields of `Loader`."""
        chosen, zone = self.options, self.settings.zone
        layout, now = rows.layout_of(level), Clock(zone).now()
        reader = rows.RowReader(
            layout, unit, zone, now, server=chosen.server, conventions=survey.conventions, place=place
        )
        with _rows_read(level.source.name) as on_rows:
            loader = loading.Loader(
                self.engine,
                level,
                reader,
                self.lock,
                on_rows,
                dry_run=chosen.dry_run,
                replace=chosen.replaces,
                register_as=chosen.register_as,
                port=engine_named(chosen.register_as).default_port if chosen.register_as else 0,
                start_date=self.settings.start_date,
                origin=origin,
                with_gaps=survey.with_gaps,
                **how,
            )
            report = loader.load(source, chosen.fingerprint(source))
        say(*_report_lines(report, level, place))
        return report

    def _next_steps(self, report: LoadReport) -> Iterator[str]:
        counts, start_date = report.counts, self.settings.start_date
        if counts["unknown"]:
            yield "Register these servers with `capacity instances add`, or all of the file with --register-as ENGINE."
        if counts["conflicts"] and self.options.replaces:
            yield "These rows contradict other imported rows of the same day. Correct the source and import it again."
        elif counts["conflicts"]:
            yield "Stored samples were kept. --on-conflict replace replaces them."
        if report.first_day is not None and report.before_start:
            verb, them = ("are", "them") if report.before_start > 1 else ("is", "it")
            yield (
                f"{counted(report.before_start, 'row')} {verb} older than CAPACITY_START_DATE "
                f"({human_day(start_date)}). To aggregate {them}, set CAPACITY_START_DATE={report.first_day}."
            )
        if self.options.dry_run:
            yield options.NOTHING_CHANGED
        elif report.first_day and (counts["written"] or counts["replaced"] or report.resumed_after):
            first = max(report.first_day, start_date)
            if report.last_day and first <= report.last_day:
                # Without a last day, because later windows are compared with the imported ones.
                yield f"Next: capacity aggregate --period all --from {first}, or backfill partitions from that day on."
                recomputed = "it recomputes windows that were computed before"
                yield f"While Dagster runs, {recomputed}. All other windows need the command."


@contextmanager
def _rows_read(description: str) -> Iterator[Callable[[int], None]]:
    """Show the number of rows that were read; yields its update."""
    with options.progress_bar(description) as update:
        yield lambda read: update(completed=read)


def _report_lines(report: LoadReport, level: Level, place: Callable[[int], str]) -> Iterator[Line]:
    counts, gaps = report.counts, report.gaps
    if report.resumed_after:
        yield f"Continued after {place(report.resumed_after)}, where an earlier run was interrupted."
    listed = [name for name in loading.COUNTS if counts[name] or name == "read"]
    yield Table(level.source.name, (">Rows", "Outcome"), [[f"{counts[name]:,}", OUTCOMES[name]] for name in listed])
    if report.first_rows:
        yield _first_rows(report.first_rows)
    for outcome in ("bad", "unknown", "conflicts"):
        yield from (f"  {outcome}: {line}" for line in report.listed.get(outcome, []))
    if gaps.servers:
        yield (
            f"{counted(gaps.servers, 'server')} {'have' if gaps.servers > 1 else 'has'} gaps: "
            f"{counted(gaps.days, 'day')} in total, the longest {counted(gaps.longest_days, 'day')}."
        )
        yield from (f"  gap: {line}" for line in report.listed["gaps"])


def _first_rows(first: Sequence[Mapping[str, object]]) -> Table:
    """Return how the first rows were read, with days and sizes as people write them."""

    def cell_text(column: str, value: object) -> str:
        if isinstance(value, date):
            return human_day(value)
        return f"{value:,} MiB" if column.endswith("_mb") and isinstance(value, int) else str(value or "")

    columns = dict.fromkeys(name for row in first for name in row)
    cells = [[printable(cell_text(column, row.get(column))) for column in columns] for row in first]
    headings = [f">{column}" if column.endswith("_mb") or column == "row" else column for column in columns]
    return Table("First rows, as read", headings, cells)


def _mapping(texts: Sequence[str]) -> dict[str, str]:
    mapping = {}
    for text in texts:
        ours, _, theirs = text.partition("=")
        if not ours or not theirs:
            raise ValidationError(f"--map {text!r} is not of the form OURS=THEIRS, for example size_mb=megabytes.")
        mapping[ours] = theirs
    return mapping
