"""Odd programs, called, as one operator, taken apart, and with two workers: always the same rows."""

import pytest

import dspy_stream as ds
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.part import Apply, as_part
from dspy_stream.modules.route import Loop, Route
from dspy_stream.stream.sinks import MemorySink
from tests.stream.test_split import answers

ROWS = [{"row": n, "text": "poison" if n == 5 else f"t{n}", "kind": f"k{n % 3}", "n": n} for n in range(8)]


class Two(ds.Module):
    def __init__(self):
        self.x, self.y = ds.Predict("text -> x"), ds.ChainOfThought("text -> y")
        self.z = ds.Predict("x, y -> z")

    def forward(self, text):
        a, b = self.x(text=text), self.y(text=text)
        return ds.Prediction(x=a.x, y=b.y, z=self.z(x=f"<{a.x}>", y=b.y).z)


class Lacks(Two):
    def forward(self, text):
        a, b = self.x(text=text), self.y(text=text)
        return ds.Prediction(x=a.x, y=b.nothing)


class Extra(Two):
    def forward(self, text):
        return {"x": self.x(text=text).x, "more": [1, {"a": None}], "none": None, "odd name": 1.0}


class Fails(Two):
    def forward(self, text):
        if "1" in text:
            return None
        if "2" in text:
            raise LookupError(text)
        return self.x(text=text)


def longer(text):
    return {"text": text + "!"}


def deep():
    chain = ds.Predict("text -> x") | (lambda x: {"x": x})
    for number in range(20):
        chain = chain | (lambda x, number=number: {"x": f"{x}{number % 10}"})
    return chain


shared, same = ds.Predict("text -> x"), Two()
again = Apply(lambda z: {"text": z})

PROGRAMS = {
    "nested": ds.Program(
        a=ds.Program(b=ds.Program(c=ds.Predict("text -> x"), d=longer), e=Fork(f=Two(), g=longer)),
        h=ds.Predict("z, n: int -> w"),
    ),
    "routes in forks in a loop": Loop(
        Fork(
            r=Route(lambda row: len(row.text) % 2, {0: longer}, default=longer), s=lambda text: {"seen": text}
        ),
        until=lambda row: len(row.text) > 5,
        max_iterations=3,
    ),
    "loops in routes in a fork": Fork(
        a=Route("kind", {"k0": ds.Predict("text -> x"), "k1": Loop(longer, "text", 3)}, default=Two()),
        b=Fork(c=ds.Predict("text -> c1"), d=ds.Predict("text -> d1")),
    ),
    "one predictor in two parts": Fork(
        a=shared.using(outputs={"x": "x1"}), b=shared.using(outputs={"x": "x2"})
    ),
    "one module twice": ds.Program(a=same, b=again, c=same),
    "deep": deep(),
    "plain": Two(),
    "a field that was not made": Lacks(),
    "further fields": ds.Program(a=Extra(), b=ds.Predict("x -> z")),
    "failures": ds.Program(a=Fails(), b=ds.Predict("x -> z")),
    "failures in a branch": Fork(a=Fails(), b=ds.Predict("text -> w")),
    "defaults": ds.Program(a=Fails().using(on_error="default", defaults={"x": "D"}), b=ds.Predict("x -> z")),
    "a fallback": ds.Program(a=Fails().using(fallback=lambda text: {"x": text}), b=ds.Predict("x -> z")),
    "an output that is not made": ds.Program(
        a=as_part(lambda text: {"x" if "1" in text else "y": 1}).using(
            outputs=["x"], on_error="default", defaults={"x": 0}
        )
    ),
    "a fallback that fails": ds.Program(
        a=Fails().using(fallback=lambda text: None, on_error="default", defaults={"x": "D"})
    ),
    "retries": ds.Program(a=Fails().using(retries=2, timeout=60), b=ds.Predict("x -> z")),
    "nobody's row": ds.Program(a=Two(), r=Route("kind", {"k0": longer}), b=lambda text: {"q": len(text)}),
    "a bound that is hit": Loop(shared.using(outputs={"x": "text"}), lambda row: False, max_iterations=3),
    "any field": Fork(a=lambda: {"k": 1}, b=lambda **rest: {"names": sorted(rest)}),
    "an output over an input": ds.Program(a=ds.Predict("text -> x").using(outputs={"x": "text"}), b=Two()),
    "a trace": ds.Program(a=ds.Recorded(Two()), b=ds.Format("{z} for {text}", output="said")),
}


def called(program, row):
    names = program.input_names()
    try:
        made = program(**(row if names is None else {name: row[name] for name in names}))
        return {**row, **dict(made.items())}
    except Exception as error:  # noqa: BLE001 - whatever it is, a flow has to tell the same
        return type(error).__name__, _said(str(error))


def _said(message):
    return message.removeprefix("01_")  # a step is named with its place


def flowed(program, workers=1, **step):
    rows, letters = MemorySink(), MemorySink()
    stream = ds.Stream.from_iterable(ROWS, id="row").through(program, **step)
    stream = stream.limit_failures(consecutive=None, ratio=None)
    stream.write(rows, dead_letters=letters).run(lm=answers(), state=None, quiet=True, workers=workers)
    found = {row.row: dict(row.fields) for row in rows.rows}
    errors = {int(each.row_id): each.fields["error"] for each in letters.rows}
    return {**found, **{row: (error["type"], _said(error["message"])) for row, error in errors.items()}}


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_ways_to_the_same_rows(name):
    program = PROGRAMS[name]
    with ds.context(lm=answers()):
        expected = {row["row"]: called(program, row) for row in ROWS}
    for way in (
        {"split": False},
        {},
        {"split": True, "order": "ordered"},
        {"workers": 2},
        {"split": True, "workers": 2},
    ):
        assert flowed(program, **way) == expected, way
