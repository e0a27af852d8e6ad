"""What a streamed program yields, and what its caller says to be told of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dspy_stream.modules.predict import Predict

__all__ = ["StatusMessage", "StatusMessageProvider", "StreamChunk", "StreamListener", "StreamResponse"]


@dataclass(slots=True)
class StreamResponse:
    """A piece of one output field, as it came.

    ``restart`` is True, and ``chunk`` empty, where all chunks so far of this field and call no
    longer count: the attempt they belong to failed, or its answer could not be read, and another
    is made. ``call`` numbers the calls of the predictor within the run, from 0.
    """

    predict_name: str
    signature_field_name: str
    chunk: str
    is_last_chunk: bool
    restart: bool = False
    call: int = 0


@dataclass(slots=True)
class StreamChunk:
    """A piece of a model's answer as it came, where no listeners were named.

    ``predict_name`` is empty for a model that was called directly. ``kind`` is ``text``,
    ``reasoning``, ``tool`` or ``restart``, as in :class:`~dspy_stream.types.Delta`; ``choice``
    the number of the completion.
    """

    predict_name: str
    kind: Literal["text", "reasoning", "tool", "restart"]
    text: str = ""
    choice: int = 0

    @property
    def choices(self) -> list[Any]:
        """The same in the form of a chunk of chat completions: ``choices[0].delta.content``.

        >>> StreamChunk("self", "text", "Par").choices[0].delta.content
        'Par'
        """
        content = self.text if self.kind == "text" else None
        thought = self.text if self.kind == "reasoning" else None
        delta = SimpleNamespace(content=content, reasoning_content=thought)
        return [SimpleNamespace(index=self.choice, delta=delta)]


@dataclass(frozen=True, slots=True)
class StatusMessage:
    """What the program is doing, in words for whoever waits for it."""

    message: str


class StreamListener:
    """Asks for the chunks of one output field.

    Args:
        signature_field_name: the field.
        predict: the predictor that fills it; needed where several of the program do.
        predict_name: its name in the program; may be given instead.
        allow_reuse: hear every call of the predictor in a run; otherwise the first one only.

    A listener holds nothing that belongs to a run, so one may serve many streams at once.

    >>> StreamListener("answer")
    StreamListener('answer')
    """

    __slots__ = ("allow_reuse", "predict", "predict_name", "signature_field_name")

    def __init__(
        self,
        signature_field_name: str,
        predict: Predict | None = None,
        predict_name: str | None = None,
        allow_reuse: bool = False,
    ) -> None:
        self.signature_field_name = signature_field_name
        self.predict = predict
        self.predict_name = predict_name
        self.allow_reuse = allow_reuse

    def __repr__(self) -> str:
        named = f", predict_name={self.predict_name!r}" if self.predict_name is not None else ""
        return f"StreamListener({self.signature_field_name!r}{named})"


class StatusMessageProvider:
    """What to say when something begins or ends; a hook that returns None says nothing.

    Subclass it and define the hooks that are wanted; all but those of tools say nothing by
    default. The hooks run between the program's own steps and must not block; one that raises is
    a warning in the log. Outputs are None where the call failed.

    >>> StatusMessageProvider().module_start_status_message(None, {}) is None
    True
    """

    def tool_start_status_message(self, instance: Any, inputs: Mapping[str, Any]) -> str | None:  # noqa: ARG002
        """A tool is about to be called."""
        return f"Calling tool {instance.name}..."

    def tool_end_status_message(self, outputs: Any) -> str | None:  # noqa: ARG002
        """A tool has returned."""
        return "The tool has answered."

    def module_start_status_message(self, instance: Any, inputs: Mapping[str, Any]) -> str | None:
        """A module is about to run."""

    def module_end_status_message(self, outputs: Any) -> str | None:
        """A module has returned."""

    def lm_start_status_message(self, instance: Any, inputs: Mapping[str, Any]) -> str | None:
        """A model is about to be asked by a predictor.

        ``instance`` is the model, or its name where it was given for this call alone; ``inputs``
        has the ``messages`` and ``kwargs``, and a ``prompt`` that is None.
        """

    def lm_end_status_message(self, outputs: Any) -> str | None:
        """A model has answered; ``outputs`` are the texts of its completions."""
