"""Search-as-you-type index of the names of servers, databases, volumes and groups."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import accumulate, islice

from sqlalchemy import Connection

from capacity_assets.reading.access import records
from capacity_assets.reading.forecasts import SubjectKey, fill_days

SEPARATOR = "\n"


@dataclass(frozen=True)
class NameMatch:
    """A name that a search matches: what it is, and where; of a group, `server` is the key of its label."""

    kind: str
    name: str
    server_id: int
    server: str
    full_by: date | None = None
    """When it is full by its newest forecast; None: not within a year, or unknown."""


@dataclass(frozen=True)
class NameIndex:
    """The names, one line of text each, where each line begins, and the names with a fill date, earliest first."""

    names: Sequence[NameMatch]
    text: str
    starts: Sequence[int]
    filling: Sequence[NameMatch] = ()

    def search(self, query: str, shown: int) -> list[NameMatch]:
        """Return names that contain all words of a query: by their fill dates, then those that begin with the first.

        Without words, return those that fill first.
        """
        words = query.casefold().split()
        if not words:
            return list(self.filling[:shown])
        urgent = list(islice((match for match in self.filling if _contains(match, words)), shown))
        first: list[NameMatch] = []
        others: list[NameMatch] = []
        for match in self._containing(max(words, key=len)):
            if match.full_by is None and _contains(match, words):
                (first if match.name.casefold().startswith(words[0]) else others).append(match)
                if len(first) >= shown:
                    break
        first.sort(key=lambda match: (len(match.name), match.name, match.server))
        return [*urgent, *first, *others][:shown]

    def _containing(self, word: str) -> Iterator[NameMatch]:
        at = self.text.find(word)
        while at >= 0:
            line = bisect_right(self.starts, at) - 1
            yield self.names[line]
            at = self.text.find(word, self.starts[line + 1]) if line + 1 < len(self.starts) else -1


def name_index(connection: Connection, today: date) -> NameIndex:
    """Read the names of the newest day, and of the last month."""
    # Samples of future days do not count.
    statement = """
        SELECT 'server' AS kind, server AS name, server_id, server FROM capacity_servers
        UNION ALL
        SELECT 'database', database, server_id, server FROM capacity_samples
        WHERE day = (SELECT max(day) FROM capacity_samples WHERE day <= :today)
        UNION ALL
        SELECT 'database', database, server_id, server FROM capacity_growth
        WHERE period = 'monthly'
          AND window_start = (SELECT max(window_start) FROM capacity_growth WHERE period = 'monthly')
          AND (server_id, database) NOT IN (
              SELECT server_id, database FROM capacity_samples
              WHERE day = (SELECT max(day) FROM capacity_samples WHERE day <= :today))
        UNION ALL
        SELECT DISTINCT 'group', value, 0, key FROM capacity_label_spans
        WHERE value IS NOT NULL AND valid_until = 'infinity'
        UNION ALL
        SELECT DISTINCT 'volume', volume, server_id, server FROM capacity_volumes
        WHERE day = (SELECT max(day) FROM capacity_volumes WHERE day <= :today)"""
    days = fill_days(connection)
    names = records(NameMatch, connection, statement, today=today)
    for number, match in enumerate(names):
        full_by = days.get(SubjectKey(match.server_id, match.kind, "" if match.kind == "server" else match.name))
        if full_by is not None:
            names[number] = replace(match, full_by=full_by)
    lines = [_line(one).replace(SEPARATOR, " ") for one in names]
    starts = accumulate((len(line) + 1 for line in lines[:-1]), initial=0)
    filling = sorted(
        (one for one in names if one.full_by is not None), key=lambda one: (one.full_by, one.name, one.server)
    )
    return NameIndex(names, SEPARATOR.join(lines), list(starts), filling)


def _line(match: NameMatch) -> str:
    # A label is found as it is written too.
    label = f" {match.server}={match.name}" if match.kind == "group" else ""
    return f"{match.name} {match.server}{label}".casefold()


def _contains(match: NameMatch, words: Sequence[str]) -> bool:
    line = _line(match)
    return all(word in line for word in words)
