"""Budgets: what groups will cost in the coming months, by their newest issued forecasts and the price list.

A line is the group's own forecast times its prices, and the total is the sum of the lines. Everything is exact: sizes
between two horizons lie on the line between them, prices are those of the lines of the last final bill, and amounts are
rounded once, to the cent of a month. The rules are in docs/forecast.md, "Budgets".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from capacity_assets.forecast.scenarios import Effect, Growth, Move
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

    def on(self, day: date, points: Points) -> Fraction:
        """Return the size on a day after the last measured one, MiB."""
        return size_after((day - self.last_day).days, points)

    def mean(self, first: date, last: date, points: Points) -> Fraction:
        """Return the mean size over some days, MiB."""
        begins, ends = ((day - self.last_day).days for day in (first, last))
        return sum(_sums(begins, ends, points), Fraction()) / (ends - begins + 1)


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
    """What one group will have and cost, by its own forecast; sizes in MiB. `name` None: what has no such label.

    Ends of ranges are None with too little history, amounts without a price.
    """

    name: str | None
    measured_day: date
    size_mb: int
    """Size on the last measured day."""
    end_size_mb: int
    """Size that is forecast for the last day of the budget."""
    end_lower_mb: int | None
    end_upper_mb: int | None
    amount: Decimal | None
    """What the months cost together."""
    lower_amount: Decimal | None
    upper_amount: Decimal | None
    price_per_gib: Decimal | None
    """Mean price per GiB and month, to six decimals."""
    is_mean_price: bool
    """Whether the group is in no line of the bill, so that the mean price of the fleet counts."""
    monthly_amounts: Mapping[str, Decimal]
    """What each month costs, by month as 2026-10; these add up to the amount."""

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


@dataclass(frozen=True)
class BudgetTotal:
    """The sums of the lines, and beside them the forecast of the fleet as a whole, which is not their sum; MiB."""

    size_mb: int
    end_size_mb: int
    amount: Decimal | None
    price_per_gib: Decimal | None
    """Mean price per GiB and month, to six decimals."""
    monthly_amounts: Mapping[str, Decimal]
    """What each month costs, by month as 2026-10; these add up to the amount."""
    fleet_end_size_mb: int
    fleet_end_lower_mb: int | None
    fleet_end_upper_mb: int | None


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
    total: BudgetTotal

    @property
    def notes(self) -> list[str]:
        """Say what the lines rest on, and how they add up, one sentence each."""
        sentences = [
            f"Sizes are for {human_day(self.last_day)}, by the forecasts of {human_day(self.as_of)}, with 80 % ranges.",
            "Ranges do not add up: what grows more in one group may grow less in another.",
            *_fleet_note(self.total),
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


def _fleet_note(total: BudgetTotal) -> Iterator[str]:
    """Say what the forecast of the fleet is where it is not the sum of those of the groups."""
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
    fleet = forecasts.pop(FLEET)
    of_groups = list(_groups_of(connection, by, today, assumed)) if assumed else []
    nothing = dict.fromkeys((0, *HORIZONS_DAYS), 0)
    for name, _ in of_groups:
        forecasts.setdefault(name, GroupForecast(name, fleet.last_day, nothing, nothing, nothing))
    bill = connection.execute(text(_LAST_BILL)).first()
    currency = connection.execute(text("SELECT min(currency) FROM capacity_prices")).scalar()
    prices: dict[str | None, GroupPrice] = {}
    unpriced = Decimal()
    if bill is not None and currency is not None:
        prices, unpriced = _prices(connection, by, months, bill, keys)
    of_fleet = prices.get(FLEET)
    at_mean = None if of_fleet is None else GroupPrice(of_fleet.of_months, is_mean=True)
    each_price = {name: prices.get(name, at_mean) for name in forecasts}
    lines = _lines(forecasts, months, each_price, of_groups)
    per_gib = _price_per_gib(forecasts.values(), months, each_price.values())
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
        total=_total(lines, per_gib, fleet, months[-1].end),
    )


def _forecasts(connection: Connection, by: str, today: date) -> tuple[date, dict[str | None, GroupForecast]]:
    """Return the forecasts of the groups by name, and of the fleet; raises NotFoundError."""
    asked = {"keys": [by, FLEET], "stale": today - timedelta(days=STALE_DAYS)}
    rows = connection.execute(text(_FORECASTS), asked).all()
    found = {row.group_name: _forecast(row) for row in rows}
    if FLEET not in found:
        raise NotFoundError(
            "There is no forecast of groups. `capacity runway --issue` issues them from the groups of each "
            "day, which `capacity aggregate --period daily` computes."
        )
    # What another group took over within the last month has a forecast still, and counts once.
    there = {FLEET, *connection.execute(text(_GROUPS_ON), {"day": found[FLEET].last_day, "by": by}).scalars()}
    found = {name: one for name, one in found.items() if name in there}
    if len(found) == 1:
        # Nothing has such a label: everything is one group.
        found[None] = replace(found[FLEET], name=None)
    return rows[0].as_of, found


def _groups_of(
    connection: Connection, by: str, today: date, assumed: Sequence[Effect]
) -> Iterator[tuple[str | None, Effect]]:
    """Yield the effects of a scenario, each with the group that its database is in."""
    names = {"servers": [one.server for one in assumed], "databases": [one.database for one in assumed]}
    for row in connection.execute(text(_GROUPS_OF), {**names, "by": by, "day": today}):
        yield row.group_name, assumed[row.number - 1]


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
    groups: Mapping[str | None, GroupForecast],
    months: Sequence[Window],
    prices: Mapping[str | None, GroupPrice | None],
    assumed: Sequence[tuple[str | None, Effect]],
) -> list[BudgetLine]:
    """Return the lines of groups; a scenario adds to them, so that groups that it does not touch stay as they are."""
    day = months[-1].end
    added_mb: Counter[str | None] = Counter()
    for name, size in _added(groups, assumed, day, day):
        added_mb[name] += _nearest(size)
    added_cents: Counter[tuple[str | None, date]] = Counter()
    for place, month in enumerate(months):
        for name, size in _added(groups, assumed, month.start, month.end):
            if (price := prices[name]) is not None:
                added_cents[name, month.start] += _nearest(size / MB_PER_GB * price.of_months[place] * CENTS)
    return [
        _line(one, months, prices[name], added_mb[name], [added_cents[name, month.start] for month in months])
        for name, one in groups.items()
    ]


def _added(
    groups: Mapping[str | None, GroupForecast], assumed: Sequence[tuple[str | None, Effect]], first: date, last: date
) -> Iterator[tuple[str | None, Fraction]]:
    """Yield what a scenario adds to the mean size of groups over some days, MiB: first changed growth, then the rest.

    Less growth takes no more than the growth that the group has, and a purge or a move no more than is left of it. A
    move brings what it took.
    """
    if not assumed:
        return
    left = {name: one.mean(first, last, one.middle) for name, one in groups.items()}
    growth: dict[str | None, Fraction] = {}
    for name, one in assumed:
        if isinstance(one.of, Growth):
            growth[name] = growth.get(name, Fraction()) + _mean_added(one, first, last)
    for name, changed in growth.items():
        size = max(changed, -max(left[name] - groups[name].middle[0], Fraction()))
        left[name] += size
        yield name, size
    taken: dict[Move, Fraction] = {}
    for name, one in assumed:
        if isinstance(one.of, Growth):
            continue
        size = max(_mean_added(one, first, last), -left[name])
        if isinstance(one.of, Move) and one.server == one.of.server:
            size = min(size, Fraction())
            taken[one.of] = -size
        elif isinstance(one.of, Move):
            size = taken.get(one.of, max(size, Fraction()))
        left[name] += size
        yield name, size


def _mean_added(one: Effect, first: date, last: date) -> Fraction:
    """Return what an effect adds to the mean size of some days, MiB."""
    begins = max(first, one.day)
    days = (last - begins).days + 1
    if days <= 0:
        return Fraction()
    grown = Fraction((begins - one.day).days + (last - one.day).days, 2)
    return days * (Fraction(one.size_mb) + Fraction(one.mb_per_day) * grown) / ((last - first).days + 1)


def _line(
    one: GroupForecast, months: Sequence[Window], price: GroupPrice | None, added_mb: int, added_cents: Sequence[int]
) -> BudgetLine:
    """Return the line of a group; what a scenario adds moves its ranges."""
    day, prices = months[-1].end, () if price is None else price.of_months
    exact = _amounts(one, months, prices, one.middle)
    end_size_mb = max(_nearest(one.on(day, one.middle)) + added_mb, 0)
    cents = [max(_nearest(each * CENTS) + more, 0) for each, more in zip(exact, added_cents, strict=False)]
    amount = sum(cents)
    lower, upper = (None if points is None else one.on(day, points) + added_mb for points in (one.lower, one.upper))
    lowest, highest = (
        None
        if points is None or price is None
        else sum(_amounts(one, months, prices, points), Fraction()) * CENTS + sum(added_cents)
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
        amount=None if price is None else _money(amount),
        lower_amount=None if lowest is None else _money(max(min(floor(lowest), amount), 0)),
        upper_amount=None if highest is None else _money(max(ceil(highest), amount)),
        price_per_gib=_price_per_gib([one], months, [price]),
        is_mean_price=price is not None and price.is_mean,
        monthly_amounts={f"{month.start:%Y-%m}": _money(each) for month, each in zip(months, cents, strict=False)},
    )


def _total(lines: Sequence[BudgetLine], per_gib: Decimal | None, fleet: GroupForecast, day: date) -> BudgetTotal:
    """Return the sums of the lines, and the forecast of the fleet for the last day."""
    amounts = [line.amount for line in lines]
    every = [line.monthly_amounts for line in lines]
    lower, upper = (None if points is None else fleet.on(day, points) for points in (fleet.lower, fleet.upper))
    return BudgetTotal(
        size_mb=sum(line.size_mb for line in lines),
        end_size_mb=sum(line.end_size_mb for line in lines),
        amount=None if None in amounts else sum(filter(None, amounts), Decimal()),
        price_per_gib=per_gib,
        monthly_amounts={key: sum((one[key] for one in every), Decimal()) for key in every[0]},
        fleet_end_size_mb=_nearest(fleet.on(day, fleet.middle)),
        fleet_end_lower_mb=None if lower is None else floor(lower),
        fleet_end_upper_mb=None if upper is None else ceil(upper),
    )


def _price_per_gib(
    groups: Iterable[GroupForecast], months: Sequence[Window], prices: Iterable[GroupPrice | None]
) -> Decimal | None:
    """Return the mean price of groups, to six decimals; None without a price, or without a size."""
    amount, gib = Fraction(), Fraction()
    for one, price in zip(groups, prices, strict=True):
        if price is not None:
            amount += sum(_amounts(one, months, price.of_months, one.middle), Fraction())
            gib += sum((one.mean(month.start, month.end, one.middle) for month in months), Fraction()) / MB_PER_GB
    return _decimal(amount / gib) if gib else None


def _amounts(
    one: GroupForecast, months: Sequence[Window], prices: Sequence[Fraction], points: Points
) -> list[Fraction]:
    """Return what each month costs at these sizes, exactly; nothing without prices."""
    return [
        one.mean(month.start, month.end, points) / MB_PER_GB * price
        for month, price in zip(months, prices, strict=False)
    ]


def _nearest(value: Fraction) -> int:
    """Round to a whole number, halves away from 0: what is taken in one place is what is added in another."""
    rounded = floor(abs(value) + Fraction(1, 2))
    return rounded if value >= 0 else -rounded


def _money(cents: int) -> Decimal:
    return Decimal(cents).scaleb(-2)


def _decimal(value: Fraction) -> Decimal:
    return Decimal(_nearest(value * 10**PLACES)).scaleb(-PLACES)


_FORECASTS = """
SELECT * FROM capacity_group_forecasts WHERE grouped_by = ANY (CAST(:keys AS text[])) AND as_of > :stale
ORDER BY group_name
"""
_GROUPS_ON = """
SELECT group_name FROM capacity_groups
WHERE period = 'daily' AND window_start = :day AND grouped_by = :by AND servers > 0
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
