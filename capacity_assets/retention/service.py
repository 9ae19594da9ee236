"""`RetentionService`: maintains the tables for assets and commands; it refuses a database that is not prepared.

How partitions are added, dropped and converted is the business of `maintenance`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from capacity_assets.clock import Clock
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.retention.maintenance import TableMaintenance
from capacity_assets.retention.report import MaintenanceReport


@dataclass(frozen=True)
class RetentionService:
    """Maintains the tables of one capacity database as of today; raises as `TableMaintenance`."""

    engine: Engine
    clock: Clock
    tables: TableMaintenance

    def maintain(self, *, dry_run: bool = False) -> MaintenanceReport:
        """Keep partitions ahead and apply retention; in a dry run only say what would be done."""
        self._refuse_an_unfit_database()
        return self.tables.run(self.clock.today(), dry_run=dry_run)

    def prepare(self) -> MaintenanceReport:
        """Add the partitions that are wanted as of today, in any zone; the schema is there. Raises as `maintain`."""
        return self.tables.prepare(self.clock.today())

    def convert(self, *, dry_run: bool = False) -> MaintenanceReport:
        """Make unpartitioned tables partitioned."""
        self._refuse_an_unfit_database()
        return self.tables.convert(self.clock.today(), dry_run=dry_run)

    def shortcomings(self) -> list[str]:
        """Return what keeps old rows from leaving, in words; changes nothing."""
        return self.tables.shortcomings(self.clock.today())

    def _refuse_an_unfit_database(self) -> None:
        refuse_an_unfit_database(self.engine, self.clock.zone, kept="Nothing was written.")
