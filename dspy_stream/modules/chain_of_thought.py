"""ChainOfThought: think first, then answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict
from dspy_stream.program import OutputField, Prediction, Signature, ensure_signature
from dspy_stream.runtime import Steps

__all__ = ["ChainOfThought"]


class ChainOfThought(Module):
    """A Predict whose first output is ``reasoning``: the model thinks before it answers.

    Args:
        signature: a Signature class, or its string form.
        rationale_field: an ``OutputField(...)`` to use instead of the standard one; without it, an
            output ``reasoning`` that the signature has is asked for as it says, and first.
        rationale_field_type: its type, where the field itself has none.
        **config: options of every call.

    See Wei et al., "Chain-of-Thought Prompting Elicits Reasoning in Large Language Models", 2022.

    >>> ChainOfThought("question -> answer").predict.signature.signature
    'question -> reasoning, answer'
    """

    def __init__(
        self,
        signature: str | type[Signature],
        rationale_field: Any = None,
        rationale_field_type: type[Any] = str,
        **config: Any,
    ) -> None:
        base = ensure_signature(signature)
        field = rationale_field if rationale_field is not None else base.output_fields.get("reasoning")
        if field is None:
            field = OutputField(desc="${reasoning}")
        kind = getattr(field, "annotation", None) or rationale_field_type
        self.predict = Predict(base.prepend("reasoning", field, kind), **config)

    def forward(self, *args: Any, **kwargs: Any) -> Prediction:
        """The same as calling."""
        answer: Prediction = self.predict(*args, **kwargs)
        return answer

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The call as steps; no greenlet is needed for a single predictor."""
        return heard_steps(self.predict, inputs) if self._plain() else super().steps(inputs)

    def input_names(self) -> tuple[str, ...] | None:
        """The signature's inputs."""
        return self.predict.input_names() if self._plain() else super().input_names()

    def required_names(self) -> tuple[str, ...]:
        """The signature's inputs that have no default."""
        return self.predict.required_names() if self._plain() else super().required_names()

    def output_names(self) -> tuple[str, ...] | None:
        """The signature's outputs."""
        return self.predict.output_names() if self._plain() else None

    def _plain(self) -> bool:
        return type(self).forward is ChainOfThought.forward and not self._has_aforward()
