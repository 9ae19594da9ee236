"""Posting a text to a webhook: one place for alerts and digests."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 10


class WebhookError(Exception):
    """The receiver is away or refuses; the text completes "The receiver ...", and names neither address nor secret."""


def post_text(url: str, text: str) -> None:
    """Post one message as JSON with the key `text`, as Slack-compatible receivers take it; raises WebhookError."""
    body = json.dumps({"text": text}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310 -- settings accept http and https only
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310 -- as above
            return
    except urllib.error.HTTPError as error:
        error.close()
        raise WebhookError(f"answered {error.code}") from None
    except (urllib.error.URLError, OSError, ValueError, http.client.HTTPException) as error:
        raise WebhookError(f"does not answer ({type(error).__name__})") from None
