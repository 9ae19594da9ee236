"""The page of a stored scenario: what its assumptions change, beside the base case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from capacity_assets.ownership.scenario_results import (
    RunwayChange,
    ScenarioResult,
    stored_names,
    stored_scenario,
)
from capacity_assets.reading.subjects import server_ids_of
from capacity_assets.web.addresses import PageQuery
from capacity_assets.web.reader import Reader


@dataclass(frozen=True)
class ScenarioPage:
    """One stored scenario, by default the newest; `name` None: none is stored."""

    names: Sequence[str]
    name: str | None = None
    stored_at: datetime | None = None
    result: ScenarioResult | None = None
    runways: Sequence[RunwayChange] = ()
    server_ids: Mapping[str, int] = field(default_factory=dict)
    """Those of the servers of `runways` that are still registered, by name."""


def read_scenario(reader: Reader, query: PageQuery) -> ScenarioPage:
    """Read the page. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    asked = query.text("name")
    with reader.transaction() as connection:
        names = stored_names(connection)
        if asked is None and not names:
            return ScenarioPage(names)
        found = stored_scenario(connection, asked or names[0])
        runways = found.result.runways
        ids = server_ids_of(connection, [one.server for one in runways])
    return ScenarioPage(names, found.name, found.stored_at, found.result, runways, ids)
