"""Labels, prices and bills: tables that the comparison of tables adds."""

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Nothing that a comparison of tables cannot do."""
