"""`capacity serve`: the read-only pages, until Ctrl-C; `capacity mcp`: their answers, for language models."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec

import click

from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.cli.options import CommandFailedError, command, say
from capacity_assets.runtime import open_reading_engine, open_runs_engine

HOST = "127.0.0.1"
PAGES_PORT = 3001
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
SHUTDOWN_SECONDS = 5
BACKLOG = 256


@click.command()
@click.option("--port", default=PAGES_PORT, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--host", default=HOST, show_default=True, help="Address to listen on.")
@click.option("--name", "names", multiple=True, metavar="HOST", help="Additional host name of the pages in browsers.")
@click.option("--allow-writing-role", is_flag=True, help="Serve even if the database role can write.")
@command
def serve(settings: Settings, /, *, port: int, host: str, names: Sequence[str], allow_writing_role: bool) -> None:
    """Serve the pages until Ctrl-C.

    They show the fleet, servers, databases, volumes, groups and bills, as HTML, JSON and CSV, and change nothing.
    CAPACITY_WEB_DATABASE_URL is the address of a role that can only read. CAPACITY_WEB_TOKEN or
    CAPACITY_WEB_USER_HEADER restricts access. `capacity up` also serves the pages.

    \b
    Examples:
      capacity serve
      capacity serve --port 8080 --name capacity.example
    """
    import uvicorn

    from capacity_assets.web.app import WebOptions, create_app, uvicorn_limits
    from capacity_assets.web.reader import Reader

    listener = listen(port, host)
    host = f"[{host}]" if ":" in host else host  # as in the address of a page
    with (
        listener,
        open_reading_engine(settings, allow_writing_role=allow_writing_role) as engine,
        open_runs_engine(settings) as dagster,
    ):
        serving = WebOptions(
            Clock(settings.zone),
            settings.label_keys,
            (*OWN_NAMES, *names),
            settings.dagster_url_of_people,
            settings.web_token.get_secret_value() if settings.web_token else None,
            settings.web_user_header,
            metrics_databases=settings.metrics_databases,
            dagster=dagster,
        )
        app = create_app(Reader(engine, settings.thresholds), serving)
        if host not in OWN_NAMES and serving.token is None and serving.user_header is None:
            say(f"Warning: everyone who can reach {host}:{port} can read all figures.")
            say("Set CAPACITY_WEB_TOKEN to require a secret, or CAPACITY_WEB_USER_HEADER to rely on a proxy.")
        # Readers are not told where the database is, or all that it says: who runs the server reads it here.
        for handler in logging.getLogger().handlers:
            handler.setLevel(min(handler.level, logging.WARNING))
        say(f"Pages: http://{host}:{port}")
        config = uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            **uvicorn_limits(),
            # Ctrl-C does not wait for a browser that keeps its connection open.
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        with suppress(KeyboardInterrupt):  # raised again after the last response
            uvicorn.Server(config).run(sockets=[listener])
    say("Stopped.")


@click.command()
@command
def mcp(settings: Settings, /) -> None:
    """Run a read-only MCP server for language models.

    Speaks the Model Context Protocol over standard input and output until its client ends it. It has one tool for each
    page of the API. Needs the extra `mcp`. CAPACITY_WEB_DATABASE_URL is the address of the database with a role that
    can only read.

    \b
    Example, the entry of a client's configuration:
      {"mcpServers": {"capacity": {"command": "capacity", "args": ["mcp"]}}}
    """
    if find_spec("mcp") is None:
        raise CommandFailedError("The server needs the protocol's SDK: pip install 'capacity_assets[mcp]'.")
    from capacity_assets.web.app import PageServer, WebOptions
    from capacity_assets.web.mcp_server import serve_tools
    from capacity_assets.web.reader import Reader

    with open_reading_engine(settings) as engine:
        serving = WebOptions(Clock(settings.zone), settings.label_keys)
        serve_tools(PageServer(Reader(engine, settings.thresholds), serving))


def listen(port: int, host: str = HOST, option: str = "--port") -> socket.socket:
    """Return a socket that listens already when the address is printed; raises CommandFailedError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Otherwise the socket of a name that cannot be encoded is never closed.
        host.encode("idna")
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (None, "not a name of a host")
        advice: dict[int | None, str] = {
            errno.EADDRINUSE: f"Stop the program that uses it, or choose another port with {option}.",
            errno.EACCES: f"Choose a port above 1023 with {option}.",
        }
        raise CommandFailedError(
            f"Port {port} on {host} cannot be used ({reason}). "
            + advice.get(number, "Choose an address of this machine with --host.")
        ) from None


def refuse_a_taken_port(port: int, option: str = "--port") -> None:
    """Raise CommandFailedError if a port is in use, before anything is started."""
    listen(port, option=option).close()
