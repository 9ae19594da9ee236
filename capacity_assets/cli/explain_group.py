"""`capacity explain --label`: the parts that the sum of a group is made of."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Engine

from capacity_assets.cli.dated import since
from capacity_assets.cli.output import print_json, print_table, say
from capacity_assets.errors import database_errors
from capacity_assets.foundation.pairs import key_and_value
from capacity_assets.grouping.explained_groups import ExplainedGroup, GroupPart, explain_group
from capacity_assets.grouping.group_reading import reading_groups
from capacity_assets.grouping.labels import checked
from capacity_assets.periods import Period, Window
from capacity_assets.settings import Settings
from capacity_assets.units import counted, human_change_mb, human_mb

PARTS_LISTED = 20
COLUMNS = (("Server", "left"), ("Database", "left"), ("Mean size", "right"), ("Change", "right"), ("Label", "left"))


def explain_label(  # noqa: PLR0913 -- the window of a label, and how it is printed
    engine: Engine, settings: Settings, label: str, period: Period, window: Window, *, every_part: bool, as_json: bool
) -> None:
    """Print a group's parts, their sum, and whether the view has the same.

    Raises ValidationError, NotFoundError, DatabaseError.
    """
    key, value = key_and_value(label)
    key, _ = checked(key, value, settings.label_keys)
    reading = database_errors(doing="reading a group", kept="Nothing was changed.")
    # One state of the tables: a sum that is written meanwhile would look wrong.
    with reading, reading_groups(engine) as reader:
        found = explain_group(reader, period, window, key, value)
    if as_json:
        print_json(
            {
                **asdict(found),
                "period_type": period.name,
                "period_start": window.start,
                "period_end": window.end,
                "size_mb": found.size_mb,
                "change_mb": found.change_mb,
                "agrees": found.agrees,
            }
        )
        return
    shown = found.parts if every_part else found.parts[:PARTS_LISTED]
    title = f"{key}={value}, {period.name_of(window)} against the window before"
    print_table(title, COLUMNS, [_cells(part) for part in shown])
    hidden = len(found.parts) - len(shown)
    if hidden:
        say(f"and {counted(hidden, 'smaller part')}, which --all lists.")
    say(_verdict(found))


def _cells(part: GroupPart) -> list[object]:
    name = part.database or "all"
    if part.without_databases:
        name = f"all but {part.without_databases} with another value"
    of = "the server" if part.label_of is None else part.label_of
    return [part.server, name, human_mb(part.size_mb), _change(part.change_mb), f"of {of}, {since(part.valid_from)}"]


def _change(change_mb: int | None) -> str:
    return "unknown" if change_mb is None else human_change_mb(change_mb)


def _verdict(found: ExplainedGroup) -> str:
    computed = f"In all {found.size_mb:,} MiB, changed by {_change(found.change_mb)}"
    if found.agrees:
        return f"{computed}. The sum in capacity_groups is the same."
    there = "none"
    if found.view_size_mb is not None:
        there = f"{found.view_size_mb:,} MiB, changed by {_change(found.view_change_mb)}"
    return f"{computed}. The sum in capacity_groups is another one: {there}. Report it with this output."
