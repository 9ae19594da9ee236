"""Groups: what they are made by, what of each fills first, when they are outdated, and the parts of their sizes.

To explain a group, its parts are added up from the samples, with the labels of each row, and compared with the stored
row. The figures of groups are in `reading.groups`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from sqlalchemy import Connection, text

from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.units import first_of, human_day
from capacity_assets.database.labels import GROUP_PARTS, LABELS_OF_SUBJECTS, asked_days
from capacity_assets.database.sql import with_parts

WITHOUT_LABEL = ("engine", "server")
"""What groups are made by without any label."""


@dataclass(frozen=True)
class GroupFillDate:
    """A database, volume or server of a group, and the day by which it is full as likely as not."""

    server: str
    name: str
    """Database or volume; empty: the server as a whole."""
    day: date
    server_id: int
    subject: str


def refuse_unknown_grouping(by: str, keys: Sequence[str]) -> None:
    """Raise ValidationError unless groups are made by this."""
    known = (*WITHOUT_LABEL, *keys)
    if by not in known:
        raise ValidationError(f"There are no groups by {by!r}; known are {', '.join(known)}.")


def default_grouping(keys: Sequence[str]) -> str:
    """Return what groups are made by unless asked otherwise: the first key of labels, or engines."""
    return next(iter(keys), WITHOUT_LABEL[0])


def fill_dates(connection: Connection, by: str, most: int) -> dict[str | None, list[GroupFillDate]]:
    """Return what of each group fills first, at most so many of each, by the newest forecasts; raises DBAPIError."""
    parts = {"filling": _FILLING, "issued": _ISSUED, "subjects": _SUBJECTS, "labels_held": LABELS_OF_SUBJECTS}
    query = with_parts(_FILL_DATES, **parts)
    groups: dict[str | None, list[GroupFillDate]] = {}
    for name, *of_group in connection.execute(query, {"by": by, "most": most}):
        groups.setdefault(name, []).append(GroupFillDate(*of_group))
    return groups


def fills_first(connection: Connection, by: str) -> dict[str | None, GroupFillDate]:
    """Return what of each group fills first; raises DBAPIError."""
    return {name: dates[0] for name, dates in fill_dates(connection, by, 1).items()}


def groups_changed_at(connection: Connection, period: Period, windows: Sequence[Window]) -> datetime | None:
    """Return when the newest change was made that groups of these windows do not show yet; raises DBAPIError."""
    parameters = {"period": period.name, "starts": [window.start for window in windows]}
    changed_at: datetime | None = connection.execute(text(_NEWEST_CHANGE), parameters).scalar()
    return changed_at


def being_computed(changed_at: datetime) -> str:
    """Say that groups do not show the newest changes yet."""
    moment = changed_at.astimezone(UTC)
    return (
        f"Labels or samples changed at {moment:%H:%M} UTC on {human_day(moment.date())}; these groups do not show it "
        "yet. The late data sensor computes them, or `capacity groups --now`."
    )


_NEWEST_CHANGE = """
SELECT max(newest_change) FROM capacity_stale_windows
WHERE level = 'group' AND period_type = :period AND period_start = ANY (CAST(:starts AS date[]))
"""
_FILLING = """
SELECT server_id, server, engine, subject, name, full_middle FROM capacity_runway
WHERE full_middle IS NOT NULL AND stands_for_itself
"""
# A group fills with the volume, or the server, that binds one of its databases.
_ISSUED = """
SELECT server_id, server, engine, subject, name, full_middle,
       CASE subject WHEN 'database' THEN name END AS database_name
FROM filling
UNION ALL
SELECT f.server_id, f.server, f.engine, f.subject, f.name, f.full_middle, d.name
FROM filling f JOIN capacity_runway d ON d.server_id = f.server_id AND d.subject = 'database'
    AND d.binds = CASE f.subject WHEN 'volume' THEN 'volume' ELSE 'server limit' END
WHERE f.subject <> 'database'
"""
_SUBJECTS = """
SELECT row_number() OVER () AS number, i.*, i.server_id AS instance_id, newest.as_of AS day
FROM issued i CROSS JOIN (SELECT as_of FROM capacity_runway ORDER BY as_of DESC LIMIT 1) AS newest
"""
_FILL_DATES = """
SELECT group_name, server, name, full_middle, server_id, subject
FROM (
    SELECT *, row_number() OVER (PARTITION BY group_name ORDER BY full_middle, server, name, subject) AS place
    FROM (
        SELECT DISTINCT CASE CAST(:by AS text) WHEN 'engine' THEN s.engine WHEN 'server' THEN s.server
                        ELSE l.labels ->> CAST(:by AS text) END AS group_name,
               s.server_id, s.server, s.subject, s.name, s.full_middle
        FROM subjects s LEFT JOIN labels_held l USING (number)
    ) AS each
) AS ranked
WHERE place <= :most ORDER BY group_name, place
"""


VALUES_NAMED = 8


@dataclass(frozen=True)
class GroupPart:
    """A part of a group; `database` None: a server without the databases that belong to other groups."""

    server: str
    database: str | None
    days: int
    """Days on which it belonged to the group."""
    sum_mb: int
    """Its sizes on these days, added up."""
    label_of: str | None
    """What its label was declared for on the last of these days: a database or a pattern; None: the server."""
    valid_from: date | None
    """First day of that label; None: always."""


@dataclass(frozen=True)
class GroupExplanation:
    """A group in a window: its parts, the largest first, and its stored row."""

    key: str
    value: str
    parts: Sequence[GroupPart]
    days: int
    """Days on which anything was measured."""
    row_sum_mb: int | None
    """None: there is no row."""
    row_days: int | None
    """Days of the row of the fleet; None: there is no row."""

    @property
    def sum_mb(self) -> int:
        """The sum of the parts, over all days."""
        return sum(part.sum_mb for part in self.parts)

    @property
    def size_mb(self) -> int:
        """The mean of that, rounded down."""
        return self.sum_mb // max(1, self.days)

    @property
    def is_whole(self) -> bool:
        """Whether samples of all days of the row are left."""
        return self.row_days is None or self.days >= self.row_days

    @property
    def agrees(self) -> bool:
        """Whether the row has the same sum."""
        return self.sum_mb == (self.row_sum_mb or 0)


def explain_group(connection: Connection, period: Period, window: Window, key: str, value: str) -> GroupExplanation:
    """Return the parts of a group in a window; raises NotFoundError if nothing has this label in it, and DBAPIError."""
    days = asked_days(connection, window.dates)
    of_group = {"period": period.name, "start": window.start, "key": key, "value": value}
    servers = connection.execute(text(_LABELLED), of_group).scalars().all()
    query = with_parts(_PARTS, **_ROWS_OF_SERVERS, parts=GROUP_PARTS)
    of_servers = {**of_group, **days, "servers": servers}
    parts = [GroupPart(*row) for row in connection.execute(query, of_servers)]
    stored = connection.execute(text(_STORED), of_group).one()
    if not parts and stored.sum_mb is None:
        values = connection.execute(text(_VALUES), of_group).scalars().all()
        there = f" {key} has {first_of(values, VALUES_NAMED)} there." if values else ""
        raise NotFoundError(f"Nothing has {key}={value} in {period.name_of(window)}.{there}")
    sum_mb = None if stored.sum_mb is None else int(stored.sum_mb)
    measured = with_parts(_DAYS, capacity_label_spans=_NO_LABELS, parts=GROUP_PARTS)
    measured_days = connection.execute(measured, days).scalar_one()
    return GroupExplanation(key, value, parts, measured_days, sum_mb, stored.days)


_LABELLED = "SELECT DISTINCT instance_id FROM capacity_labels WHERE key = :key AND value = :value"
# `GROUP_PARTS` reads parts of the statement that are named like its tables instead of these.
_ROWS_OF_SERVERS = {
    "database_size_stats": "SELECT * FROM database_size_stats WHERE instance_id = ANY (CAST(:servers AS int[]))",
    "instance_size_stats": "SELECT * FROM instance_size_stats WHERE instance_id = ANY (CAST(:servers AS int[]))",
    "database_size_aggregations": (
        "SELECT * FROM database_size_aggregations WHERE instance_id = ANY (CAST(:servers AS int[]))"
    ),
    "instance_size_aggregations": (
        "SELECT * FROM instance_size_aggregations WHERE instance_id = ANY (CAST(:servers AS int[]))"
    ),
}
_PARTS = """
SELECT i.name, f.database_name, f.days, CAST(f.sum_mb AS bigint), nullif(held.database_pattern, ''),
       nullif(held.valid_from, DATE '0001-01-01')
FROM (
    SELECT instance_id, database_name, count(DISTINCT collected_date) AS days, sum(size_mb) AS sum_mb,
           max(collected_date) AS last_day
    FROM parts WHERE label_key = :key AND label_value = :value GROUP BY 1, 2
) AS f JOIN instances i ON i.id = f.instance_id
LEFT JOIN LATERAL (
    SELECT l.database_pattern, l.valid_from FROM capacity_label_spans l
    WHERE l.instance_id = f.instance_id AND l.key = :key AND l.value IS NOT NULL
      AND l.valid_from <= f.last_day AND f.last_day < l.valid_until
      AND CASE WHEN f.database_name IS NULL THEN l.database_pattern = ''
               ELSE l.database_pattern <> ''
                    AND (f.database_name = l.database_pattern OR f.database_name LIKE l.database_like) END
    ORDER BY l.database_pattern = f.database_name DESC, length(translate(l.database_pattern, '*?', '')) DESC,
             l.database_pattern
    LIMIT 1
) AS held ON true
ORDER BY f.sum_mb DESC, i.name, f.database_name NULLS FIRST
"""
# Labels do not change which days were measured.
_NO_LABELS = "SELECT * FROM capacity_label_spans WHERE false"
_DAYS = "SELECT count(DISTINCT collected_date) FROM parts WHERE label_key = '(fleet)'"
_STORED = """
SELECT max(coalesce(sum_size_mb, avg_size_mb)) FILTER (WHERE label_key = :key AND label_value = :value) AS sum_mb,
       max(data_count) FILTER (WHERE label_key = '(fleet)') AS days
FROM group_size_aggregations WHERE period_type = :period AND period_start = :start
"""
_VALUES = """
SELECT label_value FROM group_size_aggregations
WHERE period_type = :period AND period_start = :start AND label_key = :key AND label_value <> ''
ORDER BY 1
"""
