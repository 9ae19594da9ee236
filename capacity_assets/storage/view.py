"""What a view is. Which there are is in `views`, `runway_views`, `group_views` and `changes`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

_VIEW = re.compile(r"-- (.+)\nCREATE VIEW (\w+) AS\n((?s:.+?));\n")
_COLUMN = re.compile(r"(\w+),?((?:\s+-- .+)+)")
_LINE_OF_COMMENT = re.compile(r"-- (.+)")


class ViewColumn(NamedTuple):
    """A column of a view, and what it says."""

    name: str
    comment: str


@dataclass(frozen=True)
class View:
    """A view: in its query, each column is followed by the comment that it gets in the database."""

    name: str
    comment: str
    query: str
    query_on_nodes: str | None = None
    """The query where rows are distributed over nodes, if that is another one."""

    @cached_property
    def columns(self) -> tuple[ViewColumn, ...]:
        """Its columns, as the query lists them."""
        found = _COLUMN.findall(self.query)
        return tuple(ViewColumn(name, " ".join(_LINE_OF_COMMENT.findall(lines))) for name, lines in found)

    @property
    def on_nodes(self) -> View:
        """The view as it is there."""
        return replace(self, query=self.query_on_nodes or self.query)

    @property
    def marked_comment(self) -> str:
        """The comment with a mark of the definition, by which an outdated view is known."""
        return f"{self.comment} (definition {hashlib.sha256(self.query.encode()).hexdigest()[:12]})"


def views_in(statements: str) -> tuple[View, ...]:
    """Read views from the statements that create them, which run in psql as they stand."""
    return tuple(View(name, comment, query) for comment, name, query in _VIEW.findall(statements))
