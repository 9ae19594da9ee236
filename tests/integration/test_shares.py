"""A fleet that is measured in shares ends as one that is measured at once, and shares do not wait for each other."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import dagster as dg
import pytest
from sqlalchemy import text

from capacity_assets.base.errors import ValidationError
from capacity_assets.collection.servers import Server, register_servers, registered_servers
from capacity_assets.collection.service import CollectionService, CollectionSummary, parse_share
from capacity_assets.database.locks import LockHeldError, samples_lock
from capacity_assets.orchestration.checks import servers_result
from tests.clocks import TODAY
from tests.collecting import PASSWORD, YESTERDAY, Collection, at, failures
from tests.profiles import nightly_except
from tests.servers import PostgresServer

pytestmark = pytest.mark.usefixtures("collection_login", "measured_databases")
SERVERS = 9


@pytest.fixture
def servers(measured_postgres: PostgresServer, collection: Collection) -> list[Server]:
    """Nine names of one server, the last of which has a wrong password; labels for six of them."""
    found = [at(measured_postgres, collection, f"db-{number}") for number in range(1, SERVERS)]
    found.append(at(measured_postgres, collection, "db-9", password_from=collection.password("wrong", "wrong")))
    register_servers(collection.engine, found)
    with collection.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
                "SELECT id, '', 'zone', '0001-01-01', CASE WHEN id % 2 = 0 THEN 'eu' ELSE 'us' END FROM instances "
                "WHERE name IN ('db-1', 'db-2', 'db-3', 'db-4', 'db-5', 'db-9')"
            )
        )
        # It moves tomorrow, and is measured today from where it is.
        connection.execute(
            text(
                "INSERT INTO capacity_labels (instance_id, database_pattern, key, valid_from, value) "
                "SELECT id, '', 'zone', '2099-01-01', 'us' FROM instances WHERE name = 'db-2'"
            )
        )
    return found


def stored(collection: Collection) -> list[tuple[object, ...]]:
    return collection.rows(
        "SELECT i.name, d.database_name, d.size_mb, d.size_bytes, t.total_size_mb, t.database_count, a.status "
        "FROM instances i LEFT JOIN database_size_stats d ON d.instance_id = i.id "
        "LEFT JOIN instance_size_stats t ON t.instance_id = i.id "
        "LEFT JOIN capacity_collection_attempts a ON a.instance_id = i.id ORDER BY 1, 2"
    )


SHARES = (("1/3", "2/3", "3/3"), ("zone=eu", "zone=us", "zone="))


@pytest.mark.parametrize("shares", nightly_except(SHARES, SHARES[0]))
@pytest.mark.usefixtures("servers")
def test_shares_measure_every_server_once_and_end_as_one_run_does(
    collection: Collection, shares: Sequence[str]
) -> None:
    parts = [collection.collect(share=parse_share(share)) for share in shares]
    in_shares = stored(collection)
    with collection.engine.begin() as connection:
        connection.execute(text("TRUNCATE database_size_stats, instance_size_stats, capacity_collection_attempts"))

    whole = collection.collect()

    assert in_shares == stored(collection)
    assert sum(part.processed_instances for part in parts) == whole.processed_instances == SERVERS - 1
    assert [failure for part in parts for failure in failures(part)] == [*failures(whole)] == ["db-9"]
    assert all(part.processed_instances for part in parts)
    assert parts[-1].total_size_mb == whole.total_size_mb


@pytest.mark.usefixtures("servers")
def test_a_share_is_repeated_alone_and_measures_only_what_failed_in_it(collection: Collection) -> None:
    collection.collect(share=parse_share("zone=eu"))
    collection.collect(share=parse_share("zone=us"))
    (collection.secrets / "wrong").write_text(PASSWORD)
    failed_in = "zone=eu" if collection.service().count_remaining(TODAY, parse_share("zone=eu")) else "zone=us"

    again = collection.collect(share=parse_share(failed_in))
    mistyped = collection.collect(share=parse_share("zone=ue"))

    assert (again.processed_instances, again.failed_instances) == (1, 0)
    assert collection.service().count_remaining(TODAY, parse_share(failed_in)) == 0
    assert collection.service().count_remaining(TODAY) == 3, "those without a label were not asked for"
    assert mistyped.message == "No server that is registered for collection is in the share zone=ue on 20 Jul 2025."


@pytest.mark.usefixtures("servers")
def test_the_check_fails_while_a_server_of_another_share_has_failed_since_yesterday(collection: Collection) -> None:
    collection.collect(YESTERDAY)
    collection.collect(share=parse_share("zone="))

    result = servers_result(None, collection.engine, None, dg.AssetKey("instance_size_stats"))

    assert not result.passed
    assert "db-9: login: " in str(result.description)


@pytest.mark.usefixtures("servers")
def test_shares_are_measured_side_by_side_and_one_share_not_twice_at_once(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = collection.service()
    both_at_work = threading.Barrier(2, timeout=30)
    first_measured = CollectionService._measure

    def meet(self: CollectionService, *arguments: object) -> CollectionSummary:
        both_at_work.wait()
        return first_measured(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(CollectionService, "_measure", meet)
    done: list[CollectionSummary] = []
    threads = [
        threading.Thread(target=lambda share=share: done.append(service.collect(TODAY, share=parse_share(share))))
        for share in ("1/2", "2/2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(part.processed_instances for part in done) == SERVERS - 1

    with service.locks.job_lock(samples_lock("1/2")), pytest.raises(LockHeldError, match="samples of the share 1/2"):
        service.collect(TODAY, share=parse_share("1/2"))


def test_every_server_is_in_one_share_however_many_there_are(collection: Collection, servers: list[Server]) -> None:
    ids = [one.id for one in registered_servers(collection.engine)]
    for of in (1, 2, 7, 100):
        held = [[parse_share(f"{number}/{of}").holds(one, {}) for number in range(1, of + 1)] for one in ids]
        assert all(sum(one) == 1 for one in held), of
    assert len(ids) == len(servers)


NO_SHARES = ["0/4", "5/4", "1/0", "1/101", "four", "Zone=eu", "=eu", "1/2/3", ""]


def test_an_invalid_share_is_refused_with_the_right_form() -> None:
    for wrong in NO_SHARES:
        with pytest.raises(
            ValidationError, match="write 2/4 for the second of four shares, zone=eu for servers with a"
        ):
            parse_share(wrong)
