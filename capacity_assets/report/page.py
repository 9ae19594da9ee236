"""The report: its figures, its page with text and charts in one HTML file, and its issues; and the page of a bill.

Totals are sums of the servers' figures, as in the view `capacity_fleet`, and all steps add up in whole MiB.

The file needs no network and no script, and prints on A4. The values of each chart are also in a table. A page contains
its figures in its head: if the page of a closed window is rendered with other figures, it becomes the next issue, which
says what changed, and the earlier one is kept in the same folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timedelta
from functools import cache
from html import escape, unescape
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader
from markupsafe import Markup
from sqlalchemy import Connection, Engine

from capacity_assets.base.declarations import atomic_write
from capacity_assets.base.errors import NotFoundError, database_errors
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import (
    counted,
    first_of,
    human_change_mb,
    human_day,
    human_mb,
    human_pair_mb,
    human_percent,
    human_probability,
)
from capacity_assets.charts.drawing import (
    MOST_SERIES,
    STYLES,
    ColumnChart,
    Series,
    WaterfallStep,
    columns_chart,
    environment_of,
    span_bar,
    waterfall_chart,
)
from capacity_assets.charts.history import FillRange, History, Point, history_chart
from capacity_assets.database.engine import snapshot
from capacity_assets.ownership import bills
from capacity_assets.ownership.bills import BillByGroup
from capacity_assets.ownership.labels import first_fill_date_of_groups
from capacity_assets.reading.access import WITHOUT_LOOPS, planned_with
from capacity_assets.reading.accuracy import Accuracy
from capacity_assets.reading.changes import (
    NOT_COMPARABLE,
    ChangeKind,
    DatabaseChanges,
    ServerChanges,
    database_changes,
    server_changes,
    with_objects,
)
from capacity_assets.reading.coverage import (
    MeasuredDay,
    ServersInService,
    UnmeasuredServer,
    late_samples,
    measured_days,
    servers_in_service,
    servers_missing_in,
)
from capacity_assets.reading.forecasts import (
    HISTORY_SHOWN_DAYS,
    ForecastDay,
    ForecastIssue,
    StoredRunway,
    newest_issue,
    with_histories,
)
from capacity_assets.reading.groups import Group, group_names, groups_of, left_out_note, measured_notes
from capacity_assets.reading.sizes import FleetSize, SeriesSize, database_shares, engine_sizes, fleet_sizes
from capacity_assets.reading.subjects import server_id_of
from capacity_assets.reading.windows import WindowFacts, window_facts

WINDOWS_OF_REPORT = 13
LONGEST_IN_A_FILE_NAME = 50
DATABASES_LISTED = 10
"""Listed databases of each kind; the report of a single server lists all."""
SERVERS_LISTED = 20
RISKS_LISTED = 10
MOVED = (ChangeKind.GROWN, ChangeKind.SHRUNK)
OTHER = "other"
"""Change of the servers' totals beyond that of their databases: rounding, and days on which they differ."""
ROUNDING_MB = 2
"""Largest rounding loss per database and window: samples and their mean are rounded down."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One window of the fleet, or only of `server`, compared with the window `before`."""

    period: Period
    window: Window
    before: Window
    server: str | None
    server_id: int | None
    facts: WindowFacts
    size: FleetSize
    size_before: FleetSize
    databases: DatabaseChanges
    servers: ServerChanges
    history: Sequence[SeriesSize]
    days: Sequence[MeasuredDay]
    """Days of the two windows, from the oldest to the newest stored total of a server."""
    in_service: ServersInService
    missing: Sequence[UnmeasuredServer]
    """Active servers without a row in the window; `last_day` None: never measured."""
    today: date | None = None
    runways: ForecastIssue | None = None
    grouped_by: str | None = None
    groups: Sequence[Group] = ()
    """Groups of the window; empty for a single server, or if no database has the label."""
    left_out: str | None = None
    """A sentence on servers that are left out of the groups."""
    engines: Sequence[str] = ()
    """All engines, for the colours of the chart; empty for a single server."""

    @property
    def start_mb(self) -> int:
        """Size in the previous window."""
        return self.size_before.size_mb

    @property
    def end_mb(self) -> int:
        """Size in this window."""
        return self.size.size_mb

    @property
    def known_change_mb(self) -> int | None:
        """Change of the servers measured in both windows; None if there are none."""
        return self.size.change_mb

    @property
    def steps(self) -> tuple[tuple[str, int], ...]:
        """The steps of the waterfall, in order; their sum is exactly the end minus the start."""
        compared = (ChangeKind.GROWN, ChangeKind.SHRUNK, ChangeKind.PARTLY, ChangeKind.NEW, ChangeKind.GONE)
        steps = [
            *((kind.value, self.databases.sums[kind].change_mb) for kind in compared),
            (ChangeKind.APPEARED.value, self.servers.appeared_mb),
            (ChangeKind.MISSING.value, -self.servers.missing_mb),
        ]
        return (*steps, (OTHER, self.end_mb - self.start_mb - sum(change for _, change in steps)))

    @property
    def other_mb(self) -> int:
        """The last step."""
        return self.steps[-1][1]

    @property
    def levels_disagree(self) -> bool:
        """Whether the last step is more than rounding."""
        databases = sum(change.databases for change in self.databases.sums.values())
        return abs(self.other_mb) > databases * 2 * ROUNDING_MB

    @property
    def not_comparable_databases(self) -> int:
        """Number of databases of servers that were measured in only one of the two windows."""
        return sum(self.databases.sums[kind].databases for kind in NOT_COMPARABLE)

    @property
    def is_open(self) -> bool:
        """Whether the window is not over or its last days were not measured."""
        over, last_sample = self.today is None or self.window.end < self.today, self.facts.last_sample
        return not over or last_sample is None or last_sample < self.window.end

    @property
    def is_empty(self) -> bool:
        """Whether neither window has a row."""
        return not (self.size.servers or self.size_before.servers)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows of the history, oldest first, from the first one with rows on."""
        oldest = min((bar.window_start for bar in self.history), default=self.window.start)
        shown = self.period.back(self.window, WINDOWS_OF_REPORT)
        return tuple(window for window in shown if window.start >= oldest)


def file_name(period: Period, window: Window, server: str | None = None) -> str:
    """Return the file name of a report, from its period, window and server.

    Characters of a server's name that file names cannot have are replaced, and a hash keeps the name unique.
    """
    name = f"growth-{period.name}-{window.key}"
    if server is not None:
        plain = re.sub(r"[^\w.-]+", "_", server)[:LONGEST_IN_A_FILE_NAME]
        name += f"-{plain}" if plain == server else f"-{plain}-{hashlib.sha256(server.encode()).hexdigest()[:8]}"
    return f"{name}.html"


def read_report(  # noqa: PLR0913 -- one argument per choice of a report
    engine: Engine,
    period: Period,
    window: Window,
    server: str | None = None,
    *,
    today: date | None = None,
    by: str | None = None,
) -> Report:
    """Read the report of one window, of all servers with groups by `by`, or of a single server.

    A window is open on its last day too, because servers that failed are measured later. Without `today`, it is over.
    Raises NotFoundError if the server is not registered, and DatabaseError.
    """
    with database_errors(doing="reading the report's figures"), snapshot(engine) as connection:
        # Right after a load, table statistics do not cover the new windows, and the planner would choose nested loops.
        with planned_with(connection, WITHOUT_LOOPS):
            report = replace(_read(connection, period, window, server), today=today)
        # Nested loops are faster for looking up a few subjects, objects and labels among many rows.
        report = replace(report, databases=_with_objects(connection, window, report.databases))
        issued = newest_issue(
            connection, window.start, window.end, server, shown=0, dated=RISKS_LISTED, today=today or window.end
        )
        report = replace(report, runways=with_histories(connection, issued) if issued else None)
        if by is None or server is not None:
            return report
        groups = groups_of(connection, period, window, by, first_fill_date_of_groups(connection, by))
        has_labels = any(group.name is not None for group in groups)
        left_out = left_out_note(connection, period, window)
        return replace(report, grouped_by=by, groups=groups, left_out=left_out) if has_labels else report


def _with_objects(connection: Connection, window: Window, changes: DatabaseChanges) -> DatabaseChanges:
    moved = [change for kind in MOVED for change in changes.largest[kind]]
    named = iter(with_objects(connection, window, moved))
    largest = {kind: [next(named) for _ in changes.largest[kind]] for kind in MOVED}
    return replace(changes, largest={**changes.largest, **largest})


def _read(connection: Connection, period: Period, window: Window, server: str | None) -> Report:
    server_id = None if server is None else server_id_of(connection, server)
    if server is not None and server_id is None:
        raise NotFoundError(
            f"There is no server {server!r}. Names are case-sensitive; `capacity instances list` shows all."
        )
    before, shown = period.previous(window), period.back(window, WINDOWS_OF_REPORT)
    sizes = fleet_sizes(connection, period, [before, window], server_id)
    facts = window_facts(connection, period, window, server_id)
    days = measured_days(connection, before.start, window.end, server_id)
    first, last = facts.first_sample or date.max, facts.last_sample or date.min
    return Report(
        period=period,
        window=window,
        before=before,
        server=server,
        server_id=server_id,
        facts=facts,
        size=sizes.get(window.start, FleetSize(window.start, window.end)),
        size_before=sizes.get(before.start, FleetSize(before.start, before.end)),
        databases=database_changes(connection, period, window, server_id, largest=DATABASES_LISTED),
        servers=server_changes(connection, period, window, server_id, largest=SERVERS_LISTED),
        history=engine_sizes(connection, period, shown)
        if server_id is None
        else database_shares(connection, period, shown, server_id),
        days=[day for day in days if first <= day.day <= last],
        in_service=servers_in_service(connection, server_id),
        missing=servers_missing_in(connection, period, window, server_id, with_never_measured=True),
        engines=group_names(connection, "engine") if server_id is None else (),
    )


META = "capacity-report"
HEAD_CHARACTERS = 8192
FIGURES = re.compile(rf'<meta name="{META}" content="([^"]*)">')
UNMEASURED_NAMED, DAYS_NAMED, SERVERS_NAMED = 20, 10, 5
KINDS_LISTED = {
    ChangeKind.GROWN: "Largest growers",
    ChangeKind.SHRUNK: "Largest shrinkers",
    ChangeKind.NEW: "New databases",
    ChangeKind.GONE: "Removed databases",
    ChangeKind.PARTLY: "Present on only some days",
}
STEP_NAMES = {
    ChangeKind.GROWN.value: "Grown",
    ChangeKind.SHRUNK.value: "Shrunk",
    ChangeKind.PARTLY.value: "Present on\nonly some days",
    ChangeKind.NEW.value: "New",
    ChangeKind.GONE.value: "Gone",
    ChangeKind.APPEARED.value: "Not measured\nbefore",
    ChangeKind.MISSING.value: "Not measured\nnow",
    OTHER: "Other",
}
# Shown only if they are not 0.
RARE_STEPS = {ChangeKind.PARTLY.value, *(kind.value for kind in NOT_COMPARABLE), OTHER}
COVERAGE_HEIGHT, FORECAST_HEIGHT = 140, 110
DRAWN_DAYS = 90
YEAR_DAYS = HORIZONS_DAYS[-1]
LIKELIHOODS = ((0.9, "nearly certain"), (0.5, "likely"), (0.1, "possible"), (0.0, "unlikely"))


@dataclass(frozen=True)
class ReportIssue:
    """The metadata of a page: its number, when it was first issued, its figures in MiB, and its subject.

    Pages of earlier versions do not contain their subject.
    """

    number: int
    issued_at: datetime
    is_open: bool
    start_mb: int
    end_mb: int
    known_change_mb: int | None
    subject: str = ""

    def is_of(self, other: ReportIssue) -> bool:
        """Whether both cover the same window of the fleet or of the same server."""
        return not (self.subject and other.subject) or self.subject == other.subject

    def as_meta(self) -> str:
        """Return it as an element for the head of a page."""
        content = escape(json.dumps({**asdict(self), "issued_at": self.issued_at.isoformat()}))
        return f'<meta name="{META}" content="{content}">'

    @property
    def known_change(self) -> str:
        """The known change as text."""
        return "unknown" if self.known_change_mb is None else f"{signed(self.known_change_mb)} MiB"


@dataclass(frozen=True)
class Edition:
    """An issue, and the one that it replaces, if any: its file, and the reason of the difference."""

    issue: ReportIssue
    before: ReportIssue | None = None
    kept_as: str = ""
    reason: str = ""

    @property
    def sentence(self) -> str | None:
        """The earlier figures, the new ones, and the reason; None if it replaces no other issue."""
        before = self.before
        if before is None:
            return None
        was, now = human_pair_mb(before.end_mb, self.issue.end_mb)
        return (
            f"Issue {self.issue.number}. Issue {before.number}, of {before.issued_at:%Y-%m-%d %H:%M} UTC, had {was} "
            f"(known change: {before.known_change}); it is {now} (known change: {self.issue.known_change}). "
            f"{self.reason} The earlier page is kept as {self.kept_as}."
        )


def issue_of(path: Path) -> ReportIssue | None:
    """Return the metadata of the page at `path`; None if there is none, or another program wrote it."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            figures = FIGURES.search(file.read(HEAD_CHARACTERS))
        content: dict[str, object] = json.loads(unescape(figures[1])) if figures else {}
        known = {name: content[name] for name in ReportIssue.__dataclass_fields__ if name in content}
        return ReportIssue(**{**known, "issued_at": datetime.fromisoformat(str(known["issued_at"]))})  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def next_edition(engine: Engine, report: Report, path: Path) -> Edition:
    """Return the issue that the page of `report` at `path` becomes; raises DatabaseError."""
    subject = " ".join(filter(None, (report.period.name, f"{report.window.start}", report.server)))
    figures = (report.start_mb, report.end_mb, report.known_change_mb)
    issue = ReportIssue(1, report.facts.read_at, report.is_open, *figures, subject)
    before = issue_of(path)
    if before is None or before.is_open or not before.is_of(issue):
        return Edition(issue)
    if (before.start_mb, before.end_mb, before.known_change_mb) == figures:
        # Still the same issue, which repeats the note on the one that it replaced.
        earlier = path_of_issue(path, replace(before, number=before.number - 1))
        issue, before = replace(before, subject=subject), issue_of(earlier)
        if before is None:
            return Edition(issue)
    else:
        issue, earlier = replace(issue, number=before.number + 1), path_of_issue(path, before)
    return Edition(issue, before, earlier.name, _reason(engine, report, before.issued_at))


def path_of_issue(path: Path, issue: ReportIssue) -> Path:
    """Return the file name of an earlier issue, which differs from that of every window."""
    earlier_page = path.with_name(f"{path.stem}-issue-{issue.number}{path.suffix}")
    existing = issue_of(earlier_page)
    if existing is None or existing.is_of(issue):
        return earlier_page
    digest = hashlib.sha256(issue.subject.encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}-{digest}-issue-{issue.number}{path.suffix}")


def _reason(engine: Engine, report: Report, since: datetime) -> str:
    """Return a sentence on samples of the two windows that were added or corrected since a time."""
    with database_errors(doing="counting late samples"), engine.connect() as connection:
        late = late_samples(connection, report.before.start, report.window.end, since, report.server_id)
    if not late:
        return (
            "No sample of these two windows was added or corrected since: samples were deleted, rows were rebuilt, or "
            "servers were put into or out of service."
        )
    servers = first_of([samples.server for samples in late], SERVERS_NAMED)
    added, corrected = sum(samples.added for samples in late), sum(samples.corrected for samples in late)
    return (
        f"Since then: {counted(added, 'sample')} of these two windows added and {corrected:,} corrected, of {servers}."
    )


def make_report_folder(folder: Path) -> None:
    """Create the folder of reports, for its owner only, because pages name databases; raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_report(report: Report, path: Path, edition: Edition) -> None:
    """Write the page atomically, and keep the issue that it replaces in the same folder; raises OSError."""
    page = render(report, edition)
    if edition.kept_as:
        earlier_page = path.with_name(edition.kept_as)
        if not earlier_page.exists():
            with atomic_write(earlier_page) as begun:
                shutil.copyfile(path, begun)
    with atomic_write(path) as begun:
        begun.write_text(page, encoding="utf-8")


@cache  # Compiling templates takes longer than rendering them.
def _environment() -> Environment:
    own = PackageLoader("capacity_assets.report", "templates")
    environment = environment_of(ChoiceLoader([own, FileSystemLoader(STYLES)]))
    environment.filters.update(mb=human_mb, change=human_change_mb, percent=human_percent, pair=human_pair_mb)
    environment.filters.update(
        day=human_day, signed=signed, bar=band_bar, likelihood=likelihood, probability=human_probability
    )
    return environment


def _rendered(template: str, **values: object) -> str:
    return _environment().get_template(template).render(values)


def render(report: Report, edition: Edition | None = None) -> str:
    """Return the report as an HTML document; without an edition it has no metadata of an issue."""
    return _rendered(
        "report.html.j2",
        report=report,
        ChangeKind=ChangeKind,
        rare_steps=RARE_STEPS,
        headline=headline(report),
        restated=edition and edition.sentence,
        meta=Markup(edition.issue.as_meta()) if edition else "",  # noqa: S704 -- it escapes its values
        step_names={kind: name.replace("\n", " ") for kind, name in STEP_NAMES.items()},
        query=footer_query(report),
        kinds_listed=KINDS_LISTED,
        series=stacked_series(report),
        notes=notes(report),
        group_notes=[
            *measured_notes(report.groups, report.grouped_by or ""),
            *([report.left_out] if report.left_out else []),
        ],
        history_chart=fleet_history_chart(report),
        waterfall_chart=growth_chart(report) if report.size_before.servers else "",
        coverage_chart=coverage_chart(report),
        forecast_charts=forecast_charts(report.runways) if report.runways else (),
        scores=score_sentences(report.runways) if report.runways else (),
    )


def render_bill(issued: BillByGroup) -> str:
    """Return a bill as an HTML document."""
    return _rendered(
        "bill.html.j2",
        bill_by_group=issued,
        title=bills.bill_title(issued),
        notes=bills.bill_notes(issued),
        quantity=bills.quantity_note(issued),
    )


def headline(report: Report) -> str:
    """Return the change of the window as a sentence."""
    whose = report.server or "the fleet"
    name = report.period.name_of(report.window)
    if report.is_empty:
        return f"Nothing is known of {whose} in {name}."
    size, change = human_mb(report.end_mb), report.known_change_mb
    if change is None:
        return f"In {name} {whose} had {size}. There is no earlier size to compare with."
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
    """Return the SQL query that gives the size and the known change of the page."""
    of = f"period = '{report.period.name}' AND window_start = '{report.window.key}'"
    if report.server is None:
        return f"SELECT sum(size_mb), sum(change_mb) FROM capacity_fleet WHERE {of}"  # noqa: S608 -- shown, not run
    server = report.server.replace("'", "''")
    return f"SELECT size_mb, change_mb FROM capacity_server_growth WHERE {of} AND server = '{server}'"  # noqa: S608


def notes(report: Report) -> list[str]:
    """Return the limitations of the page's figures, one sentence each."""
    return [*_notes_on_servers(report), *_notes_on_days(report), *_notes_on_databases(report)]


def _notes_on_servers(report: Report) -> Iterator[str]:
    active = counted(report.in_service.active, "active server")
    never, without_row = (
        sorted(server.server for server in report.missing if (server.last_day is None) is is_never)
        for is_never in (True, False)
    )
    if report.is_empty:
        yield "Neither window has a stored row: they were not computed, or nothing was measured."
    if report.is_open:
        last = report.facts.last_sample or "none"
        yield f"The window is not over, or its last days were not measured. Last measured day: {last}."
    if report.server is None and report.in_service.counted_by_others:
        yield (
            f"Left out: {report.in_service.counted_by_others} of {active}, because another one counts their bytes: "
            "replicas, and servers on shared storage."
        )
    if never:
        yield f"Never measured: {counted(len(never), 'active server')} ({first_of(never, UNMEASURED_NAMED)})."
    if without_row:
        yield f"No row in this window: {len(without_row)} of {active}: {first_of(without_row, UNMEASURED_NAMED)}."


def _notes_on_days(report: Report) -> Iterator[str]:
    days = report.days
    if not days:
        yield "Which days were measured is unknown, because there are no totals of servers for these days."
    elif days[0].day > report.before.start:
        yield f"There are no totals of servers before {days[0].day}, so days are counted from then on."
    partly = [f"{day.day} ({day.measured} of {day.expected})" for day in days if 0 < day.measured < day.expected]
    unmeasured = [day.day for day in days if not day.measured]
    of_days = f"of {counted(len(days), 'day')}"
    if partly and report.server is None:
        yield f"Not every server was measured on {len(partly)} {of_days}: {first_of(partly, DAYS_NAMED)}."
    if unmeasured:
        yield f"Not measured at all on {len(unmeasured)} {of_days}: {first_of(unmeasured, DAYS_NAMED)}."


def _notes_on_databases(report: Report) -> Iterator[str]:
    if partly := report.databases.sums[ChangeKind.PARTLY].databases:
        yield (
            f"{counted(partly, 'database')}, listed below, existed on only some of the measured days (renamed, "
            "created, dropped or a temporary copy), and counted for those days."
        )
    if report.levels_disagree:
        yield (
            "The totals of the servers and the sums of their databases changed by different amounts (difference: "
            f"{human_change_mb(report.other_mb)}), because the two are measured separately. See the check levels_agree."
        )


def stacked_series(report: Report) -> list[Series]:
    """Return the history as series, largest first; those beyond the number of colours are summed up."""
    sizes = {(bar.window_start, bar.series): bar.size_mb for bar in report.history}
    measured = {start for start, _ in sizes}
    totals: dict[str, int] = {}
    for (_, name), size_mb in sizes.items():
        totals[name] = totals.get(name, 0) + size_mb
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    shown = len(ranked) if len(ranked) <= MOST_SERIES else MOST_SERIES - 1
    others = {f"{len(ranked) - shown} others": ranked[shown:]} if len(ranked) > shown else {}
    return [
        Series(
            name,
            tuple(
                sum(sizes.get((window.start, member), 0) for member in members) if window.start in measured else None
                for window in report.windows
            ),
        )
        for name, members in ({name: [name] for name in ranked[:shown]} | others).items()
    ]


def fleet_history_chart(report: Report) -> Markup:
    """Draw the size of the fleet by engine, or of the server by database, by window; gaps stay gaps."""
    title = f"Size by {'database' if report.server else 'engine'} and window"
    names = [report.period.label_of(window) for window in report.windows]
    return columns_chart(ColumnChart(title, names, stacked_series(report), every_name=report.engines))


def growth_chart(report: Report) -> Markup:
    """Draw the steps from the size of the previous window to that of this one."""
    steps = [
        WaterfallStep(STEP_NAMES[kind], change, _step_colour(kind, change))
        for kind, change in report.steps
        if change or kind not in RARE_STEPS
    ]
    return waterfall_chart("From the size of the previous window to that of this window", report.start_mb, steps)


def _step_colour(kind: str, change: int) -> str:
    if kind in NOT_COMPARABLE or kind == OTHER:
        return "unknown"
    return "up" if change > 0 else "down"


def coverage_chart(report: Report) -> Markup:
    """Draw the number of servers measured on each day of the two windows; unmeasured days have no bar."""
    days, start = report.days, report.window.start
    return columns_chart(
        ColumnChart(
            "Servers measured on each day",
            [PERIODS["daily"].label_of(Window(day.day, day.day)) for day in days],
            [
                Series("previous window", [day.measured if day.day < start else None for day in days], "before"),
                Series("this window", [day.measured if day.day >= start else None for day in days], "now"),
            ],
            "server",
            [day.expected for day in days],
            "servers that should have been measured",
            height=COVERAGE_HEIGHT,
        )
    )


def forecast_charts(issue: ForecastIssue) -> list[tuple[str, Markup]]:
    """Return a name and a chart for each risk, in the order of the table."""
    return [
        (
            f"{risk.display_name} on {risk.server}",
            history_chart(_history(risk, issue.histories.get(risk.key, {}))),
        )
        for risk in issue.fills_first
    ]


def _history(risk: StoredRunway, sizes: Mapping[date, int]) -> History:
    first, drawn_until = min(sizes, default=risk.last_day), risk.last_day + timedelta(days=DRAWN_DAYS)
    days = [first + timedelta(days=number) for number in range((risk.last_day - first).days + 1)]
    ahead = [ForecastDay(risk.last_day, risk.size_mb, risk.size_mb, risk.size_mb)]
    ahead += [forecast for forecast in risk.ahead if forecast.day <= drawn_until]
    return History(
        f"{risk.display_name} on {risk.server}: sizes of {HISTORY_SHOWN_DAYS} days, forecast, limit",
        [Point(day, sizes.get(day)) for day in days],
        ahead,
        full=FillRange(risk.full_early, risk.full_middle, risk.full_late),
        limit_mb=risk.limit_mb,
        height=FORECAST_HEIGHT,
    )


def band_bar(risk: StoredRunway) -> Markup:
    """Draw the fill dates of a risk on the year of its forecast; a date beyond it is at the edge."""
    early, late = (_fraction_of_year(day, risk.last_day) for day in (risk.full_early, risk.full_late))
    middle = None if risk.full_middle is None else _fraction_of_year(risk.full_middle, risk.last_day)
    return span_bar(early, late, middle)


def _fraction_of_year(day: date | None, start: date) -> float:
    return 1 if day is None else min((day - start).days / YEAR_DAYS, 1)


def likelihood(probability: float) -> str:
    """Render a probability in words."""
    return next(word for least, word in LIKELIHOODS if probability >= least)


def score_sentences(issue: ForecastIssue) -> list[str]:
    """Describe the errors of the forecasts that came due, a sentence for each horizon."""
    return [
        _score_sentence(score) + (f" Computed in hindsight: {score.in_hindsight:,}." if score.in_hindsight else "")
        for score in issue.scores
    ]


def _score_sentence(score: Accuracy) -> str:
    forecasts = f"{counted(score.forecasts, 'forecast')} over {score.horizon_days} days"
    if not score.is_judged:
        return f"{forecasts} came due, too few to judge."
    return (
        f"Of {forecasts} that came due, "
        f"{score.covered_percent:.0f} % of the sizes were in the band and {score.above_percent:.0f} % above it"
        + ("." if score.error_percent is None else f"; the mean error was {score.error_percent:.1f} %.")
    )
