"""The demo served by one `capacity up`: GraphQL, foreign pages, the shipped proxy, and a real browser.

Screenshots stay in build/screenshots.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import text

from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import CAPACITY_DRIVER, Settings
from capacity_assets.base.units import human_day
from capacity_assets.database.embedded import CAPACITY_DATABASE, embedded_server
from capacity_assets.database.engine import capacity_engine
from tests.clocks import SHANGHAI
from tests.databases import execute, rows
from tests.e2e import demo_in_the_ui as ui
from tests.e2e.conftest import FIRST_DAY, Demo
from tests.e2e.foreign_pages import TAKEN, answer, login, nginx, proxy, questions
from tests.e2e.stack import (
    ask,
    free_ports,
    launch,
    processes_naming,
    run,
    served,
    status,
    wait_for,
    waits_for_a_lock,
)
from tests.servers import free_port

# A busy machine takes longer than the usual five seconds.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def stack(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ui.Stack]:
    """The demo, served; tests then change the samples of two months."""
    home = demo.copy_to(tmp_path_factory.mktemp("served") / "home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CAPACITY_START_DATE", FIRST_DAY)
        port, pages_port, proxies = free_port(), free_port(), (free_port(), free_port(), free_port())
        names = [word for proxy in proxies for word in ("--name", f"127.0.0.1:{proxy}")]
        names += ["--sql-port", str(free_port())]
        settings = Settings(CAPACITY_HOME=home)  # type: ignore[call-arg]
        with served(home, port, *names, pages_port=pages_port), embedded_server(settings.postgres_data) as server:
            engine = capacity_engine(server.url(CAPACITY_DATABASE, CAPACITY_DRIVER))
            yield ui.Stack(port, pages_port, engine, home, proxies)
            engine.dispose()
        after = " ".join(run(home, "status").stdout.split())
    assert "Runs" in after
    assert "code location" not in after, "what nobody serves is not asked"
    assert processes_naming(str(home)) == [], "Ctrl-C stops the embedded server too"


@pytest.fixture(scope="module")
def opened(browser: Browser, stack: ui.Stack) -> Iterator[tuple[Page, list[str]]]:
    """A page that the tests share, and the errors of its scripts."""
    errors: list[str] = []
    with browser.new_context(
        viewport={"width": 1500, "height": 1000}, base_url=f"http://127.0.0.1:{stack.port}"
    ) as visitor:
        page = visitor.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page, errors


@pytest.fixture
def page(opened: tuple[Page, list[str]]) -> Iterator[Page]:
    """The shared page, as the previous test left it."""
    yield opened[0]
    assert opened[1] == []


def test_the_pages_compare_the_fill_dates_of_the_last_week_and_month(stack: ui.Stack) -> None:
    for period in ("weekly", "monthly"):
        address = f"http://127.0.0.1:{stack.pages_port}/api/v1/changes?period={period}"
        with urllib.request.urlopen(address, timeout=30) as response:
            changes = json.load(response)
        assert changes["compared_as_of"] == changes["window_start"], period


def test_bi_tools_read_the_fleet_over_the_port(stack: ui.Stack) -> None:
    port = (stack.home / "postgres" / "postmaster.pid").read_text().splitlines()[3]
    password = (stack.home / "sql-password").read_text().strip()
    login = {"host": "127.0.0.1", "port": port, "user": "capacity_reader", "dbname": "capacity"}
    with psycopg.connect(**login, password=password) as connection:
        [servers] = connection.execute("SELECT count(*) FROM capacity_servers WHERE is_active").fetchone() or [0]
    assert servers == 11
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(**login, password="wrong")  # noqa: S106 -- the wrong one


def test_the_ui_shows_the_demo_and_a_backfill_launched_there_runs_to_its_end_in_few_runs(stack: ui.Stack) -> None:
    port, home = stack.port, stack.home
    nodes = {node["assetKey"]["path"][0]: node for node in ask(port, ui.ASSETS)["assetNodes"]}
    assert len(nodes) == 26 + 22, "assets, and the views and pages that read them"
    monthly = nodes["monthly_database_aggregations"]
    assert monthly["groupName"] == "monthly"
    partitioned = {name: node["partitionStats"] for name, node in nodes.items() if node["partitionStats"]}
    assert len(partitioned) == 25
    # Forecasts are issued from now on. The demo has those that came due today, for their scores, and those with which
    # the last week and month begin and end, to be compared.
    assert 5 <= partitioned.pop("runway")["numMaterialized"] <= 9
    assert all(stats["numFailed"] == 0 for stats in partitioned.values())
    # Tables and indexes are measured once a week.
    of_objects = partitioned.pop("object_size_stats")
    assert 0 < 7 * of_objects["numMaterialized"] <= of_objects["numPartitions"] + 7, of_objects
    # With a new day, and perhaps a week or month, partitions begin that the demo could not compute.
    with stack.engine.connect() as connection:
        last = connection.scalar(text("SELECT max(collected_date) FROM instance_size_stats"))
    began = int(last < datetime.now(SHANGHAI).date())
    for name, stats in partitioned.items():
        assert 0 < stats["numPartitions"] - began <= stats["numMaterialized"] <= stats["numPartitions"], name
    jobs = ask(port, ui.JOB_RUNS)["repositoryOrError"]["jobs"]
    ran = {job["name"] for job in jobs if any(run["status"] == "SUCCESS" for run in job["runs"])}
    assert {"monthly_aggregation_job", "growth_report_job", "table_maintenance_job"} <= ran

    days = [day["partition"] for day in ui.daily_partitions(port)][:101]
    names = ["daily_database_aggregations", "daily_instance_aggregations"]
    backfill = {"assetSelection": [{"path": [name]} for name in names], "partitionNames": days}
    launched = ask(port, ui.LAUNCH_BACKFILL, backfill=backfill)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    identifier = launched["backfillId"]

    def finished() -> bool:
        return ask(port, ui.BACKFILL, id=identifier)["partitionBackfillOrError"]["status"] == "COMPLETED_SUCCESS"

    wait_for(finished, "the backfill")
    tag = [{"key": "dagster/backfill", "value": identifier}]
    runs = ask(port, ui.RUNS, filter={"tags": tag})["runsOrError"]["results"]
    assert [run["status"] for run in runs] == ["SUCCESS", "SUCCESS"]
    for name in names:
        found = ui.materializations(port, name, days, {run["runId"] for run in runs})
        assert sorted(found) == days
        for day, metadata in found.items():
            assert metadata["period_start"] == day
            assert (metadata["status"], metadata["written_records"]) == ("completed", 0)
    second = run(home, "up", *free_ports())
    assert second.returncode == 1
    assert re.search(r"Another `capacity up` \(process \d+\) serves", second.stderr)
    assert "Use that one, at http://127.0.0.1:" in second.stderr
    assert "kill" not in second.stderr, "it works"


def test_up_answers_its_own_pages_only_and_opens_reports_by_a_click(stack: ui.Stack) -> None:
    (stack.home / "reports" / "growth.html").write_text("<p>a page</p>")
    (stack.home / "secret").write_text("not for readers")
    base = f"http://127.0.0.1:{stack.port}"

    found = questions(f"127.0.0.1:{stack.port}", {})
    with urllib.request.urlopen(f"{base}/capacity/reports/growth.html", timeout=30) as report:  # noqa: S310 -- our own
        page, policies = report.read(), report.headers.get_all("Content-Security-Policy")
    beside = answer(f"{base}/capacity/reports/%2e%2e/secret")

    assert {what for what, status in found.items() if status == 200} == TAKEN, found
    assert {status for what, status in found.items() if what not in TAKEN} == {403}
    assert (page, policies[0][:18]) == (b"<p>a page</p>", "default-src 'none'")
    assert policies[1] == "frame-ancestors 'self'"
    assert beside == 404
    assert answer(f"{base}/", {"X": "x" * 1_000_000}) == 400, "a head that is too large"


@pytest.mark.nightly("opens nine further pages")
def test_no_other_site_frames_the_ui_or_a_report(stack: ui.Stack, browser: Browser) -> None:
    (stack.home / "reports" / "framed.html").write_text("<p>framed</p>")
    base = f"http://127.0.0.1:{stack.port}"
    for path in ("/", "/graphql", "/capacity/reports/framed.html", "/capacity/reports/nothing.html"):
        with browser.new_context() as context:
            other = context.new_page()
            with other.expect_console_message(lambda message: "frame-ancestors" in message.text):
                other.set_content(f'<iframe src="{base}{path}"></iframe>')
    with browser.new_context() as context:
        own = context.new_page()
        own.goto(f"{base}/assets")
        own.evaluate("path => { const f = document.createElement('iframe'); f.src = path; document.body.append(f) }",
                     "/capacity/reports/framed.html")  # fmt: skip
        expect(own.frame_locator("iframe").get_by_text("framed")).to_be_visible()


def test_the_shipped_proxy_asks_for_a_login_and_keeps_foreign_pages_out(stack: ui.Stack, tmp_path: Path) -> None:
    nginx()
    web, operators, readers, pages = stack.port, *stack.proxies
    # Both sides of the proxy before the UI lead to the one server that runs here.
    ports = {"3000": web, "3002": web, "3001": stack.pages_port}
    ports |= {"3180": operators, "3181": readers, "3182": pages}
    with proxy(tmp_path, ports):
        host = f"127.0.0.1:{operators}"
        wait_for(lambda: answer(f"http://{host}/") == 401, "nginx")
        assert answer(f"http://{host}/", login("readers")) == 401, "a reader is no operator"
        found = questions(host, login("operators"))
        read = questions(f"127.0.0.1:{readers}", login("readers"))
        assert answer(f"http://127.0.0.1:{pages}/") == 401
        assert answer(f"http://127.0.0.1:{pages}/", login("readers")) == 200

    for answers in (found, read):
        assert {what for what, status in answers.items() if status == 200} == TAKEN, answers
        assert answers["another name"] == 421


def test_the_lineage_leads_from_the_samples_over_each_period_to_the_report(page: Page) -> None:
    ui.visit(page, "/asset-groups")

    for group in ("raw", *PERIODS, "forecasts", "reports", "maintenance"):
        expect(page.get_by_text(group, exact=True).last).to_be_visible()
    ui.picture(page, "lineage")
    ui.visit(page, "/assets/growth_report?view=lineage")
    for name in ("monthly_database_aggregations", "monthly_instance_aggregations", "growth_report"):
        expect(page.get_by_text(name, exact=True).last).to_be_visible()


@pytest.mark.nightly("opens a further page of Dagster")
def test_an_asset_explains_itself_and_its_columns(page: Page) -> None:
    ui.visit(page, "/assets/monthly_database_aggregations?view=overview")

    expect(page.get_by_text("How each database developed, one row per monthly window.")).to_be_visible()
    expect(page.get_by_text("Mean total size, rounded down, MiB (from size_mb)")).to_be_visible()
    ui.picture(page, "asset")


@pytest.mark.nightly("clicks through a second backfill")
def test_a_backfill_launched_by_clicking_runs_and_its_page_names_the_server_that_failed(
    page: Page, stack: ui.Stack
) -> None:
    port, engine = stack.port, stack.engine
    first, last = ui.months(engine)
    ui.disturb(engine, last)

    ui.visit(page, f"/assets/{ui.MONTHLY}?view=partitions")
    page.get_by_role("button", name="Materialize…").first.click()
    page.get_by_text("Launch runs to materialize").wait_for()
    page.get_by_text("Show all partitions").click()
    choice = page.locator('input[placeholder^="ex:"]').last
    choice.fill(f"[{first}...{last}]")
    choice.press("Enter")
    ui.launch_backfill(page)
    # A page that is open asks for what is new all the time.
    page.goto("about:blank")

    def finished() -> bool:
        [newest] = ask(port, ui.NEWEST, key={"path": [ui.MONTHLY]})["assetOrError"]["assetMaterializations"]
        counts = {entry["label"]: entry.get("intValue") for entry in newest["metadataEntries"]}
        return bool(newest["partition"] == last and counts["failed_instances"] == 1)

    wait_for(finished, "the backfill")
    page.goto(f"/assets/{ui.MONTHLY}?view=partitions&partition={last}")
    page.get_by_text("summary", exact=True).first.wait_for()
    ui.unfold(page)
    expect(page.get_by_text("Failed servers")).to_be_visible()
    # The name as it is, not as markup.
    expect(page.get_by_text(ui.HOSTILE).first).to_be_visible()
    expect(page.get_by_text("Largest growers")).to_be_visible()
    ui.picture(page, "summary")
    ui.visit(page, f"/assets/{ui.MONTHLY}?view=checks&checkDetail=servers_stored")
    page.get_by_role("tab", name="Partitions").nth(1).click()
    # One run computed both months, and each has its own result.
    expect(page.get_by_text("Failed (1)", exact=True)).to_be_visible()
    expect(page.get_by_text("Missing (0)", exact=True)).to_be_visible()
    ui.picture(page, "checks")


@pytest.mark.nightly("clicks through a cancelled run and its repetition")
def test_what_was_wiped_is_computed_by_a_run_that_is_cancelled_and_run_again_from_its_failure(
    page: Page, stack: ui.Stack
) -> None:
    port, engine, asset = stack.port, stack.engine, "quarterly_instance_aggregations"
    quarter = PERIODS["quarterly"].window_of(date.fromisoformat(ui.months(engine)[0])).key
    stored = "SELECT count(*) FROM instance_size_aggregations WHERE period_type = 'quarterly'"
    before = rows(engine, stored)

    def materialised() -> int:
        [node] = [node for node in ask(port, ui.ASSETS)["assetNodes"] if node["assetKey"]["path"] == [asset]]
        return int(node["partitionStats"]["numMaterialized"])

    ui.visit(page, f"/assets/{asset}?view=partitions")
    page.get_by_role("button", name="Materialize…").first.locator("xpath=following::button[1]").click()
    page.get_by_text("Wipe materializations").click()
    page.get_by_role("button", name="Wipe", exact=True).click()
    page.get_by_role("button", name="Wipe", exact=True).wait_for(state="hidden")
    # A page that is open asks for what is new all the time.
    page.goto("about:blank")
    wait_for(lambda: materialised() == 0, "the materialisations to be wiped")
    assert rows(engine, stored) == before > [(0,)], "only Dagster's records are wiped"

    execute(engine, "UPDATE instance_size_stats SET total_size_mb = total_size_mb + 1 WHERE database_count > 1")
    with engine.connect() as blocker:
        blocker.execute(text("LOCK TABLE instance_size_aggregations IN SHARE ROW EXCLUSIVE MODE"))
        cancelled = launch(port, "quarterly_aggregation_job", [], quarter)
        wait_for(lambda: waits_for_a_lock(engine), "the run to write")
        page.goto(f"/runs/{cancelled}")
        page.get_by_role("button", name="Terminate").first.click()
        page.get_by_role("button", name="Terminate 1 run").click()
        wait_for(lambda: status(port, cancelled) == "CANCELING", "the request to end the run")
        page.goto("about:blank")
        # Statements that run are finished.
        blocker.rollback()
    wait_for(lambda: status(port, cancelled) == "CANCELED", "the end of the run")
    assert ui.materializations(port, asset, [quarter], {cancelled}) == {}

    page.goto(f"/runs/{cancelled}")
    page.get_by_role("button", name="Re-execute all (*)").locator("xpath=following::button[1]").click()
    page.get_by_text("From failure", exact=True).click()
    page.wait_for_url(lambda address: "/runs/" in address and cancelled not in address)
    again = page.url.rpartition("/")[2]
    page.goto("about:blank")
    wait_for(lambda: status(port, again) == "SUCCESS", "the run from the failure")
    assert ui.materializations(port, asset, [quarter], {again}).keys() == {quarter}


@pytest.mark.nightly("opens a further page of Dagster")
def test_a_schedule_is_switched_off_and_on_again(page: Page, stack: ui.Stack) -> None:
    query = """query { schedulesOrError(repositorySelector: {repositoryLocationName: "capacity_assets",
      repositoryName: "__repository__"}) { ... on Schedules { results { name scheduleState { status } } } } }"""

    def status() -> str:
        found = ask(stack.port, query)["schedulesOrError"]["results"]
        return next(one["scheduleState"]["status"] for one in found if one["name"] == "weekly_aggregation_schedule")

    ui.visit(page, "/automation")
    switch = ui.switch_of(page, "weekly_aggregation_schedule")
    for wanted in ("STOPPED", "RUNNING"):
        expect(switch).to_be_enabled()
        expect(switch).to_be_checked(checked=wanted == "STOPPED")
        switch.locator("xpath=..").click()
        wait_for(lambda wanted=wanted: status() == wanted, f"the schedule to be {wanted}")
    expect(switch).to_be_checked()
    ui.picture(page, "automation")


def test_the_report_opens_from_its_materialisation_and_its_totals_equal_the_tables(page: Page, stack: ui.Stack) -> None:
    engine = stack.engine
    month = ui.months(engine)[1]

    ui.visit(page, f"/assets/growth_report?view=partitions&partition={month}")
    shown = page.get_by_text(re.compile(rf"^\s*/(?!capacity/).*reports/growth-monthly-{month}\.html\s*$")).first
    path = shown.inner_text().strip()
    ui.picture(page, "report-partition")
    with page.context.expect_page() as report:
        page.get_by_text(f"/capacity/reports/growth-monthly-{month}.html", exact=True).first.click()
    expect(report.value.locator("[data-step=end]")).to_be_visible()
    report.value.close()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"file://{path}")

    with engine.connect() as connection:
        total = connection.execute(
            text(
                "SELECT sum(total_size_mb) FROM instance_size_aggregations "
                "WHERE period_type = 'monthly' AND period_start = :start"
            ),
            {"start": date.fromisoformat(month)},
        ).scalar_one()
    steps = {
        cell.get_attribute("data-step"): int(cell.inner_text().replace(",", ""))
        for cell in page.locator("[data-step]").all()
    }
    assert steps["end"] == total
    assert sum(value for step, value in steps.items() if step != "end") == steps["end"]
    assert requests == [f"file://{path}"], "nothing else is loaded"
    # Where runways were issued in the month, there is one more.
    assert page.locator("section:not([aria-labelledby=fills-first]) svg.plot").count() == 3
    assert page.locator("svg.plot").first.bounding_box()["width"] > 500  # type: ignore[index]
    page.set_viewport_size({"width": 1000, "height": 1800})
    ui.picture(page, "report")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "a telephone shows it without scrolling aside"
    pages = page.pdf(format="A4")
    assert 1 <= len(re.findall(rb"/Type\s*/Page[^s]", pages)) <= 6


def test_the_newest_report_says_what_fills_first_as_the_view_does(page: Page, stack: ui.Stack) -> None:
    with stack.engine.connect() as connection:
        first = connection.execute(
            text(
                "SELECT server, name, as_of, full_middle FROM capacity_runway WHERE full_early IS NOT NULL "
                "ORDER BY probability_30_days DESC, probability_7_days DESC, probability_90_days DESC, "
                "probability_365_days DESC, full_early LIMIT 1"
            )
        ).one()
        unknown = connection.execute(
            text("SELECT count(*) FROM capacity_runway WHERE subject = 'database' AND state = 'limit unknown'")
        ).scalar_one()
    page.goto(f"/capacity/reports/growth-monthly-{first.as_of.replace(day=1)}.html")

    section = page.locator("section[aria-labelledby=fills-first]")
    row = section.locator("tbody tr").first
    expect(row).to_contain_text(first.server)
    expect(row).to_contain_text(first.name)
    expect(row).to_contain_text(human_day(first.full_middle))
    expect(section.locator("#unknown-limits")).to_have_attribute("data-databases", str(unknown))
    expect(section.locator(".forecasts svg.plot").first).to_be_visible()
    assert section.locator(".forecasts figure").count() == section.locator("tbody tr").count()
    expect(page.locator("#headroom")).to_be_visible()
    assert section.locator(".score").count() >= 1
    page.set_viewport_size({"width": 1000, "height": 1400})
    section.screenshot(path=ui.SCREENSHOTS / "fills-first.png")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    widths = page.locator("td:not(.wide):not(.number)").evaluate_all("cells => cells.map(cell => cell.clientWidth)")
    assert min(width for width in widths if width) >= 60, "no name is broken into single letters"

    page.set_viewport_size({"width": 1500, "height": 1000})
    page.goto(f"/assets/runway?view=partitions&partition={first.as_of}")
    expect(page.get_by_text("Fills first", exact=True).first).to_be_visible()
    ui.unfold(page)
    expect(page.get_by_role("cell", name=first.name, exact=True).first).to_be_visible()
