"""Tables of commands: whole lines for a pipe, and as narrow as they can be on a screen that is narrower."""

import re

import pytest

from capacity_assets.cli.options import Table, say

HEADINGS = ("Server", ">Size", "Early (10 %)", ">Within 30 days", "~Note")
ROWS = [["postgresql-core-01", "409.8 GiB", "11 Dec 2026", "81 %", "its disk is shared with three others"]]
WHOLE = [
    "Server                  Size Early (10 %) Within 30 days Note",
    "postgresql-core-01 409.8 GiB 11 Dec 2026            81 % its disk is shared with three others",
]


def printed(
    capsys: pytest.CaptureFixture[str], columns: int, monkeypatch: pytest.MonkeyPatch, *, is_screen: bool
) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if is_screen else "0")
    say(Table("Fill dates", HEADINGS, ROWS))
    return [line.rstrip() for line in re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()]


def test_a_pipe_and_a_wide_screen_have_whole_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns, is_screen in ((40, False), (200, True)):
        assert printed(capsys, columns, monkeypatch, is_screen=is_screen) == ["Fill dates", *WHOLE]


def test_a_narrower_screen_breaks_headings_and_notes_between_words_and_no_other_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed(capsys, 80, monkeypatch, is_screen=True) == [
        "Fill dates",
        "                                         Within",
        "                             Early           30",
        "Server                  Size (10 %)        days Note",
        "postgresql-core-01 409.8 GiB 11 Dec 2026   81 % its disk is shared with three",
        "                                                others",
    ]


def test_values_are_never_broken_on_a_screen_that_is_too_narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(capsys, 20, monkeypatch, is_screen=True)

    assert "postgresql-core-01 409.8 GiB 11 Dec 2026   81 % its" in lines
