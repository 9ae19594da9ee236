"""Bills: the cost of the databases of a month, by group. An issued bill is kept; a restatement is a new version.

Quantities are exact daily sizes and amounts are decimal. Lines add up to the total, groups to the total in whole cents,
and the parts of a change to the change. Groups are stored with the lines, so that no page adds up lines. The rules are
in docs/groups.md. `READ` has all reads of samples and aggregates; everything else is computed from these and from
declarations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from sqlalchemy import Connection, Engine, func, select, text, update

from capacity_assets.base.declarations import day_of
from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.periods import PERIODS, Clock, Window
from capacity_assets.base.units import counted, first_of, human_day
from capacity_assets.database.cluster import drop_temporary_tables, make_temporary_tables
from capacity_assets.database.engine import TodayCheck, check_today
from capacity_assets.database.locks import wait_for_lock
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.database.sql import with_queries
from capacity_assets.database.tables import capacity_bills, database_size_stats
from capacity_assets.label_rules import LABELS_OF_SUBJECTS
from capacity_assets.ownership.labels import WITHOUT_LABEL, refuse_unknown_grouping

MONTHLY = PERIODS["monthly"]
CENT, MICRO = Decimal("0.01"), Decimal("0.000001")
SUMS = (
    "projected_amount", "amount_before", "change", "change_growth", "change_price", "change_moves", "budget",
    "budget_difference",
)  # fmt: skip
"""Figures of the total that are the sums of the groups' figures."""


@dataclass(frozen=True)
class Bill:
    """One issue of a month's bill."""

    month: date
    issue: int
    issued_at: datetime
    is_final: bool
    currency: str | None
    """None: nothing had a price."""
    exact_amount: Decimal
    gib_months: Decimal
    unpriced_gib_months: Decimal
    measured_days: int
    billed_days: int
    unbilled_servers: int
    label_keys: Sequence[str]
    reason: str | None
    samples_dropped_at: datetime | None = None
    """When the bill was frozen because retention had dropped its samples."""
    clock_doubt: str | None = None
    """Why the bill is not final although the month seems to be over."""
    billed_until: date | None = None
    """Last day of the month with samples; None: a former version computed the bill."""

    @property
    def amount(self) -> Decimal | None:
        """Total, rounded half up to the cent; None: nothing had a price."""
        return None if self.currency is None else self.exact_amount.quantize(CENT, ROUND_HALF_UP)

    @property
    def days_so_far(self) -> int | None:
        """Days of a month that is not over; None for a whole month, or if its last day with samples is not known."""
        if self.is_final or self.billed_until is None:
            return None
        days = (self.billed_until - self.month).days + 1
        return days if days < MONTHLY.window_of(self.month).days else None


@dataclass(frozen=True)
class BillGroup:
    """The amount of one group; `name` None: databases without the label.

    The change is that of the amount since the previous month, in whole cents; None if the two are not compared, or if
    nothing of the group had a price in either. A group without databases had some in the previous month.
    """

    name: str | None
    databases: int
    gib_months: Decimal
    unpriced_gib_months: Decimal
    amount: Decimal | None
    """In whole cents; None: nothing had a price. The same applies to the means at the end."""
    exact_amount: Decimal | None
    servers: int
    lowest_price: Decimal | None
    highest_price: Decimal | None
    projected_amount: Decimal | None
    """The amount of the whole month; None: the month is over, or its last day with samples is not known."""
    amount_before: Decimal | None
    change: Decimal | None
    change_growth: Decimal | None
    """By the quantity, at the previous price; includes new and dropped databases, and rounding."""
    change_price: Decimal | None
    """By the price, for the quantity now."""
    change_moves: Decimal | None
    """By databases that moved from or to other groups, at their previous cost."""
    amount_per_gib: Decimal | None
    """Mean amount of a GiB that has a price."""
    amount_per_server: Decimal | None
    budget: Decimal | None
    """The declared budget of the month; None: there is none in the currency of the bill."""
    budget_difference: Decimal | None
    """The amount, or the projected one, less the budget."""


@dataclass(frozen=True)
class BillByGroup:
    """An issue of a bill with its groups, and the issue before it."""

    bill: Bill
    grouped_by: str
    groups: Sequence[BillGroup]
    databases: int = 0
    """Each counts once, also if it belonged to several groups."""
    before: "BillByGroup | None" = None  # noqa: UP037 -- a dataclass field of its own type
    servers: int = 0
    """Each counts once."""
    former_groups: Sequence[BillGroup] = ()
    """Groups without databases now: they had some the month before, or have a budget."""
    compared_issue: int | None = None
    """Issue of the month before that this bill is compared with; None: it is not compared."""

    @property
    def total(self) -> BillGroup:
        """All groups together."""
        every, bill = [*self.groups, *self.former_groups], self.bill
        prices = [price for group in every for price in (group.lowest_price, group.highest_price) if price is not None]
        exact = None if bill.currency is None else bill.exact_amount
        return BillGroup(
            name=None,
            databases=self.databases,
            gib_months=bill.gib_months,
            unpriced_gib_months=bill.unpriced_gib_months,
            amount=bill.amount,
            exact_amount=exact,
            servers=self.servers,
            lowest_price=min(prices, default=None),
            highest_price=max(prices, default=None),
            **{name: _sum(getattr(group, name) for group in every) for name in SUMS},
            amount_per_gib=_each(exact, bill.gib_months - bill.unpriced_gib_months, MICRO),
            amount_per_server=_each(exact, Decimal(self.servers), CENT),
        )

    @property
    def has_budget(self) -> bool:
        """Whether a budget of a group is declared."""
        return any(group.budget is not None for group in (*self.groups, *self.former_groups))

    @property
    def without_budget(self) -> Sequence[BillGroup]:
        """Groups that cost something and have no budget."""
        return [group for group in self.groups if group.budget is None and group.amount]

    @property
    def amount_without_budget(self) -> Decimal | None:
        """The cost, or projected cost, of these; None: there are none."""
        return _sum(
            group.amount if group.projected_amount is None else group.projected_amount for group in self.without_budget
        )

    @property
    def difference(self) -> Decimal | None:
        """By how much the amount differs from the issue before; None: there is none, or one has no amount."""
        if self.before is None or self.bill.amount is None or self.before.bill.amount is None:
            return None
        return self.bill.amount - self.before.bill.amount

    @property
    def restated(self) -> str:
        """The sentence of a restated bill; empty for a first issue."""
        if self.before is None:
            return ""
        was = self.before.bill
        amounts = f"{amount_text(was)} became {amount_text(self.bill)}"
        return f"Restated: version {was.issue} of {moment(was.issued_at)}, {amounts}. {self.bill.reason}"


def _sum(amounts: Iterable[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal()) if known else None


def _each(amount: Decimal | None, number: Decimal, unit: Decimal) -> Decimal | None:
    return None if amount is None or not number else (amount / number).quantize(unit, ROUND_HALF_UP)


@dataclass(frozen=True)
class BillChange:
    """The total of a bill, and the new total; None: nothing has a price."""

    month: date
    before: Decimal | None
    after: Decimal | None
    before_currency: str | None
    after_currency: str | None

    @property
    def text(self) -> str:
        """The change as people read it."""
        before, after = _total_text(self.before, self.before_currency), _total_text(self.after, self.after_currency)
        return f"{month_named(self.month)} ({before} becomes {after})"


@dataclass(frozen=True)
class MonthlyAmount:
    """The cost of a group, or of all small groups together, in a month that is over, by the newest issue of its bill.

    In whole cents, which add up to the total of the bill; `group` None: databases without the label, or the others.
    """

    month: date
    group: str | None
    is_others: bool
    amount: Decimal


def issue_bill(engine: Engine, month: Window, clock: Clock, keys: Sequence[str]) -> Bill:
    """Compute the bill of a month, store it if it differs from the newest issue, and return the then newest issue.

    A bill that is not final is replaced: its month is not over, or is over only by a clock that may be wrong. A final
    bill is kept, and restated by a new issue. After retention has dropped samples of the month, its bill no longer
    changes.

    Raises:
        NotFoundError: nothing was measured in the month, or its samples were dropped and no bill was issued.
        ValidationError: the database uses another time zone than the clock.
        DatabaseError: the database failed; no bill was changed.
    """
    refuse_an_unfit_database(engine, clock.zone)
    parameters = _parameters(month, keys)
    with database_errors(doing="computing a bill"), engine.begin() as connection:
        wait_for_lock(connection, "bills")
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        latest = next(iter(_issues(connection, month)), None)
        judged = check_today(connection, clock)
        changes: dict[str, object]
        if _compute(connection, parameters, latest):
            issue = _store(connection, month, parameters, latest, _finality(latest, month, judged, clock))
            changes = {"declared_state": text(DECLARED_STATE).bindparams(end=month.end), "samples_dropped_at": None}
        elif latest is not None:
            issue = latest.issue
            changes = {"samples_dropped_at": func.coalesce(capacity_bills.c.samples_dropped_at, func.now())}
        else:
            raise NotFoundError(
                f"Samples of {month_named(month.start)} were dropped by retention, so its bill cannot be recomputed. "
                "None was issued in time. CAPACITY_RETENTION_DAYS says how long samples are kept."
            )
        is_issue = (capacity_bills.c.month == month.start, capacity_bills.c.issue == issue)
        connection.execute(update(capacity_bills).where(*is_issue).values(changes))
        return _issues(connection, month)[0]


def _parameters(month: Window, keys: Sequence[str]) -> dict[str, Any]:
    return {"start": month.start, "end": month.end, "days": month.days, "keys": list(keys)}


def _compute(connection: Connection, parameters: dict[str, Any], latest: Bill | None) -> bool:
    """Compute the lines of a month as temporary tables; return False if retention dropped samples of it."""
    segments = connection.execute(text(SEGMENTS), parameters).scalars().all()
    make_temporary_tables(connection, READ, {**parameters, "segments": list(segments)})
    known = {
        "is_marked": latest is not None and latest.samples_dropped_at is not None,
        "billed_before": latest.measured_days if latest else 0,
    }
    if connection.execute(text(DROPPED), {**parameters, **known}).scalar():
        return False
    make_temporary_tables(connection, COMPUTED, parameters)
    return True


def bill_changes(connection: Connection, months: Sequence[date], keys: Sequence[str]) -> list[BillChange]:
    """Compute the bills of months, and return those that differ from their newest issue; stores nothing.

    Includes declarations of the same transaction. Raises DBAPIError.
    """
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    changes = []
    for start in months:
        month = MONTHLY.window_of(start)
        latest, parameters = _issues(connection, month)[0], _parameters(month, keys)
        if _compute(connection, parameters, latest) and _differs(connection, parameters, latest):
            total, currency = connection.execute(text(TOTAL)).one()
            after = None if total is None else total.quantize(CENT, ROUND_HALF_UP)
            changes.append(BillChange(month.start, latest.amount, after, latest.currency, currency))
        drop_temporary_tables(connection, (*COMPUTED, *READ))
    return changes


def _differs(connection: Connection, parameters: dict[str, Any], latest: Bill) -> bool:
    stored = {**parameters, "issue": latest.issue, "was_final": latest.is_final}
    return bool(connection.execute(text(DIFFERS), stored).scalar())


def unfinished_months(engine: Engine, first: date) -> Sequence[date]:
    """Return the months from the one of a day on whose bills are not final, newest first; raises DatabaseError."""
    bills = capacity_bills.c
    unfinished = select(bills.month).where(~bills.is_final, bills.month >= first.replace(day=1)).distinct()
    with database_errors(doing="reading bills"), engine.connect() as connection:
        return connection.execute(unfinished.order_by(bills.month.desc())).scalars().all()


def _finality(latest: Bill | None, month: Window, judged: TodayCheck, clock: Clock) -> dict[str, object]:
    """Return whether a bill is final (it then stays final), and why not if the month only seems to be over."""
    # Samples after a long pause may have been written by the wrong clock itself.
    is_over = judged.pause is None and month.end < judged.certain_day
    is_final = is_over or (latest is not None and latest.is_final)
    seems_over = month.end < clock.today()
    return {"is_final": is_final, "clock_doubt": judged.why_nothing_is_deleted if seems_over and not is_final else None}


def _issues(connection: Connection, month: Window) -> list[Bill]:
    """Return the issues of a month's bill, the newest first; columns of the table are those of a bill."""
    columns = [column for column in capacity_bills.c if column is not capacity_bills.c.declared_state]
    query = select(*columns).where(capacity_bills.c.month == month.start).order_by(capacity_bills.c.issue.desc())
    return [Bill(*row) for row in connection.execute(query)]


def _store(
    connection: Connection, month: Window, parameters: dict[str, Any], latest: Bill | None, finality: dict[str, object]
) -> int:
    """Store the computed lines if they differ from the latest issue; return the number of the now latest issue."""
    issue, reason = 1, None
    if latest is None:
        if not connection.execute(text("SELECT EXISTS (SELECT FROM computed_lines)")).scalar():
            raise NotFoundError(
                f"Nothing was measured in {month_named(month.start)}: there is nothing to bill."
                f"{_next_measured(connection, month)}"
            )
    else:
        issue, reason = latest.issue, latest.reason
        differs = _differs(connection, parameters, latest)
        if not differs and finality == {"is_final": latest.is_final, "clock_doubt": latest.clock_doubt}:
            return issue
        if latest.is_final and differs:
            issue, reason = issue + 1, _reason(connection, parameters, latest)
    days = connection.execute(text(DAYS), parameters).one()
    values = {**parameters, "issue": issue, **finality, "reason": reason, **days._asdict()}
    for statement in (*DELETE, STORE_LINES, STORE_BILL):
        connection.execute(text(statement), {**values, "label_keys": json.dumps(parameters["keys"])})
    store_groups(connection, month, issue)
    return issue


def _next_measured(connection: Connection, month: Window) -> str:
    """Return a sentence on which later month can be billed; empty if none was measured."""
    samples = database_size_stats.c.collected_date
    first = connection.execute(select(func.min(samples)).where(samples > month.end)).scalar()
    if first is None:
        return ""
    return f" Samples begin on {human_day(first)}: `capacity bill --month {first:%Y-%m}` bills that month."


VERSIONS_NAMED = 12
DECLARATIONS_NAMED = 3


def _reason(connection: Connection, parameters: dict[str, Any], latest: Bill) -> str:
    since = {**parameters, "since": latest.issued_at, "issue": latest.issue}
    samples = connection.execute(text(SAMPLES_SINCE), since).one()
    declared = connection.execute(with_queries(SINCE, declared=DECLARED_STATE), since).one()
    differences = [
        f"{counted(samples.added, 'sample')} added later" if samples.added else "",
        f"{counted(samples.corrected, 'sample')} corrected" if samples.corrected else "",
        f"{counted(declared.fewer, 'sample')} deleted" if declared.fewer else "",
        f"labels declared: {first_of(declared.labels, DECLARATIONS_NAMED)}" if declared.labels else "",
        f"prices declared: {first_of(declared.prices, DECLARATIONS_NAMED)}" if declared.prices else "",
    ]
    if declared.before is not None:
        numbers = ([int(number) for number in state.split()[:2]] for state in (declared.before, declared.now))
        kinds = zip(("labels", "prices"), *numbers, strict=True)
        differences += [f"{kind} removed" for kind, before, now in kinds if now < before]
    named = "; ".join(filter(None, differences))
    otherwise = (
        "samples were deleted, servers were measured on later days or are counted differently, or labels or prices "
        "were removed"
    )
    return f"Since then: {named or otherwise}."


def store_groups(connection: Connection, month: Window, issue: int) -> None:
    """Store the groups of the newest issue of a bill, and compare the month after with it; raises DBAPIError."""
    _store_groups(connection, month.start, issue)
    after = connection.execute(text(_MONTH_AFTER), {"start": month.start}).first()
    if after is not None:
        _store_groups(connection, after.month, after.issue)


def store_missing_groups(connection: Connection) -> None:
    """Store the groups of bills that have none: those of former versions. Raises DBAPIError."""
    if connection.execute(text(_WITHOUT_GROUPS)).first() is None:
        return
    wait_for_lock(connection, "bills")
    for bill in connection.execute(text(_WITHOUT_GROUPS)).all():
        _store_groups(connection, bill.month, bill.issue)


def _store_groups(connection: Connection, start: date, issue: int) -> None:
    before = connection.execute(text(_COMPARED_WITH), {"start": start, "issue": issue}).first()
    of_bill: dict[str, Any] = {
        "start": start,
        "issue": issue,
        "before_start": before.month if before else None,
        "before_issue": before.issue if before else None,
        "without_label": list(WITHOUT_LABEL),
    }
    make_temporary_tables(connection, COMPARED, of_bill)
    connection.execute(text(_DELETE_GROUPS), of_bill)
    connection.execute(text(_STORE_GROUPS), of_bill)
    drop_temporary_tables(connection, COMPARED)


def read_bill(engine: Engine, month: Window, by: str, issue: int | None = None) -> BillByGroup:
    """Read an issue of a bill, by default the newest, by groups, with the one before.

    Raises:
        NotFoundError: there is no such issue.
        ValidationError: the bill cannot be grouped so.
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading a bill"), engine.connect() as connection:
        return read_bill_of(connection, month, by, issue)


def read_bill_of(connection: Connection, month: Window, by: str, issue: int | None = None) -> BillByGroup:
    """Read a bill within the caller's transaction; raises as `read_bill`, but DBAPIError for DatabaseError."""
    issues = _issues(connection, month)
    chosen = [bill for bill in issues if issue is None or bill.issue <= issue]
    if issues and issue is not None and (not chosen or chosen[0].issue != issue):
        versions = first_of((bill.issue for bill in reversed(issues)), VERSIONS_NAMED)
        raise NotFoundError(f"The bill of {month_named(month.start)} has no version {issue}; it has {versions}.")
    if not chosen:
        raise NotFoundError(
            f"There is no bill of {month_named(month.start)}. `capacity bill --month {month.start:%Y-%m}` issues one "
            "if something was measured in it."
        )
    refuse_unknown_grouping(by, chosen[0].label_keys)
    bill_by_group = None
    for bill in reversed(chosen[:2]):
        of_bill = {"start": bill.month, "issue": bill.issue}
        databases, servers, compared_issue = connection.execute(text(_WHOLE), of_bill).one()
        every = groups_of_bill(connection, month, bill.issue, by, bill.days_so_far)
        groups, former = ([group for group in every if bool(group.databases) is is_there] for is_there in (True, False))
        bill_by_group = BillByGroup(bill, by, groups, databases, bill_by_group, servers, former, compared_issue)
    assert bill_by_group is not None  # noqa: S101 -- at least one was chosen
    return bill_by_group


def groups_of_bill(  # noqa: PLR0913, PLR0917 -- which bill, and what of it
    connection: Connection, month: Window, issue: int, by: str, days_so_far: int | None = None, only: str | None = None
) -> list[BillGroup]:
    """Return the groups of an issue of a bill, those that cost most first, former ones last; raises DBAPIError.

    The projection applies the mean of `days_so_far`, if given, to the whole month. `only` is the name of one group;
    empty: databases without the label.
    """
    query = with_queries(_GROUPS, stored=_STORED_GROUPS, exact=_EXACT_AMOUNTS, rounded=_ROUNDED)
    of_bill = {"start": month.start, "issue": issue, "by": by, "days": month.days, "days_so_far": days_so_far}
    return [BillGroup(**row) for row in connection.execute(query, {**of_bill, "only": only}).mappings()]


def monthly_amounts(  # noqa: PLR0913, PLR0917 -- which months, and what of them
    connection: Connection,
    months: Sequence[Window],
    by: str,
    currency: str,
    most: int | None = None,
    only: str | None = None,
) -> list[MonthlyAmount]:
    """Return the cost of groups in the given months with a final bill in this currency; raises DBAPIError.

    Of more than `most` groups, the last is all others together. `only` as for `groups_of_bill`.
    """
    query = with_queries(_MONTHLY_AMOUNTS, amounts=_EXACT_OF_MONTHS, exact=_SHOWN_OF_MONTHS, rounded=_ROUNDED)
    of_months = {"first": months[0].start, "last": months[-1].start, "by": by, "currency": currency}
    return [MonthlyAmount(*row) for row in connection.execute(query, {**of_months, "most": most, "only": only})]


def amounts_of_databases(
    connection: Connection, bill: tuple[date, int], by: str, name: str | None, databases: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], Decimal | None]:
    """Return the cost of databases (server, name) in a group of a bill (month, issue), not rounded; raises DBAPIError.

    None: it has no price. Databases that the group did not have in the month are left out.
    """
    of_bill = {"start": bill[0], "issue": bill[1], "by": by, "name": name or ""}
    servers, names = [server for server, _ in databases], [database for _, database in databases]
    rows = connection.execute(text(_OF_DATABASES), {**of_bill, "servers": servers, "names": names})
    return {(row.instance_id, row.database_name): row.amount for row in rows}


MONTH = re.compile(r"\d{4}-\d{2}")
ONE_PLACE = Decimal("0.1")
UNKNOWN_AMOUNT = "\N{EN DASH}"
MEAN_PRICE_PLACES = 4


def month_named(first_day: date) -> str:
    """Return the name of the month that begins on a day: October 2026."""
    return MONTHLY.name_of(MONTHLY.window_of(first_day))


def moment(at: datetime) -> str:
    """Render a time: 28 Nov 2026, 06:10 UTC."""
    return f"{human_day(at)}, {at:%H:%M %Z}"


def month_of(written: object) -> date:
    """Read a month and return its first day; raises ValidationError."""
    with suppress(ValueError, ValidationError):
        if MONTH.fullmatch(str(written)):
            return day_of(f"{written}-01")
    raise ValidationError(f"{written!r} is not a month; write 2026-10.")


def bill_title(bill_by_group: BillByGroup) -> str:
    """Return the title of a bill."""
    so_far = "" if bill_by_group.bill.is_final else " so far"
    return f"Bill of {month_named(bill_by_group.bill.month)}{so_far}, by {bill_by_group.grouped_by}"


def group_named(name: str | None, grouped_by: str) -> str:
    """Return the name of a group; databases without the label are a group too."""
    return f"(no {grouped_by})" if name is None else name


def group_heading(grouped_by: str) -> str:
    """Return the heading of a column of groups: `cost_centre` is Cost centre."""
    return grouped_by.replace("_", " ").capitalize()


def gib(quantity: Decimal) -> str:
    """Render a mean size over the month."""
    return f"{quantity.quantize(ONE_PLACE):,}"


def money(amount: Decimal | None) -> str:
    """Render an amount without its currency; an unknown one as a dash."""
    return UNKNOWN_AMOUNT if amount is None else f"{amount:,.2f}"


def money_change(change: Decimal | None) -> str:
    """Render a change of an amount, with its sign."""
    return f"{change:+,.2f}" if change else money(change)


def over_or_under(difference: Decimal | None) -> str:
    """Render the difference to a budget: 4.70 over, 18.88 under."""
    if not difference:
        return "as planned" if difference == 0 else UNKNOWN_AMOUNT
    return f"{money(abs(difference))} {'over' if difference > 0 else 'under'}"


def amount_text(bill: Bill) -> str:
    """Render a total with its currency."""
    return _total_text(bill.amount, bill.currency)


def _total_text(amount: Decimal | None, currency: str | None) -> str:
    return "no amount" if amount is None else f"{amount:,} {currency}"


def price(group: BillGroup) -> str:
    """Render the price per GiB and month of a group; if it has several, their mean."""
    if group.lowest_price is None or group.highest_price is None:
        return "no price"
    if group.lowest_price == group.highest_price:
        exact = group.lowest_price.normalize()
        return f"{exact:,.{max(2, -int(exact.as_tuple().exponent))}f}"
    return "several" if group.amount_per_gib is None else f"several, mean {mean_price(group.amount_per_gib)}"


def mean_price(value: Decimal) -> str:
    """Render a mean of prices, which is rounded."""
    return f"{value:,.{MEAN_PRICE_PLACES}f}"


def bill_notes(bill_by_group: BillByGroup) -> list[str]:
    """Return what the amounts leave out, replace and are compared with, one sentence each."""
    bill = bill_by_group.bill
    sentences = [bill_by_group.restated, *_differences(bill_by_group)] if bill_by_group.restated else []
    if bill.unpriced_gib_months:
        sentences.append(
            f"{gib(bill.unpriced_gib_months)} of {gib(bill.gib_months)} GiB have no price and are not billed. "
            "`capacity prices set` declares one, with --always also for past months."
        )
    if bill.unbilled_servers:
        sentences.append(
            f"Not billed: {counted(bill.unbilled_servers, 'server')} without measured databases, or with impossible "
            "sizes (above 8 EiB)."
        )
    if bill.measured_days < bill.billed_days:
        missing = bill.billed_days - bill.measured_days
        until = "" if bill.is_final else " Days after the last measured day of a server are not counted yet."
        sentences.append(
            f"Not measured: {missing:,} of {counted(bill.billed_days, 'server day')}, billed at the average of the "
            f"server's measured days.{until}"
        )
    if sum(group.databases for group in bill_by_group.groups) > bill_by_group.databases:
        sentences.append("A database that changed groups within the month counts in each group, and once in the total.")
    if bill.samples_dropped_at:
        sentences.append(
            f"Retention dropped samples of this month (detected on {human_day(bill.samples_dropped_at)}). This bill no "
            "longer changes: later samples, labels and prices do not affect it."
        )
    if bill.clock_doubt:
        sentences.append(f"This bill is not final; the next one replaces it. {bill.clock_doubt}")
    elif not bill.is_final:
        sentences.append("The month is not over: this bill covers its days so far, and is replaced until it is.")
    if bill.days_so_far:
        sentences.append(
            f"Projected: the daily average of the first {counted(bill.days_so_far, 'day')}, for the whole month."
        )
    return [*sentences, *_change_notes(bill_by_group), *_budget_notes(bill_by_group)]


def _differences(bill_by_group: BillByGroup) -> list[str]:
    """Return a sentence on the groups whose amount differs from the previous issue, if that has this key of labels."""
    if bill_by_group.before is None or not bill_by_group.before.groups:
        return []
    before, now = ({group.name: group for group in bill.groups} for bill in (bill_by_group.before, bill_by_group))
    amounts = {name: (_amount(before.get(name)), _amount(now.get(name))) for name in dict.fromkeys([*now, *before])}
    exact = {name: [bill and bill.exact_amount for bill in (before.get(name), now.get(name))] for name in amounts}
    return [
        f"  {group_named(name, bill_by_group.grouped_by)}: {was} before, {is_now} now"
        + (", by rounding" if len({*exact[name]}) == 1 else "")
        for name, (was, is_now) in amounts.items()
        if was != is_now
    ]


def _amount(group: BillGroup | None) -> str:
    if group is None:
        return "nothing"
    return "no price" if group.amount is None else f"{group.amount:,}"


def _change_notes(bill_by_group: BillByGroup) -> list[str]:
    """Return a sentence on the parts of the change since the previous month; empty if the two are not compared."""
    if bill_by_group.compared_issue is None:
        return []
    bill, total = bill_by_group.bill, bill_by_group.total
    before = month_named(MONTHLY.previous(MONTHLY.window_of(bill.month)).start)
    growth, prices = money_change(total.change_growth), money_change(total.change_price)
    return [
        f"Change since {before} (version {bill_by_group.compared_issue}): {money_change(total.change)} {bill.currency}"
        f", {growth} by growth and {prices} by prices.",
        "Growth: the change of the quantity at the price before. Prices: the change of the price for the quantity now. "
        "Moves: databases from and to other groups, at what they cost before. They add up to the change; growth "
        "includes rounding differences.",
    ]


def _budget_notes(bill_by_group: BillByGroup) -> list[str]:
    """Return sentences on what the budget is compared with, and which groups have none; empty without any budget."""
    if not bill_by_group.has_budget:
        return []
    what = "projected amount" if bill_by_group.bill.days_so_far else "amount"
    notes = [f"The budget is compared with the {what}. Amounts over budget have a plus sign."]
    if bill_by_group.without_budget:
        groups = (group_named(group.name, bill_by_group.grouped_by) for group in bill_by_group.without_budget)
        rest = _total_text(bill_by_group.amount_without_budget, bill_by_group.bill.currency)
        named = first_of(groups, DECLARATIONS_NAMED)
        notes.append(f"Without a budget: {named}, {rest}. `capacity budgets set` declares one.")
    return notes


def quantity_note(bill_by_group: BillByGroup) -> str:
    """Return a sentence on the meaning of the GiB of a bill."""
    if bill_by_group.bill.is_final:
        return "GiB are means over the month."
    return "GiB are what the days so far add up to, divided by the days of the month."


# Labels and prices change only between segments, so each is looked up once per database and segment.
SEGMENTS = """
SELECT CAST(:start AS date) AS day
UNION SELECT valid_from FROM capacity_labels WHERE valid_from BETWEEN :start AND :end
UNION SELECT valid_from FROM capacity_prices WHERE valid_from BETWEEN :start AND :end
ORDER BY day
"""
# A day of a server is measured if its databases were, or if it had none. The server is billed from its first sample to
# its last one, or to the end of the month if it was measured later. Days in between without a sample count as the
# average of the others. Aggregates replace samples of other months that retention has dropped.
_MEASURED = """
    SELECT m.*, z.database_name, z.segment, z.days, z.bytes, z.largest_bytes
    FROM (
        SELECT d.instance_id, count(*) AS measured, min(d.day) AS first_day, max(d.day) AS last_day,
               EXISTS (SELECT FROM database_size_stats s
                       WHERE s.instance_id = d.instance_id AND s.collected_date > :end)
               OR EXISTS (SELECT FROM instance_size_stats s
                          WHERE s.instance_id = d.instance_id AND s.collected_date > :end AND NOT s.is_deleted)
                   AS is_later,
               EXISTS (SELECT FROM database_size_stats s
                       WHERE s.instance_id = d.instance_id AND s.collected_date < :start)
               OR EXISTS (SELECT FROM instance_size_stats s
                          WHERE s.instance_id = d.instance_id AND s.collected_date < :start AND NOT s.is_deleted)
               OR EXISTS (SELECT FROM instance_size_aggregations s
                          WHERE s.instance_id = d.instance_id AND s.period_end < :start)
               OR EXISTS (SELECT FROM database_size_aggregations s
                          WHERE s.instance_id = d.instance_id AND s.period_end < :start) AS was_before
        FROM (
            SELECT DISTINCT every.instance_id, every.day FROM (
                SELECT r.instance_id, r.collected_date AS day FROM database_size_stats r
                WHERE r.collected_date BETWEEN :start AND :end
                UNION ALL
                SELECT t.instance_id, t.collected_date FROM instance_size_stats t
                WHERE t.collected_date BETWEEN :start AND :end AND NOT t.is_deleted AND t.database_count = 0
            ) AS every
        ) AS d GROUP BY d.instance_id
    ) AS m LEFT JOIN (
        SELECT s.instance_id, s.database_name, s.segment, count(*) AS days, sum(s.bytes) AS bytes,
               max(abs(s.bytes)) AS largest_bytes
        FROM (
            SELECT r.instance_id, r.database_name,
                   coalesce(r.size_bytes, r.size_mb * CAST(1048576 AS numeric)) AS bytes,
                   (CAST(:segments AS date[]))[width_bucket(r.collected_date, CAST(:segments AS date[]))] AS segment
            FROM database_size_stats r WHERE r.collected_date BETWEEN :start AND :end
        ) AS s GROUP BY s.instance_id, s.database_name, s.segment
    ) AS z ON z.instance_id = m.instance_id"""
_TOTALS = """
    SELECT t.instance_id, count(DISTINCT t.collected_date) AS days, bool_or(t.total_size_mb > 0) AS is_sized
    FROM instance_size_stats t WHERE t.collected_date BETWEEN :start AND :end AND NOT t.is_deleted
    GROUP BY t.instance_id"""
_MONTHLY_SERVERS = """
    SELECT instance_id, data_count FROM instance_size_aggregations
    WHERE period_type = 'monthly' AND period_start = :start"""
_MONTHLY_DATABASES = """
    SELECT instance_id, database_name, data_count FROM database_size_aggregations
    WHERE period_type = 'monthly' AND period_start = :start"""
# The first window that ended in the month, and the first remaining day: retention drops the oldest samples first.
_OLDEST = """
    SELECT 'database' AS level, a.first_end, r.oldest
    FROM (SELECT min(period_end) AS first_end FROM database_size_aggregations
          WHERE period_type IN ('daily', 'monthly') AND period_start >= :start AND period_end <= :end) AS a
    CROSS JOIN (SELECT coalesce(min(collected_date), 'infinity') AS oldest FROM database_size_stats) AS r
    UNION ALL
    SELECT 'instance' AS level, a.first_end, r.oldest
    FROM (SELECT min(period_end) AS first_end FROM instance_size_aggregations
          WHERE period_type IN ('daily', 'monthly') AND period_start >= :start AND period_end <= :end) AS a
    CROSS JOIN (SELECT coalesce(min(collected_date), 'infinity') AS oldest FROM instance_size_stats) AS r"""
READ = {
    "measured": _MEASURED,
    "totals": _TOTALS,
    "monthly_servers": _MONTHLY_SERVERS,
    "monthly_databases": _MONTHLY_DATABASES,
    "oldest_left": _OLDEST,
}
"""The reads of samples and aggregates, each into a temporary table for the statements below; if tables are distributed,
the nodes add them up. Days and sizes are read together, so that a sample that arrives in between is in both or in
neither; samples that retention drops afterwards are billed. Segments are given by their first days. A label that is
declared in between is in the next issue."""

_BILLED_SERVERS = """
    SELECT m.instance_id, m.measured, coalesce(i.name, last.server, 'server ' || m.instance_id) AS server,
           coalesce(i.db_type, last.engine, 'unknown') AS engine,
           CASE WHEN m.is_later THEN CAST(:end AS date) ELSE m.last_day END
           - CASE WHEN m.was_before THEN CAST(:start AS date) ELSE m.first_day END + 1 AS billed
    FROM (SELECT DISTINCT instance_id, measured, first_day, last_day, is_later, was_before FROM measured) AS m
    LEFT JOIN instances i ON i.id = m.instance_id
    -- A server that is no longer registered keeps the name and engine of its last bill.
    LEFT JOIN LATERAL (SELECT l.server, l.engine FROM capacity_bill_lines l
                       WHERE l.month = :start AND l.instance_id = m.instance_id ORDER BY l.issue DESC LIMIT 1
    ) AS last ON i.id IS NULL
    -- Impossible sizes cannot be billed.
    WHERE i.counted_by IS NULL AND m.instance_id NOT IN (
        SELECT d.instance_id FROM (
            SELECT instance_id, max(largest_bytes) AS bytes FROM measured GROUP BY instance_id, database_name
        ) AS d GROUP BY d.instance_id HAVING sum(d.bytes) > 9223372036854775807)"""
_UNBILLED_SERVERS = """
    SELECT t.instance_id
    FROM (SELECT instance_id FROM totals WHERE is_sized UNION SELECT instance_id FROM measured) AS t
    LEFT JOIN instances i ON i.id = t.instance_id
    WHERE i.counted_by IS NULL AND t.instance_id NOT IN (SELECT instance_id FROM billed_servers)"""
_SUBJECTS = """
    SELECT row_number() OVER () AS number, instance_id, database_name, segment AS day, days, bytes
    FROM measured WHERE database_name IS NOT NULL"""
_LABELLED = """
    SELECT s.instance_id, v.server, v.engine, s.database_name, s.day, s.days, s.bytes, v.billed, v.measured,
           coalesce(h.labels, CAST('{}' AS jsonb)) AS labels
    FROM subjects s JOIN billed_servers v USING (instance_id) LEFT JOIN labels_held h USING (number)"""
PRICES_OF_MIX = """
    WITH spans AS MATERIALIZED (
        SELECT p.*, lead(valid_from, 1, CAST('infinity' AS date))
                    OVER (PARTITION BY engine, key, value ORDER BY valid_from) AS valid_until
        FROM capacity_prices p
    )
    SELECT m.engine, m.labels, m.day, applied.price
    FROM (SELECT DISTINCT engine, labels, day FROM mix) AS m LEFT JOIN LATERAL (
        SELECT p.price FROM spans p
        WHERE p.price IS NOT NULL AND p.valid_from <= m.day AND m.day < p.valid_until
          AND p.engine IN ('', m.engine) AND (p.key = '' OR m.labels ->> CAST(p.key AS text) = p.value)
        ORDER BY p.key = '', array_position(CAST(:keys AS text[]), CAST(p.key AS text)), p.key, p.engine = ''
        LIMIT 1
    ) AS applied ON true"""
"""The price on a day of each engine with labels of `mix`; null: it has none. Labels decide in the order of `keys`."""
# Exact amounts are whole numbers of twelve decimals of a currency, times `whole`: the least common multiple of 1 to 31
# is a common denominator for any number of measured days. Each is rounded down to twelve decimals; then the lines with
# the largest remainders get one unit more until they add up to the exact total, rounded down, so the cents are those of
# the exact sum.
_LINES = """
    WITH exact AS (
        SELECT instance_id, server, engine, database_name, labels, sum(days) AS days,
               round(sum(bytes) * billed / (measured * CAST(:days AS numeric) * 1073741824), 12) AS gib_months, price,
               sum(bytes) * billed * price * div(72201776446800, measured) * 1000000000000 AS parts,
               72201776446800 * CAST(:days AS numeric) * 1073741824 AS whole
        FROM mix JOIN prices_held USING (engine, labels, day)
        GROUP BY instance_id, server, engine, database_name, labels, price, billed, measured
    ), numbered AS (
        SELECT row_number() OVER (ORDER BY instance_id, database_name, labels, price) AS line, exact.* FROM exact
    ), placed AS (
        SELECT *, row_number() OVER (ORDER BY mod(parts, whole) DESC NULLS LAST, line) AS place,
               div(sum(parts) OVER (), whole) - sum(div(parts, whole)) OVER () AS left_over
        FROM numbered
    )
    SELECT line, instance_id, server, engine, database_name, labels, days, gib_months, price,
           (div(parts, whole) + CASE WHEN place <= left_over THEN 1 ELSE 0 END) * 0.000000000001 AS amount
    FROM placed"""
COMPUTED = {
    "billed_servers": _BILLED_SERVERS,
    "unbilled_servers": _UNBILLED_SERVERS,
    "subjects": _SUBJECTS,
    "labels_held": LABELS_OF_SUBJECTS,
    "mix": _LABELLED,
    "prices_held": PRICES_OF_MIX,
    "computed_lines": _LINES,
}
"""Temporary tables too: servers, databases with their labels and prices, and lines; only lines are stored."""

DAYS = """
SELECT coalesce(sum(measured), 0) AS measured_days, coalesce(sum(billed), 0) AS billed_days,
       (SELECT max(last_day) FROM measured) AS billed_until,
       (SELECT count(*) FROM unbilled_servers) AS unbilled_servers
FROM billed_servers
"""
# The amount follows from quantity and price. Renaming a server does not change its cost, but a replaced bill shows the
# new name.
DIFFERS = """
SELECT EXISTS (
    SELECT FROM (
        SELECT instance_id, engine, database_name, labels, days, gib_months, price, server, 1 AS here
        FROM computed_lines
        UNION ALL
        SELECT instance_id, engine, database_name, labels, days, gib_months, price, server, -1
        FROM capacity_bill_lines WHERE month = :start AND issue = :issue
    ) AS lines
    GROUP BY instance_id, engine, database_name, labels, days, gib_months, price,
             CASE WHEN CAST(:was_final AS boolean) THEN '' ELSE server END
    HAVING sum(here) <> 0
) OR EXISTS (
    SELECT FROM capacity_bills b WHERE b.month = :start AND b.issue = :issue
      AND (b.currency <> (SELECT min(currency) FROM capacity_prices)
           OR NOT b.is_final AND b.unbilled_servers <> (SELECT count(*) FROM unbilled_servers))
)
"""
TOTAL = """
SELECT sum(amount) AS total,
       CASE WHEN count(amount) > 0 THEN (SELECT min(currency) FROM capacity_prices) END AS currency
FROM computed_lines
"""
DELETE = (
    "DELETE FROM capacity_bills WHERE month = :start AND issue = :issue",
    "DELETE FROM capacity_bill_lines WHERE month = :start AND issue = :issue",
)
STORE_LINES = """
INSERT INTO capacity_bill_lines
    (month, issue, line, instance_id, server, engine, database_name, labels, days, gib_months, price, amount)
SELECT :start, :issue, line, instance_id, server, engine, database_name, labels, days, gib_months, price, amount
FROM computed_lines
"""
STORE_BILL = """
INSERT INTO capacity_bills (month, issue, is_final, currency, amount, gib_months, unpriced_gib_months, measured_days,
                            billed_days, billed_until, unbilled_servers, label_keys, reason, clock_doubt)
SELECT :start, :issue, :is_final, CASE WHEN count(amount) > 0 THEN (SELECT min(currency) FROM capacity_prices) END,
       coalesce(sum(amount), 0),
       coalesce(sum(gib_months), 0), coalesce(sum(gib_months) FILTER (WHERE price IS NULL), 0), :measured_days,
       :billed_days, :billed_until, :unbilled_servers, CAST(:label_keys AS json), :reason, :clock_doubt
FROM computed_lines
"""
DECLARED_STATE = """(
    SELECT concat_ws(' ', l.number, p.number, l.newest, p.newest) AS state
    FROM (SELECT count(*) AS number, coalesce(max(extract(epoch FROM declared_at)), 0) AS newest
          FROM capacity_label_spans WHERE valid_from <= :end) AS l,
         (SELECT count(*) AS number, coalesce(max(extract(epoch FROM declared_at)), 0) AS newest
          FROM capacity_prices WHERE valid_from <= :end) AS p)"""
"""A text that changes whenever a label or price that applies up to :end is added, changed or removed.

It begins with the numbers of labels and of prices."""
SAMPLES_SINCE = """
SELECT count(*) FILTER (WHERE s.created_at > :since) AS added,
       count(*) FILTER (WHERE s.created_at <= :since AND s.updated_at > :since) AS corrected
FROM database_size_stats s WHERE s.collected_date BETWEEN :start AND :end
"""
# Why a bill differs from its last issue: later samples and declarations that can affect the month. Deleted samples
# count only if their server is still billed.
SINCE = """
SELECT deleted.fewer, states.before, states.now,
       ARRAY(SELECT l.key || '=' || coalesce(l.value, 'none') || ' of '
                    || coalesce(nullif(l.database_pattern, '') || ' on ', '') || i.name
                    || coalesce(' by ' || l.declared_by, '')
             FROM capacity_labels l JOIN instances i ON i.id = l.instance_id
             WHERE l.declared_at > :since AND l.valid_from <= :end ORDER BY l.declared_at) AS labels,
       ARRAY(SELECT coalesce(trim_scale(p.price) || ' ' || p.currency, 'none') || ' for '
                    || CASE WHEN p.key <> '' THEN p.key || '=' || p.value
                            ELSE coalesce(nullif(p.engine, ''), 'everything else') END
                    || coalesce(' by ' || p.declared_by, '')
             FROM capacity_prices p
             WHERE p.declared_at > :since AND p.valid_from <= :end
               AND (p.engine = '' OR p.engine IN (SELECT engine FROM computed_lines))
               AND (p.key = '' OR EXISTS (SELECT FROM computed_lines c WHERE c.labels ->> p.key = p.value))
             ORDER BY p.declared_at) AS prices
FROM (SELECT greatest(0, coalesce(sum(l.days), 0) - (SELECT coalesce(sum(days), 0) FROM computed_lines
                         WHERE instance_id = ANY (array_agg(DISTINCT l.instance_id)))) AS fewer
      FROM capacity_bill_lines l WHERE l.month = :start AND l.issue = :issue
        AND l.instance_id IN (SELECT instance_id FROM computed_lines)) AS deleted,
     (SELECT b.declared_state AS before, (SELECT state FROM declared) AS now
      FROM capacity_bills b WHERE b.month = :start AND b.issue = :issue) AS states
"""
# Samples that retention dropped can no longer be billed: the aggregates or the bill were computed from more samples
# than exist, and either the bill is marked or the oldest samples are missing. A sample that is missing while older ones
# remain was deleted or declared void, and is not billed any more.
DROPPED = """
SELECT EXISTS (
    SELECT FROM oldest_left o
    WHERE (CAST(:is_marked AS boolean) OR o.oldest > least(o.first_end, CAST(:end AS date)))
      AND CASE o.level WHEN 'instance' THEN EXISTS (
              SELECT FROM monthly_servers a LEFT JOIN totals t USING (instance_id)
              WHERE a.data_count > coalesce(t.days, 0))
          -- Includes replicas: a server that is counted differently now has not lost samples.
          ELSE EXISTS (
              SELECT FROM monthly_databases a
              LEFT JOIN (SELECT instance_id, database_name, sum(days) AS days FROM measured GROUP BY 1, 2) AS m
                  USING (instance_id, database_name) WHERE a.data_count > coalesce(m.days, 0))
              OR (SELECT coalesce(sum(measured), 0) FROM (SELECT DISTINCT instance_id, measured FROM measured) AS m)
                 < :billed_before END
)
"""

_MONTH_AFTER = """
SELECT month, issue FROM capacity_bills WHERE month = CAST(CAST(:start AS date) + interval '1 month' AS date)
ORDER BY issue DESC LIMIT 1
"""
_WITHOUT_GROUPS = """
SELECT b.month, b.issue FROM capacity_bills b
WHERE NOT EXISTS (SELECT FROM capacity_bill_groups g WHERE g.month = b.month AND g.issue = b.issue)
  AND EXISTS (SELECT FROM capacity_bill_lines l WHERE l.month = b.month AND l.issue = b.issue)
ORDER BY b.month, b.issue
"""
# Whole months only, and amounts of one currency.
_COMPARED_WITH = """
SELECT b.month, b.issue
FROM (SELECT * FROM capacity_bills WHERE month = CAST(CAST(:start AS date) - interval '1 month' AS date)
      ORDER BY issue DESC LIMIT 1) AS b
JOIN capacity_bills n ON n.month = :start AND n.issue = :issue
WHERE b.is_final AND n.is_final AND b.currency = n.currency
  AND n.issue = (SELECT max(issue) FROM capacity_bills WHERE month = :start)
"""
# The lines of a bill and of the one with which it is compared; none if there is none.
_BOTH_LINES = """
    SELECT month = CAST(:start AS date) AS is_now, instance_id, database_name, line, gib_months,
           labels || jsonb_build_object('engine', engine, 'server', server) AS facets, coalesce(price, 0) AS price,
           coalesce(amount, 0) AS amount, amount IS NOT NULL AS is_priced
    FROM capacity_bill_lines
    WHERE CAST(:before_issue AS integer) IS NOT NULL
      AND (month, issue) IN ((:start, :issue), (CAST(:before_start AS date), CAST(:before_issue AS integer)))"""
# The amount that a database paid in the previous month is distributed to its lines of this month, in proportion to
# their quantity. The rest of a line's amount is by the change of its price, and by growth. Running sums are rounded in
# place of the parts, so that the parts add up.
_COMPARED_LINES = """
    WITH before AS MATERIALIZED (
        SELECT * FROM both_lines WHERE NOT is_now
    ), database_before AS (
        SELECT instance_id, database_name,
               CASE WHEN min(price) = max(price) THEN min(price) ELSE sum(gib_months * price) / sum(gib_months) END
                   AS price
        FROM before GROUP BY instance_id, database_name HAVING sum(gib_months) > 0
    ), now AS MATERIALIZED (
        SELECT *, sum(gib_months) OVER (PARTITION BY instance_id, database_name ORDER BY line) AS until,
               sum(gib_months) OVER (PARTITION BY instance_id, database_name) AS whole
        FROM both_lines WHERE is_now
    ), kept AS MATERIALIZED (
        SELECT n.line, n.facets, b.facets AS from_facets,
               round(b.amount * n.until / n.whole, 12) - round(b.amount * (n.until - n.gib_months) / n.whole, 12)
                   AS amount
        FROM now n JOIN before b USING (instance_id, database_name) WHERE n.whole > 0
    ), caused AS (
        SELECT n.facets, n.amount - coalesce(k.amount, 0) AS change,
               coalesce(round(n.gib_months * (n.price - b.price), 12), 0) AS price
        FROM now n LEFT JOIN database_before b USING (instance_id, database_name)
        LEFT JOIN (SELECT line, sum(amount) AS amount FROM kept GROUP BY line) AS k USING (line)
    ), parts AS (
        SELECT facets, CAST(NULL AS jsonb) AS from_facets, CAST(NULL AS numeric) AS before, change - price AS growth,
               price, CAST(0 AS numeric) AS moved
        FROM caused
        UNION ALL
        SELECT b.facets, NULL, CASE WHEN b.is_priced THEN b.amount END,
               CASE WHEN n.instance_id IS NULL THEN -b.amount ELSE 0 END, 0, 0
        FROM before b LEFT JOIN (SELECT DISTINCT instance_id, database_name FROM now WHERE whole > 0) AS n
            USING (instance_id, database_name)
        UNION ALL
        SELECT facets, from_facets, NULL, 0, 0, amount FROM kept WHERE facets <> from_facets
    )
    SELECT facets, from_facets, sum(before) AS before, sum(growth) AS growth, sum(price) AS price, sum(moved) AS moved
    FROM parts GROUP BY facets, from_facets"""
_SUMMED_LINES = """
    SELECT instance_id, database_name, labels || jsonb_build_object('engine', engine, 'server', server) AS facets,
           sum(gib_months) AS gib_months,
           coalesce(sum(gib_months) FILTER (WHERE price IS NULL), 0) AS unpriced_gib_months,
           min(price) AS lowest_price, max(price) AS highest_price, sum(amount) AS amount
    FROM capacity_bill_lines WHERE month = :start AND issue = :issue
    GROUP BY instance_id, database_name, facets"""
_GROUPINGS = """
    SELECT key FROM unnest(CAST(:without_label AS text[])) AS key
    UNION SELECT key FROM capacity_bills b CROSS JOIN LATERAL json_array_elements_text(b.label_keys) AS key
    WHERE b.month = :start AND b.issue = :issue"""
COMPARED = {
    "groupings": _GROUPINGS,
    "summed_lines": _SUMMED_LINES,
    "both_lines": _BOTH_LINES,
    "compared_lines": _COMPARED_LINES,
}
"""The inputs of groups, as temporary tables: the groupings of a bill, its lines by database, and the parts of the
change. `facets` are labels with engine and server, by which databases are grouped."""
_DELETE_GROUPS = "DELETE FROM capacity_bill_groups WHERE month = :start AND issue = :issue"
_STORE_GROUPS = """
WITH databases AS (
    SELECT k.key, coalesce(l.facets ->> k.key, '') AS group_name, l.instance_id, l.database_name,
           sum(l.gib_months) AS gib_months, sum(l.unpriced_gib_months) AS unpriced_gib_months,
           min(l.lowest_price) AS lowest_price, max(l.highest_price) AS highest_price, sum(l.amount) AS amount
    FROM summed_lines l CROSS JOIN groupings k GROUP BY 1, 2, 3, 4
), grouped AS (
    SELECT key, group_name, count(*) AS databases, count(DISTINCT instance_id) AS servers,
           sum(gib_months) AS gib_months, sum(unpriced_gib_months) AS unpriced_gib_months,
           min(lowest_price) AS lowest_price, max(highest_price) AS highest_price, sum(amount) AS amount
    FROM databases GROUP BY key, group_name
), named AS (
    SELECT k.key, coalesce(c.facets ->> k.key, '') AS group_name, coalesce(c.from_facets ->> k.key, '') AS from_name,
           c.before, c.growth, c.price, c.moved
    FROM compared_lines c CROSS JOIN groupings k
), compared AS (
    SELECT key, group_name, sum(before) AS before, sum(growth) AS growth, sum(price) AS price, sum(moved) AS moved
    FROM (
        SELECT key, group_name, before, growth, price, CASE WHEN group_name = from_name THEN 0 ELSE moved END AS moved
        FROM named
        UNION ALL
        SELECT key, from_name, NULL, 0, 0, -moved FROM named WHERE group_name <> from_name AND moved <> 0
    ) AS parts GROUP BY key, group_name
)
INSERT INTO capacity_bill_groups
    (month, issue, grouped_by, group_name, databases, servers, gib_months, unpriced_gib_months, lowest_price,
     highest_price, amount, before_issue, amount_before, change_growth, change_price, change_moves)
SELECT :start, :issue, key, group_name, coalesce(g.databases, 0), coalesce(g.servers, 0), coalesce(g.gib_months, 0),
       coalesce(g.unpriced_gib_months, 0), g.lowest_price, g.highest_price,
       CASE WHEN g.key IS NULL AND c.before IS NOT NULL THEN 0 ELSE g.amount END, CAST(:before_issue AS integer),
       c.before, c.growth, c.price, c.moved
FROM grouped g FULL JOIN compared c USING (key, group_name)
"""
# Whole cents: each amount is rounded down, then those with the largest remainders get one cent more until the amounts
# of a `total` add up to it, rounded. Among equal ones, `is_last` comes last.
_ROUNDED = """
SELECT *, round((floor(cents) + CASE WHEN row_number() OVER (
              of_total ORDER BY cents - floor(cents) DESC, cents DESC, is_last, nullif(name, '')
          ) <= round(sum(cents) OVER of_total) - sum(floor(cents)) OVER of_total THEN 1 ELSE 0 END) / 100, 2) AS amount
FROM exact WINDOW of_total AS (PARTITION BY total)
"""
# A group that has a budget and was not measured costs nothing.
_STORED_GROUPS = """
SELECT group_name, coalesce(g.databases, 0) AS databases, coalesce(g.servers, 0) AS servers,
       coalesce(g.gib_months, 0) AS gib_months, coalesce(g.unpriced_gib_months, 0) AS unpriced_gib_months,
       g.lowest_price, g.highest_price, CASE WHEN g.month IS NULL THEN 0 ELSE g.amount END AS amount,
       g.amount_before, g.change_price, g.change_moves,
       g.change_price IS NOT NULL AND (coalesce(g.amount, g.amount_before) IS NOT NULL OR g.change_growth <> 0
                                       OR g.change_price <> 0 OR g.change_moves <> 0) AS is_compared, d.budget
FROM (
    SELECT * FROM capacity_bill_groups WHERE month = :start AND issue = :issue AND grouped_by = :by
) AS g FULL JOIN (
    SELECT d.group_name, d.amount AS budget
    FROM capacity_budgets d JOIN capacity_bills b ON b.month = d.month AND b.currency = d.currency
    WHERE d.month = :start AND d.grouped_by = :by AND b.issue = :issue
) AS d USING (group_name)
"""
_EXACT_AMOUNTS = """
SELECT v.total, s.group_name AS name, false AS is_last, v.amount * 100 AS cents
FROM stored s CROSS JOIN LATERAL (
    VALUES ('amount', s.amount), ('projected', s.amount * :days / CAST(:days_so_far AS integer)),
           ('before', s.amount_before), ('price', s.change_price), ('moves', s.change_moves)
) AS v (total, amount)
WHERE v.amount IS NOT NULL
"""
# Growth is the rest of the change in cents.
_GROUPS = """
SELECT nullif(s.group_name, '') AS name, s.databases, s.gib_months, s.unpriced_gib_months, f.amount AS amount,
       s.amount AS exact_amount, s.servers, s.lowest_price, s.highest_price, f.projected AS projected_amount,
       f.before AS amount_before,
       CASE WHEN s.is_compared THEN coalesce(f.amount, 0) - coalesce(f.before, 0) END AS change,
       CASE WHEN s.is_compared THEN coalesce(f.amount, 0) - coalesce(f.before, 0) - f.price - f.moves END
           AS change_growth,
       CASE WHEN s.is_compared THEN f.price END AS change_price,
       CASE WHEN s.is_compared THEN f.moves END AS change_moves,
       round(s.amount / nullif(s.gib_months - s.unpriced_gib_months, 0), 6) AS amount_per_gib,
       round(s.amount / nullif(s.servers, 0), 2) AS amount_per_server, s.budget,
       coalesce(f.projected, f.amount) - s.budget AS budget_difference
FROM stored s LEFT JOIN (
    SELECT name, max(amount) FILTER (WHERE total = 'amount') AS amount,
           max(amount) FILTER (WHERE total = 'projected') AS projected,
           max(amount) FILTER (WHERE total = 'before') AS before, max(amount) FILTER (WHERE total = 'price') AS price,
           max(amount) FILTER (WHERE total = 'moves') AS moves
    FROM rounded GROUP BY name
) AS f ON f.name = s.group_name
WHERE CAST(:only AS text) IS NULL OR s.group_name = :only
ORDER BY s.databases = 0, coalesce(s.amount, 0) DESC, nullif(s.group_name, '') NULLS LAST
"""
_WHOLE = """
SELECT CAST(coalesce(sum(databases), 0) AS integer), CAST(coalesce(sum(servers), 0) AS integer), max(before_issue)
FROM capacity_bill_groups WHERE month = :start AND issue = :issue AND grouped_by = 'server'
"""
_EXACT_OF_MONTHS = """
SELECT g.month, g.group_name, g.amount
FROM (SELECT DISTINCT ON (month) month, issue, currency, is_final FROM capacity_bills
      WHERE month BETWEEN :first AND :last ORDER BY month, issue DESC) AS b
JOIN capacity_bill_groups g ON g.month = b.month AND g.issue = b.issue AND g.grouped_by = :by
WHERE b.is_final AND b.currency = :currency AND g.amount IS NOT NULL AND g.databases > 0
"""
_SHOWN_OF_MONTHS = """
SELECT a.month AS total, CASE WHEN k.is_shown THEN a.group_name END AS name, NOT k.is_shown AS is_last,
       min(k.place) AS place, sum(a.amount) * 100 AS cents
FROM amounts a JOIN (
    SELECT group_name, place, place < CAST(:most AS integer)
                              OR number <= coalesce(CAST(:most AS integer), number) AS is_shown
    FROM (SELECT group_name, row_number() OVER (ORDER BY sum(amount) DESC, nullif(group_name, '')) AS place,
                 count(*) OVER () AS number
          FROM amounts GROUP BY group_name) AS ranked
) AS k USING (group_name)
GROUP BY 1, 2, 3
"""
_MONTHLY_AMOUNTS = """
SELECT total, nullif(name, ''), is_last, amount FROM rounded
WHERE CAST(:only AS text) IS NULL OR name = :only ORDER BY total, place
"""
_OF_DATABASES = """
SELECT l.instance_id, l.database_name, sum(l.amount) AS amount
FROM capacity_bill_lines l
WHERE l.month = :start AND l.issue = :issue AND l.instance_id = ANY (CAST(:servers AS integer[]))
  AND (l.instance_id, l.database_name) IN (SELECT * FROM unnest(CAST(:servers AS integer[]), CAST(:names AS text[])))
  AND coalesce((l.labels || jsonb_build_object('engine', l.engine, 'server', l.server)) ->> CAST(:by AS text), '')
      = :name
GROUP BY l.instance_id, l.database_name
"""
