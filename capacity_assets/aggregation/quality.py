"""The checks after a run, as data: one statement per check.

A check asks the database for places where something is wrong in the windows of the run, names the first
twenty and counts the rest. Severity says whether a person has to act (`error`) or is informed
(`warn`). How an outcome becomes an asset check is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from sqlalchemy import Engine, text

from capacity_assets.aggregation.ledger_windows import OpenWindow
from capacity_assets.aggregation.results import RunSummary
from capacity_assets.foundation.errors import database_errors
from capacity_assets.foundation.levels import DATABASE, INSTANCE, LEVELS, Level
from capacity_assets.foundation.status import MAXIMUM_LISTED_ERRORS
from capacity_assets.periods import Window, adjacent_spans
from capacity_assets.storage.active_servers import active_condition

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
    """What is checked: the windows of a run at one level, as of a day."""

    period_type: str
    level: Level
    windows: Sequence[Window]
    today: date
    jump_percent: int

    def parameters(self) -> dict[str, object]:
        """Return the parameters that the statements of all checks share."""
        return {
            "period_type": self.period_type,
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

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return self.places == 0

    @property
    def text(self) -> str:
        """The outcome in words, one place a line."""
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
    statement: Callable[[Level], str]
    levels: tuple[str, ...] = tuple(LEVELS)


SERVERS_STORED = "servers_stored"
SERVERS_STORED_DESCRIPTION = "Every server with samples in the windows of the run has its rows stored."
SERVERS_STORED_ADVICE = (
    "Fix the samples of these servers, then materialise the partitions again; stored rows were kept."
)


def servers_stored(summary: RunSummary) -> CheckOutcome:
    """Turn the failures of a run into an outcome; needs no statement."""
    listed = tuple(f"{part.period_start}: {error}" for part in summary.parts for error in part.errors)[
        :MAXIMUM_LISTED_ERRORS
    ]
    return CheckOutcome(
        SERVERS_STORED, Severity.ERROR, summary.total("failed_instances"), listed, SERVERS_STORED_ADVICE
    )


PARTITIONS_COMPLETE = "partitions_complete"
PARTITIONS_COMPLETE_DESCRIPTION = (
    "Every window that is due and has samples was computed, for every server, over the samples as they are."
)
PARTITIONS_COMPLETE_ADVICE = (
    "Fix the samples of servers that failed, then materialise these partitions. Changed samples are followed by the "
    "late data sensor by itself, unless it is off or its run failed."
)


def partitions_complete(left: Sequence[OpenWindow], severity: Severity) -> CheckOutcome:
    """Turn the windows that are left into an outcome that names them by stretches."""
    stretches = [
        (reason, span)
        for reason in dict.fromkeys(window.reason for window in left)
        for span in adjacent_spans(sorted(found.window for found in left if found.reason == reason))
    ]
    listed = tuple(_stretch(span, reason) for reason, span in stretches[:MAXIMUM_LISTED_ERRORS])
    return CheckOutcome(PARTITIONS_COMPLETE, severity, len(stretches), listed, PARTITIONS_COMPLETE_ADVICE)


def _stretch(span: Sequence[Window], reason: str) -> str:
    if len(span) == 1:
        return f"{span[0].key}: {reason}"
    return f"{span[0].key} to {span[-1].key}, {len(span)} windows: {reason}"


def run_checks(engine: Engine, scope: CheckScope) -> list[CheckOutcome]:
    """Run every check of the level.

    Raises:
        DatabaseError: the database failed; nothing is changed by looking.
    """
    with (
        database_errors(doing="looking at what was written", kept="All rows written were kept."),
        engine.connect() as connection,
    ):
        outcomes = []
        for check in CHECKS:
            if scope.level.name in check.levels:
                rows = connection.execute(text(check.statement(scope.level)), scope.parameters()).all()
                places = rows[0].places if rows else 0
                listed = tuple(str(row.place) for row in rows)
                outcomes.append(CheckOutcome(check.name, check.severity, places, listed, check.advice))
        return outcomes


def checks_of(level: Level) -> list[tuple[str, str]]:
    """Return name and description of every check that looks at a level, the one of the run itself first."""
    named = [(check.name, check.description) for check in CHECKS if level.name in check.levels]
    return [(SERVERS_STORED, SERVERS_STORED_DESCRIPTION), *named]


def _first(body: str, order: str) -> str:
    """Number the places of a query, keep the first ones, and carry the count of all."""
    return (
        f"SELECT place, count(*) OVER () AS places FROM ({body}) AS found "  # noqa: S608 -- built from our own names
        f"ORDER BY {order} LIMIT :listed"
    )


_WINDOWS = "unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)"
_ACTIVE = f"(SELECT id, name FROM instances WHERE {active_condition('instances')}) AS i"  # noqa: S608 -- constants


def _live(level: Level) -> str:
    return f"AND NOT r.{level.void_flag}" if level.void_flag else ""


def _missing_days(level: Level) -> str:
    """Servers with fewer measured days than days, counted from their first sample on and up to today."""
    raw, live = level.source.name, _live(level)
    body = f"""
        SELECT format('%s: %s of %s days measured in the window from %s', name, measured, expected, period_start)
                   AS place,
               expected - measured AS missing, name, period_start
        FROM (
            SELECT i.name, w.period_start,
                   least(w.period_end, CAST(:today AS date)) - greatest(w.period_start, f.first_day) + 1 AS expected,
                   (SELECT count(DISTINCT r.collected_date) FROM {raw} r
                    WHERE r.instance_id = i.id AND r.collected_date BETWEEN w.period_start AND w.period_end
                      AND r.collected_date <= CAST(:today AS date) {live}) AS measured
            FROM {_WINDOWS}
            CROSS JOIN {_ACTIVE}
            CROSS JOIN LATERAL (SELECT min(r.collected_date) AS first_day FROM {raw} r
                                WHERE r.instance_id = i.id {live}) AS f
            WHERE f.first_day <= least(w.period_end, CAST(:today AS date))
        ) AS days
        WHERE measured < expected"""  # noqa: S608 -- built from our own names
    return _first(body, "missing DESC, name, period_start")


def _impossible_values(level: Level) -> str:
    """Stored rows with impossible values."""
    negative = " OR ".join(f"a.{measure.minimum} < 0" for measure in level.measures)
    database = "a.database_name" if "database_name" in level.keys else "'all databases'"
    body = f"""
        SELECT format('%s, %s: a negative size or count in the window from %s', i.name, {database}, a.period_start)
                   AS place,
               i.name, a.period_start
        FROM {level.target.name} a JOIN {_ACTIVE} ON i.id = a.instance_id
        WHERE a.period_type = :period_type AND a.period_start = ANY (CAST(:starts AS date[])) AND ({negative})"""  # noqa: S608
    return _first(body, "name, period_start")


def _jumps(level: Level) -> str:
    """Stored rows whose change is beyond the configured bound, or that grew from 0 to more than a little."""
    headline = level.headline
    database = "a.database_name" if "database_name" in level.keys else "'all databases'"
    body = f"""
        SELECT format('%s, %s: %s (%s MiB) in the window from %s', i.name, {database},
                      coalesce(a.{headline.change_percent} || ' %', 'from 0'), a.{headline.change}, a.period_start)
                   AS place,
               coalesce(abs(a.{headline.change_percent}), 'infinity') AS jump
        FROM {level.target.name} a JOIN {_ACTIVE} ON i.id = a.instance_id
        WHERE a.period_type = :period_type AND a.period_start = ANY (CAST(:starts AS date[]))
          AND (abs(a.{headline.change_percent}) > :jump_percent
               OR a.{headline.change_percent} IS NULL AND a.{headline.change} >= :jump_from_zero_mb)"""  # noqa: S608 -- built from our own names
    return _first(body, "jump DESC, place")


def _levels_differ(_level: Level) -> str:
    """Days on which the databases of a server do not add up to its total."""
    body = f"""
        SELECT format('%s on %s: databases %s MiB, server %s MiB', i.name, t.collected_date,
                      coalesce(d.total, 0), t.total) AS place,
               abs(t.total - coalesce(d.total, 0)) AS difference
        FROM (SELECT r.instance_id, r.collected_date, sum(r.total_size_mb) AS total FROM {INSTANCE.source.name} r
              WHERE r.collected_date BETWEEN :first_day AND :last_day {_live(INSTANCE)} GROUP BY 1, 2) AS t
        JOIN {_ACTIVE} ON i.id = t.instance_id
        LEFT JOIN (SELECT r.instance_id, r.collected_date,
                          div(sum(coalesce(r.size_bytes, r.size_mb * CAST(1048576 AS numeric))), 1048576) AS total
                   FROM {DATABASE.source.name} r
                   WHERE r.collected_date BETWEEN :first_day AND :last_day GROUP BY 1, 2) AS d
          ON d.instance_id = t.instance_id AND d.collected_date = t.collected_date
        WHERE EXISTS (SELECT FROM {_WINDOWS} WHERE t.collected_date BETWEEN w.period_start AND w.period_end)
          AND abs(t.total - coalesce(d.total, 0))
              > greatest(:tolerance_mb, t.total * :tolerance_percent / 100)"""  # noqa: S608 -- built from our own names
    return _first(body, "difference DESC, place")


def _groups_differ(_level: Level) -> str:
    """Groupings of a window whose groups do not add up to the fleet, in size or change."""
    body = f"""
        SELECT format('by %s in the window from %s: groups %s MiB, changed by %s; fleet %s MiB, changed by %s',
                      g.grouped_by, w.period_start, g.size_mb, g.change_mb, f.size_mb, f.change_mb) AS place
        FROM {_WINDOWS}
        CROSS JOIN LATERAL (
            SELECT grouped_by, sum(size_mb) AS size_mb, sum(change_mb) AS change_mb FROM capacity_groups
            WHERE period = :period_type AND window_start = w.period_start GROUP BY grouped_by
        ) AS g
        CROSS JOIN LATERAL (
            SELECT sum(total_size_mb) AS size_mb, sum(total_size_change_mb) AS change_mb
            FROM instance_size_aggregations a LEFT JOIN instances i ON i.id = a.instance_id
            WHERE a.period_type = :period_type AND a.period_start = w.period_start AND i.counted_by IS NULL
        ) AS f
        WHERE (g.size_mb, g.change_mb) IS DISTINCT FROM (f.size_mb, f.change_mb)"""  # noqa: S608 -- built from our own names
    return _first(body, "place")


CHECKS: tuple[Check, ...] = (
    Check(
        name="samples_complete",
        description="Every server was measured on every day of the window, counted from its first sample on.",
        severity=Severity.WARN,
        advice="Means and changes of these windows rest on fewer days. See why the collection missed them.",
        statement=_missing_days,
    ),
    Check(
        name="values_possible",
        description="No stored size or count is negative.",
        severity=Severity.ERROR,
        advice="The samples behind these rows are wrong. Correct them, then materialise the partitions again.",
        statement=_impossible_values,
    ),
    Check(
        name="jumps_named",
        description="No size changed by more than CAPACITY_JUMP_PERCENT, or grew from 0 to "
        f"{JUMP_FROM_ZERO_MB:,} MiB or more, without being named here.",
        severity=Severity.WARN,
        advice="Load, purge or wrong measurement? Nothing is to be done if the change is real.",
        statement=_jumps,
    ),
    Check(
        name="levels_agree",
        description=f"The databases of a server add up to its total, within {LEVELS_TOLERANCE_PERCENT} % "
        f"and {LEVELS_TOLERANCE_MB} MB.",
        severity=Severity.WARN,
        advice="The two levels are measured separately. See which of the two collections is wrong on these days.",
        statement=_levels_differ,
        levels=(INSTANCE.name,),
    ),
    Check(
        name="groups_add_up",
        description="Engines, servers and the groups of each label add up to the fleet, to the megabyte.",
        severity=Severity.ERROR,
        advice="Figures by group are wrong in these windows. Report it with the statement of the view capacity_groups.",
        statement=_groups_differ,
        levels=(INSTANCE.name,),
    ),
)
