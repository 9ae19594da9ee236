"""Locks as rows of `capacity_locks`: a role that may not write there cannot hold one.

Any role that may connect can hold an advisory lock. Locking a row requires the UPDATE privilege, lasts until the end of
the transaction, and is released when the session ends for any reason.
"""

from __future__ import annotations

from sqlalchemy import Column, Connection, String, Table, text

from capacity_assets.storage.tables import table_metadata

capacity_locks = Table(
    "capacity_locks",
    table_metadata,
    Column("name", String(63), primary_key=True, comment="Name of the lock: a period, samples, or a kind of work"),
    comment="Locks: the holder keeps the row locked until the end of its transaction.",
)


def wait_for_lock(connection: Connection, name: str) -> None:
    """Hold a lock until the transaction of `connection` ends; waits as long as its `lock_timeout` allows."""
    connection.execute(text(_LOCK), {"name": name})


def try_lock(connection: Connection, name: str) -> bool:
    """Hold a lock until the transaction of `connection` ends; return False where another session holds it."""
    connection.execute(text(ENTER), {"name": name})
    return connection.execute(text(TAKE), {"name": name}).first() is not None


# For a session that is idle in its transaction while the work goes on elsewhere.
NO_TIME_LIMIT = """
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')
"""
# Insert the row only if it is missing: inserting an existing row waits for the session that updated it.
ENTER = """
INSERT INTO capacity_locks (name)
SELECT CAST(:name AS text) WHERE CAST(:name AS text) NOT IN (SELECT name FROM capacity_locks) ON CONFLICT DO NOTHING
"""
TAKE = "SELECT name FROM capacity_locks WHERE name = :name FOR UPDATE SKIP LOCKED"
_LOCK = """
INSERT INTO capacity_locks (name) VALUES (:name) ON CONFLICT (name) DO UPDATE SET name = excluded.name
"""
