"""The checks after a run, as data: one statement per check.

A check queries the database for problems; each window has its own outcome, which names the first twenty places and
counts the others. The severity is `error` if a person has to act, `warn` otherwise. A check of severity warn covers the
windows of the run; one of severity error also names wrong windows outside the run. Checks of anything except rows of
aggregates are in `orchestration.checks`, as is the mapping of outcomes to asset checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine

from capacity_assets.aggregates.ledger import IncompleteWindow
from capacity_assets.aggregates.levels import GROUP, INSTANCE, SERVER_LEVELS, Level
from capacity_assets.aggregates.runs import RunSummary
from capacity_assets.base.errors import MAXIMUM_LISTED_ERRORS, database_errors
from capacity_assets.base.periods import Window, adjacent_spans
from capacity_assets.base.units import counted
from capacity_assets.database.cluster import is_distributed
from capacity_assets.database.sql import with_queries
from capacity_assets.database.tables import impossible_values

LEVELS_TOLERANCE_PERCENT = 1
LEVELS_TOLERANCE_MB = 1024
# Growth from 0 has no percentage, and is named from this size on.
JUMP_FROM_ZERO_MB = 1024


class CheckSeverity(StrEnum):
    """Whether a failed check needs a person to act, or only informs."""

    ERROR = "error"
    WARN = "warn"


@dataclass(frozen=True)
class CheckScope:
    """The scope of checks of one level as of a day: the windows of a run, and every window that has a partition."""

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
    """The result of a check: the number of places, a text about the first ones, and what to do."""

    name: str
    severity: CheckSeverity
    places: int
    listed: tuple[str, ...]
    advice: str
    period_start: date | None = None
    """First day of its window; None: it is about all of them."""
    incident: str | None = None
    """The findings in a form that stays the same between runs, for outcomes whose `listed` text varies."""

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
    """One check: its levels, its statement, and what to do about its findings.

    The statement returns places, each with its window and a weight; the heaviest are listed. Names in braces are in
    `names_of_level`.
    """

    name: str
    description: str
    severity: CheckSeverity
    advice: str
    statement: str
    on_nodes: str = ""
    """The statement for distributed rows, if it differs."""
    levels: tuple[str, ...] = tuple(SERVER_LEVELS)


CHECKS: tuple[Check, ...] = (
    Check(
        name="samples_complete",
        description="Every server was measured on every day of the window, counted from its first sample on.",
        severity=CheckSeverity.WARN,
        advice="Means and changes of these windows are based on fewer days. Find out why the collection missed them.",
        statement="""
SELECT period_start, expected - measured AS weight,
       format('%s: days measured in the window from %s: %s of %s', name, period_start, measured, expected) AS place
FROM (
    SELECT i.name, w.period_start,
           least(w.period_end, CAST(:today AS date)) - greatest(w.period_start, f.first_day) + 1 AS expected,
           (SELECT count(DISTINCT r.collected_date) FROM {raw} r
            WHERE r.collected_date BETWEEN w.period_start AND least(w.period_end, CAST(:today AS date))
              AND r.instance_id = i.id AND {is_live}) AS measured
    FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)
    CROSS JOIN instances i
    CROSS JOIN LATERAL (
        SELECT min(r.collected_date) AS first_day FROM {raw} r WHERE r.instance_id = i.id AND {is_live}
    ) AS f
    WHERE i.is_active AND i.deleted_at IS NULL AND f.first_day <= least(w.period_end, CAST(:today AS date))
) AS days
WHERE measured < expected
""",
        on_nodes="""
SELECT period_start, expected - measured AS weight,
       format('%s: days measured in the window from %s: %s of %s', name, period_start, measured, expected) AS place
FROM (
    SELECT i.name, w.period_start, coalesce(m.measured, 0) AS measured,
           least(w.period_end, CAST(:today AS date)) - greatest(w.period_start, f.first_day) + 1 AS expected
    FROM unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)
    CROSS JOIN instances i
    JOIN (
        SELECT r.instance_id, min(r.collected_date) AS first_day FROM {raw} r WHERE {is_live} GROUP BY r.instance_id
    ) AS f ON f.instance_id = i.id
    LEFT JOIN (
        SELECT r.instance_id, v.period_start, count(DISTINCT r.collected_date) AS measured
        FROM {raw} r JOIN unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS v (period_start, period_end)
            ON r.collected_date BETWEEN v.period_start AND v.period_end
        WHERE r.collected_date BETWEEN :first_day AND :last_day AND {is_live} GROUP BY 1, 2
    ) AS m ON m.instance_id = i.id AND m.period_start = w.period_start
    WHERE i.is_active AND i.deleted_at IS NULL AND f.first_day <= least(w.period_end, CAST(:today AS date))
) AS days
WHERE measured < expected
""",
    ),
    Check(
        name="values_possible",
        description="No stored size or count is negative, and no size is above 8 EiB.",
        severity=CheckSeverity.ERROR,
        advice="The samples behind these rows are wrong. Correct them, then materialise the partitions again.",
        statement="""
SELECT a.period_start, 0 AS weight,
       format('%s, %s: an impossible size or count in the window from %s', i.name, {database}, a.period_start) AS place
FROM {target} a JOIN instances i ON i.id = a.instance_id AND i.is_active AND i.deleted_at IS NULL
WHERE a.period_type = :period_type AND a.period_start = ANY (CAST(:every AS date[])) AND ({is_impossible})
""",
    ),
    Check(
        name="jumps_named",
        description="Lists every size that changed by more than CAPACITY_JUMP_PERCENT, or grew from 0 to "
        f"{JUMP_FROM_ZERO_MB:,} MiB or more.",
        severity=CheckSeverity.WARN,
        advice="Check whether it is a load, a purge or a wrong measurement. If the change is real, do nothing.",
        statement="""
SELECT a.period_start, coalesce(abs({percent}), 'infinity') AS weight,
       format('%s, %s: %s (%s MiB) in the window from %s', i.name, {database}, coalesce({percent} || ' %', 'from 0'),
              {change}, a.period_start) AS place
FROM {target} a JOIN instances i ON i.id = a.instance_id AND i.is_active AND i.deleted_at IS NULL
WHERE a.period_type = :period_type AND a.period_start = ANY (CAST(:starts AS date[]))
  AND (abs({percent}) > :jump_percent OR {percent} IS NULL AND {change} >= :jump_from_zero_mb)
""",
    ),
    Check(
        name="levels_agree",
        description=f"The databases of a server add up to its total, within {LEVELS_TOLERANCE_PERCENT} % "
        f"and {LEVELS_TOLERANCE_MB:,} MiB.",
        severity=CheckSeverity.WARN,
        advice="The two levels are measured separately. Find out which of the two is wrong on these days.",
        statement="""
SELECT w.period_start, abs(t.total - coalesce(d.total, 0)) AS weight,
       format('%s on %s: databases %s MiB, server %s MiB', i.name, t.collected_date, coalesce(d.total, 0), t.total)
           AS place
FROM (SELECT instance_id, collected_date, sum(total_size_mb) AS total FROM instance_size_stats
      WHERE collected_date BETWEEN :first_day AND :last_day AND NOT is_deleted GROUP BY 1, 2) AS t
JOIN instances i ON i.id = t.instance_id AND i.is_active AND i.deleted_at IS NULL
LEFT JOIN (SELECT instance_id, collected_date,
                  div(sum(coalesce(size_bytes, size_mb * CAST(1048576 AS numeric))), 1048576) AS total
           FROM database_size_stats
           WHERE collected_date BETWEEN :first_day AND :last_day GROUP BY 1, 2) AS d
  ON d.instance_id = t.instance_id AND d.collected_date = t.collected_date
JOIN unnest(CAST(:starts AS date[]), CAST(:ends AS date[])) AS w (period_start, period_end)
  ON t.collected_date BETWEEN w.period_start AND w.period_end
WHERE abs(t.total - coalesce(d.total, 0)) > greatest(:tolerance_mb, t.total * :tolerance_percent / 100)
""",
        levels=(INSTANCE.name,),
    ),
    Check(
        name="groups_add_up",
        description="Engines and the groups of each label add up to the fleet, to the MiB.",
        severity=CheckSeverity.ERROR,
        advice="Rows of groups are missing or wrong in these windows: compute them again with --overwrite.",
        statement="""
SELECT period_start, 0 AS weight,
       format('by %s in the window from %s: groups %s MiB in %s databases, fleet %s MiB in %s, added up over its days',
              label_key, period_start, size, databases, fleet_size, fleet_databases) AS place
FROM (
    SELECT period_start, label_key, size, databases,
           -- No fleet row: every server is left out.
           coalesce(max(size) FILTER (WHERE label_key = '(fleet)') OVER of_window, 0) AS fleet_size,
           coalesce(max(databases) FILTER (WHERE label_key = '(fleet)') OVER of_window, 0) AS fleet_databases
    FROM (
        SELECT period_start, label_key, sum(coalesce(sum_size_mb, avg_size_mb)) AS size,
               sum(coalesce(sum_database_count, database_count)) AS databases
        FROM group_size_aggregations
        WHERE period_type = :period_type AND period_start = ANY (CAST(:every AS date[])) GROUP BY 1, 2
    ) AS keys WINDOW of_window AS (PARTITION BY period_start)
) AS compared
WHERE (size, databases) IS DISTINCT FROM (fleet_size, fleet_databases)
""",
        levels=(GROUP.name,),
    ),
)


_LISTED = """
SELECT period_start, place, places
FROM (SELECT period_start, place, count(*) OVER (PARTITION BY period_start) AS places,
             row_number() OVER (PARTITION BY period_start ORDER BY weight DESC, place) AS turn
      FROM places_of_check) AS numbered
WHERE turn <= :listed ORDER BY period_start, turn
"""


def names_of_level(level: Level) -> dict[str, str]:
    """Return the tables, columns and conditions of a level for statements, by name."""
    return {
        "raw": level.source.name,
        "target": level.target.name,
        "is_live": f"NOT r.{level.void_flag}" if level.void_flag else "true",
        "database": "a.database_name" if "database_name" in level.keys else "'all databases'",
        # As in the condition of the index.
        "is_impossible": impossible_values(level.measures),
        "percent": f"a.{level.headline.change_percent}",
        "change": f"a.{level.headline.change}",
    }


SERVERS_STORED = "servers_stored"
SERVERS_STORED_DESCRIPTION = "The rows of every server with samples in a computed window are stored."


def servers_stored(summary: RunSummary, failed: Mapping[date, int]) -> list[CheckOutcome]:
    """Build the outcomes of the windows of a run, and of others in which servers `failed`, with their numbers."""
    advice = (
        "Fix the samples of these servers, then materialise the partitions again; stored rows were kept. The metadata "
        "of a partition names its servers."
    )
    of_run = {each.period_start: (each.failed_instances, list(map(str, each.errors))) for each in summary.summaries}
    elsewhere = {start: (servers, [f"{counted(servers, 'server')} failed"]) for start, servers in failed.items()}
    return [
        CheckOutcome(
            *(SERVERS_STORED, CheckSeverity.ERROR, servers, tuple(listed[:MAXIMUM_LISTED_ERRORS]), advice, start),
            incident=f"{servers} failed" if servers else None,
        )
        for start, (servers, listed) in sorted((elsewhere | of_run).items())
    ]


PARTITIONS_COMPLETE = "partitions_complete"
PARTITIONS_COMPLETE_DESCRIPTION = (
    "Every window that is due and has samples was computed, for every server, from the present samples."
)


def partitions_complete(incomplete: Sequence[IncompleteWindow], severity: CheckSeverity) -> CheckOutcome:
    """Build the outcome from the remaining windows, with adjacent windows joined."""
    stretches = [
        (reason, span)
        for reason in dict.fromkeys(window.reason for window in incomplete)
        for span in adjacent_spans(sorted(window.window for window in incomplete if window.reason == reason))
    ]
    listed = []
    for reason, span in stretches[:MAXIMUM_LISTED_ERRORS]:
        several = f" to {span[-1].key}, {len(span)} windows" if len(span) > 1 else ""
        listed.append(f"{span[0].key}{several}: {reason}")
    advice = (
        "Fix the samples of servers that failed, then materialise these partitions. The late data sensor "
        "recomputes windows of changed samples, unless it is off or its run failed."
    )
    return CheckOutcome(PARTITIONS_COMPLETE, severity, len(stretches), tuple(listed), advice)


def run_checks(engine: Engine, scope: CheckScope) -> list[CheckOutcome]:
    """Run every check of the level; raises DatabaseError."""
    with (
        database_errors(doing="checking what was written", kept="All rows written were kept."),
        engine.connect() as connection,
    ):
        outcomes = []
        distributed, names = is_distributed(engine), names_of_level(scope.level)
        for check in CHECKS:
            if scope.level.name in check.levels:
                statement = check.on_nodes if distributed and check.on_nodes else check.statement
                listed = with_queries(_LISTED, places_of_check=statement.format(**names))
                rows_by_start: dict[date, list[Any]] = {window.start: [] for window in scope.windows}
                for row in connection.execute(listed, scope.parameters()):
                    rows_by_start.setdefault(row.period_start, []).append(row)
                outcomes += [_outcome(check, start, rows) for start, rows in sorted(rows_by_start.items())]
        return outcomes


def _outcome(check: Check, period_start: date, rows: Sequence[Any]) -> CheckOutcome:
    places, listed = rows[0].places if rows else 0, tuple(str(row.place) for row in rows)
    return CheckOutcome(check.name, check.severity, places, listed, check.advice, period_start)


def checks_of(level: Level) -> list[tuple[str, str]]:
    """Return name and description of every check of a level, the check of the run itself first."""
    named = [(check.name, check.description) for check in CHECKS if level.name in check.levels]
    return [(SERVERS_STORED, SERVERS_STORED_DESCRIPTION), *named]
