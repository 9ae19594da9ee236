"""`capacity inside`: the tables and indexes that explain the change of a database in some days."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date

import click

from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import BYTES_PER_MB, human_change_mb, human_day, human_mb
from capacity_assets.cli.options import DAY, Report, Table, json_command, number_listed, period_option
from capacity_assets.database.engine import snapshot
from capacity_assets.reading.inside import Inside, ObjectChange, inside
from capacity_assets.reading.subjects import was_ever_sampled
from capacity_assets.runtime import open_task_runner

DEFAULT_PERIOD = "monthly"
HEADINGS = ("Table or index", "Kind", ">Before", ">After", ">Change", ">Free", ">Rows (estimated)")


@click.command("inside")
@click.argument("server")
@click.argument("database")
@period_option()
@click.option("--window", "day", type=DAY, help="With --period: any day of the window. Default: the last complete one.")
@click.option("--from", "first_day", type=DAY, help="First day, instead of a window.")
@click.option("--to", "last_day", type=DAY, help="Last day. Default: today.")
@number_listed("limit", 20)
@json_command
def inside_command(
    settings: Settings,
    /,
    *,
    server: str,
    database: str,
    period: str | None,
    day: date | None,
    first_day: date | None,
    last_day: date | None,
    limit: int,
) -> Report:
    """Show which tables and indexes explain the change of a database.

    They add up to its change with all others and with what no object explains. Tables and indexes are measured of the
    servers that CAPACITY_OBJECTS names.

    \b
    Examples:
      capacity inside db-7 orders
      capacity inside db-7 orders --period weekly --window 2025-03-03
      capacity inside db-7 orders --from 2025-01-01 --to 2025-03-31 --json
    """
    if first_day is not None and (period, day) != (None, None):
        raise click.UsageError("Give either --from, or --period and --window.")
    if first_day is None and last_day is not None:
        raise click.UsageError("--to needs --from.")
    with open_task_runner(settings, existing=True) as runner:
        service = runner.service
        if first_day is None:
            chosen = service.period(period or DEFAULT_PERIOD)
            window = service.partitions.window_holding(chosen, day)
            first_day, last_day = window.start, window.end
        last_day = last_day or service.clock.today()
        if last_day < first_day:
            raise ValidationError(f"{human_day(last_day)} is before {human_day(first_day)}.")
        [server_id] = service.ids_of([server])
        with snapshot(service.engine) as connection:
            found = inside(connection, server_id, database, first_day, last_day)
            if found is None and not was_ever_sampled(connection, server_id, database):
                raise NotFoundError(f"There is no database {database!r} on {server}: it was never measured.")
    if found is None:
        raise ValidationError(
            f"The tables and indexes of {database} were not measured twice from {human_day(first_day)}, or the month "
            f"before, to {human_day(last_day)}. CAPACITY_OBJECTS names the servers of which they are measured."
        )
    return Report(asdict(found), [_title(found), _table(found, limit)])


def human_bytes(size_bytes: int) -> str:
    """Return bytes as people read sizes, cut toward zero."""
    return human_mb(int(size_bytes / BYTES_PER_MB))


def human_change_bytes(change_bytes: int) -> str:
    """Return a change of bytes with its sign, cut toward zero."""
    return human_change_mb(int(change_bytes / BYTES_PER_MB))


def object_cells(one: ObjectChange) -> list[object]:
    """Return the cells of one table or index: name, kind, sizes and change."""
    before = f"{'at most ' if one.before_is_bound else ''}{human_bytes(one.before_bytes)}"
    after = f"{'at most ' if one.after_is_bound else ''}{human_bytes(one.after_bytes)}"
    change = f"{'at least ' if one.is_bound else ''}{human_change_bytes(one.change_bytes)}"
    return [one.label, one.kind, before, after, change]


def _title(found: Inside) -> str:
    return (
        f"{found.database} on {found.server}: {human_bytes(found.before_bytes)} on {human_day(found.first_day)}, "
        f"{human_bytes(found.after_bytes)} on {human_day(found.last_day)}, {human_change_bytes(found.change_bytes)}."
    )


def _table(found: Inside, limit: int) -> Table:
    listed, hidden = found.objects[:limit], found.objects[limit:]
    rows = [
        [
            *object_cells(one),
            "" if one.free_bytes is None else human_bytes(one.free_bytes),
            "" if one.estimated_rows is None else f"{one.estimated_rows:,}",
        ]
        for one in listed
    ]
    sums = [("all other tables and indexes", found.others_change_bytes)]
    if hidden:
        sums.insert(0, (f"{len(hidden):,} more that changed", sum(one.change_bytes for one in hidden)))
    sums += [("unexplained", found.unexplained_change_bytes), ("the database", found.change_bytes)]
    rows += [[name, "", "", "", human_change_bytes(change), "", ""] for name, change in sums]
    return Table("What grew inside", HEADINGS, rows)
