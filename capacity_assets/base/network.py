"""Calls over HTTP and SMTP. Each has one deadline for the whole call, and no redirect is followed.

The timeout of a socket restarts with every byte, so without the deadline one byte per second could block a caller for
days.
"""

from __future__ import annotations

import http.client
import json
import math
import smtplib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

WEBHOOK_SECONDS = 10.0
CLOSING_SECONDS = 0.5

Result = TypeVar("Result")
Client = TypeVar("Client", http.client.HTTPConnection, http.client.HTTPSConnection, smtplib.SMTP, smtplib.SMTP_SSL)


class UnansweredError(Exception):
    """No response arrived. The text gives the reason; `kind` is the reason without any part of the address."""

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.kind = kind


class LateError(UnansweredError):
    """The response was not complete in time."""


class WebhookError(Exception):
    """The receiver is unreachable or refuses. The text completes "The receiver ..."; it has no address or secret."""


@dataclass(frozen=True)
class Answer:
    """A response with any status; the body is truncated one byte after the requested maximum."""

    status: int
    body: bytes


class Connections:
    """The connections of a call, so that another thread can close them."""

    def __init__(self) -> None:
        self._connections: list[Any] = []

    def noting(self, kind: type[Client]) -> type[Client]:
        """Return a subclass of `kind` whose connections are registered here."""

        def connect(client: Any, *args: Any, **options: Any) -> Any:
            self._connections.append(client)
            done = kind.connect(client, *args, **options)
            # An HTTP client drops its reference to the socket when the body starts.
            self._connections.append(client.sock)
            return done

        return type(kind.__name__, (kind,), {"connect": connect})

    def close(self) -> None:
        """Shut down the open connections, so that waiting threads continue."""
        for noted in list(self._connections):
            connection = getattr(noted, "sock", noted)
            if connection is not None:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def run_within(seconds: float, call: Callable[[], Result], end: Callable[[], object]) -> Result:
    """Return the result of `call`, which runs in a thread; `end` unblocks the thread when the time is over.

    Raises:
        TimeoutError: it took longer.
        Exception: whatever `call` raises.
    """
    outcome: Future[Result] = Future()
    threading.Thread(target=_settle, args=(outcome, call), daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError as error:
        if outcome.done():
            raise
        raise TimeoutError(f"no complete answer within {seconds:g} s") from error
    finally:
        if not outcome.done():
            threading.Thread(target=_end_until_done, args=(outcome, end), daemon=True).start()


def _settle(outcome: Future[Result], call: Callable[[], Result]) -> None:
    try:
        outcome.set_result(call())
    except BaseException as error:  # noqa: BLE001 -- raised again for the caller
        outcome.set_exception(error)


def _end_until_done(outcome: Future[Result], end: Callable[[], object]) -> None:
    # Repeatedly: a connection that is still being opened can only be shut down a moment later.
    while not outcome.done():
        end()
        time.sleep(CLOSING_SECONDS)


class _NoRedirects(urllib.request.HTTPErrorProcessor):
    """Returns every status to the caller. A redirect would turn POST into GET, and could lead anywhere."""

    def http_response(
        self,
        request: urllib.request.Request,  # noqa: ARG002 -- urllib's signature
        response: http.client.HTTPResponse,
    ) -> http.client.HTTPResponse:
        return response

    https_response = http_response


def ask(  # noqa: PLR0913 -- what a question may have
    url: str,
    *,
    seconds: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    most_bytes: int = 0,
    by_proxy: bool = True,
) -> Answer:
    """Send a request to a web address, by POST if there is a `body`; raises UnansweredError.

    `seconds` covers everything from opening the connection to the last byte of the response.
    """
    opened = Connections()
    plain, encrypted = opened.noting(http.client.HTTPConnection), opened.noting(http.client.HTTPSConnection)

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(plain, request)

    class Encrypted(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(encrypted, request)

    proxies = [] if by_proxy else [urllib.request.ProxyHandler({})]

    def answer() -> Answer:
        request = urllib.request.Request(url, data=body, headers=dict(headers or {}))  # noqa: S310 -- the caller's
        opener = urllib.request.build_opener(Plain, Encrypted, _NoRedirects, *proxies)
        with opener.open(request, timeout=seconds) as answer:
            return Answer(answer.status, answer.read(most_bytes + 1) if most_bytes else b"")

    try:
        return run_within(seconds, answer, opened.close)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            late = f"no complete answer within {seconds:g} s"
            raise LateError(late, late) from None
        raise UnansweredError(str(reason) or type(error).__name__, type(error).__name__) from None


def post_json(url: str, content: object, seconds_left: float = math.inf) -> None:
    """Post one message as JSON, within WEBHOOK_SECONDS or the remaining time; raises WebhookError."""
    body, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
    try:
        status = ask(url, seconds=min(WEBHOOK_SECONDS, seconds_left), body=body, headers=headers).status
    except UnansweredError as error:
        raise WebhookError(f"does not answer ({error.kind})") from None
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        raise WebhookError(f"answered {status}, a redirect, which is not followed: configure the target address")
    if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        raise WebhookError(f"answered {status}")
