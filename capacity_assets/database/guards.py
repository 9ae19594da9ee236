"""Checks before any work on a database: that it is prepared, and that today's date is reliable.

How a schema is made is in `schema`. A wrong clock must not delete samples or close a month, so one rule serves all that
is deleted, issued or made final by date: the local clock is compared with PostgreSQL's and with the days of the
samples. If both clocks are wrong, as on a single machine, the samples end long before "today".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine, event, text

from capacity_assets.base.errors import DatabaseError, ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.database.engine import another_zone
from capacity_assets.database.schema import SCHEMA_REVISION, newer_schema_text, schema_revision


def refuse_a_newer_schema(engine: Engine) -> Engine:
    """Make each new connection of an engine raise DatabaseError if a newer version created the schema.

    Data stored by that version may have another meaning, so it is not read either.
    """

    @event.listens_for(engine, "connect")
    def look(connection: Any, _record: object) -> None:
        newer = newer_schema(connection)
        connection.rollback()
        if newer:
            connection.close()
            raise DatabaseError(newer)

    return engine


def newer_schema(connection: Any) -> str | None:
    """Return the message if a newer version created the schema, else None; `connection` is psycopg's."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_table_privilege(to_regclass('capacity_alembic_version'), 'SELECT')")
        if cursor.fetchone() != (True,):
            return None
        newer = "SELECT version_num FROM capacity_alembic_version WHERE version_num > %s"
        cursor.execute(newer, (SCHEMA_REVISION,))
        row = cursor.fetchone()
    return newer_schema_text(row[0]) if row else None


def refuse_an_unfit_database(engine: Engine, zone: ZoneInfo | None = None, *, kept: str = "") -> None:
    """Refuse a database without this version's schema, or, with `zone`, with days of another zone.

    `kept` is a sentence about what was not done, for the error's text. Raises DatabaseError, also where the database
    does not answer; ValidationError for days of another zone.
    """
    with database_errors(doing="reading the schema version", kept=kept):
        revision = schema_revision(engine)
        problem = another_zone(engine, zone.key) if zone and revision == SCHEMA_REVISION else None
    kept = kept and f" {kept}"
    if revision is not None and revision > SCHEMA_REVISION:
        raise DatabaseError(f"{newer_schema_text(revision)}{kept}")
    if revision != SCHEMA_REVISION:
        state = f"at revision {revision}" if revision else "missing"
        raise DatabaseError(
            f"The capacity schema is {state}; this version needs revision {SCHEMA_REVISION}.{kept} "
            "Run `capacity init`, which creates or upgrades the tables without losing a row, then run this again."
        )
    if problem:
        raise ValidationError(f"{problem}{kept}")


MOST_APART = timedelta(hours=1)
LONGEST_PAUSE = timedelta(days=45)


@dataclass(frozen=True)
class JudgedDay:
    """Today's date, and the reasons why it may be wrong."""

    today: date
    """The earlier of the two clocks' dates."""
    newest: date | None
    """Day of the newest sample up to today; None: there is none."""
    apart: str | None
    """A sentence with both times if the clocks differ; None if they agree."""
    stale: str | None
    """A sentence with both dates if the samples end long before today; else None."""
    pause: str | None
    """A sentence if the recent samples follow such a gap, because their dates may be wrong; else None."""

    @property
    def doubt(self) -> str | None:
        """Why the date may be wrong; None if it is reliable."""
        return self.apart or self.stale

    @property
    def certain_day(self) -> date:
        """A day that has certainly begun: today, or the day of the newest sample if the date is in doubt."""
        return self.today if self.doubt is None else min(self.today, self.newest or self.today)

    @property
    def why_nothing_is_deleted(self) -> str | None:
        """Why nothing may be deleted by age, which cannot be undone; None if deleting is allowed."""
        return self.doubt or self.pause


def judged_day(connection: Connection, clock: Clock) -> JudgedDay:
    """Compare the clocks with each other and with the samples; raises DBAPIError."""
    database_now = clock.local_database_now(connection)
    today = min(clock.today(), database_now.date())
    days = connection.execute(text(_SAMPLE_DAYS), {"since": today - LONGEST_PAUSE, "today": today}).one()
    stale = pause = None
    if days.before is not None and days.after is None:
        stale = (
            f"The newest sample is from {days.before}, {(today - days.before).days:,} days before today ({today}): the "
            "clock may be wrong."
        )
    elif days.before is not None and days.after - days.before > LONGEST_PAUSE:
        pause = (
            f"There are no samples between {days.before} and {days.after}; today is {today}: the clock may be wrong."
        )
    return JudgedDay(today, days.newest or days.before, _apart(clock.local_now(), database_now), stale, pause)


def _apart(local: datetime, database: datetime) -> str | None:
    if abs(local - database) <= MOST_APART:
        return None
    moments = [f"{moment:%Y-%m-%d %H:%M}" for moment in (local, database)]
    return f"This machine's clock shows {moments[0]}, PostgreSQL's shows {moments[1]}: one of them is wrong."


# Implausible days, such as -infinity, are ignored.
_SAMPLE_DAYS = """
SELECT greatest(d.before, i.before) AS before, least(d.after, i.after) AS after, greatest(d.newest, i.newest) AS newest
FROM (SELECT max(collected_date) FILTER (WHERE collected_date < :since) AS before,
             min(collected_date) FILTER (WHERE collected_date >= :since) AS after,
             max(collected_date) FILTER (WHERE collected_date >= :since) AS newest
      FROM database_size_stats WHERE collected_date BETWEEN DATE '1900-01-01' AND :today) AS d
CROSS JOIN (SELECT max(collected_date) FILTER (WHERE collected_date < :since) AS before,
                   min(collected_date) FILTER (WHERE collected_date >= :since) AS after,
                   max(collected_date) FILTER (WHERE collected_date >= :since) AS newest
            FROM instance_size_stats WHERE collected_date BETWEEN DATE '1900-01-01' AND :today) AS i
"""
