"""How long rows are kept: the rules of CAPACITY_RETENTION_DAYS, per table and per period.

What is carried out, and when old samples are still needed, is the business of `maintenance`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from capacity_assets.aggregation.levels import LEVELS, Level, aggregates_name
from capacity_assets.periods import PERIODS
from capacity_assets.settings import DEFAULT_RETENTION_DAYS, ConfigurationError

VARIABLE = "CAPACITY_RETENTION_DAYS"
RAW = "raw"
FOREVER = "forever"
LONGEST_DAYS = 100_000


@dataclass(frozen=True)
class Retention:
    """Days by name; None for ever. A name that is missing is kept for ever too."""

    days: Mapping[str, int | None]

    def of_samples(self, level: Level) -> int | None:
        """How many days the raw rows of a level are kept, or None."""
        return self._first(level.source.name, RAW)

    def of_aggregates(self, period: str, level: Level) -> int | None:
        """How many days after their window's first day the rows of a period and level are kept, or None."""
        return self._first(aggregates_name(period, level), period)

    def _first(self, *names: str) -> int | None:
        return next((self.days[name] for name in names if name in self.days), None)


def parse_retention(value: str, periods: Iterable[str] = PERIODS) -> Retention:
    """Read `name=days,name=forever`, on top of the defaults.

    Raises:
        ConfigurationError: a name that nothing bears, or a number of days that is none.
    """
    return Retention(dict(_rules(DEFAULT_RETENTION_DAYS)) | dict(_checked(value, set(_names(periods)))))


def _names(periods: Iterable[str]) -> Iterator[str]:
    yield RAW
    yield from (level.source.name for level in LEVELS.values())
    for period in periods:
        yield period
        yield from (aggregates_name(period, level) for level in LEVELS.values())


def _checked(value: str, names: set[str]) -> Iterator[tuple[str, int | None]]:
    for name, days in _rules(value):
        if name not in names:
            known = ", ".join(sorted(names))
            raise ConfigurationError(f"{VARIABLE}: {name!r} is none of {known}")
        yield name, days


def _rules(value: str) -> Iterator[tuple[str, int | None]]:
    for rule in filter(None, (part.strip() for part in value.split(","))):
        name, _, days = (part.strip() for part in rule.partition("="))
        if days == FOREVER:
            yield name, None
        elif days.isascii() and days.isdigit() and 1 <= int(days) <= LONGEST_DAYS:
            yield name, int(days)
        else:
            raise ConfigurationError(
                f"{VARIABLE}: {rule!r} is no rule; write for example raw=400,daily=1096,weekly=forever"
            )
