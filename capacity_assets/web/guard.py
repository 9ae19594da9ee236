"""Who may look, and what every answer carries: headers, the token of readers, the user that a proxy names."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "capacity_token"
# No script and no style but our own files; nothing may frame a page, and no form leaves it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SecurityHeaders:
    """Adds headers to every answer."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] = HEADERS) -> None:
        """Wrap `app`."""
        self._app, self._headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, with_headers)


class Allowed:
    """Lets in who knows the token, or whom a proxy vouches for; everybody where neither is asked for."""

    def __init__(self, app: ASGIApp, *, token: str | None, user_header: str | None) -> None:
        """Wrap `app`."""
        self._app, self._user_header = app, user_header
        self._token = token
        # The cookie proves that the token was known, and does not carry it.
        self._proof = hashlib.sha256(f"capacity pages {token}".encode()).hexdigest() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if self._user_header and not Headers(scope=scope).get(self._user_header):
            refusal = f"Refused: the proxy named no user in {self._user_header}."
            await PlainTextResponse(f"{refusal}\n", status_code=403)(scope, receive, send)
        elif self._proof is None or self._is_known(request):
            await self._app(scope, receive, send)
        elif self._matches(request.query_params.get("token", "")):
            await self._welcome(request)(scope, receive, send)
        else:
            text = "Refused: open the address with ?token=..., or send the header Authorization: Bearer ...\n"
            await PlainTextResponse(text, status_code=401)(scope, receive, send)

    def _matches(self, given: str) -> bool:
        return self._token is not None and secrets.compare_digest(given.encode(), self._token.encode())

    def _is_known(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._matches(given):
            return True
        return secrets.compare_digest(request.cookies.get(COOKIE, "").encode(), (self._proof or "").encode())

    def _welcome(self, request: Request) -> Response:
        """Go on without the token in the address, where it would stay in histories and logs."""
        rest = request.url.remove_query_params("token").query
        # One slash: two would name another host.
        path = f"/{request.url.path.lstrip('/')}"
        answer = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, self._proof or "", httponly=True, samesite="lax", secure=secure)
        return answer
