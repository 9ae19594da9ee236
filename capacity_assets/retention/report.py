"""The result of a maintenance of the tables: counts and lines for people, and the error that carries them."""

from __future__ import annotations

from dataclasses import dataclass, field

from capacity_assets.errors import DatabaseError


@dataclass
class MaintenanceReport:
    """What was done, or, in a dry run, would be; `kept` and `notes` say why something was not."""

    dry_run: bool
    created: list[str] = field(default_factory=list)
    moved_records: int = 0
    dropped: list[str] = field(default_factory=list)
    dropped_records: int = 0
    freed_mb: int = 0
    purged_check_records: int = 0
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values, for scripts and metadata."""
        return {
            "dry_run": self.dry_run,
            "created_partitions": len(self.created),
            "moved_records": self.moved_records,
            "dropped_partitions": len(self.dropped),
            "dropped_records": self.dropped_records,
            "freed_mb": self.freed_mb,
            "purged_check_records": self.purged_check_records,
            "kept_partitions": len(self.kept),
            "created": self.created,
            "dropped": self.dropped,
            "kept": self.kept,
            "notes": self.notes,
        }


class MaintenanceError(DatabaseError):
    """Some of the work could not be done; `report` says what was."""

    def __init__(self, troubles: list[DatabaseError], report: MaintenanceReport) -> None:
        """List each error once; the whole is transient if all of them are."""
        message = "\n".join(dict.fromkeys(map(str, troubles)))
        transient = all(trouble.transient for trouble in troubles)
        super().__init__(message, sqlstate=troubles[0].sqlstate, transient=transient)
        self.report = report
