"""Whether refusals come from the pace: those that come as often at any pace are not to slow it down.

A shared quota or a flaky gateway refuses a share of the calls however few there are; a rate limit
refuses none below its rate and ever more above. So refusals are counted before the pace is touched
(a cumulative sum test; Page, "Continuous Inspection Schemes", Biometrika 41, 1954), and where a lower
pace has them too, it is raised step by step: only a limit refuses more of it then. Sans-IO.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["Chance", "Verdict"]

Verdict = Literal["ignore", "heed", "climb", "back"]

# The share of refusals that is no news, at least, and as a multiple of that which is known.
_USUAL: Final = 0.03
_TIMES: Final = 2.0
# So many more refusals than that are news: at first, while the pace is raised, where a share is known.
_FIRST: Final = 3.0
_CLIMBING: Final = 4.0
_KNOWN: Final = 6.0
# From so many refusals at a pace that should have none the share is taken, if it is between these two.
_ENOUGH: Final = 5
_LEAST: Final = 0.01
_MOST: Final = 0.2
_PRIOR: Final = 2.0
_WITHIN: Final = 0.7
_HOLD: Final = 2.0


class Chance:
    """What is to be done about a refusal: a state machine, told the numbers of the refused calls alone.

    ``share`` of the calls is refused at any pace, as far as is known; while ``climbing`` the pace is
    raised to see whether that is so.
    """

    __slots__ = ("climbing", "share", "_bad", "_before", "_holds", "_last", "_made", "_score", "_since", "_until")

    def __init__(self) -> None:
        self.climbing = False
        self.share = self._before = 0.0
        self._score = 0.0
        self._last = 0  # the newest call that was refused
        self._since = 0  # calls up to this number were sent before the pace was as it is
        self._made = 0.0  # calls at a pace that should have no refusals, and those refused
        self._bad = 0
        self._holds = 0
        self._until = 0.0  # the pace is not raised before then

    def free(self, number: int, newest: int) -> Verdict:
        """Call ``number`` was refused while there was no pace: "heed" it or "ignore" it."""
        self._add(number)
        if self._score < (_KNOWN if self.share else _FIRST):
            return "ignore"
        self._count(newest)
        return "heed"

    def raised(self, now: float, number: int, newest: int) -> Verdict:
        """It was refused while the pace was raised: "climb" on, "ignore" it, or go "back"."""
        if number <= self._since:
            return "ignore"
        calm = number - self._last > 0.5 / self.share
        self._add(number)
        if self._score < _CLIMBING:
            if calm:
                self._since = newest
            return "climb" if calm else "ignore"
        self._count(newest)
        self.climbing = False
        self._until = now + _HOLD * 2.0**self._holds
        self._holds = min(self._holds + 1, 5)
        return "back"

    def paced(self, now: float, number: int, newest: int, quiet: float) -> Verdict:
        """It was refused at a pace that is known: "heed" it, "ignore" it, or "climb".

        ``quiet`` says how far the pace has risen since it was set; up to 1.0 it is within the limit.
        """
        gap = number - max(self._last, self._since)
        self._add(number, _LEAST)
        if number <= self._since:
            return "heed"
        self._made += max(gap, 0) * min(1.0, _WITHIN / max(quiet, 0.1))
        if quiet <= _WITHIN:
            self._bad += 1
        share = self._bad / max(self._made, 1.0)
        if self._bad >= _ENOUGH and now >= self._until:
            if _LEAST <= share <= _MOST:
                self.share = self._before = share
                self.climbing = True
                self._count(newest)
                return "climb"
            self._made = self._bad = 0
        if self.share:
            self.share = (self._bad + _PRIOR) / (self._made + _PRIOR / self._before)
        if self.share >= _LEAST and self._score < _FIRST:
            return "ignore"
        self._score = 0.0
        return "heed"

    def settled(self) -> None:
        """The pace has been raised until there is none."""
        self.climbing = False
        self._holds = 0

    def _add(self, number: int, least: float = _USUAL) -> None:
        usual = max(_TIMES * self.share, least)
        self._score = max(0.0, self._score - usual * max(0, number - self._last)) + 1.0
        self._last = max(self._last, number)

    def _count(self, newest: int) -> None:
        self._score = self._made = 0.0
        self._since = newest
        self._bad = 0
