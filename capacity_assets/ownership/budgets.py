"""Budgets: the declared maximum cost of groups, and their expected cost by forecasts and the price list.

Bills are compared with declared budgets (`bills`). In computed budgets, a line is the forecast of a group times its
prices, and the total is the sum of the lines. Sizes between two horizons of a forecast are interpolated linearly,
prices are those of the lines of the last final bill, and amounts are exact until each month is rounded to the cent. The
rules are in docs/forecast.md, "Budgets".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor, lcm
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from sqlalchemy import Connection, Engine, Row, delete, text

from capacity_assets.aggregates.groups import FLEET
from capacity_assets.base.declarations import (
    NO_OTHER_NAMES,
    checked_label,
    declaration,
    declarations,
    names_of,
    number_of,
)
from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import MB_PER_GB, counted, first_of, human_day, human_mb
from capacity_assets.database.declared_rows import Stored, declaring, refuse_repeated, replace_rows, rows_of
from capacity_assets.database.engine import rows_of_issue
from capacity_assets.database.sql import with_queries
from capacity_assets.database.tables import capacity_budgets
from capacity_assets.forecast.results import PAST_SIZES, STALE_DAYS, TOO_LITTLE_HISTORY, end_of_range
from capacity_assets.forecast.scenarios import Effect, Growth, Move
from capacity_assets.label_rules import LABELS_OF_SUBJECTS
from capacity_assets.ownership.bills import CENT, PRICES_OF_MIX, group_named, money, month_named, month_of
from capacity_assets.ownership.labels import SUBJECTS, refuse_unknown_grouping
from capacity_assets.ownership.prices import refuse_currencies

MONTHLY = PERIODS["monthly"]
MOST_MONTHS = 12
"""Forecasts reach a year."""
CENTS = 100
LARGEST_AMOUNT = Decimal(10) ** 12
PLACES = 6
GROUPS_NAMED = 8
SERVER = "server"
DAYS = (0, *HORIZONS_DAYS)
SCALE = lcm(*(high - low for low, high in pairwise(DAYS)))
"""Sizes on the lines between horizons are whole numbers of a MiB divided by this."""


def _amount_of(written: object) -> Decimal:
    amount = number_of(written)
    if not amount.is_finite() or not 0 <= amount < LARGEST_AMOUNT or amount != round(amount, 2):
        raise ValidationError(f"{written!r} is not an amount; write 500 or 500.25, with at most two decimals.")
    return amount.quantize(CENT)


@dataclass(frozen=True)
class MonthBudget:
    """The maximum cost of a group in a month."""

    __pydantic_config__ = NO_OTHER_NAMES

    group: str
    """For example team=payments; team= stands for databases without the label team."""
    month: Annotated[date, BeforeValidator(month_of)]
    amount: Annotated[Decimal, BeforeValidator(_amount_of)]
    currency: str | None = None
    """None: that of the price list."""

    @property
    def row(self) -> dict[str, object]:
        """Its columns in the table."""
        grouped_by, _, name = self.group.partition("=")
        of_month = {"month": self.month, "amount": self.amount, "currency": self.currency}
        return {"grouped_by": grouped_by, "group_name": name, **of_month}


def month_budget(values: Mapping[str, object], keys: Sequence[str]) -> MonthBudget:
    """Read a budget from its values by name; raises ValidationError."""
    budget = declaration(MonthBudget, values)
    return replace(budget, group=checked_group(budget.group, keys))


def checked_group(written: str, keys: Sequence[str]) -> str:
    """Return a group in its stored form; raises ValidationError if it cannot exist."""
    key, equals, name = (part.strip() for part in written.partition("="))
    if not equals:
        raise ValidationError(f"{written!r} is not a group; write team=payments.")
    refuse_unknown_grouping(key, keys)
    if not name and key not in keys:
        raise ValidationError(f"A group by {key} has a name; write {key}=NAME.")
    return f"{key}={checked_label(key, name, keys)[1] if name and key in keys else name}"


def budgets_of_file(path: Path, keys: Sequence[str]) -> list[MonthBudget]:
    """Read budgets from a CSV file with the columns group, month, amount and currency; raises ValidationError."""
    return declarations(path, *names_of(MonthBudget), lambda row: month_budget(row, keys))


def declare_budgets(
    engine: Engine, budgets: Sequence[MonthBudget], *, by: str | None = None, dry_run: bool = False
) -> list[tuple[MonthBudget, Decimal | None]]:
    """Store budgets, either all or none, each in place of one of the same group and month; `by` declares them.

    Returns them with their currency, and the other amount that each replaces. A dry run only checks them.

    Raises:
        ValidationError: a budget is given twice, or its currency is not that of the price list.
        DatabaseError: the database failed; nothing was changed.
    """
    subjects = ((budget.group, budget.month) for budget in budgets)
    refuse_repeated(subjects, lambda key: f"{key[0]} for {month_named(key[1])}", "More than one budget of")
    with declaring(engine, "storing budgets", dry_run=dry_run) as connection:
        currency = connection.execute(text(_CURRENCY)).scalar()
        currencies = {budget.currency for budget in budgets if budget.currency is not None} | (
            {currency} if currency else set()
        )
        if len(currencies) != 1:
            if currency is None:
                raise ValidationError("No price is declared, so all budgets need one currency.")
            wrong = " and ".join(sorted(currencies - {currency}))
            raise ValidationError(f"Budgets are in the currency of the price list, {currency}, not in {wrong}.")
        refuse_currencies(currencies)
        stored = [replace(budget, currency=min(currencies)) for budget in budgets]
        replaced = dict(replace_rows(connection, capacity_budgets, [budget.row for budget in stored], by))
    return [(budget, replaced[number].amount if number in replaced else None) for number, budget in enumerate(stored)]


def remove_budgets(engine: Engine, group: str, months: Sequence[date], *, dry_run: bool = False) -> int:
    """Delete the budgets of a group in some months, and return their number.

    Raises NotFoundError if there is none, and DatabaseError.
    """
    key, _, name = group.partition("=")
    budgets = capacity_budgets.c
    chosen = delete(capacity_budgets).where(
        budgets.grouped_by == key, budgets.group_name == name, budgets.month.in_(months)
    )
    with declaring(engine, "removing budgets", dry_run=dry_run) as connection:
        removed: int = connection.execute(chosen).rowcount
    if not removed:
        first, last = month_named(months[0]), month_named(months[-1])
        raise NotFoundError(f"There is no budget of {group} for {first if first == last else f'{first} to {last}'}.")
    return removed


def declared_budgets(engine: Engine) -> list[Stored[MonthBudget]]:
    """Return all declared budgets by group and month; raises DatabaseError."""
    return [
        Stored(MonthBudget(f"{row.grouped_by}={row.group_name}", *row[2:5]), *row[5:])
        for row in rows_of(engine, "budgets", _DECLARED)
    ]


@dataclass(frozen=True)
class GroupForecast:
    """The newest forecast of a group: its size on each day from the last measured one on, in MiB times `SCALE`.

    The ends of its range are None with too little history.
    """

    name: str | None
    last_day: date
    middle: Sequence[int]
    lower: Sequence[int] | None
    upper: Sequence[int] | None

    @property
    def size_mb(self) -> int:
        """The size on the last measured day."""
        return self.middle[0] // SCALE

    def mean_mb(self, sizes: Sequence[int], first: date, last: date) -> Fraction:
        """Return the mean of sizes over some days after the last measured one."""
        begins, ends = ((day - self.last_day).days for day in (first, last))
        return Fraction(sum(sizes[begins : ends + 1]), SCALE * (ends - begins + 1))


def daily_sizes(points: Mapping[int, int], days: int) -> list[int]:
    """Return the size on a last measured day and on each of the `days` after it, MiB times `SCALE`.

    `points` are the sizes at 0 days and at the horizons, MiB.

    A size is on the line between two horizons, or on the continuation of the last line, and is never below 0.
    """
    sizes: list[int] = []
    for low, high in pairwise(DAYS):
        change = (points[high] - points[low]) * SCALE // (high - low)
        until = days + 1 if high == DAYS[-1] else high
        sizes += [max(points[low] * SCALE + number * change, 0) for number in range(until - low)]
    return sizes[: days + 1]


@dataclass(frozen=True)
class GroupPrice:
    """The exact price of a GiB of a group in each month, by its lines of the last final bill."""

    of_months: Sequence[Fraction]
    is_mean: bool = False
    """Whether the group has no line, so that this is the mean price of the fleet."""


@dataclass(frozen=True, kw_only=True)
class BudgetSums:
    """The expected size and cost of a group, or of all groups. Sizes are in MiB; amounts are None without a price."""

    size_mb: int
    """Size on the last measured day."""
    end_size_mb: int
    """Size that is forecast for the last day of the budget."""
    amount: Decimal | None
    """The cost of all months together."""
    price_per_gib: Decimal | None
    """Mean price per GiB and month, to six decimals."""
    monthly_amounts: Mapping[str, Decimal]
    """The cost of each month, by month as 2026-10; these add up to the amount."""
    monthly_budgets: Mapping[str, Decimal]
    """The declared budget of each month; months without a budget are missing."""
    monthly_budget_differences: Mapping[str, Decimal]
    """The amount of each of these months, less its budget."""
    budget: Decimal | None
    """The sum of the declared months; None: no month has a budget."""
    budget_difference: Decimal | None
    """The sum of the differences; None: no month has a budget, or there are no amounts."""


@dataclass(frozen=True, kw_only=True)
class BudgetLine(BudgetSums):
    """The line of one group; `name` None: databases without the label. Ends of ranges: None with too little history."""

    name: str | None
    measured_day: date
    end_lower_mb: int | None
    end_upper_mb: int | None
    lower_amount: Decimal | None
    upper_amount: Decimal | None
    is_mean_price: bool
    """Whether the group is in no line of the bill and has the mean price of the fleet."""

    @property
    def size_range(self) -> str:
        """The range of the size at the end: 3.80 TiB to 4.60 TiB."""
        return _size_range(self.end_lower_mb, self.end_upper_mb)

    @property
    def amount_range(self) -> str:
        """The range of the amount, without the currency; empty without a price."""
        if self.amount is None:
            return ""
        if self.lower_amount is None or self.upper_amount is None:
            return TOO_LITTLE_HISTORY
        return f"{money(self.lower_amount)} to {money(self.upper_amount)}"


@dataclass(frozen=True, kw_only=True)
class BudgetTotal(BudgetSums):
    """The sums of the lines, and the forecast of the fleet as a whole, which is another figure."""

    fleet_end_size_mb: int
    fleet_end_lower_mb: int | None
    fleet_end_upper_mb: int | None


@dataclass(frozen=True)
class Budget:
    """The expected cost of groups in the coming months, highest cost first."""

    as_of: date
    """Day of the forecasts."""
    grouped_by: str
    months: Sequence[date]
    """First days of the months."""
    last_day: date
    """Last day of the last of them."""
    currency: str | None
    bill_month: date | None
    """Month of the bill with the prices; None: there are no amounts, because no bill or no price exists."""
    bill_issue: int | None
    billable_month: date | None
    """The newest month that is over and has samples, if no bill has prices yet; None: there is none."""
    unpriced_gib_months: Decimal
    """GiB of that bill that have no price, and cost nothing here."""
    lines: Sequence[BudgetLine]
    total: BudgetTotal
    budgets_without_line: Mapping[str, Decimal]
    """Sums of the budgets of groups without a forecast; no total includes them."""
    fleet_day: date
    """The last day on which every server was measured, up to which the fleet is forecast."""
    younger_mb: Mapping[str, int]
    """Sizes of groups that exist only since later days, MiB; they have no line."""

    @property
    def notes(self) -> list[str]:
        """Return the basis of the lines and how they add up, one sentence each."""
        sentences = [
            f"Sizes are for {human_day(self.last_day)}, by the forecasts of {human_day(self.as_of)}, with 80 % ranges.",
            "Ranges do not add up, because groups rarely grow faster or slower than forecast all at once.",
            *_fleet_note(self.total),
            *self._range_notes(),
        ]
        if self.younger_mb:
            named = first_of((f"{name} ({human_mb(mb)})" for name, mb in self.younger_mb.items()), GROUPS_NAMED)
            sentences.append(
                f"Without a line yet: {named}. These groups began after {human_day(self.fleet_day)}, the "
                "last day on which every server was measured."
            )
        if self.bill_month is None:
            return [*sentences, self.why_no_amounts, *self._budget_notes()]
        sentences.append(
            f"An amount is the mean size of each month times the price of a GiB: that of the lines of the bill of "
            f"{month_named(self.bill_month)} (version {self.bill_issue}), at the prices declared for each month. The "
            "range of an amount assumes that every month lies at the same end of its range."
        )
        if self.unpriced_gib_months:
            sentences.append(f"{self.unpriced_gib_months:,.1f} GiB of that bill have no price, and cost nothing here.")
        return [*sentences, *self.mean_price_notes, *self._budget_notes()]

    @property
    def mean_price_notes(self) -> list[str]:
        """Return a sentence on the groups that have the mean price of the fleet, or none."""
        names = [group_named(line.name, self.grouped_by) for line in self.lines if line.is_mean_price]
        if not names or self.bill_month is None:
            return []
        bill = f"the bill of {month_named(self.bill_month)}"
        return [f"Priced at the mean of the fleet, because they are not in {bill}: {first_of(names, GROUPS_NAMED)}."]

    @property
    def why_no_amounts(self) -> str:
        """Return a sentence on what is missing if no bill has prices."""
        if self.currency is None:
            return "No amounts: no price is declared. `capacity prices set` declares one."
        if self.billable_month is not None:
            command = f"`capacity bill --month {self.billable_month:%Y-%m}` issues it"
            return f"No amounts: no bill of a whole month was issued yet. {command}."
        first = self.months[0]
        running = month_named(first - timedelta(days=1))
        return f"No amounts: the first bill, that of {running}, can be issued from {human_day(first)} on."

    def _range_notes(self) -> Iterator[str]:
        """Return sentences on lines whose forecasts are at an end of their range."""
        for end, than in PAST_SIZES.items():
            names = [
                group_named(line.name, self.grouped_by)
                for line in self.lines
                if end_of_range(line.end_size_mb, line.end_lower_mb, line.end_upper_mb) == end
            ]
            if names:
                sizes = f"sizes were nearly always {than} than past forecasts"
                yield f"At the {end} end of the range, because {sizes}: {first_of(names, GROUPS_NAMED)}."

    def _budget_notes(self) -> Iterator[str]:
        """Return sentences on what declared budgets are compared with, and which are not; empty without any."""
        if self.total.budget is not None:
            yield "A declared budget is compared with the amount of its month. Amounts over budget have a plus sign."
            missing = [
                f"{group_named(line.name, self.grouped_by)} ({counted(number, 'month')})"
                for line in self.lines
                if (number := len(self.months) - len(line.monthly_budgets))
            ]
            if missing:
                yield f"Without a budget: {first_of(missing, GROUPS_NAMED)}. `capacity budgets set` declares one."
        if self.budgets_without_line:
            named = first_of(
                (f"{name} ({money(sum_)})" for name, sum_ in self.budgets_without_line.items()), GROUPS_NAMED
            )
            yield f"Budgets of groups without a forecast, in no total: {named} {self.currency}."


def _fleet_note(total: BudgetTotal) -> Iterator[str]:
    """Return a sentence on the forecast of the fleet if it is not the sum of those of the groups."""
    fleet, groups = human_mb(total.fleet_end_size_mb), human_mb(total.end_size_mb)
    if fleet != groups:
        size_range = _size_range(total.fleet_end_lower_mb, total.fleet_end_upper_mb)
        yield (
            f"The forecast of the fleet as a whole is {fleet} ({size_range}); those of the groups add up to {groups}. "
            "Each is made from its own history."
        )


def _size_range(lower_mb: int | None, upper_mb: int | None) -> str:
    return (
        TOO_LITTLE_HISTORY if lower_mb is None or upper_mb is None else f"{human_mb(lower_mb)} to {human_mb(upper_mb)}"
    )


def adopted_budgets(computed_budget: Budget) -> list[MonthBudget]:
    """Return the amounts of a computed budget as budgets to be declared; raises ValidationError without amounts."""
    if computed_budget.total.amount is None:
        raise ValidationError(computed_budget.why_no_amounts)
    return [
        MonthBudget(
            f"{computed_budget.grouped_by}={line.name or ''}", month_of(month), amount, computed_budget.currency
        )
        for line in computed_budget.lines
        for month, amount in line.monthly_amounts.items()
    ]


def coming_months(today: date, number: int) -> list[Window]:
    """Return the whole months after the current one; raises ValidationError for more than forecasts reach."""
    if not 1 <= number <= MOST_MONTHS:
        raise ValidationError(f"A budget has 1 to {MOST_MONTHS} months, because forecasts reach a year.")
    return months_from(month_after(today), number)


def month_after(today: date) -> Window:
    """Return the month after the current one."""
    return MONTHLY.following(MONTHLY.window_of(today))


def months_from(first: Window, number: int) -> list[Window]:
    """Return this many months from the given one on."""
    months = [first]
    while len(months) < number:
        months.append(MONTHLY.following(months[-1]))
    return months


def read_budget(connection: Connection, by: str, months: Sequence[Window], today: date, keys: Sequence[str]) -> Budget:
    """Return the budget of months by the newest forecasts of groups; stores nothing. Raises as `read_budgets`."""
    return read_budgets(connection, by, months, today, keys, [()])[0]


def read_budgets(  # noqa: PLR0913, PLR0917 -- what a budget is of
    connection: Connection,
    by: str,
    months: Sequence[Window],
    today: date,
    keys: Sequence[str],
    scenarios: Sequence[Sequence[Effect]],
) -> list[Budget]:
    """Return the budget as `read_budget`, with what each of some scenarios adds.

    Raises:
        NotFoundError: no forecast of groups was issued within the last month.
        ValidationError: there are no groups by this key, or they are single servers, which have no sums.
        DBAPIError: the database failed.
    """
    refuse_unknown_grouping(by, keys)
    if by == SERVER:
        raise ValidationError("Budgets are grouped by engine or by the key of a label, not by server.")
    as_of, forecasts, younger_mb = _forecasts(connection, by, today, months)
    fleet = forecasts.pop(FLEET)
    nothing = [0] * len(fleet.middle)
    bill = connection.execute(text(_LAST_BILL)).first()
    currency = connection.execute(text("SELECT min(currency) FROM capacity_prices")).scalar()
    prices: dict[str | None, GroupPrice] = {}
    unpriced = Decimal()
    if bill is not None and currency is not None:
        prices, unpriced = _prices(connection, by, months, bill, keys)
    bill_month, bill_issue = (bill.month, bill.issue) if bill is not None and prices else (None, None)
    billable_month = None
    if bill_month is None:
        billable_month = connection.execute(text(_BILLABLE_MONTH), {"running": today.replace(day=1)}).scalar()
    of_fleet = prices.get(FLEET)
    at_mean = None if of_fleet is None else GroupPrice(of_fleet.of_months, is_mean=True)
    budgets = _budgets(connection, by, months, currency)
    of_scenarios = []
    for assumed in scenarios:
        of_groups = list(groups_of_effects(connection, by, fleet.last_day, assumed)) if assumed else []
        new = {name: GroupForecast(name, fleet.last_day, nothing, nothing, nothing) for name, _ in of_groups}
        groups = {**forecasts, **{name: group for name, group in new.items() if name not in forecasts}}
        each_price = {name: prices.get(name, at_mean) for name in groups}
        lines = _lines(groups, months, each_price, of_groups, budgets)
        without_line = {
            group_named(name, by): sum(of_months.values(), Decimal())
            for name, of_months in budgets.items()
            if name not in groups
        }
        per_gib = _price_per_gib(groups.values(), months, each_price.values())
        of_scenarios.append(
            Budget(
                as_of=as_of,
                grouped_by=by,
                months=[month.start for month in months],
                last_day=months[-1].end,
                currency=currency,
                bill_month=bill_month,
                bill_issue=bill_issue,
                billable_month=billable_month,
                unpriced_gib_months=unpriced,
                lines=sorted(
                    lines, key=lambda line: (-(line.amount or 0), -line.end_size_mb, line.name is None, line.name)
                ),
                total=_total(lines, per_gib, fleet, months[-1].end),
                budgets_without_line=without_line,
                fleet_day=fleet.last_day,
                younger_mb=younger_mb,
            )
        )
    return of_scenarios


def _forecasts(
    connection: Connection, by: str, today: date, months: Sequence[Window]
) -> tuple[date, dict[str | None, GroupForecast], dict[str, int]]:
    """Return the forecasts of the groups by name, and of the fleet, up to the end of the months.

    The third value are the sizes of younger groups, MiB. Raises NotFoundError.
    """
    parameters = {"keys": [by, FLEET], "stale": today - timedelta(days=STALE_DAYS)}
    rows = connection.execute(text(_FORECASTS), parameters).all()
    measured_until = max((row.last_day for row in rows), default=date.min)
    if measured_until >= months[0].start:
        # Forecasts have no sizes for days up to their last measured one.
        raise NotFoundError(
            f"The newest forecasts are based on samples up to {human_day(measured_until)}, but the clock of this "
            f"machine says {human_day(today)}. Check this clock."
        )
    forecasts = {row.group_name: _forecast(row, (months[-1].end - row.last_day).days) for row in rows}
    if FLEET not in forecasts:
        raise NotFoundError(
            "There is no forecast of groups. `capacity runway --issue` issues them from the groups of each "
            "day, which `capacity aggregate --period daily` computes."
        )
    # A group that another one took over within the last month still has a forecast; its databases must count once.
    fleet_day = forecasts[FLEET].last_day
    there = {FLEET, *connection.execute(text(_GROUPS_ON), {"day": fleet_day, "by": by}).scalars()}
    # Other groups may still have the databases of such a group in their newest size.
    younger = {
        group_named(row.group_name, by): row.size_mb
        for row in rows
        if row.group_name not in there and row.last_day > fleet_day
    }
    forecasts = {name: group for name, group in forecasts.items() if name in there}
    if len(forecasts) == 1:
        # Nothing has such a label: everything is one group.
        forecasts[None] = replace(forecasts[FLEET], name=None)
    return rows[0].as_of, forecasts, younger


def groups_of_effects(
    connection: Connection, by: str, day: date, assumed: Sequence[Effect]
) -> Iterator[tuple[str | None, Effect]]:
    """Yield effects of a scenario, each with the group that its database is in on a day; raises DBAPIError.

    A budget has the groups of its `fleet_day`. A group that began after it has no line yet.
    """
    names = {"servers": [effect.server for effect in assumed], "databases": [effect.database for effect in assumed]}
    query = with_queries(_GROUPS_OF, subjects=SUBJECTS, labels_held=LABELS_OF_SUBJECTS)
    for row in connection.execute(query, {**names, "by": by, "day": day}):
        yield row.group_name, assumed[row.number - 1]


def _forecast(row: Row[Any], days: int) -> GroupForecast:
    def sizes(name: str) -> list[int] | None:
        values = {number: getattr(row, f"{name}_{number}_days_mb") for number in HORIZONS_DAYS}
        return None if None in values.values() else daily_sizes({0: row.size_mb, **values}, days)

    # Without a band, the forecast is only that of the drift.
    drift = {number: max(round(row.size_mb + number * row.change_mb_per_day), 0) for number in DAYS}
    middle = sizes("forecast") or daily_sizes(drift, days)
    return GroupForecast(row.group_name, row.last_day, middle, sizes("lower"), sizes("upper"))


def _prices(
    connection: Connection, by: str, months: Sequence[Window], bill: Row[Any], keys: Sequence[str]
) -> tuple[dict[str | None, GroupPrice], Decimal]:
    """Return the prices of the groups of a bill and, by the name of the fleet, of all; and its GiB without a price.

    They are of MOST_MONTHS, so that shorter budgets need no others.
    """
    parameters = {"month": bill.month, "issue": bill.issue, "by": by, "keys": list(keys)}
    span = {"first": months[0].start, "last": months_from(months[0], MOST_MONTHS)[-1].end}
    prices: dict[str | None, GroupPrice] = {}
    unpriced = Decimal()
    priced = with_queries(_PRICED, mix=_MIX, prices_held=PRICES_OF_MIX)
    for row in rows_of_issue(connection, priced, **parameters, **span):
        name = FLEET if row.is_fleet else row.group_name
        if row.gib_days:
            price = Fraction(row.amount or 0) / Fraction(row.gib_days)
            prices[name] = GroupPrice([*(prices[name].of_months if name in prices else ()), price])
        if row.is_fleet:
            unpriced += row.unpriced or 0
    return prices, unpriced


def _budgets(
    connection: Connection, by: str, months: Sequence[Window], currency: str | None
) -> dict[str | None, dict[str, Decimal]]:
    """Return the declared budgets of the groups by name and month, as 2026-10."""
    parameters = {"by": by, "first": months[0].start, "last": months[-1].start, "currency": currency}
    budgets: dict[str | None, dict[str, Decimal]] = {}
    for row in connection.execute(text(_BUDGETS), parameters):
        budgets.setdefault(row.group_name, {})[f"{row.month:%Y-%m}"] = row.amount
    return budgets


def _lines(
    groups: Mapping[str | None, GroupForecast],
    months: Sequence[Window],
    prices: Mapping[str | None, GroupPrice | None],
    assumed: Sequence[tuple[str | None, Effect]],
    budgets: Mapping[str | None, Mapping[str, Decimal]],
) -> list[BudgetLine]:
    """Return the lines of groups; a scenario adds to them, so that other groups stay unchanged."""
    day = months[-1].end
    added_mb: Counter[str | None] = Counter()
    for name, size in _added_sizes(groups, assumed, day, day):
        added_mb[name] += _nearest(size)
    added_cents: Counter[tuple[str | None, date]] = Counter()
    for place, month in enumerate(months):
        for name, size in _added_sizes(groups, assumed, month.start, month.end):
            if (price := prices[name]) is not None:
                added_cents[name, month.start] += _nearest(size / MB_PER_GB * price.of_months[place] * CENTS)
    return [
        _line(
            group,
            months,
            prices[name],
            added_mb[name],
            [added_cents[name, month.start] for month in months],
            budgets.get(name, {}),
        )
        for name, group in groups.items()
    ]


def _added_sizes(
    groups: Mapping[str | None, GroupForecast], assumed: Sequence[tuple[str | None, Effect]], first: date, last: date
) -> Iterator[tuple[str | None, Fraction]]:
    """Yield a scenario's changes of the mean size of groups over some days, MiB: first of growth, then the rest.

    Lower growth removes at most the growth of the group, and a purge or a move at most the rest. A move adds what it
    removed.
    """
    if not assumed:
        return
    left = {name: group.mean_mb(group.middle, first, last) for name, group in groups.items()}
    growth: dict[str | None, Fraction] = {}
    for name, effect in assumed:
        if isinstance(effect.of, Growth):
            growth[name] = growth.get(name, Fraction()) + _mean_added(effect, first, last)
    for name, changed in growth.items():
        size = max(changed, -max(left[name] - groups[name].size_mb, Fraction()))
        left[name] += size
        yield name, size
    moved_sizes: dict[Move, Fraction] = {}
    for name, effect in assumed:
        if isinstance(effect.of, Growth):
            continue
        size = max(_mean_added(effect, first, last), -left[name])
        if isinstance(effect.of, Move) and effect.server == effect.of.server:
            size = min(size, Fraction())
            moved_sizes[effect.of] = -size
        elif isinstance(effect.of, Move):
            size = moved_sizes.get(effect.of, max(size, Fraction()))
        left[name] += size
        yield name, size


def _mean_added(effect: Effect, first: date, last: date) -> Fraction:
    """Return the change of the mean size of some days by an effect, MiB."""
    begins = max(first, effect.day)
    days = (last - begins).days + 1
    if days <= 0:
        return Fraction()
    grown = Fraction((begins - effect.day).days + (last - effect.day).days, 2)
    return days * (Fraction(effect.size_mb) + Fraction(effect.mb_per_day) * grown) / ((last - first).days + 1)


def _line(  # noqa: PLR0913, PLR0917 -- what a line is made of
    group: GroupForecast,
    months: Sequence[Window],
    price: GroupPrice | None,
    added_mb: int,
    added_cents: Sequence[int],
    budgets: Mapping[str, Decimal],
) -> BudgetLine:
    """Return the line of a group; the changes of a scenario move its ranges."""
    day, prices = months[-1].end, () if price is None else price.of_months
    exact = _amounts(group, months, prices, group.middle)
    end_size_mb = max(_nearest(group.mean_mb(group.middle, day, day)) + added_mb, 0)
    cents = [max(_nearest(each * CENTS) + more, 0) for each, more in zip(exact, added_cents, strict=False)]
    amount = sum(cents)
    amounts = {f"{month.start:%Y-%m}": _money(each) for month, each in zip(months, cents, strict=False)}
    differences = {month: amounts[month] - budget for month, budget in budgets.items() if month in amounts}
    ends = (group.lower, group.upper)
    lower, upper = (None if sizes is None else group.mean_mb(sizes, day, day) + added_mb for sizes in ends)
    lowest, highest = (
        None
        if sizes is None or price is None
        else sum(_amounts(group, months, prices, sizes), Fraction()) * CENTS + sum(added_cents)
        for sizes in ends
    )
    return BudgetLine(
        name=group.name,
        measured_day=group.last_day,
        size_mb=group.size_mb,
        end_size_mb=end_size_mb,
        # Rounding to a whole number must not leave the range.
        end_lower_mb=None if lower is None else max(min(floor(lower), end_size_mb), 0),
        end_upper_mb=None if upper is None else max(ceil(upper), end_size_mb),
        amount=None if price is None else _money(amount),
        lower_amount=None if lowest is None else _money(max(min(floor(lowest), amount), 0)),
        upper_amount=None if highest is None else _money(max(ceil(highest), amount)),
        price_per_gib=_price_per_gib([group], months, [price]),
        is_mean_price=price is not None and price.is_mean,
        monthly_amounts=amounts,
        monthly_budgets=budgets,
        monthly_budget_differences=differences,
        budget=_sum(budgets),
        budget_difference=_sum(differences),
    )


def _total(lines: Sequence[BudgetLine], per_gib: Decimal | None, fleet: GroupForecast, day: date) -> BudgetTotal:
    amounts = [line.amount for line in lines]
    monthly, budgets, differences = (
        _sums([getattr(line, name) for line in lines])
        for name in ("monthly_amounts", "monthly_budgets", "monthly_budget_differences")
    )
    lower, upper = (None if sizes is None else fleet.mean_mb(sizes, day, day) for sizes in (fleet.lower, fleet.upper))
    return BudgetTotal(
        size_mb=sum(line.size_mb for line in lines),
        end_size_mb=sum(line.end_size_mb for line in lines),
        amount=None if None in amounts else sum(filter(None, amounts), Decimal()),
        price_per_gib=per_gib,
        monthly_amounts=monthly,
        monthly_budgets=budgets,
        monthly_budget_differences=differences,
        budget=_sum(budgets),
        budget_difference=_sum(differences),
        fleet_end_size_mb=_nearest(fleet.mean_mb(fleet.middle, day, day)),
        fleet_end_lower_mb=None if lower is None else floor(lower),
        fleet_end_upper_mb=None if upper is None else ceil(upper),
    )


def _sum(of_months: Mapping[str, Decimal]) -> Decimal | None:
    return sum(of_months.values(), Decimal()) if of_months else None


def _sums(of_lines: Sequence[Mapping[str, Decimal]]) -> dict[str, Decimal]:
    """Return the sum of each month that a line has, by month."""
    months = sorted(set().union(*of_lines))
    return {month: sum((line[month] for line in of_lines if month in line), Decimal()) for month in months}


def _price_per_gib(
    groups: Iterable[GroupForecast], months: Sequence[Window], prices: Iterable[GroupPrice | None]
) -> Decimal | None:
    """Return the mean price of groups, to six decimals; None without a price, or without a size."""
    amount, gib = Fraction(), Fraction()
    for group, price in zip(groups, prices, strict=True):
        if price is not None:
            amount += sum(_amounts(group, months, price.of_months, group.middle), Fraction())
            gib += (
                sum((group.mean_mb(group.middle, month.start, month.end) for month in months), Fraction()) / MB_PER_GB
            )
    return _decimal(amount / gib) if gib else None


def _amounts(
    group: GroupForecast, months: Sequence[Window], prices: Sequence[Fraction], sizes: Sequence[int]
) -> list[Fraction]:
    """Return the exact cost of each month at these sizes; empty without prices."""
    return [
        group.mean_mb(sizes, month.start, month.end) / MB_PER_GB * price
        for month, price in zip(months, prices, strict=False)
    ]


def _nearest(value: Fraction) -> int:
    """Round to a whole number, halves away from 0, so that removed and added values are equal."""
    rounded = floor(abs(value) + Fraction(1, 2))
    return rounded if value >= 0 else -rounded


def _money(cents: int) -> Decimal:
    return Decimal(cents).scaleb(-2)


def _decimal(value: Fraction) -> Decimal:
    return Decimal(_nearest(value * 10**PLACES)).scaleb(-PLACES)


# A price list has one currency.
_CURRENCY = """
SELECT coalesce((SELECT min(currency) FROM capacity_prices), (SELECT min(currency) FROM capacity_budgets))
"""
_DECLARED = """
SELECT grouped_by, group_name, month, amount, currency, declared_at, declared_by FROM capacity_budgets
ORDER BY grouped_by, group_name, month
"""
_BUDGETS = """
SELECT nullif(group_name, '') AS group_name, month, amount FROM capacity_budgets
WHERE grouped_by = :by AND month BETWEEN :first AND :last AND currency = :currency ORDER BY group_name, month
"""
_FORECASTS = """
SELECT * FROM capacity_group_forecasts WHERE grouped_by = ANY (CAST(:keys AS text[])) AND as_of > :stale
ORDER BY group_name
"""
_GROUPS_ON = """
SELECT group_name FROM capacity_groups
WHERE period = 'daily' AND window_start = :day AND grouped_by = :by AND servers > 0
"""
# Servers that another one counts are in no group.
_GROUPS_OF = """
SELECT s.number,
       CASE CAST(:by AS text) WHEN 'engine' THEN s.engine ELSE l.labels ->> CAST(:by AS text) END AS group_name
FROM subjects s LEFT JOIN labels_held l USING (number) WHERE s.counted_by IS NULL ORDER BY s.number
"""
_LAST_BILL = """
SELECT month, issue FROM capacity_bills WHERE is_final AND currency IS NOT NULL ORDER BY month DESC, issue DESC LIMIT 1
"""
_BILLABLE_MONTH = """
SELECT CAST(date_trunc('month', day) AS date) FROM capacity_samples WHERE day < :running ORDER BY day DESC LIMIT 1
"""
# Prices change only on some days, so each is looked up once per range of days of a month.
_MIX = """
SELECT CASE CAST(:by AS text) WHEN 'engine' THEN engine ELSE labels ->> CAST(:by AS text) END AS group_name,
       of_bill.*, s.day, s.days
FROM (
    SELECT l.engine, l.labels, sum(l.gib_months) AS gib
    FROM capacity_bill_lines l WHERE l.month = :month AND l.issue = :issue GROUP BY l.engine, l.labels
) AS of_bill CROSS JOIN (
    SELECT day, lead(day, 1, CAST(:last AS date) + 1) OVER (ORDER BY day) - day AS days
    FROM (SELECT CAST(generate_series(CAST(:first AS date), :last, interval '1 month') AS date) AS day
          UNION SELECT valid_from FROM capacity_prices WHERE valid_from BETWEEN :first AND :last) AS begins
) AS s
"""
_PRICED = """
SELECT group_name, grouping(group_name) = 1 AS is_fleet, sum(gib * days) AS gib_days, sum(gib * price * days) AS amount,
       sum(gib) FILTER (WHERE price IS NULL AND day = :first) AS unpriced
FROM mix JOIN prices_held USING (engine, labels, day)
GROUP BY GROUPING SETS ((group_name, date_trunc('month', day)), (date_trunc('month', day)))
ORDER BY date_trunc('month', day)
"""
