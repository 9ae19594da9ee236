"""A line of `capacity check`: what was checked, the verdict, and what was found or what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Engine, text

ZONE = "CAPACITY_TIMEZONE"


class Verdict(StrEnum):
    """The verdict of one line of the screen."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, the verdict, and what was found or what to do."""

    subject: str
    verdict: Verdict
    text: str


def split_problem(line: str) -> Finding:
    """Turn a line of a ConfigurationError, `VARIABLE: problem`, into a finding."""
    variable, _, problem = line.partition(": ")
    return Finding(variable, Verdict.BAD, problem)


def server_version(engine: Engine) -> tuple[int, str]:
    """Return PostgreSQL's major version and its full name."""
    with engine.connect() as connection:
        number = int(connection.execute(text("SHOW server_version_num")).scalar_one())
        return number // 10_000, str(connection.execute(text("SHOW server_version")).scalar_one())
