"""What fills a server and its volumes: databases, parts and the unexplained add up; what retains WAL is named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.base.periods import PERIODS
from capacity_assets.demo import UNREAD_SLOT_OF, load_sample_fleet
from capacity_assets.digest import read_digest, sections
from capacity_assets.orchestration.checks import retained_wal_result
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.reading.space import RetainedWal, excessive_wal, retained_wal_on, space_usage
from capacity_assets.reading.subjects import server_id_of, volumes_of
from tests.clocks import TODAY
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.pages import Pages

BEFORE = TODAY - timedelta(days=30)
VOLUME = """
INSERT INTO volume_size_stats (collected_date, instance_id, volume_name, total_mb, free_mb, used_mb, source)
VALUES (:day, :server, :volume, :total, :total - :used, :used, 'measured')
"""
PART = """
INSERT INTO server_part_stats (collected_date, instance_id, part_kind, part_name, size_bytes, volume_name, detail)
VALUES (:day, :server, :kind, :name, CAST(:mb AS bigint) * 1048576, :volume, :detail)
"""
FAILING = "14 segments not archived; archiving fails, none archived since 18 Jul 2025"
CEILING = """
INSERT INTO database_limit_stats (collected_date, instance_id, database_name, is_unlimited, volumes, source)
VALUES (:day, 2, :database, true, :volumes, 'measured')
"""


def write(engine: Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def part(
    engine: Engine, server: int, kind: str, mb: int | None, *, name: str = "", day: Any = TODAY,
    volume: str | None = None, detail: str | None = None,
) -> None:  # fmt: skip
    write(engine, PART, day=day, server=server, kind=kind, name=name, mb=mb, volume=volume, detail=detail)


@pytest.fixture
def fleet(engine: Engine) -> Engine:
    """server-1 has one disk, server-2 two, and of server-3 no disk is known."""
    add_instances(engine, [1, 2, 3])
    for server in (1, 2, 3):
        add_database_sizes(engine, sizes(server, "orders", BEFORE.isoformat(), [300] * 30 + [400]))
    add_database_sizes(engine, sizes(2, "log", TODAY.isoformat(), [70]))
    for server in (1, 2, 3):
        add_instance_sizes(engine, totals(server, BEFORE.isoformat(), [(300, 1)] * 30 + [(400, 1)]))
    write(engine, VOLUME, day=BEFORE, server=1, volume="/data", total=2000, used=500)
    write(engine, VOLUME, day=TODAY, server=1, volume="/data", total=2000, used=1000)
    part(engine, 1, "wal", 120, day=BEFORE)
    part(engine, 1, "wal", 320)
    part(engine, 1, "slot", 201, name="gone", detail="logical, its consumer is not connected")
    part(engine, 1, "slot", 200, name="read", detail="logical, its consumer is connected")
    part(engine, 1, "archiver", 220, detail=FAILING)
    part(engine, 1, "temporary", None, detail="its login may not see it: pg_monitor is missing")
    for volume, used in (("D:\\", 600), ("L:\\", 90)):
        write(engine, VOLUME, day=TODAY, server=2, volume=volume, total=1000, used=used)
    write(engine, CEILING, day=TODAY, database="orders", volumes=["D:\\"])
    write(engine, CEILING, day=TODAY, database="log", volumes=["D:\\", "L:\\"])
    part(engine, 2, "transaction_log", 80, name="orders", volume="L:\\")
    part(engine, 3, "wal", 60)
    part(engine, 3, "archiver", 1023, detail="64 segments not archived; archiving does not fail")
    part(engine, 3, "slot", 1025, name="late", detail="physical, its consumer is not connected")
    part(engine, 3, "slot", 1023, name="small", detail="physical, its consumer is connected")
    return engine


def uses(document: Any) -> dict[str, tuple[int | None, int | None]]:
    return {one["title"]: (one["size_mb"], one["before_mb"]) for one in document["fills"]["uses"]}


@pytest.mark.usefixtures("fleet")
def test_databases_parts_and_the_unexplained_add_up_to_what_is_used(own_pages: Pages) -> None:
    server, disk = own_pages.document("/server?server=1"), own_pages.document("/volume?server=1&name=/data")
    data, log = (own_pages.document(f"/volume?server=2&name={drive}:%5C") for drive in "DL")
    unknown = own_pages.document("/server?server=3")

    expected = {
        "Databases": (400, 300), "WAL": (320, 120), "Temporary files": (None, None), "Unexplained": (280, 80),
    }  # fmt: skip
    assert uses(server) == uses(disk) == expected
    assert uses(data) == {"Databases": (400, None), "Unexplained": (200, None)}, "log lies on two disks"
    assert uses(log) == {"Transaction logs": (80, None), "Unexplained": (10, None)}
    assert uses(unknown) == {"Databases": (400, 300), "WAL": (60, None)}
    for document in (server, disk, data, log):
        assert sum(size or 0 for size, _ in uses(document).values()) == document["fills"]["used_mb"]
    assert unknown["fills"]["used_mb"] is None


def test_the_page_of_a_disk_has_what_filled_it_by_day_and_it_adds_up(fleet: Engine, own_pages: Pages) -> None:
    between = TODAY - timedelta(days=3)
    write(fleet, VOLUME, day=between, server=1, volume="/data", total=2000, used=900)

    disk, log = (own_pages.document(f"/volume?{place}") for place in ("server=1&name=/data", "server=2&name=D:%5C"))
    html = own_pages.ask("/volume?server=1&name=/data").text

    assert [(one["day"], one["used_mb"], one["uses"]) for one in disk["uses"]] == [
        (str(BEFORE), 500, {"Databases": 300, "WAL": 120, "Unexplained": 80}),
        (str(between), 900, {}),
        (str(TODAY), 1000, {"Databases": 400, "WAL": 320, "Unexplained": 280}),
    ], "on a day without measured parts nothing is said of them"
    assert [one["uses"] for one in log["uses"]] == [{"Databases": 400, "Unexplained": 200}]
    assert "WAL, 20 Jul 2025: 320 MiB" in html
    assert own_pages.document("/volume?server=1&name=/data&range=30d")["uses"][0]["day"] == str(between)


@pytest.mark.usefixtures("fleet")
def test_the_page_names_the_slots_and_what_is_not_known(own_pages: Pages) -> None:
    shown = own_pages.ask("/volume?server=1&name=/data").text

    assert "Replication slot gone retains" in shown
    assert "of the WAL: logical, its consumer is not connected" in shown
    assert f"The WAL archiver retains 220 MiB of the WAL: {FAILING}" in re.sub("<[^>]+>", "", shown)
    assert "its login may not see it: pg_monitor is missing" in shown


@pytest.mark.usefixtures("fleet")
def test_pages_begin_with_who_retains_wal_and_say_what_to_do(own_pages: Pages) -> None:
    command = "<code>SELECT pg_drop_replication_slot(&#39;gone&#39;)</code>"
    places = ("/", "/filling", "/server?server=1", "/volume?server=1&name=/data", "/volume?server=2&name=D:%5C")
    shown = {place: own_pages.ask(place).text for place in places}
    named = {place: [one["part"] for one in own_pages.document(place)["retained_wal"]] for place in places}

    assert list(named.values()) == [["late", "", "gone"], ["late", "", "gone"], ["", "gone"], ["", "gone"], []]
    for place in places[1:4]:
        begins = re.sub("<[^>]+>", "", shown[place].split('<p class="warning">Replication slot gone')[1])
        assert begins.startswith(
            " on server-1 retains 201 MiB of WAL, 10 % of disk /data on 20 Jul 2025: logical, its consumer is not "
            "connected. The server deletes this WAL only once the slot is read or dropped. Start its consumer, or drop"
        ), place
        assert command in shown[place]
        archiver = re.sub("<[^>]+>", "", shown[place].split('<p class="warning">The WAL archiver')[1]).split("\n")[0]
        assert archiver == (
            f" on server-1 retains 220 MiB of WAL, 11 % of disk /data on 20 Jul 2025: {FAILING}. The server deletes "
            "this WAL only once it is archived. The server log says why it fails: an archive that is full or out of "
            "reach, or a wrong archive_command. Do not delete files in pg_wal."
        ), place


@pytest.mark.usefixtures("settings", "today")
def test_who_retains_more_than_a_tenth_is_named_by_check_and_digest(fleet: Engine) -> None:
    declare_labels(fleet, [Label("server-3", None, "team", "payments")], BEFORE)
    week = PERIODS["weekly"].window_of(TODAY)
    with fleet.connect() as connection:
        found = excessive_wal(connection, week.start, TODAY)
        of_team = excessive_wal(connection, week.start, TODAY, ("team", "payments"))
        earlier = excessive_wal(connection, BEFORE, TODAY - timedelta(days=1))

    one: dict[str, Any] = {"server_id": 1, "server": "server-1", "day": TODAY, "of_mb": 2000, "volume": "/data"}
    three: dict[str, Any] = {"server_id": 3, "server": "server-3", "day": TODAY, "of_mb": 400, "volume": None}
    gone = RetainedWal("slot", "gone", 201, "logical, its consumer is not connected", **one)
    late = RetainedWal("slot", "late", 1025, "physical, its consumer is not connected", **three)
    archiver = RetainedWal("archiver", "", 220, FAILING, **one)
    assert (found, of_team, earlier) == ([late, archiver, gone], [late], [])
    assert "neither `archive_command` nor `archive_library` is set" in replace(archiver, detail="").advice
    texts = [
        "Replication slot late of server-3 retains 1.0 GiB of WAL, 256 % of the size of its databases (20 Jul 2025): "
        "physical, its consumer is not connected",
        f"The WAL archiver of server-1 retains 220 MiB of WAL, 11 % of the disk /data (20 Jul 2025): {FAILING}",
        "Replication slot gone of server-1 retains 201 MiB of WAL, 10 % of the disk /data (20 Jul 2025): logical, its "
        "consumer is not connected",
    ]
    result = retained_wal_result(fleet, TODAY, "https://capacity.example", dg.AssetKey("server_part_stats"))
    assert (result.passed, result.metadata["places"].value) == (False, 3)
    assert result.metadata["incident"].value == "server-1: The WAL archiver\nserver-1: gone\nserver-3: late", (
        "whatever they retain"
    )
    checked = json.loads(capacity("check", "--json").output)
    with_advice = [f"{text}. {wal.advice}" for text, wal in zip(texts, found, strict=True)]
    assert [one["text"] for one in checked if one["subject"] == "retained WAL"] == with_advice
    assert "`SELECT pg_drop_replication_slot('gone')`" in with_advice[2]
    assert "drop the slot if nothing needs it" in str(result.description), "alerts too say what to do"
    [section] = [one for one in sections(read_digest(fleet, week)) if "WAL" in one.heading]
    assert [line.text for line in section.lines] == texts


def test_the_demo_has_a_slot_that_nobody_reads_and_no_volume_holds_more_than_is_used(engine: Engine) -> None:
    load_sample_fleet(engine, BEFORE, TODAY)

    with engine.connect() as connection:
        [slot] = retained_wal_on(connection, TODAY)
        number = server_id_of(connection, UNREAD_SLOT_OF)
        assert number is not None
        volumes = volumes_of(connection, number, TODAY)
        fills = space_usage(connection, number, volumes, volumes[0].volume, TODAY)

    assert (slot.server, slot.volume, slot.detail) == (
        UNREAD_SLOT_OF,
        "/data",
        "logical, its consumer is not connected",
    )
    assert fills is not None
    assert all(one.size_mb is not None and one.size_mb >= 0 for one in fills.uses)
    assert [one.title for one in fills.uses] == ["Databases", "WAL", "Temporary files", "Unexplained"]
