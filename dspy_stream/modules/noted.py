"""What is known of a failure besides itself, noted on its row's ticket; and whose failure it is."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from dspy_stream.engine import Ticket
from dspy_stream.errors import RowError
from dspy_stream.modules.scope import TICKET

__all__ = ["note", "noted", "of_row"]

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
