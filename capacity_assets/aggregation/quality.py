"""The checks after a run, as data: one statement per check.

A check queries the database for problems, names the first twenty and counts the rest. The severity is `error` if a
person has to act, `warn` otherwise. A check of severity warn covers the windows of the run. A check of severity error
covers every window and stays red until all of them are right, regardless of which windows the next run computes. The
mapping of outcomes to asset checks is in `orchestration.checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from sqlalchemy import Engine, text

from capacity_assets.aggregation.check_statements import (
    groups_differ,
    impossible_values,
    jumps,
    levels_differ,
    missing_days,
    missing_days_on_nodes,
)
from capacity_assets.aggregation.ledger import IncompleteWindow
from capacity_assets.aggregation.results import RunSummary
from capacity_assets.errors import database_errors
from capacity_assets.foundation.levels import GROUP, INSTANCE, SERVER_LEVELS, Level
from capacity_assets.foundation.status import MAXIMUM_LISTED_ERRORS
from capacity_assets.periods import Window, adjacent_spans
from capacity_assets.storage.distribution import is_distributed
from capacity_assets.units import counted

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
    statement: Callable[[Level], str]
    on_nodes: Callable[[Level], str] | None = None
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
        for span in adjacent_spans(sorted(found.window for found in left if found.reason == reason))
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
                rows = connection.execute(text(statement(scope.level)), scope.parameters()).all()
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
        statement=levels_differ,
        levels=(INSTANCE.name,),
    ),
    Check(
        name="groups_add_up",
        description="Engines and the groups of each label add up to the fleet, to the MiB.",
        severity=Severity.ERROR,
        advice="Rows of groups are missing or wrong in these windows: compute them again with --overwrite.",
        statement=groups_differ,
        levels=(GROUP.name,),
    ),
)
