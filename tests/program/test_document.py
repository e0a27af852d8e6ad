"""JSON files: written whole, read strictly."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.errors import ConfigurationError
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.program.document import closed, parse_document, read_document, write_document
from dspy_stream.program.saved_signature import build_signature, fit_signature, whole_signature

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_what_json_writes_is_read(value):
    assert parse_document(json.dumps(value).encode(), "x") == value


@given(st.binary(max_size=60) | st.text('{}[]":,0123456789.eE+-ntaINx \\u', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_way(data):
    try:
        value = parse_document(data, "x")
    except ConfigurationError:
        return
    assert isinstance(value, dict)
    assert json.loads(data) == value


def test_a_file_is_read_back(tmp_path):
    write_document(tmp_path / "a.json", {"a": ["ä", 1.5, None]})
    assert read_document(tmp_path / "a.json") == {"a": ["ä", 1.5, None]}
    with pytest.raises(ConfigurationError, match="more than 10 bytes"):
        read_document(tmp_path / "a.json", largest=10)
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_document(tmp_path)


def test_a_value_without_a_json_form_leaves_the_old_file(tmp_path):
    write_document(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ConfigurationError):
        write_document(tmp_path / "a.json", {"a": object()})
    assert read_document(tmp_path / "a.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_keys_are_those_that_are_known():
    assert closed({"a": 1, "b": 2}, ("a",), "x", optional=("b",)) == {"a": 1, "b": 2}
    with pytest.raises(ConfigurationError, match="x: unknown key 'lable'; did you mean 'label'"):
        closed({"lable": 1}, ("label",), "x")
    with pytest.raises(ConfigurationError, match="x: the key 'a' is missing"):
        closed({}, ("a",), "x")
    with pytest.raises(ConfigurationError, match="x: an object is expected, not list"):
        closed([], ("a",), "x")


@pytest.mark.parametrize(
    "text",
    [
        "text -> label",
        "a: int, b: list[dict[str, float | None]] -> c: Literal['x', 1, None], d: tuple[int, ...]",
        "a: str = 'x', b: bool = True -> c: set[int], e: Any",
        "picture: Image, past: History -> code: Code['c++'], thought: Reasoning",
    ],
)
def test_a_signature_is_built_again(text):
    one = Signature(text, "Do {it}.")
    other = build_signature(json.loads(json.dumps(whole_signature(one, "x"))), "x")
    assert other.equals(one)
    assert other.digest() == one.digest()


def test_constraints_and_words_go_along():
    one = Signature("a -> b").append(
        "n", OutputField(ge=1, lt=5, multiple_of=2, desc="how many", prefix="N!"), int
    )
    one = one.prepend("s", InputField(min_length=1, max_length=9), str)
    other = build_signature(whole_signature(one, "x"), "x")
    assert other.equals(one)
    assert fit_signature(other, whole_signature(one, "x"), "x") is other
