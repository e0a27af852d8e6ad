"""Anthropic's Message Batches: requests go with the batch itself, answers come as one file.

A batch there carries no name of ours. So every request's custom id begins with it, and after a
crash between creating a batch and noting its id, ours is found by its results; see ``candidates``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from dspy_stream.errors import LMBatchHalted, LMError, LMIncompleteError, LMTimeoutError
from dspy_stream.lm.batch.codec import (
    CANCELLED,
    Blame,
    JsonBatches,
    Limits,
    Line,
    State,
    checked_id,
    count,
    read_line,
    short_id,
)
from dspy_stream.lm.providers.format import Format
from dspy_stream.lm.providers.refusals import refusal
from dspy_stream.types import Response

__all__ = ["AnthropicBatches"]

_STATUS: Final[Mapping[str, int]] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_THROUGH: Final = ("succeeded", "errored", "canceled", "expired")


class AnthropicBatches(JsonBatches):
    """The batch API behind ``/messages/batches``, for one model.

    >>> from dspy_stream.lm.providers.openai import ChatCompletions
    >>> AnthropicBatches(ChatCompletions("any"), now=lambda: 0.0).custom_id("018f-ab", bytes(20))
    '018f-ab-0000000000000000000000000000000000000000'
    """

    limits: Final = Limits(100_000, 256_000_000)
    upload_path: Final = None
    named: Final = False

    def __init__(self, format: Format, *, now: Callable[[], float]) -> None:
        super().__init__(format, now)
        self.path = f"{format.path}/batches"

    def custom_id(self, record_id: str, key: bytes) -> str:
        """Our name of the batch, then the journal key."""
        return f"{record_id}-{short_id(key)}"

    def line(self, custom_id: str, body: bytes) -> bytes:
        """One element of ``requests``."""
        return b'{"custom_id":"' + custom_id.encode() + b'","params":' + body + b"}"

    def upload(self, lines: Sequence[bytes], boundary: str) -> tuple[str, bytes]:
        """There are no files."""
        raise NotImplementedError

    def uploaded(self, status: int, headers: Mapping[str, str], body: bytes) -> str:
        """There are no files."""
        raise NotImplementedError

    def create(self, record_id: str, file_id: str | None, lines: Sequence[bytes]) -> bytes:  # noqa: ARG002
        """All requests in one array."""
        return b'{"requests":[' + b",".join(lines) + b"]}"

    def list_query(self, after: str | None) -> str:
        """A hundred batches; their most is a thousand."""
        return "limit=100" if after is None else f"limit=100&after_id={after}"

    def result_path(self, result: str) -> str:
        """The results of a batch; the address that the provider names is not followed."""
        return f"{self.path}/{result}/results"

    def _read(self, line: bytes) -> Line | None:
        read = read_line(line)
        return read if read is not None and isinstance(read[1].get("result"), dict) else None

    def _answer(self, value: Mapping[str, Any]) -> Response:
        result = value["result"]
        kind = result.get("type")
        if kind == "succeeded":
            return self._format.decode(200, {}, orjson.dumps(result.get("message")))
        if kind == "expired":
            raise LMTimeoutError("the batch expired before the request was asked")
        if kind == "canceled":
            raise LMBatchHalted(CANCELLED)
        error = result.get("error")
        inner = error.get("error") if isinstance(error, dict) else None
        body = orjson.dumps({"error": inner if isinstance(inner, dict) else error})
        described = inner if isinstance(inner, dict) else error if isinstance(error, dict) else {}
        request_id = error.get("request_id") if isinstance(error, dict) else None
        headers = {"x-request-id": request_id} if isinstance(request_id, str) else {}
        raise refusal(_STATUS.get(str(described.get("type")), 500), headers, body, self._now())

    def absent(self, state: State) -> LMError:
        """Every request has a result; a file without it was cut."""
        return LMIncompleteError(f"batch {state.batch_id} has no result for the request")

    def blamed(self, blame: Blame) -> LMError:
        """Batches are not refused after they were created."""
        raise NotImplementedError

    def _state(self, value: Mapping[str, Any]) -> State:
        status = str(value.get("processing_status"))[:40]
        given = value.get("request_counts")
        counts = given if isinstance(given, dict) else {}
        done = sum(count(counts.get(name)) for name in _THROUGH)
        batch_id = checked_id(value.get("id"), "batch")
        return State(
            batch_id=batch_id,
            status=status,
            phase="ended" if status == "ended" else "running",
            done=done,
            total=done + count(counts.get("processing")),
            created=_stamp(value.get("created_at")),
            results=(batch_id,),
        )


def _stamp(text: Any) -> float:
    try:
        return datetime.fromisoformat(str(text)[:40].replace("Z", "+00:00")).timestamp()
    except ValueError:
        return math.inf  # unknown: neither too old to look further nor made when ours was
