"""A bill in words, the same on the screen, in files and on pages."""

from __future__ import annotations

from decimal import Decimal

from capacity_assets.grouping.bills import BillGroup, IssuedBill
from capacity_assets.periods import PERIODS
from capacity_assets.units import counted

ONE_PLACE = Decimal("0.1")


def title(found: IssuedBill) -> str:
    """Say which bill it is."""
    month = PERIODS["monthly"]
    so_far = "" if found.bill.is_final else " so far"
    return f"Bill of {month.name_of(month.window_of(found.bill.month))}{so_far}, by {found.grouped_by}"


def group_named(name: str | None, grouped_by: str) -> str:
    """Name a group; what has no label is a group of its own."""
    return f"(no {grouped_by})" if name is None else name


def gib(quantity: Decimal) -> str:
    """Render a mean size over the month."""
    return f"{quantity.quantize(ONE_PLACE):,}"


def notes(found: IssuedBill) -> list[str]:
    """Say what the amounts leave out and what they replace, one sentence each."""
    bill = found.bill
    sentences = []
    if found.restated:
        sentences.append(found.restated)
        sentences += [difference for difference in _differences(found) if difference]
    if bill.is_unpriced:
        sentences.append(
            f"{gib(bill.unpriced_gib_months)} of {gib(bill.gib_months)} GiB have no price and are not billed. "
            "`capacity prices set` declares one."
        )
    if bill.unbilled_servers:
        sentences.append(
            f"Not billed: {counted(bill.unbilled_servers, 'server')} of which totals were measured, but no databases."
        )
    if bill.measured_days < bill.billed_days:
        missing = bill.billed_days - bill.measured_days
        sentences.append(
            f"Not measured: {missing:,} of {counted(bill.billed_days, 'server day')}, billed at the average of the "
            "server's measured days."
        )
    if sum(group.databases for group in found.groups) > found.databases:
        sentences.append("A database that changed its group in the month counts in each of them, and once in all.")
    if bill.samples_dropped_at:
        sentences.append(
            f"Retention dropped samples of this month (detected on {bill.samples_dropped_at:%Y-%m-%d}). This bill no "
            "longer changes: later samples, labels and prices do not affect it."
        )
    if bill.clock_doubt:
        sentences.append(f"This bill is not final; the next one replaces it. {bill.clock_doubt}")
    elif not bill.is_final:
        sentences.append("The month is not over: this bill covers its days so far, and is replaced until it is.")
    return sentences


def _differences(found: IssuedBill) -> list[str]:
    """Name the groups whose amount is another one than in the issue before."""
    assert found.before is not None  # noqa: S101 -- asked of restated bills only
    before = {group.name: group for group in found.before.groups}
    now = {group.name: group for group in found.groups}
    return [
        f"  {group_named(name, found.grouped_by)}: {_amount(before.get(name))} before, {_amount(now.get(name))} now"
        + (", by rounding" if _exact(before.get(name)) == _exact(now.get(name)) else "")
        for name in dict.fromkeys([*now, *before])
        if _amount(before.get(name)) != _amount(now.get(name))
    ]


def _amount(group: BillGroup | None) -> str:
    if group is None:
        return "nothing"
    return "no price" if group.amount is None else f"{group.amount:,}"


def _exact(group: BillGroup | None) -> Decimal | None:
    return None if group is None else group.exact_amount


def quantity_note(found: IssuedBill) -> str:
    """Say what the GiB of a bill are."""
    if found.bill.is_final:
        return "GiB are means over the month."
    return "GiB are what the days so far add up to, divided by the days of the month."
