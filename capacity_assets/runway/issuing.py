"""Issues the runways of a day: computes them, stores them for good, and scores those that came due.

What was issued in time is what people were told, so nothing replaces it later: corrected samples and a better method
change what is issued from then on. How far forecasts were off is in `scores`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from sqlalchemy import Connection, Engine, text

from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.forecast.model import Forecasts
from capacity_assets.foundation.errors import database_errors
from capacity_assets.runway import history
from capacity_assets.runway.forecasting import of_batch
from capacity_assets.runway.history_statements import DATABASE_ROWS
from capacity_assets.runway.outlook import (
    FORECAST,
    LIMIT_UNKNOWN,
    TOO_LITTLE_HISTORY,
    Outlook,
    standing_for_themselves,
)
from capacity_assets.runway.scores import Score, score, scores_of
from capacity_assets.storage.engine import copy_rows
from capacity_assets.storage.limit_tables import capacity_runways

IN_TIME_DAYS = 1
"""A runway of a day that is longer ago was not issued in time; one that was is not replaced."""

_ISSUE_LOCK = 0x72756E77  # "runw": one issue at a time
_ISSUED_AT = "issued_at"
_SCORED = {f"actual_{days}_mb" for days in HORIZONS_DAYS}
COLUMNS = tuple(column.name for column in capacity_runways.columns if column.name not in {_ISSUED_AT, *_SCORED})
KEYS = tuple(column.name for column in capacity_runways.primary_key)


@dataclass(frozen=True)
class IssuedRunways:
    """What a day's issue found: its subjects by state, those at risk, and how far earlier forecasts were off."""

    as_of: date
    in_time: bool = True
    """Whether the day is today or the one before."""
    written: int = 0
    states: Counter[str] = field(default_factory=Counter)
    unknown_limits: int = 0
    """Databases of which no limit is known."""
    headroom_mb: int = 0
    """What the volumes of the fleet have left, or where none is measured, servers with a limit."""
    at_risk: Sequence[Outlook] = ()
    """Those that may be full within the longest horizon, greatest risk first, each said by one row."""
    scores: Sequence[Score] = ()
    """Of the forecasts that came due on this day, by horizon."""

    @property
    def subjects(self) -> int:
        """Servers, databases and volumes that were looked at."""
        return sum(self.states.values())

    def within(self, days: int, probability: float) -> list[Outlook]:
        """Return those that are full within so many days with at least this probability."""
        return [row for row in self.at_risk if row.probabilities[days] >= probability]

    def to_dict(self) -> dict[str, object]:
        """Return the counts as plain values, flat, as the metadata of a partition has them."""
        return {
            "as_of": self.as_of.isoformat(),
            "subjects": self.subjects,
            "forecasts": self.states[FORECAST],
            "unknown_limits": self.unknown_limits,
            "too_little_history": self.states[TOO_LITTLE_HISTORY],
            "headroom_mb": self.headroom_mb,
            "written_records": self.written,
            **{key: value for one in self.scores for key, value in one.to_dict().items()},
        }


def issue(engine: Engine, as_of: date, today: date, *, overwrite: bool = False) -> IssuedRunways:
    """Compute the runways of a day from the samples up to it, and store them; all of them or none.

    Of a day that is over, those that were issued in time stay, unless `overwrite` replaces them.

    Raises:
        DatabaseError: the database failed; nothing was changed.
    """
    in_time = as_of >= today - timedelta(days=IN_TIME_DAYS)
    replace = overwrite or in_time
    with (
        database_errors(doing=f"issuing the runways of {as_of}", kept="None was changed."),
        engine.begin() as connection,
    ):
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ISSUE_LOCK})
        connection.execute(text(_STAGE))
        found = list(_computed(connection, history.Asked(as_of, every=True)))
        written = sum(
            connection.execute(text(statement), {"as_of": as_of}).rowcount
            for statement in (_STORE[replace], *((_REMOVE,) if replace else ()))
        )
        score(connection, as_of)
        return _summed(as_of, found, scores_of(connection, as_of, as_of), written=written, in_time=in_time)


@dataclass
class _Found:
    """What is kept of a batch once its rows are staged."""

    states: Counter[str]
    unknown_databases: int
    at_risk: list[Outlook]
    headroom_mb: dict[str, dict[str, int]]


def _computed(connection: Connection, asked: history.Asked) -> Iterator[_Found]:
    for kind in history.STATEMENTS:
        for batch in history.series(connection, kind, asked):
            made = of_batch(batch)
            rows = _rows(asked.as_of, batch, made.rows, made.made)
            copy_rows(connection, f"COPY issued_runway ({', '.join(COLUMNS)}) FROM STDIN", rows)
            states = Counter(row.state for row in made.rows)
            yield _Found(
                states,
                states[LIMIT_UNKNOWN] if kind == DATABASE_ROWS else 0,
                [row for row in made.rows if row.probabilities and row.probabilities[HORIZONS_DAYS[-1]] > 0],
                _headroom(kind, made.rows),
            )


def _headroom(kind: str, rows: Sequence[Outlook]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        if kind != DATABASE_ROWS and row.headroom_mb is not None:
            found.setdefault(row.server, {})[row.volume or ""] = max(row.headroom_mb, 0)
    return found


def _rows(
    as_of: date, batch: history.Histories, rows: Sequence[Outlook], made: Forecasts
) -> Iterator[tuple[object, ...]]:
    """Turn outlooks into rows of the table, in the order of COLUMNS; ends of bands are rounded outwards."""
    for place, (subject, row) in enumerate(zip(batch.subjects, rows, strict=True)):
        has_band = made.upper[place, 0] == made.upper[place, 0]
        forecasts: list[object] = []
        for number, days in enumerate(HORIZONS_DAYS):
            ends = (made.middle[place, number], made.lower[place, number], made.upper[place, number])
            middle, lower, upper = ends
            sizes = (round(float(middle)), int(lower), -int(-upper // 1)) if has_band else (None, None, None)
            forecasts += [*sizes, row.probabilities.get(days)]
        yield (
            as_of,
            subject.instance_id,
            subject.subject,
            subject.name or "",
            row.state,
            row.last_day,
            row.size_mb,
            row.limit_mb,
            row.binds,
            row.source,
            row.change_mb_per_day,
            row.early_day,
            row.middle_day,
            row.late_day,
            *forecasts,
        )


def _summed(
    as_of: date, found: Sequence[_Found], scores: Sequence[Score], *, written: int, in_time: bool
) -> IssuedRunways:
    every = [row for one in found for row in one.at_risk]
    headroom: dict[str, dict[str, int]] = {}
    for one in found:
        for server, left in one.headroom_mb.items():
            headroom.setdefault(server, {}).update(left)
    # A server's volumes say it better than its total.
    left_mb = sum(
        sum(mb for volume, mb in left.items() if volume) if set(left) - {""} else left[""] for left in headroom.values()
    )
    at_risk = sorted(standing_for_themselves(every), key=lambda row: (row.risk, row.server, row.name))
    return IssuedRunways(
        as_of,
        in_time,
        written,
        sum((one.states for one in found), Counter()),
        sum(one.unknown_databases for one in found),
        left_mb,
        at_risk,
        scores,
    )


_VALUES = tuple(name for name in COLUMNS if name not in KEYS)
_INSERT = f"""
INSERT INTO capacity_runways AS t ({", ".join(COLUMNS)}) SELECT {", ".join(COLUMNS)} FROM issued_runway
ON CONFLICT ({", ".join(KEYS)}) DO """  # noqa: S608 -- names from our own table definition
_CHANGED = " OR ".join(f"t.{name} IS DISTINCT FROM excluded.{name}" for name in _VALUES)
_STORE = {
    False: f"{_INSERT} NOTHING",
    True: f"{_INSERT} UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _VALUES)}, issued_at = now() "
    f"WHERE {_CHANGED}",
}
# A subject that a repetition on the same day does not find any more.
_REMOVE = f"""
DELETE FROM capacity_runways t WHERE t.as_of = :as_of
AND NOT EXISTS (SELECT FROM issued_runway i WHERE {" AND ".join(f"i.{name} = t.{name}" for name in KEYS)})
"""  # noqa: S608 -- as above
_STAGE = f"""
CREATE TEMPORARY TABLE issued_runway ON COMMIT DROP AS
SELECT {", ".join(COLUMNS)} FROM capacity_runways WITH NO DATA
"""  # noqa: S608 -- as above
