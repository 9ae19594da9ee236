"""The registry of sizes that are measured of a database beside its total. A further one is an entry here.

Its columns of samples and aggregates, its figures, the columns of imports and views, and the reference follow from the
entry; `capacity init` adds the columns to a database that lacks them. An engine's class passes its bytes by `stem`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PartSize:
    """A part of a database's size: `{stem}_mb` and `{stem}_bytes` of a sample; null where the engine reports none."""

    stem: str
    files: str
    """What is measured, as in "Size of the data files"."""

    @property
    def what(self) -> str:
        """The stem in words, as in "Mean data size"."""
        return self.stem.replace("_", " ")


PART_SIZES = (
    PartSize("data_size", "the data files"),
    PartSize("log_size", "the log files"),
)
