"""Addresses of the pages: of any page, and of the one that shows a server, database or volume."""

from __future__ import annotations

from urllib.parse import urlencode


def address(path: str, /, **values: object) -> str:
    """Return the address of a page; values that are None are left out."""
    given = {name: str(value) for name, value in values.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def subject_address(subject: str, server_id: int, name: str = "") -> str:
    """Return the address of the page of a server, database or volume."""
    return address(f"/{subject}", server=server_id, name=name or None)


def page_url(pages_url: str, page: str) -> str:
    """Return the whole address of a page, for what is read outside the pages; `pages_url` is CAPACITY_PAGES_URL."""
    return f"{pages_url.rstrip('/')}{page}"
