"""In SQL: whether what was computed holds a change, by PostgreSQL's own account of which transactions it could see.

What records changes with their transactions is in `change_tracking` and `group_tracking`.
"""

from __future__ import annotations


def transaction_of(change: str) -> str:
    """Return the transaction of a recorded change: the number is stored, and counts as what it is."""
    return f"CAST(CAST({change}.transaction_id AS text) AS xid8)"


def is_seen(change: str, holder: str) -> str:
    """Return the condition that the snapshot of a row holds a change."""
    return f"pg_visible_in_snapshot({transaction_of(change)}, CAST({holder}.snapshot AS pg_snapshot))"
