"""The interface of an engine, and the parts that engines share.

An engine is a subclass of `EngineAdapter` with an entry point in the group `capacity_assets.engines`; no other module
has to be changed, except for options of a single engine, which `collection.servers` checks by name. Engines share the
kinds of failure with the advice for each, the data of a measurement (sizes, limits, parts, objects), limits on what a
server may send, and the conversion of bytes to megabytes.
"""

from __future__ import annotations

import ipaddress
import math
import re
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from capacity_assets.base.errors import ValidationError, refuse
from capacity_assets.base.units import BYTES_PER_MB, first_of, suggestion
from capacity_assets.database.measures import SIZE_MEASURES, USED_SIZE

Value = TypeVar("Value")
LONGEST_REASON = 1000
HIDDEN = "***"


class FailureKind(StrEnum):
    """Why a server was not measured."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    LOGIN = "login"
    TLS = "tls"
    RIGHTS = "rights"
    CREDENTIAL = "credential"
    SETUP = "setup"
    BROKEN_OFF = "broken off"
    DAY_OVER = "day over"
    UNEXPECTED = "unexpected"


ADVICE = {
    FailureKind.UNREACHABLE: "Check that it runs, and check host, port and firewall.",
    FailureKind.TIMEOUT: "Check whether it is overloaded or hangs.",
    FailureKind.LOGIN: "Fix the login on the server, or the registered source of its password.",
    FailureKind.TLS: "Fix the certificate, or register another `tls` for it.",
    FailureKind.RIGHTS: "Grant its login the rights that `capacity instances test` lists.",
    FailureKind.CREDENTIAL: "",
    FailureKind.SETUP: "",
    FailureKind.BROKEN_OFF: "It was stopped or restarted, or the network failed.",
    FailureKind.DAY_OVER: "Start the collection earlier, or raise CAPACITY_COLLECTION_CONCURRENCY.",
    FailureKind.UNEXPECTED: "`capacity instances test` tries again and shows the server's message.",
}


class MeasureError(Exception):
    """A server could not be measured."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        """Take a reason that completes "It was not measured: "; it becomes one line of text."""
        super().__init__("".join(sign if sign.isprintable() else " " for sign in reason))
        self.kind = kind

    def without(self, secret: str | None) -> MeasureError:
        """Return the error with a secret hidden. Do so before shortening: half a password is too much."""
        text = str(self)
        return MeasureError(self.kind, text.replace(secret, HIDDEN)) if secret and secret in text else self

    @property
    def reason(self) -> str:
        """The reason, shortened."""
        text = str(self)
        return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."

    @property
    def advice(self) -> str:
        """The advice for a failure of this kind; may be empty."""
        return ADVICE[self.kind]


def without_driver(extra: str) -> MeasureError:
    """Return the error for a driver that is not installed, because it belongs to an extra of this package."""
    return MeasureError(FailureKind.SETUP, f"its driver is not installed: pip install 'capacity_assets[{extra}]'")


@dataclass(frozen=True)
class Volume:
    """A file system, disk group, pool or quota; `free_bytes` is the space that the server can still use.

    `used_bytes` is set if part of the rest is a reserve: for root on a file system, for mirrors in a disk group. If it
    is None, everything that is not free is used.
    """

    name: str
    total_bytes: int
    free_bytes: int
    used_bytes: int | None = None


@dataclass(frozen=True)
class Ceiling:
    """How large one database may become: `limit_bytes`, or `is_unlimited`, or unknown if neither is set.

    `volumes` are the names of the volumes on which it grows; None: unknown.
    """

    database: str
    limit_bytes: int | None = None
    is_unlimited: bool = False
    volumes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Limits:
    """The limits of a server as far as they are known; `unknown` is the reason why the rest is missing."""

    volumes: tuple[Volume, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    unknown: str | None = None
    fills_files: bool = False
    """Copied from the engine by `collection.measuring`."""
    places: Mapping[str, str] = field(default_factory=dict)
    """The volumes of folders without databases, for example of logs, by a key that the engine chooses."""


NOTHING_KNOWN = Limits()


@dataclass(frozen=True)
class UsedSpace:
    """The used bytes inside the data files of databases as far as they are known; `unknown` has reasons for the rest.

    If both are empty, the engine does not measure used space.
    """

    used_bytes: Mapping[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


NO_USED_SPACE = UsedSpace()


@dataclass(frozen=True)
class ServerPart:
    """A part of a server outside its databases, of a kind in `database/measures.py`.

    `name` distinguishes several of one kind. If `size_bytes` is None, the size is unknown and `detail` says why.
    """

    kind: str
    name: str = ""
    size_bytes: int | None = None
    detail: str | None = None
    volume: str | None = None


@dataclass(frozen=True)
class PartScope:
    """The input for measuring parts: the names of the measured databases, and the limits."""

    databases: tuple[str, ...] = ()
    limits: Limits = NOTHING_KNOWN

    def volume_of(self, folder: object) -> str | None:
        """Return the volume of a folder or file by its path; None: unknown."""
        path, volumes = str(folder or ""), [volume.name for volume in self.limits.volumes]
        if "\\" not in path:
            return volume_of(path, volumes)
        # Windows names volumes by drive or folder, and ignores case.
        mounts = {name.replace("\\", "/").casefold(): name for name in volumes}
        return mounts.get(volume_of(path.replace("\\", "/").casefold(), mounts) or "")


@dataclass(frozen=True)
class PartSource:
    """How an engine measures the parts of one kind, and the right that it needs in addition to those for sizes.

    `ask` takes the connection; it raises what the driver raises, or MeasureError.
    """

    ask: Callable[[Any, PartScope], Iterable[ServerPart]]
    right: str

    def measure(self, connection: Any, scope: PartScope) -> tuple[ServerPart, ...]:
        """Return the parts."""
        return tuple(self.ask(connection, scope))


def volume_of(folder: str, mounts: Iterable[str]) -> str | None:
    """Return the longest mount point above a folder, without following links; None: there is none."""
    inside = folder.rstrip("/") + "/"
    above = [mount for mount in mounts if inside.startswith(mount.rstrip("/") + "/")]
    return max(above, key=len, default=None)


TABLE, INDEX = "table", "index"
# How many objects of each database are read; the largest and the fastest growing of them are stored. The server adds up
# all others, which bounds its answer.
CANDIDATES = 1000


@dataclass(frozen=True)
class ObjectSize:
    """A table without its indexes, or an index, as `kind` says. All partitions together are one object.

    `index_bytes` of a table are those of its indexes, which are separate objects. `free_bytes`, dead rows or free
    pages, are part of `size_bytes`. None: unknown.
    """

    schema: str
    name: str
    kind: str
    size_bytes: int
    table: str = ""
    index_bytes: int | None = None
    free_bytes: int | None = None
    estimated_rows: int | None = None
    is_exact: bool = False
    written_rows: int | None = None
    """Rows inserted, updated and deleted since the server began to count."""
    counted_since: datetime | None = None
    """When it began to count, by the clock of this machine; None: it kept counting as far as known."""


@dataclass(frozen=True)
class DatabaseObjects:
    """The largest tables and indexes of a database, and the number and bytes of the others."""

    database: str
    largest: tuple[ObjectSize, ...]
    other_count: int = 0
    other_bytes: int = 0

    @classmethod
    def among(cls, database: str, largest: Sequence[ObjectSize], count: int, size_bytes: int) -> DatabaseObjects:
        """Return the largest objects, given the number and bytes of all."""
        rest = size_bytes - sum(item.size_bytes for item in largest)
        return cls(database, tuple(largest), count - len(largest), rest)


@dataclass(frozen=True)
class Objects:
    """The tables and indexes of databases as far as they are known; `unknown` has the reasons for the rest."""

    databases: tuple[DatabaseObjects, ...] = ()
    unknown: tuple[str, ...] = ()


NO_OBJECTS = Objects()


# After this time no further database is begun; its objects are unknown until the next time.
OBJECTS_BEGIN_SECONDS = 300.0


def by_database(
    names: Iterable[str], read: Callable[[str], Value], failure: Callable[[Exception], MeasureError], seconds: float
) -> tuple[dict[str, Value], list[tuple[str, str]]]:
    """Read one database after another; return what was found, and the databases that failed with the reason.

    After `seconds`, no further database is started.
    """
    values: dict[str, Value] = {}
    unknown, began = [], time.monotonic()
    for name in names:
        if time.monotonic() - began > seconds:
            unknown.append((name, f"not started within {seconds:.0f} s"))
            continue
        try:
            values[name] = read(name)
        except Exception as error:  # noqa: BLE001 -- drivers raise any exception
            unknown.append((name, str(failure(error))))
    return values, unknown


def objects_by_database(
    names: Iterable[str], read: Callable[[str], DatabaseObjects | None], failure: Callable[[Exception], MeasureError]
) -> Objects:
    """Return the objects of databases. Databases for which `read` returns None were dropped, and are left out."""
    objects, unknown = by_database(names, read, failure, OBJECTS_BEGIN_SECONDS)
    return Objects(
        tuple(database for database in objects.values() if database is not None),
        tuple(f"{name}: {reason}" for name, reason in unknown),
    )


# Less than the time limit of the question, so that the databases read by then are not lost.
USED_BEGIN_SECONDS = 15.0


def used_by_database(
    names: Iterable[str], read: Callable[[str], int | None], failure: Callable[[Exception], MeasureError]
) -> UsedSpace:
    """Return the used space of databases; `read` returns None for unknown. A reason names all of its databases."""
    sizes, failed = by_database(names, read, failure, USED_BEGIN_SECONDS)
    by_reason: dict[str, list[str]] = {}
    for name, reason in (*failed, *((name, "no size is reported") for name, used in sizes.items() if used is None)):
        by_reason.setdefault(reason, []).append(name)
    return UsedSpace(
        {name: used for name, used in sizes.items() if used is not None},
        tuple(f"{first_of(databases, NAMED)}: {reason}" for reason, databases in by_reason.items()),
    )


def objects_of(database: str, objects: Iterable[ObjectSize]) -> DatabaseObjects:
    """Return the largest objects of a database, and the sum of the others."""
    every = sorted(objects, key=lambda item: (-item.size_bytes, item.kind, item.schema, item.table, item.name))
    return DatabaseObjects.among(database, every[:CANDIDATES], len(every), sum(item.size_bytes for item in every))


PROGRAM = "capacity_assets"
NAMED = 5
# Ways of sizing: by the size of the files, by their space on disk, or by statistics if reading every file takes too
# long.
FILES, ALLOCATED, STATISTICS = "files", "allocated", "statistics"
# More than any server sends, and little enough if many servers send endlessly.
MOST_ROWS = 200_000
MOST_BYTES = 32 * 1024 * 1024
# A response is awaited this much longer than its time limit, because the server should cancel the query itself.
SLACK_SECONDS = 2.0
ROWS_AT_A_TIME = 1000
TLS_OFF, TLS_REQUIRE, TLS_VERIFY_CA, TLS_VERIFY_FULL = "off", "require", "verify-ca", "verify-full"
TLS_MODES = (TLS_OFF, TLS_REQUIRE, TLS_VERIFY_CA, TLS_VERIFY_FULL)
VERIFIED_TLS = (TLS_VERIFY_CA, TLS_VERIFY_FULL)


@dataclass(frozen=True)
class Access:
    """How to reach one server. The password never leaves the process and is not part of the text of this object."""

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
    """Whether it is the server of the capacity database, which has our own connection settings."""

    @property
    def socket(self) -> str | None:
        """The host, if it is a path and not a name."""
        return self.host if self.host.startswith("/") else None


def tls_context(access: Access) -> ssl.SSLContext:
    """Return the context with which a driver encrypts and verifies; raises OSError if a file cannot be read."""
    context = ssl.create_default_context(cafile=access.tls_ca)
    context.check_hostname = access.tls == TLS_VERIFY_FULL
    context.verify_mode = ssl.CERT_REQUIRED if access.tls in VERIFIED_TLS else ssl.CERT_NONE
    if access.tls_certificate:
        context.load_cert_chain(access.tls_certificate, access.tls_key)
    return context


@dataclass(frozen=True)
class DatabaseSize:
    """The size of a database in whole MiB, and in bytes if these are known; parts by their stem in `measures`."""

    name: str
    size_mb: int
    size_bytes: int | None = None
    parts_mb: Mapping[str, int] = field(default_factory=dict)
    parts_bytes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_bytes(
        cls, name: str, size: int, *, whole_mb: Callable[[int], int] | None = None, **parts: int | None
    ) -> DatabaseSize:
        """Return a size with its bytes, and whole MiB rounded down, or as `whole_mb` does.

        `parts` are bytes by stem, for example `data_size`. A part that the engine does not report is None or missing.
        """
        unknown = set(parts) - {measure.stem for measure in SIZE_MEASURES}
        if unknown:
            raise TypeError(f"no part of a size is called {', '.join(sorted(unknown))}; see database/measures.py")
        rounded = whole_mb or floor_mb
        exact = {stem: int(value) for stem, value in parts.items() if value is not None}
        whole = {stem: rounded(value) for stem, value in exact.items()}
        return cls(name, rounded(int(size)), int(size), whole, exact)

    def with_used(self, used_bytes: int, whole_mb: Callable[[int], int]) -> DatabaseSize:
        """Return the size with the used space, which is at most the whole size."""
        if self.size_bytes is None:
            return self
        parts = {**self.parts_bytes, USED_SIZE: max(min(int(used_bytes), self.size_bytes), 0)}
        return self.of_bytes(self.name, self.size_bytes, whole_mb=whole_mb, **parts)

    @property
    def values(self) -> tuple[int | None, ...]:
        """The values of a sample, in the order of the level: MiB, then bytes; None: not reported."""
        stems = [measure.stem for measure in SIZE_MEASURES]
        whole, exact = (tuple(map(parts.get, stems)) for parts in (self.parts_mb, self.parts_bytes))
        return (self.size_mb, *whole, self.size_bytes, *exact)


@dataclass(frozen=True)
class Measurement:
    """The result of a server. `not_counted` names objects without a known size, `left_out` excluded databases."""

    sizes: tuple[DatabaseSize, ...] = ()
    not_counted: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    unknown_used: tuple[str, ...] = ()
    limits: Limits = NOTHING_KNOWN
    parts: tuple[ServerPart, ...] = ()
    objects: Objects = NO_OBJECTS


@dataclass(frozen=True)
class ServerFacts:
    """The output of `capacity instances test` in addition to sizes."""

    version: str
    encrypted: bool | None


def floor_mb(size_bytes: int) -> int:
    """Return whole MiB, rounded down."""
    return int(size_bytes) // BYTES_PER_MB


def ceiling_mb(size_bytes: int) -> int:
    """Return whole MiB, rounded up."""
    return -(-int(size_bytes) // BYTES_PER_MB)


class EngineAdapter(ABC):
    """A kind of database server. An instance has no state, and serves all servers of its kind."""

    name: ClassVar[str]
    default_port: ClassVar[int]
    default_database: ClassVar[str | None] = None
    # Excluded unless CAPACITY_SYSTEM_DATABASES says otherwise.
    system_databases: ClassVar[tuple[str, ...]]
    sizings: ClassVar[tuple[str, ...]] = (FILES,)
    # Whether the tests measure a real server.
    verified: ClassVar[bool]
    # The statements that create the login of the collection with the least rights.
    grants: ClassVar[str]
    # Whether any table of a database uses the free space inside its files before the files grow. If so, forecasts use
    # the used space.
    fills_files: ClassVar[bool] = False
    # Definitions of sizes, used space and limits for the reference.
    definition: ClassVar[str]
    used_definition: ClassVar[str] = "none"
    limits_definition: ClassVar[str] = "none"
    # How each kind of `database/measures.py` is measured, with its definition for the reference.
    part_sources: ClassVar[Mapping[str, PartSource]] = {}
    parts_definition: ClassVar[str] = "none"
    objects_definition: ClassVar[str] = "none"

    @abstractmethod
    def connect(self, access: Access) -> Any:
        """Open a connection; raises what the driver raises, or MeasureError."""

    @abstractmethod
    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> Measurement:
        """Measure every database for which `is_excluded` is false; raises what the driver raises, or MeasureError."""

    def whole_mb(self, size_bytes: int) -> int:
        """Return whole MiB, rounded as the legacy application did for this engine."""
        return floor_mb(size_bytes)

    def used(self, connection: Any, access: Access, sizes: Sequence[DatabaseSize]) -> UsedSpace:
        """Return the used space of the measured databases; raises as `sizes`, in which case sizes are kept."""
        return NO_USED_SPACE

    def limits(self, connection: Any, access: Access, names: Sequence[str]) -> Limits:
        """Return the limits of the measured databases; raises as `sizes`, in which case sizes are kept."""
        return Limits(unknown="they are not measured for this engine")

    def objects(self, connection: Any, access: Access, names: Sequence[str]) -> Objects:
        """Return the tables and indexes of the measured databases; raises as `sizes`, in which case sizes are kept."""
        return Objects(unknown=("they are not measured for this engine",))

    @abstractmethod
    def facts(self, connection: Any) -> ServerFacts:
        """Return the version of the server, and whether the connection is encrypted."""

    @abstractmethod
    def explained(self, error: Exception) -> MeasureError | None:
        """Classify an error of the driver; None for errors of another kind."""

    def failure(self, error: Exception) -> MeasureError:
        """Classify any error."""
        known = error if isinstance(error, MeasureError) else self.explained(error)
        if known is not None:
            return known
        if isinstance(error, TimeoutError):
            return MeasureError(FailureKind.TIMEOUT, first_line(error))
        if isinstance(error, FileNotFoundError | PermissionError):
            return MeasureError(FailureKind.SETUP, f"a file of its certificates cannot be read: {first_line(error)}")
        if isinstance(error, OSError):
            return MeasureError(FailureKind.UNREACHABLE, first_line(error))
        return MeasureError(FailureKind.UNEXPECTED, f"{type(error).__name__}: {first_line(error)}")

    def is_refusal(self, error: Exception) -> bool:
        """Whether the login lacks a right."""
        return self.failure(error).kind is FailureKind.RIGHTS

    def rows_if_allowed(self, connection: Any, query: str) -> list[tuple[Any, ...]] | None:
        """Return the rows of a query; None: the login lacks a right."""
        try:
            return query_server(connection, query)
        except Exception as error:
            if self.is_refusal(error):
                return None
            raise


@dataclass
class Allowance:
    """How much one connection may receive in total, and the deadline of the current response.

    A socket timeout does not bound a response, because it restarts with every byte. Drivers keep everything they
    receive, requested or not.
    """

    received_bytes: int = 0
    deadline: float = math.inf

    def begin(self, seconds: float) -> None:
        """Set the deadline for the next response."""
        self.deadline = time.monotonic() + seconds + SLACK_SECONDS

    def take(self, size_bytes: int) -> None:
        """Count bytes that were received or are about to be read; raises MeasureError at too many, or too late."""
        self.received_bytes += size_bytes
        if self.received_bytes > MOST_BYTES:
            raise too_much()
        if time.monotonic() > self.deadline:
            raise MeasureError(FailureKind.TIMEOUT, "its response was not complete in time")


@contextmanager
def closed_on_failure(connection: Any) -> Iterator[None]:
    """Close a connection that cannot be set up."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def refuse_setup(*problems: tuple[object, str]) -> None:
    """Raise MeasureError with the sentence of the first problem of a server's registration, if it has one."""
    refuse(*problems, error=partial(MeasureError, FailureKind.SETUP))


def query_server(connection: Any, query: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
    """Return the rows of a query; without parameters, `%` is itself. Raises MeasureError at too many rows."""
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
    """Return the error for a response that no real server sends."""
    most = f"{MOST_ROWS:,} rows or {MOST_BYTES // BYTES_PER_MB} MiB"
    return MeasureError(FailureKind.UNEXPECTED, f"its answer has more than {most}, and was not read completely")


def is_excluded(name: str, excluded: Sequence[str]) -> bool:
    """Whether a database is excluded by its exact name, or by a pattern with `*`."""
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


def first_line(error: object) -> str:
    """Return the first line of an error's message, without a full stop at its end."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


def refuse_without_rights(unreadable: Sequence[str], missing: str) -> None:
    """Raise MeasureError if the login may not measure some databases, because the total would be wrong."""
    if unreadable:
        named = first_of(sorted(unreadable), NAMED)
        raise MeasureError(FailureKind.RIGHTS, f"its login may not measure {named}: {missing} is missing")


ENTRY_POINTS = "capacity_assets.engines"


def engine_names() -> list[str]:
    """Return the names of the installed engines, without loading them."""
    return sorted(point.name for point in entry_points(group=ENTRY_POINTS))


@cache
def engines() -> dict[str, EngineAdapter]:
    """Return the installed engines by name."""
    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return {point.name: point.load()() for point in points}


def engine_named(name: str) -> EngineAdapter:
    """Return an engine; raises ValidationError if none has that name."""
    try:
        return engines()[name]
    except KeyError:
        known = ", ".join(engines())
        problem = f"{name!r} is not an engine that can be measured; known are {known}."
        raise ValidationError(f"{problem}{suggestion(name, engines())}") from None


def excluded_databases(setting: str) -> dict[str, tuple[str, ...]]:
    """Return the excluded databases by engine: CAPACITY_SYSTEM_DATABASES over the defaults; raises ValidationError."""
    excluded = {name: engine.system_databases for name, engine in engines().items()}
    for entry in filter(None, (part.strip() for part in setting.split(","))):
        engine, sign, names = entry.partition("=")
        if not sign or engine.strip() not in excluded:
            raise ValidationError(
                f"CAPACITY_SYSTEM_DATABASES: {entry!r} is not ENGINE=NAME|NAME with one of {', '.join(excluded)}."
            )
        excluded[engine.strip()] = tuple(filter(None, (name.strip() for name in names.split("|"))))
    return excluded
