"""What an engine is: a class with a query, found through the entry points `capacity_assets.engines`.

A new engine subclasses `EngineAdapter`, names its entry point and has a test. Commands find it by its entry point; only
options of a single engine are checked by name, in `collection.servers`. What
engines share is here: the kinds of failure and what to do about each, limits (volumes, and the ceilings of databases),
and how bytes become megabytes. A server that says nothing of its limits is measured all the same.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.units import BYTES_PER_MB, first_of
from capacity_assets.database.measures import PART_SIZES

LONGEST_REASON = 1000
HIDDEN = "***"


class FailureKind(StrEnum):
    """What kept a server from being measured."""

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
    FailureKind.UNREACHABLE: "Is it up, and are host, port and firewall right?",
    FailureKind.TIMEOUT: "Is it overloaded or locked up?",
    FailureKind.LOGIN: "Fix the login on the server, or where its password is looked up.",
    FailureKind.TLS: "Fix the certificate, or register another `tls` for it.",
    FailureKind.RIGHTS: "Give its login the rights that `capacity instances test` names.",
    FailureKind.CREDENTIAL: "",
    FailureKind.SETUP: "",
    FailureKind.BROKEN_OFF: "It was stopped, restarted, or the network failed.",
    FailureKind.DAY_OVER: "Begin earlier, or raise CAPACITY_COLLECTION_CONCURRENCY.",
    FailureKind.UNEXPECTED: "The server's own words say more; `capacity instances test` repeats it.",
}


class MeasureError(Exception):
    """A server could not be measured: of which kind, and in words that hold no secret."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        """Keep the kind; `reason` completes "It was not measured: ", and is made fit for a line of text."""
        super().__init__("".join(sign if sign.isprintable() else " " for sign in reason))
        self.kind = kind

    def without(self, secret: str | None) -> MeasureError:
        """Return it with a secret hidden, before anything is cut: half a password is too much of it."""
        text = str(self)
        return MeasureError(self.kind, text.replace(secret, HIDDEN)) if secret and secret in text else self

    @property
    def reason(self) -> str:
        """The reason, shortened."""
        text = str(self)
        return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."

    @property
    def description(self) -> str:
        """The reason, shortened, and what to do."""
        return f"{self.reason}. {ADVICE[self.kind]}".removesuffix(" ").replace("..", ".")


def without_driver(extra: str) -> MeasureError:
    """Return the error of an engine whose driver is an extra of this package that is not installed."""
    return MeasureError(FailureKind.SETUP, f"its driver is not installed: pip install 'capacity_assets[{extra}]'")


@dataclass(frozen=True)
class Volume:
    """A file system, disk group, pool or quota: its total size, and the space that the server can still use.

    `used_bytes` is the used space if it is less than the remainder: a file system keeps a reserve for root, a disk
    group for mirrors. None: the whole remainder is used.
    """

    name: str
    total_bytes: int
    free_bytes: int
    used_bytes: int | None = None


@dataclass(frozen=True)
class Ceiling:
    """How much one database may hold: `limit_bytes`, or `is_unlimited`, or neither, which is unknown.

    `volumes` names those on which it grows; None: unknown.
    """

    database: str
    limit_bytes: int | None = None
    is_unlimited: bool = False
    volumes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Limits:
    """What is known of a server's limits, and in words why the rest is not."""

    volumes: tuple[Volume, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    unknown: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    """Volumes of folders that hold other things than databases, by a name that the engine chooses."""


NOTHING_KNOWN = Limits()


@dataclass(frozen=True)
class ServerPart:
    """What lies on a server beside its databases, of a kind in `database/part_kinds.py`.

    `size_bytes` None: not known, and `detail` says why. `name` tells several of one kind apart. `volume` None: not
    known.
    """

    kind: str
    name: str = ""
    size_bytes: int | None = None
    detail: str | None = None
    volume: str | None = None


@dataclass(frozen=True)
class PartScope:
    """What measuring parts can use of what is known already: the names of the databases measured, and the limits."""

    databases: tuple[str, ...] = ()
    limits: Limits = NOTHING_KNOWN

    def volume_of(self, folder: object) -> str | None:
        """Return the volume that a folder or file lies on, by its path; None: not known."""
        path, volumes = str(folder or ""), [volume.name for volume in self.limits.volumes]
        if "\\" not in path:
            return volume_of(path, volumes)
        # Windows names volumes by drive or folder, in any case.
        mounts = {name.replace("\\", "/").casefold(): name for name in volumes}
        return mounts.get(volume_of(path.replace("\\", "/").casefold(), mounts) or "")


@dataclass(frozen=True)
class PartSource:
    """How an engine measures the parts of one kind, and the right that this takes beside that of sizes."""

    ask: Callable[[Any, PartScope], Iterable[ServerPart]]
    """Takes the connection; raises what the driver raises, or MeasureError."""
    right: str

    def measure(self, connection: Any, scope: PartScope) -> tuple[ServerPart, ...]:
        """Return the parts."""
        return tuple(self.ask(connection, scope))


def without_ceilings(names: Iterable[str], volumes: Iterable[str]) -> tuple[Ceiling, ...]:
    """Return the ceilings of an engine that has none: every database may fill the volumes it lies on."""
    on = tuple(sorted(volumes))
    return tuple(Ceiling(name, is_unlimited=True, volumes=on) for name in names)


def volume_of(folder: str, mounts: Iterable[str]) -> str | None:
    """Return the longest mount point that `folder` lies below, links taken as they are written; None: none of them."""
    inside = folder.rstrip("/") + "/"
    above = [mount for mount in mounts if inside.startswith(mount.rstrip("/") + "/")]
    return max(above, key=len, default=None)


TABLE, INDEX = "table", "index"
# Of each database so many are read, of which the largest and the fastest growing are stored. All others are added up
# on the server, so that the answer of a database has a bounded size.
CANDIDATES = 1000


@dataclass(frozen=True)
class ObjectSize:
    """A table without its indexes, or an index, whose bytes are counted once; `kind` says which.

    A partitioned one is one object. `index_bytes` of a table are those of its indexes, which are objects themselves.
    `free_bytes` lie inside of `size_bytes`: dead rows or free pages. None: not known.
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


@dataclass(frozen=True)
class DatabaseObjects:
    """The largest tables and indexes of a database, and how many others there are with how many bytes."""

    database: str
    largest: tuple[ObjectSize, ...]
    other_count: int = 0
    other_bytes: int = 0


@dataclass(frozen=True)
class Objects:
    """What is known of the tables and indexes of databases, and in words why others are not known."""

    databases: tuple[DatabaseObjects, ...] = ()
    unknown: tuple[str, ...] = ()


NO_OBJECTS = Objects()


# No further database is looked into after so many seconds: its objects are unknown until the next time.
OBJECTS_BEGIN_SECONDS = 300.0


def objects_by_database(
    names: Iterable[str], read: Callable[[str], DatabaseObjects | None], failure: Callable[[Exception], MeasureError]
) -> Objects:
    """Read the objects of one database after the other; None: it was dropped meanwhile.

    A database that fails is named with the reason, and the others are read.
    """
    found, unknown, began = [], [], time.monotonic()
    for name in names:
        if time.monotonic() - began > OBJECTS_BEGIN_SECONDS:
            unknown.append(f"{name}: not begun within {OBJECTS_BEGIN_SECONDS:.0f} s")
            continue
        try:
            one = read(name)
        except Exception as error:  # noqa: BLE001 -- as of a server
            unknown.append(f"{name}: {failure(error)}")
        else:
            found += [one] if one is not None else []
    return Objects(tuple(found), tuple(unknown))


def objects_of(database: str, objects: Iterable[ObjectSize]) -> DatabaseObjects:
    """Keep the candidates among all objects of a database, and add the others up."""
    by_size = sorted(objects, key=lambda one: (-one.size_bytes, one.kind, one.schema, one.table, one.name))
    others = by_size[CANDIDATES:]
    return DatabaseObjects(database, tuple(by_size[:CANDIDATES]), len(others), sum(one.size_bytes for one in others))


PROGRAM = "capacity_assets"
NAMED = 5
Read = Callable[[str], Sequence[tuple[Any, ...]]]
"""Runs a query and returns its rows."""
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
    """One database: whole MiB, and exact bytes where they are known; parts by their stem in `size_parts`."""

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
            raise TypeError(f"no part of a size is called {', '.join(sorted(unknown))}; see database/size_parts.py")
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
    parts: tuple[ServerPart, ...] = ()
    objects: Objects = NO_OBJECTS


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
    # What lies beside the databases: how each kind of `database/part_kinds.py` is measured, and in words.
    part_sources: ClassVar[Mapping[str, PartSource]] = {}
    parts_definition: ClassVar[str] = "none"
    objects_definition: ClassVar[str] = "none"

    @abstractmethod
    def connect(self, access: Access) -> Any:
        """Open a connection; raises what the driver raises, or MeasureError."""

    @abstractmethod
    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> Measurement:
        """Measure every database for which `is_excluded` is false; raises what the driver raises, or MeasureError."""

    def limits(self, connection: Any, access: Access, names: Sequence[str]) -> Limits:  # noqa: ARG002 -- for subclasses
        """Return what is known of the limits of the measured databases; raises as `sizes`, and then sizes are kept."""
        return Limits(unknown="nothing is asked of this engine")

    def objects(self, connection: Any, access: Access, names: Sequence[str]) -> Objects:  # noqa: ARG002 -- for subclasses
        """Return the tables and indexes of the measured databases; raises as `sizes`, and then sizes are kept."""
        return Objects(unknown=("nothing is asked of this engine",))

    @abstractmethod
    def facts(self, connection: Any) -> ServerFacts:
        """Return version and encryption of the server."""

    @abstractmethod
    def explained(self, error: Exception) -> MeasureError | None:
        """Classify an error of the driver; None for errors of another kind."""

    def failure(self, error: Exception) -> MeasureError:
        """Return why a server was not measured, whatever was raised."""
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
        """Whether an error means that the login lacks a right."""
        return self.failure(error).kind is FailureKind.RIGHTS


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


ENTRY_POINTS = "capacity_assets.engines"


def engine_names() -> list[str]:
    """Return the names of the installed engines, without loading them."""
    return sorted(point.name for point in entry_points(group=ENTRY_POINTS))


@cache
def engines() -> dict[str, EngineAdapter]:
    """Return every installed engine by the name that servers are registered with."""
    adapters: dict[str, EngineAdapter] = {}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        loaded: type[EngineAdapter] = point.load()
        adapters[point.name] = loaded()
    return adapters


def engine_named(name: str) -> EngineAdapter:
    """Return an engine; raises ValidationError where none of that name is installed."""
    try:
        return engines()[name]
    except KeyError:
        known = ", ".join(engines())
        raise ValidationError(f"{name!r} is not an engine that can be measured; known are {known}.") from None


def excluded_databases(setting: str) -> dict[str, tuple[str, ...]]:
    """Read CAPACITY_SYSTEM_DATABASES over the defaults, by engine; raises ValidationError where it is wrong."""
    excluded = {name: engine.system_databases for name, engine in engines().items()}
    for entry in filter(None, (part.strip() for part in setting.split(","))):
        engine, sign, names = entry.partition("=")
        if not sign or engine.strip() not in excluded:
            raise ValidationError(
                f"CAPACITY_SYSTEM_DATABASES: {entry!r} is not ENGINE=NAME|NAME with one of {', '.join(excluded)}."
            )
        excluded[engine.strip()] = tuple(filter(None, (name.strip() for name in names.split("|"))))
    return excluded
