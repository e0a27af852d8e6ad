"""A prompt made ready: what an adapter makes of a signature and its demos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspy_stream.adapters.blocks import Content, flattened
from dspy_stream.adapters.called import called
from dspy_stream.adapters.hook import is_compiled
from dspy_stream.adapters.splitter import Splitter
from dspy_stream.adapters.turn import Inputs
from dspy_stream.errors import AdapterParseError
from dspy_stream.program import Signature
from dspy_stream.types import NO_OPTIONS, Choice, Message

if TYPE_CHECKING:
    from dspy_stream.adapters.base import Adapter

__all__ = ["Prompt"]

_KEPT_START, _KEPT_END = 3000, 1000


class Prompt:
    """What :meth:`Adapter.prepare` gives."""

    __slots__ = (
        *("_other", "_parse", "_reader", "_reminder", "_signature", "_text", "_write"),
        *("fit", "head", "options", "plainer", "splitter"),
    )

    def __init__(
        self,
        adapter: Adapter,
        signature: type[Signature],
        head: tuple[Message, ...],
        options: Sequence[Mapping[str, Any]] = (NO_OPTIONS,),
        *,
        cites: bool = False,
    ) -> None:
        escape = adapter.layout(signature).escape
        # Documents are text for a model that does not cite them by itself.
        self.fit: Callable[[Content], Content] = lambda content: (
            content if cites else flattened(content, escape)
        )
        self.head = tuple(message._replace(content=self.fit(message.content)) for message in head)
        self.options = options[0]
        self.plainer = options[1] if len(options) > 1 else None
        own = not is_compiled(adapter, "parse")
        self._write = self._writer(adapter, signature)
        self._reader = None if own else adapter.reader(signature)
        self._text = adapter.text_reader(signature)
        self._other = adapter.other_reader(signature)
        self._signature = signature
        self._reminder = adapter.reminder(signature)
        self.splitter: Callable[[], Splitter] = lambda: adapter.splitter(signature)
        self._parse: Callable[[str], dict[str, Any]] = self._reader or _own_parse(adapter, signature)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Nothing."""
        return NO_OPTIONS

    @property
    def by_row(self) -> Callable[[Inputs], Mapping[str, Any]] | None:
        """All rows ask the same."""
        return None

    @property
    def ignored(self) -> int:
        """Fields found in answers that nobody had asked for, so far."""
        return self._reader.ignored if self._reader is not None else 0

    def _writer(self, adapter: Adapter, signature: type[Signature]) -> Callable[[Inputs], Content]:
        return adapter.writer(signature)

    def render(self, inputs: Inputs) -> tuple[Message, ...]:
        """The row's user turn."""
        content = self._write(inputs)
        return (Message("user", content if type(content) is str else self.fit(content)),)

    def parse(self, text: str) -> dict[str, Any]:
        """The validated outputs."""
        return self._parse(text)

    def read(self, choice: Choice) -> dict[str, Any]:
        """The validated outputs of a completion."""
        return self._parse(self._text(choice))

    def salvage(self, choice: Choice, asked: Iterable[Message]) -> dict[str, Any] | None:
        """The outputs of a completion in another form, if that is certain."""
        if choice.extra is not None and choice.extra.get("tool_calls"):
            return called(self._signature, choice)
        return self._other(choice, asked)

    def repair(self, text: str, error: AdapterParseError) -> tuple[Message, ...]:
        """The answer as the model's own turn, and a request to answer again."""
        if len(text) > _KEPT_START + _KEPT_END:
            text = f"{text[:_KEPT_START]}\n[...]\n{text[-_KEPT_END:]}"
        request = (
            f"This answer cannot be used: {error.reason}.\n"
            f"Correct that and write the whole answer again. {self._reminder}"
        )
        # Providers refuse turns without text, and halves of surrogate pairs cannot be sent.
        said = text.encode("utf-8", "replace").decode() if text.strip() else "(no answer)"
        return Message("assistant", said), Message("user", request.encode("utf-8", "replace").decode())


def _own_parse(adapter: Adapter, signature: type[Signature]) -> Callable[[str], dict[str, Any]]:
    """A subclass's ``parse``; an output that it does not give has its default, or is None."""

    def parse(text: str) -> dict[str, Any]:
        found: Any = adapter.parse(signature, text)
        if not isinstance(found, Mapping):
            kind = type(adapter).__name__
            raise TypeError(f"{kind}.parse returned {type(found).__name__}, not a dict")
        outputs = {
            name: signature.default_of(name) if name not in found and signature.may_omit(name) else None
            for name in signature.output_fields
        }
        return {**outputs, **found}

    return parse
