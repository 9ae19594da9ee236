"""The changes of runways and of the budget by a scenario, and stored results by name.

`forecast.scenarios` applies assumptions to forecasts. A result is stored only on request, as it was computed, so that a
page can show it without computing it again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects.postgresql import insert

from capacity_assets.base.declarations import LONGEST_VALUE
from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.units import first_of, human_day, human_mb, human_range, natural_key
from capacity_assets.database.engine import rows_of_issue
from capacity_assets.database.tables import capacity_scenarios
from capacity_assets.forecast.history import HistoryScope, newest_day
from capacity_assets.forecast.results import (
    FORECAST,
    FULL,
    RISK_DAYS,
    SERVER,
    VOLUME,
    Runway,
    day_text,
    display_name,
    risk_of,
    standing_for_themselves,
)
from capacity_assets.forecast.scenarios import (
    KINDS_IN_ORDER,
    Effect,
    Growth,
    IssuedLimit,
    LabelFilter,
    Scenario,
    ScenarioComparison,
    Subject,
    chosen_databases,
    compare_within,
    raises_only_limits,
)
from capacity_assets.ownership.bills import group_named, money
from capacity_assets.ownership.budgets import (
    MOST_MONTHS,
    Budget,
    BudgetLine,
    BudgetTotal,
    coming_months,
    groups_of_effects,
    read_budgets,
)
from capacity_assets.ownership.labels import read_label_of_nothing, read_labels

WITHIN_DAYS = 90
LONGEST_HORIZON = 365
NOTABLE_DIFFERENCE = 0.25
"""Difference between the growth of a group and that of its databases, as a share, above which there is a note."""
FACTOR_NOTE = (
    "The factor applies to the forecast growth of each database. The difference is added to the forecast of its group, "
    "which is based on the history of the group, so the growth of the group can change by a different factor."
)
"""Why the growth of a group may change by a different factor."""
OTHER_GROWTH_SHOWN, OTHER_GROWTH_NAMED = 3, 8
"""Maximum number of groups with a separate note, and of other groups that are named."""


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
        """Return the values of a runway."""
        within, longest = (row.probabilities.get(days) for days in (WITHIN_DAYS, LONGEST_HORIZON))
        beyond = row.last_day + timedelta(days=LONGEST_HORIZON)
        around = human_range(row.early_day, row.late_day, beyond) if row.state == FORECAST else ""
        days = (row.early_day, row.middle_day, row.late_day)
        return cls(row.state, row.limit_mb, *days, within, longest, around)

    @property
    def text(self) -> str:
        """The middle day as people read it, or why there is none."""
        return day_text(self.middle_day) if self.state == FORECAST else self.state

    @property
    def full_text(self) -> str:
        """When it is full, as the end of a sentence about it."""
        if self.state == FORECAST and self.middle_day is not None:
            return f"full by {human_day(self.middle_day)}"
        return {FULL: "full now", FORECAST: "not full within a year"}.get(self.state, f"without a date ({self.state})")


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
    """A group's budget without and with the assumptions; `name` None: databases without the label, or the total."""

    name: str | None
    end_size_before_mb: int
    end_size_after_mb: int
    amount_before: Decimal | None
    amount_after: Decimal | None
    difference: Decimal | None


@dataclass(frozen=True)
class ScenarioResult:
    """The changes by a scenario."""

    as_of: date
    assumptions: Sequence[str]
    runways: Sequence[RunwayChange]
    """First those that are full first with the assumptions or without them, then by risk."""
    unchanged: int
    """Number of subjects with a known limit whose runway is unchanged."""
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
    """The effect of a new database on the runway of one server: on the disk or limit that is then full first."""

    server: str
    display_name: str
    headroom_mb: int
    """The free space below that limit today."""
    before: ScenarioRunway
    after: ScenarioRunway


class LargeScenarioError(ValidationError):
    """A scenario would take longer to compute than readers wait."""


def result_of(engine: Engine, today: date, scenario: Scenario, by: str, keys: Sequence[str]) -> ScenarioResult:
    """Compute the changes by a scenario; stores nothing. Raises as `read_result`, and DatabaseError for DBAPIError."""
    with database_errors(doing="computing a scenario"), engine.connect() as connection:
        # Not read-only: if tables are distributed, the history is copied to temporary ones.
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        return read_result(connection, today, scenario, by, keys)


def read_result(  # noqa: PLR0913, PLR0917 -- what a result is of
    connection: Connection, today: date, scenario: Scenario, by: str, keys: Sequence[str], most: int | None = None
) -> ScenarioResult:
    """Compute the changes by a scenario, from the history of the servers that it can change.

    Raises:
        NotFoundError: nothing was measured, or something in the scenario does not exist.
        ValidationError: there are no groups by this key.
        LargeScenarioError: more than `most` databases would be forecast.
        DBAPIError: the database failed.
    """
    as_of, having = _newest_day(connection, today), _label_filter(connection, today)
    servers, unread = _servers_to_read(connection, scenario, as_of, having)
    _refuse_more(connection, as_of, servers, most, "databases")
    issued = _issued_limits(connection, as_of, servers) if servers and raises_only_limits(scenario) else None
    comparison = compare_within(connection, HistoryScope(as_of, servers, every=True), scenario, having, issued=issued)
    listed = _keys_not_covered(comparison)
    changed = [
        RunwayChange(
            *(before.server, before.subject, before.name, before.display_name, before.last_day, before.size_mb),
            before=ScenarioRunway.of(before),
            after=ScenarioRunway.of(after),
        )
        for before, after in comparison.pairs
        if before != after and (before.server, before.subject, before.name) in listed
    ]
    changed = in_order_of_dates(changed)
    common = (as_of, scenario.texts, changed, unread + comparison.unread + len(listed) - len(changed))
    months = coming_months(today, MOST_MONTHS)
    try:
        # Without an effect on sizes, there is one budget.
        assumptions = [(), comparison.effects] if comparison.effects else [()]
        budgets = read_budgets(connection, by, months, today, keys, assumptions)
    except NotFoundError as error:
        return ScenarioResult(*common, comparison.notes, without_budget=str(error))
    base, assumed = budgets[0], budgets[-1]
    grown = [effect for effect in comparison.effects if isinstance(effect.of, Growth)]
    grouped = list(groups_of_effects(connection, by, base.fleet_day, grown)) if grown else []
    before_by_name = {line.name: line for line in base.lines}
    return ScenarioResult(
        *common,
        [
            *comparison.notes,
            *([FACTOR_NOTE] if grown else []),
            *_groups_of_other_growth(scenario, base, grouped),
            *assumed.mean_price_notes,
        ],
        grouped_by=by,
        last_day=base.last_day,
        currency=base.currency,
        budget=[_budget_change(line.name, before_by_name.get(line.name), line) for line in assumed.lines],
        total=_budget_change(None, base.total, assumed.total),
    )


def read_fits(connection: Connection, today: date, scenario: Scenario, most: int | None = None) -> list[NewDatabaseFit]:
    """Return where the new database of a scenario without a server fits, best first. Raises as `read_result`."""
    as_of, having = _newest_day(connection, today), _label_filter(connection, today)
    is_alone = not (scenario.growth or scenario.purge or scenario.limit or scenario.move)
    _refuse_more(connection, as_of, None, most, "servers" if is_alone else "databases")
    kinds = (VOLUME, SERVER) if is_alone else KINDS_IN_ORDER
    return fits(compare_within(connection, HistoryScope(as_of, every=True), scenario, having, kinds=kinds))


def _newest_day(connection: Connection, today: date) -> date:
    as_of = newest_day(connection, today)
    if as_of is None:
        raise NotFoundError("Nothing was measured yet: there is nothing to forecast from.")
    return as_of


def _label_filter(connection: Connection, today: date) -> LabelFilter:
    """Return the filter by labels of a day, which refuses a label that nothing ever had."""

    def having(subjects: Sequence[Subject], label: tuple[str, str]) -> Collection[Subject]:
        labels = read_labels(connection, subjects, today, label=label)
        refusal = None if labels else read_label_of_nothing(connection, *label)
        if refusal:
            raise NotFoundError(refusal)
        return labels

    return having


def _servers_to_read(
    connection: Connection, scenario: Scenario, as_of: date, having: LabelFilter
) -> tuple[set[str] | None, int]:
    """Return the servers to read, None for all, and the number of runways on the others, which do not change.

    These are counted by the forecasts issued for the day. A server without such a forecast, or with a declaration after
    it, is read.
    """
    if scenario.is_of_all:
        return None, 0
    names, on_day = scenario.servers, {"as_of": as_of}
    counts = {row.server_id: row for row in rows_of_issue(connection, sa.text(_ISSUED), as_of=as_of)}
    issued = {row.server: counts.get(row.server_id) for row in connection.execute(sa.text(_IN_SERVICE))}
    if any(growth.server is None for growth in scenario.growth):
        # Servers that were not measured on the newest day have late samples of their last day, or of one after it.
        until = {server: row.measured_until for server, row in issued.items() if row is not None and row.measured_until}
        behind = {server: day for server, day in until.items() if day < as_of}
        late = {"behind": list(behind), "since": list(behind.values())}
        databases = [(row.server, row.name) for row in connection.execute(sa.text(_DATABASES), {**on_day, **late})]
        names |= {server for growth in scenario.growth for server, _ in chosen_databases(growth, databases, having)}
    read = {server for server, row in issued.items() if server in names or row is None or row.is_outdated}
    return read, sum(row.standing for server, row in issued.items() if row is not None and server not in read)


def _issued_limits(connection: Connection, as_of: date, servers: Collection[str]) -> dict[Subject, IssuedLimit]:
    """Return the forecasts issued for the databases of servers without a declaration after them."""
    # By number, by which an index finds them.
    ids = [row.server_id for row in connection.execute(sa.text(_IN_SERVICE)) if row.server in servers]
    rows = connection.execute(sa.text(_ISSUED_LIMITS), {"as_of": as_of, "server_ids": ids}).all()
    outdated = {row.server for row in rows if row.is_outdated}
    return {
        (row.server, row.name): IssuedLimit(
            *(row.binds, row.last_day, row.size_mb, row.limit_mb),
            risk_of({days: getattr(row, f"probability_{days}_days") for days in RISK_DAYS}, row.full_early),
            stands_for_itself=row.stands_for_itself,
        )
        for row in rows
        if row.server not in outdated
    }


def _refuse_more(
    connection: Connection, as_of: date, servers: Collection[str] | None, most: int | None, counted: str
) -> None:
    if most is None:
        return
    parameters = {"as_of": as_of, "servers": None if servers is None else list(servers)}
    number = connection.execute(sa.text(_MEASURED), parameters).one()._mapping[counted]  # noqa: SLF001 -- SQLAlchemy's public name
    if number > most:
        raise LargeScenarioError(f"This would forecast {number:,} {counted}; a page forecasts at most {most:,}.")


def _groups_of_other_growth(
    scenario: Scenario, base: Budget, grouped: Sequence[tuple[str | None, Effect]]
) -> Iterator[str]:
    """Return sentences on why a growth factor changes groups by another share of their forecast growth.

    `grouped` are the effects of growth, each with its group. The groups that differ most have a sentence each; the
    others are named.
    """
    lines = {line.name: line for line in base.lines}
    differing: list[tuple[int, BudgetLine, str]] = []
    for growth in scenario.growth:
        changed: dict[str | None, float] = {}
        for name, effect in grouped:
            if effect.of is growth and growth.factor != 1 and name in lines:
                more = effect.mb_per_day / float(growth.factor - 1) * LONGEST_HORIZON / 12
                changed[name] = changed.get(name, 0.0) + more
        for name, mb_per_month in changed.items():
            line, month_mb = lines[name], round(mb_per_month)
            days = (base.last_day - line.measured_day).days
            own_mb = round((line.end_size_mb - line.size_mb) / days * LONGEST_HORIZON / 12)
            # Of the databases of one server, or one database, the others of the group may be the rest of its growth.
            less_mb = own_mb - month_mb if _is_of_whole_groups(growth, base.grouped_by) else 0
            difference_mb = max(month_mb - own_mb, less_mb)
            if month_mb > 0 and difference_mb > NOTABLE_DIFFERENCE * max(month_mb, own_mb):
                level = "is level" if line.end_size_mb == line.size_mb else "falls"
                own = level if line.end_size_mb <= line.size_mb else f"grows by {human_mb(own_mb)} per month"
                grow = f"its databases that grow add {human_mb(month_mb)} per month"
                differing.append((difference_mb, line, f"{own}, but {grow}. The factor applies to them."))
    differing.sort(key=lambda difference: -difference[0])
    for _, line, text in differing[:OTHER_GROWTH_SHOWN]:
        yield f"The forecast of {group_named(line.name, base.grouped_by)} {text}"
    others = [group_named(line.name, base.grouped_by) for _, line, _ in differing[OTHER_GROWTH_SHOWN:]]
    if others:
        named = first_of(others, OTHER_GROWTH_NAMED)
        yield f"Other groups whose forecast differs from the growth of their databases: {named}."


def _is_of_whole_groups(growth: Growth, grouped_by: str) -> bool:
    is_of_groups = growth.label is None or growth.label[0] == grouped_by
    return is_of_groups and growth.server is None and growth.database is None


def _keys_not_covered(comparison: ScenarioComparison) -> set[tuple[str, str, str]]:
    """Return the keys of rows that no other row covers, with or without the assumptions: many may share a volume."""
    every = [*standing_for_themselves(comparison.base.rows), *standing_for_themselves(comparison.changed.rows)]
    return {(row.server, row.subject, row.name) for row in every}


def _budget_change(
    name: str | None, before: BudgetLine | BudgetTotal | None, after: BudgetLine | BudgetTotal
) -> BudgetChange:
    amount = None if after.amount is None else (before.amount if before else None) or Decimal()
    difference = None if after.amount is None or amount is None else after.amount - amount
    return BudgetChange(name, before.end_size_mb if before else 0, after.end_size_mb, amount, after.amount, difference)


def fits(comparison: ScenarioComparison) -> list[NewDatabaseFit]:
    """Return the servers with the smallest risk after a new database first; those with too little history last."""
    riskiest: dict[str, tuple[Runway, Runway]] = {}
    for before, after in comparison.pairs:
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


def in_order_of_dates(changes: Sequence[RunwayChange]) -> list[RunwayChange]:
    """Return first what is full first with the assumptions, then what is full first without them."""

    def days(change: RunwayChange) -> list[tuple[bool, date]]:
        return [(runway.state != FULL, runway.middle_day or date.max) for runway in (change.after, change.before)]

    return sorted(changes, key=days)


def answer_of(result: ScenarioResult) -> str:
    """Return a sentence on how many fill dates change, which is the earliest, and how the budget changes."""
    moved = [change for change in result.runways if change.before.full_text != change.after.full_text]
    sentence = "no fill date changes"
    if moved:
        runway_change, before, after = moved[0], moved[0].before, moved[0].after
        what = (
            runway_change.server
            if runway_change.subject == SERVER
            else f"{runway_change.display_name} on {runway_change.server}"
        )
        instead = f"; without them, it is {before.full_text}"
        if before.state == after.state == FORECAST and before.middle_day and after.middle_day:
            instead = f" instead of {human_day(before.middle_day)}"
        several = f"{len(moved):,} fill dates change. First, " if len(moved) > 1 else ""
        sentence = f"{several}{what} is {after.full_text}{instead}"
    difference = None if result.total is None else result.total.difference
    cost = ""
    if difference is not None:
        more = f"{money(abs(difference))} {result.currency} {'more' if difference > 0 else 'less'}"
        cost = f" The next {MOST_MONTHS} months cost {more if difference else 'the same'}."
    return f"With these assumptions, {sentence}.{cost}"


def fit_answer(servers: Sequence[NewDatabaseFit]) -> str:
    """Return a sentence on where a new database fits best."""
    if not servers:
        return "No server has a known limit. `capacity limits set` declares one."
    best = servers[0]
    if best.after.state == FULL:
        return "It fits on no server."
    what = ", which" if best.display_name == display_name(SERVER, "") else f": {best.display_name}"
    return f"It fits best on {best.server}{what} is then {best.after.full_text}."


def _greatest_risk(row: Runway) -> tuple[object, ...]:
    """Sort by the greatest known risk, then by the least free space."""
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
    """Remove a stored result; raises NotFoundError if there is none, and DatabaseError."""
    chosen = sa.delete(capacity_scenarios).where(capacity_scenarios.c.name == name)
    with database_errors(doing="removing a scenario"), engine.begin() as connection:
        if not connection.execute(chosen).rowcount:
            raise NotFoundError(f"There is no stored scenario {name!r}.")


def stored_scenario_names(connection: Connection) -> list[str]:
    """Return the names of stored scenarios, the newest first; raises DBAPIError."""
    scenarios = capacity_scenarios.c
    query = sa.select(scenarios.name).order_by(scenarios.stored_at.desc(), scenarios.name)
    return list(connection.execute(query).scalars())


def stored_scenario(connection: Connection, name: str) -> ScenarioRecord:
    """Return a stored result; raises NotFoundError if there is none, and DBAPIError."""
    query = sa.select(capacity_scenarios).where(capacity_scenarios.c.name == name)
    row = connection.execute(query).first()
    if row is None:
        raise NotFoundError(f"There is no stored scenario {name!r}.")
    return ScenarioRecord(row.name, row.stored_at, _RESULTS.validate_python(row.content))


_ISSUED = """
SELECT server_id, bool_or(is_outdated) AS is_outdated,
       max(last_day) FILTER (WHERE subject <> 'volume') AS measured_until,
       count(*) FILTER (WHERE binds IS NOT NULL AND stands_for_itself) AS standing
FROM capacity_runway WHERE as_of = :as_of GROUP BY server_id
"""
_ISSUED_LIMITS = """
SELECT server, name, binds, last_day, size_mb, limit_mb, probability_7_days, probability_30_days, probability_90_days,
       probability_365_days, full_early, stands_for_itself, is_outdated
FROM capacity_runway
WHERE as_of = :as_of AND subject = 'database' AND server_id = ANY (CAST(:server_ids AS integer[]))
"""
_IN_SERVICE = "SELECT server_id, server FROM capacity_servers WHERE is_active"
# Those with a forecast of the day, and those whose samples of the newest day of their server arrived later.
_DATABASES = """
SELECT server, name FROM capacity_runway WHERE as_of = :as_of AND subject = 'database'
UNION
SELECT i.name, s.database_name FROM database_size_stats s JOIN instances i ON i.id = s.instance_id
WHERE s.collected_date = :as_of
UNION
SELECT i.name, s.database_name
FROM unnest(CAST(:behind AS text[]), CAST(:since AS date[])) AS b (server, day)
JOIN instances i ON i.name = b.server
JOIN database_size_stats s ON s.instance_id = i.id AND s.collected_date BETWEEN b.day AND :as_of
"""
_MEASURED = """
SELECT count(*) AS databases, count(DISTINCT s.instance_id) AS servers
FROM database_size_stats s JOIN instances i ON i.id = s.instance_id
WHERE s.collected_date = :as_of
  AND (CAST(:servers AS text[]) IS NULL OR i.name = ANY (CAST(:servers AS text[])))
"""
