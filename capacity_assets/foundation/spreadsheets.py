"""Text that others chose, in files that spreadsheets open: a cell that begins like a formula would be run."""

from __future__ import annotations

import re

# At the beginning, and after what ends a cell where another sign than the comma separates them, as `;` does in Germany.
FORMULA = r"(?<![^;\t\r\n])([=+@\t\r\n-])"
"""The signs that begin a formula, for Python and for PostgreSQL."""
_FORMULA = re.compile(FORMULA)


def as_plain_text(text: str) -> str:
    """Return a text that a spreadsheet shows and does not run; an apostrophe, which it hides, makes it text."""
    return _FORMULA.sub(r"'\1", text)
