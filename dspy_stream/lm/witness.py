"""Who is told of a call's failed attempts while the call goes on, and may end it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from dspy_stream.errors import LMError

__all__ = ["WITNESS", "Witness"]

Witness = Callable[[LMError], bool]
"""Hears of an attempt that failed, or was not made, and may be repeated; True where it should be."""

WITNESS: Final[ContextVar[Witness | None]] = ContextVar("dspy_stream_lm_witness", default=None)
