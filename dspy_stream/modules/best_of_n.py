"""BestOfN: several attempts at one question, of which the best counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from dspy_stream.errors import ConfigurationError, DSPyStreamError
from dspy_stream.modules.module import Module
from dspy_stream.modules.scope import HINTS, SCOPE, TRACE, Scope, process_clients
from dspy_stream.modules.settled import settled

__all__ = ["BestOfN", "Outcome", "Reward", "concerns_one_row"]

Reward = Callable[[dict[str, Any], Any], Any]
"""Inputs and prediction to a number, higher for better; may be a coroutine function."""

_log: Final = logging.getLogger("dspy_stream")


class Outcome(NamedTuple):
    """One attempt that went through: what it gave, the calls of its predictors, and its reward."""

    prediction: Any
    calls: list[Any]
    reward: float


class BestOfN(Module):
    """Run a module up to ``N`` times, one after the other, and return the prediction with the highest reward.

    Each attempt asks for other answers than those before: under another ``rollout_id``, and with a
    temperature of 1.0 where a predictor does not name one. The first that reaches ``threshold`` is
    returned at once; of equal ones the earliest. The module is not copied and not changed: what differs
    is the scope that an attempt runs under, so rows at the same time do not get in each other's way.
    An answer that is in the journal is not asked for again.

    Args:
        module: what is run.
        N: how many attempts at most.
        reward_fn: takes the inputs as a dict and the prediction, returns a number. It runs outside
            the attempt; it may ask models itself, and may be a coroutine function.
        threshold: the reward that is good enough; None for none.
        fail_count: how many attempts may fail, by an error of the module or of ``reward_fn``. The next
            failure is raised, and so is the last where no attempt went through. By default ``N``.

    Errors that concern more than this row, such as a wrong key or a used-up budget, are raised at once.

    Raises:
        ConfigurationError: (when made) ``N`` is below 1.

    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> from dspy_stream.modules.predict import Predict
    >>> qa = Predict("question -> answer")
    >>> qa.set_lm(ScriptedLM([{"answer": "It is Brussels"}, {"answer": "Brussels"}]))
    >>> short = BestOfN(qa, N=3, reward_fn=lambda args, pred: " " not in pred.answer, threshold=1.0)
    >>> short(question="What is the capital of Belgium?").answer
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
        if N < 1:
            raise ConfigurationError(f"N is {N}; at least one attempt is made")
        self.module = module
        # A judge that is a module belongs to the reward, not to what is learned here.
        self.reward_fn: Reward = reward_fn.__call__ if isinstance(reward_fn, Module) else reward_fn
        self.threshold = threshold
        self.N = N
        self.fail_count = N if fail_count is None else fail_count

    def forward(self, **kwargs: Any) -> Any:
        """The best prediction; blocks until it is there."""
        scope = SCOPE.get() or Scope(process_clients())
        best: Outcome | None = None
        hints: Mapping[int, str] = {}
        failures = 0
        for number in range(self.N):
            try:
                outcome = self._attempt(scope.trying(number, self.N, hinted=bool(hints)), hints, kwargs)
            except Exception as error:  # whatever the module or the reward raises is this attempt's failure
                failures += 1
                last = best is None and number == self.N - 1
                if last or failures > self.fail_count or not concerns_one_row(error):
                    raise
                _log.warning("%s: attempt %d failed: %s", type(self).__name__, number + 1, error)
                continue
            if best is None or outcome.reward > best.reward:
                best = outcome
            if self._good_enough(outcome.reward) or number == self.N - 1:
                break
            hints = self._hints(kwargs, outcome, hints)
        return _chosen(best)

    def _attempt(self, scope: Scope, hints: Mapping[int, str], inputs: dict[str, Any]) -> Outcome:
        calls: list[Any] = []
        tokens = SCOPE.set(scope), TRACE.set(calls), HINTS.set({**HINTS.get(), **hints})
        try:
            prediction = self.module(**inputs)
        finally:
            SCOPE.reset(tokens[0])
            TRACE.reset(tokens[1])
            HINTS.reset(tokens[2])
        token = TRACE.set(None)  # the calls of a judge are not those of the program
        try:
            reward = settled(self.reward_fn(dict(inputs), prediction))
        finally:
            TRACE.reset(token)
        return Outcome(prediction, calls, _number(reward))

    def _good_enough(self, reward: float) -> bool:
        return self.threshold is not None and reward >= self.threshold

    def _hints(
        self,
        inputs: Mapping[str, Any],  # noqa: ARG002 - for those who give any
        outcome: Outcome,  # noqa: ARG002
        before: Mapping[int, str],
    ) -> Mapping[int, str]:
        """What the next attempt is told, by predictor."""
        return before

    def input_names(self) -> tuple[str, ...] | None:
        """Those of the module."""
        return self.module.input_names()

    def required_names(self) -> tuple[str, ...]:
        """Those of the module."""
        return self.module.required_names()

    def output_names(self) -> tuple[str, ...] | None:
        """Those of the module."""
        return self.module.output_names()


def concerns_one_row(error: Exception) -> bool:
    """False for what would meet the next attempt, and the next row, just the same."""
    return not isinstance(error, DSPyStreamError) or error.scope == "row"


def _number(reward: Any) -> float:
    """A reward as a number that can be compared.

    Raises:
        TypeError: it is none.
    """
    try:
        found = float(reward)
    except (TypeError, ValueError):
        found = float("nan")
    if found != found:
        raise TypeError(f"reward_fn returned {reward!r}, not a number")
    return found


def _chosen(best: Outcome | None) -> Any:
    """The prediction; its calls count as those of the program."""
    assert best is not None
    trace = TRACE.get()
    if trace is not None:
        trace.extend(best.calls)
    return best.prediction
