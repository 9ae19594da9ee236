"""`capacity runway`: when servers and databases will be full, the greatest risk first."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from decimal import Decimal

import click
from sqlalchemy import Engine

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.files import key_and_value
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, first_of, human_day, human_mb
from capacity_assets.cli.decisions import decision_json
from capacity_assets.cli.limits import limit_text
from capacity_assets.cli.options import GIGABYTES, Line, Report, Table, filter_options, json_command, number_listed
from capacity_assets.collection.servers import registered
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.forecast.decisions import OpenDecisions, StoredDecision, stored_decisions
from capacity_assets.forecast.issuing import RunwayService
from capacity_assets.forecast.model import LEAST_CHANGES
from capacity_assets.forecast.outlook import (
    FORECAST,
    FULL,
    LIMIT_UNKNOWN,
    SERVER_LIMIT,
    TOO_LITTLE_HISTORY,
    VOLUME_LIMIT,
    Outlook,
    Outlooks,
    standing_for_themselves,
)
from capacity_assets.forecast.runway import outlooks
from capacity_assets.forecast.scenarios import compare, higher_limits, no_label
from capacity_assets.ownership.labels import labels_of_each, refuse_unknown_label
from capacity_assets.reading.forecasts import figures_of, issue_of
from capacity_assets.runtime import open_engine

NAMED = 5
SHOWN_WITHIN_DAYS = (30, 90)
LEAST_HISTORY_DAYS = 2 * LEAST_CHANGES + 1
HEADINGS = (
    *("Server", "What", ">Size", ">Limit", "Binds", "Early (10 %)", "Middle (50 %)", "Late (90 %)"),
    *(f">Within {days} days" for days in SHOWN_WITHIN_DAYS),
)


@click.command()
@click.argument("server", required=False)
@click.argument("database", required=False)
@click.option("--add-gb", type=GIGABYTES, default=Decimal(0), help="Assume that every limit is this many GiB higher.")
@filter_options
@number_listed("show", 20)
@click.option("--issue", is_flag=True, help="First store the forecasts of today, so that pages and reports have them.")
@json_command
def runway(
    settings: Settings,
    /,
    *,
    server: str | None,
    database: str | None,
    add_gb: Decimal,
    engine: str | None,
    label: str | None,
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
    chosen = None if label is None else key_and_value(label)
    with open_engine(settings, existing=True) as opened:
        refuse_an_unfit_database(opened, settings.zone)
        if server is not None:
            registered(opened, [server])  # refuses an unknown name
        clock = Clock(settings.zone)
        issued = RunwayService(opened, clock).issue(clock.today()) if issue else None
        figures = figures_of(issue_of(opened, clock.today(), clock.today())) if issue else {}
        if add_gb:
            higher = higher_limits(add_gb)
            forecasts = compare(opened, clock.today(), higher, no_label, (server, database)).changed
        else:
            forecasts = outlooks(opened, clock.today(), server, database)
        decisions = OpenDecisions(stored_decisions(opened, clock.today()))
        if engine is not None or chosen is not None:
            forecasts = _only(opened, forecasts, clock.today(), label=chosen, of_engine=engine)
    if server is not None:
        _refuse_unmeasured(forecasts, server, database)
    if not forecasts.rows and (engine is not None or label is not None):
        lines: list[Line] = [f"No database with a known limit matches {' and '.join(filter(None, (engine, label)))}."]
    else:
        lines = outlook_lines(forecasts, decisions, add_gb=add_gb, show=show, every=server is not None)
    decided = [decisions.on(row) for row in forecasts.rows]
    rows = [
        {**asdict(row), "decision": decision and decision_json(decision, clock.today())}
        for row, decision in zip(forecasts.rows, decided, strict=True)
    ]
    document = {**asdict(forecasts), "rows": rows, "add_gb": float(add_gb)}
    if issued is not None:
        document["issued"] = issued.to_dict() | figures
        lines.append(f"{counted(sum(issued.states.values()), 'forecast')} of {human_day(issued.as_of)} stored.")
    return Report(document, lines)


def _refuse_unmeasured(forecasts: Outlooks, server: str, database: str | None) -> None:
    if forecasts.rows or forecasts.unknown_limits:
        return
    if database is not None:
        raise NotFoundError(f"{database!r} is not in the newest sample of {server!r}.")
    raise NotFoundError(f"Server {server!r} is out of service, or was not measured within the last month.")


def _only(
    engine: Engine, forecasts: Outlooks, today: date, *, label: tuple[str, str] | None, of_engine: str | None
) -> Outlooks:
    """Return the rows with a label and an engine; databases with unknown limits are then not counted.

    Raises NotFoundError if nothing ever had the label.
    """
    subjects = list(dict.fromkeys((row.server, row.database) for row in forecasts.rows))
    kept = labels_of_each(engine, subjects, today, label=label, of_engine=of_engine)
    # A database keeps the row of the limit that it reaches first: that of its volume, or of the server.
    bound = {(row.server, row.binds) for row in forecasts.rows if row.database and (row.server, row.database) in kept}
    rows = [
        row
        for row in forecasts.rows
        if (row.server, row.database) in kept
        or (row.database is None and (row.server, VOLUME_LIMIT if row.volume else SERVER_LIMIT) in bound)
    ]
    if label is not None and not rows:
        refuse_unknown_label(engine, *label)
    return Outlooks(forecasts.as_of, rows, 0, {})


def outlook_lines(
    forecasts: Outlooks,
    decisions: OpenDecisions,
    *,
    show: int,
    add_gb: Decimal = Decimal(0),
    every: bool = False,
) -> list[Line]:
    """Return the first rows as a table, what was decided about them, and the number of unknown limits.

    Without `every`, databases that have only their server's limit are left out: the row of the server shows when it is
    reached.
    """
    lines: list[Line] = []
    rows = list(forecasts.rows) if every else standing_for_themselves(forecasts.rows)
    if rows and forecasts.as_of is not None:
        more = len(rows) - show
        higher = f", if every limit were {add_gb:,} GiB higher" if add_gb else ""
        hidden = f" ({more:,} more: `capacity runway` lists them with --show {len(rows)})" if more > 0 else ""
        title = f"Full when, as of {human_day(forecasts.as_of)}{higher}{hidden}"
        lines.append(Table(title, HEADINGS, list(map(_cells, rows[:show]))))
        sooner = [row for row in rows[:show] if row.sooner_day is not None]
        lines += [f"note: {row.display_name} on {row.server}. {row.remark}" for row in sooner]
        decided = [(row, decision) for row in rows[:show] if (decision := decisions.on(row)) is not None]
        lines += [f"note: {row.display_name} on {row.server}. {_decided_text(row, one)}" for row, one in decided]
    else:
        lines.append("None of these has a known limit. `capacity limits set` declares one.")
    if forecasts.unknown_limits and not every:
        servers = (f"{server} ({databases:,})" for server, databases in forecasts.unknown_on.items())
        lines.append(f"Without a known limit: {first_of(servers, NAMED)}. `capacity runway SERVER_LIMIT` lists them.")
    if forecasts.unknown_limits:
        lines.append(f"Limit unknown: {counted(forecasts.unknown_limits, 'database')}.")
    return lines


def _decided_text(row: Outlook, decision: StoredDecision) -> str:
    # On the volume or server that binds it, where it has no decision of its own.
    subject = "" if decision.name == row.name else f"{decision.display_name}: "
    return f"{subject}{decision.sentence}{f' {row.planned.sentence}' if row.planned else ''}"


def _cells(row: Outlook) -> list[object]:
    probabilities = [f"{row.probabilities[days]:.0%}" if row.probabilities else "" for days in SHOWN_WITHIN_DAYS]
    states = {TOO_LITTLE_HISTORY: f"{row.history_days} of {LEAST_HISTORY_DAYS} days"}
    days = row.days_text if row.state in {FORECAST, FULL} else [states.get(row.state, row.state)] * 3
    subject = [row.server, row.display_name]
    limit = "unknown" if row.state == LIMIT_UNKNOWN else limit_text(row.limit_mb)
    return [*subject, human_mb(row.size_mb), limit, row.binds or "", *days, *probabilities]
