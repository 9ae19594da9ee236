"""What a digest says of a week, of the fleet or of what has a label. How it looks is in `writing`.

Only what is out of the ordinary: a database that grew as it always does is in the report, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.database.engine import TODAY
from capacity_assets.database.sql import TIES, labels_of
from capacity_assets.database.tables import active_condition
from capacity_assets.database.views import STANDS_FOR_ITSELF

WEEKS_OF_HABIT, LEAST_WEEKS, TIMES_HABIT, LEAST_MB = 12, 4, 2, 1024
"""Unusual: a weekly change of at least 1 GiB and more than twice the largest change of the twelve weeks before."""
SOONER_DAYS, WITHIN_DAYS = 14, 180
"""A runway has moved when its middle day is so much sooner than a week ago, or new, and not far ahead."""
SILENT_DAYS = 3
SOON_DAYS = 30
LISTED = 10
WEEKS_DRAWN = 26


@dataclass(frozen=True)
class Mover:
    """A database that grew or shrank more than usual, in MiB; `usual_mb` is its largest change in an earlier week."""

    server: str
    database: str
    change_mb: int
    usual_mb: int


@dataclass(frozen=True)
class MovedRunway:
    """Something that is full sooner than forecast a week ago; `before` None: not within a year then."""

    server: str
    display_name: str
    day: date
    before: date | None


@dataclass(frozen=True)
class FillsSoon:
    """Something that is full within SOON_DAYS with a probability of a half or more."""

    server: str
    display_name: str
    day: date
    probability: float


@dataclass(frozen=True)
class Silent:
    """A server that was measured until a day of the week, and not since."""

    server: str
    last_day: date


@dataclass(frozen=True)
class Named:
    """A database that came or went, with its mean size in the window in which it was there, MiB."""

    server: str
    database: str
    size_mb: int


@dataclass(frozen=True)
class Digest:
    """A week; `change_mb` None: no change is known. Lists hold the first LISTED, counts all."""

    week: Window
    label: tuple[str, str] | None
    size_mb: int
    change_mb: int | None
    soon: Sequence[FillsSoon]
    growers: Sequence[Mover]
    runways: Sequence[MovedRunway]
    silent: Sequence[Silent]
    new: Sequence[Named]
    gone: Sequence[Named]
    counts: dict[str, int] = field(default_factory=dict)
    history: Sequence[tuple[date, int]] = ()
    has_forecast: bool = True
    """Whether a forecast was issued in the week; else what fills is not known."""
    shrinkers: Sequence[Mover] = ()

    @property
    def has_news(self) -> bool:
        """Whether there is anything beyond size and change."""
        return any(self.counts.values())

    @property
    def whose(self) -> str:
        """Of whom it speaks."""
        return "the fleet" if self.label is None else "=".join(self.label)


def read_digest(engine: Engine, week: Window, label: tuple[str, str] | None = None) -> Digest:
    """Read the digest of a week; raises DatabaseError."""
    with database_errors(doing="reading the digest", kept="Nothing was sent."), engine.connect() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        return _read(connection, week, label)


def _read(connection: Connection, week: Window, label: tuple[str, str] | None) -> Digest:
    key, value = label or (None, None)
    asked: dict[str, object] = {
        "start": week.start,
        "end": week.end,
        "before": PERIODS["weekly"].previous(week).start,
        "key": key,
        "value": value,
    }

    def listed(kind: Callable[..., Any], query: str, **more: object) -> list[Any]:
        return [kind(*row) for row in connection.execute(text(query), {**asked, **more})]

    habit = [week.start - timedelta(weeks=number + 1) for number in range(WEEKS_OF_HABIT)]
    found = {
        "soon": listed(FillsSoon, _SOON),
        "growers": listed(Mover, _MOVERS.format(sign=""), weeks=habit),
        "shrinkers": listed(Mover, _MOVERS.format(sign="-"), weeks=habit),
        "runways": listed(MovedRunway, _RUNWAYS),
        "silent": listed(Silent, _SILENT),
        "new": listed(Named, _CAME.format(there=":start", elsewhere=":before")),
        "gone": listed(Named, _CAME.format(there=":before", elsewhere=":start")),
    }
    windows = PERIODS["weekly"].back(week, WEEKS_DRAWN)
    drawn = _OF_GROUP if label else _OF_FLEET
    weeks = dict(listed(lambda start, *sums: (start, sums), drawn, first=windows[0].start))
    size_mb, change_mb = weeks.get(week.start, (0, None))
    return Digest(
        week,
        label,
        int(size_mb),
        None if change_mb is None else int(change_mb),
        **{kind: every[:LISTED] for kind, every in found.items()},
        counts={kind: len(every) for kind, every in found.items()},
        history=[(start, int(size)) for start, (size, _) in weeks.items()],
        has_forecast=bool(connection.execute(text(_FORECAST), asked).scalar()),
    )


_FORECAST = "SELECT count(*) FROM capacity_runways WHERE as_of BETWEEN :start AND :end"
_LABELLED = "(CAST(:key AS text) IS NULL OR {labels} ->> CAST(:key AS text) = :value)"
_OF_VIEW = _LABELLED.format(labels="g.labels")
_MOVERS = f"""
SELECT g.server, g.database, g.change_mb, usual.mb
FROM capacity_growth g
CROSS JOIN LATERAL (
    SELECT max(abs(h.size_change_mb)) AS mb, count(h.size_change_mb) AS weeks FROM database_size_aggregations h
    WHERE h.period_type = 'weekly' AND h.instance_id = g.server_id AND h.database_name = g.database
      AND h.period_start = ANY (CAST(:weeks AS date[]))
) AS usual
WHERE g.period = 'weekly' AND g.window_start = :start AND g.counted
  AND {{sign}}g.change_mb >= {LEAST_MB} AND {{sign}}g.change_mb > CAST({TIMES_HABIT} AS numeric) * usual.mb
  AND usual.weeks >= {LEAST_WEEKS} AND {_OF_VIEW}
ORDER BY {{sign}}g.change_mb DESC, {TIES}
"""  # noqa: S608 -- constants of this module
_LABELS = (
    f"CASE r.subject WHEN 'database' THEN {labels_of('r.instance_id', 'r.name', 'r.as_of')} "
    f"ELSE {labels_of('r.instance_id', None, 'r.as_of')} END"
)
_SUBJECT = """coalesce(i.name, 'server ' || r.instance_id),
       CASE r.subject WHEN 'server' THEN 'all together' WHEN 'volume' THEN 'volume ' || r.name ELSE r.name END"""
_NEWEST = (
    "(SELECT max(as_of) AS day FROM capacity_runways WHERE as_of BETWEEN :start AND CAST(:end AS date) + 1) AS newest"
)
_SOON = f"""
SELECT {_SUBJECT}, r.middle_day, r.probability_{SOON_DAYS}
FROM {_NEWEST} JOIN capacity_runways r ON r.as_of = newest.day LEFT JOIN instances i ON i.id = r.instance_id
WHERE r.probability_{SOON_DAYS} >= 0.5 AND r.middle_day IS NOT NULL
  AND {STANDS_FOR_ITSELF} AND {_LABELLED.format(labels=_LABELS)}
ORDER BY r.middle_day, 1, 2
"""  # noqa: S608 -- as above
# What had no row a week ago is new, and so is its day.
_RUNWAYS = f"""
SELECT {_SUBJECT}, r.middle_day, b.middle_day
FROM {_NEWEST}
CROSS JOIN (SELECT max(as_of) AS day FROM capacity_runways
            WHERE as_of BETWEEN CAST(:start AS date) - 7 AND CAST(:start AS date)) AS older
JOIN capacity_runways r ON r.as_of = newest.day
LEFT JOIN capacity_runways b ON b.as_of = older.day AND b.instance_id = r.instance_id AND b.subject = r.subject
    AND b.name = r.name
LEFT JOIN instances i ON i.id = r.instance_id
WHERE older.day < newest.day AND r.middle_day <= r.as_of + {WITHIN_DAYS}
  AND (b.middle_day IS NULL OR r.middle_day <= b.middle_day - {SOONER_DAYS})
  AND {STANDS_FOR_ITSELF} AND {_LABELLED.format(labels=_LABELS)}
ORDER BY r.middle_day, 1, 2
"""  # noqa: S608 -- as above
# Weeks follow one another: a server that fell silent in the last days of a week is told in the next one. Of a week that
# is not over, its days so far count.
_SILENT = f"""
WITH latest AS MATERIALIZED (
    SELECT least(CAST(:end AS date), max(collected_date)) - {SILENT_DAYS} AS last_day FROM instance_size_stats
    WHERE NOT is_deleted AND collected_date <= {TODAY}
), seen AS MATERIALIZED (
    SELECT instance_id, max(collected_date) AS last_day FROM instance_size_stats
    WHERE NOT is_deleted AND collected_date BETWEEN CAST(:start AS date) - {SILENT_DAYS} AND :end
      AND collected_date <= {TODAY} GROUP BY instance_id
)
SELECT i.name, seen.last_day FROM latest JOIN seen ON seen.last_day <= latest.last_day
JOIN instances i ON i.id = seen.instance_id
WHERE {active_condition("i")}
  AND {_LABELLED.format(labels=labels_of("i.id", None, "CAST(:end AS date)"))}
ORDER BY i.name
"""  # noqa: S608 -- as above
# Databases of servers that were measured in both weeks: of the others it is not known.
_CAME = f"""
SELECT g.server, g.database, g.size_mb FROM capacity_growth g
WHERE g.period = 'weekly' AND g.window_start = {{there}} AND g.counted AND {_OF_VIEW}
  AND NOT EXISTS (SELECT FROM database_size_aggregations a
                  WHERE a.period_type = 'weekly' AND a.period_start = {{elsewhere}} AND a.instance_id = g.server_id
                    AND a.database_name = g.database)
  AND EXISTS (SELECT FROM database_size_aggregations a
              WHERE a.period_type = 'weekly' AND a.period_start = {{elsewhere}} AND a.instance_id = g.server_id)
ORDER BY {TIES}
"""  # noqa: S608 -- as above
_OF_FLEET = """
SELECT window_start, sum(size_mb), sum(change_mb) FROM capacity_server_growth
WHERE period = 'weekly' AND window_start BETWEEN :first AND :start AND counted
GROUP BY window_start ORDER BY window_start
"""
_OF_GROUP = """
SELECT window_start, size_mb, change_mb FROM capacity_groups
WHERE period = 'weekly' AND window_start BETWEEN :first AND :start AND grouped_by = :key AND group_name = :value
ORDER BY window_start
"""
