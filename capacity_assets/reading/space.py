"""What uses the space of the fleet in a window: groups with their largest databases, which add up to the group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from capacity_assets.base.periods import Period, Window
from capacity_assets.ownership.groups import Group
from capacity_assets.reading.lists import DatabaseRow, databases

MOST_DATABASES, LEAST_SHARE = 200, 0.002
"""Number of databases that are listed, and the share of the fleet below which one is not listed."""


@dataclass(frozen=True)
class GroupSpace:
    """The space of a group, MiB: its largest databases, and what the others have; `name` None: without such a label."""

    name: str | None
    size_mb: int
    change_mb: int | None
    databases: Sequence[DatabaseRow]
    other_databases: int
    other_mb: int


def space_of_groups(
    connection: Connection, period: Period, window: Window, by: str, groups: Sequence[Group]
) -> list[GroupSpace]:
    """Return the groups of a window, each with those of the largest databases of the fleet that belong to it."""
    least_mb = sum(group.size_mb for group in groups) * LEAST_SHARE
    largest, _ = databases(connection, period, window, order="size", shown=MOST_DATABASES)
    members: dict[str | None, list[DatabaseRow]] = {group.name: [] for group in groups}
    for row in largest:
        if row.size_mb >= least_mb and (name := _group_of(row, by)) in members:
            members[name].append(row)
    return [_space_of(group, members[group.name]) for group in groups]


def _group_of(row: DatabaseRow, by: str) -> str | None:
    return {"engine": row.engine, "server": row.server}.get(by, row.labels.get(by))


def _space_of(group: Group, listed: Sequence[DatabaseRow]) -> GroupSpace:
    # A database that existed on some days, or moved, counts in its group with those days only.
    other_mb = max(group.size_mb - sum(row.size_mb for row in listed), 0)
    return GroupSpace(
        group.name, group.size_mb, group.change_mb, listed, max(group.databases - len(listed), 0), other_mb
    )
