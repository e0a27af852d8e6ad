"""Prompts whose constant part comes first, byte for byte the same, so that providers' caches hit."""

import pytest

from dspy_stream.adapters import BAMLAdapter, ChatAdapter, JSONAdapter, TwoStepAdapter, XMLAdapter
from dspy_stream.configuration import context
from dspy_stream.lm.providers.openai import ChatCompletions
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.types import Capabilities, Head, Request

ADAPTERS = [
    ChatAdapter(),
    ChatAdapter(use_json_adapter_fallback=True),
    JSONAdapter(),
    XMLAdapter(),
    BAMLAdapter(),
    TwoStepAdapter("x/y"),
]
STRICT = Capabilities(structured_outputs=True, json_mode=True, tools=True, reasoning=True)


class Triage(Signature):
    """Decide what a customer wants."""

    text: str = InputField()
    tags: set[str] = InputField(default=frozenset())
    intent: str = OutputField()
    why: list[str] = OutputField()


DEMOS = [
    {"text": "first demo", "tags": {"a", "b"}, "intent": "i", "why": ["w"]},
    {"text": "second demo", "intent": "j"},
]
ROWS = [{"text": "ROW one", "tags": {"x", "y", "z"}}, {"text": "ROW two", "tags": set()}]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
@pytest.mark.parametrize("known", [None, Capabilities(), STRICT])
def test_two_rows_share_the_encoded_body_up_to_their_own_turn(adapter, known):
    prepared = adapter.prepare(Triage, DEMOS, capabilities=known)
    head = Head("openai/m", prepared.head, {"temperature": 0.0, **prepared.options})
    encode = ChatCompletions("m").encode
    one, two = (encode(Request(head, prepared.render(row))) for row in ROWS)
    shared = next(place for place, (mine, theirs) in enumerate(zip(one, two, strict=False)) if mine != theirs)
    assert shared >= one.index(b"ROW")
    assert b"second demo" in one[:shared]
    assert b"Decide what a customer wants." in one[:shared]
    # Whatever a row brings is behind that: nothing of the constant part follows it.
    assert one[shared:].count(b'"role"') == 0
    # And a prompt made anew, as by another process, is the same to the byte.
    again = adapter.prepare(Triage, DEMOS, capabilities=known)
    other = Head("openai/m", again.head, {"temperature": 0.0, **again.options})
    assert encode(Request(other, again.render(ROWS[0]))) == one


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_the_rows_of_a_predictor_share_one_head(adapter):
    if isinstance(adapter, TwoStepAdapter):
        adapter = TwoStepAdapter(second := ScriptedLM("[[ ## intent ## ]]\ni\n[[ ## why ## ]]\n[]"))
        answer = lambda request: request.tail[0].content.splitlines()[1]  # noqa: E731
    else:
        second, answer = None, adapter.format_assistant_message_content(Triage, DEMOS[0])
    lm = ScriptedLM(answer)
    predict = Predict(Triage)
    predict.demos = DEMOS
    with context(adapter=adapter, lm=lm):
        for row in ROWS:
            predict(**row)
    for model in filter(None, (lm, second)):
        first, last = model.calls
        assert first.head is last.head
        assert first.tail != last.tail


@pytest.mark.parametrize("adapter", ADAPTERS[:-1], ids=lambda adapter: type(adapter).__name__)
def test_a_repair_goes_on_where_the_question_ended(adapter):
    lm = ScriptedLM(["no", adapter.format_assistant_message_content(Triage, DEMOS[0])])
    with context(adapter=adapter, lm=lm):
        Predict(Triage)(**ROWS[0])
    asked, repaired = (ChatCompletions("m").encode(request) for request in lm.calls)
    assert repaired.startswith(asked.removesuffix(b"]}"))
