"""A schema created by a newer version is neither written nor read by any program."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import URL, Engine

from capacity_assets.base.errors import DatabaseError
from capacity_assets.base.settings import Settings
from capacity_assets.database.views import READER_ROLE
from capacity_assets.runtime import open_reading_engine
from tests.command import capacity
from tests.databases import execute
from tests.pages import served_pages

COMMANDS = (
    ("status",),
    ("top",),
    ("groups",),
    ("report", "--period", "monthly"),
    ("export", "--period", "monthly"),
    ("explain", "server-1", "--period", "daily", "--window", "2025-03-01"),
    ("runway",),
    ("bill",),
    ("plan", "--period", "daily"),
    ("limits", "list"),
    ("labels", "list"),
    ("instances", "list"),
    ("maintain",),
    ("aggregate", "--period", "daily"),
    ("init",),
    ("check",),
)
NEWER = "UPDATE capacity_alembic_version SET version_num = '0999'"
SAID = "revision 0999, created by a newer version"


def test_commands_refuse_a_newer_schema(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert settings
    monkeypatch.chdir(tmp_path)
    execute(engine, NEWER)
    for command in COMMANDS:
        done = capacity(*command)

        assert done.exit_code == 1, done.output
        said = " ".join(done.output.split())
        assert SAID in said, command
        assert "Install the newer version" in said, command


@pytest.mark.usefixtures("reader_role")
def test_pages_are_not_served_from_a_newer_schema(settings: Settings, engine: Engine) -> None:
    execute(engine, NEWER)

    with pytest.raises(DatabaseError, match=SAID), open_reading_engine(settings):
        pytest.fail("the pages are served")


@pytest.mark.usefixtures("reader_role")
def test_pages_refuse_a_schema_that_becomes_newer_while_they_are_served(
    engine: Engine, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capacity_assets.web.reader.SECONDS_BETWEEN_REVISIONS", 0)
    with served_pages(database, READER_ROLE) as pages:
        assert pages.ask("/").status == 200
        execute(engine, NEWER)
        answers = [pages.ask("/servers"), pages.ask("/servers?format=json")]

    for answer in answers:
        assert answer.status == 503
        assert SAID in answer.text
