"""Demos whose outputs could not be read as answers: a model that does as they do is refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from dspy_stream.adapters.bound import fields_of
from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.errors import AdapterRenderError
from dspy_stream.program import Signature

__all__ = ["misfits", "tell_misfits"]

_SIMPLE: Final = (str, int, float, bool)
_MOST: Final = 100
_log = logging.getLogger("dspy_stream")
_told: Final[set[str]] = set()


def misfits(signature: type[Signature], demos: Sequence[Any]) -> list[str]:
    """For each output of a demo with a value that its field does not admit, a sentence.

    Outputs with choices and plain ones are looked at: what others show need not be what is read.

    >>> misfits(Signature("text -> kind: Literal['a', 'b']"), [{"text": "t", "kind": "c"}, {"kind": "a"}])
    ["demo 1 shows what is no answer: kind: 'c' is not one of a, b"]
    """
    found: list[str] = []
    outputs = fields_of(signature).outputs
    checked = [one for one in outputs if one.codec.choices is not None or one.codec.annotation in _SIMPLE]
    for number, demo in enumerate(demos, 1):
        values: dict[str, Any] = dict(demo.items())
        for field in checked:
            if field.given_in(values):
                try:
                    field.codec.read(field.codec.show(values[field.name]).strip())
                except ValueProblem as problem:
                    found.append(f"demo {number} shows what is no answer: {field.name}: {problem}")
                except AdapterRenderError:  # an adapter of the user's own may write it
                    continue
    return found


def tell_misfits(signature: type[Signature], demos: Sequence[Any]) -> None:
    """Log them, each once in a process."""
    for sentence in misfits(signature, demos):
        if sentence not in _told and len(_told) < _MOST:
            _told.add(sentence)
            _log.warning("%s; a model that copies it is refused", sentence)
