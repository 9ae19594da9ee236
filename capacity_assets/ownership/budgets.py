"""Budgets: what groups will cost in the coming months, by their newest issued forecasts and the price list.

Everything is exact: sizes between two horizons lie on the line between them, prices are those of the lines of the last
final bill, and amounts are rounded once, to the cent of a month. The rules are in docs/forecast.md, "Budgets".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from typing import Any

from sqlalchemy import Connection, Row, text

from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import MB_PER_GB, human_day, human_mb
from capacity_assets.database.group_days import ENGINE, FLEET
from capacity_assets.database.labels import labels_of
from capacity_assets.forecast.history_statements import STALE_DAYS
from capacity_assets.forecast.outlook import TOO_LITTLE_HISTORY
from capacity_assets.forecast.scenarios import Effect
from capacity_assets.ownership.bills import PRICE_SPANS, money, month_named, price_on
from capacity_assets.ownership.groups import refuse_unknown_grouping

MONTHLY = PERIODS["monthly"]
MOST_MONTHS = 12
"""Forecasts reach a year."""
CENTS = 100
PLACES = 6
SERVER = "server"

Points = Mapping[int, int]
"""Sizes in MiB by days after the last measured day, which is 0."""


@dataclass(frozen=True)
class GroupForecast:
    """The newest forecast of a group; without a band, `lower` and `upper` are None: too little history."""

    name: str | None
    last_day: date
    middle: Points
    lower: Points | None
    upper: Points | None
    assumed: Sequence[Effect] = ()
    """What a scenario adds to it."""

    def on(self, day: date, points: Points) -> Fraction:
        """Return the size on a day after the last measured one, MiB."""
        return size_after((day - self.last_day).days, points)

    def mean(self, month: Window, points: Points) -> Fraction:
        """Return the mean size over the days of a month, MiB."""
        first, last = ((day - self.last_day).days for day in (month.start, month.end))
        return sum(_sums(first, last, points), Fraction()) / month.days

    def assumed_mean(self, first: date, last: date) -> Fraction:
        """Return what a scenario adds to the mean size of some days, MiB."""
        added = Fraction()
        for one in self.assumed:
            begins = max(first, one.day)
            if begins <= last:
                days = (last - begins).days + 1
                grown = Fraction((begins - one.day).days + (last - one.day).days, 2)
                added += days * (Fraction(one.size_mb) + Fraction(one.mb_per_day) * grown)
        return added / ((last - first).days + 1)


def size_after(days: int, points: Points) -> Fraction:
    """Return the size after so many days: on the line between two horizons, or beyond the last; never below 0."""
    ends = list(pairwise(sorted(points)))
    low, high = next(((low, high) for low, high in ends if days <= high), ends[-1])
    grown = Fraction((points[high] - points[low]) * (days - low), high - low)
    return max(points[low] + grown, Fraction())


def _sums(first: int, last: int, points: Points) -> Iterator[Fraction]:
    """Yield the sums of the sizes from one day to another, one for each line: days times the mean of its two ends."""
    begins = first
    for end in (*(one for one in _ends_of_lines(points) if first <= one < last), last):
        if begins <= end:
            yield (end - begins + 1) * (size_after(begins, points) + size_after(end, points)) / 2
        begins = end + 1


def _ends_of_lines(points: Points) -> Iterator[int]:
    """Yield the days after which another line begins: horizons, and the last day on which a falling line is not 0."""
    horizons = sorted(points)
    yield from horizons[1:-1]
    low, high = horizons[-2:]
    fall = points[low] - points[high]
    if fall > 0:
        yield low + points[low] * (high - low) // fall


@dataclass(frozen=True)
class GroupPrice:
    """What a GiB of a group costs per month, by its lines of the last final bill at the prices of each month.

    `of_months` has exact prices; `is_mean` says that the group had no line, so that it is the mean of the fleet.
    """

    of_months: Sequence[Fraction]
    is_mean: bool = False


@dataclass(frozen=True)
class BudgetLine:
    """What one group will have and cost; sizes in MiB. `name` None: what has no such label, or the total.

    Sizes and amounts of the lines add up to those of the fleet; `own` ones are the group's own forecast, before the
    difference to the fleet's was spread. Ends of ranges are None with too little history, amounts without a price.
    """

    name: str | None
    measured_day: date
    size_mb: int
    """Size on the last measured day."""
    end_size_mb: int
    """Size that is forecast for the last day of the budget."""
    end_lower_mb: int | None
    end_upper_mb: int | None
    own_end_size_mb: int
    amount: Decimal | None
    """What the months cost together."""
    lower_amount: Decimal | None
    upper_amount: Decimal | None
    own_amount: Decimal | None
    """Prices times the group's own forecast, to six decimals."""
    price_per_gib: Decimal | None
    """Mean price per GiB and month, to six decimals."""
    is_mean_price: bool
    """Whether the group is in no line of the bill, so that the mean price of the fleet counts."""
    monthly_amounts: Mapping[str, Decimal]
    """What each month costs, by month as 2026-10; these add up to the amount."""

    @property
    def size_range(self) -> str:
        """The range of the size at the end: 3.80 TiB to 4.60 TiB."""
        if self.end_lower_mb is None or self.end_upper_mb is None:
            return TOO_LITTLE_HISTORY
        return f"{human_mb(self.end_lower_mb)} to {human_mb(self.end_upper_mb)}"

    @property
    def amount_range(self) -> str:
        """The range of the amount, without the currency; empty without a price."""
        if self.amount is None:
            return ""
        if self.lower_amount is None or self.upper_amount is None:
            return TOO_LITTLE_HISTORY
        return f"{money(self.lower_amount)} to {money(self.upper_amount)}"


@dataclass(frozen=True)
class Budget:
    """What groups will cost in the coming months, the one that costs most first."""

    as_of: date
    """Day of the forecasts."""
    grouped_by: str
    months: Sequence[date]
    """First days of the months."""
    last_day: date
    """Last day of the last of them."""
    currency: str | None
    bill_month: date | None
    """Month of the bill whose lines are priced; None: no bill of a whole month was issued, so there are no amounts."""
    bill_issue: int | None
    unpriced_gib_months: Decimal
    """GiB of that bill that have no price, and cost nothing here."""
    lines: Sequence[BudgetLine]
    total: BudgetLine
    """The fleet, by its own forecast; its sizes and amounts are the sums of the lines."""

    @property
    def notes(self) -> list[str]:
        """Say what the lines rest on, and how they add up, one sentence each."""
        sentences = [
            f"Sizes are for {human_day(self.last_day)}, by the forecasts of {human_day(self.as_of)}, with 80 % ranges.",
            _spread_note(self),
            "Ranges do not add up: what grows more in one group may grow less in another.",
        ]
        if self.bill_month is None:
            reason = "no price is declared. `capacity prices set` declares one."
            if self.currency is not None:
                reason = "no bill of a whole month was issued yet. `capacity bill` issues it."
            return [*sentences, f"No amounts: {reason}"]
        sentences.append(
            f"An amount is the mean size of each month times the price of a GiB: that of the lines of the bill of "
            f"{month_named(self.bill_month)} (version {self.bill_issue}), at the prices declared for each month. The "
            "range of an amount assumes that every month lies at the same end of its range."
        )
        if self.unpriced_gib_months:
            sentences.append(f"{self.unpriced_gib_months:,.1f} GiB of that bill have no price, and cost nothing here.")
        if any(line.is_mean_price for line in self.lines):
            names = ", ".join(line.name or f"no {self.grouped_by}" for line in self.lines if line.is_mean_price)
            sentences.append(f"Not in that bill, so at the mean price of the fleet: {names}.")
        return sentences


def _spread_note(budget: Budget) -> str:
    own_mb = sum(line.own_end_size_mb for line in budget.lines)
    sums = f"add up to {human_mb(own_mb)}, the forecast of the fleet is {human_mb(budget.total.end_size_mb)}"
    if budget.total.amount is not None:
        own = sum((line.own_amount or Decimal() for line in budget.lines), Decimal())
        sums = f"{sums}; their amounts to {money(own)}, that of the fleet is {money(budget.total.amount)}"
    return (
        f"The groups' own forecasts {sums}. The difference is spread over the groups in proportion to how much each "
        "changes, so that the lines add up to the fleet."
    )


def coming_months(today: date, number: int) -> list[Window]:
    """Return the whole months after the current one; raises ValidationError for more than forecasts reach."""
    if not 1 <= number <= MOST_MONTHS:
        raise ValidationError(f"A budget has 1 to {MOST_MONTHS} months, because forecasts reach a year.")
    months = [MONTHLY.following(MONTHLY.window_of(today))]
    while len(months) < number:
        months.append(MONTHLY.following(months[-1]))
    return months


def read_budget(  # noqa: PLR0913, PLR0917 -- what a budget is of
    connection: Connection,
    by: str,
    months: Sequence[Window],
    today: date,
    keys: Sequence[str],
    assumed: Sequence[Effect] = (),
) -> Budget:
    """Return the budget of months by the newest forecasts of groups, and what a scenario adds; stores nothing.

    Raises:
        NotFoundError: no forecast of groups was issued within the last month.
        ValidationError: groups are not made by this key, or are single servers, which have no sums.
        DBAPIError: the database failed.
    """
    refuse_unknown_grouping(by, keys)
    if by == SERVER:
        raise ValidationError("A budget is made by engine or by the key of a label, not by server.")
    as_of, forecasts = _forecasts(connection, by, today)
    if assumed:
        _assume(connection, forecasts, by, today, assumed)
    fleet = forecasts.pop(FLEET)
    bill = connection.execute(text(_LAST_BILL)).first()
    currency = connection.execute(text("SELECT min(currency) FROM capacity_prices")).scalar()
    prices: dict[str | None, GroupPrice] = {}
    unpriced = Decimal()
    if bill is not None and currency is not None:
        prices, unpriced = _prices(connection, by, months, bill, keys)
    lines, total = _lines(list(forecasts.values()), fleet, months, prices)
    has_amounts = bool(prices)
    return Budget(
        as_of=as_of,
        grouped_by=by,
        months=[month.start for month in months],
        last_day=months[-1].end,
        currency=currency,
        bill_month=bill.month if has_amounts and bill is not None else None,
        bill_issue=bill.issue if has_amounts and bill is not None else None,
        unpriced_gib_months=unpriced,
        lines=sorted(lines, key=lambda line: (-(line.amount or 0), -line.end_size_mb, line.name is None, line.name)),
        total=total,
    )


def _forecasts(connection: Connection, by: str, today: date) -> tuple[date, dict[str | None, GroupForecast]]:
    """Return the forecasts of the groups by name, and of the fleet; raises NotFoundError."""
    asked = {"keys": [by, FLEET], "stale": today - timedelta(days=STALE_DAYS)}
    rows = connection.execute(text(_FORECASTS), asked).all()
    found = {row.group_name: _forecast(row) for row in rows}
    if FLEET in found and len(found) == 1:
        # Nothing has such a label: everything is one group.
        found[None] = replace(found[FLEET], name=None)
    if FLEET not in found:
        raise NotFoundError(
            "There is no forecast of groups. `capacity runway --issue` issues them from the groups of each "
            "day, which `capacity aggregate --period daily` computes."
        )
    return rows[0].as_of, found


def _assume(
    connection: Connection,
    forecasts: dict[str | None, GroupForecast],
    by: str,
    today: date,
    assumed: Sequence[Effect],
) -> None:
    """Add what a scenario adds to the groups of its databases, and to the fleet; a new group begins with nothing."""
    names = {"servers": [one.server for one in assumed], "databases": [one.database for one in assumed]}
    fleet, nothing = forecasts[FLEET], dict.fromkeys((0, *HORIZONS_DAYS), 0)
    for row in connection.execute(text(_GROUPS_OF), {**names, "by": by, "day": today}):
        one = assumed[row.number - 1]
        for name in (row.group_name, FLEET):
            known = forecasts.get(name) or GroupForecast(name, fleet.last_day, nothing, nothing, nothing)
            forecasts[name] = replace(known, assumed=(*known.assumed, one))


def _forecast(row: Row[Any]) -> GroupForecast:
    def points(name: str) -> Points | None:
        values = {days: getattr(row, f"{name}_{days}_days_mb") for days in HORIZONS_DAYS}
        return None if None in values.values() else {0: row.size_mb, **values}

    # Without a band the forecast is that of the drift alone.
    drifting = {days: max(round(row.size_mb + days * row.change_mb_per_day), 0) for days in (0, *HORIZONS_DAYS)}
    return GroupForecast(row.group_name, row.last_day, points("forecast") or drifting, points("lower"), points("upper"))


def _prices(
    connection: Connection, by: str, months: Sequence[Window], bill: Row[Any], keys: Sequence[str]
) -> tuple[dict[str | None, GroupPrice], Decimal]:
    """Return the prices of the groups of a bill and, by the name of the fleet, of all; and its GiB without a price."""
    of_bill = {"month": bill.month, "issue": bill.issue, "by": by, "keys": list(keys)}
    first, last = months[0].start, months[-1].end
    rows = connection.execute(text(_PRICED), {**of_bill, "first": first, "last": last}).all()
    days = sorted({row.day for row in rows})
    gib: dict[str | None, Fraction] = {}
    amounts: dict[tuple[str | None, date], Fraction] = {}
    for row in rows:
        for name in (row.group_name, FLEET):
            if row.day == days[0]:
                gib[name] = gib.get(name, Fraction()) + Fraction(row.gib)
            amounts[name, row.day] = amounts.get((name, row.day), Fraction()) + Fraction(row.amount or 0)
    spans = [(start, end - timedelta(days=1)) for start, end in pairwise([*days, last + timedelta(days=1)])]
    prices = {
        name: GroupPrice(
            [
                sum((amounts[name, start] * _common_days(month, start, end) for start, end in spans), Fraction())
                / (whole * month.days)
                for month in months
            ]
        )
        for name, whole in gib.items()
        if whole
    }
    unpriced = sum((row.unpriced or Decimal() for row in rows if row.day == days[0]), Decimal())
    return prices, unpriced


def _common_days(month: Window, start: date, end: date) -> int:
    return max((min(month.end, end) - max(month.start, start)).days + 1, 0)


def _lines(
    groups: Sequence[GroupForecast],
    fleet: GroupForecast,
    months: Sequence[Window],
    prices: Mapping[str | None, GroupPrice],
) -> tuple[list[BudgetLine], BudgetLine]:
    """Return the lines of groups, and the fleet's, to which they add up."""
    day, of_fleet = months[-1].end, prices.get(FLEET)
    at_mean = None if of_fleet is None else GroupPrice(of_fleet.of_months, is_mean=True)
    every = [_GroupBudget(one, months, prices.get(one.name, at_mean)) for one in groups]
    whole = _GroupBudget(fleet, months, of_fleet)
    sizes = spread(whole.end_size, [one.end_size for one in every], [one.forecast.middle[0] for one in every])
    cells = [
        spread(amount, [one.amounts[place] for one in every], [one.unchanged[place] for one in every])
        for place, amount in enumerate(whole.amounts)
    ]
    sizes_mb = shared_out(_nearest(whole.end_size), sizes)
    cents = [
        shared_out(_nearest(amount * CENTS), [each * CENTS for each in month])
        for amount, month in zip(whole.amounts, cells, strict=True)
    ]
    # What a scenario adds is added to the lines, so that groups that it does not touch stay as they are.
    for place, one in enumerate(every):
        sizes_mb[place] = max(sizes_mb[place] + _nearest(one.forecast.assumed_mean(day, day)), 0)
        for month, amount in zip(cents, one.assumed_amounts, strict=True):
            month[place] = max(month[place] + _nearest(amount * CENTS), 0)
    lines = [_line(one, day, sizes_mb[place], [month[place] for month in cents]) for place, one in enumerate(every)]
    return lines, _line(whole, day, sum(sizes_mb), [sum(month) for month in cents])


class _GroupBudget:
    """A group's own forecast at its price, exactly: its size at the end, and what each month costs."""

    def __init__(self, forecast: GroupForecast, months: Sequence[Window], price: GroupPrice | None) -> None:
        self.forecast, self.months, self.price = forecast, months, price
        self.end_size = forecast.on(months[-1].end, forecast.middle)
        self.amounts = self.amounts_of(forecast.middle)
        self.unchanged = self.amounts_of(dict.fromkeys(forecast.middle, forecast.middle[0]))
        self.gib = sum((forecast.mean(month, forecast.middle) for month in months), Fraction()) / MB_PER_GB

    @property
    def assumed_amounts(self) -> list[Fraction]:
        """What a scenario adds to what each month costs."""
        prices = () if self.price is None else self.price.of_months
        return [
            self.forecast.assumed_mean(month.start, month.end) / MB_PER_GB * price
            for month, price in zip(self.months, prices, strict=False)
        ]

    def amounts_of(self, points: Points) -> list[Fraction]:
        """Return what each month costs at these sizes; nothing without a price."""
        prices = () if self.price is None else self.price.of_months
        return [
            self.forecast.mean(month, points) / MB_PER_GB * price
            for month, price in zip(self.months, prices, strict=False)
        ]


def spread(whole: Fraction, own: Sequence[Fraction], unchanged: Sequence[Fraction | int]) -> list[Fraction]:
    """Spread the difference between the fleet's forecast and the sum of its groups', so that they add up to it.

    Each takes a part in proportion to its own change; what does not change is left as it is. Where nothing changes,
    parts are in proportion to the values. No value falls below 0.
    """
    values = list(own)
    left = list(range(len(own)))
    weights = [abs(one - before) for one, before in zip(own, unchanged, strict=True)]
    if not sum(weights):
        weights = list(own)
    while (missing := whole - sum(values, Fraction())) and (total := sum(weights[place] for place in left)):
        for place in left:
            values[place] += missing * weights[place] / total
        below = [place for place in left if values[place] < 0]
        for place in below:
            values[place] = Fraction()
        left = [place for place in left if place not in below]
    if missing and (total := sum(values, Fraction())):
        # What changes cannot take everything.
        values = [value * whole / total for value in values]
    return values


def shared_out(whole: int, parts: Sequence[Fraction]) -> list[int]:
    """Round parts down, then give those with the largest remainders one more until they add up to the whole.

    Parts that add up to something else than about the whole, because all are 0, are left as they are.
    """
    rounded = [floor(part) for part in parts]
    missing = whole - sum(rounded)
    if missing > len(parts):
        return rounded
    order = sorted(range(len(parts)), key=lambda place: (rounded[place] - parts[place], place))
    for place in order[:missing]:
        rounded[place] += 1
    return rounded


def _line(own: _GroupBudget, day: date, end_size_mb: int, cents: Sequence[int]) -> BudgetLine:
    """Return the line of a group, with its ranges moved by as much as its forecast was."""
    one, price, amount = own.forecast, own.price, sum(cents)
    moved_mb = end_size_mb - own.end_size
    own_amount = sum(own.amounts, Fraction())
    moved = amount - own_amount * CENTS
    lower, upper = (None if points is None else one.on(day, points) + moved_mb for points in (one.lower, one.upper))
    lowest, highest = (
        None if points is None or price is None else sum(own.amounts_of(points), Fraction()) * CENTS + moved
        for points in (one.lower, one.upper)
    )
    return BudgetLine(
        name=one.name,
        measured_day=one.last_day,
        size_mb=one.middle[0],
        end_size_mb=end_size_mb,
        # Rounding to a whole number must not leave the range.
        end_lower_mb=None if lower is None else max(min(floor(lower), end_size_mb), 0),
        end_upper_mb=None if upper is None else max(ceil(upper), end_size_mb),
        own_end_size_mb=_nearest(own.end_size),
        amount=None if price is None else _money(amount),
        lower_amount=None if lowest is None else _money(max(min(floor(lowest), amount), 0)),
        upper_amount=None if highest is None else _money(max(ceil(highest), amount)),
        own_amount=None if price is None else _decimal(own_amount),
        price_per_gib=None if price is None or not own.gib else _decimal(own_amount / own.gib),
        is_mean_price=price is not None and price.is_mean,
        monthly_amounts={f"{month.start:%Y-%m}": _money(each) for month, each in zip(own.months, cents, strict=False)},
    )


def _nearest(value: Fraction) -> int:
    """Round to a whole number, halves up."""
    return floor(value + Fraction(1, 2))


def _money(cents: int) -> Decimal:
    return Decimal(cents).scaleb(-2)


def _decimal(value: Fraction) -> Decimal:
    return Decimal(_nearest(value * 10**PLACES)).scaleb(-PLACES)


_FORECASTS = """
SELECT * FROM capacity_group_forecasts WHERE grouped_by = ANY (CAST(:keys AS text[])) AND as_of > :stale
ORDER BY group_name
"""
# Servers that another one counts are in no group.
_GROUPS_OF = f"""
SELECT g.number, CASE CAST(:by AS text) WHEN '{ENGINE}' THEN coalesce(i.db_type, 'unknown')
       ELSE {labels_of("i.id", "g.database_name", "CAST(:day AS date)")} ->> CAST(:by AS text) END AS group_name
FROM unnest(CAST(:servers AS text[]), CAST(:databases AS text[])) WITH ORDINALITY AS g (server, database_name, number)
JOIN instances i ON i.name = g.server
WHERE i.counted_by IS NULL ORDER BY g.number
"""  # noqa: S608 -- the labels as everywhere
_LAST_BILL = """
SELECT month, issue FROM capacity_bills WHERE is_final AND currency IS NOT NULL ORDER BY month DESC, issue DESC LIMIT 1
"""
# Prices change on some days only, so each is looked up once per engine, labels and stretch of days.
_PRICED = f"""
WITH spans AS MATERIALIZED ({PRICE_SPANS}), mix AS MATERIALIZED (
    SELECT CASE CAST(:by AS text) WHEN '{ENGINE}' THEN l.engine ELSE l.labels ->> CAST(:by AS text) END AS group_name,
           l.engine, l.labels, sum(l.gib_months) AS gib
    FROM capacity_bill_lines l WHERE l.month = :month AND l.issue = :issue
    GROUP BY 1, l.engine, l.labels
), segments AS (
    SELECT CAST(:first AS date) AS day
    UNION SELECT valid_from FROM capacity_prices WHERE valid_from BETWEEN :first AND :last
)
SELECT m.group_name, s.day, sum(m.gib) AS gib, sum(m.gib) FILTER (WHERE applied.price IS NULL) AS unpriced,
       sum(m.gib * applied.price) AS amount
FROM mix m CROSS JOIN segments s
{price_on("s.day", "m.engine", "m.labels")}
GROUP BY m.group_name, s.day
"""  # noqa: S608 -- statements of our own
