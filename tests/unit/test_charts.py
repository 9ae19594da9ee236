"""Charts: round axes, gaps, bars that add up and lie where their numbers say, and nothing that a name could add."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup

from capacity_assets.base.units import LARGEST_MB
from capacity_assets.charts.drawing import (
    BAR_STEPS,
    MOST_SERIES,
    Axis,
    ColumnChart,
    Series,
    Tile,
    TileArea,
    TileOnMap,
    WaterfallStep,
    columns_chart,
    count_axis,
    fraction_bar,
    size_axis,
    span_bar,
    squarified,
    treemap,
    waterfall_chart,
)
from capacity_assets.charts.history import FillRange, History, Mark, Point, history_chart, sparkline
from capacity_assets.digest import MARK_HEIGHT, ROW_HEIGHT, size_chart
from capacity_assets.reading.forecasts import ForecastDay

DAY = date(2025, 3, 1)
# Less than can be seen.
PIXEL = 0.01
HOSTILE = '"><script>alert(1)</script>'


def points(*sizes: int | None) -> list[Point]:
    return [Point(DAY + timedelta(days=number), size) for number, size in enumerate(sizes)]


def labels(chart: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)<", chart)


def parsed(chart: Markup) -> ET.Element:
    """The chart as a tree: it is well-formed."""
    return ET.fromstring(chart)  # noqa: S314 -- drawn by us


def rectangles(chart: Markup) -> list[ET.Element]:
    """The bars in the plot, in their order."""
    plot = next(part for part in parsed(chart) if part.get("class") == "plot")
    return [one for one in plot.iter("rect") if not one.get("class", "").startswith("series-")]


def number(rectangle: ET.Element, name: str) -> float:
    """A length in percent, or in pixels of a rem of 16."""
    written = rectangle.get(name, "")
    return 16 * float(written.removesuffix("rem")) if written.endswith("rem") else float(written.rstrip("%"))


def test_a_series_has_the_same_colour_in_every_chart_that_knows_the_same_names() -> None:
    every = ("commerce", "data", "finance", "sales", "(no team)")

    def places(*names: str) -> dict[str, int]:
        series = [Series(name, [1]) for name in names]
        return dict(zip(names, ColumnChart("amounts", ["May"], series, every_name=every).places(), strict=True))

    assert places("finance", "commerce", "(no team)") == {"finance": 3, "commerce": 1, "(no team)": 5}
    assert places("sales") == {"sales": 4}
    assert places("others", "finance") == {"others": 8, "finance": 3}
    chart = columns_chart(ColumnChart("amounts", ["May"], [Series("sales", [1])], every_name=every))
    assert set(re.findall(r"url\(#series-(\d)\)", chart)) == set(re.findall(r'id="series-(\d)"', chart)) == {"4"}


def test_series_that_would_share_a_colour_get_the_next_free_one() -> None:
    every = [f"team-{number}" for number in range(12)]
    series = [Series(name, [1]) for name in ("team-9", "team-1", "team-2")]

    assert ColumnChart("amounts", ["May"], series, every_name=every).places() == [4, 2, 3]
    assert ColumnChart("amounts", ["May"], series).places() == [1, 2, 3], "without names, by position"


def test_a_thin_line_passes_over_what_was_partly_measured_and_none_over_what_was_not() -> None:
    partial = Point(DAY + timedelta(days=6), 5, label="half", is_partial=True)

    chart = history_chart(History("sizes", [*points(1, 2, None, 4, 5, 6), partial, Point(DAY + timedelta(days=7), 8)]))

    lines = re.findall(r'<polyline class="mean" points="([^"]*)"', chart)
    assert [len(line.split()) for line in lines] == [2, 3, 1]
    [bridge] = re.findall(r'<polyline class="bridge" points="([^"]*)"', chart)
    assert bridge.split() == [lines[1].split()[-1], lines[2]], "from the window before to the one after"
    assert chart.count('class="partial"') == 1


def test_no_line_passes_over_a_partial_window_beside_one_that_was_not_measured() -> None:
    partial = Point(DAY + timedelta(days=2), 5, is_partial=True)

    chart = history_chart(History("sizes", [*points(1, None), partial, Point(DAY + timedelta(days=3), 8)]))

    assert 'class="bridge"' not in chart


def test_a_forecast_is_connected_with_the_newest_window_that_was_measured_completely() -> None:
    ahead = [ForecastDay(DAY + timedelta(days=9), 9, 9, 9), ForecastDay(DAY + timedelta(days=20), 10, 12, 14)]
    partial = Point(DAY + timedelta(days=3), 5, is_partial=True)

    chart = history_chart(History("sizes", [*points(1, 2, 3), partial], ahead=ahead))

    [mean, bridge, middle] = (
        re.search(rf'<polyline class="{kind}" points="([^"]*)"', chart)[1].split()  # type: ignore[index]
        for kind in ("mean", "bridge", "middle")
    )
    assert bridge == [mean[-1], middle[0]]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((0, 100), ["0 MiB", "25 MiB", "50 MiB", "75 MiB", "100 MiB"]),
        ((0, 9), ["0 MiB", "5 MiB", "10 MiB"]),
        ((20 * 1024, 60 * 1024), ["20 GiB", "30 GiB", "40 GiB", "50 GiB", "60 GiB"]),
        ((5 * 1024**2, 7 * 1024**2), ["5 TiB", "5.5 TiB", "6 TiB", "6.5 TiB", "7 TiB"]),
        ((700 * 1024, 1100 * 1024), ["0.6 TiB", "0.7 TiB", "0.8 TiB", "0.9 TiB", "1 TiB", "1.1 TiB"]),
        ((7, 7), ["7 MiB", "8 MiB"]),
    ],
)
def test_the_axis_has_round_sizes(sizes: tuple[int, int], expected: list[str]) -> None:
    chart = history_chart(History("sizes", points(*sizes)))

    assert [label for label in labels(chart) if "iB" in label] == expected


def test_many_windows_are_a_line_with_dots_only_where_no_line_leads() -> None:
    partial = Point(DAY + timedelta(days=101), 5, is_partial=True)

    chart = history_chart(History("sizes", [*points(*range(90), None, 7, None), partial]))

    assert [circle.get("class") for circle in parsed(chart).iter("circle")] == ["partial", None]


def test_an_axis_of_servers_has_whole_ones() -> None:
    assert [tick.label for tick in count_axis(3, "server").ticks] == ["0 servers", "1 server", "2 servers", "3 servers"]


STORED = st.integers(-LARGEST_MB, LARGEST_MB)


@given(STORED, STORED, st.integers(1, 8))
@example(0, 0, 4)
@example(1024**3 - 1, 1024**3, 4)
def test_an_axis_holds_its_values_at_equal_distances_with_labels_that_differ(one: int, other: int, steps: int) -> None:
    low, high = sorted((one, other))

    axis = size_axis(low, high, steps)

    assert axis.ticks[0].value <= low <= high <= axis.ticks[-1].value
    assert 2 <= len(axis.ticks) <= steps + 2
    distances = [after.value - before.value for before, after in pairwise(axis.ticks)]
    assert distances == pytest.approx([distances[0]] * len(distances))
    assert len({tick.label for tick in axis.ticks}) == len(axis.ticks)
    assert len({tick.label.split()[1] for tick in axis.ticks}) == 1, "one unit"


def test_a_forecast_has_its_band_and_the_limit_is_drawn_where_it_is_near() -> None:
    ahead = [ForecastDay(DAY + timedelta(days=1), 100, 100, 100), ForecastDay(DAY + timedelta(days=30), 110, 130, 160)]

    near = history_chart(History("sizes", points(90, 100), ahead, limit_mb=150))
    far = history_chart(History("sizes", points(90, 100), ahead, limit_mb=10**9))

    assert 'class="forecast"' in near
    assert "limit 150 MiB" in labels(near)
    assert "▲ limit 953.67 TiB" in labels(far)
    assert '<line class="limit"' in near
    assert '<line class="limit"' not in far


def test_the_fill_date_lies_on_the_limit_beside_the_line_of_the_forecast_and_a_later_one_is_named_there() -> None:
    ahead = [ForecastDay(DAY + timedelta(days=1), 100, 100, 100), ForecastDay(DAY + timedelta(days=41), 110, 130, 160)]
    days = [DAY + timedelta(days=number) for number in (11, 21, 31)]

    drawn = history_chart(History("sizes", points(90, 100), ahead, full=FillRange(*days), limit_mb=150))
    later = history_chart(
        History("sizes", points(90, 100), ahead, full=FillRange(days[0], DAY + timedelta(days=81), None), limit_mb=150)
    )

    assert "full by 22 Mar 2025" in labels(drawn)
    assert '<tspan class="wide"> (12 Mar to 1 Apr 2025)</tspan>' in drawn
    [circle] = [one for one in parsed(drawn).iter("circle") if one.get("class") == "fills"]
    assert number(circle, "cx") == pytest.approx(100 * 21 / 41, abs=0.01)
    [limit] = [one for one in parsed(drawn).iter("line") if one.get("class") == "limit"]
    assert number(circle, "cy") == number(limit, "y1")
    [path] = [one for one in parsed(drawn).iter("polyline") if one.get("class") == "middle"]
    [band] = [one for one in parsed(drawn).iter("polygon") if one.get("class") == "forecast"]
    upper, lower = (corner for corner in band.get("points", "").split()[1:3])
    end = path.get("points", "").split()[-1]
    heights = [float(corner.split(",")[1]) for corner in (upper, end, lower)]
    assert heights == sorted(heights), "the forecast lies in its band"
    assert float(end.split(",")[0]) == 1000
    assert {"limit 150 MiB", "full by 21 May 2025 ▶"} <= set(labels(later))
    assert 'class="fills"' not in later


def test_an_explored_chart_carries_what_is_read_off_it() -> None:
    measured = Point(DAY, 100, 90, 110, label="1 Mar 2025: 100 MiB", address="/database?window=2025-03-01")
    history = History(
        "sizes",
        [measured, Point(DAY + timedelta(days=1), None)],
        [ForecastDay(DAY + timedelta(days=1), 100, 100, 100), ForecastDay(DAY + timedelta(days=4), 100, 110, 120)],
        earlier=[(DAY, 50)],
        marks=[Mark(DAY, "purge")],
        is_interactive=True,
    )

    [plot] = [part for part in parsed(history_chart(history)) if part.get("class") == "plot"]

    readings = json.loads(plot.get("data-readings", ""))
    assert [reading[2] for reading in readings] == [
        ["1 Mar 2025: 100 MiB", "90 MiB to 110 MiB", "previous year: 50 MiB", "1 Mar 2025: purge"],
        ["2 Mar 2025"],
        ["5 Mar 2025: 100 MiB to 120 MiB (80 % range)", "forecast: 110 MiB"],
    ]
    assert [reading[0] for reading in readings] == [0, 25, 100]
    assert readings[1][1] is None
    assert readings[0][3] == "/database?window=2025-03-01"
    assert "data-readings" not in history_chart(replace(history, is_interactive=False))


def test_marks_are_labelled_and_what_lies_beyond_the_chart_stands_at_its_edge() -> None:
    note = "history of another system imported"
    marks = [
        Mark(DAY, note),
        Mark(
            DAY + timedelta(days=4), "acknowledged until 1 Apr 2025: purge", "decision", "acknowledged until 1 Apr 2025"
        ),
        Mark(DAY + timedelta(days=99), "64.0 GiB more", "plan", "plan +64.0 GiB"),
        Mark(DAY + timedelta(days=200), "disk /data full", "full"),
        Mark(DAY + timedelta(days=99), "imported", "step"),
        *(Mark(DAY + timedelta(days=day), f"bill {day}", "bill", f"{day} EUR") for day in (2, 3, 8)),
    ]
    points = [Point(DAY + timedelta(days=day), 100) for day in range(10)]

    drawn = history_chart(History("sizes", points, marks=marks))

    plot = parsed(drawn)
    groups = [one for one in plot.iter("g") if one.get("class", "").startswith("mark")]
    shown = [(str(one.get("class")), one.findtext("text")) for one in groups]
    assert [one for one in shown if one[0] != "mark bill"] == [
        ("mark step", "history of another system i…"),
        ("mark decision", "acknowledged until 1 Apr 20…"),
        ("mark plan", "plan +64.0 GiB, 8 Jun 2025 ▶"),
        ("mark full", "disk /data full, 17 Sep 2025 ▶"),
    ]
    assert [text for kind, text in shown if kind == "mark bill"] == ["2 EUR", "3 EUR", "8 EUR"]
    assert f"<title>1 Mar 2025: {note}</title>" in drawn
    assert [len(one.findall("line")) for one in groups if "plan" in str(one.get("class"))] == [0]


def test_amounts_of_bills_that_would_overlap_are_left_to_their_tooltips() -> None:
    bills = [Mark(DAY + timedelta(days=day), f"bill {day}", "bill", f"{day} EUR") for day in (0, 2, 90)]

    drawn = history_chart(History("sizes", [Point(DAY + timedelta(days=day), 100) for day in range(99)], marks=bills))

    assert [one.findtext("text") for one in parsed(drawn).iter("g")] == ["0 EUR", None, "90 EUR"]
    assert "<title>3 Mar 2025: bill 2</title>" in drawn


def test_names_and_notes_are_text() -> None:
    point = Point(DAY, 1, label=HOSTILE, address=HOSTILE)
    history = History(HOSTILE, [point, Point(DAY + timedelta(days=9), 2)], marks=[Mark(DAY, HOSTILE)])
    columns = ColumnChart(HOSTILE, [HOSTILE], [Series(HOSTILE, [1])], HOSTILE, [1], HOSTILE)
    waterfall = waterfall_chart(HOSTILE, 1, [WaterfallStep(HOSTILE, 1, HOSTILE)])

    for chart in (history_chart(history), columns_chart(columns), waterfall):
        assert "<script" not in chart
        assert chart.count("&lt;script&gt;") >= 4
        assert parsed(chart).find(".//script") is None


@pytest.mark.parametrize(
    ("days", "height", "expected"),
    [
        (364, 200, ["Mar 2025", "May", "Jul", "Sep", "Nov", "Jan 2026"]),
        (364, 110, ["Jul 2025", "Jan 2026"]),
        (20, 200, ["1 Mar 2025", "8 Mar", "15 Mar"]),
        (4, 200, ["1 Mar 2025", "2 Mar", "3 Mar", "4 Mar", "5 Mar"]),
        (0, 200, ["1 Mar 2025"]),
    ],
)
def test_dates_below_a_chart_are_firsts_of_months_or_days(days: int, height: int, expected: list[str]) -> None:
    chart = history_chart(History("", [Point(DAY, 1), Point(DAY + timedelta(days=days), 2)], height=height))

    assert [label for label in labels(chart) if "iB" not in label] == expected


def test_nothing_measured_draws_nothing_and_one_day_is_a_point() -> None:
    assert history_chart(History("sizes", points(None, None))) == ""
    assert history_chart(History("sizes", points(5))).count("<circle") == 1


def stacked(*values: list[int | None]) -> ColumnChart:
    series = [Series(f"series {number}", column) for number, column in enumerate(values, 1)]
    return ColumnChart("sizes", [f"window {number}" for number in range(len(values[0]))], series)


@given(
    st.integers(1, 20).flatmap(
        lambda count: st.lists(
            st.lists(st.integers(0, LARGEST_MB), min_size=count, max_size=count), min_size=1, max_size=MOST_SERIES
        )
    )
)
def test_the_parts_of_a_column_lie_on_each_other_and_add_up_to_its_total(values: list[list[int]]) -> None:
    chart = stacked(*values)
    totals = [sum(column) for column in zip(*values, strict=True)]
    pixels = chart.height / size_axis(0, max(totals) + 1, BAR_STEPS).top

    columns: dict[float, list[tuple[float, float]]] = {}
    for part in rectangles(columns_chart(chart)):
        columns.setdefault(number(part, "x"), []).append((number(part, "y"), number(part, "height")))

    drawn = [sum(height for _, height in columns[x]) for x in sorted(columns)]
    assert drawn == pytest.approx([total * pixels for total in totals if total], abs=0.1 * MOST_SERIES)
    for parts in columns.values():
        for (y, _), (upper_y, upper_height) in pairwise([(chart.height, 0), *parts]):
            assert upper_y + upper_height == pytest.approx(y, abs=0.11)


def test_columns_stand_over_their_names_and_say_what_they_are_and_gaps_stay_gaps() -> None:
    chart = columns_chart(stacked([100, None, None, 400], [100, None, None, 0]))

    found = [(number(one, "x") + number(one, "width") / 2, one.findtext("title")) for one in rectangles(chart)]
    assert found == [
        (pytest.approx(12.5), "series 1, window 0: 100 MiB"),
        (pytest.approx(87.5), "series 1, window 3: 400 MiB"),
        (pytest.approx(12.5), "series 2, window 0: 100 MiB"),
    ]
    names = dict(re.findall(r'<text[^>]*x="([^"]*)"[^>]*>(window \d)</text>', chart))
    assert names == {"87.50%": "window 3", "62.50%": "window 2", "37.50%": "window 1", "12.50%": "window 0"}
    assert re.findall(r'<tspan x="([^"]*)" dy="0rem">no</tspan>', chart) == ["50.00%"], "once for both windows"
    assert parsed(chart).findtext(".//desc") == "window 0: 200 MiB; window 3: 400 MiB"


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (13, [12, 9, 6, 3, 0]), (62, [56, 45, 34, 23, 12, 1]), (0, [])]
)
def test_as_many_names_stand_under_columns_as_have_room(count: int, expected: list[int]) -> None:
    chart = columns_chart(stacked([1] * count))

    shown = re.findall(r'<text( class="wide")? x="[^"]*" y="15.5rem" text-anchor="middle">window (\d+)</text>', chart)
    assert [int(name) for _, name in shown] == expected
    assert [bool(wide) for wide, _ in shown] == [rank % 2 == 1 for rank in range(len(shown))], "on a phone every second"


def test_a_long_name_is_whole_in_the_legend_and_every_series_has_its_own_colour_and_hatching() -> None:
    names = ["x" * 200, "y" * 200]
    chart = columns_chart(ColumnChart("sizes", ["now"], [Series(name, [1]) for name in names]))

    assert re.findall(r'<li title="([xy]+)">', chart) == names
    ids = re.findall(r'<pattern id="([^"]+)"', chart)
    assert len(ids) == 2
    drawn = re.findall(r'<g class="stack ([^"]+)" fill="url\(#([^)]+)\)">', chart)
    assert drawn == [(name, name) for name in ids], "the class on screens, the attribute in print"


@given(st.lists(st.integers(0, LARGEST_MB // 2), min_size=1, max_size=9), st.sampled_from(["size", "count", "money"]))
@example([0], "size")
@example([1024, 2048], "size")
@example([500, 1000], "count")
@example([100_00], "money")
def test_the_axis_ends_with_a_tick_above_the_highest_column(values: list[int], kind: str) -> None:
    units = {"size": {}, "count": {"noun": "server"}, "money": {"currency": "EUR"}}[kind]
    names = [str(number) for number in range(len(values))]
    chart = columns_chart(ColumnChart("all", names, [Series("one", values)], **units))

    ticks = [number(one, "y1") for one in parsed(chart).iter("line") if one.get("class") == "grid"]
    tops = [number(one, "y") for one in rectangles(chart)]
    assert min(ticks) == 0
    assert all(top > 0 for top in tops)


def test_the_expected_number_is_a_level_line_over_each_column() -> None:
    servers = [Series("now", [1, 3], "now")]
    chart = columns_chart(ColumnChart("servers", ["a", "b"], servers, "server", [2, 4], "expected", height=100))

    [line] = re.findall(r'<polyline class="expected" points="([^"]*)"', chart)
    assert line == "0.0,60.0 500.0,60.0 500.0,20.0 1000.0,20.0"
    assert [number(one, "height") for one in rectangles(chart)] == [20, 60]
    assert "<pattern" not in chart, "its series have colours of the sheet"


def waterfall(start: int, *changes: int) -> Markup:
    return waterfall_chart(
        "sizes", start, [WaterfallStep(f"step {number}", change, "up") for number, change in enumerate(changes)]
    )


@given(STORED, st.lists(st.integers(-LARGEST_MB, LARGEST_MB), max_size=9))
@example(100, [1, -2])
@example(0, [])
def test_each_bar_of_a_waterfall_begins_where_the_one_before_ends_and_the_last_is_the_sum(
    start: int, changes: list[int]
) -> None:
    chart = waterfall(start, *changes)

    bars = [(number(one, "x"), number(one, "x") + number(one, "width")) for one in rectangles(chart)]
    levels = [float(x) for x in re.findall(r'<line class="level" x1="([\d.]+)%"', chart)]
    assert len(bars) == len(changes) + 2
    assert len(levels) == len(bars) - 1
    for (bar, following), level in zip(pairwise(bars), levels, strict=True):
        assert level in (pytest.approx(bar[0], abs=0.02), pytest.approx(bar[1], abs=0.02))
        assert level in (pytest.approx(following[0], abs=0.02), pytest.approx(following[1], abs=0.02))
    assert all(-0.01 <= left <= right <= 100.02 for left, right in bars)


def test_a_waterfall_is_drawn_to_scale() -> None:
    chart = waterfall(400, 600, -200)

    assert [(number(one, "x"), number(one, "width")) for one in rectangles(chart)] == [
        (0, 40),
        (40, 60),
        (80, 20),
        (0, 80),
    ]
    assert re.findall(r'class="value" x="([\d.]+)%"[^>]*>([^<]*)<', chart) == [
        ("40.00", "400 MiB"),
        ("100.00", "+600 MiB"),
        ("100.00", "-200 MiB"),
        ("80.00", "800 MiB"),
    ]
    assert "does not begin at 0" not in chart
    described = parsed(chart).findtext(".//desc")
    assert described == "Before: 400 MiB; step 0: +600 MiB; step 1: -200 MiB; Now: 800 MiB"


def test_small_steps_are_seen_because_the_axis_is_cut_and_says_so() -> None:
    chart = waterfall(1000, 100)

    assert [(number(one, "x"), number(one, "width")) for one in rectangles(chart)] == [(0, 50), (50, 50), (0, 100)]
    assert "The axis does not begin at 0." in chart
    assert "0 MiB" not in labels(chart)


def test_names_of_steps_have_lines() -> None:
    chart = waterfall_chart("sizes", 1, [WaterfallStep("Not measured\nnow", 1, "unknown")])

    assert re.findall(r"<tspan[^>]*>([^<]*)</tspan>", chart) == ["Before", "Not measured", "now", "Now"]


@pytest.mark.parametrize(("part", "whole", "width"), [(1, 4, 25), (5, 4, 100), (0, 0, 0), (-1, 4, 0)])
def test_a_bar_shows_a_share_within_its_ends(part: int, whole: int, width: int) -> None:
    assert f'<rect class="part" x="0" width="{width}"' in fraction_bar(part, whole)


def test_a_bar_has_the_colour_of_its_severity() -> None:
    assert '<svg class="bar watch"' in fraction_bar(9, 10, "watch")
    assert '<svg class="bar"' in fraction_bar(9, 10)


def test_a_bar_of_a_span_has_a_mark_in_it() -> None:
    bar = span_bar(0.25, 1, 0.5)

    assert 'x="25" width="75"' in bar
    assert '<line class="mark" x1="50" x2="50"' in bar


def test_an_axis_is_cut_to_what_is_drawn() -> None:
    axis = size_axis(0, 110).cut_to(0, 110)

    assert [tick.label for tick in axis.ticks] == ["0 MiB", "50 MiB", "100 MiB"]
    assert (axis.fraction(0), axis.fraction(55), axis.fraction(110)) == (0, 0.5, 1)
    assert Axis(0, 5, ()).cut_to(3, 3) == Axis(0, 5, ())


def test_the_chart_of_a_mail_has_each_week_in_the_row_of_its_size_and_a_column_for_those_that_are_missing() -> None:
    weeks = [DAY + timedelta(weeks=number) for number in range(4)]

    chart = size_chart([(weeks[0], 800), (weeks[1], 950), (weeks[3], 1000)])

    highest = ROW_HEIGHT - MARK_HEIGHT
    assert chart.weeks == weeks
    assert [(row.label, row.places) for row in chart.rows] == [
        ("950 MiB", [None, 0, None, highest]),
        ("900 MiB", [None, None, None, None]),
        ("850 MiB", [None, None, None, None]),
        ("800 MiB", [0, None, None, None]),
    ]
    assert chart.summary == "Size by week: 800 MiB in the week of 1 Mar 2025, 1,000 MiB in the week of 22 Mar 2025."


@given(st.lists(st.integers(0, LARGEST_MB), min_size=1, max_size=26))
def test_the_marks_of_a_mail_are_as_high_as_the_sizes_are(sizes: list[int]) -> None:
    chart = size_chart([(DAY + timedelta(weeks=number), size) for number, size in enumerate(sizes)])

    axis = size_axis(min(sizes), max(sizes))
    for number, size in enumerate(sizes):
        [height] = [
            row * (ROW_HEIGHT - MARK_HEIGHT) + place
            for row, shown in enumerate(reversed(chart.rows))
            if (place := shown.places[number]) is not None
        ]
        assert height == pytest.approx(axis.fraction(size) * len(chart.rows) * (ROW_HEIGHT - MARK_HEIGHT), abs=0.51)


@given(st.lists(st.integers(0, LARGEST_MB), max_size=40), st.integers(1, 2000), st.integers(1, 2000))
@example([5, 5, 5, 5], 1000, 1)
@example([LARGEST_MB, LARGEST_MB, 1, 1], 1200, 420)
def test_tiles_fill_their_area_by_their_sizes_and_stay_inside(sizes: list[int], width: int, height: int) -> None:
    tiles = [Tile(str(place), size, None) for place, size in enumerate(sizes)]

    placed = list(squarified(tiles, TileArea(10, 20, width, height)))

    known = sum(sizes)
    assert [tile.size_mb for tile, _ in placed] == sorted((size for size in sizes if size), reverse=True)
    for tile, area in placed:
        assert area.width * area.height == pytest.approx(width * height * tile.size_mb / known, rel=1e-3, abs=1e-3)
        assert (area.x, area.y) >= (10 - PIXEL, 20 - PIXEL)
        assert area.x + area.width <= 10 + width + PIXEL
        assert area.y + area.height <= 20 + height + PIXEL


def test_a_tile_beyond_all_others_takes_the_whole_area() -> None:
    placed = list(squarified([Tile("absurd", 2**62, None), Tile("small", 1, None)], TileArea(0, 0, 1200, 420)))

    assert placed[0] == (Tile("absurd", 2**62, None), TileArea(0, 0, 1200, 420))
    assert 'aria-label="absurd' in treemap("space", [Tile("absurd", 2**62, 1, "/a"), Tile("small", 1, 1, "/b")])


@pytest.mark.parametrize(
    ("size_mb", "change_mb", "colour"),
    [
        (970, -30, "shrunk-2"),
        (990, -10, "shrunk-1"),
        (1000, 0, "same"),
        (1010, 10, "grown-1"),
        (1030, 30, "grown-2"),
        (1100, 100, "grown-3"),
        (1000, None, "unknown"),
        (100, 100, "unknown"),
    ],
)
def test_the_colour_of_a_tile_is_its_growth(size_mb: int, change_mb: int | None, colour: str) -> None:
    assert Tile("orders", size_mb, change_mb).colour == colour


def test_a_tile_has_the_growth_that_a_list_shows_if_its_change_is_like_for_like() -> None:
    web = Tile("web", 1_100_000, 42_189, change_percent=3.9)

    assert (web.growth, web.colour) == ("+3.9 %", "grown-2")
    assert Tile("web", 1000, 0, change_percent=0.0).growth == "0.0 %"
    assert Tile("web", 1000, -21, change_percent=-1.9).colour == "shrunk-1", (
        "not by the size, of which a part is missing"
    )


def test_a_map_says_names_sizes_and_growth_as_text_and_leads_to_its_parts() -> None:
    orders = Tile(HOSTILE, 2048, 48, "/database?name=orders")

    drawn = treemap("space", [Tile("payments", 4096, 96, "/group?name=payments", [orders])])

    assert '>payments<tspan class="wide"> · 4.0 GiB · +2.4 %</tspan></text>' in drawn
    assert labels(drawn)[2:] == ["2.0 GiB", "+2.4 %"]
    assert "<script" not in drawn
    assert [link.get("href") for link in parsed(drawn).iter("a")] == ["/group?name=payments", "/database?name=orders"]
    assert treemap("space", [Tile("empty", 0, None)]) == ""


def test_the_heading_of_a_narrow_group_has_only_the_figures_that_fit() -> None:
    group = Tile("(no team)", 239_000, 4_300)

    headings = {width: TileOnMap(group, TileArea(0, 0, width, 22), is_heading=True).lines for width in (90, 170, 240)}

    assert [line.figures for [line] in headings.values()] == ["", "233.4 GiB", "233.4 GiB · +1.8 %"]
    assert {line.text for [line] in headings.values()} == {"(no team)"}


def test_a_sparkline_has_gaps_and_needs_two_sizes() -> None:
    [first, second] = parsed(sparkline([1, 2, None, 3, 1])).iter("polyline")

    assert first.get("points") == "0.0,19.0 25.0,10.0"
    assert second.get("points") == "75.0,1.0 100.0,19.0"
    assert parsed(sparkline([5, 5])).find("polyline").get("points") == "0.0,10.0 100.0,10.0"  # type: ignore[union-attr]
    assert sparkline([None, 5]) == ""


def test_columns_of_money_have_amounts_in_their_currency_and_say_where_there_is_none() -> None:
    chart = columns_chart(
        ColumnChart("bills", ["May", "June"], [Series("team", [None, 123456])], currency="EUR", unknown="no bill")
    )

    assert labels(chart)[:4] == ["0 EUR", "250 EUR", "500 EUR", "750 EUR"]
    assert "team, June: 1,234.56 EUR" in chart
    assert re.search(r"<tspan[^>]*>no</tspan><tspan[^>]*>bill</tspan>", chart)
