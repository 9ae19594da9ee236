"""Aggregates as Parquet files: one per window and level, replaced whole, read by DuckDB."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.settings import Settings
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.metadata import unescaped
from tests.clocks import fixed_clock
from tests.computing import compute_windows
from tests.documents import ROOT
from tests.fleet import load_sample
from tests.runs import QUIET, metadata_of, run_range

FIRST, LAST = "2025-02-01", "2025-04-01"


def months_of_the_sample(engine: Engine) -> None:
    load_sample(engine)
    compute_windows(AggregationService(engine, fixed_clock()), "monthly", date(2025, 1, 1), date(2025, 7, 20))


PREPARED = {"sample": months_of_the_sample}


@pytest.fixture
def sample(settings: Settings, tmp_path: Path) -> Settings:
    """The sample with its months, which are written to the folder `files`."""
    return settings.model_copy(update={"export_url": str(tmp_path / "files")})


def queried(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_duckdb_reads_in_the_files_of_a_range_run_what_the_views_have(
    sample: Settings, engine: Engine, tmp_path: Path
) -> None:
    result = run_range(sample, "monthly_export_job", FIRST, LAST)

    assert result.success
    sums = "sum(size_mb), sum(change_mb), count(*)"
    with duckdb.connect() as reader:
        files = f"read_parquet('{tmp_path}/files/**/*.parquet', hive_partitioning = true, union_by_name = true)"
        found = reader.execute(
            f'SELECT level, period, CAST("window" AS date) AS day, {sums} FROM {files} GROUP BY ALL ORDER BY ALL'
        ).fetchall()
        page = (ROOT / "docs" / "integrations.md").read_text()
        [documented] = re.findall(r"```sql\n(SELECT \"window\".*?)```", page, re.DOTALL)
        largest = reader.execute(documented.replace("/var/lib/capacity/export", str(tmp_path / "files"))).fetchall()
    views = {"database": "capacity_growth", "group": "capacity_groups", "instance": "capacity_server_growth"}
    condition = f"WHERE period = 'monthly' AND window_start BETWEEN '{FIRST}' AND '{LAST}'"
    assert found == [
        (level, "monthly", *row)
        for level, view in views.items()
        for row in queried(
            engine, f"SELECT window_start, {sums} FROM {view} {condition} GROUP BY window_start ORDER BY window_start"
        )
    ]
    assert len(found) == 9
    assert sorted(largest) == queried(
        engine, f"SELECT window_start, server, size_mb FROM capacity_server_growth {condition} ORDER BY 1, 2, 3"
    )
    metadata = metadata_of(result, "monthly_export")
    assert list(metadata) == ["2025-02-01", "2025-03-01", "2025-04-01"]
    for key, shown in metadata.items():
        written = list((tmp_path / "files").glob(f"*/*/window={key}/rows.parquet"))
        assert shown["rows"] == sum(row[-1] for row in found if str(row[2]) == key)
        assert shown["bytes"] == sum(path.stat().st_size for path in written)
        assert all(str(path) in unescaped(shown["path"]) for path in written)


def test_a_file_is_replaced_whole_or_stays_as_it_was(
    sample: Settings, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_range(sample, "monthly_export_job", FIRST, FIRST).success
    [path] = tmp_path.glob(f"files/level=instance/*/window={FIRST}/*")
    before = path.read_bytes()
    with engine.begin() as connection:
        connection.execute(text("UPDATE instance_size_aggregations SET total_size_mb = total_size_mb + 1000"))

    with monkeypatch.context() as patched:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr("fsspec.implementations.local.LocalFileSystem.mv", refuse)
        failed = run_range(sample, "monthly_export_job", FIRST, FIRST)

    [failure] = failed.get_step_failure_events()
    assert "cannot be written: No space left on device." in str(failure.step_failure_data.user_failure_data)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path], "nothing is left of what was begun"
    assert run_range(sample, "monthly_export_job", FIRST, FIRST).success
    assert (
        sum(parquet.read_table(path)["size_mb"].to_pylist())
        == queried(
            engine,
            f"SELECT sum(size_mb) FROM capacity_server_growth WHERE period = 'monthly' AND window_start = '{FIRST}'",
        )[0][0]
    )
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.nightly("executes further runs")
def test_files_go_to_any_storage_that_fsspec_knows(sample: Settings) -> None:
    settings = sample.model_copy(update={"export_url": "memory://bucket/capacity"})

    result = run_range(settings, "monthly_export_job", FIRST, FIRST)

    assert result.success
    names = MemoryFileSystem().find("/bucket")
    assert names == [
        f"/bucket/capacity/level={level}/period=monthly/window={FIRST}/rows.parquet"
        for level in ("database", "group", "instance")
    ]
    with MemoryFileSystem().open(names[0]) as file:
        assert parquet.read_table(file).num_rows > 0
    unknown = sample.model_copy(update={"export_url": "nowhere://bucket"})
    [failure] = run_range(unknown, "monthly_export_job", FIRST, FIRST).get_step_failure_events()
    assert "cannot be written: Protocol not known: nowhere" in str(failure.step_failure_data.user_failure_data)


def test_files_are_requested_when_the_aggregates_of_their_window_were_made(sample: Settings) -> None:
    definitions = build_definitions(sample, clock=fixed_clock(date(2025, 7, 1)))
    job = definitions.resolve_job_def("monthly_aggregation_job")
    asset = dg.AssetKey("monthly_export")
    with dg.DagsterInstance.ephemeral() as instance:

        def requested(cursor: dg.AssetDaemonCursor | None) -> dg.EvaluateAutomationConditionsResult:
            chosen = dg.AssetSelection.assets(asset)
            return dg.evaluate_automation_conditions(definitions, instance, asset_selection=chosen, cursor=cursor)

        before = requested(None)
        assert before.total_requested == 0
        assert job.execute_in_process(partition_key=FIRST, instance=instance, run_config=QUIET).success
        assert requested(before.cursor).get_requested_partitions(asset) == {FIRST}


def test_without_an_address_there_is_no_such_asset(settings: Settings, sample: Settings) -> None:
    without, assets = (
        {key.to_user_string() for key in build_definitions(one).resolve_asset_graph().get_all_asset_keys()}
        for one in (settings, sample)
    )

    assert assets - without == {f"{period}_export" for period in ("daily", "weekly", "monthly", "quarterly", "yearly")}
