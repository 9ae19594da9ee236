"""The checks after a run, as data: one statement per check.

A check queries the database for problems, names the first twenty and counts the rest. The severity is `error` if a
person has to act, `warn` otherwise. A check of severity warn covers the windows of the run. A check of severity error
covers every window and stays red until all of them are right, regardless of which windows the next run computes. The
mapping of outcomes to asset checks is in `orchestration.metadata`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Date,
    Engine,
    Executable,
    FromClause,
    Integer,
    Numeric,
    Select,
    String,
    Subquery,
    TableValuedAlias,
    and_,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
)

from capacity_assets.aggregates.ledger import IncompleteWindow
from capacity_assets.aggregates.levels import GROUP, INSTANCE, SERVER_LEVELS, Level
from capacity_assets.aggregates.results import RunSummary
from capacity_assets.base.errors import MAXIMUM_LISTED_ERRORS, database_errors
from capacity_assets.base.periods import Window, adjacent_spans
from capacity_assets.base.units import LARGEST_MB, counted
from capacity_assets.database.cluster import is_distributed
from capacity_assets.database.tables import instances, is_active

MAXIMUM_LISTED = bindparam("listed", type_=Integer)
TODAY = bindparam("today", type_=Date)
PERIOD_TYPE = bindparam("period_type", type_=String)
STARTS = bindparam("starts", type_=ARRAY(Date))
EVERY_START = bindparam("every", type_=ARRAY(Date))


def _first(problems: Select[Any], *order: str) -> Select[Any]:
    """Return the first problems by the named columns (minus: descending), each with the count of all."""
    rows = problems.subquery("problems")
    keys = [rows.c[name[1:]].desc() if name.startswith("-") else rows.c[name] for name in order]
    return select(rows.c.place, func.count().over().label("places")).order_by(*keys).limit(MAXIMUM_LISTED)


def _windows() -> TableValuedAlias:
    days = func.unnest(STARTS, bindparam("ends", type_=ARRAY(Date)))
    return days.table_valued(column("period_start", Date), column("period_end", Date)).render_derived(name="w")


def _active() -> Subquery:
    return select(instances.c.id, instances.c.name).where(is_active()).subquery("i")


def _database(level: Level, rows: FromClause) -> ColumnElement[str]:
    return rows.c.database_name if "database_name" in level.keys else literal("all databases")


def _fewer_days(days: Select[Any]) -> Select[Any]:
    """Compare the days that are expected of each server in each window with those that were measured."""
    rows = days.subquery("days")
    text_of_place = "%s: days measured in the window from %s: %s of %s"
    place = func.format(text_of_place, rows.c.name, rows.c.period_start, rows.c.measured, rows.c.expected)
    missing = (rows.c.expected - rows.c.measured).label("missing")
    problems = select(place.label("place"), missing, rows.c.name, rows.c.period_start)
    return _first(problems.where(rows.c.measured < rows.c.expected), "-missing", "name", "period_start")


def missing_days(level: Level) -> Select[Any]:
    """Servers with fewer measured days than days, counted from their first sample on and up to today."""
    window, server, raw = _windows(), _active(), level.source.alias("r")
    of_server = [raw.c.instance_id == server.c.id, *level.live(raw)]
    first = select(func.min(raw.c.collected_date).label("first_day")).where(*of_server).lateral("f")
    last_day = func.least(window.c.period_end, TODAY)
    measured = (
        select(func.count(raw.c.collected_date.distinct()))
        .where(raw.c.collected_date.between(window.c.period_start, last_day), *of_server)
        .correlate(server, window)
        .scalar_subquery()
    )
    expected = last_day - func.greatest(window.c.period_start, first.c.first_day) + 1
    columns = (server.c.name, window.c.period_start, expected.label("expected"), measured.label("measured"))
    joined = window.join(server, true()).join(first, true())
    return _fewer_days(select(*columns).select_from(joined).where(first.c.first_day <= last_day))


def missing_days_on_nodes(level: Level) -> Select[Any]:
    """The same where rows are distributed: counted per server on the nodes, compared here."""
    window, counted_window, server, raw = _windows(), _windows(), _active(), level.source.alias("r")
    first = select(raw.c.instance_id, func.min(raw.c.collected_date).label("first_day")).where(*level.live(raw))
    first_days = first.group_by(raw.c.instance_id).subquery("f")
    in_window = raw.c.collected_date.between(counted_window.c.period_start, counted_window.c.period_end)
    in_all = raw.c.collected_date.between(bindparam("first_day", type_=Date), bindparam("last_day", type_=Date))
    keys = (raw.c.instance_id, counted_window.c.period_start)
    measured = (
        select(*keys, func.count(raw.c.collected_date.distinct()).label("measured"))
        .select_from(raw.join(counted_window, in_window))
        .where(in_all, *level.live(raw))
        .group_by(*keys)
        .subquery("m")
    )
    last_day = func.least(window.c.period_end, TODAY)
    expected = last_day - func.greatest(window.c.period_start, first_days.c.first_day) + 1
    of_window = and_(measured.c.instance_id == server.c.id, measured.c.period_start == window.c.period_start)
    joined = window.join(server, true()).join(first_days, first_days.c.instance_id == server.c.id)
    count = func.coalesce(measured.c.measured, 0).label("measured")
    days = select(server.c.name, window.c.period_start, expected.label("expected"), count)
    return _fewer_days(
        days.select_from(joined.outerjoin(measured, of_window)).where(first_days.c.first_day <= last_day)
    )


def impossible_values(level: Level) -> Select[Any]:
    """Stored rows with impossible values. A partial index of these rows finds them in a history of any length."""
    server, rows = _active(), level.target.alias("a")
    impossible = []
    for measure in level.measures:
        impossible.append(rows.c[measure.minimum] < literal_column("0"))
        if measure.source.endswith("_mb"):
            # A constant, as in the condition of the index.
            impossible.append(rows.c[measure.maximum] > literal_column(str(LARGEST_MB)))
    text_of_place = "%s, %s: an impossible size or count in the window from %s"
    place = func.format(text_of_place, server.c.name, _database(level, rows), rows.c.period_start)
    problems = (
        select(place.label("place"), server.c.name, rows.c.period_start)
        .select_from(rows.join(server, server.c.id == rows.c.instance_id))
        .where(rows.c.period_type == PERIOD_TYPE, rows.c.period_start == func.any(EVERY_START), or_(*impossible))
    )
    return _first(problems, "name", "period_start")


def jumps(level: Level) -> Select[Any]:
    """Stored rows whose change is beyond the configured bound, or that grew from 0 to more than a little."""
    server, rows = _active(), level.target.alias("a")
    change, percent = rows.c[level.headline.change], rows.c[level.headline.change_percent]
    shown = func.coalesce(cast(percent, String) + " %", "from 0")
    text_of_place = "%s, %s: %s (%s MiB) in the window from %s"
    place = func.format(text_of_place, server.c.name, _database(level, rows), shown, change, rows.c.period_start)
    is_a_jump = func.abs(percent) > bindparam("jump_percent", type_=Integer)
    from_zero = and_(percent.is_(None), change >= bindparam("jump_from_zero_mb", type_=BigInteger))
    problems = (
        select(place.label("place"), func.coalesce(func.abs(percent), cast("infinity", Numeric)).label("jump"))
        .select_from(rows.join(server, server.c.id == rows.c.instance_id))
        .where(rows.c.period_type == PERIOD_TYPE, rows.c.period_start == func.any(STARTS), or_(is_a_jump, from_zero))
    )
    return _first(problems, "-jump", "place")


LEVELS_DIFFER = text("""
SELECT format('%s on %s: databases %s MiB, server %s MiB', i.name, t.collected_date, coalesce(d.total, 0), t.total)
           AS place,
       count(*) OVER () AS places
FROM (SELECT instance_id, collected_date, sum(total_size_mb) AS total FROM instance_size_stats
      WHERE collected_date BETWEEN :first_day AND :last_day AND NOT is_deleted GROUP BY 1, 2) AS t
JOIN instances i ON i.id = t.instance_id AND i.is_active AND i.deleted_at IS NULL
LEFT JOIN (SELECT instance_id, collected_date,
                  div(sum(coalesce(size_bytes, size_mb * CAST(1048576 AS numeric))), 1048576) AS total
           FROM database_size_stats
           WHERE collected_date BETWEEN :first_day AND :last_day GROUP BY 1, 2) AS d
  ON d.instance_id = t.instance_id AND d.collected_date = t.collected_date
WHERE EXISTS (SELECT FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)
              WHERE t.collected_date BETWEEN w.period_start AND w.period_end)
  AND abs(t.total - coalesce(d.total, 0)) > greatest(:tolerance_mb, t.total * :tolerance_percent / 100)
ORDER BY abs(t.total - coalesce(d.total, 0)) DESC, place LIMIT :listed
""")
"""Days on which the databases of a server do not add up to its total."""

GROUPS_DIFFER = text("""
SELECT format('by %s in the window from %s: groups %s MiB in %s databases, fleet %s MiB in %s, added up over its days',
              label_key, period_start, size, databases, fleet_size, fleet_databases) AS place,
       count(*) OVER () AS places
FROM (
    SELECT period_start, label_key, sum(coalesce(sum_size_mb, avg_size_mb)) AS size,
           sum(coalesce(sum_database_count, database_count)) AS databases
    FROM group_size_aggregations
    WHERE period_type = :period_type AND period_start = ANY (CAST(:every AS date[])) GROUP BY 1, 2
) AS g
LEFT JOIN (
    SELECT period_start, coalesce(sum_size_mb, avg_size_mb) AS fleet_size,
           coalesce(sum_database_count, database_count) AS fleet_databases
    FROM group_size_aggregations
    WHERE period_type = :period_type AND period_start = ANY (CAST(:every AS date[])) AND label_key = '(fleet)'
) AS f USING (period_start)
WHERE (size, databases) IS DISTINCT FROM (fleet_size, fleet_databases)
ORDER BY place LIMIT :listed
""")
"""Label keys whose groups do not add up to the fleet in a window, by exact sums, in all windows."""


LEVELS_TOLERANCE_PERCENT = 1
LEVELS_TOLERANCE_MB = 1024
# Growth from 0 has no percent: it is named from this size on.
JUMP_FROM_ZERO_MB = 1024


class Severity(StrEnum):
    """Whether a failed check needs a person to act, or only informs."""

    ERROR = "error"
    WARN = "warn"


@dataclass(frozen=True)
class CheckScope:
    """The scope of checks at one level, as of a day: the windows of a run, and every window that has a partition."""

    period_type: str
    level: Level
    windows: Sequence[Window]
    today: date
    jump_percent: int
    every: Sequence[Window] = ()

    def parameters(self) -> dict[str, object]:
        """Return the parameters that the statements of all checks share."""
        return {
            "period_type": self.period_type,
            "every": sorted({window.start for window in (*self.every, *self.windows)}),
            "starts": [window.start for window in self.windows],
            "ends": [window.end for window in self.windows],
            "first_day": min(window.start for window in self.windows),
            "last_day": min(max(window.end for window in self.windows), self.today),
            "today": self.today,
            "jump_percent": self.jump_percent,
            "tolerance_percent": LEVELS_TOLERANCE_PERCENT,
            "tolerance_mb": LEVELS_TOLERANCE_MB,
            "jump_from_zero_mb": JUMP_FROM_ZERO_MB,
            "listed": MAXIMUM_LISTED_ERRORS,
        }


@dataclass(frozen=True)
class CheckOutcome:
    """What a check found: how many places, the first of them in words, and what to do."""

    name: str
    severity: Severity
    places: int
    listed: tuple[str, ...]
    advice: str
    incident: str | None = None
    """The problems, one per line, in a form that stays the same between runs, for outcomes whose `listed` text
    varies."""

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return self.places == 0

    @property
    def text(self) -> str:
        """The outcome in words, one line per place."""
        if self.passed:
            return "Nothing found."
        hidden = self.places - len(self.listed)
        more = [f"… and {hidden} more"] if hidden > 0 else []
        return "\n".join([f"{self.places} found. {self.advice}", *self.listed, *more])


@dataclass(frozen=True)
class Check:
    """One check: which levels it looks at, its statement, and what to do about what it finds."""

    name: str
    description: str
    severity: Severity
    advice: str
    statement: Callable[[Level], Executable]
    on_nodes: Callable[[Level], Executable] | None = None
    """The statement where rows are distributed, if that is another one."""
    levels: tuple[str, ...] = tuple(SERVER_LEVELS)


SERVERS_STORED = "servers_stored"
SERVERS_STORED_DESCRIPTION = "The rows of every server with samples in a computed window are stored."
SERVERS_STORED_ADVICE = (
    "Fix the samples of these servers, then materialise the partitions again; stored rows were kept. "
    "The metadata of a partition names its servers."
)


def servers_stored(summary: RunSummary, failed: Mapping[date, int]) -> CheckOutcome:
    """Build the outcome from the failures of a run and the number of failed servers of each window."""
    of_run = {part.period_start: part.failed_instances for part in summary.parts}
    every = {start: servers for start, servers in sorted({**failed, **of_run}.items()) if servers}
    here = [f"{part.period_start}: {error}" for part in summary.parts for error in part.errors]
    elsewhere = [
        f"{start}: {counted(servers, 'server')} failed" for start, servers in every.items() if start not in of_run
    ]
    return CheckOutcome(
        SERVERS_STORED,
        Severity.ERROR,
        sum(every.values()),
        tuple([*here, *elsewhere][:MAXIMUM_LISTED_ERRORS]),
        SERVERS_STORED_ADVICE,
        incident="\n".join(f"{start}: {servers}" for start, servers in every.items()),
    )


PARTITIONS_COMPLETE = "partitions_complete"
PARTITIONS_COMPLETE_DESCRIPTION = (
    "Every window that is due and has samples was computed, for every server, over the samples as they are."
)
PARTITIONS_COMPLETE_ADVICE = (
    "Fix the samples of servers that failed, then materialise these partitions. Changed samples are followed by the "
    "late data sensor by itself, unless it is off or its run failed."
)


def partitions_complete(left: Sequence[IncompleteWindow], severity: Severity) -> CheckOutcome:
    """Turn the windows that are left into an outcome that names them by stretches."""
    stretches = [
        (reason, span)
        for reason in dict.fromkeys(window.reason for window in left)
        for span in adjacent_spans(sorted(window.window for window in left if window.reason == reason))
    ]
    listed = tuple(_stretch(span, reason) for reason, span in stretches[:MAXIMUM_LISTED_ERRORS])
    return CheckOutcome(PARTITIONS_COMPLETE, severity, len(stretches), listed, PARTITIONS_COMPLETE_ADVICE)


def _stretch(span: Sequence[Window], reason: str) -> str:
    if len(span) == 1:
        return f"{span[0].key}: {reason}"
    return f"{span[0].key} to {span[-1].key}, {len(span)} windows: {reason}"


def run_checks(engine: Engine, scope: CheckScope) -> list[CheckOutcome]:
    """Run every check of the level; raises DatabaseError, and nothing is changed by looking."""
    with (
        database_errors(doing="checking what was written", kept="All rows written were kept."),
        engine.connect() as connection,
    ):
        outcomes = []
        distributed = is_distributed(engine)
        for check in CHECKS:
            if scope.level.name in check.levels:
                statement = check.on_nodes if distributed and check.on_nodes else check.statement
                rows = connection.execute(statement(scope.level), scope.parameters()).all()
                places = rows[0].places if rows else 0
                listed = tuple(str(row.place) for row in rows)
                outcomes.append(CheckOutcome(check.name, check.severity, places, listed, check.advice))
        return outcomes


def checks_of(level: Level) -> list[tuple[str, str]]:
    """Return name and description of every check that looks at a level, the one of the run itself first."""
    named = [(check.name, check.description) for check in CHECKS if level.name in check.levels]
    return [(SERVERS_STORED, SERVERS_STORED_DESCRIPTION), *named]


CHECKS: tuple[Check, ...] = (
    Check(
        name="samples_complete",
        description="Every server was measured on every day of the window, counted from its first sample on.",
        severity=Severity.WARN,
        advice="Means and changes of these windows rest on fewer days. See why the collection missed them.",
        statement=missing_days,
        on_nodes=missing_days_on_nodes,
    ),
    Check(
        name="values_possible",
        description="No stored size or count is negative, and no size is above 8 EiB.",
        severity=Severity.ERROR,
        advice="The samples behind these rows are wrong. Correct them, then materialise the partitions again.",
        statement=impossible_values,
    ),
    Check(
        name="jumps_named",
        description="Lists every size that changed by more than CAPACITY_JUMP_PERCENT, or grew from 0 to "
        f"{JUMP_FROM_ZERO_MB:,} MiB or more.",
        severity=Severity.WARN,
        advice="Load, purge or wrong measurement? Nothing is to be done if the change is real.",
        statement=jumps,
    ),
    Check(
        name="levels_agree",
        description=f"The databases of a server add up to its total, within {LEVELS_TOLERANCE_PERCENT} % "
        f"and {LEVELS_TOLERANCE_MB:,} MiB.",
        severity=Severity.WARN,
        advice="The two levels are measured separately. See which of the two collections is wrong on these days.",
        statement=lambda _level: LEVELS_DIFFER,
        levels=(INSTANCE.name,),
    ),
    Check(
        name="groups_add_up",
        description="Engines and the groups of each label add up to the fleet, to the MiB.",
        severity=Severity.ERROR,
        advice="Rows of groups are missing or wrong in these windows: compute them again with --overwrite.",
        statement=lambda _level: GROUPS_DIFFER,
        levels=(GROUP.name,),
    ),
)
