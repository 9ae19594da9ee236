"""The sizes that forecasts look at: samples, and before the first that is kept the daily aggregates.

Which rows are read is said in `history_statements`; how sizes go on is the business of `forecast`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, text

from capacity_assets.forecast.model import HISTORY_DAYS, Sizes
from capacity_assets.forecast.steps import without_steps
from capacity_assets.runway.history_statements import (
    DATABASE_ROWS,
    DATABASES,
    NEWEST_DAY,
    READ_OF_DISTRIBUTED,
    SERVER_ROWS,
    SERVERS,
    STALE_DAYS,
    VOLUME_ROWS,
    VOLUMES,
    WITHOUT_LIMIT,
)
from capacity_assets.storage.local_copies import copy_for_reading

BATCH = 500
"""Series that are read and forecast together, so that memory does not grow with the fleet."""


STATEMENTS = {SERVER_ROWS: SERVERS, DATABASE_ROWS: DATABASES, VOLUME_ROWS: VOLUMES}


@dataclass(frozen=True)
class HistoryScope:
    """What is looked at: as of a day, of one server or all, of one name or all, what has a limit or `every` one."""

    as_of: date
    server: str | None = None
    name: str | None = None
    every: bool = False

    def parameters(self) -> dict[str, object]:
        """Return the parameters of the statements."""
        return {
            "as_of": self.as_of,
            "before_first": self.as_of - timedelta(days=HISTORY_DAYS),
            "stale": self.as_of - timedelta(days=STALE_DAYS),
            "server": self.server,
            "name": self.name,
            "every": self.every,
        }


@dataclass(frozen=True)
class Histories:
    """A batch of series: who each one is, and its sizes in MiB, one column per day up to its last one.

    `smooth` are the sizes without declared steps: what came before one is moved to what came after.
    """

    subjects: Sequence[Row[Any]]
    sizes: Sizes
    smooth: Sizes


def newest_day(connection: Connection, today: date) -> date | None:
    """Return the newest day with samples up to `today`."""
    found: date | None = connection.execute(text(NEWEST_DAY), {"today": today}).scalar()
    return found


def series(connection: Connection, kind: str, asked: HistoryScope) -> Iterator[Histories]:
    """Yield the series of one kind of subject, of servers in service, in batches; raises DBAPIError."""
    # All rows are read: without this a cursor takes the plan whose first row comes soonest, three times slower.
    copy_for_reading(connection, READ_OF_DISTRIBUTED, asked.parameters())
    connection.execute(text("SET LOCAL cursor_tuple_fraction = 1"))
    options = {"yield_per": BATCH}
    rows = connection.execute(text(STATEMENTS[kind]), asked.parameters(), execution_options=options)
    for batch in rows.partitions(BATCH):
        sizes = np.full((len(batch), HISTORY_DAYS), np.nan)
        steps = []
        for place, row in enumerate(batch):
            # A day that was not measured is no day without a change: each series ends with its own last one.
            not_measured_since = (asked.as_of - row.last_day).days
            sizes[place, np.asarray(row.days) - 1 + not_measured_since] = row.sizes
            steps.append([day - 1 + not_measured_since for day in row.steps or ()])
        yield Histories(batch, sizes, without_steps(sizes, steps))


def without_limit(connection: Connection, asked: HistoryScope) -> dict[str, int]:
    """Count by server the databases of which no limit is known. Raises as `series`."""
    copy_for_reading(connection, READ_OF_DISTRIBUTED, asked.parameters())
    rows = connection.execute(text(WITHOUT_LIMIT), asked.parameters())
    return {row.server: row.databases for row in rows}
