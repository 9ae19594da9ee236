"""The growth report by its two doors: the asset, and `capacity report`."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.documents import GROWTH_REPORT, GROWTH_REPORT_JOB
from tests.clocks import fixed_clock
from tests.command import capacity
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instances, sizes
from tests.report_pages import Page
from tests.runs import QUIET, metadata_of, run_range

# The asset.


@pytest.mark.usefixtures("every_kind")
@pytest.mark.single_server("derives totals from samples of databases")
def test_each_partition_has_its_page_and_the_numbers_of_its_waterfall(settings: Settings) -> None:
    result = run_range(settings, GROWTH_REPORT_JOB, "2025-01-01", "2025-02-01")

    assert result.success
    february = metadata_of(result, GROWTH_REPORT)["2025-02-01"]
    path = Path(february["report"])
    assert path == settings.reports / "growth-monthly-2025-02-01.html"
    assert Page(path.read_text()).steps["end"] == february["end_mb"] == 738
    steps = ("grown_mb", "shrunk_mb", "partly_mb", "new_mb", "gone_mb", "appeared_mb", "missing_mb", "other_mb")
    assert february["start_mb"] + sum(february[step] for step in steps) == february["end_mb"]
    assert "grown: +50 MiB" in february["summary"]


@pytest.mark.usefixtures("every_kind")
def test_a_folder_that_cannot_be_written_fails_the_run_with_what_to_do(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    settings.reports.write_text("a file where the folder should be")

    result = run_range(settings, GROWTH_REPORT_JOB, "2025-02-01", "2025-02-01")

    assert not result.success
    [failure] = result.get_step_failure_events()
    assert "The report cannot be written to" in str(failure.step_failure_data.user_failure_data)
    assert settings.reports.read_text() == "a file where the folder should be"


@pytest.mark.usefixtures("every_kind")
def test_a_report_is_requested_when_both_levels_of_its_month_were_made_and_not_before(settings: Settings) -> None:
    definitions = build_definitions(settings, clock=fixed_clock(date(2025, 7, 1)))
    job = definitions.resolve_job_def("monthly_aggregation_job")
    with dg.DagsterInstance.ephemeral() as instance:

        def requested(cursor: dg.AssetDaemonCursor | None) -> dg.EvaluateAutomationConditionsResult:
            return dg.evaluate_automation_conditions(
                definitions, instance, asset_selection=dg.AssetSelection.assets(GROWTH_REPORT), cursor=cursor
            )

        before = requested(None)
        assert before.total_requested == 0
        for key in ("2025-01-01", "2025-02-01"):
            assert job.execute_in_process(partition_key=key, instance=instance, run_config=QUIET).success
        after = requested(before.cursor)
        assert after.get_requested_partitions(dg.AssetKey(GROWTH_REPORT)) == {"2025-01-01", "2025-02-01"}
        # Made again before the next look: that must not be lost.
        assert job.execute_in_process(partition_key="2025-02-01", instance=instance, run_config=QUIET).success
        again = requested(after.cursor)
        assert again.get_requested_partitions(dg.AssetKey(GROWTH_REPORT)) == {"2025-02-01"}
        assert requested(again.cursor).total_requested == 0
    [sensor] = [one for one in definitions.get_repository_def().sensor_defs if one.name == "growth_report_sensor"]
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


# The commands.


@pytest.mark.single_server("derives totals from samples of databases")
@pytest.mark.usefixtures("every_kind")
def test_the_command_writes_the_page_of_any_window_and_says_where(settings: Settings, tmp_path: Path) -> None:
    usual = capacity("report", "--window", "2025-02-14")
    document = json.loads(capacity("report", "--window", "2025-02-14", "--server", "server-1", "--json").output)
    printed = capacity("report", "--window", "2025-02-14", "--output", "-")
    own = tmp_path / "own" / "page.html"
    own.parent.mkdir()
    capacity("report", "--window", "2025-02-14", "--output", str(own))
    mistyped = capacity("report", "--window", "2025-02-14", "--output", str(tmp_path / "mistyped" / "page.html"))

    assert usual.exit_code == 0, usual.output
    assert str(settings.reports / "growth-monthly-2025-02-01.html") in usual.output.replace("\n", "")
    assert document["end_mb"] == 207
    assert Page(printed.output).steps["end"] == 738
    assert Page(Path(document["path"]).read_text()).steps["end"] == 207
    assert Page(own.read_text()).steps["end"] == 738
    assert list(own.parent.iterdir()) == [own], "no unfinished file is left"
    assert mistyped.exit_code == 1
    assert "cannot be written: No such file or directory" in " ".join(mistyped.output.split())
    assert not (tmp_path / "mistyped").exists()


NO_REPORTS = [
    (("--window", "2030-01-01"), 2, "There is no month yet that contains 1 Jan 2030; the newest begins on "),
    (("--server", "nobody", "--window", "2025-02-01"), 2, "There is no server 'nobody'"),
    (("--period", "hourly"), 2, "Unknown period 'hourly'"),
    (("--window", "2025-02-01", "--output", "/proc/none/x.html"), 1, "cannot be written"),
]


@pytest.mark.usefixtures("every_kind", "settings")
def test_a_report_that_cannot_be_made_is_refused_with_what_to_do() -> None:
    for arguments, code, said in NO_REPORTS:
        result = capacity("report", *arguments)

        assert result.exit_code == code, arguments
        assert said in result.output, arguments


@pytest.mark.usefixtures("every_kind", "settings")
def test_a_full_disk_is_told_and_the_page_that_was_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    # A limit on the size of files stands for a disk that fills up in the middle of the page.
    command = f"ulimit -f 8; {sys.executable} -m capacity_assets.cli report --window 2025-02-01 --output {path}"

    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)  # noqa: S607

    assert ended.returncode == 1
    assert f"{path} cannot be written: File too large. An existing file is unchanged." in ended.stderr
    assert path.read_text() == "before"
    assert list(tmp_path.glob(".writing-*")) == []


def test_a_window_that_is_not_computed_is_refused_instead_of_shown_as_a_collapse(
    settings: Settings, engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-01-01", [100] * 59))
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 1, 31))

    result = capacity("report", "--window", "2025-02-01")

    assert result.exit_code == 2
    assert "There is no stored row in the monthly window 2025-02-01 to 2025-02-28" in result.output
    assert not settings.reports.exists()


def test_the_longest_name_disturbs_neither_chart_nor_file_name(
    settings: Settings, engine: Engine, service: AggregationService
) -> None:
    names = ["主库", "从库", "a/b", "a_b", "../../etc/x", "x" * 255]
    for number, name in enumerate(names, start=1):
        add_instances(engine, [number], name=name)
        add_database_sizes(engine, sizes(number, "y" * 255, "2025-02-01", [100] * 28))
    compute_windows(service, "monthly", date(2025, 2, 1), date(2025, 2, 28))

    for name in names:
        assert capacity("report", "--window", "2025-02-01", "--server", name).exit_code == 0
    written = sorted(path.name for path in settings.reports.iterdir())
    assert len(written) == len(names), "each has a file of its own, in this folder"
