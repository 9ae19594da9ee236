"""Renders the data of a page as HTML, as JSON and as a CSV file, all with the same names."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from pydantic import TypeAdapter
from starlette.responses import Response

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.units import (
    as_plain_text,
    counted,
    first_of,
    human_change_mb,
    human_mb,
    human_percent,
    printable,
)
from capacity_assets.charts.bars import share_bar
from capacity_assets.charts.history import Ahead, History, Mark, Point, history_chart
from capacity_assets.charts.templates import environment_of
from capacity_assets.ownership.bills import gib, group_named
from capacity_assets.web.addresses import Asked, address

if TYPE_CHECKING:
    from capacity_assets.web.app import Dated, Page


UNKNOWN = "unknown"


def size(size_mb: int | None) -> Markup:
    """Render a size with its unit; the exact value shows when it is pointed at."""
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


def day(value: date | None) -> Markup | str:
    """Render a day on which something is full, never broken at a hyphen."""
    return "not within a year" if value is None else Markup("<time>{0}</time>").format(value)


def chance(value: float | None) -> str:
    """Render a probability."""
    return UNKNOWN if value is None else f"{value:.0%}"


def dagster_partition(base: str, level: str, period: str, start: date) -> str:
    """Return where Dagster shows the runs that computed a window."""
    return address(f"{base}/assets/{period}_{level}_aggregations", view="partitions", partition=start.isoformat())


def window_span(period: str, start: date) -> str:
    """Name the window that begins on a day."""
    return PERIODS[period].name_of(PERIODS[period].window_of(start))


def before(period: str, start: date) -> date:
    """Return the first day of the window before."""
    return PERIODS[period].previous(PERIODS[period].window_of(start)).start


def window_address(start: str, asked: Asked) -> str:
    """Return where the samples behind a window are shown."""
    return f"{asked.with_values(window=start)}#behind"


@cache  # Reading the templates takes longer than filling them in.
def _environment(menu: tuple[Page, ...], dagster_url: str | None) -> Environment:
    environment = environment_of(PackageLoader("capacity_assets.web", "templates"))
    environment.filters.update(
        size=size,
        change=change,
        percent=percent,
        day=day,
        chance=chance,
        number="{:,}".format,
        printable=printable,
        gib=gib,
        counted=counted,
        first_of=first_of,
        window_address=window_address,
        group=group_named,
    )
    environment.globals.update(
        address=address,
        chart=lambda *what, **more: history_chart(drawn(*what, **more)),
        share_bar=share_bar,
        growth=human_percent,
        window_named=window_named,
        window_span=window_span,
        before=before,
        periods=list(PERIODS),
        menu=menu,
        dagster=dagster_url,
        dagster_partition=dagster_partition,
    )
    return environment


class Renderer:
    """Renders pages and refusals."""

    def __init__(self, menu: Sequence[Page], dagster_url: str | None) -> None:
        """Render with these pages in the menu, and links to Dagster's UI where its address is known."""
        self._environment = _environment(tuple(menu), dagster_url.rstrip("/") if dagster_url else None)

    def page(self, name: str, title: str, asked: Asked, dated: Dated, user: str | None) -> str:
        """Return a page as HTML."""
        template = self._environment.get_template(f"{name}.html.j2")
        return template.render(page=dated.found, read_at=dated.read_at, asked=asked, title=title, user=user)

    def refusal(self, asked: Asked, status: int, text: str) -> str:
        """Return a page that says what is wrong."""
        return self._environment.get_template("refusal.html.j2").render(
            asked=asked,
            title="Not found" if status == HTTPStatus.NOT_FOUND else "No answer",
            status=status,
            text=text,
            user=None,
        )


WINDOWS_SHOWN = {"daily": 90, "weekly": 52, "monthly": 24, "quarterly": 12, "yearly": 10}
OTHER_PERIODS_SHOWN = 24


@dataclass(frozen=True)
class SizeInWindow:
    """A size in one window, MiB; None where nothing was measured. `largest_mb` and `smallest_mb`: of its days."""

    window_start: date
    window_end: date
    size_mb: int | None
    change_mb: int | None = None
    change_percent: float | None = None
    largest_mb: int | None = None
    smallest_mb: int | None = None
    measured_days: int | None = None
    """Unknown where sizes are sums over several."""
    is_partial: bool = False
    """Whether a server has no row in it that has one before and after: its size is missing in `size_mb`."""


@dataclass(frozen=True)
class Runway:
    """When something is full, by its newest forecast; days are None where that is not within a year, or not known."""

    server_id: int
    server: str
    subject: str
    name: str
    state: str
    last_day: date
    size_mb: int
    limit_mb: int | None
    headroom_mb: int | None
    binds: str | None
    limit_source: str | None
    full_early: date | None
    full_middle: date | None
    full_late: date | None
    probability_30_days: float | None
    probability_90_days: float | None
    change_mb_per_day: float
    is_outdated: bool
    """Whether limits or steps of its server were declared since."""
    volumes: list[str] | None
    """Volumes on which a database grows; None if unknown."""
    ahead: Sequence[ForecastDay] = field(default=())

    @property
    def display_name(self) -> str:
        """What it is, as people read it."""
        return {"volume": f"volume {self.name}", "server": "all together"}.get(self.subject, self.name)


@dataclass(frozen=True)
class ForecastDay:
    """What is forecast for a day, MiB, with the band in which four of five outcomes should lie."""

    day: date
    lower_mb: int
    size_mb: int
    upper_mb: int


@dataclass(frozen=True)
class StepRow:
    """A change of size that somebody declared."""

    day: date
    note: str
    database: str | None


@dataclass(frozen=True)
class Unmeasured:
    """An active server without a sample on the newest day; `reason` None: no attempt, or none with a reason."""

    server_id: int
    server: str
    engine: str
    last_day: date | None
    failure: str | None
    reason: str | None
    tried_on: date | None
    """Day of the last attempt to measure it; None: no attempt in the last week."""


@dataclass(frozen=True)
class DatabaseRow:
    """A database in one window."""

    server_id: int
    server: str
    engine: str
    database: str
    size_mb: int
    change_mb: int | None
    change_percent: float | None
    measured_days: int
    window_days: int
    labels: dict[str, str] = field(default_factory=dict)


def windows_back(period: Period, newest: Window) -> list[Window]:
    """Return the windows that a history shows, oldest first, as many as are usual for the period."""
    return period.back(newest, WINDOWS_SHOWN.get(period.name, OTHER_PERIODS_SHOWN))


def with_gaps(windows: Sequence[Window], found: Sequence[SizeInWindow]) -> list[SizeInWindow]:
    """Return one size per window from the first that was measured on, oldest first; those in between may be empty."""
    by_start = {one.window_start: one for one in found}
    empty = (SizeInWindow(window.start, window.end, None, measured_days=0) for window in windows)
    whole = [by_start.get(one.window_start, one) for one in empty]
    first = next((number for number, one in enumerate(whole) if one.size_mb is not None), len(whole))
    return whole[first:]


def drawn(  # noqa: PLR0913 -- what a chart may show
    title: str,
    sizes: Sequence[SizeInWindow],
    period: str,
    *,
    runway: Runway | None = None,
    steps: Sequence[StepRow] = (),
    addresses: Sequence[str] = (),
) -> History:
    """Turn sizes, a forecast and steps into what a chart draws; each point leads to its address where there are any."""
    points = [
        Point(
            one.window_start,
            one.size_mb,
            one.smallest_mb,
            one.largest_mb,
            label="" if one.size_mb is None else f"{window_named(period, one)}: {human_mb(one.size_mb)}{_partly(one)}",
            address=addresses[number] if addresses else "",
            is_partial=one.is_partial,
        )
        for number, one in enumerate(sizes)
    ]
    marks = [Mark(step.day, step.note) for step in steps]
    if runway is None or not runway.ahead:
        return History(title, points, limit_mb=runway.limit_mb if runway else None, marks=marks)
    shown = [day for day in runway.ahead if (day.day - runway.last_day).days <= _ahead_days(points)]
    # The band alone: the days on which something is full come from the same past errors, the forecast itself does not.
    ahead = [Ahead(runway.last_day, runway.size_mb, runway.size_mb)]
    ahead += [Ahead(day.day, day.lower_mb, day.upper_mb) for day in shown]
    return History(title, points, ahead, limit_mb=runway.limit_mb, marks=marks)


def _partly(one: SizeInWindow) -> str:
    return ", not every server measured" if one.is_partial else ""


def _ahead_days(points: Sequence[Point]) -> int:
    """As far ahead as the history reaches back, at least a month: further, the band is all that would be seen."""
    return max(31, (points[-1].day - points[0].day).days + 1) if points else 0


def window_named(period: str, one: SizeInWindow) -> str:
    """Name a window as people do."""
    return PERIODS[period].name_of(Window(one.window_start, one.window_end))


def refuse_nothing(found: object, what: str) -> None:
    """Refuse an address that names nothing; raises NotFoundError."""
    if not found:
        raise NotFoundError(f"There is no {what}: it was never measured, or has another name.")


def csv_of(page: Page, found: Any) -> Response:
    """Write the page's list as CSV, with the names of its JSON."""
    # Not as JSON, in which amounts are text too.
    listed = TypeAdapter(page.shows).dump_python(found)[page.table]
    written = io.StringIO()
    if listed:
        columns = [name for name, value in listed[0].items() if not isinstance(value, list | tuple)]
        rows = csv.writer(written)
        rows.writerow(columns)
        rows.writerows([_cell(row[name]) for name in columns] for row in listed)
    headers = {"Content-Disposition": f'attachment; filename="{page.name}.csv"'}
    return Response(written.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(value: object) -> object:
    if isinstance(value, Mapping):
        value = ";".join(f"{key}={one}" for key, one in value.items())
    return as_plain_text(value) if isinstance(value, str) else value
