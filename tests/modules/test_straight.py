"""Reading a plain ``forward``: which calls every row makes, or which line is in the way."""

import re

import pytest

import dspy_stream as ds
from dspy_stream.modules.straight import read, value_of

limit = 3


class Base(ds.Module):
    tone = "dry"

    def __init__(self):
        self.a = ds.Predict("text -> x, y")
        self.b = ds.ChainOfThought("text, tone -> z")
        self.c = ds.Predict("first, second: list[str] -> w")
        self.letter = ds.Format("Dear {name}", output="text")
        self.agent = ds.ReAct("text -> x", tools=[])
        self.count, self.seen = 2, []

    def mine(self, text):
        return text


class Straight(Base):
    def forward(self, text, tone="wry"):
        """It says what it does."""
        one, two = self.a(text=text), self.b(text=text, tone=f"{tone!s:>5}!")
        x: str = one.x
        joined = self.c(first=x, second=[x, one["y"], two.z])
        self.letter(name="nobody")
        return ds.Prediction(w=joined.w, both=[one.x, two.z], n=self.count, said=f"{one.x}-{tone}")


def test_calls_and_what_they_are_given():
    reading = read(Straight())
    assert reading.why == ""
    assert [call.name for call in reading.calls] == ["a", "b", "c", "letter"]
    assert [sorted(call.needs()) for call in reading.calls] == [[], [], [0, 1], []]
    assert reading.groups() == [["a", "b"], ["c"]]
    outputs = {0: ds.Prediction(x="X", y="Y"), 1: ds.Prediction(z="Z")}
    inputs = {"text": "T", "tone": "wry"}
    found = [{n: value_of(m, inputs, outputs) for n, m in c.arguments.items()} for c in reading.calls]
    assert found[1] == {"text": "T", "tone": "  wry!"}
    assert found[2] == {"first": "X", "second": ["X", "Y", "Z"]}


def forwards():
    """Functions, each with the text that tells why it is not followed; the line is marked."""

    def decides(self, text):
        one = self.a(text=text)
        if one.x:  # here
            one = self.b(text=text, tone="")
        return one

    def loops(self, text):
        return ds.Prediction(x=[self.a(text=t).x for t in text])  # here

    def prints(self, text):
        print(text)  # here
        return self.a(text=text)

    def uses_a_global(self, text):
        return self.a(text=limit)  # here

    def changes_itself(self, text):
        self.last = self.a(text=text)  # here
        return self.last

    def changes_a_list(self, text):
        self.seen.append(text)  # here
        return self.a(text=text)

    def reads_a_list(self, text):
        return self.a(text=self.seen)  # here

    def tries(self, text):
        try:  # here
            return self.a(text=text)
        except ValueError:
            return None

    def calls_its_own(self, text):
        return self.a(text=self.mine(text))  # here

    def asks_an_agent(self, text):
        return self.agent(text=text)  # here

    def computes(self, text):
        return self.a(text=text + "!")  # here

    def takes_apart(self, text):
        return self.a(text=text.body)  # here

    def by_position(self, text):
        return self.a(text)  # here

    def settings(self, text):
        return self.a(text=text, temperature=1.0)  # here

    def whole(self, text):
        return self.a(text=self.b(text=text, tone=""))  # here

    def uses_a_method(self, text):
        return self.a(text=self.b(text=text, tone="").toDict)  # here

    def imports(self, text):
        import os  # here

        return self.a(text=text, y=os)

    def nothing(self, text):
        self.a(text=text)  # here

    def early(self, text):
        return self.a(text=text)  # here
        return self.b(text=text)

    named = "decides|loops|no predictor of its own|no value of the row|other than a name|no predictor"
    named += "|neither a call|`try`|self.mine|not simply a predictor|computes|takes a value apart"
    named += "|no names here|other fields|whole prediction|'toDict' of a prediction|not followed: Import"
    words = [*named.split("|"), "does not end with", "not followed: Return"]
    found = [value for value in locals().values() if callable(value)]
    return list(zip(found, words, strict=True))


@pytest.mark.parametrize(("forward", "words"), forwards())
def test_the_line_that_is_not_followed_is_named(forward, words):
    kind = type("Other", (Base,), {"forward": forward})
    reading = read(kind())
    assert reading.calls == ()
    place = re.match(r"(\S+test_straight\.py):(\d+): (.*)", reading.why)
    with open(__file__, encoding="utf-8") as file:
        line = file.read().splitlines()[int(place.group(2)) - 1]
    assert "# here" in line
    assert words in place.group(3)


def test_what_has_nothing_to_be_run_at_the_same_time_is_not_read():
    class One(ds.Module):
        def __init__(self):
            self.a = ds.Predict("text -> x")

        def forward(self, text):
            return self.a(text=text) if text else None

    class Awaited(Base):
        async def aforward(self, text):
            return await self.a.acall(text=text)

    assert [
        read(module) for module in (One(), Awaited(), ds.Predict("a -> b"), ds.ReAct("a -> b", tools=[]))
    ] == [None] * 4


def test_a_wrapped_forward_and_one_without_source_say_so():
    import functools

    def wrap(fn):
        @functools.wraps(fn)
        def inner(self, text):
            return fn(self, text=text)

        return inner

    class Wrapped(Base):
        @wrap
        def forward(self, text):
            return self.a(text=text)

    assert "wrapped in another function" in read(Wrapped()).why

    class Looks(Straight):
        def __getattribute__(self, name):
            return super().__getattribute__(name)

    assert read(Looks()).why.endswith("Looks has a __getattribute__ of its own")
    names = {"Base": Base}
    exec("class Typed(Base):\n    def forward(self, text):\n        return self.a(text=text)", names)
    assert "source cannot be read" in read(names["Typed"]()).why
