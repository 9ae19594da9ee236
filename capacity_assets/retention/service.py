"""`RetentionService`: maintains the tables for assets and commands; it refuses a database that is not prepared.

How partitions are added and dropped is the business of `maintenance`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from capacity_assets.clock import Clock
from capacity_assets.errors import database_errors
from capacity_assets.foundation.clock_guard import JudgedDay, judged_day
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.retention.maintenance import TableMaintenance
from capacity_assets.retention.report import MaintenanceReport


@dataclass(frozen=True)
class RetentionService:
    """Maintains the tables of one capacity database as of today; raises as `TableMaintenance`."""

    engine: Engine
    clock: Clock
    tables: TableMaintenance

    def maintain(self, *, dry_run: bool = False, despite_clock: bool = False) -> MaintenanceReport:
        """Add future partitions and apply retention; a dry run only reports what would be done.

        If today's date may be wrong, partitions are added ahead of a day that is certain and none is dropped, unless
        `despite_clock` confirms the date.
        """
        self._refuse_an_unfit_database()
        today = self.clock.today()
        if despite_clock:
            return self.tables.run(today, dry_run=dry_run)
        judged = self._judged_day()
        keeping = judged.why_nothing_is_deleted
        return self.tables.run(today, dry_run=dry_run, certain_day=judged.certain_day, keeping=keeping)

    def prepare(self) -> MaintenanceReport:
        """Add the partitions that are wanted as of today, in any zone; the schema is there. Raises as `maintain`."""
        return self.tables.prepare(self._judged_day().certain_day)

    def shortcomings(self) -> list[str]:
        """Return what keeps old rows from leaving, in words; changes nothing."""
        return self.tables.shortcomings(self._judged_day().certain_day)

    def _judged_day(self) -> JudgedDay:
        doing = database_errors(doing="reading the clock", kept="Nothing was changed.")
        with doing, self.engine.connect() as connection:
            return judged_day(connection, self.clock)

    def _refuse_an_unfit_database(self) -> None:
        refuse_an_unfit_database(self.engine, self.clock.zone, kept="Nothing was written.")
