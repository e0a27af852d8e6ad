"""What is known of a failure besides itself: on the row's ticket, as one error may be that of many rows."""

from __future__ import annotations

from typing import Any, Literal

from dspy_stream.engine import Ticket
from dspy_stream.modules.scope import TICKET

__all__ = ["note", "noted"]

What = Literal["on_error", "predictor", "fallback_of"]


def note(error: BaseException, what: What, value: Any) -> None:
    """Note for the row at work what is known of one of its failures; what was noted first stays.

    ``on_error`` is what the innermost part that says so has chosen for it, ``predictor`` the one that a
    worker process named, ``fallback_of`` why the fallback that failed had its turn.
    Outside a flow nobody asks for it.

    >>> error, ticket = ValueError("no such order"), Ticket()
    >>> token = TICKET.set(ticket)
    >>> note(error, "on_error", "skip")
    >>> note(error, "on_error", "stop")
    >>> TICKET.reset(token)
    >>> noted(ticket, error, "on_error"), noted(ticket, ValueError(), "on_error")
    ('skip', None)
    """
    ticket = TICKET.get()
    if ticket is not None and noted(ticket, error, what) is None:
        ticket.noted = (*ticket.noted, (error, what, value))


def noted(ticket: Ticket | None, error: BaseException, what: What) -> Any:
    """What was noted of a failure of the ticket's row; None where nothing was."""
    for known, kind, value in ticket.noted if ticket is not None else ():
        if known is error and kind == what:
            return value
    return None
