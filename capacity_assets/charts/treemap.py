"""A map of what uses the space: nested rectangles whose areas are sizes, coloured by growth.

Placed as in the squarified treemap of Bruls, Huizing and van Wijk (2000): in rows along the shorter side, each
extended as long as its rectangles become more like squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from capacity_assets.base.units import human_mb, human_percent
from capacity_assets.charts.drawing import draw

# The shape in which rectangles are placed; the drawing is stretched to the width of the page.
WIDTH, HEIGHT = 1200, 420
HEADING = 22
# Smaller rectangles have a tooltip only.
LEAST_TEXT_WIDTH, LEAST_TEXT_HEIGHT, LINE_HEIGHT = 56, 18, 15
# In pixels: the width of the map on a phone, where only text that fits is shown, and of a character.
PHONE_WIDTH, CHARACTER_WIDTH = 360, 7
# Upper limits of growth in percent, with the CSS class below each.
GROWTH_STEPS = ((-2.0, "shrunk-2"), (-0.1, "shrunk-1"), (0.1, "same"), (2.0, "grown-1"), (5.0, "grown-2"))
MOST_GROWN = "grown-3"


@dataclass(frozen=True)
class Tile:
    """A rectangle: name, size and change in MiB (None: unknown), and the address that it links to."""

    name: str
    size_mb: int
    change_mb: int | None
    address: str = ""
    parts: Sequence[Tile] = ()

    @property
    def colour(self) -> str:
        """The CSS class of its growth."""
        if self.change_mb is None or self.size_mb <= self.change_mb:
            return "unknown"
        percent = 100 * self.change_mb / (self.size_mb - self.change_mb)
        return next((name for above, name in GROWTH_STEPS if percent < above), MOST_GROWN)

    @property
    def growth(self) -> str:
        """The growth in percent, with its sign."""
        return "" if self.change_mb is None else human_percent(self.change_mb, self.size_mb - self.change_mb)


class Line(NamedTuple):
    """A line of text, with a further part that phones do not show; `is_wide`: phones do not show it at all."""

    text: str
    figures: str = ""
    is_wide: bool = False


class Area(NamedTuple):
    """A rectangle in the units of WIDTH and HEIGHT."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class TileOnMap:
    """A tile at its position."""

    tile: Tile
    area: Area
    is_heading: bool = False

    @property
    def left(self) -> float:
        """Left side in percent of the width."""
        return 100 * self.area.x / WIDTH

    @property
    def width(self) -> float:
        """Width in percent."""
        return 100 * self.area.width / WIDTH

    @property
    def lines(self) -> list[Line]:
        """The lines of text that fit."""
        if self.area.width < LEAST_TEXT_WIDTH or self.area.height < LEAST_TEXT_HEIGHT:
            return []
        figures = [human_mb(self.tile.size_mb), self.tile.growth]
        if self.is_heading:
            lines = [Line(self.tile.name, " · ".join(filter(None, figures)))]
        else:
            lines = [Line(text) for text in (self.tile.name, *figures)]
            lines = lines[: 1 + int((self.area.height - LEAST_TEXT_HEIGHT) // LINE_HEIGHT)]
        most = int(self.width / 100 * PHONE_WIDTH / CHARACTER_WIDTH) - 1
        return [line._replace(is_wide=len(line.text) > most) for line in lines]

    @property
    def title(self) -> str:
        """The tooltip."""
        return f"{self.tile.name}: {human_mb(self.tile.size_mb)}" + (
            f", {self.tile.growth}" if self.tile.growth else ""
        )


def treemap(title: str, tiles: Sequence[Tile]) -> Markup:
    """Draw tiles with their parts; empty if no tile has a size."""
    placed = list(_nested(tiles))
    if not placed:
        return Markup()
    description = "; ".join(f"{one.name}: {human_mb(one.size_mb)}" for one in tiles)
    return draw("treemap", title=title, description=description, placed=placed, height=HEIGHT)


def _nested(tiles: Sequence[Tile]) -> Iterator[TileOnMap]:
    for tile, area in squarified(tiles, Area(0, 0, WIDTH, HEIGHT)):
        has_heading = bool(tile.parts) and area.height > 2 * HEADING
        yield TileOnMap(tile, area._replace(height=HEADING) if has_heading else area, is_heading=has_heading)
        if has_heading:
            inside = Area(area.x, area.y + HEADING, area.width, area.height - HEADING)
            for part, part_area in squarified(tile.parts, inside):
                yield TileOnMap(part, part_area)


def squarified(tiles: Sequence[Tile], area: Area) -> Iterator[tuple[Tile, Area]]:
    """Yield the tiles that have a size, largest first, with rectangles that together fill the area.

    Tiles smaller than the rest by many orders of magnitude may find no area and are left out.
    """
    left = sorted((tile for tile in tiles if tile.size_mb > 0), key=lambda tile: -tile.size_mb)
    total_mb = sum(tile.size_mb for tile in left)
    while left and min(area.width, area.height) > 0:
        scale = area.width * area.height / total_mb
        side = min(area.width, area.height)
        count = 1
        while count < len(left) and _worst(left[: count + 1], side, scale) <= _worst(left[:count], side, scale):
            count += 1
        row, left = left[:count], left[count:]
        row_mb = sum(tile.size_mb for tile in row)
        total_mb -= row_mb
        thickness = row_mb * scale / side
        is_column, before = area.width >= area.height, 0.0
        for tile in row:
            length = side * tile.size_mb / row_mb
            if is_column:
                yield tile, Area(area.x, area.y + before, thickness, length)
            else:
                yield tile, Area(area.x + before, area.y, length, thickness)
            before += length
        if is_column:
            area = Area(area.x + thickness, area.y, area.width - thickness, area.height)
        else:
            area = Area(area.x, area.y + thickness, area.width, area.height - thickness)


def _worst(row: Sequence[Tile], side: float, scale: float) -> float:
    """Return the largest ratio of sides in a row along a side."""
    thickness = sum(tile.size_mb for tile in row) * scale / side
    lengths = [tile.size_mb * scale / thickness for tile in (row[0], row[-1])]
    return max(max(thickness / length, length / thickness) for length in lengths)
