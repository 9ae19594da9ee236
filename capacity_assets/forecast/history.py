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
from sqlalchemy import ARRAY, Connection, Row, Text, any_, literal, select, text

from capacity_assets.database.cluster import copied_for_reading
from capacity_assets.database.tables import instances, is_active
from capacity_assets.forecast.history_statements import (
    KINDS,
    NEWEST_DAY,
    SOURCES,
    STALE_DAYS,
    WITHOUT_LIMIT,
    sources_of,
    statement,
)
from capacity_assets.forecast.model import HISTORY_DAYS, Sizes, without_steps

BATCH = 500
"""Series that are read and forecast together, so that memory does not grow with the fleet."""


@dataclass(frozen=True)
class HistoryScope:
    """What is read: as of a day, for some servers or all, for one name or all, and with a limit or `every` subject."""

    as_of: date
    servers: Collection[str] | None = None
    name: str | None = None
    every: bool = False

    def parameters(self, server_ids: Sequence[int]) -> dict[str, object]:
        """Return the parameters of the statements, for servers by number."""
        days = [self.as_of - timedelta(days=back) for back in range(HISTORY_DAYS)]
        return {
            "as_of": self.as_of,
            "before_first": self.as_of - timedelta(days=HISTORY_DAYS),
            "stale": self.as_of - timedelta(days=STALE_DAYS),
            "recent_days": days[:STALE_DAYS],
            "days": days if len(server_ids) == 1 else None,
            "instance_ids": list(server_ids),
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
    newest: date | None = connection.execute(text(NEWEST_DAY), {"today": today}).scalar()
    return newest


@contextmanager
def reading(connection: Connection, scope: HistoryScope, kinds: Sequence[str] = KINDS) -> Iterator[HistoryReader]:
    """Read within a transaction, series of these `kinds` alone.

    Where tables are distributed, nodes put the series together and find what was measured last; both are kept in
    temporary tables until the block ends. Raises DBAPIError.
    """
    in_service = select(instances.c.id).where(is_active()).order_by(instances.c.id)
    if scope.servers is not None:
        in_service = in_service.where(instances.c.name == any_(literal(list(scope.servers), ARRAY(Text))))
    parameters = scope.parameters(connection.execute(in_service).scalars().all())
    names = {name for kind in (*kinds, WITHOUT_LIMIT) for name in sources_of(kind)}
    queries = {name: query for name, query in SOURCES.items() if name in names}
    with copied_for_reading(connection, queries, parameters) as are_copied:
        yield HistoryReader(connection, scope, parameters, are_copied)


@dataclass(frozen=True)
class HistoryReader:
    """Reads series and what is without a limit, of servers in service. Its calls raise DBAPIError."""

    connection: Connection
    scope: HistoryScope
    parameters: Mapping[str, object]
    from_copies: bool

    def series(self, kind: str) -> Iterator[Histories]:
        """Yield the series of one kind of subject, in batches."""
        # All rows are read: without this a cursor takes the plan whose first row comes soonest, three times slower.
        self.connection.execute(text("SET LOCAL cursor_tuple_fraction = 1"))
        query = statement(kind, from_copies=self.from_copies)
        rows = self.connection.execute(query, self.parameters, execution_options={"yield_per": BATCH})
        for batch in rows.partitions(BATCH):
            yield self._histories(batch)

    def _histories(self, batch: Sequence[Row[Any]]) -> Histories:
        sizes = np.full((len(batch), HISTORY_DAYS), np.nan)
        steps = []
        for place, row in enumerate(batch):
            # A day that was not measured is no day without a change: each series ends with its own last one.
            not_measured_since = (self.scope.as_of - row.last_day).days
            sizes[place, np.asarray(row.days) - 1 + not_measured_since] = row.sizes
            steps.append([day - 1 + not_measured_since for day in row.steps or ()])
        return Histories(batch, sizes, without_steps(sizes, steps))

    def without_limit(self) -> dict[str, int]:
        """Count by server the databases of which no limit is known."""
        rows = self.connection.execute(statement(WITHOUT_LIMIT, from_copies=self.from_copies), self.parameters)
        return {row.server: row.databases for row in rows}
