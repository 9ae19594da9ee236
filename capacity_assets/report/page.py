"""From the report's numbers to one HTML file: no network, no script, prints on A4."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from capacity_assets.files import whole_file
from capacity_assets.report.charts import STEP_NAMES, coverage_chart, history_chart, stacked_series, waterfall_chart
from capacity_assets.report.data import NOT_COMPARABLE, Kind, Report
from capacity_assets.units import first_of, human_change_mb, human_mb

UNMEASURED_NAMED = 20
DAYS_NAMED = 10
KINDS_LISTED = {
    Kind.GROWN: "Largest growers",
    Kind.SHRUNK: "Largest shrinkers",
    Kind.NEW: "New databases",
    Kind.GONE: "Vanished databases",
}


def render(report: Report) -> str:
    """Return the report as one HTML document."""
    # Every value is escaped, so that no name is read as markup; the charts are our own.
    environment = Environment(
        loader=PackageLoader("capacity_assets.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        mb=human_mb, change=human_change_mb, percent=percent, number="{:,}".format, signed=signed
    )
    page = environment.get_template("report.html.j2")
    return page.render(
        report=report,
        Kind=Kind,
        not_comparable=NOT_COMPARABLE,
        step_names={kind: name.replace("\n", " ") for kind, name in STEP_NAMES.items()},
        kinds_listed=KINDS_LISTED,
        series=stacked_series(report),
        notes=notes(report),
        history_chart=Markup(history_chart(report)),  # noqa: S704 -- drawn by us, texts escaped by the SVG writer
        waterfall_chart=Markup(waterfall_chart(report)),  # noqa: S704 -- as above
        coverage_chart=Markup(coverage_chart(report)),  # noqa: S704 -- as above
    )


def signed(number: int) -> str:
    """Render a whole number with its sign; 0 has none."""
    return f"{number:+,}" if number else "0"


def percent(change_mb: int, of_mb: int) -> str:
    """Render a share to one decimal, half away from zero; from 0 there is none."""
    if not of_mb:
        return "unknown"
    share = (Decimal(change_mb) * 100 / Decimal(of_mb)).quantize(Decimal("0.1"), ROUND_HALF_UP)
    return f"{share:+,} %" if share else "0.0 %"


def notes(report: Report) -> list[str]:
    """Say what keeps the page from being the whole truth, a sentence each."""
    found = []
    if report.is_empty:
        found.append("There is no stored row in either window: they were not computed, or nothing was measured.")
    if report.is_open:
        found.append(f"The window is not over, or its last days were not measured: the last is {report.last_sample}.")
    if report.counted_by_others:
        found.append(
            f"{report.counted_by_others} of {report.active_servers} active servers are left out, because another one "
            "counts their bytes: replicas, and servers on shared storage."
        )
    if report.unmeasured_servers:
        missing = (
            f"{len(report.unmeasured_servers)} of {report.active_servers} active servers have no row in this window"
        )
        found.append(f"{missing}: {first_of(report.unmeasured_servers, UNMEASURED_NAMED)}.")
    if not report.days:
        found.append("Which days were measured is not known: there are no totals of servers of these days.")
    elif report.days[0] > report.before.start:
        found.append(f"There are no totals of servers before {report.days[0]}: days are counted from then on.")
    if report.partly_measured_days and report.server is None:
        some = [f"{day} ({count} of {report.active_servers})" for day, count in report.partly_measured_days]
        days = f"{len(some)} of {len(report.days)} days"
        found.append(f"Not every active server was measured on {days}: {first_of(some, DAYS_NAMED)}.")
    if report.unmeasured_days:
        days = f"{len(report.unmeasured_days)} of {len(report.days)} days"
        found.append(f"Not measured at all on {days}: {first_of(report.unmeasured_days, DAYS_NAMED)}.")
    return found


def write_report(report: Report, path: Path) -> None:
    """Write the page whole or not at all.

    Raises:
        OSError: the file cannot be written; the one that was there is kept.
    """
    page = render(report)
    with whole_file(path) as begun:
        begun.write_text(page, encoding="utf-8")
