"""A digest as a mail: plain text, HTML, and one chart as a picture, because mail programs draw no SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from functools import cache
from typing import Any

from jinja2 import PackageLoader, Template

from capacity_assets.base.units import human_change_mb, human_mb, human_percent, printable
from capacity_assets.charts.templates import environment_of
from capacity_assets.digest.content import Digest, Mover, Named

CHART = "size-over-time"


@dataclass(frozen=True)
class Section:
    """One kind of news: its heading, its lines, and how many more there are."""

    heading: str
    lines: Sequence[str]
    more: int


def subject_of(digest: Digest) -> str:
    """Return the subject line."""
    change = "change unknown" if digest.change_mb is None else human_change_mb(digest.change_mb)
    news = "" if digest.has_news else ", nothing unusual"
    return f"Capacity of {printable(digest.whose)}, week of {digest.week.start}: {change}{news}"


def headline(digest: Digest) -> str:
    """Say size and change in one sentence."""
    week = f"week of {digest.week.start} to {digest.week.end}"
    if not digest.size_mb:
        return f"Nothing was measured of {printable(digest.whose)} in the {week}."
    if digest.change_mb is None:
        return f"{printable(digest.whose).capitalize()}: {human_mb(digest.size_mb)} in the {week}; change unknown."
    share = human_percent(digest.change_mb, digest.size_mb - digest.change_mb)
    sizes = f"{human_mb(digest.size_mb)}, {human_change_mb(digest.change_mb)} ({share})"
    return f"{printable(digest.whose).capitalize()}: {sizes} in the {week}."


def sections(digest: Digest) -> list[Section]:
    """Return the news by kind; none where there is nothing to report."""
    return [
        Section(heading, [printable(sentence(one)) for one in listed], digest.counts[kind] - len(listed))
        for kind, (heading, sentence) in _KINDS.items()
        if (listed := getattr(digest, kind))
    ]


def _named(one: Named) -> str:
    return f"{one.database} on {one.server}: {human_mb(one.size_mb)}"


def _moved(one: Mover) -> str:
    return (
        f"{one.database} on {one.server}: {human_change_mb(one.change_mb)}; in the twelve weeks before, at most "
        f"{human_mb(one.usual_mb)} in a week"
    )


_KINDS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "soon": (
        "Full within 30 days",
        lambda one: f"{one.display_name} on {one.server}: {one.day}, with {one.probability:.0%}",
    ),
    "growers": ("Grew more than usual", _moved),
    "shrinkers": ("Shrank more than usual", _moved),
    "runways": (
        "Full sooner than was said a week ago",
        lambda one: f"{one.display_name} on {one.server}: {one.day}; a week ago {one.before or 'no date'}",
    ),
    "silent": ("Not measured any more", lambda one: f"{one.server}: last on {one.last_day}"),
    "new": ("New databases", _named),
    "gone": ("Vanished databases", _named),
}


NOTHING_UNUSUAL = (
    "No database changed more than usual, none was created or removed, and no server stopped being measured."
)
NOTHING_FILLS = "By the forecasts of that week, nothing fills within 30 days, or much sooner than a week before."
NO_FORECAST = "No forecast was issued in that week, so there are no fill dates. To compute one now:"


@dataclass(frozen=True)
class Sentence:
    """A sentence and the command at its end; each medium formats commands in its own way."""

    text: str
    command: str = ""

    def __str__(self) -> str:
        """Return it as plain text."""
        return f"{self.text} {self.command}".rstrip()


def opening(digest: Digest) -> list[Sentence]:
    """Return the sentences before the news: size and change, what is as usual, and what is unknown."""
    said = [Sentence(headline(digest))]
    if not digest.has_news and digest.size_mb:
        said.append(Sentence(NOTHING_UNUSUAL))
        if digest.has_forecast:
            said.append(Sentence(NOTHING_FILLS))
    if not digest.has_forecast:
        said.append(Sentence(NO_FORECAST, "capacity runway"))
    return said


def as_text(digest: Digest, pages_url: str | None = None) -> str:
    """Return the digest as plain text; one line for a week without news."""
    lines = list(map(str, opening(digest)))
    if not digest.has_news:
        return " ".join(lines) + "\n"
    for section in sections(digest):
        lines += ["", f"{section.heading}:", *(f"- {line}" for line in section.lines)]
        lines += [f"- and {section.more} more"] if section.more else []
    if pages_url is not None:
        lines += ["", pages_url]
    return "\n".join(lines) + "\n"


def as_html(digest: Digest, pages_url: str | None = None, *, chart: str | None = None) -> str:
    """Return the digest as HTML; `chart` is the address of the picture."""
    return _template().render(
        opening=opening(digest),
        sections=sections(digest),
        subject=subject_of(digest),
        pages_url=pages_url,
        chart=chart,
    )


def as_mail(digest: Digest, sender: str, to: Sequence[str], pages_url: str | None = None) -> EmailMessage:
    """Return the digest as a mail with both forms; a week without news has one line and no picture."""
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = subject_of(digest), sender, ", ".join(to)
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(as_text(digest, pages_url))
    if digest.has_news:
        drawn = chart_of(digest)
        mail.add_alternative(as_html(digest, pages_url, chart=f"cid:{CHART}"), subtype="html")
        html = mail.get_payload()[1]  # type: ignore[index]
        html.add_related(drawn, "image", "png", cid=f"<{CHART}>", filename=f"{CHART}.png")  # type: ignore[union-attr]
    return mail


def chart_of(digest: Digest) -> bytes:
    """Draw the weekly sizes as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(6.4, 2.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([day for day, _ in digest.history], [size for _, size in digest.history], color="#0066a8", marker=".")  # type: ignore[arg-type]
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _place: human_mb(round(size))))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", alpha=0.3)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()


@cache  # Reading it takes longer than filling it in.
def _template() -> Template:
    return environment_of(PackageLoader("capacity_assets.digest", "templates")).get_template("digest.html.j2")
