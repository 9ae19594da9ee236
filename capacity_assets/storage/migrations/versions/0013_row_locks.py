"""Marks a schema whose locks are rows of `capacity_locks`; older programs use other locks and must not write.

New tables and columns are added by the comparison that `capacity init` makes.
"""

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Change nothing: older programs refuse this revision number."""
