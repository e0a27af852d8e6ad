"""The engine's loop, the three drivers, and the bridge from synchronous code."""

import asyncio
import contextvars
import gc
import os
import subprocess
import sys
import threading
import time

import pytest

from dspy_stream import runtime
from dspy_stream.errors import LMConfigurationError, LMRateLimitError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Module, Predict
from dspy_stream.program import Prediction
from dspy_stream.runtime import Ask, Pending, advance, aperform, bridge, hop, perform, run
from dspy_stream.types import Choice, Request, Response

SPOT = contextvars.ContextVar("spot", default="nowhere")


def response(text):
    return Response((Choice(text),))


class Echo:
    """A layer that answers with the prompt; knows some answers without waiting."""

    def __init__(self, known=()):
        self.known = set(known)
        self.asked = []

    def peek(self, request):
        text = request.tail[0].content
        return response(f"known {text}") if text in self.known else None

    async def __call__(self, request):
        text = request.tail[0].content
        self.asked.append(text)
        await asyncio.sleep(0)
        if text.startswith("fail"):
            raise LMRateLimitError(text)
        return response(f"asked {text}")


def question(text):
    return Request.of("m", text)


def call(layer, text):
    """A synchronous model call, as a predictor makes it."""

    def steps():
        return (yield Ask(layer, question(text))).text

    return perform(steps())


def drive(steps):
    """Run steps to their end, noting every effect that had to be waited for."""
    effects = []

    async def go():
        outcome = advance(steps)
        while isinstance(outcome, Pending):
            effects.append(outcome.effect)
            try:
                value = await outcome.effect
            except Exception as error:  # noqa: BLE001
                outcome = advance(steps, error=error)
            else:
                outcome = advance(steps, value)
        return outcome

    return asyncio.run(go()), effects


class TestPerform:
    def test_returns_the_value_of_the_steps(self):
        assert call(Echo(), "a") == "asked a"

    def test_calls_run_on_the_loop_of_the_engine(self):
        seen = []

        async def where():
            seen.append(threading.current_thread())

        def steps():
            yield where()

        perform(steps())
        assert seen == [runtime._engine.thread]
        assert seen[0] is not threading.current_thread()
        assert seen[0].daemon

    def test_a_known_answer_needs_no_loop(self):
        layer = Echo(known={"a"})
        assert call(layer, "a") == "known a"
        assert layer.asked == []

    def test_an_error_is_raised_inside_the_steps(self):
        layer = Echo()

        def steps():
            try:
                yield Ask(layer, question("fail"))
            except LMRateLimitError as error:
                return f"handled {error}"

        assert perform(steps()) == "handled fail"

    def test_an_error_nobody_handles_reaches_the_caller(self):
        with pytest.raises(LMRateLimitError, match="fail"):
            call(Echo(), "fail")

    def test_a_peek_that_fails_is_raised_inside_the_steps(self):
        class Damaged(Echo):
            def peek(self, request):
                raise ValueError("damaged")

        with pytest.raises(ValueError, match="damaged"):
            call(Damaged(), "a")

    def test_from_many_threads_at_once(self):
        layer, answers = Echo(), {}

        def work(number):
            answers[number] = call(layer, f"{number}")

        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {n: f"asked {n}" for n in range(16)}

    def test_inside_a_coroutine_of_the_engine_is_refused_with_the_way_out(self):
        layer = Echo()

        async def wrong():
            return call(layer, "a")

        with pytest.raises(RuntimeError, match=r"await module\.acall\(\.\.\.\)"):
            run(wrong())
        assert layer.asked == []

    def test_a_sync_predictor_in_an_aforward_is_refused_too(self):
        class Wrong(Module):
            def __init__(self):
                self.ask = Predict("question -> answer")

            async def aforward(self, question):
                return self.ask(question=question)

        program, lm = Wrong(), ScriptedLM({"x": {"answer": "y"}})
        program.set_lm(lm)
        with pytest.raises(RuntimeError, match="would block it"):
            perform(program.steps({"question": "x"}))
        assert lm.call_count == 0


class TestRun:
    def test_from_the_thread_of_the_engine_is_refused_and_the_coroutine_is_closed(self):
        started = []

        async def inner():
            started.append(1)

        async def outer():
            run(inner())

        with pytest.raises(RuntimeError, match="synchronous model call"):
            run(outer())
        gc.collect()  # an unawaited coroutine would warn here, and warnings are errors
        assert started == []

    def test_a_loop_that_does_not_move_is_said_to_block(self, monkeypatch):
        monkeypatch.setattr(runtime, "_BLOCKED", 0.2)
        held, go_on = threading.Event(), threading.Event()

        def hold():
            held.set()
            go_on.wait(10)

        async def work():
            raise AssertionError("it was given up before it began")

        runtime.loop().call_soon_threadsafe(hold)
        assert held.wait(10)
        try:
            with pytest.raises(RuntimeError, match="has not moved"):
                run(work())
        finally:
            go_on.set()

    def test_work_may_take_longer_than_a_loop_may_stand_still(self, monkeypatch):
        monkeypatch.setattr(runtime, "_BLOCKED", 0.02)

        async def work():
            await asyncio.sleep(0.1)
            return "done"

        assert run(work()) == "done"

    @pytest.mark.parametrize("seconds", [0.0, 0.1])
    def test_a_timeout_of_the_work_is_its_own(self, monkeypatch, seconds):
        monkeypatch.setattr(runtime, "_BLOCKED", 0.05)

        async def work():
            await asyncio.sleep(seconds)
            raise asyncio.TimeoutError("its own")

        with pytest.raises(asyncio.TimeoutError, match="its own"):
            run(work())

    def test_an_interrupted_caller_cancels_the_work(self, monkeypatch):
        cancelled = threading.Event()

        async def long():
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        real = asyncio.run_coroutine_threadsafe

        def interrupted(work, loop):
            future = real(work, loop)
            started = threading.Event()
            loop.call_soon_threadsafe(loop.call_soon, started.set)
            assert started.wait(5)

            def result(timeout=None):
                raise KeyboardInterrupt

            future.result = result
            return future

        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(long())
        assert cancelled.wait(5)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_gets_a_loop_of_its_own(self):
        async def answer():
            return 7

        assert run(answer()) == 7
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, b"%d" % run(answer()))
            finally:
                os._exit(0)
        os.close(write)
        said = os.read(read, 10)
        os.close(read)
        os.waitpid(child, 0)
        assert said == b"7"


class TestHop:
    def test_runs_on_the_engine_from_a_foreign_loop(self):
        async def where():
            return asyncio.get_running_loop()

        async def main():
            return await hop(where()), asyncio.get_running_loop()

        inner, outer = asyncio.run(main())
        assert inner is runtime.loop()
        assert outer is not inner

    def test_on_the_engine_it_is_a_plain_await(self):
        async def current():
            return asyncio.current_task()

        async def main():
            return await hop(current()), asyncio.current_task()

        inner, outer = run(main())
        assert inner is outer

    def test_cancelling_the_waiter_cancels_the_work(self):
        started, cancelled = threading.Event(), threading.Event()

        async def long():
            started.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async def main():
            task = asyncio.ensure_future(hop(long()))
            while not started.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert cancelled.wait(5)


class TestAdvance:
    def test_runs_through_answers_that_are_known(self):
        layer = Echo(known={"a", "b"})

        def steps():
            first = yield Ask(layer, question("a"))
            second = yield Ask(layer, question("b"))
            return first.text, second.text

        assert advance(steps()) == ("known a", "known b")

    def test_stops_at_the_first_that_is_not(self):
        layer = Echo(known={"a"})

        def steps():
            yield Ask(layer, question("a"))
            yield Ask(layer, question("b"))

        outcome = advance(steps())
        assert isinstance(outcome, Pending)
        assert outcome.effect.request.tail[0].content == "b"

    def test_an_awaitable_is_always_waited_for(self):
        future = object()

        def steps():
            yield future

        outcome = advance(steps())
        assert isinstance(outcome, Pending)
        assert outcome.effect is future

    def test_a_layer_without_peek_is_waited_for(self):
        async def layer(request):
            return response("x")

        def steps():
            yield Ask(layer, question("a"))

        assert isinstance(advance(steps()), Pending)

    def test_goes_on_with_a_value_or_an_error(self):
        def steps():
            try:
                got = yield object()
            except KeyError:
                got = "error"
            return got

        first = steps()
        advance(first)
        assert advance(first, 3) == 3
        second = steps()
        advance(second)
        assert advance(second, error=KeyError()) == "error"


class TestBridge:
    def test_sync_code_becomes_steps_with_its_calls_as_effects(self):
        layer = Echo()

        def program(first, *, second):
            return [call(layer, first), call(layer, second)]

        value, effects = drive(bridge(program, "a", second="b"))
        assert value == ["asked a", "asked b"]
        assert [effect.request.tail[0].content for effect in effects] == ["a", "b"]

    def test_known_answers_never_leave_the_bridge_pending(self):
        layer = Echo(known={"a"})
        assert advance(bridge(lambda: call(layer, "a"))) == "known a"

    def test_code_without_calls_needs_no_driver(self):
        assert advance(bridge(lambda: 5)) == 5

    def test_none_is_a_value_like_any_other(self):
        assert advance(bridge(lambda: None)) is None

    def test_the_error_of_a_call_arrives_in_the_function(self):
        layer = Echo()

        def program():
            try:
                call(layer, "fail")
            except LMRateLimitError:
                return call(layer, "again")

        assert drive(bridge(program))[0] == "asked again"

    def test_the_error_of_the_function_arrives_at_the_driver(self):
        layer = Echo()

        def program():
            call(layer, "a")
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            drive(bridge(program))

    def test_finally_runs_when_a_call_is_cancelled(self):
        seen, layer = [], Echo()

        def program():
            try:
                call(layer, "a")
            finally:
                seen.append("cleaned")

        steps = bridge(program)
        assert isinstance(advance(steps), Pending)
        with pytest.raises(asyncio.CancelledError):
            advance(steps, error=asyncio.CancelledError())
        assert seen == ["cleaned"]

    def test_closing_unfinished_steps_unwinds_the_function(self):
        seen, layer = [], Echo()

        def program():
            try:
                call(layer, "a")
            finally:
                seen.append("cleaned")

        steps = bridge(program)
        advance(steps)
        steps.close()
        assert seen == ["cleaned"]

    def test_runs_under_the_context_of_its_beginning_and_leaks_nothing(self):
        layer, seen = Echo(), []

        def program():
            seen.append(SPOT.get())
            SPOT.set("inside")
            call(layer, "a")
            seen.append(SPOT.get())

        def begin():
            SPOT.set("begun")
            steps = bridge(program)
            advance(steps)
            return steps

        context = contextvars.copy_context()
        steps = context.run(begin)
        assert SPOT.get() == "nowhere"
        SPOT.set("driver")
        try:
            advance(steps, response("x"))
        finally:
            SPOT.set("nowhere")
        assert seen == ["begun", "inside"]
        assert context[SPOT] == "begun"

    def test_many_rows_interleave_on_one_thread(self):
        layer, order, threads = Echo(), [], set()

        def program(row):
            total = ""
            for turn in range(3):
                order.append((row, turn))
                threads.add(threading.get_ident())
                total += call(layer, f"{row}.{turn} ")
            return total

        async def main():
            return await asyncio.gather(*(aperform(bridge(program, row)) for row in range(100)))

        answers = run(main())
        assert answers == ["".join(f"asked {row}.{turn} " for turn in range(3)) for row in range(100)]
        assert threads == {runtime._engine.thread.ident}
        assert order[:100] == [(row, 0) for row in range(100)], "no row waits for another's answer"

    def test_rows_may_end_in_another_order_than_they_began(self):
        first, second = bridge(lambda: call(Echo(), "a")), bridge(lambda: call(Echo(), "b"))
        assert isinstance(advance(first), Pending)
        assert isinstance(advance(second), Pending)
        assert advance(first, response("1")) == "1"
        assert advance(second, response("2")) == "2"

    def test_a_bridge_inside_a_bridged_function_goes_to_the_same_driver(self):
        layer = Echo()

        def inner(text):
            return call(layer, text) + "!"

        def outer():
            return [perform(bridge(inner, "a")), call(layer, "b"), perform(bridge(inner, "c"))]

        value, effects = drive(bridge(outer))
        assert value == ["asked a!", "asked b", "asked c!"]
        assert [effect.request.tail[0].content for effect in effects] == ["a", "b", "c"]

    def test_an_error_passes_through_nested_bridges_both_ways(self):
        layer = Echo()

        def inner():
            try:
                return call(layer, "fail inner")
            except LMRateLimitError as error:
                raise KeyError("from inner") from error

        def outer():
            try:
                return perform(bridge(inner))
            except KeyError:
                return call(layer, "fallback")

        assert drive(bridge(outer))[0] == "asked fallback"

    def test_bridged_says_where_it_is(self):
        assert not runtime.bridged()
        assert advance(bridge(runtime.bridged)) is True

    def test_a_thread_started_by_the_function_blocks_by_itself(self):
        layer = Echo()

        def program():
            found = []
            thread = threading.Thread(target=lambda: found.append(call(layer, "a")))
            thread.start()
            thread.join()
            return found

        assert advance(bridge(program)) == ["asked a"]

    def test_unfinished_bridges_are_collected(self):
        layer = Echo()
        for _ in range(1000):
            advance(bridge(lambda: call(layer, "a")))
        gc.collect()
        from greenlet import greenlet

        left = [
            item
            for item in gc.get_objects()
            if isinstance(item, greenlet) and type(item).__name__ == "_Bridged"
        ]
        assert len(left) < 10


class TestAperform:
    def test_an_ask_runs_on_the_engine_and_an_awaitable_on_the_loop_of_the_caller(self):
        seen = {}

        class Where:
            async def __call__(self, request):
                seen["ask"] = asyncio.get_running_loop()
                return response("x")

        async def mine():
            seen["mine"] = asyncio.get_running_loop()

        def steps():
            yield Ask(Where(), question("a"))
            yield mine()

        async def main():
            await aperform(steps())
            return asyncio.get_running_loop()

        here = asyncio.run(main())
        assert seen["ask"] is runtime.loop()
        assert seen["mine"] is here

    def test_cancelling_reaches_the_function(self):
        started, seen = threading.Event(), []

        class Never:
            async def __call__(self, request):
                started.set()
                await asyncio.sleep(3600)

        def program():
            try:
                call(Never(), "a")
            except asyncio.CancelledError:
                seen.append("told")
                raise

        async def main():
            task = asyncio.ensure_future(aperform(bridge(program)))
            while not started.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert seen == ["told"]


class TestModules:
    class Twice(Module):
        def __init__(self):
            self.first = Predict("question -> answer")
            self.second = Predict("question -> answer")

        def forward(self, question):
            middle = self.first(question=question).answer
            return Prediction(answer=self.second(question=middle).answer)

    class Outer(Module):
        def __init__(self, inner):
            self.inner = inner

        def forward(self, question):
            return self.inner(question=question)

    class Async(Module):
        def __init__(self):
            self.ask = Predict("question -> answer")

        async def aforward(self, question):
            found = await asyncio.gather(*(self.ask.acall(question=f"{question}{n}") for n in range(3)))
            return Prediction(answer=[one.answer for one in found])

    @pytest.fixture
    def lm(self):
        def answer(request):
            text = request.tail[-1].content.split("[[ ## question ## ]]\n")[1].split("\n")[0]
            return {"answer": f"<{text}>"}

        return ScriptedLM(answer)

    def test_nested_sync_modules_in_one_task(self, lm):
        program = self.Outer(self.Outer(self.Twice()))
        program.set_lm(lm)
        assert program(question="q").answer == "<<q>>"
        assert asyncio.run(program.acall(question="r")).answer == "<<r>>"

    def test_a_sync_forward_around_an_async_module(self, lm):
        program = self.Outer(self.Async())
        program.set_lm(lm)
        assert program(question="q").answer == ["<q0>", "<q1>", "<q2>"]
        assert asyncio.run(program.acall(question="q")).answer == ["<q0>", "<q1>", "<q2>"]

    def test_an_async_module_awaits_a_sync_one(self, lm):
        twice = self.Twice()

        class Around(Module):
            def __init__(self):
                self.inner = twice

            async def aforward(self, question):
                return await self.inner.acall(question=question)

        program = Around()
        program.set_lm(lm)
        assert program(question="q").answer == "<<q>>"

    def test_acall_on_a_foreign_loop_does_not_block_it(self, lm):
        slow = ScriptedLM({"x": {"answer": "y"}}, latency=0.05)
        program = self.Twice()
        program.set_lm(slow)
        ticks = []

        async def main():
            task = asyncio.ensure_future(program.acall(question="x"))
            while not task.done():
                ticks.append(time.monotonic())
                await asyncio.sleep(0.005)
            return await task

        with pytest.raises(LMConfigurationError, match="no line"):  # the second question is the answer y
            asyncio.run(main())
        assert len(ticks) >= 3


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_code_that_wants_to_end_the_process_takes_no_loop_with_it(kind):
    class Leaves(Module):
        def forward(self, question):
            raise kind(f"at {question}")

    with pytest.raises(kind, match="at q"):
        Leaves().batch([{"question": "q"}], disable_progress_bar=True)

    async def later():
        return 2

    assert run(later()) == 2, "other rows need the loop"


ENDS = """
import atexit, threading
ended, told = threading.Event(), threading.Event()

@atexit.register  # before that of the package, so it is called after it
def last():
    ended.set()
    told.wait(1)

import dspy_stream as ds
lm = ds.ScriptedLM("a")
lm("q")

def asks():
    ended.wait()
    try:
        print(lm("q"))
    finally:
        told.set()

threading.Thread(target=asks, daemon=True).start()
print("ends")
"""


def test_a_thread_that_asks_when_the_process_has_ended_is_not_heard_of():
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
