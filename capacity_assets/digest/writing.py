"""A digest in words, as a message, and its chart for mails."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from capacity_assets.base.label_rules import fleet_or_label
from capacity_assets.base.units import (
    counted,
    human_change_mb,
    human_day,
    human_days,
    human_mb,
    human_percent,
    printable,
)
from capacity_assets.charts.axis import size_axis
from capacity_assets.digest.content import Digest
from capacity_assets.forecast.outlook import day_text
from capacity_assets.messages.message import Line, Message, Section, Sentence, html_of, text_of
from capacity_assets.reading.changes import DatabaseSize, Decline, UnusualChange
from capacity_assets.reading.coverage import SilentServer
from capacity_assets.reading.filling import FillDate
from capacity_assets.reading.links import address, page_url, subject_address
from capacity_assets.reading.parts import LargeSlot

# Heights in pixels of a row of the chart, and of the mark of a size.
ROW_HEIGHT, MARK_HEIGHT = 28, 4
DARK, LIGHT = "#0066a8", "#9cc4e0"


def subject_of(digest: Digest) -> str:
    """Return the subject line."""
    change = "change unknown" if digest.change_mb is None else human_change_mb(digest.change_mb)
    if digest.is_change_partial:
        change = "partly measured" if digest.is_partial else "change unknown"
    news = "" if digest.has_news else ", nothing unusual"
    return (
        f"Capacity of {printable(fleet_or_label(digest.label))}, week of {human_day(digest.week.start)}: {change}{news}"
    )


def headline(digest: Digest) -> str:
    """Say size and change in one sentence."""
    week = f"week of {human_days(digest.week.start, digest.week.end)}"
    whose = printable(fleet_or_label(digest.label))
    if not digest.size_mb:
        return f"Nothing was measured of {whose} in the {week}."
    whose = "The fleet" if digest.label is None else whose
    if digest.is_change_partial:
        which = "that week" if digest.is_partial else "the week before"
        reason = f"Not everything was measured in {which}, so no change is shown."
        return f"{whose}: {human_mb(digest.size_mb)} in the {week}. {reason}"
    if digest.change_mb is None:
        return f"{whose}: {human_mb(digest.size_mb)} in the {week}; change unknown."
    share = human_percent(digest.change_mb, digest.size_mb - digest.change_mb)
    sizes = f"{human_mb(digest.size_mb)}, {human_change_mb(digest.change_mb)} ({share})"
    return f"{whose}: {sizes} in the {week}."


def sections(digest: Digest, pages_url: str | None = None) -> list[Section]:
    """Return the news by kind; none where there is nothing to report."""
    return [
        Section(
            heading,
            [Line(printable(sentence(one)), pages_url and page_url(pages_url, _page_of(one))) for one in listed],
            digest.counts[kind] - len(listed),
        )
        for kind, (heading, sentence) in _KINDS.items()
        if (listed := getattr(digest, kind))
    ]


def _page_of(one: FillDate | UnusualChange | Decline | DatabaseSize | SilentServer | LargeSlot) -> str:
    match one:
        case LargeSlot():
            return subject_address("server", one.server_id)
        case FillDate():
            return subject_address(one.subject, one.server_id, one.name)
        case SilentServer():
            return subject_address("server", one.server_id)
    return subject_address("database", one.server_id, one.database)


def _named(one: DatabaseSize) -> str:
    return f"{one.database} on {one.server}: {human_mb(one.size_mb)}"


def _moved(one: UnusualChange) -> str:
    return (
        f"{one.database} on {one.server}: {human_change_mb(one.change_mb)}; in the twelve weeks before, at most "
        f"{human_mb(one.usual_mb)} in a week"
    )


def _fill_date_line(one: FillDate) -> str:
    day, before = (day and human_day(day) for day in (one.day, one.before))
    return (
        f"{one.display_name} on {one.server}: {day or 'not within a year'}; a week ago {before or 'not within a year'}"
    )


def _decline_line(one: Decline) -> str:
    return f"{one.database} on {one.server}: {human_change_mb(one.change_mb)}, now {human_mb(one.size_mb)}"


_KINDS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "soon": (
        "May fill soon",
        lambda one: (
            f"{one.display_name} on {one.server}: {one.severity}, probability {100 * one.probability:.0f} %, "
            f"{day_text(one.day)}"
        ),
    ),
    "growers": ("Grew more than usual", _moved),
    "shrinkers": ("Shrank more than usual", _moved),
    "declines": ("Shrank most", _decline_line),
    "runways": ("Full sooner than forecast a week ago", _fill_date_line),
    "later": ("Full later than forecast a week ago", _fill_date_line),
    "slots": ("Replication slots that retain much WAL", lambda one: one.text),
    "silent": ("No longer measured", lambda one: f"{one.server}: last on {human_day(one.last_day)}"),
    "new": ("New databases", _named),
    "gone": ("Removed databases", _named),
}


NOTHING_UNUSUAL = (
    "No database changed more than usual, none was created or removed, and no server stopped being measured."
)
NOTHING_FILLS = (
    "By the forecasts of that week, there is nothing to watch or act on, and no fill date moved by two weeks or more."
)
NO_FORECAST = "No forecast was issued in that week, so there are no fill dates. To issue one now:"


DECISIONS = "capacity decisions list"


def opening(digest: Digest) -> list[Sentence]:
    """Return the sentences before the news: size and change, what is as usual, and what is unknown."""
    sentences = [Sentence(headline(digest))]
    if not digest.has_news and digest.size_mb:
        sentences.append(Sentence(NOTHING_UNUSUAL))
        if digest.has_forecast and not digest.decided:
            sentences.append(Sentence(NOTHING_FILLS))
    if not digest.has_forecast:
        sentences.append(Sentence(NO_FORECAST, "capacity runway --issue"))
    if digest.decided:
        sentences.append(Sentence(f"Decisions leave out {counted(digest.decided, 'fill date')}:", DECISIONS))
    return sentences


def message_of(digest: Digest, pages_url: str | None = None) -> Message:
    """Return the digest as a message; one sentence for a week without news, and the page of the whole."""
    sentences = opening(digest)
    if not digest.has_news:
        *others, last = sentences
        sentences = [Sentence(" ".join([*map(str, others), last.text]), last.command)]
    page = "/" if digest.label is None else address("/group", by=digest.label[0], name=digest.label[1])
    more = f"More about {printable(fleet_or_label(digest.label))}"
    link = None if pages_url is None else Line(more, page_url(pages_url, page))
    return Message(subject_of(digest), sentences, sections(digest, pages_url) if digest.has_news else (), link)


def as_text(digest: Digest, pages_url: str | None = None) -> str:
    """Return the digest as plain text."""
    return f"{text_of(message_of(digest, pages_url))}\n"


def as_html(digest: Digest, pages_url: str | None = None) -> str:
    """Return the digest as HTML."""
    chart = size_chart(digest.history, digest.partial_weeks) if digest.has_news and digest.history else None
    looks = {"mark_height": MARK_HEIGHT, "row_height": ROW_HEIGHT}
    return html_of(message_of(digest, pages_url), chart=chart, **looks)


@dataclass(frozen=True)
class ChartRow:
    """A step of the chart's axis: the size at its lower edge, and how many pixels above it each week's size lies.

    None: the week's size is in another row, or unknown.
    """

    label: str
    places: Sequence[int | None]


@dataclass(frozen=True)
class SizeChart:
    """Weekly sizes as rows of cells, the largest sizes first, and the same in words."""

    weeks: Sequence[date]
    colours: Sequence[str]
    """Of the weeks' marks."""
    rows: Sequence[ChartRow]
    summary: str


def size_chart(history: Sequence[tuple[date, int]], partial_weeks: Collection[date] = ()) -> SizeChart:
    """Arrange weekly sizes, oldest first, in rows of cells; a week without a size keeps its column.

    Weeks of which some was not measured are lighter.
    """
    sizes = dict(history)
    (first, first_mb), (last, last_mb) = history[0], history[-1]
    weeks = [first + timedelta(weeks=number) for number in range((last - first).days // 7 + 1)]
    axis = size_axis(min(sizes.values()), max(sizes.values()))
    steps = len(axis.ticks) - 1
    # In steps of the axis from its lower end; the largest size may lie on the upper edge of the highest step.
    heights = {week: axis.share(size) * steps for week, size in sizes.items()}
    rows = [
        ChartRow(
            axis.ticks[step].label,
            [
                round((heights[week] - step) * (ROW_HEIGHT - MARK_HEIGHT))
                if week in heights and min(int(heights[week]), steps - 1) == step
                else None
                for week in weeks
            ],
        )
        for step in reversed(range(steps))
    ]
    weekly = [
        f"{human_mb(size)} in the week of {human_day(week)}" for week, size in ((first, first_mb), (last, last_mb))
    ]
    words = f"Size by week: {', '.join(weekly)}."
    colours = [LIGHT if week in partial_weeks else DARK for week in weeks]
    if LIGHT in colours:
        words += " Lighter bars: partly measured."
    return SizeChart(weeks, colours, rows, words)
