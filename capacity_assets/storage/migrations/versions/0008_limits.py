"""Limits of servers and databases: `capacity_limits`, which the comparison of tables adds."""

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Nothing that a comparison of tables cannot do."""
