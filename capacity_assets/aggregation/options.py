"""The options of a run. One object carries them from assets, tasks and commands down to the statement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from capacity_assets.foundation.levels import LEVELS

ALL_LEVELS = tuple(LEVELS)
SCOPE_ALL = "all"

Progress = Callable[[int], None]
"""Called after each slice with the number of instances it held."""

Guard = Callable[[], None]
"""Called before each commit, never twice at once; raises when the work must not be committed."""


@dataclass(frozen=True)
class RunOptions:
    """At which levels and for which instances to compute, and whether stored history may be replaced.

    With `recompute`, windows that are unchanged since they were computed are computed too. With
    `dry_run` nothing is written anywhere, and the summary says what would be. The service adds its lock to `guard`.
    """

    levels: Sequence[str] = ALL_LEVELS
    instance_ids: Sequence[int] | None = None
    overwrite: bool = False
    recompute: bool = False
    dry_run: bool = False
    progress: Progress | None = None
    guard: Guard | None = None


DEFAULT_OPTIONS = RunOptions()
