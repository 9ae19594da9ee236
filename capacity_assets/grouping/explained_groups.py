"""What the sum of one group is made of: its servers, and the databases that came to it or left it by a label of theirs.

The parts are added up here, by fractions and from one label per database, and compared with the view `capacity_groups`,
which adds up whole servers and moves databases between groups. Explaining one database or server is in
`aggregation.explanation`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Row, text

from capacity_assets.errors import NotFoundError
from capacity_assets.grouping.group_reading import GroupReader
from capacity_assets.periods import Period, Window
from capacity_assets.storage.group_tables import ALWAYS
from capacity_assets.storage.label_expressions import SPANS, holds_on, matches, precedence
from capacity_assets.storage.window_expressions import SERVER_SIZES
from capacity_assets.units import first_of

VALUES_NAMED = 8


@dataclass(frozen=True)
class GroupPart:
    """A part of a group; `database` None: the server without the databases that have another owner.

    `label_of` is what the label was declared for: a database, a pattern, or None for the server; `valid_from` None:
    always. `change_mb` None: unknown.
    """

    server: str
    database: str | None
    size_mb: int
    change_mb: int | None
    label_of: str | None
    valid_from: date | None
    without_databases: int = 0
    """Databases of the server that have another owner."""


@dataclass(frozen=True)
class ExplainedGroup:
    """A group with its parts, the largest first, and what the view has of it; `view_...` None: it has no row."""

    key: str
    value: str
    parts: Sequence[GroupPart]
    view_size_mb: int | None
    view_change_mb: int | None

    @property
    def size_mb(self) -> int:
        """The sum of the parts."""
        return sum(part.size_mb for part in self.parts)

    @property
    def change_mb(self) -> int | None:
        """The sum of the changes that are known; None: none is."""
        known = [part.change_mb for part in self.parts if part.change_mb is not None]
        return sum(known) if known else None

    @property
    def agrees(self) -> bool:
        """Whether the view has the same."""
        return (self.size_mb, self.change_mb) == (self.view_size_mb, self.view_change_mb)


def explain_group(reader: GroupReader, period: Period, window: Window, key: str, value: str) -> ExplainedGroup:
    """Return the parts of a group in a window; raises NotFoundError if nothing has this label in it, and DBAPIError."""
    asked = {
        "period": period.name,
        "start": window.start,
        "end": window.end,
        "before": period.previous(window).start,
        "key": key,
        "value": value,
    }
    connection = reader.connection
    owned = defaultdict(list)
    for row in connection.execute(text(_OWNED), asked):
        owned[row.instance_id].append(row)
    servers = connection.execute(text(_SERVERS), asked).all()
    parts = [part for server in servers for part in _parts(server, value, owned[server.instance_id])]
    source = reader.source(period, [window], key)
    viewed = connection.execute(text(_OF_VIEW.format(source=source)), asked).first()
    if not parts and viewed is None:
        values = connection.execute(text(_VALUES.format(source=source)), asked).scalars().all()
        there = f" {key} has {first_of(values, VALUES_NAMED)} there." if values else ""
        raise NotFoundError(f"Nothing has {key}={value} in {period.name_of(window)}.{there}")
    size, change = (None, None) if viewed is None else (viewed.size_mb, viewed.change_mb)
    return ExplainedGroup(
        key,
        value,
        sorted(parts, key=lambda part: (-part.size_mb, part.server, part.database or "")),
        None if size is None else int(size),
        None if change is None else int(change),
    )


def _parts(server: Row[Any], value: str, owned: Sequence[Row[Any]]) -> list[GroupPart]:
    """Return what a server gives to a group: databases that came to it, and what is left of the server itself."""
    moved = [(row, _size(row), _change(server, row)) for row in owned if row.value != server.held]
    came = [
        GroupPart(server.server, row.database_name, size, change, row.database_pattern, _since(row.valid_from))
        for row, size, change in moved
        if row.value == value
    ]
    if server.held != value:
        return came
    left = server.total_size_mb - sum(size for _, size, _ in moved)
    changes = [change for _, _, change in moved if change is not None]
    change = None if server.total_size_change_mb is None else server.total_size_change_mb - sum(changes)
    away = sum(row.avg_size_mb is not None for row, _, _ in moved)
    return [*came, GroupPart(server.server, None, left, change, None, _since(server.valid_from), away)]


def _size(row: Row[Any]) -> int:
    return 0 if row.avg_size_mb is None else _share(row.avg_size_mb, row.data_count, row.server_count)


def _change(server: Row[Any], row: Row[Any]) -> int | None:
    """Return the stored change where the database was measured as often as its server, else that of its shares."""
    if server.total_size_change_mb is None:
        return None
    if row.size_change_mb is not None and (row.then_server_count is None or _was_always_there(row)):
        return int(row.size_change_mb)
    then = 0 if row.then_size_mb is None else _share(row.then_size_mb, row.then_count, row.then_server_count)
    return _size(row) - then


def _was_always_there(row: Row[Any]) -> bool:
    """Whether a database was measured on each measured day of its server, in both windows."""
    if row.then_count is None or row.then_count < row.then_server_count:
        return False
    return bool(row.data_count >= row.server_count)


def _share(size_mb: int, days: int, server_days: int) -> int:
    """Return a mean size times the database's share of the server's measured days, rounded down."""
    return size_mb * days // max(days, server_days)


def _since(day: date | None) -> date | None:
    return None if day == ALWAYS else day


_LABEL = f"""
    SELECT l.value, l.database_pattern, l.valid_from FROM {SPANS} l
    WHERE l.instance_id = {{instance}} AND l.key = :key AND {holds_on("l", "CAST(:end AS date)")} AND {{subject}}
    ORDER BY {{order}} LIMIT 1"""  # noqa: S608 -- expressions of our own views
_OF_SERVER = _LABEL.format(instance="s.instance_id", subject="l.database_pattern = ''", order="1")
_OF_DATABASE = _LABEL.format(
    instance="d.instance_id", subject=matches("l", "d.database_name"), order=precedence("l", "d.database_name")
)
_CANDIDATES = f"SELECT instance_id FROM {SPANS} WHERE key = :key AND value = :value"  # noqa: S608 -- as above
_SERVERS = f"""
SELECT s.instance_id, coalesce(i.name, 'server ' || s.instance_id) AS server, s.total_size_mb, s.total_size_change_mb,
       l.value AS held, l.valid_from
FROM {SERVER_SIZES} s LEFT JOIN instances i ON i.id = s.instance_id
LEFT JOIN LATERAL ({_OF_SERVER}) AS l ON true
WHERE s.period_type = :period AND s.period_start = :start AND i.counted_by IS NULL AND s.instance_id IN ({_CANDIDATES})
"""  # noqa: S608 -- as above
# Databases of this window and of the one before, each once, that have a label of their own now.
_OWNED = f"""
SELECT d.instance_id, d.database_name, a.avg_size_mb, a.data_count, a.size_change_mb, s.data_count AS server_count,
       b.avg_size_mb AS then_size_mb, b.data_count AS then_count, sb.data_count AS then_server_count,
       l.value, l.database_pattern, l.valid_from
FROM (SELECT DISTINCT instance_id, database_name FROM database_size_aggregations
      WHERE period_type = :period AND period_start IN (:start, :before) AND instance_id IN ({_CANDIDATES})) AS d
JOIN {SERVER_SIZES} s
    ON s.period_type = :period AND s.period_start = :start AND s.instance_id = d.instance_id
LEFT JOIN database_size_aggregations a
    ON a.period_type = :period AND a.period_start = :start AND a.instance_id = d.instance_id
    AND a.database_name = d.database_name
LEFT JOIN {SERVER_SIZES} sb
    ON sb.period_type = :period AND sb.period_start = :before AND sb.instance_id = d.instance_id
LEFT JOIN database_size_aggregations b
    ON b.period_type = :period AND b.period_start = :before AND b.instance_id = d.instance_id
    AND b.database_name = d.database_name
CROSS JOIN LATERAL ({_OF_DATABASE}) AS l
WHERE a.database_name IS NOT NULL OR sb.instance_id IS NOT NULL
"""  # noqa: S608 -- as above
_VALUES = """
SELECT group_name FROM {source}
WHERE period = :period AND window_start = :start AND grouped_by = :key AND group_name IS NOT NULL ORDER BY 1
"""
_OF_VIEW = """
SELECT size_mb, change_mb FROM {source}
WHERE period = :period AND window_start = :start AND grouped_by = :key AND group_name = :value
"""
