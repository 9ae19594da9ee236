"""`capacity explain --label`: the parts that the sum of a group is made of."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Engine, text

from capacity_assets.cli.declaring import since
from capacity_assets.cli.output import print_json, print_table, say
from capacity_assets.errors import database_errors
from capacity_assets.foundation.pairs import key_and_value
from capacity_assets.grouping.explained_groups import ExplainedGroup, GroupPart, explain_group
from capacity_assets.grouping.groups import being_computed, groups_changed_at
from capacity_assets.grouping.labels import checked
from capacity_assets.periods import Period, Window
from capacity_assets.settings import Settings
from capacity_assets.units import counted, human_mb

PARTS_LISTED = 20
COLUMNS = (
    ("Server", "left"), ("Database", "left"), ("Days", "right"), ("Size per measured day", "right"), ("Label", "left"),
)  # fmt: skip


def explain_label(  # noqa: PLR0913 -- the window of a label, and how it is printed
    engine: Engine, settings: Settings, label: str, period: Period, window: Window, *, every_part: bool, as_json: bool
) -> None:
    """Print a group's parts, their sum, and whether its row has the same.

    Raises ValidationError, NotFoundError, DatabaseError.
    """
    key, value = key_and_value(label)
    key, _ = checked(key, value, settings.label_keys)
    with database_errors(doing="reading a group", kept="Nothing was changed."), engine.connect() as connection:
        # One state of the tables: a row that is written meanwhile would look wrong.
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        found = explain_group(connection, period, window, key, value)
        changed_at = groups_changed_at(connection, period, [window])
    if as_json:
        more = {"sum_mb": found.sum_mb, "size_mb": found.size_mb, "agrees": found.agrees}
        window_of = {"period_type": period.name, "period_start": window.start, "period_end": window.end}
        print_json({**asdict(found), **window_of, **more})
        return
    shown = found.parts if every_part else found.parts[:PARTS_LISTED]
    title = f"{key}={value}, {period.name_of(window)}, by the labels of each day"
    print_table(title, COLUMNS, [_cells(part, found.days) for part in shown])
    hidden = len(found.parts) - len(shown)
    if hidden:
        say(f"and {counted(hidden, 'smaller part')}, which --all lists.")
    say(_verdict(found))
    if changed_at:
        say(being_computed(changed_at))


def _cells(part: GroupPart, days: int) -> list[object]:
    of = "the server" if part.label_of is None else part.label_of
    named = part.database or "all that has no other value"
    return [part.server, named, part.days, human_mb(part.sum_mb // days), f"of {of}, {since(part.valid_from)}"]


def _verdict(found: ExplainedGroup) -> str:
    added_up = f"In all {found.sum_mb:,} MiB added up over {counted(found.days, 'measured day')}"
    if found.agrees:
        return f"{added_up}, {human_mb(found.size_mb)} per day. The stored row has the same."
    if not found.is_whole:
        return f"{added_up}. The row rests on {found.row_days} days; samples of the others are gone."
    there = "is none" if found.row_sum_mb is None else f"has {found.row_sum_mb:,} MiB"
    return f"{added_up}. The stored row {there}: `capacity aggregate` for this window computes it again."
