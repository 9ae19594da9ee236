"""`RunwayService`: what assets and commands call to issue runways."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Engine

from capacity_assets.clock import Clock
from capacity_assets.foundation.errors import ValidationError, database_errors
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.runway.history_statements import STALE_DAYS
from capacity_assets.runway.issued import Issue, newest_issue
from capacity_assets.runway.issuing import TOLD, IssuedRunways, issue


@dataclass(frozen=True)
class RunwayService:
    """Issues runways on one capacity database."""

    engine: Engine
    clock: Clock

    def issue(self, as_of: date, *, overwrite: bool = False) -> IssuedRunways:
        """Issue the runways of a day that has begun.

        Raises:
            ValidationError: the day lies ahead.
            DatabaseError: the database failed, or its schema does not fit; nothing was changed.
        """
        today = self.clock.today()
        if as_of > today:
            raise ValidationError(f"{as_of} lies ahead: there is nothing to forecast from. Nothing was changed.")
        refuse_an_unfit_database(self.engine, self.clock.zone, kept="Nothing was changed.")
        return issue(self.engine, as_of, today, overwrite=overwrite)

    def newest(self) -> Issue | None:
        """Return the newest issue of the last month; None: there is none.

        Raises:
            DatabaseError: the database failed.
        """
        today = self.clock.today()
        doing = database_errors(doing="reading runways", kept="Nothing was changed.")
        with doing, self.engine.connect() as connection:
            return newest_issue(connection, today - timedelta(days=STALE_DAYS), today, shown=TOLD)
