"""Add the size on the last measured day, growth within the window, and comparisons with a year.

Rows computed before have none of these figures until they are computed again. Their windows are not compared with those
of a year before, so that a change of samples there does not touch them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

STEMS = {"database_size_aggregations": "size", "instance_size_aggregations": "total_size"}


def upgrade() -> None:
    """Add the columns; none of them has a default, so that no row is rewritten."""
    for table, stem in STEMS.items():
        for name in (f"last_{stem}_mb", f"{stem}_growth_in_window_mb", f"{stem}_year_change_mb"):
            op.add_column(table, sa.Column(name, sa.BigInteger), if_not_exists=True)
        op.add_column(table, sa.Column(f"{stem}_year_change_percent", sa.Numeric(30, 2)), if_not_exists=True)
        op.add_column(table, sa.Column(f"{stem}_yearly_rate_percent", sa.Numeric), if_not_exists=True)
    for name in ("year_before_start", "year_before_end"):
        op.add_column("capacity_computed_windows", sa.Column(name, sa.Date), if_not_exists=True)
