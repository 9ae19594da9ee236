"""The capacity tables: the one source of truth for names, types and what each column means.

Names and columns are those of the legacy application, so an existing database keeps working. Column comments are what
the Dagster UI and the reference show. How an old database reaches this shape is decided in `adoption` and `schema`.

Samples, aggregates and forecasts are partitioned by time, so that old rows leave as whole partitions (`partitions`). A
primary key begins with the day or window: it identifies rows and serves every query for some days or windows. It bears
the name that the unique key of these columns has in the legacy application, whose own migrations call it so.

There are no foreign keys: servers are registered elsewhere, and the history of a server outlives its registration.
Measured limits are samples like sizes, one row per day. What people declare (limits, steps, labels, prices) is dated
or holds until they declare something else. A further size of a database is one entry of `size_parts`.
"""

from __future__ import annotations

from datetime import date

from sqlalchemy import (
    ARRAY,
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    and_,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import DATERANGE, JSONB
from sqlalchemy.ext.compiler import compiles

from capacity_assets.base.label_rules import LONGEST_KEY, LONGEST_VALUE
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import LARGEST_MB
from capacity_assets.database.size_parts import PART_SIZES

# Sizes are bigint and a previous mean may be as small as 1/366, so a percent can reach 3.4e23:
# 28 digits before the point hold every value that can occur.
PERCENT = Numeric(30, 2)
# The same to the power of twelve has no such bound.
COMPOUND_PERCENT = Numeric()
_THRESHOLDS = ", ".join(f"{name} {period.trend_percent} %" for name, period in PERIODS.items())


def timestamp(name: str, comment: str, *, nullable: bool = False) -> Column[object]:
    """Return a column with a moment, by default that of the insert."""
    default = None if nullable else func.now()
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=default, comment=comment)


def megabytes(name: str, comment: str, *, nullable: bool = False) -> Column[object]:
    """Return a column with a size in MiB."""
    note = "; null: not measured" if nullable else ""
    return Column(name, BigInteger, nullable=nullable, comment=f"{comment}, MiB{note}")


def exact_bytes(stem: str) -> Column[object]:
    """Return the column with the exact bytes of a size."""
    return Column(f"{stem}_bytes", BigInteger, comment=f"What {stem}_mb was made of, exact, bytes; null: not known")


def change_columns(
    stem: str, what: str, kind: type[BigInteger] | type[Integer], unit: str = "_mb"
) -> list[Column[object]]:
    """Change columns of one measure: absolute, truncated toward zero, and in percent of the previous mean."""
    of_means = f"difference of the exact mean {what} to the window before"
    absolute = f"{of_means.capitalize()}, cut toward zero{', MiB' if unit else ''}; null: unknown"
    percent = f"{of_means.capitalize()}, in percent of the latter; null: unknown, or from 0"
    return [
        Column(f"{stem}_change{unit}", kind, comment=absolute),
        Column(f"{stem}_change_percent", PERCENT, comment=percent),
    ]


def further_columns(stem: str, last: str, what: str) -> list[Column[object]]:
    """Columns of the measure that growth follows: its ends within the window, and a year as the yardstick."""
    of_means = f"the exact mean {what} to the same window a year before"
    return [
        Column(last, BigInteger, comment=f"{what.capitalize()} on the last measured day of the window, MiB"),
        Column(
            f"{stem}_growth_in_window_mb",
            BigInteger,
            comment=f"{what.capitalize()} on the last measured day less that on the first, MiB; "
            "null: fewer than two measured days",
        ),
        Column(
            f"{stem}_year_change_mb",
            BigInteger,
            comment=f"Difference of {of_means}, cut toward zero, MiB; null: unknown",
        ),
        Column(
            f"{stem}_year_change_percent",
            PERCENT,
            comment=f"Difference of {of_means}, in percent of the latter; null: unknown, or from 0",
        ),
        Column(
            f"{stem}_yearly_rate_percent",
            COMPOUND_PERCENT,
            comment=f"Growth of the exact mean {what} since the window before, compounded to a year, in percent; "
            "null: unknown, from 0, or the window is not a whole number of months",
        ),
    ]


def sum_columns(source: str, what: str, *, counted: bool = False) -> list[Column[object]]:
    """Return the exact state of a measure, of which longer windows are made without reading their days again."""
    daily = "; null: the window is one day, or an older version wrote the row"
    columns: list[Column[object]] = [
        Column(f"sum_{source}", Numeric, comment=f"Exact sum of the {what} over the samples of the window{daily}")
    ]
    if counted:
        columns.append(Column(f"count_{source}", Integer, comment=f"Samples of the window with a {what}{daily}"))
    return columns


def size_columns(infix: str, what: str, *, nullable: bool) -> list[Column[object]]:
    """Return mean and extremes of a size."""
    return [
        megabytes(f"avg_{infix}_mb", f"Mean {what}, rounded down", nullable=nullable),
        megabytes(f"max_{infix}_mb", f"Largest {what}", nullable=nullable),
        megabytes(f"min_{infix}_mb", f"Smallest {what}", nullable=nullable),
    ]


def count_columns(name: str, what: str) -> list[Column[object]]:
    """Return mean and extremes of a number per day."""
    return [
        Column(name, BigInteger, nullable=False, comment=f"Mean number of {what} per day, rounded down"),
        Column(f"max_{name}", BigInteger, nullable=False, comment=f"Largest number of {what} on a day"),
        Column(f"min_{name}", BigInteger, nullable=False, comment=f"Smallest number of {what} on a day"),
    ]


def window_columns() -> list[Column[object]]:
    """Return period and days of a window."""
    return [
        Column("period_type", String(20), nullable=False, comment="Name of the period, such as daily or monthly"),
        Column("period_start", Date, nullable=False, comment="First day of the window"),
        Column("period_end", Date, nullable=False, comment="Last day of the window, included"),
    ]


def verdict_columns() -> list[Column[object]]:
    """Return growth, trend and the times of a row."""
    return [
        Column("growth_rate", PERCENT, comment="Change of the exact mean total in percent; null: unknown, or from 0"),
        Column(
            "trend_direction",
            String(20),
            comment=f"growing or shrinking by more than the period's threshold ({_THRESHOLDS}; CAPACITY_TREND_PERCENT "
            "sets another), growing from 0, else stable; null: nothing to compare with",
        ),
        timestamp("calculated_at", "When the figures last changed"),
        timestamp("created_at", "When the row was first written"),
    ]


class _Numbered(BigInteger):
    """An integer that a sequence of the table's own fills in, also where it is no part of the primary key."""


@compiles(_Numbered, "postgresql")
def _numbered(_type: _Numbered, _compiler: object, *, type_expression: object = None, **_options: object) -> str:
    """Name the type: that of a column being made, which makes the sequence, or that of its values."""
    return "BIGINT" if type_expression is None else "BIGSERIAL"


def row_number() -> Column[object]:
    """Return the number of a row."""
    return Column("id", _Numbered, autoincrement=True, nullable=False, comment="Row number; stays over recomputations")


def instance_id() -> Column[object]:
    """Return the number of a server."""
    return Column("instance_id", Integer, nullable=False, comment="Server, instances.id")


def instance_key() -> Column[object]:
    """Return the number of a server, where it identifies the row, alone or with other columns."""
    return Column("instance_id", Integer, primary_key=True, autoincrement=False, comment="Server, instances.id")


def collected_date() -> Column[object]:
    """Return the day of a sample."""
    return Column("collected_date", Date, nullable=False, comment="Day of the sample in the configured time zone")


def database_name() -> Column[object]:
    """Return the name of a database."""
    return Column("database_name", String(255), nullable=False, comment="Database, exactly as the server spells it")


def limit_source() -> Column[object]:
    """Return where a limit comes from."""
    return Column("source", String(20), nullable=False, comment="Where it comes from: measured or imported")


def forecast_columns(days: int) -> list[Column[object]]:
    """Return what is forecast over so many days, and the size that was measured then."""
    return [
        Column(f"forecast_{days}_mb", BigInteger, comment=f"Size that is forecast {days} days later, MiB; null: none"),
        Column(f"lower_{days}_mb", BigInteger, comment="Lower end of the band of 80 percent, MiB; null: no band"),
        Column(f"upper_{days}_mb", BigInteger, comment="Upper end of the band of 80 percent, MiB; null: no band"),
        Column(f"probability_{days}", Double, comment=f"Probability of being full within {days} days; null: unknown"),
        Column(
            f"actual_{days}_mb", BigInteger, comment=f"Size measured {days} days later, MiB; null: not measured yet"
        ),
    ]


metadata = MetaData()


BY_DAY = "RANGE (collected_date)"
BY_WINDOW = "RANGE (period_type, period_start)"


def _impossible_index(table: str, *measured: str) -> Index:
    """Return the index of rows with an impossible value, for the check of the whole history; it is normally empty."""
    arms = [f"min_{name} < 0" for name in measured]
    # In the form PostgreSQL displays, so that the comparison recognises it.
    arms += [f"max_{name} > '{LARGEST_MB}'::bigint" for name in measured if name.endswith("_mb")]
    condition = text(" OR ".join(arms))
    return Index(f"ix_{table}_impossible", "period_type", "period_start", postgresql_where=condition)


def _sorted_index(table: str, name: str, column: str) -> Index:
    """Return the index that keeps a list sorted: every page lists the largest, and those that grew most.

    Not of days, which are five sixths of the rows: sorting one takes less than writing it to two more indexes.
    """
    # In the form PostgreSQL displays, as above.
    longer = [f"(period_type)::text <> '{period.name}'::text" for period in PERIODS.values() if period.days == 1]
    condition = text(" AND ".join(longer))
    return Index(f"ix_{table}_{name}", "period_type", "period_start", column, postgresql_where=condition)


instances = Table(
    "instances",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True, comment="Number of the server"),
    Column("name", String(255), nullable=False, unique=True, comment="Name of the server"),
    Column("db_type", String(50), nullable=False, comment="Engine: mysql, postgresql, sqlserver, oracle, ..."),
    Column("host", String(255), nullable=False, comment="Host name or address"),
    Column("port", Integer, nullable=False, comment="TCP port"),
    Column("is_active", Boolean, nullable=False, server_default=text("true"), comment="Whether it is aggregated"),
    timestamp("deleted_at", "When it was taken out of service; null: in service", nullable=True),
    Column(
        "counted_by",
        Integer,
        comment="Server that counts in its place: its primary, or whose storage it shares; null: it counts itself",
    ),
    comment="Registered database servers.",
)

database_size_stats = Table(
    "database_size_stats",
    metadata,
    row_number(),
    instance_id(),
    database_name(),
    megabytes("size_mb", "Total size of the database"),
    *(megabytes(f"{part.stem}_mb", f"Size of {part.files}", nullable=True) for part in PART_SIZES),
    *(exact_bytes(name) for name in ("size", *(part.stem for part in PART_SIZES))),
    collected_date(),
    timestamp("collected_at", "When the sample was taken"),
    timestamp("created_at", "When the row was first written"),
    timestamp("updated_at", "When the row was last changed"),
    PrimaryKeyConstraint("collected_date", "instance_id", "database_name", name="uq_daily_database_size"),
    postgresql_partition_by=BY_DAY,
    comment="Raw samples: one row per database and day.",
)

instance_size_stats = Table(
    "instance_size_stats",
    metadata,
    row_number(),
    instance_id(),
    megabytes("total_size_mb", "Total size of all databases of the server"),
    exact_bytes("total_size"),
    Column("database_count", Integer, nullable=False, comment="Number of databases on the server"),
    collected_date(),
    timestamp("collected_at", "When the sample was taken"),
    Column("is_deleted", Boolean, nullable=False, server_default=text("false"), comment="Whether the sample is void"),
    timestamp("deleted_at", "When the sample was declared void", nullable=True),
    timestamp("created_at", "When the row was first written"),
    timestamp("updated_at", "When the row was last changed"),
    # A day may have void samples beside the one that counts, so that nothing but the row number tells them apart.
    PrimaryKeyConstraint("collected_date", "instance_id", "id", name="instance_size_stats_pkey"),
    Index(
        "uq_instance_size_stats_instance_date",
        "instance_id",
        "collected_date",
        unique=True,
        postgresql_where=text("is_deleted = false"),
    ),
    postgresql_partition_by=BY_DAY,
    comment="Raw samples: one live row per server and day.",
)

database_size_aggregations = Table(
    "database_size_aggregations",
    metadata,
    row_number(),
    instance_id(),
    database_name(),
    *window_columns(),
    *size_columns("size", "total size", nullable=False),
    Column("data_count", Integer, nullable=False, comment="Samples in the window"),
    *(column for part in PART_SIZES for column in size_columns(part.stem, part.what, nullable=True)),
    *change_columns("size", "total size", BigInteger),
    *(column for part in PART_SIZES for column in change_columns(part.stem, part.what, BigInteger)),
    *further_columns("size", "last_size_mb", "total size"),
    *sum_columns("size_mb", "total size"),
    *(column for part in PART_SIZES for column in sum_columns(f"{part.stem}_mb", part.what, counted=True)),
    *verdict_columns(),
    PrimaryKeyConstraint(
        "period_type", "period_start", "instance_id", "database_name", name="uq_database_size_aggregation"
    ),
    _sorted_index("database_size_aggregations", "change", "size_change_mb"),
    _sorted_index("database_size_aggregations", "size", "avg_size_mb"),
    _impossible_index("database_size_aggregations", "size_mb", *(f"{part.stem}_mb" for part in PART_SIZES)),
    postgresql_partition_by=BY_WINDOW,
    comment="Size, change, growth and trend of each database in each window.",
)

instance_size_aggregations = Table(
    "instance_size_aggregations",
    metadata,
    row_number(),
    instance_id(),
    *window_columns(),
    megabytes("total_size_mb", "Mean daily total of the server, rounded down"),
    megabytes("avg_size_mb", "Mean size of one of its databases, rounded down; 0 without databases"),
    megabytes("max_size_mb", "Largest daily total"),
    megabytes("min_size_mb", "Smallest daily total"),
    Column("data_count", Integer, nullable=False, comment="Days with samples in the window"),
    Column("database_count", Integer, nullable=False, comment="Mean number of databases, rounded down"),
    Column("avg_database_count", PERCENT, comment="Mean number of databases, two decimals"),
    Column("max_database_count", Integer, comment="Largest daily number of databases"),
    Column("min_database_count", Integer, comment="Smallest daily number of databases"),
    *change_columns("total_size", "daily total", BigInteger),
    *change_columns("database_count", "number of databases", Integer, unit=""),
    *further_columns("total_size", "last_total_size_mb", "daily total"),
    *sum_columns("total_size_mb", "daily total"),
    *sum_columns("database_count", "daily number of databases"),
    *verdict_columns(),
    PrimaryKeyConstraint("period_type", "period_start", "instance_id", name="uq_instance_size_aggregation"),
    _impossible_index("instance_size_aggregations", "size_mb", "database_count"),
    postgresql_partition_by=BY_WINDOW,
    comment="Total size, number of databases, change, growth and trend of each server in each window.",
)

group_size_aggregations = Table(
    "group_size_aggregations",
    metadata,
    Column(
        "label_key",
        String(LONGEST_KEY),
        nullable=False,
        comment="Key of a label; engine; (fleet): all servers; (total): by whether servers have a total",
    ),
    Column(
        "label_value",
        String(LONGEST_VALUE),
        nullable=False,
        comment="Value of the label, or engine; empty: what has no such label; of (total): measured or derived",
    ),
    *window_columns(),
    *size_columns("size", "size of the group per day", nullable=False),
    Column("data_count", Integer, nullable=False, comment="Days on which something belonged to the group"),
    *count_columns("server_count", "servers with a part in the group"),
    *count_columns("database_count", "databases"),
    *change_columns("size", "size of the group per day", BigInteger),
    *change_columns("server_count", "number of servers", BigInteger, unit=""),
    *change_columns("database_count", "number of databases", BigInteger, unit=""),
    *further_columns("size", "last_size_mb", "size of the group"),
    *sum_columns("size_mb", "daily size"),
    *sum_columns("server_count", "daily number of servers"),
    *sum_columns("database_count", "daily number of databases"),
    *verdict_columns(),
    PrimaryKeyConstraint(
        "period_type", "period_start", "label_key", "label_value", name="group_size_aggregations_pkey"
    ),
    postgresql_partition_by=BY_WINDOW,
    comment="Size, change, growth and trend of each group in each window: the fleet by engine and by each label.",
)

SAMPLES = (database_size_stats, instance_size_stats)
SERVER_AGGREGATES = (database_size_aggregations, instance_size_aggregations)
AGGREGATES = (*SERVER_AGGREGATES, group_size_aggregations)
CAPACITY_TABLES = (*SAMPLES, *SERVER_AGGREGATES)
"""The tables with rows of each server, from samples to aggregates."""

changes = Table(
    "capacity_changes",
    metadata,
    Column(
        "change_id", BigInteger, Identity(always=True), nullable=False, comment="Names the row where it was written"
    ),
    Column("table_name", String(63), nullable=False, comment="Table that was written to"),
    Column(
        "kind",
        String(20),
        nullable=False,
        comment="samples: added or corrected; deleted: samples deleted; written: aggregates, by another than a run; "
        "server: put into service; groups: labels, engines or which servers count changed",
    ),
    Column("days", DATERANGE, comment="Days that it touches; null: those on which the server has samples"),
    Column("instance_id", Integer, comment="Server that was put into service"),
    timestamp("changed_at", "When its transaction began"),
    comment="Changes that nobody has read yet, in no order; emptied by itself.",
    # A publication of all tables refuses to delete rows without an identity, and a key could refuse to add one.
    listeners=[("after_create", DDL("ALTER TABLE %(fullname)s REPLICA IDENTITY FULL"))],  # type: ignore[no-untyped-call]  # as SQLAlchemy leaves it
)

computed_windows = Table(
    "capacity_computed_windows",
    metadata,
    Column("period_type", String(20), primary_key=True, comment="Name of the period, such as daily or monthly"),
    Column("level", String(20), primary_key=True, comment="database, instance or group"),
    Column("period_start", Date, primary_key=True, comment="First day of the window"),
    Column("period_end", Date, nullable=False, comment="Last day of the window, included"),
    Column(
        "reads_from", Date, nullable=False, comment="First day of the window before, with which its change compares"
    ),
    Column("year_before_start", Date, comment="First day of the window a year before; null: not compared with it"),
    Column("year_before_end", Date, comment="Last day of that window, included"),
    Column("wanted", BigInteger, nullable=False, server_default=text("0"), comment="How often a change has touched it"),
    Column(
        "computed",
        BigInteger,
        comment="What `wanted` was before its samples were read; null: begun and never finished",
    ),
    Column(
        "changed",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="What `wanted` became when its own days changed last, not only those that it compares with",
    ),
    timestamp("oldest_change", "When the first change of samples began that it has not followed", nullable=True),
    timestamp("newest_change", "When the last one began; null: no run is requested", nullable=True),
    Column("failed_instances", Integer, nullable=False, server_default=text("0"), comment="Servers that failed in it"),
    timestamp("computed_at", "When it was last computed over samples that were new to it"),
    Column("fingerprint", String(64), comment="What computed it, for which servers; null: not known"),
    Column("processed_instances", Integer, comment="Servers with samples in it"),
    Column("total_records", BigInteger, comment="Rows its samples supported"),
    Column("protected_records", BigInteger, comment="Those of them that were kept because samples are gone"),
    Column("unsampled_records", BigInteger, comment="Rows kept beside them although no sample of them is left"),
    comment="Windows that were computed for all servers; a window is up to date where nothing touched it since.",
)

collection_targets = Table(
    "capacity_collection_targets",
    metadata,
    instance_key(),
    Column("username", String(255), comment="Login; null: the driver's own choice"),
    Column("password_from", Text, comment="Where the password is: env:NAME, file:PATH, secret:NAME; null: none needed"),
    Column("connect_database", String(255), comment="Database or service to connect to; null: the engine's usual one"),
    Column("tls", String(20), nullable=False, comment="off, require, verify-ca or verify-full"),
    Column("tls_ca", Text, comment="File of the certificate authority"),
    Column("tls_certificate", Text, comment="File of the client's certificate"),
    Column("tls_key", Text, comment="File of the client's key"),
    Column("server_public_key", Text, comment="File of the RSA public key of a MySQL server, used without TLS"),
    Column("sizing", String(20), nullable=False, comment="files: exact; statistics: cheaper, from the catalogue"),
    timestamp("created_at", "When it was registered for collection"),
    timestamp("updated_at", "When this was last changed"),
    comment="How to reach the servers that are measured here. Holds no secret, only where each one lies.",
)

collection_attempts = Table(
    "capacity_collection_attempts",
    metadata,
    Column("collected_date", Date, primary_key=True, comment="Day that was measured"),
    instance_key(),
    Column("status", String(20), nullable=False, comment="collected or failed"),
    Column("failure", String(20), comment="Kind of the failure; null: none"),
    Column("reason", Text, comment="Why it failed, and what to do; null: it did not"),
    Column("attempts", Integer, nullable=False, server_default=text("1"), comment="Attempts on this day"),
    Column("connect_seconds", Double, comment="How long connecting took; null: never connected"),
    Column("measure_seconds", Double, comment="How long measuring took; null: never measured"),
    timestamp("attempted_at", "When the last attempt ended"),
    comment="What became of each server on each day of the last months: collected, or failed and why.",
)

capacity_settings = Table(
    "capacity_settings",
    metadata,
    Column("name", String(63), primary_key=True, comment="timezone: in which days of the samples begin and end"),
    Column("value", Text, nullable=False, comment="What holds for this database"),
    timestamp("set_at", "When it was set"),
    comment="What must stay the same as long as the database holds figures.",
)

imports = Table(
    "capacity_imports",
    metadata,
    Column("fingerprint", String(64), primary_key=True, comment="Of the source and of how it is read"),
    Column("source", Text, nullable=False, comment="File or database it came from, without any password"),
    Column("target", String(63), nullable=False, comment="Table it was read into"),
    Column("position", BigInteger, nullable=False, comment="Last row that was read and committed"),
    Column("counts", JSON, nullable=False, comment="What became of them"),
    timestamp("started_at", "When it was begun"),
    timestamp("finished_at", "When its last row was read; null: interrupted", nullable=True),
    comment="Imports of history, and how far each one came.",
)


BY_FORECAST_DAY = "RANGE (as_of)"

volume_size_stats = Table(
    "volume_size_stats",
    metadata,
    collected_date(),
    instance_id(),
    Column("volume_name", String(255), nullable=False, comment="File system, disk group or pool, as the server says"),
    megabytes("total_mb", "How much it holds"),
    megabytes("free_mb", "How much of that the server can still use"),
    Column("used_mb", BigInteger, comment="Used space, MiB; null: all that is not free"),
    limit_source(),
    timestamp("collected_at", "When the sample was taken"),
    PrimaryKeyConstraint("collected_date", "instance_id", "volume_name", name="volume_size_stats_pkey"),
    postgresql_partition_by=BY_DAY,
    comment="Raw samples: one row per volume of a server and day.",
)

database_limit_stats = Table(
    "database_limit_stats",
    metadata,
    collected_date(),
    instance_id(),
    database_name(),
    Column("limit_mb", BigInteger, comment="Its own ceiling, MiB; null: unlimited, or unknown"),
    Column("is_unlimited", Boolean, nullable=False, comment="Whether it has no ceiling of its own"),
    Column("volumes", ARRAY(String(255)), comment="Volumes on which it grows; null: unknown"),
    limit_source(),
    timestamp("collected_at", "When the sample was taken"),
    PrimaryKeyConstraint("collected_date", "instance_id", "database_name", name="database_limit_stats_pkey"),
    postgresql_partition_by=BY_DAY,
    comment="Raw samples: how much each database may hold, one row per database and day.",
)

capacity_limits = Table(
    "capacity_limits",
    metadata,
    instance_key(),
    Column("database_name", String(255), primary_key=True, comment="Database; empty: the server as a whole"),
    Column("limit_mb", BigInteger, comment="How much it can hold, MiB; null: unlimited"),
    Column("source", String(20), nullable=False, comment="Where the limit comes from: declared"),
    Column("note", Text, comment="What whoever declared it wrote; null: nothing"),
    timestamp("declared_at", "Since when it holds"),
    comment="How much servers and databases can hold, as far as that is known.",
)

capacity_steps = Table(
    "capacity_steps",
    metadata,
    instance_key(),
    Column("database_name", String(255), primary_key=True, comment="Database; empty: all databases of the server"),
    Column("step_date", Date, primary_key=True, comment="First day with the new size"),
    Column("note", Text, nullable=False, comment="What happened"),
    timestamp("declared_at", "When it was declared"),
    comment="Changes of size that will not repeat: no forecast takes them for a trend.",
)

capacity_runways = Table(
    "capacity_runways",
    metadata,
    Column("as_of", Date, nullable=False, comment="Day up to which samples were looked at"),
    instance_id(),
    Column("subject", String(20), nullable=False, comment="server, database or volume"),
    Column("name", String(255), nullable=False, comment="Database or volume; empty: the server as a whole"),
    Column("state", String(20), nullable=False, comment="forecast, or why there is no day on which it is full"),
    Column("last_day", Date, nullable=False, comment="Newest measured day, from which days and horizons count"),
    megabytes("size_mb", "Size on that day"),
    Column("limit_mb", BigInteger, comment="Binding limit, MiB; null: unlimited, or unknown"),
    Column("binds", String(20), comment="Whose limit that is; null: none is known"),
    Column("limit_source", String(20), comment="Where it comes from: measured, declared or imported"),
    Column("change_mb_per_day", Double, nullable=False, comment="Change that is forecast, MiB per day"),
    Column("recent_mb_per_day", Double, comment="Change over the last 30 days, MiB per day; null: not measured then"),
    Column("history_days", Integer, nullable=False, comment="Days of sizes that the forecast looked at"),
    *(
        Column(
            f"{end}_day", Date, comment=f"Full by then with a probability of {share} percent; null: not within a year"
        )
        for end, share in (("early", 10), ("middle", 50), ("late", 90))
    ),
    *(column for days in HORIZONS_DAYS for column in forecast_columns(days)),
    timestamp("issued_at", "When it was computed"),
    Column("in_time", Boolean, nullable=False, comment="Whether that was on its day or the next one"),
    Column("volumes", ARRAY(String(255)), comment="Volumes on which a database grows; null: unknown"),
    PrimaryKeyConstraint("as_of", "instance_id", "subject", "name", name="capacity_runways_pkey"),
    # What fills first is asked on every page.
    Index("ix_capacity_runways_middle", "as_of", "middle_day"),
    postgresql_partition_by=BY_FORECAST_DAY,
    comment="Every forecast that was issued, and once its horizon has passed, the size that was measured.",
)


ALWAYS = date(1, 1, 1)
"""As first day: since before anything was measured."""

PRICE = Numeric(20, 6)
# Twelve decimals: the cents of a million lines are not moved by how each was rounded.
EXACT = Numeric(30, 12)
CURRENCY = String(3)


def _valid_from(what: str) -> Column[object]:
    return Column("valid_from", Date, primary_key=True, comment=f"First day of the {what}; 0001-01-01: always")


def _key_of_group(comment: str) -> Column[object]:
    return Column("key", String(LONGEST_KEY), primary_key=True, comment=comment)


capacity_labels = Table(
    "capacity_labels",
    metadata,
    instance_key(),
    Column(
        "database_pattern",
        String(255),
        primary_key=True,
        comment="Database, or a pattern with * and ?; empty: the server, and what has no label of its own on it",
    ),
    _key_of_group("Key of the label, such as team"),
    _valid_from("label"),
    Column("value", String(LONGEST_VALUE), comment="Value from that day on; null: none from that day on"),
    timestamp("declared_at", "When it was declared"),
    comment="Labels of servers and databases: who owns them, what they are for.",
)


capacity_prices = Table(
    "capacity_prices",
    metadata,
    Column("engine", String(50), primary_key=True, comment="Engine that it holds for; empty: every engine"),
    _key_of_group("Key of the label that it holds for; empty: whatever the labels are"),
    Column("value", String(LONGEST_VALUE), primary_key=True, comment="Value of that label; empty: as above"),
    _valid_from("price"),
    Column("price", PRICE, comment="Currency per GiB and month; null: no price from that day on"),
    Column("currency", CURRENCY, nullable=False, comment="ISO 4217 code"),
    timestamp("declared_at", "When it was declared"),
    comment="What a GiB costs per month, by engine and label.",
)

capacity_bills = Table(
    "capacity_bills",
    metadata,
    Column("month", Date, primary_key=True, comment="First day of the month"),
    Column("issue", Integer, primary_key=True, autoincrement=False, comment="1: as first issued; more: restated"),
    timestamp("issued_at", "When it was computed"),
    Column("is_final", Boolean, nullable=False, comment="Whether the month was over; false: replaced by the next one"),
    Column("currency", CURRENCY, comment="ISO 4217 code; null: nothing had a price"),
    Column("amount", EXACT, nullable=False, comment="Sum of its lines, not rounded"),
    Column("gib_months", EXACT, nullable=False, comment="Sum of what was billed, GiB times months"),
    Column("unpriced_gib_months", EXACT, nullable=False, comment="The part without a price, not billed"),
    Column("measured_days", BigInteger, nullable=False, comment="Days of servers on which they were measured"),
    Column("billed_days", BigInteger, nullable=False, comment="Days of servers that were billed"),
    Column("unbilled_servers", Integer, nullable=False, comment="Servers with totals and no sizes of databases"),
    Column("label_keys", JSON, nullable=False, comment="Keys of labels by which it can be split"),
    Column("reason", Text, comment="Why it differs from the issue before; null: it is the first"),
    Column("declared_state", Text, comment="Numbers and newest times of labels and prices that were looked at last"),
    timestamp("samples_dropped_at", "When dropped samples of the month were detected; null: none", nullable=True),
    Column("clock_doubt", Text, comment="Why the bill is not final although the month seems over; null: no doubt"),
    Column("billed_until", Date, comment="Last day of the month with samples; null: a former version computed it"),
    comment="Bills per month, each issue of them.",
)

capacity_bill_lines = Table(
    "capacity_bill_lines",
    metadata,
    Column("month", Date, primary_key=True, comment="First day of the month"),
    Column("issue", Integer, primary_key=True, autoincrement=False, comment="Issue of the bill"),
    Column("line", Integer, primary_key=True, autoincrement=False, comment="Number of the line"),
    Column("instance_id", Integer, nullable=False, comment="Server, instances.id"),
    Column("server", String(255), nullable=False, comment="Name of the server when it was billed"),
    Column("engine", String(50), nullable=False, comment="Engine of the server"),
    Column("database_name", String(255), nullable=False, comment="Database, exactly as the server spells it"),
    Column("labels", JSONB, nullable=False, comment="Labels that it had on these days"),
    Column("days", Integer, nullable=False, comment="Days on which it was measured with these labels and this price"),
    Column("gib_months", EXACT, nullable=False, comment="What is billed, GiB times months"),
    Column("price", PRICE, comment="Currency per GiB and month; null: none is known"),
    Column("amount", EXACT, comment="Price times GiB times months, not rounded; null: no price is known"),
    comment="Lines of bills: one per database, and per set of labels and price that it had in the month.",
)

capacity_bill_groups = Table(
    "capacity_bill_groups",
    metadata,
    Column("month", Date, primary_key=True, comment="First day of the month"),
    Column("issue", Integer, primary_key=True, autoincrement=False, comment="Issue of the bill"),
    Column("grouped_by", String(255), primary_key=True, comment="engine, server, or a label key"),
    Column("group_name", String(255), primary_key=True, comment="Engine, server or value; empty: without such a label"),
    Column("databases", Integer, nullable=False, comment="Databases; 0: it had some in the month before only"),
    Column("servers", Integer, nullable=False, comment="Servers of these databases"),
    Column("gib_months", EXACT, nullable=False, comment="Sum of what was billed, GiB times months"),
    Column("unpriced_gib_months", EXACT, nullable=False, comment="The part without a price, not billed"),
    Column("lowest_price", PRICE, comment="Lowest price of its lines, per GiB and month; null: none had one"),
    Column("highest_price", PRICE, comment="Highest price of its lines, per GiB and month; null: none had one"),
    Column("amount", EXACT, comment="Sum of its lines, not rounded; null: none had a price"),
    Column("before_issue", Integer, comment="Issue of the month before that it is compared with; null: with none"),
    Column("amount_before", EXACT, comment="Amount of the month before; null: none had a price, or not compared"),
    Column("change_growth", EXACT, comment="Change of the amount by growth; null: not compared"),
    Column("change_price", EXACT, comment="Change of the amount by prices; null: not compared"),
    Column("change_moves", EXACT, comment="Change of the amount by databases from and to other groups; null: likewise"),
    comment="Bills by group: sums of the lines for every grouping, and the change against the month before.",
)

capacity_digests = Table(
    "capacity_digests",
    metadata,
    Column("week", Date, primary_key=True, comment="First day of the week"),
    Column("receiver", String(255), primary_key=True, comment="Name of the receiver in CAPACITY_DIGEST_RECEIVERS"),
    Column("channel", String(20), primary_key=True, comment="mail or webhook"),
    timestamp("sent_at", "When it was handed over"),
    comment="Who got the digest of which week.",
)


capacity_locks = Table(
    "capacity_locks",
    metadata,
    Column("name", String(63), primary_key=True, comment="Name of the lock: a period, samples, or a kind of work"),
    comment="Locks: the holder keeps the row locked until the end of its transaction.",
)


def wait_for_lock(connection: Connection, name: str) -> None:
    """Hold a lock until the transaction of `connection` ends; waits as long as its `lock_timeout` allows."""
    connection.execute(text(_LOCK), {"name": name})


def try_lock(connection: Connection, name: str) -> bool:
    """Hold a lock until the transaction of `connection` ends; return False where another session holds it."""
    connection.execute(text(ENTER), {"name": name})
    return connection.execute(text(TAKE), {"name": name}).first() is not None


# For a session that is idle in its transaction while the work goes on elsewhere.
NO_TIME_LIMIT = """
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')
"""
# Insert the row only if it is missing: inserting an existing row waits for the session that updated it.
ENTER = """
INSERT INTO capacity_locks (name)
SELECT CAST(:name AS text) WHERE CAST(:name AS text) NOT IN (SELECT name FROM capacity_locks) ON CONFLICT DO NOTHING
"""
TAKE = "SELECT name FROM capacity_locks WHERE name = :name FOR UPDATE SKIP LOCKED"
_LOCK = """
INSERT INTO capacity_locks (name) VALUES (:name) ON CONFLICT (name) DO UPDATE SET name = excluded.name
"""


def is_active() -> ColumnElement[bool]:
    """Return the condition on `instances`."""
    return and_(instances.c.is_active, instances.c.deleted_at.is_(None))


SERVERS_IN_SERVICE = "SELECT * FROM instances WHERE is_active AND deleted_at IS NULL"
"""The servers in service, as a part of other statements."""
