"""Many servers side by side, simulated on loopback sockets: who waits for whom, and who is given up when."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from capacity_assets.collection import measuring
from capacity_assets.collection.engines.base import (
    Access,
    DatabaseSize,
    EngineAdapter,
    FailureKind,
    Limits,
    MeasureError,
    Measurement,
    ServerFacts,
    engines,
)
from capacity_assets.collection.measuring import (
    FleetMeasurement,
    ProbeContext,
    ProbeHistory,
    ProbeOutcome,
    ServerToMeasure,
)
from capacity_assets.collection.servers import Server
from tests.clocks import fixed_clock
from tests.servers import silent_socket


class Simulated(EngineAdapter):
    """Speaks to a loopback socket: one line is the name of a database and its size."""

    name = "simulated"
    default_port = 1
    system_databases = ()
    verified = False
    grants = ""
    definition = ""

    def connect(self, access: Access) -> socket.socket:
        connection = socket.create_connection((access.host, access.port), timeout=access.connect_seconds)
        try:
            assert connection.recv(1) == b"!"
        except OSError:
            connection.close()
            raise
        return connection

    def sizes(self, connection: socket.socket, access: Access, excluded: Sequence[str]) -> Measurement:  # noqa: ARG002
        connection.settimeout(access.statement_seconds)
        connection.sendall(b"?")
        return Measurement((DatabaseSize("db", int(connection.recv(16))),))

    def facts(self, connection: Any) -> ServerFacts:  # noqa: ARG002
        return ServerFacts("simulated", encrypted=None)

    def explained(self, error: Exception) -> MeasureError | None:  # noqa: ARG002
        return None


class Simulation:
    """Servers behind one listener, each connection answered after a while; counts how many are at work at once."""

    def __init__(self, listener: socket.socket, seconds: float) -> None:
        self.port = int(listener.getsockname()[1])
        self.most_at_once = 0
        self._at_once = 0
        self._seconds = seconds
        self._guard = threading.Lock()
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"!")
            connection.recv(1)
            with self._guard:
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
            time.sleep(self._seconds)
            with self._guard:
                self._at_once -= 1
            connection.sendall(b"7")


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    monkeypatch.setitem(engines(), "simulated", Simulated())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        yield Simulation(listener, seconds=0.02)
        listener.shutdown(socket.SHUT_RDWR)


def tasks(count: int, port: int, first: int = 0, history: ProbeHistory = ProbeHistory()) -> list[ServerToMeasure]:  # noqa: B008 -- frozen
    return [
        ServerToMeasure(number, Server(f"server-{number}", "simulated", "127.0.0.1", port=port, tls="off"), history)
        for number in range(first, first + count)
    ]


def measured(work: list[ServerToMeasure], workers: int, connect_seconds: float = 30) -> list[ProbeOutcome]:
    # By default time enough to connect on a machine that is busy with other tests.
    context = ProbeContext(Path("/nowhere"), make_url("postgresql://localhost/x"), {})
    measurement = FleetMeasurement(context, fixed_clock(), workers, connect_seconds)
    return [outcome for outcome in measurement.outcomes(work) if outcome is not None]


def test_every_server_has_one_outcome_and_no_more_work_at_once_than_there_are_places(simulation: Simulation) -> None:
    outcomes = measured(tasks(60, simulation.port), workers=8)

    assert Counter(outcome.server for outcome in outcomes) == {f"server-{number}": 1 for number in range(60)}
    assert {(outcome.kind, outcome.total_size_mb) for outcome in outcomes} == {(None, 7)}
    assert 1 < simulation.most_at_once <= 8


def test_servers_that_hang_give_their_places_to_those_that_answer(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "PATIENCE_SECONDS", 0.2)
    with silent_socket() as port:
        hanging = tasks(4, port, first=100, history=ProbeHistory(failed_last=True))
        outcomes = measured([*tasks(20, simulation.port), *hanging], workers=2, connect_seconds=1.5)

    # All four began first, two workers were theirs: who answers is done before the first of them is given up.
    assert [outcome.kind for outcome in outcomes] == [None] * 20 + [FailureKind.TIMEOUT] * 4


def test_servers_that_failed_last_begin_first(simulation: Simulation) -> None:
    usual = tasks(10, simulation.port)
    failed = tasks(3, simulation.port, first=100, history=ProbeHistory(usual_seconds=0.1, failed_last=True))

    outcomes = measured([*usual, *failed], workers=1)

    assert {outcome.server for outcome in outcomes[:3]} == {"server-100", "server-101", "server-102"}


def test_a_driver_that_never_returns_is_left_behind(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_self: Simulated, _access: Access) -> socket.socket:
        time.sleep(60)
        raise AssertionError

    monkeypatch.setattr(measuring, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(Simulated, "connect", hang)

    [outcome] = measured(tasks(1, simulation.port), workers=1, connect_seconds=0.3)

    assert outcome.kind is FailureKind.TIMEOUT
    assert "no answer to the connection within 0 s" in str(outcome.reason)


@pytest.mark.parametrize(
    "found_sizes",
    [
        [DatabaseSize("a", -1)],
        [DatabaseSize("a", 2**63)],
        [DatabaseSize("n" * 256, 1)],
        [DatabaseSize("a\0b", 1)],
        [DatabaseSize("a", 1), DatabaseSize("a", 2)],
    ],
)
def test_what_no_table_could_hold_fails_its_server_alone(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch, found_sizes: list[DatabaseSize]
) -> None:
    monkeypatch.setattr(Simulated, "sizes", lambda *_arguments: Measurement(tuple(found_sizes)))

    [outcome] = measured(tasks(1, simulation.port), workers=1)

    assert outcome.kind is FailureKind.UNEXPECTED
    assert "impossible size or name" in str(outcome.reason)


def test_a_reason_that_names_a_relative_path_is_kept_as_it_is(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object) -> Measurement:
        raise MeasureError(FailureKind.RIGHTS, "its login may not read ../base/1")

    monkeypatch.setattr(Simulated, "sizes", refused)

    [outcome] = measured(tasks(1, simulation.port), workers=1)

    advice = "Grant its login the rights that `capacity instances test` lists."
    assert (outcome.reason, outcome.advice) == ("its login may not read ../base/1", advice)
    assert outcome.explanation == f"its login may not read ../base/1. {advice}"


def test_an_error_nobody_foresaw_is_one_servers_failure(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> list[DatabaseSize]:
        raise ZeroDivisionError("a bug in a driver")

    monkeypatch.setattr(Simulated, "sizes", broken)

    [outcome] = measured(tasks(1, simulation.port), workers=1)

    assert (outcome.kind, str(outcome.reason).partition(".")[0]) == (
        FailureKind.UNEXPECTED,
        "ZeroDivisionError: a bug in a driver",
    )


def test_servers_that_wait_for_their_place_when_the_day_ends_are_not_measured(simulation: Simulation) -> None:
    # By default time enough to connect on a machine that is busy with other tests.
    context = ProbeContext(Path("/nowhere"), make_url("postgresql://localhost/x"), {})
    measurement = FleetMeasurement(context, fixed_clock(), 1, 0.5)
    outcomes: list[ProbeOutcome] = []
    for found in measurement.outcomes(tasks(8, simulation.port), may_begin=lambda: not outcomes):
        if found is not None:
            outcomes.append(found)

    assert Counter(outcome.kind for outcome in outcomes) == {None: 1, FailureKind.DAY_OVER: 7}


class Hanging(Simulated):
    """Reports sizes at once, and of its limits nothing for long."""

    def limits(self, connection: socket.socket, access: Access, names: Sequence[str]) -> Limits:  # noqa: ARG002
        time.sleep(5)
        return Limits()


class Wrong(Simulated):
    """Returns limits that are none, as an engine of someone else's may."""

    def limits(self, connection: socket.socket, access: Access, names: Sequence[str]) -> Limits:  # noqa: ARG002
        return None  # type: ignore[return-value]


class Failing(Simulated):
    """Fails where its limits are asked for."""

    def limits(self, connection: socket.socket, access: Access, names: Sequence[str]) -> Limits:  # noqa: ARG002
        raise RuntimeError(access.password)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Hanging, "no answer within 0 s"),
        (Wrong, "it reported an impossible limit or name of a volume"),
        (Failing, "RuntimeError: None"),
    ],
)
def test_whatever_becomes_of_the_limits_sizes_are_kept(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch, engine: type[Simulated], message: str
) -> None:
    monkeypatch.setitem(engines(), "simulated", engine())
    monkeypatch.setattr(measuring, "ANSWER_SECONDS", 0.3)

    [outcome] = measured(tasks(1, simulation.port), workers=1)

    assert outcome.collected
    assert [(size.name, size.size_mb) for size in outcome.sizes] == [("db", 7)]
    assert outcome.limits.unknown == message
