"""A port given to one test is given to no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASK = "from tests.servers import free_port; print(*(free_port() for _ in range(300)), flush=True); input()"


@pytest.mark.nightly("starts further processes")
def test_no_two_tests_get_the_same_port_in_whichever_process() -> None:
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", ASK], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    ports = [port for process in asking if process.stdout for port in process.stdout.readline().split()]
    for process in asking:
        process.communicate("\n", timeout=60)

    assert len(ports) == len(set(ports)) == 900
