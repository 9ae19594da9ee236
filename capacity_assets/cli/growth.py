"""`capacity top`, `inside` and `groups`: what grew, by database, by table or index, and by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

import click
from sqlalchemy import Engine

from capacity_assets.aggregates.task_runner import follow_labels
from capacity_assets.base.errors import ValidationError, database_errors, refuse
from capacity_assets.base.periods import Clock, Period, Window
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_change_mb, human_day, human_mb, whole_mb
from capacity_assets.cli import options
from capacity_assets.cli.declaring import update_group_forecasts
from capacity_assets.cli.options import Line, Report, Table
from capacity_assets.collection.servers import refuse_unknown_engine
from capacity_assets.database.declared_rows import keys_of
from capacity_assets.database.engine import snapshot
from capacity_assets.forecast.results import display_name
from capacity_assets.ownership import labels as ownership
from capacity_assets.ownership.bills import group_heading, group_named
from capacity_assets.ownership.labels import refuse_unknown_label
from capacity_assets.reading.groups import Group, groups_of, left_out_note, measured_notes, out_of_service_note
from capacity_assets.reading.lists import DatabaseRow, databases
from capacity_assets.reading.table_growth import (
    DatabaseGrowth,
    ObjectChange,
    SchemaGrowth,
    by_schema,
    compared_samples,
    growth_inside,
    list_objects,
)
from capacity_assets.runtime import open_task_runner

# By sort order. Except for `size`, rows have changed in this direction; unknown changes are left out.
TITLES = {
    "growth": "Databases that grew most",
    "shrinkage": "Databases that shrank most",
    "size": "Largest databases",
    "percent": "Fastest growing databases",
}
DATABASE_HEADINGS = ("Server", "Engine", "Database", ">Mean size", ">Change", ">Change in %", "Trend", ">Days")
CHANGE_HEADINGS = ("Table or index", "Kind", ">Before", ">After", ">Change")
GROUP_HEADINGS = (">Servers", ">Databases", ">Mean size", ">Change", ">Change in %", "Fills first")
UNKNOWN = "unknown"


@click.command()
@options.window_options
@click.option("--by", default="growth", show_default=True, type=click.Choice(list(TITLES)), help="Sort order.")
@click.option("--server", help="Only databases of this server.")
@click.option("--tables", is_flag=True, help="List the tables and indexes that grew most instead of databases.")
@options.filter_options
@options.rows_option("limit", 10)
@options.json_command
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
    label: tuple[str, str] | None,
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
        raise click.UsageError("--tables lists what grew most: omit all filters except --server.")
    with options.open_window(settings, period, day) as (runner, chosen, window):
        opened = runner.service.engine
        server_id = None if server is None else runner.service.ids_of([server])[0]
        if tables:
            return _top_objects(opened, chosen, window, server_id, limit)
        if engine is not None:
            refuse_unknown_engine(opened, engine)
        filters = {"server_id": server_id, "engine": engine, "label": label}
        rows = top_databases(opened, chosen, window, by=by, limit=limit, **filters)
        if label is not None and not rows:
            refuse_unknown_label(opened, *label)
            raise ValidationError(
                f"Nothing with {'='.join(label)} to list in {chosen.name_of(window)}: none of these databases has such "
                "a change, or the label applies on other days. `capacity labels list` shows its days."
            )
        if not rows and top_databases(opened, chosen, window, by="size", limit=1, **filters):
            return Report([], [f"No database has such a change in {chosen.name_of(window)}."])
    if not rows:
        raise ValidationError(
            f"Nothing to list in {chosen.name_of(window)}: no row is stored, or no row has such a change. "
            f"`capacity plan --period {period} --from {window.start} --to {window.start}` shows what could be computed."
        )
    return Report([_database_json(row) for row in rows], [top_table(chosen, window, by, rows)])


def _top_objects(engine: Engine, period: Period, window: Window, server_id: int | None, limit: int) -> Report:
    with engine.connect() as connection:
        servers = None if server_id is None else [server_id]
        days = compared_samples(connection, window.start, window.end, servers=servers)
        listed = list_objects(connection, days, order="growth", shown=limit)
    objects = listed.objects
    if not objects and days:
        return Report([], [f"No table or index is known to have grown in {period.name_of(window)}."])
    if not objects:
        raise ValidationError(
            f"No table or index is known to have grown in {period.name_of(window)}. CAPACITY_OBJECTS names the servers "
            "whose tables and indexes are measured; growth takes two measurements."
        )
    rows = [[listed_object.server, listed_object.database, *_object_cells(listed_object)] for listed_object in objects]
    title = f"Tables and indexes that grew most, {period.name_of(window)}"
    documents = [
        {
            name: value
            for name, value in asdict(listed_object).items()
            if name not in {"server_id", "counted_bytes", "amount"}
        }
        for listed_object in objects
    ]
    return Report(documents, [Table(title, ("Server", "Database", *CHANGE_HEADINGS), rows)])


def top_databases(
    engine: Engine, period: Period, window: Window, /, *, by: str, limit: int, **filters: Any
) -> list[DatabaseRow]:
    """Return the first databases of a sort order; databases that did not change in its direction are left out.

    The filters are those of `databases`: `server_id`, `engine` and `label`.
    """
    with engine.connect() as connection:
        rows, _ = databases(connection, period, window, order=by, shown=limit, **filters)
    has_changed = {"growth": lambda row: row.change_mb > 0, "percent": lambda row: (row.change_percent or 0) > 0}
    return list(filter(has_changed.get(by), rows))


def top_table(period: Period, window: Window, by: str, rows: Sequence[DatabaseRow]) -> Table:
    """Return the rows as a table."""
    title = f"{TITLES[by]}, {period.name_of(window)} compared with the previous window"
    return Table(title, DATABASE_HEADINGS, list(map(_database_cells, rows)))


def _database_json(row: DatabaseRow) -> dict[str, object]:
    values = {name: value for name, value in asdict(row).items() if name not in {"server_id", "labels"}}
    return {**values, "change_percent": None if row.change_percent is None else f"{row.change_percent:.2f}"}


def _database_cells(row: DatabaseRow) -> list[object]:
    percent = UNKNOWN if row.change_percent is None else f"{row.change_percent:+.2f} %"
    sizes = [human_mb(row.size_mb), _change_text(row.change_mb), percent]
    days = f"{row.measured_days} of {row.window_days}"
    return [row.server, row.engine, row.database, *sizes, row.trend or UNKNOWN, days]


def _change_text(change_mb: int | None) -> str:
    return UNKNOWN if change_mb is None else human_change_mb(change_mb)


@click.command()
@click.argument("server")
@click.argument("database")
@options.period_option()
@click.option(
    "--window", "day", type=options.DAY, help="With --period: any day of the window. Default: the last complete one."
)
@click.option("--from", "first_day", type=options.DAY, help="First day, instead of a window.")
@click.option("--to", "last_day", type=options.DAY, help="Last day. Default: today.")
@click.option(
    "--by",
    type=click.Choice(["table", "schema"]),
    default="table",
    show_default=True,
    help="Show tables and indexes, or sums by schema.",
)
@options.rows_option("limit", 20)
@options.json_command
def inside(
    settings: Settings,
    /,
    *,
    server: str,
    database: str,
    period: str | None,
    day: date | None,
    first_day: date | None,
    last_day: date | None,
    by: str,
    limit: int,
) -> Report:
    """Show which tables and indexes explain the change of a database.

    Their changes, those of all others, and the rest that no object explains add up to the change of the database.
    CAPACITY_OBJECTS names the servers whose tables and indexes are measured.

    \b
    Examples:
      capacity inside db-7 orders
      capacity inside db-7 orders --period weekly --window 2025-03-03
      capacity inside db-7 orders --by schema
      capacity inside db-7 orders --from 2025-01-01 --to 2025-03-31 --json
    """
    refuse(
        (first_day and (period, day) != (None, None), "Give either --from, or --period and --window."),
        (last_day and not first_day, "--to needs --from."),
        error=click.UsageError,
    )
    with open_task_runner(settings, existing=True) as runner:
        if first_day is None:
            window = runner.service.partitions.window_holding(runner.service.period(period or "monthly"), day)
            first_day, last_day = window.start, window.end
        last_day = last_day or runner.service.clock.today()
        if last_day < first_day:
            raise ValidationError(f"{human_day(last_day)} is before {human_day(first_day)}.")
        [server_id] = runner.service.ids_of([server])
        with snapshot(runner.service.engine) as connection:
            growth = growth_inside(connection, server_id, database, first_day, last_day)
            if growth is None:
                keys_of(connection, [(server, database)])  # refuses an unknown name
    if growth is None:
        raise ValidationError(
            f"The tables and indexes of {database} were not measured twice between {human_day(first_day)}, or the "
            f"month before it, and {human_day(last_day)}. CAPACITY_OBJECTS names the servers whose tables and indexes "
            "are measured."
        )
    before, after = human_mb(whole_mb(growth.before_bytes)), human_mb(whole_mb(growth.after_bytes))
    title = (
        f"{growth.database} on {growth.server}: {before} on {human_day(growth.first_day)}, "
        f"{after} on {human_day(growth.last_day)}, {human_change_mb(whole_mb(growth.change_bytes))}."
    )
    if by == "schema":
        return Report(by_schema(growth), [title, _schemas_table(growth, limit)])
    grown = (
        f"{change.label} {human_change_mb(whole_mb(change.free_change_bytes))} "
        f"to {human_mb(whole_mb(change.free_bytes))}"
        for change in growth.more_free
        if change.free_change_bytes is not None and change.free_bytes is not None
    )
    free = f"Dead and free space grew, also as a share of the table: {', '.join(grown)}."
    return Report(growth, [title, _objects_table(growth, limit), *([free] if growth.more_free else [])])


def _object_cells(object_change: ObjectChange) -> list[object]:
    before = f"{'at most ' if object_change.before_is_bound else ''}{human_mb(whole_mb(object_change.before_bytes))}"
    after = f"{'at most ' if object_change.after_is_bound else ''}{human_mb(whole_mb(object_change.after_bytes))}"
    change = f"{'at least ' if object_change.is_bound else ''}{human_change_mb(whole_mb(object_change.change_bytes))}"
    return [object_change.label, object_change.kind, before, after, change]


def _objects_table(growth: DatabaseGrowth, limit: int) -> Table:
    listed, hidden = growth.objects[:limit], growth.objects[limit:]
    rows = []
    for object_change in listed:
        free = "" if object_change.free_bytes is None else human_mb(whole_mb(object_change.free_bytes))
        rows.append(
            [
                *_object_cells(object_change),
                free,
                "" if object_change.estimated_rows is None else f"{object_change.estimated_rows:,}",
            ]
        )
    rows += [[name, "", "", "", change, "", ""] for name, change in _sums(growth, hidden)]
    return Table("What grew inside", (*CHANGE_HEADINGS, ">Free", ">Rows (estimated)"), rows)


def _schemas_table(growth: DatabaseGrowth, limit: int) -> Table:
    schemas = by_schema(growth)
    rows: list[list[object]] = []
    for schema in schemas[:limit]:
        rows.append([schema.schema, schema.objects, human_change_mb(whole_mb(schema.change_bytes))])
    rows += [[name, "", change] for name, change in _sums(growth, schemas[limit:])]
    return Table("What grew inside, by schema", ("Schema", ">Changed", ">Change"), rows)


def _sums(growth: DatabaseGrowth, hidden: Sequence[ObjectChange | SchemaGrowth]) -> list[tuple[str, str]]:
    """Return the rows below a list, which with it add up to the change of the database."""
    sums = [(f"{len(hidden):,} others that changed", sum(change.change_bytes for change in hidden))] if hidden else []
    sums += [
        ("all other tables and indexes", growth.others_change_bytes),
        ("unexplained", growth.unexplained_change_bytes),
        ("the database", growth.change_bytes),
    ]
    return [(name, human_change_mb(whole_mb(change))) for name, change in sums]


@click.command()
@options.window_options
@options.grouping_option("engine, server, or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@click.option("--now", is_flag=True, help="First compute the groups whose labels changed.")
@options.json_command
def groups(settings: Settings, /, *, period: str, day: date | None, by: str | None, now: bool) -> Report:
    """Show the size and growth of each team, or any other group.

    Groups add up to the fleet. Databases without the label form a group of their own. Replicas are not counted
    twice. Sizes and numbers of databases are means per day, rounded down. `capacity bill` counts every database that
    was measured in the month, so its numbers may be larger.

    \b
    Examples:
      capacity groups
      capacity groups --group-by environment --period weekly
    """
    by = by or ownership.default_grouping(settings.label_keys)
    ownership.refuse_unknown_grouping(by, settings.label_keys)
    with options.open_window(settings, period, day) as (runner, chosen, window):
        if now and follow_labels(runner, None).computed:
            update_group_forecasts(runner.service.engine, Clock(settings.zone))
        with database_errors(doing="reading groups"), runner.service.engine.connect() as connection:
            rows = groups_of(connection, chosen, window, by, ownership.first_fill_date_of_groups(connection, by))
            notes = [out_of_service_note(connection, chosen, window, by), left_out_note(connection, chosen, window)]
            changed_at = None if by == "server" else ownership.groups_changed_at(connection, chosen, [window])
    if not rows:
        raise ValidationError(
            f"No groups are stored in {chosen.name_of(window)}. `capacity groups --now` computes windows whose labels "
            f"changed, `capacity aggregate` any window.{''.join(f' {note}' for note in notes if note)}"
        )
    title = f"Groups by {by}, {chosen.name_of(window)} compared with the previous window"
    headings = (group_heading(by), *GROUP_HEADINGS)
    changes = [group.change_mb for group in rows if group.change_mb is not None]
    change = f", {human_change_mb(sum(changes))} where it is known" if changes else ""
    lines: list[Line] = [
        Table(title, headings, [_group_cells(group, by) for group in rows]),
        f"Total: {human_mb(sum(group.size_mb for group in rows))}{change}.",
        *measured_notes(rows, by),
        *(note for note in notes if note),
        *([ownership.stale_groups_notice(changed_at)] if changed_at else []),
        *([NO_SUCH_LABEL] if [group.name for group in rows] == [None] else []),
    ]
    return Report(rows, lines)


NO_SUCH_LABEL = "No database has such a label yet. `capacity labels set` declares one."


def _group_cells(group: Group, by: str) -> list[object]:
    first = group.fills_first
    fills = (
        "" if first is None else f"{human_day(first.day)} {display_name(first.subject, first.name)} on {first.server}"
    )
    counts = [group.servers, group.databases, human_mb(group.size_mb), _change_text(group.change_mb)]
    return [group_named(group.name, by), *counts, group.growth, fills]
