"""The pages over a database, served from this process by the real server, and asked over HTTP."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.message import Message
from typing import Any

import uvicorn
from sqlalchemy import URL

from capacity_assets.web.app import Serving, create_app
from capacity_assets.web.reading import Reader, reading_engine
from tests.clocks import fixed_clock
from tests.servers import free_port

KEYS = ("team", "environment")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Message
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Pages:
    """Where the pages are served."""

    address: str

    def ask(self, path: str, **headers: str) -> Answer:
        request = urllib.request.Request(f"{self.address}{path}", headers=headers)  # noqa: S310 -- our own address
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 -- as above
                return Answer(answer.status, answer.headers, answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read().decode())

    def document(self, path: str) -> Any:
        """The JSON of a page that is there."""
        answer = self.ask(path + ("&" if "?" in path else "?") + "format=json")
        assert answer.status == 200, answer.text
        return answer.json


@contextmanager
def served_pages(database: URL, role: str | None = None, **options: Any) -> Iterator[Pages]:
    """Serve the pages of a database until the block ends."""
    engine = reading_engine(database, role=role)
    # A test reads what it has just written.
    serving = replace(Serving(fixed_clock(), KEYS, reads_ahead=False), **options)
    port = free_port()
    config = uvicorn.Config(create_app(Reader(engine), serving), host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield Pages(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()
        engine.dispose()


def header(answer: Answer, name: str) -> str:
    """A header of an answer; empty where it has none."""
    return str(answer.headers.get(name, ""))


def values_of(rows: list[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]
