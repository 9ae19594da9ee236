"""The MCP server: a read-only tool for each answer of the API, over standard input and output.

The SDK of the protocol is an extra, so it is imported where it is used.
"""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from capacity_assets.web.api import ABOUT, answer_schema, arguments_schema
from capacity_assets.web.app import PAGES, REFUSED_ERRORS, PageServer, refusal_of
from capacity_assets.web.rendering import PageRoute

if TYPE_CHECKING:
    from mcp.server.lowlevel.server import Server
    from mcp.types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams, Tool

INSTRUCTIONS = (
    f"{ABOUT} To find the team that grew most, call groups with by=team and order=growth; the database that grew most, "
    "databases with order=growth; what is full first, filling; the ID of a server, search. A null group name means "
    "items without that label."
)
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
        # Describing the answers takes a second.
        return ListToolsResult(tools=await asyncio.to_thread(lambda: [tool_of(page) for page in PAGES]))

    async def on_call(_context: object, params: CallToolRequestParams) -> CallToolResult:
        return await asyncio.to_thread(call_tool, answers, params.name, params.arguments or {})

    return Server(
        "capacity",
        version=version("capacity_assets"),
        instructions=INSTRUCTIONS,
        on_list_tools=on_list,
        on_call_tool=on_call,
    )


def tool_of(page: PageRoute) -> Tool:
    """Return the tool of an answer."""
    from mcp.types import Tool, ToolAnnotations

    return Tool(
        name=page.name,
        title=page.title,
        description=page.description,
        input_schema=arguments_schema(page),
        output_schema=answer_schema(PAGES, page),
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
    )


def call_tool(answers: PageServer, name: str, arguments: dict[str, Any]) -> CallToolResult:
    """Return an answer, or a refusal in a sentence."""
    from mcp.types import CallToolResult, TextContent

    given = {key: str(value) for key, value in arguments.items() if value is not None}
    if name not in PAGE_BY_NAME:
        text = f"There is no tool {name!r}; there are {', '.join(PAGE_BY_NAME)}."
        return CallToolResult(content=[TextContent(text=text)], is_error=True)
    try:
        text = answers.json_of(PAGE_BY_NAME[name], given).decode()
    except REFUSED_ERRORS as error:
        return CallToolResult(content=[TextContent(text=refusal_of(error)[1])], is_error=True)
    return CallToolResult(content=[TextContent(text=text)], structured_content=json.loads(text))
