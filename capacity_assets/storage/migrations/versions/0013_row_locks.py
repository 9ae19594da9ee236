"""Marks a schema whose locks are rows of `capacity_locks`: programs of before hold other locks and must not write.

Tables and columns that are new are added by the comparison that `capacity init` makes.
"""

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Change nothing: the number is what older programs refuse."""
