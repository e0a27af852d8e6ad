"""Adapters: a signature, demos and inputs to messages, and a model's answer to typed outputs.

An adapter is asked once per signature and set of demos, with :meth:`Adapter.prepare`; what comes
back does the work of each row. The methods named as in DSPy say how the parts of a prompt look,
and a subclass may replace any of them: what is prepared is made through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from dspy_stream.adapters.bound import Bound, fields_of
from dspy_stream.adapters.markers import escape, marker
from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.adapters.read import Reader
from dspy_stream.errors import AdapterParseError, AdapterRenderError, ConfigurationError
from dspy_stream.program import Signature
from dspy_stream.types import NO_OPTIONS, Choice, Message

__all__ = ["Adapter", "Prepared"]

Inputs = Mapping[str, Any]

_PARTIAL: Final = "(An example of which only some fields are known.)"
_UNKNOWN: Final = "(unknown in this example)"
_KEPT_START, _KEPT_END = 3000, 1000

_Hook = TypeVar("_Hook", bound=Callable[..., Any])


def _compiled(hook: _Hook) -> _Hook:
    """Mark a hook whose work is also done by compiled code, for as long as nobody replaces it."""
    hook.__dict__["compiled"] = True
    return hook


class Prepared(Protocol):
    """One signature and its demos, compiled once and used for every row; safe to share."""

    head: tuple[Message, ...]
    options: Mapping[str, Any]

    def render(self, inputs: Inputs) -> tuple[Message, ...]:
        """The row's own turns, to follow ``head``.

        Fields that the signature does not have are ignored.

        Raises:
            AdapterRenderError: an input is missing, or cannot be written.
        """
        ...

    def parse(self, text: str) -> dict[str, Any]:
        """The validated outputs of an answer, in the order of the signature.

        Raises:
            AdapterParseError: the answer is not what was asked for.
        """
        ...

    def read(self, choice: Choice) -> dict[str, Any]:
        """The validated outputs of a completion: of its text, and of what came beside it.

        Raises:
            AdapterParseError: the answer is not what was asked for.
        """
        ...

    def repair(self, text: str, error: AdapterParseError) -> tuple[Message, ...]:
        """Two turns to follow the row's own: the answer, shortened, and what is wrong with it."""
        ...


class Prompt:
    """What :meth:`Adapter.prepare` gives."""

    __slots__ = ("_parse", "_reader", "_reminder", "_write", "head", "options")

    def __init__(self, adapter: Adapter, signature: type[Signature], head: tuple[Message, ...]) -> None:
        self.head = head
        self.options: Mapping[str, Any] = adapter.options
        self._write = adapter.writer(signature)
        self._reader = adapter.reader(signature)
        self._reminder = adapter.user_message_output_requirements(signature)
        self._parse: Callable[[str], dict[str, Any]] = self._reader
        if not _is_compiled(adapter, "parse"):
            self._parse = lambda text: adapter.parse(signature, text)

    @property
    def ignored(self) -> int:
        """Fields found in answers that nobody had asked for, so far."""
        return self._reader.ignored

    def render(self, inputs: Inputs) -> tuple[Message, ...]:
        """The row's user turn."""
        return (Message("user", self._write(inputs)),)

    def parse(self, text: str) -> dict[str, Any]:
        """The validated outputs."""
        return self._parse(text)

    def read(self, choice: Choice) -> dict[str, Any]:
        """The validated outputs of a completion."""
        return self._parse(choice.text)

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


class Adapter:
    """Base of the adapters; a subclass says how outputs are laid out and read.

    Attributes:
        options: what each request asks of the provider, such as a response format.
    """

    options: Mapping[str, Any] = NO_OPTIONS

    def prepare(self, signature: type[Signature], demos: Iterable[Any] = ()) -> Prepared:
        """Compile the prompt of a signature with its demos.

        Raises:
            SignatureError: a field's type cannot be used.
            ConfigurationError: a demo cannot be written.
        """
        turns = [
            {"role": "system", "content": self.format_system_message(signature)},
            *self.format_demos(signature, list(demos)),
        ]
        return Prompt(self, signature, tuple(Message(turn["role"], turn["content"]) for turn in turns))

    def format(
        self, signature: type[Signature], demos: Iterable[Any], inputs: Inputs
    ) -> list[dict[str, Any]]:
        """The whole message list in chat-completions form.

        Raises:
            SignatureError, ConfigurationError: as :meth:`prepare`.
            AdapterRenderError: an input is missing, or cannot be written.
        """
        prepared = self.prepare(signature, demos)
        return [message.to_json() for message in (*prepared.head, *prepared.render(inputs))]

    @_compiled
    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]:
        """The validated outputs of an answer.

        Raises:
            AdapterParseError: the answer is not what was asked for.
        """
        return self.reader(signature)(completion)

    # ------------------------------------------------------------------ the parts of a prompt

    def format_system_message(self, signature: type[Signature]) -> str:
        """The system message: fields, layout, task."""
        parts = (self.format_field_description, self.format_field_structure, self.format_task_description)
        return "\n\n".join(part(signature) for part in parts)

    def format_field_description(self, signature: type[Signature]) -> str:
        """Every field with its type, description and constraints."""
        fields = fields_of(signature)
        return f"You are given:\n{_lines(fields.inputs)}\n\nYou answer with:\n{_lines(fields.outputs)}"

    def format_field_structure(self, signature: type[Signature]) -> str:
        """How inputs and outputs are laid out."""
        raise NotImplementedError(f"{type(self).__name__} does not say how fields are laid out")

    def format_task_description(self, signature: type[Signature]) -> str:
        """The signature's instructions."""
        return f"Your task:\n{signature.instructions}"

    def user_message_output_requirements(self, signature: type[Signature]) -> str:
        """A reminder of the answer's form, at the end of the row's own turn."""
        raise NotImplementedError(f"{type(self).__name__} does not say what an answer looks like")

    @_compiled
    def format_user_message_content(
        self,
        signature: type[Signature],
        inputs: Inputs,
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Inputs below their markers; missing ones are left out, but not from the main request.

        Raises:
            AdapterRenderError: an input cannot be written, or the main request misses one.
        """
        fields = fields_of(signature)
        ending = [self.user_message_output_requirements(signature)] if main_request else []
        bounds = fields.inputs if main_request else [f for f in fields.inputs if f.given_in(inputs)]
        body = _writer(signature, bounds, "")(inputs)
        return "\n\n".join(part for part in (prefix, body, *ending, suffix) if part)

    def format_assistant_message_content(
        self, signature: type[Signature], outputs: Inputs, missing_field_message: str | None = None
    ) -> str:
        """An answer as the model should write it; ``parse`` reads it back.

        Missing fields are filled with ``missing_field_message``, or left out without one.

        Raises:
            AdapterRenderError: an output cannot be written.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how answers are written")

    def format_demos(self, signature: type[Signature], demos: Sequence[Any]) -> list[dict[str, Any]]:
        """Demos as pairs of turns: incomplete ones first, each in the order given.

        A demo without a single input or without a single output is left out.

        Raises:
            ConfigurationError: a demo cannot be written.
        """
        fields = fields_of(signature)
        partial: list[dict[str, Any]] = []
        whole: list[dict[str, Any]] = []
        for number, demo in enumerate(demos, 1):
            values = _mapping(demo, number)
            inputs = [field.given_in(values) for field in fields.inputs]
            outputs = [field.given_in(values) for field in fields.outputs]
            if not any(inputs) or not any(outputs):
                continue
            complete = all(inputs) and all(outputs)
            try:
                asked = self.format_user_message_content(signature, values, "" if complete else _PARTIAL)
                answered = self.format_assistant_message_content(signature, values, _UNKNOWN)
            except AdapterRenderError as error:
                raise ConfigurationError(f"demo {number}: {error}") from error
            turns = whole if complete else partial
            turns.append({"role": "user", "content": asked})
            turns.append({"role": "assistant", "content": answered})
        return partial + whole

    # ------------------------------------------------------------------------------- compiling

    def writer(self, signature: type[Signature]) -> Callable[[Inputs], str]:
        """A function from a row's inputs to the text of its turn."""
        if not _is_compiled(self, "format_user_message_content"):
            return lambda inputs: self.format_user_message_content(signature, inputs, main_request=True)
        reminder = self.user_message_output_requirements(signature)
        return _writer(signature, fields_of(signature).inputs, f"\n\n{reminder}" if reminder else "")

    def reader(self, signature: type[Signature]) -> Reader:
        """A function from an answer to outputs."""
        raise NotImplementedError(f"{type(self).__name__} does not say how answers are read")


def _is_compiled(adapter: Adapter, name: str) -> bool:
    return getattr(getattr(type(adapter), name), "compiled", False)


def _lines(fields: Iterable[Bound]) -> str:
    return "\n".join(f"- {field.line}" for field in fields)


def _mapping(demo: Any, number: int) -> Inputs:
    if isinstance(demo, Mapping):
        return demo
    try:
        return dict(demo.items())
    except AttributeError:
        raise ConfigurationError(f"demo {number} is a {type(demo).__name__}, not a dict or Example") from None


def _writer(signature: type[Signature], fields: Iterable[Bound], ending: str) -> Callable[[Inputs], str]:
    plan = [(field.name, f"\n\n{marker(field.name)}\n", field.codec.write) for field in fields]
    plan[:1] = [(name, lead.lstrip(), write) for name, lead, write in plan[:1]]

    def write_all(inputs: Inputs) -> str:
        parts: list[str] = []
        for name, lead, write in plan:
            try:
                value = inputs[name]
            except KeyError:
                value = _default(signature, name, inputs)
            try:
                text = value if type(value) is str else write(value)
            except ValueProblem as problem:
                raise AdapterRenderError(f"input field `{name}`: {problem}") from None
            parts.append(lead)
            parts.append(escape(text) if "[[" in text else text)
        parts.append(ending)
        content = "".join(parts)
        if not content.isascii():
            _refuse_surrogates(content, parts)
        return content

    return write_all


def _default(signature: type[Signature], name: str, inputs: Inputs) -> Any:
    if signature.may_omit(name):
        return signature.default_of(name)
    given = ", ".join(list(inputs)[:20]) or "nothing"
    raise AdapterRenderError(f"input field `{name}` is missing; given: {given}")


def _refuse_surrogates(content: str, parts: list[str]) -> None:
    try:
        content.encode()
    except UnicodeEncodeError:
        broken = next(part for part in parts if part.encode("utf-8", "ignore").decode() != part)
        field = parts[parts.index(broken) - 1].strip()
        raise AdapterRenderError(
            f"the input below {field} holds half of a surrogate pair, which is no text"
        ) from None
