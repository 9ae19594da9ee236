"""Marks a schema whose tables are keyed by day or window first, each by one key.

Keys and indexes are replaced by the comparison that `capacity init` makes, see `storage.indexes`.
"""

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Change nothing here."""
