"""What a release is made of: notes cut from the changelog, and links to its sources at its tag."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from email.message import Message

import dagster as dg
import pytest
import yaml

from capacity_assets.base.settings import Settings
from capacity_assets.orchestration import build
from tests.documents import ROOT

URL = "https://github.example/dba/capacity_assets"
SCRIPT = ROOT / ".ci" / "release_notes.py"


def notes_of(changelog: str, version: str) -> str:
    """What the script prints where the changelog is this one."""
    program = f"import runpy; print(runpy.run_path({str(SCRIPT)!r})['notes'](*__import__('sys').argv[1:]), end='')"
    done = subprocess.run(
        [sys.executable, "-c", program, changelog, version, URL], capture_output=True, text=True, check=False
    )
    return done.stdout or done.stderr.strip().splitlines()[-1]


CHANGELOG = """# Changelog

## 0.4.0 - 2026-12-24

### Added

- Alerts ([how](docs/alerts.md#quiet), [elsewhere](https://example.com)), and [this](#added).

## 0.3.0 - 2026-11-28

- Old.
"""


def test_notes_of_a_release_are_its_section_with_links_to_its_tag() -> None:
    assert notes_of(CHANGELOG, "0.4.0") == (
        f"### Added\n\n- Alerts ([how]({URL}/blob/v0.4.0/docs/alerts.md#quiet), [elsewhere](https://example.com)), "
        "and [this](#added).\n"
    )


@pytest.mark.parametrize(
    ("changelog", "version", "heading"),
    [
        (CHANGELOG, "0.3.0", "0.4.0 - 2026-12-24"),
        (CHANGELOG.replace("## 0.4.0", "## Unreleased\n\n- New.\n\n## 0.4.0"), "0.4.0", "Unreleased"),
        (CHANGELOG.replace(" - 2026-12-24", ""), "0.4.0", "0.4.0"),
    ],
    ids=["an older one", "with text of no version", "without its day"],
)
def test_a_tag_whose_section_is_not_the_newest_is_refused(changelog: str, version: str, heading: str) -> None:
    assert notes_of(changelog, version) == (
        f"ValueError: The newest section of CHANGELOG.md is {heading!r}, and not '{version} - DAY'."
    )


def test_a_tag_of_another_version_than_that_of_the_package_is_refused() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "9.9.9", URL], capture_output=True, text=True, check=False)

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (done.returncode, done.stderr) == (1, f"pyproject.toml has version {version}, and not 9.9.9.\n")


def test_what_the_workflow_notes_in_the_package_is_where_the_page_of_an_asset_leads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sources of a checkout are on its own machine; those of a release at its tag."""
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]["release"]["steps"]
    [note] = [step["run"] for step in steps if "pyproject.toml" in step.get("run", "")]
    appended = subprocess.run(
        ["sh", "-c", note.replace(">> pyproject.toml", "")],  # noqa: S607
        env={"REPOSITORY": URL, "GITHUB_REF_NAME": "v0.4.0"},
        capture_output=True,
        text=True,
        check=True,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text() + appended.stdout)["project"]
    assert project["urls"] == {"Source": f"{URL}/tree/v0.4.0"}
    assert build.released_source() is None

    package = Message()
    package["Project-URL"] = f"Source, {project['urls']['Source']}"
    monkeypatch.setattr(build, "metadata", lambda _name: package)
    graph = build.build_definitions(Settings()).resolve_asset_graph()

    for key in graph.executable_asset_keys:
        [reference] = graph.get(key).metadata["dagster/code_references"].code_references
        assert isinstance(reference, dg.UrlCodeReference)
        path, line = re.fullmatch(rf"{URL}/tree/v0\.4\.0/(capacity_assets/\w+/\w+\.py)#L(\d+)", reference.url).groups()  # type: ignore[union-attr]
        assert re.match(r"\s*(@|def )", (ROOT / path).read_text().splitlines()[int(line) - 1])
