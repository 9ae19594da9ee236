"""`capacity mcp`, asked by the client of the protocol's SDK over standard input and output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from sqlalchemy import URL

from capacity_assets.cli import serve
from capacity_assets.reading.access import reading_engine
from capacity_assets.web.app import PageServer, WebOptions
from capacity_assets.web.mcp_server import PAGE_BY_NAME, call_tool, tool_of
from capacity_assets.web.reader import Reader
from capacity_assets.web.routes import PAGES
from tests.clocks import fixed_clock
from tests.command import capacity
from tests.pages import KEYS
from tests.pages_fleet import GROWING, filled

if TYPE_CHECKING:
    from mcp import Client

PREPARED = {"pages": filled}
LARGEST_ANSWER, LARGEST_LIST = 20_000, 22_000
"""Characters, which a model can read beside much else."""


def answer_of(result: Any) -> Any:
    return json.loads(result.content[0].text)


def asking(database: URL, questions: Callable[[Client], Awaitable[Any]]) -> Any:
    """What a client finds out from a server of its own."""
    # Otherwise every test process would load it, in 0.4 seconds.
    from mcp import Client, StdioServerParameters

    environment = {**os.environ, "CAPACITY_WEB_DATABASE_URL": database.render_as_string(hide_password=False)}
    program = StdioServerParameters(command=sys.executable, args=["-m", "capacity_assets.cli", "mcp"], env=environment)

    async def ask() -> Any:
        async with Client(program, read_timeout_seconds=60) as client:
            return await questions(client)

    return anyio.run(ask)


@pytest.mark.usefixtures("pages")
def test_a_tool_returns_as_many_rows_as_it_says_and_lowers_a_larger_number(database: URL) -> None:
    engine = reading_engine(database)
    answers = PageServer(Reader(engine), WebOptions(fixed_clock(), KEYS, reads_ahead=False))
    for name, given, most in (("search", {"q": "server"}, 50), ("servers", {}, 200)):
        described = tool_of(PAGE_BY_NAME[name], KEYS).input_schema["properties"]["shown"]
        results = [call_tool(answers, name, {**given, "shown": shown}) for shown in (most, 1_000)]
        assert (described["maximum"], [result.is_error for result in results]) == (most, [False] * 2), results
    answers.close()
    engine.dispose()


@pytest.mark.nightly("starts a client of its own")
@pytest.mark.usefixtures("pages", "reader_role")
@pytest.mark.single_server("takes a role on that nodes do not let in")
def test_a_client_finds_the_team_that_grew_most_and_is_refused_in_a_sentence(database: URL) -> None:
    async def questions(client: Client) -> Any:
        tools = (await client.list_tools()).tools
        grown = await client.call_tool("groups", {"by": "team", "period": "monthly", "order": "growth"})
        found = await client.call_tool("search", {"q": "server-1", "shown": 1})
        number = answer_of(found)["found"][0]["server_id"]
        largest = await client.call_tool("databases", {"order": "size", "engine": "postgresql", "page": 1, "shown": 1})
        server = await client.call_tool("server", {"server": number, "range": "30d", "series": True})
        chosen = {"server": number, "database": "orders", "by": "team"}
        names = {"volume": "/data", "table": "audit"}
        bounded = {}
        for tool in tools:
            given = {**chosen, "name": names.get(tool.name, "orders")}
            needed = {name: given[name] for name in tool.input_schema["required"]}
            bounded[tool.name] = await client.call_tool(tool.name, needed)
        refused = [
            await client.call_tool("server", {"server": 99}),
            await client.call_tool("groups", {"team": "payments"}),
            await client.call_tool("drop", {}),
        ]
        return client.instructions, tools, grown, largest, server, bounded, refused

    instructions, tools, grown, largest, server, bounded, refused = asking(database, questions)

    assert [tool.name for tool in tools] == [page.name for page in PAGES]
    assert all(tool.annotations.read_only_hint for tool in tools)
    assert "the team that grew most" in instructions
    team = answer_of(grown)["groups"][0]
    assert (team["name"], team["change_mb"]) == ("payments", 50 * 30.5), (
        "the means of May and June are so many days apart"
    )
    largest = answer_of(largest)
    assert [one["size_mb"] for one in largest["databases"]] == [GROWING[-1]]
    assert largest["left_out"]["databases"] == 2
    assert answer_of(server)["server"]["server"] == "server-1"
    assert len(answer_of(server)["sizes"]) == 30
    assert "sizes" not in answer_of(bounded["server"])
    assert {name for name, one in bounded.items() if one.is_error} == {"table"}, "it is in the schema public"
    lengths = {name: len(one.content[0].text) for name, one in bounded.items()}
    assert max(lengths.values()) < LARGEST_ANSWER, lengths
    assert len(json.dumps([tool.model_dump(mode="json", exclude_none=True) for tool in tools])) < LARGEST_LIST
    assert [one.is_error for one in refused] == [True] * 3
    assert refused[0].content[0].text == "No server with ID 99."
    assert refused[1].content[0].text.startswith("groups has no parameter 'team'; it has by, period")
    assert refused[2].content[0].text.startswith("There is no tool 'drop'; there are fleet, changes, servers")


def test_without_the_sdk_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "mcp" else find_spec(name))

    done = capacity("mcp")

    assert done.exit_code == 1
    assert "pip install 'capacity_assets[mcp]'" in done.output


@pytest.mark.usefixtures("pages")
def test_a_role_that_can_write_is_refused(database: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPACITY_WEB_DATABASE_URL", database.render_as_string(hide_password=False))

    done = capacity("mcp")

    assert done.exit_code == 2
    assert "can write" in done.output
