"""An adapter called directly: one question to a model, and its completions read."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspy_stream.errors import AdapterParseError, ConfigurationError
from dspy_stream.program import Signature
from dspy_stream.types import Choice

if TYPE_CHECKING:
    from dspy_stream.adapters.base import Adapter

__all__ = ["aasked", "asked", "questions"]

Outputs = list[dict[str, Any]]
Steps = Generator[tuple[Any, dict[str, Any]], Any, Outputs]


def asked(steps: Steps) -> Outputs:
    """The outputs of each completion; calls ``lm(messages=..., **options)``."""
    answer: Any = None
    while True:
        try:
            lm, options = steps.send(answer)
        except StopIteration as stop:
            outputs: Outputs = stop.value
            return outputs
        answer = lm(**options)


async def aasked(steps: Steps) -> Outputs:
    """The same with ``await lm.acall(...)``."""
    answer: Any = None
    while True:
        try:
            lm, options = steps.send(answer)
        except StopIteration as stop:
            outputs: Outputs = stop.value
            return outputs
        answer = await lm.acall(**options)


def questions(
    adapter: Adapter,
    lm: Any,
    lm_kwargs: Mapping[str, Any],
    signature: type[Signature],
    demos: Sequence[Any],
    inputs: Mapping[str, Any],
) -> Steps:
    """A model and the options of its call, then those of a fallback or a second step; the outputs at last."""
    prepared = adapter.prepare(signature, demos, capabilities=getattr(lm, "capabilities", None))
    messages = [message.to_json() for message in (*prepared.head, *prepared.render(inputs))]
    by_row = prepared.by_row(inputs) if prepared.by_row is not None else {}
    answers = yield lm, {"messages": messages, **prepared.options, **by_row, **lm_kwargs}
    try:
        read = [prepared.read(_choice(answer)) for answer in answers]
    except AdapterParseError:
        if adapter.fallback is None:
            raise
        return (yield from questions(adapter.fallback, lm, lm_kwargs, signature, demos, inputs))
    second = adapter.second_step(signature)
    if second is None:
        return read
    if not callable(second.model):
        raise ConfigurationError(f"{second.model!r} is only a name; pass an LM to call an adapter directly")
    found: Outputs = []
    for outputs in read:
        found += yield from questions(second.adapter, second.model, {}, second.signature, (), outputs)
    return found


def _choice(answer: Any) -> Choice:
    if isinstance(answer, str):
        return Choice(answer, "stop")
    extra = {name: value for name, value in answer.items() if name != "text"}
    return Choice(answer.get("text") or "", "stop", extra)
