"""Who declared each declared thing and when: stored, listed, in the views and on the pages."""

from __future__ import annotations

import getpass
import json
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capacity_assets.forecast.limits import Limit, declare_limits, stored_limits
from tests.clocks import TODAY
from tests.command import capacity, printed
from tests.databases import rows
from tests.pages import served_pages

pytestmark = pytest.mark.usefixtures("growing_servers")


@pytest.fixture
def declarations(tmp_path: Path) -> dict[str, list[str]]:
    """A command that declares one thing, by the command whose list has it."""
    volumes = tmp_path / "volumes.csv"
    volumes.write_text(f"server,volume,day,total_gb,free_gb\nserver-1,/data,{TODAY},100,50\n")
    server = ["--engine", "postgresql", "--host", "db-7"]
    return {
        "limits": ["limits", "set", "server-1", "--gb", "1"],
        "steps": ["steps", "add", "server-1", "--day", "2025-01-01", "--note", "purged"],
        "labels": ["labels", "set", "server-1", "team=payments"],
        "prices": ["prices", "set", "1", "--currency", "EUR"],
        "instances": ["instances", "add", "server-1", *server],
        "volumes": ["volumes", "import", str(volumes)],
    }


def declarers(listed_by: str) -> list[str | None]:
    found = json.loads(capacity(listed_by, "list", "--json").output)
    today = date.today().isoformat()  # noqa: DTZ011 -- the database's own clock
    assert all(one["declared_at"][:4] == today[:4] for one in found if one["declared_by"])
    return [one["declared_by"] for one in found if one["declared_by"] or listed_by != "instances"]


def test_every_declared_thing_has_who_declared_it(
    declarations: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_option, by_variable, by_login = {}, {}, {}
    again = {"instances": ["--replace", "--tls", "require"], "labels": ["environment=test"]}
    volumes = Path(declarations["volumes"][-1])
    for name, command in declarations.items():
        printed(*command, "--by", "anna")
        by_option[name] = declarers(name)
        monkeypatch.setenv("CAPACITY_DECLARED_BY", "nightly job")
        # A volume that is the same as before is not stored again.
        volumes.write_text(volumes.read_text().replace(",50", ",40" if name == "volumes" else ",50"))
        printed(*command, *again.get(name, []))
        by_variable[name] = declarers(name)
        monkeypatch.delenv("CAPACITY_DECLARED_BY")
    for name in ("limits", "steps"):
        printed(*declarations[name])
        by_login[name] = declarers(name)

    assert by_option == {name: ["anna"] for name in declarations}
    # Labels that stay as they are keep their declarer.
    assert by_variable == {**{name: ["nightly job"] for name in declarations}, "labels": ["nightly job", "anna"]}
    assert by_login == {name: [getpass.getuser()] for name in by_login}
    assert "anna" in printed("labels", "list")


def test_a_declarer_without_a_name_is_refused() -> None:
    for wrong in (" ", "x" * 256):
        refused = capacity("limits", "set", "server-1", "--gb", "1", "--by", wrong)

        assert (refused.exit_code, "a name has 1 to 255 characters" in refused.output) == (2, True)


def test_declared_things_on_pages_and_in_views_have_it_and_those_of_an_older_version_do_not(engine: Engine) -> None:
    printed("limits", "set", "server-1", "--gb", "1", "--by", "anna <b>")
    printed("steps", "add", "server-1", "--day", "2025-01-01", "--note", "purged", "--by", "ben")
    printed("instances", "add", "server-1", "--engine", "postgresql", "--host", "db-7", "--by", "carla")
    declare_limits(engine, [Limit("server-1", "orders", 1)])

    with served_pages(engine.url) as pages:
        page = pages.ask("/server?server=1").text
        document = pages.document("/server?server=1")
        database = pages.document("/database?server=1&name=orders")

    assert "by anna &lt;b&gt;</li>" in page
    assert "by ben · purged" in page
    assert "by carla" in page
    assert [one["declared_by"] for one in document["limits"]] == ["anna <b>"]
    assert [one["declared_by"] for one in database["limits"]] == [None, "anna <b>"]
    assert [one.declared_by for one in stored_limits(engine)] == ["anna <b>", None]
    assert rows(engine, "SELECT declared_by FROM capacity_declared_steps") == [("ben",)]
    assert rows(engine, "SELECT declared_by FROM capacity_declared_servers ORDER BY server_id") == [("carla",)]
