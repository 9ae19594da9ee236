"""What locks say: who holds one, that it was lost, that it cannot be taken. How locks are kept is in `locks`."""

from __future__ import annotations

import os
import socket
from typing import Protocol

from capacity_assets.errors import CapacityError


class LockHeldError(CapacityError):
    """Another writer holds the period's lock; nothing was written."""

    transient = True


class LockLostError(CapacityError):
    """The lock was lost during the work; the open transaction was rolled back."""

    transient = True


class LockUnavailableError(CapacityError):
    """The lock service cannot be reached; nothing is written without a lock."""

    def __init__(self, message: str, *, transient: bool = True) -> None:
        """Keep transience with the text: an unreachable server may come back, a wrong password stays wrong."""
        super().__init__(message)
        self.transient = transient


class HeldLock(Protocol):
    """What the holder of a lock can do with it."""

    def ensure_held(self) -> None:
        """Raise `LockLostError` unless the lock is still ours."""


# Taken by whoever writes into the raw tables for many servers at once: the collection and the import.
SAMPLES = "samples"


def samples_of(share: str) -> str:
    """Return the name of the lock of some servers' samples: shares are written side by side."""
    return f"{SAMPLES} of the share {share}"


def subject(period: str) -> str:
    """Return what a lock is of, in words."""
    return period if period.startswith(SAMPLES) else f"{period} aggregates"


def nothing_written(period: str) -> str:
    """Return the sentence that says so."""
    return f"Nothing of the {subject(period)} was written."


def owner_name() -> str:
    """Return how this process is named to others that find the lock held."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def held_by(period: str, who: str | None) -> LockHeldError:
    """Return the error of a lock that `who` holds, as far as that is known."""
    return LockHeldError(
        f"The {subject(period)} {f'are being written by {who}' if who else 'were being written by another session'}. "
        f"{nothing_written(period)} Run this again {'when it is done' if who else 'now: that session has finished'}."
    )


def lost(period: str, why: str) -> LockLostError:
    """Return the error of a lock that was lost, and why."""
    return LockLostError(
        f"The lock of the {subject(period)} was lost during the work: {why}. The transaction at work was rolled back, "
        "what was committed before was kept. Run this again."
    )
