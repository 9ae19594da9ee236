"""How work ends, and how many errors are listed: shared by aggregation and collection."""

from __future__ import annotations

from enum import StrEnum

MAXIMUM_LISTED_ERRORS = 20


class AggregationStatus(StrEnum):
    """How a window, or a whole run, ended."""

    COMPLETED = "completed"
    SKIPPED = "skipped"
    FAILED = "failed"
