"""Makes pictures of the pages from the demo: `make screenshots`, with `capacity demo` run before.

Those of the documentation go to docs/images; every page, in both themes, on a phone and in 4K, to build/screenshots.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Thresholds, load_settings
from capacity_assets.messages.alerts import AlertUpdate, message_of
from capacity_assets.messages.message import NEW, html_of
from capacity_assets.messages.sending import Receiver, SendingSettings
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
    "servers": "/servers",
    "databases": "/databases",
    "groups": "/groups?by=team",
    "filling": "/filling",
    "bill": "/bill?by=team",
    "budget": "/budget",
    "scenario": "/scenario",
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
        picture_mail(browser, address)
        picture_every_page(browser, address)
        browser.close()
        served.send_signal(signal.SIGINT)


def picture_mail(browser: Browser, address: str) -> None:
    """Write a picture of the mail about what fills first in the demo, whatever its probability."""
    settings = load_settings()
    clock, thresholds = Clock(settings.zone), Thresholds(90, 1, 1)
    with open_engine(settings) as engine:
        risks = read_risks(engine, clock.today(), thresholds, ())
    if not risks.risks:
        sys.exit("Nothing of the demo fills.")
    news = [AlertUpdate(NEW, risk.key, risks.as_of, risk=risk) for risk in risks.risks[:RISKS_IN_MAIL]]
    sending = SendingSettings(pages_url=address, thresholds=thresholds)
    page = browser.new_page(viewport={"width": 700, "height": 100})
    page.set_content(html_of(message_of(Receiver("dba"), news, sending)))
    page.screenshot(path=IMAGES / "alert.png", full_page=True)


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
