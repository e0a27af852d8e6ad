"""``isolation="thread"``: code that blocks, model calls out of threads, and rows that are given up."""

import asyncio
import threading
import time

import pytest

import dspy_stream as ds
from dspy_stream.errors import RowTimeout
from dspy_stream.modules.driven import WrittenOff
from dspy_stream.modules.scope import TICKET
from dspy_stream.modules.threads import Threads, ThreadsExhausted
from dspy_stream.modules.together import GUARD
from dspy_stream.runtime import perform
from dspy_stream.stream.sinks import MemorySink


def run(stream, **options):
    rows, letters = MemorySink(), MemorySink()
    report = stream.write(rows, dead_letters=letters).run(state=None, quiet=True, **options)
    assert report.rows_in == report.rows_out + report.dead_letters + report.dropped
    return rows.rows, letters.rows, report


class Meets(ds.Module):
    """Its rows wait for each other, blocking: alone in a thread each, or never."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count)

    def forward(self, n):
        self.barrier.wait(20)
        return ds.Prediction(m=n)


def test_rows_that_block_do_not_wait_for_each_other():
    stream = ds.Stream.from_iterable([{"n": n} for n in range(32)]).through(
        Meets(8), isolation="thread", workers=8
    )
    rows, letters, _ = run(stream)
    assert (len(rows), letters) == (32, [])


def test_threads_are_started_as_they_are_needed():
    class Plain(ds.Module):
        def forward(self, n):
            return ds.Prediction(m=n)

    plain = Plain()
    host = Threads(plain, 16)
    idle = host._threads._idle
    for n in range(50):
        assert perform(host.steps({"n": n})).m == n
        assert idle.acquire(timeout=30)  # the answer is there a moment before its thread is back
        idle.release()
    assert host.count == 1


class Asks(ds.Module):
    def __init__(self):
        self.one = ds.Predict("a -> b")
        self.two = ds.Predict("b -> c")

    def forward(self, a):
        time.sleep(0)
        return self.two(b=self.one(a=a).b)


def answer(request):
    return {"b": "b", "c": "c"}


class TestModelCalls:
    @pytest.mark.parametrize("cache", [True, False])
    def test_they_are_counted_and_journaled_as_those_of_an_inline_part(self, cache):
        counts = []
        for isolation in ("inline", "thread"):
            lm = ds.ScriptedLM(answer, cache=cache)
            rows = [{"a": str(n % 3)} for n in range(9)]
            stream = ds.Stream.from_iterable(rows).through(Asks(), isolation=isolation)
            made, letters, report = run(stream, lm=lm)
            assert ({row["c"] for row in made}, letters) == ({"c"}, [])
            counts.append((report.calls, report.hits))
        assert counts[0] == counts[1] == ((4, 14) if cache else (18, 0))

    def test_the_budget_holds(self):
        stream = ds.Stream.from_iterable([{"a": str(n)} for n in range(9)]).through(
            Asks(), isolation="thread"
        )
        with pytest.raises(ds.BudgetExceeded):
            run(stream, lm=ds.ScriptedLM(answer, cache=True), max_calls=5)

    def test_called_in_a_script_and_in_a_coroutine(self):
        program = ds.Program(ask=Asks().using(isolation="thread"))
        with ds.context(lm=ds.ScriptedLM(answer, cache=True)):
            assert program(a="x").c == "c"
            assert asyncio.run(program.acall(a="x")).c == "c"

    def test_settings_of_the_caller_hold_in_the_thread(self):
        class Reads(ds.Module):
            def forward(self):
                return ds.Prediction(size=ds.settings.max_trace_size)

        program = ds.Program(part=Reads().using(isolation="thread"))
        with ds.context(max_trace_size=77):
            assert program().size == 77


class TestCoroutines:
    def test_a_loop_of_the_code_s_own_is_no_harm(self):
        class Own(ds.Module):
            def forward(self, n):
                return ds.Prediction(m=asyncio.run(asyncio.sleep(0, n)))

        assert ds.Program(part=Own().using(isolation="thread"))(n=3).m == 3

    def test_a_coroutine_may_block_as_well(self):
        barrier = threading.Barrier(4)

        class Blocks(ds.Module):
            def __init__(self):
                self.ask = ds.Predict("a -> b")

            async def aforward(self, a):
                barrier.wait(20)
                return await self.ask.acall(a=a)

        rows = [{"a": str(n)} for n in range(8)]
        stream = ds.Stream.from_iterable(rows).through(Blocks(), isolation="thread", workers=4)
        made, letters, _ = run(stream, lm=ds.ScriptedLM(answer, cache=True))
        assert (len(made), letters) == (8, [])


class TestGivenUp:
    def test_a_row_past_its_time_ends_at_its_next_call(self):
        gate, ended, asked = threading.Event(), threading.Event(), []

        class Hangs(ds.Module):
            def __init__(self):
                self.ask = ds.Predict("n: int -> b")

            def forward(self, n):
                if n == 2:
                    try:
                        gate.wait(20)
                        self.ask(n=n)
                    except WrittenOff:
                        ended.set()
                        raise
                return ds.Prediction(m=n)

        def counted(request):
            asked.append(request)
            return {"b": "b"}

        rows = [{"n": n} for n in range(5)]
        stream = ds.Stream.from_iterable(rows).through(Hangs(), isolation="thread", timeout=0.2)
        made, (letter,), _ = run(stream, lm=ds.ScriptedLM(counted, cache=True))
        gate.set()
        assert ended.wait(20)
        assert (len(made), letter.error["code"], asked) == (4, "timeout", [])

    @pytest.mark.parametrize("held", [False, True])
    def test_rows_that_hang_cost_no_other_row(self, held):
        """Each hangs with a thread of its own; the wait of the others for a thread is not their time."""
        gate = threading.Event()

        class Hangs(ds.Module):
            def forward(self, n):
                if n < 4:
                    gate.wait(60)
                return ds.Prediction(m=n)

        class Holds(Hangs):
            def open(self):
                pass

            def close(self):
                pass

        module = Holds() if held else Hangs()
        stream = ds.Stream.from_iterable([{"n": n} for n in range(12)])
        made, letters, _ = run(stream.through(module, isolation="thread", workers=2, timeout=0.3))
        gate.set()
        assert sorted(row["n"] for row in made) == list(range(4, 12))
        assert [letter.error["code"] for letter in letters] == ["timeout"] * 4

    def test_the_wait_for_a_thread_is_not_the_row_s_time(self):
        """Both rows are given to one thread, and the first ends only after the time of the second is over."""
        gate = threading.Event()

        class Waits(ds.Module):
            def forward(self, n):
                return ds.Prediction(m=n, waited=gate.wait(60))

        waits = Waits()
        host = Threads(waits, 1, 60.0)
        second = Threads(waits, 1, 0.05)
        second._threads = host._threads

        async def both():
            first = asyncio.ensure_future(next(host.steps({"n": 1})))
            await asyncio.sleep(0)
            late = asyncio.ensure_future(next(second.steps({"n": 2})))
            await asyncio.sleep(0.2)  # four times what the second has
            gate.set()
            return [(await task).m for task in (first, late)]

        assert asyncio.run(both()) == [1, 2]

    def test_when_too_many_threads_hang_the_flow_stops(self, monkeypatch):
        monkeypatch.setattr("dspy_stream.modules.threads.HUNG", 3)
        gate = threading.Event()

        class Hangs(ds.Module):
            def forward(self, n):
                gate.wait(60)

        stream = ds.Stream.from_iterable([{"n": n} for n in range(8)])
        with pytest.raises(ThreadsExhausted, match="Hangs: 3 threads are held by rows"):
            run(stream.through(Hangs(), isolation="thread", workers=1, timeout=0.05))
        gate.set()

    def test_a_call_in_flight_is_cancelled(self):
        seen = []

        async def never(request):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        program = ds.Program(ask=ds.Predict("a -> b").using(isolation="thread", timeout=0.1))
        with ds.context(lm=ds.ScriptedLM(never, cache=True)), pytest.raises(RowTimeout):
            program(a="x")
        end = time.monotonic() + 20
        while not seen and time.monotonic() < end:
            time.sleep(0.001)
        assert seen == ["cancelled"]

    def test_a_coroutine_is_cancelled(self):
        ended = threading.Event()

        class Sleeps(ds.Module):
            async def aforward(self):
                try:
                    await asyncio.sleep(60)
                finally:
                    ended.set()

        with pytest.raises(RowTimeout):
            ds.Program(part=Sleeps().using(isolation="thread", timeout=0.1))()
        assert ended.wait(20)


def test_whose_code_runs_is_noted_in_the_thread_and_not_while_it_waits():
    notes = []

    class Guard:
        def entered(self):
            notes.append(("in", threading.current_thread().name))

        def left(self):
            notes.append(("out", threading.current_thread().name))

    asks = Asks()
    host = Threads(asks, 1)
    token = GUARD.set(Guard())
    try:
        with ds.context(lm=ds.ScriptedLM(answer, cache=True)):
            perform(host.steps({"a": "x"}))
    finally:
        GUARD.reset(token)
    assert [what for what, _ in notes] == ["in", "out", "in", "out", "in", "out"]
    assert {name for _, name in notes} == {"part_Asks_1"}
    assert TICKET.get() is None
