"""Which limit binds: the smallest that is known. Where limits come from is in `limits` and in the collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from capacity_assets.runway.limits import DECLARED

OWN, CEILING, SERVER, VOLUME = "own limit", "own ceiling", "server limit", "volume"


@dataclass(frozen=True)
class Binding:
    """The limit that binds: MiB, whose it is and where it comes from; `limit_mb` None: unlimited, or unknown."""

    limit_mb: float | None
    binds: str | None
    source: str | None

    @property
    def is_known(self) -> bool:
        """Whether there is a limit, or somebody said that there is none."""
        return self.binds is not None


UNKNOWN = Binding(None, None, None)


def binding_limit(row: Row[Any], size_mb: float, size_then_mb: float) -> Binding:
    """Return the smallest of a subject's limits; `size_then_mb` is its size on the day its volumes were measured.

    An engine's "no ceiling of its own" is no limit and no lack of one: the volumes decide, and where these are not
    known, the limit is unknown. Only people say unlimited.
    """
    known: list[tuple[float, str, str]] = []
    if row.own_mb is not None:
        known.append((float(row.own_mb), VOLUME if row.subject == "volume" else OWN, row.own_source))
    if row.ceiling_mb is not None:
        known.append((float(row.ceiling_mb), CEILING, row.ceiling_source))
    if row.server_mb is not None and row.total_mb is not None:
        known.append((size_mb + row.server_mb - row.total_mb, SERVER, row.server_source))
    if row.free_mb is not None:
        known.append((size_then_mb + float(row.free_mb), VOLUME, row.free_source))
    if known:
        return Binding(*min(known))
    if row.own_source == DECLARED:
        return Binding(None, OWN, DECLARED)
    return Binding(None, SERVER, DECLARED) if row.server_source == DECLARED else UNKNOWN
