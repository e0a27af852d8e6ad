"""``on_error="stop"`` of a part within a program that runs as one step: noted on the failure itself."""

from __future__ import annotations

from contextlib import suppress

__all__ = ["stop_for", "stops_flow"]


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
