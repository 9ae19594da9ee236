"""What the package imports is declared: an environment that holds this one's packages would not notice."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def named(requirements: list[str]) -> set[str]:
    """Names of distributions, as they are compared."""
    return {re.split(r"[\[<>=!~; ]", one)[0].lower().replace("_", "-") for one in requirements}


def imported() -> dict[str, set[str]]:
    """Top-level modules of others that the package imports, with the files that do."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "capacity_assets").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [str(node.module)]
            for module in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"capacity_assets"}:
                found.setdefault(module, set()).add(path.name)
    return found


def test_every_package_that_is_imported_is_a_declared_dependency() -> None:
    optional = PROJECT["optional-dependencies"]
    extras = [one for name, listed in optional.items() if name != "dev" for one in listed]
    declared = named([*PROJECT["dependencies"], *extras])
    distributions = packages_distributions()

    assert {"dagster", "sqlalchemy", "redis", "psycopg"} <= set(imported())
    undeclared = {
        module: files
        for module, files in imported().items()
        if not declared & {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
    }
    assert undeclared == {}
