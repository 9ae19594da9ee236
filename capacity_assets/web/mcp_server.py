"""The MCP server: a read-only tool for each answer of the API, over standard input and output.

Models read a response completely, so a list has few rows, series of charts are left out, and no tool describes its
response. The SDK of the protocol is an extra, so it is imported where it is used.
"""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from capacity_assets.web.api import ABOUT, arguments_schema
from capacity_assets.web.app import REFUSED_ERRORS, PageServer, refusal_of
from capacity_assets.web.reader import ROWS_PER_PAGE
from capacity_assets.web.rendering import PageRoute
from capacity_assets.web.routes import PAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcp.server.lowlevel.server import Server
    from mcp.types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams, Tool

INSTRUCTIONS = (
    f"{ABOUT} To find the team that grew most, call groups with by=team and order=growth; the database that grew most, "
    "databases with order=growth; what is full first, filling; the ID of a server, search. A null group name means "
    "items without that label. A list has at most `shown` rows; left_out counts those beyond, by list. To read one in "
    "full, raise shown and go through the pages."
)
SHOWN, MOST_SHOWN = 20, 200
SERIES = frozenset({"sizes", "earlier", "used", "recent", "drawn", "history", "history_months"})
"""Lists with a value for each window or month, as charts draw them."""
BOUNDS: dict[str, dict[str, object]] = {
    "shown": {
        "type": "integer",
        "minimum": 1,
        "maximum": MOST_SHOWN,
        "default": SHOWN,
        "description": "Maximum number of rows of each list.",
    },
    "series": {
        "type": "boolean",
        "default": False,
        "description": "Whether to return the series that charts draw, too.",
    },
}
"""Parameters of every tool, in addition to those of its response. Those of the same name replace them."""
PAGE_BY_NAME = {page.name: page for page in PAGES}


def serve_tools(answers: PageServer) -> None:
    """Answer a client on standard input and output until it ends the input."""
    from mcp.server.stdio import stdio_server

    server = tools_server(answers)

    async def run() -> None:
        async with stdio_server() as (requests, responses):
            await server.run(requests, responses, server.create_initialization_options())

    asyncio.run(run())
    answers.close()


def tools_server(answers: PageServer) -> Server[Any]:
    """Return the server with its tools."""
    from mcp.server.lowlevel.server import Server
    from mcp.types import ListToolsResult

    async def on_list(_context: object, _params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[tool_of(page, answers.label_keys) for page in PAGES])

    async def on_call(_context: object, params: CallToolRequestParams) -> CallToolResult:
        return await asyncio.to_thread(call_tool, answers, params.name, params.arguments or {})

    return Server(
        "capacity",
        version=version("capacity_assets"),
        instructions=INSTRUCTIONS,
        on_list_tools=on_list,
        on_call_tool=on_call,
    )


def tool_of(page: PageRoute, label_keys: Sequence[str]) -> Tool:
    """Return the tool of an answer."""
    from mcp.types import Tool, ToolAnnotations

    arguments = arguments_schema(page, label_keys)
    return Tool(
        name=page.name,
        title=page.title,
        description=page.description,
        input_schema={**arguments, "properties": {**BOUNDS, **arguments["properties"]}},
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
    )


def call_tool(answers: PageServer, name: str, arguments: dict[str, Any]) -> CallToolResult:
    """Return an answer, or a refusal in a sentence."""
    from mcp.types import CallToolResult, TextContent

    parameters = {key: str(value) for key, value in arguments.items() if value is not None}
    with_series = parameters.pop("series", "false").lower() == "true"
    written = parameters.pop("shown", "")
    shown = min(int(written), MOST_SHOWN) if written.isdecimal() and int(written) else SHOWN
    if name == "search":
        parameters["shown"] = str(min(shown, ROWS_PER_PAGE))
    if name not in PAGE_BY_NAME:
        text = f"There is no tool {name!r}; there are {', '.join(PAGE_BY_NAME)}."
        return CallToolResult(content=[TextContent(text=text)], is_error=True)
    try:
        answer = json.loads(answers.json_of(PAGE_BY_NAME[name], parameters))
    except REFUSED_ERRORS as error:
        return CallToolResult(content=[TextContent(text=refusal_of(error)[1])], is_error=True)
    left_out: dict[str, int] = {}
    bounded = bounded_answer(answer, shown, left_out, with_series=with_series)
    text = json.dumps({**bounded, "left_out": left_out}, ensure_ascii=False, separators=(",", ":"))
    return CallToolResult(content=[TextContent(text=text)])


def bounded_answer(value: Any, shown: int, left_out: dict[str, int], *, with_series: bool, path: str = "") -> Any:
    """Return an answer with at most `shown` rows in each list; `left_out` gets the number of others by list."""
    if isinstance(value, list):
        if len(value) > shown:
            left_out[path] = left_out.get(path, 0) + len(value) - shown
        return [bounded_answer(entry, shown, left_out, with_series=with_series, path=path) for entry in value[:shown]]
    if not isinstance(value, dict):
        return value
    bounded = {}
    for name, part in value.items():
        is_series = name in SERIES and isinstance(part, list)
        if is_series and with_series:
            bounded[name] = part
        elif not is_series:
            place = f"{path}.{name}" if path else name
            bounded[name] = bounded_answer(part, shown, left_out, with_series=with_series, path=place)
    return bounded
