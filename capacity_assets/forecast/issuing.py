"""`RunwayService` issues the forecasts of a day: it computes and stores them, and scores forecasts that are due.

People have seen forecasts that were issued in time, so these are not replaced later: corrected samples and a better
method only affect later issues. A score is the measured size, stored in the row of the forecast for that day.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from operator import attrgetter
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, text
from sqlalchemy.dialects.postgresql import insert

from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import LARGEST_MB, first_of
from capacity_assets.database.engine import check_today, copy_rows
from capacity_assets.database.locks import try_lock, wait_for_lock
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.database.sql import temporary_table, with_queries
from capacity_assets.database.tables import capacity_runways, instances, is_active, volume_size_stats
from capacity_assets.database.views import DECLARED_FOR_FORECASTS, STANDS_FOR_ITSELF
from capacity_assets.forecast import history
from capacity_assets.forecast.history import (
    COMPLETE_GROUP_DAYS,
    KINDS,
    LAST_MEASURED,
    OF_NO_SERVER,
    STORED_GROUP_DAYS,
)
from capacity_assets.forecast.model import SizeForecasts
from capacity_assets.forecast.results import (
    DATABASE,
    FORECAST,
    FULL,
    GROUP,
    SERVER,
    STALE_DAYS,
    STORED,
    STORED_PLANS,
    TOO_LITTLE_HISTORY,
    VOLUME,
    Runway,
    is_due,
)
from capacity_assets.forecast.runway import coming_plans, runways_of_batch

logger = logging.getLogger("capacity_assets")

MOST_AT_ONCE = 5_000
"""Most forecasts that a command issues after a declaration; they take seconds."""

BUSY_SECONDS = 5
"""How long a command waits for another run, which may have read limits before the declaration."""

HOW_TO_UPDATE = "`capacity runway --issue` updates them now; otherwise the next run does."

IN_TIME_DAYS = 1
"""How long after a day its forecasts still count as issued in time; those are not replaced later."""

EVERY_KIND = (*KINDS, GROUP)
NAMED = 10
IMPOSSIBLE = (
    "No forecast where a size or limit is above 8 EiB, which is impossible. Correct the samples or limits of: %s"
)
_KEYS = [column.name for column in capacity_runways.primary_key]
_NUMBERS = sa.ARRAY(sa.Integer)
_SCORED = [f"actual_{days}_mb" for days in HORIZONS_DAYS]
_BANDS = [
    name
    for days in HORIZONS_DAYS
    for name in (f"forecast_{days}_mb", f"lower_{days}_mb", f"upper_{days}_mb", f"probability_{days}")
]
_COMPUTED = [*_KEYS, *STORED, *_BANDS, *STORED_PLANS]
_COLUMNS = [*_COMPUTED, "stands_for_itself"]
_STAGED = temporary_table("issued_runway", *(sa.Column(name, capacity_runways.c[name].type) for name in _COLUMNS))
"""The forecasts of a run before they are stored."""
_RULE: sa.ColumnElement[bool] = sa.literal_column(STANDS_FOR_ITSELF)
# The rule of the views, in which the staged forecasts have the name of the stored ones.
_COMPARE = (
    sa.update(_STAGED.alias("r"))  # type: ignore[arg-type]  # an alias
    .values(stands_for_itself=_RULE)
    .add_cte(sa.select(_STAGED).cte(capacity_runways.name))
)


@dataclass(frozen=True)
class IssuedRunways:
    """The result of issuing a day: the forecasts that are stored, by this run or in time by an earlier one."""

    as_of: date
    written: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    """Number of servers, databases and volumes by state."""
    left_out: Sequence[str] = ()
    """Servers with an impossible size or limit; these subjects have no forecast."""

    def to_dict(self) -> dict[str, object]:
        """Return the counts as plain values for metadata, where the figures of the day's issue are added."""
        return {
            "as_of": self.as_of.isoformat(),
            "subjects": sum(self.states.values()),
            "forecasts": self.states.get(FORECAST, 0),
            "full": self.states.get(FULL, 0),
            "too_little_history": self.states.get(TOO_LITTLE_HISTORY, 0),
            "written_records": self.written,
        }


def is_in_time(as_of: date, today: date) -> bool:
    """Whether forecasts of a day that are issued today count as issued in time."""
    return as_of >= today - timedelta(days=IN_TIME_DAYS)


def issue_runways(engine: Engine, as_of: date, today: date, *, overwrite: bool = False) -> IssuedRunways:
    """Compute the forecasts of a day from the samples up to it, and store them; all of them or none.

    For a day that is over, forecasts that were issued in time are kept, unless `overwrite` is set.

    Raises DatabaseError: the database failed; nothing was changed.
    """
    with database_errors(doing=f"issuing the runways of {as_of}"), engine.begin() as connection:
        wait_for_lock(connection, "runways")
        return _issue(connection, as_of, today, overwrite=overwrite)


def _issue(connection: Connection, as_of: date, today: date, *, overwrite: bool = False) -> IssuedRunways:
    """Issue the forecasts of a day; the caller holds the lock."""
    in_time = is_in_time(as_of, today)
    scope = history.HistoryScope(as_of, every=True)
    written, left_out = _store(connection, scope, EVERY_KIND, in_time=in_time, replace=overwrite or in_time)
    score_forecasts(connection, as_of, today)
    states = {row.state: row.subjects for row in connection.execute(text(_STATES), {"as_of": as_of})}
    return IssuedRunways(as_of, written, states, left_out)


@dataclass(frozen=True)
class ForecastUpdate:
    """The forecasts that were updated after a declaration for some servers."""

    as_of: date | None = None
    """Day of the forecasts; None: none was updated."""
    updated: Sequence[str] = ()
    """Servers whose forecasts include the declaration."""
    not_measured: Sequence[str] = ()
    """Servers without a forecast: out of service, or not measured within the last month."""
    later: str | None = None
    """Why the forecasts were not updated now."""


def update_forecasts(engine: Engine, servers: Collection[str] | None, clock: Clock) -> ForecastUpdate:
    """Update the newest forecasts of some servers after a declaration; those of other servers are kept.

    Servers that were taken out of service since leave the newest forecasts; earlier ones keep theirs.

    With None, the forecasts of all groups are updated instead, after their stored sums changed; nothing is issued if
    nothing was issued before. If none were issued today, today's are issued for all servers, as the asset `runway`
    does. Nothing is updated if this is more than MOST_AT_ONCE forecasts, if the local clock and PostgreSQL's differ, if
    another run issues forecasts for longer than BUSY_SECONDS, or if the role lacks the rights.

    Raises DatabaseError: the database failed; no forecast was changed.
    """
    kept = "The declaration is stored, but the forecasts are not updated. `capacity runway --issue` updates them."
    with database_errors(doing="updating forecasts", kept=kept), engine.begin() as connection:
        if refused := _why_not_here(connection, clock):
            return ForecastUpdate(later=f"{refused} The next run updates them.")
        today = clock.today()
        newest: date | None = connection.execute(text(_NEWEST), {"today": today}).scalar()
        sampled = history.newest_day(connection, today)
        if newest is None and servers is None:
            return ForecastUpdate()
        every, some = _subjects(connection, newest, sampled, servers or ())
        issues_all = newest != today and every <= MOST_AT_ONCE
        if not issues_all and (newest is None or not is_in_time(newest, today)):
            too_many = f"there are too many (over {MOST_AT_ONCE:,}) to issue here"
            return ForecastUpdate(later=f"Today's forecasts do not exist yet, and {too_many}. {HOW_TO_UPDATE}")
        if not issues_all and some > MOST_AT_ONCE:
            return ForecastUpdate(later=f"{some:,} are too many for this command. {HOW_TO_UPDATE}")
        if not _locked_soon(connection):
            return ForecastUpdate(later=f"Another run is issuing forecasts. {HOW_TO_UPDATE}")
        # The run that held the lock may have issued today's.
        newest = connection.execute(text(_NEWEST), {"today": today}).scalar()
        if newest is None or (issues_all and newest != today):
            newest = today
            _issue(connection, today, today)
        else:
            kinds = (GROUP,) if servers is None else KINDS
            _store(connection, history.HistoryScope(newest, servers, every=True), kinds, in_time=True, replace=True)
        runways, named = capacity_runways.c, servers or ()
        has_runway = sa.select(runways.instance_id).where(runways.as_of == newest)
        names = sa.select(instances.c.name).where(instances.c.name.in_(named), instances.c.id.in_(has_runway))
        updated = connection.execute(names.order_by(instances.c.name)).scalars().all()
        return ForecastUpdate(newest, updated, sorted({*named} - {*updated}))


def _why_not_here(connection: Connection, clock: Clock) -> str | None:
    """Return why a command may not issue forecasts; None: it may."""
    if not connection.execute(text(_MAY_ISSUE)).scalar_one():
        return "This role may not write forecasts."
    return check_today(connection, clock).apart


def _subjects(
    connection: Connection, issued: date | None, sampled: date | None, servers: Collection[str]
) -> tuple[int, int]:
    """Estimate the number of forecasts of all servers and of some, by those issued or databases sampled last."""
    counts = [
        connection.execute(text(query), {"day": day, "instance_ids": _ids_of(connection, servers)}).one()
        for query, day in ((_ISSUED, issued), (_SAMPLED, sampled))
    ]
    return max(row.every for row in counts), max(row.some for row in counts)


def _locked_soon(connection: Connection) -> bool:
    """Acquire the lock for issuing; return False if another run still holds it after BUSY_SECONDS."""
    until = time.monotonic() + BUSY_SECONDS
    while not try_lock(connection, "runways"):
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)
    return True


def _store(
    connection: Connection, scope: history.HistoryScope, kinds: Sequence[str], *, in_time: bool, replace: bool
) -> tuple[int, list[str]]:
    """Compute and store forecasts of these kinds; with `replace`, they replace stored ones of the day.

    Returns the number of changed rows, and the servers left out because of an impossible size or limit.
    """
    connection.execute(sa.schema.CreateTable(_STAGED))
    left_out = _stage(connection, scope, kinds)
    if left_out:
        logger.warning(IMPOSSIBLE, first_of(left_out, NAMED))
    if replace:
        # All rows of a server are staged. Where stored ones are kept, readers compare them.
        connection.execute(text("CREATE INDEX ON issued_runway (instance_id, subject)"))
        connection.execute(text("ANALYZE issued_runway"))
        connection.execute(_COMPARE)
    runways = capacity_runways.c
    # Citus reports the number of rows given to a statement, not of those written, and each node has its own now().
    issued_at = connection.execute(text("SELECT now()")).scalar_one()
    staged = sa.select(*_STAGED.c, sa.literal(in_time), sa.literal(issued_at))
    store = insert(capacity_runways).from_select([*_COLUMNS, "in_time", "issued_at"], staged)
    if not replace:
        connection.execute(store.on_conflict_do_nothing(index_elements=_KEYS))
        added = sa.select(runways.instance_id).where(runways.as_of == scope.as_of, runways.issued_at == issued_at)
        beside = sa.update(capacity_runways).where(runways.as_of == scope.as_of, runways.stands_for_itself.is_not(None))
        is_beside = runways.instance_id == sa.any_(sa.literal(sorted({*connection.execute(added).scalars()}), _NUMBERS))
        connection.execute(beside.where(is_beside).values(stands_for_itself=None))
    else:
        new = store.excluded
        values = [name for name in _COLUMNS if name not in _KEYS]
        # A stored score is kept only if the forecast begins on the same day as before.
        actual = {name: sa.case((runways.last_day == new.last_day, runways[name])) for name in _SCORED}
        changes = {**{name: new[name] for name in (*values, "issued_at", "in_time")}, **actual}
        is_changed = sa.or_(*(runways[name].is_distinct_from(new[name]) for name in values))
        connection.execute(store.on_conflict_do_update(index_elements=_KEYS, set_=changes, where=is_changed))
    of_this_run = sa.select(sa.func.count()).where(runways.as_of == scope.as_of, runways.issued_at == issued_at)
    written: int = connection.execute(of_this_run).scalar_one()
    if replace:
        of_servers = None if scope.servers is None else _ids_of(connection, scope.servers)
        ids = [OF_NO_SERVER] if kinds == (GROUP,) else of_servers
        removed = _remove_subjects_gone(connection, scope.as_of, ids)
        written += removed
        # Rows that did not change were computed with the declaration too.
        declared, day = {"declared": DECLARED_FOR_FORECASTS}, {"as_of": scope.as_of}
        query = with_queries(_DECLARED_SINCE, **declared)
        confirmed = [*connection.execute(query, {**day, "instance_ids": ids}).scalars()]
        if removed:
            # Pages notice a change by the time of the newest forecast, so one server gets that of the run: one of this
            # run or, if all its forecasts were removed, one whose forecasts are not marked as older.
            of_run = connection.execute(sa.select(_STAGED.c.instance_id).limit(1)).scalars().all()
            confirmed += of_run or connection.execute(with_queries(_NOT_OUTDATED, **declared), day).scalars()
        is_confirmed = runways.instance_id == sa.any_(sa.literal(confirmed, sa.ARRAY(sa.Integer)))
        confirm = sa.update(capacity_runways).where(runways.as_of == scope.as_of, is_confirmed)
        connection.execute(confirm.values(issued_at=issued_at))
    return written, left_out


def _remove_subjects_gone(connection: Connection, as_of: date, instance_ids: Sequence[int] | None) -> int:
    """Remove the forecasts of the day whose subjects are not staged; return how many were removed.

    They are looked up in a separate query, because the table may be distributed, and the staged one is not.
    """
    runways = capacity_runways.c
    stored = sa.select(*(runways[name] for name in _KEYS)).where(runways.as_of == as_of)
    if instance_ids is not None:
        stored = stored.where(runways.instance_id == sa.any_(sa.literal(instance_ids, sa.ARRAY(sa.Integer))))
    gone = stored.except_(sa.select(*(_STAGED.c[name] for name in _KEYS))).subquery("gone")
    is_gone = (gone.c[name] == runways[name] for name in _KEYS)
    return connection.execute(sa.delete(capacity_runways).where(runways.as_of == as_of, *is_gone)).rowcount


def _ids_of(connection: Connection, servers: Collection[str]) -> list[int]:
    query = "SELECT id FROM instances WHERE name = ANY (:names)"
    return list(connection.execute(text(query), {"names": list(servers)}).scalars())


def _stage(connection: Connection, scope: history.HistoryScope, kinds: Sequence[str]) -> list[str]:
    """Stage the forecasts of all subjects of these kinds; return the servers with impossible values."""
    left_out: set[str] = set()
    plans = coming_plans(connection, scope.as_of)
    with history.open_history_reader(connection, scope, kinds) as reader:
        for kind in kinds:
            for batch in reader.series(kind):
                runways = runways_of_batch(batch, plans)
                rows = _rows(scope.as_of, batch, runways.rows, runways.forecasts, left_out)
                copy_rows(connection, f"COPY issued_runway ({', '.join(_COMPUTED)}) FROM STDIN", rows)
    return sorted(left_out)


def _rows(
    as_of: date, batch: history.SeriesBatch, rows: Sequence[Runway], forecasts: SizeForecasts, left_out: set[str]
) -> Iterator[tuple[object, ...]]:
    """Yield the rows of runways, with the ends of bands rounded outwards.

    If another program stored an impossible size or limit, its server is added to `left_out` instead.
    """
    every_middle = forecasts.middle
    largest = np.nanmax(batch.sizes, axis=1)
    for place, (subject, row) in enumerate(zip(batch.subjects, rows, strict=True)):
        if max(largest[place], row.limit_mb or 0) > LARGEST_MB:
            left_out.add(row.server)
            continue
        has_band = forecasts.upper[place, 0] == forecasts.upper[place, 0]
        figures: list[object] = []
        for number, days in enumerate(HORIZONS_DAYS):
            middle, lower, upper = (size[place, number] for size in (every_middle, forecasts.lower, forecasts.upper))
            sizes = (round(float(middle)), int(lower), -int(-upper // 1)) if has_band else (None, None, None)
            figures += [*sizes, row.probabilities.get(days)]
        planned = _PLANNED(row.planned) if row.planned else [None] * len(STORED_PLANS)
        yield as_of, subject.instance_id, subject.subject, subject.name, *_FIGURES(row), *figures, *planned


_FIGURES, _PLANNED = attrgetter(*STORED.values()), attrgetter(*STORED_PLANS.values())
_STATES = """
SELECT state, count(*) AS subjects FROM capacity_runways WHERE as_of = :as_of AND subject <> 'group' GROUP BY state
"""
_MAY_ISSUE = """
SELECT bool_and(has_table_privilege('capacity_runways', needed))
FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS rights (needed)
"""
_NEWEST = "SELECT max(as_of) FROM capacity_runways WHERE as_of <= :today"
_ISSUED = """
SELECT count(*) AS every, count(*) FILTER (WHERE instance_id = ANY (CAST(:instance_ids AS integer[]))) AS some
FROM capacity_runways WHERE as_of = :day AND subject <> 'group'
"""
_SAMPLED = """
SELECT count(*) AS every, count(*) FILTER (WHERE instance_id = ANY (CAST(:instance_ids AS integer[]))) AS some
FROM database_size_stats WHERE collected_date = :day
"""
_DECLARED_SINCE = """
SELECT DISTINCT d.instance_id FROM declared AS d
WHERE (CAST(:instance_ids AS integer[]) IS NULL OR d.instance_id = ANY (CAST(:instance_ids AS integer[])))
  AND d.declared_at > (SELECT min(issued_at) FROM capacity_runways WHERE as_of = :as_of)
"""
_NOT_OUTDATED = """
SELECT r.instance_id FROM capacity_runways r
LEFT JOIN (SELECT instance_id, max(declared_at) AS last_at FROM declared GROUP BY instance_id) AS d
    ON d.instance_id = r.instance_id
WHERE r.as_of = :as_of AND r.subject <> 'group' AND (d.last_at > r.issued_at) IS NOT TRUE LIMIT 1
"""


def score_forecasts(connection: Connection, as_of: date, today: date) -> None:
    """Store measured sizes with the forecasts that came due since the previous issue, and with those of this issue.

    Forecasts are also scored if samples of their due day arrived or changed later. Those of this issue may have come
    due long ago, if a past day was issued.

    Raises sqlalchemy.exc.DBAPIError: the database failed.
    """
    runways = capacity_runways.c
    spans = changed_spans(connection, as_of, today)
    in_service = connection.execute(sa.select(instances.c.id).where(is_active())).scalars().all()
    oldest = connection.execute(sa.select(sa.func.min(runways.as_of))).scalar() or as_of
    for days in HORIZONS_DAYS:
        # The first forecasts of an issue come due this long after it.
        ahead = timedelta(days=days - STALE_DAYS)
        due = [(span, is_due(days, *span)) for span in spans if oldest + ahead <= span[1]]
        if as_of + ahead <= today:
            is_forecast = runways[f"forecast_{days}_mb"].is_not(None)
            is_own = sa.and_(runways.as_of == as_of, runways.last_day + days <= today, is_forecast)
            due.append(((as_of, today), is_own))
        for subject in _MEASURED:
            for span, is_due_then in due:
                connection.execute(_scoring(subject, days, span, is_due_then, in_service))


def _scoring(
    subject: str, days: int, span: tuple[date, date], is_due: sa.ColumnElement[bool], in_service: Sequence[int]
) -> sa.Update:
    first, last = span
    runways, volumes = capacity_runways.c, volume_size_stats.c
    query = _group_days(first, last, in_service) if subject == GROUP else _MEASURED[subject].columns(*_MEASURED_COLUMNS)
    measured = query.subquery("measured")
    actual_mb = runways[f"actual_{days}_mb"]
    size_mb: sa.ColumnElement[Any] = measured.c.size_mb
    if subject == DATABASE:
        # A forecast of the used space is scored only by the used space.
        size_mb = sa.case((runways.allocated_mb.is_(None), size_mb), else_=measured.c.used_mb)
    scoring = sa.update(capacity_runways).where(
        runways.subject == subject,
        measured.c.instance_id == runways.instance_id,
        measured.c.name == runways.name,
        measured.c.collected_date.between(first - timedelta(days=STALE_DAYS), last),
        measured.c.collected_date == runways.last_day + days,
        actual_mb.is_distinct_from(size_mb),
        is_due,
    )
    if subject == VOLUME:
        # If the used size of a volume was unknown on the day of the forecast, it was another kind of size.
        of_forecast = sa.select(volumes.used_mb).where(
            volumes.instance_id == runways.instance_id,
            volumes.volume_name == runways.name,
            volumes.collected_date == runways.last_day,
            volumes.used_mb.is_(None) != measured.c.used_mb.is_(None),
        )
        scoring = scoring.where(~of_forecast.correlate(capacity_runways, measured).exists())
    return scoring.values({actual_mb: size_mb})


def _group_days(first: date, last: date, in_service: Sequence[int]) -> sa.TextualSelect:
    """Return the query of the complete days of groups, with enough days around to judge which are complete."""
    until = last + timedelta(days=14)
    recent_days = [until - timedelta(days=back) for back in range(STALE_DAYS + 14)]
    last_measured = text(LAST_MEASURED).bindparams(recent_days=recent_days, instance_ids=in_service)
    group_days = text(STORED_GROUP_DAYS).bindparams(before_first=first - timedelta(days=STALE_DAYS + 15), as_of=until)
    parts = (
        last_measured.columns().cte("last_measured").prefix_with("MATERIALIZED"),
        group_days.columns().cte("group_days"),
        text(COMPLETE_GROUP_DAYS).columns().cte("complete_group_days"),
    )
    query = _MEASURED[GROUP].bindparams(of_no_server=OF_NO_SERVER).columns(*_MEASURED_COLUMNS)
    return query.add_cte(*parts, nest_here=True)


def changed_spans(connection: Connection, as_of: date, today: date) -> list[tuple[date, date]]:
    """Return the ranges of days whose samples changed since the issue before a day; raises as `score_forecasts`.

    Adjacent days are merged, because fewer statements matter more than fewer rows.
    """
    before: date = connection.execute(text(_ISSUE_BEFORE), {"as_of": as_of}).scalar() or as_of
    # An issue is computed on its day or the day after; in other time zones days begin earlier.
    spans = [(before - timedelta(days=1), as_of)]
    is_past = as_of < today - timedelta(days=1)
    # A past day scores only itself.
    since = {"since": spans[0][0], "as_of": as_of}
    changed = () if is_past else connection.execute(text(_CHANGED_DAYS), since).scalars()
    for day in changed:
        first, last = spans[0]
        if first - day > timedelta(days=STALE_DAYS):
            spans.insert(0, (day, day))
        else:
            spans[0] = (min(day, first), last)
    return spans


_MEASURED = {
    DATABASE: text("""
SELECT instance_id, database_name AS name, collected_date, used_size_mb AS used_mb, size_mb
FROM database_size_stats"""),
    # A void total has no size, so that a stored score is removed.
    SERVER: text("""
SELECT instance_id, '' AS name, collected_date, sum(total_size_mb) FILTER (WHERE NOT is_deleted) AS size_mb
FROM instance_size_stats GROUP BY instance_id, collected_date"""),
    VOLUME: text("""
SELECT instance_id, volume_name AS name, collected_date, used_mb, coalesce(used_mb, total_mb - free_mb) AS size_mb
FROM volume_size_stats"""),
    GROUP: text("""
SELECT CAST(:of_no_server AS integer) AS instance_id, label_key || '=' || label_value AS name, day AS collected_date,
       size_mb
FROM complete_group_days"""),
}
_MEASURED_COLUMNS: list[sa.ColumnClause[Any]] = [
    sa.column(name) for name in ("instance_id", "name", "collected_date", "used_mb", "size_mb")
]
_ISSUE_BEFORE = "SELECT max(as_of) FROM capacity_runways WHERE as_of < :as_of"
# Days with late or corrected samples: their windows are stale, or were recomputed since.
_CHANGED_DAYS = """
SELECT day FROM (
    SELECT period_start AS day FROM capacity_stale_windows
          WHERE period_type = 'daily' AND newest_change IS NOT NULL AND NOT has_its_sums
    UNION SELECT period_start FROM capacity_computed_windows
          WHERE period_type = 'daily' AND computed_at >= CAST(:since AS date)
    UNION SELECT collected_date FROM volume_size_stats WHERE collected_at >= CAST(:since AS date)
) AS changed WHERE day < :as_of ORDER BY day DESC
"""


@dataclass(frozen=True)
class RunwayService:
    """Issues the forecasts of one capacity database."""

    engine: Engine
    clock: Clock

    def issue(self, as_of: date, *, overwrite: bool = False) -> IssuedRunways:
        """Issue the forecasts of a day.

        Raises:
            ValidationError: the day is in the future, or is the current day by a clock that differs from PostgreSQL's;
            nothing was changed.
            DatabaseError: the database failed; nothing was changed.
        """
        today = self.clock.today()
        if as_of > today:
            raise ValidationError(f"{as_of} is in the future: there is nothing to forecast from.")
        refuse_an_unfit_database(self.engine, self.clock.zone)
        with database_errors(doing="reading the clock"), self.engine.connect() as connection:
            apart = check_today(connection, self.clock).apart
        # Forecasts in hindsight are marked, so a wrong clock does no harm there.
        if apart and is_in_time(as_of, today):
            raise ValidationError(f"{apart} No forecast is issued while the date is in doubt.")
        return issue_runways(self.engine, as_of, today, overwrite=overwrite)

    def is_in_time(self, as_of: date) -> bool:
        """Whether forecasts of a day that are issued now count as issued in time."""
        return is_in_time(as_of, self.clock.today())
