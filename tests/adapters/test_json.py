import json
from decimal import Decimal
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dspy_stream.adapters import JSONAdapter
from dspy_stream.errors import AdapterParseError
from dspy_stream.program import InputField, OutputField, Signature


class Extract(Signature):
    """Pull out what matters."""

    text: str = InputField()
    title: str = OutputField()
    kind: Literal["a", "b"] = OutputField()
    tags: list[str] = OutputField()
    score: float | None = OutputField()


VALUES = {"title": "T", "kind": "a", "tags": ["x"], "score": None}


def parse(text):
    return JSONAdapter().prepare(Extract).parse(text)


def failure(text):
    with pytest.raises(AdapterParseError) as caught:
        parse(text)
    return caught.value


def test_asks_the_provider_for_an_object():
    prepared = JSONAdapter().prepare(Extract)
    assert dict(prepared.options) == {"response_format": {"type": "json_object"}}
    with pytest.raises(TypeError):
        prepared.options["x"] = 1
    [turn] = prepared.render({"text": "x"})
    assert turn.content.startswith("[[ ## text ## ]]\nx\n\n")
    assert "JSON" in turn.content
    system = prepared.head[0].content
    assert '{"title": "{title}", "kind": "{kind}", "tags": {tags}, "score": {score}}' in system


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(VALUES),
        "```json\n" + json.dumps(VALUES, indent=2) + "\n```",
        "Sure!\n" + json.dumps(VALUES) + "\nHope that helps {really}.",
        str(VALUES),
        json.dumps({**VALUES, "mood": {"deep": [1]}}),
        json.dumps({key: VALUES[key] for key in ("tags", "kind", "title")}),
        json.dumps(VALUES) + "\n" + json.dumps({**VALUES, "mood": "b"}),
        '{"note": 1}\n' + json.dumps(VALUES),
        '<think>{"title": 1}</think>' + json.dumps(VALUES),
        json.dumps({**VALUES, "kind": "A", "tags": '["x"]'}),
        json.dumps(json.dumps(VALUES)),
        json.dumps(VALUES, indent=1).replace(",\n", "\n"),
        'Not {"title": 1}. </think>' + json.dumps(VALUES),
    ],
)
def test_reads(text):
    assert parse(text) == VALUES
    assert list(parse(text)) == list(Extract.output_fields)


def test_extra_fields_are_counted():
    prepared = JSONAdapter().prepare(Extract)
    prepared.parse(json.dumps({**VALUES, "mood": 1, "more": 2}))
    assert prepared.ignored == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("I'm sorry, I can't.", "no JSON object"),
        ("[]", "no JSON object"),
        (json.dumps(VALUES)[:-1], "near|end"),
        (json.dumps(VALUES)[:-1] + ', "title": "again"}', "twice"),
        (json.dumps(VALUES) + "\n" + json.dumps({**VALUES, "kind": "b"}), "key `kind` is given twice"),
        (json.dumps({**VALUES, "title": None}), "no key `title`"),
        (json.dumps({**VALUES, "kind": "c"}), "kind: 'c' is not one of a, b"),
        (json.dumps({**VALUES, "tags": "x, y"}), "tags"),
        (json.dumps({**VALUES, "score": float("nan")}), "finite"),
        (json.dumps({**VALUES, "score": "nan"}), "score"),
        ('{"answer": 1}', "none of the fields"),
        ('{"tags":' + "[" * 100_000, "deeper"),
    ],
)
def test_refuses(text, words):
    error = failure(text)
    assert error.adapter_name == "JSONAdapter"
    with pytest.raises(AdapterParseError, match=words):
        raise error


class Bill(BaseModel):
    total: Decimal


def test_numbers_are_exact_where_the_type_wants_it_and_floats_elsewhere():
    signature = Signature(
        {
            "text": InputField(),
            "total": (Decimal, OutputField(decimal_places=2)),
            "bill": (Bill, OutputField()),
            "rate": (float, OutputField()),
            "more": (dict[str, Any], OutputField()),
        }
    )
    body = '"total": 12345678901234567.89, "bill": {"total": 1234567890123456.78}, '
    body += '"rate": 0.5, "more": {"a": [1.5]}'
    for text in (f"{{{body}}}", f"```json\n{{{body},}}\n```"):
        found = JSONAdapter().parse(signature, text)
        assert str(found["total"]) == "12345678901234567.89"
        assert str(found["bill"].total) == "1234567890123456.78"
        assert (found["rate"], found["more"]) == (0.5, {"a": [1.5]})
        assert type(found["rate"]) is type(found["more"]["a"][0]) is float
    with pytest.raises(AdapterParseError, match="decimal places"):
        JSONAdapter().parse(signature, f"{{{body.replace('.89', '.891')}}}")
    demo = JSONAdapter().format(signature, [{"text": "x", **found}], {"text": "y"})[2]["content"]
    assert '"total":"12345678901234567.89","bill":{"total":"1234567890123456.78"}' in demo
    assert JSONAdapter().parse(signature, demo) == found


def test_repair_shows_answer_and_reason():
    prepared = JSONAdapter().prepare(Extract)
    answer, request = prepared.repair('{"answer": 1}', failure('{"answer": 1}'))
    assert answer.content == '{"answer": 1}'
    assert "none of the fields" in request.content
    assert "`title`" in request.content


hostile = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from(["[[ ## ", "title", " ## ]]", "\\", "##", "[[", '"', "}", "{", "\n", " "])
).map("".join)


@settings(max_examples=80)
@given(
    st.fixed_dictionaries(
        {
            "title": hostile,
            "kind": st.sampled_from(["a", "b"]),
            "tags": st.lists(hostile),
            "score": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        }
    )
)
def test_what_is_written_as_an_answer_is_read_back_exactly(values):
    adapter = JSONAdapter()
    text = adapter.format_assistant_message_content(Extract, values)
    json.loads(text)
    assert adapter.parse(Extract, text) == values


@settings(max_examples=80)
@given(hostile)
def test_a_quoted_input_is_quoted_exactly(value):
    signature = Signature("question -> text")
    [turn] = JSONAdapter().prepare(signature).render({"question": value})
    shown = turn.content.partition("\n")[2].rpartition("\n\n")[0]
    assert JSONAdapter().parse(signature, json.dumps({"text": shown})) == {"text": value}


@settings(max_examples=200)
@given(st.text(max_size=50) | st.text('{}[]":,titlekndags0.NaN\\ ', max_size=60))
def test_no_text_raises_anything_else(text):
    try:
        values = parse(text)
    except AdapterParseError:
        return
    assert list(values) == list(Extract.output_fields)


def test_demos_with_gaps():
    head = (
        JSONAdapter()
        .prepare(Extract, [{"text": "t", "kind": "b"}, {"text": "u", **VALUES, "score": 1.5}])
        .head
    )
    assert json.loads(head[2].content)["kind"] == "b"
    assert json.loads(head[4].content) == {**VALUES, "score": 1.5}
    assert parse(head[4].content) == {**VALUES, "score": 1.5}
