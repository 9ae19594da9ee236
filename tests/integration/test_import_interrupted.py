"""Imports that stop, come twice, or stand beside a collection: nothing is loaded by halves."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.base.errors import DatabaseError
from capacity_assets.database.locks import CapacityLockManager, HeldLock
from capacity_assets.history.loading import Loader
from capacity_assets.history.rows import RowReader, layout_of
from capacity_assets.history.sources import FileOptions, file_source
from tests.clocks import SHANGHAI, fixed_clock
from tests.command import capacity
from tests.databases import execute, rows
from tests.importing import HEAD, samples, totals, write
from tests.profiles import HISTORIES

pytestmark = pytest.mark.usefixtures("settings", "alpha_and_beta")


def test_a_file_that_is_no_text_in_the_middle_is_refused_before_anything_is_imported(
    engine: Engine, tmp_path: Path
) -> None:
    lines = HEAD.encode() + b"alpha,a,2025-01-01,10\n" * 20_000 + b"alpha,\xff,2025-01-01,1\n"
    (tmp_path / "x.csv").write_bytes(lines)

    failed = capacity("import", str(tmp_path / "x.csv"))

    assert failed.exit_code == 2
    assert "it is not UTF-8: line 20002 has the byte 0xff; for files from Windows programs, try" in failed.output
    assert samples(engine) == []


HELD = HeldLock(lambda: None)


def loader(engine: Engine, slice_rows: int, stop_after: int | None = None) -> Loader:
    def progress(read: int) -> None:
        if stop_after is not None and read >= stop_after:
            raise KeyboardInterrupt

    reader = RowReader(layout_of(DATABASE), "mb", SHANGHAI, fixed_clock().now())
    return Loader(engine, DATABASE, reader, HELD, progress, slice_rows=slice_rows)


def test_an_interrupted_import_goes_on_behind_its_last_slice(engine: Engine, tmp_path: Path) -> None:
    lines = [
        f"alpha,db-{number % 7},2025-{1 + number // 200:02}-{1 + number // 7 % 28:02},{number}" for number in range(500)
    ]
    source = file_source(Path(write(tmp_path / "x.csv", HEAD + "\n".join(lines))), layout_of(DATABASE), FileOptions())

    with pytest.raises(KeyboardInterrupt):
        loader(engine, 100, stop_after=200).load(source, "this import")
    kept = rows(engine, "SELECT position, finished_at IS NULL FROM capacity_imports")
    rest = loader(engine, 100).load(source, "this import")

    assert kept == [(200, True)]
    assert (rest.resumed_after, rest.counts["read"]) == (200, 500)
    assert rows(engine, "SELECT position, finished_at IS NULL FROM capacity_imports") == [(500, False)]


def test_an_import_beside_a_collection_is_refused(engine: Engine, tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", HEAD + "alpha,a,2025-01-01,10\n")

    with CapacityLockManager(engine).job_lock("samples"):
        refused = capacity("import", file)

    assert refused.exit_code == 1
    assert "The samples are being written by" in refused.output
    assert samples(engine) == []


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@pytest.mark.single_server("sees the locks of one server")
def test_a_sample_that_a_share_measures_while_its_slice_is_imported_is_not_replaced(
    engine: Engine, tmp_path: Path
) -> None:
    file = Path(write(tmp_path / "x.csv", HEAD + "alpha,a,2025-01-01,10\nalpha,b,2025-01-01,5\n"))
    source = file_source(file, layout_of(DATABASE), FileOptions())
    measured = "SELECT id, 'a', '2025-01-01', 99 FROM instances WHERE name = 'alpha'"
    with engine.connect() as measuring, ThreadPoolExecutor(1) as thread:
        insert = "INSERT INTO database_size_stats (instance_id, database_name, collected_date, size_mb)"
        measuring.execute(text(f"{insert} {measured}"))
        importing = thread.submit(loader(engine, 100).load, source, "this import")
        while rows(engine, WAITING) == [(0,)]:
            assert not importing.done()
            time.sleep(0.01)
        measuring.commit()
        with pytest.raises(DatabaseError, match="a collection stored samples of it") as failed:
            importing.result()
    kept = samples(engine)
    again = loader(engine, 100).load(source, "this import")

    assert failed.value.transient
    assert [(row[1], row[3]) for row in kept] == [("a", 99)]
    assert (again.counts["conflicts"], again.counts["written"]) == (1, 1)
    assert [(row[1], row[3]) for row in samples(engine)] == [("a", 99), ("b", 5)]


Sample = tuple[str, str, int, int]
samples_of = st.lists(
    st.tuples(st.sampled_from(["alpha", "beta"]), st.sampled_from("ab"), st.integers(1, 2), st.integers(0, 3)),
    max_size=12,
)


@given(stored_before=samples_of, file=samples_of, replace=st.booleans(), slice_rows=st.integers(1, 5))
@hypothesis_settings(
    max_examples=max(5, HISTORIES // 2),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_import_ends_as_a_naive_one_row_at_a_time(
    engine: Engine, tmp_path: Path, stored_before: list[Sample], file: list[Sample], replace: bool, slice_rows: int
) -> None:
    execute(engine, "TRUNCATE database_size_stats, instance_size_stats, capacity_imports")
    for number, (rows_of_file, replacing) in enumerate(((stored_before, False), (file, replace))):
        lines = [f"{server},{database},2025-01-0{day},{size}" for server, database, day, size in rows_of_file]
        path = Path(write(tmp_path / f"{number}.csv", HEAD + "\n".join(lines)))
        source = file_source(path, layout_of(DATABASE), FileOptions())
        reader = RowReader(layout_of(DATABASE), "mb", SHANGHAI, fixed_clock().now())
        loader = Loader(engine, DATABASE, reader, HELD, replace=replacing, slice_rows=slice_rows)
        report = loader.load(source, str(number))
        known = [count for name, count in report.counts.items() if name not in {"read", "totals_written"}]
        assert report.counts["read"] == len(rows_of_file) == sum(known)

    expected: dict[tuple[str, str, int], int] = {}
    for server, database, day, size in stored_before:
        expected.setdefault((server, database, day), size)
    for server, database, day, size in file:
        if replace:
            expected[server, database, day] = size
        else:
            expected.setdefault((server, database, day), size)
    assert {(str(row[0]), str(row[1]), int(str(row[2])[-2:])): row[3] for row in samples(engine)} == expected
    sums: dict[tuple[str, int], list[int]] = {}
    for (server, _, day), size in expected.items():
        sums.setdefault((server, day), []).append(size)
    assert {(row[0], int(str(row[1])[-2:])): row[2:] for row in totals(engine)} == {
        key: (sum(sizes_of), len(sizes_of)) for key, sizes_of in sums.items()
    }


def test_what_was_left_out_before_an_interruption_is_told_after_it(engine: Engine, tmp_path: Path) -> None:
    content = HEAD + "alpha,a,2025-01-01,1\nalpha,b,never,1\nalpha,c,2025-01-02,1\nalpha,d,2025-01-03,1\n"
    source = file_source(Path(write(tmp_path / "x.csv", content)), layout_of(DATABASE), FileOptions())
    with pytest.raises(KeyboardInterrupt):
        loader(engine, 2, stop_after=2).load(source, "this import")

    report = loader(engine, 2).load(source, "this import")

    assert (report.counts["read"], report.counts["written"], report.counts["bad"], report.left_out) == (4, 3, 1, 1)
    assert report.listed["bad"] == ["row 2: day 'never' is not YYYY-MM-DD"]
    assert (str(report.first_day), str(report.last_day)) == ("2025-01-01", "2025-01-03")
