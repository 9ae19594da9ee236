"""The cached reader of the pages, and values that several pages share."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, date
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from capacity_assets.base.errors import DatabaseError
from capacity_assets.base.settings import DEFAULT_THRESHOLDS, Thresholds
from capacity_assets.base.units import counted, human_day
from capacity_assets.database.engine import snapshot
from capacity_assets.database.schema import newer_schema
from capacity_assets.reading.access import CONNECTIONS, limit_seconds
from capacity_assets.reading.coverage import UnmeasuredServers, unmeasured_servers
from capacity_assets.reading.forecasts import forecasts_revision, outdated_servers
from capacity_assets.reading.lists import NameMatch, name_index
from capacity_assets.reading.windows import UncomputedSamples, uncomputed_samples

# A value is shown for up to this many times the time for which it is cached, while it is read again.
STALE_TIMES = 3
MOST_KEPT_BYTES = 32 * 1024 * 1024
"""Limit of all values together, in pickled size; in memory they take about six times as much."""
FORECASTS_SECONDS, OUTSTANDING_SECONDS = 2, 1
SECONDS_BETWEEN_REVISIONS, DECLARED_SECONDS, UNMEASURED_SECONDS, NAMES_SECONDS = 10, 10, 30, 300
PARTIAL_SECONDS = 300
"""Finding partly measured windows reads every server of every window shown."""

T = TypeVar("T")


@dataclass(frozen=True)
class _CachedValue:
    """A cached value with its times, on the clock `time.monotonic`, and its size."""

    value: Any
    read_at: float
    shown_until: float
    size_bytes: int


class Reader:
    """Reads for the pages in short read-only transactions, and caches the results."""

    def __init__(self, engine: Engine, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> None:
        """Read with an engine of `reading_engine`; the thresholds are those of watch and act."""
        self._engine = engine
        self.thresholds = thresholds
        self._cache: dict[Hashable, _CachedValue] = {}
        self._reading: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()
        self._background = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="background")

    def close(self) -> None:
        """Wait for background reads, so that their connections are returned before the engine is disposed."""
        self._background.shutdown()

    def transaction(self) -> AbstractContextManager[Connection]:
        """Return a context with a connection that sees one snapshot of the tables throughout."""
        return snapshot(self._engine)

    def refuse_a_newer_schema(self) -> None:
        """Raise DatabaseError if a newer version has upgraded the schema since the connections were opened."""
        newer = self.read_cached(
            "schema", lambda connection: newer_schema(connection.connection), SECONDS_BETWEEN_REVISIONS
        )
        if newer:
            raise DatabaseError(newer)

    def cached(self, key: Hashable, read: Callable[[], T], seconds: float) -> T:
        """Return the result of `read`, or a cached one.

        A value older than `seconds` is returned once more and read again in the background, so that only the first
        caller waits. Concurrent callers get the same value, or the same error.
        """
        now = time.monotonic()
        with self._lock:
            kept = self._cache.get(key)
            if kept is not None and now < kept.shown_until:
                if now - kept.read_at >= seconds and key not in self._reading:
                    self._reading[key] = Future()
                    self._background.submit(self._read, key, read, seconds)
                value: T = kept.value
                return value
            reading = self._reading.get(key)
            is_first = reading is None
            if reading is None:
                reading = self._reading[key] = Future()
        if is_first:
            self._read(key, read, seconds)
        awaited: T = reading.result()
        return awaited

    def read_cached(self, key: Hashable, read: Callable[[Connection], T], seconds: float) -> T:
        """Return the result of `read` in its own transaction, cached as in `cached`."""

        def in_transaction() -> T:
            with self.transaction() as connection:
                return read(connection)

        return self.cached(key, in_transaction, seconds)

    def _read(self, key: Hashable, read: Callable[[], Any], seconds: float) -> None:
        """Read, and give the result to all waiting callers."""
        try:
            value = read()
            size_bytes = len(pickle.dumps(value))
        except BaseException as error:  # noqa: BLE001 -- raised again in every waiting caller
            with self._lock:
                reading = self._reading.pop(key)
            reading.set_exception(error)
            return
        with self._lock:
            self._keep(key, value, seconds, size_bytes)
            reading = self._reading.pop(key)
        reading.set_result(value)

    def _keep(self, key: Hashable, value: Any, seconds: float, size_bytes: int) -> None:
        """Cache a value; drop expired values, and if the cache is full, those that expire first."""
        now = time.monotonic()
        self._cache.pop(key, None)
        for old in [old for old, kept in self._cache.items() if kept.shown_until <= now]:
            del self._cache[old]
        total_bytes = size_bytes + sum(kept.size_bytes for kept in self._cache.values())
        while self._cache and total_bytes > MOST_KEPT_BYTES:
            first = min(self._cache, key=lambda kept_key: self._cache[kept_key].shown_until)
            total_bytes -= self._cache.pop(first).size_bytes
        self._cache[key] = _CachedValue(value, now, now + STALE_TIMES * seconds, size_bytes)


def found_names(reader: Reader, query: str, shown: int, today: date) -> list[NameMatch]:
    """Return the names that contain all words of a query, from a cached index; raises DBAPIError."""
    index = reader.read_cached(("names", today), lambda connection: name_index(connection, today), NAMES_SECONDS)
    return index.search(query, shown)


def shared_unmeasured(reader: Reader, today: date) -> UnmeasuredServers:
    """Return the unmeasured servers."""
    return reader.read_cached(
        ("unmeasured", today), lambda connection: unmeasured_servers(connection, today), UNMEASURED_SECONDS
    )


def shared_outdated(reader: Reader) -> list[str]:
    """Return the servers whose limits, steps or plans changed after the newest forecast."""
    return reader.read_cached(("outdated", shared_revision(reader)), outdated_servers, DECLARED_SECONDS)


def shared_notice(reader: Reader, today: date) -> str:
    """Return the notice about samples that the figures do not include yet; empty if there are none, or unknown."""

    def read() -> str:
        # While the database is busy, pages are shown without it.
        with suppress(DBAPIError), reader.transaction() as connection:
            limit_seconds(connection, OUTSTANDING_SECONDS)
            return notice_of(uncomputed_samples(connection, today), today)
        return ""

    return reader.cached(("outstanding", today), read, UNMEASURED_SECONDS)


def notice_of(found: UncomputedSamples, today: date) -> str:
    """Say which samples the figures do not include yet, and which command adds them, in backquotes."""
    if found.day is not None:
        command = "capacity aggregate --period daily" + ("" if found.day == today else f" --from {found.day}")
        return (
            f"Measured, computing: {human_day(found.day)} is not yet included in these figures. The next daily run "
            f"adds it; `{command}` adds it now."
        )
    if found.changed_at is None:
        return ""
    moment = found.changed_at.astimezone(UTC)
    are, them = ("is", "it") if found.windows == 1 else ("are", "them")
    return (
        f"Measured, computing: samples changed at {moment:%H:%M} UTC on {human_day(moment.date())}, so "
        f"{counted(found.windows, 'window')} {are} out of date. The late data sensor recomputes {them}; "
        f"`capacity aggregate --period all --from {found.first_day}` does it now."
    )


def shared_revision(reader: Reader) -> tuple[object, ...]:
    """Return a part of the cache keys of everything with forecasts, so that updates are shown within seconds."""
    return reader.read_cached("forecasts", forecasts_revision, FORECASTS_SECONDS)
