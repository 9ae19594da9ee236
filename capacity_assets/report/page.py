"""From the numbers of a report or a bill to one HTML file: no network, no script, prints on A4."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader
from markupsafe import Markup

from capacity_assets.base.files import atomic_write
from capacity_assets.base.units import (
    counted,
    first_of,
    human_change_mb,
    human_day,
    human_mb,
    human_pair_mb,
    human_percent,
)
from capacity_assets.charts.templates import STYLES, environment_of
from capacity_assets.ownership import bills
from capacity_assets.ownership.bills import BillByGroup
from capacity_assets.reading.changes import ChangeKind
from capacity_assets.reading.groups import measured_notes
from capacity_assets.report.charts import (
    RARE_STEPS,
    STEP_NAMES,
    band_bar,
    coverage_chart,
    fan_charts,
    fleet_history_chart,
    growth_chart,
    in_words,
    score_sentences,
    stacked_series,
)
from capacity_assets.report.data import Report
from capacity_assets.report.issues import Edition

UNMEASURED_NAMED = 20
DAYS_NAMED = 10
KINDS_LISTED = {
    ChangeKind.GROWN: "Largest growers",
    ChangeKind.SHRUNK: "Largest shrinkers",
    ChangeKind.NEW: "New databases",
    ChangeKind.GONE: "Removed databases",
    ChangeKind.PARTLY: "There on a part of the days",
}


@cache  # Reading the templates takes longer than filling them in.
def _environment() -> Environment:
    own = PackageLoader("capacity_assets.report", "templates")
    environment = environment_of(ChoiceLoader([own, FileSystemLoader(STYLES)]))
    environment.filters.update(mb=human_mb, change=human_change_mb, percent=human_percent, pair=human_pair_mb)
    environment.filters.update(day=human_day, signed=signed, bar=band_bar, in_words=in_words)
    return environment


def render(report: Report, edition: Edition | None = None) -> str:
    """Return the report as one HTML document; without an edition it carries no mark of its issue."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            ChangeKind=ChangeKind,
            rare_steps=RARE_STEPS,
            headline=headline(report),
            restated=edition and edition.sentence,
            meta=Markup(edition.issue.as_meta()) if edition else "",  # noqa: S704 -- numbers and a date, escaped there
            step_names={kind: name.replace("\n", " ") for kind, name in STEP_NAMES.items()},
            query=footer_query(report),
            kinds_listed=KINDS_LISTED,
            series=stacked_series(report),
            notes=notes(report),
            group_notes=measured_notes(report.groups, report.grouped_by or ""),
            history_chart=fleet_history_chart(report),
            waterfall_chart=growth_chart(report) if report.size_before.servers else "",
            coverage_chart=coverage_chart(report),
            fans=fan_charts(report.runways) if report.runways else (),
            scores=score_sentences(report.runways) if report.runways else (),
        )
    )


def render_bill(issued: BillByGroup) -> str:
    """Return a bill as one HTML document."""
    return (
        _environment()
        .get_template("bill.html.j2")
        .render(
            found=issued,
            title=bills.title(issued),
            notes=bills.notes(issued),
            quantity=bills.quantity_note(issued),
        )
    )


def headline(report: Report) -> str:
    """Return the change of the window in one sentence."""
    whose = report.server or "the fleet"
    name = report.period.name_of(report.window)
    if report.is_empty:
        return f"Nothing is known of {whose} in {name}."
    size = human_mb(report.end_mb)
    change = report.known_change_mb
    if change is None:
        return f"In {name} {whose} had {size}. There is nothing to compare with."
    so_far = " so far" if report.is_open else ""
    if not change:
        return f"In {name} {whose} kept its size{so_far}: {size}."
    moved = f"grew by {human_mb(change)}" if change > 0 else f"shrank by {human_mb(-change)}"
    share = human_percent(change, report.size.known_before_mb)
    most = report.databases.largest[ChangeKind.GROWN if change > 0 else ChangeKind.SHRUNK]
    where = "" if report.server or not most else f", most by {most[0].name} on {most[0].server}"
    return f"In {name} {whose} {moved} ({share}){so_far} to {size}{where}."


def signed(number: int) -> str:
    """Render a whole number with its sign; 0 has none."""
    return f"{number:+,}" if number else "0"


def footer_query(report: Report) -> str:
    """Return the statement that gives the size and known change of the page."""
    of = f"period = '{report.period.name}' AND window_start = '{report.window.key}'"
    if report.server is None:
        return f"SELECT sum(size_mb), sum(change_mb) FROM capacity_fleet WHERE {of}"  # noqa: S608 -- shown, not run
    server = report.server.replace("'", "''")
    return f"SELECT size_mb, change_mb FROM capacity_server_growth WHERE {of} AND server = '{server}'"  # noqa: S608


def notes(report: Report) -> list[str]:
    """List the limitations of the page's figures, one sentence each."""
    return [*_notes_on_servers(report), *_notes_on_days(report), *_notes_on_databases(report)]


def _notes_on_servers(report: Report) -> list[str]:
    sentences = []
    active = counted(report.in_service.active, "active server")
    never, without_row = (
        sorted(one.server for one in report.missing if (one.last_day is None) is is_never) for is_never in (True, False)
    )
    if report.is_empty:
        sentences.append("There is no stored row in either window: they were not computed, or nothing was measured.")
    if report.is_open:
        last = report.facts.last_sample or "none"
        sentences.append(f"The window is not over, or its last days were not measured: the last is {last}.")
    if report.server is None and report.in_service.counted_by_others:
        sentences.append(
            f"Left out: {report.in_service.counted_by_others} of {active}, because another one counts their bytes: "
            "replicas, and servers on shared storage."
        )
    if never:
        named = first_of(never, UNMEASURED_NAMED)
        sentences.append(f"{counted(len(never), 'active server')} never measured: {named}.")
    if without_row:
        named = first_of(without_row, UNMEASURED_NAMED)
        sentences.append(f"No row in this window: {len(without_row)} of {active}: {named}.")
    return sentences


def _notes_on_days(report: Report) -> list[str]:
    sentences, days = [], report.days
    if not days:
        sentences.append("Which days were measured is not known: there are no totals of servers of these days.")
    elif days[0].day > report.before.start:
        sentences.append(f"There are no totals of servers before {days[0].day}: days are counted from then on.")
    partly = [f"{one.day} ({one.measured} of {one.expected})" for one in days if 0 < one.measured < one.expected]
    unmeasured = [one.day for one in days if not one.measured]
    of_days = f"of {counted(len(days), 'day')}"
    if partly and report.server is None:
        sentences.append(f"Not every server was measured on {len(partly)} {of_days}: {first_of(partly, DAYS_NAMED)}.")
    if unmeasured:
        sentences.append(f"Not measured at all on {len(unmeasured)} {of_days}: {first_of(unmeasured, DAYS_NAMED)}.")
    return sentences


def _notes_on_databases(report: Report) -> list[str]:
    sentences = []
    if partly := report.databases.sums[ChangeKind.PARTLY].databases:
        sentences.append(
            f"{counted(partly, 'database')}, listed below, existed on only some of the measured days (renamed, "
            "created, dropped or a temporary copy), and counted for those days."
        )
    if report.levels_disagree:
        sentences.append(
            f"The totals of the servers changed by {human_change_mb(report.other_mb)} more than their databases: the "
            "two are measured separately, and do not agree. See the check levels_agree."
        )
    return sentences


def make_report_folder(folder: Path) -> None:
    """Create the folder of reports, accessible to its owner only, because pages name databases. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_report(report: Report, path: Path, edition: Edition) -> None:
    """Write the page atomically, and keep the issue that it restates beside it; raises OSError."""
    page = render(report, edition)
    if edition.kept_as:
        kept = path.with_name(edition.kept_as)
        if not kept.exists():
            with atomic_write(kept) as begun:
                shutil.copyfile(path, begun)
    with atomic_write(path) as begun:
        begun.write_text(page, encoding="utf-8")
