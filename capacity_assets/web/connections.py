"""Limits of the web servers of the pages and of Dagster: request size, request time and number of connections.

uvicorn limits the head of a request only with h11, waits for requests forever, and accepts connections until the
process runs out of file descriptors.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LARGEST_HEAD_BYTES = 32 * 1024
REQUEST_SECONDS = 10
"""Time within which a request must arrive completely, from the connection or the previous response on."""
STALLED_SECONDS = 30
"""Time after which a client that reads nothing of its response is disconnected."""
SECONDS_BETWEEN_LOOKS = 1
MOST_CONNECTIONS = 1000
# Connections that arrive together are all accepted before the first one is counted.
BACKLOG = 64


def limits() -> dict[str, Any]:
    """Return the uvicorn options that limit clients."""
    return {"http": BoundedConnection, "h11_max_incomplete_event_size": LARGEST_HEAD_BYTES, "backlog": BACKLOG}


def most_connections() -> int:
    """Return the maximum number of connections: half of the limit on open files, at most MOST_CONNECTIONS."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, files // 2)


class BoundedConnection(H11Protocol):
    """Closes connections of slow clients; beyond the limit, the connection that has waited longest for its client."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Start the time limit for the request."""
        super().connection_made(transport)
        self._waits_since = self._moved_at = self.loop.time()
        self._unsent = 0
        self._looking = self.loop.call_later(SECONDS_BETWEEN_LOOKS, self._look)
        if len(self.connections) > most_connections():
            self._make_room()

    def on_response_complete(self) -> None:
        """Start the time limit for the next request."""
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over to the WebSocket protocol, which pings its clients."""
        self._looking.cancel()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop checking the connection."""
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
        """Close the connection that has waited longest for its client; requests in progress continue."""
        ours = [one for one in self.connections if isinstance(one, BoundedConnection)]
        waiting = [one for one in ours if one._is_sending or one.transport.get_write_buffer_size()]  # noqa: SLF001 -- ours
        longest = min(waiting, key=lambda one: one._waits_since)  # noqa: SLF001 -- as above
        # connection_lost is called later, and new connections may arrive before that.
        self.connections.discard(longest)
        longest.transport.abort()
