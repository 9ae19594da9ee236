"""Reads the sums of groups of a window: what is stored, or added up where something changed since.

Sums are those of the view `capacity_groups`, and add up to the fleet. What groups are is in `groups`, and which sums
count, in `storage.group_views`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, Engine, text

from capacity_assets.grouping.groups import WITHOUT_LABEL, FillsFirst, Group
from capacity_assets.periods import Period, Window
from capacity_assets.storage.distribution import is_distributed
from capacity_assets.storage.group_views_on_nodes import ENGINES_OF_WINDOWS_ON_NODES, OF_WINDOWS_ON_NODES
from capacity_assets.storage.steps import literal

_EVERY_GROUP, _STORED_GROUPS = "capacity_groups", "capacity_stored_groups"


@contextmanager
def reading_groups(engine: Engine) -> Iterator[GroupReader]:
    """Read within a transaction that sees one state of the tables; raises DBAPIError.

    What a node recorded may be gathered, and forgotten there, just after the transaction began: it would be seen in
    neither place. So nodes are asked once before.
    """
    on_nodes = is_distributed(engine)
    with engine.connect() as connection:
        reads_stored = bool(connection.execute(text(_MAY_READ_STORED)).scalar())
        outdated = set[tuple[str, date]]()
        if on_nodes and reads_stored:
            outdated = {(row.period, row.window_start) for row in connection.execute(text(_OUTDATED))}
        connection.rollback()
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        yield GroupReader(connection, reads_stored, frozenset(outdated), on_nodes)


@dataclass(frozen=True)
class GroupReader:
    """Reads groups in the transaction of a connection. Its calls raise DBAPIError."""

    connection: Connection
    reads_stored: bool
    outdated_before: frozenset[tuple[str, date]]
    on_nodes: bool

    def source(self, period: Period, windows: Sequence[Window], by: str) -> str:
        """Return what to read the groups of these windows from, as SQL names it: the columns of `capacity_groups`."""
        if by == "server":
            return _OF_SERVERS
        if by not in WITHOUT_LABEL and not self.connection.execute(text(_IS_DECLARED), {"key": by}).scalar():
            return _WITHOUT_LABELS.format(source=self.source(period, windows, "engine"), key=literal(by))
        if not self.reads_stored:
            return _EVERY_GROUP
        starts = {window.start for window in windows}
        ends = {"period": period.name, "first": min(starts), "last": max(starts)}
        listed = {*self.connection.execute(text(_OUTDATED_OF_PERIOD), ends).scalars()}
        listed |= {start for name, start in self.outdated_before if name == period.name}
        outdated = [window for window in windows if window.start in listed]
        if not outdated:
            return _STORED_GROUPS
        return _added_up_on_nodes(period, outdated, by) if self.on_nodes else _EVERY_GROUP

    def groups_of(self, period: Period, window: Window, by: str, fills: Mapping[str | None, FillsFirst]) -> list[Group]:
        """Return the groups, the largest first, each with what `fills` has of it; none where no server has a row."""
        asked = {"period": period.name, "start": window.start}
        source = self.source(period, [window], by)
        rows = self.connection.execute(text(_GROUPS.format(source=source)), {**asked, "by": by})
        return [
            Group(
                row.group_name,
                int(row.servers),
                int(row.databases),
                int(row.size_mb),
                None if row.change_mb is None else int(row.change_mb),
                fills.get(row.group_name),
            )
            for row in rows
        ]


def _added_up_on_nodes(period: Period, outdated: Sequence[Window], by: str) -> str:
    """What is stored, and instead of windows that are out of date what the nodes add up."""
    days = {
        ":period_type": literal(period.name),
        ":starts": _array(window.start for window in outdated),
        ":befores": _array(period.previous(window).start for window in outdated),
    }
    added_up = ENGINES_OF_WINDOWS_ON_NODES if by == "engine" else OF_WINDOWS_ON_NODES
    for name, value in days.items():
        added_up = added_up.replace(name, value)
    return f"""(
    SELECT * FROM {_STORED_GROUPS}
    WHERE NOT (period = {days[":period_type"]} AND window_start = ANY (CAST({days[":starts"]} AS date[])))
    UNION ALL
    SELECT period_type, period_start, period_end, grouped_by, group_name, servers, databases, size_mb, change_mb
    FROM ({added_up}) AS added_up) AS groups"""  # noqa: S608 -- names and days of our own


def _array(days: Iterator[date]) -> str:
    return literal("{" + ",".join(map(str, days)) + "}")


_OF_SERVERS = """(
    SELECT period, window_start, window_end, 'server' AS grouped_by, server AS group_name, 1 AS servers, databases,
           size_mb, change_mb
    FROM capacity_server_growth WHERE counted) AS servers"""
_GROUPS = """
SELECT group_name, servers, databases, size_mb, change_mb FROM {source}
WHERE period = :period AND window_start = :start AND grouped_by = :by
ORDER BY size_mb DESC, group_name NULLS LAST
"""
# Roles that were made for an earlier version read the one view.
_MAY_READ_STORED = """
SELECT has_table_privilege('capacity_outdated_groups', 'SELECT')
   AND has_table_privilege('capacity_stored_groups', 'SELECT')
"""
_OUTDATED = "SELECT period, window_start FROM capacity_outdated_groups"
_OUTDATED_OF_PERIOD = """
SELECT window_start FROM capacity_outdated_groups WHERE period = :period AND window_start BETWEEN :first AND :last
"""
_IS_DECLARED = "SELECT EXISTS (SELECT 1 FROM capacity_label_spans WHERE key = :key)"
# Without any label of this key, everything is one group.
_WITHOUT_LABELS = """(
    SELECT period, window_start, window_end, CAST({key} AS text) AS grouped_by, CAST(NULL AS text) AS group_name,
           sum(servers) AS servers, sum(databases) AS databases, sum(size_mb) AS size_mb, sum(change_mb) AS change_mb
    FROM {source} WHERE grouped_by = 'engine' GROUP BY period, window_start, window_end) AS unlabelled"""
