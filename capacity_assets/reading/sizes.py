"""Sizes over time: of the fleet, its engines and groups, and of one server, database or volume, window by window."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection

from capacity_assets.base.declarations import fleet_or_label
from capacity_assets.base.periods import DAYS_PER_WEEK, PERIODS, Period, Window
from capacity_assets.base.units import LARGEST_MB, human_change_mb, human_mb, human_percent
from capacity_assets.reading.access import has_derived, records, rows
from capacity_assets.reading.coverage import (
    NEWEST_WINDOWS,
    NOTICEABLE,
    counts_of_databases,
    incomplete_windows,
    measured_ends,
    windows_with_holes,
    windows_with_short_databases,
)
from capacity_assets.reading.windows import newest_day, newest_window, of_windows

WINDOWS_SHOWN = {"daily": 90, "weekly": 52, "monthly": 24, "quarterly": 12, "yearly": 10}
OTHER_PERIODS_SHOWN = 24


@dataclass(frozen=True)
class SizeInWindow:
    """A size in one window, MiB; None if nothing was measured. `largest_mb` and `smallest_mb`: of its days."""

    window_start: date
    window_end: date
    size_mb: int | None
    change_mb: int | None = None
    change_percent: float | None = None
    largest_mb: int | None = None
    smallest_mb: int | None = None
    measured_days: int | None = None
    """None if the size is a sum over several servers."""
    is_partial: bool = False
    """Whether a server or some databases were not measured in this window and are missing in `size_mb`."""
    is_change_partial: bool = False
    """Whether this window or the one before is partial: then `change_mb` is neither growth nor shrinkage."""
    databases: int | None = None
    """Databases of a server, or of the fleet."""
    known_before_mb: int | None = None
    """Of a sum over servers or engines: the previous size of those with a known change; otherwise None."""

    @property
    def compared_mb(self) -> int:
        """The previous size with which `change_mb` compares; 0 if no change is known."""
        if self.known_before_mb is not None:
            return self.known_before_mb
        return 0 if self.size_mb is None or self.change_mb is None else self.size_mb - self.change_mb


def windows_back(period: Period, newest: Window) -> list[Window]:
    """Return the windows of a history, oldest first, as many as are usual for the period."""
    return period.back(newest, WINDOWS_SHOWN.get(period.name, OTHER_PERIODS_SHOWN))


def with_gaps(windows: Sequence[Window], sizes: Sequence[SizeInWindow]) -> list[SizeInWindow]:
    """Return one size per window from the first measured one on, oldest first; unmeasured windows are empty."""
    by_start = {size.window_start: size for size in sizes}
    empty = (SizeInWindow(window.start, window.end, None, measured_days=0) for window in windows)
    every = [by_start.get(size.window_start, size) for size in empty]
    first = next((number for number, size in enumerate(every) if size.size_mb is not None), len(every))
    return every[first:]


def mark_partial(sizes: Sequence[SizeInWindow], partial: Collection[date]) -> list[SizeInWindow]:
    """Return the sizes with partial windows marked."""
    before = [None, *sizes][: len(sizes)]
    return [
        replace(
            size,
            is_partial=size.window_start in partial,
            is_change_partial=size.window_start in partial or (last is not None and last.window_start in partial),
        )
        for size, last in zip(sizes, before, strict=True)
    ]


def change_sentence(whose: str, period: Period, window_size: SizeInWindow, *, is_open: bool = False) -> str:
    """Return size and change of a window as a sentence; `whose` is *the fleet* or a label, `is_open`: not over."""
    window = Window(window_size.window_start, window_size.window_end)
    within = "on" if period.days == 1 else "in"
    when = f"{within} {'the week of ' if period.days == DAYS_PER_WEEK else ''}{period.name_of(window)}"
    if not window_size.size_mb:
        return f"Nothing was measured of {whose} {when}."
    when += " so far" if is_open else ""
    size = f"{'The fleet' if whose == fleet_or_label(None) else whose}: {human_mb(window_size.size_mb)}"
    if window_size.is_change_partial:
        which = f"that {period.noun}" if window_size.is_partial else f"the {period.noun} before"
        return f"{size} {when}. Not everything was measured {within} {which}, so no change is shown."
    if window_size.change_mb is None:
        return f"{size} {when}; change unknown."
    share = human_percent(window_size.change_mb, window_size.compared_mb)
    return f"{size}, {human_change_mb(window_size.change_mb)} ({share}) {when}."


@dataclass(frozen=True)
class FleetSize:
    """The fleet, or one server, in one window, MiB: sums over its servers, as docs/semantics.md defines them.

    `change_mb` is the sum of known changes, None without any; `known_before_mb` is the previous size of these servers.
    """

    window_start: date
    window_end: date
    servers: int = 0
    databases: int = 0
    size_mb: int = 0
    change_mb: int | None = None
    known_before_mb: int = 0


def fleet_sizes(
    connection: Connection, period: Period, windows: Sequence[Window], server_id: int | None = None
) -> dict[date, FleetSize]:
    """Return the size of the fleet, or of one server, by first day of the windows in which it was measured."""
    statement = """
        SELECT window_start, window_end, count(*) AS servers, coalesce(sum(databases), 0) AS databases,
               sum(size_mb) AS size_mb, sum(change_mb) AS change_mb,
               coalesce(sum(size_mb - change_mb), 0) AS known_before_mb
        FROM capacity_server_growth
        WHERE period = :period AND (:with_derived OR NOT is_derived)
          AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start
          AND (server_id = :server OR CAST(:server AS integer) IS NULL AND counted)
        GROUP BY window_start, window_end ORDER BY window_start"""
    sizes = records(FleetSize, connection, statement, **_of(period, windows), server=server_id)
    return {size.window_start: size for size in sizes}


def fleet_history(connection: Connection, period: Period, windows: Sequence[Window]) -> list[SizeInWindow]:
    """Return the sizes of the fleet in the windows in which it was measured."""
    return [
        SizeInWindow(
            *(size.window_start, size.window_end, size.size_mb, size.change_mb),
            databases=size.databases,
            known_before_mb=size.known_before_mb,
        )
        for size in fleet_sizes(connection, period, windows).values()
    ]


@dataclass(frozen=True)
class LastSize:
    """The last known size of a server, MiB, and the day on which it was measured."""

    server_id: int
    server: str
    day: date
    size_mb: int
    databases: int


@dataclass(frozen=True)
class CurrentFleetSize:
    """The fleet by the last known size of each server in service, MiB.

    Sizes that lack some databases are replaced by earlier ones. Servers that another server counts (replicas, shared
    storage) are left out.
    """

    size_mb: int | None
    """None: no server was measured yet."""
    databases: int
    servers: int
    """Servers in service, measured or not."""
    never_measured: int
    """Those among them without any size."""
    newest_day: date | None
    oldest: LastSize | None
    """The server with the oldest last size; None: all are of the newest day."""
    older_sizes: int
    """Servers whose last size is older than the newest day."""
    growth_days: int
    growth_mb: int | None
    """Growth of the servers measured both now and `growth_days` before; None: there is none."""
    growth_servers: int
    growth_before_mb: int
    """The size of these servers then."""


DERIVED_DAYS_BACK = (1, 7, 31)
"""Days back in which servers without totals are searched: the newest day, then a week, then a month."""
GROWTH_DAYS, GROWTH_TOLERANCE_DAYS = 90, 7
"""Growth is compared with the size GROWTH_DAYS ago, or up to GROWTH_TOLERANCE_DAYS earlier if that is missing."""


def fleet_now(connection: Connection, today: date) -> CurrentFleetSize:
    """Return the size of the fleet by the newest sample of each server up to today, and its growth like for like."""
    in_service = "SELECT server_id FROM capacity_servers WHERE is_active AND counted_by IS NULL"
    servers = [row.server_id for row in rows(connection, in_service)]
    now = _without_holes(connection, last_sizes(connection, servers, today))
    newest = max((size.day for size in now.values()), default=None)
    older = sorted((size for size in now.values() if size.day != newest), key=lambda size: (size.day, size.server))
    then: dict[int, LastSize] = {}
    if newest is not None:
        until = newest - timedelta(days=GROWTH_DAYS)
        then = last_sizes(connection, list(now), until, since=until - timedelta(days=GROWTH_TOLERANCE_DAYS))
    return CurrentFleetSize(
        sum(size.size_mb for size in now.values()) if now else None,
        sum(size.databases for size in now.values()),
        len(servers),
        len(servers) - len(now),
        newest,
        older[0] if older else None,
        len(older),
        GROWTH_DAYS,
        sum(now[server].size_mb - size.size_mb for server, size in then.items()) if then else None,
        len(then),
        sum(size.size_mb for size in then.values()),
    )


def _without_holes(connection: Connection, now: Mapping[int, LastSize]) -> dict[int, LastSize]:
    """Replace sizes that lack some databases by the last ones that do not."""
    newest = max((size.day for size in now.values()), default=None)
    if newest is None:
        return {}
    daily = PERIODS["daily"]
    starts = [window.start for window in daily.back(daily.window_of(newest), NEWEST_WINDOWS + 1)]
    holes = windows_with_holes(connection, daily, counts_of_databases(connection, daily, starts, None), newest)
    whole = {server: before for (server, start), before in holes.items() if server in now and now[server].day == start}
    earlier: dict[int, LastSize] = {}
    for day in set(whole.values()):
        of_day = [server for server, before in whole.items() if before == day]
        earlier |= last_sizes(connection, of_day, day)
    return {**now, **earlier}


def last_sizes(
    connection: Connection, servers: Sequence[int], until: date, since: date = date.min
) -> dict[int, LastSize]:
    """Return the newest size of each server in a range of days; servers without one are left out.

    It is the total of a day or, on newer days without a total, the sum of the databases.
    """
    totals = """
        SELECT t.server_id, t.server, t.day, sum(t.size_mb) AS size_mb, sum(t.databases) AS databases
        FROM unnest(CAST(:servers AS integer[]), CAST(:days AS date[])) AS newest (server_id, day)
        JOIN capacity_server_samples t ON t.server_id = newest.server_id AND t.day = newest.day
        GROUP BY t.server_id, t.server, t.day"""
    derived = """
        SELECT DISTINCT ON (server_id) server_id, server, window_start AS day, size_mb, databases
        FROM capacity_server_growth
        WHERE period = :period AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start AND is_derived
          AND server_id = ANY (CAST(:servers AS integer[]))
        ORDER BY server_id, window_start DESC"""
    if not servers:
        return {}
    ends = measured_ends(connection, servers, until, newest=True)
    ends = {server: day for server, day in ends.items() if day >= since}
    measured = records(LastSize, connection, totals, servers=list(ends), days=list(ends.values()))
    sizes = {size.server_id: size for size in measured if size.size_mb <= LARGEST_MB}
    newest = min(until, newest_day(connection, until) or until)
    # Servers without a total on the newest day. Few days, because each is read with all of their databases.
    back = 0
    for days_back in DERIVED_DAYS_BACK if has_derived(connection, "daily") else ():
        days = [newest - timedelta(days=number) for number in range(back, days_back)]
        days = [day for day in days if day >= since]
        without = [server for server in servers if server not in sizes or sizes[server].day < max(days, default=since)]
        if not days or not without:
            break
        of_days = of_windows(PERIODS["daily"], days)
        for size in records(LastSize, connection, derived, **of_days, servers=without):
            if size.server_id not in sizes or sizes[size.server_id].day < size.day:
                sizes[size.server_id] = size
        back = days_back
    return sizes


@dataclass(frozen=True)
class SeriesSize:
    """One series in one window, MiB: an engine of the fleet, or a database of a server."""

    window_start: date
    series: str
    size_mb: int


def engine_sizes(connection: Connection, period: Period, windows: Sequence[Window]) -> list[SeriesSize]:
    """Return the sizes of the engines by window; in each window they add up to its `FleetSize`."""
    statement = """
        SELECT window_start, engine AS series, sum(size_mb) AS size_mb FROM capacity_server_growth
        WHERE period = :period AND (:with_derived OR NOT is_derived)
          AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start AND counted
        GROUP BY window_start, engine ORDER BY window_start, engine"""
    return records(SeriesSize, connection, statement, **_of(period, windows))


def database_shares(
    connection: Connection, period: Period, windows: Sequence[Window], server_id: int
) -> list[SeriesSize]:
    """Return the databases of a server by window, each by its share of the server's measured days."""
    statement = """
        WITH servers AS MATERIALIZED (
            SELECT window_start, measured_days FROM capacity_server_growth
            WHERE server_id = :server AND period = :period AND (:with_derived OR NOT is_derived)
              AND window_start = ANY (CAST(:starts AS date[])) AND window_start BETWEEN :first_start AND :last_start
        )
        SELECT d.window_start, d.database AS series,
               round(d.size_mb * CAST(d.measured_days AS numeric) / greatest(d.measured_days, s.measured_days))
                   AS size_mb
        FROM capacity_growth d JOIN servers s ON s.window_start = d.window_start
        WHERE d.server_id = :server AND d.period = :period AND d.window_start = ANY (CAST(:starts AS date[]))
          AND d.window_start BETWEEN :first_start AND :last_start
          AND d.size_mb <= :largest_mb AND (d.change_mb IS NULL OR d.change_mb BETWEEN -:largest_mb AND :largest_mb)
        ORDER BY d.window_start, d.database"""
    return records(SeriesSize, connection, statement, **_of(period, windows), server=server_id, largest_mb=LARGEST_MB)


def server_history(
    connection: Connection, period: Period, windows: Sequence[Window], server_id: int, newest: Window
) -> list[SizeInWindow]:
    """Return the sizes of a server in windows, with gaps; `newest` is the newest window of the period."""
    if not windows:
        return []
    statement = """
        SELECT window_start, window_end, size_mb, change_mb, CAST(change_percent AS double precision) AS change_percent,
               largest_size_mb AS largest_mb, smallest_size_mb AS smallest_mb, measured_days, databases
        FROM capacity_server_growth
        WHERE server_id = :server AND period = :period AND (:with_derived OR NOT is_derived)
          AND window_start = ANY (CAST(:starts AS date[])) AND window_start BETWEEN :first_start AND :last_start"""
    sizes = records(SizeInWindow, connection, statement, **_of(period, windows), server=server_id)
    counts = {size.window_start: size.databases for size in sizes if size.databases is not None}
    days = {size.window_start: size.measured_days for size in sizes if size.measured_days is not None}
    holes = windows_with_holes(connection, period, {server_id: counts}, newest.start)
    short = windows_with_short_databases(connection, period, server_id, days, max(counts.values(), default=0))
    return mark_partial(with_gaps(windows, sizes), {start for _, start in holes} | short)


def used_history(
    connection: Connection, period: Period, windows: Sequence[Window], server_id: int, database: str
) -> list[SizeInWindow]:
    """Return the used space inside the files of a database in windows, with gaps; empty if it was not measured."""
    statement = """
        SELECT window_start, window_end, used_size_mb AS size_mb, measured_days FROM capacity_growth
        WHERE server_id = :server AND database = :database AND period = :period AND used_size_mb IS NOT NULL
          AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start"""
    of_database = {**_of(period, windows), "server": server_id, "database": database}
    return with_gaps(windows, records(SizeInWindow, connection, statement, **of_database))


def database_history(
    connection: Connection, period: Period, windows: Sequence[Window], server_id: int, database: str
) -> list[SizeInWindow]:
    """Return the sizes of a database in windows, with gaps."""
    statement = """
        SELECT window_start, window_end, size_mb, change_mb, CAST(change_percent AS double precision) AS change_percent,
               largest_size_mb AS largest_mb, smallest_size_mb AS smallest_mb, measured_days
        FROM capacity_growth
        WHERE server_id = :server AND database = :database AND period = :period
          AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start"""
    of_database = {**_of(period, windows), "server": server_id, "database": database}
    return with_gaps(windows, records(SizeInWindow, connection, statement, **of_database))


def volume_history(connection: Connection, days: Sequence[Window], server_id: int, volume: str) -> list[SizeInWindow]:
    """Return the used size of a volume by day, with gaps."""
    statement = """
        SELECT day AS window_start, day AS window_end, used_mb AS size_mb, 1 AS measured_days FROM capacity_volumes
        WHERE server_id = :server AND volume = :volume AND day BETWEEN :first AND :last"""
    if not days:
        return []
    span = {"first": days[0].start, "last": days[-1].end}
    return with_gaps(days, records(SizeInWindow, connection, statement, server=server_id, volume=volume, **span))


def partial_windows(connection: Connection, period: Period, sizes: Sequence[SizeInWindow]) -> set[date]:
    """Return the windows of the fleet in which a server is missing, or noticeably many databases of one."""
    if not sizes:
        return set()
    incomplete = incomplete_windows(connection, period, sizes[0].window_start)
    whole = [size for size in sizes if size.size_mb is not None and size.window_start not in incomplete]
    newest = newest_window(connection, period)
    newest_start = newest.start if newest else sizes[-1].window_start
    holes: set[date] = set()
    for place, size in enumerate(whole[1:], start=1):
        around = [whole[place - 1], *whole[place + 1 : place + 2]]
        if all((size.size_mb or 0) < NOTICEABLE * (other.size_mb or 0) for other in around):
            starts = [other.window_start for other in (*around, size)]
            counts = counts_of_databases(connection, period, starts, None)
            with_holes = windows_with_holes(connection, period, counts, newest_start)
            holes |= {start for _, start in with_holes if start == size.window_start}
    return incomplete | holes


def _of(period: Period, windows: Sequence[Window]) -> dict[str, Any]:
    return of_windows(period, [window.start for window in windows])
