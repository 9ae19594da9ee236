"""Measures many servers in parallel, within limits, so that no server delays the others.

Connections are opened ahead, so that a server that never answers is detected while others are measured. A connected
server waits for a free worker. One that takes longer than usual frees its worker and is waited for beside the others
until its time limit. Servers that failed last time begin first. Drivers block, hence threads; a thread whose driver
never returns is abandoned at its time limit. Storing an outcome is the caller's task.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from capacity_assets.clock import Clock
from capacity_assets.collection.engines.base import Measurement
from capacity_assets.collection.engines.failures import FailureKind, MeasureError
from capacity_assets.collection.engines.limits import Limits
from capacity_assets.collection.measuring import (
    GRACE_SECONDS,
    POLL_SECONDS,
    ProbeContext,
    Stages,
    access_to,
    in_background,
    measure,
    timed_out,
)
from capacity_assets.collection.plausibility import possible, refuse_impossible
from capacity_assets.collection.results import ProbeOutcome
from capacity_assets.collection.servers import Server

# The default; a server that needed longer before, or failed, gets longer.
CONNECT_SECONDS = 5.0
LONGEST_CONNECT_SECONDS = 60.0
# For a server that was never measured.
STATEMENT_SECONDS = 300.0
# For what is asked after the sizes: a file system that hangs would keep them waiting.
LIMITS_SECONDS = 20.0
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


@dataclass
class _Running:
    """A measurement in progress."""

    task: Task
    connect_seconds: float
    stages: Stages = field(default_factory=Stages)
    go: threading.Event = field(default_factory=threading.Event)
    went: float = 0.0
    given_up: bool = False

    @property
    def holds_worker(self) -> bool:
        """Whether it occupies a worker."""
        return self.go.is_set() and time.monotonic() - self.went < self.task.history.patience_seconds

    @property
    def waits(self) -> bool:
        """Whether it is connected and waits for a worker."""
        return self.stages.connected is not None and not self.go.is_set()

    def take_worker(self) -> None:
        """Begin to measure."""
        self.went = time.monotonic()
        self.go.set()

    def give_up(self) -> None:
        """Have its connection closed without measuring."""
        self.given_up = True
        self.go.set()

    def wait(self) -> None:
        """Wait for a worker; raises MeasureError if it was given up."""
        self.go.wait()
        if self.given_up:
            raise _day_over()

    @property
    def limits_overdue(self) -> bool:
        """Whether the sizes are known, and its limits take too long."""
        return self.stages.sized is not None and time.monotonic() - self.stages.sized > LIMITS_SECONDS

    @property
    def overdue(self) -> MeasureError | None:
        """The error if its driver has exceeded the time limit."""
        now = time.monotonic()
        if self.stages.connected is None:
            if now - self.stages.began > self.connect_seconds + GRACE_SECONDS:
                return timed_out(self.task.server, self.connect_seconds, connected=False)
        elif self.go.is_set() and now - self.went > self.task.history.statement_seconds + GRACE_SECONDS:
            return timed_out(self.task.server, self.task.history.statement_seconds, connected=True)
        return None


@dataclass
class FleetMeasurement:
    """Measures servers in parallel, `workers` at a time."""

    context: ProbeContext
    clock: Clock
    workers: int
    connect_seconds: float = CONNECT_SECONDS

    def outcomes(
        self, tasks: Iterable[Task], may_begin: Callable[[], bool] = lambda: True
    ) -> Iterator[ProbeOutcome | None]:
        """Yield the outcome of each task when it is known, and None from time to time in between.

        Once `may_begin` returns false no further server is measured: the rest fail, because the day is over.
        """
        waiting = sorted(tasks, key=lambda task: not task.history.failed_last)
        waiting.reverse()
        running: dict[int, _Running] = {}
        done: queue.SimpleQueue[tuple[int, ProbeOutcome]] = queue.SimpleQueue()
        while waiting or running:
            while waiting and self._may_connect(running.values()):
                task = waiting.pop()
                if may_begin():
                    running[task.instance_id] = self._begin(task, done)
                else:
                    yield self._failed(task, Stages(), _day_over())
            yield from self._assign_workers(running, may_begin)
            yield from self._finished(running, done)
            yield None

    def _may_connect(self, running: Collection[_Running]) -> bool:
        ready = sum(one.waits for one in running)
        return len(running) < self.workers * (BESIDE_PER_WORKER + 1) and ready < self.workers * READY_PER_WORKER

    def _assign_workers(self, running: dict[int, _Running], may_begin: Callable[[], bool]) -> Iterator[ProbeOutcome]:
        """Start waiting servers on free workers; yield the outcome of each that can no longer start today."""
        everything = list(running.values())
        free = self.workers - sum(one.holds_worker for one in everything)
        for one in [one for one in everything if one.waits][: max(free, 0)]:
            if may_begin():
                one.take_worker()
            else:
                del running[one.task.instance_id]
                one.give_up()
                yield self._failed(one.task, one.stages, _day_over())

    def _begin(self, task: Task, done: queue.SimpleQueue[tuple[int, ProbeOutcome]]) -> _Running:
        one = _Running(task, task.history.connect_seconds(self.connect_seconds))

        def work() -> None:
            done.put((task.instance_id, self._outcome(one)))

        in_background(work, f"measure {task.server.name}")
        return one

    def _outcome(self, one: _Running) -> ProbeOutcome:
        server, history = one.task.server, one.task.history
        try:
            access = access_to(
                server,
                self.context,
                connect_seconds=one.connect_seconds,
                statement_seconds=history.statement_seconds,
            )
            excluded = self.context.excluded.get(server.engine, ())
            found = measure(server, access, excluded, one.stages, wait=one.wait)
            return self._measured(one, found)
        except MeasureError as error:
            return self._failed(one.task, one.stages, error)
        except Exception as error:  # noqa: BLE001 -- whatever it is, this server failed and the others go on
            return self._failed(one.task, one.stages, MeasureError(FailureKind.UNEXPECTED, type(error).__name__))

    def _measured(self, one: _Running, found: Measurement) -> ProbeOutcome:
        """Return the outcome; raises MeasureError as `refuse_impossible`."""
        refuse_impossible(found.sizes)
        return ProbeOutcome(
            one.task.instance_id,
            one.task.server.name,
            self.clock.now(),
            sizes=found.sizes,
            limits=possible(found.limits),
            not_counted=found.not_counted,
            left_out=found.left_out,
            connect_seconds=one.stages.connect_seconds,
            measure_seconds=one.stages.measure_seconds,
        )

    def _failed(self, task: Task, stages: Stages, error: MeasureError) -> ProbeOutcome:
        return ProbeOutcome(
            task.instance_id,
            task.server.name,
            self.clock.now(),
            kind=error.kind,
            reason=error.description,
            keeps_sample=task.measured_before,
            connect_seconds=stages.connect_seconds,
            measure_seconds=stages.measure_seconds,
        )

    def _finished(
        self, running: dict[int, _Running], done: queue.SimpleQueue[tuple[int, ProbeOutcome]]
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
            if one.limits_overdue or error is not None:
                del running[instance_id]
                sized = one.stages.measurement
                if sized is not None:
                    yield self._without_limits(one, sized)
                elif error is not None:
                    yield self._failed(one.task, one.stages, error)

    def _without_limits(self, one: _Running, sized: Measurement) -> ProbeOutcome:
        unknown = Limits(unknown=f"no answer within {LIMITS_SECONDS:.0f} s")
        try:
            return self._measured(one, replace(sized, limits=unknown))
        except MeasureError as impossible:
            return self._failed(one.task, one.stages, impossible)


def _day_over() -> MeasureError:
    return MeasureError(FailureKind.DAY_OVER, "the day was over before its turn came")
