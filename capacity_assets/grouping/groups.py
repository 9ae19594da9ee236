"""What a group is, what groups are made by, how those of a window are read, and what of each fills first.

Figures are those of the view `capacity_groups`; how they come about is in docs/semantics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from sqlalchemy import Connection, text

from capacity_assets.errors import ValidationError
from capacity_assets.periods import Period, Window
from capacity_assets.storage.label_expressions import SPANS, holds_on, matches, precedence
from capacity_assets.units import human_percent

WITHOUT_LABEL = ("engine", "server")
"""What groups are made by without any label."""


@dataclass(frozen=True)
class FillsFirst:
    """What of a group is full first, and the day by which that is as likely as not."""

    server: str
    name: str
    day: date


@dataclass(frozen=True)
class Filling:
    """A database, volume or server that fills, as part of a group."""

    server_id: int
    subject: str
    first: FillsFirst


@dataclass(frozen=True)
class Group:
    """One group of a window; `name` None: what has no such label. `change_mb` None: no change is known."""

    name: str | None
    servers: int
    databases: int
    size_mb: int
    change_mb: int | None
    fills_first: FillsFirst | None = None

    @property
    def growth(self) -> str:
        """The change in percent of the size before."""
        return "unknown" if self.change_mb is None else human_percent(self.change_mb, self.size_mb - self.change_mb)


def refuse_unknown_grouping(by: str, keys: Sequence[str]) -> None:
    """Refuse a grouping that is none; raises ValidationError."""
    known = (*WITHOUT_LABEL, *keys)
    if by not in known:
        raise ValidationError(f"There are no groups by {by!r}; known are {', '.join(known)}.")


def group_column(by: str) -> tuple[str, dict[str, str]]:
    """Return a group as an expression over columns engine, server and labels, and the parameters it takes."""
    return (by, {}) if by in WITHOUT_LABEL else ("labels ->> CAST(:key AS text)", {"key": by})


def default_grouping(keys: Sequence[str]) -> str:
    """Return what groups are made by where nobody says: the first key of labels, or engines."""
    return next(iter(keys), WITHOUT_LABEL[0])


def filling_of_groups(connection: Connection, by: str, most: int) -> dict[str | None, list[Filling]]:
    """Return what of each group fills first, if anything, at most so many, by newest forecasts; raises DBAPIError."""
    grouped = _BY_COLUMN.format(by=by) if by in WITHOUT_LABEL else _BY_LABEL
    rows = connection.execute(text(_FILLING.format(grouped=grouped)), {**group_column(by)[1], "most": most})
    found: dict[str | None, list[Filling]] = {}
    for row in rows:
        first = FillsFirst(row.server, row.name, row.full_middle)
        found.setdefault(row.group_name, []).append(Filling(row.server_id, row.subject, first))
    return found


def fills_first(connection: Connection, by: str) -> dict[str | None, FillsFirst]:
    """Return what of each group is full first; as `filling_of_groups`."""
    return first_of_each(filling_of_groups(connection, by, 1))


def first_of_each(filling: Mapping[str | None, Sequence[Filling]]) -> dict[str | None, FillsFirst]:
    """Return the first of each group."""
    return {name: subjects[0].first for name, subjects in filling.items()}


def groups_of(
    connection: Connection, period: Period, window: Window, by: str, fills: Mapping[str | None, FillsFirst]
) -> list[Group]:
    """Return the groups of a window, the largest first, each with what `fills` has of it; raises DBAPIError.

    None where no row is stored. Without any label of a key, everything is one group.
    """
    asked = {"period": period.name, "start": window.start}
    rows = connection.execute(text(_GROUPS), {**asked, "by": by}).all()
    if not rows and by not in WITHOUT_LABEL:
        rows = connection.execute(text(_WITHOUT_LABELS), asked).all()
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


def groups_changed_at(connection: Connection, period: Period, windows: Sequence[Window]) -> datetime | None:
    """Return when labels or samples changed that groups of these windows do not show yet; raises DBAPIError."""
    asked = {"period": period.name, "starts": [window.start for window in windows]}
    found: datetime | None = connection.execute(text(_BEHIND), asked).scalar()
    return found


def being_computed(changed_at: datetime) -> str:
    """Say that groups are behind what changed."""
    moment = changed_at.astimezone(UTC)
    return f"Labels or samples changed at {moment:%H:%M} UTC on {moment:%Y-%m-%d}; groups are being computed."


_GROUPS = """
SELECT group_name, servers, databases, size_mb, change_mb FROM capacity_groups
WHERE period = :period AND window_start = :start AND grouped_by = :by
ORDER BY size_mb DESC, group_name NULLS LAST
"""
_WITHOUT_LABELS = """
SELECT CAST(NULL AS text) AS group_name, sum(servers) AS servers, sum(databases) AS databases, sum(size_mb) AS size_mb,
       sum(change_mb) AS change_mb
FROM capacity_groups WHERE period = :period AND window_start = :start AND grouped_by = 'engine' HAVING count(*) > 0
"""
_BEHIND = """
SELECT max(newest_change) FROM capacity_stale_windows
WHERE level = 'group' AND period_type = :period AND period_start = ANY (CAST(:starts AS date[]))
"""
# A group fills with the volume, or the server, that binds one of its databases.
_FILLING = """
WITH filling AS (
    SELECT server_id, server, engine, subject, name, full_middle FROM capacity_runway
    WHERE full_middle IS NOT NULL
), issued AS (
    SELECT server_id, server, engine, subject AS of_subject, name AS of_name, subject, name, full_middle FROM filling
    UNION ALL
    SELECT f.server_id, f.server, f.engine, d.subject, d.name, f.subject, f.name, f.full_middle
    FROM filling f JOIN capacity_runway d ON d.server_id = f.server_id AND d.subject = 'database'
        AND d.binds = CASE f.subject WHEN 'volume' THEN 'volume' ELSE 'server limit' END
    WHERE f.subject <> 'database'
), grouped AS ({grouped}), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY group_name ORDER BY full_middle, server, name, subject) AS place
    FROM (SELECT DISTINCT group_name, server_id, server, subject, name, full_middle FROM grouped) AS each
)
SELECT group_name, server_id, server, subject, name, full_middle FROM ranked
WHERE place <= :most ORDER BY group_name, place
"""
_BY_COLUMN = "SELECT {by} AS group_name, server_id, server, subject, name, full_middle FROM issued"
# Labels of all of them at once: asked for one by one, as the view does, twenty thousand take a tenth of a second.
_BY_LABEL = f"""
    SELECT DISTINCT ON (t.server_id, t.of_subject, t.of_name, t.subject, t.name)
           l.value AS group_name, t.server_id, t.server, t.subject, t.name, t.full_middle
    FROM issued t
    CROSS JOIN (SELECT as_of FROM capacity_runway ORDER BY as_of DESC LIMIT 1) AS newest
    LEFT JOIN {SPANS} l ON l.instance_id = t.server_id AND l.key = :key AND {holds_on("l", "newest.as_of")}
        AND (l.database_pattern = '' OR t.of_subject = 'database' AND {matches("l", "t.of_name")})
    ORDER BY t.server_id, t.of_subject, t.of_name, t.subject, t.name, {precedence("l", "t.of_name")}"""  # noqa: S608 -- expressions of our own views
