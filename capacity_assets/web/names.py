"""Every name there is, for searching as one types: kept in memory, because no index serves parts of names."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate

from capacity_assets.web.reading import Reader, found

KEPT_SECONDS = 300
SEPARATOR = "\n"


@dataclass(frozen=True)
class Found:
    """A name that was found: what it is, and where; of a group, `server` is the key of its label."""

    kind: str
    name: str
    server_id: int
    server: str


@dataclass(frozen=True)
class _Known:
    """The names, one line of text each, and where each line begins."""

    names: Sequence[Found]
    text: str
    starts: Sequence[int]

    @classmethod
    def of(cls, names: Sequence[Found]) -> _Known:
        """Write the lines."""
        lines = [f"{one.name} {one.server}".casefold().replace(SEPARATOR, " ") for one in names]
        starts = accumulate((len(line) + 1 for line in lines[:-1]), initial=0)
        return cls(names, SEPARATOR.join(lines), list(starts))

    def holding(self, word: str) -> Iterator[Found]:
        """Return the names whose line holds a word, in order."""
        at = self.text.find(word)
        while at >= 0:
            line = bisect_right(self.starts, at) - 1
            yield self.names[line]
            at = self.text.find(word, self.starts[line + 1]) if line + 1 < len(self.starts) else -1


class Names:
    """The names of servers, databases, volumes and groups, read again every few minutes."""

    def __init__(self, reader: Reader) -> None:
        """Read by `reader`, at the first search."""
        self._reader = reader

    def search(self, query: str, shown: int, today: date) -> list[Found]:
        """Return names that hold all words of a query, those that begin with it first; raises DBAPIError."""
        known = self._reader.kept_of(
            ("names", today),
            lambda connection: _Known.of(found(Found, connection, _NAMES, {"today": today})),
            KEPT_SECONDS,
        )
        words = query.casefold().split()
        if not words:
            return []
        longest = max(words, key=len)
        first: list[Found] = []
        others: list[Found] = []
        for one in known.holding(longest):
            whole = f"{one.name} {one.server}".casefold()
            if all(word in whole for word in words):
                (first if one.name.casefold().startswith(words[0]) else others).append(one)
                if len(first) >= shown:
                    break
        first.sort(key=lambda one: (len(one.name), one.name, one.server))
        return [*first, *others][:shown]


# A future day is not the newest one.
_NAMES = """
SELECT 'server' AS kind, server AS name, server_id, server FROM capacity_servers
UNION ALL
SELECT 'database', database, server_id, server FROM capacity_samples
WHERE day = (SELECT max(day) FROM capacity_samples WHERE day <= :today)
UNION ALL
SELECT 'database', database, server_id, server FROM capacity_growth
WHERE period = 'monthly' AND window_start = (SELECT max(window_start) FROM capacity_growth WHERE period = 'monthly')
  AND (server_id, database) NOT IN (
      SELECT server_id, database FROM capacity_samples
      WHERE day = (SELECT max(day) FROM capacity_samples WHERE day <= :today))
UNION ALL
SELECT DISTINCT 'group', value, 0, key FROM capacity_label_spans WHERE value IS NOT NULL AND valid_until = 'infinity'
UNION ALL
SELECT DISTINCT 'volume', volume, server_id, server FROM capacity_volumes
WHERE day = (SELECT max(day) FROM capacity_volumes WHERE day <= :today)
"""
