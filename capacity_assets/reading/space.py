"""What uses the space of the fleet in a window: groups with their largest databases, and what is left of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from capacity_assets.base.periods import Period, Window
from capacity_assets.reading.lists import DatabaseRow, ListedGroup, databases

MOST_GROUPS, MOST_DATABASES, LEAST_SHARE = 40, 200, 0.002
"""Numbers of groups and databases that are listed, and the share of the fleet below which a database is not listed."""


@dataclass(frozen=True)
class GroupSpace:
    """The space of a group, MiB: its largest databases, and what the others have; `name` None: without such a label.

    `groups` is more than 1 for the last one if it stands for all groups that are not listed.
    """

    name: str | None
    size_mb: int
    change_mb: int | None
    databases: Sequence[DatabaseRow]
    other_databases: int
    other_mb: int
    groups: int = 1


def space_of_groups(
    connection: Connection, period: Period, window: Window, by: str, groups: Sequence[ListedGroup]
) -> list[GroupSpace]:
    """Return the largest groups of a window with those of the largest databases of the fleet that belong to them.

    What the other groups have comes last, together.
    """
    ordered = sorted(groups, key=lambda group: -group.size_mb)
    least_mb = sum(group.size_mb for group in ordered) * LEAST_SHARE
    largest, _ = databases(connection, period, window, order="size", shown=MOST_DATABASES)
    members: dict[str | None, list[DatabaseRow]] = {group.name: [] for group in ordered[:MOST_GROUPS]}
    for row in largest:
        if row.size_mb >= least_mb and (name := _group_of(row, by)) in members:
            members[name].append(row)
    space = [_space_of(group, members[group.name]) for group in ordered[:MOST_GROUPS]]
    if rest := ordered[MOST_GROUPS:]:
        size_mb, count = sum(group.size_mb for group in rest), sum(group.databases for group in rest)
        space.append(GroupSpace(None, size_mb, None, (), count, size_mb, len(rest)))
    return space


def _group_of(row: DatabaseRow, by: str) -> str | None:
    return {"engine": row.engine, "server": row.server}.get(by, row.labels.get(by))


def _space_of(group: ListedGroup, listed: Sequence[DatabaseRow]) -> GroupSpace:
    # A database that existed on some days, or moved, counts in its group with those days only.
    other_mb = max(group.size_mb - sum(row.size_mb for row in listed), 0)
    return GroupSpace(
        group.name, group.size_mb, group.change_mb, listed, max(group.databases - len(listed), 0), other_mb
    )
