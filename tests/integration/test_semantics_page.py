"""The example of docs/semantics.md is computed, and the page has a rule for every column."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import DATABASE, SERVER_LEVELS, Level
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from tests.fleet import add_database_sizes, add_instances, figures

PAGE = (Path(__file__).parents[2] / "docs" / "semantics.md").read_text()


def test_the_example_is_what_is_computed(engine: Engine, service: AggregationService) -> None:
    samples = re.findall(r"^\| (\d{4}-\d\d-\d\d) \| (\d+) \|$", PAGE, re.MULTILINE)
    documented = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+) \| .* \|$", PAGE.split("## An example")[1], re.MULTILINE))
    add_instances(engine, [1])
    add_database_sizes(
        engine,
        [
            {"instance_id": 1, "database_name": "orders", "collected_date": day, "size_mb": int(size)}
            for day, size in samples
        ],
    )

    service.aggregate("monthly", [PERIODS["monthly"].window_of(date(2025, 3, 1))])

    computed = figures(engine, DATABASE)[1, "orders", "monthly", date(2025, 3, 1)]
    shown = {name: "null" if computed[name] is None else str(computed[name]) for name in documented}
    assert (len(samples), len(documented)) == (7, 15)
    assert documented == shown


@pytest.mark.parametrize("level", SERVER_LEVELS.values(), ids=SERVER_LEVELS)
def test_every_figure_has_a_rule(level: Level) -> None:
    [section] = re.findall(
        rf"^## {'Database' if level is DATABASE else 'Server'} aggregates$(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL
    )

    assert set(re.findall(r"`(\w+)`", section)) >= set(level.figures)


def test_the_thresholds_of_the_page_are_those_of_the_registry() -> None:
    for period in PERIODS.values():
        assert re.search(rf"\b{period.trend_percent.normalize():f} % for a ", PAGE), period.name
