"""Whether refusals come from the pace: those that come as often at any pace are not to slow it down.

A shared quota or a flaky gateway refuses a share of the calls however few there are; a rate limit
refuses none below its rate and ever more above. So refusals are counted before the pace is touched
(a cumulative sum test; Page, "Continuous Inspection Schemes", Biometrika 41, 1954), and where a lower
pace has them too, it is raised step by step: only a limit refuses more of it then. Sans-IO.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["Chance", "Verdict"]

Verdict = Literal["ignore", "heed", "scale", "back"]

# Refusals are news where they are more than this share of the calls by so many: those that come one
# after the other soon, a few in a hundred later. While a share is known, twice that share counts.
_CLUSTER: Final = (0.2, 3.5)
_SPREAD: Final = (0.02, 8.0)
_RAISED: Final = (0.04, 6.0)
_PACED: Final = (0.02, 3.0)
# From so many refusals at a pace that should have none the share is taken, if it is between these two.
_ENOUGH: Final = 5
_LEAST: Final = 0.01
_MOST: Final = 0.2
# A pace that has not risen further than this is within a limit; see :meth:`Chance.paced`.
_WITHIN: Final = 0.7
# A pace that is still too high is refused so soon again; chance has no memory, and is found without those.
_NEAR: Final = 2
# A share is doubted like one that was taken from so many refusals.
_PRIOR: Final = 2.0
# Seconds for which a raised pace is kept at least, and after a failure none is raised, at first.
_LEVEL: Final = 0.5
_HOLD: Final = 2.0


class _Sum:
    """How many more refusals have come than a share of the calls would be; never below zero."""

    __slots__ = ("more",)

    def __init__(self) -> None:
        self.more = 0.0

    def add(self, calls: int, share: float) -> float:
        self.more = max(0.0, self.more - share * calls) + 1.0
        return self.more


class Chance:
    """What is to be done about a refusal: a state machine, told the numbers of the refused calls alone.

    ``share`` of the calls is refused at any pace, as far as is known; while ``climbing`` the pace is
    raised to see whether that is so.
    """

    __slots__ = (
        *(
            "climbing",
            "calls",
            "scale",
            "share",
            "_bad",
            "_before",
            "_cluster",
            "_holds",
            "_last",
            "_level",
            "_made",
        ),
        *("_since", "_slowed", "_spread", "_until"),
    )

    def __init__(self) -> None:
        self.climbing = False
        self.scale = 1.0  # so many times as fast
        self.calls = 0.0  # and for so many calls at least
        self.share = 0.0
        self._slowed = 0.0  # the share for which the pace was lowered, to see whether that helps
        self._before = 0.0  # the share when it was found
        self._cluster = _Sum()
        self._spread = _Sum()
        self._last = 0  # the newest call that was refused
        self._since = 0  # calls up to this number were sent before the pace was as it is
        self._made = 0.0  # calls at a pace that should have no refusals, and those refused
        self._bad = 0
        self._level = 0.0  # when the pace was raised last
        self._holds = 0
        self._until = 0.0  # the pace is not raised before then

    def free(self, now: float, number: int, newest: int) -> Verdict:
        """Call ``number`` was refused while there was no pace: "heed" it, "ignore" it, or go "back"."""
        calls = self._calls(number)
        cluster = self._cluster.add(calls, max(_CLUSTER[0], 2.0 * self.share)) >= _CLUSTER[1]
        spread = self._spread.add(calls, max(_SPREAD[0], 2.0 * self.share)) >= _SPREAD[1]
        if not cluster and not spread:
            return "ignore"
        self.stands(newest)
        if self.share and now < self._until:  # the last that was raised was none too low
            return self._back(now)
        return "heed"

    def raised(self, now: float, number: int, newest: int) -> Verdict:
        """It was refused while the pace was raised: "scale" on, "ignore" it, or go "back"."""
        if number <= self._since:
            return "ignore"
        calls = self._calls(number)
        if self._spread.add(calls, max(_RAISED[0], 2.0 * self.share)) >= _RAISED[1]:
            self.stands(newest)
            return self._back(now)
        if calls * self.share <= 0.5 or now - self._level < _LEVEL:
            return "ignore"
        return self._raise(now, newest)

    def paced(self, now: float, number: int, newest: int, risen: float) -> Verdict:
        """It was refused at a pace that is known: "heed" it, "ignore" it, or "scale".

        ``risen`` says how far the pace has risen since it was set, in periods.
        """
        if number <= self._since:
            return "heed"
        calls = self._calls(number)
        more = self._spread.add(calls, max(_PACED[0], 2.0 * self.share))
        within = risen <= _WITHIN
        alone = max(0, calls - _NEAR)
        self._made += alone * min(1.0, _WITHIN / max(risen, 0.1))
        if within and alone:
            self._bad += 1
        share = self._bad / max(self._made, 1.0)
        if self._bad >= _ENOUGH and now >= self._until:
            if not _LEAST <= share <= _MOST:
                self._slowed = 0.0
                self.stands(newest)
            elif share > 0.5 * self._slowed > 0.0:
                self.share = self._before = share
                self._slowed = 0.0
                self.climbing = True
                return self._raise(now, newest)
            else:
                self._slowed = share
                self.scale = 1.0 - 2.0 * share
                self.calls = 3.0 * _ENOUGH / share
                self.stands(newest)
                return "scale"
        elif self._slowed and (not within or self._bad < 0.5 * self._made * self._slowed - 1.5):
            self._slowed = 0.0  # it has helped
            self.stands(newest)
        elif self.share:
            found = (self._bad + _PRIOR) / (self._made + _PRIOR / self._before)
            self.share = min(found, self._before)
            if self.share < 0.5 * _LEAST:
                self.share = 0.0
        if (self.share and more < _PACED[1]) or (self._slowed and within):
            return "ignore"
        self._spread.more = 0.0
        return "heed"

    def stands(self, newest: int) -> None:
        """What was sent until now was not sent at the pace that comes."""
        self._cluster.more = self._spread.more = self._made = 0.0
        self._since = newest
        self._bad = 0

    def settled(self, now: float) -> None:
        """The pace has been raised until there is none."""
        self.climbing = False
        if now >= self._until:
            self._holds = 0
            self._until = now + _HOLD

    def _raise(self, now: float, newest: int) -> Verdict:
        self.stands(newest)
        self._level = now
        self.scale = 2.0
        self.calls = 0.0
        return "scale"

    def _back(self, now: float) -> Verdict:
        self.climbing = False
        self._until = now + _HOLD * 2.0**self._holds
        self._holds = min(self._holds + 1, 5)
        return "back"

    def _calls(self, number: int) -> int:
        calls = max(0, number - max(self._last, self._since))
        self._last = max(self._last, number)
        return calls
