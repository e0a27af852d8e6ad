import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.adapters.markers import _any_sections, _plain_sections, escape, marker, sections, unescape
from tests.pace import linear

pieces = st.sampled_from(["[[", "]]", "##", " ", "\\", "answer", "[", "#", "\n", "[[ ## answer ## ]]", "x"])
hostile = st.lists(pieces, max_size=30).map("".join)


@given(hostile | st.text())
def test_escaping_is_undone_exactly(text):
    assert unescape(escape(text)) == text


@given(hostile | st.text())
def test_escaped_text_holds_no_marker_wherever_it_is_put(text):
    assert sections(escape(text)) == {}
    assert sections("\n" + escape(text) + "\n") == {}
    assert list(sections(f"{marker('a')}\n{escape(text)}\n\n{marker('b')}\nx")) == ["a", "b"]


@given(st.text(alphabet="ab [#]\\\n"))
def test_text_without_a_marker_is_not_changed(text):
    if "##" not in text or "[[" not in text:
        assert escape(text) == text


marked = st.lists(
    st.sampled_from([marker("a"), marker("b_1"), "\n", "\n\n", "x", " ", "[[", "é", marker("1")])
)


@given(marked.map("".join) | hostile)
def test_the_short_path_finds_what_the_search_finds(text):
    plain = _plain_sections(text)
    if plain is not None:
        assert list(plain.items()) == list(_any_sections(text).items())


def test_usual_answers_take_the_short_path():
    text = f"Well.\n{marker('a')}\n1\n\n{marker('b')}\n[2]\n\n{marker('completed')}\n"
    assert _plain_sections(text) == {"a": "1", "b": "[2]", "completed": ""}
    assert _plain_sections(f"say {marker('a')}") is None


def test_first_of_two_sections_counts():
    text = "[[ ## a ## ]]\n1\n[[ ## b ## ]]\n2\n[[ ## a ## ]]\n3"
    assert sections(text) == {"a": "1", "b": "2"}


def test_text_on_the_line_of_the_marker_is_kept():
    assert sections("[[ ## a ## ]] one\ntwo") == {"a": "one\ntwo"}


@pytest.mark.parametrize("form", ["[[ ## a ## ]]", "  [[ ## a ## ]]", "\t[[## a ##]]", "\ufeff[[ ## a ## ]]"])
def test_forms_of_a_marker(form):
    assert sections(f"{form}\n1\n") == {"a": "1"}


@pytest.mark.parametrize(
    "text", ["say [[ ## a ## ]]", "[[ ## a b ## ]]", "[[ # a # ]]", "[[ \\## a ## ]]", "## a"]
)
def test_what_is_no_marker(text):
    assert sections(text) == {}


def test_a_marker_within_a_line_belongs_to_the_value():
    text = "[[ ## a ## ]]\nuse [[ ## b ## ]] here [[ ## b ## ]]\n[[ ## b ## ]]\n2"
    assert sections(text) == {"a": "use [[ ## b ## ]] here [[ ## b ## ]]", "b": "2"}


def test_line_ends_of_windows():
    assert sections("[[ ## a ## ]]\r\n1\r\n\r\n[[ ## b ## ]]\r\n2\r\n") == {"a": "1", "b": "2"}


@pytest.mark.parametrize("unit", ["[[ ## a ## ]] ", "[[ ", "[[", "[[ ## a ## ]]\n", "[[\\\\\\\\", " "])
def test_long_hostile_texts_take_little_time(unit):
    text = unit * (1_000_000 // len(unit))
    with linear():
        sections(text)
        assert unescape(escape(text)) == text
