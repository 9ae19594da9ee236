"""Measuring real PostgreSQL servers that die, freeze, refuse or answer late; collections stopped and repeated."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import Clock
from capacity_assets.collection import measuring
from capacity_assets.collection.engines import postgresql
from capacity_assets.collection.measuring import ProbeOutcome
from capacity_assets.collection.servers import Server, register_servers, set_active
from capacity_assets.database.locks import SAMPLES, LockHeldError
from tests.clocks import SHANGHAI, TODAY
from tests.collecting import YESTERDAY, Collection, at, failures, granting
from tests.servers import PostgresServer, postgres_offers_tls, postgres_server

pytestmark = pytest.mark.usefixtures("collection_login", "measured_databases")


def test_measuring_again_without_a_change_touches_no_row(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection)])
    collection.collect()
    query = "SELECT xmin::text FROM database_size_stats UNION ALL SELECT xmin::text FROM instance_size_stats ORDER BY 1"
    before = collection.rows(query)

    collection.collect(again=True)

    assert collection.rows(query) == before


def test_a_day_is_a_day_of_the_configured_zone_whatever_zone_server_and_machine_are_in(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute("ALTER ROLE capacity_probe SET timezone = 'America/Los_Angeles'")
    register_servers(collection.engine, [at(measured_postgres, collection)])
    # Half past midnight in Shanghai, still the day before everywhere west of it.
    moment = datetime(2025, 7, 19, 16, 30, tzinfo=UTC)

    collection.service(Clock(SHANGHAI, now=lambda: moment)).collect(TODAY)

    assert set(collection.sizes("pg", TODAY)) == {"orders", "Ünïcødé; --"}
    assert collection.sizes("pg", YESTERDAY) == {}
    with pytest.raises(ValidationError, match=r"^Only today \(2025-07-19\) can be measured"):
        collection.service(Clock(ZoneInfo("UTC"), now=lambda: moment)).collect(TODAY)


def test_a_past_day_is_refused_before_anything_is_asked(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection)])

    with pytest.raises(ValidationError, match=r"^Only today \(2025-07-20\) can be measured"):
        collection.service().collect(YESTERDAY)

    assert collection.rows("SELECT count(*) FROM capacity_collection_attempts") == [(0,)]


def test_servers_whose_turn_comes_after_midnight_fail_instead_of_lending_the_next_day_to_this_one(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection, f"pg-{number}") for number in range(3)])
    noon = datetime(2025, 7, 20, 4, 0, tzinfo=UTC)
    moments = iter([noon] * 5)

    def now() -> datetime:
        return next(moments, noon + timedelta(days=1))

    summary = collection.service(Clock(SHANGHAI, now=now), workers=1).collect(TODAY)

    assert summary.processed_instances + summary.failed_instances == 3
    assert summary.failed_instances > 0
    assert {kind for kind, _ in failures(summary).values()} == {"day over"}
    assert collection.rows("SELECT DISTINCT collected_date FROM capacity_collection_attempts") == [(TODAY,)]


@pytest.fixture
def doomed() -> Iterator[PostgresServer]:
    """A server of a test's own, to be killed."""
    with postgres_server() as running:
        running.execute(*granting("postgresql"))
        yield running


def test_a_server_that_dies_while_it_is_measured_is_failed_and_its_history_kept(
    doomed: PostgresServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_servers(collection.engine, [at(doomed, collection)])
    doomed.execute("CREATE DATABASE mine")
    collection.collect(YESTERDAY)
    monkeypatch.setattr(postgresql, "QUERY", f"SELECT q.* FROM pg_sleep(60), ({postgresql.QUERY}) q")
    killer = threading.Timer(1.0, doomed.kill)
    killer.start()

    summary = collection.collect(TODAY)
    killer.join()
    doomed.start()

    kind, reason = failures(summary)["pg"]
    assert kind == "broken off", reason
    assert collection.sizes("pg", TODAY) == {}
    assert set(collection.sizes("pg", YESTERDAY)) == {"mine"}


def test_a_server_that_freezes_while_it_is_measured_is_left_behind(
    doomed: PostgresServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "STATEMENT_SECONDS", 1.0)
    monkeypatch.setattr(measuring, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(postgresql, "QUERY", f"SELECT q.* FROM pg_sleep(60), ({postgresql.QUERY}) q")
    doomed.execute("CREATE DATABASE mine")
    register_servers(collection.engine, [at(doomed, collection)])
    freezer = threading.Timer(0.7, doomed.freeze)
    freezer.start()
    began = time.monotonic()

    summary = collection.collect(TODAY)
    freezer.join()

    assert failures(summary)["pg"][0] == "timeout"
    assert time.monotonic() - began < 30


def test_a_statement_that_takes_too_long_is_a_timeout_that_names_the_cheaper_way(
    measured_postgres: PostgresServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "STATEMENT_SECONDS", 0.5)
    monkeypatch.setattr(postgresql, "QUERY", f"SELECT q.* FROM pg_sleep(60), ({postgresql.QUERY}) q")
    register_servers(collection.engine, [at(measured_postgres, collection)])

    kind, reason = failures(collection.collect())["pg"]

    assert kind == "timeout"
    assert "sizing = statistics" in reason


def test_what_was_measured_before_an_interruption_is_kept_and_the_rest_comes_with_the_next_run(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection, f"pg-{number}") for number in range(4)])

    def interrupt(_outcome: ProbeOutcome, left: int) -> None:
        if left == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collection.service(workers=1).collect(TODAY, progress=interrupt)
    kept = collection.rows("SELECT count(*) FROM instance_size_stats")
    rest = collection.collect()

    assert kept == [(2,)]
    assert (rest.processed_instances, rest.skipped_instances) == (2, 2)


def test_two_collections_at_once_are_refused(measured_postgres: PostgresServer, collection: Collection) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection)])
    service = collection.service()

    with (
        service.locks.job_lock(SAMPLES),
        pytest.raises(LockHeldError, match=r"The samples are being written by .* Run this again when it is done"),
    ):
        service.collect(TODAY)


def test_disabled_servers_are_not_measured_and_cannot_be_asked_for(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection), at(measured_postgres, collection, "old")])
    set_active(collection.engine, ["old"], active=False)

    assert collection.collect().total_instances == 1
    with pytest.raises(ValidationError, match="'old' is disabled"):
        collection.service().collect(TODAY, ["old"])


def test_how_long_a_server_took_decides_how_long_it_may_take(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection)])
    collection.collect(YESTERDAY)
    collection.rows("SELECT 1")
    with collection.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE capacity_collection_attempts SET measure_seconds = 20, connect_seconds = 2")

    history, _ = collection.service()._history(TODAY)

    [one] = history.values()
    assert (one.usual_seconds, one.statement_seconds, one.patience_seconds) == (22, 110, 44)
    assert (one.connect_seconds(5), one.connect_seconds(15)) == (10, 15)
    assert not one.failed_last


def test_sizes_that_did_not_come_in_time_get_twice_as_long_the_next_time(collection: Collection) -> None:
    register_servers(
        collection.engine, [Server("slow", "postgresql", "127.0.0.1"), Server("silent", "mysql", "127.0.0.1")]
    )
    with collection.engine.begin() as connection:
        for day, status, connected in ((3, "collected", 1.0), (2, "failed", 1.0), (1, "failed", None)):
            connection.exec_driver_sql(
                "INSERT INTO capacity_collection_attempts (collected_date, instance_id, status, failure, attempts, "
                "connect_seconds, measure_seconds) SELECT date '2025-07-20' - %s, i.id, %s, 'timeout', 2, "
                "CASE WHEN i.name = 'slow' THEN CAST(%s AS double precision) END, 9 FROM instances i",
                (day, status, connected),
            )

    history, _ = collection.service()._history(TODAY)

    slow, silent = history[1], history[2]
    assert (slow.usual_seconds, slow.timeouts, slow.statement_seconds) == (10, 2, 50 * 2**2)
    assert (silent.timeouts, silent.connect_seconds(5)) == (0, 10)


def test_a_database_without_an_encoding_tells_its_names_as_text(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute("CREATE DATABASE plain ENCODING 'SQL_ASCII' TEMPLATE template0")
    register_servers(collection.engine, [at(measured_postgres, collection, database="plain")])

    assert failures(collection.collect()) == {}
    assert set(collection.sizes("pg")) == {"orders", "Ünïcødé; --", "plain"}


def test_a_reason_that_no_text_could_hold_spoils_nobody_elses_day(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    """A server's greeting is whatever is at the other end: here MySQL's refusal with a NUL in it."""
    refusal = b"\xff\x6a\x04Host\0 is not allowed\x07" + b"x" * 5000
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(len(refusal).to_bytes(3, "little") + b"\0" + refusal)

        threading.Thread(target=answer, daemon=True).start()
        odd = Server("odd", "mysql", "127.0.0.1", port=int(listener.getsockname()[1]), username="u")
        register_servers(collection.engine, [at(measured_postgres, collection), odd])
        found = failures(collection.collect())

    assert list(found) == ["odd"]
    assert "Host  is not allowed" in found["odd"][1]
    assert len(found["odd"][1]) < 1200
    assert collection.total("pg") is not None


def test_a_server_whose_sizes_the_tables_refuse_fails_alone(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection, f"pg-{number}") for number in range(5)])
    with collection.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE database_size_stats ADD CONSTRAINT no_third CHECK (instance_id <> 3)")

    summary = collection.collect()

    [(server, (kind, reason))] = failures(summary).items()
    assert (server, kind, summary.processed_instances) == ("pg-2", "unexpected", 4)
    assert "cannot be stored" in reason
    assert "no_third" in reason
    assert collection.total("pg-2") is None


@pytest.mark.skipif(not postgres_offers_tls(), reason="this PostgreSQL was built without TLS")
def test_tls_is_used_verified_and_refused_as_registered(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    files = measured_postgres.certificates
    ways = {
        "require": {"tls": "require"},
        "verified": {"tls": "verify-full", "tls_ca": str(files.ca)},
        "another-ca": {"tls": "verify-full", "tls_ca": str(files.other_ca)},
        "missing-ca": {"tls": "verify-full", "tls_ca": "/nowhere/ca.pem"},
    }
    register_servers(collection.engine, [at(measured_postgres, collection, name, **way) for name, way in ways.items()])

    summary = collection.collect()

    assert {name: kind for name, (kind, _) in failures(summary).items()} == {"another-ca": "tls", "missing-ca": "setup"}
    assert collection.total("verified") is not None


def test_a_server_without_tls_is_not_spoken_to_in_clear_when_tls_is_registered(collection: Collection) -> None:
    with postgres_server(tls=False) as plain:
        plain.execute(*granting("postgresql"))
        register_servers(collection.engine, [at(plain, collection, tls="require")])

        kind, reason = failures(collection.collect())["pg"]

    assert kind == "tls"
    assert "SSL" in reason
