"""The state of the collection: the outcome of each server on the newest day, and since when servers have failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sqlalchemy import Engine, text

from capacity_assets.errors import database_errors
from capacity_assets.storage.active_servers import active_condition
from capacity_assets.units import counted


@dataclass(frozen=True)
class Failing:
    """A server in service whose newest attempt failed."""

    server: str
    kind: str
    last_collected: date | None
    reason: str


@dataclass(frozen=True)
class Standing:
    """Servers registered for collection and in service, by the outcome of the newest day of attempts."""

    registered: int
    day: date | None
    collected: int
    failed: int
    failing: tuple[Failing, ...]

    @property
    def text(self) -> str:
        """In a sentence."""
        if not self.registered:
            return (
                "Collection: no server is measured from here; samples are imported, or another application writes them."
            )
        if self.day is None:
            return f"Collection: {counted(self.registered, 'server')} registered, none measured yet."
        left = self.registered - self.collected - self.failed
        return (
            f"Collection, {self.day}: {self.collected:,} of {counted(self.registered, 'server')} measured, "
            f"{self.failed:,} failed{f', {left:,} not tried' if left else ''}."
        )


def standing(engine: Engine) -> Standing:
    """Read the state of the collection; raises DatabaseError."""
    with database_errors(doing="reading the collection", kept="Nothing was changed."), engine.connect() as connection:
        counts = connection.execute(text(_COUNTS)).one()
        failing = [Failing(*row) for row in connection.execute(text(_FAILING))]
    return Standing(counts.registered, counts.day, counts.collected, counts.failed, tuple(failing))


_IN_SERVICE = f"""
SELECT i.id, i.name FROM capacity_collection_targets t JOIN instances i ON i.id = t.instance_id
WHERE {active_condition("i")}
"""  # noqa: S608 -- a constant condition
_COUNTS = f"""
WITH servers AS ({_IN_SERVICE}), newest AS (SELECT max(collected_date) AS day FROM capacity_collection_attempts)
SELECT (SELECT count(*) FROM servers) AS registered, (SELECT day FROM newest) AS day,
       count(*) FILTER (WHERE a.status = 'collected') AS collected,
       count(*) FILTER (WHERE a.status = 'failed') AS failed
FROM servers s JOIN capacity_collection_attempts a
    ON a.instance_id = s.id AND a.collected_date = (SELECT day FROM newest)
"""  # noqa: S608 -- a constant of this module
_FAILING = f"""
SELECT s.name, a.failure, (SELECT max(c.collected_date) FROM capacity_collection_attempts c
                           WHERE c.instance_id = s.id AND c.status = 'collected') AS last_collected, a.reason
FROM ({_IN_SERVICE}) AS s
CROSS JOIN LATERAL (SELECT * FROM capacity_collection_attempts n WHERE n.instance_id = s.id
                    ORDER BY n.collected_date DESC LIMIT 1) AS a
WHERE a.status = 'failed' ORDER BY last_collected NULLS FIRST, s.name
"""  # noqa: S608 -- a constant of this module
