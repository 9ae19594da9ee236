"""The rule that calls a window growing, shrinking or stable; its threshold follows from the period (`periods`)."""

from __future__ import annotations

from sqlalchemy import and_, case, literal, null, or_

from capacity_assets.aggregation.reduction import Element


def trend_of(percent: Element, total: Element, previous_total: Element, threshold: Element) -> Element:
    """Return the trend as an expression: null without a window before; `threshold` is in percent, up or down."""
    grew_from_nothing = and_(previous_total == 0, total > 0)
    return case(
        (previous_total.is_(None), null()),
        (or_(percent > threshold, grew_from_nothing), literal("growing")),
        (percent < -threshold, literal("shrinking")),
        else_=literal("stable"),
    )
