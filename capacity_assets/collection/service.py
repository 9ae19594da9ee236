"""The collection: measures the registered servers for today and stores the sizes. Assets and commands use it.

Only today can be measured, because no server reports how large a database was on an earlier day. A second run on a day
measures the servers that failed, or all of them with `again`. Batches are committed while other servers are measured,
so a run that is killed loses the last seconds at most.

Several runs or several places may share a fleet. A share is written as `2/4`, the second of four, `zone=eu`, the
servers with that label, or `zone=`, those without it. CAPACITY_COLLECTION_SHARES lists the shares.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Executable, Row, text

from capacity_assets.base.declarations import LABEL
from capacity_assets.base.errors import MAXIMUM_LISTED_ERRORS, AggregationStatus, ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import MOST_SHARES
from capacity_assets.base.units import counted, first_of, human_day
from capacity_assets.collection.engines.base import NAMED, FailureKind
from capacity_assets.collection.measuring import (
    CONNECT_SECONDS,
    FleetMeasurement,
    ProbeContext,
    ProbeHistory,
    ProbeOutcome,
    ServerToMeasure,
)
from capacity_assets.collection.servers import RegisteredServer, registered_servers
from capacity_assets.collection.storing import forget_old_attempts, store_each
from capacity_assets.collection.volumes import fetch_volumes
from capacity_assets.database.locks import SAMPLES, CapacityLockManager, HeldLock, samples_lock
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.database.sql import with_queries
from capacity_assets.database.tables import SERVERS_IN_SERVICE

_NUMBERED = re.compile(r"([0-9]{1,3})/([0-9]{1,3})")
ELSEWHERE_NAMED = 3
HOW_TO_WRITE = "write 2/4 for the second of four shares, zone=eu for servers with a label, or zone= for those without"


@dataclass(frozen=True)
class CollectionShare:
    """Some of the servers: those whose number has a certain remainder, or those with a label."""

    name: str
    number: int = 0
    of: int = 1
    key: str | None = None
    value: str | None = None

    def holds(self, server_id: int, labels: Mapping[int, str]) -> bool:
        """Whether a server belongs to the share; `labels` are the values of its key by server."""
        if self.key is None:
            return server_id % self.of == self.number
        return labels.get(server_id) == self.value


def parse_share(name: str) -> CollectionShare:
    """Return the share with a name; raises ValidationError with the valid forms."""
    numbered, labelled = _NUMBERED.fullmatch(name), LABEL.fullmatch(name)
    if labelled:
        return CollectionShare(name, key=labelled[1], value=labelled[2] or None)
    number, of = (int(part) for part in numbered.groups()) if numbered else (0, 0)
    if not 1 <= number <= of <= MOST_SHARES:
        raise ValidationError(f"{name!r} is not a share of the servers: {HOW_TO_WRITE}.")
    # `02/4` is the same share, and has the same lock.
    return CollectionShare(f"{number}/{of}", number=number - 1, of=of)


def servers_of_share(engine: Engine, share: CollectionShare, server_ids: Sequence[int], day: date) -> set[int]:
    """Return the servers that belong to a share, by their labels on a day; raises DatabaseError."""
    labels: dict[int, str] = {}
    if share.key is not None:
        with database_errors(doing="reading labels of servers"), engine.connect() as connection:
            rows = connection.execute(text(_LABELS), {"key": share.key, "day": day})
            labels = {row.instance_id: row.value for row in rows}
    return {server for server in server_ids if share.holds(server, labels)}


_LABELS = """
SELECT instance_id, value FROM capacity_label_spans
WHERE key = :key AND database_pattern = '' AND value IS NOT NULL AND valid_from <= :day AND :day < valid_until
"""


@dataclass(frozen=True)
class ServerFailure:
    """A server that was not measured."""

    server: str
    kind: FailureKind
    reason: str

    def __str__(self) -> str:
        return f"{self.server}: {self.kind}: {self.reason}"


@dataclass(frozen=True)
class CollectionSummary:
    """The collection of a day; total = processed + failed + skipped servers, where skipped ones were measured before.

    `share` is the name of the share that was measured; None: all servers, or the named ones. `kept_instances` failed,
    but have a sample from an earlier run of the day. `measured_*` are the results of this run; the other sums are those
    stored for the day. `not_counted` names objects without a known size, by server; `left_out` counts servers by the
    name of an excluded database. `unknown_used`, `unknown_limits`, `unknown_parts` and `unknown_objects` contain, by
    server or source of volumes, what is unknown and why. `object_databases` counts the databases whose tables and
    indexes were measured now.
    """

    day: date
    share: str | None = None
    processed_instances: int = 0
    failed_instances: int = 0
    skipped_instances: int = 0
    kept_instances: int = 0
    measured_databases: int = 0
    measured_size_mb: int = 0
    database_count: int = 0
    total_size_mb: int = 0
    failures: tuple[ServerFailure, ...] = ()
    not_counted: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    unknown_used: tuple[str, ...] = ()
    unknown_limits: tuple[str, ...] = ()
    unknown_parts: tuple[str, ...] = ()
    imported_volumes: int = 0
    object_databases: int = 0
    unknown_objects: tuple[str, ...] = ()
    filled_elsewhere: Sequence[str] = ()
    duration_seconds: float = 0.0

    @property
    def total_instances(self) -> int:
        """The number of servers to be measured."""
        return self.processed_instances + self.failed_instances + self.skipped_instances

    @property
    def everything_failed(self) -> bool:
        """Whether every server failed, and the day has no sample."""
        return self.failed_instances > self.kept_instances and not (self.processed_instances or self.skipped_instances)

    @property
    def is_empty(self) -> bool:
        """Whether the day has no sample: every server failed, or none is registered."""
        return self.everything_failed or not self.total_instances

    @property
    def status(self) -> AggregationStatus:
        """Failed if any server failed, skipped if none was measured now, otherwise completed."""
        return AggregationStatus.of(self.failed_instances, self.processed_instances)

    @property
    def message(self) -> str:
        """The outcome in a few sentences."""
        if not self.total_instances and self.share:
            on = human_day(self.day)
            return f"No server that is registered for collection is in the share {self.share} on {on}."
        if not self.total_instances:
            return "No server is registered for collection: `capacity instances add` registers one."
        done = self.processed_instances + self.skipped_instances
        earlier = f", {self.skipped_instances:,} of them earlier that day" if self.skipped_instances else ""
        parts = [f"{human_day(self.day)}: {done:,} of {counted(self.total_instances, 'server')} measured{earlier}."]
        if self.processed_instances:
            was = "was" if self.measured_databases == 1 else "were"
            parts.append(f"{counted(self.measured_databases, 'database')} {was} measured now.")
        if self.failed_instances:
            parts.append(self._failed)
            if done:
                parts.append("The other server is stored." if done == 1 else "The other servers are stored.")
            parts.append("Run the same command again to measure what failed.")
        if self.not_counted:
            named = first_of(self.not_counted, NAMED)
            parts.append(f"Not counted, because no size is reported: {named}.")
        if self.filled_elsewhere:
            named = first_of(self.filled_elsewhere, ELSEWHERE_NAMED)
            parts.append(f"Not measured from here, because no connection is registered: {named}.")
        return " ".join(parts)

    @property
    def _failed(self) -> str:
        failed, kept = counted(self.failed_instances, "server"), self.kept_instances
        without = self.failed_instances - kept
        lacking = f"{'has' if without == 1 else 'have'} no sample of this day"
        if not kept:
            return f"{failed} failed and {lacking}."
        if without:
            return f"{failed} failed: {without:,} {lacking}, {kept:,} kept that of an earlier run."
        sample, is_kept = ("its sample", "is kept") if kept == 1 else ("their samples", "are kept")
        return f"{failed} failed; {sample} from an earlier run today {is_kept}."

    def with_outcomes(self, outcomes: Sequence[ProbeOutcome]) -> CollectionSummary:
        """Return the summary with further outcomes, of whose sizes only sums are kept."""
        collected = [probe for probe in outcomes if probe.collected]
        failures = [
            ServerFailure(probe.server, probe.kind, probe.explanation or "")
            for probe in outcomes
            if probe.kind is not None
        ]
        named: Mapping[str, Iterable[tuple[str, str]]] = {
            "not_counted": ((probe.server, what) for probe in outcomes for what in probe.not_counted),
            "unknown_used": ((probe.server, what) for probe in collected for what in probe.unknown_used),
            "unknown_limits": ((probe.server, probe.limits.unknown) for probe in collected if probe.limits.unknown),
            "unknown_parts": ((probe.server, what) for probe in collected for what in probe.unknown_parts),
            "unknown_objects": ((probe.server, what) for probe in collected for what in probe.objects.unknown),
        }
        lists: dict[str, Any] = {
            name: tuple(sorted((*getattr(self, name), *(f"{server}: {what}" for server, what in further))))
            for name, further in named.items()
        }
        left_out = Counter(self.left_out) + Counter(name for probe in outcomes for name in probe.left_out)
        return replace(
            self,
            processed_instances=self.processed_instances + len(collected),
            failed_instances=self.failed_instances + len(failures),
            kept_instances=self.kept_instances + sum(probe.keeps_sample for probe in outcomes),
            measured_databases=self.measured_databases + sum(len(probe.sizes) for probe in collected),
            measured_size_mb=self.measured_size_mb + sum(probe.total_size_mb for probe in collected),
            object_databases=self.object_databases + sum(len(probe.objects.databases) for probe in collected),
            failures=tuple(sorted((*self.failures, *failures), key=lambda failure: failure.server)),
            left_out=dict(sorted(left_out.items())),
            **lists,
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON and metadata; lists are cut, their numbers are exact."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        lists = {name: list(getattr(self, name)[:MAXIMUM_LISTED_ERRORS]) for name in LISTS}
        return {
            "status": self.status.value,
            "collected_date": self.day.isoformat(),
            **numbers,
            "errors": [str(failure) for failure in self.failures[:MAXIMUM_LISTED_ERRORS]],
            "error_count": len(self.failures),
            **lists,
            **{f"{name}_count": len(getattr(self, name)) for name in LISTS},
            "left_out": dict(self.left_out),
            "message": self.message,
            "duration_seconds": round(self.duration_seconds, 3),
        }


# The fields of a summary in JSON and metadata.
NUMBERS = (
    *("total_instances", "processed_instances", "failed_instances", "skipped_instances"),
    *("database_count", "total_size_mb", "imported_volumes", "object_databases"),
)
LISTS = ("not_counted", "unknown_used", "unknown_limits", "unknown_parts", "unknown_objects")


logger = logging.getLogger(__name__)

ALL = "all"
BATCH_SERVERS = 200
BATCH_SECONDS = 5.0
# The days from which a server's usual time is taken.
PROBE_HISTORY_DAYS = 14

Progress = Callable[[ProbeOutcome, int], None]


@dataclass(frozen=True)
class CollectionService:
    """Measures and stores the sizes of today, `workers` servers at a time."""

    engine: Engine
    clock: Clock
    locks: CapacityLockManager
    context: ProbeContext
    workers: int
    volume_sources: Path | None = None
    connect_seconds: float = CONNECT_SECONDS
    objects: Sequence[str] = ()
    """The servers whose tables and indexes are measured: names, labels KEY=VALUE, or `all`."""
    objects_days: int = 7

    def collect(
        self,
        day: date,
        names: Sequence[str] | None = None,
        *,
        again: bool = False,
        share: CollectionShare | None = None,
        progress: Progress = lambda _outcome, _left: None,
    ) -> CollectionSummary:
        """Measure all registered servers, a share of them, or the named ones, for `day`, which must be today.

        `progress` is called with each outcome and the number of servers left.

        Raises:
            ValidationError: `day` is not today, or a named server is not in service or not registered for collection.
            NotFoundError: a named server does not exist.
            LockHeldError: the same share is being measured or, without a share, all servers are, or an import runs.
            DatabaseError: the capacity database failed; stored batches are kept, and another run continues.
        """
        self._refuse_another_day(day)
        refuse_an_unfit_database(self.engine, self.clock.zone)
        began = time.monotonic()
        with self.locks.job_lock(samples_lock(share.name) if share else SAMPLES) as lock:
            tasks, skipped, elsewhere = self._tasks(day, names, again=again, share=share)
            name = share.name if share else None
            known = CollectionSummary(day, name, skipped_instances=skipped, filled_elsewhere=elsewhere)
            summary = self._with_imported(self._measure(known, tasks, lock, progress))
            forget_old_attempts(self.engine, self.clock)
        databases, size_mb = self._count_stored(day)
        seconds = time.monotonic() - began
        summary = replace(summary, database_count=databases, total_size_mb=size_mb, duration_seconds=seconds)
        logger.info(summary.message)
        return summary

    def _with_imported(self, summary: CollectionSummary) -> CollectionSummary:
        """Fetch volumes from monitoring systems; called after the sizes are stored, so that no source delays them."""
        if self.volume_sources is None:
            return summary
        if self.clock.today() != summary.day:
            # A source says what is free now, which is a value of the next day.
            trouble = f"{human_day(summary.day)} ended while servers were measured, so no monitoring system was queried"
            return replace(summary, unknown_limits=(*summary.unknown_limits, trouble))
        fetched = fetch_volumes(self.engine, summary.day, self.volume_sources, self.context.secrets)
        unknown = (*summary.unknown_limits, *fetched.troubles)
        return replace(summary, unknown_limits=unknown, imported_volumes=len(fetched.volumes))

    def _count_stored(self, day: date) -> tuple[int, int]:
        """Return the number and MiB of databases stored for the day on servers measured here, by any run."""
        [row] = self._read(with_queries(_STORED, in_service=SERVERS_IN_SERVICE), {"day": day}, "adding up the day")
        return int(row.database_count), int(row.total_size_mb)

    def has_servers(self) -> bool:
        """Whether a server in service is registered for collection; raises DatabaseError."""
        return any(registered.active and registered.is_collected for registered in registered_servers(self.engine))

    def count_remaining(self, day: date, share: CollectionShare | None = None) -> int:
        """Count the servers in service, or in a share, that remain to be measured on a day; raises DatabaseError."""
        refuse_an_unfit_database(self.engine, self.clock.zone)
        query = with_queries(_UNMEASURED, in_service=SERVERS_IN_SERVICE)
        remaining = [row.instance_id for row in self._read(query, {"day": day}, "counting the remaining servers")]
        return len(remaining if share is None else servers_of_share(self.engine, share, remaining, day))

    def _refuse_another_day(self, day: date) -> None:
        today = self.clock.today()
        if day != today:
            raise ValidationError(
                f"Only today ({today}) can be measured, because a server reports only current sizes. To load samples "
                "of other days, use `capacity import`."
            )

    def _tasks(
        self, day: date, names: Sequence[str] | None, *, again: bool, share: CollectionShare | None
    ) -> tuple[list[ServerToMeasure], int, list[str]]:
        """Return the servers to measure, the number measured before, and the names of those filled elsewhere."""
        servers = registered_servers(self.engine, names)
        if share is not None:
            chosen = servers_of_share(self.engine, share, [registered.id for registered in servers], day)
            servers = [registered for registered in servers if registered.id in chosen]
        if names is not None:
            _refuse_unmeasurable(servers)
        wanted = [registered for registered in servers if registered.active and registered.is_collected]
        history, measured_ids = self._history(day)
        remaining = [registered for registered in wanted if again or registered.id not in measured_ids]
        due = self._due_objects(remaining, day)
        tasks = [
            ServerToMeasure(
                registered.id,
                registered.server,
                history.get(registered.id, ProbeHistory()),
                registered.id in measured_ids,
                registered.id in due,
            )
            for registered in remaining
        ]
        elsewhere = [registered.name for registered in servers if registered.active and not registered.is_collected]
        return tasks, len(wanted) - len(remaining), elsewhere

    def _due_objects(self, servers: Sequence[RegisteredServer], day: date) -> set[int]:
        """Return the servers whose tables and indexes are due on `day`."""
        if not self.objects or not servers:
            return set()
        ids, named = [registered.id for registered in servers], {word for word in self.objects if "=" not in word}
        chosen = {registered.id for registered in servers if ALL in named or registered.name in named}
        for word in self.objects:
            if word not in named:
                chosen |= servers_of_share(self.engine, parse_share(word), ids, day)
        since = day - timedelta(days=self.objects_days)
        rows = self._read(text(_OBJECTS_MEASURED), {"day": day, "since": since}, "reading when objects were measured")
        return chosen - {row.instance_id for row in rows}

    def _history(self, day: date) -> tuple[dict[int, ProbeHistory], set[int]]:
        since = day - timedelta(days=PROBE_HISTORY_DAYS)
        rows = self._read(text(_HISTORY), {"day": day, "since": since}, "reading earlier attempts")
        history = {
            row.instance_id: ProbeHistory(
                row.usual_seconds, row.usual_connect_seconds, bool(row.failed_last), int(row.timeouts)
            )
            for row in rows
        }
        return history, {row.instance_id for row in rows if row.done}

    def _read(self, query: Executable, parameters: dict[str, object], doing: str) -> Sequence[Row[Any]]:
        with database_errors(doing=doing), self.engine.connect() as connection:
            return connection.execute(query, parameters).all()

    def _measure(
        self, summary: CollectionSummary, tasks: Sequence[ServerToMeasure], lock: HeldLock, progress: Progress
    ) -> CollectionSummary:
        fleet = FleetMeasurement(self.context, self.clock, self.workers, self.connect_seconds)
        waiting: list[ProbeOutcome] = []
        day, remaining, written_at = summary.day, len(tasks), time.monotonic()

        def write() -> None:
            nonlocal summary, written_at
            if waiting:
                lock.ensure_held()
                summary = summary.with_outcomes(store_each(self.engine, day, waiting))
                stored = counted(summary.processed_instances, "server")
                logger.info(f"{stored} measured and stored, {summary.failed_instances:,} failed.")
            waiting.clear()
            written_at = time.monotonic()

        try:
            for outcome in fleet.outcomes(tasks, may_begin=lambda: self.clock.today() == day):
                if outcome is not None:
                    remaining -= 1
                    waiting.append(outcome)
                    progress(outcome, remaining)
                is_late = time.monotonic() - written_at > BATCH_SECONDS
                if len(waiting) >= BATCH_SERVERS or (waiting and is_late):
                    write()
        except BaseException as error:
            # Interrupted by Ctrl-C or by Dagster: measured servers are stored, and not measured again.
            if not isinstance(error, Exception):
                write()
            raise
        write()
        return summary


def _refuse_unmeasurable(servers: Sequence[RegisteredServer]) -> None:
    for registered in servers:
        if not registered.active:
            raise ValidationError(
                f"Server {registered.name!r} is disabled. `capacity instances enable` puts it back into service."
            )
        if not registered.is_collected:
            raise ValidationError(
                f"Server {registered.name!r} has no registered connection. `capacity instances add` registers it."
            )


_HISTORY = """
WITH known AS (
    SELECT *, max(collected_date) FILTER (WHERE status = 'collected') OVER (PARTITION BY instance_id) AS last_collected
    FROM capacity_collection_attempts WHERE collected_date BETWEEN :since AND :day
)
SELECT instance_id,
       max(connect_seconds + measure_seconds) FILTER (WHERE status = 'collected') AS usual_seconds,
       max(connect_seconds) FILTER (WHERE status = 'collected') AS usual_connect_seconds,
       (array_agg(status ORDER BY collected_date DESC))[1] = 'failed' AS failed_last,
       coalesce(sum(attempts) FILTER (WHERE failure = 'timeout' AND connect_seconds IS NOT NULL
                                        AND collected_date > coalesce(last_collected, '-infinity')), 0) AS timeouts,
       bool_or(status = 'collected' AND collected_date = :day) AS done
FROM known GROUP BY instance_id
"""
_OBJECTS_MEASURED = """
SELECT DISTINCT instance_id FROM object_size_stats WHERE collected_date > :since AND collected_date < :day
"""
_STORED = """
SELECT coalesce(sum(s.database_count), 0) AS database_count, coalesce(sum(s.total_size_mb), 0) AS total_size_mb
FROM instance_size_stats s JOIN capacity_collection_targets t ON t.instance_id = s.instance_id
JOIN in_service i ON i.id = s.instance_id
WHERE s.collected_date = :day AND NOT s.is_deleted AND i.counted_by IS NULL
"""
_UNMEASURED = """
SELECT t.instance_id FROM capacity_collection_targets t JOIN in_service i ON i.id = t.instance_id
WHERE NOT EXISTS (SELECT FROM capacity_collection_attempts a
                  WHERE a.instance_id = t.instance_id AND a.collected_date = :day AND a.status = 'collected')
"""
