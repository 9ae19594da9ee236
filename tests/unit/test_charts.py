"""The chart of a size over time: gaps, bands, round sizes, and nothing that a name could add to the page."""

from __future__ import annotations

import re
from datetime import date, timedelta

import pytest

from capacity_assets.charts.history import Ahead, History, Mark, Point, history_chart, share_bar

DAY = date(2025, 3, 1)


def points(*sizes: int | None) -> list[Point]:
    return [Point(DAY + timedelta(days=number), size) for number, size in enumerate(sizes)]


def labels(chart: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", chart)


def test_a_line_is_interrupted_where_nothing_or_only_a_part_was_measured() -> None:
    partial = Point(DAY + timedelta(days=6), 5, label="half", is_partial=True)

    chart = history_chart(History("sizes", [*points(1, 2, None, 4, 5, 6), partial, Point(DAY + timedelta(days=7), 8)]))

    lines = re.findall(r'<polyline class="mean" points="([^"]*)"', chart)
    assert [len(line.split()) for line in lines] == [2, 3, 1]
    assert chart.count('class="partial"') == 1


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((0, 100), ["0 MiB", "25 MiB", "50 MiB", "75 MiB", "100 MiB"]),
        ((20 * 1024, 60 * 1024), ["20 GiB", "30 GiB", "40 GiB", "50 GiB", "60 GiB"]),
        ((5 * 1024**2, 7 * 1024**2), ["5 TiB", "5.5 TiB", "6 TiB", "6.5 TiB", "7 TiB"]),
        ((700 * 1024, 1100 * 1024), ["0.6 TiB", "0.7 TiB", "0.8 TiB", "0.9 TiB", "1 TiB", "1.1 TiB"]),
        ((7, 7), ["7 MiB", "8 MiB"]),
    ],
)
def test_the_axis_has_round_sizes(sizes: tuple[int, int], expected: list[str]) -> None:
    chart = history_chart(History("sizes", points(*sizes)))

    assert [label for label in labels(chart) if "iB" in label] == expected


def test_a_forecast_has_its_band_and_the_limit_is_drawn_where_it_is_near() -> None:
    ahead = [Ahead(DAY + timedelta(days=1), 100, 100), Ahead(DAY + timedelta(days=30), 110, 160)]

    near = history_chart(History("sizes", points(90, 100), ahead, limit_mb=150))
    far = history_chart(History("sizes", points(90, 100), ahead, limit_mb=10**9))

    assert 'class="forecast"' in near
    assert "limit 150 MiB" in labels(near)
    assert "limit" not in " ".join(labels(far))


def test_names_and_notes_are_text() -> None:
    hostile = '"><script>alert(1)</script>'
    point = Point(DAY, 1, label=hostile, address=hostile)

    chart = history_chart(History(hostile, [point, Point(DAY + timedelta(days=9), 2)], marks=[Mark(DAY, hostile)]))

    assert "<script" not in chart
    assert chart.count("&lt;script&gt;") == 5


def test_nothing_measured_draws_nothing_and_one_day_is_a_point() -> None:
    assert history_chart(History("sizes", points(None, None))) == ""
    assert history_chart(History("sizes", points(5))).count("<circle") == 1


@pytest.mark.parametrize(("part", "whole", "width"), [(1, 4, 25), (5, 4, 100), (0, 0, 0), (-1, 4, 0)])
def test_a_bar_shows_a_share_within_its_ends(part: int, whole: int, width: int) -> None:
    assert f'width="{width}"' in share_bar(part, whole)
