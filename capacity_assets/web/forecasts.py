"""The pages about forecasts: what fills first, decisions on it, and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from functools import partial

from sqlalchemy import Connection

from capacity_assets.base.periods import Window
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.forecast.decisions import read_decisions
from capacity_assets.reading.accuracy import FleetAccuracy, ForecastScores, accuracy_of, headline
from capacity_assets.reading.forecasts import StoredRunway, fills_first, free_capacity
from capacity_assets.reading.risks import Headline, next_to_fill
from capacity_assets.reading.subjects import server_facts
from capacity_assets.web.reader import PageQuery, Reader, part_of_page, shared_outdated, shared_revision

OPEN, EVERY = "open", "all"
ACCURACY_SECONDS, FIRST_SECONDS = 1800, 30
DEFAULT_HORIZONS_DAYS = (30, 7)
"""Default horizon: the first with enough forecasts."""
OF_HORIZON = ("kinds", "calibration", "alarms", "fill_dates", "misses", "months")
"""Values of the page of accuracy that are shown for one horizon."""


@dataclass(frozen=True)
class FillingPage:
    """What fills within a year, in the order of fill dates."""

    headline: Headline
    runways: Sequence[StoredRunway]
    declared_since: Sequence[str]
    """Servers whose limits, steps or plans changed after the newest forecast."""
    page: int
    has_more: bool


def read_filling(reader: Reader, query: PageQuery) -> FillingPage:
    """Read what fills first. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    shown = query.rows_shown
    with reader.transaction() as connection:
        filling = fills_first(connection, query.today, shown=shown + 1, skipped=(query.page - 1) * shown)
    if query.page > 1:
        # The headline of all pages is the same.
        key = ("first to fill", query.today, shared_revision(reader))
        read = partial(fills_first, today=query.today, shown=1)
        first = next(iter(reader.read_cached(key, read, FIRST_SECONDS)), None)
    else:
        first = next(iter(filling), None)
    with reader.transaction() as connection:
        free = None if first else free_capacity(connection, reader.thresholds)
    sentence = next_to_fill(first, reader.thresholds, issued=free.as_of if free else None, free=free)
    return FillingPage(sentence, filling[:shown], shared_outdated(reader), query.page, len(filling) > shown)


@dataclass(frozen=True)
class DecisionRow:
    """A decision with its state, with the names of `capacity decisions list --json`."""

    server_id: int
    server: str
    subject: str
    name: str
    kind: str
    until: date
    added_mb: int | None
    probability: float | None
    """Probability of being full by then, when it was decided."""
    probability_now: float | None
    note: str
    ticket: str | None
    declared_at: datetime
    declared_by: str | None
    closed_at: datetime | None
    closed_by: str | None
    text: str
    """What was decided, and until when; of a plan, for which day."""
    sentence: str
    state: str
    """Whether it holds today, and if not, why."""


@dataclass(frozen=True)
class DecisionsPage:
    """Decisions on what may fill, those that end first at the top."""

    every: bool
    """Whether past and closed decisions are listed too, after the open ones."""
    server_id: int | None
    server: str | None
    """The server whose decisions are listed; None: all servers."""
    decisions: Sequence[DecisionRow]
    page: int
    has_more: bool


DECISION_FIELDS = [one.name for one in fields(DecisionRow) if one.name != "state"]


def decision_rows(
    connection: Connection,
    today: date,
    *,
    every: bool = False,
    server_id: int | None = None,
    taken: Window | None = None,
) -> list[DecisionRow]:
    """Return the decisions that are open today, or `every` one, by server and subject; raises DBAPIError.

    With `taken`, only those that were taken in a window.
    """
    return [
        DecisionRow(**{name: getattr(one, name) for name in DECISION_FIELDS}, state=one.state(today))
        for one in read_decisions(connection, today, every=every, server_id=server_id, taken=taken)
    ]


def read_decisions_page(reader: Reader, query: PageQuery) -> DecisionsPage:
    """Read the decisions. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    every = query.one_of("state", (OPEN, EVERY)) == EVERY
    number = query.server() if query.text("server") else None
    with reader.transaction() as connection:
        server = server_facts(connection, number).server if number else None
        rows = decision_rows(connection, query.today, every=every, server_id=number)
    rows.sort(key=lambda one: (one.closed_at is not None or one.until < query.today, one.until, one.server, one.name))
    shown, has_more = part_of_page(rows, query)
    return DecisionsPage(every, number, server, shown, query.page, has_more)


@dataclass(frozen=True, kw_only=True)
class AccuracyPage(ForecastScores):
    """The accuracy of forecasts: `horizons` has every horizon, all other values are of a single one."""

    headline: str
    horizon_days: int


def shared_accuracy(reader: Reader, today: date) -> FleetAccuracy:
    """Return the accuracy of the fleet; raises sqlalchemy.exc.DBAPIError."""
    read = partial(accuracy_of, today=today, thresholds=reader.thresholds)
    return reader.read_cached(("accuracy", today), read, ACCURACY_SECONDS, is_for_all=True)


def read_accuracy(reader: Reader, query: PageQuery) -> AccuracyPage:
    """Read the accuracy. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    asked = query.one_of("horizon", ("", *map(str, HORIZONS_DAYS)))
    found = shared_accuracy(reader, query.today)
    horizon = int(asked) if asked else _default_horizon(found)
    shown = {name: [one for one in getattr(found, name) if one.horizon_days == horizon] for name in OF_HORIZON}
    return AccuracyPage(
        headline=headline(found, horizon, query.today),
        horizon_days=horizon,
        horizons=found.horizons,
        sampled=found.sampled,
        sampled_months=found.sampled_months,
        **shown,
    )


def _default_horizon(found: FleetAccuracy) -> int:
    judged = {one.horizon_days for one in found.horizons if one.is_judged}
    return next((days for days in DEFAULT_HORIZONS_DAYS if days in judged), DEFAULT_HORIZONS_DAYS[-1])
