"""The values that travel between the layers: requests and responses.

All of them are plain, immutable data that turn into JSON and back; none knows how to do anything.
Those made for every call are named tuples: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, NoReturn, Protocol

import orjson

__all__ = [
    "BatchRecord",
    "Capabilities",
    "Choice",
    "Delta",
    "Head",
    "Layer",
    "Listener",
    "Message",
    "Request",
    "Response",
    "Usage",
    "turns_of",
]

_SORTED: Final = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
_OF_A_TURN: Final = ("role", "content")
NO_OPTIONS: Final[Mapping[str, Any]] = {}


class Message(NamedTuple):
    """One turn of a conversation. ``content`` is text, or a tuple of content blocks.

    Blocks have the chat-completions form (``text``, ``image_url``, ``input_audio``, ``file``);
    each wire format turns them into its own. ``extra`` holds what belongs to a turn beside its
    content: ``tool_calls`` of the assistant, ``tool_call_id`` of a tool's answer, ``name``.
    """

    role: str
    content: str | tuple[Mapping[str, Any], ...]
    extra: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The chat-completions form."""
        content = self.content
        made = {"role": self.role, "content": content if isinstance(content, str) else list(content)}
        return made if self.extra is None else {**made, **self.extra}


def turns_of(messages: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Turns from the chat-completions form; one of calls may have no content, and what is None is left out.

    Raises:
        ValueError: one has no role, or a content that is neither text nor a list of blocks.
    """
    return tuple([_turn(number, message) for number, message in enumerate(messages, 1)])


def _turn(number: int, given: Mapping[str, Any]) -> Message:
    role = given.get("role") if isinstance(given, Mapping) else None
    if not isinstance(role, str):
        raise ValueError(f"message {number} has no role: {given!r:.80}")
    content = given.get("content")
    extra = {name: value for name, value in given.items() if name not in _OF_A_TURN and value is not None}
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        content = tuple(content)
    elif not isinstance(content, str):
        if content is not None or not extra:
            raise ValueError(f"message {number} has no content, a text or a list of blocks: {content!r:.80}")
        content = ""
    return Message(role, content, extra or None)


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """The part of a request that is the same for every row of a step.

    One ``Head`` is built per predictor, parameter set and model, and shared by all its requests.
    ``memo`` belongs to the encoders: what they derive from the constant part (its bytes, the
    state of its hash) is kept there, so that a row pays only for its own text. ``by`` names the user's
    class that asks, where it has a way of its own to the answer.
    """

    model: str
    messages: tuple[Message, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: NO_OPTIONS)
    memo: dict[str, Any] = field(default_factory=dict, repr=False)
    by: str = ""

    def hasher(self) -> Any:
        """A fresh BLAKE2b state that has already taken in this head."""
        state = self.memo.get("hash")
        if state is None:
            state = hashlib.blake2b(digest_size=20)
            asked = [self.model, dict(self.options), *([self.by] if self.by else ())]
            state.update(orjson.dumps(asked, option=_SORTED) + b"\n")
            for message in self.messages:
                state.update(_message_bytes(message))
            self.memo["hash"] = state
        return state.copy()


def _message_bytes(message: Message) -> bytes:
    if message.extra is None:
        return orjson.dumps([message.role, message.content]) + b"\n"
    return orjson.dumps([message.role, message.content, message.extra], option=_SORTED) + b"\n"


class Request:
    """One question to a model: the shared head, the row's own messages, and how to remember it.

    ``rollout_id`` asks for another answer to the same question: it is part of the key and is
    never sent. ``cache=False`` means that the answer must not be shared between rows; it is then
    kept under ``private``, a name for this very call of this very row, or not at all.

    >>> a = Request.of("openai/gpt-4o-mini", "Say hi", temperature=0.0)
    >>> a.key() == Request.of("openai/gpt-4o-mini", "Say hi", temperature=0.0).key()
    True
    >>> a.key() == Request.of("openai/gpt-4o-mini", "Say hi").key()
    False
    """

    __slots__ = ("_key", "cache", "head", "private", "rollout_id", "tail")

    _key: bytes | None
    cache: bool
    head: Head
    private: bytes | None
    rollout_id: int | None
    tail: tuple[Message, ...]

    def __init__(
        self,
        head: Head,
        tail: tuple[Message, ...],
        rollout_id: int | None = None,
        cache: bool = True,
        private: bytes | None = None,
    ) -> None:
        # Straight into the slots, past the refusal below: one is made for every call. Not a
        # dataclass, because the key is worked out once however many layers ask for it.
        _set_head(self, head)
        _set_tail(self, tail)
        _set_rollout(self, rollout_id)
        _set_cache(self, cache)
        _set_private(self, private)
        _set_key(self, None)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"a request is immutable: {name} cannot be set")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Request):
            return NotImplemented
        return (self.key(), self.cache, self.private) == (other.key(), other.cache, other.private)

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        return f"Request({self.model!r}, {len(self.messages)} messages, key={self.key().hex()})"

    def with_rollout(self, rollout_id: int | None) -> Request:
        """The same question, asking for another answer."""
        return Request(self.head, self.tail, rollout_id, self.cache, self.private)

    def kept_as(self, private: bytes | None) -> Request:
        """The same question, its answer kept under a name of its own."""
        return Request(self.head, self.tail, self.rollout_id, self.cache, private)

    @staticmethod
    def of(
        model: str,
        prompt: str | tuple[Message, ...],
        *,
        rollout_id: int | None = None,
        cache: bool = True,
        **options: Any,
    ) -> Request:
        """A request from one prompt or a tuple of messages, for use outside a predictor."""
        tail = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        return Request(Head(model, (), options), tail, rollout_id, cache)

    @property
    def model(self) -> str:
        """The model's full name, with its provider prefix."""
        return self.head.model

    @property
    def options(self) -> Mapping[str, Any]:
        """Sampling and provider options."""
        return self.head.options

    @property
    def messages(self) -> tuple[Message, ...]:
        """Head and tail together."""
        return self.head.messages + self.tail

    def journal_key(self) -> bytes | None:
        """The key under which the answer is kept; None where it must not be kept."""
        return self.key() if self.cache else self.private

    def key(self) -> bytes:
        """20 bytes that name what is asked: model, options, messages and ``rollout_id``.

        The split between head and tail does not matter, nor does the order of option names.
        """
        key = self._key
        if key is None:
            state = self.head.memo.get("hash")
            state = state.copy() if state is not None else self.head.hasher()
            for message in self.tail:
                state.update(_message_bytes(message))
            if self.rollout_id is not None:
                state.update(b"rollout %d" % self.rollout_id)
            key = state.digest()
            _set_key(self, key)
        return key


_set_head, _set_tail, _set_rollout, _set_cache, _set_private, _set_key = (
    Request.__dict__[name].__set__ for name in ("head", "tail", "rollout_id", "cache", "private", "_key")
)


_new: Final[Any] = tuple.__new__


class Usage(NamedTuple):
    """Tokens of one call, or of many added up. ``cost`` is in US dollars, None where unknown.

    ``cached_tokens`` are those of the prompt that the provider had in its cache, ``written_tokens``
    those that it was told to keep there; ``reasoning_tokens`` are part of the completion.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    written_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:  # type: ignore[override]
        cost, more = self.cost, other.cost
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            more if cost is None else cost if more is None else cost + more,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.written_tokens + other.written_tokens,
        )

    def to_json(self) -> list[float | int | None]:
        """The journal's form: the last three only where one of them is not zero."""
        return list(self) if any(self[3:]) else list(self[:3])


class Choice(NamedTuple):
    """One answer. ``finish_reason`` is ``stop``, ``length``, ``tool_calls``, ``content_filter`` or None.

    ``extra`` keeps what a provider adds, under the same names whoever it is: ``tool_calls`` (a list
    in the chat-completions form, ``arguments`` as the text the model wrote), ``reasoning_content``
    (text), ``reasoning_blocks`` (as the provider sent them, to be sent back), ``refusal``,
    ``logprobs``, ``citations`` and ``annotations``.
    """

    text: str
    finish_reason: str | None = None
    extra: Mapping[str, Any] | None = None


class Response(NamedTuple):
    """A finished call: at least one choice, and what it used.

    ``cached`` is True where the answer came from the journal and nothing was paid.
    """

    choices: tuple[Choice, ...]
    usage: Usage = Usage()
    model: str = ""
    request_id: str | None = None
    cached: bool = False

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    def to_bytes(self) -> bytes:
        """The journal's form."""
        usage = self.usage
        data = orjson.dumps(
            {
                "c": [[c.text, c.finish_reason, c.extra] for c in self.choices],
                "u": usage.to_json(),
                "m": self.model,
                "r": self.request_id,
            }
        )
        # A copy, because what orjson returns holds on to its whole buffer, and this is kept.
        return bytes(memoryview(data))

    @staticmethod
    def from_bytes(data: bytes) -> Response:
        """Read the journal's form back, marked as cached.

        Raises:
            ValueError: the bytes are not a response.
        """
        try:
            value = orjson.loads(data)
            found = value["c"]
            if len(found) == 1 and len(value["u"]) == 3:
                # Nearly every answer, and past the constructors: a run may read a million of them.
                text, reason, extra = found[0]
                choice: Choice = _new(Choice, (text, reason, extra))
                usage: Usage = _new(Usage, (*value["u"], 0, 0, 0))
                response: Response = _new(Response, ((choice,), usage, value["m"], value["r"], True))
                return response
            choices = tuple([Choice(*choice) for choice in found])
            return Response(choices, Usage(*value["u"]), value["m"], value["r"], True)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a stored response: {error}") from error


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model is known to do beyond answering in text; what is not known counts as absent.

    ``structured_outputs``: answers held to a strict JSON schema; ``json_mode``: answers that are
    some JSON object. ``tools``: native function calling. ``reasoning``: thinks before it answers
    and can be told how hard. ``images``, ``audio``, ``files``: blocks it can be sent. ``prompt_cache``:
    takes marks that say which part of a prompt to keep. ``logprobs``: says how likely its tokens were.
    ``citations``: takes ``document`` blocks and says which passages of them its answer rests on.
    ``thoughts``: sends along what it thought; ``thinks_if_told``: only where ``reasoning_effort`` is given.
    """

    structured_outputs: bool = False
    json_mode: bool = False
    tools: bool = False
    reasoning: bool = False
    images: bool = False
    audio: bool = False
    files: bool = False
    prompt_cache: bool = False
    logprobs: bool = False
    citations: bool = False
    thoughts: bool = False
    thinks_if_told: bool = False


class BatchRecord(NamedTuple):
    """One batch of requests at a provider, as it is kept until its results are in the journal.

    ``id`` is our own name of it, ``lane`` says whose it is: provider, server and model. While it is
    ``intended`` nobody has heard of it; ``creating`` means that the provider may have it, since
    ``tried``; when ``created`` it has a ``batch_id``. Stamps are in seconds since the epoch.
    """

    id: str
    lane: str
    created: float
    requests: int
    phase: Literal["intended", "creating", "created"] = "intended"
    tried: float = 0.0
    file_id: str | None = None
    batch_id: str | None = None


class Delta(NamedTuple):
    """A piece of a streamed answer, as it came.

    ``kind`` is ``text``, ``reasoning``, ``tool`` (a piece of a tool call's arguments) or
    ``restart``: what came before belongs to an attempt that failed and does not count.
    ``choice`` is the number of the completion, for ``n`` above one.
    """

    kind: Literal["text", "reasoning", "tool", "restart"]
    text: str = ""
    choice: int = 0


Listener = Callable[[Delta], None]
"""Who hears a streamed answer: called on the engine's loop, must not block or raise."""


class Layer(Protocol):
    """One layer of the LM client: a request in, a response out, awaited on the engine's loop.

    Layers are stacked by wrapping. A layer that can answer without waiting also has
    ``peek(request) -> Response | None``, which never blocks.
    """

    async def __call__(self, request: Request) -> Response:
        """Answer, or raise an :class:`~dspy_stream.errors.LMError`."""
        ...

    async def aclose(self) -> None:
        """Release connections; the layer is not used again."""
        ...
