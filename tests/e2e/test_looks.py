"""The looks of the main pages: screenshots of a fixed fleet, compared with stored ones in a coarse grid.

A cell of the grid is the mean colour of a part of the page, so that another font or another smoothing of edges passes,
and a lost style sheet, a chart that is not drawn or a broken column does not. After a wanted change, store new ones:

    CAPACITY_TEST_STORE_LOOKS=1 .venv/bin/pytest tests/e2e/test_looks.py
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from sqlalchemy import URL

from tests.pages import served_pages
from tests.pages_fleet import filled

PREPARED = {"address": filled}
STORED = Path(__file__).with_name("looks.json")
PATHS = ("/", "/servers", "/databases", "/bill", "/database?server=1&name=orders", "/group?by=team&name=payments")
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}
COLUMNS, ROWS = 32, 40
# Of 255, on the mean over all cells, and on the tenth of the cells that differ most.
MEAN_TOLERANCE, WORST_TOLERANCE = 4.0, 24.0
# In percent of the height of the page.
HEIGHT_TOLERANCE = 8
SHRINK = """
([source, columns, rows]) => new Promise((resolve) => {
  const picture = new Image();
  picture.onload = () => {
    const canvas = document.createElement("canvas");
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, columns, rows);
    const data = Array.from(context.getImageData(0, 0, columns, rows).data);
    resolve([picture.height, data.filter((_, place) => place % 4 !== 3)]);
  };
  picture.src = source;
})
"""


@pytest.fixture
def address(database: URL) -> Iterator[str]:
    with served_pages(database) as pages:
        yield pages.address


def look(page: Page, shrinking: Page) -> dict[str, Any]:
    """Return the height of the page, and the red, green and blue of its cells."""
    picture = base64.b64encode(page.screenshot(full_page=True)).decode()
    height, cells = shrinking.evaluate(SHRINK, [f"data:image/png;base64,{picture}", COLUMNS, ROWS])
    return {"height": height, "cells": bytes(cells).hex()}


def test_the_main_pages_look_as_they_did_in_both_themes_and_on_a_phone(browser: Browser, address: str) -> None:
    looks: dict[str, dict[str, Any]] = {}
    shrinking = browser.new_page()
    for screen, options in SCREENS.items():
        context = browser.new_context(base_url=address, **options)
        page = context.new_page()
        for path in PATHS:
            page.goto(path)
            looks[f"{screen} {path}"] = look(page, shrinking)
        context.close()
    shrinking.close()
    if os.environ.get("CAPACITY_TEST_STORE_LOOKS"):
        STORED.write_text(json.dumps(looks, indent=1) + "\n")

    stored = json.loads(STORED.read_text())

    assert looks.keys() == stored.keys()
    for name, now in looks.items():
        assert now["height"] == pytest.approx(stored[name]["height"], rel=HEIGHT_TOLERANCE / 100), name
        pairs = zip(bytes.fromhex(now["cells"]), bytes.fromhex(stored[name]["cells"]), strict=True)
        differences = sorted(abs(one - other) for one, other in pairs)
        assert sum(differences) / len(differences) <= MEAN_TOLERANCE, name
        assert differences[-len(differences) // 10] <= WORST_TOLERANCE, name
