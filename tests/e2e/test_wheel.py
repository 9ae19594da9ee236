"""The package outside its checkout: sdist and wheel are built, and the wheel is used in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.clocks import SHANGHAI
from tests.e2e.stack import DEMO_SECONDS, environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    return folder


def test_the_wheel_holds_what_runs_and_the_sdist_what_builds_it(built: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    with tarfile.open(sdist) as archive:
        sources = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}

    assert wheel.name.startswith(f"capacity_assets-{version('capacity_assets')}-")
    shipped = ("py.typed", "report/templates/report.html.j2", "shipped/dagster.yaml", "shipped/workspace.yaml")
    for name in (*shipped, "web/templates/fleet.html.j2", "web/static/search.js", "charts/styles/chart.css"):
        assert f"capacity_assets/{name}" in names
    assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert {"pyproject.toml", "LICENSE", "dagster.yaml", "workspace.yaml", "capacity_assets/py.typed"} <= sources


def test_the_wheel_runs_the_demo_in_an_empty_folder_of_an_empty_environment(built: Path, tmp_path: Path) -> None:
    """Its dependencies are those of this environment: they are pinned, and half a gigabyte."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    program = tmp_path / "venv" / "bin" / "python"
    folders = subprocess.run(
        [program, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = Path(folders.stdout.strip())
    # A folder that is only named here is not searched for further .pth files, so that of this checkout is not found.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    [wheel] = built.glob("*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--disable-pip-version-check",
    ]
    subprocess.run([*install, "--target", str(packages), str(wheel)], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    first_day = datetime.now(tz=SHANGHAI).date() - timedelta(days=20)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        variables = environment(empty / ".capacity", CAPACITY_START_DATE=first_day.isoformat())
        return subprocess.run(
            [program, *arguments],
            cwd=empty,
            env=variables | {"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=DEMO_SECONDS,
            check=False,
        )

    where = run("-c", "import capacity_assets; print(capacity_assets.__file__)")
    demo = run("-m", "capacity_assets.cli", "demo")

    assert where.stdout.startswith(str(packages)), "the wheel, not the checkout"
    assert demo.returncode == 0, demo.stderr
    assert "Fastest growing databases" in demo.stdout
    assert list((empty / ".capacity" / "reports").glob("*.html"))


def test_every_extra_can_be_installed_with_the_constraints() -> None:
    """The requirements of `dev` are installed with the constraints before the tests; other extras are only resolved."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = [one for name, listed in extras.items() if name != "dev" for one in listed]
    assert any(one.startswith("pyOpenSSL") for one in needed)

    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--retries", "1"]
    done = subprocess.run(
        [*pip, "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt"), *needed],
        capture_output=True,
        text=True,
        check=False,
    )

    if "(from versions: none)" in done.stderr:
        pytest.skip("no package registry answers here")
    assert done.returncode == 0, done.stderr
