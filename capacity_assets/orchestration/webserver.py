"""Dagster's web server, answering its own pages only: `python -m capacity_assets.orchestration.webserver --help`.

Dagster 1.13 executes mutations sent by GET and checks neither the host name nor the origin of a request, so an image on
any web page could launch runs through a browser on this machine. A guard in front of it refuses requests for other host
names, queries in the address, and requests from other sites. Other sites may not frame its pages, which prevents
clickjacking. It also serves the growth reports, so that the UI can link to them. Login is the task of a proxy; see
docs/operations.md.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import click
import uvicorn
from dagster import DagsterInstance
from dagster_webserver.version import __version__
from dagster_webserver.webserver import DagsterWebserver
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from capacity_assets.base.process import PRIVATE_UMASK
from capacity_assets.orchestration.graph import REPORTS_PATH
from capacity_assets.orchestration.private import (
    WorkspaceFileTarget,
    WorkspaceProcessContext,
    WorkspaceRequestContext,
    setup_interrupt_handlers,
)
from capacity_assets.web.app import SecurityHeaders, uvicorn_limits

READING = {"GET", "HEAD"}
# A report contains no script, and the name of a database must not make it load anything.
REPORT_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}
# Dagster shows notebooks in a frame on its own pages.
FRAMED_BY_ITSELF = {"Content-Security-Policy": "frame-ancestors 'self'", "X-Frame-Options": "SAMEORIGIN"}
# The defaults of Dagster's own command.
POLL_MILLISECONDS, STATEMENT_TIMEOUT_MILLISECONDS, POOL_RECYCLE_SECONDS, MAX_OVERFLOW = 2000, 15_000, 3600, 20


class SameOriginGuard:
    """Refuses requests that a page of another site could make a browser send."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403 with the reason."""
        reason = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            await PlainTextResponse(f"{reason}\n", status_code=403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0] not in self._names:
            # Refused, because another site can point its own name to this address.
            return "Refused: this server is not known by that name. See --name."
        if scope["type"] == "http" and scope["method"] in READING:
            asks = scope["path"] == "/graphql" and scope["query_string"]
            return "Refused: queries are sent by POST." if asks else None
        if all(self._is_ours(origin) for origin in headers.getlist("origin")):
            return None
        return "Refused: sent by a page of another site."

    def _is_ours(self, origin: str) -> bool:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc in self._names


class GuardedWebserver(DagsterWebserver[WorkspaceProcessContext, WorkspaceRequestContext]):
    """Dagster's web server behind the guard, with the reports."""

    def __init__(self, context: WorkspaceProcessContext, names: Collection[str], reports: Path) -> None:
        self._names, self._reports = names, reports
        super().__init__(context, live_data_poll_rate=POLL_MILLISECONDS)

    def build_middleware(self) -> list[Middleware]:
        """Put the guard first."""
        return [Middleware(SameOriginGuard, names=self._names), *super().build_middleware()]

    def build_routes(self) -> list[BaseRoute]:
        """Put the reports before Dagster's routes, the last of which match every path."""
        reports = SecurityHeaders(StaticFiles(directory=self._reports), REPORT_HEADERS)
        return [Mount(REPORTS_PATH, reports), *super().build_routes()]  # type: ignore[no-untyped-call]  # Dagster leaves it untyped


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option(
    "--workspace", "workspaces", required=True, multiple=True, help="Workspace file, which names the code locations."
)
@click.option("--reports", required=True, type=click.Path(path_type=Path), help="Folder of the growth reports.")
@click.option(
    "--name",
    "names",
    multiple=True,
    help="Additional host:port in browsers, for example of a proxy; may be repeated.",
)
@click.option("--read-only", is_flag=True, help="Launch and change nothing.")
def main(  # noqa: PLR0913 -- one argument per option
    host: str, port: int, workspaces: Sequence[str], reports: Path, names: Sequence[str], *, read_only: bool
) -> None:
    """Serve the Dagster UI, for its own pages only."""
    os.umask(PRIVATE_UMASK)
    setup_interrupt_handlers()
    reports.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    with DagsterInstance.get() as instance:
        instance.optimize_for_webserver(STATEMENT_TIMEOUT_MILLISECONDS, POOL_RECYCLE_SECONDS, MAX_OVERFLOW)
        target = WorkspaceFileTarget(paths=list(workspaces))
        with WorkspaceProcessContext(instance, target, version=__version__, read_only=read_only) as context:
            dagster = GuardedWebserver(context, {*own, *names}, reports).create_asgi_app()
            app = SecurityHeaders(dagster, FRAMED_BY_ITSELF)
            uvicorn.run(app, host=host, port=port, log_level="warning", **uvicorn_limits())


if __name__ == "__main__":
    main()
