"""Refine: several attempts at one question, each with advice drawn from the one before."""

from __future__ import annotations

import inspect
import logging
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from dspy_stream.errors import ConfigurationError, LMNotConfiguredError
from dspy_stream.lm.base import Model
from dspy_stream.modules.best_of_n import BestOfN, Outcome, Reward, concerns_one_row
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.scope import HINT, SCOPE, TRACE, default_lm
from dspy_stream.program import Example, InputField, OutputField, Signature
from dspy_stream.program.jsonable import to_jsonable

__all__ = ["Advice", "Refine"]

_log: Final = logging.getLogger("dspy_stream")
_LONGEST: Final = 2000  # characters of one text that the adviser is shown


class Advice(Signature):
    """A program was run and did not do well enough. Find out which of its parts the result goes back to.

    Then write for each part what it should do otherwise when it is asked the same, or something like
    it, once more. A part sees its inputs and your advice, and nothing of this run: say what was wrong
    and what would have been right, plainly and for this kind of input. For a part that did nothing
    wrong write N/A.
    """

    program: str = InputField(desc="the parts of the program, with their fields and instructions")
    inputs: str = InputField(desc="what the program was given")
    calls: str = InputField(desc="what each part was given and what it answered, in order")
    outputs: str = InputField(desc="what the program gave")
    reward: str = InputField(desc="how results are judged")
    reward_value: float = InputField(desc="what this result was worth")
    threshold: float | None = InputField(desc="what a result must be worth to be good enough")
    module_names: list[str] = InputField(desc="the parts to be advised")
    discussion: str = OutputField(desc="where it went wrong, and why")
    advice: dict[str, str] = OutputField(desc="the advice for each part, by its name")


# One for all: it is no part of any program, so it is not saved or optimized with one.
_adviser: Final = Predict(Advice)


class Refine(BestOfN):
    """A :class:`BestOfN` in which each attempt is told what could have been better in the one before.

    After an attempt that was not good enough a model is shown the program's parts, what each was asked
    and answered, and the reward, and writes advice for each part. The next attempt asks with the advice
    as an input ``hint_``; the instructions stay as they are. The reward function is shown by its source,
    where there is one, or by its docstring. Where no advice can be had, the next attempt goes on
    without. That takes up to ``2 * N - 1`` runs and calls.

    The model that advises is the one in force, or else that of the module's first predictor.

    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> qa = Predict("question -> answer")
    >>> qa.set_lm(ScriptedLM([
    ...     {"answer": "It is Brussels"},
    ...     {"discussion": "It wrote a sentence.", "advice": {"self": "Write one word."}},
    ...     {"answer": "Brussels"},
    ... ]))
    >>> def one_word(args, pred):
    ...     '''One word is worth 1.'''
    ...     return 0.0 if " " in pred.answer else 1.0
    >>> Refine(qa, N=3, reward_fn=one_word, threshold=1.0)(question="The capital of Belgium?").answer
    'Brussels'
    """

    def __init__(
        self,
        module: Module,
        N: int,
        reward_fn: Reward,
        threshold: float | None,
        fail_count: int | None = None,
    ) -> None:
        super().__init__(module, N, reward_fn, threshold, fail_count)
        self._reward_shown = _described(reward_fn)

    def _hints(
        self, inputs: Mapping[str, Any], outcome: Outcome, before: Mapping[int, str]
    ) -> Mapping[int, str]:
        """Ask for advice; that of the attempt before stays where there is none."""
        parts = dict(self.module.named_predictors())
        if not parts:
            return before
        token = TRACE.set(None)  # the adviser is no part of the program
        try:
            given = _adviser(
                lm=_adviser_lm(parts),
                program=_parts_shown(parts),
                inputs=_shown(inputs),
                calls=_calls_shown(parts, outcome.calls),
                outputs=_shown(outcome.prediction),
                reward=self._reward_shown,
                reward_value=outcome.reward,
                threshold=self.threshold,
                module_names=list(parts),
            ).advice
        except Exception as error:  # an attempt without advice is better than none
            if not concerns_one_row(error):
                raise
            _log.warning("Refine: no advice could be had: %s", error)
            return before
        finally:
            TRACE.reset(token)
        return {id(part): given[name] for name, part in parts.items() if name in given}


def _adviser_lm(parts: Mapping[str, Predict]) -> Model | None:
    try:
        return default_lm(SCOPE.get())
    except LMNotConfiguredError:
        return next((part.lm for part in parts.values() if part.lm is not None), None)


def _described(reward: Reward) -> str:
    """What can be said of a reward function: its source, its docstring, or its name."""
    for target in (reward, type(reward)):
        try:
            return textwrap.dedent(inspect.getsource(target)).strip()
        except (TypeError, OSError):  # noqa: PERF203 - built-in, or typed at a prompt
            continue
    return inspect.getdoc(reward) or str(getattr(reward, "__name__", type(reward).__name__))


def _parts_shown(parts: Mapping[str, Predict]) -> str:
    return "\n\n".join(
        f"{name}: {part.signature.signature}\n{_fields_shown(part.signature)}\n{part.signature.instructions}"
        for name, part in parts.items()
    )


def _fields_shown(signature: type[Signature]) -> str:
    described = []
    for name, field in signature.fields.items():
        extra: Any = field.json_schema_extra
        about = str((extra or {}).get("desc") or "")
        if about and about != f"${{{name}}}":
            described.append(f"- {name}: {about}")
    return "\n".join(described)


def _calls_shown(parts: Mapping[str, Predict], calls: Iterable[Any]) -> str:
    names = {id(part): name for name, part in parts.items()}
    return "\n".join(
        _shown({"part": names.get(id(part), "another"), "inputs": _without_hint(given), "outputs": made})
        for part, given, made in calls
    )


def _without_hint(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != HINT}


def _shown(value: Any) -> str:
    """The value as JSON; what has no JSON form is named, long texts are cut short."""
    return orjson.dumps(_plain(value), default=_named).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else f"{value[:_LONGEST]} [...]"
    if isinstance(value, Example):
        value = dict(value.items())
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    try:
        made = to_jsonable(value)
    except ConfigurationError:
        return _named(value)
    return made if type(made) is type(value) else _plain(made)


def _named(value: Any) -> str:
    return f"<{type(value).__name__}>"
