"""Measured limits, steps and issued forecasts: tables that the comparison of tables adds."""

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Nothing that a comparison of tables cannot do."""
