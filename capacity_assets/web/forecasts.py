"""The pages about forecasts: what fills first, decisions on it, accuracy, and What if.

What if computes the assumptions in its address, and shows stored scenarios.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime
from functools import partial
from typing import TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from capacity_assets.base.errors import INSUFFICIENT_PRIVILEGE, DatabaseError, ValidationError, sqlstate_of
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import LARGEST_MB, MB_PER_GB
from capacity_assets.collection.servers import refuse_unregistered
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.forecast.decisions import read_decisions
from capacity_assets.forecast.results import VOLUME
from capacity_assets.forecast.scenarios import KINDS_OF_ASSUMPTIONS, MOST_FACTOR, Scenario, scenario_of_tables
from capacity_assets.ownership.labels import WITHOUT_LABEL, default_grouping
from capacity_assets.ownership.scenario_results import (
    LargeScenarioError,
    NewDatabaseFit,
    RunwayChange,
    ScenarioResult,
    answer_of,
    fit_answer,
    read_fits,
    read_result,
    stored_scenario,
    stored_scenario_names,
)
from capacity_assets.reading.access import MISSING_RIGHT_ON_HISTORY, limit_seconds, role_of
from capacity_assets.reading.accuracy import FleetAccuracy, ForecastScores, accuracy_of, headline
from capacity_assets.reading.forecasts import StoredRunway, fills_first, free_capacity, median_database_mb
from capacity_assets.reading.groups import groups_of
from capacity_assets.reading.risks import Headline, next_to_fill
from capacity_assets.reading.space import RetainedWal, retained_wal_on
from capacity_assets.reading.subjects import active_servers, address, server_facts, server_ids_of
from capacity_assets.reading.windows import complete_window, newest_window
from capacity_assets.web.reader import (
    DATE,
    LABEL_TEXT,
    NAME,
    SHARED_SECONDS,
    PageQuery,
    Reader,
    part_of_page,
    shared_outdated,
    shared_revision,
)

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
    retained_wal: Sequence[RetainedWal]
    """Too much WAL retained by slots or archivers, the largest first."""
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
        retained = retained_wal_on(connection, query.today)
    sentence = next_to_fill(first, reader.thresholds, issued=free.as_of if free else None, free=free)
    return FillingPage(sentence, filling[:shown], shared_outdated(reader), retained, query.page, len(filling) > shown)


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
    """The decision and its last day; for a plan, also its day."""
    sentence: str
    state: str
    """Whether it applies today, and if not, why."""


@dataclass(frozen=True)
class DecisionsPage:
    """Decisions on what may fill, those that end first are first."""

    every: bool
    """Whether past and closed decisions are listed too, after the open ones."""
    server_id: int | None
    server: str | None
    """The server whose decisions are listed; None: all servers."""
    decisions: Sequence[DecisionRow]
    page: int
    has_more: bool


DECISION_FIELDS = [attribute.name for attribute in fields(DecisionRow) if attribute.name != "state"]


def decision_rows(
    connection: Connection,
    today: date,
    *,
    every: bool = False,
    server_id: int | None = None,
    taken_in: Window | None = None,
) -> list[DecisionRow]:
    """Return the decisions that are open today, or `every` one, by server and subject; raises DBAPIError.

    With `taken_in`, only decisions made in a window.
    """
    return [
        DecisionRow(**{name: getattr(decision, name) for name in DECISION_FIELDS}, state=decision.state(today))
        for decision in read_decisions(connection, today, every=every, server_id=server_id, taken_in=taken_in)
    ]


def read_decisions_page(reader: Reader, query: PageQuery) -> DecisionsPage:
    """Read the decisions. Raises NotFoundError, ValidationError, sqlalchemy.exc.DBAPIError."""
    every = query.one_of("state", (OPEN, EVERY)) == EVERY
    number = query.server() if query.text("server") else None
    with reader.transaction() as connection:
        server = server_facts(connection, number).server if number else None
        rows = decision_rows(connection, query.today, every=every, server_id=number)
    rows.sort(
        key=lambda decision: (
            decision.closed_at is not None or decision.until < query.today,
            decision.until,
            decision.server,
            decision.name,
        )
    )
    shown, has_more = part_of_page(rows, query)
    return DecisionsPage(every, number, server, shown, query.page, has_more)


@dataclass(frozen=True, kw_only=True)
class AccuracyPage(ForecastScores):
    """The accuracy of forecasts: `horizons` has every horizon, all other values are of a single one."""

    headline: str
    horizon_days: int


def shared_accuracy(reader: Reader, today: date, wait_seconds: int | None = None) -> FleetAccuracy:
    """Return the accuracy of the fleet; raises StillReadingError as `Reader.cached`, sqlalchemy.exc.DBAPIError."""
    read = partial(accuracy_of, today=today, thresholds=reader.thresholds)
    key = ("accuracy", today)
    return reader.read_cached(key, read, ACCURACY_SECONDS, is_for_all=True, wait_seconds=wait_seconds)


def read_accuracy(reader: Reader, query: PageQuery) -> AccuracyPage:
    """Read the accuracy. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    chosen = query.one_of("horizon", ("", *map(str, HORIZONS_DAYS)))
    accuracy = shared_accuracy(reader, query.today)
    horizon = int(chosen) if chosen else _default_horizon(accuracy)
    shown = {name: [row for row in getattr(accuracy, name) if row.horizon_days == horizon] for name in OF_HORIZON}
    return AccuracyPage(
        headline=headline(accuracy, horizon, query.today),
        horizon_days=horizon,
        horizons=accuracy.horizons,
        sampled=accuracy.sampled,
        sampled_months=accuracy.sampled_months,
        **shown,
    )


def _default_horizon(accuracy: FleetAccuracy) -> int:
    judged = {figures.horizon_days for figures in accuracy.horizons if figures.is_judged}
    return next((days for days in DEFAULT_HORIZONS_DAYS if days in judged), DEFAULT_HORIZONS_DAYS[-1])


SCENARIO_PATH = "/scenario"
RESULT_SECONDS, EXAMPLE_SECONDS = 60, 300
MOST_DATABASES = 10_000
"""The most databases that a page forecasts; more take longer than readers wait."""
FILLING_SHOWN = 50
"""Number of subjects among which the first disk is searched."""
LARGEST_GB = LARGEST_MB // MB_PER_GB
FACTOR: Mapping[str, object] = {"type": "number", "minimum": 0, "maximum": MOST_FACTOR}
GB: Mapping[str, object] = {"type": "number", "minimum": 0, "maximum": LARGEST_GB}
ASSUMPTION_PARAMETERS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "growth_factor": ("Factor for the forecast growth.", FACTOR),
    "growth_label": ("Only databases with this label; team=: those without it.", LABEL_TEXT),
    "growth_server": ("Only databases of this server.", NAME),
    "limit_add_gb": (
        "GiB by which every limit, or the named one, is higher; negative: lower.", {**GB, "minimum": -LARGEST_GB},
    ),
    "limit_server": ("Server with that limit.", NAME),
    "limit_volume": ("Volume with that limit.", NAME),
    "limit_day": ("First day of that limit.", DATE),
    "new_database_gb": ("Size of a new database, GiB.", GB),
    "new_database_growth_gb_per_month": ("Its growth, GiB per month.", GB),
    "new_database_server": ("Its server; if missing: where it fits.", NAME),
    "new_database_volume": ("Its volume.", NAME),
    "new_database_day": ("Its first day.", DATE),
    "purge_gb": ("GiB deleted from a database.", GB),
    "purge_server": ("Server of the purged database.", NAME),
    "purge_database": ("Purged database.", NAME),
    "purge_day": ("Day of the purge.", DATE),
}  # fmt: skip
_ASSUMPTIONS_NEED = {
    "growth": ("growth_factor",),
    "limit": ("limit_add_gb",),
    "new_database": ("new_database_gb",),
    "purge": ("purge_gb", "purge_server", "purge_database"),
}
RULES_OF_ASSUMPTIONS: Mapping[str, object] = {
    "dependentRequired": {
        **{
            name: [other for other in _ASSUMPTIONS_NEED[kind] if other != name]
            for kind in _ASSUMPTIONS_NEED
            for name in ASSUMPTION_PARAMETERS
            if name.startswith(f"{kind}_")
        },
        "limit_volume": ["limit_add_gb", "limit_server"],
        "new_database_volume": ["new_database_gb", "new_database_server"],
    },
    # A stored scenario has assumptions of its own.
    "dependentSchemas": {"name": {"properties": dict.fromkeys(ASSUMPTION_PARAMETERS, False)}},
}
ASSUMPTION_NAMES = {
    kind: [name for name in ASSUMPTION_PARAMETERS if name.startswith(f"{kind}_")] for kind in KINDS_OF_ASSUMPTIONS
}
"""Parameters by kind of assumption: growth_factor is `factor` of `[[growth]]`."""
FORM_HEADINGS = {
    "growth": "Growth",
    "limit": "Limit",
    "new_database": "New database",
    "purge": "Purge",
}
"""The headings of the form, which say in an error which of its fields is meant."""
ASSUMED_NUMBERS = ("factor", "gb", "add_gb", "growth_gb_per_month")
PLAIN_NUMBER = re.compile(r"-?(0|[1-9]\d{0,8})(\.\d{1,6})?")
"""Texts that TOML reads as the same number. Others are written as strings."""
Tables: TypeAlias = Mapping[str, Sequence[Mapping[str, str]]]


@dataclass(frozen=True)
class Example:
    """A question about this fleet, and the address that answers it."""

    text: str
    address: str


@dataclass(frozen=True)
class ScenarioPage:
    """The changes by assumptions, or a stored scenario: by default the newest."""

    names: Sequence[str]
    name: str | None = None
    stored_at: datetime | None = None
    result: ScenarioResult | None = None
    """None: nothing is assumed and nothing is stored, or `message` or `is_fit` is set."""
    runways: Sequence[RunwayChange | NewDatabaseFit] = ()
    server_ids: Mapping[str, int] = field(default_factory=dict)
    """Servers of `runways` that are still registered, by name."""
    answer: str = ""
    """The result in a sentence or two."""
    is_fit: bool = False
    """Whether `runways` are the servers on which a new database fits, best first."""
    assumptions: Sequence[str] = ()
    message: str | None = None
    """Why the page does not compute the assumptions."""
    toml: str | None = None
    """The assumptions as a file for `command`."""
    command: str | None = None
    """The command with the same result; None: there is none."""
    grouped_by: str | None = None
    groupings: Sequence[str] = ()
    examples: Sequence[Example] = ()


def read_scenario(reader: Reader, query: PageQuery) -> ScenarioPage:
    """Read the page. Raises NotFoundError, ValidationError, DatabaseError, sqlalchemy.exc.DBAPIError."""
    name, by, tables = (
        query.text("name") or None,
        query.text("by") or default_grouping(query.label_keys),
        tables_of(query),
    )
    if name is not None and tables:
        raise ValidationError("Give assumptions or the name of a stored scenario, not both.")
    if tables:
        return _scenario_page(reader, query, tables, by)
    examples = reader.read_cached(("examples", query.today), partial(examples_of, query=query), EXAMPLE_SECONDS)
    with reader.transaction() as connection:
        names = stored_scenario_names(connection)
        if name is None and not names:
            return ScenarioPage(names, examples=examples)
        stored = stored_scenario(connection, name or names[0])
        ids = server_ids_of(connection, [change.server for change in stored.result.runways])
    return ScenarioPage(
        *(names, stored.name, stored.stored_at, stored.result, stored.result.runways, ids),
        answer=answer_of(stored.result),
        assumptions=stored.result.assumptions,
        examples=examples,
    )


def tables_of(query: PageQuery) -> Tables:
    """Return the assumptions in an address as the tables of a file; raises ValidationError."""
    tables = {
        kind: {name.removeprefix(f"{kind}_"): value for name in names if (value := query.text(name))}
        for kind, names in ASSUMPTION_NAMES.items()
    }
    return {kind: [values] for kind, values in tables.items() if values}


def toml_of(tables: Tables) -> str:
    """Return the TOML of a file with these tables."""
    return "\n".join(
        "".join([f"[[{kind}]]\n", *(f"{name} = {_toml_value(name, text)}\n" for name, text in table.items())])
        for kind, every in tables.items()
        for table in every
    )


def _toml_value(name: str, text: str) -> str:
    if name in ASSUMED_NUMBERS and PLAIN_NUMBER.fullmatch(text):
        return text
    # TOML escapes as JSON does, and this character too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _scenario_page(reader: Reader, query: PageQuery, tables: Tables, by: str) -> ScenarioPage:
    scenario = scenario_of_tables(tables, FORM_HEADINGS)
    is_fit = any(database.server is None for database in scenario.new_database)
    page = ScenarioPage(
        names=(),
        is_fit=is_fit,
        assumptions=scenario.texts,
        toml=None if is_fit else toml_of(tables),
        command=_command(tables, by, default_grouping(query.label_keys), is_fit=is_fit),
        grouped_by=by,
        groupings=(*query.label_keys, WITHOUT_LABEL[0]),
    )

    revision = shared_revision(reader)

    def read() -> ScenarioPage:
        # One at a time, so that other pages have the processor and the connections.
        with reader.alone(), reader.transaction(revision) as connection:
            limit_seconds(connection, SHARED_SECONDS)
            return _page_with_answer(connection, query, scenario, page)

    key = ("scenario", json.dumps(tables), by, query.today, revision)
    try:
        return reader.cached(key, read, RESULT_SECONDS)
    except DBAPIError as error:
        if sqlstate_of(error) != INSUFFICIENT_PRIVILEGE:
            raise
        with reader.transaction() as connection:
            raise DatabaseError(MISSING_RIGHT_ON_HISTORY.format(role=role_of(connection))) from None
    except LargeScenarioError as error:
        return _page_with_refusal(page, str(error), "has no such limit")


def _page_with_refusal(page: ScenarioPage, reason: str, command_does: str) -> ScenarioPage:
    return replace(page, message=f"{reason} The command below {command_does}." if page.command else reason)


def _page_with_answer(connection: Connection, query: PageQuery, scenario: Scenario, page: ScenarioPage) -> ScenarioPage:
    """Return the page with its answer; raises as `read_result`."""
    if tables_are_distributed(connection):
        return _page_with_refusal(page, "On a cluster, pages cannot compute scenarios.", "can")
    known = server_ids_of(connection, sorted(scenario.servers))
    refuse_unregistered(scenario.servers, [*known, *(server.server for server in active_servers(connection))])
    if page.is_fit:
        fits = read_fits(connection, query.today, scenario, MOST_DATABASES)
        answered = replace(page, runways=fits, answer=fit_answer(fits))
    else:
        by = page.grouped_by or ""
        result = read_result(connection, query.today, scenario, by, query.label_keys, MOST_DATABASES)
        answered = replace(page, result=result, runways=result.runways, answer=answer_of(result))
    ids = server_ids_of(connection, [runway.server for runway in answered.runways])
    return replace(answered, names=stored_scenario_names(connection), server_ids=ids)


def _command(tables: Tables, by: str, default_by: str, *, is_fit: bool) -> str | None:
    """Return the command with the same result; None: there is none."""
    if is_fit:
        [new] = tables["new_database"]
        return f"capacity scenario --fit {shlex.quote(new['gb'])}" if len(tables) == len(new) == 1 else None
    grouped = "" if by == default_by else f" --group-by {shlex.quote(by)}"
    return f"capacity scenario FILE{grouped} --store NAME"


def quarter_gb(size_mb: int) -> str:
    """Return a quarter of a size, GiB to three decimals, for an address; empty if that is 0."""
    gb = round(size_mb / MB_PER_GB / 4, 3)
    return f"{gb:.3f}".rstrip("0").rstrip(".") if gb else ""


def examples_of(connection: Connection, query: PageQuery) -> list[Example]:
    """Return questions about the largest group, the disk that fills first, and a database of median size."""
    by, period = default_grouping(query.label_keys), PERIODS["daily"]
    window = complete_window(connection, period, newest_window(connection, period), query.today)
    groups = groups_of(connection, period, window, by) if window and by not in WITHOUT_LABEL else []
    largest = max((group for group in groups if group.name), key=lambda group: group.size_mb or 0, default=None)
    subject, only = (largest.name, {"growth_label": f"{by}={largest.name}"}) if largest else ("everything", {})
    examples = [Example(f"What if {subject} grew 20 % faster?", address(SCENARIO_PATH, growth_factor="1.2", **only))]
    filling = fills_first(connection, query.today, shown=FILLING_SHOWN)
    disk = next((runway for runway in filling if runway.subject == VOLUME and runway.limit_mb), None)
    if disk and (quarter := quarter_gb(disk.limit_mb or 0)):
        larger = address(SCENARIO_PATH, limit_add_gb=quarter, limit_server=disk.server, limit_volume=disk.name)
        examples.append(Example(f"What if {disk.display_name} on {disk.server} were 25 % larger?", larger))
    median_mb = median_database_mb(connection)
    if median_mb is not None:
        gb = max(round(median_mb / MB_PER_GB), 1)
        examples.append(
            Example(f"Where would a new database of {gb:,} GiB fit?", address(SCENARIO_PATH, new_database_gb=gb))
        )
    return examples
