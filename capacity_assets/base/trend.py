"""The rule of the trend: its thresholds, in words, in SQL, and calculated a second time for explanations.

The rule is defined only in this file. If you change it, raise `FIGURES_REVISION` in `aggregates/figures.py`, so that
stored windows become stale. A change of only the percentage does not need this, because a window's fingerprint contains
the threshold. The text of `trend_percent` in `base/settings.py` says "20 % per year" and changes with the percentage.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from sqlalchemy import ColumnElement, FromClause, String, and_, case, literal_column, null, or_

PERCENT_PER_YEAR = 20
"""A window grows or shrinks beyond its share of it; for a quarter that is the 5 % of the legacy application."""
GROWING, SHRINKING, STABLE = "growing", "shrinking", "stable"


def trend_percent(years: Decimal) -> Decimal:
    """Return the threshold of windows of this length: a change in percent, with two decimals."""
    return (PERCENT_PER_YEAR * years).quantize(Decimal("0.01"), ROUND_HALF_UP)


def trend_rule(threshold: str) -> str:
    """Return the rule in words."""
    return f"growing or shrinking by more than {threshold}, growing from 0, otherwise stable"


def trend_direction(
    percent: ColumnElement[Any],
    total: ColumnElement[Any],
    previous_total: ColumnElement[Any],
    threshold: ColumnElement[Any],
) -> ColumnElement[str]:
    """Return the rule in SQL; null without a previous window."""
    grew_from_nothing = and_(previous_total == 0, total > 0)
    return case(
        (previous_total.is_(None), null()),
        (or_(percent > threshold, grew_from_nothing), _word(GROWING)),
        (percent < -threshold, _word(SHRINKING)),
        else_=_word(STABLE),
    )


def contradictory_trend(stored: FromClause) -> ColumnElement[bool]:
    """Return the condition of stored rows whose trend contradicts their growth with any threshold."""
    growth, trend = stored.c.growth_rate, stored.c.trend_direction
    return or_(and_(growth < 0, trend == GROWING), and_(growth > 0, trend == SHRINKING))


def explained_trend(
    percent: Decimal | None, total: int, previous_total: int | None, threshold: Decimal
) -> tuple[str, str | None]:
    """Return the reason of a trend in words, and the trend; `percent` None: the previous window has a mean of 0."""
    if previous_total is None:
        return "nothing to compare with", None
    if percent is None:
        return "from 0", GROWING if total > 0 else STABLE
    if percent > threshold:
        return f"{percent} % is above {threshold} %", GROWING
    if percent < -threshold:
        return f"{percent} % is below -{threshold} %", SHRINKING
    return f"{percent} % is within {threshold} %", STABLE


def _word(trend: str) -> ColumnElement[str]:
    return literal_column(f"'{trend}'", String)
