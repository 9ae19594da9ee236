"""Loading rows of history: slice by slice, by COPY and set-wise comparison with what is stored.

A slice is a transaction that also records how far it came, so that an interrupted import goes on behind the last
slice and nothing is loaded by halves. A sample that is stored already is never replaced unasked: the same value is
counted as present, another one as a conflict and listed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.errors import database_errors
from capacity_assets.foundation.levels import DATABASE, SERVER_LEVELS, Level
from capacity_assets.foundation.lock_errors import HeldLock
from capacity_assets.importing import statements as sql
from capacity_assets.importing.rows import Problem, RowReader
from capacity_assets.importing.sources import PositionedRow, Source
from capacity_assets.storage.distribution import copied_for_reading
from capacity_assets.storage.engine import copy_rows
from capacity_assets.storage.legacy_tables import record_history
from capacity_assets.units import counted

SLICE_ROWS = 100_000
LISTED = 20
RAW_TABLES = [level.source.name for level in SERVER_LEVELS.values()]
COUNTS = ("read", "written", "replaced", "present", "repeated", "conflicts", "unknown", "bad", "totals_written")


@dataclass
class LoadReport:
    """What became of the rows: read = written + replaced + present + repeated + conflicts + unknown + bad."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    listed: dict[str, list[str]] = field(default_factory=dict)
    resumed_after: int = 0
    first_day: date | None = None
    last_day: date | None = None

    @property
    def left_out(self) -> int:
        """Rows that were not imported and should be looked at."""
        return sum(self.counts[name] for name in ("conflicts", "unknown", "bad"))

    def add(self, counts: Mapping[str, int]) -> None:
        """Count."""
        for name, count in counts.items():
            self.counts[name] += count

    def name(self, what: str, lines: Iterable[object]) -> None:
        """List places, the first of each kind."""
        listed = self.listed.setdefault(what, [])
        listed += map(str, itertools.islice(lines, LISTED - len(listed)))

    def recorded(self) -> str:
        """What an import that goes on has to know, as JSON."""
        days = {"first_day": self.first_day, "last_day": self.last_day}
        return json.dumps({"counts": self.counts, "listed": self.listed, **days}, default=str)

    def go_on(self, position: int, recorded: Mapping[str, Any]) -> None:
        """Take over what was recorded of an interrupted import, so that every row of it is accounted for."""
        self.resumed_after = position
        self.counts |= recorded["counts"]
        self.listed = recorded["listed"]
        first, last = (recorded[name] and date.fromisoformat(recorded[name]) for name in ("first_day", "last_day"))
        self.first_day, self.last_day = first, last

    def spans(self, first_day: date | None, last_day: date | None) -> None:
        """Take the days of a slice in."""
        days = [day for day in (self.first_day, self.last_day, first_day, last_day) if day is not None]
        self.first_day, self.last_day = min(days, default=None), max(days, default=None)


@dataclass(frozen=True)
class LoadOptions:
    """How rows are loaded; `register_as` is the engine of servers that are not known yet.

    Totals of servers are derived from their databases unless the source has totals of its own.
    """

    replace: bool = False
    register_as: str | None = None
    port: int = 0
    dry_run: bool = False
    derive_totals: bool = True
    slice_rows: int = SLICE_ROWS


@dataclass(frozen=True)
class Loader:
    """Loads sources into the raw table of a level; a dry run does the same in one transaction and undoes it."""

    engine: Engine
    level: Level
    reader: RowReader
    options: LoadOptions
    held: HeldLock
    progress: Callable[[int], None] = lambda _rows: None
    rehearsal: Callable[[Connection], None] = lambda _connection: None
    """What a dry run does before, because the real one would have found it done."""

    def load(self, source: Source, fingerprint: str) -> LoadReport:
        """Load a source; `fingerprint` tells an interrupted import of it again.

        Raises:
            ValidationError: the source cannot be read any further; earlier slices are kept.
            DatabaseError: the database failed; earlier slices are kept, the same again continues behind them.
        """
        report = LoadReport()
        with database_errors(
            doing=f"loading {self.level.source.name}",
            kept="The slice at work was rolled back, earlier ones are kept; the same command continues.",
        ):
            if self.options.dry_run:
                self._rehearse(source, report)
            else:
                self._load(source, fingerprint, report)
        return report

    def _rehearse(self, source: Source, report: LoadReport) -> None:
        with self.engine.connect() as connection, connection.begin() as transaction:
            self.rehearsal(connection)
            for part in self._slices(source.rows(0)):
                self._slice(connection, part, report)
                self.progress(report.counts["read"])
            transaction.rollback()

    def _load(self, source: Source, fingerprint: str, report: LoadReport) -> None:
        this = {"fingerprint": fingerprint}
        with self.engine.connect() as connection:
            # A finished import begins anew, and finds everything present.
            earlier = connection.execute(text(sql.POSITION), this).first()
        if earlier is not None:
            report.go_on(earlier.position, earlier.counts)
        for part in self._slices(source.rows(report.resumed_after)):
            with self.engine.begin() as connection:
                self._slice(connection, part, report)
                recorded = {"source": source.description, "target": self.level.source.name, "position": part[-1][0]}
                connection.execute(text(sql.NOTE), {**this, **recorded, "counts": report.recorded()})
                self.held.ensure_held()
            self.progress(report.counts["read"])
        with self.engine.begin() as connection:
            if self.level is DATABASE:
                record_history(connection)
            connection.execute(text(sql.FINISH), this)

    def _slices(self, rows: Iterator[PositionedRow]) -> Iterator[list[PositionedRow]]:
        while part := list(itertools.islice(rows, self.options.slice_rows)):
            yield part

    def _slice(self, connection: Connection, part: Sequence[PositionedRow], report: LoadReport) -> None:
        statements = sql.STATEMENTS[self.level.name]
        read = [self.reader.read(position, texts) for position, texts in part]
        problems = [row for row in read if isinstance(row, Problem)]
        report.add({"read": len(part), "bad": len(problems)})
        report.name("bad", problems)
        connection.execute(text(statements.stage))
        copy_rows(connection, statements.copy, (row for row in read if not isinstance(row, Problem)))
        self._find_servers(connection, report)
        with copied_for_reading(connection, {self.level.source.name: sql.NEAR_A_SLICE}):
            connection.execute(text(statements.compare), {"replace": self.options.replace})
        connection.execute(text("ANALYZE compared"))
        report.add(dict(connection.execute(text(sql.COUNT)).mappings().one()))
        report.spans(*connection.execute(text(sql.DAYS)).one())
        report.name("conflicts", map(_conflict, connection.execute(text(statements.conflicts), {"listed": LISTED})))
        connection.execute(text(statements.write))
        if statements.totals and self.options.derive_totals:
            with copied_for_reading(connection, dict.fromkeys(RAW_TABLES, sql.NEAR_A_SLICE)):
                connection.execute(text(statements.totals))
            report.add({"totals_written": len(connection.execute(text(sql.WRITE_TOTALS)).all())})
            connection.execute(text("DROP TABLE totals"))
        connection.execute(text("DROP TABLE staged, compared"))

    def _find_servers(self, connection: Connection, report: LoadReport) -> None:
        connection.execute(text("ANALYZE staged"))
        if self.options.register_as is not None:
            known = {"engine": self.options.register_as, "port": self.options.port}
            connection.execute(text(sql.REGISTER), known)
        connection.execute(text(sql.FIND_BY_NAME))
        connection.execute(text(sql.FIND_BY_NUMBER))
        unknown = connection.execute(text(sql.UNKNOWN)).all()
        report.add({"unknown": sum(row.rows for row in unknown)})
        report.name("unknown", (f"{row.who}: {counted(row.rows, 'row')}" for row in unknown))


def _conflict(row: Row[Any]) -> str:
    database = f", {row.database}" if row.database else ""
    other = "another row has" if row.another else "stored is"
    return f"row {row.position}: {row.server}{database}, {row.day}: {row.size_mb} MiB, {other} {row.other_mb} MiB"
