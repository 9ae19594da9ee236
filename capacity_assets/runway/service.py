"""`RunwayService`: what assets and commands call to issue runways."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sqlalchemy import Engine

from capacity_assets.clock import Clock
from capacity_assets.errors import ValidationError, database_errors
from capacity_assets.foundation.clock_guard import judged_day
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.runway.issued import IssuedDay, recent_issue
from capacity_assets.runway.issuing import RISKS_HANDED_ON, IssuedRunways, is_in_time, issue


@dataclass(frozen=True)
class RunwayService:
    """Issues runways on one capacity database."""

    engine: Engine
    clock: Clock

    def issue(self, as_of: date, *, overwrite: bool = False) -> IssuedRunways:
        """Issue the runways of a day.

        Raises:
            ValidationError: the day is in the future, or is the current day by a clock that differs from PostgreSQL's;
            nothing was changed.
            DatabaseError: the database failed; nothing was changed.
        """
        today = self.clock.today()
        if as_of > today:
            raise ValidationError(f"{as_of} lies ahead: there is nothing to forecast from. Nothing was changed.")
        refuse_an_unfit_database(self.engine, self.clock.zone, kept="Nothing was changed.")
        doing = database_errors(doing="reading the clock", kept="Nothing was changed.")
        with doing, self.engine.connect() as connection:
            apart = judged_day(connection, self.clock).apart
        # Forecasts in hindsight are marked as such. Without recent samples there is nothing to issue.
        if apart and is_in_time(as_of, today):
            raise ValidationError(f"{apart} No forecast is issued while the date is in doubt. Nothing was changed.")
        return issue(self.engine, as_of, today, overwrite=overwrite)

    def newest(self) -> IssuedDay | None:
        """Return the newest issue of the last month; None: there is none. Raises DatabaseError."""
        return recent_issue(self.engine, self.clock.today(), shown=RISKS_HANDED_ON)

    def is_in_time(self, as_of: date) -> bool:
        """Whether runways of that day, issued now, are issued in time."""
        return is_in_time(as_of, self.clock.today())
