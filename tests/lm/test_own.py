"""Models that users write: subclasses of BaseLM and of LM with a forward, or a call, of their own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dspy_stream as ds
from dspy_stream.errors import LMConfigurationError, LMError, LMRateLimitError, LMServerError, LMTimeoutError
from dspy_stream.lm import ScriptedLM
from dspy_stream.lm.base import SavedLM
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.forwarded import completion_of, response_of
from dspy_stream.types import Choice, Response, Usage
from tests.lm.server import ModelServer, Reply


def completion(text: str, **more: Any) -> Any:
    message = SimpleNamespace(content=text, **more)
    usage = SimpleNamespace(prompt_tokens=3, completion_tokens=2, total_tokens=5)
    return SimpleNamespace(choices=[SimpleNamespace(message=message)], usage=usage, model="served")


class Own(ds.BaseLM):
    """As programs for DSPy write it."""

    def __init__(self, *answers: Any, model: str = "mine", **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.threads: set[int] = set()

    def forward(
        self, prompt: str | None = None, messages: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> Any:
        self.asked.append((prompt, messages, {**self.kwargs, **kwargs}))
        self.threads.add(threading.get_ident())
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return completion(answer) if isinstance(answer, str) else answer


def test_a_call_reaches_forward_with_the_options_of_model_and_call() -> None:
    lm = Own("hello", temperature=0.3, top_p=0.9)
    assert lm("hi", max_tokens=7, temperature=0.5) == ["hello"]
    prompt, messages, kwargs = lm.asked[0]
    assert (prompt, messages) == ("hi", [{"role": "user", "content": "hi"}])
    assert kwargs == {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7}
    assert threading.get_ident() not in lm.threads, "it may block"


def test_a_conversation_comes_as_messages_alone() -> None:
    lm = Own("hello")
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert lm(messages=turns) == ["hello"]
    assert lm.asked[0][:2] == (None, turns)


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def test_what_belongs_to_a_turn_beside_its_content_comes_along() -> None:
    lm = Own("hello")
    turns = [
        {"role": "user", "content": "u", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "4"}]},
    ]
    lm(messages=turns)
    assert lm.asked[0][1] == [turns[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}, turns[2]]


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ({"content": "x"}, "message 2 has no role"),
        ({"role": "user"}, "message 2 has no content"),
        ({"role": "user", "content": 7}, "message 2 has no content.*: 7"),
        ("text", "message 2 has no role: 'text'"),
    ],
)
def test_a_message_that_is_none_is_refused(turn: Any, why: str) -> None:
    with pytest.raises(LMConfigurationError, match=why):
        Own("x")(messages=[{"role": "user", "content": "fine"}, turn])


def test_a_predictor_asks_it_each_time_and_its_calls_are_kept_in_the_history() -> None:
    lm = Own("[[ ## answer ## ]]\n4", "[[ ## answer ## ]]\n5")
    double = ds.Predict("question -> answer: int")
    with ds.context(lm=lm, track_usage=True):
        first, second = double(question="q"), double(question="q")
    assert (first.answer, second.answer) == (4, 5), (
        "another answer, since nothing is kept unless it is asked for"
    )
    assert first.get_lm_usage() == {"mine": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
    assert len(lm.history) == 2
    assert lm.history[0]["response_model"] == "served"


def test_with_cache_a_question_is_asked_once() -> None:
    lm = Own("a", model="mine/kept-answers", cache=True)
    assert lm("q") == lm("q") == ["a"]


def test_aforward_goes_first_and_runs_without_a_thread() -> None:
    class Both(Own):
        async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return completion("from aforward")

    assert Both()("q") == ["from aforward"]
    assert asyncio.run(Both().acall("q")) == ["from aforward"]


def test_what_forward_raises_is_raised_and_what_may_pass_is_tried_again() -> None:
    with pytest.raises(KeyError, match="mine"):
        Own(KeyError("mine"))("q")
    lm = Own(LMRateLimitError("slow down", retry_after=0.0), "then", num_retries=1)
    assert lm("q") == ["then"]
    with pytest.raises(LMServerError):
        Own(LMServerError("no"), num_retries=0)("q")


def test_a_model_without_a_forward_says_so() -> None:
    class Empty(ds.BaseLM):
        pass

    with pytest.raises(NotImplementedError, match="Empty has neither forward nor aforward"):
        Empty("mine")("q")


def test_init_may_leave_out_the_base_class() -> None:
    class Bare(ds.BaseLM):
        def __init__(self) -> None:
            self.model = "bare"
            self.kwargs = {"temperature": 0.2}
            self.extra = 1

        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return f"{self.extra} {dict(self.kwargs)} {kwargs}"

    assert Bare()("q") == ["1 {'temperature': 0.2} {}"]


def test_forward_is_given_what_the_call_adds_to_the_options_of_the_model() -> None:
    class Strict(Own):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            self.asked.append((prompt, messages, kwargs))
            return "yes"

    lm = Strict(temperature=0.3, top_p=0.9)
    lm("as it is")
    lm("with one more", max_tokens=7)
    lm("with others", temperature=0.5, top_p=None)
    lm.copy(rollout_id=4)("a model's own rollout")
    lm("a call's", rollout_id=5)
    assert [kwargs for _, _, kwargs in lm.asked] == [
        {},
        {"max_tokens": 7},
        {"temperature": 0.5, "top_p": None},
        {},
        {"rollout_id": 5},
    ]


def test_a_copy_keeps_what_the_subclass_has_and_changes_what_is_named() -> None:
    lm = Own("a", "b", temperature=0.3)
    other = lm.copy(temperature=0.9, rollout_id=4, answers=["c"])
    assert other("q") == ["c"]
    assert other.kwargs == {"temperature": 0.9, "rollout_id": 4}
    assert other.asked[0][2] == {"temperature": 0.9, "rollout_id": 4}
    assert (lm.kwargs, lm.answers, len(lm.history)) == ({"temperature": 0.3}, ["a", "b"], 0)


def test_the_options_cannot_be_set_by_mistake() -> None:
    lm = ds.LM("openai/gpt-4o-mini", temperature=0.1)
    assert (lm.kwargs["temperature"], lm.kwargs["max_tokens"]) == (0.1, None)
    with pytest.raises(TypeError, match=r"lm\.copy"):
        lm.kwargs["temperature"] = 0.5
    with pytest.raises(KeyError):
        lm.kwargs["nothing"]


def test_its_properties_say_what_it_can_do() -> None:
    class Able(Own):
        @property
        def supports_function_calling(self) -> bool:
            return True

        @property
        def supported_params(self) -> set[str]:
            return {"response_format"}

    able = Able().capabilities
    assert (able.tools, able.json_mode, able.structured_outputs, able.reasoning) == (True, True, False, False)
    known = ds.LM("openai/gpt-4o-mini")
    assert known.supports_function_calling
    assert known.supports_response_schema
    assert {"response_format", "tools", "temperature"} <= known.supported_params
    assert ds.LM("openai/o3-mini").supports_reasoning
    assert ScriptedLM("x").supported_params == {"temperature", "max_tokens"}


def test_its_saved_form_names_the_class_and_is_not_loaded_as_another_model() -> None:
    state = Own("a", model="openai/gpt-4o-mini", temperature=0.3).dump_state()
    assert state["_dspy_lm_class"].endswith(".Own")
    loaded = ds.LM.load_state(state)
    assert isinstance(loaded, SavedLM)
    assert loaded.dump_state() == state


# ----------------------------------------------------------------------------- subclasses of LM


def test_a_subclass_of_lm_may_replace_the_call() -> None:
    class Called(ds.LM):
        def __init__(self) -> None:
            super().__init__("openai/gpt-4o-mini", api_key="k")
            self.count = 0

        def __call__(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            self.count += 1
            return ["[[ ## answer ## ]]\nhere"]

    lm = Called()
    with ds.context(lm=lm):
        assert ds.Predict("question -> answer")(question="a").answer == "here"
    assert lm.count == 1
    with pytest.raises(AttributeError, match="copy"):
        lm.model = "openai/other"  # type: ignore[misc]


def test_a_subclass_of_lm_may_go_around_the_real_answer() -> None:
    class Loud(ds.LM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            answer = super().forward(prompt, messages, **kwargs)
            answer.choices[0].message.content += "!"
            return answer

    demos = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
    lm = Loud("local/nearest")
    assert lm(messages=[*demos, {"role": "user", "content": "a question"}]) == ["an answer!"]
    assert type(lm.copy(temperature=1.0)) is Loud
    assert lm != ds.LM("local/nearest")
    assert lm == Loud("local/nearest")


class Passing(ds.LM):
    """Goes around the real answer, and says so."""

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return super().forward(prompt, messages, **kwargs)


class Waiting(ds.LM):
    """Goes around the real answer in a coroutine; a ``forward`` of its own is not asked beside it."""

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        raise AssertionError

    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        answer = await super().aforward(prompt, messages, **kwargs)
        answer.choices[0].message.content += "!"
        return answer


class Delegating(ds.BaseLM):
    """Passes questions on to a model that it wraps, as programs for DSPy do."""

    def __init__(self, inner: ds.LM) -> None:
        super().__init__(model=inner.model)
        self.inner = inner

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return self.inner.forward(prompt=prompt, messages=messages, **kwargs)

    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return await self.inner.aforward(prompt=prompt, messages=messages, **kwargs)


def test_an_aforward_may_go_around_the_real_one() -> None:
    made, server = asked(lambda url: Waiting("openai/x", api_base=url), times=3)
    assert made == ["Paris!"] * 3
    assert (len(server.seen), server.connections) == (3, 1)
    down = [Reply(b"{}", status=500)] * 8
    (error,), server = asked(lambda url: Waiting("openai/x", api_base=url, num_retries=1), *down)
    assert isinstance(error, LMServerError)
    assert (len(server.seen), error.attempts) == (2, 2), "not tried again on top of the real one's attempts"


def test_a_model_may_pass_its_questions_on_to_another() -> None:
    made, server = asked(lambda url: Delegating(ds.LM("openai/x", api_base=url)), times=2)
    assert made == ["Paris"] * 2
    assert len(server.seen) == 2
    assert Delegating(ds.LM("local/nearest"))("q") == ds.LM("local/nearest")("q")


def test_a_coroutine_asks_the_real_forward_of_a_model_by_itself() -> None:
    async def work() -> Any:
        return await ds.LM("local/nearest").aforward("a question")

    answer = asyncio.run(work())
    assert answer.choices[0].message.content == ds.LM("local/nearest")("a question")[0]


def asked(lm: Callable[[str], ds.BaseLM], *replies: Reply, times: int = 1) -> tuple[list[Any], ModelServer]:
    """What the model answers at a server that gives these replies, and then good ones."""

    async def work() -> tuple[list[Any], ModelServer]:
        async with ModelServer(*replies) as server:
            model = lm(server.url)
            made: list[Any] = []
            for number in range(times):
                try:
                    made += await model.acall(f"question {number}")
                except LMError as error:
                    made.append(error)
            return made, server

    return asyncio.run(work())


def test_a_forward_around_the_real_one_is_not_tried_again_on_top_of_it() -> None:
    down = [Reply(b"{}", status=500)] * 8
    (error,), server = asked(lambda url: Passing("openai/x", api_base=url, num_retries=1), *down)
    assert isinstance(error, LMServerError)
    assert (len(server.seen), error.attempts) == (2, 2)


def test_a_forward_around_the_real_one_keeps_its_connection() -> None:
    made, server = asked(lambda url: Passing("openai/x", api_base=url), times=20)
    assert made == ["Paris"] * 20
    assert (len(server.seen), server.connections) == (20, 1)


def test_an_error_of_a_subclass_of_lm_itself_is_tried_again() -> None:
    class Once(ds.LM):
        failed = False

        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            if not self.failed:
                self.failed = True
                raise LMRateLimitError("mine", retry_after=0.0)
            return "then"

    assert Once("openai/x", api_key="k", num_retries=1)("q") == ["then"]


def test_messages_go_before_the_prompt_where_the_real_forward_is_given_both() -> None:
    class Both(ds.LM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return super().forward("a prompt", messages, **kwargs)

    demos = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
    assert Both("local/nearest")(messages=[*demos, {"role": "user", "content": "a question"}]) == [
        "an answer"
    ]


def test_dspys_further_arguments_are_not_sent() -> None:
    lm = ds.LM(
        "openai/gpt-4o-mini", "chat", 0.2, 100, engine="auto", train_kwargs={}, use_developer_role=True
    )
    assert lm.options == {"temperature": 0.2, "max_tokens": 100}
    with pytest.raises(ds.LMError, match="engine"):
        ds.LM("openai/gpt-4o-mini", engine=object())


# -------------------------------------------------------------------------------- what is returned


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("plain", ["plain"]),
        (["a", {"text": "b"}], ["a", "b"]),
        ({"choices": [{"message": {"content": "a"}}, {"message": {"content": None}}]}, ["a", ""]),
        ({"choices": [{"text": "of a text model"}]}, ["of a text model"]),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "block"}]}}]}, ["block"]),
        (
            {"output": [{"type": "message", "content": [{"type": "output_text", "text": "r"}]}]},
            ["r"],
        ),
        (Response((Choice("own"),)), ["own"]),
    ],
)
def test_answers_in_every_form(given: Any, texts: list[str]) -> None:
    assert [choice.text for choice in response_of(given, "m").choices] == texts


@pytest.mark.parametrize("given", [None, 7, {"content": "x"}, object()])
def test_what_is_no_answer_is_an_error_that_says_what_is_wanted(given: Any) -> None:
    with pytest.raises(LMError, match=r"forward of mine returned .*`choices`"):
        response_of(given, "mine")


@pytest.mark.parametrize("wrong", [-1, 1e30, float("nan"), "many", True])
def test_counts_that_cannot_be_true_are_none_and_so_is_the_cost(wrong: Any) -> None:
    given = {
        "choices": [{"message": {"content": "x"}}],
        "usage": {"prompt_tokens": wrong, "completion_tokens": 2},
        "_hidden_params": {"response_cost": 0.5},
    }
    assert response_of(given, "mine/m").usage == Usage(0, 2, None)
    good = {**given, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    assert response_of(good, "mine/m").usage == Usage(3, 2, 0.5)
    for cost in (-0.5, float("nan"), float("inf"), "free"):
        free = {**good, "_hidden_params": {"response_cost": cost}}
        assert response_of(free, "mine/m").usage == Usage(3, 2, None)


def test_what_stands_beside_the_text_comes_along() -> None:
    call = SimpleNamespace(id="1", type="function", function=SimpleNamespace(name="f", arguments="{}"))
    lm = Own(completion("x", tool_calls=[call], reasoning_content="hm"))
    expected = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert lm("q") == [{"text": "x", "reasoning_content": "hm", "tool_calls": [expected]}]
    fields = {"citations": [[{"cited_text": "a"}], {"cited_text": "b"}]}
    assert Own(completion("x", provider_specific_fields=fields))("q") == [
        {"text": "x", "citations": [{"cited_text": "a"}, {"cited_text": "b"}]}
    ]


def test_of_the_responses_api_each_completion_is_a_dict() -> None:
    class Answering(ds.BaseLM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return {"output": [{"type": "message", "content": [{"type": "output_text", "text": "yes"}]}]}

    lm = Answering("mine/m", model_type="responses")
    assert lm("q") == [{"text": "yes"}] == lm.history[-1]["outputs"]
    assert asyncio.run(lm.acall("q")) == [{"text": "yes"}]
    assert Answering("mine/m")("q") == ["yes"]


def test_the_form_is_read_back() -> None:
    response = Response((Choice("x", "stop", {"reasoning_content": "t"}),), Usage(1, 2, 0.5), "m", "id")
    assert response_of(completion_of(response), "m") == response


def test_thoughts_of_a_model_that_has_them_fill_the_reasoning() -> None:
    class Thinker(Own):
        @property
        def supports_reasoning(self) -> bool:
            return True

    signature = ds.Signature("q -> reasoning: Reasoning, a", custom_types={"Reasoning": ds.Reasoning})
    lm = Thinker(completion("[[ ## a ## ]]\nx", reasoning_content="because"))
    made = ds.Predict(signature)(q="q", lm=lm)
    assert (str(made.reasoning), made.a) == ("because", "x")


def test_many_forwards_block_at_the_same_time() -> None:
    barrier = threading.Barrier(40, timeout=20.0)

    class Slow(ds.BaseLM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            barrier.wait()
            return "[[ ## answer ## ]]\nx"

    rows = [(ds.Predict("question -> answer"), {"question": str(number)}) for number in range(40)]
    with ds.context(lm=Slow("mine/slow")):
        made = ds.Parallel(num_threads=40, disable_progress_bar=True)(rows)
    assert [each.answer for each in made] == ["x"] * 40


def test_a_forward_may_ask_another_model_even_when_all_threads_are_taken() -> None:
    class Inner(ds.BaseLM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return "[[ ## answer ## ]]\ninner"

    class Outer(ds.BaseLM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            barrier.wait()
            return inner(messages=messages)

    inner = Inner("mine/inner")
    barrier = threading.Barrier(64, timeout=20.0)
    rows = [(ds.Predict("question -> answer"), {"question": str(number)}) for number in range(64)]
    with ds.context(lm=Outer("mine/outer")):
        made = ds.Parallel(num_threads=64, disable_progress_bar=True)(rows)
    assert {each.answer for each in made} == {"inner"}


HANGS = """
import os, threading
import dspy_stream as ds

class Hangs(ds.BaseLM):
    def forward(self, prompt=None, messages=None, **kwargs):
        begun.set()
        threading.Event().wait()

begun = threading.Event()
threading.Thread(target=lambda: Hangs("mine/hangs")("q"), daemon=True).start()
begun.wait()
print("ends", flush=True)
"""


def test_a_forward_that_hangs_does_not_hold_up_the_exit() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "ends\n")


# ----------------------------------------------------------------------------------- its time


class Hanging(ds.BaseLM):
    """Waits for what does not come, but for questions that are easy."""

    def __init__(self, model: str = "mine/hanging", **kwargs: Any) -> None:
        super().__init__(model, num_retries=0, **kwargs)
        self.over = threading.Event()

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        if prompt != "easy":
            self.over.wait()
        return "answered"


class Short(Hanging):
    timeout = 0.05


@pytest.fixture
def short() -> Iterator[Short]:
    lm = Short()
    yield lm
    lm.over.set()


def test_a_forward_that_hangs_is_a_timeout(short: Short) -> None:
    with pytest.raises(LMTimeoutError, match=r"forward of mine/hanging did not end within 0.05 s.*`timeout`"):
        short("hard")
    assert short("easy") == ["answered"]


def test_the_time_may_be_an_option_of_model_or_call() -> None:
    lm = Hanging(timeout=0.06)
    with pytest.raises(LMTimeoutError, match=r"0\.06 s"):
        lm("hard")
    with pytest.raises(LMTimeoutError, match=r"0\.07 s"):
        lm("hard", timeout=0.07)
    lm.over.set()


def test_an_aforward_that_hangs_is_a_timeout_too() -> None:
    class Waits(ds.BaseLM):
        timeout = 0.05

        async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            await asyncio.Event().wait()

    with pytest.raises(LMTimeoutError, match="mine/waits did not end"):
        Waits("mine/waits", num_retries=0)("q")


def test_forwards_that_hang_do_not_take_the_threads_of_others(short: Short) -> None:
    async def many() -> list[Any]:
        return await asyncio.gather(*(short.acall("hard") for _ in range(80)), return_exceptions=True)

    assert {type(each) for each in asyncio.run(many())} == {LMTimeoutError}
    assert short("easy") == ["answered"]


def test_what_another_model_takes_is_not_its_time() -> None:
    class Asks(ds.BaseLM):
        timeout = 0.1

        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return inner(prompt)

    inner = Hanging("mine/inner", timeout=0.4)
    with pytest.raises(LMTimeoutError, match="forward of mine/inner"):
        Asks("mine/outer", num_retries=0)("hard")
    inner.over.set()


def test_a_timeout_of_its_own_is_raised_as_it_is() -> None:
    with pytest.raises(TimeoutError, match="of a library"):
        Own(TimeoutError("of a library"))("q")


def test_a_flow_asks_it_once_for_each_row_and_keeps_the_answer(tmp_path: Path) -> None:
    lm = Own(*["[[ ## answer ## ]]\nx"] * 8)
    flow = ds.Stream.from_iterable([{"question": "same"}] * 8, name="own").through(
        ds.Predict("question -> answer")
    )
    report = flow.write(tmp_path / "out.jsonl").run(lm=lm, state=tmp_path / "state", quiet=True)
    assert (report.rows_out, report.calls, len(lm.asked)) == (8, 8, 8)


def test_a_subclass_with_a_forward_of_its_own_is_not_given_the_answers_of_its_base() -> None:
    class Loud(ds.LM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            answer = super().forward(prompt, messages, **kwargs)
            answer.choices[0].message.content = answer.choices[0].message.content.replace("qu", "QU")
            return answer

    class Named(ds.LM):
        """Answers as its base does."""

    with ds.context(journal=DictJournal()):
        for kind, answer in ((ds.LM, "quiet"), (Loud, "QUiet"), (Named, "quiet"), (Loud, "QUiet")):
            assert kind("local/nearest")("quiet") == [answer]
        predict = ds.Predict("question -> answer")
        predict.demos = [{"question": "q", "answer": "quiet"}]
        for kind, answer in ((ds.LM, "quiet"), (Loud, "QUiet"), (ds.LM, "quiet")):
            with ds.context(lm=kind("local/nearest")):
                assert predict(question="q").answer == answer
    assert Named("local/nearest").request("q").key() == ds.LM("local/nearest").request("q").key()


def test_the_real_answer_reads_as_that_of_a_client_library() -> None:
    made, _ = asked(lambda url: Looking("openai/gpt-4o-mini", api_base=url))
    assert made == ["Paris 15 12 assistant None stop"]


class Looking(ds.LM):
    """Reads the real answer by attributes and by keys, as programs for DSPy do."""

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        answer = super().forward(prompt, messages, **kwargs)
        choice, usage = answer.choices[0], answer["usage"]
        words = [usage.total_tokens, dict(usage)["prompt_tokens"], choice["message"]["role"]]
        words += [choice.message.tool_calls, choice.finish_reason]
        choice.message.content += "".join(f" {word}" for word in words)
        return answer


def test_nothing_is_lost_on_the_way_around() -> None:
    extra = {
        "reasoning_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}],
        "citations": [{"cited_text": "c"}],
        "logprobs": {"content": []},
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    given = Response((Choice("x", "tool_calls", extra),), Usage(9, 5, 0.1, 4, 2), "m", "id")
    assert response_of(completion_of(given), "m") == given


def test_a_subclass_of_lm_with_a_way_of_its_own_may_have_any_name() -> None:
    class Fixed(ds.LM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return super().forward(prompt, messages, **kwargs) if prompt == "inside" else "yes"

    lm = Fixed("no-such-model", cache=False)
    assert lm("q") == ["yes"]
    assert lm.copy(temperature=0.5)("q") == ["yes"]
    with pytest.raises(LMConfigurationError, match="no provider is known"):
        lm("inside")
    with pytest.raises(LMConfigurationError, match="no provider is known"):
        Fixed("no-such-model", api_key="k")  # a key goes to a server that is known
    with pytest.raises(LMConfigurationError, match="no provider is known"):
        ds.LM("no-such-model")
