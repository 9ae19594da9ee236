"""A real Prometheus that scrapes an address, and promtool; tests/install_servers.sh unpacks both."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import BUILD, free_port

PROGRAMS = BUILD / "prometheus" / "usr" / "bin"
PROMTOOL = BUILD / "promtool" / "usr" / "bin" / "promtool"
CONFIGURATION = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
scrape_configs:
  - {{job_name: capacity, static_configs: [{{targets: ["{target}"]}}]}}
rule_files: {rules}
"""


@contextmanager
def prometheus(
    folder: Path, target: str, awaited: str, *, at: int | None = None, rules: tuple[str, ...] = ()
) -> Iterator[str]:
    """Scrape an address each second; yields Prometheus' own address once `awaited` has a result (at a time)."""
    if not (PROGRAMS / "prometheus").exists():
        pytest.skip("no Prometheus here; see tests/install_servers.sh")
    address, file = f"127.0.0.1:{free_port()}", folder / "prometheus.yml"
    file.write_text(CONFIGURATION.format(target=target, rules=json.dumps(rules)))
    command = [
        *[PROGRAMS / "prometheus", f"--config.file={file}", f"--web.listen-address={address}"],
        *[f"--storage.tsdb.path={folder / 'data'}", "--storage.tsdb.retention.time=100y"],
    ]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://{address}", awaited, at=at)
        yield f"http://{address}"
    finally:
        running.kill()
        running.wait(30)


def wait_for(address: str, query: str, *, at: int | None = None, seconds: float = 60) -> None:
    """Wait until a query has a result."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if queried(address, query, at=at):
                return
        except OSError:
            pass
        time.sleep(0.1)
    pytest.fail("Prometheus has no sample")


def queried(address: str, query: str, *, at: int | None = None) -> list[dict[str, Any]]:
    """The instant vector of a query."""
    asked = {"query": query} if at is None else {"query": query, "time": at}
    with urllib.request.urlopen(f"{address}/api/v1/query?{urllib.parse.urlencode(asked)}", timeout=5) as answer:  # noqa: S310 -- our own
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


def promtool(*arguments: str | Path, given: str = "") -> str:
    """What promtool says; fails unless it is content."""
    if not PROMTOOL.exists():
        pytest.skip("no promtool here; see tests/install_servers.sh")
    done = subprocess.run([PROMTOOL, *arguments], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
