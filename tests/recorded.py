"""A server that does not run here: a connection that answers each statement with its recorded rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Answers = dict[str, Sequence[tuple[Any, ...]] | Exception]


class Recorded:
    """A connection; an exception is raised where it is the answer."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def cursor(self) -> Recorded:
        return self

    def execute(self, query: str, parameters: tuple[object, ...] | None = None) -> None:  # noqa: ARG002 -- rows are recorded
        answer = self.answers[query]
        if isinstance(answer, Exception):
            raise answer
        self.rows = list(answer)

    def fetchmany(self, size: int) -> list[tuple[Any, ...]]:
        now, self.rows = self.rows[:size], self.rows[size:]
        return now

    def close(self) -> None:
        pass
