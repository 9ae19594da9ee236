"""Measures servers: one within its time limit, many in parallel, so that no server delays the others.

Every failure of a server is a `MeasureError` with a kind and a reason, and none holds a secret. Connections are opened
ahead, so that a server that never answers is detected while others are measured. A connected server waits for a free
worker. One that takes longer than usual frees its worker and is waited for beside the others until its time limit.
Servers that failed last time begin first. Drivers block, hence threads; a thread whose driver never returns is
abandoned at its time limit. A report is plausible if sizes and limits are possible; unusual values pass.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from capacity_assets.base.errors import CapacityError
from capacity_assets.base.periods import Clock
from capacity_assets.base.units import LARGEST_BYTES, LARGEST_MB, printable
from capacity_assets.collection.credentials import OWN, SecretFolders, password_of
from capacity_assets.collection.engines.base import (
    FILES,
    NO_OBJECTS,
    NOTHING_KNOWN,
    STATISTICS,
    TLS_VERIFY_FULL,
    Access,
    DatabaseSize,
    EngineAdapter,
    FailureKind,
    Limits,
    MeasureError,
    Measurement,
    Objects,
    PartScope,
    ServerFacts,
    ServerPart,
    engine_named,
    first_line,
)
from capacity_assets.collection.results import ProbeOutcome
from capacity_assets.collection.servers import Server
from capacity_assets.database.part_kinds import PART_KINDS

LONGEST_NAME, LONGEST_DETAIL = 255, 500


def refuse_impossible(sizes: Sequence[DatabaseSize]) -> None:
    """Raise MeasureError for impossible values, before they abort the transaction that other servers share."""
    names = [size.name for size in sizes]
    wrong = [
        size.name
        for size in sizes
        if not isinstance(size.name, str)
        or not 0 <= size.size_mb <= LARGEST_MB
        or len(size.name) > LONGEST_NAME
        or "\0" in size.name
    ]
    # The total of the server has the same maximum as each database.
    if not wrong and sum(size.size_mb for size in sizes) > LARGEST_MB:
        wrong = names
    if wrong or len(set(names)) < len(names):
        raise MeasureError(
            FailureKind.UNEXPECTED, f"it reported an impossible size or name: {(wrong or names)[0]!r:.80}"
        )


IMPOSSIBLE = Limits(unknown="it reported an impossible limit or name of a volume")


def possible(limits: object) -> Limits:
    """Return limits, or why they are unknown where no table could hold them: sizes are stored all the same."""
    try:
        return limits if isinstance(limits, Limits) and _fits(limits) else IMPOSSIBLE
    except (TypeError, ValueError, AttributeError):
        # An engine of someone else's may return anything.
        return IMPOSSIBLE


def _fits(limits: Limits) -> bool:
    volumes = [volume.name for volume in limits.volumes]
    databases = [ceiling.database for ceiling in limits.ceilings]
    places = [name for ceiling in limits.ceilings for name in ceiling.volumes or ()]
    most = [ceiling.limit_bytes for ceiling in limits.ceilings if ceiling.limit_bytes is not None]
    return (
        all(map(_is_name, [*volumes, *databases, *places]))
        and len(set(volumes)) == len(volumes)
        and len(set(databases)) == len(databases)
        and all(0 <= volume.free_bytes <= volume.total_bytes <= LARGEST_BYTES for volume in limits.volumes)
        and all(0 <= (volume.used_bytes or 0) <= volume.total_bytes for volume in limits.volumes)
        and all(0 <= limit <= LARGEST_BYTES for limit in most)
    )


IMPOSSIBLE_OBJECTS = Objects(unknown=("it reported an impossible size or name of a table or index",))


def possible_objects(objects: object) -> Objects:
    """Return objects, or why they are unknown where no table could hold them: sizes are stored all the same."""
    try:
        return objects if isinstance(objects, Objects) and _objects_fit(objects) else IMPOSSIBLE_OBJECTS
    except (TypeError, ValueError, AttributeError):
        return IMPOSSIBLE_OBJECTS


def _objects_fit(objects: Objects) -> bool:
    for database in objects.databases:
        keys = {(one.kind, one.schema, one.table, one.name) for one in database.largest}
        sizes = [database.other_bytes, *(one.size_bytes for one in database.largest)]
        further = [size for one in database.largest for size in (one.index_bytes, one.free_bytes) if size is not None]
        names = [name for one in database.largest for name in (one.schema, one.table) if name]
        if not (
            len(keys) == len(database.largest)
            and all(map(_is_name, [database.database, *names, *(one.name for one in database.largest)]))
            and min([*sizes, *further]) >= 0
            and max(sum(sizes), *further, 0) <= LARGEST_BYTES
        ):
            return False
    return True


def _is_name(name: str) -> bool:
    name.encode()
    return 0 < len(name) <= LONGEST_NAME and "\0" not in name


def possible_parts(parts: Sequence[ServerPart]) -> tuple[ServerPart, ...]:
    """Return the parts; one that no table could hold has an unknown size, or none at all if its name is impossible."""
    return tuple({(part.kind, part.name): part for part in map(_possible_part, parts) if part is not None}.values())


def _possible_part(part: ServerPart) -> ServerPart | None:
    try:
        named = part.kind in PART_KINDS and (not part.name or _is_name(part.name))
        placed = part.volume is None or _is_name(part.volume)
        sized = part.size_bytes is None or 0 <= int(part.size_bytes) <= LARGEST_BYTES
        detail = None if part.detail is None else printable(part.detail)[:LONGEST_DETAIL]
    except (TypeError, ValueError, AttributeError):
        return None
    if not named:
        return None
    if not (placed and sized):
        return ServerPart(part.kind, part.name, detail="it reported an impossible size or volume")
    return replace(part, detail=detail)


# What a driver may take beyond its own limits before it is left behind.
GRACE_SECONDS = 3.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class ProbeContext:
    """What measuring needs beside the server: where passwords may be looked up, our own database, what is left out."""

    secrets: SecretFolders
    own_url: URL
    excluded: dict[str, tuple[str, ...]]


def access_to(server: Server, context: ProbeContext, *, connect_seconds: float, statement_seconds: float) -> Access:
    """Put together how to reach a server, with its password; raises MeasureError where that cannot be looked up."""
    if server.password_from == OWN:
        own = _own_access(server, context.own_url)
        return replace(own, connect_seconds=connect_seconds, statement_seconds=statement_seconds)
    try:
        password = password_of(server.password_from, context.secrets) if server.password_from else None
    except CapacityError as error:
        raise MeasureError(FailureKind.CREDENTIAL, str(error).rstrip(".")) from None
    for name in ("tls_ca", "tls_certificate", "tls_key", "server_public_key"):
        path = getattr(server, name)
        if path is not None and not Path(path).exists():
            raise MeasureError(FailureKind.SETUP, f"the file {path}, its `{name}`, is missing")
    return Access(
        host=server.host,
        port=server.port or engine_named(server.engine).default_port,
        username=server.username,
        database=server.database,
        password=password,
        tls=server.tls or TLS_VERIFY_FULL,
        tls_ca=server.tls_ca,
        tls_certificate=server.tls_certificate,
        tls_key=server.tls_key,
        server_public_key=server.server_public_key,
        sizing=server.sizing or FILES,
        connect_seconds=connect_seconds,
        statement_seconds=statement_seconds,
    )


def host_of(url: URL) -> str:
    """Return the host or socket folder that a URL of our own database names."""
    host = url.query.get("host") or url.host or "localhost"
    return host if isinstance(host, str) else host[0]


def _own_access(server: Server, url: URL) -> Access:
    """Reach the server that holds the capacity tables in the way they are reached."""
    query = {name: str(value) for name, value in url.query.items()}
    return Access(
        host=host_of(url),
        port=url.port or engine_named(server.engine).default_port,
        username=url.username,
        database=url.database,
        password=url.password,
        tls=query.get("sslmode", "prefer"),
        tls_ca=query.get("sslrootcert"),
        tls_certificate=query.get("sslcert"),
        tls_key=query.get("sslkey"),
        sizing=server.sizing or FILES,
        is_own=True,
    )


def _limits_of(engine: EngineAdapter, connection: Any, access: Access, names: Sequence[str]) -> Limits:
    """Ask for limits; whatever goes wrong, sizes are known already and stay."""
    try:
        return engine.limits(connection, access, names)
    except Exception as error:  # noqa: BLE001 -- as in `_measure`
        known = error if isinstance(error, MeasureError) else _explained(engine, error)
        return Limits(unknown=str(known.without(access.password)))


def _parts_of(engine: EngineAdapter, connection: Any, access: Access, scope: PartScope) -> Iterator[ServerPart]:
    """Ask for what lies beside the databases, kind by kind; one that is not known says why."""
    for kind, source in engine.part_sources.items():
        try:
            yield from tuple(source.ask(connection, scope))
        except Exception as error:  # noqa: BLE001 -- as in `_measure`
            known = error if isinstance(error, MeasureError) else _explained(engine, error)
            if known.kind is FailureKind.RIGHTS:
                known = MeasureError(known.kind, f"its login may not see it: {source.right} is missing")
            yield ServerPart(kind, detail=str(known.without(access.password)))


def _objects_of(engine: EngineAdapter, connection: Any, access: Access, names: Sequence[str]) -> Objects:
    """Ask for tables and indexes; whatever goes wrong, sizes and limits are known already and stay."""
    try:
        found = engine.objects(connection, access, names)
        # What failed for one database is text already.
        failed = [MeasureError(FailureKind.UNEXPECTED, reason) for reason in found.unknown]
        return replace(found, unknown=tuple(one.without(access.password).reason for one in failed))
    except Exception as error:  # noqa: BLE001 -- as in `_measure`
        known = error if isinstance(error, MeasureError) else _explained(engine, error)
        return Objects(unknown=(known.without(access.password).reason,))


def timed_out(server: Server, seconds: float, *, connected: bool) -> MeasureError:
    """Return the error of an exceeded time limit; drivers word it differently, some of them wrongly."""
    if not connected:
        return MeasureError(
            FailureKind.TIMEOUT,
            f"no answer to the connection within {seconds:.0f} s; perhaps something else listens there",
        )
    cheaper = STATISTICS in engine_named(server.engine).sizings and server.sizing != STATISTICS
    advice = "; `sizing = statistics` is cheaper" if cheaper else ""
    return MeasureError(FailureKind.TIMEOUT, f"no sizes within {seconds:.0f} s{advice}")


def _explained(engine: EngineAdapter, error: Exception) -> MeasureError:
    known = engine.explained(error)
    if known is not None:
        return known
    if isinstance(error, TimeoutError):
        return MeasureError(FailureKind.TIMEOUT, first_line(error))
    if isinstance(error, FileNotFoundError | PermissionError):
        return MeasureError(FailureKind.SETUP, f"a file of its certificates cannot be read: {first_line(error)}")
    if isinstance(error, OSError):
        return MeasureError(FailureKind.UNREACHABLE, first_line(error))
    return MeasureError(FailureKind.UNEXPECTED, f"{type(error).__name__}: {first_line(error)}")


# The default; a server that needed longer before, or failed, gets longer.
CONNECT_SECONDS = 5.0
LONGEST_CONNECT_SECONDS = 60.0
# For a server that was never measured.
STATEMENT_SECONDS = 300.0
# For what is asked after the sizes: a file system that hangs would keep them waiting.
LIMITS_SECONDS = 20.0
# For what is asked after these, tables and indexes of every database.
OBJECTS_SECONDS = 600.0
# How much longer than ever before a server may take: this factor, and at least these seconds.
SLOWER_BY = 5
SHORTEST_STATEMENT_SECONDS = 30.0
LONGEST_STATEMENT_SECONDS = 3600.0
MOST_DOUBLINGS = 7
# A server keeps its worker for twice its usual time, at least this long.
PATIENCE_SECONDS = 1.0
# Connected ahead or waited for beside the working ones, at most this many times their number: threads and sockets
# are finite.
BESIDE_PER_WORKER = 7
# Connected and waiting, at most this many per worker: a connection should not be idle for long.
READY_PER_WORKER = 4


@dataclass(frozen=True)
class ProbeHistory:
    """How measuring a server went on the days before."""

    usual_seconds: float | None = None
    usual_connect_seconds: float | None = None
    failed_last: bool = False
    timeouts: int = 0
    """How often in a row it exceeded its time limit; each time doubles the limit."""

    def connect_seconds(self, usually: float) -> float:
        """How long connecting may take."""
        longer = max(usually * (2 if self.failed_last else 1), (self.usual_connect_seconds or 0.0) * SLOWER_BY)
        return min(longer, LONGEST_CONNECT_SECONDS)

    @property
    def statement_seconds(self) -> float:
        """How long measuring it may take."""
        if self.usual_seconds is None:
            enough = STATEMENT_SECONDS
        else:
            enough = max(self.usual_seconds * SLOWER_BY, SHORTEST_STATEMENT_SECONDS)
        return min(enough * float(2 ** min(self.timeouts, MOST_DOUBLINGS)), LONGEST_STATEMENT_SECONDS)

    @property
    def patience_seconds(self) -> float:
        """How long it keeps its worker."""
        return max((self.usual_seconds or 0.0) * 2, PATIENCE_SECONDS)


@dataclass(frozen=True)
class Task:
    """A server to be measured, and its probe history."""

    instance_id: int
    server: Server
    history: ProbeHistory = field(default_factory=ProbeHistory)
    measured_before: bool = False
    """Whether it has a sample of this day already."""
    with_objects: bool = False
    """Whether its tables and indexes are due."""


@dataclass
class _MeasurementInProgress:
    """The stages of a measurement by the monotonic clock, and what is known already; read while it goes on."""

    task: Task
    connect_seconds: float
    go: threading.Event = field(default_factory=threading.Event)
    went: float = 0.0
    given_up: bool = False
    began: float = field(default_factory=time.monotonic)
    connected: float | None = None
    facts: ServerFacts | None = None
    measuring: float | None = None
    sized: float | None = None
    measurement: Measurement | None = None
    """What is known already: what is still asked for, limits or objects, does not take the sizes away."""
    limited: float | None = None
    ended: float | None = None

    @property
    def seconds_to_connect(self) -> float | None:
        return None if self.connected is None else self.connected - self.began

    @property
    def seconds_to_measure(self) -> float | None:
        end = self.sized or self.ended
        return None if self.measuring is None or end is None else end - self.measuring

    @property
    def holds_worker(self) -> bool:
        return self.go.is_set() and time.monotonic() - self.went < self.task.history.patience_seconds

    @property
    def waits(self) -> bool:
        return self.connected is not None and not self.go.is_set()

    def wait(self) -> None:
        """Wait for a worker; raises MeasureError if it was given up."""
        self.go.wait()
        if self.given_up:
            raise _day_over()

    @property
    def limits_overdue(self) -> bool:
        """Whether the sizes are known, and its limits take too long."""
        return self.sized is not None and self.limited is None and time.monotonic() - self.sized > LIMITS_SECONDS

    @property
    def objects_overdue(self) -> bool:
        """Whether sizes and limits are known, and its tables and indexes take too long."""
        return self.limited is not None and time.monotonic() - self.limited > OBJECTS_SECONDS

    @property
    def overdue(self) -> MeasureError | None:
        now = time.monotonic()
        if self.connected is None:
            if now - self.began > self.connect_seconds + GRACE_SECONDS:
                return timed_out(self.task.server, self.connect_seconds, connected=False)
        elif self.sized is not None:
            return None
        elif self.go.is_set() and now - self.went > self.task.history.statement_seconds + GRACE_SECONDS:
            return timed_out(self.task.server, self.task.history.statement_seconds, connected=True)
        return None


def _measure(one: _MeasurementInProgress, access: Access, excluded: Sequence[str], *, with_facts: bool) -> Measurement:
    """Connect, wait for a worker and measure every database; raises MeasureError: nothing is known of it then."""
    connection = None
    engine = engine_named(one.task.server.engine)
    try:
        connection = engine.connect(access)
        one.connected = time.monotonic()
        if with_facts:
            one.facts = engine.facts(connection)
        one.wait()
        one.measuring = time.monotonic()
        measured = engine.sizes(connection, access, excluded)
        one.measurement, one.sized = measured, time.monotonic()
        names = tuple(size.name for size in measured.sizes)
        limits = _limits_of(engine, connection, access, names)
        one.measurement = measured = replace(measured, limits=limits)
        scope = PartScope(names, possible(limits))
        measured = replace(measured, parts=tuple(_parts_of(engine, connection, access, scope)))
        one.measurement, one.limited = measured, time.monotonic()
        if not one.task.with_objects:
            return measured
        return replace(measured, objects=_objects_of(engine, connection, access, names))
    except Exception as error:  # noqa: BLE001 -- see below
        # Drivers raise what they like, down to errors of the operating system; one server's failure stays its own.
        known = error if isinstance(error, MeasureError) else _explained(engine, error)
        if known.kind is FailureKind.TIMEOUT:
            connected = one.connected is not None
            seconds = access.statement_seconds if connected else access.connect_seconds
            known = timed_out(one.task.server, seconds, connected=connected)
        raise known.without(access.password) from None
    finally:
        one.ended = time.monotonic()
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()


@dataclass
class FleetMeasurement:
    """Measures servers in parallel, `workers` at a time."""

    context: ProbeContext
    clock: Clock
    workers: int
    connect_seconds: float = CONNECT_SECONDS
    with_facts: bool = False
    """Whether outcomes have the version and encryption of the server."""

    def outcomes(
        self, tasks: Iterable[Task], may_begin: Callable[[], bool] = lambda: True
    ) -> Iterator[ProbeOutcome | None]:
        """Yield the outcome of each task when it is known, and None from time to time in between.

        Once `may_begin` returns false no further server is measured: the rest fail, because the day is over.
        """
        waiting = sorted(tasks, key=lambda task: not task.history.failed_last)
        waiting.reverse()
        running: dict[int, _MeasurementInProgress] = {}
        done: queue.SimpleQueue[tuple[int, ProbeOutcome]] = queue.SimpleQueue()
        while waiting or running:
            while waiting and self._may_connect(running.values()):
                task = waiting.pop()
                if may_begin():
                    running[task.instance_id] = self._begin(task, done)
                else:
                    yield self._failed(_MeasurementInProgress(task, 0.0), _day_over())
            yield from self._assign_workers(running, may_begin)
            yield from self._finished(running, done)
            yield None

    def _may_connect(self, running: Collection[_MeasurementInProgress]) -> bool:
        ready = sum(one.waits for one in running)
        return len(running) < self.workers * (BESIDE_PER_WORKER + 1) and ready < self.workers * READY_PER_WORKER

    def _assign_workers(
        self, running: dict[int, _MeasurementInProgress], may_begin: Callable[[], bool]
    ) -> Iterator[ProbeOutcome]:
        """Start waiting servers on free workers; yield the outcome of each that can no longer start today."""
        everything = list(running.values())
        free = self.workers - sum(one.holds_worker for one in everything)
        for one in [one for one in everything if one.waits][: max(free, 0)]:
            if may_begin():
                one.went = time.monotonic()
                one.go.set()
            else:
                del running[one.task.instance_id]
                one.given_up = True
                one.go.set()
                yield self._failed(one, _day_over())

    def _begin(self, task: Task, done: queue.SimpleQueue[tuple[int, ProbeOutcome]]) -> _MeasurementInProgress:
        one = _MeasurementInProgress(task, task.history.connect_seconds(self.connect_seconds))

        def work() -> None:
            done.put((task.instance_id, self._outcome(one)))

        # A daemon, which does not keep the process from ending: a driver may hang for ever.
        threading.Thread(target=work, name=f"measure {task.server.name}", daemon=True).start()
        return one

    def _outcome(self, one: _MeasurementInProgress) -> ProbeOutcome:
        server, history = one.task.server, one.task.history
        try:
            access = access_to(
                server, self.context, connect_seconds=one.connect_seconds, statement_seconds=history.statement_seconds
            )
            excluded = self.context.excluded.get(server.engine, ())
            measurement = _measure(one, access, excluded, with_facts=self.with_facts)
            return self._measured(one, measurement)
        except MeasureError as error:
            return self._failed(one, error)
        except Exception as error:  # noqa: BLE001 -- whatever it is, this server failed and the others go on
            return self._failed(one, MeasureError(FailureKind.UNEXPECTED, type(error).__name__))

    def _measured(self, one: _MeasurementInProgress, measurement: Measurement) -> ProbeOutcome:
        """Return the outcome; raises MeasureError as `refuse_impossible`."""
        refuse_impossible(measurement.sizes)
        return replace(
            self._ended(one),
            sizes=measurement.sizes,
            limits=possible(measurement.limits),
            parts=possible_parts(measurement.parts),
            objects=possible_objects(measurement.objects),
            not_counted=measurement.not_counted,
            left_out=measurement.left_out,
        )

    def _failed(self, one: _MeasurementInProgress, error: MeasureError) -> ProbeOutcome:
        keeps_sample = one.task.measured_before
        return replace(self._ended(one), kind=error.kind, reason=error.description, keeps_sample=keeps_sample)

    def _ended(self, one: _MeasurementInProgress) -> ProbeOutcome:
        return ProbeOutcome(
            one.task.instance_id,
            one.task.server.name,
            self.clock.now(),
            facts=one.facts,
            connect_seconds=one.seconds_to_connect,
            measure_seconds=one.seconds_to_measure,
        )

    def _finished(
        self, running: dict[int, _MeasurementInProgress], done: queue.SimpleQueue[tuple[int, ProbeOutcome]]
    ) -> Iterator[ProbeOutcome]:
        """Yield finished outcomes, and fail overdue servers, whose later outcome is ignored."""
        timeout = POLL_SECONDS
        while running:
            try:
                instance_id, outcome = done.get(timeout=timeout) if timeout else done.get_nowait()
            except queue.Empty:
                break
            timeout = 0.0
            if running.pop(instance_id, None) is not None:
                yield outcome
        for instance_id, one in list(running.items()):
            error = one.overdue
            if one.limits_overdue or one.objects_overdue or error is not None:
                del running[instance_id]
                sized = one.measurement
                if sized is not None:
                    yield self._without_the_rest(one, sized)
                elif error is not None:
                    yield self._failed(one, error)

    def _without_the_rest(self, one: _MeasurementInProgress, sized: Measurement) -> ProbeOutcome:
        """Return what is known of a server whose limits, parts or objects take too long."""
        if one.limited is None:
            reason = f"no answer within {LIMITS_SECONDS:.0f} s"
            # What is known of limits once parts are asked for stays.
            limits = Limits(unknown=reason) if sized.limits is NOTHING_KNOWN else sized.limits
            kinds = engine_named(one.task.server.engine).part_sources
            sized = replace(sized, limits=limits, parts=tuple(ServerPart(kind, detail=reason) for kind in kinds))
        else:
            reason = f"no answer within {OBJECTS_SECONDS:.0f} s"
        objects = Objects(unknown=(reason,)) if one.task.with_objects else NO_OBJECTS
        try:
            return self._measured(one, replace(sized, objects=objects))
        except MeasureError as impossible:
            return self._failed(one, impossible)


def _day_over() -> MeasureError:
    return MeasureError(FailureKind.DAY_OVER, "the day was over before its turn came")
