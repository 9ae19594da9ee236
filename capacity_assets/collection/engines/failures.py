"""What can keep a server from being measured: the kinds of failure, what to do about each, and the error itself."""

from __future__ import annotations

from enum import StrEnum

LONGEST_REASON = 1000
HIDDEN = "***"


class FailureKind(StrEnum):
    """What kept a server from being measured."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    LOGIN = "login"
    TLS = "tls"
    RIGHTS = "rights"
    CREDENTIAL = "credential"
    SETUP = "setup"
    BROKEN_OFF = "broken off"
    DAY_OVER = "day over"
    UNEXPECTED = "unexpected"


ADVICE = {
    FailureKind.UNREACHABLE: "Is it up, and are host, port and firewall right?",
    FailureKind.TIMEOUT: "Is it overloaded or locked up?",
    FailureKind.LOGIN: "Fix the login on the server, or where its password is looked up.",
    FailureKind.TLS: "Fix the certificate, or register another `tls` for it.",
    FailureKind.RIGHTS: "Give its login the rights that `capacity instances test` names.",
    FailureKind.CREDENTIAL: "",
    FailureKind.SETUP: "",
    FailureKind.BROKEN_OFF: "It was stopped, restarted, or the network failed.",
    FailureKind.DAY_OVER: "Begin earlier, or raise CAPACITY_COLLECTION_CONCURRENCY.",
    FailureKind.UNEXPECTED: "The server's own words say more; `capacity instances test` repeats it.",
}


class MeasureError(Exception):
    """A server could not be measured: of which kind, and in words that hold no secret."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        """Keep the kind; `reason` completes "It was not measured: ", and is made fit for a line of text."""
        super().__init__("".join(sign if sign.isprintable() else " " for sign in reason))
        self.kind = kind

    def without(self, secret: str | None) -> MeasureError:
        """Return it with a secret hidden, before anything is cut: half a password is too much of it."""
        text = str(self)
        return MeasureError(self.kind, text.replace(secret, HIDDEN)) if secret and secret in text else self

    @property
    def description(self) -> str:
        """The reason, shortened, and what to do."""
        text = str(self)
        line = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
        return f"{line}. {ADVICE[self.kind]}".removesuffix(" ").replace("..", ".")


def without_driver(extra: str) -> MeasureError:
    """Return the error of an engine whose driver is an extra of this package that is not installed."""
    return MeasureError(FailureKind.SETUP, f"its driver is not installed: pip install 'capacity_assets[{extra}]'")
