"""The life of one batch: noted, uploaded, created, looked at until it ends, fetched, forgotten.

Every step is noted in the ledger before or just after it is taken, such that a process that dies
anywhere finds out what became of it, and nothing is sent twice.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from dspy_stream.clock import Clock
from dspy_stream.errors import LMBatchHalted, LMError, LMServerError, LMUnsupportedModelError
from dspy_stream.lm.batch.api import BatchApi
from dspy_stream.lm.batch.codec import Outcome, State
from dspy_stream.lm.batch.ledger import Ledger
from dspy_stream.lm.batch.plan import (
    BatchOptions,
    Outage,
    adopt,
    backoff,
    candidates,
    interval,
    too_old,
)
from dspy_stream.types import BatchRecord

__all__ = ["Batch", "Desk"]

T = TypeVar("T")

_PAGES: Final = 100
_FETCHES: Final = 3
# A batch this old has no results at its provider any more, or never will.
_WINDOW: Final = 25 * 3600.0
_FULL: Final = ("token_limit_exceeded",)
_TOO_LARGE: Final = 413
_NOT_FOUND: Final = 404
_log = logging.getLogger("dspy_stream")


class Desk(Protocol):
    """What a batch shares with the others of its lane, and whom it tells what has become of it."""

    api: BatchApi
    ledger: Ledger
    options: BatchOptions
    outage: Outage
    clock: Clock
    rng: random.Random

    def deliver(self, key: bytes, outcome: Outcome) -> None:
        """An outcome of a request."""
        ...

    async def settled(self) -> None:
        """Return when all answers that were delivered are in the journal."""
        ...

    def again(self, keys: Sequence[bytes]) -> None:
        """These were never sent: send them in another batch."""
        ...

    def too_large(self, batch: Batch, *, full: bool) -> None:
        """The batch was refused for its size, or because the account has no room for it now."""
        ...

    def known(self) -> frozenset[str]:
        """Ids of the batches whose requests are known."""
        ...


class Batch:
    """One batch. ``lines`` are its requests while they have not been sent; after a restart there are none.

    ``busy`` is True while something is under way that should not be cut: sending or fetching.
    """

    def __init__(
        self, desk: Desk, record: BatchRecord, keys: tuple[bytes, ...], lines: list[bytes] | None
    ) -> None:
        self.record = record
        self.keys = keys
        self.state: State | None = None
        self.busy = lines is not None
        self._desk = desk
        self._lines = lines
        codec = desk.api.codec
        self._names = {codec.custom_id(record.id, key): key for key in keys}

    async def live(self) -> bool:
        """From here to the end of the batch; True where it was worked on, so that there is room again.

        Raises:
            LMError: it cannot go on; its entry in the ledger stays, unless it was refused.
        """
        try:
            return await self._live()
        except LMError as error:
            raise _halted(error, f"batch {self.record.batch_id or self.record.id}") from None

    async def _live(self) -> bool:
        desk = self._desk
        state = await self._there()
        self._lines, self.busy = None, False
        if state is not None:
            _log.info("batch %s with %d requests is at the provider", state.batch_id, len(self.keys))
            state = await self._ended(state)
        self.busy = True
        if state is not None and state.phase == "failed":
            self._refused(state)
        elif state is not None:
            _log.info(
                "batch %s has ended: %s, %d of %d", state.batch_id, state.status, state.done, state.total
            )
            await self._fetch(state)
        desk.ledger.close(self.record.id)
        return state is not None and state.phase == "ended"

    # ---------------------------------------------------------------------------------- being sent

    async def _there(self) -> State | None:
        """The batch at its provider; None where it never got there."""
        desk, lines = self._desk, self._lines
        if self.record.phase == "created":
            await desk.clock.sleep(desk.options.linger)  # its rows come again, and wait for it
            assert self.record.batch_id is not None
            return await self._look(self.record.batch_id)
        if lines is None:
            state = await self._found()
            if state is None:
                desk.again(self.keys)
            return state
        try:
            file_id = None
            if desk.api.codec.upload_path is not None:
                file_id = await self._patiently(lambda: desk.api.upload(lines))
            self._note(phase="creating", tried=desk.clock.time(), file_id=file_id)
            return await self._created(lines)
        except LMError as error:
            if not _refusal(error):
                raise
            desk.ledger.close(self.record.id)
            if error.status != _TOO_LARGE:
                raise _halted(error, "the batch was refused") from None
            desk.too_large(self, full=False)
            return None

    async def _created(self, lines: list[bytes]) -> State | None:
        desk = self._desk
        while True:
            try:
                state = await desk.api.create(self.record.id, self.record.file_id, lines)
            except LMError as error:  # noqa: PERF203  a call that takes minutes
                if _refusal(error) and not error.retryable:
                    raise
                desk.outage.failed(error, desk.clock.monotonic())
                _log.warning("a batch could not be created, trying on: %s", error)
                if not _refusal(error):
                    # It may have arrived all the same, and must not be sent twice.
                    found = await self._found()
                    if found is not None:
                        return found
                else:
                    await self._pause(error)
                self._note(tried=desk.clock.time())
            else:
                desk.outage.passed()
                self._note(phase="created", batch_id=state.batch_id)
                return state

    async def _found(self) -> State | None:
        """The batch that a call of unknown fate has created; None when it is certain that it has not."""
        desk = self._desk
        while True:
            state = await (self._by_name() if desk.api.codec.named else self._by_results())
            if state is not None:
                self._note(phase="created", batch_id=state.batch_id)
                return state
            left = self.record.tried + desk.options.doubt - desk.clock.time()
            if left <= 0:
                return None
            await desk.clock.sleep(min(left, desk.options.doubt))

    async def _by_name(self) -> State | None:
        return adopt(self.record.id, await self._listed())

    async def _by_results(self) -> State | None:
        """The candidate whose results bear our name; waits for those that have none yet."""
        desk = self._desk
        fitting = candidates(
            await self._listed(),
            requests=self.record.requests,
            tried=self.record.tried,
            doubt=desk.options.doubt,
            known=desk.known(),
        )
        for state in fitting:
            ended = await self._ended(state)
            if ended is not None and await self._is_ours(ended):
                return ended
        return None

    async def _is_ours(self, state: State) -> bool:
        names: list[bool] = []

        def take(line: bytes) -> None:
            outcome = self._desk.api.codec.outcome(line) if not names else None
            if outcome is not None:
                names.append(outcome.custom_id in self._names)

        for result in state.results:
            await self._patiently(lambda result=result: self._desk.api.results(result, take))  # type: ignore[misc]
        return names[:1] == [True]

    async def _listed(self) -> list[State]:
        """The account's batches, newest first, as far back as ours can be."""
        found: list[State] = []
        after: str | None = None
        for _ in range(_PAGES):
            page = await self._patiently(lambda after=after: self._desk.api.listed(after))  # type: ignore[misc]
            found += page.states
            after = page.after
            if after is None or (page.states and too_old(page.states[-1], self.record.tried)):
                break
        return found

    # --------------------------------------------------------------------------------- being watched

    async def _ended(self, state: State) -> State | None:
        """Look until it has ended; None where the provider has forgotten it."""
        desk, looks = self._desk, 0
        while state.phase == "running":
            self.state = state
            await desk.clock.sleep(interval(looks, desk.options, desk.rng))
            looks += 1
            found = await self._look(state.batch_id)
            if found is None:
                return None
            state = found
        self.state = state
        return state

    async def _look(self, batch_id: str) -> State | None:
        desk = self._desk
        first: float | None = None
        while True:
            try:
                return await self._patiently(lambda: desk.api.state(batch_id))
            except LMUnsupportedModelError as error:  # noqa: PERF203
                if error.status != _NOT_FOUND:
                    raise
                now = desk.clock.monotonic()
                first = now if first is None else first
                if now - first < desk.options.doubt:  # it may not be visible everywhere yet
                    await self._pause(error)
                    continue
                if desk.clock.time() - self.record.created < _WINDOW:
                    raise LMBatchHalted(
                        f"batch {batch_id} is not known to the account of this key; use the key that it was "
                        f"made with, or give it up: dspy-stream state forget-batch FOLDER {self.record.id}",
                        model=error.model,
                        provider=error.provider,
                        status=error.status,
                    ) from None
                _log.warning("batch %s is gone at its provider; its requests are sent again", batch_id)
                desk.again(self.keys)
                return None

    # -------------------------------------------------------------------------------- being fetched

    async def _fetch(self, state: State) -> None:
        """Deliver every outcome: answers first, errors when all answers are in the journal."""
        desk, codec = self._desk, self._desk.api.codec
        left = dict(self._names)
        errors: list[tuple[bytes, Outcome]] = []

        def take(line: bytes) -> None:
            outcome = codec.outcome(line)
            key = left.pop(outcome.custom_id, None) if outcome is not None else None
            if outcome is None or key is None:
                return  # nobody's, or a second line for the same request
            if outcome.error is not None:
                errors.append((key, outcome))
            else:
                desk.deliver(key, outcome)

        for fetch in range(1, _FETCHES + 1):
            for result in state.results:
                await self._file(result, take)
            if len(self._names) - len(left) >= min(state.done, len(self._names)):
                break
            if fetch < _FETCHES:  # the provider counts more results than there were lines
                await desk.clock.sleep(backoff(fetch, None, desk.options, desk.rng))
        await desk.settled()
        for key, outcome in errors:
            desk.deliver(key, outcome)
        for name, key in left.items():
            desk.deliver(key, Outcome(name, None, codec.absent(state)))

    async def _file(self, result: str, take: Callable[[bytes], None]) -> None:
        try:
            await self._patiently(lambda: self._desk.api.results(result, take))
        except LMUnsupportedModelError as error:
            if error.status != _NOT_FOUND:
                raise
            _log.warning("results of batch %s are gone at its provider: %s", self.record.batch_id, error)

    def _refused(self, state: State) -> None:
        """None of its requests was asked: blame those that are at fault, and send the others again."""
        desk, codec = self._desk, self._desk.api.codec
        blames = state.blames
        if any(blame.code in _FULL for blame in blames):
            desk.too_large(self, full=True)
            return
        guilty = {blame.line: blame for blame in blames if blame.line is not None}
        if guilty:
            for line, blame in guilty.items():
                if line < len(self.keys):
                    desk.deliver(self.keys[line], Outcome("", None, codec.blamed(blame)))
            desk.again([key for line, key in enumerate(self.keys) if line not in guilty])
            return
        for key in self.keys:
            error = (
                codec.blamed(blames[0])
                if blames
                else LMServerError(f"batch {state.batch_id} failed, without a reason")
            )
            desk.deliver(key, Outcome("", None, error))

    # --------------------------------------------------------------------------------------- shared

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call that changes nothing until it succeeds or is refused."""
        desk = self._desk
        while True:
            try:
                made = await call()
            except LMError as error:  # noqa: PERF203
                if not error.retryable:
                    raise
                desk.outage.failed(error, desk.clock.monotonic())
                _log.warning("the batch API does not answer, trying on: %s", error)
                await self._pause(error)
            else:
                desk.outage.passed()
                return made

    async def _pause(self, error: LMError) -> None:
        desk = self._desk
        await desk.clock.sleep(
            backoff(max(1, desk.outage.failures), error.retry_after, desk.options, desk.rng)
        )

    def _note(self, **changes: Any) -> None:
        self.record = self.record._replace(**changes)
        self._desk.ledger.update(self.record)


def _refusal(error: LMError) -> bool:
    """Whether the provider said no, so that nothing was created."""
    return error.status is not None and 400 <= error.status < 500 and error.status not in (408, 409)


def _halted(error: LMError, what: str) -> LMError:
    """A refusal of a whole batch concerns the flow, not a row."""
    if error.scope != "row":
        return error
    return LMBatchHalted(
        f"{what}: {error}",
        model=error.model,
        provider=error.provider,
        status=error.status,
        provider_code=error.provider_code,
        request_id=error.request_id,
    )
