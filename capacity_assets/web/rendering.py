"""A page as HTML, JSON and files, all with the same names; filters and functions of the templates, and their charts."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import Decimal
from functools import cache, cached_property, partial
from itertools import groupby
from types import MappingProxyType
from typing import Any, get_type_hints

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from pydantic import TypeAdapter

from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.settings import Thresholds
from capacity_assets.base.units import (
    BYTES_PER_MB,
    IMPOSSIBLE_SIZES,
    as_plain_text,
    counted,
    first_of,
    human_change_mb,
    human_day,
    human_days,
    human_mb,
    human_percent,
    human_probability,
    printable,
    whole_mb,
)
from capacity_assets.charts.drawing import (
    CENTS,
    ColumnChart,
    Series,
    Tile,
    WaterfallStep,
    columns_chart,
    environment_of,
    fraction_bar,
    treemap,
    waterfall_chart,
)
from capacity_assets.charts.history import FillRange, History, Mark, Point, history_chart, sparkline
from capacity_assets.forecast.decisions import PLANNED, decide_command, is_left_out
from capacity_assets.forecast.results import FORECAST, FULL, display_name
from capacity_assets.history.exporting import write_workbook
from capacity_assets.ownership.bills import MonthlyAmount, group_named, mean_price, money, money_change
from capacity_assets.ownership.labels import WITHOUT_LABEL
from capacity_assets.reading.forecasts import (
    ForecastDay,
    GroupSizeForecast,
    Severity,
    StoredRunway,
    Usage,
    severity_of,
)
from capacity_assets.reading.groups import GroupSpace
from capacity_assets.reading.risks import Headline, range_of
from capacity_assets.reading.sizes import SizeInWindow
from capacity_assets.reading.space import SpaceDay
from capacity_assets.reading.subjects import DeclaredStep, address, subject_address, table_address
from capacity_assets.reading.table_growth import TableSize
from capacity_assets.web.changes import ChangesPage
from capacity_assets.web.forecasts import DecisionRow, quarter_gb
from capacity_assets.web.reader import FILE_FORMATS, MOST_COLUMNS, RANGES, PageQuery, Reader, every_few

BYTE_ORDER_MARK = "\ufeff"
UNKNOWN, DASH = "unknown", "\u2013"
NOTES_SHOWN, MIDDLE_DAY, STEP_LENGTH, LABEL_COLUMNS = 3, 15, 14, 2
# Rows by which the widths of the columns of a workbook are chosen.
ROWS_MEASURED = 200
EMPTY: Mapping[date, Decimal] = MappingProxyType({})
# Keeps the fill date away from the edge of a chart.
FULL_DATE_MARGIN = 1.15
# Forecasts may be a day or two newer than windows.
PAST_DAYS, LEAST_DAYS_AHEAD = 3, 31
CHIPS = {Severity.FULL: "Full", Severity.ACT: "Act", Severity.WATCH: "Watch"}
"""Names of the severities."""


@dataclass(frozen=True)
class FileList:
    """A list of a page as a file: the path of its rows in the content, as `result.budget`, and repeated values."""

    path: str
    beside: Sequence[str] = ()


@dataclass(frozen=True)
class PageRoute:
    """A page: its path, the function that reads its content, and its list that files have."""

    path: str
    title: str
    read: Callable[[Reader, PageQuery], Any]
    table: str
    description: str
    """The description of the page's response, for the API."""
    parameters: Sequence[str]
    """The names in PARAMETERS that it reads."""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    """The possible values of a parameter on this page, the default first."""
    needed: Sequence[str] = ()
    """Required parameters."""
    groupings: Sequence[str] = WITHOUT_LABEL
    """The values of the parameter `by` besides the keys of labels."""
    rules: Mapping[str, object] = field(default_factory=dict, hash=False)
    """JSON Schema for the parameters as one object: which parameters require each other."""
    above: Sequence[str] = ()
    """Paths of the pages above it, for its breadcrumbs."""
    in_menu: bool = False
    in_search: bool = False
    """Whether the search finds the page by its title, as it finds the pages of the menu."""
    also: str = ""
    """A further word by which the search finds it."""
    beside: Sequence[str] = ()
    """Values of the page that are repeated in each row of a file; `server.server_id` is the column server_id."""
    other_lists: Mapping[str, FileList] = field(default_factory=dict, hash=False)
    """Further lists that are files by `list=` and this name."""
    has_figures: bool = False
    """Whether it shows windows of databases and servers, and so the notice about samples not included yet."""
    is_cached: bool = True
    """Whether its content is cached for further requests with the same parameters."""

    @property
    def name(self) -> str:
        """Name of its template and files."""
        return self.path.strip("/") or "fleet"

    @cached_property
    def form(self) -> TypeAdapter[Any]:
        """The form of its content, from the type that `read` returns."""
        return TypeAdapter(get_type_hints(self.read)["return"])

    def json(self, content: Any) -> bytes:
        """Return the content as JSON."""
        return self.form.dump_json(content, indent=1)

    def csv(self, content: Any, name: str = "") -> str:
        """Return the list as CSV, or another one by name.

        It begins with a byte order mark, without which spreadsheets assume another encoding than UTF-8.
        """
        columns, rows = self._table(content, name)
        file = io.StringIO()
        # None is written as an empty cell.
        csv.writer(file).writerows([columns, *(map(_as_text, row) for row in rows)])
        return f"{BYTE_ORDER_MARK}{file.getvalue()}"

    def workbook(self, content: Any, name: str = "") -> bytes:
        """Return the list, or another one by name, as an Excel workbook, with numbers and days as such."""
        columns, rows = self._table(content, name)
        texts = ((str(row[place] or "") for row in rows[:ROWS_MEASURED]) for place in range(len(columns)))
        widths = [max(map(len, of_column), default=0) + 2 for of_column in texts]
        file = io.BytesIO()
        write_workbook(file, dict(zip(columns, widths, strict=True)), rows, {"constant_memory": True})
        return file.getvalue()

    def _table(self, content: Any, name: str) -> tuple[list[str], list[list[object]]]:
        """Return the columns of a list, named as in JSON, and its rows, with one value per cell."""
        written = self.other_lists.get(name, FileList(self.table, self.beside))
        # Not from JSON, in which amounts are text.
        shown = self.form.dump_python(content)
        beside = {path.rpartition(".")[2]: _value_at(shown, path) for path in written.beside}
        listed = [{**beside, **row} for row in _value_at(shown, written.path) or ()]
        rows = [_cells(row) for row in listed]
        columns = [*beside, *_columns_of(self.form.json_schema(mode="serialization"), written.path, rows)]
        return columns, [[row.get(name) for name in columns] for row in rows]


def _columns_of(schema: Mapping[str, Any], path: str, rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the columns of the list at a path, as the schema has them; the rows know the keys of mappings.

    So an empty list has its columns, and a column does not depend on values. Rows of several kinds have their own.
    """

    def resolved(part: Mapping[str, Any]) -> Mapping[str, Any]:
        options = [option for option in part.get("anyOf", ()) if option.get("type") != "null"]
        if len(options) == 1 or (options and not rows):
            return resolved(options[0])
        name = part.get("$ref", "").rpartition("/")[2]
        return resolved(schema["$defs"][name]) if name else part

    def columns(part: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for name, column in part.get("properties", {}).items():
            value = resolved(column)
            if "properties" in value:
                yield from columns(value, f"{prefix}{name}_")
            elif value.get("type") == "object":
                yield from (key for row in rows for key in row if key.startswith(f"{prefix}{name}_"))
            elif value.get("type") != "array":
                yield f"{prefix}{name}"

    listed = resolved(schema)
    for name in path.split("."):
        listed = resolved(listed["properties"][name])
    row = resolved(listed["items"])
    return list(dict.fromkeys(columns(row, "") if "properties" in row else (name for row in rows for name in row)))


def _value_at(shown: Any, path: str) -> Any:
    """Return the value at a path such as `result.budget`; None if a part of it is None."""
    for name in path.split("."):
        shown = None if shown is None else shown[name]
    return shown


def _cells(row: Mapping[str, object]) -> dict[str, object]:
    """Return the cells of a row by column; a mapping has a column for each value, such as labels_team."""
    cells: dict[str, object] = {}
    for name, value in row.items():
        # Checked first, because most values are of these types.
        if value is None or isinstance(value, str | int | float):
            cells[name] = value
        elif isinstance(value, Mapping):
            cells |= {f"{name}_{key}": cell for key, cell in _cells(value).items()}
        elif not isinstance(value, list | tuple):
            cells[name] = value
    return cells


def _as_text(value: object) -> object:
    """Return a value as a cell of a CSV file: no text is a formula, no amount has an exponent."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    return as_plain_text(value) if isinstance(value, str) else value


def size(size_mb: int | None) -> Markup:
    """Render a size with its unit; the tooltip has the exact value."""
    if size_mb is None:
        return Markup('<span class="unknown">unknown</span>')
    # Not by Markup.format, which takes several times as long: a list has hundreds of sizes, which need no escape.
    return Markup(f'<data value="{size_mb}" title="{size_mb:,} MiB">{human_mb(size_mb)}</data>')  # noqa: S704


def change(change_mb: int | None) -> Markup:
    """Render a change with its sign and unit."""
    if change_mb is None:
        return Markup('<span class="unknown">unknown</span>')
    kind = "grown" if change_mb > 0 else "shrunk" if change_mb < 0 else "same"
    text = human_change_mb(change_mb)
    return Markup(f'<data class="{kind}" value="{change_mb}" title="{change_mb:+,} MiB">{text}</data>')  # noqa: S704 -- as above


def day(value: date | None, otherwise: str = "not within a year") -> Markup | str:
    """Render a day as text, with its ISO form for scripts; the default is for fill dates."""
    if value is None:
        return otherwise
    return Markup(f'<time datetime="{value.isoformat()}">{human_day(value)}</time>')  # noqa: S704 -- as above


def code(text: str) -> Markup:
    """Render text between backquotes as code."""
    parts = (
        Markup("<code>{0}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(text.split("`"))
    )
    return Markup("").join(parts)


def headline(headline: Headline) -> Markup:
    """Render a headline with a chip for its severity, and a link to what fills."""
    chip = (
        Markup('<span class="chip {0}">{1}</span> ').format(headline.severity, CHIPS[headline.severity])
        if headline.severity
        else ""
    )
    if not (headline.linked and headline.subject and headline.linked in headline.text):
        return chip + code(headline.text)
    head, _, tail = headline.text.partition(headline.linked)
    place = subject_address(headline.subject, headline.server_id or 0, headline.name or "")
    return chip + code(head) + Markup('<a href="{0}">{1}</a>').format(place, headline.linked) + code(tail)


def full_by(row: Usage) -> Markup | str:
    """Render the fill date of a row of a list; a dash if it is unknown."""
    if row.severity is Severity.FULL:
        return "full"
    if row.full_by is None and (row.forecast_state != FORECAST or row.limit_mb is None):
        return Markup('<span class="unknown">&ndash;</span>')
    return day(row.full_by)


def window_name(period: str, start: date) -> str:
    """Return the name of the window that begins on a day."""
    return PERIODS[period].name_of(PERIODS[period].window_of(start))


def before(period: str, start: date) -> date:
    """Return the first day of the previous window."""
    return PERIODS[period].previous(PERIODS[period].window_of(start)).start


def after(period: str, start: date) -> date:
    """Return the first day of the window after."""
    return PERIODS[period].following(PERIODS[period].window_of(start)).start


def is_open(period: str, day: date, today: date) -> bool:
    """Whether the window that contains a day is not over; a measured day is over."""
    return PERIODS[period].is_open(PERIODS[period].window_of(day), today)


def menu_class(number: int) -> str:
    """Return the class of an entry of the menu, which sets up to which width of the screen it is under *More*."""
    return next((name for last, name in MENU_CLASSES if number <= last), "last")


def dagster_partition(base: str, level: str, period: str, start: date) -> str:
    """Return the address in Dagster's UI of the runs that computed a window."""
    return address(f"{base}/assets/{period}_{level}_aggregations", view="partitions", partition=start.isoformat())


def shared_labels(rows: Sequence[Usage]) -> dict[str, str]:
    """Return the labels that all measured rows of a list have; empty for a single row."""
    labels = _labels_of(rows)
    if len(labels) < 2:  # noqa: PLR2004 -- a single row shares nothing
        return {}
    return {key: value for key, value in labels[0].items() if all(label.get(key) == value for label in labels)}


def label_keys(rows: Sequence[Usage]) -> list[str]:
    """Return the keys of the labels that differ between the rows of a list."""
    shared = shared_labels(rows)
    return list(dict.fromkeys(key for labels in _labels_of(rows) for key in labels if key not in shared))


def label_heads(keys: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return the headings of the columns of labels: one for each of the first keys, and one for all others."""
    names = [key.replace("_", " ").capitalize() for key in (keys or ())[:LABEL_COLUMNS]]
    others = ["Other labels"] if len(keys or ()) > LABEL_COLUMNS else []
    return [(name, "roomy") for name in names + others]


def _labels_of(rows: Sequence[Usage]) -> list[dict[str, str]]:
    # The labels of a server that was not measured are not read.
    return [getattr(row, "labels", {}) for row in rows if getattr(row, "size_mb", None) is not None]


def cost(amount: Decimal | None, currency: str = "") -> Markup | str:
    """Render an amount with its currency as a unit."""
    return "no price" if amount is None else _with_unit(money(amount), currency)


def fill_range(runway: StoredRunway) -> str:
    """Render the 80 % range of a fill date; empty if it is full already, or has no date."""
    if runway.state == FULL or (runway.full_early or runway.full_middle) is None:
        return ""
    return range_of(runway) or "a single day"


def _with_unit(amount: str, currency: str | None) -> Markup | str:
    return Markup('{0} <span class="unit">{1}</span>').format(amount, currency) if currency else amount


def billed_groups(history: Sequence[MonthlyAmount]) -> list[MonthlyAmount]:
    """Return one row of each group in a history of bills, those of the newest month first and all others last."""
    columns: dict[tuple[bool, str | None], MonthlyAmount] = {}
    for amount in sorted(
        history, key=lambda monthly_amount: (monthly_amount.is_others, -monthly_amount.month.toordinal())
    ):
        columns.setdefault((amount.is_others, amount.group), amount)
    return list(columns.values())


FILTERS: Mapping[str, Callable[..., object]] = {
    "size": size,
    "change": change,
    "size_of_bytes": lambda value: size(None if value is None else whole_mb(value)),
    "change_of_bytes": lambda value: change(None if value is None else whole_mb(value)),
    "percent": lambda value: UNKNOWN if value is None else f"{value:+,.2f} %" if value else "0 %",
    "chance": lambda value: UNKNOWN if value is None else human_probability(value),
    "share": lambda value, places=1: DASH if value is None else f"{value:.{places}f} %",
    "cost": cost,
    "cost_change": lambda amount, currency="": _with_unit(money_change(amount), currency),
    "unit_price": lambda price, currency="": DASH if price is None else _with_unit(mean_price(price), currency),
    "day": day,
    "days": human_days,
    # As in addresses.
    "month": "{:%Y-%m}".format,
    "code": code,
    "headline": headline,
    "full_by": full_by,
    "fill_range": fill_range,
    "words": lambda name: name.replace("_", " "),
    "shell": shlex.quote,
    # As in charts, the line skips partly measured windows.
    "recent": lambda sizes: [size.size_mb for size in sizes if not size.is_partial],
    "ticket": lambda url: url.rstrip("/").rpartition("/")[2] or url,
}
MENU_CLASSES = ((3, "first"), (4, "second"), (7, "third"))
"""The last entry of the menu with each class."""
LISTS = {
    "budget": "budget lines",
    "changed": "databases",
    "found": "names",
    "lines": "budget lines",
    "months": "months of issue",
    "runways": "fill dates",
}
"""The names of lists of files for people, if they differ from the name of the field."""
FUNCTIONS = (
    fraction_bar, sparkline, decide_command, window_name, before, after, is_open, shared_labels, label_keys,
    label_heads, billed_groups, is_left_out, menu_class, address, subject_address, table_address, dagster_partition,
    quarter_gb,
)  # fmt: skip


@cache  # Compiling templates takes longer than rendering them.
def page_templates(pages: tuple[PageRoute, ...], dagster_url: str | None, thresholds: Thresholds) -> Environment:
    """Return the templates of pages, with links to the pages and, if its address is known, to Dagster's UI."""
    environment = environment_of(PackageLoader("capacity_assets.web", "templates"))
    environment.filters.update(FILTERS)
    environment.tests["with_word"] = lambda text, begin: f" {begin}".casefold() in f" {text}".casefold()
    environment.globals.update(
        {one.__name__: one for one in (*FUNCTIONS, *CHARTS, is_past, marks_of)},
        chart=size_chart,
        growth=human_percent,
        severity_of=partial(severity_of, thresholds=thresholds),
        thresholds=thresholds,
        chips=CHIPS,
        impossible_sizes=IMPOSSIBLE_SIZES,
        periods={name: period.noun for name, period in PERIODS.items()},
        ranges={name: text for name, (text, _) in RANGES.items()},
        menu=[page for page in pages if page.in_menu],
        pages_in_search=[
            {"title": page.title, "path": page.path, "also": page.also}
            for page in pages
            if page.in_menu or page.in_search
        ],
        lists=LISTS,
        file_formats=FILE_FORMATS,
        label_columns=LABEL_COLUMNS,
        dagster=dagster_url.rstrip("/") if dagster_url else None,
    )
    return environment


def marks_of(  # noqa: PLR0913 -- one argument per kind of marks
    steps: Sequence[DeclaredStep] = (),
    decisions: Sequence[DecisionRow] = (),
    *,
    bills: Mapping[date, Decimal] = EMPTY,
    currency: str | None = None,
    binding: StoredRunway | None = None,
    name: str = "",
) -> list[Mark]:
    """Return the marks of a chart: declared steps, decisions, bills by month, and the fill date of the binding limit.

    Marks that concern another subject than `name` are labelled with it.
    """
    marks = []
    for day, same_day in groupby(sorted(steps, key=lambda step: step.day), key=lambda step: step.day):
        notes = list(dict.fromkeys(step.note for step in same_day))
        marks.append(Mark(day, first_of(notes, NOTES_SHOWN), short="" if len(notes) == 1 else f"{len(notes)} steps"))
    for decision in decisions:
        if decision.closed_at is None:
            added = "" if decision.added_mb is None else f" +{human_mb(decision.added_mb)}"
            is_plan = decision.kind == PLANNED
            day, short = (decision.until, f"plan{added}") if is_plan else (decision.declared_at.date(), decision.text)
            about = "" if decision.name == name else f"{display_name(decision.subject, decision.name)}: "
            note = f"{display_name(decision.subject, decision.name)} on {decision.server}: {decision.sentence}"
            marks.append(Mark(day, note, "plan" if is_plan else "decision", f"{about}{short}"))
    for month, amount in bills.items():
        note = f"bill of {window_name('monthly', month)}: {money(amount)} {currency}"
        # The position of the mean size of the month.
        marks.append(Mark(month.replace(day=MIDDLE_DAY), note, "bill", f"{amount:,.0f} {currency}"))
    if binding is not None and binding.full_middle is not None and binding.name != name:
        marks.append(Mark(binding.full_middle, f"{binding.display_name} full", "full"))
    return marks


def size_chart(  # noqa: PLR0913 -- the parts of a chart
    title: str,
    sizes: Sequence[SizeInWindow],
    period: str,
    *,
    runway: StoredRunway | GroupSizeForecast | None = None,
    marks: Sequence[Mark] = (),
    earlier: Sequence[SizeInWindow] = (),
    today: date = date.max,
    query: PageQuery | None = None,
) -> Markup:
    """Draw sizes with a forecast and marks; with `query`, points link to the samples of their windows."""
    points = [
        Point(
            _middle_day(size),
            size.size_mb,
            size.smallest_mb,
            size.largest_mb,
            label=_point_label(period, size),
            address=f"{query.with_values(window=size.window_start)}#behind" if query else "",
            is_partial=size.is_partial,
        )
        for size in sizes
    ]
    last = sizes[-1]
    if (today - last.window_end).days > PAST_DAYS + (last.window_end - last.window_start).days:
        # The chart ends in the past, and so do its marks.
        marks = [mark for mark in marks if mark.day <= last.window_end]
    before = list(_year_before(PERIODS[period], sizes, earlier)) if earlier else []
    history = History(title, points, earlier=before, marks=marks, is_interactive=True)
    return history_chart(history if runway is None else _with_forecast(history, sizes, runway))


def _with_forecast(
    history: History, sizes: Sequence[SizeInWindow], runway: StoredRunway | GroupSizeForecast
) -> History:
    full = None
    if isinstance(runway, StoredRunway) and not runway.is_shared:
        # A shared limit only applies while the others do not grow; the headline has the binding fill date.
        history = replace(history, limit_mb=runway.limit_mb)
        full = FillRange(runway.full_early, runway.full_middle, runway.full_late)
    if not runway.ahead or is_past(sizes, runway):
        return history
    ahead = _ahead_until(runway, runway.last_day + timedelta(days=_days_ahead(history.points, runway)))
    return replace(history, ahead=ahead, full=full or history.full)


def is_past(sizes: Sequence[SizeInWindow], runway: StoredRunway | GroupSizeForecast) -> bool:
    """Whether a chart ends some days before the newest measurement, and therefore shows no forecast.

    The chart of a group ends with the last complete window, which may have ended the length of a window ago.
    """
    last = sizes[-1]
    days = 0 if isinstance(runway, StoredRunway) else (last.window_end - last.window_start).days
    return (runway.last_day - last.window_end).days > PAST_DAYS + days


def _point_label(period: str, size: SizeInWindow) -> str:
    partly = ", partly measured" if size.is_partial else ""
    return "" if size.size_mb is None else f"{window_name(period, size.window_start)}: {human_mb(size.size_mb)}{partly}"


def _year_before(
    period: Period, sizes: Sequence[SizeInWindow], earlier: Sequence[SizeInWindow]
) -> Iterator[tuple[date, int | None]]:
    by_start = {size.window_start: size.size_mb for size in earlier}
    for size in sizes:
        yield _middle_day(size), by_start.get(period.year_before(Window(size.window_start, size.window_end)).start)


def _middle_day(size: SizeInWindow) -> date:
    return size.window_start + (size.window_end - size.window_start) // 2


def _ahead_until(runway: StoredRunway | GroupSizeForecast, last: date) -> list[ForecastDay]:
    """Return the forecast up to a day, which is interpolated between the forecasts around it."""
    days = [ForecastDay(runway.last_day, runway.size_mb, runway.size_mb, runway.size_mb)]
    for day in runway.ahead:
        if day.day >= last:
            share = (last - days[-1].day).days / (day.day - days[-1].day).days
            names = ("lower_mb", "size_mb", "upper_mb")
            ends = [(getattr(days[-1], name), getattr(day, name)) for name in names]
            days.append(ForecastDay(last, *(round(before + (after - before) * share) for before, after in ends)))
            break
        days.append(day)
    return days


def _days_ahead(points: Sequence[Point], runway: StoredRunway | GroupSizeForecast) -> int:
    """Return the number of days of forecast to draw: beyond the fill date, but not much more than the history.

    A group has no fill date: its chart extends as far ahead as its history extends back.
    """
    if not points:
        return 0
    history_days = (points[-1].day - points[0].day).days + 1
    if not isinstance(runway, StoredRunway):
        return max(LEAST_DAYS_AHEAD, history_days)
    last = runway.full_late or runway.full_middle
    needed_days = (last - runway.last_day).days * FULL_DATE_MARGIN if last else 0
    least = max(LEAST_DAYS_AHEAD, history_days // 2)
    return max(least, min(math.ceil(needed_days), 2 * history_days))


def space_map(title: str, groups: Sequence[GroupSpace], by: str) -> Markup:
    """Draw groups with their largest databases as a treemap."""
    return treemap(title, [_tile_of(group, by) for group in groups])


def _tile_of(group: GroupSpace, by: str) -> Tile:
    if group.groups > 1:
        return Tile(counted(group.groups, "other group"), group.size_mb, None)
    place = address("/group", by=by, name=group.name)
    parts = [
        Tile(
            printable(row.database),
            row.size_mb,
            row.change_mb,
            subject_address("database", row.server_id, row.database),
        )
        for row in group.databases
    ]
    if parts and group.other_databases:
        parts.append(Tile(counted(group.other_databases, "other"), group.other_mb, None, place))
    return Tile(
        *(printable(group_named(group.name, by)), group.size_mb, group.change_mb, place, parts, group.change_percent)
    )


def changes_chart(title: str, page: ChangesPage) -> Markup:
    """Draw the steps from the previous size of the fleet to this one, by group; empty if its change is not known.

    The last step is the size of servers measured in only one of the two windows, which is not in the change.
    """
    if page.size is None or page.size.size_mb is None or page.rest_change_mb is None:
        return Markup()
    before_mb = page.size.compared_mb if page.before_mb is None else page.before_mb
    steps = [
        WaterfallStep(name, change, "up" if change > 0 else "down")
        for name, change in (
            *((_shorten(group_named(group.name, page.grouped_by)), group.change_mb or 0) for group in page.groups),
            (f"{page.other_groups} more", page.other_change_mb),
            ("other", 0 if page.is_rest_rounding else page.rest_change_mb),
            ("servers that\ncame or went", page.once_measured_mb),
        )
        if change
    ]
    return waterfall_chart(title, before_mb, steps)


def _shorten(name: str) -> str:
    return name if len(name) <= STEP_LENGTH else f"{name[: STEP_LENGTH - 1]}\u2026"


def table_chart(title: str, sizes: Sequence[TableSize]) -> Markup:
    """Draw a table by measured day: its used space, its dead and free space, and its indexes."""
    drawn = every_few(sizes, MOST_COLUMNS)
    is_listed = [size.data_bytes is not None for size in drawn]
    parts = {
        "in use": [(size.data_bytes or 0) - (size.free_bytes or 0) for size in drawn],
        "dead and free": [size.free_bytes or 0 for size in drawn],
        "indexes": [size.index_bytes or 0 for size in drawn],
    }
    series = {
        name: [sizes // BYTES_PER_MB if known else None for sizes, known in zip(values, is_listed, strict=True)]
        for name, values in parts.items()
    }
    return stacked_chart(title, [size.day for size in drawn], series)


def uses_chart(title: str, uses: Sequence[SpaceDay]) -> Markup:
    """Draw what filled a volume by day; a day without measured parts is a gap."""
    titles = dict.fromkeys(title for day in uses for title in day.uses)
    return stacked_chart(
        title, [day.day for day in uses], {name: [day.uses.get(name) for day in uses] for name in titles}
    )


def stacked_chart(title: str, days: Sequence[date], parts: Mapping[str, Sequence[int | None]]) -> Markup:
    """Draw the parts of a size by day, in MiB; None: not measured."""
    series = [Series(name, values) for name, values in parts.items() if any(values)] or [
        Series(title, [None] * len(days))
    ]
    return columns_chart(ColumnChart(title, [human_day(day) for day in days], series, unknown="not measured"))


def amounts_chart(  # noqa: PLR0913 -- the parts of a chart
    title: str,
    months: Sequence[date],
    billed: Sequence[MonthlyAmount],
    *,
    currency: str,
    by: str,
    every_group: Sequence[str],
    height: int = 230,
) -> Markup:
    """Draw the amounts of groups by month, stacked; a month without an amount is a gap."""
    known = {amount.month for amount in billed}
    cents = {(amount.group, amount.is_others, amount.month): int(amount.amount * CENTS) for amount in billed}
    groups = dict.fromkeys(
        (amount.group, amount.is_others)
        for amount in sorted(billed, key=lambda monthly_amount: monthly_amount.is_others)
    )
    series = [
        Series(
            "others" if is_others else group_named(group, by),
            [cents.get((group, is_others, month), 0) if month in known else None for month in months],
        )
        for group, is_others in groups
    ]
    monthly = PERIODS["monthly"]
    names = [monthly.label_of(monthly.window_of(month)) for month in months]
    return columns_chart(
        ColumnChart(title, names, series, height=height, currency=currency, unknown="no bill", every_name=every_group)
    )


CHARTS = (space_map, changes_chart, table_chart, uses_chart, stacked_chart, amounts_chart)
"""Functions with which templates draw charts, besides `chart`, which is `size_chart`."""
