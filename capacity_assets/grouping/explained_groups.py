"""What the sum of one group is made of: its servers, and the databases that belong to it by a label of their own.

The parts are added up here from the samples, with the labels of each single row, and compared with the stored row, for
which whole servers are added up and databases with labels of their own moved. Explaining one database or server is in
`aggregation.explanation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, text

from capacity_assets.errors import NotFoundError
from capacity_assets.periods import Period, Window
from capacity_assets.storage.group_days import FLEET
from capacity_assets.storage.group_tables import ALWAYS
from capacity_assets.storage.label_expressions import SPANS, holds_on, labels_of, matches, precedence
from capacity_assets.units import LARGEST_MB, first_of

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
    asked = {
        "period": period.name,
        "start": window.start,
        "end": window.end,
        "key": key,
        "value": value,
    }
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


_OF_DATABASE = labels_of("d.instance_id", "d.database_name", "d.collected_date")
_OF_SERVER = labels_of("s.instance_id", None, "s.collected_date")
_IN_WINDOW = "{0}.collected_date BETWEEN :start AND :end"
_TOTALS = f"""
    SELECT t.instance_id, t.collected_date, sum(t.total_size_mb) AS size_mb FROM instance_size_stats t
    WHERE {_IN_WINDOW.format("t")} AND NOT t.is_deleted AND t.total_size_mb <= {LARGEST_MB} GROUP BY 1, 2"""  # noqa: S608 -- constants
# Each database with its own labels, looked up row by row, beside the value of its server on the day.
_PARTS = f"""
WITH candidates AS (
    SELECT DISTINCT l.instance_id AS id, i.name FROM {SPANS} l JOIN instances i ON i.id = l.instance_id
    WHERE l.key = :key AND l.value = :value AND i.counted_by IS NULL
), databases AS (
    SELECT d.instance_id, d.collected_date, d.database_name, d.size_mb,
           {_OF_DATABASE} ->> CAST(:key AS text) AS value
    FROM database_size_stats d JOIN candidates c ON c.id = d.instance_id
    WHERE {_IN_WINDOW.format("d")} AND d.size_mb <= {LARGEST_MB}
), servers AS (
    SELECT s.*, {_OF_SERVER} ->> CAST(:key AS text) AS value FROM (
        SELECT coalesce(t.instance_id, d.instance_id) AS instance_id,
               coalesce(t.collected_date, d.collected_date) AS collected_date, coalesce(t.size_mb, d.size_mb) AS size_mb
        FROM (SELECT t.* FROM ({_TOTALS}) AS t JOIN candidates c ON c.id = t.instance_id) AS t
        FULL JOIN (SELECT instance_id, collected_date, sum(size_mb) AS size_mb FROM databases GROUP BY 1, 2) AS d
            ON d.instance_id = t.instance_id AND d.collected_date = t.collected_date
    ) AS s
), found AS (
    SELECT d.instance_id, d.database_name, count(*) AS days, sum(d.size_mb) AS sum_mb,
           max(d.collected_date) AS last_day
    FROM databases d JOIN servers s ON s.instance_id = d.instance_id AND s.collected_date = d.collected_date
    WHERE d.value = :value AND s.value IS DISTINCT FROM :value GROUP BY 1, 2
    UNION ALL
    SELECT s.instance_id, NULL, count(*), sum(s.size_mb - coalesce(away.size_mb, 0)), max(s.collected_date)
    FROM servers s LEFT JOIN (
        SELECT d.instance_id, d.collected_date, sum(d.size_mb) AS size_mb FROM databases d
        WHERE d.value IS DISTINCT FROM :value GROUP BY 1, 2
    ) AS away ON away.instance_id = s.instance_id AND away.collected_date = s.collected_date
    WHERE s.value = :value GROUP BY 1
)
SELECT c.name AS server, f.database_name, f.days, f.sum_mb, held.database_pattern, held.valid_from
FROM found f JOIN candidates c ON c.id = f.instance_id
LEFT JOIN LATERAL (
    SELECT l.database_pattern, l.valid_from FROM {SPANS} l
    WHERE l.instance_id = f.instance_id AND l.key = :key AND {holds_on("l", "f.last_day")}
      AND (l.database_pattern = '' AND f.database_name IS NULL
           OR f.database_name IS NOT NULL AND {matches("l", "f.database_name")})
    ORDER BY {precedence("l", "f.database_name")} LIMIT 1
) AS held ON true
ORDER BY f.sum_mb DESC, c.name, f.database_name NULLS FIRST
"""  # noqa: S608 -- expressions of our own views
_DAYS = f"""
SELECT count(*) FROM (
    SELECT d.collected_date FROM database_size_stats d WHERE {_IN_WINDOW.format("d")}
    UNION SELECT t.collected_date FROM ({_TOTALS}) AS t) AS days
"""  # noqa: S608 -- as above
_STORED = f"""
SELECT max(coalesce(sum_size_mb, avg_size_mb)) FILTER (WHERE label_key = :key AND label_value = :value) AS sum_mb,
       max(data_count) FILTER (WHERE label_key = '{FLEET}') AS days
FROM group_size_aggregations WHERE period_type = :period AND period_start = :start
"""  # noqa: S608 -- a constant of our own
_VALUES = """
SELECT label_value FROM group_size_aggregations
WHERE period_type = :period AND period_start = :start AND label_key = :key AND label_value <> ''
ORDER BY 1
"""
