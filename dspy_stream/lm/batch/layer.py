"""The layer of the batch lane: it waits for its answer until a batch at the provider has it.

A request is collected, sent with others, and answered when their batch has ended. Finished answers
reach the journal as those of any other layer do; answers that nobody waits for any more are put
there by the lane itself, so that nothing is paid twice.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from dspy_stream.clock import Clock
from dspy_stream.errors import LMBatchError, LMServerError
from dspy_stream.lm.batch.api import BatchApi
from dspy_stream.lm.batch.codec import Outcome
from dspy_stream.lm.batch.follow import Batch
from dspy_stream.lm.batch.keeping import Keeper
from dspy_stream.lm.batch.ledger import Ledger
from dspy_stream.lm.batch.plan import BatchOptions, Collector, Outage, judge
from dspy_stream.lm.cache import Journal
from dspy_stream.lm.providers.format import Format
from dspy_stream.lm.reserve import Meter
from dspy_stream.types import BatchRecord, Request, Response, Usage

__all__ = ["BatchLayer", "Shared", "Waiting"]

# Around a request's body, in bytes: its name, method and address.
_AROUND: Final = 200
# Keys of requests whose answers are not to be kept.
_ONCE: Final = b"once/"
_CLOSING: Final = 8.0
_AGAIN: Final = 0.2
_FULL_PAUSE: Final = 12.0
_LONGEST_FULL: Final = 1800.0


class Waiting(NamedTuple):
    """A batch that is waited for; ``batch_id`` is empty while it is being sent."""

    batch_id: str
    status: str
    done: int
    total: int
    rows: int

    def __str__(self) -> str:
        if not self.batch_id:
            return f"{self.rows:,} rows: {self.status}"
        return f"{self.rows:,} rows wait for {self.batch_id} ({self.status}, {self.done:,}/{self.total:,})"


class Shared(NamedTuple):
    """What all layers of a lane have in common."""

    journal: Journal
    ledger: Ledger
    options: BatchOptions
    outage: float
    clock: Clock
    rng: random.Random


class _Want:
    """A request that somebody waits for, and how many batches it was in."""

    __slots__ = ("attempts", "body", "futures", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.futures: list[asyncio.Future[Response]] = []
        self.attempts = 0
        self.body: bytes | None = None


class BatchLayer:
    """The batches of one model at one server. Runs on the engine's loop; closing leaves them running."""

    def __init__(self, api: BatchApi, format: Format, name: str, shared: Shared, meter: Meter) -> None:
        self.api = api
        self.meter = meter
        self.ledger = shared.ledger
        self.options = shared.options
        self.clock = shared.clock
        self.rng = shared.rng
        self.outage = Outage(shared.outage)
        self._format = format
        self._name = name
        self._keeper = Keeper(shared.journal, shared.clock, api.model, lambda key: not key.startswith(_ONCE))
        self._collector = Collector(shared.options, api.codec.limits)
        self._wants: dict[bytes, _Want] = {}
        self._sent: dict[bytes, Batch] = {}
        self._batches: dict[Batch, asyncio.Task[None]] = {}
        self._timer: asyncio.Handle | None = None
        self._once = itertools.count()
        self._full = 0
        self._halted: Exception | None = None
        self._left: list[Waiting] | None = None
        self._started = self._closed = False
        self._until = math.inf

    async def __call__(self, request: Request) -> Response:
        """The answer, when the batch that the request is in has ended.

        Raises:
            LMError: the request was refused, was in several batches for nothing, or batches cannot go on.
        """
        if self._halted is not None:
            raise self._halted
        self._start()
        key = request.journal_key() or _ONCE + b"%d" % next(self._once)
        if key not in self._sent:
            found = await self._keeper.get(key)
            if found is not None:
                return found
        want = self._wants.get(key)
        if want is None:
            want = _Want(request)
            if key not in self._sent:
                want.body = self._format.encode(request)
            else:
                want.attempts = 1
            self._wants[key] = want
            if key not in self._sent:
                self._collect(key, want)
        mine: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        want.futures.append(mine)
        try:
            return await mine
        finally:
            self._leave(key, want, mine)

    def _leave(self, key: bytes, want: _Want, future: asyncio.Future[Response]) -> None:
        if future in want.futures:  # cancelled
            want.futures.remove(future)
            if not want.futures and self._wants.get(key) is want:
                del self._wants[key]
                self._collector.remove(key)

    # ------------------------------------------------------------------------------ collecting

    def _start(self) -> None:
        """Take up what an earlier process has left at the provider."""
        if self._started:
            return
        self._started = True
        for record, keys in self._left_open():
            self._follow(Batch(self, record, keys, None))

    def _left_open(self) -> list[tuple[BatchRecord, tuple[bytes, ...]]]:
        """Batches whose results have to be fetched; the others are forgotten."""
        found = []
        for record, keys in self.ledger.open(self._name):
            # One that was only intended nobody has heard of; of another all answers may be here.
            if record.phase == "intended" or all(map(self._keeper.has, keys)):
                self.ledger.close(record.id)
            else:
                found.append((record, keys))
        return found

    def _collect(self, key: bytes, want: _Want) -> None:
        if want.body is None:
            want.body = self._format.encode(want.request)
        now = self.clock.monotonic()
        self._collector.add(key, len(want.body) + _AROUND, now)
        wake = self._collector.wake()
        if self._timer is not None and wake is not None and wake <= now:
            self._timer.cancel()
            self._timer = None
        self._arm()

    def _arm(self) -> None:
        """Look again when a batch may be due; what comes meanwhile can only put it off."""
        wake = self._collector.wake()
        if self._timer is None and wake is not None and not self._closed:
            pause = max(0.0, wake - self.clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(pause, self._turn)

    def _turn(self) -> None:
        self._timer = None
        while not self._closed and (keys := self._collector.take(self.clock.monotonic())):
            try:
                self._send(tuple(keys))
            except Exception as error:  # noqa: BLE001, PERF203  a full disk, say: who waits must hear of it
                self._halt(error)
        self._arm()

    def _send(self, keys: tuple[bytes, ...]) -> None:
        codec, now = self.api.codec, self.clock.time()
        stamp = f"{max(0, int(now * 1000)):011x}-{self.rng.getrandbits(32):08x}"
        sent_with = codec.upload_path is None  # then there is no step between meaning to and sending
        record = BatchRecord(stamp, self._name, now, len(keys), "creating" if sent_with else "intended", now)
        lines: list[bytes] = []
        for key in keys:
            want = self._wants[key]
            want.attempts += 1
            lines.append(codec.line(codec.custom_id(stamp, key), want.body or b""))
            want.body = None
        self.ledger.intend(record, keys)
        self._follow(Batch(self, record, keys, lines))

    def _follow(self, batch: Batch) -> None:
        self._sent.update(dict.fromkeys(batch.keys, batch))
        self._batches[batch] = asyncio.get_running_loop().create_task(self._live(batch))

    async def _live(self, batch: Batch) -> None:
        try:
            if await batch.live():
                self._full = 0
                self._collector.release()
        except Exception as error:  # noqa: BLE001  whatever it is, the rows that wait must hear of it
            self._halt(error)
        finally:
            self._batches.pop(batch, None)
            for key in batch.keys:
                if self._sent.get(key) is batch:
                    del self._sent[key]
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._arm()

    def _halt(self, error: Exception) -> None:
        """Nothing goes on: everybody who waits is told why."""
        self._halted = self._halted or error
        wants, self._wants = self._wants, {}
        for key, want in wants.items():
            self._collector.remove(key)
            _tell(want, error)

    # ------------------------------------------------------------------------ what batches tell

    def deliver(self, key: bytes, outcome: Outcome) -> None:
        """Hand an answer to who waits for it, or decide what its error means."""
        want = self._wants.get(key)
        if outcome.response is not None:
            self._sent.pop(key, None)
            self._keeper.take(key, outcome.response, awaited=want is not None)
            if want is not None:
                del self._wants[key]
                _answer(want, outcome.response)
            return
        assert outcome.error is not None
        self._sent.pop(key, None)
        if want is None:
            return
        error = outcome.error
        error.model = error.model or self.api.model
        error.provider = error.provider or self.api.provider
        verdict = judge(error, want.attempts, self.options)
        if verdict is None:
            self._collect(key, want)
            return
        verdict.model, verdict.provider = error.model, error.provider
        del self._wants[key]
        _tell(want, verdict)

    async def settled(self) -> None:
        """Return when all answers that were delivered are in the journal, whoever put them there."""
        await self._keeper.settled()

    def again(self, keys: Sequence[bytes]) -> None:
        """These were never sent, or are gone: send them in another batch, if somebody still waits."""
        for key in keys:
            self._sent.pop(key, None)
            want = self._wants.get(key)
            if want is not None:
                want.attempts = max(0, want.attempts - 1)
                self._collect(key, want)

    def too_large(self, batch: Batch, *, full: bool) -> None:
        """Send its requests in smaller batches; where the account is full, when another has ended."""
        alone = len(self._batches) <= 1
        smaller = (full and not alone) or self._collector.halve(len(batch.keys))
        if full:
            short = self.options.poll[0] * _FULL_PAUSE
            pause = min(_LONGEST_FULL, short * 2.0**self._full) if alone else _LONGEST_FULL
            if alone:  # nobody's end is to be waited for
                self._full += 1
                self._collector.release()
            self._collector.hold(self.clock.monotonic() + pause)
        if smaller:
            self.again(batch.keys)
            return
        reason = "the account has no room for the request" if full else "the request is too large for a batch"
        kind = LMServerError if full else LMBatchError
        for key in batch.keys:
            self.deliver(key, Outcome("", None, kind(f"{reason}, even alone")))

    def known(self) -> frozenset[str]:
        """Ids of the batches whose requests are known."""
        return frozenset(b.record.batch_id for b in self._batches if b.record.batch_id is not None)

    # -------------------------------------------------------------------------------------- status

    def waiting(self) -> list[Waiting]:
        """What is waited for now."""
        if self._left is not None:
            return self._left
        wants = self._wants
        lines = []
        for batch in list(self._batches):
            # When the flow stops its rows let go before the batches do.
            rows = sum(key in wants for key in batch.keys) if wants else len(batch.keys)
            state = batch.state
            if state is not None:
                lines.append(Waiting(state.batch_id, state.status, state.done, state.total, rows))
            else:
                known = batch.record.batch_id or ""
                lines.append(Waiting(known, "sending a batch" if batch.busy else "looking", 0, rows, rows))
        if len(self._collector):
            lines.append(Waiting("", "collecting a batch", 0, 0, len(self._collector)))
        return lines

    def hurry(self, seconds: float) -> None:
        """Closing is to be over in so many seconds from now; may be called from a signal handler."""
        self._until = self.clock.monotonic() + seconds

    async def aclose(self) -> None:
        """Stop watching. A batch that is being sent or fetched gets a few seconds to come to a good end."""
        if self._closed:
            return
        self._closed = True
        self._collector = Collector(self.options, self.api.codec.limits)
        if self._timer is not None:
            self._timer.cancel()
        busy = [task for batch, task in self._batches.items() if batch.busy]
        if busy:
            left = self._until - self.clock.monotonic()
            await asyncio.wait(busy, timeout=max(0.0, min(_CLOSING, left)))
        self._left = self.waiting()
        if not self._started:  # every row was answered by the journal
            self._left_open()
        tasks = set(self._batches.values())
        while tasks:  # a call that ends in the moment in which it is cancelled goes on
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=_AGAIN)
        await self.api.aclose()


def _answer(want: _Want, response: Response) -> None:
    """The first of those who wait pays."""
    for future in want.futures:
        if not future.done():
            future.set_result(response)
            response = response._replace(usage=Usage(), cached=True)


def _tell(want: _Want, error: Exception) -> None:
    for future in want.futures:
        if not future.done():
            future.set_exception(error)
