"""Rendering of the templates of charts, pages, reports and mails."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from capacity_assets.base.units import counted, first_of, human_day, printable
from capacity_assets.ownership.bills import (
    gib,
    group_named,
    mean_price,
    moment,
    money,
    money_change,
    over_or_under,
    price,
)

STYLES = Path(__file__).with_name("styles")
"""Folder of the style sheets of pages and charts."""


_SHARED_FILTERS = {
    one.__name__: one
    for one in (
        *(counted, first_of, gib, human_day, mean_price, moment, money, money_change, over_or_under, price, printable),
    )
}


def environment_of(loader: BaseLoader) -> Environment:
    """Return what fills templates in: every value is escaped, so that no name is read as markup."""
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(_SHARED_FILTERS, number="{:,}".format, group=group_named)
    return environment


@cache  # Reading the templates takes longer than filling them in.
def _drawings() -> Environment:
    environment = environment_of(PackageLoader("capacity_assets.charts", "drawings"))
    environment.filters.update(px="{:.1f}".format, percent="{:.2f}%".format)
    return environment


def draw(name: str, **values: object) -> Markup:
    """Render the drawing of this name."""
    return Markup(_drawings().get_template(f"{name}.svg.j2").render(values))  # noqa: S704 -- the template escapes
