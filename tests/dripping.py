"""A listener that answers every connection with one byte at a time, without end."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Short enough that a client with only a timeout between bytes never gives up.
SECONDS_PER_BYTE = 0.05


@contextmanager
def dripping(begin: bytes, endlessly: bytes) -> Iterator[tuple[int, list[socket.socket]]]:
    """Yield its port and the open connections; each receives `begin` at once, then `endlessly` byte by byte."""
    over = threading.Event()
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(begin)
            for byte in itertools.cycle(endlessly):
                if over.wait(SECONDS_PER_BYTE):
                    break
                connection.sendall(bytes([byte]))
        connections.remove(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threads.append(threading.Thread(target=drip, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield int(listener.getsockname()[1]), connections
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
