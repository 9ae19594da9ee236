"""Makes pictures of pages and messages from the demo: `make screenshots`, with `capacity demo` run before.

Those of the documentation go to docs/images; every page, in both themes, on a phone and in 4K, to build/screenshots.
Messages of Slack, Teams and PagerDuty are plain renderings of their payloads, not what these products show.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Thresholds, load_settings
from capacity_assets.messages.alerts import AlertUpdate, message_of
from capacity_assets.messages.channels import Receiver, SendingSettings
from capacity_assets.messages.message import NEW, RENDERERS, html_of, pagerduty_events
from capacity_assets.reading.risks import read_risks
from capacity_assets.runtime import open_engine

IMAGES = Path(__file__).with_name("images")
RISKS_IN_MAIL = 2
EVERY_PAGE = Path(__file__).parents[1] / "build" / "screenshots"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# Name of the picture, page, width and height of the part that is shown.
PICTURES = (
    ("fleet", "/", 1280, 1000),
    ("database", "/database?server=10&name=crm", 1280, 760),
    ("groups", "/groups?by=team", 1280, 560),
    ("bill", "/bill?by=team", 1280, 620),
    ("budget", "/budget?by=team", 1280, 860),
)
PAGES = {
    "fleet": "/",
    "changes": "/changes",
    "servers": "/servers",
    "databases": "/databases",
    "groups": "/groups?by=team",
    "filling": "/filling",
    "bill": "/bill?by=team",
    "budget": "/budget",
    "decisions": "/decisions?state=all",
    "what-if": "/scenario",
    "what-if-faster": "/scenario?growth_factor=1.2&growth_label=team%3Dfinance",
    "accuracy": "/accuracy",
    "server": "/server?server=10",
    "database": "/database?server=10&name=crm",
    "volume": "/volume?server=1&name=%2Fvar%2Flib%2Fmysql",
    "group": "/group?by=team&name=sales",
    "search": "/search?q=orders",
    "refusal": "/nothing",
}
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}},
    "4k": {"viewport": {"width": 3840, "height": 2160}},
}


def main() -> None:
    """Serve the demo, look at each page, and write what is seen."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit("No Chromium is installed here.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [sys.executable, "-m", "capacity_assets.cli", "serve", "--port", str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as served, sync_playwright() as playwright:  # noqa: S603 -- our own command
        assert served.stdout is not None  # noqa: S101 -- it is piped
        served.stdout.readline()
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        address = f"http://127.0.0.1:{port}"
        for name, path, width, height in PICTURES:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(f"{address}{path}")
            page.screenshot(path=IMAGES / f"{name}.png")
        picture_messages(browser, address)
        picture_every_page(browser, address)
        browser.close()
        served.send_signal(signal.SIGINT)


def picture_messages(browser: Browser, address: str) -> None:
    """Write pictures of the message about what fills first in the demo in each format, whatever its probability."""
    settings = load_settings()
    clock, thresholds = Clock(settings.zone), Thresholds(90, 1, 1)
    with open_engine(settings) as engine:
        risks = read_risks(engine, clock.today(), thresholds, ())
    if not risks.risks:
        sys.exit("Nothing of the demo fills.")
    news = [AlertUpdate(NEW, risk.key, risks.as_of, risk=risk) for risk in risks.risks[:RISKS_IN_MAIL]]
    sending = SendingSettings(pages_url=address, thresholds=thresholds)
    message = message_of(Receiver("dba"), news, sending)
    pictures = {
        "alert": html_of(message),
        "alert-slack": STYLE + "".join(slack_html(RENDERERS["slack"](message))),
        "alert-teams": STYLE + "".join(teams_html(RENDERERS["teams"](message)["attachments"][0]["content"])),
        "alert-pagerduty": STYLE + "".join(pagerduty_html(pagerduty_events(message, "ROUTING_KEY")[0])),
    }
    page = browser.new_page(viewport={"width": 700, "height": 100})
    for name, html in pictures.items():
        page.set_content(html)
        page.screenshot(path=IMAGES / f"{name}.png", full_page=True)


STYLE = """<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 16px; color: #1d1c1d; }
h1 { font-size: 18px; margin: 0 0 8px; } p { margin: 8px 0; white-space: pre-line; }
hr { border: 0; border-top: 1px solid #ddd; }
td { padding: 1px 12px 1px 0; vertical-align: top; } td:first-child { font-weight: 600; white-space: nowrap; }
code { background: #f4f4f4; border: 1px solid #ddd; border-radius: 3px; padding: 0 3px; } a { color: #1264a3; }
</style>"""
# Slack's text has its three special characters escaped as HTML has them, so brackets are links.
SLACK = (
    (r"<([^|<>]+)\|([^<>]+)>", r'<a href="\1">\2</a>'),
    (r"\*(.+?)\*", r"<b>\1</b>"),
    (r"`(.+?)`", r"<code>\1</code>"),
)
TEAMS = ((r"\[([^\]]+)\]\(([^)]+)\)", r'<a href="\2">\1</a>'), (r"\\([\\*\[\]`])", r"\1"))


def marked_up(html: str, markup: Sequence[tuple[str, str]]) -> str:
    """Render the markup that messages use in Slack or Teams."""
    for pattern, replacement in markup:
        html = re.sub(pattern, replacement, html)
    return html


def teams_text(text: str) -> str:
    """Render the Markdown of cards."""
    return marked_up(escape(text, quote=False), TEAMS)


def slack_html(payload: dict[str, Any]) -> Iterator[str]:
    """Yield the blocks of a Slack message."""
    for block in payload["blocks"]:
        tag = "h1" if block["type"] == "header" else "p"
        text = block["text"]["text"]
        shown = escape(text) if block["text"]["type"] == "plain_text" else marked_up(text, SLACK)
        yield f"<{tag}>{shown}</{tag}>"


def teams_html(card: dict[str, Any]) -> Iterator[str]:
    """Yield the elements of an Adaptive Card."""
    for element in card["body"]:
        if element["type"] == "FactSet":
            yield fields_html({fact["title"]: fact["value"] for fact in element["facts"]})
        elif element.get("style") == "heading":
            yield f"<h1>{teams_text(element['text'])}</h1>"
        else:
            text = teams_text(element["text"])
            text = f"<code>{text}</code>" if element.get("fontType") == "Monospace" else text
            yield f"{'<hr>' if element.get('separator') else ''}<p>{text}</p>"
    yield from (f"<button>{escape(action['title'])}</button>" for action in card.get("actions", ()))


def pagerduty_html(event: dict[str, Any]) -> Iterator[str]:
    """Yield the fields of an event."""
    payload = event["payload"]
    yield f"<h1>{escape(payload['summary'])}</h1>"
    yield fields_html({name: payload[name] for name in ("severity", "source", "class")} | payload["custom_details"])


def fields_html(fields: dict[str, Any]) -> str:
    """Return fields as a table."""
    rows = (f"<tr><td>{escape(name)}</td><td>{teams_text(str(value))}</td></tr>" for name, value in fields.items())
    return f"<table>{''.join(rows)}</table>"


def picture_every_page(browser: Browser, address: str) -> None:
    """Write a whole picture of each page on each screen."""
    EVERY_PAGE.mkdir(parents=True, exist_ok=True)
    for screen, options in SCREENS.items():
        context = browser.new_context(base_url=address, **options)
        page = context.new_page()
        for name, path in PAGES.items():
            page.goto(path)
            page.screenshot(path=EVERY_PAGE / f"{name}-{screen}.png", full_page=True)
        context.close()


if __name__ == "__main__":
    main()
