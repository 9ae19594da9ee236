"""Tables of limits, steps and forecasts: how much servers and databases can hold, and when they were said to be full.

Measured limits are samples like sizes, one row per day; what people declare holds until they declare something else.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

from capacity_assets.forecast.horizons import HORIZONS_DAYS
from capacity_assets.storage.columns import (
    collected_date,
    database_name,
    forecast_columns,
    instance_id,
    instance_key,
    limit_source,
    megabytes,
    timestamp,
)
from capacity_assets.storage.tables import BY_DAY, table_metadata

BY_FORECAST_DAY = "RANGE (as_of)"

# Null means that all space that is not free is used, or that the sample is older than the column.
USED_MB = "coalesce({0}.used_mb, {0}.total_mb - {0}.free_mb)"
volume_size_stats = Table(
    "volume_size_stats",
    table_metadata,
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
    table_metadata,
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
    table_metadata,
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
    table_metadata,
    instance_key(),
    Column("database_name", String(255), primary_key=True, comment="Database; empty: all databases of the server"),
    Column("step_date", Date, primary_key=True, comment="First day with the new size"),
    Column("note", Text, nullable=False, comment="What happened"),
    timestamp("declared_at", "When it was declared"),
    comment="Changes of size that will not repeat: no forecast takes them for a trend.",
)

capacity_runways = Table(
    "capacity_runways",
    table_metadata,
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
