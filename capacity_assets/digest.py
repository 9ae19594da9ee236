"""The weekly digest of the fleet or of a label: its content, its text and chart, and its deliveries.

It contains only what is unusual; usual growth is in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

from capacity_assets.base.declarations import fleet_or_label
from capacity_assets.base.errors import database_errors
from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.settings import DEFAULT_THRESHOLDS, Thresholds
from capacity_assets.base.units import counted, human_change_mb, human_day, human_mb, human_probability, printable
from capacity_assets.charts.drawing import size_axis
from capacity_assets.database.engine import snapshot
from capacity_assets.forecast.results import day_text
from capacity_assets.messages.channels import (
    CONCURRENT_DELIVERIES,
    DIGEST,
    Receiver,
    SendingError,
    SendingSettings,
    one_at_a_time,
    send,
)
from capacity_assets.messages.message import Message, MessageLine, Section, Sentence, html_of, plain_text
from capacity_assets.reading.changes import (
    DatabaseOfOneWindow,
    ServerOfOneWindow,
    ShrunkDatabase,
    UnusualChange,
    new_and_gone,
    servers_come_and_gone,
    shrunk_databases,
    unusual_changes,
    with_objects,
)
from capacity_assets.reading.coverage import SilentServer, silent_servers
from capacity_assets.reading.forecasts import FillDateChange, moved_fill_dates
from capacity_assets.reading.groups import group_sizes, short_servers
from capacity_assets.reading.sizes import SizeInWindow, change_sentence, fleet_history, mark_partial, partial_windows
from capacity_assets.reading.space import RetainedWal, excessive_wal
from capacity_assets.reading.subjects import address, page_url, subject_address

LISTED, DECLINES_LISTED = 10, 5
WEEKS_DRAWN = 26
WEEKLY = PERIODS["weekly"]
# In pixels: a row of the chart, and the mark of a size in it.
ROW_HEIGHT, MARK_HEIGHT = 28, 4
DARK, LIGHT = "#0066a8", "#9cc4e0"


@dataclass(frozen=True)
class Digest:
    """The digest of a week. Lists contain at most LISTED entries, `counts` the number of all.

    `change_mb` None: unknown.
    """

    week: Window
    label: tuple[str, str] | None
    size_mb: int
    change_mb: int | None
    soon: Sequence[FillDateChange]
    growers: Sequence[UnusualChange]
    runways: Sequence[FillDateChange]
    silent: Sequence[SilentServer]
    new: Sequence[DatabaseOfOneWindow]
    gone: Sequence[DatabaseOfOneWindow]
    counts: dict[str, int] = field(default_factory=dict)
    history: Sequence[tuple[date, int]] = ()
    has_forecast: bool = True
    """Whether a forecast was issued in the week; without one, fill dates are unknown."""
    shrinkers: Sequence[UnusualChange] = ()
    later: Sequence[FillDateChange] = ()
    declines: Sequence[ShrunkDatabase] = ()
    """The largest decreases besides `shrinkers`; empty unless the total shrank."""
    is_partial: bool = False
    """Whether a part was not measured in the week."""
    is_change_partial: bool = False
    """Whether a part was not measured in this week or the previous one, so that `change_mb` is not shown."""
    retained_wal: Sequence[RetainedWal] = ()
    """Too much WAL retained by slots or archivers, by the last measurement of the week."""
    decided: int = 0
    """Number of fill dates left out because of decisions."""
    known_before_mb: int | None = None
    """The size in the week before of the servers with a known change; None for a label: the size minus the change."""
    came: Sequence[ServerOfOneWindow] = ()
    """Servers first measured in the week; their size is not in `change_mb`."""
    went: Sequence[ServerOfOneWindow] = ()
    """Servers out of service that are no longer measured; their size is not in `change_mb` either."""
    is_open: bool = False
    """Whether the week is not over."""
    partial_weeks: Sequence[date] = ()
    """Weeks of `history` in which a part was not measured."""

    @property
    def has_news(self) -> bool:
        """Whether it has more than size and change."""
        return any(self.counts.values())

    @property
    def whose(self) -> str:
        """The fleet, or the label."""
        return printable(fleet_or_label(self.label))


def read_digest(
    engine: Engine,
    week: Window,
    label: tuple[str, str] | None = None,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    *,
    today: date | None = None,
) -> Digest:
    """Read the digest of a week, with the decisions that are open today; raises DatabaseError.

    `today` None: the day after the week.
    """
    with database_errors(doing="reading the digest"), snapshot(engine) as connection:
        return _read(connection, week, label, thresholds, today or week.end + timedelta(days=1))


def _read(
    connection: Connection, week: Window, label: tuple[str, str] | None, thresholds: Thresholds, today: date
) -> Digest:
    windows = WEEKLY.back(week, WEEKS_DRAWN)
    new, gone = new_and_gone(connection, WEEKLY, week, label)
    came, went = servers_come_and_gone(connection, WEEKLY, week, label)
    sizes = _sizes(connection, windows, label)
    unmeasured = SizeInWindow(week.start, week.end, None)
    newest = next((size for size in sizes if size.window_start == week.start), unmeasured)
    unusual = with_objects(connection, week, unusual_changes(connection, WEEKLY, week, label))
    dates = moved_fill_dates(connection, week.start, week.end, label, thresholds, today)
    has_shrunk = not newest.is_change_partial and (newest.change_mb or 0) < 0
    shrinkers = [change for change in unusual if change.change_mb < 0]
    named = {(unusual_change.server_id, unusual_change.database) for unusual_change in shrinkers}
    shrunk = (
        shrunk_databases(connection, WEEKLY, week, label, largest=DECLINES_LISTED + len(named)) if has_shrunk else []
    )
    declined = [database for database in shrunk if (database.server_id, database.database) not in named]
    news: dict[str, Sequence[Any]] = {
        "soon": dates.soon,
        "growers": [change for change in unusual if change.change_mb > 0],
        "shrinkers": shrinkers,
        "declines": with_objects(connection, week, declined[:DECLINES_LISTED]),
        "runways": dates.sooner,
        "later": dates.later,
        "retained_wal": excessive_wal(connection, week.start, week.end, label),
        "silent": silent_servers(connection, week, label),
        "came": came,
        "went": went,
        "new": new,
        "gone": gone,
    }
    return Digest(
        week,
        label,
        newest.size_mb or 0,
        newest.change_mb,
        **{kind: every[:LISTED] for kind, every in news.items()},
        counts={kind: len(every) for kind, every in news.items()},
        history=[(size.window_start, size.size_mb or 0) for size in sizes],
        has_forecast=dates.as_of is not None,
        decided=dates.decided,
        known_before_mb=newest.known_before_mb,
        is_partial=newest.is_partial,
        is_change_partial=newest.is_change_partial,
        is_open=WEEKLY.is_open(week, today),
        partial_weeks=[size.window_start for size in sizes if size.is_partial],
    )


def _sizes(connection: Connection, windows: Sequence[Window], label: tuple[str, str] | None) -> list[SizeInWindow]:
    if label is None:
        sizes = fleet_history(connection, WEEKLY, windows)
        return mark_partial(sizes, partial_windows(connection, WEEKLY, sizes))
    key, value = label
    group = (connection, WEEKLY, windows, key, value or None)
    sizes = sorted(group_sizes(*group), key=lambda size: size.window_start)
    return mark_partial(sizes, {server.window_start for server in short_servers(*group)})


def mail_subject(digest: Digest) -> str:
    """Return the subject line."""
    change = "change unknown" if digest.change_mb is None else human_change_mb(digest.change_mb)
    if digest.is_change_partial:
        change = "partly measured" if digest.is_partial else "change unknown"
    news = "" if digest.has_news else ", nothing unusual"
    return f"Capacity of {digest.whose}, week of {human_day(digest.week.start)}: {change}{news}"


def headline(digest: Digest) -> str:
    """Return size and change as a sentence."""
    size = SizeInWindow(
        digest.week.start,
        digest.week.end,
        digest.size_mb,
        digest.change_mb,
        known_before_mb=digest.known_before_mb,
        is_partial=digest.is_partial,
        is_change_partial=digest.is_change_partial,
    )
    return change_sentence(digest.whose, WEEKLY, size, is_open=digest.is_open)


def sections(digest: Digest, pages_url: str | None = None) -> list[Section]:
    """Return the news by kind; empty if there is none."""
    return [
        Section(
            heading,
            [MessageLine(printable(sentence(row)), pages_url and page_url(pages_url, _page_of(row))) for row in listed],
            digest.counts[kind] - len(listed),
        )
        for kind, (heading, sentence) in KINDS.items()
        if (listed := getattr(digest, kind))
    ]


def _page_of(
    change: FillDateChange
    | UnusualChange
    | ShrunkDatabase
    | DatabaseOfOneWindow
    | ServerOfOneWindow
    | SilentServer
    | RetainedWal,
) -> str:
    match change:
        case FillDateChange():
            return subject_address(change.subject, change.server_id, change.name)
        case RetainedWal() | SilentServer() | ServerOfOneWindow():
            return subject_address("server", change.server_id)
    return subject_address("database", change.server_id, change.database)


def _size_text(database: DatabaseOfOneWindow) -> str:
    return f"{database.database} on {database.server}: {human_mb(database.size_mb)}"


def _server_text(server: ServerOfOneWindow) -> str:
    return f"{server.server}: {human_mb(server.size_mb)}, {counted(server.databases, 'database')}"


def _unusual_text(change: UnusualChange) -> str:
    usual = f"in the twelve weeks before, at most {human_mb(change.usual_mb)} in a week"
    return f"{change.database} on {change.server}: {human_change_mb(change.change_mb)}; {usual}{_behind(change)}"


def _behind(database: UnusualChange | ShrunkDatabase) -> str:
    return f". Most by {database.behind.sentence}" if database.behind else ""


def _moved_date_text(change: FillDateChange) -> str:
    day, before = (human_day(day) if day else "not within a year" for day in (change.day, change.before))
    return f"{change.display_name} on {change.server}: {day}; previously {before}"


def _risk_text(change: FillDateChange) -> str:
    risk = f"{change.severity}, probability {human_probability(change.probability)}, {day_text(change.day)}"
    return f"{change.display_name} on {change.server}: {risk}"


def _decline_text(database: ShrunkDatabase) -> str:
    sizes = f"{human_change_mb(database.change_mb)}, now {human_mb(database.size_mb)}"
    return f"{database.database} on {database.server}: {sizes}{_behind(database)}"


KINDS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "soon": ("May fill soon", _risk_text),
    "growers": ("Grew more than usual", _unusual_text),
    "shrinkers": ("Shrank more than usual", _unusual_text),
    "declines": ("Shrank most", _decline_text),
    "runways": ("Full sooner than forecast before", _moved_date_text),
    "later": ("Full later than forecast before", _moved_date_text),
    "retained_wal": ("Too much WAL retained by slots or archivers", lambda wal: wal.text),
    "silent": ("No longer measured", lambda server: f"{server.server}: last on {human_day(server.last_day)}"),
    "came": ("Servers that came", _server_text),
    "went": ("Servers that went", _server_text),
    "new": ("New databases", _size_text),
    "gone": ("Removed databases", _size_text),
}
"""Kinds of news, each with its heading and the text of an entry."""
NOTHING_UNUSUAL = (
    "No database changed more than usual, none was created or removed, and no server came, went or stopped being "
    "measured."
)
NOTHING_FILLS = (
    "By the forecasts of that week, there is nothing to watch or act on, and no fill date moved by two weeks or more."
)
NO_FORECAST = "No forecast was issued in that week, so there are no fill dates. To issue one now:"


def opening(digest: Digest) -> list[Sentence]:
    """Return the first sentences: size and change, what is usual, and what is unknown."""
    sentences = [Sentence(headline(digest))]
    if not digest.has_news and digest.size_mb:
        sentences.append(Sentence(NOTHING_UNUSUAL))
        if digest.has_forecast and not digest.decided:
            sentences.append(Sentence(NOTHING_FILLS))
    if not digest.has_forecast:
        sentences.append(Sentence(NO_FORECAST, "capacity runway --issue"))
    if digest.decided:
        left_out = f"Decisions leave out {counted(digest.decided, 'fill date')}:"
        sentences.append(Sentence(left_out, "capacity decisions list"))
    return sentences


def message_of(digest: Digest, pages_url: str | None = None) -> Message:
    """Return the digest as a message with a link to the changes of the week; without news, as one paragraph.

    The changes of a label are on the page of its group.
    """
    sentences = opening(digest)
    if not digest.has_news:
        *others, last = sentences
        sentences = [Sentence(" ".join([*map(str, others), last.text]), last.command)]
    if digest.label is None:
        page = address("/changes", period=WEEKLY.name, window=digest.week.start)
    else:
        page = address("/group", by=digest.label[0], name=digest.label[1] or None)
    link = None if pages_url is None else MessageLine(f"More about {digest.whose}", page_url(pages_url, page))
    return Message(mail_subject(digest), sentences, sections(digest, pages_url) if digest.has_news else (), link)


def as_text(digest: Digest, pages_url: str | None = None) -> str:
    """Return the digest as plain text."""
    return f"{plain_text(message_of(digest, pages_url))}\n"


def as_html(digest: Digest, pages_url: str | None = None) -> str:
    """Return the digest as HTML, with a chart if it has news."""
    chart = size_chart(digest.history, digest.partial_weeks) if digest.has_news and digest.history else None
    return html_of(message_of(digest, pages_url), chart=chart, mark_height=MARK_HEIGHT, row_height=ROW_HEIGHT)


@dataclass(frozen=True)
class ChartRow:
    """A step of the chart's axis: the label of its lower edge, and the height of each week's size above it in pixels.

    None: the week's size is in another row, or unknown.
    """

    label: str
    places: Sequence[int | None]


@dataclass(frozen=True)
class SizeChart:
    """Weekly sizes as rows of cells, the largest sizes first, with a summary in words."""

    weeks: Sequence[date]
    colours: Sequence[str]
    """One for each week."""
    rows: Sequence[ChartRow]
    summary: str


def size_chart(history: Sequence[tuple[date, int]], partial_weeks: Collection[date] = ()) -> SizeChart:
    """Arrange weekly sizes, oldest first, in rows of cells; a week without a size has an empty column.

    Partly measured weeks are lighter.
    """
    sizes = dict(history)
    first, last = history[0][0], history[-1][0]
    weeks = [first + timedelta(weeks=number) for number in range((last - first).days // 7 + 1)]
    axis = size_axis(min(sizes.values()), max(sizes.values()))
    steps = len(axis.ticks) - 1
    # In steps of the axis; the largest size may be on the upper edge of the highest step.
    heights = {week: axis.fraction(size) * steps for week, size in sizes.items()}
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
    ends = ", ".join(f"{human_mb(sizes[week])} in the week of {human_day(week)}" for week in (first, last))
    colours = [LIGHT if week in partial_weeks else DARK for week in weeks]
    partly = " Lighter bars: partly measured." if LIGHT in colours else ""
    return SizeChart(weeks, colours, rows, f"Size by week: {ends}.{partly}")


@dataclass(frozen=True)
class DigestDeliveries:
    """The receivers of a week's digest by outcome; those that failed have a reason."""

    sent: Sequence[str] = ()
    earlier: Sequence[str] = ()
    failed: tuple[tuple[str, str], ...] = ()
    waiting: tuple[str, ...] = ()
    """Receivers in quiet hours, or for which no time was left."""


def send_digests(  # noqa: PLR0913 -- the options of sending
    engine: Engine,
    week: Window,
    receivers: Sequence[Receiver],
    settings: SendingSettings,
    *,
    today: date | None = None,
    again: bool = False,
    now: datetime | None = None,
) -> DigestDeliveries:
    """Send a week's digest to receivers that did not get it, with `again` to all; raises DatabaseError.

    Digests are read one after the other and sent concurrently, so that a mail server that hangs delays its receiver
    only. Receivers with quiet hours `now` get it later; without `now`, all get it.
    """
    deliveries: dict[str, Future[list[str]] | None] = {}
    waiting = []
    with one_at_a_time(engine, "digests"), ThreadPoolExecutor(CONCURRENT_DELIVERIES) as threads:
        for receiver in receivers:
            if DIGEST not in receiver.gets:
                continue
            is_quiet = now is not None and receiver.quiet_until(now) is not None
            if is_quiet or settings.seconds_left <= 0:
                waiting.append(receiver.name)
                continue
            delivered = set() if again else set(_delivered_channels(engine, week, receiver))
            remaining = [channel for channel in receiver.channels if channel not in delivered]
            deliveries[receiver.name] = None
            if remaining:
                digest = read_digest(engine, week, receiver.label, settings.thresholds, today=today)
                deliveries[receiver.name] = threads.submit(_send_to, engine, digest, receiver, remaining, settings)
    problems = {name: delivery and delivery.result() for name, delivery in deliveries.items()}
    return DigestDeliveries(
        [name for name, reasons in problems.items() if reasons == []],
        [name for name, reasons in problems.items() if reasons is None],
        tuple((name, " ".join(reasons)) for name, reasons in problems.items() if reasons),
        tuple(waiting),
    )


def _send_to(
    engine: Engine, digest: Digest, receiver: Receiver, channels: Sequence[str], settings: SendingSettings
) -> list[str]:
    """Send a digest by each of these channels, and record each delivery; return what failed."""
    message, html = message_of(digest, settings.pages_url), as_html(digest, settings.pages_url)
    problems = []
    for channel in channels:
        try:
            refused = send(message, receiver, channel, settings, html=html if digest.has_news else "")
        except SendingError as error:
            problems.append(str(error))
            continue
        problems += [refused] if refused else []
        _store_delivery(engine, digest.week, receiver, channel)
    return problems


def _delivered_channels(engine: Engine, week: Window, receiver: Receiver) -> list[str]:
    query = text("SELECT channel FROM capacity_digests WHERE week = :week AND receiver = :receiver")
    with database_errors(doing="reading who got a digest"), engine.connect() as connection:
        return list(connection.execute(query, {"week": week.start, "receiver": receiver.name}).scalars())


def _store_delivery(engine: Engine, week: Window, receiver: Receiver, channel: str) -> None:
    statement = text(
        "INSERT INTO capacity_digests (week, receiver, channel) VALUES (:week, :receiver, :channel) "
        "ON CONFLICT (week, receiver, channel) DO UPDATE SET sent_at = now()"
    )
    kept = f"The digest was sent to {receiver.name!r} and may be sent again."
    with database_errors(doing="recording a digest as sent", kept=kept), engine.begin() as connection:
        connection.execute(statement, {"week": week.start, "receiver": receiver.name, "channel": channel})
