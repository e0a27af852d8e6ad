"""An adapter called directly: one question to a model, and its completions read."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspy_stream.errors import AdapterParseError, ConfigurationError
from dspy_stream.program import Signature
from dspy_stream.types import Choice

if TYPE_CHECKING:
    from dspy_stream.adapters.base import Adapter

__all__ = ["aasked", "asked"]

Outputs = list[dict[str, Any]]
Question = tuple[Any, dict[str, Any]]


def asked(
    adapter: Adapter,
    lm: Any,
    lm_kwargs: Mapping[str, Any],
    signature: type[Signature],
    demos: Sequence[Any],
    inputs: Mapping[str, Any],
) -> Outputs:
    """The outputs of each completion; calls ``lm(messages=..., **options)``."""
    steps = _steps(adapter, lm, lm_kwargs, signature, demos, inputs)
    answer: Any = None
    while True:
        try:
            model, options = steps.send(answer)
        except StopIteration as stop:
            outputs: Outputs = stop.value
            return outputs
        answer = model(**options)


async def aasked(
    adapter: Adapter,
    lm: Any,
    lm_kwargs: Mapping[str, Any],
    signature: type[Signature],
    demos: Sequence[Any],
    inputs: Mapping[str, Any],
) -> Outputs:
    """The same with ``await lm.acall(...)``."""
    steps = _steps(adapter, lm, lm_kwargs, signature, demos, inputs)
    answer: Any = None
    while True:
        try:
            model, options = steps.send(answer)
        except StopIteration as stop:
            outputs: Outputs = stop.value
            return outputs
        answer = await model.acall(**options)


def _steps(
    adapter: Adapter,
    lm: Any,
    lm_kwargs: Mapping[str, Any],
    signature: type[Signature],
    demos: Sequence[Any],
    inputs: Mapping[str, Any],
) -> Generator[Question, Any, Outputs]:
    prepared = adapter.prepare(signature, demos, capabilities=getattr(lm, "capabilities", None))
    messages = [message.to_json() for message in (*prepared.head, *prepared.render(inputs))]
    by_row = prepared.by_row(inputs) if prepared.by_row is not None else {}
    answers = yield lm, {"messages": messages, **prepared.options, **by_row, **lm_kwargs}
    try:
        read = [prepared.read(_choice(answer)) for answer in answers]
    except AdapterParseError:
        if adapter.fallback is None:
            raise
        return (yield from _steps(adapter.fallback, lm, lm_kwargs, signature, demos, inputs))
    second = adapter.second_step(signature)
    if second is None:
        return read
    if not callable(second.model):
        raise ConfigurationError(f"{second.model!r} is only a name; pass an LM to call an adapter directly")
    found: Outputs = []
    for outputs in read:
        found += yield from _steps(second.adapter, second.model, {}, second.signature, (), outputs)
    return found


def _choice(answer: Any) -> Choice:
    if isinstance(answer, str):
        return Choice(answer, "stop")
    extra = {name: value for name, value in answer.items() if name != "text"}
    return Choice(answer.get("text") or "", "stop", extra)
