"""Fields that travel beside the text of a turn: the past, tools and their calls, thoughts, citations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

import orjson
from pydantic import TypeAdapter, ValidationError

from dspy_stream.adapters.called import calls_of
from dspy_stream.adapters.hook import is_compiled
from dspy_stream.adapters.own import turns_of
from dspy_stream.adapters.parse import NotJSON
from dspy_stream.adapters.past import THINKING, history_turns
from dspy_stream.adapters.problem import why_invalid
from dspy_stream.adapters.prompt import Prompt
from dspy_stream.adapters.shape import bare, mentions_types, without_none
from dspy_stream.adapters.splitter import Splitter
from dspy_stream.adapters.turn import Inputs
from dspy_stream.errors import AdapterParseError, AdapterRenderError
from dspy_stream.program import Signature
from dspy_stream.program.types.document import Citations
from dspy_stream.program.types.history import History
from dspy_stream.program.types.reasoning import Reasoning
from dspy_stream.program.types.tool import Tool
from dspy_stream.program.types.tool_calls import ToolCalls
from dspy_stream.types import Capabilities, Choice, Message

if TYPE_CHECKING:
    from dspy_stream.adapters.base import Adapter

__all__ = ["Apart", "Beside", "fields_apart", "past_of"]

_NOTHING: Final = Capabilities()
_TOOLS: Final = TypeAdapter(list[Tool])
_KEPT: Final = 64  # sets of tools whose options are kept


class Apart(NamedTuple):
    """The fields that leave the text, by name, and the signature of what is left.

    ``shown`` is that of what a demo shows: its past has no turns of its own.
    """

    signature: type[Signature]
    shown: type[Signature]
    history: str | None = None
    tools: str | None = None
    calls: str | None = None
    reasoning: str | None = None
    citations: str | None = None


def fields_apart(
    signature: type[Signature], adapter: Adapter, capabilities: Capabilities | None, *, history: bool = True
) -> Apart | None:
    """Which fields do not go through the text, given what the model is known to do; None for no field.

    Without ``history`` the past is left to whoever writes the messages.
    """
    can = capabilities if capabilities is not None else _NOTHING
    inputs = {name: _core(field.annotation) for name, field in signature.input_fields.items()}
    outputs = {name: _core(field.annotation) for name, field in signature.output_fields.items()}
    found: dict[str, str] = {}

    def take(what: str, name: str | None) -> None:
        if name is not None:
            found[what] = name

    take("history", past_of(signature) if history else None)
    tools, calls = _first(inputs, _is_tools), _first(outputs, lambda kind: kind is ToolCalls)
    if adapter.use_native_function_calling and can.tools and tools and calls:
        take("tools", tools)
        take("calls", calls)
    natively = adapter.native_response_types
    if can.reasoning and can.thoughts and Reasoning in natively:
        take("reasoning", _first(outputs, lambda kind: kind is Reasoning))
    if can.citations and Citations in natively and any(map(mentions_types, inputs.values())):
        take("citations", _first(outputs, lambda kind: kind is Citations))
    left = set(outputs) - set(found.values())
    if not left and "calls" not in found:  # something has to be asked for
        found.pop("reasoning", None)
        found.pop("citations", None)
    for what, name in found.items():
        if what != "history":
            signature = signature.delete(name)
    left_over = signature.delete(found["history"]) if "history" in found else signature
    return Apart(left_over, signature, **found) if found else None


def past_of(signature: type[Signature]) -> str | None:
    """The input field that holds the conversation so far, if there is one."""
    kinds = {name: _core(field.annotation) for name, field in signature.input_fields.items()}
    return _first(kinds, lambda kind: kind is History)


def _core(annotation: Any) -> Any:
    return bare(without_none(bare(annotation))[0])


def _is_tools(kind: Any) -> bool:
    return kind is Tool or [_core(member) for member in get_args(kind)] == [Tool]


def _first(kinds: Mapping[str, Any], wanted: Callable[[Any], bool]) -> str | None:
    return next((name for name, kind in kinds.items() if wanted(kind)), None)


class Beside:
    """A prepared prompt some of whose fields travel beside its text; otherwise as the one within."""

    __slots__ = ("_adapter", "_apart", "_inner", "_order", "_signature", "_tools", "defaults")

    def __init__(
        self,
        adapter: Adapter,
        signature: type[Signature],
        apart: Apart,
        inner: Prompt,
        *,
        effort: bool = False,
    ) -> None:
        self._adapter = adapter
        self._apart = apart
        self._inner = inner
        self._signature = signature
        self._order = tuple(signature.output_fields)
        self._tools: dict[tuple[Tool, ...], Mapping[str, Any]] = {}
        self.defaults: Mapping[str, Any] = {"reasoning_effort": "low"} if effort else {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)  # what is the same: head, options, ...

    def render(self, inputs: Inputs) -> tuple[Message, ...]:
        """The turns before the row's own, and that."""
        if self._apart.history is None:
            return self._inner.render(inputs)
        past = self._past(self._apart.history, inputs)
        if past and self._goes_on(inputs):
            return (*past, *self._continued(inputs))
        return (*past, *self._inner.render(inputs))

    def _goes_on(self, inputs: Inputs) -> bool:
        """Whether the row leaves out what may be left out: the past has said it."""
        missing = [name for name in self._apart.signature.input_fields if name not in inputs]
        return bool(missing) and all(map(self._signature.may_omit, missing))

    def _continued(self, inputs: Inputs) -> tuple[Message, ...]:
        """A turn of what is given, without defaults; none where nothing is, nor is asked for in the text."""
        signature = self._apart.signature
        reminder = self._adapter.reminder(signature)
        content = self._adapter.format_user_message_content(signature, inputs, suffix=reminder)
        return (Message("user", self._inner.fit(content)),) if content else ()

    def _past(self, name: str, inputs: Inputs) -> Sequence[Message]:
        adapter = self._adapter
        if not is_compiled(adapter, "format_conversation_history"):
            messages = adapter.format_conversation_history(self._apart.signature, name, dict(inputs))
            return turns_of(messages, type(adapter))
        return history_turns(
            adapter,
            self._apart.signature,
            name,
            inputs.get(name),
            calls=self._calls_name,
            fit=self._inner.fit,
        )

    @property
    def _calls_name(self) -> str | None:
        return self._apart.calls

    @property
    def by_row(self) -> Callable[[Inputs], Mapping[str, Any]] | None:
        """The tools of a row; None where they are no field of their own."""
        return self._tools_of if self._apart.tools is not None else None

    def _tools_of(self, inputs: Inputs) -> Mapping[str, Any]:
        name = str(self._apart.tools)
        given = inputs.get(name)
        if given is None:
            given = self._signature.default_of(name) if self._signature.may_omit(name) else None
        try:
            tools = tuple(_TOOLS.validate_python([given] if isinstance(given, Tool) else list(given or ())))
        except (ValidationError, TypeError) as error:
            why = why_invalid(error) if isinstance(error, ValidationError) else str(error)
            raise AdapterRenderError(f"input field `{name}` holds no tools: {why}") from None
        found = self._tools.get(tools)
        if found is None:
            if len(self._tools) >= _KEPT:
                self._tools.clear()
            found = self._tools[tools] = self._described(tools)
        return found

    def _described(self, tools: tuple[Tool, ...]) -> dict[str, Any]:
        if not tools:
            return {}
        made: dict[str, Any] = {"tools": [tool.format_as_litellm_function_call() for tool in tools]}
        if self._adapter.parallel_tool_calls is not None:
            made["parallel_tool_calls"] = self._adapter.parallel_tool_calls
        return made

    def splitter(self) -> Splitter:
        """What takes one answer apart while it comes; thoughts come beside its text."""
        made = self._inner.splitter()
        if self._apart.reasoning is not None:
            made.expect_thoughts(self._apart.reasoning)
        return made

    def parse(self, text: str) -> dict[str, Any]:
        """The outputs of a text that nothing came beside."""
        return self.read(Choice(text))

    def read(self, choice: Choice) -> dict[str, Any]:
        """The outputs of a completion: of its text, and of what came beside it."""
        beside = self._beside(choice)
        if not beside:  # nothing but the past, or tools; what the text gives is the adapter's affair
            return self._of_text(choice, beside)
        return self._ordered({**self._of_text(choice, beside), **beside})

    def salvage(self, choice: Choice, asked: Iterable[Message]) -> dict[str, Any] | None:
        """The outputs of a completion in another form, if that is certain."""
        if not self._apart.signature.output_fields:
            return None
        found = self._inner.salvage(choice, asked)
        return None if found is None else self._ordered({**found, **self._beside(choice)})

    def _ordered(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in self._order}

    def _of_text(self, choice: Choice, beside: Mapping[str, Any]) -> dict[str, Any]:
        names = self._apart.signature.output_fields
        called = bool(self._apart.calls and beside[self._apart.calls])
        if names and not (called and not choice.text.strip()):
            try:
                return self._inner.read(choice)
            except AdapterParseError:
                # A model that calls tools says why, if anything, in its own words.
                if not called:
                    raise
        signature = self._signature
        return {name: signature.default_of(name) if signature.may_omit(name) else None for name in names}

    def _beside(self, choice: Choice) -> dict[str, Any]:
        extra = choice.extra or {}
        apart, found = self._apart, {}
        if apart.calls is not None:
            calls = self._made(calls_of, apart.calls, extra.get("tool_calls"), choice)
            thinking = {name: extra[name] for name in THINKING if extra.get(name)}
            found[apart.calls] = calls.with_thinking(thinking) if calls and thinking else calls
        if apart.citations is not None:
            given = extra.get("citations")
            found[apart.citations] = self._made(Citations.model_validate, apart.citations, given, choice)
        if apart.reasoning is not None:
            thought = extra.get("reasoning_content")
            found[apart.reasoning] = Reasoning(thought if isinstance(thought, str) else "")
        return found

    def _made(self, make: Callable[[Any], Any], name: str, given: Any, choice: Choice) -> Any:
        if not given and self._signature.may_omit(name):
            return self._signature.default_of(name)
        try:
            return make(given or [])
        except (NotJSON, ValidationError) as error:
            why = why_invalid(error) if isinstance(error, ValidationError) else str(error)
            said = choice.text or orjson.dumps(given, default=str).decode()
            raise AdapterParseError(
                type(self._adapter).__name__, self._signature, said, f"{name}: {why}"
            ) from None
