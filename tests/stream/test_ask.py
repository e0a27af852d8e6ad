"""The pool and its shards: the limit, the order, the snapshot, what passes, and what ends a flow."""

import asyncio
import threading
import time
from typing import ClassVar

import pytest

from dspy_stream import runtime
from dspy_stream.engine import Ticket
from dspy_stream.errors import LMAuthError
from dspy_stream.runtime import run
from dspy_stream.stream.ask import Again, AskLogic, Pool

ENOUGH = 5.0


class Work:
    """Rows are numbers; each waits until the test lets it go. Negative ones are not its business."""

    made: ClassVar[list["Work"]] = []

    def __init__(self, timeout=None):
        Work.made.append(self)
        self.timeout = timeout
        self.begun = []
        self.futures = {}
        self.attempts = {}
        self.inside = []
        self.flying = self.most = 0
        self.judge = lambda item, error, ticket: ("dead", item, type(error).__name__)

    def passes(self, item):
        return item < 0

    def begin(self, item, last):
        self.begun.append(item)
        return self.steps(item), Ticket(attempt=1) if last is None else last.again()

    def steps(self, item):
        future = self.futures[item] = runtime.loop().create_future()
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            value = yield future
        finally:
            self.flying -= 1
        return value

    def finish(self, item, value, ticket):
        return ("done", item, value)

    def fail(self, item, error, ticket):
        return self.judge(item, error, ticket)

    def entered(self, item):
        self.inside.append(item)

    def left(self):
        self.inside.append(None)

    # what a test does to it

    def answer(self, *items, value="ok"):
        self._on_loop(lambda: [self.futures.pop(item).set_result(value) for item in items])

    def break_(self, item, error):
        self._on_loop(lambda: self.futures.pop(item).set_exception(error))

    @staticmethod
    def _on_loop(fn):
        async def go():
            fn()
            for _ in range(5):
                await asyncio.sleep(0)

        run(go())


@pytest.fixture(autouse=True)
def nothing_left_in_flight():
    yield
    for work in Work.made:
        work.judge = lambda item, error, ticket: None
        work.begin = None  # whatever is queued fails at once
        Work._on_loop(
            lambda work=work: [future.cancel() for future in work.futures.values() if not future.done()]
        )
    Work.made.clear()


class Instant(Work):
    """Every row is answered at once."""

    def steps(self, item):
        return item
        yield


def settle():
    """Let everything that is queued on the loop run."""
    Work._on_loop(lambda: None)


def logic_of(pool, *, ordered=False, resumed=(), hard=None):
    return AskLogic(pool, ordered=ordered, freeze=lambda item: item, resumed=resumed, hard=hard)


def until(condition):
    end = time.monotonic() + ENOUGH
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.001)


class TestLimit:
    def test_no_more_than_capacity_in_flight(self):
        work = Work()
        pool = Pool(work, 3)
        logic = logic_of(pool)
        logic.on_batch(list(range(10)))
        settle()
        assert (pool.running, pool.queued, pool.backlog) == (3, 7, 10)
        for item in range(10):
            work.answer(item)
            assert pool.running <= 3
        assert work.most == 3
        assert sorted(item for _, item, _ in logic.on_notify()[0]) == list(range(10))
        assert (pool.running, pool.queued, pool.backlog) == (0, 0, 0)

    def test_the_limit_is_of_all_shards_together(self):
        work = Work()
        pool = Pool(work, 3)
        for shard in range(4):
            logic_of(pool).on_batch([shard * 10, shard * 10 + 1])
        settle()
        assert (pool.running, pool.queued) == (3, 5)

    def test_rows_start_in_the_order_they_came(self):
        work = Work()
        logic_of(Pool(work, 2)).on_batch([5, 4, 3])
        settle()
        work.answer(4)
        assert work.begun == [5, 4, 3]

    def test_rows_answered_at_once_never_become_tasks(self):
        pool = Pool(Instant(), 2)
        logic = logic_of(pool)
        logic.on_batch(list(range(1000)))
        came = []

        def all_came():
            came.extend(logic.on_notify()[0])
            return len(came) == 1000

        until(all_came)  # a look that comes before the loop is through takes what is there
        assert not pool._tasks


class TestOrder:
    def test_unordered_emits_in_the_order_of_the_answers(self):
        work = Work()
        logic = logic_of(Pool(work, 10))
        logic.on_batch([0, 1, 2])
        settle()
        work.answer(2)
        assert logic.on_notify()[0] == [("done", 2, "ok")]
        work.answer(0)
        work.answer(1)
        assert [item for _, item, _ in logic.on_notify()[0]] == [0, 1]

    def test_ordered_waits_for_the_first(self):
        work = Work()
        logic = logic_of(Pool(work, 10), ordered=True)
        logic.on_batch([0, 1, 2, 3])
        settle()
        work.answer(1, 2)
        assert logic.on_notify()[0] == []
        work.answer(0)
        assert [item for _, item, _ in logic.on_notify()[0]] == [0, 1, 2]
        work.answer(3)
        assert [item for _, item, _ in logic.on_notify()[0]] == [3]

    def test_what_passes_goes_straight_through_when_unordered(self):
        work = Work()
        pool = Pool(work, 10)
        logic = logic_of(pool)
        assert logic.on_batch([0, -1, -2])[0] == [-1, -2]
        settle()
        assert work.begun == [0]
        assert pool.backlog == 1

    def test_what_passes_keeps_its_place_when_ordered(self):
        work = Work()
        pool = Pool(work, 10)
        logic = logic_of(pool, ordered=True)
        assert logic.on_batch([-1, 0, -2, 1])[0] == [-1]
        settle()
        work.answer(1)
        assert logic.on_notify()[0] == []
        work.answer(0)
        assert logic.on_notify()[0] == [("done", 0, "ok"), -2, ("done", 1, "ok")]
        assert pool.backlog == 0


class TestSnapshot:
    def test_is_what_was_taken_and_not_emitted(self):
        work = Work()
        logic = logic_of(Pool(work, 2))
        logic.on_batch([0, 1, 2, 3])
        settle()
        assert logic.snapshot() == [0, 1, 2, 3]
        work.answer(1)
        assert logic.snapshot() == [0, 1, 2, 3], "finished but not emitted"
        logic.on_notify()
        assert logic.snapshot() == [0, 2, 3]

    def test_what_stays_is_frozen_once(self):
        work, frozen = Work(), []

        def freeze(item):
            frozen.append(item)
            return ("frozen", item)

        logic = AskLogic(Pool(work, 2), ordered=False, freeze=freeze)
        logic.on_batch([0, 1])
        settle()
        assert logic.snapshot() == [("frozen", 0), ("frozen", 1)]
        work.answer(0)
        logic.on_batch([2])
        settle()
        assert logic.snapshot() == [("frozen", 1), ("frozen", 2)]
        assert frozen == [0, 1, 2]

    def test_when_ordered_it_holds_what_waits_for_its_turn(self):
        work = Work()
        logic = logic_of(Pool(work, 5), ordered=True)
        logic.on_batch([0, -1, 1])
        settle()
        work.answer(1)
        logic.on_notify()
        assert logic.snapshot() == [0, -1, 1]
        work.answer(0)
        logic.on_notify()
        assert logic.snapshot() == []

    def test_resuming_submits_it_again_in_order(self):
        work = Work()
        pool = Pool(work, 5)
        logic = logic_of(pool, ordered=True, resumed=[7, -1, 8])
        settle()
        assert work.begun == [7, 8]
        assert (pool.backlog, logic.snapshot()) == (3, [7, -1, 8])
        work.answer(7, 8)
        assert logic.on_notify()[0] == [("done", 7, "ok"), -1, ("done", 8, "ok")]

    def test_resuming_keeps_what_needs_no_work_in_any_order(self):
        pool = Pool(Work(), 5)
        logic = logic_of(pool, ordered=False, resumed=[-1, -2])
        assert logic.snapshot() == [-1, -2]
        assert logic.on_notify()[0] == [-1, -2]
        assert pool.backlog == 0

    def test_nothing_is_asked_for_while_nothing_is_held(self):
        work = Work()
        logic = logic_of(Pool(work, 5))
        assert logic.notify_at() is None
        logic.on_batch([0])
        assert logic.notify_at() is not None
        settle()
        work.answer(0)
        logic.on_notify()
        assert logic.notify_at() is None


class TestFailure:
    def test_the_policy_decides_what_comes_out(self):
        work = Work()
        logic = logic_of(Pool(work, 5))
        logic.on_batch([0])
        settle()
        work.break_(0, KeyError("x"))
        assert logic.on_notify()[0] == [("dead", 0, "KeyError")]

    def test_an_error_before_the_first_wait_does_too(self):
        class Refusing(Work):
            def begin(self, item, last):
                raise ValueError("no")

        pool = Pool(Refusing(), 1)
        logic = logic_of(pool)
        logic.on_batch([0, 1])
        settle()
        assert logic.on_notify()[0] == [("dead", 0, "ValueError"), ("dead", 1, "ValueError")]
        assert pool.running == 0

    def test_a_result_that_cannot_be_used_does_too(self):
        class Wrong(Instant):
            def finish(self, item, value, ticket):
                raise TypeError("no prediction")

        logic = logic_of(Pool(Wrong(), 1))
        logic.on_batch([0])
        settle()
        assert logic.on_notify()[0] == [("dead", 0, "TypeError")]

    def test_again_makes_another_attempt_with_the_next_ticket(self):
        work, attempts = Work(), []

        def judge(item, error, ticket):
            attempts.append(ticket.attempt)
            return Again(0.0) if ticket.attempt < 3 else ("dead", item, ticket.attempt)

        work.judge = judge
        pool = Pool(work, 1)
        logic = logic_of(pool)
        logic.on_batch([0])
        settle()
        for _ in range(3):
            until(lambda: 0 in work.futures)
            work.break_(0, KeyError("x"))
            assert pool.backlog == 1
        until(lambda: pool.running == 0 and pool.queued == 0)
        assert logic.on_notify()[0] == [("dead", 0, 3)]
        assert attempts == [1, 2, 3]

    def test_a_row_that_waits_for_its_next_attempt_leaves_its_place_to_another(self):
        work = Work()
        work.judge = lambda item, error, ticket: Again(3600)
        pool = Pool(work, 1)
        logic_of(pool).on_batch([0, 1])
        settle()
        work.break_(0, KeyError("x"))
        assert work.begun == [0, 1]
        assert (pool.running, pool.queued, pool.backlog) == (1, 1, 2)

    def test_a_fatal_error_closes_every_shard_and_nothing_more_is_started(self):
        work = Work()

        def judge(item, error, ticket):
            raise error

        work.judge = judge
        pool = Pool(work, 2)
        one, other = logic_of(pool), logic_of(pool)
        one.on_batch([0, 1, 2])
        other.on_batch([3])
        settle()
        work.break_(0, LMAuthError("no key"))
        settle()
        assert isinstance(pool.fatal, LMAuthError)
        for shard in (one, other):
            assert shard.on_notify() == ([], False), "the gate ends the flow at its sources"
            with pytest.raises(LMAuthError, match="no key"):
                shard.on_eof()
        assert work.begun == [0, 1]
        assert one.snapshot() == [0, 1, 2], "what was held is not lost"

    def test_the_first_fatal_error_stays(self):
        work = Work()

        def judge(item, error, ticket):
            raise error

        work.judge = judge
        pool = Pool(work, 2)
        logic_of(pool).on_batch([0, 1])
        settle()
        work.break_(0, LMAuthError("first"))
        work.break_(1, LMAuthError("second"))
        assert str(pool.fatal) == "first"

    def test_user_code_is_watched_exactly_while_it_runs(self):
        work = Work()
        logic_of(Pool(work, 1)).on_batch([0])
        settle()
        assert work.inside == [0, None]
        work.answer(0)
        assert work.inside == [0, None, 0, None]


class TestTimeout:
    def test_ends_the_row_with_a_timeout(self):
        work = Work(timeout=0.01)
        pool = Pool(work, 1)
        logic = logic_of(pool)
        logic.on_batch([0])
        until(lambda: pool.running == 0 and not pool._tasks and pool.queued == 0 and work.begun)
        assert logic.on_notify()[0] == [("dead", 0, "RowTimeout")]
        assert work.flying == 0

    def test_an_answer_in_time_stops_the_timer(self):
        work = Work(timeout=0.05)
        pool = Pool(work, 1)
        logic = logic_of(pool)
        logic.on_batch([0])
        settle()
        work.answer(0)
        assert logic.on_notify()[0] == [("done", 0, "ok")]
        logic.on_batch([1])
        settle()
        until(lambda: pool.running == 0)
        assert logic.on_notify()[0] == [("dead", 1, "RowTimeout")]


class TestStopping:
    def test_nothing_new_is_started(self):
        work, stop = Work(), threading.Event()
        pool = Pool(work, 1, stopping=stop.is_set)
        logic = logic_of(pool)
        logic.on_batch([0, 1])
        settle()
        stop.set()
        work.answer(0)
        assert work.begun == [0]
        assert logic.on_notify()[0] == [("done", 0, "ok")]
        assert logic.snapshot() == [1]
        assert (pool.backlog, pool.queued) == (1, 1), "the gate sees it as settled"

    def test_what_waits_in_the_order_for_a_row_that_is_left_is_left_too(self):
        work, stop = Work(), threading.Event()
        pool = Pool(work, 3, stopping=stop.is_set)
        logic = logic_of(pool, ordered=True)
        logic.on_batch([0, 1, 2, -1])
        settle()
        work.answer(1, 2)
        assert logic.on_notify()[0] == []
        assert (pool.backlog, pool.queued) == (4, 3), "the first is in flight"
        stop.set()
        pool.cancel()
        until(lambda: pool.running == 0)
        assert logic.on_notify()[0] == []
        assert (pool.backlog, pool.queued) == (4, 4), "the gate sees it as settled"
        assert logic.snapshot() == [0, 1, 2, -1]

    def test_a_row_that_waits_for_another_attempt_is_not_begun_after_the_end(self):
        work = Work()
        work.judge = lambda item, error, ticket: Again(0.05)
        pool = Pool(work, 1)
        logic_of(pool).on_batch([0])
        settle()
        work.break_(0, ValueError("at first"))
        pool.cancel()
        until(lambda: pool._waiting == 0)
        assert work.begun == [0]

    def test_cancelled_rows_stay_held(self):
        work, stop = Work(), threading.Event()
        pool = Pool(work, 2, stopping=stop.is_set)
        logic = logic_of(pool)
        logic.on_batch([0, 1])
        settle()
        stop.set()
        pool.cancel()
        until(lambda: pool.running == 0)
        assert logic.on_notify()[0] == []
        assert logic.snapshot() == [0, 1]
        assert pool.backlog == pool.queued == 2


class TestEnd:
    def test_of_file_waits_for_the_rest(self):
        work = Work()
        logic = logic_of(Pool(work, 5))
        logic.on_batch([0, 1])
        settle()
        timer = threading.Timer(0.02, lambda: work.answer(0, 1))
        timer.start()
        out, discard = logic.on_eof()
        assert sorted(item for _, item, _ in out) == [0, 1]
        assert discard
        timer.join()

    def test_of_file_without_rows_is_immediate(self):
        assert logic_of(Pool(Work(), 1)).on_eof() == ([], True)


class TestHardLimit:
    def test_holds_the_worker_until_rows_have_come_out(self):
        work = Work()
        pool = Pool(work, 5)
        logic = logic_of(pool, hard=3)
        assert logic.on_batch([0, 1, 2]) == ([], False)
        settle()
        timer = threading.Timer(0.02, lambda: work.answer(0, 1))
        timer.start()
        out, _ = logic.on_batch([3, 4])
        timer.join()
        assert sorted(item for _, item, _ in out) == [0, 1]
        assert pool.backlog == 3
