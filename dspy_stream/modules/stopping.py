"""Whose failure it is: the flow's, as ``on_error="stop"`` of a part within a step says, or its row's."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from dspy_stream.errors import RowError

__all__ = ["of_row", "stop_for", "stops_flow"]


def stop_for(error: BaseException) -> None:
    """Note on a failure that the step is to stop the flow for it, and not only to give up the row.

    >>> error = ValueError("no such order")
    >>> stop_for(error)
    >>> stops_flow(error), stops_flow(ValueError())
    (True, False)
    """
    with suppress(AttributeError, TypeError):  # a class that takes no attributes
        error.stops_flow = True  # type: ignore[attr-defined]


def stops_flow(error: BaseException) -> bool:
    """Whether that was noted."""
    return getattr(error, "stops_flow", False) is True


def of_row(error: BaseException) -> BaseException:
    """What a row failed with: where nobody has cancelled it, a CancelledError is an error of its own code.

    >>> of_row(asyncio.CancelledError("lost"))
    RowError("the row's own code raised CancelledError('lost')")
    """
    if not isinstance(error, asyncio.CancelledError):
        return error
    made = RowError(f"the row's own code raised {error!r}")
    made.__cause__ = error
    return made
