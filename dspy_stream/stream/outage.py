"""Whether the models of a step answer, and whose fault it is where a row gets no answer.

A model that is down is not the fault of a row: rows wait, for as long as the outage budget lasts. A
row that keeps failing while others are answered is at fault itself. Where nobody else is asked, or
so many rows fail that their failures look like the model's, a question of our own before the row's
next attempt tells which it is (see probe.py); one answer serves all rows that fail after it. All is
decided here, from what calls and rows report; time comes in as an argument.

A question of our own says more than the answers of others: it is asked when a row is about to fail, not
when the model happens to be well, and a server that comes and goes fails it as often as it fails rows.
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
# Seconds without an answer after which a row that failed has the model asked something else first; a
# tenth of the outage budget where that is less.
_SUSPICIOUS: Final = 3.0
# Failures after which that is done whoever else is answered.
_UNDECIDED: Final = 3
# How much more an answer to a question of our own says, and the seconds for which it is remembered.
_WORTH: Final = 2.0
_MEMORY: Final = 60.0
# Seconds for which that question waits for an open circuit once the outage budget is used up: twice
# the longest pause.
_PATIENCE: Final = 60.0


class _Model:
    """What is known of one model: its answers and failures, counted by row, and its last trouble.

    ``probes`` questions of our own were answered; ``well`` and ``in_vain`` count the latest of them,
    answered and not, ``asked`` is when the last one was over, and ``unheard`` the same of one in vain.
    """

    __slots__ = (
        *("answered", "answers", "asked", "error", "failures", "in_vain", "probes", "told"),
        *("troubled", "unheard", "well"),
    )

    def __init__(self) -> None:
        self.answers = 0
        self.failures = 0
        self.answered = -math.inf
        self.troubled = -math.inf
        self.asked = self.unheard = -math.inf
        self.probes = 0
        self.well = self.in_vain = 0.0
        self.error: LMError | None = None
        self.told = False


class _Doubt:
    """A row that got no answer: how it stood then, and how much speaks against the row since."""

    __slots__ = (
        *("against", "answers", "calls", "failed", "failures", "model", "probes", "rounds", "suspect"),
        "times",
    )

    def __init__(self) -> None:
        self.against = 0.0
        self.model: str | None = None
        self.suspect = False  # failed at last while nobody was answered, or too often
        self.times = self.failed = 0  # attempts that had no answer, and those of them that were made
        self.answers = self.failures = self.probes = 0
        self.calls = 0  # that failed since
        self.rounds = 0  # failures after which a question of our own was answered, and then it failed again

    def stands(self, model: _Model) -> None:
        """Note how the model stands now."""
        self.answers, self.failures, self.probes = model.answers, model.failures, model.probes


class Outage:
    """The outages of one step. ``budget`` is how many seconds a model may go without an answer.

    The time in which nobody asks anything does not count. Where ``probing``, an outage has not lasted long
    enough before a question of our own was asked in vain.
    """

    def __init__(self, budget: float, now: float, *, probing: bool = True) -> None:
        self._budget = budget
        self._may_probe = probing
        self._busy_since = now
        self._under_way = 0
        self._answered = -math.inf  # by any model
        self._models: dict[str | None, _Model] = {}
        self._rows: dict[str, _Doubt] = {}
        self._probing: str | None = None  # the row before whose attempt a question is asked

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

    def waited(self, error: LMError, now: float) -> bool:
        """True where the model has been silent for longer than the budget."""
        return self.silent(error.model, now) > self._budget

    def spent(self, error: LMError, now: float) -> bool:
        """True where the flow has waited long enough: nothing else was answered either."""
        if not self.waited(error, now):
            return False
        return not self._may_probe or self._of(error).unheard >= now - self.silent(error.model, now)

    def told(self, error: LMError, now: float) -> LMError:
        """The same error, whose text says for how long the flow has waited."""
        waited = (
            f"no answer for {self.silent(error.model, now):.0f} s, of outage={self._budget:g}: the flow ends"
        )
        if ": the flow ends" not in str(error):  # rows that ask the same share one error
            error.args = (f"{error}; {waited}",)
        return error

    def goes_on(self, row_id: str, error: LMError, now: float) -> bool:
        """Hear of a failed attempt at a call; False where the call should end with it.

        A question of our own is asked once, but waits for an open circuit. A row that has failed does not:
        one that always fails would make the trial call, and keep the circuit open for all. Nor does any
        other once the model is silent, so that the question is asked at all.
        """
        refused = isinstance(error, LMUnavailableError)
        waits = refused or isinstance(error, LMRateLimitError)
        if row_id == self._probing:
            return waits and self.silent(error.model, now) <= self._budget + _PATIENCE
        if not waits:
            doubt = self._doubt(row_id, error)
            doubt.calls += 1
            doubt.model = error.model
        elif refused and self._may_probe and (row_id in self._rows or self._suspicious(error.model, now)):
            doubt = self._doubt(row_id, error)
            doubt.model = error.model
            doubt.suspect = doubt.suspect or doubt.calls > 0 or self._suspicious(error.model, now)
            if doubt.suspect:
                return False
        return not self.waited(error, now)

    def behind_timeout(self, seconds: float | None, now: float) -> LMError | None:
        """The trouble that a row may have waited for all of its ``seconds``; None where there was none."""
        for model in self._models.values():
            if model.troubled > max(model.answered, now - (seconds or 0.0)):
                return model.error
        return None

    def wants_probe(self, row_id: str, now: float) -> bool:
        """True where the model should be asked something else before this row's next attempt.

        Not where it has answered such a question since the row failed. One at a time: call ``probed``
        before the next.
        """
        doubt = self._rows.get(row_id)
        if doubt is None or self._probing is not None or not self._may_probe:
            return False
        if doubt.failed > _UNDECIDED or self._suspicious(doubt.model, now):
            doubt.suspect = True
        if not doubt.suspect or self.vouched(row_id):
            return False
        self._probing = row_id
        return True

    def suspects(self, row_id: str) -> bool:
        """True for a row that may be at fault."""
        doubt = self._rows.get(row_id)
        return doubt is not None and doubt.suspect

    def vouched(self, row_id: str) -> bool:
        """True where the row's model has answered a question of our own since the row failed."""
        doubt = self._rows.get(row_id)
        return doubt is not None and self._named(doubt.model).probes > doubt.probes

    def failing(self, row_id: str) -> str | None:
        """The model that failed this row last; None where nobody knows."""
        doubt = self._rows.get(row_id)
        return doubt.model if doubt is not None else None

    def probed(self, answered: bool, now: float) -> None:
        """The question was answered or not; an answer is told to ``answered`` as any other."""
        doubt = self._rows.get(self._probing) if self._probing is not None else None
        self._probing = None
        if doubt is None:
            return
        model = self._named(doubt.model)
        kept = math.exp((model.asked - now) / _MEMORY)
        model.well *= kept
        model.in_vain *= kept
        model.asked = now
        if answered:
            model.probes += 1
            model.well += 1.0
        else:
            model.in_vain += 1.0
            model.unheard = now

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
        doubt = self._doubt(row_id, error)
        doubt.times += 1
        doubt.model = error.model
        if isinstance(error, (LMRateLimitError, LMUnavailableError)) and not (
            doubt.calls and model.probes > doubt.probes
        ):
            return False
        model.failures += 1
        if doubt.failed:
            doubt.against += _beside(model, doubt)
            doubt.rounds += model.probes > doubt.probes
        doubt.failed += 1
        doubt.calls = 0
        doubt.stands(model)
        # By what is known of the model now: the first answers may have been luck, and all rows share them.
        against = max(doubt.against, doubt.rounds * _asked(model))
        return against >= _ENOUGH and doubt.failed > patience

    def _suspicious(self, name: str | None, now: float) -> bool:
        return self.silent(name, now) > min(_SUSPICIOUS, self._budget / 10)

    def _doubt(self, row_id: str, error: LMError) -> _Doubt:
        doubt = self._rows.get(row_id)
        if doubt is None:
            doubt = self._rows[row_id] = _Doubt()
            doubt.stands(self._of(error))
        return doubt

    def _of(self, error: LMError) -> _Model:
        return self._named(error.model)

    def _named(self, name: str | None) -> _Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model()
        return model


def _beside(model: _Model, doubt: _Doubt) -> float:
    """How unlikely luck makes this failure beside what came of other rows, as the logarithm of a chance."""
    answers, failures = model.answers - doubt.answers, model.failures - doubt.failures
    return min(_MOST, math.log((answers + failures + 1) / failures)) if answers > 0 else 0.0


def _asked(model: _Model) -> float:
    """The same beside what came of questions of our own; by Laplace's rule, which expects both."""
    return min(_MOST, _WORTH * math.log((model.well + model.in_vain + 2.0) / (model.in_vain + 1.0)))
