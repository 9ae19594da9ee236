"""A source of volumes that answers what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SOURCE = """
[[prometheus]]
name = "monitoring"
url = "{url}"
total = 'node_filesystem_size_bytes{{mountpoint="/"}}'
free = 'node_filesystem_avail_bytes{{mountpoint="/"}}'
used = 'node_filesystem_size_bytes{{mountpoint="/"}} - node_filesystem_free_bytes{{mountpoint="/"}}'
server_label = "instance"
volume_label = "mountpoint"
servers = {{ "{label}" = "server-1" }}
"""


def vector(*series: tuple[dict[str, str], object]) -> bytes:
    result = [{"metric": labels, "value": [0, str(value)]} for labels, value in series]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


@contextmanager
def serving(answer: Callable[[str, str | None], tuple[int, bytes]]) -> Iterator[str]:
    """A web server that answers each path and login; yields its host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def answering(
    total: bytes, free: bytes, status: int = 200, used: bytes | None = None
) -> Iterator[tuple[str, list[str | None]]]:
    """A server that gives fixed answers; yields its address and the logins it was sent."""
    logins: list[str | None] = []

    def answer(path: str, login: str | None) -> tuple[int, bytes]:
        logins.append(login)
        return status, (used or vector()) if "free_bytes" in path else total if "size_bytes" in path else free

    with serving(answer) as place:
        yield f"http://{place}", logins
