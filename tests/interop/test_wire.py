"""What crosses the border to DSPy, in both directions; no DSPy is needed for it."""

import pydantic
import pytest

from dspy_stream.errors import (
    AdapterParseError,
    BudgetExceeded,
    LMAuthError,
    LMConfigurationError,
    LMRateLimitError,
    RecordError,
)
from dspy_stream.interop.mapped import from_model, ours
from dspy_stream.interop.passage import READING, Passage, Reading, WrittenOff
from dspy_stream.interop.wire import Heads, completion, messages_of, options_of, outputs, usage_of
from dspy_stream.types import Choice, Message, Request, Response, Usage


def test_messages_keep_what_belongs_to_a_turn():
    blocks = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    given = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": blocks},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
        {"role": "tool", "content": "4", "tool_call_id": "c", "name": None},
    ]
    assert messages_of(None, given) == (
        Message("system", "be brief"),
        Message("user", tuple(blocks)),
        Message("assistant", "", {"tool_calls": [{"id": "c"}]}),
        Message("tool", "4", {"tool_call_id": "c"}),
    )
    assert messages_of("hi", None) == messages_of("hi", []) == (Message("user", "hi"),)
    for wrong in (None, [{"content": "no role"}]):
        with pytest.raises(LMConfigurationError):
            messages_of(None, wrong)


class Inner(pydantic.BaseModel):
    name: str = "nobody"


class Form(pydantic.BaseModel):
    inner: Inner
    tags: list[Inner]
    note: str | None = None


def test_options():
    given = {"temperature": None, "n": 1, "num_retries": 3, "cache": False, "rollout_id": 2, "stop": ["x"]}
    assert options_of(given) == ({"stop": ["x"]}, False, 2)
    assert options_of({"n": 2}) == ({"n": 2}, True, None)
    options, _, _ = options_of({"response_format": Form})
    schema = options["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["inner", "tags", "note"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Inner"]["required"] == ["name"]
    assert "default" not in schema["$defs"]["Inner"]["properties"]["name"]
    assert schema["properties"]["inner"] == {"$ref": "#/$defs/Inner"}
    assert options_of({"response_format": {"type": "json_object"}})[0] == {
        "response_format": {"type": "json_object"}
    }
    with pytest.raises(LMConfigurationError, match="api_key"):
        options_of({"api_key": "sk-secret"})


def test_heads_are_shared_and_never_change_the_question():
    heads = Heads()
    system = (Message("system", "be brief"),)
    one = heads.of("m", system, {"temperature": 0.5, "stop": ["x"]})
    assert heads.of("m", system, {"stop": ["x"], "temperature": 0.5}) is one
    assert heads.of("m", system, {"temperature": 0.6}) is not one
    blocks = (Message("user", ({"type": "text", "text": "x"},)),)
    assert heads.of("m", blocks, {}) is not heads.of("m", blocks, {})
    tail = (Message("user", "hi"),)
    whole = Request.of("m", (*system, *tail), temperature=0.5, stop=["x"])
    assert Request(one, tail).key() == whole.key()
    for number in range(200):
        heads.of("m", (Message("system", str(number)),), {})
    assert len(heads._made) <= 64
    with pytest.raises(LMConfigurationError, match="JSON"):
        heads.of("m", (), {"x": object()})


def test_outputs_are_texts_unless_there_is_more():
    plain = Response((Choice("a"), Choice("b", extra={"refusal": "no"})))
    assert outputs(plain, logprobs=False) == ["a", "b"]
    extra = {
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c"}],
        "citations": [1],
        "logprobs": {"content": 1},
    }
    found = outputs(Response((Choice("a", extra=extra), Choice("b"))), logprobs=False)
    shown = {name: value for name, value in extra.items() if name != "logprobs"}
    assert found == [{"text": "a", **shown}, {"text": "b"}]
    assert outputs(Response((Choice("a", extra=extra),)), logprobs=True)[0]["logprobs"] == {"content": 1}


def test_the_form_of_chat_completions():
    choice = Choice("a", "length", {"tool_calls": [{"id": "c"}], "citations": [1], "logprobs": 2})
    made = completion(Response((choice,), Usage(3, 4, 0.5), "full", "r1"), "asked")
    first = made.choices[0]
    assert (made.model, made.id, made.cache_hit) == ("full", "r1", False)
    assert (first.message.content, first["finish_reason"], first.logprobs) == ("a", "length", 2)
    assert first.message.provider_specific_fields == {"citations": [1]}
    assert first.message.tool_calls == [{"id": "c"}]
    assert dict(made.usage) == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert made._hidden_params == {"response_cost": 0.5}
    assert not hasattr(made, "nothing")
    assert not usage_of(Response((choice,), Usage(3, 4), cached=True))
    assert completion(Response((choice,)), "asked").model == "asked"


class Theirs(Exception):
    """Stands for an error of DSPy's."""


AdapterError = type("AdapterParseError", (Exception,), {"__module__": "dspy.utils.exceptions"})


def chained(error, cause=None, context=None):
    error.__cause__, error.__context__ = cause, context
    return error


def test_our_errors_come_through_whatever_wraps_them():
    model = LMRateLimitError("slow down")
    assert ours(chained(RuntimeError("both failed"), chained(Theirs(), model)), Passage("bridge")) is model
    assert from_model(chained(Theirs(), model))
    assert not from_model(Theirs())
    # Raised while a failure that may pass was handled: the row is not to blame.
    assert ours(chained(KeyError("x"), context=chained(Theirs(), model)), Passage("bridge")) is model
    lasting = chained(KeyError("x"), context=RecordError("no"))
    assert ours(lasting, Passage("bridge")) is lasting
    passage = Passage("bridge")
    passage.failed(LMAuthError("no such key"), None)
    assert str(ours(KeyError("x"), passage)) == "no such key"
    with pytest.raises(LMAuthError):
        passage.ask(iter(()))


def test_parse_errors_are_ours():
    error = AdapterError("Could not parse.\n\nLM Response: a secret answer \n\nExpected ...")
    error.adapter_name, error.lm_response, error.parsed_result = "ChatAdapter", "a secret answer", None
    error.signature = None
    found = ours(chained(error, LMRateLimitError("x")), Passage("bridge"))
    assert isinstance(found, AdapterParseError)
    assert found.lm_response == "a secret answer"
    assert "secret" not in str(found)
    passage, reading, unread = Passage("bridge"), Reading(), ValueError("bad value")
    reading.asked.append(Request.of("m", "hi"))
    reading.text = "the answer"
    passage.unreadable(reading, unread)
    found = ours(unread, passage)
    assert isinstance(found, AdapterParseError)
    assert (found.lm_response, "bad value" in str(found)) == ("the answer", True)
    assert passage.ticket.spoiled == {Request.of("m", "hi").key()}


def test_a_failure_that_is_no_use_to_repeat_is_not_repeated_in_other_words():
    reading = Reading()
    token = READING.set(reading)
    try:
        passage = Passage("bridge")
        passage.failed(RecordError("this row"), reading)
        assert reading.failure is None
        passage.failed(LMRateLimitError("slow down"), reading)
        with pytest.raises(LMRateLimitError):
            passage.ask(iter(()))
    finally:
        READING.reset(token)
    passage.failed(BudgetExceeded("spent"), None)
    assert isinstance(passage.fatal, BudgetExceeded)


def test_a_row_that_is_written_off_asks_nothing_more():
    passage = Passage("thread")
    passage.write_off()
    with pytest.raises(WrittenOff):
        passage.ask(iter(()))
    assert not issubclass(WrittenOff, Exception)
