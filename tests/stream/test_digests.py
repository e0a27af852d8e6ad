"""What makes a program another one, and what does not."""

import dataclasses
import functools
import operator
import subprocess
import sys
import textwrap

import pytest

from dspy_stream import RLM, BestOfN, Module, Predict, ReAct, Refine
from dspy_stream.adapters import ChatAdapter
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.stream.digests import code_digest, module_digest
from dspy_stream.stream.identity import adapter_identity


def made(source, **globals_):
    """What a file of the user's makes of ``it``."""
    space = {"Module": Module, "Predict": Predict, "ChatAdapter": ChatAdapter, "functools": functools}
    space |= {"dataclasses": dataclasses, "__name__": "job", **globals_}
    exec(textwrap.dedent(source), space)
    return space["it"]


PARTIAL = """
def f(row, *, limit): return row.n < limit
it = functools.partial(f, limit=1)
"""
OBJECT = """
class Keep:
    def __init__(self, limit): self.limit = limit
    def __call__(self, row): return self._small(row)
    def _small(self, row): return row.n < self.limit
it = Keep(1)
"""
KEYWORD = """
def it(row, *, limit=1): return row.n < limit
"""
CAPTURED = """
def build(rules):
    return lambda row: {"kind": rules}
it = build({"a": [1, {2}]})
"""
HELPER = """
def small(n): return n < 1
def it(row): return small(row.n)
"""
METHOD = OBJECT + "it = it.__call__\n"
BOUND = "it = {'a': 1}.get\n"
CACHED = """
@functools.cache
def it(n): return n + 1
"""
RECORD = """
@dataclasses.dataclass
class Settings:
    limit: int = 1
def build(settings):
    return lambda row: settings.limit
it = build(Settings())
"""
FUNCTIONS = [PARTIAL, OBJECT, KEYWORD, CAPTURED, HELPER, METHOD, BOUND, CACHED, RECORD]


@pytest.mark.parametrize("source", FUNCTIONS)
def test_a_function_that_is_edited_is_another(source):
    at = source.rindex("1")
    edited = f"{source[:at]}5{source[at + 1 :]}"
    assert code_digest(made(source)) == code_digest(made(source)) != code_digest(made(edited))


@pytest.mark.parametrize(
    ("old", "new"),
    [("{2}", "{3}"), ("{2}", "[2]"), ('"a"', '"b"'), ("1", "True"), ("1", "'1'"), ("1", "1.0"), ("[1,", "[")],
)
def test_every_value_that_is_captured_counts(old, new):
    assert code_digest(made(CAPTURED)) != code_digest(made(CAPTURED.replace(old, new)))


def test_partials_of_other_functions_and_other_built_in_functions_differ():
    functions = [functools.partial(len), functools.partial(made(KEYWORD), limit=1), made(KEYWORD), len, repr]
    functions += [functools.partial(made(KEYWORD), 1), str.upper, str.lower, "a".join, "b".join]
    functions += [operator.itemgetter("a"), operator.itemgetter("b"), operator.methodcaller("a", 1)]
    assert len({code_digest(fn) for fn in functions}) == len(functions)


def test_odd_values_have_a_digest():
    class Odd:
        def __getattr__(self, name):
            raise ValueError(name)

        def __call__(self, row):
            return row

    def over(*values):
        return lambda row: values

    assert code_digest(over(Odd(), "\ud800", 10**30, float("nan"), list[str], Odd, iter([1])))


def test_a_private_helper_of_a_callable_object_counts():
    assert code_digest(made(OBJECT)) != code_digest(made(OBJECT.replace("row.n <", "row.n <=")))


PROGRAM = """
class Program(Module):
    words = ["class"]
    def __init__(self):
        self.ask = Predict("text -> answer")
        self.limit = 3
        self.rules = {"a": ["x", ("y", 1.5)]}
        self.clean = lambda text: text.strip()
        self.runs, self.seen, self.by_text, self.last = 0, [], {}, None
        self._cache = {}
    def forward(self, text):
        self.runs += 1
        self.by_text[text] = 1
        self._note(text)
        return self.ask(text=self.clean(text)[: self.limit])
    def _note(self, text):
        self.seen.append(text)
        self._cache[text] = self.last = text
    @staticmethod
    def one(): return "static"
    @classmethod
    def two(cls): return "of a class"
    @property
    def three(self): return "property"
it = Program()
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("limit = 3", "limit = 4"),
        ('"x"', '"z"'),
        ("1.5", "2.5"),
        (".strip()", ".lower()"),
        ('"class"', '"other"'),
        ('"static"', '"other"'),
        ('"of a class"', '"other"'),
        ('"property"', '"other"'),
        ("self.seen.append(text)", "self.seen.append(text + text)"),
        ("text -> answer", "text -> answer: int"),
    ],
)
def test_a_program_that_is_edited_is_another(old, new):
    before = module_digest(made(PROGRAM))
    assert old in PROGRAM
    assert before == module_digest(made(PROGRAM)) != module_digest(made(PROGRAM.replace(old, new)))


def test_a_program_that_was_called_is_the_same():
    program = made(PROGRAM)
    before = module_digest(program)
    program.set_lm(ScriptedLM([{"answer": "yes"}] * 2))
    with_lm = module_digest(program)
    assert before != with_lm
    assert program(text="abc").answer == program(text="def").answer == "yes"
    assert (program.runs, program.seen, len(program.history)) == (2, ["abc", "def"], 2)
    assert module_digest(program) == with_lm


def test_what_a_function_gathers_is_no_part_of_it():
    def gathering():
        seen, counts, calls = [], {}, 0

        def f(n):
            nonlocal calls
            calls += 1
            seen.append(n)
            counts[n] = counts.get(n, 0) + 1
            counts["all"] = n

        return f

    used = gathering()
    used(1)
    used(2)
    assert code_digest(used) == code_digest(gathering())


def test_a_program_that_holds_itself_or_is_deep_has_a_digest():
    program = made(PROGRAM)
    program.rules["self"] = program.rules
    program.again = program
    deep = program.deep = []
    for _ in range(5000):
        deep.append([])
        deep = deep[0]
    assert module_digest(program)


def test_what_cannot_be_read_counts_by_its_type():
    class Client:
        def __init__(self, connection):
            self.connection = connection

    class Slots:
        __slots__ = ("limit", "unset")

        def __init__(self, limit):
            self.limit = limit

        def __call__(self, row):
            return row

    def over(client):
        return lambda row: client

    assert code_digest(over(Client(1))) == code_digest(over(Client(2))) != code_digest(over(object()))
    assert code_digest(Slots(1)) == code_digest(Slots(1)) != code_digest(Slots(2))


def reward(args, pred):
    return 1.0


def other_reward(args, pred):
    return 2.0


@pytest.mark.parametrize("kind", [BestOfN, Refine])
def test_the_parameters_of_several_attempts_count(kind):
    ask = Predict("a -> b")
    programs = [
        kind(ask, 3, reward, 1.0),
        kind(ask, 4, reward, 1.0, 3),
        kind(ask, 3, other_reward, 1.0),
        kind(ask, 3, reward, 0.5),
        kind(ask, 3, reward, 1.0, 1),
        kind(ask, 3, functools.partial(reward, pred=1), 1.0),
        kind(ask, 3, Predict("args, pred -> reward"), 1.0),
        kind(ask, 3, Predict("args, pred -> reward: float"), 1.0),
    ]
    assert len({module_digest(program) for program in programs}) == len(programs)
    assert module_digest(kind(ask, 3, reward, 1.0)) == module_digest(programs[0])


@pytest.mark.parametrize("kind", [ReAct, RLM])
def test_the_tools_of_an_agent_and_its_turns_count(kind):
    tool = """
    def it(city: str) -> str:
        return "sunny"
    """
    sunny, rainy = made(tool), made(tool.replace("sunny", "rainy"))
    programs = [
        kind("question -> answer", tools=[sunny]),
        kind("question -> answer", tools=[rainy]),
        kind("question -> answer", tools=[sunny], max_iters=3),
    ]
    assert len({module_digest(program) for program in programs}) == len(programs)
    assert module_digest(kind("question -> answer", tools=[made(tool)])) == module_digest(programs[0])


ADAPTER = """
class Own(ChatAdapter):
    def __init__(self):
        super().__init__()
        self.names = {"a": ["b"], "c": {1, 2}}
        self.shorten = lambda text: text[:10]
    @staticmethod
    def one(): return "static"
    @classmethod
    def two(cls): return "of a class"
    @property
    def three(self): return "property"
it = Own()
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"static"', '"other"'),
        ('"of a class"', '"other"'),
        ('"property"', '"other"'),
        ('["b"]', '["z"]'),
        ("{1, 2}", "{1, 3}"),
        (":10", ":20"),
    ],
)
def test_an_adapter_that_is_edited_is_another(old, new):
    before = adapter_identity(made(ADAPTER))
    assert before == adapter_identity(made(ADAPTER)) != adapter_identity(made(ADAPTER.replace(old, new)))


def test_digests_are_the_same_in_every_process():
    """Whatever the order of sets, the addresses, and where objects stand."""
    code = f"""
import dataclasses, functools, threading
from dspy_stream import *
from dspy_stream.adapters import ChatAdapter
from dspy_stream.stream.digests import code_digest, module_digest
from dspy_stream.stream.identity import adapter_identity
for source in {FUNCTIONS!r}:
    exec(source)
    print(code_digest(it))
class Thing: pass
def build(*values): return lambda row: values
mixed = {{"a", "b", "c", 1, None, (1, "x")}}
print(code_digest(build(mixed, {{Thing(), Thing()}}, Thing(), threading.Lock())))
exec({PROGRAM!r})
it.kinds, it.lock, it.things = frozenset("abcdef"), threading.Lock(), [Thing, len, print, Thing()]
print(module_digest(BestOfN(it, 3, lambda args, pred: 1.0 if pred.answer in {{"a", "b"}} else 0.0, 1.0)))
def look(word: str) -> list[str]:
    "Look."
    return [word]
print(module_digest(ReAct("question -> answer", [look])))
exec({ADAPTER!r})
print(adapter_identity(it))
"""
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            timeout=60,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "2")
    ]
    assert found[0]
    assert len(set(found)) == 1
