"""The statements by which the documentation makes roles."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
ROLES = ("capacity_runner", "capacity_collector", "capacity_reader")


def documented() -> str:
    """The statements of the page, with a password instead of its dots."""
    section = (DOCS / "operations.md").read_text().split("\n### Roles\n")[1]
    [statements] = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)[:1]
    return statements.replace("'...'", "'for the test'")
