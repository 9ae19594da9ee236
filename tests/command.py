"""The `capacity` command as its user meets it, in this process, on a wide terminal."""

from __future__ import annotations

from click.testing import CliRunner, Result

from capacity_assets.cli.main import main


def capacity(*arguments: str, columns: int | None = None) -> Result:
    """What the command prints and exits with; `columns` is the width of its terminal."""
    return CliRunner(env={"COLUMNS": str(columns)} if columns else None).invoke(main, arguments)


def printed(*arguments: str) -> str:
    """What a command prints that has to succeed."""
    done = capacity(*arguments)
    assert done.exit_code == 0, done.output
    return done.output
