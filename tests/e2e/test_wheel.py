"""The package outside its checkout: the contents of sdist and wheel, and the origin of the tests' demo."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version

import pytest

from tests.documents import ROOT
from tests.e2e.conftest import Demo


def test_the_wheel_holds_what_runs_and_the_sdist_what_builds_it(demo: Demo) -> None:
    [wheel], [sdist] = (demo.folder.glob(f"dist/*{ending}") for ending in (".whl", ".tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    with tarfile.open(sdist) as archive:
        sources = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}

    assert wheel.name.startswith(f"capacity_assets-{version('capacity_assets')}-")
    templates = ("report/templates/report.html.j2", "messages/templates/message.html.j2")
    shipped = ("py.typed", *templates, "shipped/dagster.yaml", "shipped/workspace.yaml")
    charts = ("charts/styles/page.css", "charts/styles/chart.css", "charts/templates/chart.svg.j2")
    for name in (*shipped, *charts, "web/templates/fleet.html.j2", "web/static/search.js"):
        assert f"capacity_assets/{name}" in names
    assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert {"pyproject.toml", "LICENSE", "dagster.yaml", "workspace.yaml", "capacity_assets/py.typed"} <= sources


def test_the_demo_is_that_of_the_wheel_and_not_of_the_checkout(demo: Demo) -> None:
    where = subprocess.run(
        [demo.folder / "venv" / "bin" / "python", "-c", "import capacity_assets; print(capacity_assets.__file__)"],
        cwd=demo.folder,
        capture_output=True,
        text=True,
        check=True,
    )

    assert where.stdout.startswith(str(demo.folder / "venv"))
    assert list((demo.folder / "home" / "reports").glob("*.html"))


@pytest.mark.nightly("resolves the packages of every extra")
def test_every_extra_can_be_installed_with_the_constraints() -> None:
    """The requirements of `dev` are installed with the constraints before the tests; other extras are only resolved."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = [one for name, listed in extras.items() if name != "dev" for one in listed]
    assert any(one.startswith("pyOpenSSL") for one in needed)

    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--retries", "1"]
    done = subprocess.run(
        [*pip, "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt"), *needed],
        capture_output=True,
        text=True,
        check=False,
    )

    if "(from versions: none)" in done.stderr:
        pytest.skip("no package registry answers here")
    assert done.returncode == 0, done.stderr
