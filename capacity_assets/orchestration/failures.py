"""Translates our errors into Dagster's failures, whose text a run or tick shows.

Which failures there are, and which of them can pass by themselves, is decided in `errors`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from capacity_assets.errors import CapacityError

logger = logging.getLogger(__name__)


@contextmanager
def dagster_failures() -> Iterator[None]:
    """Raise an error of the block as a dagster.Failure with its text alone; only a transient one may be retried."""
    try:
        yield
    except CapacityError as error:
        # Not chained: Dagster stores the whole chain in the event, statement and parameters included.
        logger.debug("cause of the failure", exc_info=error)
        raise dg.Failure(description=str(error), allow_retries=error.transient) from None
