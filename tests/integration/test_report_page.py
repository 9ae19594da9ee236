"""The page of a report: it says the numbers of the tables, trusts no name, and needs neither network nor colour."""

from __future__ import annotations

import re
from datetime import date
from itertools import product

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.units import human_change_mb
from capacity_assets.reading.changes import ChangeKind
from capacity_assets.report.data import read_report
from capacity_assets.report.page import render
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instances, sizes
from tests.report_pages import FEBRUARY, MONTHLY, Page, adds_up


def test_the_page_says_the_same_numbers_and_loads_nothing(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY)

    text_of_page = render(report)
    page = Page(text_of_page)

    assert (
        page.steps["start"] + sum(page.steps[kind] for kind, change in report.steps if change)
        == page.steps["end"]
        == 738
    )
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert [link for link in page.links if not link.startswith("#")] == []
    assert "url(http" not in text_of_page
    assert "@import" not in text_of_page
    assert text_of_page.count('<svg class="plot"') == text_of_page.count('role="img"') == 3
    steps = [change for kind, change in report.steps if change]
    described = [
        part.split(": ")[1] for part in re.findall(r"<desc>(Before: [^<]*)</desc>", text_of_page)[0].split("; ")
    ]
    assert described == ["268 MiB", *map(human_change_mb, steps), "738 MiB"], "the waterfall too"


def test_a_server_has_a_page_of_its_own_with_all_its_databases(every_kind: Engine) -> None:
    report = read_report(every_kind, MONTHLY, FEBRUARY, "server-1")
    page = render(report)

    assert (report.start_mb, report.end_mb) == (187, 207)
    assert adds_up(report)
    assert {bar.series for bar in report.history} == {"grows", "shrinks", "stays"}
    assert [one.name for one in report.databases.largest[ChangeKind.SAME]] == ["stays"]
    assert "Growth of server-1" in page
    assert "server-2" not in page
    with pytest.raises(NotFoundError, match="There is no server 'Server-1'"):
        read_report(every_kind, MONTHLY, FEBRUARY, "Server-1")


def test_no_name_is_read_as_markup_script_or_formula(engine: Engine, service: AggregationService) -> None:
    names = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x^2$ {{ 7 * 7 }}", "雪豹"]
    for server, name in enumerate(names, 1):
        add_instances(engine, [server], name=name, db_type=name[:40])
        add_database_sizes(engine, sizes(server, name, "2025-01-01", [100] * 31 + [200] * 28))
        add_database_sizes(engine, sizes(server, f"new {name}", "2025-02-01", [5] * 28))
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))

    for of in (None, *names):
        text_of_page = render(read_report(engine, MONTHLY, FEBRUARY, of))
        assert {"script", "img"}.isdisjoint(Page(text_of_page).tags), of
        assert text_of_page.count('<svg class="plot"') == 3, of


def test_a_page_of_many_series_keeps_the_largest_apart_and_adds_the_others_up(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    for number in range(12):
        add_database_sizes(engine, sizes(1, f"db{number:02}", "2025-02-01", [1000 - number] * 28))
    compute_windows(service, "monthly", date(2025, 2, 1), date(2025, 2, 28))

    page = render(read_report(engine, MONTHLY, FEBRUARY, "server-1"))

    assert "5 others" in page
    assert "and 2 more" not in page, "a server's page lists every database"


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_page_can_be_read_without_colour_and_by_a_screen_reader(every_kind: Engine) -> None:
    page = render(read_report(every_kind, MONTHLY, FEBRUARY))

    colours = {name: pair for name, *pair in re.findall(r"--(\w+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", page)}
    assert "--limit: var(--act)" in page
    # On paper, the scheme is light.
    for theme, name in product((0, 1), ("text", "quiet", "up", "down", "watch", "act", "link")):
        for behind in ("back", "raised"):
            lights = sorted((luminance(colours[name][theme]), luminance(colours[behind][theme])))
            assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, f"contrast of {name}"
    assert '<html lang="en">' in page
    assert page.count("<h1>") == 1
    assert len(re.findall(r'<section aria-labelledby="(\w+)">\s*<h2 id="\1">', page)) == page.count("<section")
    assert all(label for label in re.findall(r'role="img" aria-label="([^"]*)"', page))
    assert "<th>" not in page.split("<tbody>")[1].split("</tbody>")[0], "rows have scoped headings"
    # Direction is in the sign, and each chart has its numbers in a table.
    assert "+50" in page
    assert "The same in figures" in page
    assert "pattern" in page, "parts of a bar differ by hatching too"
