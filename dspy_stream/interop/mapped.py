"""Errors across the border: ours as DSPy's own where its code looks for them, and back again."""

from __future__ import annotations

import sys
from typing import Any, Final, cast

from dspy_stream.errors import AdapterParseError, ContextWindowExceededError, DSPyStreamError, LMError
from dspy_stream.interop.passage import Passage

__all__ = ["from_model", "ours", "theirs"]

_DEEPEST: Final = 20
_REASON: Final = 300


def theirs(error: LMError) -> Exception:
    """The error as DSPy's class of that name, with ours as its cause; ours where DSPy has none.

    Programs look for them: ReAct shortens its past when the prompt is too long.
    """
    known = sys.modules.get("dspy.utils.exceptions")
    for kind in type(error).__mro__:
        found: Any = getattr(known, kind.__name__, None)
        if isinstance(found, type) and issubclass(found, Exception) and issubclass(kind, LMError):
            try:
                made: Any = found(message=error.message, model=error.model)  # type: ignore[call-arg]
            except TypeError:  # another version's idea of that error
                break
            for name in ("provider", "status", "provider_code", "request_id", "retry_after"):
                setattr(made, name, getattr(error, name))
            return cast(Exception, made)
    if isinstance(error, ContextWindowExceededError):
        return _litellms(error) or error
    return error


def _litellms(error: LMError) -> Exception | None:
    """LiteLLM's error, which DSPy 2.6 looks for."""
    kind: Any = getattr(sys.modules.get("litellm"), "ContextWindowExceededError", None)
    if kind is None:
        return None
    try:
        made = kind(message=error.message, model=error.model or "", llm_provider=error.provider or "")
    except Exception:  # noqa: BLE001 - whatever another version wants of it; ours goes on as it is
        return None
    return made if isinstance(made, Exception) else None


def ours(error: Exception, passage: Passage) -> Exception:
    """The error that a program of DSPy ended with, as one of this package where it stands for one."""
    if passage.fatal is not None:
        return passage.fatal
    found = error
    for _ in range(_DEEPEST):
        if isinstance(found, DSPyStreamError):
            return found
        if _is_parse_error(found):
            return _parse_error(found)
        if passage.unread is not None and found is passage.unread[0]:
            return _unread(found, passage.unread[1])
        before = found.__cause__ or found.__context__
        # What merely happened while another error was handled counts for a model that does not answer.
        if found.__cause__ is None and not (isinstance(before, Exception) and _outage(before)):
            break
        if not isinstance(before, Exception):
            break
        found = before
    return error


def from_model(error: BaseException | None) -> bool:
    """True for an error that stands for one of this package."""
    for _ in range(_DEEPEST):
        if error is None or isinstance(error, DSPyStreamError):
            break
        error = error.__cause__
    return isinstance(error, DSPyStreamError)


def _outage(error: Exception) -> bool:
    cause = error if isinstance(error, LMError) else error.__cause__
    return isinstance(cause, LMError) and cause.retryable


def _is_parse_error(error: Exception) -> bool:
    return any(
        kind.__name__ == "AdapterParseError" and kind.__module__.partition(".")[0] == "dspy"
        for kind in type(error).__mro__
    )


def _parse_error(error: Any) -> AdapterParseError:
    # DSPy's message repeats the whole answer, which a dead letter holds anyway.
    said = str(error).split("LM Response:", 1)[0].strip()
    reason = " ".join(said.split())[:_REASON]
    found = error.parsed_result if isinstance(error.parsed_result, dict) else None
    wanted = ", ".join(f"`{name}`" for name in getattr(error.signature, "output_fields", ()))
    if wanted:
        reason = f"{reason} The fields asked for are {wanted}."
    made = AdapterParseError(str(error.adapter_name), error.signature, str(error.lm_response), reason, found)
    made.__cause__ = error
    return made


def _unread(error: Exception, text: str) -> AdapterParseError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_REASON]}"
    made = AdapterParseError("DSPy's adapter", None, text, reason)
    made.__cause__ = error
    return made
