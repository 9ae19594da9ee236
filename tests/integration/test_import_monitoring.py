"""History that monitoring has: a real Prometheus with past days, one that answers what a test wants, and Zabbix."""

from __future__ import annotations

import gzip
import json
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Engine

from capacity_assets.collection import prometheus as prometheus_api
from capacity_assets.collection.prometheus import pages_of_days
from capacity_assets.database.engine import capacity_engine
from capacity_assets.history import monitoring
from capacity_assets.history.sources import ZABBIX_MYSQL
from tests.clocks import SHANGHAI, TODAY
from tests.command import capacity
from tests.databases import Databases, execute, rows
from tests.documents import ROOT
from tests.importing import samples, totals
from tests.mysql_servers import MariaDBServer
from tests.prometheus import prometheus
from tests.volume_sources import serving

pytestmark = pytest.mark.usefixtures("today", "alpha_and_beta")

GIB = 1024**3
SOURCE = """
[[prometheus]]
name = "monitoring"
url = "{url}"
sizes = 'pg_database_size_bytes{{datname!~"template.*"}}'
total = 'node_filesystem_size_bytes{{mountpoint="/data"}}'
free = 'node_filesystem_avail_bytes{{mountpoint="/data"}}'
server_label = "exporter"
volume_label = "mountpoint"
servers = {{ "10.0.0.7:9187" = "alpha" }}
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "sources.toml"
    monkeypatch.setenv("CAPACITY_VOLUME_SOURCES", str(file))
    return file


def at(day: date, hour: int, minute: int = 0) -> int:
    return int(datetime(day.year, day.month, day.day, hour, minute, tzinfo=SHANGHAI).timestamp())


def scraped(day: date, hours: range) -> Iterator[int]:
    """Times of scrapes, once a minute."""
    for hour in hours:
        yield from range(at(day, hour), at(day, hour) + 3600, 60)


FIRST = date(2025, 7, 14)


def metrics() -> bytes:
    """Five days of a database that grows by the hour; on the third the exporter is down from three in the afternoon.

    Nothing is known of the fourth. In the order of time, as Prometheus wants it.
    """
    lines = []
    for number in (0, 1, 2, 4):
        day = FIRST + timedelta(days=number)
        for moment in scraped(day, range(9, 15) if number == 2 else range(20, 24)):
            size = GIB * (10 + number) + (moment - at(day, 0)) // 3600
            for name in ("orders", "template1"):
                lines.append(f'pg_database_size_bytes{{exporter="10.0.0.7:9187",datname="{name}"}} {size} {moment}000')
            if number == 0:
                for metric, gib in (("node_filesystem_size_bytes", 100), ("node_filesystem_avail_bytes", 40)):
                    lines.append(f'{metric}{{exporter="beta:9100",mountpoint="/data"}} {GIB * gib} {moment}000')
    return "\n".join([*lines, ""]).encode()


@contextmanager
def scraping(folder: Path, content: bytes, awaited: str) -> Iterator[str]:
    """A Prometheus that scraped days, whose times the exporter gives; yields its address once it has `awaited`."""
    last = at(FIRST + timedelta(days=4), 22)
    with (
        serving(lambda _path, _login: (200, content)) as exporter,
        prometheus(folder, exporter, awaited, at=last) as address,
    ):
        yield address


def test_a_real_prometheus_gives_the_last_value_of_each_day_and_volumes(
    engine: Engine, sources: Path, tmp_path: Path
) -> None:
    days = ("--from", str(FIRST), "--to", str(FIRST + timedelta(days=4)))
    with scraping(tmp_path, metrics(), "pg_database_size_bytes") as url:
        sources.write_text(SOURCE.format(url=url))
        rehearsed = capacity("import", "prometheus:monitoring", *days, "--dry-run", columns=200)
        before = samples(engine)
        done = capacity("import", "prometheus:monitoring", *days, columns=200)
        again = json.loads(capacity("import", "prometheus:monitoring", *days, "--json").output)

    assert before == []
    assert "volume_size_stats: 1 read, 1 new." in rehearsed.output
    assert "Dry run: nothing was changed." in rehearsed.output
    assert done.exit_code == 0, done.output
    assert [(row[0], row[1], row[2]) for row in samples(engine)] == [
        ("alpha", "orders", f"2025-07-{number}") for number in (14, 15, 16, 18)
    ]
    stored = rows(engine, "SELECT size_bytes FROM database_size_stats ORDER BY collected_date")
    assert [row[0] for row in stored] == [
        GIB * 10 + 23,
        GIB * 11 + 23,
        GIB * 12 + 14,
        GIB * 14 + 23,
    ], "that of the last hour of the day"
    assert [total[2:] for total in totals(engine)] == [(10240, 1), (11264, 1), (12288, 1), (14336, 1)]
    volumes = rows(engine, "SELECT collected_date::text, volume_name, total_mb, free_mb, source FROM volume_size_stats")
    assert volumes == [("2025-07-14", "/data", 100 * 1024, 40 * 1024, "imported")]
    counts = again["database_size_stats"]["counts"]
    assert (counts["read"], counts["present"]) == (4, 4)
    assert again["volume_size_stats"]["stored"] == 0


IN_CLOUDS = """
aws_rds_allocated_storage{account_id="1",dimension_DBInstanceIdentifier="alpha",name="arn:aws:rds:eu:1:db:alpha"} 100
aws_rds_free_storage_space_average{account_id="1",dimension_DBInstanceIdentifier="alpha",name="arn:aws:rds:eu:1:db:alpha"} 40
azurerm_resource_metric{aggregation="maximum",metric="storage",resourceID="/subscriptions/1/resourcegroups/g/providers/microsoft.sql/servers/sales/databases/orders",unit="Bytes"} 50
azurerm_resource_metric{aggregation="average",metric="storage",resourceID="/subscriptions/1/resourcegroups/g/providers/microsoft.sql/servers/sales/databases/orders",unit="Bytes"} 49
azurerm_resource_metric{aggregation="maximum",metric="storage_percent",resourceID="/subscriptions/1/resourcegroups/g/providers/microsoft.sql/servers/sales/databases/orders",unit="Percent"} 19.98
azurerm_resource_metric{aggregation="maximum",metric="allocated_data_storage",resourceID="/subscriptions/1/resourcegroups/g/providers/microsoft.sql/servers/sales/databases/orders",unit="Bytes"} 60
stackdriver_cloudsql_database_cloudsql_googleapis_com_database_disk_quota{database_id="my-project:beta",project_id="my-project",region="europe-west1",unit="By"} 200
stackdriver_cloudsql_database_cloudsql_googleapis_com_database_disk_bytes_used{database_id="my-project:beta",project_id="my-project",region="europe-west1",unit="By"} 75
"""  # noqa: E501 -- one series a line
"""Series as the exporters write them; values in GiB or percent."""


@pytest.mark.nightly("starts a further Prometheus")
def test_the_sources_for_clouds_in_the_documents_give_storage_and_sizes_on_a_real_prometheus(
    engine: Engine, sources: Path, tmp_path: Path
) -> None:
    execute(engine, "INSERT INTO instances (name, db_type, host, port) VALUES ('db-7', 'sqlserver', 'h', 1)")
    recorded = []
    for moment in scraped(FIRST + timedelta(days=4), range(20, 24)):
        for series, value in (line.rsplit(" ", 1) for line in IN_CLOUDS.strip().splitlines()):
            number = float(value) * (1 if "percent" in series else GIB)
            recorded.append(f"{series} {number:.17g} {moment}000\n")
    page = (ROOT / "docs" / "collection.md").read_text().split("\n## Databases in clouds\n")[1].split("\n## ")[0]
    tables = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    days = ("--from", str(FIRST + timedelta(days=4)), "--to", str(FIRST + timedelta(days=4)))

    with scraping(tmp_path, "".join(recorded).encode(), "aws_rds_allocated_storage") as url:
        sources.write_text("\n".join(tables).replace("https://prometheus.example:9090", url))
        for name in ("rds", "azure-sql", "cloud-sql"):
            done = capacity("import", f"prometheus:{name}", *days, columns=200)
            assert done.exit_code == 0, done.output

    found = rows(
        engine,
        "SELECT i.name, v.volume_name, v.total_mb / 1024, v.free_mb / 1024 FROM volume_size_stats v "
        "JOIN instances i ON i.id = v.instance_id ORDER BY i.name",
    )
    assert found == [("alpha", "storage", 100, 40), ("beta", "disk", 200, 125), ("db-7", "storage", 250, 200)]
    assert [(row[0], row[1], row[3]) for row in samples(engine)] == [("db-7", "orders", 60 * 1024)]


Answer = Callable[[str, list[int]], tuple[int, dict[str, Any]]]


@contextmanager
def recorded(answer: Answer) -> Iterator[tuple[str, list[list[int]]]]:
    """A source whose ranges a test answers by query and times; yields its address and the times it was asked for."""
    asked: list[list[int]] = []

    def answered(path: str, _login: str | None) -> tuple[int, bytes]:
        values = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)
        first, last, step = (int(values[name][0]) for name in ("start", "end", "step"))
        asked.append(list(range(first, last + 1, step)))
        status, document = answer(values["query"][0], asked[-1])
        return status, json.dumps(document).encode()

    with serving(answered) as address:
        yield f"http://{address}", asked


def matrix(*series: tuple[dict[str, str], list[list[object]]]) -> dict[str, Any]:
    result = [{"metric": labels, "values": values} for labels, values in series]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


SIZES_ONLY = """
[[prometheus]]
name = "mysql"
url = "{url}"
sizes = 'sum by (instance, schema) (mysql_info_schema_table_size{{component!="data_free"}})'
server_label = "instance"
database_label = "schema"
"""


def growing(labels: dict[str, str]) -> Answer:
    return lambda _query, moments: (200, matrix((labels, [[one, str(one * 1000)] for one in moments])))


def test_a_page_that_is_too_large_is_asked_in_halves_and_an_import_goes_on_with_its_day(
    engine: Engine, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source takes no more than ten days at once, and fails in the middle of the first run."""
    alpha = growing({"instance": "alpha:9104", "schema": "shop"})
    broken = [True]
    too_many = {"status": "error", "errorType": "execution", "error": "query would load too many samples"}

    def answer(query: str, moments: list[int]) -> tuple[int, dict[str, Any]]:
        if len(moments) > 10:
            return 422, too_many
        if broken[0] and moments[0] > at(date(2025, 5, 20), 0):
            return 500, {}
        return alpha(query, moments)

    monkeypatch.setattr(monitoring, "SLICE_ROWS", 7)
    days = ("--from", "2025-05-01", "--to", "2025-06-09")
    with recorded(answer) as (url, asked):
        sources.write_text(SIZES_ONLY.format(url=url))
        failed = capacity("import", "prometheus:mysql", *days, columns=200)
        broken[0] = False
        kept = len(samples(engine))
        asked.clear()
        done = capacity("import", "prometheus:mysql", *days, columns=200)

    assert failed.exit_code == 1
    assert "prometheus:mysql: it answers 500. Stored days are kept; the same command continues." in failed.output
    assert 0 < kept < 40
    assert done.exit_code == 0, done.output
    assert re.search(r"Continued after \d+ May 2025, number 1, where", done.output)
    assert min(map(min, asked)) > at(date(2025, 5, 3), 0), "days that are stored are not asked again"
    found = rows(engine, "SELECT collected_date, size_bytes FROM database_size_stats ORDER BY 1")
    assert [day for (day, _) in found] == [date(2025, 5, 1) + timedelta(days=number) for number in range(40)]
    assert found[0][1] == at(date(2025, 5, 2), 0) * 1000


def test_a_source_that_is_too_slow_for_many_days_is_asked_for_fewer(
    engine: Engine, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha, over = growing({"instance": "alpha:9104", "schema": "shop"}), threading.Event()

    def answer(query: str, moments: list[int]) -> tuple[int, dict[str, Any]]:
        if len(moments) > 10:
            over.wait(60)
        return alpha(query, moments)

    monkeypatch.setattr(prometheus_api, "TIMEOUT_SECONDS", 2)
    with recorded(answer) as (url, _):
        sources.write_text(SIZES_ONLY.format(url=url))
        done = capacity("import", "prometheus:mysql", "--from", "2025-05-01", "--to", "2025-05-16", columns=200)
        over.set()

    assert done.exit_code == 0, done.output
    assert len(samples(engine)) == 16


def test_what_a_source_knows_of_unknown_servers_or_impossibly_is_named(engine: Engine, sources: Path) -> None:
    def answer(_query: str, moments: list[int]) -> tuple[int, dict[str, Any]]:
        alpha, gamma = {"instance": "alpha", "schema": "shop"}, {"instance": "gamma:9104", "schema": "x"}
        return 200, matrix((alpha, [[moments[0], "NaN"]]), (gamma, [[moments[0], "5"]]))

    with recorded(answer) as (url, _):
        sources.write_text(SIZES_ONLY.format(url=url))
        refused = capacity("import", "prometheus:mysql", "--from", "2025-07-01", "--to", "2025-07-02", columns=200)

    assert refused.exit_code == 1
    assert "bad: 1 Jul 2025, number 1: size_mb 'NaN' is not a number" in refused.output
    assert "unknown: gamma: 1 row" in refused.output
    assert samples(engine) == []


REFUSED = [
    (("prometheus:other",), "has no source 'prometheus:other'. It has mysql."),
    (("prometheus:mysql", "--to", str(TODAY)), "--to 20 Jul 2025 is not over yet. Only complete days"),
    (
        ("prometheus:mysql", "--from", "2025-07-02", "--to", "2025-07-01"),
        "--from 2 Jul 2025 is after --to 1 Jul 2025.",
    ),
    (("prometheus:mysql", "--unit", "gb"), "--unit is for files only; omit it for Prometheus."),
    (("sizes.csv", "--from", "2025-07-01"), "--from is for monitoring only; omit it for a file."),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED)
def test_a_source_days_or_options_that_cannot_be_meant_are_refused(
    sources: Path, arguments: tuple[str, ...], reason: str
) -> None:
    sources.write_text(SIZES_ONLY.format(url="http://127.0.0.1:1"))

    refused = capacity("import", *arguments, columns=200)

    assert (refused.exit_code, reason in refused.output) == (2, True), refused.output


def test_days_on_which_the_clock_changes_are_asked_alone() -> None:
    pages = list(pages_of_days(date(2025, 3, 28), date(2025, 4, 2), ZoneInfo("Europe/Berlin"), 2))

    assert [(page[0].isoformat(), len(page)) for page in pages] == [
        ("2025-03-28", 2),
        ("2025-03-30", 1),
        ("2025-03-31", 2),
        ("2025-04-02", 1),
    ]


# The columns that the query reads, as Zabbix 7.0 defines them.
ZABBIX = """
CREATE TABLE hosts (hostid bigint PRIMARY KEY, host varchar(128) NOT NULL, status integer NOT NULL DEFAULT 0);
CREATE TABLE items (itemid bigint PRIMARY KEY, hostid bigint NOT NULL, key_ varchar(2048) NOT NULL,
                    value_type integer NOT NULL DEFAULT 0);
CREATE TABLE trends (itemid bigint NOT NULL, clock integer NOT NULL, num integer NOT NULL DEFAULT 0,
                     value_min double precision NOT NULL, value_avg double precision NOT NULL,
                     value_max double precision NOT NULL, PRIMARY KEY (itemid, clock));
CREATE TABLE trends_uint (itemid bigint NOT NULL, clock integer NOT NULL, num integer NOT NULL DEFAULT 0,
                          value_min numeric(20) NOT NULL, value_avg numeric(20) NOT NULL,
                          value_max numeric(20) NOT NULL, PRIMARY KEY (itemid, clock));
INSERT INTO hosts (hostid, host) VALUES (1, 'alpha'), (2, 'beta'), (3, 'gamma');
INSERT INTO items VALUES
    (11, 1, 'pgsql.db.size["{$PG.URI}","{$PG.USER}","hunter2","orders"]', 3),
    (12, 1, 'pgsql.db.size[ledger]', 3),
    (13, 1, 'system.cpu.util', 0),
    (21, 2, 'mysql.dbsize["127.0.0.1","3306","shop"]', 0);
"""


@pytest.fixture
def zabbix(cluster: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Two days of hourly trends, until nine in the evening of the second."""
    with cluster.copy("template1") as url:
        there = capacity_engine(url)
        execute(there, ZABBIX)
        hours = [at(date(2025, 7, 1), 0) + 3600 * number for number in range(46)]
        for table, items in (("trends_uint", (11, 12)), ("trends", (13, 21))):
            values = ", ".join(
                f"({item}, {clock}, 60, 0, {item * GIB + number}{'.5' if item == 21 else ''}, 9)"
                for item in items
                for number, clock in enumerate(hours)
            )
            execute(there, f"INSERT INTO {table} VALUES {values}")
        monkeypatch.setenv("ZABBIX", url.render_as_string(hide_password=False))
        yield there
        there.dispose()


@pytest.mark.usefixtures("zabbix")
def test_trends_of_zabbix_become_one_size_per_day_that_of_its_last_hour(engine: Engine) -> None:
    done = capacity("import", "env:ZABBIX", "--origin", "zabbix", columns=200)

    assert done.exit_code == 0, done.output
    assert "hunter2" not in done.output
    found = rows(
        engine,
        "SELECT i.name, d.database_name, d.collected_date::text, d.size_bytes FROM database_size_stats d "
        "JOIN instances i ON i.id = d.instance_id ORDER BY 1, 2, 3",
    )
    assert found == [
        (server, database, f"2025-07-0{day}", item * GIB + hour)
        for server, database, item in (("alpha", "ledger", 12), ("alpha", "orders", 11), ("beta", "shop", 21))
        for day, hour in ((1, 23), (2, 45))
    ]


def test_the_query_for_zabbix_on_mysql_gives_the_same_on_a_real_mariadb(measured_mariadb: MariaDBServer) -> None:
    tables = ZABBIX.replace("double precision", "double").split(";")[:-1]
    hours = [at(date(2025, 7, 1), 0) + 3600 * number for number in range(46)]
    values = {
        table: ", ".join(f"({item}, {clock}, 60, 0, {item * GIB + number}, 9)" for number, clock in enumerate(hours))
        for table, item in (("trends_uint", 11), ("trends", 21))
    }
    inserts = [f"INSERT INTO {table} VALUES {rows}" for table, rows in values.items()]
    measured_mariadb.execute("CREATE DATABASE zabbix", "USE zabbix", *tables, *inserts)

    with measured_mariadb.admin() as connection, connection.cursor() as cursor:
        for statement in ("USE zabbix", "SET time_zone = '+08:00'", ZABBIX_MYSQL):
            cursor.execute(statement)
        found = cursor.fetchall()
    measured_mariadb.execute("DROP DATABASE zabbix")

    assert found == tuple(
        (server, database, date(2025, 7, day), item * GIB + hour)
        for day, hour in ((1, 23), (2, 45))
        for server, database, item in (("alpha", "orders", 11), ("beta", "shop", 21))
    )


@pytest.mark.usefixtures("zabbix")
def test_only_the_days_that_are_asked_for_come_from_zabbix_and_a_dry_run_stores_none(engine: Engine) -> None:
    days = ("--origin", "zabbix", "--from", "2025-07-02", "--to", "2025-07-02", "--json")

    rehearsed = json.loads(capacity("import", "env:ZABBIX", *days, "--dry-run").output)
    kept = samples(engine)
    done = json.loads(capacity("import", "env:ZABBIX", *days).output)

    assert (rehearsed["counts"]["written"], kept) == (3, [])
    assert (done["counts"]["written"], done["first_day"], done["last_day"]) == (3, "2025-07-02", "2025-07-02")


def test_a_zabbix_that_cannot_be_read_is_named_without_advice_for_another_database(zabbix: Engine) -> None:
    execute(zabbix, "ALTER TABLE hosts RENAME host TO other")

    failed = capacity("import", "env:ZABBIX", "--origin", "zabbix", columns=200)

    assert failed.exit_code == 1
    assert f"{zabbix.url.database}, trends cannot be read: column h.host does not exist." in failed.output
    assert "capacity init" not in failed.output


def test_another_database_is_no_zabbix(cluster: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster.copy("template1") as url:
        monkeypatch.setenv("ZABBIX", url.render_as_string(hide_password=False))
        refused = capacity("import", "env:ZABBIX", "--origin", "zabbix", columns=200)

    assert (refused.exit_code, "has no table hosts: it is not a database of Zabbix." in refused.output) == (2, True)


def trend(item: int, name: str, moment: object, size: object, **host: object) -> str:
    """A line as Zabbix 7.0 exports it."""
    known = host or {"host": {"host": "alpha", "name": "Alpha, the first"}}
    of_item = {"item_tags": [{"tag": "component", "value": "database"}], "itemid": item, "name": name}
    return json.dumps(known | of_item | {"clock": moment, "count": 60, "min": 1, "avg": size, "max": 9, "type": 3})


@pytest.mark.parametrize("name", ["trends-history-syncer-1.ndjson", "trends.ndjson.gz"])
def test_an_export_of_zabbix_gives_what_its_trends_do(engine: Engine, tmp_path: Path, name: str) -> None:
    orders, ledger = "DB [orders]: Database size", "PostgreSQL: DB ledger: Database size"
    lines = [
        *(trend(11, orders, at(date(2025, 7, day), hour), GIB * day + hour) for day in (1, 2) for hour in (23, 22)),
        trend(12, ledger, at(date(2025, 7, 1), 5), GIB + 0.5),
        trend(13, "CPU utilization", at(date(2025, 7, 1), 5), 17),
        trend(14, orders, at(TODAY, 5), GIB),
        trend(15, "MySQL: Size of database shop", at(date(2025, 7, 1), 5), 5 * GIB, host={"host": "beta", "name": "B"}),
        trend(16, "Size of database gone", at(date(2025, 7, 1), 5), GIB, groups=[]),
    ]
    content = "\n".join([*lines, ""]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)

    done = capacity("import", str(tmp_path / name), "--origin", "zabbix", columns=200)

    assert done.exit_code == 0, done.output
    query = "SELECT database_name, collected_date::text, size_bytes FROM database_size_stats ORDER BY 1, 2"
    assert rows(engine, query) == [
        ("ledger", "2025-07-01", GIB),
        ("orders", "2025-07-01", GIB + 23),
        ("orders", "2025-07-02", GIB * 2 + 23),
        ("shop", "2025-07-01", 5 * GIB),
    ]
    assert rows(engine, "SELECT origin FROM capacity_imports") == [("zabbix",)]


@pytest.mark.parametrize(
    ("line", "options", "reason"),
    [
        ("{}", (), "Files of this kind are read only as exports of Zabbix; add --origin zabbix."),
        ('{"name": "Size of database x"', ("--origin", "zabbix"), "is not an export of trends of Zabbix: line 1 lacks"),
        *(
            (trend(11, "Size of database x", moment, 1), ("--origin", "zabbix"), "line 1 lacks host, name, clock or a")
            for moment in (1735689600000, "1735689600", 10**400)
        ),
        (
            trend(11, "Size of database x", 1735689600, 1, host={"host": ["a"]}),
            ("--origin", "zabbix"),
            "line 1 lacks host, name",
        ),
        ("{}", ("--origin", "zabbix", "--unit", "gb"), "--unit is for files only; omit it for an export of Zabbix."),
    ],
)
def test_an_export_that_is_none_is_refused(tmp_path: Path, line: str, options: tuple[str, ...], reason: str) -> None:
    (tmp_path / "trends.ndjson").write_text(f"{line}\n")

    refused = capacity("import", str(tmp_path / "trends.ndjson"), *options, columns=200)

    assert (refused.exit_code, reason in refused.output) == (2, True), refused.output
