"""The form that joins windows from different sources, which nodes are handed, gives the figures of the other form."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from sqlalchemy import Engine, select

from capacity_assets.aggregation.figures import window_figures
from capacity_assets.aggregation.options import DEFAULT_OPTIONS
from capacity_assets.aggregation.parts import Part, Parts
from capacity_assets.aggregation.service import AggregationService
from capacity_assets.aggregation.work import Work
from capacity_assets.foundation.levels import LEVELS, Level
from capacity_assets.periods import PERIODS
from tests.clocks import fixed_clock
from tests.long_windows import fill, windows

pytestmark = pytest.mark.single_server("reads the two forms beside each other")
ASKED = {"monthly": date(2025, 4, 1), "quarterly": date(2025, 4, 1), "yearly": date(2025, 1, 1)}


def parts_of(period: str, *which: str) -> list[Part]:
    """Stored windows: of the window itself its months, and of those it is compared with their own."""
    chosen = PERIODS[period]
    window = chosen.window_of(ASKED[period])
    found = {
        "own": [("monthly", month) for month in PERIODS["monthly"].windows_between(window.start, window.end)],
        "previous": [(period, chosen.previous(window))],
        "year before": [(period, chosen.year_before(window))],
    }
    return [part for name in which for part in found[name]]


CASES = [
    ("monthly", ["previous"]),
    ("monthly", ["previous", "year before"]),
    ("monthly", ["year before"]),
    ("quarterly", ["own"]),
    ("quarterly", ["own", "previous"]),
    ("quarterly", ["previous"]),
    ("yearly", ["own"]),
    ("yearly", ["previous"]),
]


def test_a_join_of_three_windows_gives_what_a_union_of_their_sources_gives(engine: Engine) -> None:
    fill(engine)
    service = AggregationService(engine, fixed_clock())
    for name in ASKED:
        service.aggregate(name, windows(name))
    for period, which in CASES:
        chosen, parts = PERIODS[period], Parts(PERIODS, parts_of(period, *which))
        asked = [chosen.window_of(ASKED[period])]
        alone = Work(chosen, asked, service.instances(None), DEFAULT_OPTIONS, parts, distributed=False)
        joined = replace(alone, distributed=True)

        assert len(joined.form.sources) == 3
        for level in LEVELS.values():
            assert figures(engine, level, joined) == figures(engine, level, alone) != set(), (period, which, level.name)


def figures(engine: Engine, level: Level, work: Work) -> set[tuple[object, ...]]:
    """The rows that a form of the statement computes, before anything is decided."""
    statement = select(window_figures(level, work.form, work.period.windows_per_year).subquery())
    with engine.connect() as connection:
        return {tuple(row) for row in connection.execute(statement, work.parameters())}
