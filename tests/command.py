"""The `capacity` command, run in this process on a wide terminal."""

from __future__ import annotations

from click.testing import CliRunner, Result

from capacity_assets.cli.main import main


def capacity(*arguments: str, columns: int | None = None) -> Result:
    """Run the command and return its output and exit code; `columns` is the width of its terminal."""
    return CliRunner(env={"COLUMNS": str(columns)} if columns else None).invoke(main, arguments)


def printed(*arguments: str) -> str:
    """Return the output of a command that must succeed."""
    done = capacity(*arguments)
    assert done.exit_code == 0, done.output
    return done.output
