"""A real Prometheus on loopback that watches a real node exporter, both unpacked beside the machine's own packages."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import BUILD, free_port

PROGRAMS = BUILD / "prometheus" / "usr" / "bin"
CONFIGURATION = """
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: node
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""


@contextmanager
def prometheus(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield its address, and the label `instance` of the exporter."""
    if not (PROGRAMS / "prometheus").exists():
        pytest.skip("no Prometheus here; see tests/install_servers.sh")
    exporter, port = free_port(), free_port()
    (folder / "prometheus.yml").write_text(CONFIGURATION.format(port=exporter))
    commands = [
        [PROGRAMS / "prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{exporter}"],
        [
            *[PROGRAMS / "prometheus", f"--config.file={folder / 'prometheus.yml'}"],
            *[f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
        ],
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(command, **quiet) for command in commands]  # type: ignore[call-overload]
    try:
        _wait_for_a_sample(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}", f"127.0.0.1:{exporter}"
    finally:
        for process in running:
            process.kill()
            process.wait(30)


def _wait_for_a_sample(address: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    query = urllib.parse.urlencode({"query": "node_filesystem_avail_bytes"})
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/api/v1/query?{query}", timeout=5) as answer:  # noqa: S310 -- our own
                if json.load(answer)["data"]["result"]:
                    return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail("Prometheus has no sample")
