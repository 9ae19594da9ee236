"""Labels and prices, which hold from a day on: since when, in words and for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date

from capacity_assets.errors import ValidationError
from capacity_assets.grouping.labels import Label
from capacity_assets.grouping.prices import Price
from capacity_assets.periods import PERIODS
from capacity_assets.storage.group_tables import ALWAYS
from capacity_assets.units import first_of

MONTHS_NAMED = 12


def first_day_of(first_day: date | None, *, always: bool) -> date | None:
    """Return the first day given by the options of a declaration; None: the default. Raises ValidationError."""
    if always and first_day is not None:
        raise ValidationError("Give either --from or --always. Nothing was changed.")
    return ALWAYS if always else first_day


def restating(months: Sequence[date]) -> list[str]:
    """Return a line that lists the bills of closed months that a declaration changes, newest first; empty if none."""
    if not months:
        return []
    month = PERIODS["monthly"]
    named = first_of((month.name_of(month.window_of(one)) for one in months), MONTHS_NAMED)
    return [f"Bills of closed months that change: {named}. Run `capacity bill --month` for each to restate it."]


def since(day: date | None) -> str:
    """Say since when something holds."""
    return "always" if day in {ALWAYS, None} else f"from {day}"


def as_json(declared: Label | Price) -> dict[str, object]:
    """Return a declaration for scripts; without a first day it always holds."""
    return {**asdict(declared), "valid_from": None if declared.valid_from == ALWAYS else declared.valid_from}
