"""Names chosen by others, in files for spreadsheets: a cell that begins like a formula would be executed."""

from __future__ import annotations

import re

# At the beginning, and after other cell separators than the comma, such as `;` in Germany.
FORMULA = r"(?<![^;\t\r\n])([=+@\t\r\n-])"
"""The characters that begin a formula, as a pattern for Python and PostgreSQL."""
_FORMULA = re.compile(FORMULA)


def as_plain_text(text: str) -> str:
    """Return a text that a spreadsheet shows and does not run; an apostrophe, which it hides, makes it text."""
    return _FORMULA.sub(r"'\1", text)
