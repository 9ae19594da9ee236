"""Note which days of the raw tables change, and which windows were computed over which of them.

Windows that have rows already are taken as computed up to now: what changed before the triggers existed is not
known. The triggers themselves are compared and set at every `capacity init`, like the tables.
"""

import sqlalchemy as sa
from alembic import context, op

from capacity_assets.periods import PERIODS
from capacity_assets.storage.adoption import carry_out
from capacity_assets.storage.change_log import change_log_steps
from capacity_assets.storage.schema import adopt

revision = "0002"
down_revision = "0001"

metadata = sa.MetaData()

sa.Table(
    "capacity_sample_changes",
    metadata,
    sa.Column("table_name", sa.String(63), primary_key=True),
    sa.Column("collected_date", sa.Date, primary_key=True),
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
    "capacity_computed_windows",
    metadata,
    sa.Column("period_type", sa.String(20), primary_key=True),
    sa.Column("level", sa.String(20), primary_key=True),
    sa.Column("period_start", sa.Date, primary_key=True),
    sa.Column("period_end", sa.Date, nullable=False),
    sa.Column("reads_from", sa.Date, nullable=False),
    sa.Column("snapshot", sa.Text),
    sa.Column(
        "system_identifier",
        sa.BigInteger,
        nullable=False,
        server_default=sa.text("(pg_control_system()).system_identifier"),
    ),
    sa.Column("failed_instances", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("computed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

REGISTER = """
INSERT INTO capacity_computed_windows (period_type, level, period_start, period_end, reads_from, snapshot)
SELECT CAST(:name AS varchar), CAST(:level AS varchar), w.period_start, w.period_end, w.reads_from,
    CAST(pg_current_snapshot() AS text)
FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[]), CAST(:reads_from AS date[]))
    AS w (period_start, period_end, reads_from)
WHERE EXISTS (SELECT FROM {table} a WHERE a.period_type = CAST(:name AS varchar) AND a.period_start = w.period_start)
ON CONFLICT DO NOTHING
"""

AGGREGATES = {"database": "database_size_aggregations", "instance": "instance_size_aggregations"}


def upgrade() -> None:
    """Create the two tables, begin to note changes, and register the windows that have rows."""
    connection = op.get_bind()
    context.config.attributes.get("done", []).extend(adopt(connection, metadata))
    # Before the windows are registered: the locks of the new triggers keep writers out until everything is committed.
    for step in change_log_steps(connection):
        carry_out(connection, step)
    for level, table in AGGREGATES.items():
        for name in PERIODS:
            _register(connection, level, sa.table(table, sa.column("period_type"), sa.column("period_start")), name)


def _register(connection: sa.Connection, level: str, table: sa.TableClause, name: str) -> None:
    """Look for each possible window by itself: a list of those that occur would read the whole table."""
    ends = sa.select(sa.func.min(table.c.period_start), sa.func.max(table.c.period_start))
    first, last = connection.execute(ends.where(table.c.period_type == name)).one()
    if first is None:
        return
    period = PERIODS[name]
    windows = period.windows_between(first, last)
    connection.execute(
        sa.text(REGISTER.format(table=table.name)),
        {
            "name": name,
            "level": level,
            "starts": [window.start for window in windows],
            "ends": [window.end for window in windows],
            "reads_from": [period.previous(window).start for window in windows],
        },
    )
