"""A value that may have to be awaited, in synchronous code."""

from __future__ import annotations

import inspect
from typing import Any

from dspy_stream.runtime import Steps, perform

__all__ = ["settled"]


def settled(value: Any) -> Any:
    """The value; of an awaitable what it gives, awaited where the row is driven from.

    Inside a ``forward`` other rows go on meanwhile; elsewhere it blocks.

    >>> async def later():
    ...     return 2
    >>> settled(1), settled(later())
    (1, 2)
    """
    return perform(_waited(value)) if inspect.isawaitable(value) else value


def _waited(work: Any) -> Steps[Any]:
    value = yield work
    return value
