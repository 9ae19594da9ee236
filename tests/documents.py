"""The documents, and functions that read their tables."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
EVERYTHING = "\n".join(
    "\n## ".join(path.read_text().split("\n## ")[: 2 if path.stem == "CHANGELOG" else None]) for path in DOCUMENTS
)
"""What is said of this version; the changelog's earlier ones name what is gone."""


def section(title: str) -> str:
    return REFERENCE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(title: str) -> set[str]:
    """Return the names in backquotes in the first column of a section's tables."""
    lines = [line for line in section(title).splitlines() if line.startswith("| `")]
    return {name for line in lines for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])}
