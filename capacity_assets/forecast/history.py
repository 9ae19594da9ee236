"""The sizes that forecasts look at: samples, and before the first that is kept the daily aggregates.

The statements are in `history_statements`; how sizes continue is in `model`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, text

from capacity_assets.database.cluster import copied_for_reading
from capacity_assets.forecast.history_statements import (
    NEWEST_DAY,
    READ_OF_DISTRIBUTED,
    SERIES,
    SERVERS_IN_SERVICE,
    STALE_DAYS,
    STATEMENTS,
    WITHOUT_LIMIT,
)
from capacity_assets.forecast.model import HISTORY_DAYS, Sizes, without_steps

BATCH = 500
"""Series that are read and forecast together, so that memory does not grow with the fleet."""

KINDS = tuple(STATEMENTS)


@dataclass(frozen=True)
class HistoryScope:
    """What is read: as of a day, for some servers or all, for one name or all, and with a limit or `every` subject."""

    as_of: date
    servers: Collection[str] | None = None
    name: str | None = None
    every: bool = False

    def parameters(self) -> dict[str, object]:
        """Return the parameters of the statements."""
        return {
            "as_of": self.as_of,
            "before_first": self.as_of - timedelta(days=HISTORY_DAYS),
            "stale": self.as_of - timedelta(days=STALE_DAYS),
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


@contextmanager
def reading(connection: Connection, asked: HistoryScope, kinds: Sequence[str] = KINDS) -> Iterator[HistoryReader]:
    """Read within a transaction, series of these `kinds` alone.

    Where tables are distributed, nodes put the series together, and what was measured last is copied until the block
    ends. Raises DBAPIError.
    """
    names = None if asked.servers is None else list(asked.servers)
    servers = connection.execute(text(SERVERS_IN_SERVICE), {"servers": names}).scalars().all()
    days = [asked.as_of - timedelta(days=back) for back in range(HISTORY_DAYS)] if len(servers) == 1 else None
    parameters = {**asked.parameters(), "instance_ids": list(servers), "days": days}
    on_nodes = {_table_of(kind): SERIES[kind] for kind in kinds}
    with copied_for_reading(connection, READ_OF_DISTRIBUTED, parameters, on_nodes) as are_copied:
        yield HistoryReader(connection, asked, parameters, are_copied)


@dataclass(frozen=True)
class HistoryReader:
    """Reads series and what is without a limit, of servers in service. Its calls raise DBAPIError."""

    connection: Connection
    asked: HistoryScope
    parameters: Mapping[str, object]
    from_nodes: bool

    def series(self, kind: str) -> Iterator[Histories]:
        """Yield the series of one kind of subject, in batches."""
        # All rows are read: without this a cursor takes the plan whose first row comes soonest, three times slower.
        self.connection.execute(text("SET LOCAL cursor_tuple_fraction = 1"))
        query = f"SELECT * FROM {_table_of(kind)}" if self.from_nodes else SERIES[kind]  # noqa: S608 -- our own name
        statement = text(STATEMENTS[kind].format(series=query))
        rows = self.connection.execute(statement, self.parameters, execution_options={"yield_per": BATCH})
        for batch in rows.partitions(BATCH):
            yield self._histories(batch)

    def _histories(self, batch: Sequence[Row[Any]]) -> Histories:
        sizes = np.full((len(batch), HISTORY_DAYS), np.nan)
        steps = []
        for place, row in enumerate(batch):
            # A day that was not measured is no day without a change: each series ends with its own last one.
            not_measured_since = (self.asked.as_of - row.last_day).days
            sizes[place, np.asarray(row.days) - 1 + not_measured_since] = row.sizes
            steps.append([day - 1 + not_measured_since for day in row.steps or ()])
        return Histories(batch, sizes, without_steps(sizes, steps))

    def without_limit(self) -> dict[str, int]:
        """Count by server the databases of which no limit is known."""
        rows = self.connection.execute(text(WITHOUT_LIMIT), self.parameters)
        return {row.server: row.databases for row in rows}


def _table_of(kind: str) -> str:
    return f"{kind}_series"
