"""Data as a person sees it: text made harmless, and tables of it."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dspy_stream.cli.table import clean, rows_table


@given(st.text(max_size=300))
def test_clean_text_is_printable_and_short(text):
    made = clean(text)
    assert made.isprintable()
    assert len(made) <= 200
    if text.isprintable() and len(text) <= 200:
        assert made == text


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\rb", "\x9b2J", "a\u202eb", "\x00", "a\nb", "\u2028"])
def test_nothing_that_drives_a_terminal_is_left(text):
    assert "\N{REPLACEMENT CHARACTER}" in clean(text)


def test_long_text_is_cut_with_a_sign():
    assert clean("x" * 20, 10) == "x" * 9 + "…"


def test_cells_are_no_markup():
    out = Console(file=io.StringIO(), width=120, force_terminal=False)
    rows_table(out, ["a"], [["[link=http://x]y[/link]\x1b[0m"]])
    text = out.file.getvalue()
    assert "[link=http://x]y[/link]" in text
    assert "\x1b" not in text


def test_a_narrow_terminal_folds_no_cell():
    out = Console(file=io.StringIO(), width=30, force_terminal=True, color_system=None)
    rows_table(out, ("ref", "message"), [("r" * 25, "a message of several words")])
    shown = out.file.getvalue().splitlines()
    assert shown == [f"{'ref':25}  message", f"{'r' * 25}  a message of several words"]
