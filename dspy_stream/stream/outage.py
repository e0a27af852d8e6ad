"""Whether the models of a step answer, and whose fault it is where a row gets no answer.

A model that is down is not the fault of a row: rows wait, for as long as the outage budget lasts. A
row that keeps failing while others are answered is at fault itself. Where nobody else is asked, a
question of our own before the row's next attempt tells which it is (see probe.py). All is decided
here, from what calls and rows report; time comes in as an argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from dspy_stream.errors import LMError, LMRateLimitError, LMUnavailableError

__all__ = ["Outage"]

# One failure beside a hundred answers is worth so much, and no failure is worth more: a row is at
# fault when bad luck explains its failures with less than one chance in a million.
_MOST: Final = math.log(100.0)
_ENOUGH: Final = 3 * _MOST
# Seconds without an answer after which a failing model is worth a warning.
_WORTH_TELLING: Final = 3.0
# Seconds without an answer after which a row that failed twice has the model asked something else
# first; a tenth of the outage budget where that is less.
_SUSPICIOUS: Final = 10.0


class _Model:
    """What is known of one model: its answers and failures, counted by row, and its last trouble."""

    __slots__ = ("answered", "answers", "error", "failures", "told", "troubled")

    def __init__(self) -> None:
        self.answers = 0
        self.failures = 0
        self.answered = -math.inf
        self.troubled = -math.inf
        self.error: LMError | None = None
        self.told = False


class _Doubt:
    """A row that got no answer: how it stood then, and how much speaks against the row since."""

    __slots__ = ("against", "answers", "failures", "model", "suspect", "times")

    def __init__(self) -> None:
        self.against = 0.0
        self.model: str | None = None
        self.suspect = False  # failed at last while nobody was answered
        self.answers = self.failures = self.times = 0


class Outage:
    """The outages of one step. ``budget`` is how many seconds a model may go without an answer.

    The time in which nobody asks anything does not count.
    """

    def __init__(self, budget: float, now: float) -> None:
        self._budget = budget
        self._busy_since = now
        self._under_way = 0
        self._answered = -math.inf  # by any model
        self._models: dict[str | None, _Model] = {}
        self._rows: dict[str, _Doubt] = {}
        self._probing = False

    # --------------------------------------------------------------------------- what happens

    def started(self, now: float) -> None:
        """A row began."""
        if self._under_way == 0:
            self._busy_since = now
        self._under_way += 1

    def ended(self, row_id: str) -> None:
        """A row is through, one way or the other."""
        self._under_way = max(0, self._under_way - 1)
        if self._rows:
            self._rows.pop(row_id, None)

    def answered(self, models: Iterable[str], now: float) -> float | None:
        """These models answered a row; seconds without an answer, where an outage ends that was told of."""
        over: float | None = None
        for name in models:
            model = self._models.get(name)
            if model is None:
                model = self._models[name] = _Model()
            if model.told:
                model.told = False
                over = self.silent(name, now)
            model.answers += 1
            model.answered = now
        unnamed = self._models.get(None)  # an error that did not say whose it was
        if unnamed is not None and unnamed.told:
            unnamed.told = False
            over = over or self.silent(None, now)
        self._answered = now
        return over

    def troubled(self, error: LMError, now: float) -> bool:
        """A call failed in a way that may pass; True where it is time to tell somebody."""
        model = self._of(error)
        model.troubled = now
        model.error = error
        if self.silent(error.model, now) <= _WORTH_TELLING:
            return False
        model.told = True
        return True

    # ------------------------------------------------------------------------------- what follows

    def silent(self, name: str | None, now: float) -> float:
        """Seconds for which a model has been asked without an answer."""
        model = self._models.get(name)
        last = model.answered if model is not None and model.answers else self._answered
        return now - max(last, self._busy_since)

    def spent(self, error: LMError, now: float) -> bool:
        """True where the flow has waited long enough."""
        return self.silent(error.model, now) > self._budget

    def behind_timeout(self, seconds: float | None, now: float) -> LMError | None:
        """The trouble that a row may have waited for all of its ``seconds``; None where there was none."""
        for model in self._models.values():
            if model.troubled > max(model.answered, now - (seconds or 0.0)):
                return model.error
        return None

    def wants_probe(self, row_id: str, now: float) -> bool:
        """True where the model should be asked something else before this row's next attempt.

        One at a time: call ``probed`` before the next.
        """
        doubt = self._rows.get(row_id)
        if doubt is None or doubt.times < 2 or self._probing:
            return False
        if self.silent(doubt.model, now) > min(_SUSPICIOUS, self._budget / 10):
            doubt.suspect = True
        self._probing = doubt.suspect
        return doubt.suspect

    def failing(self, row_id: str) -> str | None:
        """The model that failed this row last; None where nobody knows."""
        doubt = self._rows.get(row_id)
        return doubt.model if doubt is not None else None

    def probed(self) -> None:
        """The question was answered or not; an answer is told to ``answered`` as any other."""
        self._probing = False

    def lost(self, row_id: str) -> int:
        """Attempts at a row that had no answer."""
        doubt = self._rows.get(row_id)
        return doubt.times if doubt is not None else 0

    def blames(self, row_id: str, error: LMError, patience: int) -> bool:
        """True where a row, and not its model, is at fault for getting no answer again.

        Never before more than ``patience`` attempts, never where nobody else was answered since
        its last one, and never for a limit on the rate or a call that was not made.
        """
        model = self._of(error)
        model.failures += 1
        doubt = self._rows.get(row_id)
        if doubt is None:
            doubt = self._rows[row_id] = _Doubt()
        elif not isinstance(error, (LMRateLimitError, LMUnavailableError)):
            answers = model.answers - doubt.answers
            failures = model.failures - doubt.failures
            if answers > 0:
                doubt.against += min(_MOST, math.log((answers + failures + 1) / failures))
        doubt.times += 1
        doubt.model = error.model
        doubt.answers, doubt.failures = model.answers, model.failures
        return doubt.against >= _ENOUGH and doubt.times > patience

    def _of(self, error: LMError) -> _Model:
        model = self._models.get(error.model)
        if model is None:
            model = self._models[error.model] = _Model()
        return model
