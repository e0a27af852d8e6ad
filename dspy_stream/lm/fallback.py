"""The fallback layer: other models, in order, for a call that the first one cannot answer."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from dspy_stream.errors import ContextWindowExceededError, LMError
from dspy_stream.types import Capabilities, Head, Layer, Request, Response

__all__ = ["Alternative", "Fallback"]

_numbers: Final = itertools.count()
_log = logging.getLogger("dspy_stream")
_WARN: Final = 30.0


class Alternative(NamedTuple):
    """A model to fall back to: its name, its layers, what it can do, and its own options.

    Without ``options`` it is asked with those of the first model.
    """

    model: str
    layer: Layer
    options: Mapping[str, Any] | None = None
    capabilities: Capabilities = Capabilities()


class Fallback:
    """Ask the first model; where it is down for longer than its retries last, ask the next.

    The same goes for a prompt that is too long for a model. A wrong key, an unknown model or a bad
    request is raised at once: another model would hide it. The answer stands under the first model's
    key in the journal, and ``Response.model`` says who gave it. The log says so at most twice a minute.

    Options: an alternative with options of its own is asked with those in place of ``options``,
    the first model's; what the adapter and the predictor ask for in the request goes before both.

    Raises (when called):
        LMError: that of the first model that may answer later; otherwise the last one's.
    """

    __slots__ = ("_alternatives", "_first", "_options", "_warned")

    def __init__(self, first: Layer, options: Mapping[str, Any], alternatives: Sequence[Alternative]) -> None:
        self._first = first
        self._options = options
        self._warned = -_WARN
        # Heads are shared between models; what is kept in their memos must not be.
        self._alternatives = [(one, f"fallback {next(_numbers)}") for one in alternatives]

    async def __call__(self, request: Request) -> Response:
        """The first answer."""
        try:
            return await self._first(request)
        except LMError as error:
            if not _falls(error):
                raise
            first = error
        return await self._next(request, first)

    async def _next(self, request: Request, first: LMError) -> Response:
        failures = [first]
        for alternative, memo in self._alternatives:
            try:
                response = await alternative.layer(_for(request, alternative, self._options, memo))
            except LMError as error:  # noqa: PERF203
                if error.scope != "row":
                    raise
                failures.append(error)
                if not _falls(error):
                    break
            else:
                self._tell(request.model, alternative.model, first)
                return response
        raise _summed_up(request, failures)

    def _tell(self, wanted: str, instead: str, error: LMError) -> None:
        now = time.monotonic()
        if now - self._warned >= _WARN:
            self._warned = now
            _log.warning("%s did not answer (%s); %s is asked instead", wanted, error.message, instead)

    async def aclose(self) -> None:
        """Close every model's layers."""
        await self._first.aclose()
        for alternative, _ in self._alternatives:
            await alternative.layer.aclose()


def _falls(error: LMError) -> bool:
    return error.retryable or isinstance(error, ContextWindowExceededError)


def _can_hold_to(response_format: Any, able: Capabilities) -> bool:
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    return able.structured_outputs if kind == "json_schema" else able.json_mode


def _for(request: Request, to: Alternative, first: Mapping[str, Any], memo: str) -> Request:
    """The same question for another model; its head is made once for all rows that share one."""
    head: Head | None = request.head.memo.get(memo)
    if head is None:
        options = request.head.options
        if to.options is not None:
            asked = {
                name: value for name, value in options.items() if name not in first or first[name] != value
            }
            options = {**to.options, **asked}
        if "response_format" in options and not _can_hold_to(options["response_format"], to.capabilities):
            # The prompt says what the answer looks like anyway; a model that refuses it is no help.
            options = {name: value for name, value in options.items() if name != "response_format"}
        head = request.head.memo[memo] = Head(to.model, request.head.messages, options)
    # Its name for the provider must be its own as well: the same one would stand for the failed call.
    private = None if request.private is None else request.private + b"/" + to.model.encode()
    return Request(head, request.tail, request.rollout_id, request.cache, private)


def _summed_up(request: Request, failures: list[LMError]) -> LMError:
    """The error to raise: the row waits, where one of the models may answer it later."""
    error = next((failure for failure in failures if failure.retryable), failures[-1])
    others = [failure.message for failure in failures if failure is not error]
    if others:
        error.message = f"{error.message}; nor did another model answer: {'; '.join(others)}"
        error.args = (error.message,)
    waits = [one.retry_after for one in failures if one.retryable and one.retry_after is not None]
    error.retry_after = min(waits, default=None)
    error.attempts = sum(failure.attempts for failure in failures)
    error.model = request.model  # the one that was asked for, whoever failed
    return error
