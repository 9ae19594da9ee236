"""Text that others chose, in files that spreadsheets open: a name that begins like a formula would be run."""

from __future__ import annotations

FORMULA_SIGNS = "=+@-\t\r"


def as_plain_text(text: str) -> str:
    """Return a text that a spreadsheet shows and does not run; an apostrophe, which it hides, makes it text."""
    return f"'{text}" if text[:1] in FORMULA_SIGNS and text else text
