"""Exact sums beside the figures of a window: columns that the comparison of tables adds."""

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Nothing that a comparison of tables cannot do."""
