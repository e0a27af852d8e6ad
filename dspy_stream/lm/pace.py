"""The rate that a server allows, learned from its refusals alone: a state machine, told the time.

Two refusals say that the server's allowance was used up at both moments; what it admitted between
them, over the time between them, is therefore its rate, exactly so for a token bucket, and for fixed
and sliding windows where the refusals are the last of their kind. Below that rate calls are
paced evenly, because an even pace is within every kind of limit. While nothing is refused, the pace
rises, slowly at first and then ever faster, and a refusal takes it back: the probing of BBR
(Cardwell, Cheng, Gunn, Hassas Yeganeh and Jacobson, "BBR: Congestion-Based Congestion Control",
ACM Queue 14(5), 2016), with refusals in the place of delivery rates.
"""

from __future__ import annotations

import math
from array import array
from typing import Final, NamedTuple

__all__ = ["Pacer"]

# The pace after a refusal, as a share of the estimate.
_BELOW: Final = 0.985
# Growth of the pace: exp(_RISE * quiet ** 3), quiet being the time without refusals over a period.
_RISE: Final = 0.02
_STEEP: Final = 4.0
# The period in seconds: at least, usually, and at most where a refusal costs more.
_PERIOD: Final = (1.0, 5.0, 20.0)
# Above this gain at a refusal the allowance has not been used up before: older refusals say nothing.
_FAR: Final = 1.5
# Intervals between refusals from which the rate is taken.
_INTERVALS: Final = 4
# Refused one after the other, so many are a wall: the allowance is gone for longer than a gap.
_WALL: Final = 2
# A single refusal lowers the pace no further than to this share of it.
_STEP: Final = 0.75
# Nor do several, where there is little to measure by.
_FEW: Final = 0.2
# Refused one after the other, so many speak of the endpoint: all wait for as long as it asks.
_ENDPOINT: Final = 3
# So many admitted calls are a stretch without refusals, and so many a good estimate.
_SURE: Final = 8
_MANY: Final = 50
# How late a permit may be given without the next one being late too; timers have a grain.
_LATE: Final = 0.005
# So long without a call that could have been sent, and the allowance may have filled up.
_IDLE: Final = 0.02
# A refusal that is followed by so long a pause must be rare.
_COSTLY: Final = 0.25
_KEPT: Final = 16
_RING: Final = 1024
_LONGEST_HOLD: Final = 5.0
_LONGEST_ECHO: Final = 1.0
_SLOWEST: Final = 0.02
_FASTEST: Final = 1e4


class _Wall:
    """Calls refused one after the other: their numbers, and when the last of them was sent."""

    __slots__ = ("ended", "first", "last", "paused")

    def __init__(self, number: int, sent: float, paused: float) -> None:
        self.first = self.last = number
        self.ended = sent
        self.paused = paused  # what the server had asked to wait until then, in all


class _Measure(NamedTuple):
    """Calls admitted between refusals in so many seconds, and how long we were asked to wait between."""

    admitted: int
    seconds: float
    paused: float

    @property
    def rate(self) -> float:
        """From the upper end of its error; where the server asked to wait, between what that may mean."""
        admitted = self.admitted + (0.5 if self.admitted < _MANY else 0.0)
        if not self.paused:
            return admitted / self.seconds
        return admitted / math.sqrt(self.seconds * (self.seconds + self.paused))


class Pacer:
    """When the next call may be sent. Every method is told the time in seconds of a monotonic clock.

    ``rate`` is the estimate in calls per second, None while nothing has been refused. ``free_at`` is
    when the next call may go, ``gap`` the seconds from one call to the next. A caller that sends
    one says so with :meth:`sent`, and later either :meth:`admitted` or :meth:`refused` with the
    number it was given.
    """

    __slots__ = (
        *("free_at", "gap", "newest", "probing", "quiet", "rate", "until"),
        *(
            "_began",
            "_certain",
            "_costly",
            "_cut",
            "_denials",
            "_denied",
            "_echo",
            "_grain",
            "_last",
            "_lost",
        ),
        *("_paused", "_period", "_probe", "_resumed", "_ring", "_settled", "_walls", "_wide"),
    )

    def __init__(self) -> None:
        self.rate: float | None = None
        self.gap = 0.0
        self.free_at = 0.0
        self.newest = 0
        self._last = math.inf  # when the last call was sent
        # When each of the last calls was sent, without the time in which we would not send.
        self._ring = array("d", bytes(8 * _RING))
        self._lost = 0.0  # that time, in all
        self._paused = 0.0  # how much of it the server asked for
        self._walls: list[_Wall] = []
        self._settled = 0  # calls up to this number were sent before the last wall was behind
        self._began = 1  # the first call that was not sent to try whether the wall is behind
        self._cut = 0  # calls up to this number were sent before the last decision
        self._echo = 0.0  # how long a refusal takes to come back
        self._denied = -math.inf  # when the last refused call was sent
        self.until = -math.inf  # the server asked to wait until then
        self._costly = 0.0  # for so long
        self._period = _PERIOD[0]
        self.quiet = 0.0  # periods since the last refusal
        self._resumed = 0.0  # the pace to go on at, where it is known
        self._certain = False  # the estimate is from many calls
        self.probing = False
        self._probe = 0
        self._denials = 0  # refused probes
        self._wide = 0.0  # how long the last wall was
        self._grain = 0.0  # how late permits are on average

    # ------------------------------------------------------------------------------- sending

    def sent(self, now: float) -> int:
        """A call is sent: its number. Moves ``free_at``."""
        number = self.newest = self.newest + 1
        if self.probing:
            if not self._probe:
                self._probe = number
                self._ring[number % _RING] = now - self._lost
                self._last = now
                self.free_at = now + 1.5 * self._echo
                return number
            self._settle(now)  # the probe would have been refused by now
        elif now - self._last > _IDLE and now - self.free_at > _IDLE:
            self._lost += now - max(self._last, self.free_at)  # nobody wanted to send
        self._ring[number % _RING] = now - self._lost
        self._last = now
        if self.gap:
            self._paced(now)
        return number

    def _paced(self, now: float) -> None:
        """Say when the next one may go."""
        late = now - self.free_at
        gap = self.gap
        if self.rate is not None and late < gap:
            self.quiet += gap / self._period
            self._grain += (min(max(late, 0.0), _LATE) - self._grain) * 0.05
            gap = self._regap()
        # Where there is time enough between two calls, one that is late does not hurry the next.
        allowed = min(_LATE, max(0.0, _LATE - 0.25 * gap) + self._grain)
        self.free_at = max(self.free_at, now - allowed) + gap

    def _regap(self) -> float:
        rate = self.rate
        assert rate is not None
        if self.quiet > _STEEP:
            self.quiet -= 1.0
            # So far above what was refused once, that is no longer the limit: find the new one soon.
            self._period = max(0.5 * self._period, min(self._period, 2.0 * _PERIOD[0]))
            self.rate = rate = rate * math.exp(_RISE * (_STEEP**3 - (_STEEP - 1.0) ** 3))
        self.gap = 1.0 / (rate * _BELOW * math.exp(_RISE * max(self.quiet, 0.0) ** 3))
        if rate >= _FASTEST:  # as good as none
            self.rate, self.gap = None, 0.0
            self._walls.clear()
        return self.gap

    # ------------------------------------------------------------------------------- hearing

    def admitted(self, now: float, number: int) -> None:
        """The server did what it was asked."""
        if self.probing and 0 < self._probe <= number:
            self._settle(now)
            self.free_at = max(self.until, now)

    def refused(
        self, now: float, number: int, sent: float, retry_after: float = 0.0, *, heed: bool = True
    ) -> None:
        """The server said no, and perhaps how long to wait; not to ``heed`` it is to count it only.

        How long to wait is the call's own affair, unless the one before or after it was refused too.
        """
        echo = min(max(now - sent, 0.001), _LONGEST_ECHO)
        self._echo += (echo - self._echo) * (0.25 if self._echo else 1.0)
        if number <= self._settled or self.newest - number >= _RING:
            return  # what it says of the time before is known by now
        self._denied = max(self._denied, sent)
        fresh = number > self._cut
        length = self._note(number)
        if not heed:
            return
        if length < _ENDPOINT and not (self.probing and 0 < self._probe <= number):
            retry_after = 0.0
        self._costly = retry_after
        if self.probing:
            self._refused_again(now, number)
        elif self.rate is None or length >= _WALL:
            self._stop(now)
        elif fresh:
            self._correct(number)
        else:
            self._refine()
        if fresh:
            self._cut = self.newest
        if retry_after > 0.0:
            self.wait(now, retry_after)

    def _note(self, number: int) -> int:
        """Add a refused call to the walls; the length of its wall."""
        walls = self._walls
        sent = self._ring[number % _RING]
        at = len(walls)
        while at and walls[at - 1].first > number:
            at -= 1
        if at and walls[at - 1].last >= number - 1:
            wall = walls[at - 1]
            wall.last, wall.ended = max(wall.last, number), max(wall.ended, sent)
            if at < len(walls) and walls[at].first == number + 1:
                wall.last, wall.ended = walls[at].last, walls[at].ended
                del walls[at]
        elif at < len(walls) and walls[at].first == number + 1:
            wall = walls[at]
            wall.first = number
        else:
            wall = _Wall(number, sent, self._paused)
            walls.insert(at, wall)
            del walls[:-_KEPT]
        return wall.last - wall.first + 1

    def wait(self, now: float, seconds: float) -> None:
        """Send nothing for so long, because the server asked for it."""
        until = now + seconds
        if until > self.until:
            asked = until - max(now, self.until)
            self._lost += asked
            self._paused += asked
            self.until = until
        self.free_at = max(self.free_at, self.until)

    # ------------------------------------------------------------------------------- raising

    def scale(self, times: float, calls: float) -> bool:
        """So many times as fast, and no faster for so many calls; True where there is no pace any more."""
        if self.rate is None:
            return True
        pace = 1.0 / self.gap
        if times < 1.0 and (found := self._measured(_INTERVALS)) is not None:
            pace = min(pace, found.admitted / found.seconds)  # a limit, if there is one, is no lower
        del self._walls[:-1]
        self._restart(times * pace, None)
        self.quiet -= min(calls * self.gap, _PERIOD[2]) / self._period
        return self.rate is None

    def back(self, now: float, number: int, rate: float) -> None:
        """To the pace from before it was raised, once there is room again; ``number`` was refused."""
        self._walls.clear()
        self._cut = self.newest
        self._note(number)
        self._restart(rate, None)
        self._resumed = rate
        self._stop(now)

    # ------------------------------------------------------------------------------ deciding

    def _stop(self, now: float) -> None:
        """Send nothing until it is known what became of what has been sent, then one at a time."""
        self.probing = True
        self._probe = self._denials = 0
        self._hold(now)

    def _hold(self, now: float) -> None:
        self.free_at = max(self.free_at, now, self._last + max(1.25 * self._echo, 0.3 * self._wide))

    def _refused_again(self, now: float, number: int) -> None:
        if not self._probe:
            self._hold(now)
        elif number >= self._probe:
            self._probe = 0
            self._denials += 1
            wall = self._walls[-1]
            since = now - self._lost - self._ring[wall.first % _RING]
            self.free_at = max(self.until, now + min((0.4 if since > 0.1 else 1.0) * since, _LONGEST_HOLD))

    def _settle(self, now: float) -> None:
        """The wall is behind: go on at the rate that is known by now."""
        self.probing = False
        self._probe = 0
        if self._denials:
            # The wall ended somewhere between the last refused probe and the first admitted one.
            self._walls[-1].ended += 0.5 * max(0.0, self._last - self._denied)
        found = self._measured(_KEPT)
        if self._resumed:
            rate, self._resumed = self._resumed, 0.0
        elif self.rate is None:
            rate = max(found.rate if found is not None else 0.0, self._admitted_at_first())
        else:
            pace = self._pace_at(self._walls[-1].first)
            rate = min(found.rate, _BELOW * pace) if found is not None else 0.7 * pace
            if found is None or found.admitted < _SURE:
                rate = max(rate, _FEW * pace)
        del self._walls[:-1]
        wall = self._walls[0]
        self._settled = wall.last
        self._began = self.newest + 1
        self._wide = wall.ended - self._ring[wall.first % _RING] if self._denials else 0.0
        # Since the last refusal we held back, not the server.
        held = max(0.0, now - max(self._denied, self.until))
        self._lost += held - (0.5 * max(0.0, self._last - self._denied) if self._denials else 0.0)
        self._restart(rate, found)

    def _admitted_at_first(self) -> float:
        walls = self._walls
        refused = sum(wall.last - wall.first + 1 for wall in walls[:-1])
        oldest = max(1, self.newest - _RING + 2)
        took = walls[-1].ended - self._ring[oldest % _RING]
        return max(1.0, walls[-1].first - oldest - refused) / max(took, 0.001)

    def _pace_at(self, number: int) -> float:
        """How fast calls were sent when this one was."""
        before = max(number - _SURE, self._began, self.newest - _RING + 1)
        took = self._ring[number % _RING] - self._ring[before % _RING]
        now = 1.0 / self.gap
        return min(now, (number - before) / took) if number > before and took > 0.0 else now

    def _correct(self, number: int) -> None:
        """Come back from a pace that was too high."""
        pace = self._pace_at(number)
        assert self.rate is not None
        last = self._measured(1)
        if self._costly > _COSTLY and last is not None and last.seconds > last.paused:
            # What went well is what is safe, less what may have been saved up in the pause.
            safe = last.admitted / (last.seconds + 0.2 * last.paused)
            self._restart(min(safe, _BELOW * pace), last)
            return
        if pace > _FAR * self.rate:
            del self._walls[:-1]
            self._restart(0.85 * pace, None)
            return
        if last is None:
            self._restart(0.97 * pace, None)
            return
        found = self._measured(_INTERVALS) or last
        rate = found.rate
        long = last.admitted >= _MANY and last.paused < 0.2 * last.seconds
        if long:
            rate = last.admitted / last.seconds
        if rate < pace and last.admitted > _SURE and (long or not found.paused):
            # The allowance may have been full in between, and the rate is higher than it seems.
            rate = math.sqrt(rate * pace)
        self._restart(min(max(rate, _STEP * pace), _BELOW * pace), found)

    def _refine(self) -> None:
        if self._certain:
            return
        found = self._measured(_INTERVALS)
        if found is not None and self.rate is not None and found.rate < self.rate:
            self.rate = found.rate
            self._regap()

    def _measured(self, intervals: int) -> _Measure | None:
        """What was admitted between the last walls."""
        walls = self._walls[-intervals - 1 :]
        if len(walls) < 2:
            return None
        first, last = walls[0], walls[-1]
        refused = sum(wall.last - wall.first + 1 for wall in walls[1:-1])
        admitted = last.first - first.last - 1 - refused
        seconds, paused = last.ended - first.ended, last.paused - first.paused
        return _Measure(max(admitted, 0), max(seconds, 0.001), max(paused, 0.0))

    def _restart(self, rate: float, found: _Measure | None) -> None:
        self.rate = rate = min(max(rate, _SLOWEST), _FASTEST)
        low, high, longest = _PERIOD
        most = min(max(high, 100.0 / rate, 20.0 * self._costly), longest)
        self._certain = found is not None and found.admitted >= _MANY
        sure = found.seconds * min(1.0, found.admitted / _MANY) if found is not None else 0.0
        self._period = min(max(sure, low, 8.0 * self._echo), most)
        self.quiet = 0.0
        self._regap()
