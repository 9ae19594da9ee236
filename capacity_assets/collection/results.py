"""What a collection did: one outcome per server, and their sum. How it is shown is decided elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime

from capacity_assets.base.errors import MAXIMUM_LISTED_ERRORS, AggregationStatus
from capacity_assets.base.units import counted, first_of, human_day
from capacity_assets.collection.engines.base import (
    NAMED,
    NO_OBJECTS,
    NOTHING_KNOWN,
    DatabaseSize,
    FailureKind,
    Limits,
    Objects,
    ServerFacts,
    ServerPart,
)
from capacity_assets.database.measures import PART_KINDS


@dataclass(frozen=True)
class ProbeOutcome:
    """The outcome of one server: sizes, or a failure; and how long it took."""

    instance_id: int
    server: str
    ended_at: datetime
    sizes: tuple[DatabaseSize, ...] = ()
    kind: FailureKind | None = None
    reason: str | None = None
    connect_seconds: float | None = None
    measure_seconds: float | None = None
    not_counted: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    limits: Limits = NOTHING_KNOWN
    parts: tuple[ServerPart, ...] = ()
    objects: Objects = NO_OBJECTS
    facts: ServerFacts | None = None
    keeps_sample: bool = False
    """Whether a failed one has a sample of an earlier run of the day, which stays."""

    @property
    def collected(self) -> bool:
        """Whether it was measured."""
        return self.kind is None

    @property
    def total_size_mb(self) -> int:
        """Sum of its databases, MiB."""
        return sum(size.size_mb for size in self.sizes)

    @property
    def unknown_parts(self) -> list[str]:
        """Of what lies beside its databases: what is not known, and why."""
        return [f"{PART_KINDS[part.kind].title}: {part.detail}" for part in self.parts if part.size_bytes is None]


@dataclass(frozen=True)
class Failure:
    """A server that was not measured."""

    server: str
    kind: FailureKind
    reason: str

    def __str__(self) -> str:
        """As one line."""
        return f"{self.server}: {self.kind}: {self.reason}"


@dataclass(frozen=True)
class CollectionSummary:
    """One day's collection: total = processed + failed + skipped servers; skipped were measured before on that day.

    `kept_instances` of the failed ones have a sample of an earlier run of the day. `measured_*` is what this run
    measured, the other sums are what is stored of the day. `not_counted` names what no size is known of, by server;
    `left_out` counts the servers on which a system database of that name was left out. `unknown_limits` says by server
    why its limits, or some of them, are not known, and by source of volumes what went wrong there. `unknown_parts` says
    the same of what lies beside databases. `object_databases` counts the databases whose tables and indexes were
    measured now, `unknown_objects` says by server why others were not.
    """

    day: date
    processed_instances: int = 0
    failed_instances: int = 0
    skipped_instances: int = 0
    kept_instances: int = 0
    measured_databases: int = 0
    measured_size_mb: int = 0
    database_count: int = 0
    total_size_mb: int = 0
    failures: tuple[Failure, ...] = ()
    not_counted: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    unknown_limits: tuple[str, ...] = ()
    unknown_parts: tuple[str, ...] = ()
    imported_volumes: int = 0
    object_databases: int = 0
    unknown_objects: tuple[str, ...] = ()
    filled_elsewhere: int = 0
    duration_seconds: float = 0.0

    @property
    def total_instances(self) -> int:
        """Servers that are to be measured."""
        return self.processed_instances + self.failed_instances + self.skipped_instances

    @property
    def everything_failed(self) -> bool:
        """Whether there is nothing of this day."""
        return self.failed_instances > self.kept_instances and not (self.processed_instances or self.skipped_instances)

    @property
    def is_empty(self) -> bool:
        """Whether no server has samples of this day: none is registered, or every one failed."""
        return self.everything_failed or not self.total_instances

    @property
    def status(self) -> AggregationStatus:
        """As of an aggregation: failed if any server failed, else skipped if none was measured now."""
        if self.failed_instances:
            return AggregationStatus.FAILED
        return AggregationStatus.COMPLETED if self.processed_instances else AggregationStatus.SKIPPED

    @property
    def message(self) -> str:
        """The outcome in a few sentences."""
        if not self.total_instances:
            return "No server is registered for collection: `capacity instances add` registers one."
        done = self.processed_instances + self.skipped_instances
        earlier = f", {self.skipped_instances:,} of them earlier this day" if self.skipped_instances else ""
        parts = [f"{human_day(self.day)}: {done:,} of {counted(self.total_instances, 'server')} measured{earlier}."]
        if self.processed_instances:
            was = "was" if self.measured_databases == 1 else "were"
            parts.append(f"{counted(self.measured_databases, 'database')} {was} measured now.")
        if self.failed_instances:
            has = "has" if self.failed_instances == 1 else "have"
            kept = f", but for {self.kept_instances:,} with that of an earlier run" if self.kept_instances else ""
            stored = "; the others are stored" if done else ""
            parts.append(
                f"{self.failed_instances:,} failed and {has} no sample of this day{kept}{stored}. "
                "Run the same command again to measure those."
            )
        if self.not_counted:
            named = first_of(self.not_counted, NAMED)
            parts.append(f"Not counted, because no size is reported: {named}.")
        if self.filled_elsewhere:
            more = counted(self.filled_elsewhere, "further active server")
            parts.append(f"Not measured from here, because no address is registered: {more}.")
        return " ".join(parts)

    def with_outcomes(self, outcomes: Sequence[ProbeOutcome]) -> CollectionSummary:
        """Add outcomes; their sizes are counted and let go."""
        collected = [one for one in outcomes if one.collected]
        failures = [Failure(one.server, one.kind, one.reason or "") for one in outcomes if one.kind is not None]
        not_counted = (f"{one.server}: {what}" for one in outcomes for what in one.not_counted)
        unknown_limits = (f"{one.server}: {one.limits.unknown}" for one in collected if one.limits.unknown)
        unknown_parts = (f"{one.server}: {what}" for one in collected for what in one.unknown_parts)
        unknown_objects = (f"{one.server}: {reason}" for one in collected for reason in one.objects.unknown)
        left_out = Counter(name for one in outcomes for name in one.left_out)
        return replace(
            self,
            processed_instances=self.processed_instances + len(collected),
            failed_instances=self.failed_instances + len(failures),
            kept_instances=self.kept_instances + sum(outcome.keeps_sample for outcome in outcomes),
            measured_databases=self.measured_databases + sum(len(outcome.sizes) for outcome in collected),
            measured_size_mb=self.measured_size_mb + sum(outcome.total_size_mb for outcome in collected),
            failures=tuple(sorted((*self.failures, *failures), key=lambda failure: failure.server)),
            not_counted=tuple(sorted((*self.not_counted, *not_counted))),
            unknown_limits=tuple(sorted((*self.unknown_limits, *unknown_limits))),
            unknown_parts=tuple(sorted((*self.unknown_parts, *unknown_parts))),
            object_databases=self.object_databases + sum(len(one.objects.databases) for one in collected),
            unknown_objects=tuple(sorted((*self.unknown_objects, *unknown_objects))),
            left_out=dict(sorted((Counter(self.left_out) + left_out).items())),
        )

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values, for JSON and metadata; errors are capped, their number is exact."""
        return {
            "status": self.status.value,
            "collected_date": self.day.isoformat(),
            "total_instances": self.total_instances,
            "processed_instances": self.processed_instances,
            "failed_instances": self.failed_instances,
            "skipped_instances": self.skipped_instances,
            "database_count": self.database_count,
            "total_size_mb": self.total_size_mb,
            "errors": [str(failure) for failure in self.failures[:MAXIMUM_LISTED_ERRORS]],
            "error_count": len(self.failures),
            "not_counted": list(self.not_counted[:MAXIMUM_LISTED_ERRORS]),
            "not_counted_count": len(self.not_counted),
            "left_out": dict(self.left_out),
            "imported_volumes": self.imported_volumes,
            "unknown_limits": list(self.unknown_limits[:MAXIMUM_LISTED_ERRORS]),
            "unknown_limits_count": len(self.unknown_limits),
            "unknown_parts": list(self.unknown_parts[:MAXIMUM_LISTED_ERRORS]),
            "unknown_parts_count": len(self.unknown_parts),
            "object_databases": self.object_databases,
            "unknown_objects": list(self.unknown_objects[:MAXIMUM_LISTED_ERRORS]),
            "unknown_objects_count": len(self.unknown_objects),
            "message": self.message,
            "duration_seconds": round(self.duration_seconds, 3),
        }
