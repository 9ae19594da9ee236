"""The time zone of a database's days: recorded when it is prepared, kept, and never mixed with another."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.settings import Settings, load_settings
from capacity_assets.database.engine import FORMER_DEFAULT, are_same_days, record_zone, recorded_zone
from tests.command import capacity
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.legacy import LegacyShape, create_legacy_tables


def fill(engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-07-01", [7]))
    add_instance_sizes(engine, totals(1, "2025-07-01", [(7, 1)]))


def test_whoever_writes_in_another_zone_is_refused_and_told_what_to_set(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_zone(engine, settings.timezone, chosen=True)
    fill(engine)
    monkeypatch.setenv("CAPACITY_TIMEZONE", "Europe/Berlin")

    computed = capacity("aggregate", "--period", "monthly", "--from", "2025-07-01")
    measured = capacity("collect")
    checked = capacity("check")

    assert (computed.exit_code, measured.exit_code, checked.exit_code) == (1, 2, 1)
    for refused in (computed, measured, checked):
        words = " ".join(refused.output.replace("│", " ").split())
        assert "This database holds days of the time zone Asia/Shanghai" in words
        assert "Set CAPACITY_TIMEZONE=Asia/Shanghai" in words
    assert "where it is" not in checked.output, "one verdict on the zone, the database's"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM database_size_aggregations")).scalar() == 0


@pytest.mark.usefixtures("settings")
def test_the_zone_may_change_as_long_as_nothing_is_stored(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_TIMEZONE", "Europe/Berlin")
    assert capacity("init").exit_code == 0
    assert recorded_zone(engine) == "Europe/Berlin"

    fill(engine)
    monkeypatch.setenv("CAPACITY_TIMEZONE", "Asia/Shanghai")
    capacity("init")
    assert recorded_zone(engine) == "Europe/Berlin"


def test_a_zone_that_postgresql_does_not_know_is_refused_and_not_recorded(engine: Engine) -> None:
    """As where its time zone data is older than this machine's."""
    with pytest.raises(ValidationError, match="PostgreSQL does not know the time zone Newer/City"):
        record_zone(engine, "Newer/City", chosen=True)

    assert recorded_zone(engine) is None


@pytest.mark.parametrize("chosen", [None, "Europe/Berlin"])
def test_a_database_filled_before_keeps_what_unset_meant_then_unless_somebody_has_chosen(
    empty_engine: Engine, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    create_legacy_tables(empty_engine, LegacyShape())
    execute(
        empty_engine,
        "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) "
        "VALUES (1, 'a', 1, '2025-07-01')",
    )
    monkeypatch.setenv("CAPACITY_DATABASE_URL", empty_engine.url.render_as_string(hide_password=False))
    monkeypatch.delenv("CAPACITY_TIMEZONE")
    if chosen:
        monkeypatch.setenv("CAPACITY_TIMEZONE", chosen)

    done = capacity("init")

    assert done.exit_code == 0
    assert recorded_zone(empty_engine) == (chosen or FORMER_DEFAULT)
    assert (f"Set CAPACITY_TIMEZONE={FORMER_DEFAULT}" in done.output) == (
        load_settings().timezone != FORMER_DEFAULT and not chosen
    )


def test_another_name_of_the_same_zone_is_the_same_zone() -> None:
    assert are_same_days("UTC", "Etc/UTC")
    assert are_same_days("Asia/Calcutta", "Asia/Kolkata")
    assert not are_same_days("Europe/Berlin", "Africa/Tunis")
    assert not are_same_days("Europe/London", "UTC")


def test_an_empty_database_takes_the_zone_of_the_machine(empty_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", empty_engine.url.render_as_string(hide_password=False))
    monkeypatch.delenv("CAPACITY_TIMEZONE")

    assert capacity("init").exit_code == 0

    assert recorded_zone(empty_engine) == load_settings().timezone
