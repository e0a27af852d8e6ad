"""The history of model calls: what is kept, of whom, how much, and how it is shown."""

import asyncio
import io
import json
import uuid
from datetime import datetime

import pytest

import dspy_stream as ds
from dspy_stream import events, history, runtime
from dspy_stream.history import GLOBAL_HISTORY, inspect_history
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.program.types import Image
from dspy_stream.shown import shown
from dspy_stream.types import Choice, Response, Usage

KEYS = [
    *("prompt", "messages", "kwargs", "response", "outputs", "usage", "cost", "timestamp", "uuid"),
    *("model", "response_model", "model_type"),
]


@pytest.fixture(autouse=True)
def an_empty_history(monkeypatch):
    for name in ("_subscribers", "active", "_armed"):
        monkeypatch.setattr(events, name, getattr(events, name))
    GLOBAL_HISTORY.clear()


def model(**options):
    return ScriptedLM(lambda request: {"reasoning": "r", "answer": "A"}, **options)


class Answers(ds.Module):
    def __init__(self):
        self.think = ds.ChainOfThought("question -> answer")
        self.other = ds.Predict("question -> answer")

    def forward(self, question):
        return self.think(question=question)


class TestEntries:
    def test_of_a_predictor(self):
        lm = model(temperature=0.3)
        ds.Predict("question -> answer")(question="why?", lm=lm)
        (entry,) = lm.history
        assert list(entry) == KEYS
        assert entry["prompt"] is None
        assert [message["role"] for message in entry["messages"]] == ["system", "user"]
        assert "why?" in entry["messages"][1]["content"]
        assert entry["kwargs"] == {"temperature": 0.3}
        assert entry["outputs"] == [entry["response"].choices[0].message.content]
        assert entry["outputs"] == [entry["response"]["choices"][0]["message"]["content"]]
        assert set(entry["usage"]) >= {"prompt_tokens", "completion_tokens", "total_tokens"}
        assert (entry["model"], entry["model_type"]) == ("scripted/model", "chat")
        assert datetime.fromisoformat(entry["timestamp"])
        assert uuid.UUID(entry["uuid"])
        assert lm.history[-1] is entry

    def test_of_a_model_with_a_list_of_its_own(self):
        class Own(ScriptedLM):
            pass

        lm = Own(["a"])
        lm.history = []
        lm("hello")
        assert [entry["prompt"] for entry in lm.history] == ["hello"]

    def test_of_a_prompt(self):
        lm = model()
        lm("hello")
        assert lm.history[0]["prompt"] == "hello"
        assert lm.history[0]["messages"] is None

    def test_more_than_text(self):
        calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        answer = Response(
            (Choice("hm", "tool_calls", {"tool_calls": calls}),), Usage(3, 4, 0.5), "exact-name"
        )
        lm = ScriptedLM([answer])
        lm("x")
        entry = lm.history[-1]
        assert entry["outputs"] == [{"text": "hm", "tool_calls": calls}]
        assert entry["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert entry["cost"] == 0.5
        assert entry["response_model"] == "exact-name"

    def test_an_answer_from_the_journal_used_nothing(self):
        lm, predict = model(cache=True), ds.Predict("question -> answer")
        with ds.context(lm=lm):
            predict(question="unheard of until now")
            predict(question="unheard of until now")
        assert lm.history[0]["usage"]
        assert (lm.history[1]["usage"], lm.history[1]["cost"]) == ({}, None)

    def test_entries_are_plain_data_but_for_the_response(self):
        lm = model()
        lm("hello")
        entry = {name: value for name, value in lm.history[0].items() if name != "response"}
        assert json.loads(json.dumps(entry)) == entry

    def test_a_key_is_nowhere(self):
        lm = ds.LM(
            "openai/gpt-4o-mini",
            api_key="sk-CANARY-0123456789",
            api_base="http://127.0.0.1:9/v1",
            num_retries=0,
        )
        with pytest.raises(ds.LMError):
            lm("hello")
        out = io.StringIO()
        lm.inspect_history(5, out)
        inspect_history(5, out)
        for _, layer in lm._layers.values():
            runtime.run(layer.aclose())
        assert "CANARY" not in out.getvalue() + repr(list(lm.history)) + repr(list(GLOBAL_HISTORY))


class TestWhose:
    def test_the_models_and_every_modules_around_it(self):
        program, lm = Answers(), model()
        with ds.context(lm=lm):
            program(question="q")
            program.other(question="q")
        assert len(GLOBAL_HISTORY) == len(lm.history) == 2
        assert len(program.history) == len(program.think.history) == len(program.think.predict.history) == 1
        assert len(program.other.history) == 1
        assert program.history[0] is lm.history[0] is GLOBAL_HISTORY[0]

    def test_from_coroutines_each_its_own(self):
        first, second = Answers(), Answers()

        async def work():
            await asyncio.gather(
                first.acall(question="a"), second.acall(question="b"), first.acall(question="c")
            )

        with ds.context(lm=model()):
            asyncio.run(work())
        assert [len(first.history), len(second.history)] == [2, 1]

    def test_parts_of_composed_programs(self):
        fork = ds.Fork(x=ds.Predict("question -> answer"), y=ds.ChainOfThought("question -> more"))
        lm = ScriptedLM(lambda request: {"reasoning": "r", "answer": "A", "more": "M"})
        with ds.context(lm=lm):
            fork(question="q")
        assert [len(fork.history), len(fork.x.history), len(fork.y.predict.history)] == [2, 1, 1]

    def test_of_an_aforward(self):
        class Later(ds.Module):
            def __init__(self):
                self.predict = ds.Predict("question -> answer")

            async def aforward(self, question):
                return await self.predict.acall(question=question)

        later = Later()
        with ds.context(lm=model()):
            later(question="q")
            asyncio.run(later.acall(question="q"))
        assert len(later.history) == len(later.predict.history) == 2

    def test_copies_begin_anew(self):
        program, lm = Answers(), model()
        with ds.context(lm=lm):
            program(question="q")
        assert program.deepcopy().history == []
        assert lm.copy(temperature=1.0).history == []
        assert "_history" not in program.__getstate__()

    def test_a_module_with_an_attribute_of_that_name(self):
        class Chats(ds.Module):
            def __init__(self):
                self.history = ["mine"]
                self.predict = ds.Predict("question -> answer")

            def forward(self, question):
                return self.predict(question=question)

        chats = Chats()
        with ds.context(lm=model()):
            chats(question="q")
        assert chats.history == ["mine"]

    def test_a_call_that_fails_is_not_kept(self):
        def fail(request):
            raise ds.LMError("no")

        lm = ScriptedLM(fail)
        with pytest.raises(ds.LMError):
            lm("x")
        assert lm.history == []


class TestHowMuch:
    def test_the_oldest_are_forgotten(self):
        lm = model()
        with ds.context(max_history_size=3):
            for number in range(5):
                lm(f"prompt {number}")
        assert [entry["prompt"] for entry in lm.history] == ["prompt 2", "prompt 3", "prompt 4"]
        assert len(GLOBAL_HISTORY) == 3
        with ds.context(max_history_size=1):
            lm("last")
        assert [entry["prompt"] for entry in lm.history] == ["last"]

    def test_none_at_all(self):
        lm = model()
        with ds.context(disable_history=True):
            lm("x")
        with ds.context(max_history_size=0):
            lm("x")
        assert lm.history == []
        assert len(GLOBAL_HISTORY) == 0

    def test_it_is_a_sequence(self):
        lm = model()
        for number in range(4):
            lm(f"{number}")
        assert [entry["prompt"] for entry in lm.history[-2:]] == ["2", "3"]
        assert lm.history[1]["prompt"] == "1"
        with pytest.raises(IndexError):
            lm.history[9]
        assert repr(lm.history) == "<4 calls>"
        lm.history.clear()
        assert not lm.history

    def test_a_flows_rows_only_where_it_is_asked_for(self):
        lm, program = model(), Answers()
        stream = ds.Stream.from_iterable([{"question": f"q{n}"} for n in range(3)]).through(program)
        stream.to_list(lm=lm)
        assert len(lm.history) == len(program.history) == len(GLOBAL_HISTORY) == 0
        with ds.context(history_in_flows=True):
            ds.Stream.from_iterable([{"question": f"q{n}"} for n in range(3)]).through(program).to_list(lm=lm)
        assert len(lm.history) == len(program.history) == len(GLOBAL_HISTORY) == 3
        stream.to_list(lm=lm)
        assert len(lm.history) == 3


class TestShowing:
    def text(self, show, n=1):
        out = io.StringIO()
        show(n, out)
        return out.getvalue()

    def test_the_last_calls_of_each(self):
        program, lm = Answers(), model()
        with ds.context(lm=lm):
            program(question="first?")
            program(question="second?")
        for show in (program.inspect_history, lm.inspect_history, inspect_history):
            text = self.text(show)
            assert "second?" in text
            assert "first?" not in text
            assert "System message:" in text
            assert "User message:" in text
            assert "Response:" in text
            assert "\x1b" not in text
            assert self.text(show, 2).index("first?") < self.text(show, 2).index("second?")
            assert self.text(show, 0) == ""

    def test_to_standard_output_without_colours_where_that_is_no_terminal(self, capsys):
        model()("hello")
        inspect_history()
        text = capsys.readouterr().out
        assert "hello" in text
        assert "\x1b" not in text

    @pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
    def test_with_colours_where_it_is_one(self, monkeypatch, no_color, coloured):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        monkeypatch.delenv("NO_COLOR", raising=False)
        if no_color is not None:
            monkeypatch.setenv("NO_COLOR", no_color)
        model()("hello")
        inspect_history()
        assert ("\x1b[31mUser message:\x1b[0m" in terminal.getvalue()) is coloured

    def test_nothing_in_a_prompt_steers_the_terminal(self):
        lm = ScriptedLM([Response((Choice("answer \x1b[2J\x07\x9b31m"),))])
        lm("prompt \x1b]0;title\x07 \r\n next\ttab")
        text = shown(lm.history[0], colours=False)
        assert not set(text) & {"\x1b", "\x07", "\x9b", "\r"}
        assert "next\ttab" in text

    def test_media_by_their_size(self):
        entry = {
            "prompt": None,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "look"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                        {"type": "input_audio", "input_audio": {"format": "wav", "data": "AAAAAA"}},
                        {"type": "file", "file": {"filename": "a.pdf", "file_data": "AAAAAAAA"}},
                        {"type": "document"},
                    ],
                }
            ],
            "outputs": [
                {"text": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
                "two",
            ],
        }
        text = shown(entry, colours=False)
        assert "<IMAGE BASE 64 ENCODED(4)>" in text
        assert "<image_url: https://example.org/a.png>" in text
        assert "<audio format='wav' base64-encoded, length=6>" in text
        assert "data_length:8" in text
        assert "<document>" in text
        assert "AAAA" not in text
        assert 'f: {"x": 1}' in text
        assert "(and 1 other completions)" in text

    def test_a_picture_of_a_real_call(self):
        lm = ScriptedLM(lambda request: {"answer": "a cat"})
        picture = Image("data:image/png;base64,iVBORw0KGgo=")
        ds.Predict("picture: Image -> answer")(picture=picture, lm=lm)
        assert "IMAGE BASE 64 ENCODED" in self.text(lm.inspect_history)


def test_the_subscriber_is_one_of_many():
    assert any(each.listener is history._note for each in events._subscribers)
