"""Random programs of parts with options over rows that fail here and there: called and in flows the same."""

import asyncio
import random
import zlib

import pytest

import dspy_stream as ds
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.part import as_part
from dspy_stream.modules.route import Loop, Route
from dspy_stream.stream.sinks import MemorySink
from tests.stream.test_split import inputs_of, wanted

FIELDS = ["a", "b", "c", "d"]
ROWS = [
    {"row": n, "kind": n % 3, "a": f"t{n}", **({"b": "u"} if n % 5 else {}), **({"c": n} if n % 2 else {})}
    for n in range(10)
]
WAYS = [{"split": False}, {"order": "ordered"}, {"split": True, "workers": 2}]


def number(*of):
    return zlib.crc32(repr(of).encode())


def model():
    async def answer(request):
        given, names = sorted(inputs_of(request).items()), wanted(request)
        await asyncio.sleep(number(given) % 3 * 0.0005)
        if number(given, names) % 9 == 0 or len(request.tail) > 1:
            return "no"
        return {name: f"{name}{number(name, given) % 1000}" for name in names}

    return ds.ScriptedLM(answer, cache=True)


class Programs:
    """Makes a program out of one seed."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def made(self):
        return ds.Program(first=lambda **fields: {}, rest=self.tree(3))

    def tree(self, depth):
        names = self.rng.sample(["p", "q", "default", "past"], self.rng.randint(2, 3))
        kind = self.rng.choice(["leaf", "program", "fork", "route", "loop"]) if depth else "leaf"
        if kind == "leaf":
            made = self.function() if self.rng.random() < 0.6 else self.predictor()
        elif kind == "program":
            made = ds.Program(**{name: self.tree(depth - 1) for name in names})
        elif kind == "fork":
            made = Fork(**{name: self.tree(depth - 1) for name in names})
        elif kind == "route":
            on = self.rng.choice(["kind", lambda row: number(row["b"]) % 3])
            routes = {key: self.tree(depth - 1) for key in self.rng.sample([0, 1, 2], 2)}
            made = Route(on, routes, self.tree(depth - 1) if self.rng.random() < 0.5 else None)
        else:
            until = self.rng.choice(["kind", lambda row: 1 / (number(str(row.get("a"))) % 4) > 0.4])
            made = Loop(self.tree(depth - 1), until, self.rng.randint(1, 3))
        return as_part(made).using(**self.options(as_part(made).module))

    def function(self):
        reads, makes = self.rng.sample(FIELDS, 1), self.rng.sample(FIELDS, self.rng.randint(0, 2))
        salt, fails = self.rng.random(), self.rng.random() < 0.3

        def f(**fields):
            found = number(salt, *(fields[name] for name in reads))
            if fails and found % 5 == 0:
                raise ValueError(found % 10)
            return None if fails and found % 5 == 1 else {name: f"{name}{found % 100}" for name in makes}

        return f

    def predictor(self):
        reads, *makes = self.rng.sample(FIELDS, 3)
        return self.rng.choice([ds.Predict, ds.ChainOfThought])(f"{reads} -> {', '.join(makes)}")

    def options(self, module):
        given, names = {}, module.output_names() or FIELDS
        if self.rng.random() < 0.2:
            given["retries"] = 1
        if self.rng.random() < 0.2:
            given["fallback"] = self.function()
        if self.rng.random() < 0.4:
            given["on_error"] = self.rng.choice(["default", "default", "skip", "dead_letter"])
        if given.get("on_error") == "default":
            given["defaults"] = {(module.output_names() or ["d"])[0]: "default"}
        if self.rng.random() < 0.2:
            given["outputs"] = dict(zip(names[:2], self.rng.sample(FIELDS, len(names[:2])), strict=True))
        return given


def called(program, row):
    try:
        return {**row, **dict(program(**row).items())}
    except Exception:  # noqa: BLE001 - whatever it is, a flow has to find the same rows
        return "failed"


def flowed(program, workers=1, **step):
    rows, letters = MemorySink(), MemorySink()
    stream = ds.Stream.from_iterable(ROWS, id="row").through(program, **step)
    stream = stream.limit_failures(consecutive=None, ratio=None)
    stream.write(rows, dead_letters=letters).run(lm=model(), state=None, quiet=True, workers=workers)
    out = {row.row: dict(row.fields) for row in rows.rows}
    return out, {int(letter.row_id) for letter in letters.rows}


def programs(count):
    """So many of those that can be made: others are refused, such as a fork whose parts clash."""
    found, seed = [], 0
    while len(found) < count:
        seed += 1
        try:
            found.append(pytest.param(Programs(seed).made(), id=str(seed)))
        except ds.ConfigurationError:
            continue
    return found


@pytest.mark.parametrize("program", programs(30))
def test_all_ways_to_the_same_rows(program):
    with ds.context(lm=model()):
        expected = {row["row"]: called(program, row) for row in ROWS}
    whole = {place: row for place, row in expected.items() if row != "failed"}
    found = [flowed(program, **way) for way in WAYS]
    assert [rows for rows, _ in found] == [whole] * len(WAYS)
    dead = [letters for _, letters in found]
    assert dead == [dead[0]] * len(WAYS), "the others were skipped"
