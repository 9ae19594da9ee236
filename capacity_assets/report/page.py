"""From the report's numbers to one HTML file: no network, no script, prints on A4."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from capacity_assets.report.charts import STEP_NAMES, coverage_chart, history_chart, stacked_series, waterfall_chart
from capacity_assets.report.data import Kind, Report
from capacity_assets.units import human_change_mb, human_mb

UNMEASURED_NAMED = 20
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
        step_names={kind: name.replace("\n", " ") for kind, name in STEP_NAMES.items()},
        kinds_listed=KINDS_LISTED,
        series=stacked_series(report),
        unmeasured_named=UNMEASURED_NAMED,
        missing_days=[day for day in report.days if not report.measured_servers.get(day)],
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


def write_report(report: Report, path: Path) -> None:
    """Write the page whole or not at all, whatever was there before.

    Raises:
        OSError: the file cannot be written; the one that was there is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_name(f".{path.name}.part")
    begun.write_text(render(report), encoding="utf-8")
    begun.replace(path)
