"""What the package imports is declared: an environment that holds this one's packages would not notice."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def named(requirements: list[str]) -> set[str]:
    """Names of distributions, as they are compared."""
    return {re.split(r"[\[<>=!~; ]", one)[0].lower().replace("_", "-") for one in requirements}


@cache
def parsed() -> list[tuple[Path, ast.Module]]:
    """The files of the package."""
    return [(path, ast.parse(path.read_text())) for path in (ROOT / "capacity_assets").rglob("*.py")]


@cache
def distributions() -> Mapping[str, list[str]]:
    """Which distributions each installed module comes from; every list of files is read for it."""
    return packages_distributions()


def imported(*, always: bool) -> dict[str, set[str]]:
    """Modules of others that the package imports, with the files that do; `always`: when a file is loaded."""
    found: dict[str, set[str]] = {}
    for path, tree in parsed():
        for node in tree.body if always else ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [str(node.module)]
            for module in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"capacity_assets"}:
                found.setdefault(module, set()).add(path.name)
    return found


def test_every_package_that_is_imported_is_a_declared_dependency() -> None:
    optional = PROJECT["optional-dependencies"]
    extras = [one for name, listed in optional.items() if name != "dev" for one in listed]
    needed, declared = named(PROJECT["dependencies"]), named([*PROJECT["dependencies"], *extras])

    assert {"dagster", "sqlalchemy", "click", "numpy"} <= set(imported(always=True))
    assert "redis" in imported(always=False)
    # What an extra brings may be imported where it is used alone.
    assert lacking(imported(always=True), needed) == {}
    assert lacking(imported(always=False), declared) == {}


def lacking(modules: dict[str, set[str]], declared: set[str]) -> dict[str, set[str]]:
    """Those of no declared distribution."""
    return {
        module: files
        for module, files in modules.items()
        if not declared & {name.lower().replace("_", "-") for name in distributions().get(module, [module])}
    }
