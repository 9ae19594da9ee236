"""Keep exact bytes of samples, count rows kept without samples, note servers put into service, record the zone.

Samples stored before have no bytes: only megabytes, rounded, were kept of them. Windows computed before do not know how
many of their rows are without samples, and are computed in full the next time.
"""

import sqlalchemy as sa
from alembic import context, op

from capacity_assets.storage.adoption import carry_out
from capacity_assets.storage.change_log import change_log_steps
from capacity_assets.storage.schema import adopt

revision = "0005"
down_revision = "0004"

metadata = sa.MetaData()

sa.Table(
    "capacity_activations",
    metadata,
    sa.Column("instance_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column(
        "transaction_id",
        sa.BigInteger,
        primary_key=True,
        autoincrement=False,
        server_default=sa.text("(pg_current_xact_id()::text)::bigint"),
    ),
    sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

sa.Table(
    "capacity_settings",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("set_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

BYTES = {
    "database_size_stats": ("size_bytes", "data_size_bytes", "log_size_bytes"),
    "instance_size_stats": ("total_size_bytes",),
}


def upgrade() -> None:
    """Create the tables, add the columns, renew the functions that note changes."""
    connection = op.get_bind()
    context.config.attributes.get("done", []).extend(adopt(connection, metadata))
    for table, columns in BYTES.items():
        for column in columns:
            op.add_column(table, sa.Column(column, sa.BigInteger), if_not_exists=True)
    op.add_column("capacity_computed_windows", sa.Column("unsampled_records", sa.BigInteger), if_not_exists=True)
    for step in change_log_steps(connection):
        carry_out(connection, step)
