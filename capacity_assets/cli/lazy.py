"""Groups of commands that keep the declared order, and import a command when it is called."""

from __future__ import annotations

from importlib import import_module

import click


class OrderedGroup(click.Group):
    """A group whose help lists the commands in the order in which they are declared."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        """Return the names of all commands."""
        return list(self.commands)


class LazyCommand(click.Command):
    """A command in the overview; `location` is its implementation, as `module:attribute` in this package."""

    def __init__(self, name: str, location: str, summary: str) -> None:
        super().__init__(name, short_help=summary)
        self.location = location


class LazyGroup(OrderedGroup):
    """A group that imports the module of a command when the command is called; its help imports none."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the name, the imported command and the rest of the words; raises click.NoSuchCommand."""
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(command, LazyCommand):
            module, _, attribute = command.location.partition(":")
            command = getattr(import_module(f"{__package__}.{module}"), attribute)
        return name, command, rest
