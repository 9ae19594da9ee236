"""Connections to PostgreSQL with a limit of what a server may send: psycopg has none.

psycopg takes a moment to load, so `postgresql` imports this module when it connects.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from capacity_assets.collection.engines.base import MOST_BYTES, Allowance, MeasureError

WATCH_SECONDS = 0.02
# Offset of tcpi_bytes_received in tcp_info; see linux/tcp.h.
_BYTES_RECEIVED_AT, _TCP_INFO_LENGTH = 128, 136
# On a local socket, bytes that wait are counted each time, although libpq may read only 16 KiB of them.
_COUNTED_AGAIN = 4


def _watch(gen: Any, allowance: Allowance, socket_of: Callable[[Any], int]) -> Any:
    """Forward the waits of a psycopg generator, and count received bytes before it reads them."""
    try:
        step = next(gen)
        while True:
            ready = yield step
            _count(allowance, socket_of(step))
            step = gen.send(ready)
    except StopIteration as done:
        return done.value


class _Watch:
    """A thread that shuts down sockets that receive too much: libpq reads a large field to its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watch: dict[int, tuple[socket.socket, Allowance]] = {}

    def add(self, fileno: int, allowance: Allowance) -> None:
        """Watch a socket by a duplicated descriptor, because the number of a closed one is used again."""
        opened = socket.socket(fileno=os.dup(fileno))
        with self._lock:
            self._watch[id(allowance)] = (opened, allowance)
            if len(self._watch) == 1:
                threading.Thread(target=self._run, name="watch over answers", daemon=True).start()

    def remove(self, allowance: Allowance) -> None:
        with self._lock:
            opened, _ = self._watch.pop(id(allowance), (None, None))
            if opened is not None:
                opened.close()

    def _run(self) -> None:
        while True:
            time.sleep(WATCH_SECONDS)
            with self._lock:
                if not self._watch:
                    return
                for opened, allowance in self._watch.values():
                    with suppress(OSError):
                        if _received_bytes(opened) > MOST_BYTES:
                            allowance.received_bytes = MOST_BYTES + 1
                            opened.shutdown(socket.SHUT_RDWR)


def _count(allowance: Allowance, fileno: int) -> None:
    """Count the bytes that a socket has received since it was opened; raises MeasureError like the allowance."""
    opened = socket.socket(fileno=fileno)
    try:
        allowance.received_bytes = max(_received_bytes(opened), allowance.received_bytes)
        waiting = 0
    except OSError:
        [waiting] = struct.unpack("i", fcntl.ioctl(fileno, termios.FIONREAD, bytes(4)))
    finally:
        opened.detach()
    allowance.take(waiting // _COUNTED_AGAIN)


def _received_bytes(opened: socket.socket) -> int:
    """Return the bytes that a socket has received; raises OSError without a counter (local socket, old system)."""
    known = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LENGTH)
    if len(known) < _TCP_INFO_LENGTH:
        raise OSError("no counter")
    [received] = struct.unpack_from("Q", known, _BYTES_RECEIVED_AT)
    return int(received)


_WATCH = _Watch()


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that aborts if the server sends too much or too slowly.

    libpq stores endless fields, and unrequested notifications and parameters. The limit is checked while psycopg waits
    for the socket. Only `_connect_gen` is a private name; a test with endless responses covers it.
    """

    statement_seconds = math.inf

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.allowance = Allowance()
        _WATCH.add(self.pgconn.socket, self.allowance)

    @classmethod
    def _connect_gen(cls, *arguments: Any, **options: Any) -> Any:
        return _watch(super()._connect_gen(*arguments, **options), Allowance(), lambda step: step[0])

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        watched = _watch(gen, self.allowance, lambda _: self.pgconn.socket)
        try:
            return super().wait(watched, *arguments, **options)
        except MeasureError:
            self.close()  # so that nothing more is read, and no cancellation is sent
            raise
        except psycopg.Error:
            self.allowance.take(0)  # the watch may have shut it down
            raise

    def close(self) -> None:
        _WATCH.remove(self.allowance)
        super().close()
