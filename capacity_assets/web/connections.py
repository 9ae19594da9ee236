"""Limits of the web servers, the one of the pages and Dagster's: how much a client may send, for how long, how many.

uvicorn bounds the head of a request with h11 only, waits for it without end, and accepts connections until no file can
be opened any more.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LARGEST_HEAD_BYTES = 32 * 1024
REQUEST_SECONDS = 10
"""Within which a request is there as a whole, from the connection or the answer before."""
STALLED_SECONDS = 30
"""After which a client that takes nothing of its answer is given up."""
SECONDS_BETWEEN_LOOKS = 1
MOST_CONNECTIONS = 1000
# Those that come at once are all accepted before the first of them is counted.
BACKLOG = 64


def limits() -> dict[str, Any]:
    """Return the options of uvicorn that bound its clients."""
    return {"http": BoundedConnection, "h11_max_incomplete_event_size": LARGEST_HEAD_BYTES, "backlog": BACKLOG}


def most_connections() -> int:
    """Return how many connections are kept: half of the files that the process may open, and not too many."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, files // 2)


class BoundedConnection(H11Protocol):
    """Closes a connection whose client is too slow. Beyond the limit, the one that waits longest makes room."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Begin to wait for the request."""
        super().connection_made(transport)
        self._waits_since = self._moved_at = self.loop.time()
        self._unsent = 0
        self._looking = self.loop.call_later(SECONDS_BETWEEN_LOOKS, self._look)
        if len(self.connections) > most_connections():
            self._make_room()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Leave the connection to the protocol of web sockets, which pings its clients."""
        self._looking.cancel()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking after it."""
        self._looking.cancel()
        super().connection_lost(exc)

    @property
    def _is_sending(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _look(self) -> None:
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._moved_at = unsent, now
        is_slow = self._is_sending and now - self._waits_since > REQUEST_SECONDS
        if is_slow or (unsent and now - self._moved_at > STALLED_SECONDS):
            self.transport.abort()
        else:
            self._looking = self.loop.call_later(SECONDS_BETWEEN_LOOKS, self._look)

    def _make_room(self) -> None:
        """Close the connection that has waited longest for its client; requests that are answered go on."""
        ours = [one for one in self.connections if isinstance(one, BoundedConnection)]
        waiting = [one for one in ours if one._is_sending or one.transport.get_write_buffer_size()]  # noqa: SLF001 -- ours
        longest = min(waiting, key=lambda one: one._waits_since)  # noqa: SLF001 -- as above
        # It is lost later, and others may come before that.
        self.connections.discard(longest)
        longest.transport.abort()
