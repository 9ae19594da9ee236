"""Measures servers: each within its time limit, many in parallel, so that no server delays others.

Every failure of a server is a `MeasureError` with a kind and a reason, without secrets. Connections are opened ahead,
so that a server that never answers is noticed while others are measured. A connected server waits for a free worker. If
it takes longer than usual, it frees the worker and continues without one until its time limit. Servers that failed last
time begin first. Drivers block, so each server has a thread; a thread whose driver never returns is abandoned at its
time limit. Values that no table can store are refused; unusual values are not.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL

from capacity_assets.base.errors import CapacityError
from capacity_assets.base.periods import Clock
from capacity_assets.base.units import BYTES_PER_MB, LARGEST_BYTES, LARGEST_MB, printable
from capacity_assets.collection.credentials import OWN, SecretFolders, password_of
from capacity_assets.collection.engines.base import (
    FILES,
    NO_OBJECTS,
    STATISTICS,
    TLS_VERIFY_FULL,
    Access,
    DatabaseObjects,
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
)
from capacity_assets.collection.servers import Server
from capacity_assets.database.measures import PART_KINDS

Answer = TypeVar("Answer")
LONGEST_NAME, LONGEST_DETAIL = 255, 500
# Half of a surrogate pair cannot be encoded in UTF-8.
_NAME = re.compile(rf"[^\0\ud800-\udfff]{{1,{LONGEST_NAME}}}")
# Errors that a value of another type raises: an engine of another package may return one.
NOT_AS_DECLARED = (TypeError, ValueError, AttributeError)
IMPOSSIBLE = Limits(unknown="it reported an impossible limit or name of a volume")
IMPOSSIBLE_OBJECTS = Objects(unknown=("it reported an impossible size or name of a table or index",))


def refuse_impossible(sizes: Sequence[DatabaseSize]) -> None:
    """Raise MeasureError for sizes that no table can store, before they abort a transaction of several servers."""
    names = [size.name for size in sizes]
    wrong = [size.name for size in sizes if not (are_names(size.name) and 0 <= size.size_mb <= LARGEST_MB)]
    # The total of the server has the same maximum as each database.
    if not wrong and sum(size.size_mb for size in sizes) > LARGEST_MB:
        wrong = names
    if wrong or len(set(names)) < len(names):
        raise MeasureError(
            FailureKind.UNEXPECTED, f"it reported an impossible size or name: {(wrong or names)[0]!r:.80}"
        )


def possible_limits(limits: object) -> Limits:
    """Return limits; if no table can store them, they are unknown, and sizes are kept."""
    try:
        return limits if isinstance(limits, Limits) and _limits_fit(limits) else IMPOSSIBLE
    except NOT_AS_DECLARED:
        return IMPOSSIBLE


def possible_objects(objects: object) -> Objects:
    """Return objects; if no table can store them, they are unknown, and sizes are kept."""
    try:
        return objects if isinstance(objects, Objects) and all(map(_fit, objects.databases)) else IMPOSSIBLE_OBJECTS
    except NOT_AS_DECLARED:
        return IMPOSSIBLE_OBJECTS


def possible_parts(parts: Sequence[ServerPart]) -> tuple[ServerPart, ...]:
    """Return parts; if no table can store a size, it is unknown; a part with an impossible name is left out."""
    return tuple({(part.kind, part.name): part for part in map(_possible_part, parts) if part is not None}.values())


def _limits_fit(limits: Limits) -> bool:
    volumes = [volume.name for volume in limits.volumes]
    databases = [ceiling.database for ceiling in limits.ceilings]
    places = [name for ceiling in limits.ceilings for name in ceiling.volumes or ()]
    within = [(size, disk.total_bytes) for disk in limits.volumes for size in (disk.free_bytes, disk.used_bytes or 0)]
    return (
        are_names(*volumes, *databases, *places)
        and len(set(volumes)) == len(volumes)
        and len(set(databases)) == len(databases)
        and all(0 <= size <= total <= LARGEST_BYTES for size, total in within)
        and all(
            0 <= ceiling.limit_bytes <= LARGEST_BYTES for ceiling in limits.ceilings if ceiling.limit_bytes is not None
        )
    )


def _fit(database: DatabaseObjects) -> bool:
    keys = {(item.kind, item.schema, item.table, item.name) for item in database.largest}
    sizes = [database.other_bytes, *(item.size_bytes for item in database.largest)]
    values = (value for item in database.largest for value in (item.index_bytes, item.free_bytes, item.written_rows))
    further = [value for value in values if value is not None]
    names = [name for item in database.largest for name in (item.schema, item.table) if name]
    return (
        len(keys) == len(database.largest)
        and are_names(database.database, *names, *(item.name for item in database.largest))
        and min([*sizes, *further]) >= 0
        and max(sum(sizes), *further, 0) <= LARGEST_BYTES
    )


def _possible_part(part: ServerPart) -> ServerPart | None:
    try:
        is_named = part.kind in PART_KINDS and (not part.name or are_names(part.name))
        is_placed = part.volume is None or are_names(part.volume)
        is_sized = part.size_bytes is None or 0 <= int(part.size_bytes) <= LARGEST_BYTES
        detail = None if part.detail is None else printable(part.detail)[:LONGEST_DETAIL]
    except NOT_AS_DECLARED:
        return None
    if is_named and not (is_placed and is_sized):
        return ServerPart(part.kind, part.name, detail="it reported an impossible size or volume")
    return replace(part, detail=detail) if is_named else None


def are_names(*names: object) -> bool:
    """Whether the columns of names can store each of them."""
    return all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)


@dataclass(frozen=True, kw_only=True)
class ProbeOutcome(Measurement):
    """The outcome of one server: the measured values or a failure, and the duration."""

    instance_id: int
    server: str
    ended_at: datetime
    kind: FailureKind | None = None
    reason: str | None = None
    advice: str = ""
    connect_seconds: float | None = None
    measure_seconds: float | None = None
    facts: ServerFacts | None = None
    measured_before: bool = False
    """Whether the server has a sample from an earlier run of the day."""

    @property
    def keeps_sample(self) -> bool:
        """Whether the server failed, but has a sample from an earlier run of the day, which is kept."""
        return self.measured_before and not self.collected

    @property
    def collected(self) -> bool:
        """Whether the server was measured."""
        return self.kind is None

    @property
    def explanation(self) -> str | None:
        """The reason of a failure and the advice, in sentences; None: it was measured."""
        if self.reason is None:
            return None
        sentence = self.reason if self.reason.endswith(".") else f"{self.reason}."
        return f"{sentence} {self.advice}" if self.advice else sentence

    @property
    def total_size_mb(self) -> int:
        """The sum of its databases, MiB, rounded once as the stored total."""
        sizes = (size.size_mb * BYTES_PER_MB if size.size_bytes is None else size.size_bytes for size in self.sizes)
        return sum(sizes) // BYTES_PER_MB

    @property
    def unknown_parts(self) -> list[str]:
        """The parts whose size is unknown, and why."""
        return [f"{PART_KINDS[part.kind].title}: {part.detail}" for part in self.parts if part.size_bytes is None]


# How much longer than its own limits a driver may take before it is abandoned.
GRACE_SECONDS = 3.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class ProbeContext:
    """The settings of measuring: places of passwords, our own database, excluded databases."""

    secrets: SecretFolders
    own_url: URL
    excluded: dict[str, tuple[str, ...]]


def access_to(server: Server, context: ProbeContext, *, connect_seconds: float, statement_seconds: float) -> Access:
    """Return how to reach a server, with its password; raises MeasureError if the password cannot be read."""
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
    known = {
        attribute.name: getattr(server, attribute.name)
        for attribute in fields(Access)
        if getattr(server, attribute.name, None) is not None
    }
    defaults = {"port": engine_named(server.engine).default_port, "username": None, "database": None}
    seconds = {"connect_seconds": connect_seconds, "statement_seconds": statement_seconds}
    return Access(**{**defaults, "tls": TLS_VERIFY_FULL, **known, "password": password, **seconds})


def host_of(url: URL) -> str:
    """Return the host, or the folder of the socket, in a URL of our own database."""
    host = url.query.get("host") or url.host or "localhost"
    return host if isinstance(host, str) else host[0]


def _own_access(server: Server, url: URL) -> Access:
    """Return the connection settings of the server of the capacity database, which are our own."""
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


@dataclass
class _Session:
    """A connection to a server for questions that may remain unanswered."""

    engine: EngineAdapter
    access: Access
    connection: Any = None

    def answer(self, ask: Callable[..., Answer], *arguments: object, seconds: float) -> Answer:
        """Return what `ask(connection, *arguments)` returns; raises MeasureError for any error.

        If a query takes too long, it is abandoned with its connection, and the next one opens another connection.
        """
        connection, self.connection = self.connection, None
        future: Future[tuple[Any, Answer | MeasureError]] = Future()

        def work() -> None:
            outcome: Answer | MeasureError
            opened = connection
            try:
                opened = self.engine.connect(self.access) if opened is None else opened
                outcome = ask(opened, *arguments)
            except Exception as error:  # noqa: BLE001 -- as in `_measure`
                outcome = self.engine.failure(error)
            if future.set_running_or_notify_cancel():
                future.set_result((opened, outcome))
            else:
                _close(opened)

        threading.Thread(target=work, name=threading.current_thread().name, daemon=True).start()
        try:
            self.connection, outcome = future.result(seconds)
        except TimeoutError:
            if future.cancel():
                raise MeasureError(FailureKind.TIMEOUT, f"no answer within {seconds:.0f} s") from None
            self.connection, outcome = future.result()
        if not isinstance(outcome, MeasureError):
            return outcome
        if outcome.kind in {FailureKind.TIMEOUT, FailureKind.BROKEN_OFF}:
            self.close()
        raise outcome.without(self.access.password)

    def hidden(self, reason: str) -> str:
        """Return the text of a reason without the password, shortened."""
        return MeasureError(FailureKind.UNEXPECTED, reason).without(self.access.password).reason

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        _close(self.connection)
        self.connection = None


def _close(connection: Any) -> None:
    if connection is not None:
        with contextlib.suppress(Exception):
            connection.close()


def _with_used(session: _Session, sizes: tuple[DatabaseSize, ...]) -> tuple[tuple[DatabaseSize, ...], tuple[str, ...]]:
    """Return the sizes with their used space as far as it is known, and the reasons why the rest is unknown."""
    try:
        used = session.answer(session.engine.used, session.access, sizes, seconds=ANSWER_SECONDS)
    except MeasureError as error:
        return sizes, (error.reason,)
    known = {name: used_bytes for name, used_bytes in used.used_bytes.items() if used_bytes is not None}
    return (
        tuple(
            database.with_used(known[database.name], session.engine.whole_mb) if database.name in known else database
            for database in sizes
        ),
        tuple(map(session.hidden, used.unknown)),
    )


def _limits_of(session: _Session, names: Sequence[str]) -> Limits:
    engine = session.engine
    try:
        limits = possible_limits(session.answer(engine.limits, session.access, names, seconds=ANSWER_SECONDS))
        return replace(limits, fills_files=engine.fills_files)
    except MeasureError as error:
        return Limits(unknown=error.reason)


def _parts_of(session: _Session, scope: PartScope) -> Iterator[ServerPart]:
    """Yield the parts; of a kind that is unknown, yield the reason."""
    deadline = time.monotonic() + PARTS_SECONDS
    for kind, source in session.engine.part_sources.items():
        seconds = min(ANSWER_SECONDS, deadline - time.monotonic())
        if seconds <= 0:
            yield ServerPart(kind, detail=f"not measured: other kinds took {PARTS_SECONDS:.0f} s")
            continue
        try:
            yield from session.answer(source.measure, scope, seconds=seconds)
        except MeasureError as error:
            is_refused = error.kind is FailureKind.RIGHTS
            reason = f"its login may not see it: {source.right} is missing" if is_refused else error.reason
            yield ServerPart(kind, detail=reason)


def _objects_of(session: _Session, names: Sequence[str]) -> Objects:
    try:
        objects = session.answer(session.engine.objects, session.access, names, seconds=OBJECTS_SECONDS)
    except MeasureError as error:
        return Objects(unknown=(error.reason,))
    return replace(objects, unknown=tuple(map(session.hidden, objects.unknown)))


def timeout_error(server: Server, seconds: float, *, connected: bool) -> MeasureError:
    """Return the error for an exceeded time limit; drivers word it in different ways, some of them wrong."""
    if not connected:
        return MeasureError(
            FailureKind.TIMEOUT,
            f"no answer to the connection within {seconds:.0f} s; another program may listen on its port",
        )
    cheaper = STATISTICS in engine_named(server.engine).sizings and server.sizing != STATISTICS
    advice = "; `sizing = statistics` is cheaper" if cheaper else ""
    return MeasureError(FailureKind.TIMEOUT, f"no sizes within {seconds:.0f} s{advice}")


# Limit of connecting; a server that took longer before, or failed, gets more.
CONNECT_SECONDS = 5.0
LONGEST_CONNECT_SECONDS = 60.0
# Limit of measuring a server that was never measured before.
STATEMENT_SECONDS = 300.0
# Time limit of each query after the sizes, which are stored only after it: a hanging file system never responds. All
# kinds of parts together have a limit too.
ANSWER_SECONDS = 20.0
PARTS_SECONDS = 60.0
# Limit of reading the tables and indexes of all databases.
OBJECTS_SECONDS = 600.0
# A server may take this many times as long as usual, and always SHORTEST_STATEMENT_SECONDS.
SLOWER_BY = 5
SHORTEST_STATEMENT_SECONDS = 30.0
LONGEST_STATEMENT_SECONDS = 3600.0
MOST_DOUBLINGS = 7
# A server keeps its worker for twice its usual time, and at least this long.
PATIENCE_SECONDS = 1.0
# How many servers without a worker, connected ahead or late, are allowed per worker: threads and sockets are finite.
BESIDE_PER_WORKER = 7
# How many connected servers may wait per worker: no connection should be idle for long.
READY_PER_WORKER = 4


@dataclass(frozen=True)
class ProbeHistory:
    """The results of measuring a server on earlier days."""

    usual_seconds: float | None = None
    usual_connect_seconds: float | None = None
    failed_last: bool = False
    timeouts: int = 0
    """How often in a row the time limit was exceeded; each time doubles it."""

    def connect_seconds(self, usually: float) -> float:
        """The time limit for connecting."""
        longer = max(usually * (2 if self.failed_last else 1), (self.usual_connect_seconds or 0.0) * SLOWER_BY)
        return min(longer, LONGEST_CONNECT_SECONDS)

    @property
    def statement_seconds(self) -> float:
        """The time limit for measuring."""
        if self.usual_seconds is None:
            enough = STATEMENT_SECONDS
        else:
            enough = max(self.usual_seconds * SLOWER_BY, SHORTEST_STATEMENT_SECONDS)
        return min(enough * float(2 ** min(self.timeouts, MOST_DOUBLINGS)), LONGEST_STATEMENT_SECONDS)

    @property
    def patience_seconds(self) -> float:
        """How long the server keeps its worker."""
        return max((self.usual_seconds or 0.0) * 2, PATIENCE_SECONDS)


@dataclass(frozen=True)
class ServerToMeasure:
    """A server to be measured."""

    instance_id: int
    server: Server
    history: ProbeHistory = field(default_factory=ProbeHistory)
    measured_before: bool = False
    """Whether it already has a sample of this day."""
    with_objects: bool = False
    """Whether its tables and indexes are due."""


@dataclass
class _MeasurementInProgress:
    """The stages of a measurement by the monotonic clock; other threads read them during the measurement."""

    task: ServerToMeasure
    connect_seconds: float
    go: threading.Event = field(default_factory=threading.Event)
    went: float = 0.0
    given_up: bool = False
    began: float = field(default_factory=time.monotonic)
    connected: float | None = None
    facts: ServerFacts | None = None
    measuring: float | None = None
    sized: float | None = None
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
        """Wait for a worker; raises MeasureError if the server is given up."""
        self.go.wait()
        if self.given_up:
            raise _day_over()

    @property
    def overdue(self) -> MeasureError | None:
        now = time.monotonic()
        if self.connected is None:
            if now - self.began > self.connect_seconds + GRACE_SECONDS:
                return timeout_error(self.task.server, self.connect_seconds, connected=False)
        elif self.sized is not None:
            return None
        elif self.go.is_set() and now - self.went > self.task.history.statement_seconds + GRACE_SECONDS:
            return timeout_error(self.task.server, self.task.history.statement_seconds, connected=True)
        return None


def _measure(
    measurement: _MeasurementInProgress, access: Access, excluded: Sequence[str], *, with_facts: bool
) -> Measurement:
    """Connect, wait for a worker, and measure every database; raises MeasureError."""
    engine = engine_named(measurement.task.server.engine)
    session = _Session(engine, access)
    try:
        session.connection = connection = engine.connect(access)
        measurement.connected = time.monotonic()
        if with_facts:
            measurement.facts = engine.facts(connection)
        measurement.wait()
        measurement.measuring = time.monotonic()
        measured = engine.sizes(connection, access, excluded)
        measurement.sized = time.monotonic()
        refuse_impossible(measured.sizes)
        names = tuple(size.name for size in measured.sizes)
        sizes, unknown_used = _with_used(session, measured.sizes)
        limits = _limits_of(session, names)
        parts = possible_parts(tuple(_parts_of(session, PartScope(names, limits))))
        objects = possible_objects(_objects_of(session, names)) if measurement.task.with_objects else NO_OBJECTS
        return replace(measured, sizes=sizes, unknown_used=unknown_used, limits=limits, parts=parts, objects=objects)
    except Exception as error:  # noqa: BLE001 -- see below
        # Drivers may raise any error, including those of the operating system; other servers are not affected.
        known = engine.failure(error)
        if known.kind is FailureKind.TIMEOUT:
            connected = measurement.connected is not None
            seconds = access.statement_seconds if connected else access.connect_seconds
            known = timeout_error(measurement.task.server, seconds, connected=connected)
        raise known.without(access.password) from None
    finally:
        measurement.ended = time.monotonic()
        session.close()


@dataclass
class FleetMeasurement:
    """Measures servers in parallel, `workers` at a time."""

    context: ProbeContext
    clock: Clock
    workers: int
    connect_seconds: float = CONNECT_SECONDS
    with_facts: bool = False
    """Whether outcomes include the version and encryption of the server."""

    def outcomes(
        self, tasks: Iterable[ServerToMeasure], may_begin: Callable[[], bool] = lambda: True
    ) -> Iterator[ProbeOutcome | None]:
        """Yield the outcome of each task as soon as it is known, and sometimes None in between.

        Once `may_begin` returns false, the remaining servers fail, because the day is over.
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
                    yield self._failure_of(_MeasurementInProgress(task, 0.0), _day_over())
            yield from self._assign_workers(running, may_begin)
            yield from self._finished_outcomes(running, done)
            yield None

    def _may_connect(self, running: Collection[_MeasurementInProgress]) -> bool:
        ready = sum(measurement.waits for measurement in running)
        return len(running) < self.workers * (BESIDE_PER_WORKER + 1) and ready < self.workers * READY_PER_WORKER

    def _assign_workers(
        self, running: dict[int, _MeasurementInProgress], may_begin: Callable[[], bool]
    ) -> Iterator[ProbeOutcome]:
        """Give free workers to waiting servers; yield the outcome of servers that can no longer begin today."""
        everything = list(running.values())
        free = self.workers - sum(measurement.holds_worker for measurement in everything)
        for measurement in [running_measurement for running_measurement in everything if running_measurement.waits][
            : max(free, 0)
        ]:
            if may_begin():
                measurement.went = time.monotonic()
                measurement.go.set()
            else:
                del running[measurement.task.instance_id]
                measurement.given_up = True
                measurement.go.set()
                yield self._failure_of(measurement, _day_over())

    def _begin(
        self, task: ServerToMeasure, done: queue.SimpleQueue[tuple[int, ProbeOutcome]]
    ) -> _MeasurementInProgress:
        measurement = _MeasurementInProgress(task, task.history.connect_seconds(self.connect_seconds))

        def work() -> None:
            done.put((task.instance_id, self._outcome(measurement)))

        # A daemon thread does not keep the process alive: a driver may hang forever.
        threading.Thread(target=work, name=f"measure {task.server.name}", daemon=True).start()
        return measurement

    def _outcome(self, measurement: _MeasurementInProgress) -> ProbeOutcome:
        server, history = measurement.task.server, measurement.task.history
        try:
            access = access_to(
                server,
                self.context,
                connect_seconds=measurement.connect_seconds,
                statement_seconds=history.statement_seconds,
            )
            excluded = self.context.excluded.get(server.engine, ())
            measured = _measure(measurement, access, excluded, with_facts=self.with_facts)
            return self._outcome_of(measurement, measured)
        except MeasureError as error:
            return self._failure_of(measurement, error)
        except Exception as error:  # noqa: BLE001 -- other servers are not affected
            return self._failure_of(measurement, MeasureError(FailureKind.UNEXPECTED, type(error).__name__))

    def _failure_of(self, measurement: _MeasurementInProgress, error: MeasureError) -> ProbeOutcome:
        failed = self._outcome_of(measurement, Measurement())
        return replace(failed, kind=error.kind, reason=error.reason, advice=error.advice)

    def _outcome_of(self, measurement: _MeasurementInProgress, measured: Measurement) -> ProbeOutcome:
        return ProbeOutcome(
            **vars(measured),
            instance_id=measurement.task.instance_id,
            server=measurement.task.server.name,
            ended_at=self.clock.now(),
            facts=measurement.facts,
            connect_seconds=measurement.seconds_to_connect,
            measure_seconds=measurement.seconds_to_measure,
            measured_before=measurement.task.measured_before,
        )

    def _finished_outcomes(
        self, running: dict[int, _MeasurementInProgress], done: queue.SimpleQueue[tuple[int, ProbeOutcome]]
    ) -> Iterator[ProbeOutcome]:
        """Yield finished outcomes, and failures of overdue servers, whose later outcome is ignored."""
        timeout = POLL_SECONDS
        while running:
            try:
                instance_id, outcome = done.get(timeout=timeout) if timeout else done.get_nowait()
            except queue.Empty:
                break
            timeout = 0.0
            if running.pop(instance_id, None) is not None:
                yield outcome
        for instance_id, measurement in list(running.items()):
            error = measurement.overdue
            if error is not None:
                del running[instance_id]
                yield self._failure_of(measurement, error)


def _day_over() -> MeasureError:
    return MeasureError(FailureKind.DAY_OVER, "the day ended before it was measured")
