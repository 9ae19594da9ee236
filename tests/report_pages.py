"""Growth reports of months: what they are made from, and a page read as a browser would."""

from __future__ import annotations

from datetime import date
from html.parser import HTMLParser

from sqlalchemy import Engine

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.report.page import Report
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals

MONTHLY = PERIODS["monthly"]
FEBRUARY = MONTHLY.window_of(date(2025, 2, 1))


class Page(HTMLParser):
    """Collects what a test asks of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.steps: dict[str, int] = {}
        self.tags: list[str] = []
        self.links: list[str] = []
        self._step: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = dict(attributes)
        self.tags.append(tag)
        self._step = known.get("data-step")
        self.links += [str(known[name]) for name in ("src", "href", "xlink:href") if known.get(name)]

    def handle_data(self, data: str) -> None:
        if self._step is not None:
            self.steps[self._step] = int(data.replace(",", ""))
            self._step = None


def adds_up(report: Report) -> bool:
    """Whether the steps lead from the size at the start to that at the end."""
    return report.start_mb + sum(change for _, change in report.steps) == report.end_mb


def months(service: AggregationService, last_day: str) -> None:
    """Compute what a report of months reads."""
    for name in ("monthly", "daily"):
        compute_windows(service, name, date(2025, 1, 1), date.fromisoformat(last_day))


def server_with(engine: Engine, histories: dict[str, list[int | None]], number: int = 1) -> None:
    """One server whose databases have these sizes from 2025-01-01 on, and the totals that follow."""
    add_instances(engine, [number])
    rows = [row for name, history in histories.items() for row in sizes(number, name, "2025-01-01", history)]
    add_database_sizes(engine, rows)
    days = zip(*histories.values(), strict=True)
    sums = [(sum(size or 0 for size in day), sum(size is not None for size in day)) for day in days]
    measured = [None if not count else (size, count) for size, count in sums]
    add_instance_sizes(engine, totals(number, "2025-01-01", measured))


def fill_with_every_kind(engine: Engine) -> None:
    """January and February with one database of each kind; server 3 was not measured in January, 4 not in February."""
    add_instances(engine, [1, 3, 4])
    add_instances(engine, [2], db_type="mysql")
    add_instances(engine, [5], is_active=False)
    histories = {
        (1, "grows"): (100, 150),
        (1, "shrinks"): (80, 50),
        (1, "stays"): (7, 7),
        (2, "new"): (None, 30),
        (2, "gone"): (20, None),
        (2, "kept"): (1, 1),
        (3, "appeared"): (None, 500),
        (4, "missing"): (60, None),
    }
    for (instance_id, name), (january, february) in histories.items():
        add_database_sizes(engine, sizes(instance_id, name, "2025-01-01", [january] * 31 + [february] * 28))
    for instance_id, january, february in ((1, (187, 3), (207, 3)), (2, (21, 2), (31, 2))):
        measured: list[tuple[int, int] | None] = [january] * 31 + [february] * 28
        measured[40] = None
        add_instance_sizes(engine, totals(instance_id, "2025-01-01", measured))
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", date(2025, 1, 1), date(2025, 2, 28))
