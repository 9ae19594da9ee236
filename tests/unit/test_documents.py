"""The documents are true: what exists is documented, what is documented exists."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

from capacity_assets.aggregates.runs import PeriodSummary, WindowCoverage
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import HORIZONS_DAYS, Settings, variable_names
from capacity_assets.collection.engines.base import FailureKind
from capacity_assets.collection.service import CollectionSummary
from capacity_assets.database.views import VIEWS
from capacity_assets.digest import KINDS, Digest, DigestDeliveries
from capacity_assets.forecast.issuing import IssuedRunways
from capacity_assets.history.retention import DEFAULT_RETENTION, VARIABLE, MaintenanceReport
from capacity_assets.orchestration.aggregates import AggregationConfig, MaintenanceConfig, maintenance_metadata
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.collection import CollectionConfig, collection_metadata
from capacity_assets.orchestration.documents import DigestConfig, bill_metadata, digest_metadata, report_metadata
from capacity_assets.orchestration.metadata import summary_metadata
from capacity_assets.orchestration.runways import RunwayConfig, runway_metadata
from capacity_assets.ownership.bills import Bill, BillByGroup
from capacity_assets.reading.accuracy import Accuracy
from capacity_assets.reading.changes import ChangeKind, ChangeTotals, DatabaseChanges, ServerChanges, WindowSizes
from capacity_assets.reading.coverage import ServersInService
from capacity_assets.reading.forecasts import ForecastIssue
from capacity_assets.reading.sizes import FleetSize
from capacity_assets.reading.windows import WindowFacts
from capacity_assets.report.page import Edition, Report, ReportIssue
from capacity_assets.web.routes import PAGES
from tests.documents import DOCUMENTS, EVERYTHING, REFERENCE, ROOT, first_cells, section


def test_the_variables_of_the_reference_and_of_the_example_are_those_that_are_read() -> None:
    example = set(re.findall(r"^#([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert first_cells("Variables") == example == set(variable_names())


def test_defaults_in_the_example_are_the_real_ones() -> None:
    example = dict(re.findall(r"^#([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    defaults = Settings()

    real = {str(field.validation_alias): getattr(defaults, name) for name, field in Settings.model_fields.items()}
    # Secrets have no default; the example shows their form. The zone's default is the machine's.
    shown = {name: value for name, value in real.items() if value not in (None, "", ()) and name != "CAPACITY_TIMEZONE"}
    shown[VARIABLE] = DEFAULT_RETENTION
    assert len(shown) > 12
    for name, value in shown.items():
        listed = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert example[name] == listed, name


def test_make_targets_named_anywhere_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", EVERYTHING)) | set(
        re.findall(r"^make ([a-z-]+)", EVERYTHING, re.MULTILINE)
    )

    assert targets >= named > {"demo", "up", "test-fast"}


def test_the_generated_parts_of_the_reference_and_the_source_of_dbt_are_fresh() -> None:
    """`make docs` writes them."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from generate import DBT_SOURCES, dbt_sources, generated
    finally:
        sys.path.pop(0)

    assert generated(REFERENCE) == REFERENCE
    assert dbt_sources() == DBT_SOURCES.read_text()


def test_every_document_is_a_page_of_the_site_and_its_links_lead_to_pages() -> None:
    """`make docs` builds it, and fails at a link that leads nowhere."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from site_pages import as_page, documents
    finally:
        sys.path.pop(0)
    pages = documents()
    navigation = (ROOT / "zensical.toml").read_text()
    in_the_navigation = set(re.findall(r'"([^"]+\.md)"', navigation))

    assert set(pages) == {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
    assert in_the_navigation == {page for page in pages.values() if not re.match(r"decisions/\d", page)}
    text = "[a](docs/scale.md#x) ![b](docs/images/fleet.png) [c](.env.example) [d](https://dagster.io) [e](#here)"
    as_shown = "[a](scale.md#x) ![b](images/fleet.png) c [d](https://dagster.io) [e](#here)"
    assert as_page("README.md", text, pages) == as_shown
    assert as_page("docs/decisions/0001-shape.md", "[a](../scale.md) [b](../../CHANGELOG.md)", pages) == (
        "[a](../scale.md) [b](../CHANGELOG.md)"
    )


def test_every_asset_job_schedule_and_pool_is_documented() -> None:
    definitions = build_definitions(Settings())
    graph = definitions.resolve_asset_graph()
    named = {spec.key.to_user_string() for spec in definitions.resolve_all_asset_specs()}
    named |= {job.name for job in definitions.resolve_all_job_defs() if not job.name.startswith("__")}
    named |= {schedule.name for schedule in definitions.get_repository_def().schedule_defs}
    named |= {pool for key in graph.executable_asset_keys for pool in graph.get(key).pools or ()}
    text = section("Periods, assets and jobs")
    views = {view.name for view in VIEWS} & named

    assert [name for name in views if f"### {name}\n" not in section("Views")] == []
    assert [name for name in named - views if f"`{name}`" not in text] == []
    for config in (AggregationConfig, MaintenanceConfig, CollectionConfig, RunwayConfig, DigestConfig):
        assert [option for option in config.model_fields if f"`{option}`" not in text] == []


def test_every_metadata_key_is_documented_and_no_other() -> None:
    day = PeriodSummary("daily", "database", date(2025, 1, 1), date(2025, 1, 1))
    summary = replace(day, processed_instances=1, coverage=WindowCoverage(1, 1, 1))

    assert first_cells("Metadata of a partition") == set(
        summary_metadata(summary, WindowSizes(100, 10, 90), "http://127.0.0.1:3001")
    )


def test_every_metadata_key_of_maintenance_and_collection_is_documented_and_no_other() -> None:
    assert first_cells("Metadata of table_partitions") == set(maintenance_metadata(MaintenanceReport(dry_run=True)))
    assert first_cells("Metadata of the raw assets") == set(collection_metadata(CollectionSummary(date(2025, 1, 1))))


def test_every_metadata_key_of_the_runway_is_documented_and_no_other() -> None:
    scores = [Accuracy(days, None, None, 1, 0, 0, 1.0, 1.0, 1.0, 1.0, 80.0, 10.0) for days in HORIZONS_DAYS]
    day = date(2025, 1, 1)
    issue = ForecastIssue(day, datetime(2025, 1, 1, tzinfo=UTC), False, (), 1, 0, scores)
    shown = set(runway_metadata(IssuedRunways(day), issue, Settings()))
    listed = first_cells("Metadata of runway")

    assert {key.format(days=days) for key in listed for days in HORIZONS_DAYS} == shown


def test_every_metadata_key_of_the_showback_is_documented_and_no_other() -> None:
    one, nothing = Decimal(1), Decimal(0)
    issued = datetime(2025, 2, 1, tzinfo=UTC)
    bill = Bill(date(2025, 1, 1), 2, issued, True, "EUR", one, one, nothing, 1, 1, 0, ("team",), "")
    before = BillByGroup(replace(bill, issue=1), "team", ())

    assert first_cells("Metadata of showback") == set(bill_metadata(BillByGroup(bill, "team", (), 0, before)))


def test_every_metadata_key_of_the_digest_is_documented_and_no_other() -> None:
    counts = dict.fromkeys([*KINDS], 0)
    week = PERIODS["weekly"].window_of(date(2025, 1, 6))
    found = Digest(week, None, 0, None, (), (), (), (), (), (), counts)

    assert first_cells("Metadata of digest") == set(digest_metadata(found, DigestDeliveries()))


def test_every_kind_of_failure_is_documented() -> None:
    page = (ROOT / "docs" / "collection.md").read_text()

    assert set(re.findall(r"^\| `([a-z ]+)` \|", page.split("## What can go wrong")[1], re.MULTILINE)) == set(
        FailureKind
    )


def test_every_metadata_key_of_the_report_is_documented_and_no_other() -> None:
    window = PERIODS["monthly"].window_of(date(2025, 1, 1))
    nothing = FleetSize(window.start, window.end)
    report = Report(
        period=PERIODS["monthly"],
        window=window,
        before=window,
        server=None,
        server_id=None,
        facts=WindowFacts(datetime(2025, 2, 1, tzinfo=UTC), None, None, None),
        size=nothing,
        size_before=nothing,
        databases=DatabaseChanges(dict.fromkeys(ChangeKind, ChangeTotals()), dict.fromkeys(ChangeKind, ())),
        servers=ServerChanges((), 0, 0),
        history=(),
        days=(),
        in_service=ServersInService(0, 0),
        missing=(),
    )

    edition = Edition(ReportIssue(1, report.facts.read_at, False, 0, 0, None))

    assert first_cells("Metadata of growth_report") == set(report_metadata(report, edition, ROOT))


def test_every_page_is_documented_and_no_other() -> None:
    text = (ROOT / "docs" / "pages.md").read_text()

    assert set(re.findall(r"^\| `(/[a-z]*)` \|", text, re.MULTILINE)) == {
        *(page.path for page in PAGES),
        "/metrics",
    }


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def test_links_between_documents_lead_to_pages_and_headings_that_exist() -> None:
    checked = 0
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text()):
            if target.startswith("http"):
                continue
            page = (path.parent / target).resolve() if target else path
            assert page.exists(), f"{path.name}: {target}"
            if anchor:
                assert anchor in anchors(page), f"{path.name}: {target}#{anchor}"
                checked += 1
    assert checked > 20


def test_every_file_to_change_exists() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Which files to change")[1].split("\n## ")[0]
    named = set(re.findall(r"`([\w/]+\.py)`", table)) - {"cli/NAME.py", "collection/engines/NAME.py"}

    assert len(named) > 15
    assert {
        name for name in named if not any((ROOT / room / name).is_file() for room in ("", "capacity_assets"))
    } == set()


def test_the_readme_fits_on_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_every_test_that_the_page_of_faults_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))

    assert len(named) > 15
    assert {name for name in named if f"def {name}(" not in tests} == set()
