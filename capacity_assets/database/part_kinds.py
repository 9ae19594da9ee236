"""The registry of what lies on a server beside its databases: WAL, logs, temporary files. A further kind is an entry.

An engine says in `part_sources` how it measures a kind. Parts are never added to the size of a database or server.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PartKind:
    """A kind of server parts: what `server_part_stats` calls it, and what people read."""

    name: str
    title: str
    held_by: str | None = None
    """The kind whose bytes these are part of; None: bytes of their own, which sums count."""


WAL, SLOT, TEMPORARY = "wal", "slot", "temporary"
BINARY_LOG, RELAY_LOG, UNDO, REDO = "binary_log", "relay_log", "undo", "redo"
TRANSACTION_LOG, ARCHIVED_LOG, RECOVERY_AREA = "transaction_log", "archived_log", "recovery_area"
PART_KINDS = {
    kind.name: kind
    for kind in (
        PartKind(WAL, "WAL"),
        PartKind(SLOT, "Replication slot", held_by=WAL),
        PartKind(BINARY_LOG, "Binary logs"),
        PartKind(RELAY_LOG, "Relay logs"),
        PartKind(TRANSACTION_LOG, "Transaction logs"),
        PartKind(REDO, "Redo logs"),
        PartKind(UNDO, "Undo logs"),
        PartKind(ARCHIVED_LOG, "Archived logs"),
        PartKind(RECOVERY_AREA, "Recovery area"),
        PartKind(TEMPORARY, "Temporary files"),
    )
}
