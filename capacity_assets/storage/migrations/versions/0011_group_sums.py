"""Stored sums of groups: tables that the comparison of tables adds, and triggers that `storage.schema` adds."""

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Nothing that a comparison of tables cannot do."""
