"""The capacity tables: the one source of truth for names, types and what each column means.

Those of limits and forecasts are in `limit_tables`; all of them together, in `every_table`.

Names and columns are those of the legacy application, so an existing database keeps working. Column
comments are what the Dagster UI and the reference show. How an old database reaches this shape is the
business of `migrations`.

Samples, aggregates and forecasts are partitioned by time, so that old rows leave as whole partitions; which partitions
there are is the business of `partitions`. A primary key is that of the rows and comes first in time: it serves both
their identity and every look at some days or windows, so no other index is needed for these. It bears the name that the
unique key of these columns has in the legacy application, whose own migrations call it so.

No foreign keys: servers are registered elsewhere, and the history of a server outlives its registration.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import DATERANGE

from capacity_assets.periods import PERIODS
from capacity_assets.storage.columns import (
    PERCENT,
    change_columns,
    collected_date,
    count_columns,
    database_name,
    exact_bytes,
    further_columns,
    instance_id,
    instance_key,
    megabytes,
    row_number,
    size_columns,
    sum_columns,
    timestamp,
    verdict_columns,
    window_columns,
)
from capacity_assets.storage.size_metrics import PART_SIZES
from capacity_assets.units import LARGEST_MB

table_metadata = MetaData()


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
    """Return the index that keeps a list sorted: what grew most, and what is largest, is asked on every page.

    Not of days, which are five sixths of the rows: sorting one takes less than writing it to two more indexes.
    """
    # In the form PostgreSQL displays, as above.
    longer = [f"(period_type)::text <> '{period.name}'::text" for period in PERIODS.values() if period.days == 1]
    condition = text(" AND ".join(longer))
    return Index(f"ix_{table}_{name}", "period_type", "period_start", column, postgresql_where=condition)


instances = Table(
    "instances",
    table_metadata,
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
    table_metadata,
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
    table_metadata,
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
    table_metadata,
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
    table_metadata,
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
    table_metadata,
    Column(
        "label_key",
        String(63),
        nullable=False,
        comment="Key of a label; engine; (fleet): all servers; (total): by whether servers have a total",
    ),
    Column(
        "label_value",
        String(100),
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

changes = Table(
    "capacity_changes",
    table_metadata,
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
    table_metadata,
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
    table_metadata,
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
    table_metadata,
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
    table_metadata,
    Column("name", String(63), primary_key=True, comment="timezone: in which days of the samples begin and end"),
    Column("value", Text, nullable=False, comment="What holds for this database"),
    timestamp("set_at", "When it was set"),
    comment="What must stay the same as long as the database holds figures.",
)

imports = Table(
    "capacity_imports",
    table_metadata,
    Column("fingerprint", String(64), primary_key=True, comment="Of the source and of how it is read"),
    Column("source", Text, nullable=False, comment="File or database it came from, without any password"),
    Column("target", String(63), nullable=False, comment="Table it was read into"),
    Column("position", BigInteger, nullable=False, comment="Last row that was read and committed"),
    Column("counts", JSON, nullable=False, comment="What became of them"),
    timestamp("started_at", "When it was begun"),
    timestamp("finished_at", "When its last row was read; null: interrupted", nullable=True),
    comment="Imports of history, and how far each one came.",
)
