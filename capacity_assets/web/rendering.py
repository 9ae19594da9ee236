"""Renders the data of a page as HTML, as JSON and as a CSV file, all with the same names."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from pydantic import TypeAdapter
from starlette.responses import Response

from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.settings import Thresholds
from capacity_assets.base.units import (
    BYTES_PER_MB,
    as_plain_text,
    counted,
    human_change_mb,
    human_day,
    human_days,
    human_mb,
    human_percent,
)
from capacity_assets.charts.axis import CENTS
from capacity_assets.charts.bars import Columns, Series, columns_chart, share_bar
from capacity_assets.charts.history import Ahead, Full, History, Mark, Point, history_chart, sparkline
from capacity_assets.charts.templates import environment_of
from capacity_assets.charts.treemap import Tile, treemap
from capacity_assets.forecast.decisions import decide_command, is_left_out
from capacity_assets.forecast.outlook import FORECAST, FULL
from capacity_assets.ownership.bills import MonthlyAmount, group_named
from capacity_assets.reading.forecasts import Runway, Severity, Usage, severity_of
from capacity_assets.reading.groups import GroupSpace
from capacity_assets.reading.headlines import Headline, range_of
from capacity_assets.reading.sizes import SizeInWindow
from capacity_assets.reading.subjects import StepRow, address, subject_address
from capacity_assets.web.addresses import PageQuery
from capacity_assets.web.pages.ranges import RANGES

if TYPE_CHECKING:
    from capacity_assets.web.app import Page


BYTE_ORDER_MARK = "\ufeff"
UNKNOWN = "unknown"
# So that the day on which something is full does not stand at the very edge of a chart.
FULL_DATE_MARGIN = 1.15
# Forecasts may be newer than windows by a day or two.
PAST_DAYS = 3


def size_of_bytes(size_bytes: int) -> Markup:
    """Render a size in bytes, cut toward zero to MiB."""
    return size(int(size_bytes / BYTES_PER_MB))


def change_of_bytes(change_bytes: int) -> Markup:
    """Render a change in bytes, cut toward zero to MiB."""
    return change(int(change_bytes / BYTES_PER_MB))


def size(size_mb: int | None) -> Markup:
    """Render a size with its unit; the exact value is its tooltip."""
    if size_mb is None:
        return Markup('<span class="unknown">unknown</span>')
    return Markup('<data value="{0}" title="{0:,} MiB">{1}</data>').format(size_mb, human_mb(size_mb))


def change(change_mb: int | None) -> Markup:
    """Render a change with its sign and unit."""
    if change_mb is None:
        return Markup('<span class="unknown">unknown</span>')
    kind = "grown" if change_mb > 0 else "shrunk" if change_mb < 0 else "same"
    text = human_change_mb(change_mb)
    return Markup('<data class="{2}" value="{0}" title="{0:+,} MiB">{1}</data>').format(change_mb, text, kind)


def percent(value: float | None) -> str:
    """Render a change in percent."""
    return UNKNOWN if value is None else f"{value:+,.2f} %" if value else "0 %"


def day(value: date | None, otherwise: str = "not within a year") -> Markup | str:
    """Render a day as people read it, with its ISO form for scripts; by default, a day on which something is full."""
    if value is None:
        return otherwise
    return Markup('<time datetime="{0}">{1}</time>').format(value.isoformat(), human_day(value))


def headline(one: Headline) -> Markup:
    """Render a headline: a chip for its severity, a link to what fills, and commands as code."""
    chip = (
        Markup('<span class="chip {0}">{1}</span> ').format(one.severity, CHIPS[one.severity]) if one.severity else ""
    )
    texts: list[Markup | str] = [one.text]
    if one.linked and one.subject and one.linked in one.text:
        head, _, tail = one.text.partition(one.linked)
        place = subject_address(one.subject, one.server_id or 0, one.name or "")
        texts = [head, Markup('<a href="{0}">{1}</a>').format(place, one.linked), tail]
    return chip + Markup("").join(one if isinstance(one, Markup) else with_code(one) for one in texts)


CHIPS = {Severity.FULL: "Full", Severity.ACT: "Act", Severity.WATCH: "Watch"}
"""Names of the severities, as people read them."""


def full_by(row: Usage) -> Markup | str:
    """Render the day on which a row of a list is full, or a dash where none is known."""
    if row.severity is Severity.FULL:
        return "full"
    if row.full_by is None and (row.forecast_state != FORECAST or row.limit_mb is None):
        return Markup('<span class="unknown">&ndash;</span>')
    return day(row.full_by)


def period_noun(period: str) -> str:
    """Return what a window of a period is called: day, week, month."""
    return PERIODS[period].noun


def fill_range(runway: Runway) -> str:
    """Render the range of 80 % of a fill date."""
    return "" if runway.state == FULL else range_of(runway) or "a single day"


def with_code(text: str) -> Markup:
    """Mark what stands between backquotes as code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{0}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts)
    )


def chance(value: float | None) -> str:
    """Render a probability."""
    return UNKNOWN if value is None else f"{100 * value:.0f} %"


def dagster_partition(base: str, level: str, period: str, start: date) -> str:
    """Return the address in Dagster of the runs that computed a window."""
    return address(f"{base}/assets/{period}_{level}_aggregations", view="partitions", partition=start.isoformat())


def window_span(period: str, start: date) -> str:
    """Name the window that begins on a day."""
    return PERIODS[period].name_of(PERIODS[period].window_of(start))


def before(period: str, start: date) -> date:
    """Return the first day of the window before."""
    return PERIODS[period].previous(PERIODS[period].window_of(start)).start


@cache  # Reading the templates takes longer than filling them in.
def page_templates(menu: tuple[Page, ...], dagster_url: str | None, thresholds: Thresholds) -> Environment:
    """Return the templates of pages, with these in the menu, and links to Dagster's UI where its address is known.

    The thresholds say what is marked as to be watched or acted on.
    """
    environment = environment_of(PackageLoader("capacity_assets.web", "templates"))
    environment.filters.update(size_of_bytes=size_of_bytes, change_of_bytes=change_of_bytes)
    environment.filters.update(size=size, change=change, percent=percent, chance=chance, code=with_code)
    environment.filters.update(day=day, days=human_days, headline=headline, full_by=full_by, fill_range=fill_range)
    environment.filters.update(shell=shlex.quote)
    environment.globals.update(
        chart=lambda *what, **more: history_chart(drawn(*what, **more)),
        share_bar=share_bar,
        sparkline=sparkline,
        space_map=space_map,
        amounts_chart=amounts_chart,
        decide_command=decide_command,
    )
    environment.globals.update(period_noun=period_noun, window_named=window_named, window_span=window_span)
    environment.globals.update(before=before, is_past=is_past, growth=human_percent)
    environment.globals.update(
        shared_labels=shared_labels, billed_groups=billed_groups, chips=CHIPS, is_left_out=is_left_out
    )
    environment.globals.update(severity_of=partial(severity_of, thresholds=thresholds), thresholds=thresholds)
    environment.globals.update(periods=list(PERIODS), ranges={name: text for name, (text, _) in RANGES.items()})
    dagster = dagster_url.rstrip("/") if dagster_url else None
    environment.globals.update(
        menu=menu,
        address=address,
        subject_address=subject_address,
        dagster=dagster,
        dagster_partition=dagster_partition,
    )
    return environment


def drawn(  # noqa: PLR0913 -- what a chart may show
    title: str,
    sizes: Sequence[SizeInWindow],
    period: str,
    *,
    runway: Runway | None = None,
    steps: Sequence[StepRow] = (),
    earlier: Sequence[SizeInWindow] = (),
    query: PageQuery | None = None,
) -> History:
    """Turn sizes, a forecast and steps into what a chart draws; with `query`, a point leads to its window's samples."""
    points = [
        Point(
            _middle(one),
            one.size_mb,
            one.smallest_mb,
            one.largest_mb,
            label=_reading(period, one),
            address=f"{query.with_values(window=one.window_start)}#behind" if query else "",
            is_partial=one.is_partial,
        )
        for one in sizes
    ]
    marks = [Mark(step.day, step.note) for step in steps]
    before = _year_before(PERIODS[period], sizes, earlier) if earlier else []
    history = History(title, points, earlier=before, marks=marks, is_explored=True)
    if runway is None:
        return history
    # A limit that is shared is one only as long as the others do not grow; the headline has the day that binds.
    is_own = not runway.is_shared
    history = replace(history, limit_mb=runway.limit_mb if is_own else None)
    if not runway.ahead or is_past(sizes, runway):
        return history
    full = Full(runway.full_early, runway.full_middle, runway.full_late) if is_own else history.full
    ahead = _ahead_until(runway, runway.last_day + timedelta(days=_days_ahead(points, runway)))
    return replace(history, ahead=ahead, full=full)


def is_past(sizes: Sequence[SizeInWindow], runway: Runway) -> bool:
    """Whether a chart ends some days before the newest measurement: it shows no future then."""
    return (runway.last_day - sizes[-1].window_end).days > PAST_DAYS


def shared_labels(rows: Sequence[Usage]) -> dict[str, str]:
    """Return the labels that all rows of a list have; none for a single row."""
    if len(rows) < 2:  # noqa: PLR2004 -- what is shared is shared by two
        return {}
    labels: list[dict[str, str]] = [getattr(row, "labels", {}) for row in rows]
    return {key: value for key, value in labels[0].items() if all(one.get(key) == value for one in labels)}


def billed_groups(history: Sequence[MonthlyAmount]) -> list[MonthlyAmount]:
    """Return one row of each group of a history of bills, those of the newest month first and all others last."""
    columns: dict[tuple[bool, str | None], MonthlyAmount] = {}
    for one in sorted(history, key=lambda one: (one.is_others, -one.month.toordinal())):
        columns.setdefault((one.is_others, one.group), one)
    return list(columns.values())


def space_map(title: str, groups: Sequence[GroupSpace], by: str) -> Markup:
    """Draw groups with their largest databases as a treemap."""
    return treemap(title, [_tile_of(group, by) for group in groups])


def _tile_of(group: GroupSpace, by: str) -> Tile:
    if group.groups > 1:
        return Tile(counted(group.groups, "other group"), group.size_mb, None)
    place = address("/group", by=by, name=group.name)
    parts = [
        Tile(row.database, row.size_mb, row.change_mb, address("/database", server=row.server_id, name=row.database))
        for row in group.databases
    ]
    if parts and group.other_databases:
        parts.append(Tile(counted(group.other_databases, "other"), group.other_mb, None, place))
    return Tile(group_named(group.name, by), group.size_mb, group.change_mb, place, parts)


def _reading(period: str, one: SizeInWindow) -> str:
    partly = ", partly measured" if one.is_partial else ""
    return "" if one.size_mb is None else f"{window_named(period, one)}: {human_mb(one.size_mb)}{partly}"


def _year_before(
    period: Period, sizes: Sequence[SizeInWindow], earlier: Sequence[SizeInWindow]
) -> list[tuple[date, int | None]]:
    """Place each size of a year before at the window that is compared with it."""
    by_start = {one.window_start: one.size_mb for one in earlier}
    return [
        (_middle(one), by_start.get(period.year_before(Window(one.window_start, one.window_end)).start))
        for one in sizes
    ]


def _middle(one: SizeInWindow) -> date:
    """Return the day at which the mean of a window is drawn."""
    return one.window_start + (one.window_end - one.window_start) // 2


def _ahead_until(runway: Runway, last: date) -> list[Ahead]:
    """Return the forecast up to a day, on which it lies between the forecasts of the days around it."""
    days = [Ahead(runway.last_day, runway.size_mb, runway.size_mb, runway.size_mb)]
    for day in runway.ahead:
        if day.day >= last:
            share = (last - days[-1].day).days / (day.day - days[-1].day).days
            names = ("lower_mb", "size_mb", "upper_mb")
            ends = [(getattr(days[-1], name), getattr(day, name)) for name in names]
            days.append(Ahead(last, *(round(before + (after - before) * share) for before, after in ends)))
            break
        days.append(Ahead(day.day, day.lower_mb, day.size_mb, day.upper_mb))
    return days


def _days_ahead(points: Sequence[Point], runway: Runway) -> int:
    """Return how many days of forecast to draw: past the fill date, but not much longer than the history."""
    if not points:
        return 0
    history_days = (points[-1].day - points[0].day).days + 1
    last = runway.full_late or runway.full_middle
    needed_days = (last - runway.last_day).days * FULL_DATE_MARGIN if last else 0
    least = max(31, history_days // 2)
    return max(least, min(math.ceil(needed_days), 2 * history_days))


def window_named(period: str, one: SizeInWindow) -> str:
    """Name a window as people do."""
    return PERIODS[period].name_of(Window(one.window_start, one.window_end))


def amounts_chart(  # noqa: PLR0913 -- what a chart is of
    title: str, months: Sequence[date], billed: Sequence[MonthlyAmount], *, currency: str, by: str, height: int = 230
) -> Markup:
    """Draw what groups had to pay by month, stacked; a month without an amount is a gap."""
    known = {one.month for one in billed}
    cents = {(one.group, one.is_others, one.month): int(one.amount * CENTS) for one in billed}
    series = [
        Series(
            "others" if is_others else group_named(group, by),
            [cents.get((group, is_others, month), 0) if month in known else None for month in months],
        )
        for group, is_others in dict.fromkeys(
            (one.group, one.is_others) for one in sorted(billed, key=lambda one: one.is_others)
        )
    ]
    names = [PERIODS["monthly"].label_of(PERIODS["monthly"].window_of(month)) for month in months]
    return columns_chart(Columns(title, names, series, height=height, currency=currency, unknown="no bill"))


def csv_of(page: Page, content: Any) -> Response:
    """Write the page's list as CSV, with the names of its JSON and one value per cell.

    It begins with a byte order mark, without which spreadsheets take UTF-8 for another encoding.
    """
    # Not as JSON, in which amounts are text too.
    shown = TypeAdapter(page.shows).dump_python(content)
    beside = {name: shown[name] for name in page.beside}
    listed = [_cells({**beside, **row}) for row in shown[page.table]]
    written = io.StringIO()
    if listed:
        columns = list(dict.fromkeys(name for row in listed for name in row))
        rows = csv.writer(written)
        rows.writerow(columns)
        # None is written as an empty cell.
        rows.writerows([row.get(name) for name in columns] for row in listed)
    headers = {"Content-Disposition": f'attachment; filename="{page.name}.csv"'}
    return Response(f"{BYTE_ORDER_MARK}{written.getvalue()}", media_type="text/csv; charset=utf-8", headers=headers)


def _cells(row: Mapping[str, object]) -> dict[str, object]:
    """Return the cells of a row, by column; what has several values has a column for each: labels_team."""
    cells: dict[str, object] = {}
    for name, value in row.items():
        match value:
            case Mapping():
                cells |= {f"{name}_{key}": one for key, one in _cells(value).items()}
            case str():
                cells[name] = as_plain_text(value)
            case Decimal():
                # Without an exponent.
                cells[name] = f"{value:f}"
            case list() | tuple():
                pass
            case _:
                cells[name] = value
    return cells
