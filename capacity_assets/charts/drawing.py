"""What charts, pages, reports and mails share: axes with round ticks, and the rendering of templates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
FILTERS = (
    *(counted, first_of, gib, human_day, mean_price, moment, money, money_change, over_or_under, price, printable),
)
"""Filters of all templates."""
STEPS = 4
"""Steps of an axis, about."""
ROUND_STEPS = (1, 2, 2.5, 5, 10)
UNITS = ("MiB", "GiB", "TiB", "PiB")
CENTS = 100
"""Cents of one unit of a currency."""


def environment_of(loader: BaseLoader) -> Environment:
    """Return an environment for templates; it escapes every value, so that no name is read as markup."""
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update({one.__name__: one for one in FILTERS}, number="{:,}".format, group=group_named)
    return environment


@cache  # Compiling templates takes longer than rendering them.
def _drawings() -> Environment:
    environment = environment_of(PackageLoader("capacity_assets.charts", "drawings"))
    # Charts grow with the text of a page, whose root element sets the size of a rem; it has 16 pixels by default.
    environment.filters.update(rem=lambda pixels: f"{pixels / 16:.6g}rem", percent="{:.2f}%".format)
    return environment


def draw(name: str, **values: object) -> Markup:
    """Render the drawing of this name."""
    return Markup(_drawings().get_template(f"{name}.svg.j2").render(values))  # noqa: S704 -- the template escapes


@dataclass(frozen=True)
class Tick:
    """A tick of an axis."""

    value: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A range of values with ticks."""

    bottom: float
    top: float
    ticks: Sequence[Tick]

    def share(self, value: float) -> float:
        """Return the position of a value: 0 at the bottom, 1 at the top."""
        return (value - self.bottom) / (self.top - self.bottom)

    def cut_to(self, low: float, high: float) -> Axis:
        """Return the axis between two values; the whole axis if they are equal."""
        if low == high:
            return self
        return Axis(low, high, [tick for tick in self.ticks if low <= tick.value <= high])


def size_axis(low_mb: float, high_mb: float, steps: int = STEPS) -> Axis:
    """Return an axis with round ends around both sizes, in the unit of the larger one, with the decimals it needs."""
    power = min((max(round(abs(low_mb)), round(abs(high_mb)), 1).bit_length() - 1) // 10, len(UNITS) - 1)
    unit = 1024**power
    return _axis(low_mb, high_mb, unit, steps, lambda value: f"{value / unit:,.13g} {UNITS[power]}")


def count_axis(high: int, noun: str, steps: int = STEPS) -> Axis:
    """Return an axis of counts, from 0."""
    return _axis(0, high, 1, steps, lambda value: counted(round(value), noun))


def money_axis(high_cents: int, currency: str, steps: int = STEPS) -> Axis:
    """Return an axis of amounts in cents, from 0."""
    return _axis(0, high_cents, CENTS, steps, lambda value: f"{value / CENTS:,.13g} {currency}")


def _axis(low: float, high: float, unit: int, steps: int, label: Callable[[float], str]) -> Axis:
    """Place ticks at round multiples of the unit or a decimal fraction of it; the smallest unit has no fractions."""
    least = max(((high - low) or max(high // 10, 1)) / steps, 1) / unit
    power = 10.0 ** math.floor(math.log10(least))
    factors = (factor * power for factor in ROUND_STEPS)
    step = unit * next(factor for factor in factors if factor >= least and (unit > 1 or factor.is_integer()))
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [Tick(step * number, label(step * number)) for number in range(first, max(last, first + 1) + 1)]
    return Axis(ticks[0].value, ticks[-1].value, ticks)
