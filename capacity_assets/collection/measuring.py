"""One server, measured once: its password looked up, connected, sized, closed. Every failure has a kind and a reason.

No failure of a server leaves here as anything but a `MeasureError`, and none holds a secret.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL

from capacity_assets.collection.credentials import OWN, SecretFolders, password_of
from capacity_assets.collection.engines.base import (
    FILES,
    STATISTICS,
    TLS_VERIFY_FULL,
    Access,
    EngineAdapter,
    Measurement,
    ServerFacts,
    first_line,
)
from capacity_assets.collection.engines.failures import FailureKind, MeasureError
from capacity_assets.collection.engines.installed import engine_named
from capacity_assets.collection.engines.limits import Limits
from capacity_assets.collection.servers import Server
from capacity_assets.errors import CapacityError

Result = TypeVar("Result")
# What a driver may take beyond its own limits before it is left behind.
GRACE_SECONDS = 3.0
POLL_SECONDS = 0.05


@dataclass
class Stages:
    """When a measurement reached which stage, by the monotonic clock; read by others while it goes on."""

    began: float = field(default_factory=time.monotonic)
    connected: float | None = None
    measuring: float | None = None
    sized: float | None = None
    measurement: Measurement | None = None
    """The sizes, once they are known: what limits may still be asked for does not take them away."""
    ended: float | None = None

    @property
    def connect_seconds(self) -> float | None:
        """How long connecting took, once it is done."""
        return None if self.connected is None else self.connected - self.began

    @property
    def measure_seconds(self) -> float | None:
        """How long measuring the sizes took, once it is done."""
        end = self.sized or self.ended
        return None if self.measuring is None or end is None else end - self.measuring


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


def measure(
    server: Server,
    access: Access,
    excluded: Sequence[str],
    stages: Stages,
    wait: Callable[[], object] = lambda: None,
) -> Measurement:
    """Measure every database of a server; connected, `wait` first. Raises MeasureError: nothing of it is known then."""

    def read_sizes(engine: EngineAdapter, connection: Any) -> Measurement:
        wait()
        stages.measuring = time.monotonic()
        found = engine.sizes(connection, access, excluded)
        stages.measurement, stages.sized = found, time.monotonic()
        return replace(found, limits=_limits_of(engine, connection, access, [size.name for size in found.sizes]))

    return with_connection(server, access, stages, read_sizes)


def _limits_of(engine: EngineAdapter, connection: Any, access: Access, names: Sequence[str]) -> Limits:
    """Ask for limits; whatever goes wrong, sizes are known already and stay."""
    try:
        return engine.limits(connection, access, names)
    except Exception as error:  # noqa: BLE001 -- as in `with_connection`
        known = error if isinstance(error, MeasureError) else _explained(engine, error)
        return Limits(unknown=str(known.without(access.password)))


def facts_of(server: Server, access: Access, stages: Stages) -> ServerFacts:
    """Return version and encryption of the server; raises as `measure`."""
    return with_connection(server, access, stages, lambda engine, connection: engine.facts(connection))


def with_connection(
    server: Server, access: Access, stages: Stages, work: Callable[[EngineAdapter, Any], Result]
) -> Result:
    """Connect, work, close."""
    engine = engine_named(server.engine)
    connection = None
    try:
        connection = engine.connect(access)
        stages.connected = time.monotonic()
        return work(engine, connection)
    except Exception as error:  # noqa: BLE001 -- see below
        # Drivers raise what they like, down to errors of the operating system; one server's failure stays its own.
        known = error if isinstance(error, MeasureError) else _explained(engine, error)
        if known.kind is FailureKind.TIMEOUT:
            connected = stages.connected is not None
            seconds = access.statement_seconds if connected else access.connect_seconds
            known = timed_out(server, seconds, connected=connected)
        raise known.without(access.password) from None
    finally:
        stages.ended = time.monotonic()
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()


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


def given_up_in_time(server: Server, access: Access, stages: Stages, work: Callable[[], Result]) -> Result:
    """Work in a thread, for a driver may hang for ever; raises MeasureError as `work`, or at the time limit."""
    outcome: queue.SimpleQueue[Result | MeasureError] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            outcome.put(work())
        except MeasureError as error:
            outcome.put(error)

    in_background(attempt, f"test {server.name}")
    while True:
        try:
            found = outcome.get(timeout=POLL_SECONDS)
        except queue.Empty:
            connected = stages.connected is not None
            seconds = access.statement_seconds if connected else access.connect_seconds
            if time.monotonic() - (stages.connected or stages.began) > seconds + GRACE_SECONDS:
                raise timed_out(server, seconds, connected=connected) from None
        else:
            if isinstance(found, MeasureError):
                raise found
            return found


def in_background(work: Callable[[], None], name: str) -> None:
    """Work in a daemon thread, which does not keep the process from ending: a driver may hang for ever."""
    threading.Thread(target=work, name=name, daemon=True).start()
