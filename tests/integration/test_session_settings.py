"""What a database sets for its sessions changes no figure and stops no command."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import DATABASE
from tests.command import printed
from tests.databases import execute, rows
from tests.fleet import load_sample, stored
from tests.importing import samples
from tests.legacy import LegacyShape, create_legacy_tables
from tests.pages import served_pages

SETTINGS = {
    "datestyle": "'German, DMY'",
    "intervalstyle": "sql_standard",
    "client_encoding": "latin1",
    "default_transaction_isolation": "serializable",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "array_nulls": "off",
    "bytea_output": "escape",
    "lc_numeric": "'C'",
    "timezone": "'Pacific/Chatham'",
}


@pytest.fixture
def odd_sessions(empty_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An empty database whose sessions read and write in another way than the driver expects."""
    [(name,)] = rows(empty_engine, "SELECT quote_ident(current_database())")
    execute(empty_engine, *(f"ALTER DATABASE {name} SET {setting} = {value}" for setting, value in SETTINGS.items()))
    empty_engine.dispose()
    monkeypatch.setenv("CAPACITY_DATABASE_URL", empty_engine.url.render_as_string(hide_password=False))
    return empty_engine


def test_every_step_from_the_schema_to_the_pages_works_with_any_settings(odd_sessions: Engine, tmp_path: Path) -> None:
    file = tmp_path / "sizes.csv"
    rows_of_file = [f"münchen,Ä,2025-07-{day:02},{99 + day}" for day in range(1, 21)]
    file.write_text("\n".join(["server,database,day,size_mb", *rows_of_file]))

    printed("init")
    assert "was up to date" in printed("init")
    printed("import", str(file), "--register-as", "postgresql")
    printed("labels", "set", "münchen", "team=Zürich")
    printed("limits", "set", "münchen", "Ä", "--gb", "1")
    printed("aggregate", "--period", "all", "--from", "2025-07-01", "--to", "2025-07-20")
    printed("runway", "--issue")
    printed("status")

    [month] = [row for row in stored(odd_sessions, DATABASE) if row["period_type"] == "monthly"]
    assert (month["database_name"], month["avg_size_mb"], month["max_size_mb"]) == ("Ä", 109, 119)
    assert "Zürich" in printed("groups", "--by", "team", "--period", "monthly", "--window", "2025-07-01")
    with served_pages(odd_sessions.url) as pages:
        assert "Zürich" in pages.ask("/databases?period=monthly&window=2025-07-01").text


def test_another_database_with_such_settings_is_imported(engine: Engine, odd_sessions: Engine) -> None:
    create_legacy_tables(odd_sessions, LegacyShape())
    load_sample(odd_sessions)
    source = odd_sessions.url.render_as_string(hide_password=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LEGACY", source)
        patched.setenv("CAPACITY_DATABASE_URL", engine.url.render_as_string(hide_password=False))
        printed("import", "env:LEGACY")

    assert samples(engine) == samples(odd_sessions)
