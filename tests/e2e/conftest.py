"""Fixtures of end-to-end tests: the demo, created once per test run and copied, and a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from fasteners import InterProcessLock
from playwright.sync_api import Browser, sync_playwright

from tests.clocks import SHANGHAI
from tests.documents import ROOT
from tests.e2e.stack import DEMO_SECONDS, environment

# More than a hundred days, because a backfill takes a hundred per run; the usual demo begins in 2025.
FIRST_DAY = (datetime.now(tz=SHANGHAI).date() - timedelta(days=103)).isoformat()


class Demo(NamedTuple):
    """The output and the files of the wheel's `capacity demo`, run in an empty folder and environment."""

    done: subprocess.CompletedProcess[str]
    folder: Path
    """Holds `dist` with the wheel and the sdist, the environment `venv`, and the data folder `home`."""

    def copy_to(self, home: Path) -> Path:
        """Copy the folder with its database. Files keep their owners, and the server's user can traverse the folder."""
        home.parent.chmod(0o711)
        subprocess.run(["cp", "-a", str(self.folder / "home"), str(home)], check=True)  # noqa: S607
        return home


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Demo:
    """The first `capacity demo`, run by the first test process that needs it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "demo"
    output = folder / "output.json"
    with InterProcessLock(folder.with_suffix(".lock")):
        if not output.exists():
            folder.mkdir(mode=0o711)
            done = subprocess.run(
                [installed(folder), "-m", "capacity_assets.cli", "demo"],
                cwd=folder,
                env=environment(folder / "home", CAPACITY_START_DATE=FIRST_DAY),
                capture_output=True,
                text=True,
                timeout=DEMO_SECONDS,
                check=False,
            )
            output.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr], default=str))
    demo = Demo(subprocess.CompletedProcess(*json.loads(output.read_text())), folder)
    assert demo.done.returncode == 0, demo.done.stderr
    return demo


def installed(folder: Path) -> Path:
    """Build the package and install its wheel in an empty environment; return its interpreter.

    Its dependencies are taken from this environment: they are pinned, and half a gigabyte.
    """
    program, dist = folder / "venv" / "bin" / "python", folder / "dist"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    where = [program, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    # A folder that is only named here is not searched for further .pth files, so that of this checkout is not found.
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(dist)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = dist.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    install += ["--disable-pip-version-check", "--target", str(packages), str(wheel)]
    subprocess.run(install, check=True)
    return program


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
