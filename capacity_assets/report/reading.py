"""Reads the numbers of a report from the database. Their meaning is in `data`, the statements are in `queries`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.errors import NotFoundError, database_errors
from capacity_assets.grouping.groups import fills_first, groups_of
from capacity_assets.periods import Period, Window
from capacity_assets.report import queries
from capacity_assets.report.data import WINDOWS_SHOWN, Bar, Change, ChangeKind, Database, Report, ServerChange, Totals
from capacity_assets.runway.issued import newest_issue, with_histories
from capacity_assets.storage.distribution import tables_are_distributed

DATABASES_LISTED = 10
"""Of each kind; a server's own page lists all its databases."""


SERVERS_LISTED = 20
RISKS_LISTED = 10


def read_report(  # noqa: PLR0913 -- what a report may be of
    engine: Engine,
    period: Period,
    window: Window,
    server: str | None = None,
    *,
    today: date | None = None,
    by: str | None = None,
) -> Report:
    """Read the report of one window: of all servers, with groups by `by`, or of the one of that name.

    On its last day a window is still open: servers that failed are measured later. Without `today` it is over.
    Raises NotFoundError where no server of that name is registered, and DatabaseError.
    """
    with (
        database_errors(doing="reading the report's figures", kept="Nothing was written."),
        engine.connect() as connection,
    ):
        # One state of the tables throughout, or the sums would not add up while a run writes.
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        # Right after a load the statistics know nothing of the windows, and the planner would loop over pairs.
        connection.execute(text("SET LOCAL enable_nestloop = off"))
        report = _read(connection, period, window, server, today)
        # Last, and with loops: labels are looked up for the few rows that have some.
        connection.execute(text("SET LOCAL enable_nestloop = on"))
        groups = []
        if by is not None and server is None:
            groups = groups_of(connection, period, window, by, fills_first(connection, by))
        has_labels = any(group.name is not None for group in groups)
        return replace(report, grouped_by=by, groups=groups) if has_labels else report


def _read(connection: Connection, period: Period, window: Window, server: str | None, today: date | None) -> Report:
    shown = period.back(window, WINDOWS_SHOWN)
    parameters: dict[str, object] = {
        "period": period.name,
        "start": window.start,
        "before": period.previous(window).start,
        "end": window.end,
        "oldest": shown[0].start,
        "starts": [one.start for one in shown],
        "server": server_id(connection, server),
        "listed": DATABASES_LISTED,
        "servers_listed": SERVERS_LISTED,
    }

    def rows(query: str) -> Sequence[Row[tuple[object, ...]]]:
        named = re.findall(r"(?<!:):(\w+)", query)
        return connection.execute(text(query), {name: parameters[name] for name in named}).all()

    changes = {
        ChangeKind(row.kind): Change(row.databases, int(row.before_mb), int(row.size_mb), int(row.change_mb))
        for row in rows(queries.CHANGES)
    }
    databases: dict[ChangeKind, list[Database]] = {kind: [] for kind in ChangeKind}
    for row in rows(queries.LISTED):
        days = _days(row.before_count, row.days_before), _days(row.now_count, row.days)
        database = Database(row.server, row.name, row.before_mb, row.size_mb, int(row.moved_mb), *days)
        databases[ChangeKind(row.kind)].append(database)
    [ends] = rows(queries.ENDS)
    [totals] = rows(queries.TOTALS)
    on_nodes = tables_are_distributed(connection)
    measured = rows(queries.MEASURED_ON_NODES if on_nodes else queries.MEASURED)
    unmeasured = rows(queries.UNMEASURED_ON_NODES if on_nodes else queries.UNMEASURED)
    # A few subjects are looked up in many samples.
    connection.execute(text("SET LOCAL enable_nestloop = on"))
    issued = newest_issue(connection, window.start, window.end, server, shown=RISKS_LISTED)
    runways = with_histories(connection, issued) if issued else None
    return Report(
        period=period,
        window=window,
        server=server,
        totals=_totals(totals),
        changes={kind: changes.get(kind, Change()) for kind in ChangeKind},
        databases=databases,
        servers=[
            ServerChange(row.name, row.engine, row.databases, int(row.before_mb), int(row.size_mb), int(row.change_mb))
            for row in rows(queries.SERVERS)
        ],
        history=[Bar(row.window_start, row.series, int(row.size_mb)) for row in rows(queries.HISTORY)],
        measured_servers={row.day: row.measured for row in measured if row.measured},
        expected_servers={row.day: int(row.expected) for row in measured},
        active_servers=ends.active_servers,
        counted_by_others=ends.counted_by_others,
        unmeasured_servers=[row.name for row in unmeasured if not row.never_measured],
        never_measured_servers=[row.name for row in unmeasured if row.never_measured],
        read_at=ends.read_at,
        computed_at=ends.computed_at,
        first_sample=ends.first_sample,
        last_sample=ends.last_sample,
        today=today,
        runways=runways,
    )


def _totals(row: Row[tuple[object, ...]]) -> Totals:
    numbers = {name: int(str(value)) for name, value in row._asdict().items() if value is not None}
    return Totals(**numbers)


def _days(there: int | None, measured: int | None) -> str:
    return "" if there is None or measured is None else f"{there} of {measured}"


def server_id(connection: Connection, server: str | None) -> int | None:
    """Look a server up by name, None stands for all; raises NotFoundError where none of that name is registered."""
    if server is None:
        return None
    found = connection.execute(text("SELECT id FROM instances WHERE name = :name"), {"name": server}).scalar()
    if found is None:
        raise NotFoundError(
            f"There is no server {server!r}: names are compared letter by letter. The view "
            "capacity_server_growth lists those that are known. Nothing was written."
        )
    return int(found)
