"""Who is told of a call's failed attempts and may end it, and whether the call itself is suspected."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from dspy_stream.errors import LMError

__all__ = ["ON_TRIAL", "WITNESS", "Witness"]

Witness = Callable[[LMError], bool]
"""Hears of an attempt that failed, or was not made, and may be repeated; True where it should be."""

WITNESS: Final[ContextVar[Witness | None]] = ContextVar("dspy_stream_lm_witness", default=None)

ON_TRIAL: Final[ContextVar[bool]] = ContextVar("dspy_stream_lm_on_trial", default=False)
"""True while a row is tried of which it is not known whether it is at fault, and its model has just answered
something else: such a call's failure does not speak of the server."""
