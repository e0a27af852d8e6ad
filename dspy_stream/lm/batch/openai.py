"""OpenAI's Batch API: a file of requests, a batch made of it, and files of answers and errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from dspy_stream.errors import (
    LMBatchHalted,
    LMError,
    LMIncompleteError,
    LMInvalidRequestError,
    LMServerError,
    LMTimeoutError,
)
from dspy_stream.lm.batch.codec import (
    CANCELLED,
    Blame,
    JsonBatches,
    Limits,
    State,
    checked_id,
    count,
    short_id,
)
from dspy_stream.lm.providers.format import Format
from dspy_stream.lm.providers.refusals import refusal
from dspy_stream.types import Response

__all__ = ["OpenAIBatches"]

_MARK: Final = "dspy_stream_batch"
_ENDED: Final = ("completed", "expired", "cancelled")
_EXPIRED: Final = "the batch expired before the request was asked"


class OpenAIBatches(JsonBatches):
    """The batch API behind ``/files`` and ``/batches``, for one model and one wire format.

    >>> from dspy_stream.lm.providers.openai import ChatCompletions
    >>> OpenAIBatches(ChatCompletions("gpt-4o-mini"), "/v1", now=lambda: 0.0).line("a1", b"{}")
    b'{"custom_id":"a1","method":"POST","url":"/v1/chat/completions","body":{}}'
    """

    limits: Final = Limits(50_000, 200_000_000)
    upload_path: Final = "/files"
    path = "/batches"
    named: Final = True

    def __init__(self, format: Format, root: str, *, now: Callable[[], float]) -> None:
        super().__init__(format, now)
        self._endpoint = root + format.path
        self._head = b'","method":"POST","url":' + orjson.dumps(self._endpoint) + b',"body":'

    def custom_id(self, record_id: str, key: bytes) -> str:  # noqa: ARG002  the batch itself carries it
        """The journal key."""
        return short_id(key)

    def line(self, custom_id: str, body: bytes) -> bytes:
        """One line of the file."""
        return b'{"custom_id":"' + custom_id.encode() + self._head + body + b"}"

    def upload(self, lines: Sequence[bytes], boundary: str) -> tuple[str, bytes]:
        """A form with the purpose and the file."""
        mark = f"--{boundary}\r\nContent-Disposition: form-data; name="
        head = (
            f'{mark}"purpose"\r\n\r\nbatch\r\n{mark}"file"; filename="batch.jsonl"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        )
        tail = f"\r\n--{boundary}--\r\n".encode()
        return f"multipart/form-data; boundary={boundary}", b"".join(
            [head.encode(), b"\n".join(lines), b"\n", tail]
        )

    def uploaded(self, status: int, headers: Mapping[str, str], body: bytes) -> str:
        """The file's id."""
        return checked_id(self._value(status, headers, body, "file").get("id"), "file")

    def create(self, record_id: str, file_id: str | None, lines: Sequence[bytes]) -> bytes:  # noqa: ARG002
        """A batch of the uploaded file, marked with our name for it."""
        return orjson.dumps(
            {
                "input_file_id": file_id,
                "endpoint": self._endpoint,
                "completion_window": "24h",
                "metadata": {_MARK: record_id},
            }
        )

    def list_query(self, after: str | None) -> str:
        """A hundred batches, which is the most."""
        return "limit=100" if after is None else f"limit=100&after={after}"

    def result_path(self, result: str) -> str:
        """The content of a file."""
        return f"/files/{result}/content"

    def _answer(self, value: Mapping[str, Any]) -> Response:
        answer = value.get("response")
        status = answer.get("status_code") if isinstance(answer, dict) else None
        if isinstance(answer, dict) and type(status) is int:
            request_id = answer.get("request_id")
            headers = {"x-request-id": request_id} if isinstance(request_id, str) else {}
            return self._format.decode(status, headers, orjson.dumps(answer.get("body")))
        error = value.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        if code == "batch_expired":
            raise LMTimeoutError(_EXPIRED)
        if code == "batch_cancelled":
            raise LMBatchHalted(CANCELLED)
        if isinstance(error, dict):
            raise refusal(500, {}, orjson.dumps({"error": error}), self._now())
        raise LMIncompleteError("the line holds neither a response nor an error")

    def absent(self, state: State) -> LMError:
        """Expired batches leave lines out, and so do cancelled ones."""
        if state.status == "cancelled":
            return LMBatchHalted(CANCELLED)
        if state.status == "expired":
            return LMTimeoutError(_EXPIRED)
        return LMIncompleteError(f"batch {state.batch_id} has no result for the request")

    def blamed(self, blame: Blame) -> LMError:
        """By code, as for a call."""
        body = orjson.dumps({"error": {"code": blame.code or None, "message": blame.message}})
        error = refusal(400, {}, body, self._now())
        if type(error) is LMInvalidRequestError and blame.line is None:
            return LMServerError(f"the batch was refused: {error}", provider_code=error.provider_code)
        return error

    def _state(self, value: Mapping[str, Any]) -> State:
        status = str(value.get("status"))[:40]
        counts = value.get("request_counts")
        counts = counts if isinstance(counts, dict) else {}
        meta = value.get("metadata")
        mark = meta.get(_MARK) if isinstance(meta, dict) else None
        files = [value[name] for name in ("output_file_id", "error_file_id") if value.get(name)]
        created = value.get("created_at")
        return State(
            batch_id=checked_id(value.get("id"), "batch"),
            status=status,
            phase="failed" if status == "failed" else "ended" if status in _ENDED else "running",
            done=count(counts.get("completed")) + count(counts.get("failed")),
            total=count(counts.get("total")),
            created=float(created) if isinstance(created, (int, float)) else math.inf,
            record_id=mark if isinstance(mark, str) else None,
            results=tuple(checked_id(file, "file") for file in files),
            blames=_blames(value.get("errors")),
        )


def _blames(errors: Any) -> tuple[Blame, ...]:
    data = errors.get("data") if isinstance(errors, dict) else None
    found = []
    for item in data if isinstance(data, list) else ():
        if isinstance(item, dict):
            line = item.get("line")
            number = line - 1 if type(line) is int and line > 0 else None  # theirs begin at one
            found.append(
                Blame(str(item.get("code") or "")[:64], str(item.get("message") or "")[:1000], number)
            )
    return tuple(found)
