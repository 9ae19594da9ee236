"""Know how to reach servers, what became of each one on each day, and how far an import came.

A server may be marked as counted by another one, so that fleet totals hold no byte twice.
"""

import sqlalchemy as sa
from alembic import context, op

from capacity_assets.storage.schema import adopt

revision = "0004"
down_revision = "0003"

metadata = sa.MetaData()


def _timestamp(name: str, *, nullable: bool = False) -> sa.Column[object]:
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


sa.Table(
    "capacity_collection_targets",
    metadata,
    sa.Column("instance_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("username", sa.String(255)),
    sa.Column("password_from", sa.Text),
    sa.Column("connect_database", sa.String(255)),
    sa.Column("tls", sa.String(20), nullable=False),
    sa.Column("tls_ca", sa.Text),
    sa.Column("tls_certificate", sa.Text),
    sa.Column("tls_key", sa.Text),
    sa.Column("sizing", sa.String(20), nullable=False),
    _timestamp("created_at"),
    _timestamp("updated_at"),
)

sa.Table(
    "capacity_collection_attempts",
    metadata,
    sa.Column("collected_date", sa.Date, primary_key=True),
    sa.Column("instance_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("failure", sa.String(20)),
    sa.Column("reason", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("1")),
    sa.Column("connect_seconds", sa.Double),
    sa.Column("measure_seconds", sa.Double),
    _timestamp("attempted_at"),
)

sa.Table(
    "capacity_imports",
    metadata,
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("target", sa.String(63), nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    _timestamp("started_at"),
    _timestamp("finished_at", nullable=True),
)


def upgrade() -> None:
    """Create the tables, add the mark."""
    context.config.attributes.get("done", []).extend(adopt(op.get_bind(), metadata))
    op.add_column("instances", sa.Column("counted_by", sa.Integer), if_not_exists=True)
