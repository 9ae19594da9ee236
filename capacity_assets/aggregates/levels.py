"""The levels as data: the raw table of each aggregate table, and the inputs of each figure.

Measures and their columns are defined in `database.measures` and `database.tables`. The raw tables, and the statement
by which collection, imports and the demo write samples, are here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from capacity_assets.aggregates.groups import GROUPS_REVISION
from capacity_assets.base.declarations import LONGEST_KEY, LONGEST_VALUE
from capacity_assets.database import tables
from capacity_assets.database.measures import Measure
from capacity_assets.database.sql import sql_text
from capacity_assets.database.tables import (
    database_limit_stats,
    object_size_stats,
    server_part_stats,
    volume_size_stats,
)


def staging_columns(level: Level, *more: str) -> str:
    """Return the columns of a temporary table for the values of samples; `more` are definitions before them."""
    types = {column.name: column.type.compile() for column in level.source.columns}
    return ", ".join([*more, *(f"{name} {types[name]}" for name in (*level.values, *level.exact))])


def insert_samples(level: Level, source: str, *, replace: bool = True) -> str:
    """Return an INSERT of rows of `source`, which has the columns of the samples; equal rows are not touched.

    With `replace`, a row of the same key gets the new values; otherwise it stays unchanged.
    """
    raw, key, values = level.source, [*level.keys, "collected_date"], (*level.values, *level.exact)
    columns: dict[str, Any] = {name: sa.literal_column(f"r.{name}") for name in (*key, *values, "collected_at")}
    columns |= {"created_at": sa.func.now(), "updated_at": sa.func.now()}
    columns |= {level.void_flag: sa.false()} if level.void_flag else {}
    # Escaped, so that parameters of the source stay parameters.
    rows = sa.select(*columns.values()).select_from(sa.text(f"{source} AS r".replace(":", r"\:")))
    insertion = insert(raw).from_select(list(columns), rows, include_defaults=False)
    condition = sa.text(f"{level.void_flag} = false") if level.void_flag else None
    of_key: dict[str, Any] = {"index_elements": key, "index_where": condition}
    if not replace:
        return sql_text(insertion.on_conflict_do_nothing(**of_key))
    new = insertion.excluded
    differs = sa.tuple_(*(raw.c[name] for name in values)).is_distinct_from(sa.tuple_(*(new[name] for name in values)))
    changes = {name: new[name] for name in (*values, "collected_at", "updated_at")}
    return sql_text(insertion.on_conflict_do_update(**of_key, set_=changes, where=differs))


class Comparison(NamedTuple):
    """The figures of a measure that need samples of another window, `previous` or `year_before`, the change first."""

    measure: Measure
    other: str
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Ratio:
    """An aggregate column that is floor(sum of one raw column / sum of another), 0 for a zero divisor."""

    target: str
    numerator: str
    denominator: str


@dataclass(frozen=True)
class Level:
    """The definition of a level; growth and trend follow its first measure."""

    name: str
    source: sa.Table
    target: sa.Table
    keys: tuple[str, ...]
    measures: tuple[Measure, ...]
    view: str
    """The view of the level for readers."""
    view_order: tuple[str, ...]
    """Columns of the view that order its rows within a window."""
    ratios: tuple[Ratio, ...] = ()
    void_flag: str | None = None
    sum_per_day: bool = False
    made_of: tuple[sa.Table, ...] = ()
    """The raw tables from which `source` is added up before each computation, if `source` is not a raw table itself."""
    rule: str = ""
    """How `source` is added up, as a text that changes with it."""

    @property
    def raw_tables(self) -> tuple[sa.Table, ...]:
        """The tables with the samples of its figures."""
        return self.made_of or (self.source,)

    @property
    def has_servers(self) -> bool:
        """Whether each row is of one server, so that servers can be computed, and can fail, one by one."""
        return "instance_id" in self.keys

    @property
    def has_several_rows_of_a_server(self) -> bool:
        """Whether a server has a row for each of its parts, which must add up to a possible size."""
        return self.has_servers and len(self.keys) > 1

    def of_servers(
        self, table: sa.FromClause, instance_ids: sa.ColumnElement[Any]
    ) -> tuple[sa.ColumnElement[bool], ...]:
        """The condition that rows are of some servers; none if a row is of many."""
        return (table.c.instance_id == sa.func.any(instance_ids),) if self.has_servers else ()

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The measured columns of the raw table."""
        return tuple(measure.source for measure in self.measures)

    @cached_property
    def exact(self) -> tuple[str, ...]:
        """The columns of the raw table for the exact bytes of sizes."""
        return tuple(f"{name.removesuffix('_mb')}_bytes" for name in self.values if name.endswith("_mb"))

    @property
    def headline(self) -> Measure:
        """The measure that growth and trend follow."""
        return self.measures[0]

    @cached_property
    def figures(self) -> tuple[str, ...]:
        """Every computed column of the aggregate table, in the order of the table: all but id, keys and times."""
        fixed = {"id", *self.keys, "period_type", "period_start", "calculated_at", "created_at"}
        return tuple(column.name for column in self.target.columns if column.name not in fixed)

    @cached_property
    def sums(self) -> dict[str, str]:
        """The exact sums and counts from which longer windows are computed, with the raw column of each."""
        states = {f"{kind}_{m.source}": m.source for m in self.measures for kind in ("sum", "count")}
        return {name: source for name, source in states.items() if name in self.target.columns}

    @cached_property
    def added_later(self) -> frozenset[str]:
        """The figures that rows of older versions, and of the legacy application, may lack."""
        return frozenset(self.sums).union(*(measure.added_later for measure in self.measures))

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The comparisons of each measure: with the previous window and, if it has them, with the year before."""
        trend = ("growth_rate", "trend_direction")
        return tuple(
            Comparison(measure, other, (*names, *(trend if measure is self.headline and other == "previous" else ())))
            for measure in self.measures
            for other, names in measure.comparisons.items()
        )

    def own_figures(self, measure: Measure) -> tuple[str, ...]:
        """The figures built only from a measure's samples in the window; if there are none, the number of samples."""
        states = tuple(name for name, source in self.sums.items() if source == measure.source)
        count = () if f"count_{measure.source}" in states else ("data_count",)
        return (*(name for name in measure.targets if name not in measure.compared), *states, *count)

    def live(self) -> list[sa.ColumnElement[bool]]:
        """The conditions that a raw row must meet to count."""
        return [self.source.c[self.void_flag].is_(False)] if self.void_flag else []

    def lineage(self) -> dict[str, tuple[str, ...]]:
        """Map each column of the aggregate table to the raw columns from which it is computed."""
        made_of: dict[str, tuple[str, ...]] = {key: (key,) for key in self.keys}
        made_of |= dict.fromkeys(("period_start", "period_end", "data_count"), ("collected_date",))
        made_of |= {target: (measure.source,) for measure in self.measures for target in measure.targets}
        made_of |= {ratio.target: (ratio.numerator, ratio.denominator) for ratio in self.ratios}
        made_of |= {name: (source,) for name, source in self.sums.items()}
        return made_of | dict.fromkeys(("growth_rate", "trend_direction"), (self.headline.source,))


DATABASE = Level(
    name="database",
    source=tables.database_size_stats,
    target=tables.database_size_aggregations,
    keys=("instance_id", "database_name"),
    measures=tables.DATABASE_MEASURES,
    view="capacity_growth",
    view_order=("server", "database"),
)

INSTANCE = Level(
    name="instance",
    source=tables.instance_size_stats,
    target=tables.instance_size_aggregations,
    keys=("instance_id",),
    measures=tables.INSTANCE_MEASURES,
    view="capacity_server_growth",
    view_order=("server",),
    ratios=(Ratio("avg_size_mb", numerator="total_size_mb", denominator="database_count"),),
    void_flag="is_deleted",
    # The unique index allows one valid row per day; a legacy table without it may contain several.
    sum_per_day=True,
)


GROUP = Level(
    name="group",
    # A row per day and group, added up by `GROUP_DAYS` for the days that a computation reads.
    source=sa.Table(
        "capacity_group_days",
        sa.MetaData(),
        sa.Column("collected_date", sa.Date, nullable=False),
        sa.Column("label_key", sa.String(LONGEST_KEY), nullable=False),
        sa.Column("label_value", sa.String(LONGEST_VALUE), nullable=False),
        sa.Column("size_mb", sa.BigInteger, nullable=False),
        sa.Column("server_count", sa.BigInteger, nullable=False),
        sa.Column("database_count", sa.BigInteger, nullable=False),
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DROP",
    ),
    target=tables.group_size_aggregations,
    keys=("label_key", "label_value"),
    measures=tables.GROUP_MEASURES,
    view="capacity_groups",
    view_order=("grouped_by", "group_name"),
    made_of=(tables.database_size_stats, tables.instance_size_stats),
    rule=f"groups {GROUPS_REVISION}",
)

SERVER_LEVELS: dict[str, Level] = {level.name: level for level in (DATABASE, INSTANCE)}
"""The levels whose rows belong to single servers; each has its own raw table."""
LEVELS: dict[str, Level] = {**SERVER_LEVELS, GROUP.name: GROUP}


def aggregates_name(period: str, level: Level) -> str:
    """Return the name of the aggregates of a period and level, for example `daily_database_aggregations`."""
    return f"{period}_{level.name}_aggregations"


@dataclass(frozen=True)
class RawTable:
    """One raw table, which is one asset: the subject of a row, and the columns that show that a day changed."""

    table: sa.Table
    row: str
    summed: str
    changed: str
    level: str | None = None
    has_forecasts: bool = True
    """Whether forecasts read it."""
    is_optional: bool = False
    """Whether a day of samples may have none of these."""

    @property
    def name(self) -> str:
        """Name of the table and key of the asset."""
        return self.table.name


RAW_TABLES = (
    RawTable(DATABASE.source, "Raw size samples, one row per database and day.", "size_mb", "updated_at", "database"),
    RawTable(
        INSTANCE.source, "Raw size samples, one row per server and day.", "total_size_mb", "updated_at", "instance"
    ),
    RawTable(
        volume_size_stats,
        "Volumes of servers (file systems, disk groups, pools), one row per volume and day.",
        "free_mb",
        "collected_at",
    ),
    RawTable(
        database_limit_stats,
        "The limit of each database and the volumes on which it grows, one row per database and day.",
        "limit_mb",
        "collected_at",
    ),
    RawTable(
        server_part_stats,
        "The space on servers outside databases (WAL, logs, temporary files), one row per part and day.",
        "size_bytes",
        "collected_at",
        has_forecasts=False,
    ),
    RawTable(
        object_size_stats,
        "What databases consist of, one row per listed table or index and day, with `CAPACITY_OBJECTS` only.",
        "size_bytes",
        "collected_at",
        has_forecasts=False,
        is_optional=True,
    ),
)
