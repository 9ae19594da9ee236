"""What the ledger says of a window: stale, computed, or open with the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from capacity_assets.periods import Window


@dataclass(frozen=True)
class StaleWindow:
    """A computed window whose samples changed since.

    `newest_change` numbers the last such transaction; `quiet_seconds` have passed since it, `waiting_seconds` since
    the first one.
    """

    period_type: str
    level: str
    window: Window
    newest_change: int
    quiet_seconds: float = math.inf
    waiting_seconds: float = math.inf


@dataclass(frozen=True)
class ComputedWindow:
    """A window that was computed, and what of: servers and rows."""

    window: Window
    processed_instances: int
    failed_instances: int
    total_records: int


@dataclass(frozen=True)
class IncompleteWindow:
    """A window that should be computed, or computed again, and the reason in a few words."""

    window: Window
    reason: str
