# ruff: noqa: UP006, UP007, UP045 - the old spellings are what is tested
import ast
import collections
import keyword
import typing
from typing import Any, Literal, Optional, Union

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dspy_stream.errors import SignatureError
from dspy_stream.program import Signature
from dspy_stream.program.grammar import parse_fields, parse_type

QUICK = settings(database=None, max_examples=150)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int", int),
        ("bytearray", bytearray),
        ("complex", complex),
        ("None", type(None)),
        ("NoneType", type(None)),
        ("Any", Any),
        ("typing.Any", Any),
        ("list", list),
        ("List", typing.List),
        ("list[int]", list[int]),
        ("List[int]", typing.List[int]),
        ("typing.List[int]", typing.List[int]),
        ("dict[str, list[float]]", dict[str, list[float]]),
        ("Dict[str, Any]", typing.Dict[str, Any]),
        ("tuple[int, ...]", tuple[int, ...]),
        ("tuple[int, str]", tuple[int, str]),
        ("tuple[()]", tuple[()]),
        ("Tuple[int, ...]", typing.Tuple[int, ...]),
        ("set[str]", set[str]),
        ("frozenset[str]", frozenset[str]),
        ("Optional[int]", Optional[int]),
        ("Union[int, str]", Union[int, str]),
        ("Union[int]", int),
        ("int | str | None", Union[int, str, None]),
        ("None | int", Optional[int]),
        ("list[int | None]", list[int | None]),
        ("(int | str)", Union[int, str]),
        ("Literal['a', \"b\", 1, -2, True, None]", Literal["a", "b", 1, -2, True, None]),
        ("Literal['->', 'a, b', '[', 'it\\'s', ':=']", Literal["->", "a, b", "[", "it's", ":="]),
        ("Literal[b'x']", Literal[b"x"]),
        ("Sequence[int]", typing.Sequence[int]),
        ("Mapping[str, int]", typing.Mapping[str, int]),
        ("  list [ int ] ", list[int]),
        ("list[\n    int\n]", list[int]),
    ],
)
def test_types(text, expected):
    assert parse_type(text) == expected
    (field,) = [f for f in parse_fields(f"a: {text} -> b") if f.name == "a"]
    assert field.annotation == expected


class Thing:
    pass


class Box:
    def __class_getitem__(cls, item):
        if item is str:
            raise RuntimeError("no text in boxes")
        return list[item]


class Outer:
    class Inner:
        class Deeper: ...

    class _Hidden: ...

    def method(self): ...


def test_custom_types_are_found_by_exact_name_only():
    custom = {"Thing": Thing, "pkg.sub.Thing": Thing, "Box": Box, "int": Thing}
    assert parse_type("list[Thing]", custom) == list[Thing]
    assert parse_type("pkg.sub.Thing | None", custom) == Optional[Thing]
    assert parse_type("Box[float]", custom) == list[float]
    assert parse_type("int", custom) is Thing
    for wrong in ("pkg.sub", "pkg.sub.Thing.mro", "sub.Thing", "Thing.__class__"):
        with pytest.raises(SignatureError):
            parse_type(wrong, custom)
    for inner in ("Outer.Inner", "Outer.Inner.Deeper"):
        assert parse_type(f"list[{inner}]", {"Outer": Outer}).__args__[0].__name__ == inner.rpartition(".")[2]
    for wrong in ("Outer.method", "Outer.__base__", "Outer._Hidden", "Outer.Missing", "Inner", "Other.Inner"):
        with pytest.raises(SignatureError, match="Unknown name"):
            parse_type(wrong, {"Outer": Outer})
    with pytest.raises(SignatureError, match="no text in boxes"):
        parse_type("Box[str]", custom)
    with pytest.raises(SignatureError, match=r"custom_types\['Thing'\] is int, not a type"):
        parse_type("Thing", {"Thing": 3})


def test_a_module_that_is_given_is_looked_into():
    given = {"collections": collections}
    assert parse_type("collections.OrderedDict", given) is collections.OrderedDict
    for text in ("collections._chain", "collections.abc.nothing", "collections.namedtuple"):
        with pytest.raises(SignatureError, match="is not known"):
            parse_type(text, given)


def test_names_of_the_caller_and_of_modules_are_not_looked_up():
    Local = int  # noqa: F841
    for text in ("Local", "Thing", "os.PathLike", "datetime.nothing", "collections.OrderedDict"):
        with pytest.raises(SignatureError, match="is not known"):
            Signature(f"a: {text} -> b")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("int = 3", 3),
        ("int = -3", -3),
        ("str = 'a, b -> c'", "a, b -> c"),
        ("list[int] = [1, 2]", [1, 2]),
        ("int | None = None", None),
        ("dict[str, int] = {'a': 1}", {"a": 1}),
        ("bool = True", True),
        ("float = 1e-3", 1e-3),
    ],
)
def test_a_literal_default_is_honoured(text, value):
    signature = Signature(f"q -> a: {text}")
    assert signature.may_omit("a")
    assert signature.default_of("a") == value
    assert not Signature("q -> a: int").may_omit("a")


def test_a_default_is_a_fresh_value_each_time():
    signature = Signature("q -> a: list[int] = [1]")
    signature.default_of("a").append(2)
    assert signature.default_of("a") == [1]


def test_a_default_without_type_is_text():
    assert Signature("q -> a = 'x'").default_of("a") == "x"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no `->`"),
        ("question", "no `->`"),
        ("question => answer", "write `->` in place of `=>`"),
        ("question → answer", "write `->` in place of `→`"),
        ("a -> b -> c", "has 2 `->`"),
        ("a ->", "names no output"),
        ("->", "names no output"),
        ("question context -> a", "put a comma between fields, as in 'question, context'"),
        ("a,, b -> c", "input 2 of the signature is empty"),
        (", a -> b", "input 1 of the signature is empty"),
        ("a -> b,, c", "output 2 of the signature is empty"),
        ("a, a -> b", "field `a` is named twice"),
        ("a -> a", "must have distinct names, but field `a` is named on both sides"),
        ("a, b -> c: int, a", "field `a` is named on both sides"),
        ("class -> b", "field `class`: this is a word of Python"),
        ("_a -> b", "do not begin with an underscore"),
        ("1a -> b", "field '1a': not a name"),
        ("a-b -> c", "field 'a-b': not a name"),
        ("*a -> b", "without `*`"),
        ("a, *, c -> b", "without `*`"),
        ("model_config -> b", "pydantic keeps this name"),
        ("a: -> b", "field `a`: a type is missing after the colon"),
        ("a: int = -> b", "field `a`: a value is missing"),
        ("a = 3: int -> b", "the type comes before the default"),
        ("a: int = 'x' -> b", "field `a`: the default \"'x'\" is no int"),
        ("a: int = foo() -> b", "the default 'foo()' is not a plain value"),
        ("a: int = (3 -> b", "`)` is missing"),
        (
            "q -> score: flaot",
            "field `score`: in 'flaot': the type `flaot` is not known; did you mean 'float'?",
        ),
        ("q -> a: Litteral['x']", "did you mean 'Literal'?"),
        ("q -> a: MyType", "custom_types={'MyType': ...}"),
        ("q -> a: list[Foo]", "field `a`: in 'list[Foo]', 'Foo': the type `Foo` is not known"),
        ("q -> a: typing.Lisst[int]", "did you mean 'typing.List'?"),
        ("q -> a: list[int", "field 'a: list[int': `]` is missing"),
        ("q -> a: list[int]]", "`]` closes nothing"),
        ("q -> a: list[int)", "`)` closes nothing"),
        ("q -> a: Literal['x]", "a quote is opened and not closed"),
        ("q -> a: list[int, str]", "`list` takes 1, not 2"),
        ("q -> a: dict[str]", "`dict` takes 2, not 1"),
        ("q -> a: int[str]", "`int` takes no parameters"),
        ("q -> a: Any[str]", "`Any` takes no parameters"),
        ("q -> a: Optional", "Optional needs its parameters"),
        ("q -> a: Optional[int, str]", "`Optional` takes 1, not 2"),
        ("q -> a: Union[()]", "`Union` takes"),
        ("q -> a: Literal", "Literal needs its parameters"),
        ("q -> a: Literal[()]", "Literal needs at least one value"),
        ("q -> a: Literal[1.5]", "'1.5': Literal takes text in quotes"),
        ("q -> a: Literal[yes]", "'yes': Literal takes text in quotes"),
        ("q -> a: Literal[--1]", "Literal takes text in quotes"),
        ("q -> a: Literal[-True]", "Literal takes text in quotes"),
        ("q -> a: 'str'", "text belongs in Literal[...]"),
        ("q -> a: tuple[...]", "`...` follows one type"),
        ("q -> a: tuple[int, ..., str]", "`...` follows one type"),
        ("q -> a: list[...]", "this is not a type"),
        ("q -> a: [int]", "this is not a type"),
        ("q -> a: 3", "this is not a type"),
        ("q -> a: int, 3", "field '3': not a name"),
        ("q -> a: (int, str)", "this is not a type"),
        ("q -> a: int or str", "this is not a type"),
        ("q -> a: f(x)", "this is not a type"),
        ("q -> a: {int}", "`{` has no place in a type"),
        ("q -> a: int @ str", "`@` has no place in a type"),
        ("q -> a: int # note", "`#` has no place in a type"),
        ("q -> a: int |", "cannot be read"),
        ("q -> a: list[int]().x", "this is not the name of a type"),
        ("q -> a: list[int][str]", "only a named type takes parameters"),
        ("q -> a: " + "list[" * 40 + "int" + "]" * 40, "nest deeper than 32"),
        ("q -> a: " + "|".join(["int"] * 600), "more than 500 parts"),
        ("q -> " + "a" * 20_001, "20000 are allowed"),
    ],
)
def test_mistakes_are_named(text, says):
    with pytest.raises(SignatureError) as caught:
        Signature(text)
    message = str(caught.value)
    assert says in message
    assert len(message) < 400
    assert isinstance(caught.value, ValueError)


def test_a_comma_at_the_end_of_a_side_and_missing_inputs_are_fine():
    assert Signature("a, b, -> c,").signature == "a, b -> c"
    empty = Signature("-> joke")
    assert empty.signature == " -> joke"
    assert empty.instructions == "Produce the fields `joke`."


def test_names_are_normalised_as_python_does():
    signature = Signature("ﬁeld -> größe")
    assert signature.signature == "field -> größe"


@pytest.mark.parametrize(
    "text",
    [
        "q -> a: int = " + "-" * 15_000 + "1",
        "q -> a: int = " + "(" * 30 + "1" + ")" * 30 + "[0]" * 3_000,
        "q -> a: int = " + "1+" * 9_000 + "1",
        "q -> a: int = " + "9" * 15_000,
        "q -> a: Literal[" + "9" * 15_000 + "]",
        "q -> a: int = " + "not " * 4_000 + "1",
        "q -> a: int = " + "lambda:" * 2_000 + "1",
        "q -> a: " + "x" * 15_000,
        "q -> " + "a:" * 9_000,
        "q -> " + "(" * 19_000,
        "q -> a: Literal['" + "\\\\" * 9_000,
        "q -> a: Literal['\ud800']\x00",
        "q -> a: Literal['\\N{x}']",
        "q -> a: Literal['\\x4']",
        "q -> a: Literal[1or 2]",
        "q -> a: int = '\ud800'",
    ],
)
def test_hostile_text_is_refused(text):
    with pytest.raises(SignatureError):
        Signature(text)


def test_an_odd_escape_means_what_python_means_by_it():
    assert parse_type(r"Literal['\d', '\\d', '\n']") == Literal["\\d", "\n"]


# A grammar of types: each case is the text, and the type it must become.
_texts = st.text(max_size=6).map(repr)
_values = st.one_of(
    _texts, st.integers(-(10**20), 10**20).map(repr), st.sampled_from(["True", "False", "None"])
)
_literals = st.lists(_values, min_size=1, max_size=4).map(
    lambda parts: (f"Literal[{', '.join(parts)}]", Literal[tuple(map(ast.literal_eval, parts))])
)
_leaves = st.sampled_from(
    [(t.__name__, t) for t in (int, str, float, bool, bytes, list, dict, tuple, complex)]
)
_leaves |= st.sampled_from([("None", type(None)), ("Any", Any), ("typing.Any", Any), ("List", typing.List)])


_ONE = {
    "list": list,
    "List": typing.List,
    "typing.List": typing.List,
    "set": set,
    "Sequence": typing.Sequence,
}


def _one(case):
    name, (text, type_) = case
    return f"{name}[{text}]", _ONE[name][type_]


def _two(case):
    (key, key_type), (value, value_type) = case
    return f"dict[{key}, {value}]", dict[key_type, value_type]


def _nested(inner):
    pairs = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.sampled_from(sorted(_ONE)), inner).map(_one),
        st.tuples(_leaves, inner).map(_two),
        inner.map(lambda case: (f"Optional[{case[0]}]", Optional[case[1]])),
        inner.map(lambda case: (f"tuple[{case[0]} , ...]", tuple[case[1], ...])),
        pairs.map(
            lambda cases: (f"tuple[{', '.join(c[0] for c in cases)}]", tuple[tuple(c[1] for c in cases)])
        ),
        pairs.map(
            lambda cases: (f"Union[{','.join(c[0] for c in cases)}]", Union[tuple(c[1] for c in cases)])
        ),
        pairs.map(lambda cases: (" | ".join(f"({c[0]})" for c in cases), Union[tuple(c[1] for c in cases)])),
    )


_types = st.recursive(_leaves | _literals, _nested, max_leaves=8)
_names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name) and name != "model_config"
)


@QUICK
@given(st.lists(st.tuples(_names, _types), min_size=1, max_size=5, unique_by=lambda pair: pair[0]), st.data())
def test_what_is_written_is_what_is_read(fields, data):
    outputs = data.draw(st.integers(1, len(fields)))
    written = [f"{name}: {text}" for name, (text, _) in fields]
    space = data.draw(st.sampled_from(["", " ", "\n  "]))
    comma = f"{space},{space}"
    text = f"{comma.join(written[:-outputs])}{space}->{space}{comma.join(written[-outputs:])}"
    read = parse_fields(text)
    assert [(field.name, field.annotation) for field in read] == [
        (name, type_) for name, (_, type_) in fields
    ]
    assert sum(field.direction == "output" for field in read) == outputs
    signature = Signature(text)
    assert list(signature.fields) == [name for name, _ in fields]
    for name, (_, type_) in fields:
        assert signature.fields[name].annotation == type_


_symbols = st.lists(
    st.sampled_from(
        [
            *(
                "a",
                "b",
                "->",
                ",",
                ":",
                "=",
                "[",
                "]",
                "(",
                ")",
                "{",
                "}",
                "'",
                '"',
                "\\",
                "|",
                ".",
                "-",
                "*",
                " ",
            ),
            *(
                "int",
                "list",
                "Literal",
                "None",
                "Optional",
                "...",
                "1",
                "0x",
                "lambda",
                "if",
                "#",
                "\x00",
                "é",
            ),
            *(
                "typing",
                "yield",
                "await",
                "1_",
                "1e",
                "b'",
                "f'",
                "\ud800",
                "²",
                "\t",
                "\f",
                "\n",
                ";",
                "@",
                "`",
                "!",
            ),
        ]
    ),
    max_size=25,
).map("".join)


def _accepts_or_refuses(text):
    try:
        signature = Signature(text)
    except SignatureError:
        return
    assert signature.output_fields
    assert signature.digest()


@QUICK
@given(st.text(max_size=60))
def test_any_text_is_a_signature_or_a_signature_error(text):
    _accepts_or_refuses(text)


@QUICK
@given(_symbols, _symbols)
@example("a: Literal[1or 2]", "b")
@example("a", "b: Literal['\\d'] = '\\d'")
def test_any_symbols_are_a_signature_or_a_signature_error(left, right):
    _accepts_or_refuses(f"{left}->{right}")
    _accepts_or_refuses(f"q -> a: {left}")
    _accepts_or_refuses(f"q -> a: int = {right}")
