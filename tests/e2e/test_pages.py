"""The pages in a real browser, with the demo and with an empty database: links, forms, keyboard, print."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import pytest
from axe_playwright_python.base import AXE_SCRIPT, AxeResults
from playwright.sync_api import Browser, Locator, Page, expect
from playwright.sync_api import Error as PlaywrightError

from capacity_assets.web.app import CHALLENGE
from tests.e2e.conftest import Demo
from tests.e2e.stack import COMMAND, environment, run
from tests.profiles import PROFILE
from tests.servers import free_port

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
PATHS = (
    "/",
    "/changes",
    "/servers",
    "/databases?period=monthly&order=growth",
    "/tables?order=free",
    "/groups",
    "/filling",
    "/bill",
    "/accuracy",
    "/budget",
    "/decisions?state=all",
    "/scenario",
    "/scenario?growth_factor=1.2&growth_label=team%3Dfinance",
    "/scenario?new_database_gb=50",
    "/scenario?purge_gb=x&purge_server=mysql-orders-01",
    "/server?server=1",
    "/database?server=10&name=crm&window=2026-11-01",
    "/volume?server=1&name=%2Fvar%2Flib%2Fmysql",
    "/table?server=5&database=audit&schema=public&name=audit_log",
    "/group?by=team&name=finance",
    "/?range=1y&compare=year",
    "/database?server=10&name=crm&first=2026-11-01&last=2026-11-20",
    "/search?q=orders",
    "/nothing",
)
# Rules of WCAG 2.2, levels A and AA.
RULES = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]},
    # Otherwise every element that passes is described too.
    "resultTypes": ["violations"],
}
# What depends on the colours; the document is the same.
RULES_OF_COLOURS = RULES | {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
EVERY_SCHEME: dict[Literal["light", "dark"], Any] = {"light": RULES, "dark": RULES_OF_COLOURS}
# By day the dark pages are compared with their pictures only (test_looks.py).
SCHEMES = EVERY_SCHEME if PROFILE.long_tests else {"light": RULES}
WIDTHS = (330, 390, 768, 1100, 1280, 3840) if PROFILE.long_tests else (330, 390, 1280, 3840)
BROKEN_WORDS = """
() => [...document.querySelectorAll("main :is(td, th, dt, dd, li, p)")].flatMap(part => {
  const texts = document.createTreeWalker(part, NodeFilter.SHOW_TEXT), found = [];
  while (texts.nextNode()) {
    for (const word of texts.currentNode.data.matchAll(/[A-Za-z]{2,12}/g)) {
      const range = document.createRange();
      range.setStart(texts.currentNode, word.index);
      range.setEnd(texts.currentNode, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(line => line.top)).size > 1) found.push(part.innerText);
    }
  }
  return found;
})"""


@contextmanager
def serving(home: Path, **variables: str) -> Iterator[str]:
    """`capacity serve` until the block ends; then Ctrl-C, which must stop it."""
    address = f"http://127.0.0.1:{free_port()}"
    arguments = [*COMMAND, "serve", "--port", address.rpartition(":")[2]]
    with subprocess.Popen(arguments, env=environment(home, **variables), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().strip() == f"Pages: {address}"
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert process.returncode == 0


@pytest.fixture(scope="module")
def address(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(demo.copy_to(tmp_path_factory.mktemp("pages") / "home")) as found:
        yield found


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose database has the schema and no rows."""
    home = tmp_path_factory.mktemp("empty") / "home"
    home.parent.chmod(0o711)
    assert run(home, "init").returncode == 0
    return home


def opened(browser: Browser, address: str, **options: Any) -> Page:
    page = browser.new_context(base_url=address, **options).new_page()
    page.goto("/")
    return page


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page in a browser that reports no script error and no violation of the policy."""
    found = opened(browser, address, viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield found
    found.context.close()
    assert [text for text in complaints if "404" not in text] == []


def test_from_the_fleet_to_the_samples_behind_a_point_and_back_by_the_address(page: Page, browser: Browser) -> None:
    expect(page.get_by_role("heading", name="Fleet")).to_be_visible()
    page.get_by_role("link", name="crm").first.click()
    expect(page.get_by_role("heading", name="crm", exact=True)).to_be_visible()
    page.get_by_role("link", name="monthly", exact=True).click()
    chart = page.get_by_role("application", name="Size of crm")
    chart.press("Home")
    chart.press("ArrowRight")
    chart.press("Enter")

    expect(page.get_by_role("heading", name=re.compile("^Samples of "))).to_be_visible()
    expect(page.get_by_text("capacity explain crm --server")).to_be_visible()
    shared = opened(browser, page.url.split("/database")[0])
    shared.goto(page.url)
    assert shared.locator("#behind").inner_text() == page.locator("#behind").inner_text()
    shared.context.close()
    page.get_by_role("link", name="sqlserver-bi-01").first.click()
    expect(page.get_by_role("heading", name="sqlserver-bi-01")).to_be_visible()
    page.get_by_role("link", name="E:\\", exact=True).click()
    expect(page.get_by_role("heading", name="Disk E:\\")).to_be_visible()


def test_which_teams_databases_grew_most_and_when_the_first_of_them_fills_is_read_off_the_screen(page: Page) -> None:
    groups = page.get_by_role("region", name=re.compile("^By team"))

    rows = groups.locator("tbody tr")
    assert rows.count() >= 6
    sales = rows.filter(has_text="sales")
    expect(sales).to_contain_text("crm on sqlserver-bi-01")
    expect(sales.locator("time")).to_contain_text(re.compile(r"\d+ \w{3} 20\d\d"))
    sales.get_by_role("link", name="sales").click()
    expect(page.get_by_role("heading", name="Databases that grew most")).to_be_visible()
    page.get_by_role("link", name="Bill", exact=True).click()
    expect(page.locator("tr.total")).to_contain_text(re.compile(r"\d\.\d\d"))


def test_from_the_growth_of_the_fleet_to_the_table_that_caused_it_in_two_clicks(page: Page) -> None:
    page.get_by_role("link", name="Tables and indexes that grew most").click()
    listed = page.locator("tbody tr")
    first = listed.filter(has_text="audit_log").first
    expect(first).to_contain_text("in audit on postgresql-core-01")
    first.get_by_role("link", name="public.audit_log", exact=True).click()
    expect(page.get_by_role("heading", name="Table public.audit_log")).to_be_visible()
    expect(page.locator("dl.figures")).to_contain_text(re.compile(r"Growth in a week\s*\+\d"))
    page.get_by_role("navigation", name="Breadcrumb").get_by_role("link", name="audit", exact=True).click()
    inside = page.get_by_role("region", name="What grew inside")
    expect(inside.locator("tbody tr").first).to_contain_text("public.audit_log")
    inside.get_by_role("link", name="public.audit_log_pkey on audit_log").click()
    expect(page.get_by_role("heading", name="Table public.audit_log")).to_be_visible()
    expect(page.get_by_role("heading", name="Indexes")).to_be_visible()


def test_a_search_shows_names_while_one_types_and_goes_there_by_keys(page: Page) -> None:
    field = page.get_by_role("combobox", name="Search")
    field.press_sequentially("pri")
    listed = page.get_by_role("option")
    expect(listed.first).to_contain_text("pri")
    assert all("pri" in text.casefold() for text in listed.all_inner_texts())
    field.press("ArrowDown")
    expect(listed.first).to_have_attribute("aria-selected", "true")
    name = listed.first.inner_text().split(" · ")[0]
    field.press("Enter")
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    page.get_by_role("combobox", name="Search").fill("no such name")
    expect(page.get_by_role("status")).to_have_text("No matches")
    expect(page.get_by_role("listbox")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.get_by_text("No server, database, disk, group or table has all these words")).to_be_visible()
    page.get_by_role("combobox", name="Search").fill("public.audit_log audit")
    expect(listed.first).to_have_text("audit_log · table in audit on postgresql-core-01")
    page.get_by_role("combobox", name="Search").press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Table public.audit_log")).to_be_visible()


def test_the_search_finds_pages_by_their_title_with_and_without_script(
    page: Page, browser: Browser, address: str
) -> None:
    field = page.get_by_role("combobox", name="Search")
    field.press_sequentially("decis")
    expect(page.get_by_role("option").first).to_have_text("Decisions · page")
    field.press("ArrowDown")
    field.press("Enter")
    expect(page.get_by_role("heading", name="Decisions")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("planned"))).to_contain_text("in force")
    page.get_by_role("link", name="E:\\", exact=False).first.click()
    expect(page.get_by_role("heading", name="Disk E:\\")).to_be_visible()
    page.get_by_role("link", name="All decisions on sqlserver-bi-01").click()
    expect(page.get_by_role("heading", name="Decisions on sqlserver-bi-01")).to_be_visible()
    plain = opened(browser, address, java_script_enabled=False)
    plain.goto("/search?q=Budg")
    plain.get_by_role("main").get_by_role("link", name="Budget", exact=True).click()
    expect(plain.get_by_role("heading", name=re.compile("^Budget"))).to_be_visible()
    plain.context.close()


def test_a_slash_or_control_k_opens_the_search_with_what_fills_first(page: Page) -> None:
    for keys in ("/", "Control+K"):
        page.locator("h1").click()
        page.keyboard.press(keys)
        listed = page.get_by_role("option")
        expect(listed.first).to_be_visible()
        texts = [text.rpartition("full by ")[2] for text in listed.all_inner_texts()]
        dates = [datetime.strptime(text, "%d %b %Y").date() for text in texts]  # noqa: DTZ007 -- a day
        assert dates == sorted(dates)
        page.keyboard.press("Escape")
        expect(page.get_by_role("listbox")).to_be_hidden()
    page.keyboard.press("/")
    page.get_by_role("combobox", name="Search").fill("o")
    expect(page.get_by_role("option").first).to_contain_text("full by")


def test_a_chart_shows_its_values_under_the_pointer_and_a_drag_zooms_into_the_address(page: Page) -> None:
    page.goto("/database?server=10&name=crm")
    chart = page.get_by_role("application", name="Size of crm")
    area = chart.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] * 0.3, area["y"] + 100)
    reading = page.get_by_role("status")
    expect(reading).to_contain_text(re.compile(r"^\d+ \w{3} 20\d\d: [\d.,]+ GiB"))
    first_shown = chart.get_attribute("data-first")
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.5, area["y"] + 120, steps=3)
    page.mouse.up()
    page.wait_for_url(re.compile("first=20.*last=20"))
    assert int(chart.get_attribute("data-first") or 0) > int(first_shown or 0)
    expect(page.get_by_label("From")).to_have_value(re.compile("^20"))
    page.get_by_role("link", name="1 year").click()
    assert "first=" not in page.url
    page.get_by_role("link", name="Previous year").click()
    expect(page.get_by_text("Dashed: previous year.")).to_have_count(page.locator("polyline.earlier").count() and 1)


def test_a_chosen_theme_is_kept_on_the_next_page(page: Page) -> None:
    toggle = page.get_by_role("button", name=re.compile("^Theme"))
    expect(toggle).to_have_accessible_name("Theme: system")
    toggle.click()
    toggle.click()
    expect(toggle).to_have_accessible_name("Theme: dark")
    page.goto("/servers")
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 24)"


def test_without_script_every_page_is_there_and_the_search_is_a_form(browser: Browser, address: str) -> None:
    page = opened(browser, address, java_script_enabled=False)
    page.get_by_label("Search").fill("pricing")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Search: pricing")).to_be_visible()
    page.get_by_role("link", name="pricing").first.click()
    expect(page.locator(".plot polyline.mean").last).to_be_visible()
    page.context.close()


def test_what_if_is_found_by_its_names_filled_in_and_answered_by_its_address(page: Page) -> None:
    for query in ("what if", "scenario"):
        page.keyboard.press("Control+k")
        page.get_by_role("combobox").fill(query)
        expect(page.get_by_role("option").first).to_have_text("What if · page")
    page.get_by_role("option").first.click()
    page.get_by_role("group", name="Purge").get_by_label("GiB less").fill("50")
    page.get_by_role("group", name="Purge").get_by_label("Server").fill("sqlserver-bi-01")
    page.get_by_role("group", name="Purge").get_by_label("Database").fill("crm")
    page.get_by_role("button", name="Show what changes").click()

    expect(page.locator(".headline")).to_contain_text("With these assumptions, ")
    assert page.url.endswith("/scenario?purge_gb=50&purge_server=sqlserver-bi-01&purge_database=crm")
    page.get_by_text("Change the assumptions").click()
    expect(page.get_by_role("group", name="Purge").get_by_label("Database")).to_have_value("crm")


def test_the_form_of_what_if_offers_the_names_of_this_fleet_and_the_disks_of_the_chosen_server(page: Page) -> None:
    page.goto("/scenario")

    def offered(group: str, label: str) -> Locator:
        field = page.get_by_role("group", name=group).get_by_label(label)
        field.focus()
        return page.locator(f"datalist#{field.get_attribute('list')} option")

    expect(offered("Growth", "Server")).to_have_count(12)
    expect(offered("Growth", "Label").first).to_have_attribute("value", "team=commerce")
    expect(offered("Purge", "Database").first).to_have_attribute("value", "crm")
    page.get_by_role("group", name="Limit").get_by_label("Server").fill("mysql-orders-01")
    disk = offered("Limit", "Disk")
    expect(disk).to_have_count(1)
    expect(disk).to_have_attribute("value", "/var/lib/mysql")
    page.get_by_role("group", name="Limit").get_by_label("Disk").fill("nothing like it")
    expect(disk).to_have_count(0)


def test_no_page_scrolls_aside_on_any_screen_breaks_a_word_or_a_rule_of_accessibility(
    browser: Browser, address: str
) -> None:
    # The rules run as a script in the page, which its policy forbids to anything but ours.
    page = opened(browser, address, bypass_csp=True)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for path in PATHS if PROFILE.long_tests else PATHS[::3]:
        page.goto(path)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
            if width not in (min(WIDTHS), max(WIDTHS)):
                assert page.evaluate(BROKEN_WORDS) == [], (path, width)
            if path.startswith("/decisions"):
                expect(page.get_by_text("by capacity demo")).to_be_visible()
            if path == "/":
                page.screenshot(path=SCREENSHOTS / f"pages-{width}.png")
        page.set_viewport_size({"width": 1280, "height": 720})
        page.evaluate(AXE_SCRIPT)
        for scheme, rules in SCHEMES.items():
            page.emulate_media(color_scheme=scheme)
            found = AxeResults(page.evaluate("rules => axe.run(rules)", rules))
            assert found.violations_count == 0, f"{path}, {scheme}: {found.generate_report()}"
    page.context.close()


def test_a_wide_screen_shows_everything_larger_by_the_same(browser: Browser, address: str) -> None:
    parts = ("body", "h1", "h2", "td", "dd", "p.under", ".chart text", "footer")
    read = """parts => [
        ...parts.map(part => parseFloat(getComputedStyle(document.querySelector(part)).fontSize)),
        ...[".chart .plot", ".treemap svg"].map(part => document.querySelector(part).getBoundingClientRect().height)
    ]"""
    shown = {}
    for width in (1280, 3840):
        page = opened(browser, address, viewport={"width": width, "height": 2000})
        shown[width] = page.evaluate(read, parts)
        page.context.close()

    ratios = [wide / usual for usual, wide in zip(shown[1280], shown[3840], strict=True)]
    assert ratios == pytest.approx([2] * len(ratios), abs=0.01)


@pytest.mark.nightly("starts further pages")
def test_what_opens_the_pages_is_sent_to_no_other_port(browser: Browser, empty_home: Path) -> None:
    seen: list[str | None] = []

    class Other(BaseHTTPRequestHandler):
        """A server on another port of the host, which asks for a login as the pages do."""

        def do_GET(self) -> None:
            seen.extend((self.headers["Authorization"], self.headers["Cookie"]))
            self.send_response(401)
            self.send_header("WWW-Authenticate", CHALLENGE)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    token = "a-secret-of-readers"  # noqa: S105 -- of this test
    with (
        serving(empty_home, CAPACITY_WEB_TOKEN=token) as address,
        ThreadingHTTPServer(("127.0.0.1", 0), Other) as other,
    ):
        Thread(target=other.serve_forever).start()
        page = browser.new_context().new_page()
        page.goto(address.replace("//", f"//ann:{token}@"))
        page.goto(f"{address}/servers")
        expect(page.get_by_role("heading", name="Nothing was computed yet")).to_be_visible()
        page.get_by_role("combobox", name="Search").press_sequentially("x")
        with page.expect_response(lambda response: "/search" in response.url) as searched:
            page.get_by_role("combobox", name="Search").press_sequentially("y")
        assert searched.value.status == 200
        with suppress(PlaywrightError):  # nobody answers the question
            page.goto(f"http://127.0.0.1:{other.server_port}/servers")
        page.context.close()
        other.shutdown()
    assert seen
    assert set(seen) == {None}


def test_a_page_is_reached_and_left_by_the_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.closest('main') !== null")
    assert focused, "the next stop is in the content"


def test_on_paper_a_page_has_its_figures_and_no_menu(page: Page) -> None:
    page.emulate_media(media="print")

    expect(page.get_by_role("navigation", name="Pages")).to_be_hidden()
    expect(page.get_by_role("heading", name="Fills first")).to_be_visible()
    assert len(page.pdf(format="A4")) > 10_000


def test_on_paper_a_table_has_all_its_months(page: Page) -> None:
    page.emulate_media(media="print")
    # A4 without the margins that browsers leave.
    page.set_viewport_size({"width": 718, "height": 1000})

    for path in ("/budget?by=team", "/bill?by=team"):
        page.goto(path)
        for table in page.locator(".scroll:visible table").all():
            assert table.evaluate("it => it.getBoundingClientRect().right") <= 718, path
            assert table.evaluate("it => getComputedStyle(it.parentElement).overflowX") == "visible"


def test_every_page_over_an_empty_database_says_how_to_begin(browser: Browser, empty_home: Path) -> None:
    with serving(empty_home) as address:
        page = opened(browser, address)
        expect(page.get_by_role("heading", name="Nothing was computed yet")).to_be_visible()
        for path in ("/servers", "/databases", "/groups", "/filling", "/bill", "/search"):
            page.goto(path)
            expect(page.locator("main")).not_to_be_empty()
        page.context.close()


def test_a_table_that_is_wider_than_a_phone_says_that_it_scrolls(page: Page) -> None:
    said = page.get_by_text("The table scrolls sideways.")
    page.goto("/budget")
    expect(said).to_be_hidden()
    page.set_viewport_size({"width": 390, "height": 844})
    expect(said).to_be_visible()
