"""DSPyAdapter: prompts in DSPy's exact words, for a program that was tuned on them."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dspy_stream.adapters import Adapter, JSONAdapter
from dspy_stream.adapters.bound import fields_of
from dspy_stream.adapters.own import OwnPrompt, turns_of
from dspy_stream.adapters.parse import MAX_LENGTH
from dspy_stream.adapters.past import history_of
from dspy_stream.adapters.prepared import Prepared
from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.adapters.read import Reader
from dspy_stream.adapters.shape import mentions_types
from dspy_stream.adapters.turn import Inputs
from dspy_stream.errors import AdapterRenderError, ConfigurationError
from dspy_stream.program import Signature
from dspy_stream.program.fields import extra_of, limits_of
from dspy_stream.program.types.history import History
from dspy_stream.types import Capabilities, Message

__all__ = ["DSPyAdapter"]

_REASON = 300


class DSPyAdapter(Adapter):
    """An adapter of an installed DSPy as one of this package: the same messages, byte for byte.

    ``dspy_adapter`` is one of DSPy's own, or a subclass that replaces parts of the prompt; its
    ChatAdapter where none is given. What it reads is then checked against the signature's types and
    constraints, as everywhere here. Text only: types of content, such as pictures, are refused.

    DSPy does not escape its own markers, so an input that holds ``[[ ## answer ## ]]`` and is
    repeated by the model can pass for an answer; and it takes about 0.1 ms a row, twenty times as long
    as the adapters of this package. ``use_json_adapter_fallback`` of DSPy's has no effect: an answer
    that cannot be read is repaired once, as everywhere here.

    Raises:
        ConfigurationError: DSPy is not installed, or the adapter cannot be driven from outside.
    """

    def __init__(self, dspy_adapter: Any = None) -> None:
        dspy = _dspy()
        adapter = dspy.ChatAdapter() if dspy_adapter is None else dspy_adapter
        if not isinstance(adapter, dspy.Adapter):
            raise ConfigurationError(f"DSPyAdapter takes one of DSPy's adapters, not {adapter!r}")
        # Whoever replaces the whole may put anything anywhere: a constant head could not be told.
        if inspect.unwrap(type(adapter).format) is not inspect.unwrap(dspy.Adapter.format):
            raise ConfigurationError(
                f"{type(adapter).__name__} replaces format() as a whole, so its parts cannot be used; "
                "for two calls there is dspy_stream.TwoStepAdapter"
            )
        super().__init__(use_native_function_calling=False)
        self.dspy_adapter = adapter
        self._json = JSONAdapter() if isinstance(adapter, dspy.JSONAdapter) else None
        self._known: weakref.WeakKeyDictionary[type[Signature], Any] = weakref.WeakKeyDictionary()

    def _prepared(
        self,
        signature: type[Signature],
        demos: Iterable[Any],
        capabilities: Capabilities | None,
        *,
        own: bool,
    ) -> Prepared:
        past = _past_of(signature)
        if past is None:
            return super()._prepared(signature, demos, capabilities, own=own)
        given = list(demos)
        self.format_demos(signature, given)  # for what is wrong with them
        return _WithPast(self, signature, given, capabilities)

    def format_whole(
        self, signature: type[Signature], demos: Sequence[Any], inputs: Inputs
    ) -> list[dict[str, Any]]:
        """DSPy's messages where an input is a history, which it names in the system message.

        Raises:
            AdapterRenderError: an input is missing, or cannot be written.
        """
        past = _past_of(signature)
        given = dict(inputs)
        history = given.pop(past, None) if past is not None else None
        given = _complete(signature, given, but=past)
        if past is not None and history is not None:
            messages = [dict(message) for message in history_of(past, history).messages]
            given[past] = _dspy().History(messages=messages)
        write, theirs = self.dspy_adapter.format, self._theirs(signature)
        try:
            made: list[dict[str, Any]] = write(theirs, [dict(demo.items()) for demo in demos], given)
            for message in made:
                message["content"].encode()
        except Exception as error:  # as for a user turn
            raise AdapterRenderError(
                f"DSPy cannot write the row: {type(error).__name__}: {str(error)[:_REASON]}"
            ) from error
        return made

    def format_system_message(self, signature: type[Signature]) -> str:
        """DSPy's system message; DSPy 2.6 has no method for it and puts these parts together."""
        write = getattr(self.dspy_adapter, "format_system_message", None)
        if write is not None:
            return str(write(self._theirs(signature)))
        return "\n".join(
            (
                self.format_field_description(signature),
                self.format_field_structure(signature),
                self.format_task_description(signature),
            )
        )

    def format_field_description(self, signature: type[Signature]) -> str:
        """DSPy's list of the fields."""
        return str(self.dspy_adapter.format_field_description(self._theirs(signature)))

    def format_field_structure(self, signature: type[Signature]) -> str:
        """DSPy's layout."""
        return str(self.dspy_adapter.format_field_structure(self._theirs(signature)))

    def format_task_description(self, signature: type[Signature]) -> str:
        """DSPy's words around the instructions."""
        return str(self.dspy_adapter.format_task_description(self._theirs(signature)))

    def user_message_output_requirements(self, signature: type[Signature]) -> str:
        """DSPy's reminder, which ends a request to answer again too; empty where it has none."""
        remind = getattr(self.dspy_adapter, "user_message_output_requirements", None)
        return str(remind(self._theirs(signature)) or "") if remind is not None else ""

    def format_user_message_content(
        self,
        signature: type[Signature],
        inputs: Inputs,
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """DSPy's user turn.

        Raises:
            AdapterRenderError: the main request misses an input, or an input cannot be written.
        """
        given = _complete(signature, inputs) if main_request else inputs
        try:
            content = self.dspy_adapter.format_user_message_content(
                self._theirs(signature), given, prefix=prefix, suffix=suffix, main_request=main_request
            )
            content.encode()
        except Exception as error:  # what DSPy raises for a value that it cannot write is not said anywhere
            names = ", ".join(f"`{name}`" for name in signature.input_fields)
            raise AdapterRenderError(
                f"DSPy cannot write the inputs {names}: {type(error).__name__}: {str(error)[:_REASON]}"
            ) from error
        return str(content)

    def format_assistant_message_content(
        self, signature: type[Signature], outputs: Inputs, missing_field_message: str | None = None
    ) -> str:
        """DSPy's form of an answer."""
        return str(
            self.dspy_adapter.format_assistant_message_content(
                self._theirs(signature), dict(outputs), missing_field_message
            )
        )

    def format_demos(self, signature: type[Signature], demos: Sequence[Any]) -> list[dict[str, Any]]:
        """DSPy's demos.

        Raises:
            ConfigurationError: one cannot be written.
        """
        theirs = self._theirs(signature)
        try:
            made: list[dict[str, Any]] = self.dspy_adapter.format_demos(
                theirs, [dict(demo.items()) for demo in demos]
            )
        except Exception as error:  # the same, here for the program's own examples
            raise ConfigurationError(
                f"DSPy cannot write the demos: {type(error).__name__}: {str(error)[:_REASON]}"
            ) from error
        return made

    def request_options(
        self, signature: type[Signature], capabilities: Capabilities | None
    ) -> Sequence[Mapping[str, Any]]:
        """A response format for DSPy's JSON adapters, chosen as for our own."""
        if self._json is None:
            return super().request_options(signature, capabilities)
        return self._json.request_options(signature, capabilities)

    def reader(self, signature: type[Signature]) -> Reader:
        """A function from an answer to outputs: split by DSPy, checked here."""
        fields = fields_of(signature)
        return Reader(
            type(self).__name__,
            signature,
            fields,
            find=_finder(self.dspy_adapter, self._theirs(signature), signature),
            text=False,
            where=lambda name: f"`{name}`",
        )

    def _theirs(self, signature: type[Signature]) -> Any:
        found = self._known.get(signature)
        if found is None:
            found = self._known[signature] = _translated(signature)
        return found


class _WithPast(OwnPrompt):
    """A prompt that DSPy writes whole for each row, because of a history."""

    __slots__ = ()

    def render(self, inputs: Inputs) -> tuple[Message, ...]:
        """All turns."""
        adapter: Any = self._adapter
        return turns_of(adapter.format_whole(self._signature, self._demos, inputs), type(adapter))


def _past_of(signature: type[Signature]) -> str | None:
    return next((name for name, field in signature.input_fields.items() if field.annotation is History), None)


def _dspy() -> Any:
    try:
        import dspy  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise ConfigurationError(
            'DSPyAdapter needs DSPy itself; install it with: pip install "dspy_stream[dspy]"'
        ) from error
    return dspy


def _translated(signature: type[Signature]) -> Any:
    """The same signature as a class of DSPy."""
    dspy = _dspy()
    past = _past_of(signature)
    for name, field in signature.fields.items():
        if mentions_types(field.annotation) and name != past:
            raise ConfigurationError(f"field `{name}`: DSPyAdapter carries text only, no {field.annotation}")
    parts: dict[str, tuple[Any, Any]] = {}
    for field_of, fields in (
        (dspy.InputField, signature.input_fields),
        (dspy.OutputField, signature.output_fields),
    ):
        for name, field in fields.items():
            options = {**limits_of(field), **_described(extra_of(field))}
            if not field.is_required():
                options["default"] = field.get_default(call_default_factory=True)
            parts[name] = (dspy.History if name == past else field.annotation, field_of(**options))
    members = {name: field for name, (_, field) in parts.items()}
    members["__annotations__"] = {name: kind for name, (kind, _) in parts.items()}
    members |= {"__doc__": signature.instructions, "__module__": __name__}
    try:  # as a class, since dspy.Signature(parts) of 2.6 refuses `str | None`
        return type(dspy.Signature)("StringSignature", (dspy.Signature,), members)
    except Exception as error:  # another library's check of the same types
        raise ConfigurationError(f"DSPy cannot use the signature {signature.signature!r}: {error}") from error


def _described(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {key: extra[key] for key in ("desc", "prefix") if key in extra}


def _complete(signature: type[Signature], inputs: Inputs, but: str | None = None) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name in signature.input_fields:
        if name in inputs:
            given[name] = inputs[name]
        elif signature.may_omit(name):
            given[name] = signature.default_of(name)
        elif name != but:
            known = ", ".join(list(inputs)[:20]) or "nothing"
            raise AdapterRenderError(f"input field `{name}` is missing; given: {known}")
    return given


def _finder(adapter: Any, theirs: Any, signature: type[Signature]) -> Callable[[str], Mapping[str, Any]]:
    plain = {field.name: field.codec.plain for field in fields_of(signature).outputs}

    def find(text: str) -> Mapping[str, Any]:
        if len(text) > MAX_LENGTH:
            raise ValueProblem(f"it is longer than {MAX_LENGTH} characters")
        try:
            found = adapter.parse(theirs, text)
        except Exception as error:  # a failed parse, or whatever a hostile text makes DSPy's readers raise
            raise ValueProblem(_said(error, plain)) from error
        return {name: plain[name](value) for name, value in found.items() if name in plain}

    return find


def _said(error: Exception, wanted: Mapping[str, Any]) -> str:
    """DSPy's reason without the answer that it repeats, and which fields were wanted."""
    said = str(error).split("\n\n", 1)[0].split("LM Response:", 1)[0].strip()[:_REASON]
    names = ", ".join(f"`{name}`" for name in wanted)
    return f"{said}; the fields asked for are {names}"
