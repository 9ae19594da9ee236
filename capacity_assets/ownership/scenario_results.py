"""What a scenario changes of runways and of the budget; the results that were stored by name.

How assumptions change forecasts is in `forecast.scenarios`. A result is stored only on request, as it was computed, so
that a page can show it without computing it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects.postgresql import insert

from capacity_assets.base.declarations import LONGEST_VALUE
from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.units import human_range, natural_key
from capacity_assets.database.engine import snapshot
from capacity_assets.database.tables import capacity_scenarios
from capacity_assets.forecast.results import FORECAST, SERVER, VOLUME, Runway, day_text, standing_for_themselves
from capacity_assets.forecast.scenarios import Scenario, ScenarioComparison, compare
from capacity_assets.ownership.budgets import MOST_MONTHS, BudgetLine, BudgetTotal, coming_months, read_budget
from capacity_assets.ownership.labels import labels_of_each

WITHIN_DAYS = 90
LONGEST_HORIZON = 365


@dataclass(frozen=True)
class ScenarioRunway:
    """When a subject is full, with or without the assumptions."""

    state: str
    limit_mb: int | None
    early_day: date | None
    middle_day: date | None
    late_day: date | None
    within_90_days: float | None
    """Probability of being full within so many days."""
    within_365_days: float | None
    range_text: str
    """The 80 % range of the middle day as people read it; empty if it is a single day or unknown."""

    @classmethod
    def of(cls, row: Runway) -> ScenarioRunway:
        """Return those of a runway."""
        within, longest = (row.probabilities.get(days) for days in (WITHIN_DAYS, LONGEST_HORIZON))
        beyond = row.last_day + timedelta(days=LONGEST_HORIZON)
        around = human_range(row.early_day, row.late_day, beyond) if row.state == FORECAST else ""
        days = (row.early_day, row.middle_day, row.late_day)
        return cls(row.state, row.limit_mb, *days, within, longest, around)

    @property
    def text(self) -> str:
        """The middle day as people read it, or why there is none."""
        return day_text(self.middle_day) if self.state == FORECAST else self.state


@dataclass(frozen=True)
class RunwayChange:
    """The runway of a server, database or volume that the assumptions change."""

    server: str
    subject: str
    name: str
    display_name: str
    last_day: date
    size_mb: int
    before: ScenarioRunway
    after: ScenarioRunway


@dataclass(frozen=True)
class BudgetChange:
    """The budget of a group without and with the assumptions; `name` None: what has no such label, or the total."""

    name: str | None
    end_size_before_mb: int
    end_size_after_mb: int
    amount_before: Decimal | None
    amount_after: Decimal | None
    difference: Decimal | None


@dataclass(frozen=True)
class ScenarioResult:
    """What a scenario changes."""

    as_of: date
    assumptions: Sequence[str]
    runways: Sequence[RunwayChange]
    """Those with the greatest risk under the assumptions first."""
    unchanged: int
    """Number of subjects with a known limit whose runway stays as it is."""
    notes: Sequence[str]
    grouped_by: str | None = None
    last_day: date | None = None
    """Last day of the budget; None: there is none."""
    currency: str | None = None
    budget: Sequence[BudgetChange] = ()
    total: BudgetChange | None = None
    without_budget: str | None = None
    """Why there is no budget."""


@dataclass(frozen=True)
class NewDatabaseFit:
    """What a new database does to the runway of one server: to the disk or limit that is then full first."""

    server: str
    display_name: str
    headroom_mb: int
    """What that limit leaves today."""
    before: ScenarioRunway
    after: ScenarioRunway


def result_of(engine: Engine, today: date, scenario: Scenario, by: str, keys: Sequence[str]) -> ScenarioResult:
    """Compute what a scenario changes; stores nothing.

    Raises:
        NotFoundError: nothing was measured, or something that the scenario names.
        ValidationError: groups are not made by this key.
        DatabaseError: the database failed.
    """
    found = compare(
        engine, today, scenario, lambda subjects, label: labels_of_each(engine, subjects, today, label=label)
    )
    if found.as_of is None:
        raise NotFoundError("Nothing was measured yet: there is nothing to forecast from.")
    named = _standing(found)
    changed = [
        RunwayChange(
            *(before.server, before.subject, before.name, before.display_name, before.last_day, before.size_mb),
            before=ScenarioRunway.of(before),
            after=ScenarioRunway.of(after),
        )
        for before, after in found.pairs
        if before != after and (before.server, before.subject, before.name) in named
    ]
    common = (found.as_of, scenario.texts, changed, len(named) - len(changed), found.notes)
    months = coming_months(today, MOST_MONTHS)
    try:
        with database_errors(doing="reading a budget"), snapshot(engine) as connection:
            base = read_budget(connection, by, months, today, keys)
            assumed = read_budget(connection, by, months, today, keys, found.effects)
    except NotFoundError as error:
        return ScenarioResult(*common, without_budget=str(error))
    before_by_name = {line.name: line for line in base.lines}
    return ScenarioResult(
        *common,
        grouped_by=by,
        last_day=base.last_day,
        currency=base.currency,
        budget=[_budget_change(line.name, before_by_name.get(line.name), line) for line in assumed.lines],
        total=_budget_change(None, base.total, assumed.total),
    )


def _standing(found: ScenarioComparison) -> set[tuple[str, str, str]]:
    """Return the keys of what stands for itself, with or without the assumptions: many may share one volume."""
    every = [*standing_for_themselves(found.base.rows), *standing_for_themselves(found.changed.rows)]
    return {(row.server, row.subject, row.name) for row in every}


def _budget_change(
    name: str | None, before: BudgetLine | BudgetTotal | None, after: BudgetLine | BudgetTotal
) -> BudgetChange:
    amount = None if after.amount is None else (before.amount if before else None) or Decimal()
    difference = None if after.amount is None or amount is None else after.amount - amount
    return BudgetChange(name, before.end_size_mb if before else 0, after.end_size_mb, amount, after.amount, difference)


def fits(found: ScenarioComparison) -> list[NewDatabaseFit]:
    """Return the servers with the smallest risk after a new database first; those with too little history last."""
    riskiest: dict[str, tuple[Runway, Runway]] = {}
    for before, after in found.pairs:
        if after.subject in {SERVER, VOLUME} and after.headroom_mb is not None:
            other = riskiest.get(after.server)
            if other is None or _greatest_risk(after) < _greatest_risk(other[1]):
                riskiest[after.server] = (before, after)
    ordered = sorted(riskiest.values(), key=lambda pair: natural_key(pair[1].server))
    ordered.sort(key=lambda pair: _greatest_risk(pair[1])[1:], reverse=True)
    ordered.sort(key=lambda pair: not pair[1].probabilities)
    return [
        NewDatabaseFit(
            *(after.server, after.display_name, after.headroom_mb or 0),
            *(ScenarioRunway.of(before), ScenarioRunway.of(after)),
        )
        for before, after in ordered
    ]


def _greatest_risk(row: Runway) -> tuple[object, ...]:
    """Sort by the greatest known risk, then by the least space left."""
    return (not row.probabilities, *row.risk, row.headroom_mb)


@dataclass(frozen=True)
class ScenarioRecord:
    """A stored result and its name."""

    name: str
    stored_at: datetime
    result: ScenarioResult


_RESULTS = TypeAdapter(ScenarioResult)


def store_scenario(engine: Engine, name: str, result: ScenarioResult) -> None:
    """Store a result in place of an earlier one of the same name; raises ValidationError and DatabaseError."""
    if not name.strip() or len(name) > LONGEST_VALUE or not name.isprintable():
        raise ValidationError(f"The name of a scenario must have 1 to {LONGEST_VALUE} printable characters.")
    content = _RESULTS.dump_python(result, mode="json")
    row = insert(capacity_scenarios).values(name=name, content=content)
    changes = {"content": row.excluded.content, "stored_at": sa.func.now()}
    with database_errors(doing="storing a scenario"), engine.begin() as connection:
        connection.execute(row.on_conflict_do_update(index_elements=["name"], set_=changes))


def remove_scenario(engine: Engine, name: str) -> None:
    """Remove a stored result; raises NotFoundError where there is none, and DatabaseError."""
    chosen = sa.delete(capacity_scenarios).where(capacity_scenarios.c.name == name)
    with database_errors(doing="removing a scenario"), engine.begin() as connection:
        if not connection.execute(chosen).rowcount:
            raise NotFoundError(f"There is no stored scenario {name!r}.")


def stored_scenario_names(connection: Connection) -> list[str]:
    """Name the stored scenarios, the newest first; raises DBAPIError."""
    scenarios = capacity_scenarios.c
    query = sa.select(scenarios.name).order_by(scenarios.stored_at.desc(), scenarios.name)
    return list(connection.execute(query).scalars())


def stored_scenario(connection: Connection, name: str) -> ScenarioRecord:
    """Return a stored result; raises NotFoundError where there is none, and DBAPIError."""
    query = sa.select(capacity_scenarios).where(capacity_scenarios.c.name == name)
    row = connection.execute(query).first()
    if row is None:
        raise NotFoundError(f"There is no stored scenario {name!r}.")
    return ScenarioRecord(row.name, row.stored_at, _RESULTS.validate_python(row.content))
