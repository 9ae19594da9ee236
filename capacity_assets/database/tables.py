"""The capacity tables: names, types, and what each column means.

Tables and columns have the names of the legacy application, so an existing database keeps working. The Dagster UI and
the reference show the comments of columns. `adoption` and `schema` bring an older database to these definitions.

Samples, aggregates and forecasts are partitioned by time, so that old rows are dropped as whole partitions
(`partitions`). A primary key begins with the day or window: it identifies rows and serves every query for some days or
windows. If the legacy application has a unique key of these columns, the primary key has its name.

There are no foreign keys: servers are registered elsewhere, and the history of a server outlives its registration.
Measured limits are samples like sizes, one row per day. Declarations (limits, steps, labels, prices) are dated, or
apply until the next declaration. Figures, and sizes of databases, are defined in `measures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from typing import Any

from sqlalchemy import (
    ARRAY,
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
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
from sqlalchemy.dialects.postgresql import DATEMULTIRANGE, DATERANGE, JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

from capacity_assets.base.declarations import LONGEST_DECLARER, LONGEST_KEY, LONGEST_VALUE
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import LARGEST_MB
from capacity_assets.database.measures import (
    PART_KINDS,
    SIZE_MEASURES,
    Measure,
    count_measure,
    figure_columns,
    size_measure,
)

_Type = TypeEngine[Any] | type[TypeEngine[Any]]


def optional(name: str, kind: _Type, comment: str) -> Column[object]:
    """Return a column that may be null: unknown is not zero."""
    return Column(name, kind, comment=comment)


def required(name: str, kind: _Type, comment: str, **options: Any) -> Column[object]:
    """Return a column that is never null."""
    return Column(name, kind, nullable=False, comment=comment, **options)


def key(name: str, kind: _Type, comment: str) -> Column[object]:
    """Return a column of the primary key."""
    return Column(name, kind, primary_key=True, autoincrement=False, comment=comment)


def timestamp(name: str, comment: str, *, nullable: bool = False) -> Column[object]:
    """Return a column with a time, by default that of the insert."""
    default = None if nullable else func.now()
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=default, comment=comment)


def megabytes(name: str, comment: str, *, nullable: bool = False) -> Column[object]:
    """Return a column with a size in MiB."""
    note = "; null: not measured" if nullable else ""
    return Column(name, BigInteger, nullable=nullable, comment=f"{comment}, MiB{note}")


def exact_bytes(stem: str) -> Column[object]:
    """Return the column with the exact bytes of a size."""
    return optional(f"{stem}_bytes", BigInteger, f"Exact size from which {stem}_mb was rounded, bytes; null: not known")


def window_columns() -> list[Column[object]]:
    """Return period and days of a window."""
    return [
        required("period_type", String(20), "Name of the period, such as daily or monthly"),
        required("period_start", Date, "First day of the window"),
        required("period_end", Date, "Last day of the window, included"),
    ]


def times_of_figures() -> list[Column[object]]:
    """Return the times of a row of aggregates."""
    return [
        timestamp("calculated_at", "When the figures last changed"),
        timestamp("created_at", "When the row was first written"),
    ]


class _SequenceNumber(BigInteger):
    """An integer from a sequence of the table, also if it is not part of the primary key."""


@compiles(_SequenceNumber, "postgresql")
def _sequence_number(
    _type: _SequenceNumber, _compiler: object, *, type_expression: object = None, **_options: object
) -> str:
    """Return the type of a new column, which creates the sequence, or the type of its values."""
    return "BIGINT" if type_expression is None else "BIGSERIAL"


row_number = partial(required, "id", _SequenceNumber, "Row number; stays over recomputations", autoincrement=True)
instance_id = partial(required, "instance_id", Integer, "Server, instances.id")
instance_key = partial(key, "instance_id", Integer, "Server, instances.id")
collected_date = partial(required, "collected_date", Date, "Day of the sample in the configured time zone")
database_name = partial(required, "database_name", String(255), "Database, exactly as the server spells it")
limit_source = partial(required, "source", String(20), "Where it comes from: measured or imported")
declared_by = partial(
    optional,
    "declared_by",
    String(LONGEST_DECLARER),
    "Who declared it: --by, CAPACITY_DECLARED_BY or the login; null: not known",
)


def forecast_columns(days: int) -> list[Column[object]]:
    """Return the columns of the forecast for a number of days, and of the size that was measured then."""
    return [
        optional(f"forecast_{days}_mb", BigInteger, f"Size that is forecast {days} days later, MiB; null: none"),
        optional(f"lower_{days}_mb", BigInteger, "Lower end of the band of 80 percent, MiB; null: no band"),
        optional(f"upper_{days}_mb", BigInteger, "Upper end of the band of 80 percent, MiB; null: no band"),
        optional(f"probability_{days}", Double, f"Probability of being full within {days} days; null: unknown"),
        optional(f"actual_{days}_mb", BigInteger, f"Size measured {days} days later, MiB; null: not measured yet"),
    ]


SCHEMA_REVISION = "0029"
"""The number of these definitions. Raise it with a column that programs use, so that they require `capacity init`
first.

A step that a comparison of tables cannot do is in `schema.STEPS`, by the revision.
"""

metadata = MetaData()

BY_DAY = "RANGE (collected_date)"
BY_WINDOW = "RANGE (period_type, period_start)"


def table(name: str, comment: str, *items: SchemaItem, **options: Any) -> Table:
    """Define a table of the schema."""
    return Table(name, metadata, *items, comment=comment, **options)


def impossible_values(measures: Sequence[Measure]) -> str:
    """Return the condition of rows with an impossible value, in the form that PostgreSQL displays."""
    below = [f"{measure.minimum} < 0" for measure in measures]
    above = [f"{measure.maximum} > '{LARGEST_MB}'::bigint" for measure in measures if measure.source.endswith("_mb")]
    return " OR ".join([*below, *above])


def _impossible_index(table: str, measures: Sequence[Measure]) -> Index:
    """Return the index of rows with an impossible value, for the check of the whole history; it is normally empty."""
    condition = text(impossible_values(measures))
    return Index(f"ix_{table}_impossible", "period_type", "period_start", postgresql_where=condition)


def _sorted_index(table: str, name: str, column: str) -> Index:
    """Return the index of a sorted list: every page lists the largest, and those that grew most.

    It excludes days, which are five sixths of the rows: sorting a day costs less than writing it to two more indexes.
    """
    # In the form PostgreSQL displays, as above.
    longer = [f"(period_type)::text <> '{period.name}'::text" for period in PERIODS.values() if period.days == 1]
    condition = text(" AND ".join(longer))
    return Index(f"ix_{table}_{name}", "period_type", "period_start", column, postgresql_where=condition)


instances = table(
    "instances",
    "Registered database servers.",
    Column("id", Integer, primary_key=True, autoincrement=True, comment="Number of the server"),
    required("name", String(255), "Name of the server", unique=True),
    required("db_type", String(50), "Engine: mysql, postgresql, sqlserver, oracle, ..."),
    required("host", String(255), "Host name or address"),
    required("port", Integer, "TCP port"),
    required("is_active", Boolean, "Whether it is aggregated", server_default=text("true")),
    timestamp("deleted_at", "When it was taken out of service; null: in service", nullable=True),
    optional(
        "counted_by",
        Integer,
        "Server that is counted in its place: its primary, or the one with the shared storage; null: none",
    ),
)

database_size_stats = table(
    "database_size_stats",
    "Raw samples: one row per database and day.",
    row_number(),
    instance_id(),
    database_name(),
    megabytes("size_mb", "Total size of the database"),
    *(megabytes(measure.source, f"Size of {measure.files}", nullable=True) for measure in SIZE_MEASURES),
    *(exact_bytes(name) for name in ("size", *(measure.stem for measure in SIZE_MEASURES))),
    collected_date(),
    timestamp("collected_at", "When the sample was taken"),
    timestamp("created_at", "When the row was first written"),
    timestamp("updated_at", "When the row was last changed"),
    PrimaryKeyConstraint("collected_date", "instance_id", "database_name", name="uq_daily_database_size"),
    postgresql_partition_by=BY_DAY,
)

instance_size_stats = table(
    "instance_size_stats",
    "Raw samples: one live row per server and day.",
    row_number(),
    instance_id(),
    megabytes("total_size_mb", "Total size of all databases of the server"),
    exact_bytes("total_size"),
    required("database_count", Integer, "Number of databases on the server"),
    collected_date(),
    timestamp("collected_at", "When the sample was taken"),
    required("is_deleted", Boolean, "Whether the sample is void", server_default=text("false")),
    timestamp("deleted_at", "When the sample was declared void", nullable=True),
    timestamp("created_at", "When the row was first written"),
    timestamp("updated_at", "When the row was last changed"),
    # A day may have void samples in addition to the valid one, so only the row number distinguishes them.
    PrimaryKeyConstraint("collected_date", "instance_id", "id", name="instance_size_stats_pkey"),
    Index(
        "uq_instance_size_stats_instance_date",
        "instance_id",
        "collected_date",
        unique=True,
        postgresql_where=text("is_deleted = false"),
    ),
    postgresql_partition_by=BY_DAY,
)

DATABASE_MEASURES = (size_measure("size", "total size", last="last_size_mb"), *SIZE_MEASURES)
database_size_aggregations = table(
    "database_size_aggregations",
    "Size, change, growth and trend of each database in each window.",
    row_number(),
    instance_id(),
    database_name(),
    *window_columns(),
    *figure_columns(DATABASE_MEASURES, "Samples in the window"),
    *times_of_figures(),
    PrimaryKeyConstraint(
        "period_type", "period_start", "instance_id", "database_name", name="uq_database_size_aggregation"
    ),
    _sorted_index("database_size_aggregations", "change", "size_change_mb"),
    _sorted_index("database_size_aggregations", "size", "avg_size_mb"),
    _impossible_index("database_size_aggregations", DATABASE_MEASURES),
    postgresql_partition_by=BY_WINDOW,
)

INSTANCE_MEASURES = (
    size_measure(
        "total_size",
        "daily total",
        last="last_total_size_mb",
        average="total_size_mb",
        maximum="max_size_mb",
        minimum="min_size_mb",
    ),
    count_measure(
        "database_count",
        "daily number of databases",
        average_two_decimals="avg_database_count",
        type=Integer,
        optional=("max_database_count", "min_database_count"),
    ),
)
instance_size_aggregations = table(
    "instance_size_aggregations",
    "Total size, number of databases, change, growth and trend of each server in each window.",
    row_number(),
    instance_id(),
    *window_columns(),
    *figure_columns(
        INSTANCE_MEASURES,
        "Days with samples in the window",
        megabytes("avg_size_mb", "Mean size of one of its databases, rounded down; 0 without databases"),
    ),
    *times_of_figures(),
    PrimaryKeyConstraint("period_type", "period_start", "instance_id", name="uq_instance_size_aggregation"),
    _impossible_index("instance_size_aggregations", INSTANCE_MEASURES),
    postgresql_partition_by=BY_WINDOW,
)

GROUP_MEASURES = (
    size_measure("size", "daily size of the group", last="last_size_mb"),
    count_measure("server_count", "daily number of servers with a part in the group"),
    count_measure("database_count", "daily number of databases"),
)
group_size_aggregations = table(
    "group_size_aggregations",
    "Size, change, growth and trend of each group in each window: the fleet by engine and by each label.",
    required(
        "label_key",
        String(LONGEST_KEY),
        "Key of a label; engine; (fleet): all servers; (total): how a server counts",
    ),
    required(
        "label_value",
        String(LONGEST_VALUE),
        "Value of the label, or engine; empty: subjects without the label; of (total): measured, derived or left out N",
    ),
    *window_columns(),
    *figure_columns(GROUP_MEASURES, "Days on which something belonged to the group"),
    *times_of_figures(),
    PrimaryKeyConstraint(
        "period_type", "period_start", "label_key", "label_value", name="group_size_aggregations_pkey"
    ),
    postgresql_partition_by=BY_WINDOW,
)

SAMPLES = (database_size_stats, instance_size_stats)
SERVER_AGGREGATES = (database_size_aggregations, instance_size_aggregations)
AGGREGATES = (*SERVER_AGGREGATES, group_size_aggregations)
CAPACITY_TABLES = (*SAMPLES, *SERVER_AGGREGATES)
"""The tables with rows of each server, from samples to aggregates."""

changes = table(
    "capacity_changes",
    "Changes that were not read yet, in no order. Rows are deleted as they are read.",
    Column("change_id", BigInteger, Identity(always=True), nullable=False, comment="Number of the row on its node"),
    required("table_name", String(63), "Table that was written to"),
    required(
        "kind",
        String(20),
        "samples: added or corrected; deleted: samples deleted; written: aggregates, outside of a run; server: put "
        "into service; groups: labels, engines or which servers count changed",
    ),
    optional("days", DATERANGE, "Days that it affects; null: those on which the server has samples"),
    optional("instance_id", Integer, "Server that was put into service"),
    timestamp("changed_at", "When its transaction began"),
    # A publication of all tables refuses to delete rows without an identity, and a key could refuse to add one.
    listeners=[("after_create", DDL("ALTER TABLE %(fullname)s REPLICA IDENTITY FULL"))],  # type: ignore[no-untyped-call]  # as SQLAlchemy leaves it
)

computed_windows = table(
    "capacity_computed_windows",
    "Windows that were computed for all servers. A window is up to date if no change has affected it since.",
    key("period_type", String(20), "Name of the period, such as daily or monthly"),
    key("level", String(20), "database, instance or group"),
    key("period_start", Date, "First day of the window"),
    required("period_end", Date, "Last day of the window, included"),
    required("reads_from", Date, "First day of the previous window, with which its change compares"),
    optional("year_before_start", Date, "First day of the window a year before; null: not compared with it"),
    optional("year_before_end", Date, "Last day of that window, included"),
    required("wanted", BigInteger, "How many changes have affected it", server_default=text("0")),
    optional("computed", BigInteger, "`wanted` as it was before its samples were read; null: begun and never finished"),
    required(
        "changed",
        BigInteger,
        "`wanted` as of the last change of its own days, not only of days that it is compared with",
        server_default=text("0"),
    ),
    timestamp("oldest_change", "When the first change of samples began that it does not include yet", nullable=True),
    timestamp("newest_change", "When the last of these changes began; null: no run is requested", nullable=True),
    required("failed_instances", Integer, "Servers that failed in it", server_default=text("0")),
    timestamp("computed_at", "When it was last computed over samples that were new to it"),
    optional("fingerprint", String(64), "Fingerprint of the arithmetic and the servers; null: not known"),
    optional("processed_instances", Integer, "Servers with samples in it"),
    optional("total_records", BigInteger, "Rows its samples supported"),
    optional("protected_records", BigInteger, "Those of them that were kept because samples no longer exist"),
    optional("unsampled_records", BigInteger, "Further rows that were kept without any sample left"),
)

collection_targets = table(
    "capacity_collection_targets",
    "How to reach the servers that are measured here. It holds no secrets, only where to find them.",
    instance_key(),
    optional("username", String(255), "Login; null: the driver's default"),
    optional("password_from", Text, "Where the password is: env:NAME, file:PATH, secret:NAME; null: none needed"),
    optional("connect_database", String(255), "Database or service to connect to; null: the engine's default"),
    required("tls", String(20), "off, require, verify-ca or verify-full"),
    optional("tls_ca", Text, "File of the certificate authority"),
    optional("tls_certificate", Text, "File of the client's certificate"),
    optional("tls_key", Text, "File of the client's key"),
    optional("server_public_key", Text, "File of the RSA public key of a MySQL server, used without TLS"),
    required("sizing", String(20), "files: exact; allocated: space on disk; statistics: cheaper, from the catalogue"),
    timestamp("created_at", "When it was registered for collection"),
    timestamp("updated_at", "When this was last changed"),
    declared_by(),
)

collection_attempts = table(
    "capacity_collection_attempts",
    "The outcome for each server on each day of the last months: collected, or failed and why.",
    key("collected_date", Date, "Day that was measured"),
    instance_key(),
    required("status", String(20), "collected or failed"),
    optional("failure", String(20), "Kind of the failure; null: none"),
    optional("reason", Text, "Why it failed, and what to do; null: it did not"),
    required("attempts", Integer, "Attempts on this day", server_default=text("1")),
    optional("connect_seconds", Double, "How long connecting took; null: never connected"),
    optional("measure_seconds", Double, "How long measuring took; null: never measured"),
    timestamp("attempted_at", "When the last attempt ended"),
)

capacity_settings = table(
    "capacity_settings",
    "What must stay the same as long as the database holds figures.",
    key("name", String(63), "timezone: the zone in which the days of samples begin and end"),
    required("value", Text, "Its value"),
    timestamp("set_at", "When it was set"),
)

imports = table(
    "capacity_imports",
    "Imports of history, and how far each has come.",
    key("fingerprint", String(64), "Fingerprint of the source and of how it is read"),
    required("source", Text, "Its file or database, without a password"),
    required("target", String(63), "Table it was read into"),
    required("position", BigInteger, "Last row that was read and committed"),
    required("counts", JSON, "Numbers of rows by outcome"),
    timestamp("started_at", "When it was begun"),
    timestamp("finished_at", "When its last row was read; null: interrupted", nullable=True),
    optional("origin", String(40), "What measured the samples: file, legacy, prometheus, ...; null: not known"),
)

imported_days = table(
    "capacity_imported_days",
    "Which stored samples were imported, and by which import.",
    instance_key(),
    key("database_name", String(255), "Database; empty: the totals of the server"),
    key("fingerprint", String(64), "Fingerprint of the import, capacity_imports.fingerprint"),
    required("days", DATEMULTIRANGE, "Days with samples of the import"),
)


BY_FORECAST_DAY = "RANGE (as_of)"

volume_size_stats = table(
    "volume_size_stats",
    "Raw samples: one row per volume of a server and day.",
    collected_date(),
    instance_id(),
    required("volume_name", String(255), "File system, disk group or pool, as the server says"),
    megabytes("total_mb", "Capacity"),
    megabytes("free_mb", "Space that the server can still use"),
    optional("used_mb", BigInteger, "Used space, MiB; null: all that is not free"),
    limit_source(),
    timestamp("collected_at", "When the sample was taken"),
    optional("declared_by", String(LONGEST_DECLARER), "Who imported it from a file; null: measured, or fetched"),
    PrimaryKeyConstraint("collected_date", "instance_id", "volume_name", name="volume_size_stats_pkey"),
    postgresql_partition_by=BY_DAY,
)

database_limit_stats = table(
    "database_limit_stats",
    "Raw samples: how much each database may hold, one row per database and day.",
    collected_date(),
    instance_id(),
    database_name(),
    optional("limit_mb", BigInteger, "Its own ceiling, MiB; null: unlimited, or unknown"),
    required("is_unlimited", Boolean, "Whether it has no ceiling of its own"),
    optional("volumes", ARRAY(String(255)), "Volumes on which it grows; null: unknown"),
    limit_source(),
    timestamp("collected_at", "When the sample was taken"),
    optional(
        "fills_files", Boolean, "Whether any table uses free space inside its files before they grow; null: not known"
    ),
    PrimaryKeyConstraint("collected_date", "instance_id", "database_name", name="database_limit_stats_pkey"),
    postgresql_partition_by=BY_DAY,
)

server_part_stats = table(
    "server_part_stats",
    "Raw samples: the space on a server outside its databases, one row per part and day.",
    collected_date(),
    instance_id(),
    required("part_kind", String(20), "Kind: " + ", ".join(PART_KINDS)),
    required("part_name", String(255), "Which one of its kind, such as the slot; empty: all of its kind"),
    optional("size_bytes", BigInteger, "Size, bytes; of a slot or archiver, the WAL that it retains; null: not known"),
    optional("volume_name", String(255), "Its volume; null: not known"),
    optional("detail", Text, "What the server reports about it, or why its size is not known; null: nothing"),
    timestamp("collected_at", "When the sample was taken"),
    PrimaryKeyConstraint("collected_date", "instance_id", "part_kind", "part_name", name="server_part_stats_pkey"),
    postgresql_partition_by=BY_DAY,
)

object_size_stats = table(
    "object_size_stats",
    "Raw samples: what a database consists of, one row per listed table or index, and two rows for the rest.",
    collected_date(),
    instance_id(),
    database_name(),
    required(
        "kind", String(20), "table; index; others: tables and indexes not listed; unexplained: the rest of the database"
    ),
    required("schema_name", String(255), "Schema or owner; empty: the engine has none within a database"),
    required("table_name", String(255), "Table of an index; empty: the object is not an index"),
    required("object_name", String(255), "Table or index, partitions under their parent; empty: a row of a sum"),
    required(
        "size_bytes",
        BigInteger,
        "Size, bytes, counted once: of a table without its indexes; of unexplained below zero if estimates exceed",
    ),
    optional("index_bytes", BigInteger, "Size of all indexes of a table, bytes; null: not known"),
    optional("free_bytes", BigInteger, "Dead rows or free pages within size_bytes, bytes; null: not known"),
    optional("estimated_rows", BigInteger, "Rows as the server estimates them; null: not known"),
    required("is_exact", Boolean, "Whether size_bytes was measured; false: the catalogue's estimate"),
    optional("object_count", Integer, "How many tables and indexes a row of others contains; null: another row"),
    timestamp("collected_at", "When the sample was taken"),
    optional(
        "written_rows",
        BigInteger,
        "Rows inserted, updated and deleted since the server began to count; null: not known",
    ),
    timestamp("counted_since", "Since when written_rows counts; null: the server does not say", nullable=True),
    PrimaryKeyConstraint(
        *("collected_date", "instance_id", "database_name", "kind", "schema_name", "table_name", "object_name"),
        name="object_size_stats_pkey",
    ),
    # Which databases were measured on a day, and which of its objects are the largest: without reading all objects.
    Index(
        "ix_object_size_stats_measured",
        "collected_date",
        "instance_id",
        "database_name",
        postgresql_where=text("(kind)::text = 'unexplained'::text"),
    ),
    Index("ix_object_size_stats_largest", "collected_date", "size_bytes"),
    postgresql_partition_by=BY_DAY,
)

capacity_object_sizes = table(
    "capacity_object_sizes",
    "The last sizes of the largest tables and indexes, from which those that grow fastest are found.",
    instance_key(),
    key("database_name", String(255), "Database, exactly as the server spells it"),
    key("collected_date", Date, "Day on which they were measured"),
    required("object_hashes", ARRAY(BigInteger), "Hashes of kind, schema, table and name"),
    required("object_bytes", ARRAY(BigInteger), "Their sizes, bytes, in the same order"),
)

capacity_limits = table(
    "capacity_limits",
    "How much servers and databases can hold, as far as that is known.",
    instance_key(),
    key("database_name", String(255), "Database; empty: the server as a whole"),
    optional("limit_mb", BigInteger, "Its maximum size, MiB; null: unlimited"),
    required("source", String(20), "Where the limit comes from: declared"),
    optional("note", Text, "Text of the person who declared it; null: none"),
    timestamp("declared_at", "Since when it applies"),
    declared_by(),
)

capacity_steps = table(
    "capacity_steps",
    "Changes of size that happen once: forecasts do not take them for a trend.",
    instance_key(),
    key("database_name", String(255), "Database; empty: all databases of the server"),
    key("step_date", Date, "First day with the new size"),
    required("note", Text, "What happened"),
    timestamp("declared_at", "When it was declared"),
    declared_by(),
)

capacity_decisions = table(
    "capacity_decisions",
    "What people decided about servers, databases and volumes that may fill; each decision stays.",
    instance_id(),
    required("subject", String(20), "server, database or volume"),
    required("name", String(255), "Database or volume; empty: the server as a whole"),
    timestamp("declared_at", "When it was decided"),
    declared_by(),
    required("kind", String(20), "acknowledged, planned or excluded"),
    required("until_day", Date, "Last day on which it applies; of a plan, the day of the change"),
    required("note", Text, "Reason, as the person who decided wrote it"),
    optional("ticket", Text, "Address of its ticket; null: none"),
    optional("added_mb", BigInteger, "By how much the limit is raised on that day, MiB; null: unknown"),
    optional("probability", Double, "Probability of being full by that day, when it was decided; null: unknown"),
    timestamp("closed_at", "When it was removed or another took its place; null: neither", nullable=True),
    optional("closed_by", String(LONGEST_DECLARER), "Who did that; null: nobody, or not known"),
    PrimaryKeyConstraint("instance_id", "subject", "name", "declared_at", name="capacity_decisions_pkey"),
)

capacity_runways = table(
    "capacity_runways",
    "Every forecast that was issued, and once its horizon has passed, the size that was measured.",
    required("as_of", Date, "Last day of the samples that were read"),
    required("instance_id", Integer, "Server, instances.id; 0: a group"),
    required("subject", String(20), "server, database, volume or group"),
    required("name", String(255), "Database, volume, or group as key=value; empty: the server as a whole"),
    required("state", String(20), "forecast, or why there is no day on which it is full"),
    required("last_day", Date, "Newest measured day, from which days and horizons count"),
    megabytes("size_mb", "Size on that day"),
    optional("limit_mb", BigInteger, "Binding limit, MiB; null: unlimited, or unknown"),
    optional("binds", String(20), "Whose limit that is; null: none is known"),
    optional("limit_source", String(20), "Where it comes from: measured, declared or imported"),
    required("change_mb_per_day", Double, "Change that is forecast, MiB per day"),
    optional("recent_mb_per_day", Double, "Change over the last 30 days, MiB per day; null: not measured then"),
    required("history_days", Integer, "Days of sizes that the forecast used"),
    *(
        optional(f"{end}_day", Date, f"Full by then with a probability of {share} percent; null: not within a year")
        for end, share in (("early", 10), ("middle", 50), ("late", 90))
    ),
    *(column for days in HORIZONS_DAYS for column in forecast_columns(days)),
    timestamp("issued_at", "When it was computed"),
    required("in_time", Boolean, "Whether it was computed on its day or the day after; false: in hindsight"),
    optional("volumes", ARRAY(String(255)), "Volumes on which a database grows; null: unknown"),
    optional("planned_day", Date, "Day from which planned limits apply; null: no plan raises the limit"),
    optional("planned_limit_mb", BigInteger, "Binding limit from that day on, MiB"),
    *(
        optional(f"planned_{end}_day", Date, f"As {end}_day, with that limit; null: not within a year")
        for end in ("early", "middle", "late")
    ),
    optional(
        "allocated_mb",
        BigInteger,
        "Size of its files, MiB, if size_mb is the used space inside; null: size_mb is that of the files",
    ),
    optional(
        "stands_for_itself",
        Boolean,
        "Whether no other row says the same at least as urgently, as a volume does for its databases; null: not known",
    ),
    # Readers of the view `capacity_runway` see every further column from here on.
    PrimaryKeyConstraint("as_of", "instance_id", "subject", "name", name="capacity_runways_pkey"),
    # Every page reads what fills first.
    Index("ix_capacity_runways_middle", "as_of", "middle_day"),
    # Pages check every few seconds whether forecasts were issued.
    Index("ix_capacity_runways_issued", "as_of", "issued_at"),
    postgresql_partition_by=BY_FORECAST_DAY,
)


ALWAYS = date(1, 1, 1)
"""As first day: since before anything was measured."""

PRICE = Numeric(20, 6)
# Twelve decimals: the cents of a million lines are not moved by how each was rounded.
EXACT = Numeric(30, 12)
CURRENCY = String(3)
label_key = partial(key, "key", String(LONGEST_KEY))
valid_from = partial(key, "valid_from", Date)

capacity_labels = table(
    "capacity_labels",
    "Labels of servers and databases: who owns them, what they are for.",
    instance_key(),
    key(
        "database_pattern",
        String(255),
        "Database, or a pattern with * and ?; empty: the server, and its databases without their own label",
    ),
    label_key("Key of the label, such as team"),
    valid_from("First day of the label; 0001-01-01: always"),
    optional("value", String(LONGEST_VALUE), "Value from that day on; null: none from that day on"),
    timestamp("declared_at", "When it was declared"),
    declared_by(),
)


capacity_prices = table(
    "capacity_prices",
    "What a GiB costs per month, by engine and label.",
    key("engine", String(50), "Engine to which it applies; empty: every engine"),
    label_key("Key of the label to which it applies; empty: any labels"),
    key("value", String(LONGEST_VALUE), "Value of that label; empty: as above"),
    valid_from("First day of the price; 0001-01-01: always"),
    optional("price", PRICE, "Currency per GiB and month; null: no price from that day on"),
    required("currency", CURRENCY, "ISO 4217 code"),
    timestamp("declared_at", "When it was declared"),
    declared_by(),
)

capacity_budgets = table(
    "capacity_budgets",
    "Budgets of groups by month, which bills are compared with.",
    key("grouped_by", String(255), "engine, server, or a label key"),
    key("group_name", String(255), "Engine, server or value of the label; empty: databases without this label"),
    key("month", Date, "First day of the month"),
    required("amount", Numeric(20, 2), "What the group may cost in the month"),
    required("currency", CURRENCY, "ISO 4217 code"),
    timestamp("declared_at", "When it was declared"),
    declared_by(),
)

capacity_scenarios = table(
    "capacity_scenarios",
    "Scenarios that were stored for comparison on a page; they change no forecast.",
    key("name", String(LONGEST_VALUE), "Name under which it was stored"),
    timestamp("stored_at", "When it was computed and stored"),
    required("content", JSONB, "Its assumptions, runways and budget, compared with the base case"),
)

capacity_bills = table(
    "capacity_bills",
    "Bills by month, with every issue.",
    key("month", Date, "First day of the month"),
    key("issue", Integer, "1: as first issued; more: restated"),
    timestamp("issued_at", "When it was computed"),
    required("is_final", Boolean, "Whether the month was over; false: replaced by the next one"),
    optional("currency", CURRENCY, "ISO 4217 code; null: nothing had a price"),
    required("amount", EXACT, "Sum of its lines, not rounded"),
    required("gib_months", EXACT, "Sum of the billed sizes, GiB times months"),
    required("unpriced_gib_months", EXACT, "The part without a price, not billed"),
    required("measured_days", BigInteger, "Days of servers on which they were measured"),
    required("billed_days", BigInteger, "Days of servers that were billed"),
    required("unbilled_servers", Integer, "Servers not billed: databases not measured, or sizes above 8 EiB"),
    required("label_keys", JSON, "Keys of labels by which it can be split"),
    optional("reason", Text, "Why it differs from the issue before; null: it is the first"),
    optional("declared_state", Text, "Numbers and newest times of the labels and prices at the last computation"),
    timestamp("samples_dropped_at", "When dropped samples of the month were detected; null: none", nullable=True),
    optional("clock_doubt", Text, "Why the bill is not final although the month seems over; null: no doubt"),
    optional("billed_until", Date, "Last day of the month with samples; null: a former version computed it"),
)

capacity_bill_lines = table(
    "capacity_bill_lines",
    "Lines of bills: one per database, and per set of labels and price that it had in the month.",
    key("month", Date, "First day of the month"),
    key("issue", Integer, "Issue of the bill"),
    key("line", Integer, "Number of the line"),
    instance_id(),
    required("server", String(255), "Name of the server when it was billed"),
    required("engine", String(50), "Engine of the server"),
    database_name(),
    required("labels", JSONB, "Labels that it had on these days"),
    required("days", Integer, "Days on which it was measured with these labels and this price"),
    required("gib_months", EXACT, "What is billed, GiB times months"),
    optional("price", PRICE, "Currency per GiB and month; null: none is known"),
    optional("amount", EXACT, "Price times GiB times months, not rounded; null: no price is known"),
    # Pages price some databases; without it they would read the lines of all.
    Index("ix_capacity_bill_lines_database", "month", "issue", "instance_id", "database_name"),
)

capacity_bill_groups = table(
    "capacity_bill_groups",
    "Bills by group: sums of the lines for every grouping, and the change against the month before.",
    key("month", Date, "First day of the month"),
    key("issue", Integer, "Issue of the bill"),
    key("grouped_by", String(255), "engine, server, or a label key"),
    key("group_name", String(255), "Engine, server or value of the label; empty: databases without this label"),
    required("databases", Integer, "Databases; 0: it had some in the month before only"),
    required("servers", Integer, "Servers of these databases"),
    required("gib_months", EXACT, "Sum of the billed sizes, GiB times months"),
    required("unpriced_gib_months", EXACT, "The part without a price, not billed"),
    optional("lowest_price", PRICE, "Lowest price of its lines, per GiB and month; null: none had one"),
    optional("highest_price", PRICE, "Highest price of its lines, per GiB and month; null: none had one"),
    optional("amount", EXACT, "Sum of its lines, not rounded; null: none had a price"),
    optional("before_issue", Integer, "Issue of the month before that it is compared with; null: with none"),
    optional("amount_before", EXACT, "Amount of the month before; null: none had a price, or not compared"),
    optional("change_growth", EXACT, "Change of the amount by growth; null: not compared"),
    optional("change_price", EXACT, "Change of the amount by prices; null: not compared"),
    optional("change_moves", EXACT, "Change of the amount by databases from and to other groups; null: likewise"),
)

capacity_digests = table(
    "capacity_digests",
    "Which receiver got the digest of which week.",
    key("week", Date, "First day of the week"),
    key("receiver", String(255), "Name of the receiver in CAPACITY_RECEIVERS"),
    key("channel", String(20), "mail or webhook"),
    timestamp("sent_at", "When it was handed over"),
)

capacity_alerts = table(
    "capacity_alerts",
    "What receivers of alerts were told: the newest alert for each server, database and volume.",
    key("receiver", String(255), "Name of the receiver in CAPACITY_RECEIVERS, or default"),
    key("channel", String(20), "mail or webhook"),
    key("instance_id", Integer, "Number of the server"),
    key("subject", String(20), "server, database or volume"),
    key("name", String(255), "Database or volume; empty: the server as a whole"),
    required("opened", Date, "Day of the first forecast that called for action"),
    timestamp("sent_at", "When its newest message was handed over; null: none was yet", nullable=True),
    optional("probability", Double, "Probability in that message; null: none was handed over"),
    optional("full_by", Date, "Day in that message on which it is full; null: none"),
    optional("resolved", Date, "Day of the forecast that resolved it; null: it is open"),
)


capacity_locks = table(
    "capacity_locks",
    "Locks: the holder keeps the row locked until the end of its transaction.",
    key("name", String(63), "Name of the lock: a period, samples, or a kind of work"),
)


def is_active() -> ColumnElement[bool]:
    """Return the condition that servers are in service."""
    return and_(instances.c.is_active, instances.c.deleted_at.is_(None))


SERVERS_IN_SERVICE = "SELECT * FROM instances WHERE is_active AND deleted_at IS NULL"
"""The servers in service, as a part of other statements."""
