"""Programs as people write them for DSPy, with only the import changed: what they do here."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Literal

import pydantic
import pytest

import dspy_stream as ds
from dspy_stream import BaseCallback, DummyLM


class Recorder(ds.BaseLM):
    """A model that keeps what it was asked and answers with fields, one dict a call."""

    def __init__(self, *answers: dict[str, Any] | str | Exception, **kwargs: Any) -> None:
        super().__init__("recorder", **kwargs)
        self.answers = list(answers)
        self.seen: list[list[dict[str, Any]]] = []
        self.writer = DummyLM([])

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        self.seen.append(messages)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        text = answer if isinstance(answer, str) else self.writer._written(answer)
        return SimpleNamespace(
            choices=[SimpleNamespace(message=SimpleNamespace(content=text))],
            usage={"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11},
            model="recorder",
        )


def roles(messages: list[dict[str, Any]]) -> str:
    return "".join(message["role"][0] for message in messages)


def test_retrieval_augmented_answers() -> None:
    class RAG(ds.Module):
        def __init__(self, k: int = 2) -> None:
            super().__init__()
            self.k = k
            self.respond = ds.ChainOfThought("context, question -> response")

        def forward(self, question: str) -> ds.Prediction:
            context = [f"passage {number}" for number in range(self.k)]
            return self.respond(context=context, question=question)

    lm = Recorder({"reasoning": "r", "response": "yes"})
    with ds.context(lm=lm, track_usage=True):
        made = RAG()(question="is it?")
    assert (made.response, made.reasoning) == ("yes", "r")
    assert made.get_lm_usage()["recorder"]["total_tokens"] == 11
    assert "passage 1" in lm.seen[0][-1]["content"]


def test_several_hops_with_lists_in_and_out() -> None:
    class Hops(ds.Module):
        def __init__(self) -> None:
            self.ask = ds.ChainOfThought("claim, notes -> query")
            self.note = ds.ChainOfThought("claim, notes, context -> new_notes: list[str], titles: list[str]")

        def forward(self, claim: str) -> ds.Prediction:
            notes: list[str] = []
            for _ in range(2):
                query = self.ask(claim=claim, notes=notes).query
                notes.extend(self.note(claim=claim, notes=notes, context=[query]).new_notes)
            return ds.Prediction(notes=notes)

    turn = [{"reasoning": "r", "query": "q"}, {"reasoning": "r", "new_notes": ["n"], "titles": []}]
    with ds.context(lm=Recorder(*turn, *turn)):
        assert Hops()(claim="c").notes == ["n", "n"]


def test_classes_with_choices_and_lists_of_models() -> None:
    class Entity(pydantic.BaseModel):
        name: str
        kind: Literal["person", "place"]

    class Extract(ds.Signature):
        """Find who and what."""

        text: str = ds.InputField()
        label: Literal["news", "ad"] = ds.OutputField()
        confidence: float = ds.OutputField()
        found: list[Entity] = ds.OutputField()

    found = [{"name": "Ada", "kind": "person"}]
    with ds.context(lm=Recorder({"label": "news", "confidence": "0.87", "found": found})):
        made = ds.Predict(Extract)(text="t")
    assert (made.label, made.confidence, made.found) == ("news", 0.87, [Entity(name="Ada", kind="person")])


def test_a_conversation_that_grows() -> None:
    class Talk(ds.Signature):
        question: str = ds.InputField()
        history: ds.History = ds.InputField()
        answer: str = ds.OutputField()

    lm, history, talk = Recorder({"answer": "1"}, {"answer": "2"}), ds.History(messages=[]), ds.Predict(Talk)
    with ds.context(lm=lm):
        for question in ("a", "b"):
            history.messages.append({"question": question, **talk(question=question, history=history)})
    assert [roles(messages) for messages in lm.seen] == ["su", "suau"]


def test_a_model_used_directly_inside_a_module() -> None:
    class Raw(ds.Module):
        def forward(self, x: str) -> ds.Prediction:
            return ds.Prediction(y=ds.settings.lm(x)[0])

    with ds.context(lm=Recorder("raw")):
        assert Raw()(x="a").y == "raw"


def test_another_model_for_a_part_of_a_forward() -> None:
    class Mixed(ds.Module):
        def __init__(self) -> None:
            self.part = ds.Predict("q -> a")

        def forward(self, q: str) -> tuple[str, str]:
            with ds.context(lm=Recorder({"a": "inner"})):
                inner = self.part(q=q).a
            return inner, self.part(q=q).a

    with ds.context(lm=Recorder({"a": "outer"})):
        assert Mixed()(q="x") == ("inner", "outer")


def test_threads_and_tasks_of_the_programs_own() -> None:
    predict = ds.Predict("q -> a")

    async def together() -> list[str]:
        with ds.context(lm=DummyLM([{"a": "x"}] * 3)):
            return [each.a for each in await asyncio.gather(*(predict.acall(q=str(n)) for n in range(3)))]

    assert asyncio.run(together()) == ["x"] * 3
    ds.configure(lm=DummyLM([{"a": "x"}] * 3))
    try:
        with ThreadPoolExecutor(3) as pool:
            assert [each.a for each in pool.map(lambda n: predict(q=str(n)), range(3))] == ["x"] * 3
    finally:
        ds.configure(lm=None)


def test_an_agent_whose_tool_fails_once() -> None:
    def divide(a: int, b: int) -> float:
        """Divide."""
        return a / b

    def turn(args: dict[str, int], tool: str = "divide") -> dict[str, Any]:
        return {"next_thought": "t", "next_tool_name": tool, "next_tool_args": args}

    lm = Recorder(
        turn({"a": 1, "b": 0}),
        turn({"a": 1, "b": 2}),
        turn({}, "finish"),
        {"reasoning": "r", "answer": "0.5"},
    )
    with ds.context(lm=lm):
        made = ds.ReAct("question -> answer: float", tools=[divide])(question="q")
    assert made.answer == 0.5
    assert made.trajectory["observation_0"].startswith("Execution error in divide: ")
    assert made.trajectory["observation_1"] == 0.5


def test_the_best_of_several() -> None:
    def reward(args: dict[str, Any], made: ds.Prediction) -> float:
        return float(len(made.answer) < 5)

    lm = Recorder({"answer": "far too long"}, ValueError("no answer"), {"answer": "ok"})
    with ds.context(lm=lm):
        best = ds.BestOfN(module=ds.Predict("q -> answer"), N=3, reward_fn=reward, threshold=1.0)
        assert best(q="x").answer == "ok"


def test_what_callbacks_hear_of_a_chain_of_thought() -> None:
    class Ear(BaseCallback):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.heard.append(type(instance).__name__)

        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.heard.append("format")

        def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
            self.heard.append(type(exception).__name__ if exception else "lm")

        def on_adapter_parse_end(
            self, call_id: str, outputs: Any, exception: BaseException | None = None
        ) -> None:
            self.heard.append(f"parsed {sorted(outputs)}")

    ear = Ear()
    with ds.context(lm=Recorder({"reasoning": "r", "answer": "x"}), callbacks=[ear]):
        ds.ChainOfThought("question -> answer")(question="q")
    assert ear.heard == ["ChainOfThought", "Predict", "format", "lm", "parsed ['answer', 'reasoning']"]


def test_what_was_asked_can_be_looked_at() -> None:
    lm, out = Recorder({"answer": "the answer"}), io.StringIO()
    with ds.context(lm=lm):
        ds.Predict("question -> answer")(question="the question")
    lm.inspect_history(n=1, file=out)
    for piece in ("System message:", "User message:", "the question", "Response:", "the answer"):
        assert piece in out.getvalue()


def test_errors_that_programs_catch() -> None:
    with ds.context(lm=Recorder(*["nonsense"] * 3)), pytest.raises(ds.AdapterParseError) as caught:
        ds.Predict("question -> answer: int")(question="q")
    assert (caught.value.adapter_name, caught.value.lm_response) == ("ChatAdapter", "nonsense")
    with (
        ds.context(lm=Recorder(ds.ContextWindowExceededError(model="m", message="too long"))),
        pytest.raises(ds.LMError, match="too long"),
    ):
        ds.Predict("question -> answer")(question="q")
