"""ReActV2: an agent whose turns are tool calls in a conversation that only grows."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Optional

from dspy_stream.errors import (
    AdapterParseError,
    AdapterRenderError,
    ContextWindowExceededError,
    RowError,
    SignatureError,
)
from dspy_stream.lm.base import LM, Model, resolve
from dspy_stream.modules.given import inputs_of
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.scope import SCOPE, default_adapter, default_lm
from dspy_stream.modules.tooling import call_tool, gathered
from dspy_stream.program import (
    InputField,
    OutputField,
    Prediction,
    Signature,
    ensure_signature,
    make_signature,
)
from dspy_stream.program.types import History, Reasoning, Tool, ToolCall, ToolCallResults, ToolCalls

__all__ = ["NoSubmission", "ReActV2"]

_log: Final = logging.getLogger("dspy_stream")
_SUBMIT: Final = "submit"
_RESERVED_OUTPUTS: Final = frozenset({"history", "termination_reason"})
_RESERVED_INPUTS: Final = frozenset({"history", "tools"})
_OWN: Final = frozenset({"next_thought", "tool_calls", "tool_call_results", "tools"})
_PASSED_ON: Final = ("config", "demos", "lm")
_CUTS: Final = 3


class NoSubmission(RowError, ValueError):
    """An agent ended without its outputs.

    Attributes:
        history: what was said until then; given to the agent again, it goes on from there.
    """

    code = "no_submission"

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


class ReActV2(Module):
    """An agent that calls tools, several in a turn where it likes, and ends with the tool ``submit``.

    ``submit`` takes the signature's outputs as its arguments, each checked by its type; a wrong one is
    shown to the model as the tool's failure. After ``max_iters`` turns, or a turn without a call or
    that cannot be read, the model is asked once more, to submit. That makes up to ``max_iters + 1``
    calls; ``max_iters`` may be given to a call too.

    The turns are a ``History`` that only grows, so that a provider's cache of the prompt holds. It is
    part of the prediction, with the ``termination_reason``: ``submit`` or ``forced_submit``. Given as
    ``history=`` the agent goes on from there, with further inputs or without; the one that is given
    is not changed. It may come from JSON. Where it grows longer than the model can read, its oldest
    turns are not shown any more.

    The calls are the provider's own where the adapter uses native function calling, as JSONAdapter
    and ``ChatAdapter(use_native_function_calling=True)`` do, and the model is known to have it; otherwise
    the model writes them as JSON. Tools run one after the other, as in :class:`ReAct`.

    Args:
        signature: a Signature class, or its string form.
        tools: functions, callable objects or Tools.
        max_iters: how many turns at most.

    Raises:
        SignatureError: (when made) a field or a tool has a name that is taken.
        NoSubmission: (when called) the model did not submit; it has the history.
        AdapterParseError: the last answer could not be read.

    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> def weather(city: str) -> str:
    ...     return f"Sunny in {city}."
    >>> agent = ReActV2("question -> answer", tools=[weather])
    >>> agent.set_lm(ScriptedLM([
    ...     {"next_thought": "Look.", "tool_calls": [{"name": "weather", "args": {"city": "Rome"}}]},
    ...     {"next_thought": "Done.", "tool_calls": [{"name": "submit", "args": {"answer": "sunny"}}]},
    ... ]))
    >>> done = agent(question="How is the weather in Rome?")
    >>> done.answer, done.termination_reason, len(done.history.messages)
    ('sunny', 'submit', 2)
    """

    def __init__(
        self,
        signature: str | type[Signature],
        tools: Iterable[Callable[..., Any]],
        max_iters: int = 20,
    ) -> None:
        self.signature: type[Signature] = ensure_signature(signature)
        self.max_iters = max_iters
        _refuse("Output", _RESERVED_OUTPUTS | _OWN, self.signature.output_fields)
        _refuse("Input", _RESERVED_INPUTS | _OWN, self.signature.input_fields)
        self.tools = gathered(tools, reserved=_SUBMIT, owner="ReActV2")
        self.tools[_SUBMIT] = _submit_tool(self.signature)
        self.react = Predict(self._turn_signature())

    def _turn_signature(self) -> type[Signature]:
        fields: dict[str, Any] = {}
        for name, field in self.signature.input_fields.items():
            extra: Any = field.json_schema_extra
            about = (extra or {}).get("desc")
            # They are said in the first turn, and not again.
            fields[name] = (Optional[field.annotation], InputField(desc=about, default=None))  # noqa: UP045
        fields["history"] = (History, InputField())
        fields["tools"] = (list[Tool], InputField(default_factory=list))
        fields["next_thought"] = (Reasoning, OutputField())
        fields["tool_calls"] = (ToolCalls, OutputField())
        inputs = ", ".join(f"`{name}`" for name in self.signature.input_fields)
        outputs = ", ".join(f"`{name}`" for name in self.signature.output_fields)
        return make_signature(
            fields,
            f"{self.signature.instructions}\n\n"
            f"You work as an agent, turn by turn: from {inputs} you find {outputs}, with tools to help. Call "
            "one tool or several; what they give you see in the next turn. When you know the outputs, call "
            f"`{_SUBMIT}` with them; nothing else ends the work.\n"
            f"The tools are: {', '.join(f'`{name}`' for name in self.tools)}.",
        )

    # ------------------------------------------------------------------------------------ calling

    def forward(self, **inputs: Any) -> Prediction:
        """The outputs; blocks until they are there."""
        limit = self.max_iters
        if "max_iters" not in self.signature.input_fields:
            limit = inputs.pop("max_iters", limit)
        talk = self._begun(inputs)
        why = "max_iters"
        for _ in range(limit):
            try:
                said = self._ask(talk)
            except AdapterRenderError:
                raise  # what cannot be written now cannot be written when it is to submit
            except (AdapterParseError, ValueError) as error:
                why = "parse_error"
                _log.warning("ReActV2: a turn could not be read: %s", error)
                break
            except ContextWindowExceededError:
                why = "context_window_exceeded"
                break
            calls = _calls(said, len(talk.messages))
            if not calls:
                why = "empty_tool_calls"
                break
            outputs, _ = self._turn(talk, said, calls)
            if outputs is not None:
                return _done(outputs, talk, "submit")
        return self._forced(talk, why)

    def _begun(self, inputs: Mapping[str, Any]) -> _Talk:
        options = {name: inputs[name] for name in _PASSED_ON if name in inputs}
        options = {name: each for name, each in options.items() if name not in self.signature.input_fields}
        messages = list(_history(inputs.get("history")).messages)
        pending = {name: inputs[name] for name in self.signature.input_fields if name in inputs}
        if not messages:
            pending = {name: self._input(name, pending) for name in self.signature.input_fields}
        talk = _Talk(messages, pending, self._is_native(options), options)
        if not talk.native and not any("tools" in message for message in messages):
            pending["tools"] = list(self.tools.values())  # as text they belong to what is said
        return talk

    def _input(self, name: str, given: Mapping[str, Any]) -> Any:
        if name in given:
            return given[name]
        if self.signature.may_omit(name):
            return self.signature.default_of(name)
        raise AdapterRenderError(f"input field `{name}` is missing; given: {', '.join(given) or 'nothing'}")

    def _is_native(self, options: Mapping[str, Any]) -> bool:
        scope = SCOPE.get()
        if not default_adapter(scope).use_native_function_calling:
            return False
        given = scope.parameters.get(id(self.react)) if scope is not None else None
        lm: Model | str | None = options.get("lm") or self.react.lm
        if given is not None and given.lm is not None:
            lm = options.get("lm") or LM.load_state(given.lm)
        return (resolve(lm) if lm is not None else default_lm(scope)).capabilities.tools

    def _ask(self, talk: _Talk, **last: Any) -> Any:
        """The next turn; ``last`` are options of the one in which the model is to submit."""
        for _ in range(_CUTS):
            given = {**talk.pending, **talk.options}
            if talk.native:
                given["tools"] = list(self.tools.values())
            try:
                return self.react(history=talk.shown(self.react.signature), **{**given, **last})
            except ContextWindowExceededError:
                if talk.left_out >= len(talk.messages):
                    raise
                _log.warning("ReActV2: the prompt was too long; the oldest turn is left out of it")
                talk.left_out += 1
        raise ContextWindowExceededError(f"the prompt is too long, with {_CUTS} turns left out of it too")

    def _turn(
        self, talk: _Talk, said: Any, calls: list[ToolCall]
    ) -> tuple[dict[str, Any] | None, ToolCallResults]:
        """Call the tools, and add the turn to the history; the outputs where they were submitted."""
        value: Any
        values: list[Any] = []
        marks: list[bool] = []
        outputs: dict[str, Any] | None = None
        for call in calls:
            tool = self.tools.get(call.name)
            value, wrong = call_tool(tool, call.args) if tool else (f"Unknown tool: {call.name}", True)
            values.append(value)
            marks.append(wrong)
            if call.name == _SUBMIT and not wrong:
                outputs = value
        results = ToolCallResults.from_tool_calls_and_values(calls, values, marks)
        thought = getattr(said, "next_thought", None)
        event = dict(talk.pending) if thought is None else {**talk.pending, "next_thought": str(thought)}
        event["tool_calls"] = ToolCalls(tool_calls=calls, tool_call_results=results)
        thinking = getattr(getattr(said, "tool_calls", None), "thinking", None)
        if thinking:  # which the provider wants back; no field has this name
            event["_thinking"] = dict(thinking)
        talk.messages.append({**event, **(outputs or {})})
        talk.pending = {}
        return outputs, results

    def _forced(self, talk: _Talk, why: str) -> Prediction:
        if talk.native:
            choice = {"type": "function", "function": {"name": _SUBMIT}}
            # A model that is told which tool to call must not be told to think first as well.
            config = {**talk.options.get("config", {}), "tool_choice": choice, "reasoning_effort": None}
            said = self._ask(talk, config=config)
        else:
            said = self._ask(talk, tools=[self.tools[_SUBMIT]])
        failed = f"ReActV2 failed to produce final outputs after {why}"
        calls = [call for call in _calls(said, len(talk.messages)) if call.name == _SUBMIT]
        if not calls:
            raise NoSubmission(f"{failed}: no submit call.", talk.history())
        outputs, results = self._turn(talk, said, calls)
        if outputs is None:
            told = "\n".join(each.text() for each in results.tool_call_results)
            raise NoSubmission(f"{failed}: submit failed.\n{told}", talk.history())
        return _done(outputs, talk, "forced_submit")

    # ------------------------------------------------------------------------------------- fields

    def input_names(self) -> tuple[str, ...]:
        """The signature's inputs, and the history to go on from."""
        return (*self.signature.input_fields, "history")

    def required_names(self) -> tuple[str, ...]:
        """Those of the signature's inputs that must be given."""
        return inputs_of(self.signature)[1]

    def output_names(self) -> tuple[str, ...]:
        """The signature's outputs, the history and how it ended."""
        return (*self.signature.output_fields, "history", "termination_reason")


class _Talk:
    """One conversation: what was said, what is to be said next, and how much of it is not shown any more."""

    __slots__ = ("left_out", "messages", "native", "options", "pending")

    def __init__(
        self,
        messages: list[dict[str, Any]],
        pending: dict[str, Any],
        native: bool,
        options: Mapping[str, Any],
    ) -> None:
        self.messages = messages
        self.pending = pending
        self.native = native
        self.options = options
        self.left_out = 0

    def shown(self, signature: type[Signature]) -> History:
        """The history for the model: of the turns that are left out, only what they were asked."""
        asked = [
            {name: value for name, value in message.items() if name in signature.input_fields}
            for message in self.messages[: self.left_out]
        ]
        return History(messages=[*filter(None, asked), *self.messages[self.left_out :]])

    def history(self) -> History:
        """All of it."""
        return History(messages=self.messages)


def _done(outputs: dict[str, Any], talk: _Talk, why: str) -> Prediction:
    return Prediction({**outputs, "history": talk.history(), "termination_reason": why})


def _refuse(kind: str, reserved: frozenset[str], names: Iterable[str]) -> None:
    taken = sorted(reserved.intersection(names))
    if taken:
        listed = ", ".join(f"`{name}`" for name in taken)
        raise SignatureError(f"{kind} field name(s) {listed} are reserved by ReActV2; give them other names")


def _history(given: Any) -> History:
    if given is None:
        return History()
    return given if isinstance(given, History) else History.model_validate(given)


def _calls(said: Any, turn: int) -> list[ToolCall]:
    """The calls of a turn, each with an id that no other turn has."""
    given = getattr(said, "tool_calls", None)
    calls = ToolCalls.model_validate(given).tool_calls if given is not None else []
    return [
        call if call.id is not None else call.model_copy(update={"id": f"call_{turn}_{number}"})
        for number, call in enumerate(calls)
    ]


def _submit_tool(signature: type[Signature]) -> Tool:
    """A tool that takes the outputs, checks them by their types, and gives them back."""
    parameters, types = [], {}
    for name, field in signature.output_fields.items():
        kept = signature.default_of(name) if signature.may_omit(name) else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=kept))
        kind: Any = field.annotation
        constrained = (kind, *field.metadata)
        types[name] = Annotated[constrained] if field.metadata else kind

    def submit(**outputs: Any) -> dict[str, Any]:
        return {each.name: outputs.get(each.name, each.default) for each in parameters}

    submit.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    words = {
        name: about
        for name, field in signature.output_fields.items()
        if (about := _about(field)) and about != f"${{{name}}}"
    }
    desc = "Hand in the final outputs; this ends the work."
    return Tool(submit, name=_SUBMIT, desc=desc, arg_types=types, arg_desc=words)


def _about(field: Any) -> str:
    return str((field.json_schema_extra or {}).get("desc") or "")
