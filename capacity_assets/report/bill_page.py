"""A bill as one HTML file: no network, no script, prints on A4."""

from __future__ import annotations

from capacity_assets.grouping.bill_words import gib, group_named, notes, quantity_note, title
from capacity_assets.grouping.bills import IssuedBill
from capacity_assets.report.page import page_environment


def render_bill(found: IssuedBill) -> str:
    """Return a bill as one HTML document."""
    environment = page_environment()
    environment.filters.update(gib=gib, group=group_named)
    return environment.get_template("bill.html.j2").render(
        found=found, title=title(found), notes=notes(found), quantity=quantity_note(found)
    )
