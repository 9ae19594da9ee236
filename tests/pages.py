"""The pages over a database, served from this process by the real server, and asked over HTTP."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.message import Message
from typing import IO, Any

import uvicorn
from python_calamine import CalamineWorkbook
from sqlalchemy import URL

from capacity_assets.reading.access import reading_engine
from capacity_assets.web.app import WebOptions, create_app, uvicorn_limits
from capacity_assets.web.reader import Reader
from tests.clocks import SHANGHAI, fixed_clock
from tests.servers import free_port

KEYS = ("team", "environment")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Message
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()

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
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def workbook(self, path: str) -> list[list[Any]]:
        """The rows of the Excel workbook of a page, headings first."""
        with urllib.request.urlopen(f"{self.address}{path}{_and(path)}format=xlsx", timeout=30) as answer:  # noqa: S310 -- our own address
            book = CalamineWorkbook.from_filelike(io.BytesIO(answer.read()))
        return book.get_sheet_by_index(0).to_python()

    def document(self, path: str) -> Any:
        """The JSON of a page that is there."""
        answer = self.ask(f"{path}{_and(path)}format=json")
        assert answer.status == 200, answer.text
        return answer.json


def _and(path: str) -> str:
    return "&" if "?" in path else "?"


@contextmanager
def served_pages(database: URL, role: str | None = None, **options: Any) -> Iterator[Pages]:
    """Serve the pages of a database until the block ends."""
    engine = reading_engine(database, role=role, timezone=SHANGHAI.key)
    # A test reads what it has just written.
    serving = replace(WebOptions(fixed_clock(), KEYS, reads_ahead=False), **options)
    port = free_port()
    try:
        with served(create_app(Reader(engine), serving), port):
            yield Pages(f"http://127.0.0.1:{port}")
        assert engine.pool.status().count("Checked out connections: 0") == 1, "nothing is read after the end"
    finally:
        engine.dispose()


@contextmanager
def served(app: Any, port: int) -> Iterator[None]:
    """Serve an application in the same way as the pages, until the block ends."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", **uvicorn_limits()))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving_process(
    database: URL,
    *,
    host: str = "127.0.0.1",
    open_files: int = 1000,
    request_seconds: int = 10,
    log: IO[str] | None = None,
) -> Iterator[Pages]:
    """`capacity serve` as a separate process with limits on open files and on requests, until the block ends."""
    port = free_port()
    pages = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    program = (
        f"from capacity_assets.web import app; app.REQUEST_SECONDS = {request_seconds}; "
        "from capacity_assets.cli.main import main; main()"
    )
    place = ("--host", host, "--port", str(port))
    arguments = [sys.executable, "-c", program, "serve", "--allow-writing-role", *place]
    address = database.render_as_string(hide_password=False)
    with subprocess.Popen(
        arguments,
        env={**os.environ, "CAPACITY_WEB_DATABASE_URL": address},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().strip() == f"Pages: {pages}"
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (open_files, open_files))
            yield Pages(pages)
        finally:
            process.terminate()
            process.communicate(timeout=60)


def header(answer: Answer, name: str) -> str:
    """A header of an answer; empty where it has none."""
    return str(answer.headers.get(name, ""))


def values_of(rows: list[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]
