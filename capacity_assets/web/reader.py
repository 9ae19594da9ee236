"""Reading for every page: its query (the checked parameters of its address), and the reader with its cache.

The address is the whole state of a page. This module also has the windows and ranges in the address, and values that
several pages share.
"""

from __future__ import annotations

import os
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError

from capacity_assets.base.declarations import KEY, key_and_value
from capacity_assets.base.errors import DatabaseError, ValidationError
from capacity_assets.base.periods import FIRST_YEAR, LAST_YEAR, PERIODS, Period, Window
from capacity_assets.base.settings import DEFAULT_THRESHOLDS, Thresholds
from capacity_assets.base.units import counted, human_day
from capacity_assets.database.engine import RowsByStatement, snapshot
from capacity_assets.database.schema import newer_schema
from capacity_assets.reading.access import CONNECTIONS, STATEMENT_TIMEOUT_SECONDS, limit_seconds
from capacity_assets.reading.coverage import UnmeasuredServers, unmeasured_servers
from capacity_assets.reading.forecasts import forecast_day, forecasts_revision, outdated_servers
from capacity_assets.reading.lists import NameMatch, name_index
from capacity_assets.reading.sizes import SizeInWindow, mark_partial, partial_windows, windows_back
from capacity_assets.reading.subjects import address
from capacity_assets.reading.windows import (
    UncomputedSamples,
    complete_window,
    newest_window,
    oldest_window,
    uncomputed_samples,
)

# A value older than its cache time is still shown, up to this many times that time, while it is read again.
STALE_TIMES = 3
MOST_KEPT_BYTES = 32 * 1024 * 1024
"""Limit of all values together, in pickled size; in memory they take about six times as much."""
FORECASTS_SECONDS, WINDOWS_SECONDS, OUTSTANDING_SECONDS = 2, 2, 1
SECONDS_BETWEEN_REVISIONS, DECLARED_SECONDS, UNMEASURED_SECONDS, NAMES_SECONDS = 10, 300, 30, 300
PARTIAL_SECONDS = 300
"""Partly measured windows are cached this long, because finding them reads every server of every window shown."""

ANSWER_SECONDS = STATEMENT_TIMEOUT_SECONDS + 1
"""How long a reader waits for a page."""
ALONE_SECONDS = 1
"""How long a long computation waits for a running one before it is refused."""
SHARED_SECONDS = 60
"""Time limit of a statement whose result all readers see: it runs once at a time, however many readers wait."""

CANCEL_SECONDS = 3
FOR_READERS = 2
"""Connections that background reads leave free."""

T = TypeVar("T")


class StillReadingError(DatabaseError):
    """A value is being read, and takes longer than a reader waits. A later request gets it."""


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
        """Read with an engine of `reading_engine`; `thresholds` are those of watch and act."""
        self._engine = engine
        self.thresholds = thresholds
        self._cache: dict[Hashable, _CachedValue] = {}
        self._reading: dict[Hashable, Future[Any]] = {}
        self._lock, self._computing = threading.Lock(), threading.Lock()
        self._of_issue: tuple[Hashable, RowsByStatement] = (None, {})
        self._opened: WeakSet[Any] = WeakSet()
        self._waiting_since: dict[int, float] = {}
        self._answered_at = 0.0
        self._is_ended = False
        self.watch(engine)
        event.listen(engine, "before_cursor_execute", lambda *_of_statement: self._start_waiting())
        event.listen(engine, "after_cursor_execute", lambda *_of_statement: self._take_answer())
        event.listen(engine, "handle_error", lambda _error: self._stop_waiting())
        self._background = ThreadPoolExecutor(CONNECTIONS - FOR_READERS, thread_name_prefix="background")

    def close(self) -> None:
        """Wait for background reads, so that their connections are returned before the engine is disposed."""
        self._background.shutdown(cancel_futures=True)

    def watch(self, engine: Engine) -> None:
        """Let `cancel` end the statements of an engine, too."""
        event.listen(engine, "connect", lambda opened, _record: self._opened.add(opened))

    def cancel(self) -> None:
        """Cancel the running statements, and begin no others; their readers get an error.

        The connections to a server that does not take this within CANCEL_SECONDS are broken off: it may hang.
        """
        self._is_ended = True
        opened = list(self._opened)
        asking = threading.Thread(target=_cancel, args=(opened,), daemon=True)
        asking.start()
        asking.join(CANCEL_SECONDS)
        if asking.is_alive():
            for connection in opened:
                with suppress(Exception):
                    _break_off(connection)

    @contextmanager
    def transaction(self, revision: Hashable = None) -> Iterator[Connection]:
        """Return a context with a connection that sees one snapshot of the tables throughout.

        With a `revision`, that of `shared_revision`, rows of `rows_of_issue` are kept until the revision changes.
        """
        if self._is_ended:
            raise DatabaseError("The pages are being stopped.")
        self._start_waiting()
        try:
            with snapshot(self._engine, None if revision is None else self._rows_of(revision)) as connection:
                yield connection
        finally:
            self._stop_waiting()

    def _rows_of(self, revision: Hashable) -> RowsByStatement:
        """Return the kept rows of a revision, which was read before the snapshot, so they are never older."""
        with self._lock:
            if self._of_issue[0] != revision:
                self._of_issue = (revision, {})
            return self._of_issue[1]

    def _start_waiting(self) -> None:
        """Note that this thread waits for the database; one thread waits for one answer."""
        self._waiting_since[threading.get_ident()] = time.monotonic()

    def _stop_waiting(self) -> None:
        self._waiting_since.pop(threading.get_ident(), None)

    def _take_answer(self) -> None:
        self._stop_waiting()
        self._answered_at = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """For how long the database has not answered, although a thread waits for it; 0: none waits."""
        oldest = min(list(self._waiting_since.values()), default=None)
        return 0.0 if oldest is None else time.monotonic() - max(oldest, self._answered_at)

    def refuse_a_newer_schema(self) -> None:
        """Raise DatabaseError if a newer version has upgraded the schema since the connections were opened."""
        newer = self.read_cached(
            "schema", lambda connection: newer_schema(connection.connection), SECONDS_BETWEEN_REVISIONS
        )
        if newer:
            raise DatabaseError(newer)

    def cached(
        self,
        key: Hashable,
        read: Callable[[], T],
        seconds: float,
        *,
        stale_times: int = STALE_TIMES,
        wait_seconds: int | None = None,
    ) -> T:
        """Return the result of `read`, or a cached one.

        A value older than `seconds` is returned once more while it is read again in the background, so that only the
        first caller waits. A value older than `stale_times` times `seconds` is not returned. Concurrent callers get the
        same value or error. Raises StillReadingError after ANSWER_SECONDS, so that no thread waits for a long read.
        With `wait_seconds`, the first caller does not wait longer either: the value is read in the background.
        """
        now = time.monotonic()
        with self._lock:
            entry = self._cache.get(key)
            if entry is not None and now < entry.shown_until:
                if now - entry.read_at >= seconds and key not in self._reading:
                    self._reading[key] = Future()
                    self._background.submit(self._read, key, read, seconds, stale_times)
                value: T = entry.value
                return value
            reading = self._reading.get(key)
            is_first = reading is None
            if reading is None:
                reading = self._reading[key] = Future()
        if is_first and wait_seconds is None:
            self._read(key, read, seconds, stale_times)
        elif is_first:
            self._background.submit(self._read, key, read, seconds, stale_times)
        limit = ANSWER_SECONDS if wait_seconds is None else wait_seconds
        try:
            awaited: T = reading.result(limit)
        except TimeoutError:
            if reading.done():
                raise
            raise StillReadingError(f"The database has not answered within {counted(limit, 'second')}.") from None
        return awaited

    def read_cached(  # noqa: PLR0913 -- what is read, and how long it is kept and awaited
        self,
        key: Hashable,
        read: Callable[[Connection], T],
        seconds: float,
        *,
        revision: Hashable = None,
        is_for_all: bool = False,
        wait_seconds: int | None = None,
    ) -> T:
        """Return the result of `read` in its own `transaction`, cached as in `cached`.

        With `is_for_all`, the result is the same for all readers, and the limit of a statement is SHARED_SECONDS.
        """

        def in_transaction() -> T:
            with self.transaction(revision) as connection:
                if is_for_all:
                    limit_seconds(connection, SHARED_SECONDS)
                return read(connection)

        return self.cached(key, in_transaction, seconds, wait_seconds=wait_seconds)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Return a context for a long computation; raises StillReadingError while another one runs."""
        if not self._computing.acquire(timeout=ALONE_SECONDS):
            raise StillReadingError("Another long computation is running. Try again in a moment.")
        try:
            yield
        finally:
            self._computing.release()

    def _read(self, key: Hashable, read: Callable[[], Any], seconds: float, stale_times: int) -> None:
        try:
            value = read()
            size_bytes = len(pickle.dumps(value))
        except BaseException as error:  # noqa: BLE001 -- raised again in every waiting caller
            with self._lock:
                reading = self._reading.pop(key)
            reading.set_exception(error)
            return
        with self._lock:
            self._keep(key, value, stale_times * seconds, size_bytes)
            reading = self._reading.pop(key)
        reading.set_result(value)

    def _keep(self, key: Hashable, value: Any, shown_seconds: float, size_bytes: int) -> None:
        """Cache a value; drop expired values, and if the cache is full, those that expire first."""
        now = time.monotonic()
        self._cache.pop(key, None)
        for old in [old for old, entry in self._cache.items() if entry.shown_until <= now]:
            del self._cache[old]
        total_bytes = size_bytes + sum(entry.size_bytes for entry in self._cache.values())
        while self._cache and total_bytes > MOST_KEPT_BYTES:
            first = min(self._cache, key=lambda kept_key: self._cache[kept_key].shown_until)
            total_bytes -= self._cache.pop(first).size_bytes
        self._cache[key] = _CachedValue(value, now, now + shown_seconds, size_bytes)


def _cancel(opened: Sequence[Any]) -> None:
    """Ask the servers to cancel; without libpq 17, which does not block, break off: `cancel` stops every thread."""
    from psycopg import capabilities

    for connection in opened:
        with suppress(Exception):
            if capabilities.has_cancel_safe():
                connection.cancel_safe(timeout=2 * CANCEL_SECONDS)
            else:
                _break_off(connection)


def _break_off(connection: Any) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as shared:
        shared.shutdown(socket.SHUT_RDWR)


def found_names(reader: Reader, query: str, shown: int, today: date, kind: str = "") -> list[NameMatch]:
    """Return the names of a kind, or all, that have all words of a query, from a cached index; raises DBAPIError."""
    key = ("names", today, shared_revision(reader))
    index = reader.read_cached(key, partial(name_index, today=today), NAMES_SECONDS, is_for_all=True)
    return index.search(query, shown, kind)


def shared_unmeasured(reader: Reader, today: date) -> UnmeasuredServers:
    """Return the unmeasured servers."""
    return reader.read_cached(
        ("unmeasured", today),
        lambda connection: unmeasured_servers(connection, today),
        UNMEASURED_SECONDS,
        is_for_all=True,
    )


def shared_outdated(reader: Reader) -> list[str]:
    """Return the servers whose limits, steps or plans changed after the newest forecast."""
    return reader.read_cached(
        ("outdated", shared_revision(reader)), outdated_servers, DECLARED_SECONDS, is_for_all=True
    )


def shared_notice(reader: Reader, today: date) -> str:
    """Return the notice about a clock that is behind, or samples that the figures do not include yet.

    It is empty if there are none, or unknown.
    """

    def read() -> str:
        # While the database is busy, pages are shown without the notice.
        with suppress(DBAPIError), reader.transaction() as connection:
            limit_seconds(connection, OUTSTANDING_SECONDS)
            issued = forecast_day(connection)
            if issued is not None and (issued - today).days > 1:
                return (
                    f"The newest forecasts are of {human_day(issued)}, but today is {human_day(today)} by the clock of "
                    "this machine. Check this clock."
                )
            return notice_of(uncomputed_samples(connection, today), today)
        return ""

    return reader.cached(("outstanding", today), read, UNMEASURED_SECONDS)


def notice_of(uncomputed: UncomputedSamples, today: date) -> str:
    """Return a sentence on samples that the figures do not include yet, with a command in backquotes."""
    if uncomputed.day is not None:
        command = "capacity aggregate --period daily" + ("" if uncomputed.day == today else f" --from {uncomputed.day}")
        return (
            f"Measured, not computed yet: {human_day(uncomputed.day)}. The next daily run adds it to these figures; "
            f"`{command}` adds it now."
        )
    if uncomputed.changed_at is None:
        return ""
    moment = uncomputed.changed_at.astimezone(UTC)
    are, them = ("is", "it") if uncomputed.windows == 1 else ("are", "them")
    return (
        f"Measured, not computed yet: samples changed at {moment:%H:%M} UTC on {human_day(moment.date())}, so "
        f"{counted(uncomputed.windows, 'window')} {are} out of date. The late data sensor recomputes {them}; "
        f"`capacity aggregate --period all --from {uncomputed.first_day}` does it now."
    )


def shared_revision(reader: Reader) -> tuple[object, ...]:
    """Return a value that changes when forecasts or declarations change.

    It is part of the cache key of every value with one of these, so updates show within seconds.
    """
    return reader.read_cached("forecasts", forecasts_revision, FORECASTS_SECONDS, is_for_all=True)


ROWS_PER_PAGE, ROWS_PER_FILE = 50, 10_000
"""Rows of a list on a page, and in its file."""
GROUPS_PER_PAGE = 200
MOST_PAGES = 200
LONGEST = 300
MONTH = re.compile(r"\d{4}-\d{2}")
FILE_FORMATS = {"csv": "CSV", "xlsx": "Excel"}
"""The formats of files, by name, as people call them."""
PAGE_FORMATS = ("html", "json", *FILE_FORMATS)
OF_FILES = ("format", "list")
"""Parameters of every page that has files: their format, and their list if a page has several."""
RANGE_NAMES = ("range", "first", "last", "compare")
ALL, CUSTOM, LONGEST_DAYS = "all", "custom", 3660
RANGES = {"30d": ("30 days", 30), "90d": ("90 days", 90), "1y": ("1 year", 366), ALL: ("All", LONGEST_DAYS)}
"""Ranges of charts up to the newest window: name and number of days. ALL begins with the oldest window."""
_YEAR, _LEAP_YEAR = r"(19|2[0-9])[0-9]{2}", r"((19|2[0-9])(0[48]|[2468][048]|[13579][26])|2[048]00)"
_DAY = (
    rf"{_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    rf"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29"
)
"""The days from FIRST_YEAR to LAST_YEAR as a regular expression."""
NO_NUL = r"[^\x00]*"
DATE: Mapping[str, object] = {"type": "string", "format": "date", "pattern": f"^({_DAY})$"}
MONTH_OR_DAY: Mapping[str, object] = {"type": "string", "pattern": f"^({_YEAR}-(0[1-9]|1[0-2])|{_DAY})$"}
TEXT: Mapping[str, object] = {"type": "string", "maxLength": LONGEST, "pattern": f"^{NO_NUL}$"}
NAME: Mapping[str, object] = {**TEXT, "minLength": 1}
LABEL_TEXT: Mapping[str, object] = {**TEXT, "pattern": f"^{KEY.pattern}={NO_NUL}$"}
OLDEST_SECONDS = 300
MOST_COLUMNS = 200
"""Stacked columns of a chart; more would be thinner than a line."""
MOST_WINDOWS, MOST_FLEET_WINDOWS = 400, 130
"""A range with more windows is shown by the next longer period. A window of the fleet reads a row of each server."""


@dataclass(frozen=True)
class PageQuery:
    """The parameters of a request. A method raises ValidationError if the value of its parameter is invalid.

    Empty parameters are ignored.
    """

    path: str
    values: Mapping[str, str]
    label_keys: Sequence[str]
    today: date

    def with_values(self, **changes: object) -> str:
        """Return this page's address with other values; None removes one."""
        return address(self.path, **{**self.values, **dict.fromkeys(OF_FILES), **changes})

    def without(self, *names: str) -> PageQuery:
        """Return this query without some parameters."""
        return replace(self, values={name: value for name, value in self.values.items() if name not in names})

    def text(self, name: str) -> str | None:
        """Return a parameter; None if it is missing."""
        value = self.values.get(name)
        if value is not None and (len(value) > LONGEST or "\0" in value):
            raise ValidationError(
                f"The parameter {name} is longer than {LONGEST} characters or contains a NUL character."
            )
        return value

    def needed(self, name: str) -> str:
        """Return a parameter that must not be missing."""
        value = self.text(name)
        if not value:
            raise ValidationError(f"The address lacks the parameter {name}.")
        return value

    def number(self, name: str, default: int, most: int) -> int:
        """Return a whole number from 1 to `most`."""
        text = self.text(name)
        if not text:
            return default
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= most):
            raise ValidationError(f"{name} must be a whole number from 1 to {most:,}.")
        return int(text)

    def server(self) -> int:
        """Return the ID of a server."""
        text = self.needed("server")
        if not text.isdecimal():
            found = f"/search?q={quote(text)} finds it by name"
            raise ValidationError(f"server must be the ID of a server, not {text!r}: {found}.")
        return self.number("server", 0, 2**31 - 1)

    def period(self, default: str = "daily") -> Period:
        """Return the period."""
        name = self.text("period") or default
        if name not in PERIODS:
            raise ValidationError(f"There is no period {name!r}; known are {', '.join(PERIODS)}.")
        return PERIODS[name]

    def day(self, name: str) -> date | None:
        """Return a day, or the first one of a month; None if it is missing."""
        text = self.text(name)
        if not text:
            return None
        try:
            day = date.fromisoformat(f"{text}-01" if MONTH.fullmatch(text) else text)
        except ValueError:
            kind = "month, as 2026-03" if name == "month" else "day, as 2026-03-31"
            raise ValidationError(f"{name} must be a {kind}.") from None
        if not FIRST_YEAR <= day.year <= LAST_YEAR:
            raise ValidationError(f"{name} must be in the years {FIRST_YEAR} to {LAST_YEAR}.")
        return day

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """Return one of the known words, the first by default."""
        value = self.text(name) or known[0]
        if value not in known:
            raise ValidationError(f"{name} must be one of {', '.join(filter(None, known))}.")
        return value

    def label(self) -> tuple[str, str] | None:
        """Return the label to filter by; an empty value selects everything without this key."""
        text = self.text("label")
        return key_and_value(text) if text else None

    @property
    def is_file(self) -> bool:
        """Whether the list of the page is requested as a file."""
        return self.values.get("format") in FILE_FORMATS

    @property
    def rows_shown(self) -> int:
        """Number of rows on a page of a list, or in a file."""
        return ROWS_PER_FILE if self.is_file else ROWS_PER_PAGE

    @property
    def page(self) -> int:
        """The page of a long list, from 1."""
        return self.number("page", 1, MOST_PAGES)


def every_few(items: Sequence[T], most: int) -> Sequence[T]:
    """Return at most `most` of them, evenly spaced, the last one included."""
    step = -(-len(items) // most) or 1
    return items[(len(items) - 1) % step :: step]


def part_of_page(rows: Sequence[T], query: PageQuery) -> tuple[Sequence[T], bool]:
    """Return the rows of a page of groups, and whether there are more."""
    most = max(query.rows_shown, GROUPS_PER_PAGE)
    first = (query.page - 1) * most
    return rows[first : first + most], len(rows) > first + most


def shared_windows(reader: Reader, query: PageQuery, period: Period) -> tuple[Window | None, Window | None]:
    """Return the newest window and the last complete one; None: none was computed."""

    def read(connection: Connection) -> tuple[Window | None, Window | None]:
        newest = newest_window(connection, period)
        return newest, complete_window(connection, period, newest, query.today)

    return reader.read_cached(("windows", period.name, query.today), read, WINDOWS_SECONDS)


def with_partial_marks(reader: Reader, period: Period, sizes: Sequence[SizeInWindow]) -> Sequence[SizeInWindow]:
    """Return sizes of the fleet with those of partly measured windows marked."""
    if not sizes:
        return sizes
    key = ("partial", period.name, sizes[0].window_start, sizes[-1].window_start)
    read = partial(partial_windows, period=period, sizes=sizes)
    return mark_partial(sizes, reader.read_cached(key, read, PARTIAL_SECONDS, is_for_all=True))


def chosen_window(reader: Reader, query: PageQuery, period: Period) -> Window | None:
    """Return the window of the address, by default the last complete one."""
    day = query.day("window")
    return shared_windows(reader, query, period)[1] if day is None else period.window_of(day)


@dataclass(frozen=True)
class ChartRange:
    """The range of a chart: a key of RANGES, CUSTOM, or None for the usual number of windows."""

    name: str | None
    first: date | None
    last: date | None
    period: str
    is_longer_period: bool = False
    """Whether the range has too many windows of the chosen period, so that a longer one is shown."""
    is_compared: bool = False
    """Whether the sizes of the previous year are shown too."""

    def windows(self, newest: Window | None) -> list[Window]:
        """Return the windows up to the newest one, oldest first; empty if the range begins after it."""
        period = PERIODS[self.period]
        if newest is None:
            return []
        if self.name is None:
            return windows_back(period, newest)
        first, last = self._days(newest.end)
        last = min(last, newest.end)
        return list(period.windows_between(first, last)) if first <= last else []

    def earlier(self, windows: Sequence[Window]) -> list[Window]:
        """Return the window of the previous year for each window; empty unless they are compared."""
        return [PERIODS[self.period].year_before(window) for window in windows] if self.is_compared else []

    def fitted(self, today: date, most: int) -> ChartRange:
        """Return the range in the shortest period, from the chosen one on, with at most `most` windows."""
        if self.name is None:
            return self
        first, last = self._days(today)
        days = (last - first).days + 1
        longer = list(PERIODS.values())[list(PERIODS).index(self.period) :]
        period = next((one for one in longer if days / one.window_of(first).days <= most), longer[-1])
        return replace(self, period=period.name, is_longer_period=period.name != self.period)

    def _days(self, end: date) -> tuple[date, date]:
        last = self.last or end
        _, days = RANGES.get(self.name or "", RANGES[ALL])
        return self.first or last - timedelta(days=days - 1), last


def shown_range(reader: Reader, query: PageQuery, default: str = "daily", most: int = MOST_WINDOWS) -> ChartRange:
    """Return the range of the address, by a period that fits; raises ValidationError, DBAPIError."""
    chosen = chosen_range(query, default)
    if chosen.name == ALL:
        chosen = replace(chosen, first=reader.read_cached("oldest window", oldest_window, OLDEST_SECONDS))
    return chosen.fitted(query.today, most)


def chosen_range(query: PageQuery, default: str = "daily") -> ChartRange:
    """Return the range of the address by its period; raises ValidationError."""
    period, name = query.period(default).name, query.text("range") or None
    first, last = query.day("first"), query.day("last")
    is_compared = query.one_of("compare", ("", "year")) == "year"
    if name is not None and name not in RANGES:
        raise ValidationError(f"range must be one of {', '.join(RANGES)}.")
    if first is not None and last is not None and first > last:
        first, last = last, first
    return ChartRange(CUSTOM if first or last else name, first, last, period, is_compared=is_compared)
