"""What a run reports: per window and level, per run, per server; and the days with samples.

`total = processed + failed + skipped` and `records = written + unchanged + protected` hold by construction, because the
totals are derived. How a summary becomes Dagster metadata or terminal text is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date

from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import Level
from capacity_assets.base.errors import MAXIMUM_LISTED_ERRORS, AggregationStatus, database_errors
from capacity_assets.base.periods import Window
from capacity_assets.base.units import counted
from capacity_assets.database.cluster import is_distributed


@dataclass(frozen=True)
class InstanceError:
    """One instance that failed in one window, and the reason."""

    instance_id: int
    instance_name: str
    reason: str

    def __str__(self) -> str:
        """Read as one line of a report."""
        return f"server {self.instance_id} ({self.instance_name}): {self.reason}"


@dataclass(frozen=True)
class Coverage:
    """How much of a window its figures rest on: days with samples, days up to and including today, all days."""

    measured_days: int
    elapsed_days: int
    window_days: int

    @property
    def is_open(self) -> bool:
        """Whether days of the window are still to come."""
        return self.elapsed_days < self.window_days

    @property
    def percent(self) -> float:
        """Measured days in percent of all days of the window, one decimal."""
        return round(self.measured_days * 100 / self.window_days, 1)

    @property
    def message(self) -> str:
        """The days in one sentence."""
        if self.is_open:
            return (
                f"The window is open: samples on {self.measured_days} of {counted(self.elapsed_days, 'day')} so far, "
                f"of {self.window_days} days in all."
            )
        return f"Samples on {self.measured_days} of {counted(self.window_days, 'day')}."

    def to_dict(self) -> dict[str, object]:
        """Return the published keys."""
        return {**asdict(self), "coverage_percent": self.percent, "is_open": self.is_open}


@dataclass(frozen=True)
class PeriodSummary:
    """Outcome of one window at one level; summaries of disjoint instances of one window can be added.

    `unsampled_records` are stored rows, kept although no sample of them is left; they are no part of `total_records`.
    `coverage` is None where it was not looked up.
    """

    period_type: str
    level: str
    period_start: date
    period_end: date
    processed_instances: int = 0
    failed_instances: int = 0
    skipped_instances: int = 0
    written_records: int = 0
    unchanged_records: int = 0
    protected_records: int = 0
    removed_records: int = 0
    unsampled_records: int = 0
    errors: tuple[InstanceError, ...] = ()
    duration_seconds: float = 0.0
    coverage: Coverage | None = None

    @property
    def total_instances(self) -> int:
        """Active instances in scope: processed, failed and skipped."""
        return self.processed_instances + self.failed_instances + self.skipped_instances

    @property
    def total_records(self) -> int:
        """Rows the raw data supports: written, unchanged and protected."""
        return self.written_records + self.unchanged_records + self.protected_records

    @property
    def status(self) -> AggregationStatus:
        """Failed if any instance failed, else skipped if none was processed, else completed."""
        return _status(self.failed_instances, self.processed_instances)

    @property
    def message(self) -> str:
        """One sentence that a person can act on."""
        window = f"{self.period_type} {self.level} aggregates {self.period_start} to {self.period_end}"
        if self.status is AggregationStatus.FAILED:
            return (
                f"{window}: {self.failed_instances} of {counted(self.total_instances, 'server')} failed; "
                f"the rows of the other {self.processed_instances} are stored, "
                "those of the failed ones were kept as they were."
            )
        if self.status is AggregationStatus.SKIPPED:
            reason = "no active server" if not self.total_instances else "no server has samples in this window"
            return f"{window}: nothing to do, {reason}."
        return (
            f"{window}: {self.processed_instances} of {counted(self.total_instances, 'server')} processed, "
            f"{counted(self.written_records, 'row')} written, {self.unchanged_records} unchanged, "
            f"{self.protected_records} protected{_kept(self.unsampled_records)}."
            + (f" {self.coverage.message}" if self.coverage else "")
        )

    def __add__(self, other: PeriodSummary) -> PeriodSummary:
        """Add the outcome of further instances in the same window."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in COUNT_FIELDS}
        errors = (self.errors + other.errors)[:MAXIMUM_LISTED_ERRORS]
        return replace(self, **sums, errors=errors, duration_seconds=self.duration_seconds + other.duration_seconds)

    def to_dict(self) -> dict[str, object]:
        """Return the summary under the published keys (docs/semantics.md, "Summaries"), plain JSON values."""
        return {
            "status": self.status.value,
            "period_type": self.period_type,
            "level": self.level,
            "period_start": self.period_start.isoformat(),
            "period_end": self.period_end.isoformat(),
            **{name: getattr(self, name) for name in _PUBLISHED_COUNTS},
            **({} if self.coverage is None else self.coverage.to_dict()),
            "error_count": self.failed_instances,
            "errors": [str(error) for error in self.errors],
            "message": self.message,
            "duration_seconds": round(self.duration_seconds, 3),
        }


_OF_INSTANCES = tuple(each.name for each in fields(PeriodSummary) if each.name.endswith("_instances"))
_OF_RECORDS = tuple(each.name for each in fields(PeriodSummary) if each.name.endswith("_records"))
COUNT_FIELDS = (*_OF_INSTANCES, *_OF_RECORDS)
_PUBLISHED_COUNTS = ("total_instances", *_OF_INSTANCES, "total_records", *_OF_RECORDS)


@dataclass(frozen=True)
class RunSummary:
    """Outcome of a run over any number of windows, periods and levels."""

    parts: tuple[PeriodSummary, ...] = ()

    @property
    def status(self) -> AggregationStatus:
        """Failed if any part failed, skipped only if all are, else completed."""
        return _status(self.total("failed_instances"), self.total("processed_instances"))

    @property
    def everything_failed(self) -> bool:
        """Whether servers failed and not one was processed: such a run has done nothing."""
        return self.total("failed_instances") > 0 and self.total("processed_instances") == 0

    @property
    def errors(self) -> tuple[InstanceError, ...]:
        """The first failures of the run, at most twenty; `total("failed_instances")` is the exact count."""
        return tuple(error for part in self.parts for error in part.errors)[:MAXIMUM_LISTED_ERRORS]

    @property
    def message(self) -> str:
        """One sentence on the whole run."""
        windows = len({(part.period_type, part.period_start) for part in self.parts})
        what = counted(windows, "window")
        if self.status is AggregationStatus.FAILED:
            return (
                f"{what}: {counted(self.total('failed_instances'), 'server computation')} failed, "
                f"{self.total('processed_instances')} succeeded and were kept. First: {self.errors[0]}."
            )
        if self.status is AggregationStatus.SKIPPED:
            reason = "has samples there" if self.total("total_instances") else "is in scope"
            span = f" from {min(part.period_start for part in self.parts)}" if self.parts else ""
            return f"{what}{span}: nothing to do, no active server {reason}."
        removed = self.total("removed_records")
        return (
            f"{what}: {counted(self.total('written_records'), 'row')} written, "
            f"{self.total('unchanged_records')} unchanged, {self.total('protected_records')} protected"
            f"{f', {removed} removed' if removed else ''}{_kept(self.total('unsampled_records'))}."
        )

    def total(self, name: str) -> int:
        """Add up one count of `PeriodSummary` over all parts."""
        return sum(getattr(part, name) for part in self.parts)

    def of_period(self, period_type: str) -> RunSummary:
        """Return the parts that belong to one period."""
        return RunSummary(tuple(part for part in self.parts if part.period_type == period_type))

    def of_level(self, level: str) -> RunSummary:
        """Return the parts that belong to one level."""
        return RunSummary(tuple(part for part in self.parts if part.level == level))

    def __add__(self, other: RunSummary) -> RunSummary:
        """Put two runs side by side."""
        return RunSummary(self.parts + other.parts)

    def to_dict(self) -> dict[str, object]:
        """Return status, message, totals and one entry per part; plain JSON values."""
        return {
            "status": self.status.value,
            "message": self.message,
            "metrics": self.metrics(),
            "windows": [part.to_dict() for part in self.parts],
        }

    def metrics(self) -> dict[str, int]:
        """Return the run's counts; an instance counts once for each window and level it took part in."""
        return {name: self.total(name) for name in ("total_instances", "total_records", *COUNT_FIELDS)}


@dataclass(frozen=True)
class InstanceSummary:
    """Outcome for one instance that was given by id; `active` is False for an instance that is not aggregated."""

    instance_id: int
    instance_name: str
    active: bool
    run: RunSummary = field(default_factory=RunSummary)

    @property
    def status(self) -> AggregationStatus:
        """Skipped for an inactive instance, else the status of its run."""
        return self.run.status if self.active else AggregationStatus.SKIPPED

    @property
    def message(self) -> str:
        """One sentence on the instance."""
        name = f"server {self.instance_id} ({self.instance_name})"
        if not self.active:
            return f"{name} is inactive or deleted and is not aggregated; its stored rows were kept."
        return f"{name}: {self.run.message}"

    def to_dict(self) -> dict[str, object]:
        """Return the run's keys together with the instance they speak of."""
        own = {"instance_id": self.instance_id, "instance_name": self.instance_name}
        return {**self.run.to_dict(), **own, "status": self.status.value, "message": self.message}


def combine(parts: Iterable[PeriodSummary]) -> tuple[PeriodSummary, ...]:
    """Add up partial summaries window by window and return them in order of period, level and start."""
    by_window: dict[tuple[str, str, date], PeriodSummary] = {}
    for part in parts:
        key = (part.period_type, part.level, part.period_start)
        by_window[key] = by_window[key] + part if key in by_window else part
    return tuple(by_window.values())


def _kept(unsampled: int) -> str:
    return f", {counted(unsampled, 'row')} kept without samples" if unsampled else ""


def _status(failed: int, processed: int) -> AggregationStatus:
    if failed:
        return AggregationStatus.FAILED
    return AggregationStatus.COMPLETED if processed else AggregationStatus.SKIPPED


def coverage_of(
    engine: Engine, levels: Sequence[Level], windows: Sequence[Window], today: date
) -> dict[str, dict[date, Coverage]]:
    """Count the days with a sample of any server, by level and first day of each window; raises DatabaseError."""
    parameters = {
        "starts": [window.start for window in windows],
        "ends": [window.end for window in windows],
        "today": today,
    }
    tables = dict.fromkeys(table for level in levels for table in level.raw_tables)
    with (
        database_errors(doing="counting measured days", kept="What was computed is kept."),
        engine.connect() as connection,
    ):
        sampled = _SAMPLED_ON_NODES if is_distributed(engine) else _SAMPLED
        is_live = {table: "NOT r.is_deleted" if "is_deleted" in table.c else "true" for table in tables}
        columns = ", ".join(
            f"{sampled.format(raw=table.name, is_live=is_live[table])} AS {table.name}" for table in tables
        )
        counted_days = {level.name: " OR ".join(table.name for table in level.raw_tables) for level in levels}
        counts = ", ".join(f"count(*) FILTER (WHERE {days}) AS {name}" for name, days in counted_days.items())
        rows = connection.execute(text(_DAYS.format(columns=columns, counts=counts)), parameters).all()
    return {
        level.name: {
            window.start: Coverage(getattr(row, level.name), window.elapsed_days(today), window.days)
            for window, row in zip(sorted(windows), rows, strict=True)
        }
        for level in levels
    }


_DAYS = """
SELECT {counts} FROM (
    SELECT w.period_start, {columns}
    FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)
    LEFT JOIN LATERAL generate_series(w.period_start, least(w.period_end, CAST(:today AS date)), interval '1 day')
        AS d (day) ON true
) AS days GROUP BY period_start ORDER BY period_start
"""
# LIMIT 1 keeps the probe a probe: EXISTS becomes a join with every sample of these days.
_SAMPLED = "(SELECT true FROM {raw} r WHERE {is_live} AND r.collected_date = CAST(d.day AS date) LIMIT 1)"
# Where rows are distributed, a subquery must not depend on the row of the outer query.
_SAMPLED_ON_NODES = """CAST(d.day AS date) IN (
    SELECT DISTINCT r.collected_date FROM {raw} r
    WHERE {is_live} AND r.collected_date BETWEEN (SELECT min(s) FROM unnest(CAST(:starts AS date[])) s)
    AND least((SELECT max(e) FROM unnest(CAST(:ends AS date[])) e), CAST(:today AS date)))"""
