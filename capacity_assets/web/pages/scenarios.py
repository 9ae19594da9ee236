"""The page of a stored scenario: what its assumptions change, beside the base case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from capacity_assets.ownership.scenario_results import (
    ChangedRunway,
    ScenarioResult,
    stored_names,
    stored_scenario,
)
from capacity_assets.web.addresses import PageQuery
from capacity_assets.web.reader import Reader


@dataclass(frozen=True)
class ScenarioPage:
    """One stored scenario, by default the newest; `name` None: none is stored."""

    names: Sequence[str]
    name: str | None = None
    stored_at: datetime | None = None
    result: ScenarioResult | None = None
    runways: Sequence[ChangedRunway] = ()


def read_scenario(reader: Reader, query: PageQuery) -> ScenarioPage:
    """Read the page. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    asked = query.text("name")
    with reader.transaction() as connection:
        names = stored_names(connection)
        if asked is None and not names:
            return ScenarioPage(names)
        found = stored_scenario(connection, asked or names[0])
    return ScenarioPage(names, found.name, found.stored_at, found.result, found.result.runways)
