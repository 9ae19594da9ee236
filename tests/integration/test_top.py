"""`capacity top`: who grew, shrank or is large, in the order asked for."""

from __future__ import annotations

import json
from datetime import date

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.settings import Settings
from capacity_assets.ownership.labels import Label, declare_labels
from tests.clocks import TODAY
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instances, sizes


@pytest.fixture(autouse=True)
def fleet(settings: Settings, engine: Engine, service: AggregationService) -> None:
    assert settings
    add_instances(engine, [1, 2])
    for server, name, january, february in (
        (1, "orders", 1000, 3000),
        (1, "small", 10, 40),
        (2, "shrinks", 9000, 8000),
        (2, "stays", 500, 500),
    ):
        add_database_sizes(engine, sizes(server, name, "2025-01-01", [january] * 31 + [february] * 28))
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))


def listed(*options: str) -> list[str]:
    found = json.loads(printed("top", "--window", "2025-02-01", "--json", *options))
    return [row["database"] for row in found]


def test_the_first_ones_have_most_of_what_was_asked_for() -> None:
    assert listed() == ["orders", "small"]
    assert listed("--by", "percent") == ["small", "orders"]
    assert listed("--by", "shrinkage") == ["shrinks"]
    assert listed("--by", "size", "--limit", "2") == listed("--by", "size", "--show", "2") == ["shrinks", "orders"]
    assert listed("--by", "size", "--server", "server-1") == ["orders", "small"]


def test_a_replica_is_listed_where_it_is_named_and_in_no_list_of_the_fleet(engine: Engine) -> None:
    execute(engine, "UPDATE instances SET counted_by = 1 WHERE id = 2")

    assert listed("--by", "size", "--server", "server-2") == ["shrinks", "stays"]
    assert listed("--by", "size") == ["orders", "small"]


def test_people_read_sizes_and_the_month() -> None:
    shown = capacity("top", "--window", "2025-02-10").output

    assert "Databases that grew most, February 2025 compared with the previous window" in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "server-1 postgresql orders 2.9 GiB +2.0 GiB +200.00 % growing 28 of 28" in lines


def test_a_window_without_rows_and_an_unknown_server_say_so() -> None:
    empty = capacity("top", "--window", "2025-03-01")
    unknown = capacity("top", "--window", "2025-02-01", "--server", "server-9")

    assert (empty.exit_code, unknown.exit_code) == (2, 2)
    assert "Nothing to list in March 2025" in empty.stderr
    assert "No server 'server-9' is registered. Did you mean 'server-2'? `capacity instances list`" in unknown.stderr


@pytest.mark.parametrize(
    "command", [("top", "--window", "2025-02-01"), ("runway",), ("digest", "--week", "2025-02-01")]
)
def test_a_label_that_nothing_has_is_refused_with_the_one_that_was_meant(
    engine: Engine, command: tuple[str, ...]
) -> None:
    declare_labels(engine, [Label("server-1", None, "team", "payments")], TODAY)

    refused = capacity(*command, "--label", "team=payment")

    assert refused.exit_code == 2
    assert "Nothing has the label team=payment. Did you mean 'team=payments'?" in refused.output


def test_a_label_that_is_similar_to_none_is_refused_with_the_values_of_its_key(engine: Engine) -> None:
    declare_labels(engine, [Label("server-1", None, "team", "payments")], TODAY)

    def refused(label: str) -> str:
        return capacity("top", "--window", "2025-02-01", "--label", label).output

    assert refused("team=media").startswith("capacity: Nothing has the label team=media. team has payments. `capacity")
    assert "Nothing has the label tema=x. Did you mean 'team'?" in refused("tema=x")
    assert "Nothing has the label env=payments. Did you mean 'team=payments'?" in refused("env=payments")


def test_a_label_that_holds_on_other_days_is_no_window_without_rows(engine: Engine) -> None:
    declare_labels(engine, [Label("server-1", None, "team", "later", date(2026, 1, 1))], TODAY)

    refused = capacity("top", "--window", "2025-02-01", "--label", "team=later")

    assert refused.exit_code == 2
    assert "Nothing with team=later to list in February 2025" in refused.output
