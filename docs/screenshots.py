"""Makes the pictures of the pages in docs/images from the demo: `make screenshots`, with `capacity demo` run before."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).with_name("images")
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# Name of the picture, page, width and height of the part that is shown.
PICTURES = (
    ("fleet", "/", 1280, 1000),
    ("database", "/database?server=10&name=crm", 1280, 760),
    ("groups", "/groups?by=team", 1280, 560),
    ("bill", "/bill?by=team", 1280, 620),
)


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
        for name, path, width, height in PICTURES:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(f"http://127.0.0.1:{port}{path}")
            page.screenshot(path=IMAGES / f"{name}.png")
        browser.close()
        served.send_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
