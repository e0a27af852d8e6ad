"""MultiChainComparison: several attempts at one question, compared by the model itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dspy_stream.errors import SignatureError
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict
from dspy_stream.program import (
    Completions,
    Example,
    InputField,
    OutputField,
    Prediction,
    Signature,
    ensure_signature,
)
from dspy_stream.runtime import Steps

__all__ = ["AttemptsError", "MultiChainComparison"]


class AttemptsError(ValueError, AssertionError):
    """The attempts to compare are not as many, or not of the kind, as was said when the module was made."""


class _Lacking(AttemptsError, KeyError):
    __str__ = Exception.__str__


class MultiChainComparison(Module):
    """Answer a question with ``M`` earlier attempts at it in sight: one call.

    A call takes ``completions``, the attempts, beside the signature's inputs. Each is a mapping or a
    prediction with a ``rationale`` or ``reasoning`` and the signature's last output; or they are the
    completions of one prediction with ``n=M``. The prediction has a ``rationale`` and the outputs.

    Args:
        signature: a Signature class, or its string form.
        M: how many attempts there are.
        temperature: of the call.
        **config: further options of the call.

    Raises:
        SignatureError: (when made) the signature has no output, or ``M`` is below 1.
        AttemptsError: (when called) another number of attempts, or one that lacks a field.

    See Yoran et al., "Answering Questions by Meta-Reasoning over Multiple Chains of Thought", 2023.

    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> compare = MultiChainComparison("question -> answer", M=2)
    >>> tries = [{"reasoning": "2 and 2", "answer": "4"}, {"reasoning": "2 beside 2", "answer": "22"}]
    >>> compare.set_lm(ScriptedLM([{"rationale": "The first adds.", "answer": "4"}]))
    >>> compare(tries, question="2 + 2?").answer
    '4'
    """

    def __init__(
        self,
        signature: str | type[Signature],
        M: int = 3,
        temperature: float = 0.7,
        **config: Any,
    ) -> None:
        extended = ensure_signature(signature)
        if not extended.output_fields:
            raise SignatureError(f"{extended.signature}: there is no output to compare attempts at")
        if M < 1:
            raise SignatureError(f"M is {M}; at least one attempt is compared")
        self.M = M
        self.last_key = list(extended.output_fields)[-1]
        self._asked = tuple(extended.input_fields)
        for number in range(1, M + 1):
            field = InputField(desc=f"attempt {number} at the task: how it was reasoned, and the answer")
            extended = extended.append(f"reasoning_attempt_{number}", field, str)
        about = "what is right and what is wrong in the attempts, and what follows from it"
        extended = extended.prepend("rationale", OutputField(desc=about), str)
        self.predict = Predict(extended, temperature=temperature, **config)

    def forward(self, completions: Iterable[Any] | Prediction, **kwargs: Any) -> Prediction:
        """The answer; blocks until it is there."""
        answer: Prediction = self.predict(**{**self._attempts(completions), **kwargs})
        return answer

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The call as steps; no greenlet is needed for a single predictor."""
        if type(self).forward is not MultiChainComparison.forward or "completions" not in inputs:
            return super().steps(inputs)
        return self._answer(inputs)

    def _answer(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        answer = yield from heard_steps(self.predict, {**self._attempts(inputs["completions"]), **inputs})
        return answer

    def input_names(self) -> tuple[str, ...]:
        """The attempts, and the inputs of the signature."""
        return ("completions", *self._asked)

    def required_names(self) -> tuple[str, ...]:
        """Those of them that have no default."""
        return ("completions", *(name for name in self.predict.required_names() if name in self._asked))

    def output_names(self) -> tuple[str, ...] | None:
        """The rationale, and the outputs of the signature."""
        return self.predict.output_names()

    def _attempts(self, completions: Iterable[Any] | Prediction) -> dict[str, str]:
        given: Any = completions.completions if isinstance(completions, Prediction) else completions
        if isinstance(given, Completions):
            given = [given[number] for number in range(len(given))]
        texts = [self._attempt(each, number) for number, each in enumerate(given or (), 1)]
        if len(texts) != self.M:
            raise AttemptsError(
                f"The number of attempts ({len(texts)}) doesn't match the expected number M ({self.M}); "
                "M is set when the MultiChainComparison is made"
            )
        return {f"reasoning_attempt_{number}": text for number, text in enumerate(texts, 1)}

    def _attempt(self, completion: Any, number: int) -> str:
        if not isinstance(completion, (Mapping, Example)):
            raise AttemptsError(f"attempt {number} is no mapping and no prediction: {completion!r:.80}")
        reasoning = completion.get("rationale", completion.get("reasoning"))
        if reasoning is None or self.last_key not in completion:
            lacking = "rationale` or `reasoning" if reasoning is None else self.last_key
            raise _Lacking(
                f"attempt {number} has no `{lacking}`; it has: {', '.join(completion.keys()) or 'nothing'}"
            )
        return f"{str(reasoning).strip()}\nAnswer: {str(completion[self.last_key]).strip()}"
