"""Programs of DSPy and models for them; imported by a Python that has DSPy."""

import asyncio
import json
import logging
import random
import re
import warnings
from typing import Literal

import dspy
import pydantic

import dspy_stream as ds
from dspy_stream.interop.wire import completion
from dspy_stream.types import Choice, Response

warnings.simplefilter("ignore")
logging.disable(logging.ERROR)
OLD = dspy.__version__.startswith("2.")


class Person(pydantic.BaseModel):
    name: str
    age: int


class Triage(dspy.Signature):
    """Decide what a customer wants."""

    text: str = dspy.InputField()
    tags: list[str] = dspy.InputField(default=[]) if not OLD else dspy.InputField()
    intent: Literal["card", "refund"] = dspy.OutputField()
    urgency: int = dspy.OutputField()
    who: Person = dspy.OutputField()


def number_in(text):
    return int(re.findall(r"number (\d+)", text)[-1])


WANTED = re.compile(r"\[\[ ## (\w+) ## \]\]")


def written(messages):
    """An answer that follows from the question alone, in the form that was asked for."""
    last = messages[-1]["content"]
    last = last if isinstance(last, str) else json.dumps(last)
    if "[[ ## " not in last:
        return "plain"
    number = number_in(last)
    values = {
        "intent": "card" if number % 2 else "refund",
        "urgency": str(number % 5),
        "who": json.dumps({"name": f"P{number}", "age": number}),
        "next_thought": "think",
        "next_tool_name": "finish" if "observation_0" in last else "double",
        "next_tool_args": "{}" if "observation_0" in last else json.dumps({"value": number}),
    }
    reminder = last[last.rindex("Respond with") :] if "Respond with" in last else last
    names = WANTED.findall(reminder) or re.findall(r"`(\w+)`", reminder)
    if "JSON" in reminder:
        return json.dumps({name: values.get(name, f"A{number}") for name in re.findall(r"`(\w+)`", reminder)})
    names = [name for name in names if name != "completed"]
    parts = [f"[[ ## {name} ## ]]\n{values.get(name, f'A{number}')}" for name in names]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def chat(request):
    return [message.to_json() for message in request.messages]


class Alone(dspy.BaseLM):
    """The model for DSPy by itself."""

    def __init__(self):
        super().__init__(model="scripted/model", temperature=None, max_tokens=None, cache=False)
        self.asked = []

    def forward(self, prompt=None, messages=None, **kwargs):
        messages = messages or [{"role": "user", "content": prompt}]
        self.asked.append(messages)
        count = {**self.kwargs, **kwargs}.get("n") or 1
        choices = tuple(Choice(written(messages), "stop") for _ in range(count))
        return completion(Response(choices), self.model)

    async def aforward(self, prompt=None, messages=None, **kwargs):
        return self.forward(prompt, messages, **kwargs)


class Model:
    """The same model for this package; knows how many calls it had at the same time."""

    def __init__(self, latency=0.0, fail=None):
        self.latency, self.fail = latency, fail
        self.running = self.most = 0
        self.asked = []
        self.options = []
        self.rng = random.Random(3)
        self.lm = ds.ScriptedLM(self.answer, record=False, cache=True)

    async def answer(self, request):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.latency * self.rng.uniform(0.5, 1.5) if self.latency else 0)
            messages = chat(request)
            self.asked.append(messages)
            self.options.append({**request.options, "rollout_id": request.rollout_id})
            if self.fail is not None:
                made = self.fail(request)
                if made is not None:
                    return made
            choices = tuple(Choice(written(messages), "stop") for _ in range(request.options.get("n", 1)))
            return Response(choices, ds.ScriptedLM("x")._core._player(request).usage, request.model)
        finally:
            self.running -= 1


def double(value: int) -> str:
    """Twice the value."""
    return str(2 * value)


def awaited():
    """The same tool as a coroutine function."""

    async def double(value: int) -> str:
        """Twice the value."""
        await asyncio.sleep(0)
        return str(2 * value)

    return double


class Two(dspy.Module):
    """Two predictors, and settings of the row's own between them."""

    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.ChainOfThought("question, hint -> answer")

    def forward(self, question):
        with dspy.context(mark=question):
            hint = self.first(question=question).answer
            seen = dspy.settings.mark
        found = self.second(question=question, hint=hint)
        return dspy.Prediction(hint=hint, answer=found.answer, seen=seen)


def two():
    """For worker processes."""
    from dspy_stream.interop import DSPyModule

    return DSPyModule(Two())


def plain_two():
    """For worker processes, as DSPy has it."""
    return Two()


def outer():
    """For worker processes: one of DSPy's inside one of ours."""
    import dspy_stream as ds
    from dspy_stream.interop import DSPyModule

    class Outer(ds.Module):
        def __init__(self):
            self.inner = DSPyModule(Two())

        def forward(self, question):
            return self.inner(question=question)

    return Outer()


class Called(dspy.Module):
    """A program that is what calling it does."""

    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.ChainOfThought("question, hint -> answer")

    def __call__(self, question):
        hint = self.first(question=question).answer
        return self.second(question=question, hint=hint)


class Louder(dspy.ChainOfThought):
    """One of DSPy's own, called in another way."""

    def __call__(self, **inputs):
        return super().__call__(**{**inputs, "question": inputs["question"] + "!"})


class Later(Two):
    """The same as a coroutine."""

    async def aforward(self, question):
        with dspy.context(mark=question):
            hint = (await self.first.acall(question=question)).answer
            await asyncio.sleep(0)
            seen = dspy.settings.mark
        found = await self.second.acall(question=question, hint=hint)
        return dspy.Prediction(hint=hint, answer=found.answer, seen=seen)


class Threads(Two):
    """The two at the same time, in threads of DSPy's."""

    def forward(self, question):
        parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        asked = dspy.Example(question=question, hint="none").with_inputs("question", "hint")
        one, two = parallel([(self.first, asked.with_inputs("question")), (self.second, asked)])
        return dspy.Prediction(hint=one.answer, answer=two.answer, seen=question)


class Mixed(Two):
    """Coroutines in a forward, threads in an aforward, and calls at the same time in both."""

    def forward(self, question):
        async def both():
            asked = {"question": question, "hint": "none"}
            return await asyncio.gather(self.first.acall(question=question), self.second.acall(**asked))

        one, two = asyncio.run(both())
        return dspy.Prediction(hint=one.answer, answer=two.answer, seen=question)


class MixedLater(Two):
    """The same the other way round."""

    async def aforward(self, question):
        asked = {"question": question, "hint": "none"}
        one, two = await asyncio.gather(
            dspy.asyncify(self.first)(question=question), self.second.acall(**asked)
        )
        return dspy.Prediction(hint=one.answer, answer=two.answer, seen=question)


class Careless(Two):
    """A coroutine that does not await."""

    async def aforward(self, question):
        return dspy.Prediction(hint="", answer=self.first(question=question).answer, seen=question)


def questions(count):
    return [{"question": f"What is number {number}?", "other": number} for number in range(count)]
