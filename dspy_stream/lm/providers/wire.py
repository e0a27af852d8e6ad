"""What the wire formats share: a head that is encoded once, and a body that must be an answer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import orjson

from dspy_stream.errors import (
    LMConfigurationError,
    LMError,
    LMIncompleteError,
    LMInvalidRequestError,
    LMProviderError,
)
from dspy_stream.lm.cost import Price
from dspy_stream.lm.providers.refusals import refusal
from dspy_stream.types import Request, Response

__all__ = ["SYSTEM_ROLES", "JsonFormat", "Whole", "check_path", "dumps", "event", "leniently", "text_of"]

SYSTEM_ROLES: Final = frozenset({"system", "developer"})

_MARK: Final = b"\xef\xbb\xbf"  # of UTF-8, which some proxies put before everything
_NAME: Final = re.compile(r"[A-Za-z0-9_.:@/-]{1,200}")
# What Python raises when data does not have the form that a message or an option should have.
_MALFORMED: Final = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)


class Whole(Protocol):
    """The format for whose whole answers a stream is put together."""

    def response(self, value: Any, headers: Mapping[str, str], status: int = 200) -> Response:
        """The response that a decoded body holds."""
        ...

    def refused(self, value: Any, headers: Mapping[str, str], status: int = 200) -> LMError:
        """What the error object in a decoded body stands for."""
        ...


class JsonFormat:
    """The common part of a format bound to one model: checks around encoding and decoding.

    A subclass says how to write (``_body``) and how to read (``_response``); what it derives from
    a request's head it keeps in the head's memo under ``_memo``.
    """

    __slots__ = ("_memo", "_model", "_now", "_price")

    def __init__(
        self, model: str, *, price: Price | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._model = model
        self._price = price
        self._now = now
        self._memo = f"{type(self).__name__} {model}"

    def headers(self, key: str | None) -> dict[str, str]:
        """What every request carries; ``key`` in the Authorization header, where there is one."""
        made = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            made["Authorization"] = f"Bearer {key}"
        return made

    def encode(self, request: Request, *, stream: bool = False) -> bytes:
        """The body. All that belongs to the request's head is encoded once and kept there.

        Raises:
            LMInvalidRequestError: a text that is not valid Unicode, or a message or an option that
                is not of the form it should have.
            LMConfigurationError: an option that this format cannot express.
        """
        try:
            return self._body(request, stream)
        except LMError:
            raise
        except _MALFORMED as error:
            why = f"{type(error).__name__}: {error}" if not isinstance(error, TypeError) else str(error)
            raise LMInvalidRequestError(f"the request cannot be written as JSON: {why[:300]}") from None

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Response:
        """The response.

        Raises:
            LMIncompleteError: a success that is not an answer: cut, empty, or somebody else's page.
            LMProviderError: one with half a character, bytes that are not UTF-8, or NaN in it.
            LMError: what the status or the error object in the body stands for.
        """
        if not 200 <= status < 300:
            raise refusal(status, headers, body, self._now())
        try:
            value: Any = orjson.loads(body.removeprefix(_MARK))
        except orjson.JSONDecodeError as error:
            if isinstance(leniently(body), dict):
                raise LMProviderError(f"the answer is whole, but no valid JSON: {error}") from None
            raise LMIncompleteError(_no_answer(headers, body), status=status) from None
        return self.response(value, headers, status)

    def response(self, value: Any, headers: Mapping[str, str], status: int = 200) -> Response:
        """The response that a decoded body holds; what :meth:`decode` raises."""
        if isinstance(value, dict):
            made = self._response(value, headers)
            if made is not None:
                return made
            if value.get("error"):
                raise self.refused(value, headers, status)
        raise LMIncompleteError(f"the answer holds no {self._wanted}", status=status)

    # What an answer must hold.
    _wanted = "answer"

    def refused(self, value: Any, headers: Mapping[str, str], status: int = 200) -> LMError:
        """What the error object in a decoded body stands for."""
        return refusal(status, headers, orjson.dumps(value), self._now())

    def _body(self, request: Request, stream: bool) -> bytes:
        raise NotImplementedError

    def _response(self, value: dict[str, Any], headers: Mapping[str, str]) -> Response | None:
        """The response; None where the body holds none."""
        raise NotImplementedError


def check_path(model: str) -> None:
    """Make sure that a model's name can be part of an address.

    Raises:
        LMConfigurationError: it would lead somewhere else.
    """
    if _NAME.fullmatch(model) is None or ".." in model:
        raise LMConfigurationError(f"the model name {model[:80]!r} cannot be part of an address", model=model)


def leniently(body: bytes) -> Any:
    r"""What a text is that JSON does not allow but that is whole; None where it is not.

    >>> leniently(b'{"half": "\\ud83d", "log": NaN, "byte": "\xff"}') is not None, leniently(b'{"cut": ')
    (True, None)
    """
    try:
        return json.loads(body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return None


def dumps(value: Any) -> bytes:
    """JSON, in which any mapping is an object."""
    return orjson.dumps(value, default=dict)


def event(data: bytes) -> dict[str, Any]:
    """The JSON object of a server-sent event.

    Raises:
        LMIncompleteError: it is not one.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise LMIncompleteError(f"an event of the stream is not a JSON object ({len(data)} bytes)")
    return value


def text_of(content: Any) -> str:
    """The text of a message's content: itself, or that of its text blocks one after the other."""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        texts = [block.get("text") for block in content if isinstance(block, Mapping)]
        return "".join([text for text in texts if isinstance(text, str)])
    return ""


def _no_answer(headers: Mapping[str, str], body: bytes) -> str:
    if not body.strip():
        return "the answer is empty"
    kind = headers.get("content-type", "")
    if "html" in kind or body.lstrip()[:1] == b"<":
        return "the answer is a web page, perhaps of a proxy or gateway, and not a completion"
    return f"the answer is not complete JSON ({len(body)} bytes)"
