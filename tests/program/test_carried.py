"""Fields as bytes and back, whatever their values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.program.carried import pack, unpack
from dspy_stream.program.types import Code, Image

ATOMS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(
    ATOMS | st.text(st.characters(categories=["Cs", "Lu"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_plain_data_comes_back_as_it_was(fields):
    assert unpack(pack(fields)) == fields


@pytest.mark.parametrize(
    "value",
    [2**70, -(2**64), "half \ud800 of a pair", {"\ud800": 1}, [[2**70], {"n": 10**30}]],
    ids=["large", "small", "surrogate", "name", "nested"],
)
def test_what_fast_json_does_not_take_comes_back_too(value):
    assert unpack(pack({"n": 1, "value": value})) == {"n": 1, "value": value}


def test_deep_values_come_back_and_deeper_ones_are_refused():
    deep = []
    for _ in range(300):
        deep = [deep]
    assert unpack(pack({"deep": deep})) == {"deep": deep}
    for _ in range(200):
        deep = [deep]
    with pytest.raises(TypeError, match="nested beyond 400 levels"):
        pack({"deep": deep})


def test_values_of_the_types_stand_beside_large_numbers():
    image = Image("data:image/png;base64,AAAA")
    found = unpack(pack({"image": [image], "n": 2**70}))
    assert found == {"image": [image], "n": 2**70}
    assert type(found["image"][0]) is Image
    assert unpack(pack({"code": Code(code="x"), "n": 2**70}))["n"] == 2**70


def test_the_mark_in_the_data_is_data():
    fields = {"\0type": "Image", "n": 2**70}
    assert unpack(pack(fields)) == fields


def test_keys_that_are_no_text_become_text():
    assert unpack(pack({"map": {(1, 2): "x"}})) == {"map": {"(1, 2)": "x"}}


def test_numbers_of_thousands_of_digits_are_refused():
    with pytest.raises(TypeError, match="limit"):
        pack({"n": 10**5000})


def test_what_is_no_number_stays_none():
    assert unpack(pack({"x": math.nan})) == {"x": None}
