"""Streamed programs: fields while they come, per run, whatever the shape of the program."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from dspy_stream.adapters import ChatAdapter, JSONAdapter
from dspy_stream.adapters.xml import XMLAdapter
from dspy_stream.clock import Clock
from dspy_stream.configuration import configure, context
from dspy_stream.errors import AdapterParseError, ConfigurationError, LMServerError
from dspy_stream.lm import LM
from dspy_stream.lm.model import BaseLM
from dspy_stream.lm.retry import Retry
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Module, Parallel, Predict, ReAct
from dspy_stream.modules.driven import WrittenOff
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.streaming import (
    StatusMessage,
    StatusMessageProvider,
    StreamChunk,
    StreamListener,
    StreamResponse,
    apply_sync_streaming,
    streamify,
    streaming_response,
)
from dspy_stream.program import Prediction
from dspy_stream.program.types.tool import Tool
from dspy_stream.runtime import LISTENER
from dspy_stream.types import Choice, Delta, Layer, Request, Response, Usage
from tests.lm.server import ModelServer
from tests.lm.test_stream_sockets import DONE, chunk, reply


class Slices(BaseLM):
    """A model that tells its answers in slices; ``gate`` is awaited before each."""

    __slots__ = ("answer", "asked", "gate", "size")

    answer: Callable[[Request], Any]
    asked: list[Request]
    gate: Callable[[], Awaitable[Any]] | None
    size: int

    def __init__(
        self,
        answer: Callable[[Request], Any] | str,
        size: int = 3,
        gate: Callable[[], Awaitable[Any]] | None = None,
        cache: bool = False,
    ) -> None:
        made = (lambda _request: answer) if isinstance(answer, str) else answer
        self._fill(
            model="slices/model", options={}, cache=cache, rollout_id=None,
            answer=made, size=size, gate=gate, asked=[],
        )  # fmt: skip

    def _paid(self, clock: Clock, rng: random.Random) -> Layer:
        return Retry(_Sliced(self), num_retries=2, timeout=60.0, clock=_NoWait(), rng=rng)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class _NoWait:
    def monotonic(self) -> float:
        return 0.0

    def time(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class _Sliced:
    def __init__(self, lm: Slices) -> None:
        self.lm = lm

    async def __call__(self, request: Request) -> Response:
        self.lm.asked.append(request)
        text = self.lm.answer(request)
        error = None
        if isinstance(text, tuple):
            text, error = text
        listener = LISTENER.get()
        if listener is not None:
            for at in range(0, len(text), self.lm.size):
                if self.lm.gate is not None:
                    await self.lm.gate()
                await asyncio.sleep(0)
                listener(Delta("text", text[at : at + self.lm.size]))
        if error is not None:
            if listener is not None:
                listener(Delta("restart"))
            raise error
        return Response((Choice(text, "stop"),), Usage(1, 1), "slices/model")

    async def aclose(self) -> None:
        pass


def chat(**fields: Any) -> str:
    return "\n\n".join([*(f"[[ ## {n} ## ]]\n{v}" for n, v in fields.items()), "[[ ## completed ## ]]"])


def run(program: Any, *listeners: StreamListener, inputs: Mapping[str, Any], **options: Any) -> list[Any]:
    async def go() -> list[Any]:
        stream = streamify(program, stream_listeners=list(listeners) or None, **options)
        return [item async for item in stream(**inputs)]

    return asyncio.run(go())


def joined(items: list[Any]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for item in items:
        if isinstance(item, StreamResponse):
            key = (item.predict_name, item.signature_field_name)
            found[key] = "" if item.restart else found.get(key, "") + item.chunk
    return found


class Sync(Module):
    def __init__(self) -> None:
        self.draft = Predict("question -> answer")
        self.judge = ChainOfThought("question, answer -> score: int")

    def forward(self, question: str) -> Prediction:
        answer = self.draft(question=question).answer
        score = self.judge(question=question, answer=answer)
        return Prediction(answer=answer, score=score.score)


class Async(Sync):
    forward = Module.forward

    async def aforward(self, question: str) -> Prediction:
        answer = (await self.draft.acall(question=question)).answer
        score = await self.judge.acall(question=question, answer=answer)
        return Prediction(answer=answer, score=score.score)


class Nested(Module):
    def __init__(self, inner: Module) -> None:
        self.inner = [inner]

    def forward(self, question: str) -> Prediction:
        return self.inner[0](question=question)


def two_steps(request: Request) -> str:
    text = str(request.messages[-1].content)
    return chat(reasoning="because it is", score=3) if "score" in text else chat(answer="Paris it is")


@pytest.mark.parametrize(
    ("program", "prefix"),
    [(Sync(), ""), (Async(), ""), (Nested(Sync()), "inner[0]."), (Nested(Async()), "inner[0].")],
    ids=["sync", "async", "nested", "nested async"],
)
def test_fields_of_any_program(program: Module, prefix: str) -> None:
    lm = Slices(two_steps)
    with context(lm=lm):
        items = run(
            program,
            StreamListener("answer"),
            StreamListener("reasoning"),
            StreamListener("score"),
            inputs={"question": "q"},
        )
    assert joined(items) == {
        (f"{prefix}draft", "answer"): "Paris it is",
        (f"{prefix}judge.predict", "reasoning"): "because it is",
        (f"{prefix}judge.predict", "score"): "3",
    }
    chunks = [item for item in items if isinstance(item, StreamResponse)]
    assert len([item for item in chunks if item.signature_field_name == "answer"]) >= 4
    assert [item.signature_field_name for item in chunks if item.is_last_chunk] == [
        "answer",
        "reasoning",
        "score",
    ]
    assert isinstance(items[-1], Prediction)
    assert (items[-1].answer, items[-1].score) == ("Paris it is", 3)


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        (ChatAdapter(), chat(answer="a \\ b\nc")),
        (JSONAdapter(), json.dumps({"answer": "a \\ b\nc"})),
        (XMLAdapter(), "<answer>\na \\ b\nc\n</answer>"),
    ],
    ids=["chat", "json", "xml"],
)
def test_every_adapter(adapter: Any, text: str) -> None:
    with context(lm=Slices(text, 1), adapter=adapter):
        items = run(Predict("question -> answer"), StreamListener("answer"), inputs={"question": "q"})
    assert joined(items) == {("self", "answer"): "a \\ b\nc"}
    assert items[-1].answer == "a \\ b\nc"
    assert len(items) > 5
    told = {"predict_name": "self", "signature_field_name": "answer", "chunk": "a", "is_last_chunk": False}
    assert dataclasses.asdict(items[0]) == {**told, "restart": False, "call": 0}


def test_only_predictors_with_a_listener_are_streamed() -> None:
    lm = Slices(two_steps, 1)
    with context(lm=lm):
        items = run(Sync(), StreamListener("score"), inputs={"question": "q"})
    assert {item.signature_field_name for item in items if isinstance(item, StreamResponse)} == {"score"}


def test_without_listeners_all_comes_as_it_is() -> None:
    class Direct(Module):
        def __init__(self) -> None:
            self.first = Predict("question -> answer")

        def forward(self, question: str) -> str:
            return str(self.first(question=question).answer) + lm("raw?")[0]

    def answer(request: Request) -> str:
        return "as said" if request.messages[-1].content == "raw?" else chat(answer="Paris")

    lm = Slices(answer, 4)
    with context(lm=lm):
        items = run(Direct(), inputs={"question": "q"})
    chunks = [item for item in items if isinstance(item, StreamChunk)]
    assert "".join(item.text for item in chunks if item.predict_name == "first") == chat(answer="Paris")
    assert [item for item in chunks if item.predict_name == ""] == [
        StreamChunk("", "text", "as s"),
        StreamChunk("", "text", "aid"),
    ]
    assert items[-1] == "Parisas said"


def test_the_final_prediction_may_be_left_out() -> None:
    with context(lm=Slices(chat(answer="Paris"))):
        items = run(
            Predict("question -> answer"),
            StreamListener("answer"),
            inputs={"question": "q"},
            include_final_prediction_in_output_stream=False,
        )
    assert all(isinstance(item, StreamResponse) for item in items)


def test_the_final_prediction_comes_where_nothing_was_heard() -> None:
    with context(lm=Slices(chat(answer="Paris"))):
        *_, unheard = run(
            Predict("question -> answer"),
            inputs={"question": "q"},
            include_final_prediction_in_output_stream=False,
        )
    assert unheard.answer == "Paris"


def test_an_answer_from_the_journal_comes_in_one_piece() -> None:
    lm = Slices(chat(answer="Paris it is"), 1, cache=True)
    with context(lm=lm):
        first = run(Predict("question -> answer"), StreamListener("answer"), inputs={"question": "q"})
        again = run(Predict("question -> answer"), StreamListener("answer"), inputs={"question": "q"})
    assert len(lm.asked) == 1
    assert len(first) > 5
    assert [(item.chunk, item.is_last_chunk) for item in again[:-1]] == [("Paris it is", True)]
    assert again[-1].answer == "Paris it is"


def test_a_model_that_does_not_stream_comes_in_one_piece() -> None:
    with context(lm=ScriptedLM([{"answer": "Paris"}])):
        items = run(Predict("question -> answer"), StreamListener("answer"), inputs={"question": "q"})
    assert [item.chunk for item in items[:-1]] == ["Paris"]


# --------------------------------------------------------------------------------- many at once


def test_runs_of_one_function_never_mix() -> None:
    """The same listener object, the same predictor, in step with each other."""

    async def go() -> None:
        stream = streamify(Sync(), stream_listeners=[listener, StreamListener("reasoning")])

        async def one(number: int) -> None:
            items = [item async for item in stream(question=f"number {number}.")]
            assert joined(items) == {
                ("draft", "answer"): f"answer to {number}.",
                ("judge.predict", "reasoning"): f"thoughts about {number}.",
            }
            assert items[-1].answer == f"answer to {number}."

        await asyncio.gather(*[one(number) for number in range(40)])

    def answer(request: Request) -> str:
        text = str(request.messages[-1].content)
        number = text.split("number ")[1].split(".")[0]
        if "score" in text:
            return chat(reasoning=f"thoughts about {number}.", score=1)
        return chat(answer=f"answer to {number}.")

    listener = StreamListener("answer")
    with context(lm=Slices(answer, 2)):
        asyncio.run(go())
        asyncio.run(go())  # and in another loop, with the same listener


class Loop(Module):
    def __init__(self) -> None:
        self.step = Predict("question -> answer")

    def forward(self, question: str) -> Prediction:
        for number in range(3):
            made = self.step(question=f"{question} {number}")
        return made


@pytest.mark.parametrize("reuse", [False, True])
def test_a_predictor_in_a_loop(reuse: bool) -> None:
    listener = StreamListener("answer", allow_reuse=reuse)
    with context(lm=Slices(lambda request: chat(answer="a"))):
        for _ in range(2):  # a run does not use the listener up for the next one
            items = run(Loop(), listener, inputs={"question": "q"})
            last = [item for item in items if isinstance(item, StreamResponse) and item.is_last_chunk]
            assert [item.call for item in last] == ([0, 1, 2] if reuse else [0])


# ------------------------------------------------------------------------- attempts that failed


def test_a_retry_and_a_repair_tell_that_what_came_before_does_not_count() -> None:
    answers = [
        ("[[ ## answer ## ]]\nPar", LMServerError("gone")),
        chat(answer="three", n="many"),
        chat(answer="3", n=3),
    ]
    with context(lm=Slices(lambda _request: answers.pop(0))):
        items = run(
            Predict("question -> answer, n: int"),
            StreamListener("answer"),
            StreamListener("n"),
            inputs={"question": "q"},
        )
    restarts = [item.signature_field_name for item in items[:-1] if item.restart]
    assert restarts == ["answer", "answer", "n"]
    assert joined(items) == {("self", "answer"): "3", ("self", "n"): "3"}
    assert not answers
    assert items[-1].n == 3


def test_a_fallback_is_read_in_its_own_layout() -> None:
    answers = ["no form at all", "neither this", '{"answer": "Paris"}']
    adapter = ChatAdapter(use_json_adapter_fallback=True)
    with context(lm=Slices(lambda _request: answers.pop(0)), adapter=adapter):
        items = run(Predict("question -> answer"), StreamListener("answer"), inputs={"question": "q"})
    assert joined(items) == {("self", "answer"): "Paris"}
    assert [item.chunk for item in items[:-1]] == ["Par", "is"]


def test_an_answer_in_another_layout_is_told_whole() -> None:
    with context(lm=Slices('{"answer": "Paris", "n": [1, 2]}')):
        items = run(
            Predict("question -> answer, n: list[int]"),
            StreamListener("answer"),
            StreamListener("n"),
            inputs={"question": "q"},
        )
    assert joined(items) == {("self", "answer"): "Paris", ("self", "n"): "[1,2]"}


def test_an_error_of_the_program_is_raised_out_of_the_stream() -> None:
    class Broken(Module):
        def __init__(self) -> None:
            self.first = Predict("question -> answer")

        def forward(self, question: str) -> Prediction:
            self.first(question=question)
            raise KeyError("mine")

    seen: list[Any] = []

    async def go() -> None:
        async for item in streamify(Broken(), stream_listeners=[StreamListener("answer")])(question="q"):
            seen.append(item)

    with context(lm=Slices(chat(answer="Paris"))), pytest.raises(KeyError, match="mine"):
        asyncio.run(go())
    assert joined(seen) == {("first", "answer"): "Paris"}
    with context(lm=ScriptedLM(["nothing", "again"])), pytest.raises(AdapterParseError):
        run(Predict("question -> answer: int"), StreamListener("answer"), inputs={"question": "q"})


@pytest.mark.parametrize("program", [Sync(), Async()], ids=["sync", "async"])
@pytest.mark.parametrize("sync", [False, True])
def test_closing_early_hangs_up(program: Module, sync: bool) -> None:
    body = b"".join([chunk("[[ ## answer ## ]]\n"), *[chunk(f"word{n} ") for n in range(500)], DONE])

    async def go() -> None:
        async with ModelServer(reply(body, pieces=500, gap=0.02)) as server:
            lm = LM("openai/m", api_base=server.url, api_key="k", num_retries=0)
            listeners = [StreamListener("answer")]
            with context(lm=lm):
                if sync:
                    await asyncio.to_thread(first_of, program, listeners)
                else:
                    stream = streamify(program, stream_listeners=listeners)(question="q")
                    assert (await stream.__anext__()).chunk.startswith("word0")
                    await stream.aclose()
            await asyncio.wait_for(server.hangups.wait(), 5.0)

    def first_of(program: Module, listeners: list[StreamListener]) -> None:
        stream = streamify(program, stream_listeners=listeners, async_streaming=False)(question="q")
        assert next(stream).chunk.startswith("word0")
        stream.close()

    asyncio.run(go())


def test_a_consumer_sees_a_token_before_the_next_is_written() -> None:
    async def go() -> None:
        turn = asyncio.Semaphore(0)
        loop = asyncio.get_running_loop()

        async def gate() -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(turn.acquire(), loop))

        with context(lm=Slices("[[ ## answer ## ]]\none two three", 1, gate)):
            stream = streamify(Predict("question -> answer"), stream_listeners=[StreamListener("answer")])
            for _ in "[[ ## answer ## ]]\n":
                turn.release()
            seen = ""
            items = stream(question="q")
            for character in "one two three":
                turn.release()
                if character != " ":  # held back: it may be the last
                    seen += (await asyncio.wait_for(items.__anext__(), 5.0)).chunk
            assert seen == "one two three"
            await items.aclose()

    asyncio.run(go())


# ------------------------------------------------------------------------------- whom to listen to


class Twice(Module):
    def __init__(self) -> None:
        self.one = Predict("question -> answer")
        self.two = Predict("question -> answer, why")

    def forward(self, question: str) -> Prediction:
        self.one(question=question)
        return self.two(question=question)


def test_a_listener_that_means_nobody_or_several_is_refused_at_once() -> None:
    twice = Twice()
    refused = [
        (StreamListener("nothing"), r"one \(answer\), two \(answer, why\)"),
        (StreamListener("answer"), r"several .*\(one, two\)"),
        (StreamListener("answer", predict_name="three"), "no such predictor"),
        (StreamListener("why", predict=twice.one), "no output field 'why'; it has: answer"),
        (StreamListener("why", predict=Predict("a -> why")), "no part of the program"),
        (StreamListener("question"), "no predictor"),
    ]
    for listener, why in refused:
        with pytest.raises(ConfigurationError, match=why):
            streamify(twice, stream_listeners=[listener])
    with pytest.raises(ConfigurationError, match="pass predict="):
        streamify(lambda question: question, stream_listeners=[StreamListener("answer")])


@pytest.mark.parametrize("by", ["predict", "name"])
def test_a_listener_may_name_its_predictor(by: str) -> None:
    twice = Twice()
    given = {"predict": twice.two} if by == "predict" else {"predict_name": "two"}
    with context(lm=Slices(chat(answer="Paris", why="so"))):
        items = run(twice, StreamListener("answer", **given), inputs={"question": "q"})
    assert joined(items) == {("two", "answer"): "Paris"}


def test_plain_functions_are_programs_too() -> None:
    ask = Predict("question -> answer")

    def program(question: str) -> str:
        return str(ask(question=question).answer)

    async def aprogram(question: str) -> str:
        return str((await ask.acall(question=question)).answer)

    for function, is_async in ((program, False), (aprogram, True), (aprogram, False)):
        with context(lm=Slices(chat(answer="Paris"))):
            items = run(
                function,
                StreamListener("answer", predict=ask, predict_name="ask"),
                inputs={"question": "q"},
                is_async_program=is_async,
            )
        assert joined(items) == {("ask", "answer"): "Paris"}
        assert items[-1] == "Paris"


# ---------------------------------------------------------------------------------------- statuses


def test_statuses_come_in_their_place() -> None:
    class Provider(StatusMessageProvider):
        def module_start_status_message(self, instance: Any, inputs: Mapping[str, Any]) -> str:
            return f"start {type(instance).__name__} {sorted(inputs['kwargs'])}"

        def module_end_status_message(self, outputs: Any) -> str:
            return f"end {type(outputs).__name__}"

        def lm_start_status_message(self, instance: Any, inputs: Mapping[str, Any]) -> str:
            assert inputs["messages"][-1]["role"] == "user"
            return f"ask {instance.model}"

        def lm_end_status_message(self, outputs: Any) -> str:
            return f"asked {len(outputs)}"

    class Tooled(Module):
        def __init__(self) -> None:
            self.ask = Predict("question -> answer")
            self.tool = Tool(lambda city: "sunny", name="weather")
            self.finish = Tool(lambda: "Completed.", name="finish")

        def forward(self, question: str) -> Prediction:
            self.tool(city="Paris")
            self.finish()
            return self.ask(question=question)

    with context(lm=ScriptedLM([{"answer": "a"}, {"answer": "a"}])):
        items = run(Tooled(), inputs={"question": "q"}, status_message_provider=Provider())
        plain = run(Tooled(), inputs={"question": "q"})
    assert [item.message for item in items if isinstance(item, StatusMessage)] == [
        *("start Tooled ['question']", "Calling tool weather...", "The tool has answered."),
        *("start Predict ['question']", "ask scripted/model", "asked 1"),
        *("end Prediction", "end Prediction"),
    ]
    assert [item.message for item in plain if isinstance(item, StatusMessage)][:2] == [
        "Calling tool weather...",
        "The tool has answered.",
    ]


def test_a_tool_that_blocks_holds_nobody_up() -> None:
    ticked = threading.Event()

    def weather(city: str) -> str:
        assert ticked.wait(30), "the loop stood still while the tool ran, or its status did not come"
        return f"sunny in {city}"

    class Tooled(Module):
        def __init__(self) -> None:
            self.ask = Predict("question -> answer")
            self.weather = Tool(weather)

        def forward(self, question: str) -> Prediction:
            self.ask(question=question)
            return Prediction(answer=self.weather(city="Paris"))

    async def go() -> list[Any]:
        items = []
        async for item in streamify(Tooled(), stream_listeners=[StreamListener("answer")])(question="q"):
            items.append(item)
            if item == StatusMessage("Calling tool weather..."):
                asyncio.get_running_loop().call_soon(ticked.set)
        return items

    with context(lm=Slices(chat(answer="Paris"))):
        items = asyncio.run(go())
    assert joined(items) == {("ask", "answer"): "Paris"}
    assert items[-1].answer == "sunny in Paris"


@pytest.mark.parametrize("shape", ["fork", "parallel"])
def test_parts_that_block_hold_nobody_up(shape: str) -> None:
    ticked = threading.Event()

    class Blocks(Module):
        def __init__(self) -> None:
            self.ask = Predict("question -> answer")

        def forward(self, question: str) -> Prediction:
            self.ask(question=question)
            assert ticked.wait(30), "the loop stood still while the part ran"
            return Prediction(answer="late")

    class Both(Module):
        def __init__(self) -> None:
            self.part = Blocks()

        def forward(self, question: str) -> Any:
            return Parallel(disable_progress_bar=True)([(self.part, {"question": question})])[0]

    class Provider(StatusMessageProvider):
        def lm_end_status_message(self, outputs: Any) -> str:
            return "asked"

    programs: dict[str, Callable[[], Module]] = {
        "fork": lambda: Fork(one=Blocks(), two=Predict("question -> other")),
        "parallel": Both,
    }

    async def go() -> list[Any]:
        items = []
        async for item in streamify(programs[shape](), status_message_provider=Provider())(question="q"):
            items.append(item)
            asyncio.get_running_loop().call_soon(ticked.set)
        return items

    with context(lm=Slices(chat(answer="Paris", other="o"))):
        items = asyncio.run(go())
    assert items[-1].answer == "late"


def test_what_a_synchronous_program_awaits_runs_on_the_loop_of_its_caller() -> None:
    loops = []

    async def weather() -> str:
        loops.append(asyncio.get_running_loop())
        return "sunny"

    answers = [
        {"next_thought": "t", "next_tool_name": "weather", "next_tool_args": {}},
        {"next_thought": "t", "next_tool_name": "finish", "next_tool_args": {}},
        {"reasoning": "r", "answer": "sunny"},
    ]

    async def go() -> list[Any]:
        loops.append(asyncio.get_running_loop())
        return [item async for item in streamify(ReAct("question -> answer", [weather]))(question="q")]

    with context(lm=ScriptedLM(answers)):
        assert asyncio.run(go())[-1].answer == "sunny"
    assert loops[0] is loops[1]


def test_closing_early_while_a_tool_blocks_waits_for_nothing() -> None:
    inside, asked, over = threading.Event(), threading.Event(), threading.Event()
    ended: list[BaseException] = []
    lm = Slices(chat(answer="Paris"))

    class Tooled(Module):
        def __init__(self) -> None:
            self.ask = Predict("question -> answer")

        def forward(self, question: str) -> Prediction:
            inside.set()
            assert over.wait(30)
            try:
                return self.ask(question=question)
            except BaseException as error:
                ended.append(error)
                raise
            finally:
                asked.set()

    class Provider(StatusMessageProvider):
        def module_start_status_message(self, instance: Any, inputs: Mapping[str, Any]) -> str:
            return "started"

    async def go() -> None:
        stream = streamify(Tooled(), status_message_provider=Provider())(question="q")
        assert await anext(stream) == StatusMessage("started")
        await asyncio.to_thread(inside.wait, 30)
        await stream.aclose()
        over.set()
        await asyncio.to_thread(asked.wait, 30)

    with context(lm=lm):
        asyncio.run(go())
    assert [type(error) for error in ended] == [WrittenOff]
    assert lm.asked == []


def test_a_call_that_fails_has_a_status_at_its_end_too() -> None:
    class Provider(StatusMessageProvider):
        def module_end_status_message(self, outputs: Any) -> str:
            return f"module {outputs}"

        def tool_end_status_message(self, outputs: Any) -> str:
            return f"tool {outputs}"

        def lm_end_status_message(self, outputs: Any) -> str:
            return f"lm {outputs}"

    class Tooled(Module):
        def __init__(self) -> None:
            self.ask = Predict("question -> answer")
            self.fails = Tool(lambda: 1 / 0, name="fails")

        def forward(self, question: str) -> Prediction:
            with pytest.raises(ZeroDivisionError):
                self.fails()
            with pytest.raises(LMServerError):
                self.ask(question=question)
            return Prediction(answer="none")

    with context(lm=Slices(lambda _: ("", LMServerError("down")))):
        items = run(Tooled(), inputs={"question": "q"}, status_message_provider=Provider())
    said = [item.message for item in items if isinstance(item, StatusMessage)]
    assert said[:-1] == ["Calling tool fails...", "tool None", "lm None", "module None"]
    assert said[-1].startswith("module Prediction")


def test_a_provider_that_raises_ends_no_program(caplog: pytest.LogCaptureFixture) -> None:
    class Provider(StatusMessageProvider):
        def module_start_status_message(self, instance: Any, inputs: Mapping[str, Any]) -> str:
            raise ValueError("mine")

    with context(lm=Slices(two_steps)):
        items = run(Sync(), inputs={"question": "q"}, status_message_provider=Provider())
    assert items[-1].answer == "Paris it is"
    assert "Provider.module_start_status_message failed: ValueError: mine" in caplog.text


# ------------------------------------------------------------------------------------- other doors


def test_synchronous_streams() -> None:
    stream = streamify(Sync(), stream_listeners=[StreamListener("answer")], async_streaming=False)
    configure(lm=Slices(two_steps))
    items = list(stream(question="q"))
    assert joined(items) == {("draft", "answer"): "Paris it is"}
    assert items[-1].score == 3
    assert not [thread for thread in threading.enumerate() if "sync stream" in thread.name]


def test_an_error_reaches_a_synchronous_stream() -> None:
    async def items() -> Any:
        yield 1
        raise ValueError("mine")

    stream = apply_sync_streaming(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="mine"):
        next(stream)


def test_a_synchronous_stream_where_it_would_block_is_refused() -> None:
    class Inside(Module):
        def forward(self, question: str) -> list[Any]:
            return list(streamify(Predict("question -> answer"), async_streaming=False)(question=question))

    with context(lm=Slices(chat(answer="Paris"))), pytest.raises(RuntimeError, match="would block"):
        run(Inside(), inputs={"question": "q"})


def test_a_stream_as_server_sent_events() -> None:
    async def go() -> list[str]:
        stream = streamify(Predict("question -> answer"), stream_listeners=[StreamListener("answer")])
        return [line async for line in streaming_response(stream(question="q"))]

    with context(lm=ScriptedLM([{"answer": "Par\nis"}])):
        lines = asyncio.run(go())
    assert all(line.startswith("data: ") and line.endswith("\n\n") for line in lines)
    assert lines[-1] == "data: [DONE]\n\n"
    values = [json.loads(line[6:]) for line in lines[:-1]]
    assert values[0]["chunk"]["chunk"] == "Par\nis"
    assert values[0]["chunk"]["signature_field_name"] == "answer"
    assert values[-1] == {"prediction": {"answer": "Par\nis"}}


def test_nothing_is_heard_outside_a_stream() -> None:
    lm = Slices(chat(answer="Paris"))
    with context(lm=lm):
        run(Predict("question -> answer"), StreamListener("answer"), inputs={"question": "q"})
        assert Predict("question -> answer")(question="q").answer == "Paris"
    assert LISTENER.get() is None
