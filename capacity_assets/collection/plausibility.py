"""Plausible reports of servers: sizes and limits within the possible range. Unusual but possible values pass."""

from __future__ import annotations

from collections.abc import Sequence

from capacity_assets.collection.engines.base import DatabaseSize
from capacity_assets.collection.engines.failures import FailureKind, MeasureError
from capacity_assets.collection.engines.limits import Limits
from capacity_assets.units import LARGEST_BYTES, LARGEST_MB

LONGEST_NAME = 255


def refuse_impossible(sizes: Sequence[DatabaseSize]) -> None:
    """Raise MeasureError for impossible values, before they abort the transaction that other servers share."""
    names = [size.name for size in sizes]
    wrong = [
        size.name
        for size in sizes
        if not isinstance(size.name, str)
        or not 0 <= size.size_mb <= LARGEST_MB
        or len(size.name) > LONGEST_NAME
        or "\0" in size.name
    ]
    # The total of the server has the same maximum as each database.
    if not wrong and sum(size.size_mb for size in sizes) > LARGEST_MB:
        wrong = names
    if wrong or len(set(names)) < len(names):
        raise MeasureError(
            FailureKind.UNEXPECTED, f"it reported an impossible size or name: {(wrong or names)[0]!r:.80}"
        )


IMPOSSIBLE = Limits(unknown="it reported an impossible limit or name of a volume")


def possible(limits: object) -> Limits:
    """Return limits, or why they are unknown where no table could hold them: sizes are stored all the same."""
    try:
        return limits if isinstance(limits, Limits) and _fits(limits) else IMPOSSIBLE
    except (TypeError, ValueError, AttributeError):
        # An engine of someone else's may return anything.
        return IMPOSSIBLE


def _fits(limits: Limits) -> bool:
    volumes = [volume.name for volume in limits.volumes]
    databases = [ceiling.database for ceiling in limits.ceilings]
    places = [name for ceiling in limits.ceilings for name in ceiling.volumes or ()]
    most = [ceiling.limit_bytes for ceiling in limits.ceilings if ceiling.limit_bytes is not None]
    return (
        all(map(_is_name, [*volumes, *databases, *places]))
        and len(set(volumes)) == len(volumes)
        and len(set(databases)) == len(databases)
        and all(0 <= volume.free_bytes <= volume.total_bytes <= LARGEST_BYTES for volume in limits.volumes)
        and all(0 <= (volume.used_bytes or 0) <= volume.total_bytes for volume in limits.volumes)
        and all(0 <= limit <= LARGEST_BYTES for limit in most)
    )


def _is_name(name: str) -> bool:
    name.encode()
    return 0 < len(name) <= LONGEST_NAME and "\0" not in name
