"""Steps that people declare are shown, replaced and removed."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.clocks import TODAY
from tests.command import capacity

pytestmark = pytest.mark.usefixtures("growing_servers")


def test_a_step_on_a_day_without_sizes_around_it_says_that_there_is_nothing_to_leave_out() -> None:
    added = capacity("steps", "add", "server-1", "orders", "--day", str(TODAY + timedelta(days=1)), "--note", "planned")
    early = capacity("steps", "add", "server-1", "orders", "--day", "2001-01-01", "--note", "long ago")
    empty = capacity("steps", "add", "server-1", "--day", str(TODAY), "--note", " ")

    assert "It takes effect with the first size that is measured on that day or later." in added.output
    assert "No size is known from before that day, so there is no change to ignore." in early.output
    assert (empty.exit_code, "--note is empty" in empty.output) == (2, True)
    assert "planned" not in capacity("explain", "orders", "--runway").output, "it lies ahead"


def test_a_step_that_replaces_another_one_names_it(tmp_path: Path) -> None:
    file = tmp_path / "steps.csv"
    file.write_text(f"server,database,day,note\nserver-1,orders,{TODAY},third\nserver-1,,{TODAY},all\n")

    first, second = (
        capacity("steps", "add", "server-1", "orders", "--day", str(TODAY), "--note", note).output
        for note in ("first", "second")
    )
    told = json.loads(capacity("steps", "import", str(file), "--dry-run", "--json").output)
    tried, imported = (capacity("steps", "import", str(file), *dry).output for dry in (["--dry-run"], []))

    assert "note:" not in first
    assert [one["note"] for one in told["replaced_notes"]] == ["second"]
    assert f"note: This replaces the note 'first' of orders on server-1, {TODAY}." in second
    assert f"note: This would replace the note 'second' of orders on server-1, {TODAY}." in tried
    assert f"note: This replaces the note 'second' of orders on server-1, {TODAY}." in imported


def test_an_empty_name_removes_neither_the_limit_nor_the_step_of_a_whole_server() -> None:
    capacity("steps", "add", "server-1", "--day", str(TODAY), "--note", "moved")

    refused = capacity("steps", "remove", "server-1", "", "--day", str(TODAY))

    assert (refused.exit_code, "The name of a database is empty." in refused.output) == (2, True)
    assert len(json.loads(capacity("steps", "list", "--json").output)) == 1
