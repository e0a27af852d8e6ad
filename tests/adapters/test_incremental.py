"""Fields of a streamed answer: whatever the slices, what is told is what the adapter reads."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream.adapters import ChatAdapter, JSONAdapter
from dspy_stream.adapters.incremental import ChatSplitter, XMLSplitter
from dspy_stream.adapters.json_splitter import JSONSplitter
from dspy_stream.adapters.splitter import Splitter
from dspy_stream.adapters.xml import XMLAdapter
from dspy_stream.errors import AdapterParseError
from dspy_stream.program import Signature
from tests.pace import linear

SIGNATURE = Signature("question -> answer, reasoning")
NAMES = ("answer", "reasoning")


def told(splitter: Splitter, slices: Sequence[str]) -> dict[str, str]:
    """The chunks of each field put together; checks that a last piece is the last."""
    pieces = [piece for text in slices for piece in splitter.feed(text)] + splitter.end()
    ended: set[str] = set()
    found: dict[str, str] = {}
    for name, chunk, last in pieces:
        assert name not in ended
        found[name] = found.get(name, "") + chunk
        if last:
            ended.add(name)
    assert ended == set(found)
    return found


def cut(text: str, at: Sequence[int]) -> list[str]:
    """The text in slices."""
    points = [0, *sorted(place % (len(text) + 1) for place in at), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(points)]


WORDS = st.sampled_from(
    [
        *(
            "a",
            "Paris ",
            "\n",
            "\n\n",
            " ",
            "\t",
            "\ufeff",
            "[[",
            "[[ ## answer ## ]]",
            "\n[[ ## answer ## ]]",
        ),
        *("\n[[ ## reasoning ## ]]\n", "[[ ## completed ## ]]", "\n[[ ##", " ## ]]", "[[ \\## answer ## ]]"),
        *("[[ \\\\##", "##", "]", "[", "\\", "x [[ ## reasoning ## ]]", "\n[[ ## other ## ]]", "<think>"),
        *("</think>", "\u200b", "é", "𝄞", "[[  ##answer##]]", "\n[[#", "<answer>", "</answer>", "&lt;", "&"),
        *("amp;", "<reasoning>", "</reasoning>", "<![CDATA[", "]]>", "<b>", "<answer/>", "</answer", "<ans"),
    ]
)
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=14).map("".join)
CUTS = st.lists(st.integers(0, 400), max_size=12)


@pytest.mark.parametrize(
    ("adapter", "frame"),
    [
        (ChatAdapter(), ("[[ ## answer ## ]]\n", "\n\n[[ ## reasoning ## ]]\n", "\n\n[[ ## completed ## ]]")),
        (XMLAdapter(), ("<answer>\n", "\n</answer>\n\n<reasoning>", "</reasoning>")),
    ],
    ids=["chat", "xml"],
)
@settings(max_examples=150)
@given(before=TEXTS, first=TEXTS, second=TEXTS, cuts=CUTS, framed=st.booleans())
def test_chunks_add_up_to_what_is_parsed(
    adapter: Any,
    frame: tuple[str, str, str],
    before: str,
    first: str,
    second: str,
    cuts: list[int],
    framed: bool,
) -> None:
    text = f"{before}\n{frame[0]}{first}{frame[1]}{second}{frame[2]}" if framed else before + first + second
    try:
        parsed = adapter.parse(SIGNATURE, text)
    except AdapterParseError:
        told(adapter.splitter(SIGNATURE), cut(text, cuts))  # whatever it tells, in good order
        return
    assert told(adapter.splitter(SIGNATURE), cut(text, cuts)) == parsed
    assert told(adapter.splitter(SIGNATURE), list(text)) == parsed


JSON_TEXTS = st.one_of(TEXTS, st.text(max_size=20))
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-999, 999), JSON_TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(JSON_TEXTS, inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150)
@given(
    first=JSON_TEXTS,
    second=JSON_TEXTS,
    other=JSON_VALUES,
    lead=st.sampled_from(["", "Sure: ", "```json\n", "I use {braces}: ", "<think>{}</think>", " {} "]),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
    cuts=CUTS,
)
def test_strings_of_an_object_come_unescaped(
    first: str, second: str, other: Any, lead: str, ascii_only: bool, indent: int | None, cuts: list[int]
) -> None:
    value = {"other": other, "answer": first, "n": other, "reasoning": second}
    text = lead + json.dumps(value, ensure_ascii=ascii_only, indent=indent) + "\n```"
    try:
        parsed = JSONAdapter().parse(SIGNATURE, text)
    except AdapterParseError:
        told(JSONSplitter(NAMES), cut(text, cuts))
        return
    assert told(JSONSplitter(NAMES), cut(text, cuts)) == parsed
    assert told(JSONSplitter(NAMES), list(text)) == parsed


@settings(max_examples=100)
@given(other=JSON_VALUES, cuts=CUTS)
def test_other_values_come_as_they_are_written(other: Any, cuts: list[int]) -> None:
    written = json.dumps(other)
    if not isinstance(other, str):
        assert told(JSONSplitter(["n"]), cut(f'{{"a": "x", "n": {written} , "z": 1}}', cuts)) == {
            "n": written
        }


@pytest.mark.parametrize(
    "text",
    [
        "{'answer': 'it\\'s', reasoning: \"so\",}",
        '{"answer": "a\\q \\u00e9 \\ud834\\udd1e", "reasoning": "b" /* why */}',
        '// first\n{"answer": "a", // second\n "reasoning": "b"}',
        '[{"x": 1}, {"answer": "a", "reasoning": "b"}]',
        '{"note": "an {answer} \\" in a string", "answer": "", "reasoning": " b "}',
        '{"answer": "a", "reasoning": "b"} {"answer": "a", "reasoning": "b"}',
    ],
)
def test_forms_that_only_the_adapter_knows_are_told_at_the_end(text: str) -> None:
    parsed = JSONAdapter().parse(SIGNATURE, text)
    for size in (1, 2, 3, 7, len(text)):
        slices = [text[at : at + size] for at in range(0, len(text), size)]
        assert told(JSONSplitter(NAMES), slices) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "<answer>one <answer>two</answer> three</answer>\n<reasoning>x</reasoning>",
        "<answer>the tag <answer> opens</answer>\n<reasoning>x</reasoning>",
        "<answer>\n<answer>two</answer>\n</answer>\n<reasoning/>",
    ],
)
def test_tags_within_their_own_are_told_as_they_are_read(text: str) -> None:
    parsed = XMLAdapter().parse(SIGNATURE, text)
    for size in (1, 2, 3, 7, len(text)):
        slices = [text[at : at + size] for at in range(0, len(text), size)]
        assert told(XMLSplitter(["question"], NAMES), slices) == parsed


@pytest.mark.parametrize(
    ("make", "text", "name"),
    [
        (lambda: ChatSplitter(NAMES), "[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]", "answer"),
        (lambda: JSONSplitter(NAMES), '{{"answer": "{}"}}', "answer"),
        (lambda: XMLSplitter(["question"], NAMES), "<answer>\n{}\n</answer>", "answer"),
    ],
    ids=["chat", "json", "xml"],
)
def test_tokens_are_told_as_they_come(make: Callable[[], Splitter], text: str, name: str) -> None:
    words = [f"word{number} " for number in range(20)]
    before, after = text.format("|").split("|")
    splitter = make()
    splitter.feed(before)
    seen = ""
    for number, word in enumerate(words):
        seen += "".join(piece.chunk for piece in splitter.feed(word) if piece.field == name)
        # Everything but the blank at its end, which may be the last.
        assert seen.rstrip() == "".join(words[: number + 1]).rstrip()
    pieces = splitter.feed(after) + splitter.end()
    assert [piece.is_last for piece in pieces if piece.field == name][-1:] in ([True], [])


def test_only_what_may_be_a_marker_is_held_back() -> None:
    splitter = ChatSplitter(["answer"])
    splitter.feed("[[ ## answer ## ]]\n")
    assert splitter.feed("a [b] [[c]] d")[0].chunk == "a [b] [[c]] d"
    assert splitter.feed("\n[[ ## ans") == []
    assert splitter.feed("wer, said he")[0].chunk == "\n[[ ## answer, said he"
    assert splitter.feed("\n[[ ## completed ## ]]") == [("answer", "", True)]


def test_an_answer_that_ends_early_ends_its_field() -> None:
    splitter = ChatSplitter(["answer"])
    assert [*splitter.feed("[[ ## answer ## ]]\nPar "), *splitter.end()] == [
        ("answer", "Par", False),
        ("answer", "", True),
    ]


def test_a_layout_that_nobody_knows_is_told_at_the_end() -> None:
    class Upper(ChatAdapter):
        pass

    assert isinstance(Upper().splitter(SIGNATURE), ChatSplitter)
    splitter = Splitter(["answer"], lambda text: {"answer": text.upper()})
    assert splitter.feed("a") == []
    assert splitter.end() == [("answer", "A", True)]


@pytest.mark.parametrize(
    "make", [lambda: ChatSplitter(["a"]), lambda: XMLSplitter([], ["a"]), lambda: JSONSplitter(["a"])]
)
@pytest.mark.parametrize(
    "unit",
    ["\n", " ", "[", "\u200b", "[[ ## x", "<", "<a ", "&", "\\", '"', "{", '{"', "[[ \\", "<think>", "x"],
)
def test_no_text_takes_more_than_its_length(make: Callable[[], Splitter], unit: str) -> None:
    splitter = make()
    with linear(2.0):
        for _ in range(20_000):
            splitter.feed(unit)
        splitter.end()
