"""What an engine is: a class with a query, found through the entry points `capacity_assets.engines`.

A new engine subclasses `EngineAdapter`, names its entry point and has a test; nothing else knows engines by name.
Here is also what they share: the words for what can go wrong, and how bytes become megabytes.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from capacity_assets.collection.engines.failures import FailureKind, MeasureError
from capacity_assets.collection.engines.limits import NOTHING_KNOWN, Limits
from capacity_assets.storage.size_metrics import PART_SIZES
from capacity_assets.units import BYTES_PER_MB, first_of

PROGRAM = "capacity_assets"
NAMED = 5
# Sizes from the catalogue instead of the files, where reading every file takes too long; or what files take on disk.
FILES, ALLOCATED, STATISTICS = "files", "allocated", "statistics"
# More than any server reports, and small enough for endless responses from many servers at the same time.
MOST_ROWS = 200_000
MOST_BYTES = 32 * 1024 * 1024
# A response is read this much longer than its time limit, because the server should cancel the query itself.
SLACK_SECONDS = 2.0
ROWS_AT_A_TIME = 1000
TLS_OFF, TLS_REQUIRE, TLS_VERIFY_CA, TLS_VERIFY_FULL = "off", "require", "verify-ca", "verify-full"
TLS_MODES = (TLS_OFF, TLS_REQUIRE, TLS_VERIFY_CA, TLS_VERIFY_FULL)
VERIFIED_TLS = (TLS_VERIFY_CA, TLS_VERIFY_FULL)


@dataclass(frozen=True)
class Access:
    """How to reach one server, password included; it never leaves the process, and its text does not show it."""

    host: str
    port: int
    username: str | None
    database: str | None
    password: str | None = field(default=None, repr=False)
    tls: str = TLS_OFF
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    server_public_key: str | None = None
    sizing: str = FILES
    connect_seconds: float = 10.0
    statement_seconds: float = 60.0
    is_own: bool = False
    """Whether it is the server that holds the capacity tables, which is reached as they are."""

    @property
    def socket(self) -> str | None:
        """The host, where it is a path and not a name."""
        return self.host if self.host.startswith("/") else None


@dataclass(frozen=True)
class DatabaseSize:
    """One database: whole MiB, and exact bytes where they are known; parts by their stem in `storage.size_metrics`."""

    name: str
    size_mb: int
    size_bytes: int | None = None
    parts_mb: Mapping[str, int] = field(default_factory=dict)
    parts_bytes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_bytes(
        cls, name: str, size: int, *, whole_mb: Callable[[int], int] | None = None, **parts: int | None
    ) -> DatabaseSize:
        """Keep the exact bytes beside whole MiB, rounded as the engine always was: down, unless told otherwise.

        `parts` are bytes by stem, for example `data_size`; one that the engine does not report is None or left out.
        """
        unknown = set(parts) - {part.stem for part in PART_SIZES}
        if unknown:
            raise TypeError(f"no part of a size is called {', '.join(sorted(unknown))}; see storage/size_metrics.py")
        rounded = whole_mb or floor_mb
        exact = {stem: int(value) for stem, value in parts.items() if value is not None}
        whole = {stem: rounded(value) for stem, value in exact.items()}
        return cls(name, rounded(int(size)), int(size), whole, exact)

    @property
    def values(self) -> tuple[int | None, ...]:
        """What a sample holds of it, in the order of the level: MiB, then bytes; None: not reported."""
        stems = [part.stem for part in PART_SIZES]
        whole, exact = (tuple(map(parts.get, stems)) for parts in (self.parts_mb, self.parts_bytes))
        return (self.size_mb, *whole, self.size_bytes, *exact)


@dataclass(frozen=True)
class Measurement:
    """What a server said: its databases, what it holds that no size is known of, and databases left out on purpose."""

    sizes: tuple[DatabaseSize, ...]
    not_counted: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    limits: Limits = NOTHING_KNOWN


@dataclass(frozen=True)
class ServerFacts:
    """What `capacity instances test` shows beside the sizes."""

    version: str
    encrypted: bool | None


class EngineAdapter(ABC):
    """One kind of database server. Instances hold nothing: one serves all servers of its kind."""

    name: ClassVar[str]
    default_port: ClassVar[int]
    default_database: ClassVar[str | None] = None
    # Left out unless CAPACITY_SYSTEM_DATABASES says otherwise.
    system_databases: ClassVar[tuple[str, ...]]
    sizings: ClassVar[tuple[str, ...]] = (FILES,)
    # Whether the project's own tests measure a real server.
    verified: ClassVar[bool]
    # The least that the login of the collection needs, as statements of this engine.
    grants: ClassVar[str]
    # What is measured, for the reference: sizes, and limits.
    definition: ClassVar[str]
    limits_definition: ClassVar[str] = "none"

    @abstractmethod
    def connect(self, access: Access) -> Any:
        """Open a connection; raises what the driver raises, or MeasureError."""

    @abstractmethod
    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> Measurement:
        """Measure every database for which `is_excluded` is false; raises what the driver raises, or MeasureError."""

    def limits(self, connection: Any, access: Access, names: Sequence[str]) -> Limits:  # noqa: ARG002 -- for subclasses
        """Return what is known of the limits of the measured databases; raises as `sizes`, and then sizes are kept."""
        return Limits(unknown="nothing is asked of this engine")

    @abstractmethod
    def facts(self, connection: Any) -> ServerFacts:
        """Return version and encryption of the server."""

    @abstractmethod
    def explained(self, error: Exception) -> MeasureError | None:
        """Classify an error of the driver; None for errors of another kind."""


@dataclass
class Allowance:
    """How much one connection may receive in total, and the deadline of its current response.

    A socket timeout does not limit a response, because it restarts with every byte. Drivers store everything they
    receive, whether requested or not.
    """

    received_bytes: int = 0
    deadline: float = math.inf

    def begin(self, seconds: float) -> None:
        """Set the deadline for the next response."""
        self.deadline = time.monotonic() + seconds + SLACK_SECONDS

    def take(self, size_bytes: int) -> None:
        """Count bytes received or about to be read; raises MeasureError if there are too many or it is too late."""
        self.received_bytes += size_bytes
        if self.received_bytes > MOST_BYTES:
            raise too_much()
        if time.monotonic() > self.deadline:
            raise MeasureError(FailureKind.TIMEOUT, "its response was not complete in time")


@contextmanager
def closed_on_failure(connection: Any) -> Iterator[None]:
    """Close a connection that is open but could not be prepared."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def rows_of(connection: Any, query: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
    """Execute a query and return its rows; % is itself without parameters. Raises MeasureError: rows have no end."""
    with closing(connection.cursor()) as cursor:
        if parameters is None:
            cursor.execute(query)
        else:
            cursor.execute(query, tuple(parameters))
        rows: list[tuple[Any, ...]] = []
        while part := cursor.fetchmany(ROWS_AT_A_TIME):
            rows += [tuple(row) for row in part]
            if len(rows) > MOST_ROWS:
                raise too_much()
        return rows


def too_much() -> MeasureError:
    """Return the refusal of an answer that no real server gives."""
    return MeasureError(
        FailureKind.UNEXPECTED,
        f"its answer has more than {MOST_ROWS:,} rows or {MOST_BYTES // BYTES_PER_MB} MiB, and was not read to its end",
    )


def is_excluded(name: str, excluded: Sequence[str]) -> bool:
    """Whether a database is one of those that are not measured: by its exact name, or by a pattern with `*`."""
    return any(
        name == pattern or ("*" in pattern and re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name, re.DOTALL))
        for pattern in excluded
    )


def is_loopback(host: str) -> bool:
    """Whether a connection to a host does not leave this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def floor_mb(size_bytes: int) -> int:
    """Whole megabytes, rounded down."""
    return int(size_bytes) // BYTES_PER_MB


def ceiling_mb(size_bytes: int) -> int:
    """Whole megabytes, rounded up."""
    return -(-int(size_bytes) // BYTES_PER_MB)


def first_line(error: object) -> str:
    """The first line of an error's own text, without a full stop at its end."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


def refuse_without_rights(unreadable: Sequence[str], missing: str) -> None:
    """Refuse a server of which a part may not be measured, its total being wrong; raises MeasureError."""
    if unreadable:
        named = first_of(sorted(unreadable), NAMED)
        raise MeasureError(FailureKind.RIGHTS, f"its login may not measure {named}: {missing} is missing")
