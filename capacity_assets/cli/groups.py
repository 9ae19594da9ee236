"""`capacity groups`: size and growth of each team, engine or server, and what fills first."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date

import click

from capacity_assets.aggregates.task_runner import follow_labels
from capacity_assets.base.errors import ValidationError, database_errors
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_change_mb, human_day, human_mb
from capacity_assets.cli.options import Line, Report, Table, json_command, window_options
from capacity_assets.ownership.bills import group_named
from capacity_assets.ownership.groups import (
    being_computed,
    default_grouping,
    fills_first,
    groups_changed_at,
    refuse_unknown_grouping,
)
from capacity_assets.reading.groups import Group, groups_of, measured_notes
from capacity_assets.runtime import open_task_runner

HEADINGS = (">Servers", ">Databases", ">Mean size", ">Change", ">Change in %", "Fills first")


@click.command()
@window_options
@click.option("--by", help="engine, server, or a label key. Default: the first of CAPACITY_LABEL_KEYS.")
@click.option("--now", is_flag=True, help="First compute the groups whose labels changed.")
@json_command
def groups(settings: Settings, /, *, period: str, day: date | None, by: str | None, now: bool) -> Report:
    """Show the size and growth of each team, or any other group.

    Groups add up to the fleet. Databases without the label form a group of their own. Replicas are not counted
    twice.

    \b
    Examples:
      capacity groups
      capacity groups --by environment --period weekly
    """
    by = by or default_grouping(settings.label_keys)
    refuse_unknown_grouping(by, settings.label_keys)
    with open_task_runner(settings, existing=True) as runner:
        chosen = runner.service.period(period)
        if now:
            follow_labels(runner, None)
        window = runner.service.partitions.window_holding(chosen, day)
        reading = database_errors(doing="reading groups")
        with reading, runner.service.engine.connect() as connection:
            rows = groups_of(connection, chosen, window, by, fills_first(connection, by))
            changed_at = None if by == "server" else groups_changed_at(connection, chosen, [window])
    if not rows:
        raise ValidationError(
            f"No groups are stored in {chosen.name_of(window)}. `capacity groups --now` computes windows whose labels "
            "changed, `capacity aggregate` any window."
        )
    title = f"Groups by {by}, {chosen.name_of(window)} against the window before"
    headings = (by.replace("_", " ").capitalize(), *HEADINGS)
    changes = [group.change_mb for group in rows if group.change_mb is not None]
    change = f", {human_change_mb(sum(changes))} where it is known" if changes else ""
    lines: list[Line] = [
        Table(title, headings, [_cells(group, by) for group in rows]),
        f"Total: {human_mb(sum(group.size_mb for group in rows))}{change}.",
    ]
    lines += measured_notes(rows, by)
    if changed_at:
        lines.append(being_computed(changed_at))
    if [group.name for group in rows] == [None]:
        lines.append("No database has such a label yet. `capacity labels set` declares one.")
    return Report([asdict(group) for group in rows], lines)


def _cells(group: Group, by: str) -> list[object]:
    change = "unknown" if group.change_mb is None else human_change_mb(group.change_mb)
    first = group.fills_first
    fills = "" if first is None else f"{human_day(first.day)} {first.name or 'whole server'} on {first.server}"
    sizes = [group.servers, group.databases, human_mb(group.size_mb), change, group.growth]
    return [group_named(group.name, by), *sizes, fills]
