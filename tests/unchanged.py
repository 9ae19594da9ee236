"""What computing again reads, and what it reports."""

from __future__ import annotations

from sqlalchemy import Engine, event

from capacity_assets.aggregates.levels import SERVER_LEVELS
from capacity_assets.aggregates.runs import PeriodSummary, RunOptions
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from tests.ledger import FIRST, LAST

MONTHS = PERIODS["monthly"].windows_between(FIRST, LAST)


def counts(parts: tuple[PeriodSummary, ...]) -> list[tuple[object, ...]]:
    return [
        (
            part.level,
            part.period_start,
            part.total_instances,
            part.processed_instances,
            part.skipped_instances,
            part.total_records,
            part.protected_records,
        )
        for part in parts
    ]


def months_read(engine: Engine, service: AggregationService) -> dict[str, list[int]]:
    """Compute every month of servers and databases again; by level, the months that were really computed."""
    found: dict[str, list[int]] = {}

    def watch(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        # On one server it is one statement per slice, on a cluster one that counts and one that writes.
        if isinstance(parameters, dict) and {"starts", "wanted"} <= parameters.keys():
            level = "database" if "database_size_stats" in statement else "instance"
            asked = zip(parameters["starts"], parameters["wanted"], strict=True)
            found[level] = [start.month for start, wanted in asked if wanted]

    event.listen(engine, "before_cursor_execute", watch)
    service.aggregate("monthly", MONTHS, RunOptions(tuple(SERVER_LEVELS)))
    event.remove(engine, "before_cursor_execute", watch)
    return found
