"""A message, and its formats: plain text, mail, JSON, Slack, Microsoft Teams and PagerDuty.

Each format respects the documented limits of its receiver; the message says how much was left out. Names come from
servers, so they are escaped in every format with markup.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import EmailMessage
from functools import cache
from typing import Any

from jinja2 import PackageLoader, Template

from capacity_assets.charts.drawing import environment_of

# Slack: 50 blocks, 150 characters in a header, 3,000 in a section. Teams: 28 KB. PagerDuty: 1,024 in a summary.
SLACK_SECTIONS, SLACK_HEADER, SLACK_TEXT = 20, 150, 3_000
TEAMS_BYTES, TEAMS_SECTIONS = 24_000, 20
PAGERDUTY_SUMMARY = 1_024
ADAPTIVE_CARD = "application/vnd.microsoft.card.adaptive"
CLIENT = "capacity_assets"
NEW, WORSE, RESOLVED = "new", "worse", "resolved"


@dataclass(frozen=True)
class Sentence:
    """A sentence with an optional command at its end, which formats show as code."""

    text: str
    command: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.command}".rstrip()


@dataclass(frozen=True)
class MessageLine:
    """A line of text with an optional name and page."""

    text: str
    url: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        return self.text if self.name is None else f"{self.name}: {self.text}"


@dataclass(frozen=True)
class Event:
    """A section for programs: what happened to what, its severity and figures."""

    kind: str
    """new, worse or resolved."""
    key: str
    """The same in all messages about the same subject."""
    severity: str
    """critical, error or info, as in PagerDuty."""
    source: str
    figures: Mapping[str, object]


@dataclass(frozen=True)
class Section:
    """A part of a message: heading, lines, the number of lines left out, its page, and a command to run."""

    heading: str
    lines: Sequence[MessageLine] = ()
    more: int = 0
    url: str | None = None
    command: str | None = None
    event: Event | None = None


@dataclass(frozen=True)
class Message:
    """A message; `link` leads to the page of the whole, `more` is the number of sections left out."""

    title: str
    opening: Sequence[Sentence] = ()
    sections: Sequence[Section] = ()
    link: MessageLine | None = None
    more: int = 0
    event: Event | None = None
    """For a message without sections."""

    @property
    def url(self) -> str | None:
        """The address of the page of the whole."""
        return None if self.link is None else self.link.url


def plain_text(message: Message) -> str:
    """Return the message as plain text, without its title."""
    lines = list(map(str, message.opening))
    for section in message.sections:
        # A message about a single subject has its heading as title.
        if section.heading != message.title:
            lines += [*([""] if lines else []), f"{section.heading}:"]
        lines += [f"- {line}" + (f"\n  {line.url}" if line.url else "") for line in section.lines]
        lines += [f"- and {section.more} more"] if section.more else []
        lines += [f"- To decide: {section.command}"] if section.command else []
        lines += [f"  {section.url}"] if section.url else []
    lines += ["", f"And {message.more} more."] if message.more else []
    lines += ["", message.url] if message.url else []
    return "\n".join(lines)


def html_of(message: Message, **chart: object) -> str:
    """Return the message as HTML; `chart` has the values of the chart before the sections."""
    return _template().render(message=message, **{"chart": None, **chart})


def mail_of(message: Message, sender: str, to: Sequence[str], html: str | None = None) -> EmailMessage:
    """Return the message as a mail in plain text and HTML.

    `html` replaces the HTML part; an empty one leaves plain text only.
    """
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = message.title, sender, ", ".join(to)
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(f"{plain_text(message)}\n")
    if html != "":
        mail.add_alternative(html_of(message) if html is None else html, subtype="html")
    return mail


@cache  # Compiling it takes longer than rendering it.
def _template() -> Template:
    return environment_of(PackageLoader("capacity_assets.messages", "templates")).get_template("message.html.j2")


def _text(message: Message) -> dict[str, Any]:
    body = plain_text(message)
    return {"text": f"{message.title}\n{body}" if body else message.title}


def _json(message: Message) -> dict[str, Any]:
    events = [
        {
            "event": event.kind,
            "key": event.key,
            "severity": event.severity,
            "title": section.heading,
            "url": section.url,
            "command": section.command,
            **event.figures,
        }
        for section, event in _events(message)
    ]
    return {"title": message.title, **_text(message), "url": message.url, "events": events}


def _slack(message: Message) -> dict[str, Any]:
    """Return the blocks of an incoming webhook; notifications show `text`."""
    shown = _cut(message, SLACK_SECTIONS)
    texts = [
        _escaped_for_slack(sentence.text) + (f" `{_escaped_for_slack(sentence.command)}`" if sentence.command else "")
        for sentence in shown.opening
    ]
    texts += [_section_of_slack(_linked_text(message, section), section) for section in shown.sections]
    texts += [f"And {shown.more} more."] if shown.more else []
    texts += [_line_of_slack(shown.link)] if shown.link else []
    header = {"type": "header", "text": {"type": "plain_text", "text": _shorten(message.title, SLACK_HEADER)}}
    sections = [{"type": "section", "text": {"type": "mrkdwn", "text": _shorten(text, SLACK_TEXT)}} for text in texts]
    return {"text": _escaped_for_slack(message.title), "blocks": [header, *sections]}


def _section_of_slack(heading: str, section: Section) -> str:
    """Return the section with as many lines as fit, and the number of the others."""
    heading = _escaped_for_slack(heading)
    head = [f"*<{section.url}|{heading}>*" if section.url else f"*{heading}*"] if heading else []
    command = [f"`{_escaped_for_slack(section.command)}`"] if section.command else []
    lines = [f"• {_line_of_slack(line)}" for line in section.lines]
    for shown in range(len(lines), -1, -1):
        more = section.more + len(lines) - shown
        left_out = [f"• and {more} more"] if more else []
        text = "\n".join([*head, *lines[:shown], *left_out, *command])
        if len(text) <= SLACK_TEXT:
            break
    return text


def _line_of_slack(line: MessageLine) -> str:
    text = _escaped_for_slack(line.text)
    named = text if line.name is None else f"*{line.name}:* {text}"
    return f"<{line.url}|{named}>" if line.url else named


def _escaped_for_slack(text: str) -> str:
    """Escape the three characters that are markup in Slack; links and mentions need the brackets."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _teams(message: Message) -> dict[str, Any]:
    for shown in range(TEAMS_SECTIONS, -1, -1):
        card = _card(_cut(message, shown))
        if len(json.dumps(card)) <= TEAMS_BYTES:
            break
    attachment = {"contentType": ADAPTIVE_CARD, "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def _card(message: Message) -> dict[str, Any]:
    body = [_block(message.title, size="Large", weight="Bolder", style="heading")]
    body += [_block(str(sentence)) for sentence in message.opening]
    for section in message.sections:
        heading = _escaped_for_teams(_linked_text(message, section))
        linked = f"[{heading}]({section.url})" if section.url else heading
        body += [{**_block("", weight="Bolder", separator=True), "text": linked}] if heading else []
        facts = [{"title": line.name, "value": _escaped_for_teams(line.text)} for line in section.lines if line.name]
        body += [{"type": "FactSet", "facts": facts}] if facts else []
        lines = [_line_of_teams(line) for line in section.lines if not line.name]
        lines += [f"- and {section.more} more"] if section.more else []
        body += [{**_block(""), "text": "\n".join(lines)}] if lines else []
        body += [_block(section.command, fontType="Monospace")] if section.command else []
    body += [_block(f"And {message.more} more.")] if message.more else []
    card: dict[str, Any] = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": {"width": "Full"},
        "body": body,
    }
    if message.link is not None:
        card["actions"] = [{"type": "Action.OpenUrl", "title": message.link.text, "url": message.link.url}]
    return card


def _block(text: str, **looks: object) -> dict[str, Any]:
    return {"type": "TextBlock", "text": _escaped_for_teams(text), "wrap": True, **looks}


def _line_of_teams(line: MessageLine) -> str:
    text = _escaped_for_teams(str(line))
    return f"- [{text}]({line.url})" if line.url else f"- {text}"


def _escaped_for_teams(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "\\*[]`" else sign for sign in text)


def pagerduty_events(message: Message, routing_key: str) -> list[dict[str, Any]]:
    """Return events for PagerDuty's Events API v2, one per section, because an incident has one subject."""
    return [_pagerduty(message, section, event, routing_key) for section, event in _events(message)]


def _events(message: Message) -> list[tuple[Section, Event]]:
    line = MessageLine(plain_text(message), name="Text")
    whole = Section(message.title, [line], url=message.url, event=message.event)
    return [(section, section.event) for section in (*message.sections, whole) if section.event is not None]


def _pagerduty(message: Message, section: Section, event: Event, routing_key: str) -> dict[str, Any]:
    same = {"routing_key": routing_key, "dedup_key": event.key}
    if event.kind == RESOLVED:
        return {**same, "event_action": "resolve"}
    url = section.url or message.url
    page = {"client_url": url, "links": [{"href": url, "text": "Open the page"}]} if url else {}
    details = {line.name: line.text for line in section.lines if line.name}
    return {
        **same,
        "event_action": "trigger",
        "client": CLIENT,
        **page,
        "payload": {
            "summary": _shorten(section.heading, PAGERDUTY_SUMMARY),
            "source": event.source,
            "severity": event.severity,
            "class": "capacity",
            "custom_details": details | ({"To decide": section.command} if section.command else {}),
        },
    }


def _linked_text(message: Message, section: Section) -> str:
    """Return the text of a section's link: its heading, unless that is the title of the message."""
    if section.heading != message.title:
        return section.heading
    return "Open the page" if section.url else ""


def _cut(message: Message, shown: int) -> Message:
    left_out = len(message.sections) - shown
    if left_out <= 0:
        return message
    return replace(message, sections=message.sections[:shown], more=message.more + left_out)


def _shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


PAGERDUTY = "pagerduty"
RENDERERS: dict[str, Callable[[Message], dict[str, Any]]] = {
    "text": _text,
    "json": _json,
    "slack": _slack,
    "teams": _teams,
}
MESSAGE_FORMATS = (*RENDERERS, PAGERDUTY)
"""Formats of webhooks."""
