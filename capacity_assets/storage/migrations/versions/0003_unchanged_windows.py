"""Remember what a window was computed from and by, so that an unchanged one is known without reading its samples.

Windows computed before have no fingerprint and are computed in full the next time. Deleted samples and foreign writes
to the aggregates are noted from now on; the triggers are compared and set at every `capacity init`, like the others.
"""

import sqlalchemy as sa
from alembic import context, op

from capacity_assets.storage.adoption import carry_out
from capacity_assets.storage.change_log import disturbance_steps
from capacity_assets.storage.schema import adopt

revision = "0003"
down_revision = "0002"

metadata = sa.MetaData()

sa.Table(
    "capacity_disturbances",
    metadata,
    sa.Column("table_name", sa.String(63), primary_key=True),
    sa.Column(
        "transaction_id",
        sa.BigInteger,
        primary_key=True,
        autoincrement=False,
        server_default=sa.text("(pg_current_xact_id()::text)::bigint"),
    ),
    sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)


def upgrade() -> None:
    """Create the table, add the columns."""
    connection = op.get_bind()
    context.config.attributes.get("done", []).extend(adopt(connection, metadata))
    op.add_column("capacity_computed_windows", sa.Column("fingerprint", sa.String(64)))
    op.add_column("capacity_computed_windows", sa.Column("processed_instances", sa.Integer))
    op.add_column("capacity_computed_windows", sa.Column("total_records", sa.BigInteger))
    op.add_column("capacity_computed_windows", sa.Column("protected_records", sa.BigInteger))
    for step in disturbance_steps(connection):
        carry_out(connection, step)
