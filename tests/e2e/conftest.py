"""What several end-to-end files begin with: the demo, made once per run of the tests and copied, and a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from fasteners import InterProcessLock
from playwright.sync_api import Browser, sync_playwright

from tests.clocks import SHANGHAI
from tests.e2e.stack import DEMO_SECONDS, run

# More than a hundred days, because a backfill takes a hundred per run; the usual demo begins in 2025.
FIRST_DAY = (datetime.now(tz=SHANGHAI).date() - timedelta(days=103)).isoformat()


class Demo(NamedTuple):
    """What `capacity demo` printed in an empty folder, and the folder as it left it."""

    done: subprocess.CompletedProcess[str]
    home: Path

    def copy_to(self, home: Path) -> Path:
        """Copy the folder with its database; the owners of the files stay, and the server's user may pass through."""
        home.parent.chmod(0o711)
        subprocess.run(["cp", "-a", str(self.home), str(home)], check=True)  # noqa: S607
        return home


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Demo:
    """The first `capacity demo`, whichever test process comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "demo"
    home, output = folder / "home", folder / "output.json"
    with InterProcessLock(folder.with_suffix(".lock")):
        if not output.exists():
            home.mkdir(parents=True)
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("CAPACITY_START_DATE", FIRST_DAY)
                done = run(home, "demo", timeout=DEMO_SECONDS)
            output.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
    demo = Demo(subprocess.CompletedProcess(*json.loads(output.read_text())), home)
    assert demo.done.returncode == 0, demo.done.stderr
    return demo


# The first is the same browser without windows, and takes a fourth of the processor time.
PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, PROGRAMS)), None)
# Without these, the browser looks for its maker's servers at every start.
QUIET = [
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-sandbox",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The machine's own Chromium."""
    if PROGRAM is None:
        pytest.skip("no Chromium here; see tests/install_servers.sh")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=PROGRAM, args=QUIET)
        yield started
        started.close()
