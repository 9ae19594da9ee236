"""How the templates of pages, reports and mails are filled in."""

from __future__ import annotations

from jinja2 import BaseLoader, Environment, StrictUndefined


def environment_of(loader: BaseLoader) -> Environment:
    """Return what fills templates in: every value is escaped, so that no name is read as markup."""
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
