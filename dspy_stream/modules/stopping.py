"""What a failure means beyond itself, noted on it: that it stops the flow, or whose fallback failed."""

from __future__ import annotations

from contextlib import suppress

__all__ = ["failed_before", "fallback_failed", "stop_for", "stops_flow"]


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


def fallback_failed(error: BaseException, before: str) -> None:
    """Note on the failure of a fallback why it had its turn."""
    with suppress(AttributeError, TypeError):
        text = before.encode("utf-8", "backslashreplace").decode()  # a message may quote what is none
        error.fallback_of = text  # type: ignore[attr-defined]


def failed_before(error: BaseException) -> str | None:
    """Why the fallback that raised this had its turn; None where no fallback raised it."""
    return getattr(error, "fallback_of", None)
