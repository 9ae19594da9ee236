"""Every variable is validated once, named in its error, and a secret is never repeated."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from tzlocal import reload_localzone

from capacity_assets.base.settings import ConfigurationError, Thresholds, env_file_values, load_settings

SECRET = "hunter2-very-secret"  # noqa: S105 -- a value to look for in error texts


def test_without_any_variable_the_defaults_hold() -> None:
    settings = load_settings()

    assert settings.capacity_url is None
    assert settings.dagster_url is None
    assert settings.start_date == date(2025, 1, 1)
    assert settings.dagster_home.parts[-2:] == (".capacity", "dagster")


def test_an_empty_variable_is_the_same_as_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", "")
    monkeypatch.setenv("CAPACITY_START_DATE", "")

    settings = load_settings()

    assert settings.capacity_url is None
    assert settings.start_date == date(2025, 1, 1)


@pytest.mark.parametrize(("machine", "zone"), [("America/Lima", "America/Lima"), ("Etc/GMT+5", "Etc/GMT+5")])
def test_days_are_the_machines_own_unless_a_zone_is_set(
    monkeypatch: pytest.MonkeyPatch, machine: str, zone: str
) -> None:
    monkeypatch.delenv("CAPACITY_TIMEZONE")
    monkeypatch.setenv("TZ", machine)
    reload_localzone()

    assert load_settings().timezone == zone

    monkeypatch.delenv("TZ")
    reload_localzone()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+psycopg"])
def test_a_url_of_any_postgresql_spelling_gets_the_driver_each_side_needs(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("CAPACITY_DATABASE_URL", f"{scheme}://dba:{SECRET}@db:5432/capacity")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"{scheme}://dba:{SECRET}@db:5432/dagster")

    settings = load_settings()

    assert settings.capacity_url is not None
    assert settings.dagster_url is not None
    assert settings.capacity_url.drivername == "postgresql+psycopg"
    assert settings.dagster_url.drivername == "postgresql+psycopg2"
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CAPACITY_DATABASE_URL", f"db with {SECRET}", "is not a URL; write postgresql://"),
        ("CAPACITY_DATABASE_URL", f"postgresql://dba:{SECRET}@db:port/capacity", "is not a URL"),
        ("CAPACITY_DATABASE_URL", f"mysql://dba:{SECRET}@db/capacity", "names 'mysql'; only PostgreSQL works"),
        ("CAPACITY_DATABASE_URL", f"postgresql://dba:{SECRET}@db", "names no database"),
        (
            "CAPACITY_DATABASE_URL",
            "postgresql://dba:half@hunter2-very-secret@db/capacity",
            "write an @ in the password as %40",
        ),
        ("DAGSTER_POSTGRES_URL", f"sqlite:///{SECRET}.db", "names 'sqlite'; only PostgreSQL works"),
        ("CAPACITY_TIMEZONE", "Shanghai", "'Shanghai' is not a known time zone; write an IANA name"),
        ("CAPACITY_START_DATE", "01.02.2025", "'01.02.2025' is not a date; write YYYY-MM-DD"),
        ("CAPACITY_SCHEDULE_HOUR", "25", "'25' is not an hour of the day; write a whole number from 0 to 23"),
        ("CAPACITY_SCHEDULE_HOUR", "four", "'four' is not an hour of the day"),
        ("CAPACITY_SCHEDULE_HOUR", "4.5", "'4.5' is not an hour of the day"),
        ("CAPACITY_ALERT_WEBHOOK_URL", f"file:///{SECRET}", "is not a web address; write https://host/path"),
        ("CAPACITY_FILLS_SOON_DAYS", "31", "'31' is not a horizon of the forecasts; write 7, 30, 90, 365"),
        ("CAPACITY_WATCH_PERCENT", "101", "Input should be less than or equal to 100"),
        ("CAPACITY_ACT_PERCENT", "10", "10 is less than CAPACITY_WATCH_PERCENT, 20"),
        ("CAPACITY_COST_OF_ACTING", "0", "Input should be greater than 0"),
        ("CAPACITY_COST_OF_FILLING", "-4", "Input should be greater than 0"),
        ("CAPACITY_COST_OF_FILLING", "4", "must be set together with CAPACITY_COST_OF_ACTING"),
        ("CAPACITY_FILLS_SOON_SEVERITY", "fatal", "Input should be 'error' or 'warn'"),
        ("CAPACITY_JUMP_PERCENT", "0", "Input should be greater than 0"),
        ("CAPACITY_START_DATE", "20260101", "'20260101' is not a date; write YYYY-MM-DD"),
        ("CAPACITY_START_DATE", "0001-01-01", "is before 1970-01-01"),
        ("CAPACITY_EXPORT_URL", f"sftp://dba:{SECRET}@host/capacity", "a URL without a password; write /var/"),
        ("CAPACITY_EXPORT_URL", "files", "must be an absolute path, or a URL"),
        ("CAPACITY_HOME", __file__, "is a file; write the path of a folder"),
        ("CAPACITY_REDIS_URL", f"http://:{SECRET}@redis", "is not a Redis URL; write redis://"),
        ("CAPACITY_REDIS_URL", f"redis://:{SECRET}@redis/0?ssl_cert_reqs=none", "is not a Redis URL"),
        ("CAPACITY_START_DATE", "2025-02-30", "'2025-02-30' is not a date"),
        ("CAPACITY_METRICS_DATABASES", "team,environment=production,tier", "'tier' is not a label key"),
        (
            "CAPACITY_OBJECTS",
            "db-7,enviroment=production",
            "'enviroment' is not a label key; CAPACITY_LABEL_KEYS has team, environment, service, cost_centre. Did you "
            "mean 'environment'?",
        ),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    assert str(caught.value).startswith(f"{variable}: ")
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_variable_is_read_by_its_former_name_where_the_present_one_is_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPACITY_DIGEST_RECEIVERS", "old.toml")
    (tmp_path / ".env").write_text("CAPACITY_FILLS_SOON_PERCENT=40\n")
    settings = load_settings()
    assert (settings.receivers, settings.act_percent) == (Path("old.toml"), 40)

    monkeypatch.setenv("CAPACITY_RECEIVERS", "new.toml")
    monkeypatch.setenv("CAPACITY_ACT_PERCENT", "70")
    settings = load_settings()
    assert (settings.receivers, settings.act_percent) == (Path("new.toml"), 70)

    monkeypatch.setenv("CAPACITY_ACT_PERCENT", "")
    assert load_settings().act_percent == 40


@pytest.mark.parametrize(
    ("acting", "filling", "watch", "act"),
    [("1", "2", 20, 50), ("1", "3", 14, 34), ("1000", "4000", 10, 25), ("0.5", "50", 1, 1), ("99", "100", 40, 99)],
)
def test_the_costs_of_acting_and_filling_set_the_thresholds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, acting: str, filling: str, watch: int, act: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPACITY_COST_OF_ACTING", acting)
    monkeypatch.setenv("CAPACITY_COST_OF_FILLING", filling)
    monkeypatch.setenv("CAPACITY_ACT_PERCENT", "70")

    settings = load_settings()

    assert settings.thresholds == Thresholds(30, watch, act)
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings().thresholds == settings.thresholds, "a child process has the same"


def test_acting_must_cost_less_than_filling_and_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_COST_OF_ACTING", "4")
    with pytest.raises(ConfigurationError, match=r"^CAPACITY_COST_OF_FILLING: must be .* set both or neither"):
        load_settings()
    monkeypatch.setenv("CAPACITY_COST_OF_FILLING", "4")
    with pytest.raises(ConfigurationError, match="4 is not greater than CAPACITY_COST_OF_ACTING, 4: acting"):
        load_settings()


def test_several_wrong_values_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_TIMEZONE", "Mars/Olympus")
    monkeypatch.setenv("CAPACITY_START_DATE", "soon")

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "CAPACITY_TIMEZONE",
        "CAPACITY_START_DATE",
    ]


def test_a_file_of_variables_may_begin_with_a_mark_and_name_other_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAME", "Lima")
    (tmp_path / ".env").write_text("\ufeffCAPACITY_TIMEZONE=America/${NAME} # ours\nexport OTHER\nDB_PASSWORD=secret\n")

    assert load_settings().timezone == "Asia/Shanghai", "what is exported wins"
    monkeypatch.delenv("CAPACITY_TIMEZONE")
    assert load_settings().timezone == "America/Lima"
    assert env_file_values() == {"CAPACITY_TIMEZONE": "America/Lima", "DB_PASSWORD": "secret"}


def test_a_variable_that_is_nearly_one_of_ours_is_refused_and_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_PORT", "tcp://10.0.0.1:80")
    for own in ("DB_7_PASSWORD", "WEB_DATABASE_PASSWORD", "DEV_DATABASE_URL", "TEST_DATABASE_URL", "WEB_TOKEN_FILE"):
        monkeypatch.setenv(f"CAPACITY_{own}", SECRET)
    load_settings()
    monkeypatch.setenv("CAPACITY_HOEM", SECRET)
    monkeypatch.setenv("CAPACITY_JUMP_PERCENT", "0")

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    assert str(caught.value).splitlines() == [
        "CAPACITY_HOEM: is not a variable of capacity_assets, so it has no effect. Did you mean CAPACITY_HOME?",
        "CAPACITY_JUMP_PERCENT: Input should be greater than 0",
    ]


def test_a_file_of_variables_that_is_too_large_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / ".env").open("wb") as file:
        file.truncate(2 << 20)

    with pytest.raises(ConfigurationError, match=r"^\.env: .*\.env cannot be read: it is larger than 1 MiB\.$"):
        load_settings()


@pytest.mark.parametrize(
    ("written", "shares"),
    [
        ("3", ("1/3", "2/3", "3/3")),
        ("1/3,2/3,3/3", ("1/3", "2/3", "3/3")),
        ("zone=eu, zone=us,zone=", ("zone=eu", "zone=us", "zone=")),
    ],
)
def test_shares_of_the_collection_are_a_number_or_labels_of_one_key(
    monkeypatch: pytest.MonkeyPatch, written: str, shares: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CAPACITY_COLLECTION_SHARES", written)

    settings = load_settings()

    assert settings.collection_shares == shares
    monkeypatch.setenv("CAPACITY_COLLECTION_SHARES", settings.as_environment()["CAPACITY_COLLECTION_SHARES"])
    assert load_settings().collection_shares == shares


LISTS = ("collection_shares", "label_keys", "metrics_databases", "objects", "password_folders", "password_variables")


@pytest.mark.parametrize("name", LISTS)
def test_a_list_without_a_word_is_empty_and_stays_empty_for_a_child_process(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    variable = f"CAPACITY_{name.upper()}"
    monkeypatch.setenv(variable, ",")
    settings = load_settings()
    assert getattr(settings, name) == ()

    monkeypatch.setenv(variable, settings.as_environment()[variable])
    assert getattr(load_settings(), name) == ()


@pytest.mark.parametrize("written", ["0", "101", "1/3,2/3", "9/4", "zone=eu", "zone=eu,team=", "1/2,zone=", "Zone="])
def test_shares_that_leave_servers_out_are_refused(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("CAPACITY_COLLECTION_SHARES", written)

    with pytest.raises(ConfigurationError, match="CAPACITY_COLLECTION_SHARES"):
        load_settings()
