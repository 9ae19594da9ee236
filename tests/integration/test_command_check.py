"""`capacity check` and `capacity init` as a person meets them: what is fit, what is not, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, create_engine, text

from capacity_assets.base.settings import Settings
from capacity_assets.database.tables import SCHEMA_REVISION
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals


def test_init_creates_then_leaves_alone(empty_database: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", empty_database.render_as_string(hide_password=False))

    first, second = capacity("init"), capacity("init")

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "created table database_size_aggregations" in first.output
    assert "was up to date." in second.output


@pytest.mark.parametrize("command", ["aggregate --period daily", "status", "check"])
def test_without_a_schema_everything_says_capacity_init(
    empty_database: URL, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", empty_database.render_as_string(hide_password=False))

    result = capacity(*command.split())

    assert result.exit_code == 1
    assert "capacity init" in " ".join(result.output.split())


@pytest.fixture
def own_dagster_storage(settings: Settings, empty_database: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
    """Both databases named by the user, the one for Dagster still empty."""
    assert settings.capacity_url is not None
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", empty_database.render_as_string(hide_password=False))
    return empty_database


def pools(output: str) -> tuple[str, str]:
    [finding] = [finding for finding in json.loads(output) if finding["subject"] == "pools"]
    return finding["verdict"], finding["text"]


@pytest.mark.nightly("starts further servers")
@pytest.mark.usefixtures("own_dagster_storage")
def test_with_servers_of_ones_own_init_needs_no_data_folder_and_check_says_who_else_can_write_there(
    settings: Settings,
) -> None:
    """Like a pod, in which everybody may write to the volumes."""
    settings.home.mkdir()
    settings.home.chmod(0o777)
    made = capacity("init")
    [open_to_all] = [found for found in json.loads(capacity("check", "--json").output) if "HOME" in found["subject"]]
    settings.home.chmod(0o770)
    [to_a_group] = [found for found in json.loads(capacity("check", "--json").output) if "HOME" in found["subject"]]

    assert made.exit_code == 0, made.output
    assert list(settings.home.iterdir()) == []
    assert (open_to_all["verdict"], to_a_group["verdict"]) == ("bad", "bad")
    assert "can be written by every user of this machine" in open_to_all["text"]
    assert "can be written by its group. Files in it are trusted, and some are executed." in to_a_group["text"]
    assert f"chmod -R go-w {settings.home}" in to_a_group["text"]


@pytest.mark.nightly("starts further interpreters")
def test_init_limits_the_pools_and_check_says_when_they_are_not(own_dagster_storage: URL) -> None:
    before = capacity("check", "--json")
    assert capacity("init").exit_code == 0
    after = capacity("check", "--json")
    engine = create_engine(own_dagster_storage)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM concurrency_limits WHERE concurrency_key = 'capacity_weekly'"))
    engine.dispose()
    lost = capacity("check", "--json")

    assert (before.exit_code, pools(before.output)) == (
        1,
        ("bad", "Dagster has no tables here yet: run `capacity init`"),
    )
    assert (after.exit_code, pools(after.output)) == (0, ("ok", "one run per period at a time"))
    assert lost.exit_code == 1
    assert "not limited to one run at a time: capacity_weekly" in pools(lost.output)[1]


@pytest.mark.usefixtures("own_dagster_storage")
def test_check_says_that_all_is_fit() -> None:
    capacity("init")

    result = capacity("check", "--json")

    findings = json.loads(result.output)
    assert result.exit_code == 0
    assert {finding["verdict"] for finding in findings} == {"ok", "note"}
    assert [finding["text"] for finding in findings if finding["subject"] == "schema"] == [
        f"revision {SCHEMA_REVISION}; all tables, keys, indexes and triggers exist"
    ]


@pytest.mark.usefixtures("settings")
def test_a_dagster_database_of_another_application_is_refused_before_anything_is_changed(
    own_dagster_storage: URL, engine: Engine
) -> None:
    foreign = create_engine(own_dagster_storage)
    with foreign.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('legacy123')"))
    foreign.dispose()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE instance_size_stats CASCADE"))

    result = capacity("init")

    assert result.exit_code == 1
    assert "holds the alembic version of another application" in result.output
    assert "Give Dagster a database of its own." in result.output
    with engine.connect() as connection:
        assert connection.execute(text("SELECT to_regclass('instance_size_stats')")).scalar() is None


@pytest.mark.parametrize(
    ("name", "verdict", "code", "said"),
    [
        ("CAPACITY_DATABSE_URL", "bad", 2, "Did you mean CAPACITY_DATABASE_URL?"),
        ("CAPACITY_PORT", "note", 0, "is not a variable of capacity_assets, so it has no effect"),
    ],
)
def test_check_points_at_a_variable_that_is_none_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, verdict: str, code: int, said: str
) -> None:
    # Else that of a demo in the same folder is looked at.
    monkeypatch.setenv("CAPACITY_HOME", str(tmp_path))
    monkeypatch.setenv(name, "postgresql://dba:hunter2@db/capacity")

    result = capacity("check", "--json")

    [finding] = [finding for finding in json.loads(result.output) if finding["subject"] == name]
    assert (finding["verdict"], result.exit_code) == (verdict, code), result.output
    assert said in finding["text"]
    assert "hunter2" not in result.output


def test_check_names_what_a_table_lacks(settings: Settings, engine: Engine) -> None:
    assert settings.capacity_url is not None
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE database_size_aggregations DROP CONSTRAINT uq_database_size_aggregation"))

    result = capacity("check")

    assert result.exit_code == 1
    assert "database_size_aggregations has no key on (period_type, period_start" in " ".join(result.output.split())


def test_check_names_samples_of_a_clock_that_was_ahead_and_a_first_day_of_one_that_is_behind(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.capacity_url is not None
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2999-01-01", [1]))
    monkeypatch.setenv("CAPACITY_START_DATE", "2998-01-01")

    result = capacity("check")

    message = " ".join(result.output.split())
    assert result.exit_code == 2
    assert "database_size_stats bad has samples of future days, from 2999-01-01 on; today is" in message
    assert "CAPACITY_START_DATE bad 2998-01-01 is in the future, so there is no partition yet" in message


@pytest.mark.usefixtures("today")
def test_check_names_samples_that_stopped_arriving(engine: Engine) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-07-17", [1]))
    add_instance_sizes(engine, totals(1, "2025-07-19", [(1, 1)]))

    result = capacity("check", "--json")

    found = {finding["subject"]: finding for finding in json.loads(result.output)}
    assert result.exit_code == 1
    assert found["database_size_stats"]["verdict"] == "bad"
    assert "The newest sample is from 17 Jul 2025, 3 days ago." in found["database_size_stats"]["text"]
    assert "instance_size_stats" not in found


def test_check_of_a_broken_configuration_exits_with_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_START_DATE", "soon")

    result = capacity("check", "--json")

    assert result.exit_code == 2
    assert json.loads(result.output)[0]["subject"] == "CAPACITY_START_DATE"


def test_check_of_an_embedded_server_that_does_not_exist_creates_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CAPACITY_HOME", str(tmp_path / "home"))

    result = capacity("check")

    assert result.exit_code == 0
    assert "does not exist yet" in " ".join(result.output.split())
    assert not (tmp_path / "home").exists()


@pytest.mark.usefixtures("settings")
def test_check_names_servers_and_labels_of_a_setting_that_do_not_exist(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_instances(engine, [11])
    added = capacity("instances", "add", "db-2", "--engine", "postgresql", "--host", "db-2.example")
    assert added.exit_code == 0, added.output
    assert capacity("labels", "set", "db-2", "team=payments").exit_code == 0
    assert capacity("labels", "set", "server-11", "team=search", "--database", "*").exit_code == 0
    words = ("db-2", "db2", "server-11", "team=payments", "team=payment", "team=search", "team=", "all")
    monkeypatch.setenv("CAPACITY_OBJECTS", ",".join(words))
    monkeypatch.setenv("CAPACITY_METRICS_DATABASES", "team,team=payments,team=serach")

    findings = json.loads(capacity("check", "--json").output)

    assert [(one["verdict"], one["text"]) for one in findings if one["subject"] == "CAPACITY_OBJECTS"] == [
        ("note", "No server is named 'db2'. Did you mean 'db-2'?"),
        ("note", "Server 'server-11' is not measured here: filled elsewhere"),
        ("note", "Nothing has the label team=payment. Did you mean 'team=payments'?"),
        ("note", "No server has the label team=search; labels of databases do not count"),
    ]
    [of_metrics] = [one["text"] for one in findings if one["subject"] == "CAPACITY_METRICS_DATABASES"]
    assert of_metrics == "Nothing has the label team=serach. Did you mean 'team=search'?"
