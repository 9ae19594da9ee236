"""What the operating system refuses is reported with the file and what to do; anything else keeps its traceback."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager

import click
import pytest
from click.testing import CliRunner
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from capacity_assets.base.errors import sentence_of
from capacity_assets.cli.options import readable_errors
from capacity_assets.cli.up import STOP_SIGNALS, _stop_signals


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x", "/data/a"), "/data/a: No space left on device. Free some space."),
        (
            OSError(errno.EROFS, "x", b"/data"),
            "/data: Read-only file system. Make the file system writable, or choose another place.",
        ),
        (
            OSError(errno.EMFILE, "x"),
            "The operating system refused the work: Too many open files. "
            "Raise the limit of open files (`ulimit -n`, LimitNOFILE of a unit).",
        ),
        (
            MemoryError(),
            "The operating system refused the work: Cannot allocate memory. Free memory, or raise the limit "
            "(`ulimit -v`, MemoryMax of a unit, the memory of the container).",
        ),
        (OSError(errno.EBADF, "x", "/data"), None),
        (OSError("of a library"), None),
    ],
)
def test_an_error_of_the_machine_is_a_sentence_and_another_is_none(
    error: OSError | MemoryError, said: str | None
) -> None:
    assert sentence_of(error) == said


@pytest.mark.parametrize(("error", "code"), [(OSError(errno.EIO, "x", "/data"), 1), (OSError("a defect"), None)])
def test_a_command_ends_with_the_sentence_and_a_defect_is_not_hidden(error: OSError, code: int | None) -> None:
    @click.command()
    def failing() -> None:
        with readable_errors():
            raise error

    result = CliRunner().invoke(failing)

    if code is None:
        assert result.exception is error
    else:
        assert result.exit_code == code
        assert result.stderr == (
            "capacity: /data: Input/output error. Check the log of the machine: the disk may be failing. "
            "Completed work was kept. Run the same command again afterwards.\n"
        )


@pytest.mark.parametrize("block", [readable_errors, _stop_signals])
def test_a_command_that_nohup_runs_goes_on_when_the_terminal_is_closed(
    block: Callable[[], AbstractContextManager[object]],
) -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with block():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_command_without_a_free_connection_ends_with_a_sentence() -> None:
    @click.command()
    def waiting() -> None:
        with readable_errors():
            raise PoolTimeoutError("QueuePool limit of size 2 overflow 0 reached")

    result = CliRunner().invoke(waiting)

    assert result.exit_code == 1
    assert result.stderr == (
        "capacity: No database connection became free while running this command. "
        "The open transaction was rolled back. Run it again.\n"
    )
