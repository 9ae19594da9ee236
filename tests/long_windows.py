"""Two years of two servers, and what the statements of long windows read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta

from sqlalchemy import Engine, event

from capacity_assets.aggregates.ledger import KnownWindow
from capacity_assets.aggregates.levels import LEVELS, Level
from capacity_assets.aggregates.runs import StoredWindow
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS, Window
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

FIRST = date(2024, 1, 1)
DAYS = 731  # two years, the first a leap year


class FromDays(AggregationService):
    """Reads samples alone, as if no window were vouched for."""

    def _usable(self, _level: Level, _known: Sequence[KnownWindow]) -> frozenset[StoredWindow]:
        return frozenset()


def windows(period: str) -> tuple[Window, ...]:
    return PERIODS[period].windows_between(FIRST, FIRST + timedelta(days=DAYS - 1))


def fill(engine: Engine) -> None:
    """Two servers, one of whose databases comes and goes, lacks its data size at times, and starts in mid-month."""
    add_instances(engine, [1, 2])
    for server in (1, 2):
        measured = [None if day % 40 < 9 * (server - 1) else 1_000 * server + day * day % 97 for day in range(DAYS)]
        rows = [dict(row) for row in sizes(server, "orders", str(FIRST), measured)]
        for number, row in enumerate(rows):
            row["data_size_mb"] = None if number % 5 == 0 or number % 400 < 70 else row["size_mb"]
        add_database_sizes(engine, rows)
        per_day = [None if size is None else (size, day % 7) for day, size in enumerate(measured)]
        add_instance_sizes(engine, totals(server, str(FIRST), per_day))
    add_database_sizes(engine, sizes(1, "archive", "2024-05-20", range(500, 520)))


@contextmanager
def days_read(engine: Engine) -> Iterator[dict[str, list[tuple[date, date]]]]:
    """The spans of days whose samples the statements of a level read."""
    with _watched(engine) as parameters:
        found: dict[str, list[tuple[date, date]]] = {}
        yield found
    for level, named in parameters.items():
        cuts: list[date] = named["cuts"]  # type: ignore[assignment]
        ends = (cut - timedelta(days=1) for cut in cuts[1::2])
        found[level] = list(zip(cuts[::2], ends, strict=True))


@contextmanager
def parts_read(engine: Engine) -> Iterator[dict[str, list[tuple[str, date]]]]:
    """The stored shorter windows that the statements of a level read in place of samples."""
    with _watched(engine) as parameters:
        found: dict[str, list[tuple[str, date]]] = {}
        yield found
    for level, named in parameters.items():
        found[level] = list(zip(named["shorter_types"], named["shorter_starts"], strict=True))  # type: ignore[call-overload]


@contextmanager
def _watched(engine: Engine) -> Iterator[dict[str, dict[str, object]]]:
    """The parameters of the statement of each level."""
    found: dict[str, dict[str, object]] = {}

    def watch(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        # One statement on a single server; where rows are distributed, the first of several, which counts.
        if statement.startswith(("WITH classified", "WITH inserted", "SELECT by_server")):
            level = next(level.name for level in LEVELS.values() if level.target.name in statement)
            found[level] = parameters  # type: ignore[assignment]

    event.listen(engine, "before_cursor_execute", watch)
    yield found
    event.remove(engine, "before_cursor_execute", watch)
