"""Every name there is, for searching as one types: kept in memory, because no index serves parts of names."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from capacity_assets.web.reading import Reader, found

KEPT_SECONDS = 300
SEPARATOR = "\n"


@dataclass(frozen=True)
class Found:
    """A name that was found: what it is, and where."""

    kind: str
    name: str
    server_id: int
    server: str


class Names:
    """The names of servers, databases and volumes, read again every few minutes."""

    def __init__(self, reader: Reader) -> None:
        """Read by `reader`, at the first search."""
        self._reader = reader
        self._lock = threading.Lock()
        self._known: Sequence[Found] = ()
        self._text = ""
        self._starts: list[int] = []
        self._read_at = float("-inf")

    def search(self, query: str, shown: int) -> list[Found]:
        """Return names that hold all words of a query, those that begin with it first.

        Raises:
            sqlalchemy.exc.DBAPIError: the names cannot be read and none are known yet.
        """
        self._refresh()
        words = query.casefold().split()
        if not words:
            return []
        longest = max(words, key=len)
        first: list[Found] = []
        others: list[Found] = []
        for place in self._places(longest):
            one = self._known[place]
            whole = f"{one.name} {one.server}".casefold()
            if all(word in whole for word in words):
                (first if one.name.casefold().startswith(words[0]) else others).append(one)
                if len(first) >= shown:
                    break
        first.sort(key=lambda one: (len(one.name), one.name, one.server))
        return [*first, *others][:shown]

    def _places(self, word: str) -> Sequence[int]:
        """Return the numbers of the lines that hold a word, in order."""
        places, at = list[int](), self._text.find(word)
        while at >= 0:
            line = bisect_right(self._starts, at) - 1
            places.append(line)
            following = self._starts[line + 1] if line + 1 < len(self._starts) else len(self._text)
            at = self._text.find(word, following)
        return places

    def _refresh(self) -> None:
        if time.monotonic() - self._read_at < KEPT_SECONDS or not self._lock.acquire(blocking=not self._known):
            return
        try:
            if time.monotonic() - self._read_at < KEPT_SECONDS:
                return
            try:
                with self._reader.transaction() as connection:
                    self._keep(found(Found, connection, _NAMES))
            except DBAPIError:
                if not self._known:
                    raise
            self._read_at = time.monotonic()
        finally:
            self._lock.release()

    def _keep(self, known: Sequence[Found]) -> None:
        lines = [f"{one.name} {one.server}".casefold().replace(SEPARATOR, " ") for one in known]
        starts, at = [], 0
        for line in lines:
            starts.append(at)
            at += len(line) + 1
        self._known, self._text, self._starts = known, SEPARATOR.join(lines), starts


_NAMES = """
SELECT 'server' AS kind, server AS name, server_id, server FROM capacity_servers
UNION ALL
SELECT 'database', database, server_id, server FROM capacity_samples
WHERE day = (SELECT max(day) FROM capacity_samples)
UNION ALL
SELECT 'database', database, server_id, server FROM capacity_growth
WHERE period = 'monthly' AND window_start = (SELECT max(window_start) FROM capacity_growth WHERE period = 'monthly')
  AND (server_id, database) NOT IN (
      SELECT server_id, database FROM capacity_samples WHERE day = (SELECT max(day) FROM capacity_samples))
UNION ALL
SELECT DISTINCT 'volume', volume, server_id, server FROM capacity_volumes
WHERE day = (SELECT max(day) FROM capacity_volumes)
"""
