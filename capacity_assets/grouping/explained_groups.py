"""What the sum of one group is made of: its servers, and the databases that belong to it by a label of their own.

The parts are those that the stored row was added up from; their sum is compared with it. Explaining one database or
server is in `aggregation.explanation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, text

from capacity_assets.errors import NotFoundError
from capacity_assets.periods import Period, Window
from capacity_assets.storage.group_days import FLEET, asked_days, group_parts
from capacity_assets.storage.group_tables import ALWAYS
from capacity_assets.storage.label_expressions import SPANS, holds_on, matches, precedence
from capacity_assets.units import first_of

VALUES_NAMED = 8


@dataclass(frozen=True)
class GroupPart:
    """A part of a group; `database` None: a server without the databases that belong to other groups.

    `sum_mb` is added up over its `days` in the group. `label_of` is what its label was declared for on the last of
    these: a database, a pattern, or None for the server; `valid_from` None: always.
    """

    server: str
    database: str | None
    days: int
    sum_mb: int
    label_of: str | None
    valid_from: date | None


@dataclass(frozen=True)
class ExplainedGroup:
    """A group with its parts, the largest first, and what its row has; `row_...` None: there is no row.

    `days` are those on which anything was measured, and `row_days` those that the row of the fleet rests on.
    """

    key: str
    value: str
    parts: Sequence[GroupPart]
    days: int
    row_sum_mb: int | None
    row_days: int | None

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
        """Whether there are samples of all days of the row."""
        return self.row_days is None or self.days >= self.row_days

    @property
    def agrees(self) -> bool:
        """Whether the row has the same."""
        return self.sum_mb == (self.row_sum_mb or 0)


def explain_group(connection: Connection, period: Period, window: Window, key: str, value: str) -> ExplainedGroup:
    """Return the parts of a group in a window; raises NotFoundError if nothing has this label in it, and DBAPIError."""
    asked: dict[str, object] = {
        "period": period.name,
        "start": window.start,
        "key": key,
        "value": value,
        **asked_days(connection, window.dates),
    }
    asked["servers"] = connection.execute(text(_LABELLED), asked).scalars().all()
    parts = [
        GroupPart(
            row.server,
            row.database_name,
            row.days,
            int(row.sum_mb),
            row.database_pattern or None,
            None if row.valid_from == ALWAYS else row.valid_from,
        )
        for row in connection.execute(text(_PARTS), asked)
    ]
    stored = connection.execute(text(_STORED), asked).one()
    if not parts and stored.sum_mb is None:
        values = connection.execute(text(_VALUES), asked).scalars().all()
        there = f" {key} has {first_of(values, VALUES_NAMED)} there." if values else ""
        raise NotFoundError(f"Nothing has {key}={value} in {period.name_of(window)}.{there}")
    sum_mb = None if stored.sum_mb is None else int(stored.sum_mb)
    days = int(connection.execute(text(_DAYS), asked).scalar_one())
    return ExplainedGroup(key, value, parts, days, sum_mb, stored.days)


_LABELLED = "SELECT DISTINCT instance_id FROM capacity_labels WHERE key = :key AND value = :value"
_PARTS = f"""{group_parts("instance_id = ANY (CAST(:servers AS integer[]))")}, found AS (
    SELECT instance_id, database_name, count(DISTINCT collected_date) AS days, sum(size_mb) AS sum_mb,
           max(collected_date) AS last_day
    FROM parts WHERE label_key = :key AND label_value = :value GROUP BY 1, 2
)
SELECT i.name AS server, f.database_name, f.days, f.sum_mb, held.database_pattern, held.valid_from
FROM found f JOIN instances i ON i.id = f.instance_id
LEFT JOIN LATERAL (
    SELECT l.database_pattern, l.valid_from FROM {SPANS} l
    WHERE l.instance_id = f.instance_id AND l.key = :key AND {holds_on("l", "f.last_day")}
      AND (l.database_pattern = '' AND f.database_name IS NULL
           OR f.database_name IS NOT NULL AND {matches("l", "f.database_name")})
    ORDER BY {precedence("l", "f.database_name")} LIMIT 1
) AS held ON true
ORDER BY f.sum_mb DESC, i.name, f.database_name NULLS FIRST
"""  # noqa: S608 -- expressions of our own views
_DAYS = f"{group_parts()} SELECT count(DISTINCT collected_date) FROM servers"  # noqa: S608 -- as above
_STORED = f"""
SELECT max(coalesce(sum_size_mb, avg_size_mb)) FILTER (WHERE label_key = :key AND label_value = :value) AS sum_mb,
       max(data_count) FILTER (WHERE label_key = '{FLEET}') AS days
FROM group_size_aggregations WHERE period_type = :period AND period_start = :start
"""  # noqa: S608 -- as above
_VALUES = """
SELECT label_value FROM group_size_aggregations
WHERE period_type = :period AND period_start = :start AND label_key = :key AND label_value <> ''
ORDER BY 1
"""
