"""Who may look, and what every answer carries: headers, the token of readers, the user that a proxy names."""

from __future__ import annotations

import secrets
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CHALLENGE = 'Basic realm="capacity pages", charset="UTF-8"'
REFUSAL = "Refused: log in with any user name and the token as the password, or send Authorization: Bearer TOKEN.\n"
POLICY = "Content-Security-Policy"
# No script and no style but our own files; nothing may frame a page, and no form leaves it.
HEADERS = {
    POLICY: "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SecurityHeaders:
    """Adds headers to every response; a content security policy is added to an existing one to restrict it."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] = HEADERS) -> None:
        """Wrap `app`."""
        self._app, self._headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    if name != POLICY:
                        del headers[name]
                    headers.append(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)


class Allowed:
    """Allows requests with the token, or with a user named by a proxy; all requests if neither is configured.

    The browser asks for the token as a password and sends it only to this port. It would send a cookie to every port of
    the host, where other programs may listen.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, user_header: str | None) -> None:
        """Wrap `app`."""
        self._app, self._token, self._user_header = app, token, user_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._user_header and not headers.get(self._user_header):
            refusal = f"Refused: the proxy named no user in {self._user_header}."
            await PlainTextResponse(f"{refusal}\n", status_code=403)(scope, receive, send)
        elif self._token is None or secrets.compare_digest(_token_in(headers), self._token.encode()):
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse(REFUSAL, 401, {"WWW-Authenticate": CHALLENGE})(scope, receive, send)


def _token_in(headers: Headers) -> bytes:
    """Return the token, sent by a script as Bearer or by a browser as password; empty if there is none."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return b64decode(given, validate=True).partition(b":")[2]
    return given.encode() if scheme.lower() == "bearer" else b""
