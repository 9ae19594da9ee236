"""`capacity top`: the databases of a window that grew or shrank most, or the largest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date

import click
from sqlalchemy import Engine

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.files import key_and_value
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_change_mb, human_mb
from capacity_assets.cli.inside import object_cells
from capacity_assets.cli.options import Report, Table, filter_options, json_command, number_listed, window_options
from capacity_assets.ownership.labels import refuse_unknown_label
from capacity_assets.reading.inside import growing_objects
from capacity_assets.reading.lists import DatabaseRow, databases
from capacity_assets.runtime import open_task_runner

# By sort order. Except for `size`, rows have changed in that direction; an unknown change is neither.
TITLES = {
    "growth": "Databases that grew most",
    "shrinkage": "Databases that shrank most",
    "size": "Largest databases",
    "percent": "Fastest growing databases",
}
HEADINGS = ("Server", "Engine", "Database", ">Mean size", ">Change", ">Change in %", "Trend", ">Days")


@click.command()
@window_options
@click.option("--by", default="growth", show_default=True, type=click.Choice(list(TITLES)), help="What to sort by.")
@click.option("--server", help="Only databases of this server.")
@click.option("--tables", is_flag=True, help="The tables and indexes that grew most, instead of databases.")
@filter_options
@number_listed("limit", 10)
@json_command
def top(
    settings: Settings,
    /,
    *,
    period: str,
    day: date | None,
    by: str,
    server: str | None,
    tables: bool,
    engine: str | None,
    label: str | None,
    limit: int,
) -> Report:
    """List the databases that grew or shrank most, or the largest.

    \b
    Examples:
      capacity top
      capacity top --by size --period daily
      capacity top --by shrinkage --server db-7 --limit 50
      capacity top --label team=payments
      capacity top --tables --period weekly
    """
    if tables and (by != "growth" or engine is not None or label is not None):
        raise click.UsageError("--tables lists what grew most, of the fleet or with --server: give no other filter.")
    chosen_label = None if label is None else key_and_value(label)
    with open_task_runner(settings, existing=True) as runner:
        service = runner.service
        chosen = service.period(period)
        window = service.partitions.window_holding(chosen, day)
        server_id = None if server is None else service.ids_of([server])[0]
        if tables:
            return _top_objects(service.engine, chosen, window, server_id, limit)
        rows = top_databases(
            service.engine,
            chosen,
            window,
            by=by,
            limit=limit,
            server_id=server_id,
            engine_name=engine,
            label=chosen_label,
        )
        if chosen_label is not None and not rows:
            refuse_unknown_label(service.engine, *chosen_label)
            raise ValidationError(
                f"Nothing with {label} to list in {chosen.name_of(window)}: no database of it has such a change, "
                "or it holds on other days. `capacity labels list` has them."
            )
    if not rows:
        raise ValidationError(
            f"Nothing to list in {chosen.name_of(window)}: no row is stored, or none with such a change. "
            f"`capacity plan --period {period} --from {window.start} --to {window.start}` shows what could be computed."
        )
    return Report([_document(row) for row in rows], [top_table(chosen, window, by, rows)])


OBJECT_HEADINGS = ("Server", "Database", "Table or index", "Kind", ">Before", ">After", ">Change")


def _top_objects(engine: Engine, period: Period, window: Window, server_id: int | None, limit: int) -> Report:
    """Return the tables and indexes that grew most, of all servers or one."""
    with engine.connect() as connection:
        found = growing_objects(connection, window.start, window.end, shown=limit, server_id=server_id)
    if not found:
        raise ValidationError(
            f"No table or index is known to have grown in {period.name_of(window)}. CAPACITY_OBJECTS names the servers "
            "of which they are measured; two samples are compared."
        )
    rows = [[one.server, one.database, *object_cells(one.grown)] for one in found]
    title = f"Tables and indexes that grew most, {period.name_of(window)}"
    documents = [
        {name: value for name, value in asdict(one).items() if name not in {"server_id", "grown"}} | asdict(one.grown)
        for one in found
    ]
    return Report(documents, [Table(title, OBJECT_HEADINGS, rows)])


def top_databases(
    engine: Engine,
    period: Period,
    window: Window,
    *,
    by: str,
    limit: int,
    server_id: int | None = None,
    engine_name: str | None = None,
    label: tuple[str, str] | None = None,
) -> list[DatabaseRow]:
    """Return the first databases of a sort order; those that did not change in its direction are left out."""
    with engine.connect() as connection:
        rows, _ = databases(
            connection, period, window, order=by, server_id=server_id, engine=engine_name, label=label, shown=limit
        )
    has_changed = {"growth": lambda row: row.change_mb > 0, "percent": lambda row: (row.change_percent or 0) > 0}
    return list(filter(has_changed.get(by), rows))


def top_table(period: Period, window: Window, by: str, rows: Sequence[DatabaseRow]) -> Table:
    """Return the rows under a title."""
    return Table(f"{TITLES[by]}, {period.name_of(window)} against the window before", HEADINGS, list(map(_cells, rows)))


def _document(row: DatabaseRow) -> dict[str, object]:
    values = {name: value for name, value in asdict(row).items() if name not in {"server_id", "labels"}}
    return {**values, "change_percent": None if row.change_percent is None else f"{row.change_percent:.2f}"}


def _cells(row: DatabaseRow) -> list[object]:
    change = "unknown" if row.change_mb is None else human_change_mb(row.change_mb)
    percent = "unknown" if row.change_percent is None else f"{row.change_percent:+.2f} %"
    days = f"{row.measured_days} of {row.window_days}"
    return [row.server, row.engine, row.database, human_mb(row.size_mb), change, percent, row.trend or "unknown", days]
