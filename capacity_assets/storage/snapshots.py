"""SQL conditions: whether a computed row includes a change, by PostgreSQL's transaction snapshots.

Transaction IDs are meaningful only within one database of one server. `change_tracking` and `group_tracking` record
changes with their transactions.
"""

from __future__ import annotations


def transaction_of(change: str) -> str:
    """Return the transaction of a recorded change: the number is stored, and counts as what it is."""
    return f"CAST(CAST({change}.transaction_id AS text) AS xid8)"


def is_seen(change: str, holder: str) -> str:
    """Return the condition that the snapshot of a row holds a change."""
    return f"pg_visible_in_snapshot({transaction_of(change)}, CAST({holder}.snapshot AS pg_snapshot))"


def is_foreign(holder: str) -> str:
    """Return the condition that the snapshot of a row comes from another server or database, or from the future."""
    return f"""(({holder}.system_identifier, {holder}.database_oid) <> (
            SELECT s.system_identifier, CAST(d.oid AS bigint) FROM pg_control_system() s
            CROSS JOIN pg_database d WHERE d.datname = current_database())
         OR pg_snapshot_xmax(CAST({holder}.snapshot AS pg_snapshot)) > {_NEXT_TRANSACTION})"""  # noqa: S608 -- aliases of our own


def is_to_come(change: str) -> str:
    """Return the condition that the transaction of a recorded change has not begun here: it is from elsewhere."""
    return f"{transaction_of(change)} >= {_NEXT_TRANSACTION}"


_NEXT_TRANSACTION = "pg_snapshot_xmax(pg_current_snapshot())"
