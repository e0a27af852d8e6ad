"""A question of our own, put to a model before the question that it keeps failing at.

A row that gets no answer while nobody else is asked could be at fault or could have met an outage. What
tells the two apart is whether the model answers something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from dspy_stream.errors import LMError
from dspy_stream.runtime import Ask, Steps
from dspy_stream.types import Head, Message, Request

__all__ = ["probed"]

T = TypeVar("T")

_QUESTION: Final = Message("user", "Answer with one word: yes.")


def probed(steps: Steps[T], heard: Callable[[str | None], None]) -> Steps[T]:
    """The steps, with a short question to the model of their first call put before it.

    ``heard`` is called once: with the model's name where it answered, be it by a refusal, else with None.
    The question is not journaled, and is paid for like any other. Steps that wait for something else
    first are left as they are.
    """
    told: str | None = None
    try:
        try:
            effect = next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        if isinstance(effect, Ask):
            told = yield from _question(effect)
    finally:
        heard(told)
    return (yield from _further(steps, effect))


def _question(about: Ask) -> Steps[str | None]:
    model = about.request.model
    asked = Ask(about.client, Request(Head(model, (), {}), (_QUESTION,), None, False))
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
