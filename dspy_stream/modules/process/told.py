"""Questions, answers and failures in the form in which they go through a pipe. Pure.

Classes of exceptions are looked up in closed tables, those of this package and Python's own; a class
of the user's own arrives as a :class:`PartError`, which names it.
"""

from __future__ import annotations

import builtins
import os
import traceback
from collections.abc import Mapping
from typing import Any, Final

from dspy_stream import errors
from dspy_stream.engine import Ticket
from dspy_stream.errors import AdapterParseError, DSPyStreamError, LMError, RowError
from dspy_stream.modules.opening import OpenTimeout
from dspy_stream.modules.supervisor import RestartsExceeded
from dspy_stream.program.marked import Marker, Unmarker
from dspy_stream.types import Head, Message, Request, Response

__all__ = [
    "PartError",
    "head_told",
    "head_untold",
    "raised",
    "raised_again",
    "request_told",
    "request_untold",
    "response_told",
    "response_untold",
    "ticket_told",
    "ticket_untold",
]


class PartError(RowError):
    """A row failed in a worker process with an exception of a class that is not known here; it is named.

    ``original`` is the name of that class and the message; a dead letter has those.
    """

    code = "exception"
    original: tuple[str, str]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> PartError:
        """The error of what a worker tells."""
        made = cls(f"{told['type']}: {told['message']}")
        made.original = (told.get("name", told["type"]), told["message"])
        return made


# --------------------------------------------------------------------------------------- questions


def _message(message: Message) -> list[Any]:
    return [message.role, message.content, message.extra]


def _messages(told: list[Any]) -> tuple[Message, ...]:
    return tuple(
        Message(role, content if isinstance(content, str) else tuple(content), extra)
        for role, content, extra in told
    )


def head_told(head: Head) -> dict[str, Any]:
    """What is the same for many questions."""
    return {
        "model": head.model,
        "messages": [_message(message) for message in head.messages],
        "options": dict(head.options),
        "by": head.by,
    }


def head_untold(told: Mapping[str, Any]) -> Head:
    """The head again."""
    return Head(told["model"], _messages(told["messages"]), told["options"], by=told["by"])


def request_told(request: Request) -> dict[str, Any]:
    """A question without its head."""
    return {
        "tail": [_message(message) for message in request.tail],
        "rollout": request.rollout_id,
        "cache": request.cache,
        "private": request.private.hex() if request.private is not None else None,
    }


def request_untold(head: Head, told: Mapping[str, Any]) -> Request:
    """The question again: under the same key as in the worker."""
    private = bytes.fromhex(told["private"]) if told["private"] is not None else None
    return Request(head, _messages(told["tail"]), told["rollout"], told["cache"], private)


def response_told(response: Response) -> tuple[dict[str, Any], bytes]:
    """An answer as head and body of a frame."""
    return {"cached": response.cached}, response.to_bytes()


def response_untold(head: Mapping[str, Any], body: bytes) -> Response:
    """The answer again."""
    return Response.from_bytes(body)._replace(cached=head["cached"])


# ----------------------------------------------------------------------------------------- tickets


def ticket_told(ticket: Ticket) -> dict[str, Any]:
    """Which row a worker works for, so that its questions are the ones that an inline part would ask."""
    return {
        "of": [ticket.run_id, ticket.step, ticket.row_id, ticket.attempt],
        "path": ticket.path,
        "fresh": ticket.fresh,
        **ticket_learned(ticket),
    }


def ticket_untold(told: Mapping[str, Any]) -> Ticket:
    """The ticket again; nothing is counted on it yet."""
    made = Ticket(*told["of"])
    made.path, made.fresh = told["path"], told["fresh"]
    learn(made, told)
    return made


def ticket_learned(ticket: Ticket) -> dict[str, Any]:
    """What an attempt found out about answers, for the row's next one."""
    instead = [(key.hex(), rollout, other.hex()) for key, (rollout, other) in (ticket.instead or {}).items()]
    return {"spoiled": [key.hex() for key in ticket.spoiled or ()], "instead": instead}


def learn(ticket: Ticket, told: Mapping[str, Any]) -> None:
    """Add what was found out to a ticket."""
    if told["spoiled"]:
        ticket.spoiled = {bytes.fromhex(key) for key in told["spoiled"]} | (ticket.spoiled or set())
    if told["instead"]:
        found = {
            bytes.fromhex(key): (rollout, bytes.fromhex(other)) for key, rollout, other in told["instead"]
        }
        ticket.instead = {**(ticket.instead or {}), **found}


# ---------------------------------------------------------------------------------------- failures

_PLAIN: Final = (str, int, float, bool, type(None))
_LM: Final = ("model", "provider", "status", "provider_code", "request_id", "retry_after")
_PYTHON: Final = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    # These mean something to whoever runs steps, or to the process.
    and not issubclass(kind, (StopIteration, StopAsyncIteration, MemoryError))
}
_OURS: Final[dict[str, type[DSPyStreamError]]] = {
    name: kind
    for name in errors.__all__
    if isinstance(kind := getattr(errors, name), type) and issubclass(kind, DSPyStreamError)
}
_OURS.update({kind.__name__: kind for kind in (RestartsExceeded, OpenTimeout)})


def _said(error: BaseException) -> str:
    try:
        return str(error) or repr(error)
    except Exception as other:  # noqa: BLE001 - the user's own code, or a number too long to be written
        return f"its text cannot be told: {type(other).__name__}"


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - the same
        return f"<{type(value).__name__}>"


def raised(error: BaseException) -> dict[str, Any]:
    """A failure as JSON."""
    kind = type(error)
    told: dict[str, Any] = {"type": kind.__name__, "message": _said(error)}
    if isinstance(error, DSPyStreamError) and error.scope != "row" and kind not in _OURS.values():
        kind = next(base for base in kind.__mro__ if base in _OURS.values())
        told = {"type": kind.__name__, "message": f"{type(error).__name__}: {_said(error)}"}
    if _OURS.get(kind.__name__) is kind:
        told["table"] = "ours"
    elif _PYTHON.get(kind.__name__) is kind:
        told["table"] = "python"
        told["args"] = [Marker().told(v if type(v) in _PLAIN else _shown(v)) for v in error.args]
    else:
        told["type"], told["name"] = f"{kind.__module__}.{kind.__qualname__}", kind.__name__
    if isinstance(error, LMError):
        told["lm"] = {name: getattr(error, name) for name in _LM}
    if isinstance(error, AdapterParseError):
        told["parse"] = [error.adapter_name, error.lm_response, error.reason]
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        last = frames[-1]
        told["where"] = f"{os.path.basename(last.filename)}, line {last.lineno}, in {last.name}"
    return told


def raised_again(told: Mapping[str, Any]) -> Exception:
    """The failure as an exception: of the same class where that is in one of the tables."""
    error = _made(told)
    if "where" in told:
        error.where_in_worker = told["where"]  # type: ignore[attr-defined]
    return error


def _made(told: Mapping[str, Any]) -> Exception:
    name, message = told["type"], told["message"]
    if "parse" in told:
        adapter, answer, reason = told["parse"]
        return AdapterParseError(adapter, None, answer, reason)
    if told.get("table") == "ours":
        kind = _OURS[name]
        return kind(message, **told["lm"]) if issubclass(kind, LMError) else kind(message)
    if told.get("table") == "python":
        try:
            made: Exception = _PYTHON[name](*map(Unmarker().made, told["args"]))
        except TypeError:  # such as one of codecs, which takes the bytes as well
            return PartError.of(told)
        return made
    return PartError.of(told)
