"""What a view is, as data. Which there are is in `views` and `runway_views`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

from capacity_assets.storage.steps import quoted


@dataclass(frozen=True)
class ViewColumn:
    """A column: its name, the expression behind it, and what it says."""

    name: str
    expression: str
    comment: str
    expression_on_nodes: str | None = None
    """Where rows are distributed over nodes, if that is another one."""

    @property
    def on_nodes(self) -> ViewColumn:
        """The column as it is there."""
        return self if self.expression_on_nodes is None else replace(self, expression=self.expression_on_nodes)


@dataclass(frozen=True)
class View:
    """A view as data."""

    name: str
    comment: str
    columns: tuple[ViewColumn, ...]
    source: str
    source_on_nodes: str | None = None
    """What it reads where rows are distributed over nodes, if that is something else."""

    @property
    def on_nodes(self) -> View:
        """The view as it is there."""
        columns = tuple(column.on_nodes for column in self.columns)
        return replace(self, columns=columns, source=self.source_on_nodes or self.source)

    @cached_property
    def query(self) -> str:
        """The SELECT behind it."""
        listed = ",\n       ".join(f"{column.expression} AS {quoted(column.name)}" for column in self.columns)
        return f"SELECT {listed}\n{self.source}"

    @property
    def marked_comment(self) -> str:
        """The comment with a mark of the definition, by which an outdated view is known."""
        made_of = "\n".join([self.query, *(column.comment for column in self.columns)])
        return f"{self.comment} (definition {hashlib.sha256(made_of.encode()).hexdigest()[:12]})"
