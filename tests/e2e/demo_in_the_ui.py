"""Queries to the served demo, and clicks on its pages."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Locator, Page
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from sqlalchemy import Engine, text

from capacity_assets.base.periods import PERIODS
from tests.e2e.stack import ask

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
NEWEST = """query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
  assetMaterializations(limit: 1) { partition metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }"""
HOSTILE = "<b>reports</b> & [sales](x)"
MONTHLY = "monthly_instance_aggregations"


class Stack(NamedTuple):
    """The served demo, its address, and its other addresses in browsers."""

    port: int
    pages_port: int
    engine: Engine
    home: Path
    proxies: tuple[int, int, int]


GO_ON = "path => { history.pushState(null, '', path); dispatchEvent(new PopStateEvent('popstate')) }"


def visit(page: Page, path: str) -> None:
    """Show a page of the UI; from an open page, the UI navigates itself, without loading scripts again."""
    if page.url == "about:blank":
        page.goto(path)
    else:
        page.evaluate(GO_ON, path)


def launch_backfill(page: Page) -> None:
    """Click the button of the open dialog, and wait until the dialog is closed.

    On a busy machine, the dialog once stayed open for a minute after a click, so another click follows after a while.
    """
    dialog = page.get_by_text("Launch runs to materialize")
    button = page.get_by_role("button", name="Launch backfill")
    button.click()
    try:
        dialog.wait_for(state="hidden", timeout=20_000)
    except PlaywrightTimeoutError:
        if button.is_enabled():
            button.click()
        dialog.wait_for(state="hidden")


def picture(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


ASSETS = """query { assetNodes { assetKey { path } groupName
  partitionStats { numMaterialized numPartitions numFailed } } }"""
JOB_RUNS = """query { repositoryOrError(repositorySelector: {repositoryLocationName: "capacity_assets",
  repositoryName: "__repository__"}) { ... on Repository { jobs { name runs(limit: 3) { status } } } } }"""
LAUNCH_BACKFILL = """mutation($backfill: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $backfill) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
BACKFILL = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status } } }"""
RUNS = """query($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results { runId status } } } }"""
MATERIALIZATIONS = """query($key: AssetKeyInput!, $partitions: [String!]) { assetOrError(assetKey: $key) {
  ... on Asset { assetMaterializations(partitions: $partitions, limit: 1000) { partition runId
    metadataEntries { label ... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } } } } } }"""


def daily_partitions(port: int) -> list[dict[str, str]]:
    query = """query { assetNodeOrError(assetKey: {path: ["daily_database_aggregations"]}) {
      ... on AssetNode { partitionKeys } } }"""
    return [{"partition": key} for key in ask(port, query)["assetNodeOrError"]["partitionKeys"]]


def materializations(port: int, asset: str, partitions: list[str], runs: set[str]) -> dict[str, dict[str, object]]:
    found = ask(port, MATERIALIZATIONS, key={"path": [asset]}, partitions=partitions)
    return {
        event["partition"]: {
            entry["label"]: entry.get("intValue", entry.get("text")) for entry in event["metadataEntries"]
        }
        for event in found["assetOrError"]["assetMaterializations"]
        if event["runId"] in runs
    }


def months(engine: Engine) -> list[str]:
    """Keys of the two newest complete months of the demo."""
    with engine.connect() as connection:
        last = connection.execute(text("SELECT max(collected_date) FROM instance_size_stats")).scalar_one()
    monthly = PERIODS["monthly"]
    newest = monthly.last(last)
    return [monthly.previous(newest).key, newest.key]


def unfold(page: Page) -> None:
    """Unfold a long text in the UI."""
    folded = page.get_by_text("[Show Markdown]").first
    if folded.is_visible():
        folded.click()


def switch_of(page: Page, name: str) -> Locator:
    row = f"xpath=//*[text()='{name}']/ancestor::div[count(.//input[@type='checkbox'])=2][1]"
    return page.locator(row).locator("input[type=checkbox]").last


def disturb(engine: Engine, month: str) -> str:
    """Change the samples of a day, so that one server overflows; return its name."""
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX uq_instance_size_stats_instance_date"))
        overflowing = connection.execute(
            text("SELECT min(instance_id) FROM instance_size_stats WHERE collected_date = :day"), {"day": month}
        ).scalar_one()
        connection.execute(
            text("UPDATE instances SET name = :name WHERE id = :id"), {"name": HOSTILE, "id": overflowing}
        )
        connection.execute(
            text("UPDATE instance_size_stats SET total_size_mb = total_size_mb + 1 WHERE collected_date = :day"),
            {"day": month},
        )
        for _ in range(2):
            connection.execute(
                text(
                    "INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date) "
                    "VALUES (:id, 9223372036854775807, 1, :day)"
                ),
                {"id": overflowing, "day": month},
            )
    return HOSTILE
