"""A legacy database in use, which becomes partitioned."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, event

from capacity_assets.storage.partitions import CAPACITY_TABLES, layout_of
from capacity_assets.storage.schema import initialise
from tests.databases import execute
from tests.fleet import load_sample
from tests.legacy import LegacyShape, create_legacy_tables, load_legacy_aggregates


def upgraded(engine: Engine, shape: LegacyShape) -> Engine:
    create_legacy_tables(engine, shape)
    load_sample(engine)
    load_legacy_aggregates(engine)
    initialise(engine)
    # The sample brings its row numbers with it.
    execute(engine, "SELECT setval('database_size_stats_id_seq', 100000)")
    return engine


def keep_few_rows(engine: Engine) -> None:
    for table in CAPACITY_TABLES:
        day = "collected_date" if "collected_date" in table.columns else "period_start"
        execute(engine, f"DELETE FROM {table.name} WHERE instance_id > 2 OR {day} >= '2025-04-01'")


def is_partitioned(engine: Engine) -> list[bool]:
    with engine.connect() as connection:
        return [layout_of(connection, table).by_period for table in CAPACITY_TABLES[2:]]


@contextmanager
def failing_at(engine: Engine, number: int) -> Iterator[None]:
    """Let the statement with that number not happen, as when the process is killed before it."""
    numbers = itertools.count(1)

    def stop(*_arguments: object) -> None:
        if next(numbers) == number:
            raise KeyboardInterrupt

    event.listen(engine, "before_cursor_execute", stop)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", stop)


# For PREPARED_FROM_NOTHING.
LEGACY = {"legacy": lambda engine: upgraded(engine, LegacyShape())}
