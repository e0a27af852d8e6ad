"""Adapters: a signature, demos and inputs to messages, and a model's answer to typed outputs.

An adapter is asked once per signature and set of demos, with :meth:`Adapter.prepare`; what comes
back does the work of each row. The methods named as in DSPy say how the parts of a prompt look,
and a subclass may replace any of them: what is prepared is made through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar, Final, NamedTuple

from dspy_stream.adapters.beside import Beside, fields_apart, past_of
from dspy_stream.adapters.blocks import Content, joined
from dspy_stream.adapters.bound import Bound, fields_of
from dspy_stream.adapters.directly import aasked, asked, questions
from dspy_stream.adapters.hook import compiled, is_compiled
from dspy_stream.adapters.own import OwnPrompt
from dspy_stream.adapters.past import history_turns, with_past
from dspy_stream.adapters.prepared import Prepared
from dspy_stream.adapters.prompt import Prompt
from dspy_stream.adapters.read import Reader
from dspy_stream.adapters.salvage import Other
from dspy_stream.adapters.splitter import Splitter
from dspy_stream.adapters.turn import MARKED, Inputs, Layout, writer
from dspy_stream.errors import AdapterParseError, AdapterRenderError, ConfigurationError
from dspy_stream.events import Callbacks
from dspy_stream.program import Signature
from dspy_stream.program.types.document import Citations
from dspy_stream.program.types.reasoning import Reasoning
from dspy_stream.types import NO_OPTIONS, Capabilities, Choice, Message

__all__ = ["Adapter", "SecondStep"]

_PARTIAL: Final = "(An example of which only some fields are known.)"
_UNKNOWN: Final = "(unknown in this example)"


class SecondStep(NamedTuple):
    """A second question, whose inputs are what was read from the first one's answer.

    ``model`` is a model or its name.
    """

    model: Any
    adapter: Adapter
    signature: type[Signature]


class Adapter:
    """Base of the adapters; a subclass says how outputs are laid out and read.

    Attributes:
        use_native_function_calling: whether tools go to the provider as such, rather than into the
            prompt, where the model is known to take them.
        fallback: the adapter that asks once more where an answer could not be read or repaired.
        native_response_types: the output types that are taken from what a model sends beside its
            text, where it is known to.
        parallel_tool_calls: whether a model may ask for several tools at once; None leaves it to it.
        form: how answers are laid out: ``chat``, ``json`` or ``xml``.
    """

    form: ClassVar[str] = "chat"
    fallback: Adapter | None = None
    use_native_function_calling: bool = False
    native_response_types: Sequence[type[Any]] = (Citations, Reasoning)
    parallel_tool_calls: bool | None = None

    def __init__(
        self,
        callbacks: Iterable[Any] | None = None,
        use_native_function_calling: bool = False,
        native_response_types: Sequence[type[Any]] | None = None,
        parallel_tool_calls: bool | None = None,
    ) -> None:
        self.callbacks = Callbacks(callbacks)
        self.use_native_function_calling = use_native_function_calling
        if native_response_types is not None:
            self.native_response_types = native_response_types
        self.parallel_tool_calls = parallel_tool_calls

    @compiled
    def __call__(
        self,
        lm: Any,
        lm_kwargs: Mapping[str, Any],
        signature: type[Signature],
        demos: Sequence[Any],
        inputs: Inputs,
    ) -> list[dict[str, Any]]:
        """Ask a model once and read its completions; predictors call it where a subclass replaces it.

        An answer that cannot be read goes to the ``fallback``, where there is one; nothing is repaired.

        Raises:
            AdapterParseError, LMError: as for a predictor.
        """
        return asked(questions(self, lm, lm_kwargs, signature, demos, inputs))

    @compiled
    async def acall(
        self,
        lm: Any,
        lm_kwargs: Mapping[str, Any],
        signature: type[Signature],
        demos: Sequence[Any],
        inputs: Inputs,
    ) -> list[dict[str, Any]]:
        """The same from a coroutine; predictors await it where a subclass replaces it alone."""
        return await aasked(questions(self, lm, lm_kwargs, signature, demos, inputs))

    def prepare(
        self,
        signature: type[Signature],
        demos: Iterable[Any] = (),
        *,
        capabilities: Capabilities | None = None,
    ) -> Prepared:
        """Compile the prompt of a signature with its demos.

        ``capabilities`` are those of the model that will be asked; None where it is not known yet.

        Raises:
            SignatureError: a field's type cannot be used.
            ConfigurationError: a demo cannot be written.
        """
        return self._prepared(signature, demos, capabilities, own=not is_compiled(self, "format"))

    def _prepared(
        self,
        signature: type[Signature],
        demos: Iterable[Any],
        capabilities: Capabilities | None,
        *,
        own: bool,
    ) -> Prepared:
        """``own``: the subclass's ``format`` writes the messages, those of a history too."""
        apart = fields_apart(signature, self, capabilities, history=not own)
        if own:
            signature_left = signature if apart is None else apart.signature
            prompt: Prompt = OwnPrompt(self, signature_left, list(demos), capabilities)
            return prompt if apart is None else Beside(self, signature, apart, prompt)
        if apart is not None:
            inner = self._prompt(apart.signature, demos, capabilities, shown=apart.shown)
            effort = apart.reasoning is not None and capabilities is not None and capabilities.thinks_if_told
            return Beside(self, signature, apart, inner, effort=effort)
        return self._prompt(signature, demos, capabilities)

    def _prompt(
        self,
        signature: type[Signature],
        demos: Iterable[Any],
        capabilities: Capabilities | None,
        *,
        shown: type[Signature] | None = None,
    ) -> Prompt:
        turns = [
            {"role": "system", "content": self._system(signature)},
            *self.format_demos(shown or signature, list(demos)),
        ]
        head = tuple(Message(turn["role"], turn["content"]) for turn in turns)
        options = self.request_options(signature, capabilities) if signature.output_fields else (NO_OPTIONS,)
        cites = capabilities is not None and capabilities.citations
        return Prompt(self, signature, head, options, cites=cites)

    def _system(self, signature: type[Signature]) -> str:
        if signature.output_fields:
            return self.format_system_message(signature)
        # All that is asked for travels beside the text, so no form of it is asked for.
        given = f"You are given:\n{_lines(fields_of(signature).inputs)}"
        return f"{given}\n\n{self.format_task_description(signature)}"

    def reminder(self, signature: type[Signature]) -> str:
        """What a row's turn ends with; empty where nothing is asked for in the text."""
        if type(self).user_message_output_requirements is Adapter.user_message_output_requirements:
            return ""  # a subclass with a format of its own need not have one
        return self.user_message_output_requirements(signature) if signature.output_fields else ""

    @compiled
    def format(
        self, signature: type[Signature], demos: Iterable[Any], inputs: Inputs
    ) -> list[dict[str, Any]]:
        """The whole message list in chat-completions form.

        Raises:
            SignatureError, ConfigurationError: as :meth:`prepare`.
            AdapterRenderError: an input is missing, or cannot be written.
        """
        prepared = self._prepared(signature, demos, None, own=False)
        return [message.to_json() for message in (*prepared.head, *prepared.render(inputs))]

    @compiled
    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]:
        """The validated outputs of an answer; the first of a field that it gives twice, as in DSPy.

        A module asks the model again in that case. What a ``parse`` of a subclass returns is taken as it
        is, without a look at types and bounds; an AdapterParseError that it raises is shown to the model
        once, any other error ends the row.

        Raises:
            AdapterParseError: the answer is not what was asked for.
        """
        return self.reader(signature)(completion, first=True)

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

    @compiled
    def format_user_message_content(
        self,
        signature: type[Signature],
        inputs: Inputs,
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> Content:
        """Inputs below their markers; missing ones are left out, but not from the main request.

        Raises:
            AdapterRenderError: an input cannot be written, or the main request misses one.
        """
        fields = fields_of(signature)
        ending = [self.reminder(signature)] if main_request else []
        bounds = fields.inputs if main_request else [f for f in fields.inputs if f.given_in(inputs)]
        body = writer(signature, bounds, "", self.layout(signature))(inputs)
        return joined((prefix, body, *ending, suffix))

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

        A demo without a single input or without a single output is left out. The conversation before
        a demo is written as one of its inputs; most have none.

        Raises:
            ConfigurationError: a demo cannot be written.
        """
        fields, past = fields_of(signature), past_of(signature)
        partial: list[dict[str, Any]] = []
        whole: list[dict[str, Any]] = []
        for number, demo in enumerate(demos, 1):
            values = _mapping(demo, number)
            try:
                if past is not None:
                    values = with_past(values, past)
                inputs = [field.given_in(values) for field in fields.inputs if field.name != past]
                outputs = [field.given_in(values) for field in fields.outputs]
                if not any((*inputs, past in values)) or not any(outputs):
                    continue
                complete = all(inputs) and all(outputs)
                asked = self.format_user_message_content(
                    signature, values, prefix="" if complete else _PARTIAL
                )
                answered = self.format_assistant_message_content(
                    signature, values, missing_field_message=_UNKNOWN
                )
            except AdapterRenderError as error:
                raise ConfigurationError(f"demo {number}: {error}") from error
            turns = whole if complete else partial
            turns.append({"role": "user", "content": asked})
            turns.append({"role": "assistant", "content": answered})
        return partial + whole

    @compiled
    def format_conversation_history(
        self, signature: type[Signature], history_field_name: str, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The turns of the history among ``inputs``, which is taken out of them.

        Raises:
            AdapterRenderError: it is no history, or a message cannot be written.
        """
        turns = history_turns(
            self,
            signature.delete(history_field_name),
            history_field_name,
            inputs.pop(history_field_name, None),
        )
        return [turn.to_json() for turn in turns]

    def format_finetune_data(
        self, signature: type[Signature], demos: Sequence[Any], inputs: Inputs, outputs: Inputs
    ) -> dict[str, list[Any]]:
        """A conversation to train a model on: ``messages``, the last of them the answer that is wanted."""
        answer = self.format_assistant_message_content(signature, outputs)
        write = self.format  # a subclass's own, too
        return {
            "messages": [*write(signature, demos, dict(inputs)), {"role": "assistant", "content": answer}]
        }

    # ------------------------------------------------------------------------------- compiling

    def request_options(
        self,
        signature: type[Signature],  # noqa: ARG002
        capabilities: Capabilities | None,  # noqa: ARG002
    ) -> Sequence[Mapping[str, Any]]:
        """What to ask of the provider; a second one is asked where it refuses the first."""
        return (NO_OPTIONS,)

    def layout(self, signature: type[Signature]) -> Layout:  # noqa: ARG002
        """What stands around each input."""
        return MARKED

    def writer(self, signature: type[Signature]) -> Callable[[Inputs], Content]:
        """A function from a row's inputs to the text of its turn, or its blocks."""
        if not is_compiled(self, "format_user_message_content"):
            return lambda inputs: self.format_user_message_content(signature, inputs, main_request=True)
        reminder = self.reminder(signature)
        ending = f"\n\n{reminder}" if reminder else ""
        return writer(signature, fields_of(signature).inputs, ending, self.layout(signature))

    def splitter(self, signature: type[Signature]) -> Splitter:
        """What takes one answer apart while it comes; here, when it is over."""

        def find(text: str) -> dict[str, Any]:
            try:
                return self.parse(signature, text)
            except AdapterParseError:
                return {}

        return Splitter(tuple(signature.output_fields), find)

    def reader(self, signature: type[Signature]) -> Reader:
        """A function from an answer to outputs."""
        raise NotImplementedError(f"{type(self).__name__} does not say how answers are read")

    def text_reader(self, signature: type[Signature]) -> Callable[[Choice], str]:  # noqa: ARG002
        """A function from a completion to the text that is parsed.

        It raises AdapterParseError for an answer that is known to be cut short.
        """
        return _text_of

    def second_step(self, signature: type[Signature]) -> SecondStep | None:  # noqa: ARG002
        """Who is to read the outputs out of an answer, where that takes a second model."""
        return None

    def other_reader(self, signature: type[Signature]) -> Other:  # noqa: ARG002
        """A function that reads whole answers in another form."""
        return _no_other


_text_of: Final[Callable[[Choice], str]] = attrgetter("text")


def _no_other(_choice: Choice, _asked: Iterable[Message]) -> dict[str, Any] | None:
    return None


def _lines(fields: Iterable[Bound]) -> str:
    return "\n".join(f"- {field.line}" for field in fields)


def _mapping(demo: Any, number: int) -> Inputs:
    if isinstance(demo, Mapping):
        return demo
    try:
        return dict(demo.items())
    except AttributeError:
        raise ConfigurationError(f"demo {number} is a {type(demo).__name__}, not a dict or Example") from None
