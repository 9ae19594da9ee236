"""From what a page shows to its HTML: templates, sizes as people read them, charts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from capacity_assets.charts.history import history_chart, share_bar
from capacity_assets.charts.templates import environment_of
from capacity_assets.grouping.bill_words import gib, group_named
from capacity_assets.periods import PERIODS
from capacity_assets.units import counted, first_of, human_change_mb, human_mb, human_percent, printable
from capacity_assets.web.asked import Asked, address
from capacity_assets.web.figures import drawn, window_named

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
        chart=lambda *what, **more: Markup(history_chart(drawn(*what, **more))),  # noqa: S704 -- texts escaped there
        share_bar=lambda part, whole: Markup(share_bar(part, whole)),  # noqa: S704 -- numbers only
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
