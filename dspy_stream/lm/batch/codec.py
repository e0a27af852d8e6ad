"""What the batch API of a provider is: pure functions between requests, batches and bytes."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

import orjson

from dspy_stream.errors import LMError, LMIncompleteError, LMProviderError
from dspy_stream.lm.providers.format import Format
from dspy_stream.lm.providers.refusals import refusal
from dspy_stream.lm.providers.wire import leniently
from dspy_stream.types import Response

__all__ = [
    "CANCELLED",
    "BatchCodec",
    "Blame",
    "JsonBatches",
    "Limits",
    "Outcome",
    "Page",
    "State",
    "checked_id",
    "count",
    "read_line",
    "short_id",
]

CANCELLED: Final = "the batch was cancelled at the provider; run the flow again to send the rest"
_KEY: Final = 20
_MANY: Final = 10**9
_ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


Line = tuple[str, dict[str, Any], LMError | None]


class Limits(NamedTuple):
    """What one batch may hold: requests, and bytes of all of them together."""

    requests: int
    bytes: int


class Blame(NamedTuple):
    """Why a whole batch was refused; ``line`` is the zero-based number of the request at fault."""

    code: str
    message: str
    line: int | None = None


class State(NamedTuple):
    """A batch as its provider describes it.

    ``status`` is the provider's word; ``phase`` is what it means. ``done`` of ``total`` requests are
    through. ``record_id`` is our own name of it, where the provider lets us write one on it.
    ``results`` are the files that hold the answers.
    """

    batch_id: str
    status: str
    phase: Literal["running", "ended", "failed"]
    done: int
    total: int
    created: float
    record_id: str | None = None
    results: tuple[str, ...] = ()
    blames: tuple[Blame, ...] = ()


class Page(NamedTuple):
    """Some of the batches of an account, newest first; ``after`` asks for the next ones."""

    states: tuple[State, ...]
    after: str | None


class Outcome(NamedTuple):
    """What became of one request of a batch: an answer, or why there is none."""

    custom_id: str
    response: Response | None
    error: LMError | None


class BatchCodec(Protocol):
    """The batch API of one provider, bound to one model. Paths are below the provider's address."""

    @property
    def limits(self) -> Limits:
        """What one batch may hold."""
        ...

    @property
    def upload_path(self) -> str | None:
        """Where the file of requests goes first; None where they go with the batch itself."""
        ...

    @property
    def named(self) -> bool:
        """Whether a batch carries our name for it, so that it can be found in a list."""
        ...

    @property
    def path(self) -> str:
        """Where batches are created and listed."""
        ...

    def custom_id(self, record_id: str, key: bytes) -> str:
        """The name of a request within its batch: 64 characters at most, and the same in every process."""
        ...

    def line(self, custom_id: str, body: bytes) -> bytes:
        """One request, as it stands in a batch; ``body`` is what would be posted for it alone."""
        ...

    def upload(self, lines: Sequence[bytes], boundary: str) -> tuple[str, bytes]:
        """Content type and body that upload the file of requests."""
        ...

    def uploaded(self, status: int, headers: Mapping[str, str], body: bytes) -> str:
        """The id of the uploaded file, or an LM error."""
        ...

    def create(self, record_id: str, file_id: str | None, lines: Sequence[bytes]) -> bytes:
        """The body that creates a batch."""
        ...

    def state(self, status: int, headers: Mapping[str, str], body: bytes) -> State:
        """A batch, or an LM error."""
        ...

    def listed(self, status: int, headers: Mapping[str, str], body: bytes) -> Page:
        """A page of batches, or an LM error."""
        ...

    def state_path(self, batch_id: str) -> str:
        """Where a batch is looked at."""
        ...

    def list_query(self, after: str | None) -> str:
        """The query of a page of batches."""
        ...

    def result_path(self, result: str) -> str:
        """Where one of a batch's results is."""
        ...

    def outcome(self, line: bytes) -> Outcome | None:
        """One line of the results; None where it cannot be told whose it is."""
        ...

    def absent(self, state: State) -> LMError:
        """The error of a request that an ended batch has no result for."""
        ...

    def refused(self, status: int, headers: Mapping[str, str], body: bytes) -> LMError:
        """The error that a status other than success stands for."""
        ...

    def blamed(self, blame: Blame) -> LMError:
        """The error that a reason for refusing a batch stands for."""
        ...


class JsonBatches(ABC):
    """What the batch APIs have in common: batches at an address each, told as JSON objects."""

    path: str

    def __init__(self, format: Format, now: Callable[[], float]) -> None:
        self._format = format
        self._now = now

    def state(self, status: int, headers: Mapping[str, str], body: bytes) -> State:
        """A batch object."""
        return self._state(self._value(status, headers, body, "batch"))

    def listed(self, status: int, headers: Mapping[str, str], body: bytes) -> Page:
        """A list of batch objects."""
        return _page(self._value(status, headers, body, "list of batches"), self._state)

    def state_path(self, batch_id: str) -> str:
        """The batch's own address."""
        return f"{self.path}/{batch_id}"

    def outcome(self, line: bytes) -> Outcome | None:
        """An answer, or why there is none."""
        read = self._read(line)
        if read is None:
            return None
        name, value, fault = read
        try:
            answer = self._answer(value) if fault is None else None
        except LMError as error:
            return Outcome(name, None, error)
        return Outcome(name, answer, fault)

    def refused(self, status: int, headers: Mapping[str, str], body: bytes) -> LMError:
        """As for a call."""
        return refusal(status, headers, body, self._now())

    def _value(self, status: int, headers: Mapping[str, str], body: bytes, what: str) -> dict[str, Any]:
        if not 200 <= status < 300:
            raise self.refused(status, headers, body)
        return _parsed(body, what)

    def _read(self, line: bytes) -> Line | None:
        return read_line(line)

    @abstractmethod
    def _state(self, value: Mapping[str, Any]) -> State:
        """What the provider says of a batch."""

    @abstractmethod
    def _answer(self, value: Mapping[str, Any]) -> Response:
        """The answer in a line of results; an LM error where there is none."""


def read_line(line: bytes) -> Line | None:
    """Name, content and fault of a line of results; None where it cannot be told whose it is."""
    fault = None
    try:
        value: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        value = leniently(line)
        fault = LMProviderError(f"the answer is whole, but no valid JSON: {error}")
    name = value.get("custom_id") if isinstance(value, dict) else None
    return (name, value, fault) if isinstance(name, str) else None


def short_id(key: bytes) -> str:
    """A journal key as at most 41 characters: its own hexadecimal form, or a digest of a longer one."""
    if len(key) == _KEY:
        return key.hex()
    return "p" + hashlib.blake2b(key, digest_size=_KEY).hexdigest()


def count(value: object) -> int:
    """A number of requests out of an answer; zero for anything else."""
    return value if type(value) is int and 0 <= value < _MANY else 0


def checked_id(value: object, what: str) -> str:
    """An id out of an answer, fit to be part of a path.

    Raises:
        LMIncompleteError: it is none.
    """
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise LMIncompleteError(f"the batch API sent no usable id of a {what}")
    return value


def _parsed(body: bytes, what: str) -> dict[str, Any]:
    """The JSON object that an answer is.

    Raises:
        LMIncompleteError: it is something else.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise LMIncompleteError(f"the batch API sent no {what} ({len(body)} bytes)")
    return value


def _page(value: Mapping[str, Any], state: Callable[[Mapping[str, Any]], State]) -> Page:
    """A page of a list of batches; ``state`` reads one of them.

    Raises:
        LMIncompleteError: it is no such list.
    """
    data = value.get("data")
    if not isinstance(data, list):
        raise LMIncompleteError("the batch API sent no list of batches")
    states = tuple(state(item) for item in data if isinstance(item, dict))
    more = bool(value.get("has_more")) and bool(states)
    return Page(states, states[-1].batch_id if more else None)
