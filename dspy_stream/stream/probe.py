"""A question of our own, put to a model before the question that it keeps failing at.

A row that gets no answer while nobody else is asked could be at fault or could have met an outage. What
tells the two apart is whether the model answers something else.

The failing model is asked where its error names it and one connected model has that name. Otherwise it
is the model that the row's steps ask first; where these are a coroutine, or run in a thread or a process,
nobody can be asked, and such a row, alone, is taken for an outage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

from dspy_stream.errors import LMError
from dspy_stream.lm.witness import ON_TRIAL
from dspy_stream.runtime import Ask, Steps
from dspy_stream.types import Head, Layer, Message, Request

__all__ = ["behind", "probed"]

T = TypeVar("T")

_QUESTION: Final = Message("user", "Answer with one word: yes.")


def probed(
    steps: Steps[T], heard: Callable[[str | None], None], failing: tuple[Layer, str] | None = None
) -> Steps[T]:
    """The steps, with a short question put before them to the model that keeps failing.

    ``failing`` is that model's client and name, for steps of any kind: coroutines, threads and processes.
    Without it the model of the steps' first call is asked, and steps that wait for something else first
    are left as they are.

    ``heard`` is called once: with the model's name where it answered, be it by a refusal, else with None.
    The question is not journaled, and is paid for like any other.
    """
    told: str | None = None
    if failing is not None:
        try:
            told = yield from _question(*failing)
        finally:
            heard(told)
        ON_TRIAL.set(told is not None)
        return (yield from steps)
    try:
        try:
            effect = next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        if isinstance(effect, Ask):
            told = yield from _question(effect.client, effect.request.model)
    finally:
        heard(told)
    ON_TRIAL.set(told is not None)
    return (yield from _further(steps, effect))


def behind(steps: Steps[T], question: asyncio.Event, vouched: Callable[[], bool]) -> Steps[T]:
    """The steps of a row that may be at fault, once the question to its model is answered or not.

    Where it is, as ``vouched`` then says, the row's failures do not count as the server's.
    """
    yield question.wait()
    ON_TRIAL.set(vouched())
    return (yield from steps)


def _question(client: Layer, model: str) -> Steps[str | None]:
    asked = Ask(client, Request(Head(model, (), {}), (_QUESTION,), None, False))
    asked.listener = None  # nobody asked to hear it
    try:
        yield asked
    except LMError as error:
        refused = not error.retryable and error.status is not None
        return model if refused else None
    return model


def _further(steps: Steps[T], effect: Any) -> Steps[T]:
    """Go on with steps whose first effect was taken from them."""
    while True:
        value: Any = None
        thrown: BaseException | None = None
        try:
            value = yield effect
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:  # noqa: BLE001 - thrown into the row's code, which may handle it
            thrown = error
        try:
            effect = steps.send(value) if thrown is None else steps.throw(thrown)
        except StopIteration as done:
            result: T = done.value
            return result
