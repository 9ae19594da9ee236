"""`capacity serve`: the pages for people, read-only, until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress

import click

from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.cli.options import CommandFailedError, command, say
from capacity_assets.cli.processes import HOST
from capacity_assets.runtime import open_reading_engine, refuse_an_absent_embedded_server

PAGES_PORT = 3001
OWN_NAMES = ("127.0.0.1", "localhost")
LONGEST_SHUTDOWN_SECONDS = 5
WAITING = 256


@click.command()
@click.option("--port", default=PAGES_PORT, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--host", default=HOST, show_default=True, help="Address to listen on.")
@click.option("--name", "names", multiple=True, metavar="HOST", help="Host by which browsers also reach it.")
@click.option("--allow-writing-role", is_flag=True, help="Serve also with a database role that can write.")
@command
def serve(settings: Settings, /, *, port: int, host: str, names: Sequence[str], allow_writing_role: bool) -> None:
    """Serve the pages until Ctrl-C.

    The fleet, servers, databases, volumes, groups and bills, as pages, JSON and CSV. Nothing can be changed there.
    CAPACITY_WEB_DATABASE_URL has the address of a role that can only read; CAPACITY_WEB_TOKEN or
    CAPACITY_WEB_USER_HEADER says who may look. `capacity up` serves the pages beside Dagster's UI.

    \b
    Examples:
      capacity serve
      capacity serve --port 8080 --name capacity.example
    """
    import uvicorn

    from capacity_assets.web.app import Serving, create_app, limits
    from capacity_assets.web.reader import Reader

    if settings.web_database_url is None:
        refuse_an_absent_embedded_server(settings)
    listening = listening_on(port, host)
    serving = Serving(
        Clock(settings.zone),
        settings.label_keys,
        (*OWN_NAMES, *names),
        settings.dagster_url_of_people,
        settings.web_token.get_secret_value() if settings.web_token else None,
        settings.web_user_header,
    )
    with listening, open_reading_engine(settings, allow_writing_role=allow_writing_role) as engine:
        app = create_app(Reader(engine), serving)
        if host not in OWN_NAMES and serving.token is None and serving.user_header is None:
            say(f"Warning: whoever reaches {host}:{port} can read every figure.")
            say("CAPACITY_WEB_TOKEN asks them for a secret, CAPACITY_WEB_USER_HEADER leaves it to a proxy.")
        say(f"Pages: http://{host}:{port}")
        config = uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            **limits(),
            # Ctrl-C does not wait for a browser that keeps its connection open.
            timeout_graceful_shutdown=LONGEST_SHUTDOWN_SECONDS,
        )
        with suppress(KeyboardInterrupt):  # raised once more after all answers were given
            uvicorn.Server(config).run(sockets=[listening])
    say("Stopped. Nothing was changed.")


def listening_on(port: int, host: str = HOST, option: str = "--port") -> socket.socket:
    """Listen, so that whoever reads the address may open it at once; raises CommandFailedError where it is taken."""
    try:
        return socket.create_server((host, port), backlog=WAITING)
    except OSError as error:
        raise CommandFailedError(
            f"Port {port} on {host} cannot be used ({error.strerror}). Nothing was started. "
            f"Stop what uses it, or choose another with {option}."
        ) from None


def refuse_a_taken_port(port: int, option: str = "--port") -> None:
    """Say that a port cannot be listened on, before anything is started; raises CommandFailedError."""
    listening_on(port, option=option).close()
