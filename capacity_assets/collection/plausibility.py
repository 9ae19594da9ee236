"""What a server may report: sizes and limits that the tables can hold. What is wrong with them is not judged here."""

from __future__ import annotations

from collections.abc import Sequence

from capacity_assets.collection.engines.base import DatabaseSize
from capacity_assets.collection.engines.failures import FailureKind, MeasureError
from capacity_assets.collection.engines.limits import Limits

LARGEST_MB = 2**63 - 1
LARGEST_BYTES = 2**63 - 1
LONGEST_NAME = 255


def refuse_impossible(sizes: Sequence[DatabaseSize]) -> None:
    """Refuse what no table could hold, before it spoils the transaction that holds other servers too.

    Raises:
        MeasureError: a size or a name is impossible.
    """
    names = [size.name for size in sizes]
    wrong = [
        size.name
        for size in sizes
        if not isinstance(size.name, str)
        or not 0 <= size.size_mb <= LARGEST_MB
        or len(size.name) > LONGEST_NAME
        or "\0" in size.name
    ]
    if wrong or len(set(names)) < len(names):
        raise MeasureError(
            FailureKind.UNEXPECTED, f"it reported an impossible size or name: {(wrong or names)[0]!r:.80}"
        )


def possible(limits: Limits) -> Limits:
    """Return limits, or why they are unknown where no table could hold them: sizes are stored all the same."""
    numbers = [number for volume in limits.volumes for number in (volume.total_bytes, volume.free_bytes)]
    numbers += [ceiling.limit_bytes for ceiling in limits.ceilings if ceiling.limit_bytes is not None]
    names = [volume.name for volume in limits.volumes]
    fit = all(len(name) <= LONGEST_NAME and "\0" not in name for name in names) and len(set(names)) == len(names)
    if fit and all(0 <= number <= LARGEST_BYTES for number in numbers):
        return limits
    return Limits(unknown="it reported an impossible limit or name of a volume")
