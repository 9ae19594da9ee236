"""`capacity runway` and `scenario`, and `explain --runway`: when servers and databases will be full, and why.

An explanation shows how a forecast was computed, compared with a second, independent computation.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import numpy as np
from sqlalchemy import Connection, Engine

from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import HORIZONS_DAYS, Settings
from capacity_assets.base.units import (
    counted,
    first_of,
    human_change_mb,
    human_day,
    human_mb,
    human_probability,
    printable,
)
from capacity_assets.cli import options
from capacity_assets.cli.limits import decision_json, limit_text
from capacity_assets.cli.options import Line, Report, Table
from capacity_assets.collection.servers import refuse_unknown_engine, registered_servers
from capacity_assets.database.declared_rows import UnknownSubjectError, keys_of
from capacity_assets.forecast import model, scenarios
from capacity_assets.forecast import runway as forecasting
from capacity_assets.forecast.decisions import OpenDecisions, StoredDecision, open_decisions, stored_decisions
from capacity_assets.forecast.issuing import RunwayService
from capacity_assets.forecast.limits import SizeStep, stored_steps
from capacity_assets.forecast.model import RISE_DAYS, SizeForecasts, forecast, without_steps
from capacity_assets.forecast.reference import ReferenceForecast, reference
from capacity_assets.forecast.results import (
    DATABASE,
    DAY_PROBABILITIES,
    FORECAST,
    FULL,
    LEAST_HISTORY_DAYS,
    LIMIT_UNKNOWN,
    SERVER_LIMIT,
    TOO_LITTLE_HISTORY,
    VOLUME,
    VOLUME_LIMIT,
    Runway,
    RunwayList,
    day_text,
    standing_for_themselves,
)
from capacity_assets.forecast.runway import RunwayWithSizes
from capacity_assets.ownership import scenario_results as results
from capacity_assets.ownership.bills import group_heading, group_named, money, money_change
from capacity_assets.ownership.labels import default_grouping, read_labels, refuse_unknown_label
from capacity_assets.ownership.scenario_results import BudgetChange, ScenarioResult, ScenarioRunway
from capacity_assets.reading.forecasts import EarlierForecast, earlier_forecasts, figures_of, issue_of
from capacity_assets.reading.subjects import SampleOrigin, origins_of, server_id_of

NAMED = 5
SHOWN_WITHIN_DAYS = (30, 90)
HEADINGS = (
    *("Server", "What", ">Size", ">Limit", "Binds", "Early (10 %)", "Middle (50 %)", "Late (90 %)"),
    *(f">Within {days} days" for days in SHOWN_WITHIN_DAYS),
)


@click.command()
@click.argument("server", required=False)
@click.argument("database", required=False)
@click.option(
    "--add-gb", type=options.GIGABYTES, default=Decimal(0), help="Assume that every limit is this many GiB higher."
)
@options.filter_options
@options.rows_option("show", 20)
@click.option("--issue", is_flag=True, help="Issue today's forecasts first, so that pages and reports show them.")
@options.json_command
def runway(
    settings: Settings,
    /,
    *,
    server: str | None,
    database: str | None,
    add_gb: Decimal,
    engine: str | None,
    label: tuple[str, str] | None,
    show: int,
    issue: bool,
) -> Report:
    """Show when servers and databases will be full.

    With SERVER, shows only that server and all its databases, or one DATABASE of it. Lists those with a limit of their
    own, the greatest risk first: the days by which they are full with a probability of 10, 50 and 90 percent, and the
    probability of being full within 30 and 90 days. Stores nothing without --issue, which stores the forecasts of all
    servers, as the asset `runway` does once a day.

    \b
    Examples:
      capacity runway
      capacity runway db-7 --add-gb 200
      capacity runway db-7 orders
      capacity runway --label team=payments
      capacity runway --issue
    """
    if issue and add_gb:
        raise click.UsageError("Give either --issue or --add-gb.")
    with options.open_database(settings, settings.zone) as opened:
        if server is not None:
            with database_errors(doing="looking up names"), opened.connect() as connection:
                _refuse_unknown(connection, server, database)
        if engine is not None:
            refuse_unknown_engine(opened, engine)
        clock = Clock(settings.zone)
        today = clock.today()
        issued = RunwayService(opened, clock).issue(today) if issue else None
        figures = figures_of(issue_of(opened, today, today)) if issue else {}
        if add_gb:
            higher = scenarios.higher_limits(add_gb)
            forecasts = scenarios.compare(opened, today, higher, scenarios.no_label, (server, database)).changed
        else:
            forecasts = forecasting.compute_runways(opened, today, server, database)
        decisions = OpenDecisions(stored_decisions(opened, today))
        if engine is not None or label is not None:
            forecasts = _matching_rows(opened, forecasts, today, label=label, of_engine=engine)
    if server is not None:
        _refuse_unmeasured(forecasts, server, database)
    filters = [*([engine] if engine else []), *(["=".join(label)] if label else [])]
    if filters and not forecasts.rows:
        lines: list[Line] = [f"No database with a known limit matches {' and '.join(filters)}."]
    else:
        lines = runway_lines(forecasts, decisions, add_gb=add_gb, show=show, every=server is not None)
    decided = ((row, decisions.on(row)) for row in forecasts.rows)
    rows = [{**asdict(row), "decision": decision and decision_json(decision, today)} for row, decision in decided]
    document = {**asdict(forecasts), "rows": rows, "add_gb": float(add_gb)}
    if issued is not None:
        document["issued"] = issued.to_dict() | figures
        lines.append(f"{counted(sum(issued.states.values()), 'forecast')} of {human_day(issued.as_of)} stored.")
    return Report(document, lines)


def _refuse_unknown(connection: Connection, server: str, database: str | None) -> None:
    try:
        keys_of(connection, [(server, database)])
    except UnknownSubjectError as error:
        if database is None or (server, database) not in error.subjects:
            raise
        raise NotFoundError(
            f"{error} `capacity runway {shlex.quote(server)}` lists its databases and volumes."
        ) from error


def _refuse_unmeasured(forecasts: RunwayList, server: str, database: str | None) -> None:
    if forecasts.rows or forecasts.unknown_limits:
        return
    if database is not None:
        raise NotFoundError(f"{database!r} is not in the newest sample of {server!r}: it was dropped or renamed.")
    raise NotFoundError(f"Server {server!r} is out of service, or was not measured within the last month.")


def _matching_rows(
    engine: Engine, forecasts: RunwayList, today: date, *, label: tuple[str, str] | None, of_engine: str | None
) -> RunwayList:
    """Return the rows with a label and an engine, without counts of databases with unknown limits.

    Raises NotFoundError if nothing ever had the label.
    """
    subjects = list(dict.fromkeys((row.server, row.database) for row in forecasts.rows))
    with database_errors(doing="reading labels"), engine.connect() as connection:
        labels = read_labels(connection, subjects, today, label=label, of_engine=of_engine)
    # Also the row of the limit that one of these databases reaches first: of its volume, or of the server.
    bound = {(row.server, row.binds) for row in forecasts.rows if row.database and (row.server, row.database) in labels}
    rows = [
        row
        for row in forecasts.rows
        if (row.server, row.database) in labels
        or (row.database is None and (row.server, VOLUME_LIMIT if row.volume else SERVER_LIMIT) in bound)
    ]
    if label is not None and not rows:
        refuse_unknown_label(engine, *label)
    return RunwayList(forecasts.as_of, rows, 0, {})


def runway_lines(
    forecasts: RunwayList, decisions: OpenDecisions, *, show: int, add_gb: Decimal = Decimal(0), every: bool = False
) -> list[Line]:
    """Return the first rows as a table, the decisions about them, and the number of unknown limits.

    Without `every`, databases that have only the limit of their server are left out: the row of the server shows when
    it is reached.
    """
    lines: list[Line] = []
    rows = list(forecasts.rows) if every else standing_for_themselves(forecasts.rows)
    if rows and forecasts.as_of is not None:
        more = len(rows) - show
        higher = f", if every limit were {add_gb:,} GiB higher" if add_gb else ""
        hidden = f" ({more:,} more: `capacity runway` lists them with --show {len(rows)})" if more > 0 else ""
        title = f"Fill dates as of {human_day(forecasts.as_of)}, greatest risk first{higher}{hidden}"
        lines.append(Table(title, HEADINGS, list(map(_cells, rows[:show]))))
        sooner = [row for row in rows[:show] if row.sooner_day is not None]
        lines += [f"note: {row.display_name} on {row.server}. {row.remark}" for row in sooner]
        lines += [
            f"note: {row.display_name} on {row.server}. {_decided_text(row, decision)}"
            for row in rows[:show]
            if (decision := decisions.on(row)) is not None
        ]
    elif forecasts.unknown_limits:
        lines.append("None of these has a known limit. `capacity limits set` declares one.")
    else:
        lines.append("Nothing was measured within the last month. `capacity status` shows what is stored.")
    if forecasts.unknown_limits and not every:
        servers = (f"{server} ({databases:,})" for server, databases in forecasts.unknown_on.items())
        lines.append(f"Without a known limit: {first_of(servers, NAMED)}. `capacity runway SERVER` lists them.")
    if forecasts.unknown_limits:
        lines.append(f"Limit unknown: {counted(forecasts.unknown_limits, 'database')}.")
    return lines


def _decided_text(row: Runway, decision: StoredDecision) -> str:
    # The decision may be on the volume or server with the binding limit.
    subject = "" if decision.name == row.name else f"Decision on {decision.display_name}: "
    return f"{subject}{decision.sentence}{f' {row.planned.sentence}' if row.planned else ''}"


def _cells(row: Runway) -> list[object]:
    shown = (row.probabilities.get(days) for days in SHOWN_WITHIN_DAYS)
    probabilities = ["" if probability is None else human_probability(probability) for probability in shown]
    states = {TOO_LITTLE_HISTORY: f"{row.history_days} of {LEAST_HISTORY_DAYS} days"}
    days = row.days_text if row.state in {FORECAST, FULL} else [states.get(row.state, row.state)] * 3
    subject = [row.server, row.display_name]
    limit = "unknown" if row.state == LIMIT_UNKNOWN else limit_text(row.limit_mb)
    return [*subject, row.size_text, limit, row.binds or "", *days, *probabilities]


SCENARIO_HEADINGS = (
    "Server",
    "What",
    ">Size",
    "As forecast (50 %)",
    ">Within a year",
    "With assumptions (50 %)",
    "Range",
    ">Within a year",
)
BUDGET_HEADINGS = (">Size as forecast", ">Size", ">Change", ">Amount as forecast", ">Amount", ">Change")
FIT_HEADINGS = (
    "Server",
    "Full first",
    ">Left today",
    "As forecast (50 %)",
    "With it (50 %)",
    "Range",
    ">Within a year",
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--fit", type=options.GIGABYTES, help="Instead of FILE: show where a new database of this many GiB fits.")
@options.grouping_option("engine, or a label key, for the budget. Default: the first of CAPACITY_LABEL_KEYS.")
@options.rows_option("show", 20)
@click.option("--store", "stored_name", metavar="NAME", help="Store the result under a name, for the page What if.")
@click.option("--remove", "removed_name", metavar="NAME", help="Instead of FILE: remove a stored result.")
@options.json_command
def scenario(
    settings: Settings,
    /,
    *,
    file: Path | None,
    fit: Decimal | None,
    by: str | None,
    show: int,
    stored_name: str | None,
    removed_name: str | None,
) -> Report:
    """Show how assumptions change fill dates and budget.

    FILE is a TOML file with tables [[growth]], [[new_database]], [[purge]], [[limit]] and [[move]]. Lists what changes,
    as forecast and with the assumptions, the greatest risk first. Stores nothing without --store.

    \b
    Examples:
      capacity scenario next-year.toml
      capacity scenario next-year.toml --store "next year"
      capacity scenario --fit 300
    """
    if sum(given is not None for given in (file, fit, removed_name)) != 1 or (stored_name and file is None):
        raise click.UsageError("Give a FILE, with or without --store, or --fit, or --remove.")
    with options.open_database(settings, settings.zone) as engine:
        today = Clock(settings.zone).today()
        if removed_name is not None:
            results.remove_scenario(engine, removed_name)
            return Report({"removed": removed_name}, [f"Removed the stored scenario {removed_name}."])
        if fit is not None:
            added = scenarios.new_database_everywhere(fit)
            with database_errors(doing="reading sizes and limits"), engine.connect() as connection:
                fits = results.read_fits(connection, today, added)
            return Report(fits, _fit_lines(fits, fit, show))
        assert file is not None  # noqa: S101 -- one of the three was given
        assumed = scenarios.scenario_of_file(file)
        registered_servers(engine, sorted(assumed.servers))  # refuses unknown names
        by = by or default_grouping(settings.label_keys)
        result = results.result_of(engine, today, assumed, by, settings.label_keys)
        if stored_name is not None:
            results.store_scenario(engine, stored_name, result)
    return Report({**asdict(result), "stored": stored_name}, _scenario_lines(result, show, stored_name))


def _scenario_lines(result: ScenarioResult, show: int, stored_name: str | None) -> Iterator[Line]:
    yield "Assumed: " + ("; ".join(result.assumptions) or "nothing") + "."
    yield results.answer_of(result)
    if result.runways:
        rows = []
        for change in result.runways:
            base = [change.before.text, _chance(change.before)]
            rows.append(
                [change.server, change.display_name, human_mb(change.size_mb), *base, *_scenario_cells(change.after)]
            )
        yield Table.of_first(f"Fill dates as of {human_day(result.as_of)}", SCENARIO_HEADINGS, rows, show)
    yield f"Unchanged: {counted(result.unchanged, 'forecast')}."
    yield from result.notes
    if result.total is not None and result.last_day is not None and result.grouped_by is not None:
        by = result.grouped_by
        rows = [_budget_cells(group_named(change.name, by), change) for change in result.budget]
        title = f"Budget of the 12 months to {human_day(result.last_day)}, {result.currency or 'no currency'}"
        headings = (group_heading(by), *BUDGET_HEADINGS)
        yield Table(title, headings, [*rows, _budget_cells("Total", result.total)])
    if result.without_budget:
        yield f"No budget: {result.without_budget}"
    if stored_name is not None:
        yield f"Stored as {stored_name}: the page What if shows it."


def _budget_cells(name: str, budget_change: BudgetChange) -> list[object]:
    change = human_change_mb(budget_change.end_size_after_mb - budget_change.end_size_before_mb)
    sizes = [human_mb(budget_change.end_size_before_mb), human_mb(budget_change.end_size_after_mb), change]
    return [
        name,
        *sizes,
        money(budget_change.amount_before),
        money(budget_change.amount_after),
        money_change(budget_change.difference),
    ]


def _scenario_cells(after: ScenarioRunway) -> list[object]:
    return [after.text, after.range_text, _chance(after)]


def _chance(figures: ScenarioRunway) -> str:
    return "" if figures.within_365_days is None else human_probability(figures.within_365_days)


def _fit_lines(fits: Sequence[results.NewDatabaseFit], gb: Decimal, show: int) -> Iterator[Line]:
    yield results.fit_answer(fits)
    if not fits:
        return
    rows = [
        [fit.server, fit.display_name, human_mb(fit.headroom_mb), fit.before.text, *_scenario_cells(fit.after)]
        for fit in fits
    ]
    yield Table.of_first(f"Where {gb:,} GiB fit, best first", FIT_HEADINGS, rows, show)
    yield "Servers without a known limit are not listed. Those with too little history come last."


METHODS = {
    model.LAST_SIZE: ("last size", "The last size was the better forecast, so it is used."),
    model.MEAN_CHANGE: ("mean change", "The mean change was the better forecast."),
    model.SLOPE: ("slope", "The slope of the sizes was clearly the better forecast."),
}
"""The methods of forecasts: the name for scripts, and the sentence for people."""
TOLERANCE = 1e-6
BAND_HEADINGS = (
    "Horizon", ">Past errors", ">Lower", ">Forecast", ">Upper", ">Full by then", "Second calculation",
)  # fmt: skip
PIECE_HEADINGS = [f">{piece.capitalize()}" for piece in model.PIECES]
EVIDENCE_HEADINGS = ("Horizon", *PIECE_HEADINGS, ">Log odds", ">Full by then")
EARLIER_HEADINGS = ("As of", "Full (50 %)", ">Horizon", ">Forecast", ">Measured", ">Error")


def explain_runway(engine: Engine, settings: Settings, kind: str, name: str | None, server: str | None) -> Report:
    """Report how the runway of a database or volume was computed or, without a `name`, that of a server.

    Raises:
        NotFoundError: no such server, or nothing of that name was measured within the last month.
        ValidationError: a name is empty, or several servers have a database or volume of that name.
        DatabaseError: the database failed.
    """
    if "" in {name, server}:
        raise ValidationError("A name is empty.")
    if server is not None:
        registered_servers(engine, [server])
    today = Clock(settings.zone).today()
    series = forecasting.runway_with_sizes(engine, today, kind, name, server)
    if series is None:
        subject = server if name is None else f"{kind} {printable(name)}"
        raise NotFoundError(
            f"{subject} was not measured within the last month, or does not exist. Names are case-sensitive."
        )
    runway = series.runway
    with database_errors(doing="reading earlier forecasts"), engine.connect() as connection:
        earlier = earlier_forecasts(connection, runway)
        decision = open_decisions(connection, today).on(runway)
        imported = _imported_sizes(connection, series, kind, name)
    # A step of a database is also a step of its server's total.
    declared = stored_steps(engine, runway.server, name if kind == DATABASE else None)
    steps = [stored.declaration for stored in declared if _is_ignored(stored.declaration, series)]
    first = forecast(series.smooth[None, :], series.sizes[None, :])
    measured, smooth = (
        [None if np.isnan(size) else float(size) for size in sizes] for sizes in (series.sizes, series.smooth)
    )
    second = reference(smooth, measured)
    agrees = _agree(first, second) and _days_agree(runway, first, second)
    measured_days = sum(size is not None for size in measured)
    document = {
        "outlook": runway,
        "decision": decision and decision_json(decision, today),
        "measured_days": measured_days,
        "imported": imported,
        "steps": steps,
        "drift_mb_per_day": float(first.drift[0]),
        "lowest_change_mb": second.lowest_change,
        "highest_change_mb": second.highest_change,
        "cut_changes": second.cut_changes,
        "method": METHODS[int(first.method[0])][0],
        "errors_mb": second.errors,
        "band_mb": second.band,
        "said_before": earlier,
        "agrees": agrees,
    }
    lines: list[Line] = [
        f"{runway.display_name} on {runway.server}, as of {human_day(runway.last_day)}: "
        f"{runway.size_text}{runway.files_text}",
        f"Measured days: {measured_days:,}",
        *(origin.sentence for origin in imported),
        *(
            f"Ignored: {human_day(step.day)}, {printable(': '.join(filter(None, (step.database, step.note))))}."
            for step in steps
        ),
        *(_forecast_lines(runway, first, second) if runway.history_days >= LEAST_HISTORY_DAYS else ()),
        "Limit: unknown. `capacity limits set` declares one."
        if runway.binds is None
        else f"Limit: {limit_text(runway.limit_mb)}, {runway.binds}, {runway.source}.",
        _days_text(runway),
        *([] if decision is None else [decision.sentence]),
        *([] if runway.planned is None else [runway.planned.sentence]),
        *([] if runway.sooner_day is None else [runway.remark]),
        *([Table("Earlier forecasts", EARLIER_HEADINGS, list(map(_earlier_cells, earlier)))] if earlier else []),
        "Both calculations agree." if agrees else "The two calculations DIFFER. Please report this as a defect.",
    ]
    return Report(document, lines)


def _imported_sizes(connection: Connection, series: RunwayWithSizes, kind: str, name: str | None) -> list[SampleOrigin]:
    runway = series.runway
    number = server_id_of(connection, runway.server)
    if kind == VOLUME or number is None:
        return []
    first = runway.last_day - timedelta(days=len(series.sizes) - 1)
    return origins_of(connection, number, name, first, runway.last_day)


def _agree(first: SizeForecasts, second: ReferenceForecast) -> bool:
    """Whether both calculations agree, apart from rounding."""
    bands = [(first.lower[0, n], first.upper[0, n]) for n in range(len(HORIZONS_DAYS))]
    figures = (first.drift[0], first.pace[0], first.spread[0], first.fallen[0])
    rises = np.sort(first.rises[0])
    compared: list[tuple[Any, Any]] = [
        (bands, [second.band.get(days, (np.nan, np.nan)) for days in HORIZONS_DAYS]),
        (figures, (second.drift, second.pace, second.spread, second.fallen)),
        *((rises[n, : len(second.rises[days])], sorted(second.rises[days])) for n, days in enumerate(RISE_DAYS)),
    ]
    return all(np.allclose(*two, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True) for two in compared)


def _days_agree(runway: Runway, first: SizeForecasts, second: ReferenceForecast) -> bool:
    """Whether the days of both calculations agree, apart from one day, which rounding may decide."""
    if runway.state != FORECAST or runway.limit_mb is None:
        return True
    ends, beyond = model.compute_fill_days(first, np.array([float(runway.limit_mb)])), RISE_DAYS[-1] + 1
    for probability, [day] in zip(DAY_PROBABILITIES, (ends.early_days, ends.middle_days, ends.late_days), strict=True):
        again = second.day(runway.limit_mb, round(100 * probability))
        expected = beyond if day == model.NOT_WITHIN_HORIZON else day
        if abs(expected - (beyond if again is None else again)) > 1:
            return False
    return True


def _is_ignored(step: SizeStep, series: RunwayWithSizes) -> bool:
    """Whether the forecast ignores a declared step: sizes before and after it are known, and differ."""
    if step.day > series.runway.last_day or np.array_equal(series.smooth, series.sizes, equal_nan=True):
        return False
    column = len(series.sizes) - 1 - (series.runway.last_day - step.day).days
    return not np.array_equal(without_steps(series.sizes[None, :], [[column]])[0], series.sizes, equal_nan=True)


def _days_text(runway: Runway) -> str:
    if runway.state == FULL:
        return "It is full."
    if runway.state == FORECAST:
        early, middle, late = runway.days_text
        return f"Full: early {early}, middle {middle}, late {late}."
    if runway.state == TOO_LITTLE_HISTORY:
        history = counted(runway.history_days, "day")
        return f"No date: {history} of history; at least {LEAST_HISTORY_DAYS} are needed."
    return f"No date: {runway.state}."


def _forecast_lines(runway: Runway, first: SizeForecasts, second: ReferenceForecast) -> Iterator[Line]:
    yield (
        f"Daily changes between {second.lowest_change:,.3f} and {second.highest_change:,.3f} MiB are used unchanged; "
        f"{second.cut_changes:,} outside this range were cut to it."
    )
    _, better = METHODS[int(first.method[0])]
    yield f"Drift: {first.drift[0]:,.3f} MiB per day; by the second calculation: {second.drift:,.3f}. {better}"
    rows = [_band_cells(runway, first, second, place) for place in range(len(HORIZONS_DAYS))]
    yield Table("Bands in MiB", BAND_HEADINGS, rows)
    if runway.state == FORECAST:
        evidence = [_evidence_cells(float(runway.limit_mb or 0), second, days) for days in HORIZONS_DAYS]
        yield Table("Evidence of being full, each piece times its weight", EVIDENCE_HEADINGS, evidence)


def _earlier_cells(earlier: EarlierForecast) -> list[object]:
    middle = earlier.state if earlier.state != FORECAST else day_text(earlier.middle_day)
    sizes = ["none" if size is None else human_mb(size) for size in (earlier.forecast_mb, earlier.actual_mb)]
    error = ""
    if earlier.forecast_mb is not None and earlier.actual_mb:
        error = f"{(earlier.actual_mb - earlier.forecast_mb) / earlier.actual_mb:+.1%}"
    return [human_day(earlier.as_of), middle, f"{earlier.horizon_days} days", *sizes, error]


def _band_cells(runway: Runway, first: SizeForecasts, second: ReferenceForecast, place: int) -> list[object]:
    days = HORIZONS_DAYS[place]
    sizes = [f"{size[0, place]:,.1f}" for size in (first.lower, first.middle, first.upper)]
    own = len(second.errors[days])
    errors = own if first.counts[0, place] else f"{own}, borrowed"
    probability = runway.probabilities.get(days)
    full = "" if probability is None else human_probability(probability)
    band = second.band.get(days)
    again = "none" if band is None else f"{band[0]:,.1f} to {band[1]:,.1f}"
    return [f"{days} days", errors, *sizes, full, again]


def _evidence_cells(limit_mb: float, second: ReferenceForecast, days: int) -> list[object]:
    pieces = zip(second.evidence(limit_mb, days), model.WEIGHTS[days], strict=True)
    weighed = [piece * weight for piece, weight in pieces]
    full = second.probabilities(limit_mb)[days]
    return [f"{days} days", *(f"{weight:+.2f}" for weight in (*weighed, sum(weighed))), human_probability(full)]
