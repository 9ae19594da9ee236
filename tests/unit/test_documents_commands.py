"""The commands: every one is documented with its options and their defaults, and those named anywhere exist."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest

from capacity_assets.cli.main import main
from capacity_assets.collection.engines.base import engines
from capacity_assets.database.tables import collection_targets
from tests.command import printed
from tests.documents import EVERYTHING, ROOT, first_cells, section

SOURCE = "\n".join(path.read_text() for path in (ROOT / "capacity_assets").rglob("*.py"))
# Texts in the source are cut where a line ends, and hold names in braces.
SAID = re.sub(r'"\s*\n\s*f?"', "", SOURCE)
LEAST_COMMANDS_IN_MESSAGES = 50
LEAST_MESSAGES_EXPLAINED = 8


def leaves() -> dict[str, click.Command]:
    """Every command that does something, by its full name."""
    found: dict[str, click.Command] = {}
    for name, command in commands_of(main).items():
        if isinstance(command, click.Group):
            found |= {f"{name} {below}": inner for below, inner in commands_of(command).items()}
        else:
            found[name] = command
    return found


def commands_of(group: click.Group) -> dict[str, click.Command]:
    """The commands of a group, imported as for a call."""
    context = click.Context(group)
    commands = {name: group.resolve_command(context, [name])[1] for name in group.list_commands(context)}
    assert None not in commands.values()
    return commands  # type: ignore[return-value]


def test_no_command_is_cut_short_in_the_help() -> None:
    groups = [main, *(command for command in commands_of(main).values() if isinstance(command, click.Group))]
    for group in groups:
        help_text = group.get_help(click.Context(group, max_content_width=80, terminal_width=80))

        assert [line for line in help_text.splitlines() if line.endswith("...") and "Usage" not in line] == []


def test_the_overview_says_what_the_help_of_each_command_begins_with() -> None:
    summaries = {name: command.short_help for name, command in main.commands.items()}

    assert summaries == {name: command.get_short_help_str(limit=100) for name, command in commands_of(main).items()}


def test_the_overview_imports_no_command() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from capacity_assets.cli.main import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0; "
        "print([name for name in ('sqlalchemy', 'pydantic', 'dagster', 'numpy', 'rich') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"


def test_every_command_and_option_is_documented_and_no_other() -> None:
    commands = {f"capacity {name}" for name in leaves()}
    documented = {name for name in first_cells("Commands") if name.startswith("capacity ")}
    aggregate = leaves()["aggregate"]
    options = {option for parameter in aggregate.params for option in parameter.opts if option != "--help"}

    assert documented == commands
    rows = {row.split("`")[1]: row for row in section("Commands").splitlines() if row.startswith("| `capacity ")}
    for name in set(leaves()) - {"aggregate", "plan"}:
        taken = {option for parameter in leaves()[name].params for option in parameter.opts if option.startswith("--")}
        assert set(re.findall(r"`(--[\w-]+)`", rows[f"capacity {name}"])) == taken - {"--help"}, name
    listed = [row for row in section("Commands").splitlines() if row.startswith("| `--")]
    assert {name for row in listed for name in re.findall(r"`(--[\w-]+)", row.split("|")[1])} == options


@pytest.mark.parametrize("name", leaves())
def test_options_named_anywhere_exist(name: str) -> None:
    known = {option for parameter in leaves()[name].params for option in parameter.opts} | {"--help"}

    for line in re.findall(rf"capacity {name}((?: --?[\w-]+(?: [\w.:-]+)?)+)", EVERYTHING):
        assert set(re.findall(r"--[\w-]+", line)) <= known, line


def test_commands_named_anywhere_exist() -> None:
    named = set(re.findall(r"`(?:\.venv/bin/)?capacity ([a-z]+)", EVERYTHING))

    assert named == set(commands_of(main))
    for group, command in commands_of(main).items():
        if isinstance(command, click.Group):
            below = set(re.findall(rf"`(?:\.venv/bin/)?capacity {group} ([a-z]+)", EVERYTHING))
            assert below == set(commands_of(command)), group


def test_commands_named_in_messages_and_help_exist() -> None:
    named = re.findall(r"`capacity ([a-z]+)([^`\n{]*)[`{]", SAID)

    assert len(named) > LEAST_COMMANDS_IN_MESSAGES
    for name, rest in named:
        command = commands_of(main)[name]
        words = rest.split()
        if isinstance(command, click.Group) and words:
            command = commands_of(command)[words[0]]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, f"capacity {name}{rest}"


@pytest.mark.parametrize("name", sorted(set(leaves()) - {"aggregate", "plan"}))
def test_defaults_of_options_are_documented(name: str) -> None:
    [row] = [row for row in section("Commands").splitlines() if row.startswith(f"| `capacity {name}` ")]
    given = {
        option.opts[0]: option.default
        for option in leaves()[name].params
        if isinstance(option, click.Option) and not option.is_flag and not option.multiple
    }

    for option, default in given.items():
        if isinstance(default, str | int) and default != "":
            assert re.search(rf"`{option}` \([^)]*default `?{re.escape(str(default))}[`,);]", row), (option, default)


def test_groups_are_chosen_by_one_option_and_help_does_not_show_its_former_name() -> None:
    groupings = {
        name: parameter
        for name, command in leaves().items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and "--group-by" in parameter.opts
    }

    assert set(groupings) == {"report", "groups", "scenario", "budget", "budgets adopt", "bill"}
    for name, option in groupings.items():
        assert option.get_help_record(click.Context(leaves()[name]))[0] == "--group-by TEXT", name
        assert option.opts[1:] == ([] if name == "budgets adopt" else ["--by"]), name


def test_options_of_all_commands_are_documented() -> None:
    options = {option for parameter in main.params for option in parameter.opts}

    assert options - {"--help"} == {"-v", "--verbose", "--version"}
    for option in ("-v", "--version"):
        assert f"`capacity {option}" in section("Commands"), option


def test_every_kind_of_sizing_is_named_by_the_option_and_by_its_column() -> None:
    sizings = {sizing for engine in engines().values() for sizing in engine.sizings}
    help_of_options = printed("instances", "add", "--help").split("--sizing")[1]
    for explained in (help_of_options, collection_targets.c.sizing.comment or ""):
        assert sizings <= set(re.findall(r"\w+", explained))


def test_messages_that_operations_explains_are_said() -> None:
    table = (ROOT / "docs" / "operations.md").read_text().split("\n## When something does not work\n")[1]
    messages = re.findall(r"^\| \*(.+?)\* \|", table, re.MULTILINE)
    assert len(messages) > LEAST_MESSAGES_EXPLAINED
    for message in messages:
        # In one text: what stands between the parts is a name.
        assert re.search(r'[^"\n]*'.join(re.escape(part.strip()) for part in message.split("…")), SAID), message
