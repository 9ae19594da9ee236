"""Groups: their sizes in a window and over time, which were partly measured, and what uses their space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row

from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.units import IMPOSSIBLE_SIZES, counted, first_of, human_mb, percent_of
from capacity_assets.label_rules import LABELS_OF_SUBJECTS
from capacity_assets.ownership.bills import group_named
from capacity_assets.ownership.labels import WITHOUT_LABEL, GroupFillDate
from capacity_assets.reading.access import WITHOUT_LOOPS, planned_with, records, rows
from capacity_assets.reading.coverage import NOTICEABLE, left_out_days, left_out_servers, measured_before
from capacity_assets.reading.lists import DatabaseRow, databases
from capacity_assets.reading.sizes import LastSize, SizeInWindow, last_sizes
from capacity_assets.reading.windows import newest_day, of_windows

TENTHS = 1000
"""A whole in tenths of a percent."""
GROUPS_NAMED = 10


def group_sizes(
    connection: Connection, period: Period, windows: Sequence[Window], grouped_by: str, name: str | None
) -> list[SizeInWindow]:
    """Return the windows in which a group is not empty, oldest first; `name` None: databases without the label.

    Without any label of a key, everything is one group.
    """
    if not windows:
        return []
    of_windows = {"period": period.name, "starts": [window.start for window in windows]}
    of_group = """
        SELECT window_start, window_end, size_mb, change_mb FROM capacity_groups
        WHERE period = :period AND window_start = ANY (CAST(:starts AS date[])) AND grouped_by = :grouped_by
          AND group_name IS NOT DISTINCT FROM CAST(:name AS text)
        ORDER BY window_start"""
    of_everything = """
        SELECT window_start, window_end, sum(size_mb) AS size_mb, sum(change_mb) AS change_mb,
               coalesce(sum(size_mb - change_mb), 0) AS known_before_mb FROM capacity_groups
        WHERE period = :period AND window_start = ANY (CAST(:starts AS date[])) AND grouped_by = 'engine'
        GROUP BY window_start, window_end ORDER BY window_start"""
    of_key = """
        SELECT 1 FROM capacity_groups
        WHERE period = :period AND window_start = ANY (CAST(:starts AS date[])) AND grouped_by = :grouped_by LIMIT 1"""
    sizes = records(SizeInWindow, connection, of_group, **of_windows, grouped_by=grouped_by, name=name)
    if sizes or name is not None or rows(connection, of_key, **of_windows, grouped_by=grouped_by):
        return sizes
    return records(SizeInWindow, connection, of_everything, **of_windows)


def group_names(connection: Connection, by: str) -> list[str]:
    """Return the names of the groups by engine, server or a label, sorted; the group without the label is last.

    They give each group its place in charts, whichever groups a chart contains.
    """
    statement = """
        SELECT DISTINCT value AS name FROM capacity_label_spans
        WHERE key = :by AND value IS NOT NULL AND valid_until = 'infinity'"""
    of_servers = {
        "engine": "SELECT DISTINCT engine AS name FROM capacity_servers",
        "server": "SELECT server AS name FROM capacity_servers",
    }
    if by in of_servers:
        return sorted(row.name for row in rows(connection, of_servers[by]))
    return [*sorted(row.name for row in rows(connection, statement, by=by)), group_named(None, by)]


@dataclass(frozen=True)
class GroupMove:
    """A database that left one group for another in a window, with its mean size in it, MiB; group None: no label."""

    window_start: date
    server_id: int
    server: str
    database: str
    size_mb: int
    from_group: str | None
    to_group: str | None


FEW_SERVERS, LARGEST_TRIED = 10, 1_000
"""Above this number of servers with other labels, moves are searched among their largest databases first."""


def group_moves(  # noqa: PLR0913 -- a group is a key and a name
    connection: Connection,
    period: Period,
    windows: Sequence[Window],
    by: str,
    *,
    shown: int,
    every: bool = False,
    name: str | None = None,
) -> list[GroupMove]:
    """Return the first `shown` databases whose label of this key changed in a window: of `every` group, or of one.

    The newest window is first, and in each the largest database. Databases measured in only one of a window and the
    previous one do not move. Engines and servers have no moves.
    """
    if by in WITHOUT_LABEL or not windows:
        return []
    spans = """
        SELECT DISTINCT instance_id AS server_id, valid_from FROM capacity_label_spans
        WHERE key = :by AND valid_from BETWEEN :first AND :last"""
    changed = rows(connection, spans, by=by, first=windows[0].start, last=windows[-1].end)
    moves: list[GroupMove] = []
    for window in reversed(windows):
        servers = {row.server_id for row in changed if window.start <= row.valid_from <= window.end}
        if servers and len(moves) < shown:
            before = period.previous(window)
            days = {"before": before.start, "before_end": before.end, "start": window.start, "end": window.end}
            which = {"by": by, "every": every, "name": name, "servers": list(servers), "shown": shown - len(moves)}
            in_window: list[GroupMove] = []
            # Of a hundred thousand databases, the largest are enough if many of them have moved.
            for most in (LARGEST_TRIED, None) if len(servers) > FEW_SERVERS else (None,):
                if len(in_window) < shown - len(moves):
                    in_window = records(GroupMove, connection, _MOVES, period=period.name, **days, **which, most=most)
            moves += in_window
    return moves


_MOVES = f"""
WITH measured AS MATERIALIZED (
    SELECT row_number() OVER () AS number, n.server_id, n.server, n.database, n.size_mb
    FROM capacity_growth n JOIN capacity_growth b ON b.server_id = n.server_id AND b.database = n.database
    WHERE n.period = :period AND n.window_start = :start AND b.period = :period AND b.window_start = :before
      AND n.counted AND n.server_id = ANY (CAST(:servers AS integer[]))
    ORDER BY n.size_mb DESC, n.server_id, n.database LIMIT CAST(:most AS integer)
), subjects AS (
    SELECT 2 * m.number + d.number AS number, m.server_id AS instance_id, m.database AS database_name, d.day
    FROM measured m CROSS JOIN (VALUES (0, CAST(:before_end AS date)), (1, CAST(:end AS date))) AS d (number, day)
), held AS MATERIALIZED ({LABELS_OF_SUBJECTS}), moved AS (
    SELECT m.*, old.labels ->> :by AS from_group, new.labels ->> :by AS to_group
    FROM measured m LEFT JOIN held old ON old.number = 2 * m.number LEFT JOIN held new ON new.number = 2 * m.number + 1
)
SELECT CAST(:start AS date) AS window_start, server_id, server, database, size_mb, from_group, to_group FROM moved
WHERE from_group IS DISTINCT FROM to_group
  AND (:every OR from_group IS NOT DISTINCT FROM CAST(:name AS text)
       OR to_group IS NOT DISTINCT FROM CAST(:name AS text))
ORDER BY size_mb DESC, server_id, database LIMIT :shown
"""  # noqa: S608 -- the order of labels is defined once


@dataclass(frozen=True)
class Group:
    """A group in a window; `name` None: databases without the label. `change_mb` None: not known."""

    name: str | None
    servers: int
    databases: int
    size_mb: int
    change_mb: int | None
    fills_first: GroupFillDate | None = None
    change_percent: float | None = None
    """The change in percent of the previous size, to a tenth; None if it is not known or the previous size is 0."""
    share_percent: float | None = None
    """Its share of all groups in percent, to a tenth; shares add up to 100."""
    is_partial: bool = False
    """Whether a server of the group was not measured in the window, or on far fewer days than others."""
    is_change_partial: bool = False
    """Whether it was partly measured in this window or the one before. Its change is then like for like."""
    known_before_mb: int = 0
    """The previous size with which `change_mb` compares, MiB; 0 if no change is known."""

    @property
    def growth(self) -> str:
        """The change in percent, as people read it."""
        if self.change_percent is None:
            return "unknown"
        return f"{self.change_percent:+,.1f} %" if self.change_percent else "0.0 %"


def groups_of(
    connection: Connection,
    period: Period,
    window: Window,
    by: str,
    fills: Mapping[str | None, GroupFillDate] = MappingProxyType({}),
) -> list[Group]:
    """Return the groups of a window, the largest first, each with its entry in `fills`; raises DBAPIError.

    The change of groups that were partly measured, in the window or the previous one, is like for like. If no group is
    stored, the list is empty. Without any label of a key, everything is one group.
    """
    of_window = {"period": period.name, "start": window.start}
    stored = rows(connection, _GROUPS, **of_window, by=by)
    if not stored and by not in WITHOUT_LABEL:
        stored = rows(connection, _WITHOUT_LABELS, **of_window)
    partial = partial_groups(connection, period, window, by, {row.name: row.size_mb for row in stored})
    now, either = partial[window.start], set().union(*partial.values())
    known = changes_of_databases(connection, period, [window.start], by) if either else {}
    changes = {
        row.name: known.get((window.start, row.name), (None, 0)) if row.name in either else (row.change_mb, row.size_mb)
        for row in stored
    }
    return [
        Group(
            row.name,
            row.servers,
            row.databases,
            row.size_mb,
            change_mb,
            fills.get(row.name),
            _percent(change_mb, size_mb),
            share_percent,
            is_partial=row.name in now,
            is_change_partial=row.name in either,
            known_before_mb=0 if change_mb is None else size_mb - change_mb,
        )
        for row, (change_mb, size_mb), share_percent in zip(
            stored, changes.values(), _shares([row.size_mb for row in stored]), strict=True
        )
    ]


def _percent(change_mb: int | None, size_mb: int) -> float | None:
    percent = None if change_mb is None else percent_of(change_mb, size_mb - change_mb)
    return None if percent is None else float(percent)


def _shares(sizes_mb: Sequence[int]) -> list[float | None]:
    """Return the share of each size in percent, rounded down to a tenth.

    The tenths that are missing to 100 go to the shares that lost most by rounding down.
    """
    whole = sum(sizes_mb)
    if not whole:
        return [None] * len(sizes_mb)
    tenths = [size * TENTHS // whole for size in sizes_mb]
    lost = sorted(range(len(sizes_mb)), key=lambda number: sizes_mb[number] * TENTHS % whole, reverse=True)
    for number in lost[: TENTHS - sum(tenths)]:
        tenths[number] += 1
    return [share / 10 for share in tenths]


def measured_notes(groups: Sequence[Group], by: str) -> list[str]:
    """Return a sentence on which groups were partly measured, and the meaning of their change."""
    partial, compared = (
        first_of((group_named(group.name, by) for group in groups if is_so(group)), GROUPS_NAMED)
        for is_so in (attrgetter("is_partial"), attrgetter("is_change_partial"))
    )
    return [
        *([f"Partly measured, so the mean size is too low: {partial}."] if partial else []),
        *(
            [
                f"For {compared}, changes are like for like: they count only databases measured in both windows, "
                "because not every server was measured on every day."
            ]
            if compared
            else []
        ),
    ]


def left_out_note(connection: Connection, period: Period, window: Window) -> str | None:
    """Return a sentence on the servers that are left out of groups; None: there are none."""
    servers = left_out_servers(connection, period, [window])
    if not servers:
        return None
    named = first_of((f"{one.server} ({counted(one.left_out_days, 'day')})" for one in servers), GROUPS_NAMED)
    return f"Not in any group ({IMPOSSIBLE_SIZES}): {named}. Correct the samples to recompute the groups."


def out_of_service_note(connection: Connection, period: Period, window: Window, by: str) -> str | None:
    """Return a sentence on servers that groups contain and the size of the fleet does not; None: there are none.

    These are out of service, were measured in the window, and have no row of it. Groups by server do not contain them.
    """
    if by == "server":
        return None
    # Not joined, so that distributed tables are read on the nodes.
    retired = {row.server_id: row.server for row in rows(connection, _OUT_OF_SERVICE)}
    of_window = {"period": period.name, "start": window.start}
    stored = rows(connection, _STORED, **of_window, servers=list(retired)) if retired else ()
    left = list(retired.keys() - {row.server_id for row in stored})
    sums: dict[int, int] = {}
    # A server without totals is the sum of its databases.
    for statement in (_SUMS, _SUMS_OF_DATABASES):
        without = [server for server in left if server not in sums]
        of_servers = rows(connection, statement, days=window.dates, servers=without) if without else ()
        sums |= {row.server_id: int(row.sum_mb) for row in of_servers}
    if not sums:
        return None
    measured = rows(connection, _MEASURED_DAYS, **of_window)[0].days or len(window.dates)
    largest = sorted(sums, key=lambda server: (-sums[server], retired[server]))
    named = first_of((f"{retired[server]} ({human_mb(sums[server] // measured)})" for server in largest), GROUPS_NAMED)
    return f"Groups also contain servers that are out of service now: {named}. The size of the fleet does not."


def departed_servers(connection: Connection, windows: Sequence[Window], by: str, name: str | None) -> list[LastSize]:
    """Return the servers out of service that left a group in these windows, the last one first, with their last size.

    A server leaves on the day after its last sample, the group that it had as a whole on that day. A window in which it
    left contains it for some of the days.
    """
    if by == "server" or not windows:
        return []
    retired = [row.server_id for row in rows(connection, _OUT_OF_SERVICE)]
    a_day = timedelta(days=1)
    sizes = last_sizes(connection, retired, windows[-1].end, since=windows[0].start - a_day)
    departed = [size for size in sizes.values() if size.day < windows[-1].end]
    servers, days = [size.server_id for size in departed], [size.day for size in departed]
    members = rows(connection, _LAST_GROUPS, servers=servers, days=days, by=by, name=name) if departed else ()
    of_group = {row.server_id for row in members}
    return sorted(
        (size for size in departed if size.server_id in of_group), key=lambda size: (-size.day.toordinal(), size.server)
    )


_LAST_GROUPS = f"""
WITH subjects AS (
    SELECT s.server_id AS number, s.server_id AS instance_id, CAST(NULL AS text) AS database_name, s.day
    FROM unnest(CAST(:servers AS integer[]), CAST(:days AS date[])) AS s (server_id, day)
), held AS ({LABELS_OF_SUBJECTS})
SELECT s.number AS server_id FROM subjects s
JOIN capacity_servers r ON r.server_id = s.number LEFT JOIN held ON held.number = s.number
WHERE CASE :by WHEN 'engine' THEN r.engine ELSE held.labels ->> :by END IS NOT DISTINCT FROM CAST(:name AS text)
"""  # noqa: S608 -- the order of labels is defined once
_OUT_OF_SERVICE = "SELECT server_id, server FROM capacity_servers WHERE NOT is_active AND counted_by IS NULL"
_STORED = """
SELECT server_id FROM capacity_server_growth
WHERE period = :period AND (:with_derived OR NOT is_derived)
  AND window_start = :start AND server_id = ANY (CAST(:servers AS integer[]))
"""
_SUMS, _SUMS_OF_DATABASES = (
    """
    SELECT server_id, sum(size_mb) AS sum_mb FROM capacity_server_samples
    WHERE day = ANY (CAST(:days AS date[])) AND server_id = ANY (CAST(:servers AS integer[])) GROUP BY server_id""",
    """
    SELECT server_id, sum(size_mb) AS sum_mb FROM capacity_samples
    WHERE day = ANY (CAST(:days AS date[])) AND server_id = ANY (CAST(:servers AS integer[])) GROUP BY server_id""",
)
_MEASURED_DAYS = """
SELECT max(measured_days) AS days FROM capacity_server_growth
WHERE period = :period AND (:with_derived OR NOT is_derived) AND window_start = :start AND counted
"""
_GROUPS = """
SELECT group_name AS name, servers, databases, CAST(size_mb AS bigint) AS size_mb,
       CAST(change_mb AS bigint) AS change_mb
FROM capacity_groups WHERE period = :period AND window_start = :start AND grouped_by = :by
ORDER BY size_mb DESC, group_name NULLS LAST
"""
_WITHOUT_LABELS = """
SELECT CAST(NULL AS text) AS name, CAST(sum(servers) AS bigint) AS servers, CAST(sum(databases) AS bigint) AS databases,
       CAST(sum(size_mb) AS bigint) AS size_mb, CAST(sum(change_mb) AS bigint) AS change_mb
FROM capacity_groups WHERE period = :period AND window_start = :start AND grouped_by = 'engine' HAVING count(*) > 0
"""


def partial_groups(
    connection: Connection, period: Period, window: Window, grouped_by: str, sizes_mb: Mapping[str | None, int]
) -> dict[date, set[str | None]]:
    """Return the groups that lack a server, of a window and of the previous one, each by its first day.

    The rule is that of `short_servers`, but a server is expected if this window or the previous one has it. A day that
    it missed counts for its group of that day. A left-out server always marks its groups, whatever its share.
    `sizes_mb` are the sizes of the groups.
    """
    missing = """
        WITH stored AS MATERIALIZED (
            SELECT server_id, engine, window_start, measured_days, size_mb FROM capacity_server_growth
            WHERE period = :period AND (:with_derived OR NOT is_derived)
              AND window_start = ANY (CAST(:starts AS date[]))
              AND window_start BETWEEN :first_start AND :last_start AND counted
        ), best AS MATERIALIZED (
            SELECT window_start, max(measured_days) AS days FROM stored GROUP BY window_start
        )
        SELECT t.start, e.server_id, e.engine,
               e.size_mb * (best.days - coalesce(n.measured_days, 0)) / best.days AS lost_mb
        FROM unnest(CAST(:befores AS date[]), CAST(:current AS date[]), CAST(:afters AS date[]))
            AS t (before, start, after)
        JOIN best ON best.window_start = t.start
        -- Expected: what the window before has, and what begins in this one.
        JOIN stored e ON e.window_start IN (t.before, t.start)
        LEFT JOIN stored b ON b.window_start = t.before AND b.server_id = e.server_id
        LEFT JOIN stored n ON n.window_start = t.start AND n.server_id = e.server_id
        LEFT JOIN stored a ON a.window_start = t.after AND a.server_id = e.server_id
        LEFT JOIN capacity_servers s ON s.server_id = e.server_id
        WHERE (e.window_start = t.before OR b.server_id IS NULL)
          AND (s.is_active OR a.server_id IS NOT NULL) AND coalesce(n.measured_days, 0) < best.days"""
    windows = [*period.back(window, 3), period.following(window)]
    starts = [shown.start for shown in windows]
    spans = {"befores": starts[:2], "current": starts[1:3], "afters": starts[2:]}
    with planned_with(connection, WITHOUT_LOOPS):
        missing_rows = rows(connection, missing, **of_windows(period, starts), **spans)
    groups: dict[date, set[str | None]] = {start: set() for start in starts[1:3]}
    of_servers = [(row.server_id, period.window_of(row.start)) for row in missing_rows]
    left_out = left_out_servers(connection, period, windows[1:3])
    of_left_out = [(server.server_id, period.window_of(server.window_start)) for server in left_out]
    of_both = [*of_servers, *of_left_out]
    labelled = {} if grouped_by in WITHOUT_LABEL else _groups_on_missed_days(connection, grouped_by, of_both)
    for server, of_server in zip(left_out, of_left_out, strict=True):
        groups[server.window_start] |= {server.engine} if grouped_by == "engine" else {*labelled.get(of_server, ())}
    for row, of_server in zip(missing_rows, of_servers, strict=True):
        # Groups by server are not marked: without its server, such a group has no row.
        names = {row.engine: 1.0} if grouped_by == "engine" else labelled.get(of_server, {})
        for name, share in names.items():
            if float(row.lost_mb) * share > (1 - NOTICEABLE) * sizes_mb.get(name, 0):
                groups[row.start].add(name)
    return groups


_LABEL_SPANS = """
SELECT instance_id AS server_id, value AS name, valid_from, database_pattern = '' AS is_of_server,
       least(valid_until, CAST(:last AS date) + 1) AS valid_until  -- A date of Python is finite.
FROM capacity_label_spans
WHERE key = :key AND value IS NOT NULL AND instance_id = ANY (CAST(:servers AS integer[]))
  AND valid_from <= :last AND valid_until > :first
"""


def _groups_on_missed_days(
    connection: Connection, key: str, of_servers: Sequence[tuple[int, Window]]
) -> dict[tuple[int, Window], dict[str | None, float]]:
    """Return the groups of servers that missed days of a window or are left out, each with its share of these days.

    A server, or some of its databases, belongs to other groups from the day on which its labels change.
    """
    if not of_servers:
        return {}
    windows = [window for _, window in of_servers]
    ends = {"first": min(window.start for window in windows), "last": max(window.end for window in windows)}
    spans: dict[int, list[Row[Any]]] = {server_id: [] for server_id, _ in of_servers}
    for span in rows(connection, _LABEL_SPANS, key=key, servers=sorted(spans), **ends):
        spans[span.server_id].append(span)
    changing = [
        (server_id, window)
        for server_id, window in of_servers
        for span in spans[server_id]
        if window.start < span.valid_from <= window.end or window.start < span.valid_until <= window.end
    ]
    missed, left_out = _missed_days(connection, changing), left_out_days(connection, changing)
    shares = {}
    for server_id, window in of_servers:
        # Without daily aggregates, the missed days are unknown.
        days = [*{*missed.get((server_id, window), ()), *left_out.get((server_id, window), ())}] or [window.end]
        counts = Counter(name for day in days for name in _groups_on(spans[server_id], day))
        shares[server_id, window] = {name: count / len(days) for name, count in counts.items()}
    return shares


def _groups_on(spans: Sequence[Row[Any]], day: date) -> set[str | None]:
    held = [span for span in spans if span.valid_from <= day < span.valid_until]
    without: set[str | None] = set() if any(span.is_of_server for span in held) else {None}
    return without | {span.name for span in held}


def _missed_days(
    connection: Connection, of_servers: Sequence[tuple[int, Window]]
) -> dict[tuple[int, Window], list[date]]:
    """Return the days of windows on which a server was not measured and others were."""
    if not of_servers:
        return {}
    of_fleet = """
        SELECT DISTINCT window_start AS day FROM capacity_groups
        WHERE period = :period AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start AND grouped_by = 'engine'"""
    of_server = """
        SELECT server_id, window_start AS day FROM capacity_server_growth
        WHERE period = :period AND (:with_derived OR NOT is_derived) AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start AND server_id = ANY (CAST(:servers AS integer[]))"""
    days = of_windows(PERIODS["daily"], sorted({day for _, window in of_servers for day in window.dates}))
    fleet = {row.day for row in rows(connection, of_fleet, **days)}
    servers = sorted({server_id for server_id, _ in of_servers})
    measured = {(row.server_id, row.day) for row in rows(connection, of_server, **days, servers=servers)}
    return {
        (server_id, window): [day for day in window.dates if day in fleet and (server_id, day) not in measured]
        for server_id, window in of_servers
    }


@dataclass(frozen=True)
class ShortServer:
    """A server of a group that was measured on fewer days of a window than others, so that the group lacks a part.

    Includes servers that are left out on a day.
    """

    window_start: date
    server_id: int
    server: str
    measured_days: int | None
    """None: not known, because its sizes cannot be added up."""
    days: int
    """Days of the window on which anything was measured."""
    left_out_days: int = 0
    """Days on which it is left out, because its sizes cannot be added up."""


def short_servers(
    connection: Connection, period: Period, windows: Sequence[Window], grouped_by: str, name: str | None
) -> list[ShortServer]:
    """Return the servers that make windows of a group partly measured, by window and name.

    Each is missing in its window, or missed enough days to change the mean of the group noticeably: a group is a mean
    over days, so a day without a server lowers it by a part of the server's size. Or it is left out on a day.
    """
    # A server is expected from its first window on; one out of service, only before its last.
    statement = """
        WITH members AS MATERIALIZED (
            SELECT s.server_id, s.server, s.is_active, l.valid_from, l.valid_until FROM capacity_servers s
            JOIN capacity_label_spans l ON l.instance_id = s.server_id AND l.key = :grouped_by AND l.value = :name
            WHERE s.counted_by IS NULL
            UNION ALL
            SELECT s.server_id, s.server, s.is_active, CAST('-infinity' AS date), CAST('infinity' AS date)
            FROM capacity_servers s
            WHERE s.counted_by IS NULL AND (
                :grouped_by = 'engine' AND s.engine = CAST(:name AS text)
                OR :grouped_by = 'server' AND s.server = CAST(:name AS text))
            UNION ALL
            SELECT s.server_id, s.server, s.is_active, n.valid_from, n.valid_until
            FROM capacity_servers s CROSS JOIN LATERAL (
                SELECT CAST('-infinity' AS date) AS valid_from,
                       coalesce(min(l.valid_from), CAST('infinity' AS date)) AS valid_until
                FROM capacity_label_spans l
                WHERE l.instance_id = s.server_id AND l.key = :grouped_by AND l.database_pattern = ''
                UNION ALL
                SELECT l.valid_from, l.valid_until FROM capacity_label_spans l
                WHERE l.instance_id = s.server_id AND l.key = :grouped_by AND l.database_pattern = ''
                  AND l.value IS NULL
            ) AS n
            WHERE s.counted_by IS NULL AND CAST(:name AS text) IS NULL AND :grouped_by NOT IN ('engine', 'server')
              AND n.valid_until > :first
        ), shown AS MATERIALIZED (
            SELECT server_id, window_start, window_end, measured_days, size_mb FROM capacity_server_growth
            WHERE period = :period AND (:with_derived OR NOT is_derived)
              AND window_start = ANY (CAST(:starts AS date[]))
              AND window_start BETWEEN :first_start AND :last_start
              AND server_id = ANY (ARRAY(SELECT server_id FROM members))
        ), best AS MATERIALIZED (
            -- The days over which a group is a mean: those on which anything was measured.
            SELECT start AS window_start, 1 AS days FROM unnest(CAST(:starts AS date[])) AS start
            WHERE CAST(:is_daily AS boolean)
            UNION ALL
            SELECT window_start, max(measured_days) FROM capacity_server_growth
            WHERE NOT CAST(:is_daily AS boolean) AND period = :period AND (:with_derived OR NOT is_derived)
              AND window_start = ANY (CAST(:starts AS date[]))
              AND window_start BETWEEN :first_start AND :last_start AND counted
            GROUP BY window_start
        ), spans AS MATERIALIZED (
            SELECT m.server_id, m.server,
                   CASE WHEN m.server_id = ANY (CAST(:before AS integer[])) THEN CAST(:first AS date)
                        ELSE min(z.window_start) END AS first_start,
                   CASE WHEN m.is_active THEN CAST('infinity' AS date) ELSE max(z.window_start) END AS last_start,
                   m.valid_from, m.valid_until
            FROM members m LEFT JOIN shown z ON z.server_id = m.server_id
            GROUP BY m.server_id, m.server, m.is_active, m.valid_from, m.valid_until
        )
        SELECT DISTINCT w.window_start, s.server_id, s.server, coalesce(z.measured_days, 0) AS measured_days, best.days
        FROM (
            SELECT window_start, window_end, sum(size_mb) AS total_mb FROM shown GROUP BY window_start, window_end
        ) AS w
        JOIN best USING (window_start)
        JOIN spans s ON s.first_start <= w.window_start AND w.window_start < s.last_start
            AND s.valid_from <= w.window_end AND w.window_start < s.valid_until
        LEFT JOIN shown z ON z.window_start = w.window_start AND z.server_id = s.server_id
        WHERE z.server_id IS NULL
           OR z.size_mb * (best.days - z.measured_days) > CAST(:noticeable AS numeric) * best.days * w.total_mb
        ORDER BY w.window_start, s.server"""
    if not windows:
        return []
    parameters = {**of_windows(period, [window.start for window in windows]), "grouped_by": grouped_by, "name": name}
    before = list(measured_before(connection, period, windows[0]))
    # The planner does not know how many rows the parts of the statement have.
    with planned_with(connection, WITHOUT_LOOPS):
        short = records(
            ShortServer,
            connection,
            statement,
            **parameters,
            first=windows[0].start,
            before=before,
            noticeable=1 - NOTICEABLE,
            is_daily=period.days == 1,
        )
    left_out = {} if grouped_by == "server" else _left_out_of_group(connection, period, windows, grouped_by, name)
    # A left-out server that failed in the window has no row of it, and so is short, too.
    short = [server for server in short if (server.window_start, server.server_id) not in left_out]
    short = sorted([*short, *left_out.values()], key=lambda server: (server.window_start, server.server))
    if grouped_by in WITHOUT_LABEL:
        return short
    of_servers = [(server.server_id, period.window_of(server.window_start)) for server in short]
    groups = _groups_on_missed_days(connection, grouped_by, of_servers)
    return [server for server, of_server in zip(short, of_servers, strict=True) if name in groups[of_server]]


def _left_out_of_group(
    connection: Connection, period: Period, windows: Sequence[Window], grouped_by: str, name: str | None
) -> dict[tuple[date, int], ShortServer]:
    """Return the servers that are left out, of one engine or of any label."""
    return {
        (server.window_start, server.server_id): ShortServer(
            *(server.window_start, server.server_id, server.server),
            *(server.measured_days, server.days, server.left_out_days),
        )
        for server in left_out_servers(connection, period, windows)
        if grouped_by != "engine" or server.engine == name
    }


def changes_of_databases(
    connection: Connection,
    period: Period,
    starts: Sequence[date],
    grouped_by: str,
    servers: Sequence[int] | None = None,
) -> dict[tuple[date, str | None], tuple[int, int]]:
    """Return changes like for like by first day of the window, and engine or label; of some servers or of all.

    Each is the sum of the known changes of databases, and the size of these; MiB. A database that moved between groups
    counts in both with its days, so that groups add up to the sum over all databases.
    """
    statement = """
        SELECT window_start,
               CASE WHEN :grouped_by = 'engine' THEN engine ELSE labels ->> CAST(:grouped_by AS text) END AS name,
               CAST(sum(change_mb) AS bigint) AS change_mb, CAST(sum(size_mb) AS bigint) AS size_mb
        FROM capacity_growth
        WHERE period = :period AND window_start = ANY (CAST(:starts AS date[]))
          AND window_start BETWEEN :first_start AND :last_start AND counted AND change_mb IS NOT NULL
          AND (CAST(:servers AS integer[]) IS NULL OR server_id = ANY (CAST(:servers AS integer[])))
        GROUP BY 1, 2"""
    parameters = {**of_windows(period, starts), "grouped_by": grouped_by, "servers": servers}
    changes = {
        (row.window_start, row.name): (row.change_mb, row.size_mb) for row in rows(connection, statement, **parameters)
    }
    for row in _moved_sizes(connection, period, starts, grouped_by, servers):
        change_mb, size_mb = changes.get((row.window_start, row.name), (0, 0))
        # The sizes are rounded, not their difference, so that no size before is negative.
        change_mb += row.size_mb - row.before_mb
        changes[row.window_start, row.name] = (change_mb, size_mb + row.size_mb)
    return changes


def _moved_sizes(
    connection: Connection, period: Period, starts: Sequence[date], grouped_by: str, servers: Sequence[int] | None
) -> Iterator[Row[Any]]:
    """Yield what moves add to the sums of groups by their labels at the end of each window; over all groups it is 0."""
    if grouped_by in WITHOUT_LABEL:
        return
    windows = [period.window_of(start) for start in starts]
    ends = {
        "first": min(period.previous(window).start for window in windows),
        "last": max(window.end for window in windows),
    }
    spans = rows(connection, _LABEL_CHANGES, by=grouped_by, servers=servers, **ends)
    for window in windows:
        before = period.previous(window)
        changed = [row for row in spans if before.start < row.valid_from <= window.end]
        if not changed:
            continue
        # A window that is not over counts up to the newest day.
        last = min(max(newest_day(connection, window.end) or window.end, window.start), window.end)
        days = {"start": window.start, "last": last, "end": window.end}
        days |= {"before": before.start, "before_end": before.end}
        changes = {"servers": [row.server_id for row in changed], "days": [row.valid_from for row in changed]}
        yield from rows(connection, _MOVED_SIZES, period=period.name, by=grouped_by, **days, **changes)


_LABEL_CHANGES = """
SELECT DISTINCT instance_id AS server_id, valid_from FROM capacity_label_spans
WHERE key = :by AND valid_from > :first AND valid_from <= :last
  AND (CAST(:servers AS integer[]) IS NULL OR instance_id = ANY (CAST(:servers AS integer[])))
"""
# The labels of a database are read on the first day and on those on which labels of its server changed.
_MOVED_SIZES = f"""
WITH changes AS (
    SELECT * FROM unnest(CAST(:servers AS integer[]), CAST(:days AS date[])) AS c (server_id, day)
), spans AS (
    SELECT server_id, day, lead(day, 1, CAST(:end AS date) + 1) OVER (PARTITION BY server_id ORDER BY day) - 1 AS until
    FROM (SELECT server_id, day FROM changes UNION SELECT server_id, CAST(:before AS date) FROM changes) AS c
), shares AS MATERIALIZED (
    SELECT server_id, day, until = CAST(:end AS date) AS is_last,
           greatest(least(until, CAST(:last AS date)) - greatest(day, CAST(:start AS date)) + 1, 0)
           / CAST(CAST(:last AS date) - CAST(:start AS date) + 1 AS numeric) AS now,
           greatest(least(until, CAST(:before_end AS date)) - day + 1, 0)
           / CAST(CAST(:before_end AS date) - CAST(:before AS date) + 1 AS numeric) AS before
    FROM spans
), measured AS MATERIALIZED (
    SELECT server_id, database, size_mb, change_mb FROM capacity_growth
    WHERE period = :period AND window_start = :start AND counted AND change_mb IS NOT NULL
      AND server_id = ANY (CAST(:servers AS integer[]))
), parts AS MATERIALIZED (
    SELECT row_number() OVER () AS number, * FROM measured JOIN shares USING (server_id)
), subjects AS (
    SELECT number, server_id AS instance_id, database AS database_name, day FROM parts
), held AS MATERIALIZED ({LABELS_OF_SUBJECTS})
SELECT CAST(:start AS date) AS window_start, h.labels ->> :by AS name,
       CAST(round(sum(p.size_mb * (p.now - CAST(p.is_last AS integer)))) AS bigint) AS size_mb,
       CAST(round(sum((p.size_mb - p.change_mb) * (p.before - CAST(p.is_last AS integer)))) AS bigint) AS before_mb
FROM parts p LEFT JOIN held h USING (number) GROUP BY 2
"""  # noqa: S608 -- the order of labels is defined once


def changes_of_group(
    connection: Connection, period: Period, starts: Sequence[date], grouped_by: str, name: str | None
) -> dict[date, tuple[int, int]]:
    """Return the changes of one group like for like, as `changes_of_databases`, by first day of the window."""
    servers = _servers_with(connection, grouped_by, name)
    changes = changes_of_databases(connection, period, starts, grouped_by, servers)
    return {start: change for (start, group), change in changes.items() if group == name}


def like_for_like(sizes: Sequence[SizeInWindow], changes: Mapping[date, tuple[int, int]]) -> list[SizeInWindow]:
    """Return the sizes of a group.

    If a window or the previous one is partial, the change is the sum over its databases; None if none is known.
    """
    return [
        replace(size, change_mb=change[0], change_percent=_percent(*change))
        if size.is_change_partial and (change := changes.get(size.window_start, (None, 0)))
        else size
        for size in sizes
    ]


def _servers_with(connection: Connection, grouped_by: str, name: str | None) -> list[int] | None:
    """Return the servers of which some databases may be in a group; None: possibly all."""
    if name is None:
        return None
    statement = """
        SELECT instance_id AS id FROM capacity_label_spans WHERE key = :grouped_by AND value = :name
        UNION SELECT server_id FROM capacity_servers WHERE :grouped_by = 'engine' AND engine = :name"""
    return [row.id for row in rows(connection, statement, grouped_by=grouped_by, name=name)]


MOST_GROUPS, MOST_DATABASES, LEAST_SHARE = 40, 200, 0.002
"""Numbers of groups and databases that are listed, and the share of the fleet below which a database is not listed."""


@dataclass(frozen=True)
class GroupSpace:
    """The space of a group, MiB: its largest databases, and the others; `name` None: databases without the label.

    `groups` is more than 1 for the last one if it contains all groups that are not listed.
    """

    name: str | None
    size_mb: int
    change_mb: int | None
    databases: Sequence[DatabaseRow]
    other_databases: int
    other_mb: int
    groups: int = 1
    change_percent: float | None = None
    """As in `Group`: like for like if the group was partly measured."""


def space_of_groups(
    connection: Connection, period: Period, window: Window, by: str, groups: Sequence[Group]
) -> list[GroupSpace]:
    """Return the largest groups of a window, each with its databases that are among the largest of the fleet.

    The other groups come last, together.
    """
    ordered = sorted(groups, key=lambda group: -group.size_mb)
    least_mb = sum(group.size_mb for group in ordered) * LEAST_SHARE
    largest, _ = databases(connection, period, window, order="size", shown=MOST_DATABASES)
    members: dict[str | None, list[DatabaseRow]] = {group.name: [] for group in ordered[:MOST_GROUPS]}
    for row in largest:
        if row.size_mb >= least_mb and (name := _group_of(row, by)) in members:
            members[name].append(row)
    space = [_space_of(group, members[group.name]) for group in ordered[:MOST_GROUPS]]
    if rest := ordered[MOST_GROUPS:]:
        size_mb, count = sum(group.size_mb for group in rest), sum(group.databases for group in rest)
        space.append(GroupSpace(None, size_mb, None, (), count, size_mb, len(rest)))
    return space


def _group_of(row: DatabaseRow, by: str) -> str | None:
    return {"engine": row.engine, "server": row.server}.get(by, row.labels.get(by))


def _space_of(group: Group, listed: Sequence[DatabaseRow]) -> GroupSpace:
    # A database that existed on some days, or moved, counts in its group with those days only.
    other_mb = max(group.size_mb - sum(row.size_mb for row in listed), 0)
    other = (max(group.databases - len(listed), 0), other_mb)
    return GroupSpace(
        *(group.name, group.size_mb, group.change_mb, listed, *other), change_percent=group.change_percent
    )
