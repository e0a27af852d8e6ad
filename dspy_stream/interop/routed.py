"""An adapter of DSPy's that hands every call to a model of this package, whichever model was chosen."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Final

import dspy  # type: ignore[import-not-found, import-untyped, unused-ignore]

from dspy_stream.interop.mapped import from_model
from dspy_stream.interop.passage import KEY, READING, Passage, Reading
from dspy_stream.interop.stream_lm import stream_lm

__all__ = ["routed"]

_kinds: Final[dict[type, type]] = {}


def routed(adapter: Any) -> Any:
    """A copy of the adapter, of a subclass of its class.

    A predictor hands its model to the adapter: its own, one of a ``with dspy.context(lm=...)``, or
    the one of this run. A ``dspy.LM`` among them is replaced by one with the same name and options.
    """
    kind = _kinds.get(type(adapter))
    if kind is None:
        kind = _kinds[type(adapter)] = _routed_kind(type(adapter))
    made = copy.copy(adapter)
    made.__class__ = kind
    for name, value in list(vars(made).items()):
        if isinstance(value, dspy.BaseLM):  # such as the second model of a TwoStepAdapter
            setattr(made, name, stream_lm(value))
    return made


def _routed_kind(base: type) -> type:
    above: Any = base

    def call(self: Any, lm: Any, *args: Any, **kwargs: Any) -> Any:
        reading = Reading()
        token = READING.set(reading)
        try:
            return above.__call__(self, stream_lm(lm), *args, **kwargs)
        except Exception as error:
            _note(reading, error)
            raise
        finally:
            READING.reset(token)

    async def acall(self: Any, lm: Any, *args: Any, **kwargs: Any) -> Any:
        reading = Reading()
        token = READING.set(reading)
        try:
            return await above.acall(self, stream_lm(lm), *args, **kwargs)
        except Exception as error:
            _note(reading, error)
            raise
        finally:
            READING.reset(token)

    body = {"__call__": call, "acall": acall, "__module__": base.__module__, "__doc__": inspect.getdoc(base)}
    kind = type(base.__name__, (base,), body)
    # DSPy puts its callbacks around the two for every subclass: once more around those it inherits.
    for name in ("format", "parse"):
        if name in vars(kind):
            delattr(kind, name)
    return kind


def _note(reading: Reading, error: Exception) -> None:
    passage: Passage | None = dspy.settings.get(KEY)
    if passage is not None and reading.text is not None and not from_model(error):
        passage.unreadable(reading, error)
