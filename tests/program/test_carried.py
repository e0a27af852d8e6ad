"""Fields as bytes and back, whatever their values."""

import math
import sys
from collections import deque
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, auto
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, TypeAdapter

from dspy_stream.program.carried import pack, unpack
from dspy_stream.program.kinds import kind_named, learn, name_of
from dspy_stream.program.types import Code, Image, Reasoning

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
    texts = [Code("x"), Code["sql"]("SELECT 1"), Reasoning("because")]
    found = unpack(pack({"texts": texts, "n": 2**70}))["texts"]
    assert found == texts
    assert [type(text) for text in found] == [type(text) for text in texts]


def test_the_mark_in_the_data_is_data():
    fields = {"\0type": "Image", "n": 2**70}
    assert unpack(pack(fields)) == fields


def test_what_json_does_not_know_comes_back_as_it_was():
    fields = {
        "map": {(1, 2): "x", 3: None, None: {1.5: b"y"}},
        "set": [{1, (2, frozenset({"a"}))}],
        "when": (datetime(2024, 1, 2, 3, 4, 5, 6, timezone.utc), date(2024, 1, 2), timedelta(-1, 2, 3)),
        "numbers": [Decimal("1.10"), Fraction(1, 3), 1 - 2j, math.inf, 10**5000],
        "others": [UUID(int=7), Path("a/b"), bytearray(b"\xff"), deque([1], 3)],
    }
    found = unpack(pack(fields))
    assert found == fields
    assert [type(value) for value in found["others"]] == [type(value) for value in fields["others"]]
    assert math.isnan(unpack(pack({"x": [math.nan]}))["x"][0])


class Colour(Enum):
    RED = 1
    BLUE = ("b", 2)


class Rights(Flag):
    READ = auto()
    WRITE = auto()


class Pair(NamedTuple):
    left: int
    right: Any


@dataclass(frozen=True)
class Spot:
    x: int
    more: Any = None


class Item(BaseModel, extra="allow"):
    name: str
    price: float = 1.0
    tags: set[str] = set()
    spot: Spot | None = None
    _seen: int = 0


learn([Colour, Rights, Pair, Item])


def test_classes_that_the_program_names_come_back_whatever_is_in_them():
    item = Item(name="a", tags={"x"}, spot=Spot(1, Colour.RED), other=(1,))
    item._seen = 3
    wrong = Item.model_construct(name=7, price="dear")
    fields = {
        "items": [item, wrong],
        "colour": {Colour.BLUE: Rights.READ | Rights.WRITE},
        "pair": Pair(1, item),
    }
    found = unpack(pack(fields))
    assert found == fields
    assert found["items"][0]._seen == 3
    assert found["items"][0].model_fields_set == item.model_fields_set
    assert type(found["pair"]) is Pair


class Strange:
    def __str__(self):
        return "strange"


def test_of_a_class_that_nobody_names_comes_its_json_form_by_the_type_of_its_field():
    class Hidden(BaseModel):
        n: int
        hidden: Any = None

    fields = {
        "a": Hidden(n=1),
        "b": [Strange(), (1,)],
        "c": Hidden(n=2, hidden=Strange()),
        "d": Spot(1, Strange()),
    }
    types = {name: TypeAdapter(kind) for name, kind in {"a": Hidden, "b": list[int], "d": Spot}.items()}
    found = unpack(pack(fields), types)
    assert found["a"] == Hidden(n=1)
    assert found["b"] == ["strange", (1,)]  # it does not fit
    assert found["c"] == {"n": 2, "hidden": "strange"}
    assert found["d"] == Spot(1, "strange")
    assert unpack(pack({"secret": SecretStr("x")})) == {"secret": "**********"}


def test_a_class_is_put_together_without_its_code_and_only_as_what_it_is():
    class Runs(BaseModel):
        def model_post_init(self, context):
            raise AssertionError

    learn([Runs])
    data = b'\0{"x":{"\\u0000type":"model","of":"%s","value":[{},null,[],null]}}'
    assert type(unpack(data % name_of(Runs).encode())["x"]) is Runs
    assert unpack(data % name_of(Spot).encode())["x"] == {}
    assert unpack(data % b"os:system")["x"] == {}


def test_two_classes_of_one_name_are_told_apart():
    first = type("Twin", (BaseModel,), {"__module__": "one"})
    second = type("Twin", (BaseModel,), {"__module__": "two"})
    learn([first, second])
    found = unpack(pack({"a": first(), "b": second()}))
    assert (type(found["a"]), type(found["b"])) == (first, second)
    assert kind_named("script:Twin") is None


def test_a_class_of_a_script_has_one_name_in_all_its_processes(monkeypatch):
    kind = type("Spot", (BaseModel,), {"__module__": "__main__"})
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert name_of(kind) == "__main__:Spot"
    main.__file__ = "/somewhere/sort.py"
    assert name_of(kind) == "flow_sort:Spot"
    main.__spec__ = SimpleNamespace(name="flows.sort")
    assert name_of(kind) == "flows.sort:Spot"
