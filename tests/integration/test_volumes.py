"""Volumes that servers do not report: from a real Prometheus, from servers that lie or hang, and from files."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.collection import prometheus as client
from capacity_assets.collection.service import CollectionSummary
from capacity_assets.forecast.runway import compute_runways
from tests.clocks import TODAY
from tests.collecting import Collection
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instances, sizes
from tests.prometheus import PROGRAMS, prometheus
from tests.servers import free_port, silent_socket
from tests.volume_sources import SOURCE, answering, vector


@contextmanager
def scraping(folder: Path) -> Iterator[tuple[str, str]]:
    """A Prometheus that scrapes an exporter of this machine; yields its address, and the label `instance`."""
    program, exporter = PROGRAMS / "prometheus-node-exporter", f"127.0.0.1:{free_port()}"
    if not program.exists():
        pytest.skip("no exporter here; see tests/install_servers.sh")
    command = [program, f"--web.listen-address={exporter}"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with prometheus(folder, exporter, "node_filesystem_avail_bytes") as address:
            yield address, exporter
    finally:
        running.kill()
        running.wait(30)


GIB = 1024**3


@pytest.fixture(autouse=True)
def fleet(today: None, engine: Engine) -> None:  # noqa: ARG001 -- commands ask for it
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", (TODAY - timedelta(days=80)).isoformat(), range(1000, 1081)))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of sources, which CAPACITY_VOLUME_SOURCES names."""
    file = tmp_path / "volumes.toml"
    monkeypatch.setenv("CAPACITY_VOLUME_SOURCES", str(file))
    return file


def listed() -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(capacity("volumes", "list", "--json").output)
    return found


def fetched() -> dict[str, list[str]]:
    done: dict[str, list[str]] = json.loads(capacity("volumes", "fetch", "--json").output)
    return done


def test_a_real_prometheus_says_what_df_does_and_the_databases_of_the_server_have_a_limit(
    engine: Engine, sources: Path, tmp_path: Path
) -> None:
    with scraping(tmp_path) as (url, label):
        sources.write_text(SOURCE.format(url=url, label=label))
        rehearsed = capacity("volumes", "fetch", "--dry-run", columns=200)
        before = listed()
        done = fetched()

    disk = os.statvfs("/")
    [volume] = listed()
    assert "Dry run: nothing was changed." in rehearsed.output
    assert before == []
    assert done["troubles"] == []
    assert (volume["server"], volume["volume"], volume["source"]) == ("server-1", "/", "imported")
    assert volume["total_mb"] == disk.f_blocks * disk.f_frsize // 1024**2
    assert abs(int(str(volume["free_mb"])) - disk.f_bavail * disk.f_frsize // 1024**2) < 512
    with engine.connect() as connection:
        used_mb = connection.execute(text("SELECT used_mb FROM capacity_volumes")).scalar_one()
    assert abs(used_mb - (disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024**2) < 512, "as df says"
    [orders] = [row for row in compute_runways(engine, TODAY).rows if row.database]
    assert (orders.binds, orders.source) == ("volume", "imported")
    assert orders.limit_mb == 1080 + int(str(volume["free_mb"]))


ONE = {"instance": "server-1:9100", "mountpoint": "/data"}
TWO = {"instance": "server-2", "mountpoint": "/data"}


SENSELESS = [
    (b"<html>", b"", "its answer is not that of Prometheus' HTTP API"),
    (b"[" * 100_000, b"", "its answer is not that of Prometheus' HTTP API"),
    (b'{"status": "error", "error": "parse error"}', b"", "it refuses the query: parse error"),
    (b'{"status": "success", "data": {"result": [1, 2]}}', b"", "its answer is not an instant vector"),
    (vector((ONE, 100)), vector((ONE, 101)), "/data of server-1: 100 bytes, 101 of them free, is impossible"),
    (vector((ONE, "NaN")), vector((ONE, 1)), "/data of server-1: nan bytes, 1 of them free, is impossible"),
    (
        vector((ONE, 100), ({**ONE, "device": "b"}, 100)),
        vector((ONE, 10), ({**ONE, "device": "b"}, 1)),
        "/data of server-1: 2 results instead of one: narrow the query",
    ),
    (
        vector(({**ONE, "mountpoint": "/" * 256}, 100)),
        vector(({**ONE, "mountpoint": "/" * 256}, 10)),
        f"'{'/' * 79} of server-1: its name cannot be stored",
    ),
    (
        vector(({**ONE, "mountpoint": "\ud800"}, 100)),
        vector(({**ONE, "mountpoint": "\ud800"}, 10)),
        "'\\ud800' of server-1: its name cannot be stored",
    ),
    (
        vector(({"instance": "web-1"}, 100)),
        vector(({"instance": "web-1"}, 10)),
        "1 value of instance without a registered server, for example 'web-1'",
    ),
    (vector((ONE, 100)), vector((TWO, 10)), "no volume of a registered server"),
]


def test_an_answer_that_makes_no_sense_stores_nothing_and_says_why(sources: Path) -> None:
    for total, free, message in SENSELESS:
        with answering(total, free) as (url, _):
            sources.write_text(SOURCE.format(url=url, label="x"))
            done = capacity("volumes", "fetch", columns=200)

        assert done.exit_code == 1, total
        assert f"note: monitoring: {message}" in done.output, total
        assert listed() == [], total


def test_servers_are_known_by_their_name_with_or_without_a_port(sources: Path) -> None:
    with answering(vector((ONE, 100 * GIB), (TWO, 50 * GIB)), vector((ONE, 9 * GIB), (TWO, 0))) as (url, _):
        sources.write_text(SOURCE.format(url=url, label="x"))
        fetched()
        shown = capacity("volumes", "list", columns=200).output.splitlines()

    assert [line.split()[:6] for line in shown[2:]] == [
        ["server-1", "/data", "100.0", "GiB", "9.0", "GiB"],
        ["server-2", "/data", "50.0", "GiB", "0", "MiB"],
    ]


def test_a_source_that_hangs_or_is_away_costs_itself_only(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 3)
    second = SOURCE.replace("monitoring", "second")
    with silent_socket() as port, answering(vector((ONE, GIB)), vector((ONE, GIB // 2))) as (url, _):
        hanging = SOURCE.replace("monitoring", "hanging").format(url=f"http://127.0.0.1:{port}", label="x")
        away = SOURCE.replace("monitoring", "away").format(url="http://127.0.0.1:1", label="x")
        sources.write_text(hanging + away + second.format(url=url, label="x"))
        done = fetched()

    assert [row["volume"] for row in listed()] == ["/data"]
    assert [trouble.partition(":")[0] for trouble in done["troubles"]] == ["hanging", "away"]
    assert all("it does not answer" in trouble for trouble in done["troubles"])


def test_an_answer_that_does_not_end_is_not_waited_for(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_BYTES", 1000)
    with answering(b" " * 100_000, b"") as (url, _):
        sources.write_text(SOURCE.format(url=url, label="x"))
        [trouble, *_] = fetched()["troubles"]

    assert "its response is larger than 0 MiB: narrow the query" in trouble


def test_a_token_is_sent_and_shown_nowhere(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONITORING_PASSWORD", "hunter2-token")
    with answering(b"", b"", status=403) as (url, logins):
        sources.write_text(SOURCE.format(url=url, label="x") + 'token_from = "env:MONITORING_PASSWORD"\n')
        done = capacity("volumes", "fetch", columns=200)

    assert logins == ["Bearer hunter2-token"]
    assert "note: monitoring: it answers 403." in done.output
    assert "hunter2" not in done.output


NO_SOURCES = [
    ("[[prometheus]]\nname = 'a'", "source 1: url and server_label missing."),
    ("[[prometheus]]\npassword = 'hunter2'", "'password' is not one of name, url, server_label, total, free"),
    ("x = 1", "must contain only tables [[prometheus]], one per source."),
    ("[[prometheus]", "cannot be read"),
    (SOURCE.format(url="ftp://x", label="y"), "url is not a web address, or contains a password"),
    (SOURCE.format(url="http://me:hunter2@x", label="y"), "url is not a web address, or contains a password"),
    (SOURCE.format(url="http://x", label="y") * 2, "two sources have the name 'monitoring'."),
    (SOURCE.format(url="http://x", label="y") + "volume = 3", "volume must be text, in quotes"),
]


def test_a_file_of_sources_that_cannot_work_says_why_and_repeats_no_secret(sources: Path) -> None:
    for content, message in NO_SOURCES:
        sources.write_text(content)

        done = capacity("volumes", "fetch", columns=250)

        assert done.exit_code == 1, content
        assert message in done.output, content
        assert ".." not in done.output, content
        assert "hunter2" not in done.output, content


def test_the_collection_fetches_after_it_has_measured_and_keeps_sizes_whatever_comes(
    collection: Collection, tmp_path: Path
) -> None:
    file = tmp_path / "volumes.toml"
    service = collection.service()
    with answering(vector((ONE, 100 * GIB)), vector((ONE, 9 * GIB))) as (url, _):
        file.write_text(SOURCE.format(url=url, label="x"))
        sourced = type(service)(**{**vars(service), "volume_sources": file})
        done = sourced.collect(TODAY)
        ended = sourced._with_imported(CollectionSummary(TODAY - timedelta(days=1)))
        file.unlink()
        without = sourced.collect(TODAY, again=True)

    assert (done.imported_volumes, done.unknown_limits) == (1, ())
    assert (ended.imported_volumes, ended.unknown_limits) == (
        0,
        ("19 Jul 2025 ended while servers were measured, so no monitoring system was queried",),
    )
    assert without.imported_volumes == 0
    assert without.unknown_limits == (f"CAPACITY_VOLUME_SOURCES: {file} cannot be read: No such file or directory",)


def test_what_a_server_reports_of_itself_goes_before(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, source) "
                "VALUES (:day, 1, '/data', 5000, 77, 'measured')"
            ),
            {"day": TODAY},
        )
    file = tmp_path / "volumes.csv"
    file.write_text(f"server,volume,day,total_gb,free_gb\nserver-1,/data,{TODAY},9,8\nserver-2,E:,{TODAY},1.5,0.5\n")

    rehearsed = capacity("volumes", "import", str(file), "--dry-run").output.splitlines()
    done = capacity("volumes", "import", str(file)).output
    again = capacity("volumes", "import", str(file)).output

    assert rehearsed == [f"2 volumes read, from {file}.", "Dry run: nothing was changed."]
    updated = "Forecasts of 2 servers updated.\n"
    assert done == f"2 volumes read, 1 stored or changed, from {file}.\n{updated}"
    assert again == f"2 volumes read, 0 stored or changed, from {file}.\n{updated}"
    assert [(row["volume"], row["total_mb"], row["free_mb"], row["source"]) for row in listed()] == [
        ("/data", 5000, 77, "measured"),
        ("E:", 1536, 512, "imported"),
    ]


def test_a_reserve_is_neither_used_nor_a_limit_and_does_not_look_like_a_change(engine: Engine, tmp_path: Path) -> None:
    """100 of 1,000 GiB are reserved for root; the used size was unknown in the first weeks."""
    days = [(TODAY - timedelta(days=back), 500 - 2 * back) for back in range(60, -1, -1)]
    lines = [
        f"server-1,/data,{day},1000,{900 - used},{used if day > TODAY - timedelta(days=9) else ''}"
        for day, used in days
    ]
    file = tmp_path / "volumes.csv"
    file.write_text("\n".join(["server,volume,day,total_gb,free_gb,used_gb", *lines]))

    assert capacity("volumes", "import", str(file)).exit_code == 0

    with engine.connect() as connection:
        rows = connection.execute(text("SELECT used_mb, free_mb, total_mb FROM capacity_volumes ORDER BY day")).all()
    assert tuple(rows[-1]) == (500 * 1024, 400 * 1024, 1000 * 1024)
    [volume] = [row for row in compute_runways(engine, TODAY).rows if row.volume]
    assert (volume.size_mb, volume.limit_mb) == (500 * 1024, 900 * 1024)
    assert volume.middle_day == TODAY + timedelta(days=204), "2 GiB a day, as ever"


def test_with_two_volumes_it_is_not_known_where_a_database_lies(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "volumes.csv"
    file.write_text(f"server,volume,day,total_gb,free_gb\nserver-1,/a,{TODAY},9,8\nserver-1,/b,{TODAY},9,8\n")

    assert capacity("volumes", "import", str(file)).exit_code == 0

    every = compute_runways(engine, TODAY)
    assert [row.volume for row in every.rows] == ["/a", "/b"]
    assert every.unknown_limits == 1


def test_a_file_of_volumes_that_cannot_be_read_names_every_line(tmp_path: Path) -> None:
    file = tmp_path / "volumes.csv"
    file.write_text(
        "server,volume,day,total_gb,free_gb\nserver-1,/a,today,9,8\nserver-1,/a,2025-07-01,1,2\nserver-1,,2025-07-01,9,1\n"
        "server-1,/a,2025-07-01,x,1\n"
    )

    refused = capacity("volumes", "import", str(file))
    file.write_text("server,volume,day,total_gb,free_gb\nserver-1,/a,2025-07-01,2,1\nserver-1,/a,2025-07-01,2,1\n")
    twice = capacity("volumes", "import", str(file))
    file.write_text("server,volume,day,total_gb,free_gb\nserver-9,/a,2025-07-01,2,1\n")
    unknown = capacity("volumes", "import", str(file))

    assert refused.exit_code == 2
    assert "line 2: 'today' is not a day of the calendar; write YYYY-MM-DD." in refused.output
    assert "line 3: free_gb must be between 0 and total_gb" in refused.output
    assert "line 4: volume missing." in refused.output
    assert "line 5: 'x' is not a number of GiB; write 500 or 1.5." in refused.output
    assert "Listed more than once: /a of server-1, 2025-07-01." in twice.output
    assert "line 2: No server 'server-9' is registered." in unknown.output
    assert listed() == []


def test_without_sources_there_is_nothing_to_fetch() -> None:
    refused = capacity("volumes", "fetch")

    assert (refused.exit_code, "CAPACITY_VOLUME_SOURCES is unset" in refused.output) == (2, True)
    assert "No volume is known." in capacity("volumes", "list").output


def test_check_says_of_how_many_databases_no_limit_is_known_and_reads_the_sources(sources: Path) -> None:
    def found(subject: str) -> list[tuple[str, str]]:
        listed = json.loads(capacity("check", "--json").output)
        return [(one["verdict"], one["text"]) for one in listed if one["subject"] == subject]

    missing = found("CAPACITY_VOLUME_SOURCES")
    sources.write_text(SOURCE.format(url="http://127.0.0.1:1", label="x"))
    before = found("limits")
    capacity("limits", "set", "server-1", "--gb", "10")

    assert missing == [("bad", f"{sources} cannot be read: No such file or directory.")]
    assert found("CAPACITY_VOLUME_SOURCES") == [("ok", "monitoring; `capacity volumes fetch --dry-run` queries them")]
    assert before == [("note", "1 database without a known limit: `capacity limits set` declares one")]
    assert found("limits") == [("ok", "of every database that was measured within the last month")]
