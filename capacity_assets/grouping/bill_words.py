"""A bill in words, the same on the screen, in files and on pages."""

from __future__ import annotations

from decimal import Decimal

from capacity_assets.grouping.bills import IssuedBill
from capacity_assets.periods import PERIODS

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
    told = []
    if found.restated:
        told.append(found.restated)
        told += [difference for difference in _differences(found) if difference]
    if bill.is_unpriced:
        told.append(
            f"Without a price, and in no amount: {gib(bill.unpriced_gib_months)} of {gib(bill.gib_months)} GiB. "
            "`capacity prices set` declares one."
        )
    if bill.measured_days < bill.billed_days:
        missing = bill.billed_days - bill.measured_days
        told.append(
            f"{missing:,} of {bill.billed_days:,} days of servers were not measured; they are billed as the measured "
            "days of their server on average."
        )
    if not bill.is_final:
        told.append("The month is not over: this bill covers its days so far, and is replaced until it is.")
    return told


def _differences(found: IssuedBill) -> list[str]:
    """Name the groups whose amount is another one than in the issue before."""
    assert found.before is not None  # noqa: S101 -- asked of restated bills only
    before = {group.name: group.amount or Decimal(0) for group in found.before.groups}
    now = {group.name: group.amount or Decimal(0) for group in found.groups}
    return [
        f"  {group_named(name, found.grouped_by)}: {before.get(name, 0):,} before, {now.get(name, 0):,} now"
        for name in dict.fromkeys([*now, *before])
        if before.get(name, 0) != now.get(name, 0)
    ]
