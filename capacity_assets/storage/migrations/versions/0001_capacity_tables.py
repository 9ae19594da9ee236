"""Create the capacity tables, or adopt those of the legacy application in place.

On an empty database the tables are created, partitioned by time. Tables that exist are brought to the same shape by
adding and widening: totals to bigint, percents to NUMERIC(30,2), change columns to nullable, the trend of database
rows, missing unique keys, a default partition where rows could be refused. Whatever stands in the way is
collected over all tables and reported together, and nothing is changed.
"""

from typing import Any

import sqlalchemy as sa
from alembic import context, op

from capacity_assets.storage.schema import adopt

revision = "0001"
down_revision = None

PERCENT = sa.Numeric(30, 2)
BY_DAY = "RANGE (collected_date)"
BY_WINDOW = "RANGE (period_type, period_start)"
metadata = sa.MetaData()


def _timestamp(name: str, *, nullable: bool = False) -> sa.Column[object]:
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _required(kind: sa.types.TypeEngine[Any], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names]


def _optional(kind: sa.types.TypeEngine[Any], *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind) for name in names]


sa.Table(
    "instances",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    *_required(sa.String(50), "db_type"),
    *_required(sa.String(255), "host"),
    *_required(sa.Integer(), "port"),
    sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.text("true")),
    _timestamp("deleted_at", nullable=True),
)

sa.Table(
    "database_size_stats",
    metadata,
    sa.Column("id", sa.BigInteger, autoincrement=True),
    *_required(sa.Integer(), "instance_id"),
    *_required(sa.String(255), "database_name"),
    *_required(sa.BigInteger(), "size_mb"),
    *_optional(sa.BigInteger(), "data_size_mb", "log_size_mb"),
    *_required(sa.Date(), "collected_date"),
    *map(_timestamp, ("collected_at", "created_at", "updated_at")),
    sa.PrimaryKeyConstraint("collected_date", "instance_id", "id", name="database_size_stats_pkey"),
    sa.UniqueConstraint("instance_id", "database_name", "collected_date", name="uq_daily_database_size"),
    postgresql_partition_by=BY_DAY,
)

sa.Table(
    "instance_size_stats",
    metadata,
    sa.Column("id", sa.BigInteger, autoincrement=True),
    *_required(sa.Integer(), "instance_id"),
    *_required(sa.BigInteger(), "total_size_mb"),
    *_required(sa.Integer(), "database_count"),
    *_required(sa.Date(), "collected_date"),
    _timestamp("collected_at"),
    sa.Column("is_deleted", sa.Boolean, nullable=False, server_default=sa.text("false")),
    _timestamp("deleted_at", nullable=True),
    *map(_timestamp, ("created_at", "updated_at")),
    sa.PrimaryKeyConstraint("collected_date", "instance_id", "id", name="instance_size_stats_pkey"),
    sa.Index(
        "uq_instance_size_stats_instance_date",
        "instance_id",
        "collected_date",
        unique=True,
        postgresql_where=sa.text("is_deleted = false"),
    ),
    postgresql_partition_by=BY_DAY,
)

sa.Table(
    "database_size_aggregations",
    metadata,
    sa.Column("id", sa.BigInteger, autoincrement=True),
    *_required(sa.Integer(), "instance_id"),
    *_required(sa.String(255), "database_name"),
    *_required(sa.String(20), "period_type"),
    *_required(sa.Date(), "period_start", "period_end"),
    *_required(sa.BigInteger(), "avg_size_mb", "max_size_mb", "min_size_mb"),
    *_required(sa.Integer(), "data_count"),
    *_optional(sa.BigInteger(), "avg_data_size_mb", "max_data_size_mb", "min_data_size_mb"),
    *_optional(sa.BigInteger(), "avg_log_size_mb", "max_log_size_mb", "min_log_size_mb"),
    *_optional(sa.BigInteger(), "size_change_mb"),
    *_optional(PERCENT, "size_change_percent"),
    *_optional(sa.BigInteger(), "data_size_change_mb"),
    *_optional(PERCENT, "data_size_change_percent"),
    *_optional(sa.BigInteger(), "log_size_change_mb"),
    *_optional(PERCENT, "log_size_change_percent", "growth_rate"),
    *_optional(sa.String(20), "trend_direction"),
    *map(_timestamp, ("calculated_at", "created_at")),
    sa.PrimaryKeyConstraint("period_type", "period_start", "instance_id", "id", name="database_size_aggregations_pkey"),
    sa.UniqueConstraint(
        "instance_id", "database_name", "period_type", "period_start", name="uq_database_size_aggregation"
    ),
    postgresql_partition_by=BY_WINDOW,
)

sa.Table(
    "instance_size_aggregations",
    metadata,
    sa.Column("id", sa.BigInteger, autoincrement=True),
    *_required(sa.Integer(), "instance_id"),
    *_required(sa.String(20), "period_type"),
    *_required(sa.Date(), "period_start", "period_end"),
    *_required(sa.BigInteger(), "total_size_mb", "avg_size_mb", "max_size_mb", "min_size_mb"),
    *_required(sa.Integer(), "data_count", "database_count"),
    *_optional(PERCENT, "avg_database_count"),
    *_optional(sa.Integer(), "max_database_count", "min_database_count"),
    *_optional(sa.BigInteger(), "total_size_change_mb"),
    *_optional(PERCENT, "total_size_change_percent"),
    *_optional(sa.Integer(), "database_count_change"),
    *_optional(PERCENT, "database_count_change_percent", "growth_rate"),
    *_optional(sa.String(20), "trend_direction"),
    *map(_timestamp, ("calculated_at", "created_at")),
    sa.PrimaryKeyConstraint("period_type", "period_start", "instance_id", "id", name="instance_size_aggregations_pkey"),
    sa.UniqueConstraint("instance_id", "period_type", "period_start", name="uq_instance_size_aggregation"),
    postgresql_partition_by=BY_WINDOW,
)


def upgrade() -> None:
    """Create what is missing, adopt what is there.

    Raises:
        SchemaProblemsError: duplicates or missing columns; the caller's transaction rolls everything back.
    """
    context.config.attributes.get("done", []).extend(adopt(op.get_bind(), metadata))
