"""The parameters of an address, checked. The address is the whole state."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import FIRST_YEAR, LAST_YEAR, PERIODS, Period
from capacity_assets.reading.subjects import address

ROWS_PER_PAGE, ROWS_PER_FILE = 50, 10_000
"""How many rows of a list a page has, and a CSV file of it."""
MOST_PAGES = 200
LONGEST = 300
MONTH = re.compile(r"\d{4}-\d{2}")
NAMES = ("period", "window", "order", "engine", "label", "page", "by", "name", "server", "month", "issue", "q", "shown",
         "range", "first", "last", "compare", "horizon", "months", "format")  # fmt: skip
"""Every parameter that a page takes."""


def known_values(given: Mapping[str, str]) -> dict[str, str]:
    """Drop unknown parameters, which would be cached separately and copied into every link."""
    return {name: value for name, value in given.items() if name in NAMES}


@dataclass(frozen=True)
class PageQuery:
    """The parameters of a request."""

    path: str
    values: Mapping[str, str]
    label_keys: Sequence[str]
    today: date

    def with_values(self, **changes: object) -> str:
        """Return this page's address with other values; None takes one away."""
        return address(self.path, **{**self.values, "format": None, **changes})

    def without(self, *names: str) -> PageQuery:
        """Return this query without some parameters."""
        return replace(self, values={name: value for name, value in self.values.items() if name not in names})

    def text(self, name: str) -> str | None:
        """Return a parameter, None where it is missing; raises ValidationError for an impossible name."""
        value = self.values.get(name)
        if value is not None and (len(value) > LONGEST or "\0" in value):
            raise ValidationError(f"{name} is too long, or not a possible name.")
        return value

    def needed(self, name: str) -> str:
        """Return a parameter; raises ValidationError where it is missing."""
        value = self.text(name)
        if not value:
            raise ValidationError(f"The address names no {name}.")
        return value

    def number(self, name: str, default: int, most: int) -> int:
        """Return a whole number from 1 to `most`; raises ValidationError where it is none."""
        written = self.text(name)
        if written is None:
            return default
        if not (written.isascii() and written.isdecimal() and 1 <= int(written) <= most):
            raise ValidationError(f"{name} must be a whole number from 1 to {most:,}.")
        return int(written)

    def server(self) -> int:
        """Return the number of the server that the address names; raises ValidationError."""
        self.needed("server")
        return self.number("server", 0, 2**31 - 1)

    def period(self, default: str = "daily") -> Period:
        """Return the period; raises ValidationError where it is unknown."""
        name = self.text("period") or default
        if name not in PERIODS:
            raise ValidationError(f"There is no period {name!r}; known are {', '.join(PERIODS)}.")
        return PERIODS[name]

    def day(self, name: str) -> date | None:
        """Return a day; None where it is missing. Raises ValidationError where it is none."""
        written = self.text(name)
        if not written:
            return None
        try:
            # A month is written without a day too.
            day = date.fromisoformat(f"{written}-01" if MONTH.fullmatch(written) else written)
        except ValueError:
            kind = "month, as 2026-03" if name == "month" else "day, as 2026-03-31"
            raise ValidationError(f"{name} must be a {kind}.") from None
        if not FIRST_YEAR <= day.year <= LAST_YEAR:
            raise ValidationError(f"{name} must lie in the years {FIRST_YEAR} to {LAST_YEAR}.")
        return day

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """Return one of the known words, the first by default; raises ValidationError."""
        value = self.text(name) or known[0]
        if value not in known:
            raise ValidationError(f"{name} must be one of {', '.join(filter(None, known))}.")
        return value

    def label(self) -> tuple[str, str] | None:
        """Return the label that is filtered by; an empty value means without one. Raises ValidationError."""
        written = self.text("label")
        if not written:
            return None
        key, equals, value = written.partition("=")
        if not equals:
            raise ValidationError("label must be written as team=payments.")
        return key, value

    @property
    def rows_shown(self) -> int:
        """Number of rows on a page of a list, or in a file."""
        return ROWS_PER_FILE if self.values.get("format") == "csv" else ROWS_PER_PAGE

    @property
    def page(self) -> int:
        """Which page of a long list."""
        return self.number("page", 1, MOST_PAGES)
