"""How work ends, and how much of its trouble is listed: the words that aggregation and collection share."""

from __future__ import annotations

from enum import StrEnum

MAXIMUM_LISTED_ERRORS = 20


class AggregationStatus(StrEnum):
    """How a window, or a whole run, ended."""

    COMPLETED = "completed"
    SKIPPED = "skipped"
    FAILED = "failed"
