"""Registries of sizes and figures, which tables, statements, views and the reference follow.

- A new size of a database is an entry of `SIZE_MEASURES`: columns of samples and aggregates, figures, imports and
  views follow, and `capacity init` adds the columns. An engine's class passes its bytes by `stem`. Raise
  `SCHEMA_REVISION` (`database.tables`), so that programs ask for `capacity init` before they use the columns.
- A new kind of space outside databases is an entry of `PART_KINDS`. An engine defines in `part_sources` how it measures
  a kind. These sizes are not part of the size of a database or server.
- A new figure is a field of `Measure` or `Further`, with its column. Its computation is in `aggregates.figures`, a
  second one in `aggregates.explanation`. `tables` says which measures a table has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from sqlalchemy import BigInteger, Column, Integer, Numeric, String

from capacity_assets.base.periods import PERIODS
from capacity_assets.base.trend import trend_rule


@dataclass(frozen=True)
class PartKind:
    """A kind of storage outside databases, such as logs: its name in `server_part_stats`, and its title for people."""

    name: str
    title: str
    held_by: str | None = None
    """The kind whose bytes include these; None: no other kind does, so sums count them."""


WAL, SLOT, ARCHIVER, TEMPORARY = "wal", "slot", "archiver", "temporary"
DISCONNECTED = "its consumer is not connected"
"""Part of the detail of a slot that nothing reads."""
ARCHIVING_FAILS = "archiving fails"
"""Beginning of the detail of an archiver whose last attempt failed."""
BINARY_LOG, RELAY_LOG, UNDO, REDO = "binary_log", "relay_log", "undo", "redo"
TRANSACTION_LOG, ARCHIVED_LOG, RECOVERY_AREA = "transaction_log", "archived_log", "recovery_area"
BACKUP = "backup"
PART_KINDS = {
    kind.name: kind
    for kind in (
        PartKind(WAL, "WAL"),
        PartKind(SLOT, "Replication slot", held_by=WAL),
        PartKind(ARCHIVER, "WAL archiver", held_by=WAL),
        PartKind(BINARY_LOG, "Binary logs"),
        PartKind(RELAY_LOG, "Relay logs"),
        PartKind(TRANSACTION_LOG, "Transaction logs"),
        PartKind(REDO, "Redo logs"),
        PartKind(UNDO, "Undo logs"),
        PartKind(ARCHIVED_LOG, "Archived logs"),
        PartKind(RECOVERY_AREA, "Recovery area"),
        PartKind(BACKUP, "Backups"),
        PartKind(TEMPORARY, "Temporary files"),
    )
}

# Sizes are bigint and a previous mean may be as small as 1/366, so a percentage can reach 3.4e23: 28 digits before the
# point are enough for every possible value.
PERCENT = Numeric(30, 2)
# The same to the power of twelve has no such bound.
COMPOUND_PERCENT = Numeric()


@dataclass(frozen=True)
class Further:
    """The columns of a measure's first and last values in the window, and of its comparison with the year before."""

    last: str
    growth: str
    year_change: str
    year_change_percent: str
    yearly_rate_percent: str

    @property
    def own(self) -> tuple[str, ...]:
        """Those computed only from the window's own samples."""
        return (self.last, self.growth)

    @property
    def compared(self) -> tuple[str, ...]:
        """Those for which samples of other windows are needed."""
        return (self.year_change, self.year_change_percent, self.yearly_rate_percent)


@dataclass(frozen=True)
class Measure:
    """One raw column, and the columns of the aggregate table that are computed from it.

    `what` is the measured value in the comments of the columns; `files` is that of a part of a database's size, as in
    "Size of the data files". `optional` names the columns of the mean and the extremes that may be null. The
    representation is part of the fingerprint of computed windows, unless a revision added the measure `since`: older
    rows have null there, as newer rows without a value do, so none is computed again.
    """

    source: str
    average: str
    maximum: str
    minimum: str
    change: str
    change_percent: str
    average_two_decimals: str | None = None
    further: Further | None = None
    _: KW_ONLY
    what: str = field(repr=False)
    files: str = field(default="", repr=False)
    type: type[Integer] = field(default=BigInteger, repr=False)
    optional: tuple[str, ...] = field(default=(), repr=False)
    since: str | None = field(default=None, repr=False)

    @property
    def stem(self) -> str:
        """The name of a size without its unit: `{stem}_mb` and `{stem}_bytes` are columns of the samples."""
        return self.source.removesuffix("_mb")

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of its columns."""
        two_decimals = (self.average_two_decimals,) if self.average_two_decimals else ()
        further = self.further.own if self.further else ()
        return (self.average, self.maximum, self.minimum, *two_decimals, *further, *self.compared)

    @property
    def compared(self) -> tuple[str, ...]:
        """The names of those for which samples of other windows are needed."""
        return (self.change, self.change_percent, *(self.further.compared if self.further else ()))

    @property
    def added_later(self) -> tuple[str, ...]:
        """The names of those that may be missing in rows of older versions and of the legacy application."""
        return (*self.further.own, *self.further.compared) if self.further else ()

    @property
    def comparisons(self) -> dict[str, tuple[str, ...]]:
        """The same by the other window, `previous` or `year_before`: first the change, then its percentage."""
        if self.further is None:
            return {"previous": self.compared}
        change, percent, rate = self.further.compared
        return {"previous": (self.change, self.change_percent, rate), "year_before": (change, percent)}

    def mean_columns(self) -> Iterator[Column[Any]]:
        """The mean and the extremes."""
        yield self._column(self.average, f"Mean {self.what}, rounded down")
        if self.average_two_decimals:
            yield Column(self.average_two_decimals, PERCENT, comment=f"Mean {self.what}, two decimals")
        yield self._column(self.maximum, f"Largest {self.what}")
        yield self._column(self.minimum, f"Smallest {self.what}")

    def _column(self, name: str, comment: str) -> Column[Any]:
        unknown = "; null: not measured" if self.average in self.optional else ""
        return Column(name, self.type, nullable=name in self.optional, comment=f"{comment}{self._unit}{unknown}")

    @property
    def _unit(self) -> str:
        return ", MiB" if self.source.endswith("_mb") else ""

    def change_columns(self) -> Iterator[Column[Any]]:
        """The change since the previous window."""
        yield from self._changes(self.change, self.change_percent, "the previous window")

    def _changes(self, name: str, name_in_percent: str, other: str) -> Iterator[Column[Any]]:
        change = f"Change of the exact mean {self.what} since {other}"
        yield Column(name, self.type, comment=f"{change}, cut toward zero{self._unit}; null: unknown")
        yield Column(name_in_percent, PERCENT, comment=f"{change}, in percent; null: unknown, or from 0")

    def further_columns(self) -> Iterator[Column[Any]]:
        """The last value, the growth within the window, and the comparison with the year before."""
        if self.further is None:
            return
        last = f"{self.what.capitalize()} on the last measured day of the window"
        growth = f"{last}, less that on the first{self._unit}; null: fewer than two measured days"
        rate = (
            f"{self.change_percent} compounded to a year; null: unknown, from 0, or the window is not a whole number "
            "of months"
        )
        yield Column(self.further.last, self.type, comment=f"{last}{self._unit}")
        yield Column(self.further.growth, self.type, comment=growth)
        change, in_percent = self.comparisons["year_before"]
        yield from self._changes(change, in_percent, "the same window a year before")
        yield Column(self.further.yearly_rate_percent, COMPOUND_PERCENT, comment=rate)

    def sum_columns(self) -> Iterator[Column[Any]]:
        """The exact state from which longer windows are computed, without reading their days again."""
        daily = "; null: the window is one day, or an older version wrote the row"
        comment = f"Exact sum of the {self.what} over the samples of the window{daily}"
        yield Column(f"sum_{self.source}", Numeric, comment=comment)
        if self.average in self.optional:
            none = "; null: none" if self.since else ""
            comment = f"Samples of the window with a {self.what}{none or daily}"
            yield Column(f"count_{self.source}", Integer, comment=comment)


_THRESHOLDS = ", ".join(f"{name} {period.trend_percent} %" for name, period in PERIODS.items())
_THRESHOLDS = f"the period's threshold ({_THRESHOLDS}; CAPACITY_TREND_PERCENT sets another)"


def figure_columns(measures: Sequence[Measure], samples: str, *ratios: Column[Any]) -> list[Column[Any]]:
    """Return the columns of figures of an aggregate table; growth and trend follow the first measure.

    `samples` says what its `data_count` counts; `ratios` are inserted after the first mean.
    """
    average, *extremes = measures[0].mean_columns()
    return [
        average,
        *ratios,
        *extremes,
        Column("data_count", Integer, nullable=False, comment=samples),
        *(column for measure in measures[1:] for column in measure.mean_columns()),
        *(column for measure in measures for column in measure.change_columns()),
        *(column for measure in measures for column in measure.further_columns()),
        *(column for measure in measures for column in measure.sum_columns()),
        Column("growth_rate", PERCENT, comment=f"Equals {measures[0].change_percent}"),
        Column("trend_direction", String(20), comment=f"{trend_rule(_THRESHOLDS)}; null: nothing to compare with"),
    ]


def size_measure(
    stem: str,
    what: str,
    *,
    files: str = "",
    last: str | None = None,
    since: str | None = None,
    **names: str,
) -> Measure:
    """Return the measure of a size; its columns are named after the stem, or as `names` say.

    With `files`, it is a part of a database's size, and null if the engine does not report it. If a column for its last
    value is named, it has the further figures. `since` is the revision of the schema that added it; None: it exists in
    that of 0.3.0.
    """
    own = {"average": f"avg_{stem}_mb", "maximum": f"max_{stem}_mb", "minimum": f"min_{stem}_mb", **names}
    further = None
    if last:
        further = Further(
            last=last,
            growth=f"{stem}_growth_in_window_mb",
            year_change=f"{stem}_year_change_mb",
            year_change_percent=f"{stem}_year_change_percent",
            yearly_rate_percent=f"{stem}_yearly_rate_percent",
        )
    return Measure(
        source=f"{stem}_mb",
        average=own["average"],
        maximum=own["maximum"],
        minimum=own["minimum"],
        change=f"{stem}_change_mb",
        change_percent=f"{stem}_change_percent",
        further=further,
        what=what,
        files=files,
        optional=tuple(own.values()) if files else (),
        since=since,
    )


def count_measure(name: str, what: str, **options: Any) -> Measure:
    """Return the measure of a number; its columns are named after it."""
    return Measure(
        source=name,
        average=name,
        maximum=f"max_{name}",
        minimum=f"min_{name}",
        change=f"{name}_change",
        change_percent=f"{name}_change_percent",
        what=what,
        **options,
    )


USED_SIZE = "used_size"
SIZE_MEASURES = (
    size_measure("data_size", "data size", files="the data files"),
    size_measure("log_size", "log size", files="the log files"),
    size_measure(USED_SIZE, "used size", files="the used space inside the data files", since="0022"),
)
"""The sizes that a database has besides its total."""
