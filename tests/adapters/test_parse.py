import json
import math
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dspy_stream.adapters import parse
from dspy_stream.adapters.parse import NotJSON, answers, floats, loads
from tests.pace import linear

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)
noise = st.text(alphabet="{}[]():,'\"\\/*# \n`-+.eE0129aTfNnull[[##]]u\ud800é", max_size=60)


@given(values)
def test_reads_what_json_writes(value):
    assert loads(json.dumps(value)) == value


@given(values)
def test_integers_are_exact_and_stay_integers(value):
    read = loads(json.dumps(value, ensure_ascii=False))
    assert json.dumps(read) == json.dumps(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abc'\" \\xé\n\t", max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab'\"\\", max_size=4), inner),
    max_leaves=15,
)


@given(plain)
def test_reads_what_python_prints(value):
    assert loads(repr(value)) == value


@given(noise)
@example("{a:1,'b':.5,}")
def test_both_paths_agree_wherever_strict_json_is_accepted(text):
    try:
        fast, value = parse._fast(text)
    except NotJSON:
        return
    if fast:
        assert parse.Scanner(text).whole() == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('Sure, here it is:\n{"a": 1}\nAnything else?', {"a": 1}),
        ("{'a': True, 'b': None, 'c': (1, 2)}", {"a": True, "b": None, "c": [1, 2]}),
        ('{"a": [1, 2,], }', {"a": [1, 2]}),
        ('{"a": 1, // one\n "b": 2 /* two */, # three\n}', {"a": 1, "b": 2}),
        ("{a: 1, b_2: 'x'}", {"a": 1, "b_2": "x"}),
        ('{"a": "line\nbreak\ttab"}', {"a": "line\nbreak\ttab"}),
        (r'{"a": "\(x\) \u00e9 \ud83d\ude00"}', {"a": "\\(x\\) é \U0001f600"}),
        ("{'a': 'it\\'s'}", {"a": "it's"}),
        ('\ufeff{"a": 1}', {"a": 1}),
        ('I will use {placeholders}: {"a": 1}', {"a": 1}),
        ('As [1] says:\n```json\n["x"]\n```', ["x"]),
        ('{"a": 1} {"a": 1}', {"a": 1}),
        ('{"a": "He said "hi""}', {"a": 'He said "hi"'}),
        ('["say "hi" now", "(as "they" do)"]', ['say "hi" now', '(as "they" do)']),
        ("{\u201ca\u201d: \u2018b\u2019}", {"a": "b"}),
        ('{"a": 1\n "b": [true\n false]}', {"a": 1, "b": [True, False]}),
        ("[red, green_1, null]", ["red", "green_1", None]),
        ("{a: {b: c}}", {"a": {"b": "c"}}),
        ("[.5, 1., +3, -0]", [0.5, 1.0, 3, 0]),
        ('{"a": "x: y", "b": {"a": ":"}}', {"a": "x: y", "b": {"a": ":"}}),
        ('{"a\\u003ab": ":"}', {"a:b": ":"}),
        ("18446744073709551616", 18446744073709551616),
        ("9" * 300, int("9" * 300)),
    ],
)
def test_reads_what_models_send(text, value):
    assert loads(text) == value
    assert type(loads(text)) is type(value)


@given(st.text('ab" ,\n)}.', max_size=14))
@example('say "b" a')
def test_a_string_with_quotes_in_it_is_read_whole_or_not_at_all(meant):
    try:
        value = parse.Scanner(f'{{"a": "{meant}"}}').whole()
    except NotJSON:
        return
    assert value == {"a": meant}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NaN", "finite"),
        ('{"a": NaN}', "finite"),
        ("[-Infinity]", "finite"),
        ("[inf]", "finite"),
        ("1e999", "finite"),
        ('{"a": -1e999}', "finite"),
        ("9" * 5000, "digits"),
        ("[" + "1" * 301 + "]", "digits"),
        ('{"a": 1, "a": 1}', "twice"),
        ('{"a": 1, "\\u0061": 2}', "twice"),
        ('{"x:": 1, "x\\u003a": 2}', "twice"),
        ('{"b": {"a": 1, "a": 2}}', "twice"),
        ("[" * 65 + "]" * 65, "deeper"),
        ("[" * 100_000 + "]" * 100_000, "deeper"),
        ('{"a":' * 100_000, "deeper"),
        ("[" * 100_000, "deeper"),
        ("[" + "0," * 100_000 + "0]", "parts"),
        ("{" + ",".join(f'"k{i}":1' for i in range(100_001)) + "}", "parts"),
        ('"\\ud800"', "surrogate"),
        ('["\ud800"]', "surrogate"),
        ("{'a': '\\udc00\\ud800'}", "surrogate"),
        ('"' + "a" * parse.MAX_LENGTH + '"', "longer"),
    ],
)
def test_refuses_what_has_no_single_meaning(text, words):
    with pytest.raises(NotJSON, match=words) as caught:
        loads(text)
    assert caught.value.refused
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        '{"a": 1',
        "[1, 2",
        '{"a": 1 "b": 2}',
        '{"x": {"a": 1} "b": 2}',
        "[1,,2]",
        "[,]",
        "{,}",
        '{"a":}',
        "007",
        "1_000",
        "0x10",
        "1.2.3",
        "--1",
        "\n    2031-05-28",
        '"a',
        '"a" "b"',
        "nul",
        "/* x",
        "// x",
        "[1] or [2]",
        '{"a": "5"x7" large"}',
        '["a "b", "c" d"]',
        '{"a": "b" + "c"}',
        '{"a": \u201cb"}',
        '("a"\n"b")',
        "[a b]",
        '{"a": undefined}',
        "[a, b",
        "{a",
        "{1, 2}",
        "'a",
        "yes",
    ],
)
def test_refuses_what_is_no_value(text):
    with pytest.raises(NotJSON):
        loads(text)


def test_depth_and_size_are_accepted_up_to_the_limit():
    deep = loads("[" * 64 + "]" * 64)
    for _ in range(63):
        [deep] = deep
    assert deep == []
    assert len(loads("[" + "0," * 99_998 + "0]")) == 99_999


def first_object(text, wanted):
    return answers(text, wanted)[0][1]


class TestAnswers:
    def test_are_in_their_order(self):
        assert answers('{"a": 1}\n{"b": 2} {"a": 3}', {"a"}) == [(0, {"a": 1}), (18, {"a": 3})]

    def test_what_comes_after_the_first_and_cannot_be_read_is_ignored(self):
        for rest in ('{"a": 2', '{"a": NaN}', '{"a": 1, "a": 2}', "{a}", "[" * 10_000):
            assert list(answers('{"a": 1} ' + rest, {"a"})) == [(0, {"a": 1})]

    def test_passes_over_objects_without_a_wanted_key(self):
        assert first_object('{"note": 1}\n{"a": 2}', {"a"}) == {"a": 2}

    def test_never_takes_a_part_of_a_broken_object(self):
        with pytest.raises(NotJSON):
            first_object('{"x": {"a": 1} "b": 2}', {"a"})
        with pytest.raises(NotJSON):
            first_object('{"x": {"a": 1}', {"a"})

    def test_takes_an_object_out_of_a_list(self):
        assert first_object('[{"a": 1}]', {"a"}) == first_object("[{'a': 1}]", {"a"}) == {"a": 1}

    @pytest.mark.parametrize("text", ["", "[]", "3", "I cannot help with that.", "[1, 2]"])
    def test_refuses_a_text_without_an_object(self, text):
        with pytest.raises(NotJSON, match="no JSON object"):
            first_object(text, {"a"})


class TestExactNumbers:
    @pytest.mark.parametrize("number", ["12345678901234567.89", "1.10", "-0.0", "1e5", "2.50E-3"])
    @pytest.mark.parametrize(
        "layout", ['{{"a": [{}, 1]}}', "Well: {{'a': [{}, 1,],}}", '{{"\\u0061": [{}, 1]}}']
    )
    def test_keep_their_digits(self, number, layout):
        read = loads(layout.format(number), exact=True)
        assert list(map(repr, read["a"])) == [repr(Decimal(number)), "1"]
        assert floats(read) == loads(layout.format(number)) == {"a": [float(number), 1]}

    @pytest.mark.parametrize(
        "number", ["1e301", "1e-301", "1e999999999", "0." + "1" * 400, "9" * 301, "NaN", "1_0.5", "01.5"]
    )
    def test_are_within_limits(self, number):
        for text in (f"[{number}]", f"[{number},]"):
            with pytest.raises(NotJSON):
                loads(text, exact=True)

    @pytest.mark.parametrize(
        "text", ['{"a": 1.5, "a": 1.5}', '["\\ud800", 1.5]', "[" * 100_000, "[" * 65 + "]" * 65]
    )
    def test_everything_else_is_as_without(self, text):
        with pytest.raises(NotJSON):
            loads(text, exact=True)


def test_braces_within_another_container_may_hold_items():
    assert loads("{'a': {1, 2.5}, 'b': [{'x'}, {}]}") == {"a": [1, 2.5], "b": [["x"], {}]}
    for text in ("{1, 2}", "{'a'}", "[{'a': 1, 'b'}]", "[{'a', 'b': 1}]"):
        with pytest.raises(NotJSON):
            loads(text)


@settings(max_examples=400)
@given(noise | st.text(max_size=80) | st.binary(max_size=80).map(lambda raw: raw.decode("latin-1")))
@example('"\ud800"')
def test_no_text_raises_anything_else(text):
    for read in (loads, lambda text: first_object(text, {"a"}), lambda text: floats(loads(text, exact=True))):
        try:
            value = read(text)
        except NotJSON:
            continue
        # Whatever is read is plain JSON that can be written and sent.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize(
    "unit",
    ['{"', "[{'a\":1,", '\\"', "[1,", "{a ", "[[", "/*", '"', '{"a":1 ', "{'k{':1,", "1", "- ", "{'a':'\\n"],
)
def test_long_hostile_texts_take_little_time(unit):
    text = (unit * (1_000_000 // len(unit)))[:1_000_000]
    for read in (loads, lambda text: first_object(text, {"a"}), lambda text: loads(text, exact=True)):
        with linear(), pytest.raises(NotJSON):
            read(text)


@pytest.mark.parametrize("exact", [False, True])
def test_quotations_are_parts_of_the_value(exact):
    with pytest.raises(NotJSON, match="more than 100000 parts") as caught:
        loads('{"' * 400_000, exact=exact)
    assert caught.value.refused
    said = 'He said "yes" and ' * 20_000
    assert loads(f'{{"a": "{said}left"}}', exact=exact) == {"a": f"{said}left"}


def test_signed_zero_and_small_numbers_survive():
    assert math.copysign(1, loads("-0.0")) == -1
    assert loads("1e-999") == 0.0
