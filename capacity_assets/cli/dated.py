"""Labels and prices, which hold from a day on: since when, in words and for scripts."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date

from capacity_assets.grouping.labels import Label
from capacity_assets.grouping.prices import Price
from capacity_assets.storage.group_tables import ALWAYS


def since(day: date | None) -> str:
    """Say since when something holds."""
    return "always" if day in {ALWAYS, None} else f"from {day}"


def as_json(declared: Label | Price) -> dict[str, object]:
    """Return a declaration for scripts; without a first day it always holds."""
    return {**asdict(declared), "valid_from": None if declared.valid_from == ALWAYS else declared.valid_from}
