"""How errors are reported on the command line: one text on standard error and an exit code, no traceback.

Exit 0: done. 1: the work failed. 2: bad usage or configuration. What is not named here is a bug and
keeps its traceback.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from capacity_assets.errors import DATABASE_FAILURES, CapacityError, NotFoundError, ValidationError, reason_of
from capacity_assets.foundation.os_errors import sentence_of
from capacity_assets.settings import ConfigurationError
from capacity_assets.units import printable

DONE = 0
FAILED = 1
BAD_USAGE = 2


class CommandFailedError(CapacityError):
    """A command could not do its work; the text says why, what was kept and what to do."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print known failures as text and exit with their code."""
    # So that what a command holds (the embedded server, a lock) is given back when it is asked to stop.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    except (ConfigurationError, ValidationError, NotFoundError) as error:
        _leave(str(error), BAD_USAGE)
    except CapacityError as error:
        _leave(str(error), FAILED)
    except DATABASE_FAILURES as error:
        _leave(f"The database refused the work: {reason_of(error)}. What was open was rolled back.", FAILED)
    except (OSError, MemoryError) as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        _leave(f"{sentence} Completed work was kept. Run the same command again afterwards.", FAILED)
    except KeyboardInterrupt:
        _leave("Interrupted. Finished transactions were kept; run the same command again to continue.", FAILED)


def _leave(message: str, code: int) -> None:
    for line in message.splitlines():
        sys.stderr.write(f"capacity: {printable(line)}\n")
    sys.exit(code)
