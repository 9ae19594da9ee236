"""Groups as docs/semantics.md has them, computed naively: day by day, database by database, without SQL."""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property

from capacity_assets.base.units import LARGEST_MB
from tests import oracle

ALWAYS = date(1, 1, 1)


@dataclass(frozen=True)
class Held:
    """A label as it was declared, of a server (pattern empty) or of what a pattern matches."""

    server: int
    pattern: str
    key: str
    value: str | None
    valid_from: date


@dataclass(frozen=True)
class Fleet:
    """Samples by (server, database, day) and totals with numbers of databases by (server, day)."""

    engines: dict[int, str]
    sizes: dict[tuple[int, str, date], int]
    totals: dict[tuple[int, date], tuple[int, int]]
    labels: Sequence[Held]
    counted_by: dict[int, int] = field(default_factory=dict)

    @cached_property
    def held(self) -> dict[tuple[int, str], list[Held]]:
        """The labels by server and key."""
        found = defaultdict(list)
        for one in self.labels:
            found[one.server, one.key].append(one)
        return found

    def holds(self, server: int, pattern: str, key: str, day: date) -> str | None:
        held = self.held.get((server, key), ())
        begun = [one for one in held if one.pattern == pattern and one.valid_from <= day]
        return max(begun, key=lambda one: one.valid_from).value if begun else None

    def label_of(self, server: int, database: str, key: str, day: date) -> str | None:
        """The value of a database's own label, None where it has none of its own."""
        patterns = {one.pattern for one in self.held.get((server, key), ()) if one.pattern}
        matching = [
            pattern
            for pattern in patterns
            if fnmatch.fnmatchcase(database, pattern) and self.holds(server, pattern, key, day) is not None
        ]
        if not matching:
            return None
        best = min(matching, key=lambda one: (one != database, -len(one.translate({42: None, 63: None})), one))
        return self.holds(server, best, key, day)

    def keys(self) -> set[str]:
        return {one.key for one in self.labels}

    @cached_property
    def possible_totals(self) -> dict[tuple[int, date], tuple[int, int]]:
        return {place: total for place, total in self.totals.items() if total[0] <= LARGEST_MB}

    @cached_property
    def left_out(self) -> dict[date, set[int]]:
        """The servers that are in no group, by day: with them, a group of the day may be above 8 EiB."""
        sums: dict[date, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for (server, _, day), size in self.sizes.items():
            sums[day][server] += size
        for (server, day), (total, _) in self.possible_totals.items():
            sums[day][server] = max(sums[day][server], total)
        left_out: dict[date, set[int]] = defaultdict(set)
        for day, of_servers in sums.items():
            added = 0
            for server in sorted(of_servers.keys() - self.counted_by.keys(), key=lambda one: (of_servers[one], one)):
                added += of_servers[server]
                if added > LARGEST_MB:
                    left_out[day].add(server)
        return left_out

    def days(self) -> dict[tuple[str, str], dict[date, tuple[int, int, int]]]:
        """By key and value, what it has on each day: size, servers, databases."""
        found: dict[tuple[str, str], dict[date, list[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(list))
        measured: dict[tuple[int, date], dict[str, int]] = {place: {} for place in self.totals}
        for (server, name, day), size in self.sizes.items():
            measured.setdefault((server, day), {})[name] = size
        for (server, day), here in measured.items():
            if server in self.counted_by:
                continue
            if server in self.left_out[day]:
                found["(total)", f"left out {server}"][day].append((server, 0, 0))
                continue
            total, databases = self.possible_totals.get((server, day), (sum(here.values()), len(here)))
            kind = "measured" if (server, day) in self.possible_totals else "derived"
            for group in (("(fleet)", "(fleet)"), ("engine", self.engines[server]), ("(total)", kind)):
                found[group][day].append((server, total, databases))
            for key in self.keys():
                own = self.holds(server, "", key, day) or ""
                left, many = total, databases
                for name, size in here.items():
                    value = self.label_of(server, name, key, day)
                    if value is not None and value != own:
                        found[key, value][day].append((server, size, 1))
                        left, many = left - size, many - 1
                found[key, own][day].append((server, left, many))
        return {
            group: {
                day: (sum(p[1] for p in parts), len({p[0] for p in parts}), sum(p[2] for p in parts))
                for day, parts in days.items()
            }
            for group, days in found.items()
        }


def group_figures(
    days: dict[date, tuple[int, int, int]], period: str, bounds: tuple[date, date]
) -> oracle.Figures | None:
    """Figures of one group in one window, None where it has nothing in it."""
    before = oracle.window(period, bounds[0] - timedelta(days=1))

    now, then = ([one for day, one in days.items() if first <= day <= last] for first, last in (bounds, before))
    if not now:
        return None
    figures: oracle.Figures = {"period_end": bounds[1], "data_count": len(now)}
    names = (("avg_size_mb", "size_mb", "size"), ("server_count",) * 3, ("database_count",) * 3)
    for number, (average, source, stem) in enumerate(names):
        values, former = ([one[number] for one in found] for found in (now, then))
        figures[average] = math.floor(oracle.mean(values))
        figures[f"max_{source}"], figures[f"min_{source}"] = max(values), min(values)
        unit = "_mb" if number == 0 else ""
        changed = oracle.change(values, former)
        figures[f"{stem}_change{unit}"], figures[f"{stem}_change_percent"] = changed
        figures |= oracle._kept(bounds, source, values, counted=False)
    figures |= oracle._further(period, {day: one[0] for day, one in days.items()}, bounds, "size", "last_size_mb")
    figures["growth_rate"] = figures["size_change_percent"]
    figures["trend_direction"] = oracle.trend(period, [one[0] for one in now], [one[0] for one in then])
    return figures


def expected(
    groups: dict[tuple[str, str], dict[date, tuple[int, int, int]]], period: str
) -> dict[tuple[object, ...], oracle.Figures]:
    """Return the rows of a period by key, value, period and first day, from the days of each group."""
    found = {
        (*group, period, bounds[0]): group_figures(days, period, bounds)
        for group, days in groups.items()
        for bounds in oracle.windows(period, days)
    }
    return {key: figures for key, figures in found.items() if figures is not None}
